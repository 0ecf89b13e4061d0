"""Takes entities out of a store for good: records, rows, and what others' records say of them.

In one transaction their records go, a stand-in takes the place of an id that somebody else lists,
every segment and live batch that holds a row of theirs is replaced by a copy without it, in all
epochs that are kept, and who was erased is entered. Then the catalog's pages are written anew and
its log is emptied::

    erased (kind, key, epoch, time, done)

``done`` is empty until runs and quarantine files are through as well. Killed anywhere, erasing the
same ids again goes on from there.
"""

from __future__ import annotations

import sqlite3
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import numpy as np

from matchwright.engine.erased import stand_in
from matchwright.engine.errors import StoreDamaged
from matchwright.engine.store import blobs
from matchwright.engine.store.catalog import KINDS, Catalog, Kind
from matchwright.engine.store.connections import Connections
from matchwright.engine.store.segment_file import SegmentFile

if TYPE_CHECKING:
    from matchwright.engine.store.writer import Writer
    from matchwright.kernels.types import Int64, UInt64

_TABLE = """
CREATE TABLE IF NOT EXISTS erased (
  kind TEXT NOT NULL, key INTEGER NOT NULL, epoch INTEGER NOT NULL,
  time REAL NOT NULL, done REAL, PRIMARY KEY (kind, key)) WITHOUT ROWID
"""
Names = Sequence[str]
HashKeys = Callable[[Names, bytes], "UInt64"]
Who = Literal["job", "freelancer", "client"]
"""Whom to erase. A client is no entity of a store: their jobs go, and lists that name them."""
WHO: tuple[Who, ...] = ("job", "freelancer", "client")
LISTED: Mapping[Who, tuple[Kind, str]] = {
    "freelancer": ("job", "excluded_freelancers"),
    "client": ("freelancer", "excluded_clients"),
}
"""Who -> whose records list their ids, and in which field."""
_CLIENT_FIELD, _CLIENT_COLUMN = "client_id", "set/client"
_ROWS_AT_ONCE = 4_096
_PARAMETERS_MAX = 500
_TRIES, _WAIT_S = 300, 0.1


@dataclass(frozen=True, slots=True, eq=False)
class Erased:
    """Who was erased from a store.

    Attributes:
        key_n: uint64 (N,), ascending.
        epoch_n: int64 (N,), the epoch that no longer shows each; later ones may show another
            entity of the same id.
    """

    key_n: UInt64
    epoch_n: Int64


@dataclass(frozen=True, slots=True, eq=False)
class Target:
    """Whom one erasure takes out.

    Attributes:
        who, ids: as asked for; ``id_n`` are the keys of the ids.
        kind: of the records and rows that go.
        names: ids of the records that go; those that are not there may have been.
        name_n: their keys.
        key_n: uint64 keys of the rows that go, also of some whose ids nobody knows any more.
    """

    who: Who
    ids: Sequence[str]
    id_n: UInt64
    kind: Kind
    names: Sequence[str]
    name_n: UInt64
    key_n: UInt64

    def keys(self) -> dict[str, UInt64]:
        """What the table ``erased`` names."""
        return {self.kind: self.key_n, self.who: self.id_n}


@dataclass(frozen=True, slots=True)
class FromStore:
    """What one erasure did to the store itself.

    Attributes:
        epoch: number of the epoch that no longer shows them.
        living: records that were there.
        earlier: replaced or deleted forms of records that went.
        mentions: records of others in which a stand-in took the place of an id.
        rows: encoded rows that went, counting each copy.
        files: segment files that were replaced.
    """

    epoch: int
    living: int
    earlier: int
    mentions: int
    rows: int
    files: int


def target_of(root: Path, catalog: Catalog, hash_keys: HashKeys, who: Who, ids: Names) -> Target:
    """Whom to take out for some ids, which are NFC."""
    with catalog.look() as connection:
        salt = catalog.state(connection).salt
        id_n = hash_keys(ids, salt)
        if who != "client":
            return Target(who, ids, id_n, who, ids, id_n, id_n)
        names = _jobs_of(connection, catalog, ids)
        files = [root / "segments" / row.file for row in catalog.all_segments(connection)]
    name_n = hash_keys(names, salt)
    found = [name_n, *(_rows_of_clients(file, id_n) for file in files)]
    return Target(who, ids, id_n, "job", names, name_n, np.unique(np.concatenate(found)))


