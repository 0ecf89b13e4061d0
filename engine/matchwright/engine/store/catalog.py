"""The SQLite side of a store: records, the manifest of segments, tombstones and live rows.

Every change is one transaction, synced before it is acknowledged (write-ahead log,
``synchronous=FULL``). Numbers are never used twice:

- ``number`` counts epochs, ``seq`` counts records as they are written,
- ``segment`` names row spaces: each sealed file, and each live segment while it is live. A
  tombstone is (segment, row), so one that is meant for live rows can never hit a file.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from matchwright.engine.errors import (
    NotFound,
    StoreDamaged,
    StoreFormat,
)
from matchwright.engine.store import blobs, history, schema
from matchwright.engine.store.connections import PAGE_BYTES, Connections
from matchwright.kernels.types import Int64

Kind = schema.Kind
KINDS = schema.KINDS

FORMAT = schema.FORMAT
FILE = "catalog.sqlite"
_APPLICATION_ID = 0x4D575354  # "MWST"
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


class Catalog(Connections):
    """One catalog file: what is in it, and how it changes."""

    # ── Creating and opening ──────────────────────────────────────────────────────────────────

    def create(self, state: State) -> None:
        """Makes the tables and the first state in one transaction."""
        with self.guard(), self.lend() as connection:
            connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
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
            types = (int, str, str, str, int, int, bytes, int)
            values = [getattr(row, name) for name in SegmentRow.__slots__]
            fit = all(isinstance(one, type_) for one, type_ in zip(values, types, strict=False))
            if row.kind not in KINDS or not fit or not isinstance(row.gone, int | None):
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
