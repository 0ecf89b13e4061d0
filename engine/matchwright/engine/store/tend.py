"""What housekeeping finds to do in a store, by a look that writes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from matchwright.engine.store import replica, schema
from matchwright.engine.store.catalog import Catalog
from matchwright.engine.store.collect import overdue
from matchwright.engine.store.compact import worth_merging
from matchwright.engine.store.leases import LeaseFolder
from matchwright.engine.store.snapshot import Snapshot


@dataclass(frozen=True, slots=True)
class Due:
    """What there is to do; false when there is nothing.

    Attributes:
        merge: segments are worth merging.
        sweep: the time of an epoch is over.
    """

    merge: bool = False
    sweep: bool = False

    def __bool__(self) -> bool:
        return self.merge or self.sweep


def look(
    root: Path, snapshot: Snapshot, catalog: Catalog, target_rows: int, retain_s: float
) -> Due:
    """What there is to do; nothing in a replica, nor in a store of an older format.

    Args:
        root: the store's folder.
        snapshot: its newest.
        catalog: its catalog.
        target_rows: living rows of a merged segment.
        retain_s: how long an epoch without a lease stays.

    Raises:
        StoreError: the catalog or a lease cannot be read.
    """
    if (root / replica.MARK).exists():
        return Due()
    with catalog.look() as connection:
        if catalog.version(connection) < schema.FORMAT:
            return Due()
        sweep = overdue(connection, LeaseFolder(root), retain_s)
    return Due(worth_merging(snapshot, target_rows) is not None, sweep)
