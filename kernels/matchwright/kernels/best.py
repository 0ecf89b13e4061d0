"""The running best rows of a block of queries, and the bound that they set.

A candidate is one uint64, so that sorting whole rows of a matrix selects for all queries at once::

    bit 63 ........... 31 | 30    | 29 ..... 0
    least points + 2**32  | exact | global row

*Least points* are the points when ``exact``; otherwise the first limb's share minus the query's
``slack``, and the true points lie in least .. least + 2 slack. The second limb of such a
candidate is worked out only when it has to be: at the end, or when too many candidates lie too
close to the bound.

The bound is the full order key of the K-th best eligible row so far. It only rises, so a worker
that reads a stale one loses nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from matchwright.kernels import order
from matchwright.kernels.types import Bool, Int32, Int64, UInt64

OFFSET = 1 << 32
ROW_BITS = 30
ROWS_MAX = 1 << ROW_BITS
POINTS_MIN, POINTS_MAX = -(2**31), 2**31 - 1

_EXACT = np.uint64(1 << ROW_BITS)
_ROW = np.uint64(ROWS_MAX - 1)
_SHIFT = np.uint64(ROW_BITS + 1)
ANY_TIE = np.uint64(2**64 - 1)

_FINISH = 64

Task = Callable[[], None]
Found = tuple[Int64, Int32, Int32]
Pairs = Callable[[NDArray[np.intp], Int64], NDArray[Any]]


def pack(least: Int64, rows: Any, exact: bool) -> UInt64:
    """Candidates of least points (int64) and global rows; shapes broadcast."""
    packed: UInt64 = (least + OFFSET).view(np.uint64) << _SHIFT
    packed |= np.asarray(rows).view(np.uint64)
    if exact:
        packed |= _EXACT
    return packed


def least_points(value: UInt64) -> Int64:
    """int64: the points, or the least that they can be."""
    return (value >> _SHIFT).astype(np.int64) - OFFSET


@dataclass(frozen=True, slots=True)
class Bound:
    """What a row must reach: more points, or the same and a tie not above.

    Attributes:
        points_q: int64 (Q,), within int32.
        tie_q: uint64 (Q,).
    """

    points_q: Int64
    tie_q: UInt64


class Best:
    """The best candidates of Q queries; safe to be fed by several threads.

    Args:
        key_q: uint64 (Q,), query keys.
        k: how many are wanted.
        slack_q: int64 (Q,), largest |second limb's share| of any row.
        floor_q: int64 (Q,), least points that count, or None.
        second: (queries, rows) -> second limb's share of the points, integers (M,).
        keys: rows -> uint64 corpus keys.
        guess: a bound to begin with that may be too high; then too few rows are found.

    Attributes:
        bound: what a row must reach now.
        guessed_q: bool (Q,), where the bound may be too high.
    """

    def __init__(
        self,
        key_q: UInt64,
        k: int,
        slack_q: Int64,
        floor_q: Int64 | None,
        second: Pairs,
        keys: Callable[[Int64], UInt64],
        guess: Bound | None = None,
    ) -> None:
        self.key_q, self.k, self.slack_q = key_q, k, slack_q
        self.second, self.keys = second, keys
        self.cap = 4 * k + 64
        q = key_q.size
        self.value_qc = np.zeros((q, self.cap), dtype=np.uint64)
        self.used_q = np.zeros(q, dtype=np.int64)
        floor = np.full(q, POINTS_MIN) if floor_q is None else floor_q
        self.floor_q = np.clip(floor, POINTS_MIN, POINTS_MAX)
        self.bound = Bound(self.floor_q, np.full(q, ANY_TIE))
        self.guessed_q = np.zeros(q, dtype=np.bool_)
        if guess is not None:
            self.guess(guess)
        self.resolved = 0
        self._lock, self._raising = threading.Lock(), threading.Lock()

    def merge(self, q: NDArray[np.integer[Any]], value: UInt64) -> None:
        """Take in candidates: query positions (M,) and packed candidates (M,)."""
        with self._lock:
            near = self._near(q, value)
            if not near.all():
                q, value = q[near], value[near]
            if not q.size:
                return
            small = q.astype(np.uint16) if self.key_q.size <= 1 << 16 else q
            by_query = np.argsort(small, kind="stable")
            q, value = q[by_query], value[by_query]
            size_q = np.bincount(q, minlength=self.key_q.size)
            rank = np.arange(q.size) - (np.cumsum(size_q) - size_q)[q]
            most = int(size_q.max())
            if most <= self.cap:
                self._take_in(q, value, rank)
                return
            for begin in range(0, most, self.cap):
                now = (rank >= begin) & (rank < begin + self.cap)
                self._take_in(q[now], value[now], rank[now] - begin)

    def _near(self, q: NDArray[np.integer[Any]], value: UInt64) -> Bool:
        least = pack(self.bound.points_q - 2 * self.slack_q, 0, exact=False)
        near: Bool = value >= least.take(q)
        return near

    def _take_in(self, q: NDArray[np.integer[Any]], value: UInt64, rank: NDArray[np.intp]) -> None:
        sub = np.flatnonzero(np.bincount(q, minlength=self.key_q.size))
        line = np.empty(self.key_q.size, dtype=np.intp)
        line[sub] = np.arange(sub.size)
        used = int(self.used_q[sub].max())
        work = np.zeros((sub.size, used + int(rank.max()) + 1), dtype=np.uint64)
        work[:, :used] = self.value_qc[sub, self.cap - used :]
        work[line[q], used + rank] = value
        self._compress(sub, work)

    def _compress(self, sub: NDArray[np.intp], work: UInt64) -> None:
        """Raise the bounds of the queries ``sub`` by their candidates, keep what can still win."""
        work.sort(axis=1)
        self._raise(sub, work)
        keep = self._winning(sub, work)
        exact = (keep & ((work & _EXACT) != 0)).sum(axis=1)
        over = np.flatnonzero((exact > self.k) | (keep.sum(axis=1) > self.cap))
        work[~keep] = 0
        if over.size:
            work[over] = self._resolve(sub[over], work[over])
        work.sort(axis=1)
        self._put(sub, work)

    def _put(self, sub: NDArray[np.intp], work: UInt64) -> None:
        self.used_q[sub] = np.count_nonzero(work, axis=1)
        width = min(self.cap, work.shape[1])
        self.value_qc[sub, : self.cap - width] = 0
        self.value_qc[sub, self.cap - width :] = work[:, work.shape[1] - width :]

    def _raise(self, sub: NDArray[np.intp], work: UInt64) -> None:
        if work.shape[1] < self.k:
            return
        kth = work[:, work.shape[1] - self.k]
        points = np.where(kth > 0, least_points(kth), POINTS_MIN)
        self._set_bound(sub, points, np.full(sub.size, ANY_TIE))

    def _set_bound(self, sub: NDArray[np.intp], points: Int64, tie: UInt64) -> None:
        with self._raising:
            points_q, tie_q = self.bound.points_q.copy(), self.bound.tie_q.copy()
            had, had_tie = points_q[sub], tie_q[sub]
            level = np.where(points == had, np.minimum(tie, had_tie), had_tie)
            tie_q[sub] = np.where(points > had, tie, level)
            points_q[sub] = np.maximum(points, had)
            self.bound = Bound(points_q, tie_q)

    def _winning(self, sub: NDArray[np.intp], work: UInt64) -> Bool:
        points = self.bound.points_q[sub]
        sure = pack(points, 0, exact=False)[:, None]
        maybe = pack(points - 2 * self.slack_q[sub], 0, exact=False)[:, None]
        keep: Bool = (work >= sure) | ((work >= maybe) & ((work & _EXACT) == 0))
        return keep & (work > 0)

    def _resolve(self, sub: NDArray[np.intp], work: UInt64) -> UInt64:
        """Make every candidate exact, keep the K best of each query, raise the full bound."""
        work = np.sort(work, axis=1)
        if work.shape[1] > self.k:  # those that are likely to win, for a better bound
            self._make_exact(sub, work[:, work.shape[1] - self.k :])
            work.sort(axis=1)
            self._raise(sub, work)
            work[~self._winning(sub, work)] = 0
        self._make_exact(sub, work)
        work.sort(axis=1)
        if work.shape[1] < self.k:
            return work
        self._raise(sub, work)
        return self._cut_ties(sub, work)

    def _make_exact(self, sub: NDArray[np.intp], work: UInt64) -> None:
        at = np.nonzero((work > 0) & ((work & _EXACT) == 0))
        if at[0].size:
            value, q = work[at], sub[at[0]]
            rows = (value & _ROW).astype(np.int64)
            points = least_points(value) + self.slack_q[q] + self.second(q, rows)
            work[at] = pack(points, rows, exact=True)
            self.resolved += at[0].size

    def _cut_ties(self, sub: NDArray[np.intp], work: UInt64) -> UInt64:
        """Of sorted exact candidates keep K for each query, deciding ties at the K-th by key."""
        points = np.where(work > 0, work >> _SHIFT, 0)
        kth = points[:, work.shape[1] - self.k][:, None]
        above, level = points > kth, (points == kth) & (work > 0)
        need = self.k - above.sum(axis=1)
        full = np.flatnonzero((kth[:, 0] > 0) & (level.sum(axis=1) >= need))
        r, c = np.nonzero(level[full])
        rows = (work[full][r, c] & _ROW).astype(np.int64)
        tie = order.tie64(self.key_q[sub[full[r]]], self.keys(rows))
        last, far = self._last_ties(tie, r, need[full])
        work[full[r[far]], c[far]] = 0
        work[full] = np.where(points[full] >= kth[full], work[full], np.uint64(0))
        self._set_bound(sub[full], kth[full, 0].astype(np.int64) - OFFSET, last)
        least = (self.bound.points_q[sub] + OFFSET).astype(np.uint64)
        work[points < least[:, None]] = 0
        return work

    @staticmethod
    def _last_ties(
        tie: UInt64, line: NDArray[np.intp], need: Int64
    ) -> tuple[UInt64, NDArray[np.intp]]:
        """(last tie that is needed on each line, positions of ties beyond it); lines ascend."""
        size = np.bincount(line, minlength=need.size)
        begin = np.cumsum(size) - size
        if (size == need).all():
            last: UInt64 = np.maximum.reduceat(tie, begin) if tie.size else tie
            return last, np.empty(0, dtype=np.intp)
        width = int(size.max())
        table = np.full((need.size, width), ANY_TIE)
        table[line, np.arange(tie.size) - begin[line]] = tie
        last = np.sort(table, axis=1)[np.arange(need.size), need - 1]
        return last, np.flatnonzero(tie > last[line])

    def guess(self, bound: Bound) -> None:
        """Go on with a bound that may be too high; it is not below the one that there is."""
        self.guessed_q |= bound.points_q > self.bound.points_q
        self.guessed_q |= bound.tie_q < self.bound.tie_q
        self.bound = bound

    def likely(self, rank: int) -> Bound:
        """Where the row of this rank so far is likely to be, if that is above the bound."""
        value = self.value_qc[:, self.cap - rank]  # they ascend, by least points
        unsure = (value > 0) & ((value & _EXACT) == 0)
        kth = least_points(value) + np.where(unsure, self.slack_q, 0)
        kth[value == 0] = POINTS_MIN
        tie = np.where(kth > self.bound.points_q, ANY_TIE, self.bound.tie_q)
        return Bound(np.maximum(kth, self.bound.points_q).clip(max=POINTS_MAX), tie)

    def finish(self, together: Callable[[Sequence[Task]], None]) -> Found:
        """(row_qk, points_qk, returned_q): the K best of each query, best first, exactly.

        Args:
            together: runs tasks, perhaps at the same time.
        """
        q, k = self.key_q.size, self.k
        found = (
            np.full((q, k), -1, dtype=np.int64),
            np.zeros((q, k), dtype=np.int32),
            np.zeros(q, dtype=np.int32),
        )
        together([partial(self._finish, begin, found) for begin in range(0, q, _FINISH)])
        return found

    def _finish(self, begin: int, found: Found) -> None:
        sub = np.arange(begin, min(begin + _FINISH, self.key_q.size))
        row_qk, points_qk, returned_q = found
        work = self._finished(sub)
        got = np.count_nonzero(work, axis=1)
        returned_q[sub] = got
        valid = np.arange(work.shape[1]) < got[:, None]
        width = work.shape[1]
        row_qk[sub, :width] = np.where(valid, (work & _ROW).astype(np.int64), -1)
        points_qk[sub, :width] = np.where(valid, least_points(work), 0)

    def _finished(self, sub: NDArray[np.intp]) -> UInt64:
        """Exact candidates of some queries, best first, at most K wide, 0 where there are none."""
        work = self.value_qc[sub, self.cap - int(self.used_q[sub].max(initial=0)) :]
        work = self._resolve(sub, np.where(self._winning(sub, work), work, np.uint64(0)))
        below = least_points(work) < self.bound.points_q[sub][:, None]
        work[below] = 0
        work.sort(axis=1)
        work = np.ascontiguousarray(work[:, ::-1])
        points = work >> _SHIFT
        tied = ((points[:, 1:] == points[:, :-1]) & (work[:, 1:] > 0)).any(axis=1)
        for i in np.flatnonzero(tied):
            work[i] = self._by_tie(int(sub[i]), work[i])
        return work[:, : self.k]

    def _by_tie(self, q: int, value: UInt64) -> UInt64:
        got = int(np.count_nonzero(value))
        rows = (value[:got] & _ROW).astype(np.int64)
        tie = order.tie64(self.key_q[q], self.keys(rows))
        out = np.zeros_like(value)
        out[:got] = value[:got][np.lexsort((rows, tie, -least_points(value[:got])))]
        return out
