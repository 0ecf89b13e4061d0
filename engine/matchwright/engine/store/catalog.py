"""The SQLite side of a store: records, the manifest of segments, tombstones and live rows.

Every change is one transaction, synced before it is acknowledged (write-ahead log,
``synchronous=FULL``). Numbers are never used twice:

- ``number`` counts epochs, ``seq`` counts records as they are written,
- ``segment`` names row spaces: each sealed file, and each live segment while it is live. A
  tombstone is (segment, row), so one that is meant for live rows can never hit a file.
"""

from __future__ import annotations

import os
import resource
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from matchwright.engine.errors import (
    NotFound,
    StoreDamaged,
    StoreError,
    StoreFormat,
    StoreFull,
    StoreReadOnly,
)
from matchwright.engine.store import blobs, files, history, schema
from matchwright.kernels.types import Int64

Kind = Literal["job", "freelancer"]
KINDS: tuple[Kind, ...] = ("job", "freelancer")

FORMAT = schema.FORMAT
FILE = "catalog.sqlite"
_APPLICATION_ID = 0x4D575354  # "MWST"
_PAGE_BYTES = 8192
_BUSY_MS = 10_000
_LOG_BYTES = 64 << 20
_CACHE_KIB = 32 << 10
_PARAMETERS_MAX = 500


@dataclass(frozen=True, slots=True)
class State:
    """The one row of ``state``: what is in force."""

    uuid: str
    salt: bytes
    keep_text: bool
    number: int
    digest: bytes
    generation: str
    next_segment: int
    next_seq: int
    live_job: int
    live_freelancer: int

    def live(self, kind: Kind) -> int:
        """The number of the kind's live segment."""
        return self.live_job if kind == "job" else self.live_freelancer

    def with_live(self, kind: Kind, segment: int) -> State:
        return (
            replace(self, live_job=segment)
            if kind == "job"
            else replace(self, live_freelancer=segment)
        )

    def values(self) -> tuple[Any, ...]:
        """The row, its checksum last."""
        fields = tuple(getattr(self, name) for name in State.__slots__)
        return (*fields, blobs.digest(*(repr(field).encode() for field in fields)))


_STATE_COLUMNS = ", ".join(State.__slots__) + ", checksum"


@dataclass(frozen=True, slots=True)
class SegmentRow:
    """One row of the manifest: a file, and the epochs ``born <= number < gone`` that it is part of.

    ``gone`` is None while the newest epoch has it.
    """

    segment: int
    kind: Kind
    generation: str
    file: str
    n: int
    size: int
    digest: bytes
    born: int = 0
    gone: int | None = None


_FILE_COLUMNS = "segment, kind, generation, file, n, size, digest"


