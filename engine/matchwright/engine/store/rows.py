"""Encoded rows: the arrays that a segment is made of, before and after they meet a disk.

``Rows`` is what the store appends, takes, concatenates and writes. ``flat`` gives the same arrays
under the names that they have in files::

    x  key  seq  id/start  id/bytes  scalar/NAME  set/NAME/start  set/NAME/value  set/NAME/known
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from matchwright.kernels.types import UNKNOWN, Bool, Int8, Int32, Int64, SetColumn, UInt8, UInt64

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True, eq=False)
class EncodedRows:
    """What encoding gives for N records.

    Attributes:
        x_nd: int8 (N, D).
        key_n: uint64 (N,), salted hashes of the ids.
        scalars: name -> int32 (N,).
        sets: name -> SetColumn of N rows.
    """

    x_nd: Int8
    key_n: UInt64
    scalars: Mapping[str, Int32]
    sets: Mapping[str, SetColumn]


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Encoded rows with their ids and the numbers of their records.

    Attributes:
        encoded: the arrays that kernels read.
        id_start, id_bytes: int64 (N + 1,) and uint8: a heap of UTF-8 ids.
        seq_n: int64 (N,), the number under which each row's record is kept.
    """

    encoded: EncodedRows
    id_start: Int64
    id_bytes: UInt8
    seq_n: Int64

    @property
    def n(self) -> int:
        return int(self.seq_n.shape[0])

    def flat(self) -> Arrays:
        """The arrays under the names that they have in files."""
        encoded = self.encoded
        arrays: Arrays = {
            "x": encoded.x_nd,
            "key": encoded.key_n,
            "seq": self.seq_n,
            "id/start": self.id_start,
            "id/bytes": self.id_bytes,
        }
        arrays.update({f"scalar/{name}": column for name, column in encoded.scalars.items()})
        for name, column in encoded.sets.items():
            arrays[f"set/{name}/start"] = column.start_n
            arrays[f"set/{name}/value"] = column.value
            arrays[f"set/{name}/known"] = column.known_n
        return arrays


def from_flat(arrays: Mapping[str, NDArray[Any]]) -> Rows:
    """The inverse of ``Rows.flat``; other names are ignored."""
    scalars = {
        name.removeprefix("scalar/"): array
        for name, array in arrays.items()
        if name.startswith("scalar/")
    }
    return Rows(
        EncodedRows(arrays["x"], arrays["key"], scalars, sets_of(arrays)),
        arrays["id/start"],
        arrays["id/bytes"],
        arrays["seq"],
    )


def sets_of(arrays: Mapping[str, NDArray[Any]]) -> dict[str, SetColumn]:
    """The set columns among arrays that have their file names."""
    names = [
        name.removeprefix("set/").removesuffix("/start")
        for name in arrays
        if name.startswith("set/") and name.endswith("/start")
    ]
    return {
        name: SetColumn(
            arrays[f"set/{name}/start"], arrays[f"set/{name}/value"], arrays[f"set/{name}/known"]
        )
        for name in names
    }


def make_rows(encoded: EncodedRows, ids: Sequence[str], key_n: UInt64, seq_n: Int64) -> Rows:
    """Rows of freshly encoded records, under the keys that were checked for collisions."""
    start, heap = id_heap(ids)
    return Rows(replace(encoded, key_n=key_n), start, heap, seq_n)


def id_heap(ids: Sequence[str]) -> tuple[Int64, UInt8]:
    """int64 (N + 1,) offsets and the ids' UTF-8 bytes, one after the other."""
    parts = [name.encode() for name in ids]
    start = np.zeros(len(parts) + 1, dtype=np.int64)
    np.cumsum([len(part) for part in parts], out=start[1:])
    return start, np.frombuffer(b"".join(parts), dtype=np.uint8)


