"""The scan: every block of rows against every query, keeping only what beats the bound.

For each block of rows and each handful of queries::

    tile_qn = first limb . x          library product, exact, a tile that stays in cache
    hit_qn  = tile_qn >= least_q      least: no row below it can reach the bound
    words   = packed hits AND packed eligibility
    candidates of the few bits that are left -> ``Best``

A row of the tile in which many bits are left (nothing is known yet, or everything ties) is
finished here: second limb by one product, ties by their mixes.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from matchwright.kernels import order
from matchwright.kernels.access import (
    WORD,
    Block,
    Layout,
    Scratch,
    bit_places,
    bit_positions,
    words_for,
)
from matchwright.kernels.best import Best, Bound, pack
from matchwright.kernels.limbs import Split
from matchwright.kernels.sizes import Sizes
from matchwright.kernels.types import Bool, Float32, Int8, Int16, Int32, Segment, UInt32, UInt64

if TYPE_CHECKING:
    from matchwright.kernels.ops import Ops

CROWDED = 32
"""A row of a tile is crowded when more than one bit in so many is left."""


@dataclass(frozen=True, slots=True, eq=False)
class Mask:
    """Eligibility of a block of queries; ``line_q`` says which line of bits each is under.

    Attributes:
        words_gw: uint64 (G, words).
        line_q: (Q,) lines, ascending.
    """

    words_gw: UInt64
    line_q: NDArray[np.intp]

    def of(self, begin: int, end: int, words: slice) -> UInt64:
        """uint64 (queries, words), for queries begin..end."""
        first, last = int(self.line_q[begin]), int(self.line_q[end - 1])
        if first == last:
            return self.words_gw[first : first + 1, words]
        if last - first == end - 1 - begin and self._each(begin, end):
            return self.words_gw[first : last + 1, words]
        return self.words_gw[self.line_q[begin:end], words]

    def _each(self, begin: int, end: int) -> bool:
        return bool((np.diff(self.line_q[begin:end]) == 1).all())


@dataclass(slots=True)
class Pending:
    """A worker's candidates that are not merged yet."""

    query: list[NDArray[np.intp]] = field(default_factory=list)
    value: list[UInt64] = field(default_factory=list)
    size: int = 0

    def add(self, query: NDArray[np.intp], value: UInt64) -> None:
        self.query.append(query)
        self.value.append(value)
        self.size += value.size

    def pour(self, best: Best) -> None:
        if self.size:
            best.merge(np.concatenate(self.query), np.concatenate(self.value))
        self.query, self.value, self.size = [], [], 0


class Scan:
    """One block of queries against all rows.

    Args:
        ops: whose products are used.
        layout: the corpus.
        q_qd, key_q: the queries.
        parts: the same, in limbs.
        mask: eligibility; None when every row is eligible.
        best: where candidates go.
        sizes: of blocks and tiles.
        skip: leave out blocks in which no query has an eligible row.
        blank: all queries are zeros, so that rows need not be read.
    """

    def __init__(
        self,
        ops: Ops,
        layout: Layout,
        q_qd: Int16,
        key_q: UInt64,
        parts: Split,
        mask: Mask | None,
        best: Best,
        sizes: Sizes,
        *,
        skip: bool = True,
        blank: bool = False,
    ) -> None:
        self.ops, self.layout, self.parts, self.mask = ops, layout, parts, mask
        self.q_qd, self.key_q, self.best, self.sizes = q_qd, key_q, best, sizes
        self.skip = skip and mask is not None
        self.blank, self.pairs, self.survivors = blank, 0, 0
        self._lock = threading.Lock()

    def run(self, blocks: Sequence[Block]) -> None:
        """Scan some blocks, on all threads."""
        turn = itertools.count()

        def work() -> None:
            self._work(blocks, turn)

        self.ops.together([work] * min(self.ops.threads, max(1, len(blocks))))

    def _work(self, blocks: Sequence[Block], turn: itertools.count[int]) -> None:
        worker = _Worker(self, Scratch())
        while (i := next(turn)) < len(blocks):
            worker.block(blocks[i])
        worker.pending.pour(self.best)
        with self._lock:
            self.pairs += worker.pairs
            self.survivors += worker.survivors


