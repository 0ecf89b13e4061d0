"""What no open epoch needs any more goes: epochs after their retention, rows, records, files.

A sweep runs inside a transaction of the writer; files and generations are removed after it was
committed. Killed in between, the next writer finds them in no manifest and removes them.
"""

from __future__ import annotations

import logging
import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from matchwright.engine.errors import StoreError
from matchwright.engine.store import blobs, history, schema
from matchwright.engine.store.leases import LeaseFolder

if TYPE_CHECKING:
    from matchwright.engine.store.catalog import Catalog

RECORDS_AT_ONCE = 10_000
"""Old records that one transaction removes at most, so that no write waits for long."""
HISTORY_EPOCHS = 100_000
"""Closed epochs whose row (number, digest, change) is kept, as a log of what was done."""
DEAD_LOG_MAX = 16
"""Tombstone entries of a segment from which they are joined."""
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Sweep:
    """One sweep, in force when its transaction is.

    Attributes:
        allowed: False closes no epoch: a lease is being made, or a lease file is damaged.
        leased: epochs that leases keep.
        files: names of segment files to remove.
        floor: old records that went out of force by this epoch have been looked at.
        finished: False when there is more to remove.
    """

    allowed: bool
    leased: frozenset[int]
    files: list[str] = field(default_factory=list)
    floor: int = -1
    finished: bool = True


def overdue(connection: sqlite3.Connection, leases: LeaseFolder, retain_s: float) -> bool:
    """Whether a writer would close an epoch now. Only looks, also where nothing may be written.

    Raises:
        StoreDamaged, StoreFormat: a lease file cannot be read, so that no epoch may be closed.
    """
    now = time.time()
    kept = {note.epoch for note in leases.notes() if not note.expired(now)}
    found = connection.execute(
        "SELECT number FROM epoch WHERE open = 1 AND until <= ?", (now - retain_s,)
    )
    return any(number not in kept for (number,) in found)


class Collector:
    """Closes epochs and removes what they leave. The writer's, under its lock.

    Args:
        root: the store's folder.
        leases: its leases.
        retain_s: how long an epoch stays open after the next one came in force.
    """

    def __init__(self, root: Path, leases: LeaseFolder, retain_s: float) -> None:
        self._root = root
        self._leases = leases
        self.retain_s = retain_s
        self.building: set[str] = set()
        self._floor = -1
        self._pending = True
        self._held_off = False

    @property
    def more(self) -> bool:
        """Whether a sweep now would go on; not while somebody keeps epochs from being closed."""
        return self._pending and not self._held_off

    def is_due(self, catalog: Catalog) -> bool:
        """Whether there is something to remove without anything being written."""
        with self._leases.closing() as allowed:
            leased = self._leased() if allowed else None
        if leased is None:
            return False
        with catalog.look() as connection:
            due = connection.execute(
                "SELECT number FROM epoch WHERE open = 1 AND until <= ?",
                (time.time() - self.retain_s,),
            ).fetchall()
        return self._pending or any(number not in leased for (number,) in due)

    @contextmanager
    def sweeping(self) -> Iterator[Sweep]:
        """Around a transaction that calls ``run``; a clean end means that it was committed."""
        with self._leases.closing() as allowed:
            leased = self._leased() if allowed else None
            sweep = Sweep(leased is not None, leased or frozenset(), floor=self._floor)
            yield sweep
        self._floor, self._pending = sweep.floor, not sweep.finished
        self._held_off = not sweep.allowed
        for name in sweep.files:
            with suppress(OSError):
                (self._root / "segments" / name).unlink()

    def _leased(self) -> frozenset[int] | None:
        """Epochs that leases keep; ended leases are removed. None: a lease cannot be read."""
        now = time.time()
        try:
            notes = self._leases.notes()
            for note in notes:
                if note.expired(now):
                    self._leases.remove(note.name)
        except StoreError as error:
            _log.warning("no epoch is closed: %s", error)
            return None
        return frozenset(note.epoch for note in notes if not note.expired(now))

    def run(self, connection: sqlite3.Connection, sweep: Sweep) -> None:
        """The part inside the transaction; before what else it does."""
        if not sweep.allowed:
            sweep.finished = not self._pending
            return
        cut = time.time() - self.retain_s
        kept = ", ".join(map(str, sorted(sweep.leased)))
        due = f"open = 1 AND until <= ? AND number NOT IN ({kept})"
        (oldest,) = connection.execute(
            f"SELECT min(number) FROM epoch WHERE {due}", (cut,)
        ).fetchone()
        if oldest is None and not self._pending:
            return
        connection.execute(f"UPDATE epoch SET open = 0 WHERE {due}", (cut,))
        connection.execute(
            "DELETE FROM epoch WHERE open = 0 AND number < (SELECT max(number) FROM epoch) - ?",
            (HISTORY_EPOCHS,),
        )
        (floor,) = connection.execute(
            "SELECT min(number) FROM epoch WHERE open = 1 AND (until IS NULL OR until > ?)", (cut,)
        ).fetchone()
        done = -1 if oldest is not None and oldest < sweep.floor else sweep.floor
        sweep.finished = all(
            _forget_records(connection, kind, done, floor) for kind in schema.KINDS
        )
        sweep.floor = floor if sweep.finished else done
        _forget_live(connection)
        sweep.files += _forget_segments(connection)

    def remove_generations(self, connection: sqlite3.Connection) -> None:
        """Removes folders of generations that no open epoch has."""
        found = connection.execute("SELECT DISTINCT generation FROM epoch WHERE open = 1")
        needed = self.building.union(name for (name,) in found)
        for folder in (self._root / "generations").iterdir():
            if folder.name in needed or folder.name.startswith("."):
                continue
            # Under its own name a generation is whole: renamed first, then removed.
            going = folder.with_name(f".{folder.name}.gone")
            with suppress(OSError):
                folder.rename(going)
            shutil.rmtree(going, ignore_errors=True)

    def remove_orphans(self, connection: sqlite3.Connection) -> None:
        """Files that a killed writer left: in no manifest, so nobody reads them."""
        named = {name for (name,) in connection.execute("SELECT file FROM manifest")}
        for path in (self._root / "segments").iterdir():
            if path.name not in named:
                path.unlink(missing_ok=True)
        for path in (self._root / "generations").glob(".*"):
            shutil.rmtree(path, ignore_errors=True)