def ids_from_heap(start: Int64, heap: UInt8, rows: Sequence[int] | Int64) -> list[str]:
    """The ids of some rows."""
    view = memoryview(heap.data)
    chosen = np.asarray(rows, dtype=np.int64)
    ends = zip(start[chosen].tolist(), start[chosen + 1].tolist(), strict=True)
    return [str(view[low:high], "utf-8") for low, high in ends]


def take(rows: Rows, chosen: Int64) -> Rows:
    """Some rows, in the order given."""
    encoded = rows.encoded
    sets = {}
    for name, column in encoded.sets.items():
        start, value = _take_ragged(column.start_n, column.value, chosen)
        sets[name] = SetColumn(start, value, column.known_n[chosen])
    id_start, id_bytes = _take_ragged(rows.id_start, rows.id_bytes, chosen)
    scalars = {name: column[chosen] for name, column in encoded.scalars.items()}
    taken = EncodedRows(encoded.x_nd[chosen], encoded.key_n[chosen], scalars, sets)
    return Rows(taken, id_start, id_bytes, rows.seq_n[chosen])


def concat(parts: Sequence[Rows]) -> Rows:
    """Rows one after the other; a column that a part lacks is unknown there."""
    encoded = [part.encoded for part in parts]
    scalar_names = list(dict.fromkeys(name for e in encoded for name in e.scalars))
    set_names = list(dict.fromkeys(name for e in encoded for name in e.sets))
    joined = EncodedRows(
        np.concatenate([e.x_nd for e in encoded]),
        np.concatenate([e.key_n for e in encoded]),
        {name: np.concatenate([_scalar(part, name) for part in parts]) for name in scalar_names},
        {name: _concat_sets([_set(part, name) for part in parts]) for name in set_names},
    )
    id_start, id_bytes = _concat_ragged([(part.id_start, part.id_bytes) for part in parts])
    return Rows(joined, id_start, id_bytes, np.concatenate([part.seq_n for part in parts]))


def concat_encoded(parts: Sequence[EncodedRows]) -> EncodedRows:
    """Encoded rows one after the other (of one encoding: all have the same columns)."""
    first = parts[0]
    return EncodedRows(
        np.concatenate([part.x_nd for part in parts]),
        np.concatenate([part.key_n for part in parts]),
        {name: np.concatenate([part.scalars[name] for part in parts]) for name in first.scalars},
        {name: _concat_sets([part.sets[name] for part in parts]) for name in first.sets},
    )


def _scalar(part: Rows, name: str) -> Int32:
    column = part.encoded.scalars.get(name)
    return np.full(part.n, UNKNOWN, dtype=np.int32) if column is None else column


def _set(part: Rows, name: str) -> SetColumn:
    column = part.encoded.sets.get(name)
    if column is not None:
        return column
    nothing: Bool = np.zeros(part.n, dtype=np.bool_)
    return SetColumn(np.zeros(part.n + 1, np.int64), np.zeros(0, np.uint64), nothing)


def _concat_sets(columns: Sequence[SetColumn]) -> SetColumn:
    start, value = _concat_ragged([(column.start_n, column.value) for column in columns])
    return SetColumn(start, value, np.concatenate([column.known_n for column in columns]))


def _concat_ragged(parts: Sequence[tuple[Int64, Any]]) -> tuple[Int64, Any]:
    base = np.cumsum([0, *(int(start[-1]) for start, _ in parts)])
    starts = [start[1:] + low for (start, _), low in zip(parts, base, strict=False)]
    joined = np.concatenate([np.zeros(1, np.int64), *starts])
    return joined, np.concatenate([value for _, value in parts])


def _take_ragged(start: Int64, value: Any, chosen: Int64) -> tuple[Int64, Any]:
    length = start[chosen + 1] - start[chosen]
    taken = np.zeros(len(chosen) + 1, dtype=np.int64)
    np.cumsum(length, out=taken[1:])
    source = np.repeat(start[chosen] - taken[:-1], length) + np.arange(taken[-1])
    return taken, value[source]
