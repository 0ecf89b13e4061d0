"""Keeps an in-memory view of the catalog in step with the file, by reading only what is new.

Writers and readers use the same path: after its commit a writer loads what it has written just
as any other process does, so memory never says anything that the file does not.
"""

from __future__ import annotations

import errno
import logging
import os
import sqlite3
import threading
import time
import weakref
from pathlib import Path
from typing import Any

import numpy as np

from matchwright.engine.errors import EpochGone, NotFound, StoreDamaged, StoreError
from matchwright.engine.store import blobs, files, history, schema
from matchwright.engine.store.catalog import KINDS, Catalog, Kind, SegmentRow, State
from matchwright.engine.store.encode import Neighbours
from matchwright.engine.store.rows import take
from matchwright.engine.store.segment_file import SegmentFile
from matchwright.engine.store.snapshot import Epoch, Part, Snapshot
from matchwright.engine.store.sources import LiveRows, RowSource, SealedRows
from matchwright.kernels.types import Bool

POLL_S = 0.05
RETRY_S = 1.0
"""Seconds after which a reader that could not go on tries again."""
_TRIES = 20
_log = logging.getLogger(__name__)


class Loader:
    """The newest snapshot of a store.

    Args:
        root: the store's folder.
        catalog: its catalog.
        neighbours: how to load a generation.
        poll: whether other processes may be writing.
    """

    def __init__(self, root: Path, catalog: Catalog, neighbours: Neighbours, poll: bool) -> None:
        self._root = root
        self._catalog = catalog
        self._neighbours = neighbours
        self._poll = poll
        self._lock = threading.Lock()
        with catalog.guard():
            self._connection = catalog.connect()
        self._version = self._reading = -1
        self._polled = 0.0
        self._generations: dict[str, Any] = {}
        self._sealed: dict[int, SealedRows] = {}
        self._mapped: weakref.WeakValueDictionary[tuple[int, bytes], SealedRows]
        self._mapped = weakref.WeakValueDictionary()
        self._live: dict[Kind, LiveRows] = {}
        self._state: State | None = None
        self._snapshot: Snapshot | None = None
        self._closed = False
        self._retry_at = 0.0
        self.trouble: StoreError | None = None
        """Why a reader stays on the epoch that it has; None when it could be read anew."""

    @property
    def catalog(self) -> Catalog:
        """The catalog that the newest snapshot is from: another one after a pull or a restore."""
        return self._catalog

    def newest(self, *, now: bool = False) -> Snapshot:
        """The newest snapshot; ``now`` asks the file even if it was asked a moment ago."""
        snapshot = self._snapshot
        fresh = not self._poll or time.monotonic() - self._polled < POLL_S
        if snapshot is not None and fresh and not now:
            return snapshot
        with self._lock:
            return self._refresh() if snapshot is None or not self._poll else self._follow()

    def close(self) -> None:
        """Lets the catalog go. The newest snapshot stays."""
        with self._lock:
            self._closed = True
            self._connection.close()
            self._catalog.close()

    def keep(self, generation: Any) -> None:
        """Remembers a generation that was just made, so that it need not be read back."""
        self._generations[generation.id] = generation

    @property
    def state(self) -> State:
        """What the newest snapshot was made from."""
        self.newest()
        assert self._state is not None
        return self._state

    def live(self, kind: Kind) -> LiveRows:
        """The live rows of a kind; for the writer, under its lock."""
        return self._live[kind]

    def _follow(self) -> Snapshot:
        """What is new, for a reader that has an epoch: it stays on that one when it cannot go on.

        ``trouble`` says why; it is logged once and tried again every ``RETRY_S``.
        """
        if self._closed:
            raise StoreError(f"{self._root}: the store is closed", file=self._root)
        now = time.monotonic()
        if self.trouble is None or now >= self._retry_at:
            try:
                if self._catalog.replaced():
                    self._adopt()
                self._refresh()
                self.trouble = None
            except (StoreError, EpochGone, NotFound) as error:
                if self.trouble is None or str(self.trouble) != str(error):
                    _log.error("staying on epoch %s: %s", self._snapshot, error)
                self.trouble = error if isinstance(error, StoreError) else StoreError(str(error))
                self._retry_at = self._polled = now
                self._retry_at += RETRY_S
        assert self._snapshot is not None
        return self._snapshot

    def _adopt(self) -> None:
        """Starts afresh from the catalog that was put in the place of ours.

        Snapshots that are out go on with the file that they were made from.
        """
        catalog = Catalog(self._catalog.path, write=False)
        fresh = None
        try:
            catalog.check()
            fresh = Loader(self._root, catalog, self._neighbours, poll=True)
            fresh._mapped = self._mapped
            fresh._refresh()
        except BaseException:
            if fresh is not None:
                fresh.close()
            catalog.close()
            raise
        self._connection.close()
        for name in ("_catalog", "_connection", "_version", "_reading", "_generations", "_sealed"):
            setattr(self, name, getattr(fresh, name))
        self._live, self._state, self._snapshot = fresh._live, fresh._state, fresh._snapshot

    def knows(self, epoch: Epoch) -> bool:
        """Whether an epoch is part of this catalog's history: another's has the same numbers."""
        with self._catalog.look() as connection:
            found = connection.execute(
                "SELECT digest FROM epoch WHERE number = ?", (epoch.number,)
            ).fetchone()
        return found is not None and found[0].hex() == epoch.digest

    def _refresh(self) -> Snapshot:
        self._polled = time.monotonic()
        for attempt in range(_TRIES):
            with self._catalog.guard():
                (version,) = self._connection.execute("PRAGMA data_version").fetchone()
                if self._snapshot is not None and version == self._version:
                    return self._snapshot
            try:
                self._load()
            except FileNotFoundError as error:
                # A writer may replace files between our reading their names and opening them.
                if attempt + 1 == _TRIES or not self._moved():
                    raise _absent(error)
                continue
            self._version = version
            assert self._snapshot is not None
            return self._snapshot
        raise AssertionError("unreachable")

    def _moved(self) -> bool:
        with self._catalog.look(self._connection) as connection:
            return self._catalog.state(connection).number != self._reading

    def _load(self) -> None:
        """Reads everything that is new in one read transaction, then switches at once."""
        catalog, old = self._catalog, self._state
        with catalog.look(self._connection) as connection:
            state = catalog.state(connection)
            self._reading = state.number
            if old is not None and old.number == state.number:
                return
            manifest = catalog.segments(connection)
            seen = old.number if old is not None else -1
            unseen = [row.segment for row in manifest if row.segment not in self._sealed]
            dead = self._group(catalog.dead_since(connection, seen, unseen))
            live = {kind: self._live_rows(connection, state, kind) for kind in KINDS}
        sealed = {row.segment: self._open(row, state.uuid) for row in manifest}
        generation = self._generation(state.generation)
        kept = self._alive_before()
        parts = {
            kind: self._parts(
                [sealed[row.segment] for row in manifest if row.kind == kind],
                live[kind],
                dead,
                kept,
            )
            for kind in KINDS
        }
        epoch = Epoch(state.uuid, state.number, state.digest.hex())
        self._snapshot = Snapshot(epoch, generation, state.salt, parts, catalog, self._neighbours)
        self._sealed, self._live, self._state = sealed, live, state
        self._generations = {state.generation: generation}

    def _group(self, rows: list[tuple[int, bytes]]) -> dict[int, list[Any]]:
        grouped: dict[int, list[Any]] = {}
        for segment, packed in rows:
            array = blobs.unpack_array(packed, np.int32, str(self._catalog.path))
            grouped.setdefault(segment, []).append(array)
        return grouped

    def _live_rows(self, connection: sqlite3.Connection, state: State, kind: Kind) -> LiveRows:
        live = self._live.get(kind)
        if live is None or live.number != state.live(kind):
            live = LiveRows(state.live(kind))
        for first, packed in self._catalog.live_from(connection, live.number, live.n):
            rows = blobs.unpack_rows(packed, str(self._catalog.path))
            if first > live.n:
                raise StoreDamaged(
                    f"{self._catalog.path}: live rows {live.n}..{first} are missing",
                    file=self._catalog.path,
                )
            live.append_from(rows, live.n - first)
        return live

    def _open(self, row: SegmentRow, uuid: str) -> SealedRows:
        known = self._mapped.get((row.segment, row.digest))
        if known is not None:
            return known
        file = SegmentFile(self._root / "segments" / row.file, row.digest)
        about = file.about
        held = (file.number, file.n, about["kind"], about["generation"], about["store"])
        if held != (row.segment, row.n, row.kind, row.generation, uuid):
            raise StoreDamaged(
                f"{file.path}: is not the file that the manifest names", file=file.path
            )
        sealed = SealedRows(file, self._neighbours.index_version)
        self._mapped[row.segment, row.digest] = sealed
        return sealed

    def _generation(self, name: str) -> Any:
        known = self._generations.get(name)
        if known is not None:
            return known
        folder = self._root / "generations" / name
        if not folder.is_dir():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder))
        try:
            return self._neighbours.load(folder)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise files.failure(error.filename or folder, error, "read")

    # ── Earlier epochs ────────────────────────────────────────────────────────────────────────

    def at(self, number: int) -> Snapshot:
        """A snapshot of an earlier epoch that is still open.

        Raises:
            EpochGone: it has been closed.
        """
        newest = self.newest()
        try:
            return self._at(number, newest)
        except FileNotFoundError as error:
            with self._catalog.look() as connection:
                if history.is_open(connection, number):
                    raise _absent(error)
            raise gone(number, newest.epoch.number)

    def is_open(self, number: int) -> bool:
        """Whether an epoch can be opened, asked of the file."""
        with self._catalog.look() as connection:
            if self._catalog.version(connection) < schema.FORMAT:
                return number == self._catalog.state(connection).number
            return history.is_open(connection, number)

    def _at(self, number: int, newest: Snapshot) -> Snapshot:
        catalog, where = self._catalog, str(self._catalog.path)
        with catalog.look() as connection:
            if catalog.version(connection) < schema.FORMAT:
                raise gone(number, newest.epoch.number)
            row = history.read(connection, number, where)
            if row is None:
                raise gone(number, newest.epoch.number)
            manifest = catalog.segments_at(connection, number)
            lives = history.live_at(connection, number)
            segments = [row.segment for row in manifest] + list(lives.values())
            dead = self._group(catalog.dead_at(connection, number, segments))
            live = {
                kind: self._live_head(connection, lives.get(kind, -1), row.n(kind))
                for kind in KINDS
            }
        sealed = {row.segment: self._open(row, newest.epoch.uuid) for row in manifest}
        generation = self._generation(row.generation)
        parts = {
            kind: self._parts(
                [sealed[row.segment] for row in manifest if row.kind == kind],
                live[kind],
                dead,
                {},
            )
            for kind in KINDS
        }
        epoch = Epoch(newest.epoch.uuid, number, row.digest.hex())
        return Snapshot(epoch, generation, newest.salt, parts, catalog, self._neighbours)

    def _live_head(self, connection: sqlite3.Connection, segment: int, n: int) -> LiveRows:
        """The first ``n`` rows of a live segment, which may be live still or not."""
        live = LiveRows(segment)
        for first, packed in self._catalog.live_from(connection, segment, 0) if n else ():
            rows = blobs.unpack_rows(packed, str(self._catalog.path))
            if first != live.n:
                break
            live.append(take(rows, np.arange(min(rows.n, n - live.n))))
            if live.n == n:
                break
        if live.n != n:
            raise StoreDamaged(
                f"{self._catalog.path}: live rows {live.n}..{n} of segment {segment} are missing",
                file=self._catalog.path,
            )
        return live

    def _alive_before(self) -> dict[int, Bool | None]:
        if self._snapshot is None:
            return {}
        return {
            part.source.number: part.alive
            for parts in self._snapshot.parts.values()
            for part in parts
        }

    @staticmethod
    def _parts(
        sealed: list[SealedRows],
        live: LiveRows,
        dead: dict[int, list[Any]],
        kept: dict[int, Bool | None],
    ) -> tuple[Part, ...]:
        sources: list[RowSource] = [*sealed]
        view = live.view()
        if view is not None:
            sources.append(view)
        return tuple(
            Part(source, _alive(source.n, kept.get(source.number), dead.get(source.number, [])))
            for source in sources
        )


def _absent(error: FileNotFoundError) -> StoreDamaged:
    return StoreDamaged(
        f"{error.filename}: is named by the manifest but is not there; "
        "restore it from a copy, or import again",
        file=error.filename,
    )


def gone(number: int, newest: int) -> EpochGone:
    """The error for an epoch that cannot be opened any more."""
    return EpochGone(f"epoch {number} is no longer kept; the newest is {newest}", epoch=newest)


def _alive(n: int, before: Bool | None, dead: list[Any]) -> Bool | None:
    """Copy on write: an epoch that kills nothing here shares the array with the one before."""
    if not dead and (before is None or len(before) == n):
        return before
    alive = np.ones(n, dtype=np.bool_)
    if before is not None:
        alive[: len(before)] = before
    for rows in dead:
        alive[rows] = False
    alive.flags.writeable = False
    return alive
