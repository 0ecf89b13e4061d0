"""Leases: small files by which anybody, reader or writer, keeps an epoch from going.

``leases/NAME.json`` names an epoch and when the lease ends. A writer closes no epoch that a lease
names. Both sides hold a ``flock`` on ``leases/.lock``, shared to make or renew a lease or to open
what an epoch names, exclusive to close epochs, and a lease counts only when its epoch is still open
after its file is in place. So an epoch is either kept or reported gone, never both. A writer that
finds the lock taken closes nothing this time. Within the retention time no writer closes an epoch,
lease or not.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from matchwright.engine.errors import (
    AlreadyExists,
    EpochGone,
    InvalidArgument,
    NotFound,
    StoreDamaged,
    StoreError,
    StoreFormat,
)
from matchwright.engine.store import files

FORMAT = 1
FOLDER = "leases"
SUFFIX = ".json"
_LOCK = ".lock"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True, slots=True)
class LeaseNote:
    """What a lease file says.

    Attributes:
        name: of the lease.
        epoch: number of the epoch that it keeps.
        made: seconds since 1970.
        expires: the same, or None when it stays until it is released.
        process: who made or renewed it.
    """

    name: str
    epoch: int
    made: float
    expires: float | None
    process: int

    def expired(self, now: float) -> bool:
        return self.expires is not None and self.expires <= now


class LeaseFolder:
    """The lease files of one store.

    Args:
        root: the store's folder.
    """

    def __init__(self, root: Path) -> None:
        self.folder = root / FOLDER
        self._known: dict[str, tuple[tuple[int, int, int], LeaseNote]] = {}

    def notes(self) -> list[LeaseNote]:
        """Every lease, ended ones included, by name.

        Raises:
            StoreDamaged, StoreFormat: a file that this version does not understand.
        """
        try:
            paths = sorted(self.folder.iterdir())
        except FileNotFoundError:
            return []
        named = (path for path in paths if path.suffix == SUFFIX and path.name[0] != ".")
        return [note for path in named if (note := self._read(path)) is not None]

    def find(self, name: str) -> LeaseNote | None:
        """The lease of a name, ended or not."""
        return self._read(self._path(name))

    def put(self, note: LeaseNote) -> None:
        """Writes a lease; durable when it returns."""
        document = {"format": FORMAT, **asdict(note)}
        files.write_atomic(self._path(note.name), json.dumps(document).encode())

    def remove(self, name: str) -> bool:
        """Takes a lease away; whether there was one."""
        path = self._path(name)
        with files.naming(path):
            try:
                path.unlink()
            except FileNotFoundError:
                return False
        return True

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """While a lease is made or renewed: no writer closes an epoch. Waits for one that does.

        Raises:
            StoreError: the folder cannot be written to.
        """
        fd = self._open()
        try:
            fcntl.flock(fd, fcntl.LOCK_SH)
            yield
        finally:
            os.close(fd)

    @contextmanager
    def reading(self) -> Iterator[bool]:
        """While files are opened: no writer closes an epoch, so none of them goes.

        False where this process may not write to a folder that no writer has locked yet: then
        there is nothing to hold.
        """
        try:
            fd = self._open()
        except StoreError:
            try:
                fd = os.open(self.folder / _LOCK, os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                yield False
                return
        try:
            fcntl.flock(fd, fcntl.LOCK_SH)
            yield True
        finally:
            os.close(fd)

    @contextmanager
    def closing(self) -> Iterator[bool]:
        """While epochs are closed; False when a lease is being made, so that none may be now."""
        fd = self._open()
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True
        finally:
            os.close(fd)

    def _open(self) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        with files.naming(self.folder):
            self.folder.mkdir(exist_ok=True)
            return os.open(self.folder / _LOCK, flags, 0o644)

    def _path(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise InvalidArgument(
                f"got the lease name {name!r}, expected 1 to 100 of A-Z a-z 0-9 . _ -, "
                "the first not . or -",
                field="name",
            )
        return self.folder / f"{name}{SUFFIX}"

    def _read(self, path: Path) -> LeaseNote | None:
        """What a file says; read again only when it was replaced: writers ask at every write."""
        with files.naming(path, "read"):
            try:
                found = path.stat()
                mark = found.st_ino, found.st_mtime_ns, found.st_size
                known = self._known.get(path.name)
                if known is not None and known[0] == mark:
                    return known[1]
                data = path.read_bytes()
            except FileNotFoundError:
                self._known.pop(path.name, None)
                return None
        note = self._parsed(path, data)
        self._known[path.name] = mark, note
        return note

    @staticmethod
    def _parsed(path: Path, data: bytes) -> LeaseNote:
        try:
            document: dict[str, Any] = json.loads(data)
            version = document.pop("format")
            if isinstance(version, int) and version > FORMAT:
                raise StoreFormat(
                    f"{path}: has format {version}, this version reads up to {FORMAT}; "
                    "use a newer matchwright",
                    file=path,
                )
            note = LeaseNote(**document)
            intact = note.name == path.name.removesuffix(SUFFIX) and isinstance(note.epoch, int)
            intact &= note.expires is None or isinstance(note.expires, (int, float))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            intact = False
        if not intact:
            raise StoreDamaged(
                f"{path}: is not a lease; until it is removed no epoch goes", file=path
            )
        return note


class Lease:
    """An epoch that stays. Leaving a ``with`` block releases it.

    Attributes:
        name: of the lease, one in the store.
        epoch: number of the epoch.
        expires: seconds since 1970, or None: until it is released.
    """

    def __init__(
        self, folder: LeaseFolder, note: LeaseNote, is_open: Callable[[int], bool]
    ) -> None:
        self.name = note.name
        self.epoch = note.epoch
        self.expires = note.expires
        self._folder = folder
        self._is_open = is_open

    def __repr__(self) -> str:
        return f"<Lease {self.name!r} of epoch {self.epoch}, expires {self.expires}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()

    def renew(self, seconds: float | None) -> None:
        """Moves the end to ``seconds`` from now (None: until it is released).

        Raises:
            EpochGone: the lease had ended and the epoch has gone.
            AlreadyExists: it had ended, and the name keeps another epoch now.
        """
        self.expires = take(self._folder, self.name, self.epoch, seconds, self._is_open).expires

    def release(self) -> None:
        """Lets the epoch go. Safe to call twice, and after the name was given to another epoch."""
        held = self._folder.find(self.name)
        if held is not None and held.epoch == self.epoch:
            self._folder.remove(self.name)


def take(
    folder: LeaseFolder,
    name: str,
    number: int,
    seconds: float | None,
    is_open: Callable[[int], bool],
) -> LeaseNote:
    """Makes or renews the lease ``name`` of an epoch.

    Args:
        folder: the store's leases.
        name: of the lease.
        number: of the epoch.
        seconds: until it ends; None: never.
        is_open: whether an epoch is open, asked of the catalog anew.

    Raises:
        EpochGone: the epoch has gone.
        AlreadyExists: the name keeps another epoch.
    """
    if seconds is not None and not (math.isfinite(seconds) and seconds > 0):
        raise InvalidArgument(f"got a lease of {seconds} s, expected more than 0", field="seconds")
    now = time.time()
    note = LeaseNote(name, number, now, None if seconds is None else now + seconds, os.getpid())
    with folder.keeping():
        held = folder.find(name)
        if held is not None and held.epoch != number and not held.expired(now):
            raise AlreadyExists(
                f"the lease {name!r} keeps epoch {held.epoch}; release it, or take another name",
                name=name,
                epoch=held.epoch,
            )
        if not is_open(number):
            raise EpochGone(f"epoch {number} has gone and cannot be kept", epoch=number)
        folder.put(note)
    return note


def release(folder: LeaseFolder, name: str) -> LeaseNote:
    """Ends a lease by its name.

    Raises:
        NotFound: there is no such lease.
    """
    held = folder.find(name)
    if held is None or not folder.remove(name):
        raise NotFound(f"there is no lease {name!r}", name=name)
    return held
