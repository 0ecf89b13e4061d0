"""Embeddings of served encoders: ``DIR/embeddings/HASH.sqlite``, a file for each encoder.

::

    about      one row: format, the encoder's content hash, dimensions, since when it is ahead
    embedding  key (BLAKE2b-128 of the text) -> CRC-32 of key and value, value

A value is the unit vector as int32 in units of 2**-20, the grid of all facets: its entries are
integers of at most 2**20, so four bytes lose nothing and two would. What is stored first stays:
whoever stores the same text again gets what is there. Rows are appended in the order of their
numbers, so that a copy of a file that grew is the earlier copy and more.

Several processes may write, each through transactions of its own: a writer of the store, and
``matchwright embed``.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from matchwright.engine.errors import EpochGone, StoreDamaged, StoreFormat
from matchwright.engine.store import files
from matchwright.engine.store.connections import PAGE_BYTES, Connections

if TYPE_CHECKING:
    from matchwright.kernels.types import Int32

FOLDER, SUFFIX = "embeddings", ".sqlite"
FORMAT = 1
_APPLICATION_ID = 0x4D575345  # "MWSE"
_PARAMETERS_MAX = 500
_VALUE = np.dtype("<i4")
_CHECKSUM_BYTES = 4
_FILES_KEPT = 4
AHEAD_S = 30 * 86_400.0
"""How long embeddings stay that were made ahead of a generation that never came."""
_TABLES = (
    """CREATE TABLE about (
  one INTEGER PRIMARY KEY CHECK (one = 1), encoder TEXT NOT NULL, dimensions INTEGER NOT NULL,
  ahead REAL)""",
    """CREATE TABLE embedding (
  n INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, value BLOB NOT NULL)""",
)


def path_of(root: Path, content_hash: str) -> Path:
    """Where an encoder's embeddings are."""
    return root / FOLDER / f"{content_hash}{SUFFIX}"


def content_hash_of(path: Path) -> str:
    """The encoder of a file."""
    return path.name.removesuffix(SUFFIX)


def paths(root: Path) -> list[Path]:
    """The files that are there."""
    return sorted((root / FOLDER).glob(f"*{SUFFIX}"))


