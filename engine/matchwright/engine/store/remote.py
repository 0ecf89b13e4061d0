"""A folder that stores and runs are written to: any file system that fsspec knows.

Objects appear under their names when they are complete. On a disk they are synced, then renamed; an
object store's own upload is atomic; elsewhere they are written beside, then moved.
"""

from __future__ import annotations

import datetime
import fcntl
import glob
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from matchwright.engine.errors import (
    DependencyUnavailable,
    InvalidArgument,
    MatchwrightError,
    NotFound,
    StoreDamaged,
    StoreReadOnly,
)
from matchwright.engine.store import files

COPY_BYTES = 1 << 20
Names = list[str]
_LOCAL = {"file", "local"}
_PUT_IS_ATOMIC = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oci", "oss", "memory"}
_TIMES = ("mtime", "LastModified", "last_modified", "updated", "modified", "created")
PART = ".part"
"""Ends the names of files that are being written, or were when their writer was killed."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A file of a target: bytes, and when it was written (seconds since 1970; None: unknown)."""

    size: int
    written: float | None


class Target:
    """A folder of some file system; names are relative to it, with "/".

    Args:
        url: a path, or an URL such as ``s3://bucket/folder``.
        name: a folder below it, so that many stores share one place.

    Attributes:
        fs: the fsspec file system.
        root: the folder's path there.
        local: the folder, where it is one of this machine; else None.
        url: the folder as people write it.

    Raises:
        InvalidArgument: no file system has that scheme, or a name that leaves the folder.
        DependencyUnavailable: the package that the scheme needs is not installed.
    """

    def __init__(self, url: str | os.PathLike[str], name: str | None = None) -> None:
        import fsspec

        text = os.fspath(url)
        if name is not None:
            if not name or name.startswith((".", "/")) or "/.." in name:
                raise InvalidArgument(f"got the name {name!r}, expected one such as 'shop/eu'")
            text = f"{text.rstrip('/')}/{name}"
        try:
            self.fs, root = fsspec.core.url_to_fs(text)
        except ImportError as error:
            raise DependencyUnavailable(f"{text}: {error}")
        except ValueError as error:
            raise InvalidArgument(f"{text!r} is no target: {error}", field="url")
        self.root = root.rstrip("/") or "/"
        protocol = self.fs.protocol
        known = {protocol} if isinstance(protocol, str) else set(protocol)
        self.local = Path(self.root) if known & _LOCAL else None
        self._atomic = _puts_whole(self.fs)
        self.url = self.root if self.local else str(self.fs.unstrip_protocol(self.root))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.url}>"

    def path(self, name: str) -> str:
        """The file system's path of a name."""
        return f"{self.root.rstrip('/')}/{name}" if name else self.root

    def url_of(self, name: str) -> str:
        """A name as people write it."""
        return f"{self.url}/{name}" if name else self.url

    def list(self, folder: str = "") -> dict[str, Entry]:
        """Every file below a folder: name -> entry. None when the folder is not there."""
        with self._naming(folder, "read"):
            self.fs.invalidate_cache()
            try:
                found: Mapping[str, Any] = self.fs.find(self.path(folder), detail=True)
            except FileNotFoundError:
                return {}
        skip = len(self.root.rstrip("/")) + 1
        return {path[skip:]: Entry(int(info["size"]), _time(info)) for path, info in found.items()}

    def names(self, folder: str = "") -> Names:
        """Names of the files and folders right below a folder, sorted; none when it is absent."""
        with self._naming(folder, "read"):
            self.fs.invalidate_cache()
            try:
                found = self.fs.ls(self.path(folder), detail=False)
            except (FileNotFoundError, NotADirectoryError):
                return []
        return sorted(entry.rstrip("/").rsplit("/", 1)[-1] for entry in found)

    def exists(self, name: str) -> bool:
        """Whether a file or folder is there."""
        with self._naming(name, "read"):
            self.fs.invalidate_cache()
            return bool(self.fs.exists(self.path(name)))

    def size(self, name: str) -> int:
        """Bytes of a file.

        Raises:
            NotFound: it is not there.
        """
        with self._naming(name, "read"):
            return int(self.fs.size(self.path(name)))

    def read_json(self, name: str) -> Any:
        """A JSON file.

        Raises:
            NotFound: it is not there.
            StoreDamaged: it is not JSON.
        """
        where = self.url_of(name)
        try:
            return json.loads(self.read(name))
        except (ValueError, RecursionError) as error:
            raise StoreDamaged(f"{where}: is not JSON: {error}", file=where)

    def read(self, name: str) -> bytes:
        """A whole file.

        Raises:
            NotFound: it is not there.
        """
        with self._naming(name, "read"):
            data: bytes = self.fs.cat_file(self.path(name))
        return data

    def fetch(self, name: str, path: Path) -> str:
        """Copies a file to a local path, durable; its SHA-256 in hex.

        Raises:
            NotFound: it is not there.
            StoreError: it cannot be written here.
        """
        state = hashlib.sha256()
        with files.naming(path), path.open("wb") as into:
            for piece in self.pieces(name):
                state.update(piece)
                into.write(piece)
            into.flush()
            os.fsync(into.fileno())
        return state.hexdigest()

    def pieces(self, name: str) -> Iterator[bytes]:
        """The bytes of a file, a piece at a time."""
        with self.opened(name) as source:
            while True:
                with self._naming(name, "read"):
                    piece: bytes = source.read(COPY_BYTES)
                if not piece:
                    return
                yield piece

    @contextmanager
    def opened(self, name: str) -> Iterator[IO[bytes]]:
        """A file to read from.

        Raises:
            NotFound: it is not there.
        """
        with self._naming(name, "read"):
            file: IO[bytes] = self.fs.open(self.path(name), "rb")
        with file:
            # What reads from it (tarfile, for one) knows no plugin's errors.
            there = cast("IO[bytes]", _Named(file, lambda: self._naming(name, "read")))
            yield file if self.local is not None else there

    def write(self, name: str, data: bytes) -> None:
        """Puts a small file in place; readers see the one before or this one."""
        with self.writing(name) as file:
            file.write(data)

    @contextmanager
    def writing(self, name: str) -> Iterator[IO[bytes]]:
        """A file to write to; in place when the block ends without an error, else left out."""
        with self._naming(name, "written"):
            if self.local is not None:
                yield from _writing_here(Path(self.path(name)))
            else:
                yield from self._writing_there(self.path(name))

    def _writing_there(self, path: str) -> Iterator[IO[bytes]]:
        under = path if self._atomic else f"{path}.{uuid.uuid4().hex}{PART}"
        make_parent(self.fs, path)
        file = self.fs.open(under, "wb")
        try:
            yield file
            file.close()
        except BaseException:
            _abandon(self.fs, file, under)
            raise
        if under != path:
            self.fs.mv(under, path)

    def remove(self, name: str) -> None:
        """Removes a file; it need not be there."""
        with self._naming(name, "removed"), suppress(FileNotFoundError):
            self.fs.rm_file(self.path(name))

    def remove_all(self) -> None:
        """Removes the folder and all that is in it."""
        with self._naming("", "removed"), suppress(FileNotFoundError):
            self.fs.rm(self.root, recursive=True)

    def naming(self, name: str, doing: str) -> AbstractContextManager[None]:
        """Around other calls of the file system: its errors become this project's.

        Args:
            name: of the file.
            doing: "written", "read", "removed": what could not be done.
        """
        return self._naming(name, doing)

    @contextmanager
    def _naming(self, name: str, doing: str) -> Iterator[None]:
        """Turns what a file system raises into this project's errors, naming the file."""
        where = self.url_of(name)
        try:
            yield
        except MatchwrightError:
            raise
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            if doing == "written" and self.local is not None:
                raise files.failure(where, error, doing)
            if doing == "written":
                raise NotFound(
                    f"{where}: could not be written: {error}; make the bucket or share first, or "
                    "correct its name",
                    file=where,
                )
            raise NotFound(f"{where}: is not there", file=where)
        except OSError as error:
            if self.local is not None or error.errno in files.REFUSED:
                raise files.failure(where, error, doing)
            if isinstance(error, PermissionError) and doing == "written":
                raise StoreReadOnly(f"{where}: {error}; {files.READ_ONLY_HINT}", file=where)
            raise DependencyUnavailable(f"{where}: could not be {doing}: {error}", file=where)
        except Exception as error:  # plugins raise errors of their own libraries
            if self.local is not None:
                raise
            raise DependencyUnavailable(f"{where}: could not be {doing}: {error}", file=where)


