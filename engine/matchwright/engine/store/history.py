"""The epochs of a catalog: which can still be opened, and what each of them is made of.

An epoch is open from its commit until a writer closes it (see ``collect``). What an open epoch is
made of is in the catalog: segments with ``born <= number < gone``, of the live segment with the
same rule its first ``n`` rows, of both the tombstones up to ``number``, the generation, and
records that were written before it and not out of force by then.
"""

from __future__ import annotations

import dataclasses
import sqlite3
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from matchwright.engine.errors import StoreDamaged
from matchwright.engine.store import blobs, schema

if TYPE_CHECKING:
    from matchwright.engine.store.catalog import Kind, State


@dataclass(frozen=True, slots=True)
class EpochRow:
    """One open epoch.

    Attributes:
        number, digest, what: its name and the change that made it.
        generation: the one in force.
        next_seq: above every record that it shows.
        n_job, n_freelancer: rows that its live segments had.
        since: seconds since 1970 when it came in force, never before the one before it.
        until: when the next one did; None for the newest.
    """

    number: int
    digest: bytes
    what: str
    generation: str
    next_seq: int
    n_job: int
    n_freelancer: int
    since: float
    until: float | None

    def n(self, kind: Kind) -> int:
        """Rows that its live segment had."""
        return self.n_job if kind == "job" else self.n_freelancer

    def with_n(self, kind: Kind, n: int) -> EpochRow:
        """With another count of live rows."""
        if kind == "job":
            return dataclasses.replace(self, n_job=n)
        return dataclasses.replace(self, n_freelancer=n)

    def checksum(self) -> bytes:
        """Of everything that stays as it is."""
        fixed = (getattr(self, name) for name in EpochRow.__slots__ if name != "until")
        return blobs.digest(*(repr(value).encode() for value in fixed))


_COLUMNS = ", ".join(EpochRow.__slots__)


def begin(connection: sqlite3.Connection, state: State, what: str, now: float) -> None:
    """Enters the first epoch of a new catalog, or the newest one of a migrated catalog."""
    for kind in schema.KINDS:
        connection.execute(
            "INSERT INTO live_segment VALUES (?, ?, ?, NULL)",
            (state.live(kind), kind, state.number),
        )
    _put(connection, state, what, now)


def step(
    connection: sqlite3.Connection, before: State, state: State, what: str, now: float
) -> None:
    """Enters the epoch that ``state`` names after the one that ``before`` named."""
    for kind in schema.KINDS:
        old, new = before.live(kind), state.live(kind)
        if old != new:
            connection.execute(
                "UPDATE live_segment SET gone = ? WHERE segment = ?", (state.number, old)
            )
            connection.execute(
                "INSERT INTO live_segment VALUES (?, ?, ?, NULL)", (new, kind, state.number)
            )
    (since,) = connection.execute(
        "SELECT since FROM epoch WHERE number = ?", (before.number,)
    ).fetchone() or (None,)
    now = max(now, since or 0.0)
    connection.execute("UPDATE epoch SET until = ? WHERE number = ?", (now, before.number))
    _put(connection, state, what, now)


def _put(connection: sqlite3.Connection, state: State, what: str, now: float) -> None:
    jobs, freelancers = (live_rows(connection, state.live(kind)) for kind in schema.KINDS)
    name = (state.number, state.digest, what, state.generation, state.next_seq)
    replace(connection, EpochRow(*name, jobs, freelancers, now, None))


def replace(connection: sqlite3.Connection, row: EpochRow) -> None:
    """Writes an open epoch's row."""
    values = [getattr(row, name) for name in EpochRow.__slots__]
    marks = ", ".join("?" * len(values))
    connection.execute(
        f"INSERT OR REPLACE INTO epoch ({_COLUMNS}, open, checksum) VALUES ({marks}, 1, ?)",
        (*values, row.checksum()),
    )


def live_rows(connection: sqlite3.Connection, segment: int) -> int:
    """Rows of a live segment, dead ones included."""
    found = connection.execute(
        "SELECT first + n FROM live WHERE segment = ? ORDER BY first DESC LIMIT 1", (segment,)
    ).fetchone()
    return int(found[0]) if found else 0


def read(connection: sqlite3.Connection, number: int, where: str) -> EpochRow | None:
    """An open epoch; None when there is none of this number.

    Raises:
        StoreDamaged: its row does not match its checksum.
    """
    found = connection.execute(
        f"SELECT {_COLUMNS}, checksum FROM epoch WHERE number = ? AND open = 1", (number,)
    ).fetchone()
    return None if found is None else _checked(found, where)


def read_all(connection: sqlite3.Connection, where: str) -> list[EpochRow]:
    """Every open epoch, oldest first.

    Raises:
        StoreDamaged: a row does not match its checksum.
    """
    found = connection.execute(
        f"SELECT {_COLUMNS}, checksum FROM epoch WHERE open = 1 ORDER BY number"
    )
    return [_checked(row, where) for row in found.fetchall()]


def numbers(connection: sqlite3.Connection) -> list[int]:
    """The numbers of the open epochs in ascending order."""
    found = connection.execute("SELECT number FROM epoch WHERE open = 1 ORDER BY number")
    return [number for (number,) in found.fetchall()]


def is_open(connection: sqlite3.Connection, number: int) -> bool:
    """Whether an epoch can be opened."""
    found = connection.execute("SELECT 1 FROM epoch WHERE number = ? AND open = 1", (number,))
    return found.fetchone() is not None


def live_at(connection: sqlite3.Connection, number: int) -> dict[str, int]:
    """kind -> live segment of an open epoch; a kind is missing when no rows of it are left."""
    found = connection.execute(
        "SELECT kind, segment FROM live_segment WHERE born <= ? AND (gone IS NULL OR gone > ?)",
        (number, number),
    )
    return dict(found.fetchall())


def _checked(found: tuple[Any, ...], where: str) -> EpochRow:
    *values, checksum = found
    row = EpochRow(*values)
    if row.checksum() != checksum:
        raise StoreDamaged(
            f"{where}: the row of epoch {row.number!r} does not match its checksum", file=where
        )
    return row
