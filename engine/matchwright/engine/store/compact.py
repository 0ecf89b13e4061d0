"""Compaction: small segments, and those with many dead rows, become fewer and larger ones.

Policy (size-tiered), for the segments in force of one kind:

- *worn*: a quarter of its rows or more are dead. It is written again without them, alone or with
  other worn ones. Each dead row is paid for by at most three living rows that are copied.
- *small*: fewer living rows than half of the target (``target_rows``, a bulk chunk). Four of one
  tier (tier = whole part of log4 of living rows) are merged into one of the next tier. So a row
  that came in a segment of ``s`` rows is copied at most log4(target / s) times on the way up: never
  when it was imported in bulk, once or twice when it was sealed from 4,096 rows or more.

Together a row is written once when it comes, at most twice on its way up, and three times per
death beside it: write amplification stays under 3 while a marketplace grows and under 6 when all of
it is replaced again and again.

Memory is bounded by the target: its rows once as they are read and once as they are joined. Nothing
is encoded. Between steps the compactor rests as long as it worked (``PACE``), so it takes at most
half of a core and half of what the disk gives.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from matchwright.engine.errors import StoreError
from matchwright.engine.store.catalog import KINDS, Kind
from matchwright.engine.store.copies import copy_rows, moved, write_copy
from matchwright.engine.store.segment_file import Written
from matchwright.engine.store.snapshot import Part, Snapshot
from matchwright.engine.store.sources import SealedRows
from matchwright.engine.store.writer import Writer, manifest_row
from matchwright.kernels.types import Bool

FANOUT = 4
WORN_SHARE = 0.25
PACE = 1.0
"""Seconds of rest per second of work, in the background."""
IDLE_S = 5.0
"""How often the background looks for something to do."""
RETRY_S = 60.0
"""Rest after a failure, such as a full disk."""
_VACUUM_PAGES = 1_024
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Size:
    """What the policy knows of a segment."""

    segment: int
    n: int
    living: int

    @property
    def worn(self) -> bool:
        return self.n - self.living >= max(1, WORN_SHARE * self.n)


def tier(living: int) -> int:
    """Whole part of log4."""
    return (max(living, 1).bit_length() - 1) // 2


def choose(sizes: Sequence[Size], target_rows: int, *, everything: bool = False) -> list[int]:
    """The segments to merge next, oldest first; none when there is nothing worth doing.

    Args:
        sizes: the segments in force, of one kind.
        target_rows: living rows of a merged segment at most (one segment may have more).
        everything: also where a few rows are dead, and whatever fits together.
    """
    groups = _worth_doing(sizes, target_rows, everything)
    for group in groups:
        chosen: list[Size] = []
        living = 0
        for size in group:
            if chosen and living + size.living > target_rows:
                break
            chosen.append(size)
            living += size.living
        if len(chosen) > 1 or chosen[0].living < chosen[0].n:
            return sorted(size.segment for size in chosen)
    return []


def _worth_doing(sizes: Sequence[Size], target_rows: int, everything: bool) -> list[list[Size]]:
    ascending = sorted(sizes, key=lambda size: (size.living, size.segment))
    if everything:
        return _packed(ascending, target_rows)
    worn = [size for size in ascending if size.worn]
    small = [size for size in ascending if not size.worn and 2 * size.living < target_rows]
    tiers: dict[int, list[Size]] = {}
    for size in small:
        tiers.setdefault(tier(size.living), []).append(size)
    groups = [members[:FANOUT] for members in tiers.values() if len(members) >= FANOUT]
    return ([worn] if worn else []) + groups


def _packed(ascending: list[Size], target_rows: int) -> list[list[Size]]:
    """Groups such that afterwards no row is dead and no two segments would fit into one."""
    dead = [size for size in ascending if size.living < size.n]
    if dead:
        rest = [size for size in ascending if size.living == size.n]
        return [[dead[0], *dead[1:], *rest]]
    fitting = len(ascending) > 1 and ascending[0].living + ascending[1].living <= target_rows
    return [ascending] if fitting else []


@dataclass(slots=True)
class Figures:
    """What compaction did since the store was opened.

    Attributes:
        merges: how many.
        segments_before, segments_after: that went in and came out.
        rows: living rows that were copied.
        dropped: dead rows that were left out.
        bytes_written: of segment files.
        seconds: at work, rests excluded.
        running: whether a merge is under way.
        error: the last failure, "" when the last merge went well.
    """

    merges: int = 0
    segments_before: int = 0
    segments_after: int = 0
    rows: int = 0
    dropped: int = 0
    bytes_written: int = 0
    seconds: float = 0.0
    running: bool = False
    error: str = ""

    def document(self) -> dict[str, Any]:
        """The same, for ``Store.info``."""
        names = Figures.__slots__
        return {name: getattr(self, name) for name in names} | {"seconds": round(self.seconds, 3)}


def worth_merging(
    snapshot: Snapshot, target_rows: int, *, everything: bool = False
) -> tuple[Kind, list[Part]] | None:
    """What the policy would merge next in a store; None when there is nothing. Only looks."""
    for kind in KINDS:
        sealed = {
            part.source.number: part
            for part in snapshot.parts[kind]
            if isinstance(part.source, SealedRows)
        }
        sizes = [Size(number, part.source.n, part.living) for number, part in sealed.items()]
        chosen = choose(sizes, target_rows, everything=everything)
        if chosen:
            return kind, [sealed[number] for number in chosen]
    return None


@dataclass(slots=True)
class _Merge:
    kind: Kind
    snapshot: Snapshot
    parts: list[Part]
    made: tuple[int, Written] | None = None
    kept: list[Bool] = field(default_factory=list)


class Stopped(Exception):
    """The compactor was asked to stop between two steps."""


class Compactor:
    """Merges segments of one store, one merge at a time.

    Args:
        writer: the store's.
        target_rows: living rows of a merged segment.
        pace: seconds of rest per second of work.
        stop: ends it after the step that is under way; one of its own when not given.
    """

    def __init__(
        self,
        writer: Writer,
        target_rows: int,
        pace: float = 0.0,
        stop: threading.Event | None = None,
    ) -> None:
        self._writer = writer
        self._target_rows = target_rows
        self._pace = pace
        self._stop = threading.Event() if stop is None else stop
        self._thread: threading.Thread | None = None
        self.figures = Figures()

    def start(self) -> None:
        """Begins to work in the background."""
        self._thread = threading.Thread(target=self._watch, name="compaction", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends after the step that is under way; a merge that is not committed leaves nothing."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def run(
        self, *, everything: bool = False, told: Callable[[Figures], None] | None = None
    ) -> Figures:
        """Merges until nothing is worth it. ``told`` hears of every merge.

        Raises:
            StoreDamaged: a segment does not match its checksums; it stays as it is.
            StoreFull: no room for a copy; nothing is lost.
        """
        while self.merge_one(everything=everything):
            if told is not None:
                told(self.figures)
        return self.figures

    def merge_one(self, *, everything: bool = False) -> bool:
        """One merge; False when there is nothing to do."""
        writer = self._writer
        with writer.structure:
            merge = self._plan(everything)
            if merge is None:
                return False
            began, rested = time.monotonic(), 0.0
            self.figures.running = True
            try:
                rested = self._copy(merge)
                with writer.lock:
                    self._commit(merge)
            except BaseException:
                if merge.made is not None:
                    writer.discard([merge.made[1].file])
                raise
            finally:
                self.figures.running = False
                self.figures.seconds += time.monotonic() - began - rested
        writer.collect()
        return True

    def _plan(self, everything: bool) -> _Merge | None:
        snapshot = self._writer.newest()
        found = worth_merging(snapshot, self._target_rows, everything=everything)
        return None if found is None else _Merge(found[0], snapshot, found[1])

    def _copy(self, merge: _Merge) -> float:
        """Writes the merged file; the seconds that it rested."""
        rested, copied = 0.0, []
        for part in merge.parts:
            began = time.monotonic()
            assert isinstance(part.source, SealedRows)
            kept_n = np.ones(part.source.n, np.bool_) if part.alive is None else part.alive
            merge.kept.append(kept_n)
            copied.append(copy_rows(part.source.file, part.alive))
            rested += self._rest(time.monotonic() - began)
        began = time.monotonic()
        generation = merge.snapshot.generation.id
        merge.made = write_copy(self._writer, merge.kind, generation, copied)
        rested += self._rest(time.monotonic() - began)
        return rested

    def _rest(self, worked_s: float) -> float:
        began = time.monotonic()
        if self._stop.wait(worked_s * self._pace) if self._pace else self._stop.is_set():
            raise Stopped
        return time.monotonic() - began

    def _commit(self, merge: _Merge) -> None:
        """Puts the copy in force; rows that died meanwhile are dead in it from the start."""
        writer, catalog = self._writer, self._writer.catalog
        newest = {part.source.number: part for part in writer.newest().parts[merge.kind]}
        late = []
        base = 0
        for part, kept_n in zip(merge.parts, merge.kept, strict=True):
            alive = newest[part.source.number].alive
            if alive is not None:
                late.append(base + moved(np.flatnonzero(kept_n & ~alive), kept_n))
            base += int(np.count_nonzero(kept_n))
        with writer.change() as connection:
            state = catalog.state(connection)
            number = state.number + 1
            _retire(connection, [part.source.number for part in merge.parts], number)
            if merge.made is not None:
                row = manifest_row(merge.kind, state.generation, *merge.made, number)
                catalog.add_segment(connection, row)
                dead = np.concatenate([np.zeros(0, np.int64), *late])
                if len(dead):
                    catalog.add_dead(connection, row.segment, number, np.sort(dead))
            writer.step(connection, state, "compact", (merge.kind.encode(),))
        writer.newest()
        self._count(merge, base)

    def _count(self, merge: _Merge, rows: int) -> None:
        figures = self.figures
        figures.merges += 1
        figures.segments_before += len(merge.parts)
        figures.rows += rows
        figures.dropped += sum(part.source.n for part in merge.parts) - rows
        if merge.made is not None:
            figures.segments_after += 1
            figures.bytes_written += merge.made[1].size

    def _watch(self) -> None:
        while not self._stop.is_set():
            wait_s = IDLE_S
            try:
                if self.merge_one():
                    wait_s = 0.0
                self._sweep()
                self.figures.error = ""
            except Stopped:
                return
            except (StoreError, OSError) as error:
                self.figures.error = str(error)
                _log.warning("compaction rests for %g s: %s", RETRY_S, error)
                wait_s = RETRY_S
            except Exception as error:  # a defect: it must be seen, and not end compaction
                self.figures.error = f"{type(error).__name__}: {error}"
                _log.exception("compaction rests for %g s", RETRY_S)
                wait_s = RETRY_S
            self._stop.wait(wait_s)

    def _sweep(self) -> None:
        """Epochs go in time also where nothing is written."""
        if self._writer.collector.is_due(self._writer.catalog):
            self._writer.collect()


def _retire(connection: sqlite3.Connection, segments: Sequence[int], number: int) -> None:
    for segment in segments:
        changed = connection.execute(
            "UPDATE manifest SET gone = ? WHERE segment = ? AND gone IS NULL", (number, segment)
        ).rowcount
        assert changed == 1, "segments in force are replaced by the holder of ``structure`` alone"


def vacuum(writer: Writer) -> int:
    """Gives free pages of the catalog back to the file system, in small steps; the bytes."""
    freed = 0
    with writer.catalog.guard(), writer.catalog.lend() as connection:
        (page,) = connection.execute("PRAGMA page_size").fetchone()
        while True:
            (free,) = connection.execute("PRAGMA freelist_count").fetchone()
            if not free:
                return freed
            with writer.lock:
                connection.execute(f"PRAGMA incremental_vacuum({_VACUUM_PAGES})").fetchall()
            (left,) = connection.execute("PRAGMA freelist_count").fetchone()
            if left >= free:
                return freed
            freed += (free - left) * page
