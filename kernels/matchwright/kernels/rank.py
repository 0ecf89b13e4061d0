"""The exact rank of any row: one pass that counts who is better."""

from __future__ import annotations

import itertools
import threading
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from matchwright.kernels import order
from matchwright.kernels.access import (
    Block,
    Layout,
    Scratch,
    bit_rows,
    count_bits,
    take_keys,
    take_x,
    unpack_bits,
)
from matchwright.kernels.eligible import Eligibility
from matchwright.kernels.types import Corpus, Int16, Queries, UInt64

if TYPE_CHECKING:
    from matchwright.kernels.ops import Ops

SPARSE = 16
"""A block with fewer than one eligible row in so many has those taken out."""


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


def find_rank(ops: Ops, corpus: Corpus, queries: Queries, row: int, k: int | None) -> Rank:
    """As ``Ops.rank``, whose arguments are checked.

    Raises:
        ValueError: there is not one query, or no such row.
    """
    if queries.q != 1 or not 0 <= row < corpus.n:
        raise ValueError(f"rank takes one query and a row below {corpus.n}, got {queries.q}, {row}")
    group = queries.groups[0 if queries.group_q is None else int(queries.group_q[0])]
    layout = Layout(corpus)
    words = np.empty(layout.words, dtype=np.uint64)
    Eligibility(layout, [group], 0).fill(group, words)
    here = np.array([row], dtype=np.int64)
    points = int(ops.points(take_x(corpus, here), queries.q_qd[0])[0])
    tie = order.tie64(queries.key_q[0], take_keys(corpus, here))[0]
    better = _Better(ops, layout, words, queries.q_qd, queries.key_q[0], row, points, tie).count()
    mix, low = divmod(int(tie), 1 << 32)
    eligible, kth = count_bits(words), None
    if k is not None and k <= eligible:
        top = ops.topk(corpus, replace(queries, floor_q=None), k, count=False)
        kth = int(top.points_qk[0, k - 1])
    return Rank(better + 1, points, mix, low, eligible, kth)


class _Better:
    """Counts eligible rows that come before one row."""

    def __init__(
        self,
        ops: Ops,
        layout: Layout,
        words: UInt64,
        q_qd: Int16,
        key_q: np.uint64,
        row: int,
        points: int,
        tie: np.uint64,
    ) -> None:
        self.ops, self.layout, self.words, self.q_qd, self.key_q = ops, layout, words, q_qd, key_q
        self.row, self.points, self.tie, self.found = row, points, tie, 0
        self._lock = threading.Lock()

    def count(self) -> int:
        """How many come before."""
        ops = self.ops
        rows = ops.sizes(2, self.q_qd.shape[1], 1, self.layout.corpus.n).rows
        blocks = self.layout.blocks(rows)
        turn = itertools.count()

        def work() -> None:
            scratch, found = Scratch(), 0
            while (i := next(turn)) < len(blocks):
                found += self._block(blocks[i], scratch)
            with self._lock:
                self.found += found

        ops.together([work] * min(ops.threads, max(1, len(blocks))))
        return self.found

    def _block(self, block: Block, scratch: Scratch) -> int:
        words = self.words[block.words]
        eligible = count_bits(words)
        if not eligible:
            return 0
        segment = self.layout.corpus.parts[block.part][0]
        x_nd = segment.x_nd[block.begin : block.end]
        if eligible * SPARSE < block.n:
            rows = bit_rows(words)
            points = self.ops.exact(self.q_qd, x_nd[rows], scratch)[0]
            level = rows[points == self.points]
            better = int(np.count_nonzero(points > self.points))
        else:
            points = self.ops.exact(self.q_qd, x_nd, scratch)[0]
            allowed = unpack_bits(words, block.n)
            level = np.flatnonzero(allowed & (points == self.points))
            better = int(np.count_nonzero(allowed & (points > self.points)))
        level = level[level + block.row != self.row]
        ties = order.tie64(self.key_q, segment.key_n[block.begin : block.end][level])
        return better + int(np.count_nonzero(ties < self.tie))
