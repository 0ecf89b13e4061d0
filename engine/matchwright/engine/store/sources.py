"""Where the rows of a part come from: a sealed segment file, or the live rows in memory.

Both answer the same five questions: how many rows, the kernels' ``Segment``, which row has a key,
which ids and which record numbers rows have.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from matchwright.engine.store.rows import (
    Arrays,
    Rows,
    concat,
    from_flat,
    ids_from_heap,
    sets_of,
    take,
)
from matchwright.engine.store.segment_file import SegmentFile
from matchwright.kernels.types import Int64, Segment, UInt64

_SCAN_KEYS_MAX = 16
_ROWS_MIN = 256


class RowSource(Protocol):
    """What a part of a corpus is made of."""

    @property
    def number(self) -> int: ...
    @property
    def n(self) -> int: ...
    @property
    def segment(self) -> Segment: ...
    def find(self, key_m: UInt64) -> Int64:
        """int64 (M,): the newest row with each key, dead or alive; -1 where there is none."""
        ...

    def ids(self, rows: Sequence[int] | Int64) -> list[str]: ...
    def seqs(self, rows: Int64) -> Int64: ...


class SealedRows:
    """A sealed segment. Nothing of the file is read before it is asked for."""

    def __init__(self, file: SegmentFile, index_version: int) -> None:
        self.file = file
        self.number = file.number
        self.n = file.n
        self._has_index = file.about.get("index_version") == index_version

    @cached_property
    def segment(self) -> Segment:
        """What kernels scan; the first call checks the blocks that hold it."""
        names = [name for name in self.file.names if _is_scanned(name, self._has_index)]
        arrays = {name: self.file.array(name) for name in names}
        return Segment(
            x_nd=arrays["x"],
            key_n=arrays["key"],
            scalars=_below("scalar/", arrays),
            sets=sets_of(arrays),
            index=_below("index/", arrays),
        )

    @cached_property
    def _sorted(self) -> tuple[UInt64, NDArray[Any]]:
        return self.file.array("lookup/key"), self.file.array("lookup/row")

    @cached_property
    def _heap(self) -> tuple[Int64, NDArray[np.uint8]]:
        return self.file.array("id/start"), self.file.array("id/bytes")

    @cached_property
    def _seq(self) -> Int64:
        return self.file.array("seq")

    def find(self, key_m: UInt64) -> Int64:
        return _find_sorted(*self._sorted, key_m)

    def ids(self, rows: Sequence[int] | Int64) -> list[str]:
        return ids_from_heap(*self._heap, rows)

    def seqs(self, rows: Int64) -> Int64:
        return self._seq[rows]


class LiveView:
    """The first ``n`` live rows: fixed, although the buffers behind them grow."""

    def __init__(self, number: int, rows: Rows) -> None:
        self.number = number
        self.n = rows.n
        self.rows = rows

    @cached_property
    def segment(self) -> Segment:
        encoded = self.rows.encoded
        return Segment(encoded.x_nd, encoded.key_n, encoded.scalars, encoded.sets)

    @cached_property
    def _sorted(self) -> tuple[UInt64, NDArray[Any]]:
        order = np.argsort(self.rows.encoded.key_n, kind="stable")
        return self.rows.encoded.key_n[order], order

    def find(self, key_m: UInt64) -> Int64:
        if len(key_m) > _SCAN_KEYS_MAX or "_sorted" in self.__dict__:
            return _find_sorted(*self._sorted, key_m)
        hits = [np.flatnonzero(self.rows.encoded.key_n == key) for key in key_m]
        return np.array([hit[-1] if len(hit) else -1 for hit in hits], dtype=np.int64)

    def ids(self, rows: Sequence[int] | Int64) -> list[str]:
        return ids_from_heap(self.rows.id_start, self.rows.id_bytes, rows)

    def seqs(self, rows: Int64) -> Int64:
        return self.rows.seq_n[rows]


def sort_keys(key_n: UInt64) -> Arrays:
    """The arrays by which a sealed segment finds a row: sorted keys and their rows."""
    order = np.argsort(key_n, kind="stable")
    return {"lookup/key": key_n[order], "lookup/row": order.astype(np.int32)}


def _find_sorted(sorted_key: UInt64, sorted_row: NDArray[Any], key_m: UInt64) -> Int64:
    if not len(sorted_key):
        return np.full(len(key_m), -1, dtype=np.int64)
    # Of equal keys the last one is the newest row.
    place = np.searchsorted(sorted_key, key_m, side="right") - 1
    found = sorted_row[np.maximum(place, 0)].astype(np.int64)
    return np.where((place >= 0) & (sorted_key[np.maximum(place, 0)] == key_m), found, -1)


def _is_scanned(name: str, with_index: bool) -> bool:
    columns = ("scalar/", "set/", "index/") if with_index else ("scalar/", "set/")
    return name in ("x", "key") or name.startswith(columns)


def _below(prefix: str, arrays: Arrays) -> Arrays:
    return {
        name.removeprefix(prefix): array
        for name, array in arrays.items()
        if name.startswith(prefix)
    }


class _Buffer:
    """An array that grows at its end; what was handed out keeps its contents."""

    def __init__(self, first: NDArray[Any]) -> None:
        self._array = first.copy()
        self.n = len(first)

    def append(self, more: NDArray[Any]) -> None:
        if self.n + len(more) > len(self._array):
            rows = max(2 * (self.n + len(more)), _ROWS_MIN)
            grown = np.empty((rows, *self._array.shape[1:]), self._array.dtype)
            grown[: self.n] = self._array[: self.n]
            self._array = grown
        self._array[self.n : self.n + len(more)] = more
        self.n += len(more)

    def view(self) -> NDArray[Any]:
        view = self._array[: self.n]
        view.flags.writeable = False
        return view


class LiveRows:
    """Rows committed since the last seal, in buffers that grow in place.

    Not thread-safe: appended to under the store's refresh lock. Views stay as they are.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.n = 0
        self._buffers: dict[str, _Buffer] = {}

    def append(self, rows: Rows) -> None:
        """Adds rows at the end; columns that only one side has are unknown on the other."""
        arrays = rows.flat()
        if self.n and arrays.keys() != self._buffers.keys():
            arrays = concat([self._rows(), rows]).flat()
            self.n, self._buffers = 0, {}
        if not self._buffers:
            self._buffers = {name: _Buffer(array) for name, array in arrays.items()}
            self.n = len(arrays["seq"])
            return
        for name, array in arrays.items():
            buffer = self._buffers[name]
            if name.endswith("/start"):
                buffer.append(array[1:] + buffer.view()[-1])
            else:
                buffer.append(array)
        self.n += rows.n

    def append_from(self, rows: Rows, first: int) -> None:
        """Adds the rows from ``first`` on."""
        self.append(take(rows, np.arange(first, rows.n)) if first else rows)

    def view(self) -> LiveView | None:
        """The rows that are there now, or None when there are none."""
        return LiveView(self.number, self._rows()) if self.n else None

    def _rows(self) -> Rows:
        return from_flat({name: buffer.view() for name, buffer in self._buffers.items()})