class _Worker:
    """What one thread has to itself."""

    def __init__(self, scan: Scan, scratch: Scratch) -> None:
        self.scan, self.scratch = scan, scratch
        self.pending = Pending()
        self.pairs = self.survivors = self.blocks = 0
        self._bound: Bound | None = None
        self._least: NDArray[Any] = np.empty(0)

    def block(self, block: Block) -> None:
        """Everything about one block of rows."""
        segment = self.scan.layout.corpus.parts[block.part][0]
        x_nd = segment.x_nd[block.begin : block.end]
        spans = self._spans(block)
        if not spans:
            return
        if self.scan.blank or all_equal(x_nd):
            self._equal_rows(block, segment, x_nd, spans)
        else:
            tiles = self.scan.ops.tiles(self.scan.parts.first_qd, x_nd, spans, self.scratch)
            for (begin, end), tile in zip(spans, tiles, strict=True):
                self._tile(block, x_nd, segment, begin, end, tile)
                self.pairs += tile.size
        if self.pending.size >= self.scan.sizes.pending or not self.blocks:
            self.pending.pour(self.scan.best)
        self.blocks += 1

    def _spans(self, block: Block) -> list[tuple[int, int]]:
        """Handfuls of queries that have to see this block."""
        q, step = self.scan.key_q.size, self.scan.sizes.queries
        spans = [(begin, min(begin + step, q)) for begin in range(0, q, step)]
        mask = self.scan.mask
        if mask is None or not self.scan.skip:
            return spans
        return [span for span in spans if mask.of(*span, block.words).any()]

    def _tile(
        self, block: Block, x_nd: Int8, segment: Segment, begin: int, end: int, tile: NDArray[Any]
    ) -> None:
        least = self._least_first(tile.dtype)[begin:end]
        words = self._hits(tile, least)
        if self.scan.mask is not None:
            words &= self.scan.mask.of(begin, end, block.words)
        if not words.any():
            return
        per_query = np.bitwise_count(words).astype(np.float32) @ ones(words.shape[1])
        crowded = np.flatnonzero(per_query * CROWDED > max(block.n, 8 * CROWDED))
        if crowded.size:
            self._crowded(block, x_nd, segment, begin, crowded, tile, words)
            words[crowded] = 0
        if crowded.size < words.shape[0]:
            self._sparse(block, begin, tile, words)

    def _least_first(self, dtype: Any) -> NDArray[Any]:
        """Per query, the least first-limb sum with which a row can still reach the bound."""
        bound = self.scan.best.bound
        if bound is not self._bound:
            parts = self.scan.parts
            least = -((parts.slack_q - bound.points_q) >> parts.shift_q)  # rounded up
            self._least = np.clip(least, -(2**31), 2**31 - 1).astype(dtype)
            if dtype == np.float32:  # sums end at 2**24, and integers up to there are exact
                self._least = np.clip(least, -(2**25), 2**25).astype(np.float32)
            self._bound = bound
        return self._least

    def _hits(self, tile: NDArray[Any], least: NDArray[Any]) -> UInt64:
        """Packed tile >= least, uint64 (q, words)."""
        q, n = tile.shape
        padded = words_for(n) * WORD
        hit: Bool = self.scratch.array("hit", (q, padded), np.bool_)
        if padded != n:
            hit[:, n:] = False
        np.greater_equal(tile, least[:, None], out=hit[:, :n])
        return pack_lines(hit)

    def _sparse(
        self,
        block: Block,
        begin: int,
        tile: NDArray[Any],
        words: UInt64,
    ) -> None:
        place, width = bit_positions(words), words.shape[1] * WORD
        line = place // width
        column = place - line * width
        if width == block.n:
            first = tile.reshape(-1).take(place).astype(np.int64)
        else:
            first = tile[line, column].astype(np.int64)
        line += begin
        first <<= self.scan.parts.shift_q.take(line)
        first -= self.scan.parts.slack_q.take(line)
        column += block.row
        self._add(line, pack(first, column, exact=False))

    def _add(self, query: NDArray[np.intp], value: UInt64) -> None:
        self.survivors += value.size
        self.pending.add(query, value)

    def _crowded(
        self,
        block: Block,
        x_nd: Int8,
        segment: Segment,
        begin: int,
        crowded: NDArray[np.intp],
        tile: NDArray[Any],
        words: UInt64,
    ) -> None:
        """Exact points of crowded rows of the tile, and of those the ones that reach the bound."""
        parts = self.scan.parts
        query = crowded + begin
        second: NDArray[Any] | None = None
        if parts.slack_q[query].any():
            rest = parts.rest_qd[query].astype(parts.first_qd.dtype)
            scratch = self.scratch.inner()  # the tile is still in use
            second = next(iter(self.scan.ops.tiles(rest, x_nd, [(0, query.size)], scratch)))
        step = self.scan.sizes.crowded
        for at in range(0, crowded.size, step):
            lines, some = crowded[at : at + step], query[at : at + step]
            points = tile[lines].astype(np.int32, copy=False)  # indexing has made a copy
            points <<= parts.shift_q[some][:, None]
            if second is not None:
                points += second[at : at + step].astype(np.int32, copy=False)
            allowed = None if self.scan.mask is None else unpack_lines(words[lines], block.n)
            self._select(block, segment, some, points, allowed)

    def _equal_rows(
        self, block: Block, segment: Segment, x_nd: Int8, spans: list[tuple[int, int]]
    ) -> None:
        """A block in which all rows have the same points: only ties are left."""
        bound, mask = self.scan.best.bound, self.scan.mask
        for span in spans:
            points = self.scan.ops.exact(self.scan.q_qd[slice(*span)], x_nd[:1], self.scratch)
            near = np.flatnonzero(points[:, 0] >= bound.points_q[slice(*span)])
            for at in range(0, near.size, self.scan.sizes.crowded):
                lines = near[at : at + self.scan.sizes.crowded]
                allowed = None
                if mask is not None:
                    words = mask.of(*span, block.words)
                    words = words[lines] if words.shape[0] > 1 else words
                    allowed = unpack_lines(np.ascontiguousarray(words), block.n)
                self._select(block, segment, lines + span[0], points[lines], allowed)

    def _select(
        self,
        block: Block,
        segment: Segment,
        query: NDArray[np.intp],
        points: Int32,
        allowed: Bool | None,
    ) -> None:
        """Candidates among exact points (q, n), or (q, 1) where all rows have the same."""
        bound, k = self.scan.best.bound, self.scan.best.k
        least = bound.points_q[query].astype(np.int32)[:, None]
        width = words_for(block.n) * WORD
        wide: Bool = self.scratch.array("select", (query.size, width), np.bool_)
        wide[:, block.n :] = False
        hit = wide[:, : block.n]
        level = points == least
        if np.count_nonzero(level) * CROWDED > level.size:
            mixes = self._mixes(segment.key_n[block.begin : block.end], self.scan.key_q[query])
            last = (bound.tie_q[query] >> np.uint64(32)).astype(np.uint32)
            np.less_equal(mixes, last[:, None], out=hit)
            hit &= level
            hit |= points > least
        else:
            np.copyto(hit, points >= least)
        if allowed is not None:
            hit &= allowed
        words = pack_lines(wide)
        many = np.flatnonzero(np.bitwise_count(words).sum(axis=1, dtype=np.int64) > 2 * k)
        if many.size:
            self._thin(block, segment, query, points, hit, many)
            words = pack_lines(wide)
        line, column = bit_places(words)
        got = points[line, column if points.shape[1] > 1 else 0].astype(np.int64)
        self._add(query[line], pack(got, block.row + column, exact=True))

    def _thin(
        self,
        block: Block,
        segment: Segment,
        query: NDArray[np.intp],
        points: Int32,
        hit: Bool,
        many: NDArray[np.intp],
    ) -> None:
        """Where far more than K rows reach the bound, leave the K best by points and mix."""
        k = self.scan.best.k
        keys = segment.key_n[block.begin : block.end]
        mixes = self._mixes(keys, self.scan.key_q[query[many]])
        high = (points[many].astype(np.int64) + (1 << 31)).astype(np.uint64) << np.uint64(32)
        rank = high | (~mixes).astype(np.uint64)
        rank[~hit[many]] = 0
        kth = np.partition(rank, block.n - k, axis=1)[:, block.n - k]
        hit[many] &= rank >= kth[:, None]

    def _mixes(self, key_n: UInt64, key_q: UInt64) -> UInt32:
        shape = (key_q.size, key_n.size)
        out = self.scratch.array("mix", shape, np.uint32)
        spare = self.scratch.array("spare", shape, np.uint32)
        return order.mix32_into(key_q[:, None], key_n[None, :], out, spare)


@cache
def ones(n: int) -> Float32:
    """n ones: a product with them sums short lines faster than a sum does."""
    return np.ones(n, dtype=np.float32)


def pack_lines(flags: Bool) -> UInt64:
    """uint64 (lines, words) of bool (lines, 64 words)."""
    return np.packbits(flags, axis=1, bitorder="little").view(np.uint64)


def unpack_lines(words: UInt64, n: int) -> Bool:
    """bool (lines, n) of uint64 (lines, words)."""
    flags = np.unpackbits(words.view(np.uint8), axis=1, count=n, bitorder="little")
    return flags.view(np.bool_)


def all_equal(x_nd: Int8) -> bool:
    """Whether all rows are copies of one."""
    few = x_nd[:: max(1, x_nd.shape[0] // 4)]
    return bool((few == few[0]).all()) and bool((x_nd == x_nd[0]).all())
