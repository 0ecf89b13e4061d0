"""Reads a segment's indexes: predicates as packed bits, without looking at every row.

A ``Reader`` keeps what questions share: handles of the columns, known rows, ranks of bounds. It
stays with its segment from one call to the next (``lent``).
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from matchwright.kernels import rules
from matchwright.kernels.index import HOURS, MARKS
from matchwright.kernels.types import (
    UNKNOWN,
    Bool,
    EmptyOrHasAny,
    HasAll,
    HasNone,
    HoursOverlap,
    InRange,
    Int32,
    Int64,
    KeyIn,
    OneOf,
    Predicate,
    Segment,
    SubsetOf,
    UInt8,
    UInt16,
    UInt64,
)

BOUNDS_KEPT = 4_096
"""Bounds of a number column whose ranks a reader keeps; likewise values of a set column."""


@dataclass(slots=True, eq=False)
class _Numbers:
    """The index of a number column.

    Attributes:
        column, perm, bits: see ``index``.
        value, mark: the same, as lists: they are short, and bisected for every bound.
        ranks: bound -> how many rows have a value below it, as far as it was asked.
        known: bits of the rows whose value is known, made when asked; None when all are.
    """

    column: Int32
    perm: Int32
    value: list[int]
    mark: list[int]
    bits: UInt8
    ranks: dict[int, int] = field(default_factory=dict)
    known: UInt8 | None = None
    looked: bool = False


@dataclass(slots=True, eq=False)
class _Sets:
    """The index of a set column.

    Attributes:
        value, row, dense, bits, size: see ``index``.
        start: the same; postings of value i are row[start[i]:start[i + 1]].
        known, empty: bits of known rows and of empty sets.
        places: value -> its place, -1 where it does not occur; as far as it was asked.
    """

    value: UInt64
    start: Int64
    row: Int32
    dense: Int32
    bits: UInt8
    size: UInt16
    known: UInt8
    empty: UInt8
    places: dict[int, int] = field(default_factory=dict)

    def places_of(self, values: Iterable[int]) -> list[int]:
        """Places of those values that occur, each once."""
        found = {self._place(value) for value in values}
        found.discard(-1)
        return sorted(found)

    def _place(self, value: int) -> int:
        place = self.places.get(value)
        if place is None:
            if len(self.places) >= BOUNDS_KEPT:
                self.places.clear()
            at = int(np.searchsorted(self.value, np.uint64(value)))
            there = at < self.value.size and int(self.value[at]) == value
            place = self.places[value] = at if there else -1
        return place

    def postings(self, place: int) -> Int32:
        """Rows that have a value."""
        return self.row[self.start[place] : self.start[place + 1]]


@contextmanager
def lent(segment: Segment) -> Iterator[Reader]:
    """A segment's reader, for one thread at a time; another thread gets another one."""
    pool: list[Reader] = segment.memo.setdefault("readers", [])
    try:
        reader = pool.pop()
    except IndexError:
        reader = Reader(segment)
    yield reader
    pool.append(reader)


