"""``Ops``: every array operation of the engine, complete and exact on NumPy."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from matchwright.kernels import order, rules
from matchwright.kernels.planner import Costs, Plan
from matchwright.kernels.types import (
    D_MAX,
    K_MAX,
    Q_ABS_MAX,
    Bitmap,
    Bool,
    Corpus,
    Counted,
    Float32,
    Int8,
    Int16,
    Int32,
    Int64,
    Queries,
    Rules,
    TopK,
    UInt64,
)


@dataclass(frozen=True, slots=True)
class Rank:
    """Where one row stands for one query.

    Attributes:
        rank: 1-based place among the eligible rows, were this row eligible too.
        points: its points.
        mix, low: the rest of its order key (see ``order``); smaller is better.
        eligible: eligible rows of the corpus.
        kth_points: points of the K-th eligible row; None when fewer than K are eligible.
    """

    rank: int
    points: int
    mix: int
    low: int
    eligible: int
    kth_points: int | None = None

    @property
    def gap_points(self) -> int | None:
        """Points that are missing to draw level with the K-th; not above 0 when none are."""
        return None if self.kth_points is None else self.kth_points - self.points


def limbs(q_qd: Int16) -> tuple[Int8, Int8]:
    """(high, low) int8 limbs with q = 128 high + low, |high| <= 127, -64 <= low <= 63."""
    wide = q_qd.astype(np.int32)
    high = (wide + 64) >> 7
    return high.astype(np.int8), (wide - (high << 7)).astype(np.int8)


class Ops:
    """The reference backend; a subclass overrides what it does faster and nothing else.

    Args:
        threads: worker threads; None for the cores that this process may use.
        memory_bytes: budget of temporary memory.
        costs: the planner's cost model; None to calibrate it on first use.
    """

    name = "numpy"

    def __init__(
        self,
        *,
        threads: int | None = None,
        memory_bytes: int = 256 << 20,
        costs: Costs | None = None,
    ) -> None:
        self.threads = threads or len(os.sched_getaffinity(0))
        self.memory_bytes = memory_bytes
        self.costs = costs

    def topk(
        self,
        corpus: Corpus,
        queries: Queries,
        k: int,
        *,
        plan: Plan = "auto",
        count: bool = True,
    ) -> TopK:
        """The k best eligible rows of every query, exactly.

        Args:
            corpus: what is searched.
            queries: a block of queries, any number of them.
            k: 1..1,000.
            plan: "auto" lets the planner choose; every plan gives the same rows and points.
            count: also count eligible and unverified rows.

        Raises:
            ValueError: sizes, dtypes or ranges that do not fit.
        """
        check(corpus, queries, k)
        result = empty_topk(queries.q, k, Counted.EXACT if count else Counted.NOT_COUNTED)
        for g, group in enumerate(queries.groups):
            picked = group_members(queries, g)
            if not picked.size:
                continue
            eligible, unverified = self.eligible(corpus, group)
            if count:
                result.eligible_q[picked] = eligible.sum()
                result.unverified_q[picked] = unverified.sum()
            for q in picked:
                self._topk_one(corpus, queries, int(q), np.flatnonzero(eligible), k, result)
        return result

    def _topk_one(
        self, corpus: Corpus, queries: Queries, q: int, rows: Int64, k: int, result: TopK
    ) -> None:
        points = self._points_of(corpus, rows, queries.q_qd[q])
        if queries.floor_q is not None:
            enough = points >= queries.floor_q[q]
            rows, points = rows[enough], points[enough]
        tie = order.tie64(queries.key_q[q], keys_of(corpus, rows))
        chosen = order.best(points, tie, k)
        result.returned_q[q] = chosen.size
        result.row_qk[q, : chosen.size] = rows[chosen]
        result.points_qk[q, : chosen.size] = points[chosen]

    def _points_of(self, corpus: Corpus, rows: Int64, q_d: Int16) -> Int32:
        out = np.empty(rows.size, dtype=np.int32)
        step = max(1, self.memory_bytes // (8 * q_d.size + 64))
        for p, begin, end in part_slices(corpus, rows):
            segment = corpus.parts[p][0]
            local = rows[begin:end] - corpus.base[p]
            for at in range(0, local.size, step):
                x_nd = segment.x_nd[local[at : at + step]]
                out[begin + at : begin + at + x_nd.shape[0]] = self.points(x_nd, q_d)
        return out

    def eligible(self, corpus: Corpus, group: Rules | Bitmap) -> tuple[Bool, Bool]:
        """(eligible_n, unverified_n), bool (N,) over the whole corpus; unverified rows are eligible."""
        passed = np.zeros(corpus.n, dtype=np.bool_)
        unverified = np.zeros(corpus.n, dtype=np.bool_)
        for p, (segment, alive) in enumerate(corpus.parts):
            span = slice(int(corpus.base[p]), int(corpus.base[p + 1]))
            if isinstance(group, Bitmap):
                passed[span] = group.eligible_n[span]
            else:
                passed[span], unverified[span] = rules.eligible(group, rules.Rows(segment))
            if alive is not None:
                passed[span] &= alive
        return passed, unverified & passed

    def count(self, corpus: Corpus, group: Rules | Bitmap) -> tuple[int, int]:
        """Exact numbers of eligible rows, and of those among them that are unverified."""
        eligible, unverified = self.eligible(corpus, group)
        return int(eligible.sum()), int(unverified.sum())

    def points(self, x_nd: Int8, q_d: Int16) -> Int32:
        """Exact points of rows: x_nd int8 (N, D), q_d int16 (D,) -> int32 (N,)."""
        high, low = limbs(q_d)
        both: Float32 = np.stack([high, low]).astype(np.float32)
        first, second = (x_nd.astype(np.float32) @ both.T).T.astype(np.int32)
        total: Int32 = 128 * first + second
        return total

    def contributions(self, x_nd: Int8, q_d: Int16, offsets: Sequence[int]) -> Int32:
        """Points by facet, int32 (N, B); facet b owns dimensions offsets[b]..offsets[b + 1]."""
        out = np.zeros((x_nd.shape[0], len(offsets) - 1), dtype=np.int32)
        for b, (begin, end) in enumerate(zip(offsets[:-1], offsets[1:], strict=True)):
            if end > begin:
                out[:, b] = self.points(x_nd[:, begin:end], q_d[begin:end])
        return out

    def rank(self, corpus: Corpus, queries: Queries, row: int, *, k: int | None = None) -> Rank:
        """Where ``row`` stands for the only query of ``queries``, were it eligible.

        Args:
            k: also tell the points of the k-th eligible row.
        """
        if queries.q != 1:
            raise ValueError(f"rank takes one query, got {queries.q}")
        q_d, key_q = queries.q_qd[0], queries.key_q[0]
        group = queries.groups[0 if queries.group_q is None else int(queries.group_q[0])]
        rows = np.flatnonzero(self.eligible(corpus, group)[0])
        here = np.array([row], dtype=np.int64)
        points = int(self._points_of(corpus, here, q_d)[0])
        tie = order.tie64(key_q, keys_of(corpus, here))[0]
        others = self._points_of(corpus, rows, q_d)
        better = int((others > points).sum())
        level = rows[(others == points) & (rows != row)]
        better += int((order.tie64(key_q, keys_of(corpus, level)) < tie).sum())
        kth = None
        if k is not None and 0 < k <= rows.size:
            kth = int(np.partition(others, rows.size - k)[rows.size - k])
        mix, low = divmod(int(tie), 1 << 32)
        return Rank(better + 1, points, mix, low, rows.size, kth)

    def vetoes(
        self, corpus: Corpus, group: Rules, row: int
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """(vetoes, unverified): all reasons why a row fails, and all that it passes unknown."""
        p = int(np.searchsorted(corpus.base, row, side="right")) - 1
        return rules.vetoes(group, corpus.parts[p][0], row - int(corpus.base[p]))


def get_ops(
    device: str = "auto", *, threads: int | None = None, memory_bytes: int = 256 << 20
) -> Ops:
    """The fastest backend that works here.

    Args:
        device: "cpu", or "auto".
    """
    return Ops(threads=threads, memory_bytes=memory_bytes)


def check(corpus: Corpus, queries: Queries, k: int) -> None:
    """Raise ValueError unless the sizes, dtypes and ranges fit the contract."""
    q, d = queries.q_qd.shape
    if queries.q_qd.dtype != np.int16 or queries.key_q.dtype != np.uint64:
        raise ValueError("queries need int16 q_qd and uint64 key_q")
    if queries.key_q.shape != (q,):
        raise ValueError(f"key_q has shape {queries.key_q.shape}, expected {(q,)}")
    if not 1 <= k <= K_MAX:
        raise ValueError(f"k is {k}, expected 1..{K_MAX}")
    if d > D_MAX:
        raise ValueError(f"D is {d}, expected at most {D_MAX}")
    if q and d and (queries.q_qd.max() > Q_ABS_MAX or queries.q_qd.min() < -Q_ABS_MAX):
        raise ValueError(f"q_qd has entries beyond ±{Q_ABS_MAX}")
    for segment, alive in corpus.parts:
        if segment.x_nd.dtype != np.int8 or segment.x_nd.shape[1] != d:
            raise ValueError(
                f"x_nd is {segment.x_nd.dtype} {segment.x_nd.shape}, expected int8 (N, {d})"
            )
        if alive is not None and alive.shape != (segment.n,):
            raise ValueError(f"alive has shape {alive.shape}, expected {(segment.n,)}")
    for group in queries.groups:
        if isinstance(group, Bitmap) and group.eligible_n.shape != (corpus.n,):
            raise ValueError(
                f"a bitmap has shape {group.eligible_n.shape}, expected {(corpus.n,)}"
            )
    _check_groups(queries)


def _check_groups(queries: Queries) -> None:
    q = queries.q
    if queries.group_q is None:
        if len(queries.groups) != 1:
            raise ValueError(f"{len(queries.groups)} groups need group_q")
    elif queries.group_q.shape != (q,):
        raise ValueError(f"group_q has shape {queries.group_q.shape}, expected {(q,)}")
    elif q and not 0 <= queries.group_q.min() <= queries.group_q.max() < len(queries.groups):
        raise ValueError(f"group_q points outside the {len(queries.groups)} groups")
    if queries.floor_q is not None and queries.floor_q.shape != (q,):
        raise ValueError(f"floor_q has shape {queries.floor_q.shape}, expected {(q,)}")


def group_members(queries: Queries, g: int) -> NDArray[np.intp]:
    """The queries under group g."""
    if queries.group_q is None:
        return np.arange(queries.q)
    return np.flatnonzero(queries.group_q == g)


def empty_topk(q: int, k: int, counted: Counted) -> TopK:
    """A result without rows, to be filled in."""
    return TopK(
        row_qk=np.full((q, k), -1, dtype=np.int64),
        points_qk=np.zeros((q, k), dtype=np.int32),
        returned_q=np.zeros(q, dtype=np.int32),
        eligible_q=np.full(q, -1, dtype=np.int64),
        unverified_q=np.full(q, -1, dtype=np.int64),
        counted=counted,
    )


def part_slices(corpus: Corpus, rows: Int64) -> Iterator[tuple[int, int, int]]:
    """(part, begin, end): which of the ascending global ``rows`` lie in which part."""
    edges = np.searchsorted(rows, corpus.base)
    for p in range(len(corpus.parts)):
        if edges[p + 1] > edges[p]:
            yield p, int(edges[p]), int(edges[p + 1])


def keys_of(corpus: Corpus, rows: Int64) -> UInt64:
    """uint64 keys of ascending global rows."""
    out = np.empty(rows.size, dtype=np.uint64)
    for p, begin, end in part_slices(corpus, rows):
        out[begin:end] = corpus.parts[p][0].key_n[rows[begin:end] - corpus.base[p]]
    return out
