"""Rule predicates, row by row: the reference that every index and plan must agree with.

A predicate has three outcomes for a row: it passes, it fails, or the column is not known; then
``unknown_passes`` decides, and a row that passes this way counts as *unverified*.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from matchwright.kernels.types import (
    UNKNOWN,
    Bool,
    EmptyOrHasAny,
    HasAll,
    HasNone,
    HoursOverlap,
    InRange,
    Int16,
    Int32,
    Int64,
    KeyIn,
    OneOf,
    Predicate,
    Rules,
    Segment,
    SetColumn,
    SubsetOf,
    UInt64,
)

DAY_MINUTES = 1_440
Windows = tuple[Bool, Int16, Int16]


class Rows:
    """Some rows of a segment, or all of them: where predicates read their columns.

    Args:
        segment: the segment.
        rows: int64 positions within the segment, or a slice of them; None for all.
    """

    def __init__(self, segment: Segment, rows: Int64 | slice | None = None) -> None:
        self.segment = segment
        self.rows = slice(0, segment.n) if rows is None else rows
        there = self.rows
        self.n = there.size if isinstance(there, np.ndarray) else _span(there, segment.n)

    @property
    def key_n(self) -> UInt64:
        return self.segment.key_n[self.rows]

    def scalar(self, name: str) -> Int32:
        """int32 (n,) of one column."""
        try:
            column = self.segment.scalars[name]
        except KeyError:
            raise unknown_column(name, self.segment.scalars) from None
        return column[self.rows]

    def set_column(self, name: str) -> SetColumn:
        """The rows' sets."""
        try:
            column = self.segment.sets[name]
        except KeyError:
            raise unknown_column(name, self.segment.sets) from None
        return _take_sets(column, self.rows)

    def windows(self, offset_minutes: tuple[int, ...]) -> Windows:
        """The rows' working hours. Those of a slice are kept for the segment: they are the same
        for every query of a day."""
        if not isinstance(self.rows, slice):
            return _windows(self, offset_minutes)
        name = ("windows", offset_minutes)
        kept: Windows | None = self.segment.memo.get(name)
        if kept is None:
            kept = self.segment.memo[name] = _windows(Rows(self.segment), offset_minutes)
        known, begin, length = kept
        return known[self.rows], begin[self.rows], length[self.rows]


def _span(rows: slice, n: int) -> int:
    return len(range(*rows.indices(n)))


def unknown_column(name: str, known: Any) -> KeyError:
    return KeyError(f"no column {name!r} in this segment; it has: {', '.join(sorted(known))}")


def _take_sets(column: SetColumn, rows: Int64 | slice) -> SetColumn:
    if isinstance(rows, slice):
        low, high, _ = rows.indices(column.known_n.size)
        starts = column.start_n[low : high + 1]
        return SetColumn(
            starts - starts[0], column.value[starts[0] : starts[-1]], column.known_n[rows]
        )
    start, stop = column.start_n[rows], column.start_n[rows + 1]
    size = stop - start
    starts = np.concatenate([[0], np.cumsum(size)]).astype(np.int64)
    position = np.arange(starts[-1]) - np.repeat(starts[:-1] - start, size)
    return SetColumn(starts, column.value[position], column.known_n[rows])


def verdict(predicate: Predicate, rows: Rows) -> tuple[Bool, Bool]:
    """(known_n, good_n): where the answer is known, and whether it is yes (only where known)."""
    return _VERDICTS[type(predicate)](predicate, rows)


def evaluate(predicate: Predicate, rows: Rows) -> tuple[Bool, Bool]:
    """(pass_n, unverified_n): rows that pass, and those of them that pass on an unknown value."""
    known, good = verdict(predicate, rows)
    if getattr(predicate, "unknown_passes", False):
        return good | ~known, ~known
    return good & known, np.zeros(rows.n, dtype=np.bool_)


def eligible(rules: Rules, rows: Rows) -> tuple[Bool, Bool]:
    """(pass_n, unverified_n) for a whole rule set."""
    passed = np.ones(rows.n, dtype=np.bool_)
    unverified = np.zeros(rows.n, dtype=np.bool_)
    for predicate in rules:
        good, unsure = evaluate(predicate, rows)
        passed &= good
        unverified |= unsure
    return passed, unverified & passed


