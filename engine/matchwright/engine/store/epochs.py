"""Which epochs can be opened, and why."""

from __future__ import annotations

import time
from dataclasses import dataclass

from matchwright.engine.store import history, schema
from matchwright.engine.store.catalog import Catalog
from matchwright.engine.store.leases import LeaseFolder

NEWEST, RETAINED = "newest", "retained"


@dataclass(frozen=True, slots=True)
class KeptEpoch:
    """An epoch that can be opened.

    Attributes:
        number, digest: its name in the store; the digest in hex.
        what: the change that made it: upsert, bulk, delete, seal, refit, compact ...
        generation: the one in force.
        since: seconds since 1970 when it came in force; None where the format does not tell.
        until: when the next one did; None for the newest.
        newest: whether it is in force.
        retained: neither newest nor leased: its time is not over, or no writer has looked yet.
        leases: names of the leases that keep it, ended ones excluded.
    """

    number: int
    digest: str
    what: str
    generation: str
    since: float | None
    until: float | None
    newest: bool
    retained: bool
    leases: tuple[str, ...]

    @property
    def why(self) -> list[str]:
        """ "newest", "retained", and the names of leases."""
        said = [NEWEST] * self.newest + [RETAINED] * self.retained
        return said + list(self.leases)


def kept_epochs(catalog: Catalog, leases: LeaseFolder) -> list[KeptEpoch]:
    """The epochs that can be opened, oldest first.

    Raises:
        StoreDamaged: an epoch's row, or a lease file.
    """
    where, now = str(catalog.path), time.time()
    with catalog.look() as connection:
        state = catalog.state(connection)
        known = catalog.version(connection) >= schema.FORMAT
        rows = history.read_all(connection, where) if known else []
    if not known:
        name = state.digest.hex()
        only = KeptEpoch(state.number, name, "", state.generation, None, None, True, False, ())
        return [only]
    names: dict[int, list[str]] = {}
    for note in leases.notes():
        if not note.expired(now):
            names.setdefault(note.epoch, []).append(note.name)
    return [
        KeptEpoch(
            row.number,
            row.digest.hex(),
            row.what,
            row.generation,
            row.since,
            row.until,
            newest=row.until is None,
            retained=row.until is not None and row.number not in names,
            leases=tuple(names.get(row.number, ())),
        )
        for row in rows
    ]