@contextmanager
def held(root: Path, *, alone: bool) -> Iterator[None]:
    """Nothing is taken out of the files, and no file goes, but by who holds them alone.

    A copy of a store holds them with others while it copies catalog and embeddings, so that the
    one has all that the other names. So does another process that encodes records ahead, from
    reading them until what was made of them is stored: who takes out what no record has, finds it.
    Whoever asks first is first, see ``_first``.
    """
    folder = root / FOLDER
    if not folder.is_dir():
        yield
        return
    try:
        fd = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        if alone or error.errno not in files.REFUSED:
            raise files.failure(folder / ".lock", error)
        fd = -1  # nobody takes anything out of a folder that is read-only
    try:
        if fd >= 0:
            with _first(folder):
                fcntl.flock(fd, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        yield
    finally:
        if fd >= 0:
            os.close(fd)


@contextmanager
def _first(folder: Path) -> Iterator[None]:
    """While somebody waits for the files, others wait behind: many who share them one after the
    other would keep them from who wants them alone."""
    try:
        fd = os.open(folder / ".turn", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError:  # without it they exclude each other all the same
        yield
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


class _Text(msgspec.Struct):
    encoder: str
    content_hash: str


class _Manifest(msgspec.Struct):
    text: _Text


def encoders_of(root: Path, names: Sequence[str] | None = None) -> set[str]:
    """Content hashes of the served encoders that generations in a store's folder name.

    Args:
        names: of the generations; all by default.
    """
    found = set()
    for path in (root / "generations").glob("[!.]*/generation.json"):
        if names is not None and path.parent.name not in names:
            continue
        with suppress(OSError, msgspec.DecodeError):  # gone just now; or damaged: loading says so
            text = msgspec.json.decode(path.read_bytes(), type=_Manifest).text
            if text.encoder == "served":
                found.add(text.content_hash)
    return found


class EmbeddingFile(Connections):
    """One file, open.

    Args:
        path: the file; a writer makes it.
        dimensions: of its values.
        write: whether it may be changed.
    """

    def __init__(self, path: Path, dimensions: int, *, write: bool) -> None:
        super().__init__(path, write=write)
        self.dimensions = dimensions

    def prepare(self) -> None:
        """Makes the file, whole or not at all, unless it is there; puts it in write-ahead mode."""
        if not self.path.exists():
            _make(self.path, self.dimensions)
        with self.guard(), self.lend() as connection:
            connection.execute("PRAGMA journal_mode = WAL")

    def check(self) -> None:
        """Refuses what is not such a file, or another encoder's.

        Raises:
            StoreFormat: a newer format.
            StoreDamaged: the message names the file.
        """
        with self.guard(), self.lend() as connection:
            (application,) = connection.execute("PRAGMA application_id").fetchone()
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version > FORMAT:
                raise StoreFormat(
                    f"{self.path}: has format {version}, this version reads up to {FORMAT}; "
                    "use a newer matchwright",
                    file=self.path,
                )
            about = None
            if application == _APPLICATION_ID:
                about = connection.execute("SELECT encoder, dimensions FROM about").fetchone()
        if about != (content_hash_of(self.path), self.dimensions):
            raise damaged(self.path, f"is of the encoder {about}, or of none")

    def get(self, keys: Sequence[bytes]) -> dict[bytes, Int32]:
        """key -> int32 (dimensions,), of those that are there.

        Raises:
            StoreDamaged: a value does not match its checksum.
        """
        found: dict[bytes, Int32] = {}
        with self.look() as connection:
            for chunk in _chunks(keys):
                marks = ", ".join("?" * len(chunk))
                rows = connection.execute(
                    f"SELECT key, value FROM embedding WHERE key IN ({marks})", chunk
                )
                for key, value in rows:
                    found[key] = unpack(key, value, self.dimensions, self.path)
        return found

    def missing(self, keys: Sequence[bytes]) -> set[bytes]:
        """The keys that are not there."""
        left = set(keys)
        with self.look() as connection:
            for chunk in _chunks(keys):
                marks = ", ".join("?" * len(chunk))
                found = connection.execute(
                    f"SELECT key FROM embedding WHERE key IN ({marks})", chunk
                )
                left.difference_update(key for (key,) in found)
        return left

    def put(self, keys: Sequence[bytes], rows: Int32) -> None:
        """Stores int32 (N, dimensions) under N keys, in one transaction; what is there stays."""
        values = [pack(key, row) for key, row in zip(keys, rows, strict=True)]
        with self.change() as connection:
            connection.executemany(
                "INSERT INTO embedding (key, value) VALUES (?, ?) ON CONFLICT (key) DO NOTHING",
                zip(keys, values, strict=True),
            )

    def set_ahead(self, *, ahead: bool) -> None:
        """Says that a generation is to come, or that it has come."""
        with self.change() as connection:
            connection.execute("UPDATE about SET ahead = ?", (time.time() if ahead else None,))

    def is_ahead(self) -> bool:
        """Whether somebody counts on it although no generation has this encoder yet."""
        with self.look() as connection:
            (ahead,) = connection.execute("SELECT ahead FROM about").fetchone()
        return ahead is not None and time.time() - ahead < AHEAD_S

    def count(self) -> int:
        """How many embeddings there are."""
        with self.look() as connection:
            return int(connection.execute("SELECT count(*) FROM embedding").fetchone()[0])


def _make(path: Path, dimensions: int) -> None:
    """A file without embeddings, under its name when it is whole: nobody finds one that a full disk
    or a kill left without its tables."""
    new = path.with_name(f".{path.name}.new")
    with _first(path.parent), files.naming(path), closing(Connections(new, write=True)) as made:
        new.unlink(missing_ok=True)
        if path.exists():  # another process was quicker
            return
        try:
            with made.guard(), made.lend() as connection:
                connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
                connection.execute("PRAGMA journal_mode = MEMORY")  # a file that fails goes
            with made.change() as connection:
                for statement in _TABLES:
                    connection.execute(statement)
                about = content_hash_of(path), dimensions
                connection.execute("INSERT INTO about VALUES (1, ?, ?, NULL)", about)
                connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
                connection.execute(f"PRAGMA user_version = {FORMAT}")
            made.close()
            new.rename(path)
            files.sync_folder(path.parent)
        except BaseException:
            new.unlink(missing_ok=True)
            raise


class EmbeddingCache:
    """One encoder's embeddings in a store; the file need not be there.

    A reader of a replica goes on with the file that a pull replaced, for snapshots that are out,
    and looks into the one that took its place for what that lacks.

    Args:
        path: the file.
        dimensions: of its values.
        writable: whether new ones are stored; the file is made with the first.
    """

    def __init__(self, path: Path, dimensions: int, *, writable: bool) -> None:
        self.path = path
        self.dimensions = dimensions
        self.writable = writable
        self._lock = threading.Lock()
        self._files: list[EmbeddingFile] = []

    def get(self, keys: Sequence[bytes]) -> dict[bytes, Int32]:
        """See ``EmbeddingFile.get``."""
        found: dict[bytes, Int32] = {}
        left = keys
        for file in self._opened():
            with suppress(EpochGone):  # no connection is left to a file that was replaced
                found |= file.get(left)
            left = [key for key in left if key not in found]
            if not left:
                break
        if left and (renewed := self._renewed()) is not None:
            found |= renewed.get(left)
        return found

    def missing(self, keys: Sequence[bytes]) -> set[bytes]:
        """See ``EmbeddingFile.missing``."""
        opened = self._opened()
        return opened[0].missing(keys) if opened else set(keys)

    def put(self, keys: Sequence[bytes], rows: Int32) -> None:
        """See ``EmbeddingFile.put``."""
        self.file().put(keys, rows)

    def file(self) -> EmbeddingFile:
        """The file, made by a writer if it is not there."""
        with self._lock:
            if not self._files:
                self._files.append(self._open(make=True))
            return self._files[0]

    def close(self) -> None:
        """Lets the file go; it is opened again when it is needed."""
        with self._lock:
            files_, self._files = self._files, []
        for file in files_:
            file.close()

    def _opened(self) -> list[EmbeddingFile]:
        """The files to look into, the newest first."""
        with self._lock:
            if not self._files and self.path.is_file():
                self._files.append(self._open(make=False))
            return list(self._files)

    def _open(self, *, make: bool) -> EmbeddingFile:
        if make and self.writable:
            with files.naming(self.path):
                self.path.parent.mkdir(exist_ok=True)
        file = EmbeddingFile(self.path, self.dimensions, write=self.writable)
        try:
            if self.writable:
                file.prepare()
            file.check()
        except BaseException:
            file.close()
            raise
        return file

    def _renewed(self) -> EmbeddingFile | None:
        """The file that took the place of the newest one here; None when that is still there."""
        with self._lock:
            if self.writable or not self._files or not self._files[0].replaced():
                return None
            file = self._open(make=False)
            self._files.insert(0, file)
            for old in self._files[_FILES_KEPT:]:
                old.close()
            del self._files[_FILES_KEPT:]
            return file


def pack(key: bytes, row: Int32) -> bytes:
    """A value as it is stored."""
    data = row.astype(_VALUE).tobytes()
    return zlib.crc32(key + data).to_bytes(_CHECKSUM_BYTES, "little") + data


def unpack(key: object, value: object, dimensions: int, path: Path) -> Int32:
    """The inverse of ``pack``: int32 (dimensions,), read-only.

    Raises:
        StoreDamaged: the value is not what was stored under the key.
    """
    # A damaged file may give anything: text, a number, nothing.
    if isinstance(key, bytes) and isinstance(value, bytes):
        data = value[_CHECKSUM_BYTES:]
        same = zlib.crc32(key + data) == int.from_bytes(value[:_CHECKSUM_BYTES], "little")
        if same and len(data) == dimensions * _VALUE.itemsize:
            return np.frombuffer(data, dtype=_VALUE).astype(np.int32, copy=False)
    raise damaged(path, "a stored embedding does not match its checksum")


def damaged(path: Path, why: str) -> StoreDamaged:
    """The error for a file of embeddings that cannot be used."""
    return StoreDamaged(
        f"{path}: {why}; restore it from a copy, or remove it and run `matchwright embed`",
        file=path,
    )


def _chunks(keys: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    for low in range(0, len(keys), _PARAMETERS_MAX):
        yield keys[low : low + _PARAMETERS_MAX]
