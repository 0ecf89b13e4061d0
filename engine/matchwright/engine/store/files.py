"""Files that are either whole or not there, and the lock of the one writer."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from matchwright.engine.errors import StoreError, StoreLocked


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
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise StoreError(f"{path}: cannot be opened to write: {error}", file=path)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(self._fd, 64).decode("ascii", "replace").strip() or "unknown"
            os.close(self._fd)
            raise StoreLocked(
                f"{path.parent}: process {holder} is writing to this store; "
                "stop it, or send the change through it",
                file=path,
                holder=holder,
            )
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()}\n".encode("ascii"), 0)

    def release(self) -> None:
        """Lets the next writer in. Safe to call twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
