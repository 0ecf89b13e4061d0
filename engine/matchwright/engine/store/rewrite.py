"""Takes rows out of history: segments are replaced by copies without some keys, in every epoch.

Compaction leaves the files that kept epochs need as they are. This does not: whatever epoch has a
segment gets its copy, so that no file holds the rows any more. For erasure.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from matchwright.engine.store import blobs, history
from matchwright.engine.store.catalog import Kind, SegmentRow
from matchwright.engine.store.copies import copy_rows, moved, write_copy
from matchwright.engine.store.rows import Rows, concat, take
from matchwright.engine.store.segment_file import SegmentFile, Written
from matchwright.kernels.types import Bool, UInt64

if TYPE_CHECKING:
    from pathlib import Path

    from matchwright.engine.store.snapshot import Epoch
    from matchwright.engine.store.writer import Writer

LIVE_ROWS_AT_ONCE = 8_192


Change = Callable[[sqlite3.Connection, int], None]


@dataclass(frozen=True, slots=True)
class Rewritten:
    """What a rewrite did.

    Attributes:
        epoch: the first without the rows.
        segments: segment that was replaced -> its copy; None where no row was left.
        live: the same for live segments of earlier epochs.
        rows: rows that were dropped, counting each copy of a row.
        removed: the files that were replaced; they are gone.
    """

    epoch: Epoch
    segments: dict[int, int | None]
    live: dict[int, int | None]
    rows: int
    removed: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class _Copy:
    row: SegmentRow
    kept_n: Bool
    made: tuple[int, Written] | None


class Rewrite:
    """One rewrite. See ``Writer.rewrite``."""

    def __init__(self, writer: Writer, drop: Mapping[Kind, UInt64], change: Change | None) -> None:
        self._writer = writer
        self._drop = drop
        self._change = change
        self._seen: set[int] = set()
        self._copies: list[_Copy] = []

    def run(self) -> Rewritten:
        writer = self._writer
        with writer.structure:
            try:
                for kind in self._drop:
                    writer.seal(kind)
                self._copy_all()
                with writer.lock:
                    # What was written while the files were copied.
                    for kind, drop_m in self._drop.items():
                        view = writer.loader.live(kind).view()
                        if view is not None and np.isin(view.rows.encoded.key_n, drop_m).any():
                            writer.seal(kind)
                    self._copy_all()
                    done = self._commit()
            except BaseException:
                writer.discard([copy.made[1].file for copy in self._copies if copy.made])
                raise
        return done

    def _copy_all(self) -> None:
        with self._writer.catalog.look() as connection:
            rows = self._writer.catalog.all_segments(connection)
        for row in rows:
            if row.kind in self._drop and row.segment not in self._seen:
                self._copy(row)
                self._seen.add(row.segment)

    def _copy(self, row: SegmentRow) -> None:
        """A copy of a segment without the keys, if it has any of them and has not just gone."""
        writer = self._writer
        try:
            file = SegmentFile(writer.root / "segments" / row.file, row.digest)
        except FileNotFoundError:
            return  # a write collected it; were it damage, opening and verifying would name it
        kept_n = ~np.isin(file.array("key"), self._drop[row.kind])
        if kept_n.all():
            return
        made = write_copy(writer, row.kind, row.generation, [copy_rows(file, kept_n)])
        self._copies.append(_Copy(row, kept_n, made))

    def _commit(self) -> Rewritten:
        """Puts the copies in the place of what they are copies of, in every open epoch."""
        writer, catalog = self._writer, self._writer.catalog
        segments: dict[int, int | None] = {}
        live: dict[int, int | None] = {}
        unused: list[str] = []
        rows = 0
        with writer.change() as connection:
            state = catalog.state(connection)
            if self._change is not None:
                self._change(connection, state.number + 1)
            there = {row.segment: row for row in catalog.all_segments(connection)}
            for copy in self._copies:
                row = there.get(copy.row.segment)
                if row is None:
                    unused += [copy.made[1].file] if copy.made else []
                    continue
                _swap(writer, connection, row, copy)
                segments[row.segment] = copy.made[0] if copy.made else None
                rows += int(np.count_nonzero(~copy.kept_n))
            for kind, drop_m in self._drop.items():
                rows += _rewrite_live(writer, connection, kind, drop_m, live)
            content = [
                part for kind, m in self._drop.items() for part in (kind.encode(), m.tobytes())
            ]
            writer.step(connection, state, "rewrite", content)
        epoch = writer.newest().epoch
        names = [there[segment].file for segment in segments]
        _unlink(writer, names + unused)
        removed = tuple(writer.root / "segments" / name for name in names)
        return Rewritten(epoch, segments, live, rows, removed)


def _swap(writer: Writer, connection: sqlite3.Connection, row: SegmentRow, copy: _Copy) -> None:
    connection.execute("DELETE FROM manifest WHERE segment = ?", (row.segment,))
    if copy.made is not None:
        segment, written = copy.made
        swapped = replace(
            row,
            segment=segment,
            file=written.file,
            n=written.n,
            size=written.size,
            digest=written.digest,
        )
        writer.catalog.add_segment(connection, swapped)
    _move_dead(writer, connection, row.segment, copy.made and copy.made[0], copy.kept_n)


def _move_dead(
    writer: Writer, connection: sqlite3.Connection, old: int, new: int | None, kept_n: Bool
) -> None:
    """Tombstones of a segment, for its copy, under their epochs."""
    found = connection.execute("SELECT number, rows FROM dead WHERE segment = ?", (old,)).fetchall()
    connection.execute("DELETE FROM dead WHERE segment = ?", (old,))
    for number, packed in found if new is not None else ():
        dead = blobs.unpack_array(packed, np.int32, str(writer.catalog.path)).astype(np.int64)
        rows = moved(dead, kept_n)
        if len(rows) and new is not None:
            writer.catalog.add_dead(connection, new, number, rows)


def _rewrite_live(
    writer: Writer,
    connection: sqlite3.Connection,
    kind: Kind,
    drop_m: UInt64,
    changed: dict[int, int | None],
) -> int:
    """Live segments of earlier epochs; ``changed`` takes old -> new. The rows dropped."""
    found = connection.execute(
        "SELECT segment, born, gone FROM live_segment WHERE kind = ? AND gone IS NOT NULL", (kind,)
    ).fetchall()
    dropped = 0
    where = str(writer.catalog.path)
    for segment, born, gone in found:
        batches = writer.catalog.live_from(connection, segment, 0)
        if not batches:
            continue
        rows = concat([blobs.unpack_rows(packed, where) for _, packed in batches])
        kept_n = ~np.isin(rows.encoded.key_n, drop_m)
        if kept_n.all():
            continue
        new = changed[segment] = writer.take_segment()
        dropped += int(np.count_nonzero(~kept_n))
        _put_live(connection, new, take(rows, np.flatnonzero(kept_n)))
        connection.execute("DELETE FROM live WHERE segment = ?", (segment,))
        connection.execute("DELETE FROM live_segment WHERE segment = ?", (segment,))
        connection.execute("INSERT INTO live_segment VALUES (?, ?, ?, ?)", (new, kind, born, gone))
        _move_dead(writer, connection, segment, new, kept_n)
        before_n = np.concatenate([np.zeros(1, np.int64), np.cumsum(kept_n)])
        for row in history.read_all(connection, where):
            if born <= row.number < gone:
                count = int(before_n[row.n(kind)])
                history.replace(connection, row.with_n(kind, count))
    return dropped


def _put_live(connection: sqlite3.Connection, segment: int, rows: Rows) -> None:
    for low in range(0, rows.n, LIVE_ROWS_AT_ONCE):
        part = take(rows, np.arange(low, min(low + LIVE_ROWS_AT_ONCE, rows.n)))
        connection.execute(
            "INSERT INTO live VALUES (?, ?, ?, ?)", (segment, low, part.n, blobs.pack_rows(part))
        )


def _unlink(writer: Writer, names: Sequence[str]) -> None:
    for name in names:
        with suppress(OSError):
            (writer.root / "segments" / name).unlink()