def vetoes(rules: Rules, segment: Segment, row: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Every veto that applies to one row, and every rule that it passes on an unknown value."""
    rows = Rows(segment, np.array([row], dtype=np.int64))
    failed: list[str] = []
    unsure: list[str] = []
    for predicate in rules:
        passed, unverified = evaluate(predicate, rows)
        if not passed[0]:
            failed.append(predicate.veto)
        elif unverified[0]:
            unsure.append(predicate.veto)
    return tuple(dict.fromkeys(failed)), tuple(dict.fromkeys(unsure))


# ── One function per predicate ────────────────────────────────────────────────────────────────


def _in_range(p: InRange, rows: Rows) -> tuple[Bool, Bool]:
    value = rows.scalar(p.column)
    return value != UNKNOWN, (value >= p.low) & (value <= p.high)


def _one_of(p: OneOf, rows: Rows) -> tuple[Bool, Bool]:
    value = rows.scalar(p.column)
    inside = np.isin(value, np.array(p.values, dtype=np.int64))
    return value != UNKNOWN, ~inside if p.negate else inside


def hits(column: SetColumn, values: tuple[int, ...]) -> Int64:
    """int64 (n,): how many of each row's values are among ``values``."""
    inside = np.isin(column.value, np.array(sorted(set(values)), dtype=np.uint64))
    running = np.concatenate([[0], np.cumsum(inside)]).astype(np.int64)
    return running[column.start_n[1:]] - running[column.start_n[:-1]]


def _has_all(p: HasAll, rows: Rows) -> tuple[Bool, Bool]:
    column = rows.set_column(p.column)
    return column.known_n, hits(column, p.values) == len(set(p.values))


def _has_none(p: HasNone, rows: Rows) -> tuple[Bool, Bool]:
    column = rows.set_column(p.column)
    return column.known_n, hits(column, p.values) == 0


def _empty_or_any(p: EmptyOrHasAny, rows: Rows) -> tuple[Bool, Bool]:
    column = rows.set_column(p.column)
    return column.known_n, (np.diff(column.start_n) == 0) | (hits(column, p.values) > 0)


def _subset_of(p: SubsetOf, rows: Rows) -> tuple[Bool, Bool]:
    column = rows.set_column(p.column)
    return column.known_n, hits(column, p.values) == np.diff(column.start_n)


def _hours_overlap(p: HoursOverlap, rows: Rows) -> tuple[Bool, Bool]:
    if p.required_minutes is None:
        required = rows.scalar("overlap_minutes")
    else:
        required = np.full(rows.n, p.required_minutes, dtype=np.int32)
    asks_nothing = (required <= 0) & (required != UNKNOWN)
    if p.start_utc is None or p.end_utc is None:
        return asks_nothing, asks_nothing
    known, begin, length = rows.windows(p.offset_minutes)
    known = known & (required != UNKNOWN)
    wanted = np.int16(window_minutes(p.start_utc, p.end_utc))
    minutes = overlap_minutes(begin, length, np.int16(p.start_utc % DAY_MINUTES), wanted)
    return known | asks_nothing, asks_nothing | (known & (minutes >= required))


def _windows(rows: Rows, offset_minutes: tuple[int, ...]) -> Windows:
    """(known bool, begin int16, length int16), (n,): minutes of the UTC day, and how many."""
    start, end, zone = (rows.scalar(name) for name in ("hours_start", "hours_end", "zone"))
    known = (start != UNKNOWN) & (end != UNKNOWN)
    known &= (zone >= 0) & (zone < len(offset_minutes))
    offsets = np.array([*offset_minutes, 0], dtype=np.int32)
    offset = offsets[np.where(known, zone, len(offset_minutes))]
    begin = np.mod(np.where(known, start - offset, 0), DAY_MINUTES)
    length = window_minutes(np.where(known, start, 0), np.where(known, end, 0))
    return known, begin.astype(np.int16), np.minimum(length, 2 * DAY_MINUTES).astype(np.int16)


def window_minutes(start: Any, end: Any) -> Any:
    """Length of [start, end) in minutes; an end not after its start crosses midnight."""
    return np.where(end > start, end - start, end - start + DAY_MINUTES)


def overlap_minutes(a: Any, a_length: Any, b: Any, b_length: Any) -> Any:
    """Minutes that two daily windows share; they start at ``a`` and ``b``, minutes of the day.

    On the circle of a day, with the second window at 0 and the first ``later`` minutes after it,
    they meet before the second one's end and again where the first one crosses 0.
    """
    later = a - b
    later = later + (later < 0) * np.int16(DAY_MINUTES)
    before_end = np.minimum(np.maximum(b_length - later, 0), a_length)
    return before_end + np.minimum(np.maximum(later + a_length - DAY_MINUTES, 0), b_length)


def _key_in(p: KeyIn, rows: Rows) -> tuple[Bool, Bool]:
    inside = np.isin(rows.key_n, np.array(p.keys, dtype=np.uint64))
    return np.ones(rows.n, dtype=np.bool_), ~inside if p.negate else inside


_VERDICTS: dict[type, Callable[[Any, Rows], tuple[Bool, Bool]]] = {
    InRange: _in_range,
    OneOf: _one_of,
    HasAll: _has_all,
    HasNone: _has_none,
    EmptyOrHasAny: _empty_or_any,
    SubsetOf: _subset_of,
    HoursOverlap: _hours_overlap,
    KeyIn: _key_in,
}
