"""The reading side of a store: snapshots of the newest and of kept epochs, and leases."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matchwright.engine.errors import EpochGone, FailedPrecondition, StoreError
from matchwright.engine.store import leases, migrate, replica
from matchwright.engine.store.catalog import Catalog, Kind
from matchwright.engine.store.epochs import KeptEpoch, kept_epochs
from matchwright.engine.store.leases import Lease, LeaseFolder
from matchwright.engine.store.loader import Loader
from matchwright.engine.store.snapshot import Snapshot

if TYPE_CHECKING:
    import polars as pl


class Reading:
    """What every open ``Store`` can do, whatever it was opened for."""

    root: Path
    _loader: Loader
    _leases: LeaseFolder
    _held: weakref.WeakValueDictionary[int, Snapshot]

    @property
    def _catalog(self) -> Catalog:
        return self._loader.catalog

    @property
    def trouble(self) -> StoreError | None:
        """Why a reader stays on the epoch that it has; None when all is well.

        It tries again every second, so that it needs no restart when the trouble is over.
        """
        return self._loader.trouble

    @property
    def uuid(self) -> str:
        return self._loader.state.uuid

    @property
    def salt(self) -> bytes:
        """The 16 bytes that keys of this store are hashed with."""
        return self._loader.state.salt

    @property
    def generation(self) -> Any:
        """The generation in force."""
        return self._loader.newest().generation

    @property
    def keep_text(self) -> bool:
        return self._loader.state.keep_text

    def snapshot(self, *, epoch: int | None = None, min_epoch: int | None = None) -> Snapshot:
        """The newest epoch, or one that is asked for by number.

        Other processes' commits are seen within 50 ms, this one's at once.

        Args:
            epoch: exactly this one; it can be opened while it is retained, while a lease keeps
                it, and while somebody in this process holds it.
            min_epoch: this one or a later one, such as the epoch that a write returned.

        Raises:
            EpochGone: ``epoch`` is no longer kept.
            FailedPrecondition: the store has not reached the epoch asked for.
        """
        newest = self._loader.newest()
        wanted = max(epoch or 0, min_epoch or 0)
        if wanted > newest.epoch.number:
            newest = self._loader.newest(now=True)
        self._held[newest.epoch.number] = newest
        if wanted > newest.epoch.number:
            trouble = self.trouble  # names files: callers of a server are not told
            raise FailedPrecondition(
                f"epoch {wanted} was asked for, the store is at {newest.epoch.number}"
                + (f" and cannot go on ({trouble.reason}, see the log)" if trouble else ""),
                epoch=newest.epoch.number,
            )
        if epoch is None or epoch == newest.epoch.number:
            return newest
        held = self._held.get(epoch)
        if held is None or not self._loader.knows(held.epoch):
            held = self._held[epoch] = self._loader.at(epoch)
        return held

    def epochs(self) -> list[KeptEpoch]:
        """The epochs that can be opened, oldest first, and why each is kept."""
        return kept_epochs(self._catalog, self._leases)

    # ── Leases ────────────────────────────────────────────────────────────────────────────────

    def keep(self, name: str, *, epoch: int | None = None, seconds: float | None = None) -> Lease:
        """Keeps an epoch from going, whoever writes and whatever happens to this process.

        Readers may call it as well: it writes a small file and not the catalog. A lease of the
        same name and epoch is renewed; one that has ended is replaced.

        Args:
            name: of the lease, one in the store: 1 to 100 of A-Z a-z 0-9 . _ -
            epoch: the number; the newest by default.
            seconds: until the lease ends; None: until it is released.

        Raises:
            EpochGone: the epoch has gone. One that ``snapshot`` gave stays for ``retain_s``.
            AlreadyExists: the name keeps another epoch.
            FailedPrecondition: the store has not reached the epoch.
            StoreFormat: the store's format knows one epoch only.
            StoreReadOnly: the folder cannot be written to, or is a replica.
        """
        replica.refuse_lease(self.root)
        migrate.refuse_older(self._catalog.path, self._catalog.check())
        newest = self.snapshot(min_epoch=epoch).epoch.number
        number = newest if epoch is None else epoch
        is_open = self._loader.is_open
        try:
            note = leases.take(self._leases, name, number, seconds, is_open)
        except EpochGone:
            if epoch is not None:
                raise
            # Without a retention time the newest epoch can go before the lease is there.
            return self.keep(name, seconds=seconds)
        return Lease(self._leases, note, is_open)

    def release(self, name: str) -> int:
        """Ends a lease by its name; the number of the epoch that it kept.

        Raises:
            NotFound: there is no such lease.
        """
        return leases.release(self._leases, name).epoch

    def records(self, kind: Kind, ids: Sequence[str]) -> pl.DataFrame:
        """The newest records of ids, in the order given. See ``Snapshot.records``."""
        return self.snapshot().records(kind, ids)