def _forget_records(connection: sqlite3.Connection, kind: str, done: int, floor: int) -> bool:
    """Old records that went out of force after ``done``, by ``floor``; whether that is all.

    Open epochs below ``floor`` are there by lease; of those that a record could be visible in, the
    last one before it went decides, since ``next_seq`` only grows.
    """
    cursor = connection.execute(
        f"DELETE FROM {kind}_old WHERE seq IN (SELECT seq FROM {kind}_old AS r "
        "WHERE r.gone > ? AND r.gone <= ? AND NOT EXISTS (SELECT 1 FROM epoch "
        "WHERE open = 1 AND number < r.gone AND next_seq > r.seq) LIMIT ?)",
        (done, floor, RECORDS_AT_ONCE),
    )
    return cursor.rowcount < RECORDS_AT_ONCE


_UNUSED = """gone IS NOT NULL AND NOT EXISTS (
  SELECT 1 FROM epoch WHERE open = 1 AND number >= born AND number < gone)"""


def _forget_live(connection: sqlite3.Connection) -> None:
    unused = connection.execute(f"SELECT segment FROM live_segment WHERE {_UNUSED}").fetchall()
    for table in ("live", "dead", "live_segment"):
        connection.executemany(f"DELETE FROM {table} WHERE segment = ?", unused)


def _forget_segments(connection: sqlite3.Connection) -> list[str]:
    unused = connection.execute(f"SELECT segment, file FROM manifest WHERE {_UNUSED}").fetchall()
    for table in ("dead", "manifest"):
        connection.executemany(
            f"DELETE FROM {table} WHERE segment = ?", [(segment,) for segment, _ in unused]
        )
    return [file for _, file in unused]


def merge_dead(connection: sqlite3.Connection, where: str) -> None:
    """Joins tombstones of segments that have many entries, never across an open epoch.

    Entries between two open epochs become one, under the last one's number: every open epoch, and
    every reader that asks for what is newer than it has, sees the same rows as before.
    """
    crowded = connection.execute(
        "SELECT segment FROM dead GROUP BY segment HAVING count(*) > ?", (DEAD_LOG_MAX,)
    ).fetchall()
    opened = np.array(history.numbers(connection) if crowded else [], dtype=np.int64)
    for (segment,) in crowded:
        found = connection.execute(
            "SELECT number, rows FROM dead WHERE segment = ? ORDER BY number", (segment,)
        ).fetchall()
        number_n = np.array([number for number, _ in found], dtype=np.int64)
        group_n = np.searchsorted(opened, number_n)
        for group in np.unique(group_n).tolist():
            members = np.flatnonzero(group_n == group).tolist()
            if len(members) < 2:
                continue
            arrays = [blobs.unpack_array(found[n][1], np.int32, where) for n in members]
            rows = np.unique(np.concatenate(arrays))
            low, high = found[members[0]][0], found[members[-1]][0]
            connection.execute(
                "DELETE FROM dead WHERE segment = ? AND number BETWEEN ? AND ?",
                (segment, low, high),
            )
            connection.execute(
                "INSERT INTO dead (segment, number, rows) VALUES (?, ?, ?)",
                (segment, high, blobs.pack_array(rows)),
            )


def forget_older(connection: sqlite3.Connection) -> None:
    """Takes everything out of a catalog that its newest epoch does not need, leases or not."""
    connection.execute("UPDATE epoch SET open = 0 WHERE open = 1 AND until IS NOT NULL")
    for kind in schema.KINDS:
        connection.execute(f"DELETE FROM {kind}_old")
    _forget_live(connection)
    _forget_segments(connection)
