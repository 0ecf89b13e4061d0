"""Files that are either whole or not there, what to say when the system refuses them, and the lock
of the one writer.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from matchwright.engine.errors import (
    InvalidArgument,
    StoreDamaged,
    StoreError,
    StoreFull,
    StoreLocked,
    StoreReadOnly,
)

FULL_HINT = (
    "free some space, or raise the quota or the limit on file sizes, and try again; "
    "what was acknowledged is kept"
)
READ_ONLY_HINT = "mount the file system read-write, or give this user the permission to write"
_DISK_HINT = "look at the kernel's log and check the disk; what was acknowledged is kept"
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_READ_ONLY = {errno.EROFS, errno.EACCES, errno.EPERM}
REFUSED = _FULL | _READ_ONLY
"""Error numbers of a system that has no room, or gives no permission."""
_VANISHED = {errno.ENOENT, errno.ENOTDIR}
LOCK_POLL_S = 0.05
"""How often whoever waits for the writer's lock tries to take it."""
_log = logging.getLogger(__name__)


def failure(path: object, error: OSError, doing: str = "written") -> StoreError:
    """The store's error for what the operating system refused: names the file, says what to do.

    Args:
        path: the file, folder or URL.
        error: what was raised.
        doing: "written", "read": what could not be done.
    """
    why = f"{path}: could not be {doing}: {error.strerror or error}"
    if error.errno in _FULL:
        return StoreFull(f"{why}; {FULL_HINT}", file=path)
    if error.errno in _READ_ONLY and doing != "read":
        return StoreReadOnly(f"{why}; {READ_ONLY_HINT}", file=path)
    if error.errno in _VANISHED and doing == "read":
        return StoreDamaged(
            f"{path}: is not there any more; restore it from a copy, or import again", file=path
        )
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return StoreError(f"{why}; raise the limit on open files (ulimit -n)", file=path)
    return StoreError(f"{why}; {_DISK_HINT}", file=path)


@contextmanager
def naming(path: object, doing: str = "written") -> Iterator[None]:
    """Turns what the operating system refuses within the block into ``failure``."""
    try:
        yield
    except OSError as error:
        raise failure(path, error, doing)


def write_atomic(path: Path, data: bytes) -> None:
    """Puts a small file in place, durable; readers see the one before or this one.

    Raises:
        StoreError: the system refused; the file before is still there, nothing else is left.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
        sync_folder(path.parent)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise failure(path, error)


def sync_folder(folder: Path) -> None:
    """Makes names that were created, renamed or removed in the folder durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_tree(folder: Path) -> None:
    """Makes every file below a folder durable, and the folder itself."""
    for entry in sorted(folder.iterdir()):
        if entry.is_dir():
            sync_tree(entry)
        else:
            fd = os.open(entry, os.O_RDONLY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
    sync_folder(folder)


class WriterLock:
    """Held by the one process (and the one ``Store``) that may write.

    A ``flock`` on the file ``LOCK``: the kernel drops it when its holder dies, however it dies. The
    file names the holder's process for the message that the next one gets.

    Args:
        path: of the file ``LOCK``.
        wait_s: seconds to wait for the process that holds it; 0 fails at once.
        waiting: told once who is waited for, when somebody is; the log is by default.

    Raises:
        InvalidArgument: ``wait_s`` is below 0, or no number.
        StoreLocked: another process holds it, still.
        StoreReadOnly, StoreFull: the file cannot be made.
    """

    def __init__(
        self, path: Path, *, wait_s: float = 0.0, waiting: Callable[[str], None] | None = None
    ) -> None:
        if not wait_s >= 0:
            raise InvalidArgument(f"got a wait of {wait_s} s, expected 0 or more", field="wait_s")
        self._path = path
        self._fd = -1
        try:
            self._take(wait_s, waiting or _log.info)
        except BaseException:
            self.release()
            raise
        with suppress(OSError):  # a full disk: the lock holds all the same, it only has no name
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, f"{os.getpid()}\n".encode("ascii"), 0)

    def _take(self, wait_s: float, waiting: Callable[[str], None]) -> None:
        until, told = time.monotonic() + wait_s, False
        while not self._tried():
            holder = os.pread(self._fd, 64, 0).decode("ascii", "replace").strip() or "unknown"
            left = until - time.monotonic()
            if left <= 0:
                waited = f", after {wait_s:g} s still" if wait_s else ""
                raise StoreLocked(
                    f"{self._path.parent}: process {holder} is writing to this store{waited}; "
                    "wait for longer, stop it, or send the change through it",
                    file=self._path,
                    holder=holder,
                )
            if not told:
                waiting(
                    f"{self._path.parent}: process {holder} is writing to this store; "
                    f"waiting for it, {wait_s:g} s at most"
                )
                told = True
            time.sleep(min(LOCK_POLL_S, left))

    def _tried(self) -> bool:
        """Whether we hold the lock now, of the file that has the name now.

        A restore puts another folder, with a lock of its own, in the place of the one that somebody
        waits in.
        """
        while True:
            if self._fd < 0:
                try:
                    self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
                except OSError as error:
                    raise failure(self._path, error)
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            try:
                if os.path.samestat(os.fstat(self._fd), self._path.stat()):
                    return True
            except OSError:
                pass
            self.release()

    def release(self) -> None:
        """Lets the next writer in. Safe to call twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
