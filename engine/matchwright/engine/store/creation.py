"""The folder of a store: found, locked for its writer, made with the catalog of a new one."""

from __future__ import annotations

import os
import uuid as uuids
from collections.abc import Callable
from pathlib import Path

from matchwright.engine.errors import InvalidArgument, NotFound
from matchwright.engine.store import blobs, files, replica
from matchwright.engine.store.catalog import FILE, Catalog, State
from matchwright.engine.store.encode import Neighbours
from matchwright.engine.store.refit import save_generation

SALT_BYTES = 16


def make_folders(root: Path) -> None:
    """The folders of a store, there or not."""
    try:
        (root / "segments").mkdir(parents=True, exist_ok=True)
        (root / "generations").mkdir(exist_ok=True)
        files.sync_folder(root)
    except OSError as error:
        raise files.failure(root, error)


def create(root: Path, neighbours: Neighbours, keep_text: bool, salt: bytes | None) -> None:
    """Makes the catalog, unless it is there. Killed in between, the next creation goes on."""
    salt = os.urandom(SALT_BYTES) if salt is None else salt
    if len(salt) != SALT_BYTES:
        raise InvalidArgument(f"got a salt of {len(salt)} bytes, expected {SALT_BYTES}")
    made = Catalog(root / FILE, write=True)
    try:
        made.check()
    except NotFound:
        generation = neighbours.starter()
        save_generation(root, generation)
        name = str(uuids.uuid4())
        digest = blobs.digest(name.encode(), salt)
        made.create(State(name, salt, keep_text, 0, digest, generation.id, 3, 1, 1, 2))
        files.sync_folder(root)
    finally:
        made.close()


def place(path: str | os.PathLike[str], mode: str, create: bool) -> Path:
    """The folder of a store, if it can be opened in that way.

    Raises:
        InvalidArgument: nothing can be opened in that way.
        NotFound: there is no store, and none is to be made.
    """
    root = Path(path)
    if mode not in ("r", "w") or (create and mode != "w"):
        raise InvalidArgument(f"got mode {mode!r}, create {create}; expected 'r' or 'w'")
    if not create and not (root / FILE).is_file():
        raise NotFound(f"{root}: holds no store; import into it to make one", file=root)
    return root


def locked(
    root: Path, create: bool, wait_s: float, waiting: Callable[[str], None] | None
) -> files.WriterLock:
    """The lock of the one writer, on a folder that is no replica; its folders where it is new.

    Raises:
        FailedPrecondition: it is a replica.
        StoreLocked: another writer has it, after ``wait_s`` still.
    """
    replica.refuse_writer(root)
    if create:
        make_folders(root)
    lock = files.WriterLock(root / "LOCK", wait_s=wait_s, waiting=waiting)
    try:
        replica.refuse_writer(root)  # it may have become one while we waited
    except BaseException:
        lock.release()
        raise
    return lock
