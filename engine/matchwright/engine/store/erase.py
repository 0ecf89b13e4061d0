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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from matchwright.engine.erased import stand_in
from matchwright.engine.errors import StoreDamaged
from matchwright.engine.store import blobs
from matchwright.engine.store.catalog import KINDS, Catalog, Kind

if TYPE_CHECKING:
    from matchwright.engine.store.writer import Writer
    from matchwright.kernels.types import Int64, UInt64

_TABLE = """
CREATE TABLE IF NOT EXISTS erased (
  kind TEXT NOT NULL, key INTEGER NOT NULL, epoch INTEGER NOT NULL,
  time REAL NOT NULL, done REAL, PRIMARY KEY (kind, key)) WITHOUT ROWID
"""
LISTED: Mapping[Kind, tuple[Kind, str]] = {"freelancer": ("job", "excluded_freelancers")}
"""Kind -> whose records list its ids, and in which field."""
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


@dataclass(frozen=True, slots=True)
class FromStore:
    """What one erasure did to the store itself.

    Attributes:
        epoch: number of the epoch that no longer shows them.
        living: that were there.
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


def count(catalog: Catalog, kind: Kind, ids: Sequence[str]) -> dict[str, int]:
    """What ``erase_rows`` would find: records, earlier forms, records of others that list them."""
    with catalog.look() as connection:
        return {
            "living": _count(connection, kind, ids),
            "earlier": _count(connection, f"{kind}_old", ids),
            "mentions": len(_mentions(connection, catalog, kind, ids)),
        }


def erase_rows(writer: Writer, kind: Kind, ids: Sequence[str]) -> FromStore:
    """The one transaction. ``ids`` are NFC; those that are not there may have been.

    Must not be called while holding the writer's lock.
    """
    key_n = writer.neighbours.hash_keys(ids, writer.loader.state.salt)
    found = {"living": 0, "earlier": 0, "mentions": 0}

    def change(connection: sqlite3.Connection, number: int) -> None:
        connection.execute("PRAGMA secure_delete = ON")
        found["living"] = _delete(connection, kind, ids)
        found["earlier"] = _delete(connection, f"{kind}_old", ids)
        found["mentions"] = _replace_mentions(connection, writer.catalog, kind, ids, key_n)
        _enter(connection, kind, key_n, number)

    done = writer.rewrite({kind: key_n}, change)
    return FromStore(done.epoch.number, rows=done.rows, files=len(done.removed), **found)


def _count(connection: sqlite3.Connection, table: str, ids: Sequence[str]) -> int:
    return sum(
        connection.execute(
            f"SELECT count(*) FROM {table} WHERE id IN ({', '.join('?' * len(chunk))})", chunk
        ).fetchone()[0]
        for chunk in _chunks(ids)
    )


def _delete(connection: sqlite3.Connection, table: str, ids: Sequence[str]) -> int:
    return sum(
        connection.execute(
            f"DELETE FROM {table} WHERE id IN ({', '.join('?' * len(chunk))})", chunk
        ).rowcount
        for chunk in _chunks(ids)
    )


def _chunks(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    for low in range(0, len(ids), _PARAMETERS_MAX):
        yield ids[low : low + _PARAMETERS_MAX]


# ── What others' records say ──────────────────────────────────────────────────────────────────


def _mentions(
    connection: sqlite3.Connection, catalog: Catalog, kind: Kind, ids: Sequence[str]
) -> list[tuple[str, int, bytes, bytes]]:
    """(table, seq, hash, body) of the records that list an id."""
    if kind not in LISTED:
        return []
    other, field = LISTED[kind]
    decode = msgspec.msgpack.Decoder(
        msgspec.defstruct("Listed", [("ids", list[str] | None, None)], rename={"ids": field})
    ).decode
    wanted, found, where = frozenset(ids), [], str(catalog.path)
    for table in (other, f"{other}_old"):
        cursor = connection.execute(f"SELECT seq, hash, body FROM {table}")
        while rows := cursor.fetchmany(_ROWS_AT_ONCE):
            for seq, content, body in rows:
                try:
                    names = getattr(decode(blobs.inflate(body)), "ids")  # noqa: B009
                except (msgspec.MsgspecError, zlib.error):
                    raise StoreDamaged(f"{where}: a record cannot be read", file=where) from None
                if names and not wanted.isdisjoint(names):
                    found.append((table, seq, content, body))
    return found


def _replace_mentions(
    connection: sqlite3.Connection,
    catalog: Catalog,
    kind: Kind,
    ids: Sequence[str],
    key_n: UInt64,
) -> int:
    """Stand-ins in the place of ids. The rule column of the row holds keys, and stays."""
    found = _mentions(connection, catalog, kind, ids)
    if not found:
        return 0
    field, where = LISTED[kind][1], str(catalog.path)
    names = {name: stand_in(key) for name, key in zip(ids, key_n.tolist(), strict=True)}
    for table, seq, content, body in found:
        record: dict[str, Any] = blobs.unpack_record(body, content, where)
        record[field] = [names.get(name, name) for name in record[field]]
        # A text that is not kept is its digest here already.
        values = blobs.pack_record(record, keep_text=True)
        connection.execute(f"UPDATE {table} SET hash = ?, body = ? WHERE seq = ?", (*values, seq))
    return len(found)


# ── Who was erased ────────────────────────────────────────────────────────────────────────────


def _enter(connection: sqlite3.Connection, kind: Kind, key_n: UInt64, number: int) -> None:
    connection.execute(_TABLE)
    now = time.time()
    connection.executemany(
        "INSERT INTO erased VALUES (?, ?, ?, ?, NULL) ON CONFLICT (kind, key) DO UPDATE "
        "SET epoch = excluded.epoch, time = excluded.time, done = NULL",
        [(kind, key, number, now) for key in key_n.astype(np.int64).tolist()],
    )


def finish(catalog: Catalog, kind: Kind, key_n: UInt64) -> None:
    """Enters that nothing of these is left to do."""
    now = time.time()
    with catalog.change() as connection:
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


def scrub(catalog: Catalog) -> bool:
    """Rewrites every page of the catalog and empties its log, so that no free page holds anything.

    Takes as much free space again as the catalog has, twice.

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
