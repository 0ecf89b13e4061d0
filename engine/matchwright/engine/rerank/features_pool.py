"""Arrays of rows by key, the least recently used dropped first: what is dear to make twice."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from matchwright.kernels.types import Int64

Arrays = dict[str, NDArray[Any]]
"""Name -> array of one row for each key."""
Make = Callable[[Int64], Arrays]
"""Given int64 positions among the keys: one row for each of them."""

KEEP = "keep"
"""Name of an array of flags: rows without it are given out and not kept."""
_ROWS_FIRST = 256
_DROPPED_SHARE = 8
"""One in so many is dropped when there is no room: one pass over the ages for many rows."""


class RowPool:
    """A bounded store of rows. Thread-safe; what is made is made outside the lock.

    A key must hold everything that determines its row: then it makes no difference to any answer
    what is in the pool.

    Args:
        rows_max: most rows that are kept.
    """

    def __init__(self, rows_max: int) -> None:
        self.rows_max = rows_max
        self.made = 0
        """Rows that had to be made, since the start."""
        self._lock = threading.Lock()
        self._slot: dict[Hashable, int] = {}
        self._key: list[Hashable] = []
        self._free: list[int] = []
        self._age = np.zeros(0, dtype=np.int64)
        self._rows: Arrays = {}
        self._clock = 0

    def __len__(self) -> int:
        return len(self._slot)

    def take(self, keys: Sequence[Hashable] | None, n: int, make: Make) -> Arrays:
        """The rows of ``n`` keys, in their order; those that are not there are made and kept.

        Args:
            keys: distinct; None keeps nothing and makes every row.
        """
        if keys is None:
            self.made += n
            return make(np.arange(n))
        with self._lock:
            self._clock += 1
            slots = map(self._slot.get, keys, itertools.repeat(-1))
            slot_n = np.fromiter(slots, dtype=np.int64, count=n)
            there = np.flatnonzero(slot_n >= 0)
            self._age[slot_n[there]] = self._clock
            found = {name: array[slot_n[there]] for name, array in self._rows.items()}
        missing = np.flatnonzero(slot_n < 0)
        if not missing.size:
            return found
        fresh = make(missing)
        with self._lock:
            self.made += missing.size
            self._keep([keys[n] for n in missing.tolist()], fresh)
        if not there.size:
            return fresh
        return {name: _merged(n, there, found[name], missing, fresh[name]) for name in fresh}

    def _keep(self, keys: Sequence[Hashable], rows: Mapping[str, NDArray[Any]]) -> None:
        stays = rows.get(KEEP, np.ones(len(keys), dtype=np.bool_)).tolist()
        new = [n for n, key in enumerate(keys) if stays[n] and key not in self._slot]
        new = new[: self.rows_max]
        if not new:
            return
        slots = self._room(len(new), rows)
        for name, array in rows.items():
            self._rows[name][slots] = array[new]
        self._age[slots] = self._clock
        for slot, n in zip(slots.tolist(), new, strict=True):
            self._slot[keys[n]] = slot
            self._key[slot] = keys[n]

    def _room(self, n: int, like: Mapping[str, NDArray[Any]]) -> Int64:
        """Slots of ``n`` rows: new ones while there may be more, then those of the oldest."""
        more = min(n - len(self._free), self.rows_max - len(self._key))
        if more > 0:
            self._free.extend(range(len(self._key), len(self._key) + more))
            self._key.extend([None] * more)
            if len(self._key) > self._age.size:
                self._grow(len(self._key), like)
        if len(self._free) < n:
            self._drop(n - len(self._free))
        slots = [self._free.pop() for _ in range(n)]
        return np.array(slots, dtype=np.int64)

    def _drop(self, n: int) -> None:
        """Free the oldest ``n`` slots, or an eighth of all: a pass over ages serves many rows."""
        free = set(self._free)
        taken = np.array([s for s in range(len(self._key)) if s not in free], dtype=np.int64)
        many = min(taken.size, max(n, len(self._key) // _DROPPED_SHARE))
        oldest = taken[np.argpartition(self._age[taken], many - 1)[:many]]
        for slot in oldest.tolist():
            del self._slot[self._key[slot]]
            self._key[slot] = None
            self._free.append(slot)

    def _grow(self, rows: int, like: Mapping[str, NDArray[Any]]) -> None:
        size = min(self.rows_max, max(rows, 2 * self._age.size, _ROWS_FIRST))
        for name, array in like.items():
            old = self._rows.get(name, array[:0])
            self._rows[name] = np.concatenate([old, np.zeros((size - len(old), *array.shape[1:]),
                                                             array.dtype)])  # fmt: skip
        self._age = np.concatenate([self._age, np.zeros(size - self._age.size, dtype=np.int64)])


def _merged(
    n: int, there: Int64, found: NDArray[Any], missing: Int64, fresh: NDArray[Any]
) -> NDArray[Any]:
    out = np.empty((n, *fresh.shape[1:]), dtype=fresh.dtype)
    out[there], out[missing] = found, fresh
    return out