class _Named:
    """A file to read from, whose errors are this project's."""

    def __init__(self, file: IO[bytes], naming: Callable[[], AbstractContextManager[None]]) -> None:
        self._file = file
        self._naming = naming

    def read(self, size: int = -1) -> bytes:
        with self._naming():
            return self._file.read(size)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def _puts_whole(fs: Any) -> bool:
    known = {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)
    return bool(known & _PUT_IS_ATOMIC)


def make_parent(fs: Any, path: str) -> None:
    """The folder that a file is to be in, where there are folders.

    Object stores have none, and their plugins would make a bucket of a name that was mistyped.
    """
    if not _puts_whole(fs):
        fs.makedirs(fs._parent(path), exist_ok=True)


def _writing_here(path: Path) -> Iterator[IO[bytes]]:
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex}{PART}")
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(path)
    try:
        with part.open("wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise
    files.sync_folder(path.parent)


def _remove_abandoned(path: Path) -> None:
    """Removes what killed processes began to write in the place of ``path``."""
    for left in path.parent.glob(f"{glob.escape(path.name)}.*{PART}"):
        with suppress(OSError), left.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left.unlink()


def _abandon(fs: Any, file: Any, path: str) -> None:
    """Leaves no half-written object behind, as far as the file system can.

    Nothing may close the file afterwards: that would put in place what was written so far.
    """
    with suppress(Exception):
        (file.discard if hasattr(file, "discard") else file.close)()
    with suppress(Exception):
        file.closed = True
    if path.endswith(PART) or not hasattr(file, "discard"):
        with suppress(Exception):
            fs.rm_file(path)


def _time(info: Mapping[str, Any]) -> float | None:
    for name in _TIMES:
        value = info.get(name)
        if isinstance(value, (int, float)):
            return float(value)
        if isinstance(value, datetime.datetime):
            return value.timestamp()
        if isinstance(value, str):
            with suppress(ValueError):
                return datetime.datetime.fromisoformat(value).timestamp()
    return None


def copy_all(source: IO[bytes], into: IO[bytes], where: object) -> str:
    """Copies from the start; the SHA-256 of what was copied, in hex.

    Args:
        source, into: open files.
        where: the source's name.

    Raises:
        StoreError: the source cannot be read.
    """
    state = hashlib.sha256()
    source.seek(0)
    for piece in pieces_of(source, where):
        state.update(piece)
        into.write(piece)
    return state.hexdigest()


def pieces_of(source: IO[bytes], where: object) -> Iterator[bytes]:
    """The bytes of an open file from where it is, a piece at a time."""
    while True:
        with files.naming(where, "read"):
            piece = source.read(COPY_BYTES)
        if not piece:
            return
        yield piece


def sha256_of(path: Path) -> str:
    """SHA-256 of a local file, in hex.

    Raises:
        StoreError: it cannot be read.
    """
    with files.naming(path, "read"), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remove_tree(folder: Path) -> None:
    """Removes a folder of ours, if it is there."""
    shutil.rmtree(folder, ignore_errors=True)
