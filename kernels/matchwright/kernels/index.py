"""Indexes that turn a rule set into packed bits; built once for a segment and stored with it.
``index_reader`` reads them.

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

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from matchwright.kernels.types import Int8, Int32, SetColumn, UInt64

MARKS = 32
"""About how many marks a number column gets; a column with fewer values gets one for each."""
DENSE = 32
"""A value held by at least one row in so many gets bits of its own."""
HOURS = ("hours_start", "hours_end", "zone", "overlap_minutes")

Index = Mapping[str, NDArray[Any]]


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
