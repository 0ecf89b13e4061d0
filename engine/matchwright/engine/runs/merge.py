"""Stored answers and answers of what is new, merged by the 96-bit key.

A stored answer comes with its *horizon*: an order key such that every eligible row that beats or
equals it is stored (no horizon: all eligible rows are). Take out the rows that changed or went, put
in the best of what is new, and cut at the horizon: what is left is the head of the true answer.

::

    stored    a  b  c  d  e | horizon      c has gone, x and y are new
    merged    a  x  b  d  e | y            y may be beaten by a row that was never stored
    known     a  x  b  d  e |              exact for any K <= 5
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from matchwright.kernels.order import mix32
from matchwright.kernels.types import Bool, Int32, Int64, UInt32, UInt64

LOW = np.uint64(0xFFFFFFFF)


@dataclass(frozen=True, slots=True, eq=False)
class Hits:
    """Rows found for the queries of a block.

    Attributes:
        query_m: int64 (M,), which query of the block.
        key_m: uint64 (M,), keys of corpus rows.
        points_m: int32 (M,).
    """

    query_m: Int64
    key_m: UInt64
    points_m: Int32

    def take(self, where: Int64 | Bool) -> Hits:
        """Some of them."""
        return Hits(self.query_m[where], self.key_m[where], self.points_m[where])

    @staticmethod
    def joined(first: Hits, second: Hits) -> Hits:
        """Both, one after the other."""
        return Hits(
            np.concatenate([first.query_m, second.query_m]),
            np.concatenate([first.key_m, second.key_m]),
            np.concatenate([first.points_m, second.points_m]),
        )


NO_HITS = Hits(
    np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.uint64), np.zeros(0, dtype=np.int32)
)


@dataclass(frozen=True, slots=True, eq=False)
class Horizons:
    """One order key for each query of a block, or none.

    Attributes:
        set_q: bool (Q,), False where all eligible rows are stored.
        points_q: int32 (Q,); mix_q, low_q: uint32 (Q,); anything where not set.
    """

    set_q: Bool
    points_q: Int32
    mix_q: UInt32
    low_q: UInt32

    def take(self, where: Int64 | Bool) -> Horizons:
        """Those of some queries."""
        return Horizons(
            self.set_q[where], self.points_q[where], self.mix_q[where], self.low_q[where]
        )


@dataclass(frozen=True, slots=True, eq=False)
class Merged:
    """What is known of each query.

    Attributes:
        hits: by query, best first; at most ``keep`` of each.
        start_q: int64 (Q + 1,), where each query's begin.
        exact_q: bool (Q,), the first K are the answer (all of them, when there are fewer).
        horizons: of the merged rows.
    """

    hits: Hits
    start_q: Int64
    exact_q: Bool
    horizons: Horizons


def order_words(key_q: UInt64, hits: Hits) -> tuple[UInt32, UInt32]:
    """(mix, low) of each hit, uint32 (M,)."""
    mix = mix32(key_q[hits.query_m], hits.key_m)
    return mix, (hits.key_m & LOW).astype(np.uint32)


def reaches(points: Int32, mix: UInt32, low: UInt32, at: Horizons, query_m: Int64) -> Bool:
    """Which hits beat or equal their query's horizon; all where there is none."""
    far, near = at.points_q[query_m], at.mix_q[query_m]
    tied = points == far
    better = (mix < near) | ((mix == near) & (low <= at.low_q[query_m]))
    near_enough: Bool = (points > far) | (tied & better) | ~at.set_q[query_m]
    return near_enough


def starts_of(query_m: Int64, queries: int) -> Int64:
    """int64 (Q + 1,): where each query's hits begin; ``query_m`` ascends."""
    return np.concatenate([[0], np.cumsum(np.bincount(query_m, minlength=queries))]).astype(
        np.int64
    )


def merge(
    key_q: UInt64, stored: Hits, fresh: Hits, before: Horizons, *, k: int, keep: int
) -> Merged:
    """The known head of every query's answer.

    Args:
        key_q: uint64 (Q,), keys of the queries.
        stored: rows of the earlier answer that still count, in any order.
        fresh: the best rows of what is new, in any order; for each query all that reach its
            horizon, or at least the ``keep`` best of them.
        before: horizons of the earlier answer.
        k: matches that are wanted.
        keep: most that are kept of each query; k or more.
    """
    hits = Hits.joined(stored, fresh)
    mix, low = order_words(key_q, hits)
    near = reaches(hits.points_m, mix, low, before, hits.query_m)
    hits, mix, low = hits.take(near), mix[near], low[near]
    order = np.lexsort((low, mix, -hits.points_m.astype(np.int64), hits.query_m))
    hits, mix, low = hits.take(order), mix[order], low[order]
    start_q = starts_of(hits.query_m, key_q.size)
    found_q = np.diff(start_q)
    place = np.arange(hits.query_m.size) - start_q[hits.query_m]
    head = place < keep
    after = _horizons(hits, mix, low, start_q, found_q, before, keep)
    return Merged(
        hits=hits.take(head),
        start_q=starts_of(hits.query_m[head], key_q.size),
        exact_q=(found_q >= k) | ~before.set_q,
        horizons=after,
    )


def _horizons(
    hits: Hits,
    mix: UInt32,
    low: UInt32,
    start_q: Int64,
    found_q: Int64,
    before: Horizons,
    keep: int,
) -> Horizons:
    """The last row that is kept, where as many are kept as may be; else the earlier horizon."""
    full = found_q >= keep
    last = np.where(full, start_q[:-1] + keep - 1, 0)
    if not hits.points_m.size:
        return before
    return Horizons(
        set_q=before.set_q | full,
        points_q=np.where(full, hits.points_m[last], before.points_q),
        mix_q=np.where(full, mix[last], before.mix_q),
        low_q=np.where(full, low[last], before.low_q),
    )
