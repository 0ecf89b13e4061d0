"""The gather: where few rows are eligible, take those first and score them exactly.

A group of many queries scans a copy of its rows; a few queries score chunk by chunk.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from matchwright.kernels import order
from matchwright.kernels.access import Layout, Scratch, take_keys, take_x
from matchwright.kernels.best import Best, pack
from matchwright.kernels.topk import Pending
from matchwright.kernels.types import Int16, Int32, Int64, UInt64

if TYPE_CHECKING:
    from matchwright.kernels.ops import Ops


class Gather:
    """Groups of queries and the rows that are eligible for each.

    Args:
        ops: whose products are used.
        layout: the corpus.
        q_qd, key_q: all queries of the block.
        best: where candidates go; its queries are those of ``q_qd``, without slack.
        chunk: rows at a time.
        pending: candidates that a worker gathers before it merges them.
    """

    def __init__(
        self,
        ops: Ops,
        layout: Layout,
        q_qd: Int16,
        key_q: UInt64,
        best: Best,
        chunk: int,
        pending: int,
    ) -> None:
        self.ops, self.layout, self.q_qd, self.key_q = ops, layout, q_qd, key_q
        self.best, self.chunk, self.pending = best, chunk, pending

    def run(self, groups: Sequence[tuple[NDArray[np.intp], UInt64]]) -> None:
        """Score (queries, bits of eligible rows) groups, on all threads."""
        turn = itertools.count()

        def work() -> None:
            scratch, pending = Scratch(), Pending()
            while (i := next(turn)) < len(groups):
                self._group(*groups[i], scratch, pending)
            pending.pour(self.best)

        self.ops.together([work] * min(self.ops.threads, max(1, len(groups))))

    def _group(
        self, query: NDArray[np.intp], words: UInt64, scratch: Scratch, pending: Pending
    ) -> None:
        rows = self.layout.rows(words)
        for begin in range(0, rows.size, self.chunk):
            some = rows[begin : begin + self.chunk]
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
