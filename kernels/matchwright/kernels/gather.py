"""The gather: where few rows are eligible, take those first and score them exactly.

A group with very few pairs of query and row is scored together with others like it, pair by pair;
a group with more takes its rows chunk by chunk. (A group of many queries scans a copy of its rows:
``search``.)
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from matchwright.kernels import order
from matchwright.kernels.access import Layout, Scratch, bit_places, take_keys, take_x
from matchwright.kernels.best import Best, pack
from matchwright.kernels.limbs import SHIFT_MAX, limbs
from matchwright.kernels.sizes import GatherSizes
from matchwright.kernels.topk import Pending
from matchwright.kernels.types import Int16, Int32, Int64, UInt64

if TYPE_CHECKING:
    from matchwright.kernels.ops import Ops


@dataclass(frozen=True, slots=True, eq=False)
class Few:
    """A group: its line of bits, its queries (consecutive positions), its eligible rows."""

    line: int
    query: NDArray[np.intp]
    eligible: int

    @property
    def pairs(self) -> int:
        return self.query.size * self.eligible


def batches(groups: Sequence[Few], sizes: GatherSizes) -> Iterator[list[Few]]:
    """Consecutive groups that are scored together."""
    batch: list[Few] = []
    pairs = 0
    for group in groups:
        if batch and (pairs + group.pairs > sizes.pairs or len(batch) == sizes.groups):
            yield batch
            batch, pairs = [], 0
        batch.append(group)
        pairs += group.pairs
    if batch:
        yield batch


class Gather:
    """Groups of queries and the rows that are eligible for each.

    Args:
        ops: whose products are used.
        layout: the corpus.
        q_qd, key_q: all queries of the block.
        words_gw: uint64 (G, words), eligible rows of every group.
        best: where candidates go; its queries are those of ``q_qd``, without slack.
        sizes: of what is scored at a time.
        pending: candidates that a worker gathers before it merges them.
    """

    def __init__(
        self,
        ops: Ops,
        layout: Layout,
        q_qd: Int16,
        key_q: UInt64,
        words_gw: UInt64,
        best: Best,
        sizes: GatherSizes,
        pending: int,
    ) -> None:
        self.ops, self.layout, self.q_qd, self.key_q = ops, layout, q_qd, key_q
        self.words_gw, self.best, self.sizes, self.pending = words_gw, best, sizes, pending
        self.high_qd, self.low_qd = limbs(q_qd)

    def run(self, groups: Sequence[Few]) -> None:
        """Score groups, on all threads."""
        little = [group for group in groups if group.pairs <= self.sizes.pairs // 4]
        turn, tasks = itertools.count(), list(batches(little, self.sizes))
        tasks += [[group] for group in groups if group.pairs > self.sizes.pairs // 4]

        def work() -> None:
            scratch, pending = Scratch(), Pending()
            while (i := next(turn)) < len(tasks):
                if tasks[i][0].pairs > self.sizes.pairs // 4:
                    self._group(tasks[i][0], scratch, pending)
                else:
                    self._batch(tasks[i], pending)
                if pending.size >= self.pending:
                    pending.pour(self.best)
            pending.pour(self.best)

        self.ops.together([work] * min(self.ops.threads, max(1, len(tasks))))

    def _batch(self, groups: Sequence[Few], pending: Pending) -> None:
        """All pairs of some groups, as one list of pairs."""
        line, bit = bit_places(self._lines([group.line for group in groups]))
        rows = self.layout.row_of_bit(bit)
        first = np.array([group.query[0] for group in groups])
        width = np.array([group.query.size for group in groups])
        if (width > 1).any():
            repeat = width[line]
            step = np.arange(repeat.sum()) - np.repeat(np.cumsum(repeat) - repeat, repeat)
            line, rows = np.repeat(line, repeat), np.repeat(rows, repeat)
            query = first[line] + step
        else:
            query = first[line]
        x_nd = take_x(self.layout.corpus, rows)
        points = self.ops.pair_dots(self.high_qd[query], x_nd).astype(np.int64) << SHIFT_MAX
        points += self.ops.pair_dots(self.low_qd[query], x_nd).astype(np.int64)
        pending.add(query, pack(points, rows, exact=True))

    def _lines(self, lines: Sequence[int]) -> UInt64:
        """Bits of some groups; neighbours are not copied."""
        if lines[-1] - lines[0] == len(lines) - 1:
            return self.words_gw[lines[0] : lines[-1] + 1]
        return self.words_gw[list(lines)]

    def _group(self, group: Few, scratch: Scratch, pending: Pending) -> None:
        query, rows = group.query, self.layout.rows(self.words_gw[group.line])
        step = self.sizes.rows
        for begin in range(0, rows.size, step):
            some = rows[begin : begin + step]
            x_nd = take_x(self.layout.corpus, some)
            points = self.ops.exact(self.q_qd[query], x_nd, scratch)
            for i, q in enumerate(query):
                self._keep(int(q), points[i], some, pending)
            if pending.size >= self.pending:
                pending.pour(self.best)

    def _keep(self, q: int, points: Int32, rows: Int64, pending: Pending) -> None:
        k, n = self.best.k, points.size
        if n > 2 * k:
            kth = int(np.partition(points, n - k)[n - k])
            near = np.flatnonzero(points >= max(kth, int(self.best.bound.points_q[q])))
            if near.size > self.best.cap:
                tie = order.tie64(self.key_q[q], take_keys(self.layout.corpus, rows[near]))
                near = near[order.best(points[near], tie, k)]
            points, rows = points[near], rows[near]
        value = pack(points.astype(np.int64), rows, exact=True)
        pending.add(np.full(value.size, q, dtype=np.intp), value)