class Catalog:
    """Connections to one catalog file: lent to a thread for a transaction, then kept for the next.

    Args:
        path: the file.
        write: False makes every connection refuse to change anything.
    """

    def __init__(self, path: Path, *, write: bool) -> None:
        self.path = path
        self._write = write
        self._free: list[sqlite3.Connection] = []
        self._lock = threading.Lock()
        self._closed = False

    @contextmanager
    def lend(self) -> Iterator[sqlite3.Connection]:
        """A connection that nobody else uses meanwhile."""
        with self._lock:
            connection = self._free.pop() if self._free else None
        if connection is None:
            connection = self.connect()
        try:
            yield connection
        finally:
            with self._lock:
                kept = not self._closed
                if kept:
                    self._free.append(connection)
            if not kept:
                connection.close()

    def connect(self) -> sqlite3.Connection:
        """A new connection; its owner closes it."""
        if self._closed:
            raise StoreError(f"{self.path}: the store is closed", file=self.path)
        uri = f"{self.path.resolve().as_uri()}?mode={'rwc' if self._write else self._reader_mode()}"
        connection = sqlite3.connect(
            uri,
            uri=True,
            isolation_level=None,
            check_same_thread=False,
            timeout=_BUSY_MS / 1000,
        )
        try:
            connection.execute("PRAGMA temp_store = MEMORY")
            connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
            if self._write:
                connection.execute("PRAGMA synchronous = FULL")
                connection.execute(f"PRAGMA journal_size_limit = {_LOG_BYTES}")
            else:
                connection.execute("PRAGMA query_only = ON")
        except BaseException:
            connection.close()
            raise
        return connection

    def _reader_mode(self) -> str:
        # Reading a write-ahead log needs its shared-memory file; where the folder cannot be
        # written to and there is no log, the file is complete by itself.
        if os.access(self.path.parent, os.W_OK):
            return "rw"
        wal = self.path.with_name(self.path.name + "-wal")
        return "ro" if wal.exists() else "ro&immutable=1"

    def close(self) -> None:
        """Closes what is not lent; what is, when it comes back."""
        with self._lock:
            self._closed = True
            free, self._free = self._free, []
        for connection in free:
            connection.close()

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Turns SQLite's errors into the store's, naming the file."""
        try:
            yield
        except UnicodeDecodeError as error:  # out of a damaged schema, by way of a message
            raise self._damaged(error)
        except sqlite3.Error as error:
            code = (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF
            name = getattr(error, "sqlite_errorname", "") or type(error).__name__
            # Python itself finds texts that are no UTF-8, and gives that no code.
            undecodable = not code and isinstance(error, sqlite3.OperationalError)
            if undecodable or code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                raise self._damaged(error)
            raise self._refused(code, f"{self.path}: {error} ({name})")

    def _refused(self, code: int, why: str) -> StoreError:
        """What the operating system did not let SQLite do."""
        if code == sqlite3.SQLITE_IOERR and not self._may_grow():
            code = sqlite3.SQLITE_FULL
        if code == sqlite3.SQLITE_FULL:
            return StoreFull(f"{why}; {files.FULL_HINT}", file=self.path)
        if code == sqlite3.SQLITE_READONLY and self._write:
            return StoreReadOnly(f"{why}; {files.READ_ONLY_HINT}", file=self.path)
        if code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY):
            wal = f"{self.path.name}-wal"
            hint = f"reading beside a log ({wal}) needs write access to the folder"
            return StoreError(f"{why}; {hint}; mount it read-write, or restore it", file=self.path)
        return StoreError(why, file=self.path)

    def _may_grow(self) -> bool:
        """Whether there is room beside the catalog: SQLite does not pass on why a write failed."""
        with suppress(OSError):
            disk = os.statvfs(self.path.parent)
            limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
            return disk.f_bavail * disk.f_frsize > _PAGE_BYTES and limit == resource.RLIM_INFINITY
        return True

    def _damaged(self, error: Exception | str) -> StoreDamaged:
        return StoreDamaged(
            f"{self.path}: is damaged ({error}); restore it from a copy, or import again",
            file=self.path,
        )

    @contextmanager
    def change(self) -> Iterator[sqlite3.Connection]:
        """One write transaction; durable when the block ends without an error."""
        with self.guard(), self.lend() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")
                raise

    @contextmanager
    def look(self, connection: sqlite3.Connection | None = None) -> Iterator[sqlite3.Connection]:
        """One read transaction: everything read within belongs to one epoch."""
        if connection is None:
            with self.guard(), self.lend() as lent, self.look(lent):
                yield lent
            return
        with self.guard():
            connection.execute("BEGIN")
            try:
                yield connection
            finally:
                with suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")

    # ── Creating and opening ──────────────────────────────────────────────────────────────────

    def create(self, state: State) -> None:
        """Makes the tables and the first state in one transaction."""
        with self.guard(), self.lend() as connection:
            connection.execute(f"PRAGMA page_size = {_PAGE_BYTES}")
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
            connection.execute("PRAGMA journal_mode = WAL")
        with self.change() as connection:
            for statement in schema.create():
                connection.execute(statement)
            marks = ", ".join("?" * (len(State.__slots__) + 1))
            connection.execute(
                f"INSERT INTO state (one, {_STATE_COLUMNS}) VALUES (1, {marks})", state.values()
            )
            history.begin(connection, state, "create", time.time())
            connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {FORMAT}")

    def check(self) -> int:
        """Refuses what is not a catalog that this version reads; its format.

        Raises:
            NotFound: the file is empty: a store that was never finished.
            StoreFormat: a newer format, or another application's file.
            StoreDamaged: not an SQLite file.
        """
        with self.guard(), self.lend() as connection:
            (application,) = connection.execute("PRAGMA application_id").fetchone()
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if not tables:
            raise NotFound(f"{self.path.parent}: holds no store", file=self.path)
        if application != _APPLICATION_ID:
            raise StoreFormat(
                f"{self.path}: is an SQLite file, but not a store's catalog", file=self.path
            )
        self._refuse_newer(version)
        return int(version)

    def version(self, connection: sqlite3.Connection) -> int:
        """The format as a transaction sees it: a writer may migrate under an open reader.

        Raises:
            StoreFormat: newer than what this version reads.
        """
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        self._refuse_newer(version)
        return int(version)

    def _refuse_newer(self, version: int) -> None:
        if version > FORMAT:
            raise StoreFormat(
                f"{self.path}: has format {version}, this version reads up to {FORMAT}; "
                "use a newer matchwright",
                file=self.path,
            )

    # ── State ─────────────────────────────────────────────────────────────────────────────────

    def state(self, connection: sqlite3.Connection) -> State:
        """What is in force.

        Raises:
            StoreDamaged: the row does not match its checksum.
        """
        row = connection.execute(f"SELECT {_STATE_COLUMNS} FROM state").fetchone()
        if row is not None:
            uuid, salt, keep_text, *rest, checksum = row
            state = State(uuid, salt, bool(keep_text), *rest)
            if state.values()[-1] == checksum:
                return state
        raise StoreDamaged(f"{self.path}: the state does not match its checksum", file=self.path)

    def put_state(self, connection: sqlite3.Connection, state: State, what: str) -> None:
        """Puts a new epoch in force."""
        before = self.state(connection)
        marks = ", ".join("?" * (len(State.__slots__) + 1))
        connection.execute(f"UPDATE state SET ({_STATE_COLUMNS}) = ({marks})", state.values())
        history.step(connection, before, state, what, time.time())

    def rewrite_state(self, connection: sqlite3.Connection, state: State) -> None:
        """Changes what is no part of an epoch, such as whether texts are kept."""
        marks = ", ".join("?" * (len(State.__slots__) + 1))
        connection.execute(f"UPDATE state SET ({_STATE_COLUMNS}) = ({marks})", state.values())

    # ── Manifest, tombstones, live rows ───────────────────────────────────────────────────────

    def segments(self, connection: sqlite3.Connection) -> list[SegmentRow]:
        """The manifest of the newest epoch, oldest first.

        Raises:
            StoreDamaged: a row that no writer made.
        """
        return self._manifest(connection, "gone IS NULL")

    def segments_at(self, connection: sqlite3.Connection, number: int) -> list[SegmentRow]:
        """The manifest of an epoch that is still kept, oldest first."""
        return self._manifest(
            connection, f"born <= {number:d} AND (gone IS NULL OR gone > {number:d})"
        )

    def all_segments(self, connection: sqlite3.Connection) -> list[SegmentRow]:
        """Every file that the newest or a kept epoch needs, oldest first."""
        return self._manifest(connection, "1")

    def _manifest(self, connection: sqlite3.Connection, which: str) -> list[SegmentRow]:
        if self.version(connection) < schema.FORMAT:
            found = connection.execute(f"SELECT {_FILE_COLUMNS} FROM segment ORDER BY segment")
        else:
            found = connection.execute(
                f"SELECT {_FILE_COLUMNS}, born, gone FROM manifest WHERE {which} ORDER BY segment"
            )
        rows = [SegmentRow(*row) for row in found]
        for row in rows:
            types = (int, str, str, str, int, int, bytes, int, (int, type(None)))
            values = (getattr(row, name) for name in SegmentRow.__slots__)
            if row.kind not in KINDS or not all(map(isinstance, values, types)):
                raise self._damaged(f"segment {row.segment!r} of the manifest makes no sense")
        return rows

    def add_segment(self, connection: sqlite3.Connection, row: SegmentRow) -> None:
        values = tuple(getattr(row, name) for name in SegmentRow.__slots__)
        marks = ", ".join("?" * len(values))
        connection.execute(f"INSERT INTO manifest VALUES ({marks})", values)

    def dead_since(
        self, connection: sqlite3.Connection, number: int, whole: Sequence[int]
    ) -> list[tuple[int, bytes]]:
        """(segment, packed int32 rows) that died after an epoch; of ``whole`` segments, ever."""
        found = connection.execute(
            "SELECT segment, rows FROM dead WHERE number > ?", (number,)
        ).fetchall()
        for segment in whole if number >= 0 else ():
            found += connection.execute(
                "SELECT segment, rows FROM dead WHERE segment = ? AND number <= ?",
                (segment, number),
            ).fetchall()
        return found

    def dead_at(
        self, connection: sqlite3.Connection, number: int, segments: Sequence[int]
    ) -> list[tuple[int, bytes]]:
        """(segment, packed int32 rows) that were dead at an epoch."""
        found: list[tuple[int, bytes]] = []
        for segment in segments:
            found += connection.execute(
                "SELECT segment, rows FROM dead WHERE segment = ? AND number <= ?",
                (segment, number),
            ).fetchall()
        return found

    def add_dead(
        self, connection: sqlite3.Connection, segment: int, number: int, rows: Int64
    ) -> None:
        """Tombstones for rows of a segment, from epoch ``number`` on."""
        connection.execute(
            "INSERT INTO dead (segment, number, rows) VALUES (?, ?, ?)",
            (segment, number, blobs.pack_array(rows.astype(np.int32))),
        )

    def live_from(
        self, connection: sqlite3.Connection, segment: int, row: int
    ) -> list[tuple[int, bytes]]:
        """(first row, packed rows) of the batches that hold a live segment's rows from ``row``."""
        return connection.execute(
            "SELECT first, rows FROM live WHERE segment = ? AND first + n > ? ORDER BY first",
            (segment, row),
        ).fetchall()

    # ── Records ───────────────────────────────────────────────────────────────────────────────

    def records_by(
        self, connection: sqlite3.Connection, table: str, column: str, values: Sequence[int]
    ) -> Iterator[tuple[int, str, bytes, bytes]]:
        """(``column``, id, hash, body) of the records whose ``column`` is among ``values``."""
        for low in range(0, len(values), _PARAMETERS_MAX):
            chunk = values[low : low + _PARAMETERS_MAX]
            marks = ", ".join("?" * len(chunk))
            yield from connection.execute(
                f"SELECT {column}, id, hash, body FROM {table} WHERE {column} IN ({marks})", chunk
            ).fetchall()

    def identities(
        self, connection: sqlite3.Connection, kind: Kind, seqs: Sequence[int]
    ) -> dict[int, tuple[str, bytes]]:
        """seq -> (id, hash) of records."""
        found: dict[int, tuple[str, bytes]] = {}
        for low in range(0, len(seqs), _PARAMETERS_MAX):
            chunk = seqs[low : low + _PARAMETERS_MAX]
            marks = ", ".join("?" * len(chunk))
            rows = connection.execute(
                f"SELECT seq, id, hash FROM {kind} WHERE seq IN ({marks})", chunk
            )
            found.update((seq, (name, content)) for seq, name, content in rows)
        return found

    def retire(
        self, connection: sqlite3.Connection, kind: Kind, seqs: Sequence[int], number: int
    ) -> None:
        """Moves records out of force at epoch ``number``; kept epochs before it find them."""
        wanted = [(seq,) for seq in seqs]
        connection.executemany(
            f"INSERT INTO {kind}_old "
            f"SELECT seq, id, hash, body, {number:d} FROM {kind} WHERE seq = ?",
            wanted,
        )
        connection.executemany(f"DELETE FROM {kind} WHERE seq = ?", wanted)