def count(catalog: Catalog, target: Target) -> dict[str, int]:
    """What ``erase_rows`` would find: records, earlier forms, records of others that list them."""
    with catalog.look() as connection:
        found = _count(connection, target)
        return {
            "living": found[target.kind],
            "earlier": found[f"{target.kind}_old"],
            "mentions": len(_mentions(connection, catalog, target)),
        }


def erase_rows(writer: Writer, target: Target) -> FromStore:
    """The one transaction. Must not be called while holding the writer's lock."""
    found = {"living": 0, "earlier": 0, "mentions": 0}

    def change(connection: sqlite3.Connection, number: int) -> None:
        connection.execute("PRAGMA secure_delete = ON")
        gone = _delete(connection, target)
        found["living"], found["earlier"] = gone[target.kind], gone[f"{target.kind}_old"]
        found["mentions"] = _replace_mentions(connection, writer.catalog, target)
        for kind, key_n in target.keys().items():
            _enter(connection, kind, key_n, number)

    done = writer.rewrite({target.kind: target.key_n}, change)
    return FromStore(done.epoch.number, rows=done.rows, files=len(done.removed), **found)


def _jobs_of(connection: sqlite3.Connection, catalog: Catalog, clients: Names) -> list[str]:
    """Ids of the jobs that clients posted, earlier forms of jobs included."""
    wanted = frozenset(clients)
    return sorted(
        {
            found.id
            for table in ("job", "job_old")
            for found in _scanned(connection, catalog, table, _CLIENT_FIELD)
            if found.value in wanted
        }
    )


def _rows_of_clients(file: Path, id_n: UInt64) -> UInt64:
    """Keys of a segment's rows that name one of the clients, dead ones included."""
    with suppress(FileNotFoundError):  # collected just now
        opened = SegmentFile(file)
        if opened.about["kind"] == "job" and f"{_CLIENT_COLUMN}/value" in opened.names:
            start = opened.array(f"{_CLIENT_COLUMN}/start")
            at = np.flatnonzero(np.isin(opened.array(f"{_CLIENT_COLUMN}/value"), id_n))
            keys: UInt64 = opened.array("key")[np.searchsorted(start, at, side="right") - 1]
            return keys
    return np.zeros(0, dtype=np.uint64)


def _present(target: Target) -> Iterator[tuple[str, str, Sequence[Any]]]:
    """(table, condition, parameters), a few at a time, that find the records of a target."""
    keys = target.name_n.astype(np.int64).tolist()
    for chunk in _chunks(keys):
        yield target.kind, f"key IN ({', '.join('?' * len(chunk))})", chunk
    for chunk in _chunks(target.names):
        yield f"{target.kind}_old", f"id IN ({', '.join('?' * len(chunk))})", chunk


def _count(connection: sqlite3.Connection, target: Target) -> Counter[str]:
    found: Counter[str] = Counter()
    for table, condition, values in _present(target):
        sql = f"SELECT count(*) FROM {table} WHERE {condition}"
        found[table] += connection.execute(sql, values).fetchone()[0]
    return found


def _delete(connection: sqlite3.Connection, target: Target) -> Counter[str]:
    gone: Counter[str] = Counter()
    for table, condition, values in _present(target):
        gone[table] += connection.execute(f"DELETE FROM {table} WHERE {condition}", values).rowcount
    return gone


