"""One writer at a time for one run.

On a local disk it is ``flock`` on the file LOCK, which the kernel releases when the holder dies. On
any other target it is an object LOCK that says who holds it and when that was last true; it is
taken over only when that is longer ago than ``STALE_S``.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from matchwright.engine.errors import StoreLocked
from matchwright.engine.store.remote import Target, make_parent

FILE = "LOCK"
HEARTBEAT_S = 15.0
"""How often the holder of a LOCK object says that it is still there."""
STALE_S = 120.0
"""A LOCK object that is older than this belongs to nobody any more."""


def holder() -> dict[str, Any]:
    """Who we are."""
    return {
        "holder": uuid.uuid4().hex,
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "heartbeat": time.time(),
    }


@contextlib.contextmanager
def local_lock(path: Path, what: str) -> Iterator[None]:
    """Hold the lock file ``path``; it stays when it is released.

    Raises:
        StoreLocked: another process holds it; the message says which.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise _held(what, _who(file.read())) from None
        file.truncate(0)
        file.write(json.dumps(holder()).encode())
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


@contextlib.contextmanager
def object_lock(
    fs: Any,
    path: str,
    what: str,
    *,
    heartbeat_s: float = HEARTBEAT_S,
    stale_s: float = STALE_S,
) -> Iterator[None]:
    """Hold the LOCK object at ``path`` of an fsspec file system; removed when it is released.

    Raises:
        StoreLocked: another process holds it; the message says which.
    """
    mine = holder()
    _take(fs, path, mine, what, stale_s)
    done = threading.Event()
    lost: list[str] = []
    beat = threading.Thread(
        target=_beat, args=(fs, path, mine, done, lost, heartbeat_s), daemon=True, name="run-lock"
    )
    beat.start()
    try:
        yield
    finally:
        done.set()
        beat.join()
        # A target that does not answer has its own error above; the lock gets stale by itself.
        with contextlib.suppress(Exception):
            if not lost and _read(fs, path).get("holder") == mine["holder"]:
                fs.rm_file(path)
    if lost:
        raise StoreLocked(f"{what}: lost its lock ({lost[0]}); another process may have gone on")


@contextlib.contextmanager
def target_lock(target: Target, name: str, what: str) -> Iterator[None]:
    """Hold the LOCK object ``name`` of a target that is no local disk.

    Raises:
        StoreLocked: another process holds it; the message says which.
        DependencyUnavailable: the target does not answer.
    """
    with contextlib.ExitStack() as stack:
        with target.naming(name, "written"):
            stack.enter_context(object_lock(target.fs, target.path(name), what))
        yield


def _take(fs: Any, path: str, mine: dict[str, Any], what: str, stale_s: float) -> None:
    make_parent(fs, path)
    data = json.dumps(mine).encode()
    try:
        fs.pipe_file(path, data, mode="create")
    except OSError as error:
        # "It is there" has many names: one for each store, and for two that try at once. It may be
        # ours, too: the answer was lost on its way and the plugin has tried again.
        other = _read(fs, path)
        if not other and not isinstance(error, FileExistsError):
            raise
        if other.get("holder") == mine["holder"]:
            return
        if time.time() - float(other.get("heartbeat", 0)) < stale_s:
            raise _held(what, other) from None
        fs.pipe_file(path, data)
    if _read(fs, path).get("holder") != mine["holder"]:  # two took it over at the same moment
        raise _held(what, _read(fs, path))


def _beat(
    fs: Any,
    path: str,
    mine: dict[str, Any],
    done: threading.Event,
    lost: list[str],
    heartbeat_s: float,
) -> None:
    while not done.wait(heartbeat_s):
        try:
            other = _read(fs, path)
            if other.get("holder") != mine["holder"]:
                lost.append(f"{path} names {other.get('host')} now")
                return
            fs.pipe_file(path, json.dumps({**mine, "heartbeat": time.time()}).encode())
        except Exception:  # plugins raise errors of their own libraries
            continue  # the target does not answer; the next beat says it again


def _read(fs: Any, path: str) -> dict[str, Any]:
    fs.invalidate_cache()
    try:
        return _who(fs.cat_file(path))
    except FileNotFoundError:
        return {}


def _who(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _held(what: str, other: dict[str, Any]) -> StoreLocked:
    where = f"process {other.get('pid', '?')} on {other.get('host', '?')}"
    return StoreLocked(
        f"{what}: {where} is writing it; wait until it has ended",
        pid=other.get("pid", ""),
        host=other.get("host", ""),
    )
