"""The exact rank of any row: one pass that counts who is better, and finds the K-th on its way.

The first limb decides about nearly all rows, as it does in a scan; the second one is asked for the
rows whose first limb leaves open on which side of the row, or of the K-th so far, they are.
"""

from __future__ import annotations

import itertools
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

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
from matchwright.kernels.limbs import Split, norm2_of
from matchwright.kernels.types import Bool, Corpus, Int8, Int16, Int32, Int64, Queries, UInt64

if TYPE_CHECKING:
    from matchwright.kernels.ops import Ops

SPARSE = 16
"""A block with fewer than one eligible row in so many has those taken out."""
CROWDED = 4
"""With more than one open row in so many, the whole block is scored."""


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
    eligible = count_bits(words)
    here = np.array([row], dtype=np.int64)
    points = int(ops.points(take_x(corpus, here), queries.q_qd[0])[0])
    tie = order.tie64(queries.key_q[0], take_keys(corpus, here))[0]
    best = _Kth(k) if k is not None and k <= eligible else None
    target = _Target(row, points, tie)
    better = _Pass(ops, layout, words, queries.q_qd, queries.key_q[0], target, best).count()
    mix, low = divmod(int(tie), 1 << 32)
    return Rank(better + 1, points, mix, low, eligible, None if best is None else best.points())


@dataclass(frozen=True, slots=True)
class _Target:
    """The row whose rank is asked for, and its order key."""

    row: int
    points: int
    tie: np.uint64


class _Kth:
    """The K largest of the points that are told to it, by several threads."""

    def __init__(self, k: int) -> None:
        self.k = k
        self.bound: int | None = None
        """At least K rows that have been seen have so many points; None before there are K."""
        self._found: list[Int32] = []
        self._size = 0
        self._lock = threading.Lock()

    def raised(self, bound: int) -> int:
        """The larger of ``bound``, which K rows reach, and the bound so far."""
        with self._lock:
            self.bound = bound if self.bound is None else max(self.bound, bound)
            return self.bound

    def add(self, points: Int32) -> None:
        """Points of some rows; those below the bound do not matter."""
        with self._lock:
            self._found.append(points)
            self._size += points.size
            if self._size > 8 * self.k + 1_024:
                self._keep()

    def points(self) -> int:
        """Points of the K-th; at least K have been added."""
        return int(self._keep())

    def _keep(self) -> int:
        found = np.concatenate(self._found)
        found.partition(found.size - self.k)
        found = found[found.size - self.k :]
        self._found, self._size = [found], found.size
        least = int(found[0])
        self.bound = least if self.bound is None else max(self.bound, least)
        return least


class _Pass:
    """Counts eligible rows that come before one row."""

    def __init__(
        self,
        ops: Ops,
        layout: Layout,
        words: UInt64,
        q_qd: Int16,
        key_q: np.uint64,
        target: _Target,
        best: _Kth | None,
    ) -> None:
        self.ops, self.layout, self.words, self.q_qd, self.key_q = ops, layout, words, q_qd, key_q
        self.target, self.best, self.found = target, best, 0
        d = q_qd.shape[1]
        segments = [segment for segment, _ in layout.corpus.parts]
        self.parts = [ops.split(q_qd, norm2_of(segment, d)) for segment in segments]
        self._lock = threading.Lock()

    def count(self) -> int:
        """How many come before."""
        ops = self.ops
        blocks = self.layout.blocks(ops.sizes(2, self.q_qd.shape[1], 1, self.layout.corpus.n).rows)
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
            surely, rows = 0, bit_rows(words)
        else:
            surely, rows = self._sieved(block, x_nd, unpack_bits(words, block.n), scratch)
        if not rows.size:
            return surely
        points = self._exact(x_nd, rows, scratch)
        if self.best is not None:
            self.best.add(points)
        level = rows[points == self.target.points]
        level = level[level + block.row != self.target.row]
        ties = order.tie64(self.key_q, segment.key_n[block.begin : block.end][level])
        better = int(np.count_nonzero(points > self.target.points))
        return surely + better + int(np.count_nonzero(ties < self.target.tie))

    def _sieved(
        self, block: Block, x_nd: Int8, allowed: Bool, scratch: Scratch
    ) -> tuple[int, Int64]:
        """(rows that surely come before and are not among the others, rows to look at)."""
        part = self.parts[block.part]
        first = next(iter(self.ops.tiles(part.first_qd, x_nd, [(0, 1)], scratch)))[0]
        low, high = _band(part, self.target.points)
        above = allowed & (first > high)
        look = allowed & (first >= low)
        look &= ~above
        if self.best is not None:
            look |= self._leading(part, first, allowed, self.best)
        above &= ~look
        return int(np.count_nonzero(above)), np.flatnonzero(look)

    def _leading(self, part: Split, first: Any, allowed: Bool, best: _Kth) -> Bool:
        """Rows that may be among the best K of all."""
        shift, slack = int(part.shift_q[0]), int(part.slack_q[0])
        bound = best.bound
        leading = allowed if bound is None else allowed & (first >= _band(part, bound)[0])
        if np.count_nonzero(leading) > best.k:
            some = first[leading]
            least = int(np.partition(some, some.size - best.k)[some.size - best.k])
            bound = best.raised((least << shift) - slack)
            leading = leading & (first >= _band(part, bound)[0])
        return leading

    def _exact(self, x_nd: Int8, rows: Int64, scratch: Scratch) -> Int32:
        if rows.size * CROWDED > x_nd.shape[0]:
            points: Int32 = self.ops.exact(self.q_qd, x_nd, scratch)[0][rows]
        else:
            points = self.ops.exact(self.q_qd, x_nd[rows], scratch)[0]
        return points


def _band(part: Split, points: int) -> tuple[int, int]:
    """(low, high): first limbs below ``low`` mean fewer points, those above ``high`` more."""
    shift, slack = int(part.shift_q[0]), int(part.slack_q[0])
    return -((slack - points) >> shift), (points + slack) >> shift