def _chunks(values: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for low in range(0, len(values), _PARAMETERS_MAX):
        yield values[low : low + _PARAMETERS_MAX]


# ── What others' records say ──────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class _Scanned:
    table: str
    seq: int
    id: str
    content: bytes
    body: bytes
    value: Any


def _scanned(
    connection: sqlite3.Connection, catalog: Catalog, table: str, field: str
) -> Iterator[_Scanned]:
    """Every record of a table that has a value in a field; nothing else of it is decoded."""
    where = str(catalog.path)
    decode = msgspec.msgpack.Decoder(
        msgspec.defstruct("Scanned", [("value", Any, None)], rename={"value": field})
    ).decode
    cursor = connection.execute(f"SELECT seq, id, hash, body FROM {table}")
    while rows := cursor.fetchmany(_ROWS_AT_ONCE):
        for seq, name, content, body in rows:
            try:
                value = getattr(decode(blobs.inflate(body)), "value")  # noqa: B009
            except (msgspec.MsgspecError, zlib.error):
                raise StoreDamaged(f"{where}: a record cannot be read", file=where) from None
            if value:
                yield _Scanned(table, seq, name, content, body, value)


def _mentions(connection: sqlite3.Connection, catalog: Catalog, target: Target) -> list[_Scanned]:
    """The records that list an id."""
    if target.who not in LISTED:
        return []
    other, field = LISTED[target.who]
    wanted = frozenset(target.ids)
    return [
        found
        for table in (other, f"{other}_old")
        for found in _scanned(connection, catalog, table, field)
        if not wanted.isdisjoint(found.value)
    ]


def _replace_mentions(connection: sqlite3.Connection, catalog: Catalog, target: Target) -> int:
    """Stand-ins in the place of ids. The rule column of the row holds keys, and stays."""
    found = _mentions(connection, catalog, target)
    names = {
        name: stand_in(key) for name, key in zip(target.ids, target.id_n.tolist(), strict=True)
    }
    for one in found:
        record: dict[str, Any] = blobs.unpack_record(one.body, one.content, str(catalog.path))
        field = LISTED[target.who][1]
        record[field] = [names.get(name, name) for name in record[field]]
        # A text that is not kept is its digest here already.
        values = blobs.pack_record(record, keep_text=True)
        connection.execute(
            f"UPDATE {one.table} SET hash = ?, body = ? WHERE seq = ?", (*values, one.seq)
        )
    return len(found)


# ── Who was erased ────────────────────────────────────────────────────────────────────────────


def _enter(connection: sqlite3.Connection, kind: str, key_n: UInt64, number: int) -> None:
    connection.execute(_TABLE)
    now = time.time()
    connection.executemany(
        "INSERT INTO erased VALUES (?, ?, ?, ?, NULL) ON CONFLICT (kind, key) DO UPDATE "
        "SET epoch = excluded.epoch, time = excluded.time, done = NULL",
        [(kind, key, number, now) for key in key_n.astype(np.int64).tolist()],
    )


def finish(catalog: Catalog, target: Target) -> None:
    """Enters that nothing of these is left to do."""
    now = time.time()
    with catalog.change() as connection:
        for kind, key_n in target.keys().items():
            connection.executemany(
                "UPDATE erased SET done = ? WHERE kind = ? AND key = ?",
                [(now, kind, key) for key in key_n.astype(np.int64).tolist()],
            )


def erased(catalog: Catalog) -> dict[Kind, Erased]:
    """Everybody who was ever erased, by kind."""
    return {kind: _erased(catalog, kind) for kind in KINDS}


def _erased(catalog: Catalog, kind: Kind) -> Erased:
    with catalog.look() as connection:
        rows = (
            connection.execute("SELECT key, epoch FROM erased WHERE kind = ?", (kind,)).fetchall()
            if _exists(connection)
            else []
        )
    table = np.array(rows, dtype=np.int64).reshape(-1, 2)
    key_n = table[:, 0].astype(np.uint64)
    order = np.argsort(key_n)
    return Erased(key_n[order], table[order, 1])


def unfinished(catalog: Catalog) -> int:
    """How many entities were erased from the records, but perhaps not yet from everywhere."""
    with catalog.look() as connection:
        if not _exists(connection):
            return 0
        (n,) = connection.execute("SELECT count(*) FROM erased WHERE done IS NULL").fetchone()
    return int(n)


def _exists(connection: sqlite3.Connection) -> bool:
    found = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'erased'").fetchone()
    return found is not None


# ── Pages and log ─────────────────────────────────────────────────────────────────────────────


def scrub(catalog: Connections) -> bool:
    """Rewrites every page of a file and empties its log, so that no free page holds anything.

    Takes as much free space again as the file has, twice.

    Returns:
        False when a reader held on to the log for half a minute; what it shows is still there then.
    """
    with catalog.guard(), catalog.lend() as connection:
        connection.execute("VACUUM")
        for _ in range(_TRIES):
            busy, left, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            if not busy and left <= 0:
                return True
            time.sleep(_WAIT_S)
    return False