class Reader:
    """Predicates of one segment as packed bits, by its index where it has one. For one thread.

    Args:
        segment: the segment.
        row_step: rows at a time where there is no index.
    """

    def __init__(self, segment: Segment, row_step: int = 65_536) -> None:
        self.segment = segment
        self.n, self.octets = segment.n, -(-segment.n // 8)
        self._flags = np.zeros(self.n, dtype=np.bool_)
        self._row_step = max(row_step, 64)
        self._by_name: dict[str, _Numbers | None] = {}
        self._sets_by_name: dict[str, _Sets | None] = {}
        self._hours: rules.Rows | None = None

    def evaluate(self, predicate: Predicate) -> tuple[UInt8, UInt8 | None]:
        """(passing, unverified) bits, not to be written to; unverified is None where no row is."""
        known, good = self._verdict(predicate)
        if known is None:
            return good, None
        if not getattr(predicate, "unknown_passes", False):
            return good & known, None
        unknown = self._not(known)
        return good | unknown, unknown

    def _verdict(self, predicate: Predicate) -> tuple[UInt8 | None, UInt8]:
        """(known, good) bits; known is None where all rows are."""
        found = _BY_INDEX[type(predicate)](self, predicate) if self.segment.index else None
        return self._row_wise(predicate) if found is None else found

    def _row_wise(self, predicate: Predicate) -> tuple[UInt8, UInt8]:
        known = np.zeros(self.octets, dtype=np.uint8)
        good = np.zeros(self.octets, dtype=np.uint8)
        step = self._row_step // 64 * 64
        for begin in range(0, self.n, step):
            rows = rules.Rows(self.segment, slice(begin, min(begin + step, self.n)))
            for out, flags in zip((known, good), rules.verdict(predicate, rows), strict=True):
                packed = np.packbits(flags, bitorder="little")
                out[begin // 8 : begin // 8 + packed.size] = packed
        return known, good

    def _not(self, bits: UInt8) -> UInt8:
        out = ~bits
        if self.n % 8:
            out[-1] &= (1 << self.n % 8) - 1
        return out

    def _none(self) -> UInt8:
        return np.zeros(self.octets, dtype=np.uint8)

    def _scatter(self, pieces: Iterable[Int32]) -> UInt8:
        """Bits of some rows."""
        pieces = list(pieces)
        for rows in pieces:
            self._flags[rows] = True
        packed = np.packbits(self._flags, bitorder="little")
        for rows in pieces:
            self._flags[rows] = False
        return packed

    # Number columns

    def _numbers(self, name: str) -> _Numbers | None:
        """The index of a number column; None where there is none."""
        if name not in self._by_name:
            index, found = self.segment.index, None
            if f"scalar.{name}.mark" in index:
                perm, value, mark, bits = (
                    index[f"scalar.{name}.{part}"] for part in ("perm", "value", "mark", "bits")
                )
                column = self.segment.scalars[name]
                found = _Numbers(column, perm, value.tolist(), mark.tolist(), bits)
            self._by_name[name] = found
        return self._by_name[name]

    def _rank(self, there: _Numbers, bound: int) -> int:
        """How many rows have a value below ``bound``."""
        rank = there.ranks.get(bound)
        if rank is None:
            if len(there.ranks) >= BOUNDS_KEPT:
                there.ranks.clear()
            rank = there.ranks[bound] = self._find_rank(there, bound)
        return rank

    def _find_rank(self, there: _Numbers, bound: int) -> int:
        mark, perm = there.mark, there.perm
        i = bisect.bisect_left(there.value, bound)
        below = mark[i] if i < len(mark) else self.n
        if i == 0 or not perm.size:
            return below
        between = there.column[perm[mark[i - 1] : below]]
        return mark[i - 1] + int(np.searchsorted(between, bound, side="left"))

    def _below(self, there: _Numbers, rank: int) -> UInt8:
        """Bits of the rows whose rank is below ``rank``; not to be written to."""
        mark, perm = there.mark, there.perm
        if rank >= self.n:
            return self._not(self._none())
        i = bisect.bisect_right(mark, rank) - 1
        begin = mark[i]
        end = mark[i + 1] if i + 1 < len(mark) else self.n
        if i + 1 < len(mark) and end - rank < rank - begin:
            upper: UInt8 = there.bits[i + 1]
            return upper & ~self._scatter([perm[rank:end]])
        lower: UInt8 = there.bits[i]
        return lower | self._scatter([perm[begin:rank]]) if rank > begin else lower

    def _between(self, there: _Numbers, first: int, last: int) -> UInt8:
        """Bits of the rows that rank in first..last - 1; not to be written to."""
        if last <= first:
            return self._none()
        if there.perm.size and (last - first) * MARKS <= self.n:
            return self._scatter([there.perm[first:last]])
        upper = self._below(there, last)
        return upper & ~self._below(there, first) if first else upper

    def _values(self, there: _Numbers, low: int, high: int) -> UInt8:
        """Bits of the rows with low <= value <= high; not to be written to."""
        return self._between(there, self._rank(there, low), self._rank(there, high + 1))

    def _known(self, there: _Numbers) -> UInt8 | None:
        """Bits of the rows whose value is known; None when all are."""
        if not there.looked:
            unknown = self._rank(there, UNKNOWN + 1)
            there.known = self._not(self._below(there, unknown)) if unknown else None
            there.looked = True
        return there.known

    def in_range(self, p: InRange) -> tuple[UInt8 | None, UInt8] | None:
        there = self._numbers(p.column)
        if there is None:
            return None
        return self._known(there), self._values(there, p.low, p.high)

    def one_of(self, p: OneOf) -> tuple[UInt8 | None, UInt8] | None:
        there = self._numbers(p.column)
        if there is None:
            return None
        bits = self._none()
        for low, high in _runs(p.values):
            bits |= self._values(there, low, high)
        return self._known(there), self._not(bits) if p.negate else bits

    # Set columns

    def _sets(self, name: str) -> _Sets | None:
        """The index of a set column; None where there is none."""
        if name not in self._sets_by_name:
            index, found = self.segment.index, None
            if f"set.{name}.start" in index:
                known, empty = index[f"set.{name}.plain"]
                value, start, row, dense, bits, size = (
                    index[f"set.{name}.{part}"]
                    for part in ("value", "start", "row", "dense", "bits", "size")
                )
                found = _Sets(value, start, row, dense, bits, size, known, empty)
            self._sets_by_name[name] = found
        return self._sets_by_name[name]

    def _one(self, there: _Sets, place: int) -> UInt8:
        """Bits of the rows that have a value; not to be written to."""
        dense = int(there.dense[place])
        if dense >= 0:
            bits: UInt8 = there.bits[dense]
            return bits
        return self._scatter([there.postings(place)])

    def _any(self, there: _Sets, places: NDArray[np.intp]) -> UInt8:
        """Bits of the rows that have at least one of the values."""
        dense = there.dense[places]
        bits = self._scatter(there.postings(int(v)) for v in places[dense < 0])
        for i in dense[dense >= 0]:
            bits |= there.bits[i]
        return bits

    def has_all(self, p: HasAll) -> tuple[UInt8 | None, UInt8] | None:
        there = self._sets(p.column)
        if there is None:
            return None
        places = there.places_of(p.values)
        if len(places) < len(set(p.values)):
            return there.known, self._none()
        bits = self._one(there, places[0]) if places else self._not(self._none())
        for place in places[1:]:
            bits = bits & self._one(there, place)
        return there.known, bits

    def has_none(self, p: HasNone) -> tuple[UInt8 | None, UInt8] | None:
        there = self._sets(p.column)
        if there is None:
            return None
        return there.known, self._not(self._any(there, _array(there.places_of(p.values))))

    def empty_or_any(self, p: EmptyOrHasAny) -> tuple[UInt8 | None, UInt8] | None:
        there = self._sets(p.column)
        if there is None:
            return None
        return there.known, self._any(there, _array(there.places_of(p.values))) | there.empty

    def subset_of(self, p: SubsetOf) -> tuple[UInt8 | None, UInt8] | None:
        """Rows with a value outside fail; where more values lie outside, count those inside."""
        there = self._sets(p.column)
        if there is None:
            return None
        start, places = there.start, _array(there.places_of(p.values))
        inside = int((start[places + 1] - start[places]).sum())
        if inside * 2 >= int(start[-1]):
            outside = np.setdiff1d(np.arange(start.size - 1), places)
            return there.known, self._not(self._any(there, outside))
        count = np.zeros(self.n, dtype=np.uint16)
        for place in places.tolist():
            count[there.postings(place)] += 1
        # sizes saturate, counts do not reach that far: a set of more than 65,534 is no subset
        return there.known, np.packbits(count == there.size, bitorder="little")

    # Working hours and keys

    def hours_overlap(self, p: HoursOverlap) -> tuple[UInt8 | None, UInt8] | None:
        index = self.segment.index
        if "hours.code" not in index:
            return None
        if self._hours is None:
            table = index["hours.table"]
            h, scalars = table.shape[1], dict(zip(HOURS, table, strict=True))
            distinct = Segment(np.empty((h, 0), np.int8), np.empty(h, np.uint64), scalars)
            self._hours = rules.Rows(distinct)
        code = index["hours.code"]
        known, good = rules.verdict(p, self._hours)
        if known.all():
            return None, _by_code(good, code)
        return _by_code(known, code), _by_code(good, code)

    def key_in(self, p: KeyIn) -> tuple[UInt8 | None, UInt8] | None:
        if "key.perm" not in self.segment.index:
            return None
        bits = self._scatter([self.rows_of_keys(np.array(p.keys, dtype=np.uint64))])
        return None, self._not(bits) if p.negate else bits

    def rows_of_keys(self, keys: UInt64) -> Int32:
        """Rows that have one of the keys."""
        perm, key_n = self.segment.index["key.perm"], self.segment.key_n
        low = np.zeros(keys.size, dtype=np.int64)
        high = np.full(keys.size, self.n, dtype=np.int64)
        while (open_ := low < high).any():
            middle = (low + high) // 2
            below = open_.copy()
            below[open_] = key_n[perm[middle[open_]]] < keys[open_]
            low = np.where(below, middle + 1, low)
            high = np.where(open_ & ~below, middle, high)
        inside = low < self.n
        rows = perm[low[inside]]
        found: Int32 = rows[key_n[rows] == keys[inside]]
        return found


def _array(places: list[int]) -> NDArray[np.intp]:
    return np.array(places, dtype=np.intp)


def _by_code(flags: Bool, code: Int32) -> UInt8:
    """Bits of all rows from flags of what distinct rows have."""
    return np.packbits(flags.take(code), bitorder="little")


def _runs(values: Iterable[int]) -> list[tuple[int, int]]:
    """Runs of consecutive values as (first, last)."""
    runs: list[tuple[int, int]] = []
    for value in sorted(set(values)):
        if runs and runs[-1][1] + 1 == value:
            runs[-1] = (runs[-1][0], value)
        else:
            runs.append((value, value))
    return runs


_BY_INDEX: dict[type, Callable[[Reader, Any], tuple[UInt8 | None, UInt8] | None]] = {
    InRange: Reader.in_range,
    OneOf: Reader.one_of,
    HasAll: Reader.has_all,
    HasNone: Reader.has_none,
    EmptyOrHasAny: Reader.empty_or_any,
    SubsetOf: Reader.subset_of,
    HoursOverlap: Reader.hours_overlap,
    KeyIn: Reader.key_in,
}
