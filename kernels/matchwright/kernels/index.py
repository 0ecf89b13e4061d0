"""Indexes that turn a rule set into packed bits; built once for a segment and stored with it.

Names and arrays (N rows, B = ceil(N / 8) bytes of bits, ``i`` counts marks or frequent values):

======================  =================  ========================================================
``x.norm2``             int64 (1,)         largest squared norm of a row of x
``key.perm``            int32 (N,)         rows in the order of their keys
``scalar.C.perm``       int32 (N,)         rows in the order of C; empty when few values
``scalar.C.value``      int32 (m,)         value at each mark
``scalar.C.mark``       int64 (m,)         ranks at which values begin; the first is 0
``scalar.C.bits``       uint8 (m, B)       bits of the rows that rank below the mark
``set.C.value``         uint64 (v,)        values that occur, ascending
``set.C.start``         int64 (v + 1,)     postings of value i are row[start[i]:start[i + 1]]
``set.C.row``           int32 (M,)         rows of each value, ascending
``set.C.dense``         int32 (v,)         line of a frequent value in ``bits``, else -1
``set.C.bits``          uint8 (i, B)       bits of the rows that have a frequent value
``set.C.size``          uint16 (N,)        values of each row
``set.C.plain``         uint8 (2, B)       bits of known rows, and of empty sets
``hours.code``          int32 (N,)         which of the distinct working hours a row has
``hours.table``         int32 (4, h)       distinct (start, end, zone, overlap) columns
======================  =================  ========================================================

Number columns are range-encoded (O'Neil and Quass, 1997): rows below any rank are the bits of the
nearest mark, plus or minus the few rows between, scattered from ``perm``.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from matchwright.kernels import rules
from matchwright.kernels.types import (
    UNKNOWN,
    Bool,
    EmptyOrHasAny,
    HasAll,
    HasNone,
    HoursOverlap,
    InRange,
    Int8,
    Int32,
    Int64,
    KeyIn,
    OneOf,
    Predicate,
    Segment,
    SetColumn,
    SubsetOf,
    UInt8,
    UInt64,
)

MARKS = 32
"""About how many marks a number column gets; a column with fewer values gets one for each."""
DENSE = 32
"""A value held by at least one row in so many gets bits of its own."""
HOURS = ("hours_start", "hours_end", "zone", "overlap_minutes")

Index = Mapping[str, NDArray[Any]]


# ── Building ──────────────────────────────────────────────────────────────────────────────────


def build_index(
    scalars: Mapping[str, Int32],
    sets: Mapping[str, SetColumn],
    x_nd: Int8,
    key_n: UInt64,
) -> dict[str, NDArray[Any]]:
    """name -> array, to be stored beside the segment and given back as ``Segment.index``."""
    arrays: dict[str, NDArray[Any]] = {
        "x.norm2": np.array([largest_norm2(x_nd)], dtype=np.int64),
        "key.perm": np.argsort(key_n, kind="stable").astype(np.int32),
    }
    for name, column in scalars.items():
        for part, array in _scalar_index(column).items():
            arrays[f"scalar.{name}.{part}"] = array
    for name, sets_n in sets.items():
        for part, array in _set_index(sets_n).items():
            arrays[f"set.{name}.{part}"] = array
    if all(name in scalars for name in HOURS):
        arrays |= _hours_index(np.stack([scalars[name] for name in HOURS]))
    return arrays


def largest_norm2(x_nd: Int8) -> int:
    """The largest sum of squares of a row."""
    largest = 0
    for begin in range(0, x_nd.shape[0], 4_096):
        wide = x_nd[begin : begin + 4_096].astype(np.float32)  # exact: 127**2 * 1,040 < 2**24
        largest = max(largest, int(np.vecdot(wide, wide).max()))
    return largest


def _scalar_index(column: Int32) -> dict[str, NDArray[Any]]:
    n = column.size
    perm = np.argsort(column, kind="stable").astype(np.int32)
    ordered = column[perm]
    edge = np.concatenate([[0], np.flatnonzero(ordered[1:] != ordered[:-1]) + 1])[: max(n, 1)]
    few = edge.size <= 2 * MARKS
    mark = edge if few else _marks(edge, n)
    rank = np.empty(n, dtype=np.int32)
    rank[perm] = np.arange(n, dtype=np.int32)
    bits = np.zeros((mark.size, -(-n // 8)), dtype=np.uint8)
    for i, at in enumerate(mark):
        bits[i] = np.packbits(rank < at, bitorder="little")
    return {
        "perm": perm[:0] if few else perm,
        "value": ordered[mark] if n else ordered,
        "mark": mark.astype(np.int64) if n else mark[:0].astype(np.int64),
        "bits": bits if n else bits[:0],
    }


def _marks(edge: NDArray[np.intp], n: int) -> NDArray[np.intp]:
    """Edges on both sides of every (n / MARKS)-th rank, so that frequent values are enclosed."""
    target = np.arange(0, n, max(1, n // MARKS))
    after = np.searchsorted(edge, target, side="left").clip(max=edge.size - 1)
    before = np.searchsorted(edge, target, side="right") - 1
    return np.unique(np.concatenate([edge[:1], edge[before], edge[after]]))


def _set_index(column: SetColumn) -> dict[str, NDArray[Any]]:
    n = column.known_n.size
    size = np.diff(column.start_n)
    row_m = np.repeat(np.arange(n, dtype=np.int32), size)
    by_value = np.argsort(column.value, kind="stable")
    value, start = np.unique(column.value[by_value], return_index=True)
    start = np.append(start, column.value.size).astype(np.int64)
    row = row_m[by_value]
    frequent = np.flatnonzero(np.diff(start) * DENSE >= max(n, 1))
    dense = np.full(value.size, -1, dtype=np.int32)
    dense[frequent] = np.arange(frequent.size)
    bits = np.zeros((frequent.size, -(-n // 8)), dtype=np.uint8)
    for i, v in enumerate(frequent):
        flags = np.zeros(n, dtype=np.bool_)
        flags[row[start[v] : start[v + 1]]] = True
        bits[i] = np.packbits(flags, bitorder="little")
    plain = np.stack([column.known_n, size == 0])
    return {
        "value": value,
        "start": start,
        "row": row,
        "dense": dense,
        "bits": bits,
        "size": np.minimum(size, 65_535).astype(np.uint16),
        "plain": np.packbits(plain, axis=1, bitorder="little"),
    }


def _hours_index(columns: NDArray[np.int32]) -> dict[str, NDArray[Any]]:
    if not columns.shape[1]:
        return {}
    code = np.zeros(columns.shape[1], dtype=np.int64)
    for column in columns:
        value, place = np.unique(column, return_inverse=True)
        code = np.unique(code * value.size + place, return_inverse=True)[1].reshape(-1)
    _, first = np.unique(code, return_index=True)
    if first.size > 65_536 and first.size * 4 > code.size:
        return {}
    return {"hours.code": code.astype(np.int32), "hours.table": columns[:, first]}


# ── Reading ───────────────────────────────────────────────────────────────────────────────────


class Reader:
    """Predicates of one segment as packed bits, by its index where it has one.

    Args:
        segment: the segment.
        row_step: rows at a time where there is no index.
    """

    def __init__(self, segment: Segment, row_step: int = 65_536) -> None:
        self.segment = segment
        self.n, self.octets = segment.n, -(-segment.n // 8)
        self._flags = np.zeros(self.n, dtype=np.bool_)
        self._row_step = max(row_step, 64)

    def evaluate(self, predicate: Predicate) -> tuple[UInt8, UInt8 | None]:
        """(passing, unverified) bits; unverified is None where no row can be."""
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

    def _array(self, *name: str) -> NDArray[Any]:
        return self.segment.index[".".join(name)]

    def _has(self, *name: str) -> bool:
        return ".".join(name) in self.segment.index

    def _not(self, bits: UInt8) -> UInt8:
        out = ~bits
        if self.n % 8:
            out[-1] &= (1 << self.n % 8) - 1
        return out

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

    def _rank(self, name: str, bound: int) -> int:
        """How many rows have a value below ``bound``."""
        mark, value = self._array("scalar", name, "mark"), self._array("scalar", name, "value")
        i = int(np.searchsorted(value, bound, side="left"))
        perm = self._array("scalar", name, "perm")
        below = int(mark[i]) if i < mark.size else self.n
        if i == 0 or not perm.size:
            return below
        column = self.segment.scalars[name]
        return bisect.bisect_left(
            perm, bound, lo=int(mark[i - 1]), hi=below, key=lambda row: int(column[row])
        )

    def _below(self, name: str, rank: int) -> UInt8:
        """Bits of the rows whose rank is below ``rank``."""
        mark = self._array("scalar", name, "mark")
        bits = self._array("scalar", name, "bits")
        if rank >= self.n:
            return self._not(np.zeros(self.octets, dtype=np.uint8))
        i = int(np.searchsorted(mark, rank, side="right")) - 1
        perm = self._array("scalar", name, "perm")
        begin = int(mark[i])
        end = int(mark[i + 1]) if i + 1 < mark.size else self.n
        if i + 1 < mark.size and end - rank < rank - begin:
            upper: UInt8 = bits[i + 1]
            return upper & ~self._scatter([perm[rank:end]])
        lower: UInt8 = bits[i]
        return lower | self._scatter([perm[begin:rank]]) if rank > begin else lower.copy()

    def _between(self, name: str, first: int, last: int) -> UInt8:
        """Bits of the rows that rank in first..last - 1."""
        perm = self._array("scalar", name, "perm")
        if last <= first:
            return np.zeros(self.octets, dtype=np.uint8)
        if perm.size and (last - first) * MARKS <= self.n:
            return self._scatter([perm[first:last]])
        upper = self._below(name, last)
        return upper & ~self._below(name, first) if first else upper

    def _values(self, name: str, low: int, high: int) -> UInt8:
        """Bits of the rows with low <= value <= high."""
        return self._between(name, self._rank(name, low), self._rank(name, high + 1))

    def known_scalar(self, name: str) -> UInt8 | None:
        """Bits of the rows whose value is known; None when all are."""
        unknown = self._rank(name, UNKNOWN + 1)
        return self._not(self._below(name, unknown)) if unknown else None

    def in_range(self, p: InRange) -> tuple[UInt8 | None, UInt8] | None:
        if not self._has("scalar", p.column, "mark"):
            return None
        return self.known_scalar(p.column), self._values(p.column, p.low, p.high)

    def one_of(self, p: OneOf) -> tuple[UInt8 | None, UInt8] | None:
        if not self._has("scalar", p.column, "mark"):
            return None
        bits = np.zeros(self.octets, dtype=np.uint8)
        for low, high in _runs(p.values):
            bits |= self._values(p.column, low, high)
        return self.known_scalar(p.column), self._not(bits) if p.negate else bits

    # Set columns

    def _places(self, name: str, values: Iterable[int]) -> Int64:
        """Places of those values that occur."""
        wanted = np.array(sorted(set(values)), dtype=np.uint64)
        value = self._array("set", name, "value")
        at = np.searchsorted(value, wanted)
        inside = at < value.size
        inside[inside] = value[at[inside]] == wanted[inside]
        return at[inside].astype(np.int64)

    def _postings(self, name: str, place: int) -> Int32:
        start, row = self._array("set", name, "start"), self._array("set", name, "row")
        return row[int(start[place]) : int(start[place + 1])]

    def _any(self, name: str, places: Int64) -> UInt8:
        """Bits of the rows that have at least one of the values."""
        dense = self._array("set", name, "dense")[places]
        bits = self._scatter(self._postings(name, int(v)) for v in places[dense < 0])
        for i in dense[dense >= 0]:
            bits |= self._array("set", name, "bits")[i]
        return bits

    def _plain(self, name: str) -> tuple[UInt8, UInt8]:
        known, empty = self._array("set", name, "plain")
        return known, empty

    def has_all(self, p: HasAll) -> tuple[UInt8 | None, UInt8] | None:
        if not self._has("set", p.column, "start"):
            return None
        places = self._places(p.column, p.values)
        known = self._plain(p.column)[0]
        if places.size < len(set(p.values)):
            return known, np.zeros(self.octets, dtype=np.uint8)
        bits = self._not(np.zeros(self.octets, dtype=np.uint8))
        for place in places:
            bits &= self._any(p.column, np.array([place]))
        return known, bits

    def has_none(self, p: HasNone) -> tuple[UInt8 | None, UInt8] | None:
        if not self._has("set", p.column, "start"):
            return None
        bits = self._any(p.column, self._places(p.column, p.values))
        return self._plain(p.column)[0], self._not(bits)

    def empty_or_any(self, p: EmptyOrHasAny) -> tuple[UInt8 | None, UInt8] | None:
        if not self._has("set", p.column, "start"):
            return None
        known, empty = self._plain(p.column)
        return known, self._any(p.column, self._places(p.column, p.values)) | empty

    def subset_of(self, p: SubsetOf) -> tuple[UInt8 | None, UInt8] | None:
        """Rows with a value outside fail; where more values lie outside, count those inside."""
        if not self._has("set", p.column, "start"):
            return None
        start = self._array("set", p.column, "start")
        places = self._places(p.column, p.values)
        inside = int((start[places + 1] - start[places]).sum())
        if inside * 2 >= int(start[-1]):
            outside = np.setdiff1d(np.arange(start.size - 1), places)
            return self._plain(p.column)[0], self._not(self._any(p.column, outside))
        count = np.zeros(self.n, dtype=np.uint16)
        for place in places:
            count[self._postings(p.column, int(place))] += 1
        size = self._array("set", p.column, "size")
        # sizes saturate, counts do not reach that far: a set of more than 65,534 is no subset
        return self._plain(p.column)[0], np.packbits(count == size, bitorder="little")

    # Working hours and keys

    def hours_overlap(self, p: HoursOverlap) -> tuple[UInt8 | None, UInt8] | None:
        if not self._has("hours", "code"):
            return None
        table, code = self._array("hours", "table"), self._array("hours", "code")
        scalars = dict(zip(HOURS, table, strict=True))
        h = table.shape[1]
        distinct = Segment(np.empty((h, 0), np.int8), np.empty(h, np.uint64), scalars)
        known, good = rules.verdict(p, rules.Rows(distinct))
        if known.all():
            return None, self._by_code(good, code)
        return self._by_code(known, code), self._by_code(good, code)

    @staticmethod
    def _by_code(flags: Bool, code: Int32) -> UInt8:
        return np.packbits(flags.take(code), bitorder="little")

    def key_in(self, p: KeyIn) -> tuple[UInt8 | None, UInt8] | None:
        if not self._has("key", "perm"):
            return None
        bits = self._scatter([self.rows_of_keys(np.array(p.keys, dtype=np.uint64))])
        return None, self._not(bits) if p.negate else bits

    def rows_of_keys(self, keys: UInt64) -> Int32:
        """Rows that have one of the keys."""
        perm, key_n = self._array("key", "perm"), self.segment.key_n
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
