"""The exact top-k on a device: ranges of rows, a sieve, a selection.

::

    for each tile of rows        ranges = [whole tile]
        for each range           sieve ──> entries above the bound, appended per query
                                 select ──> best k so far, a higher bound
        a query overflowed?      only its bound has risen: both halves of the range are scanned
                                 again for it; a range not wider than the buffer cannot overflow

The sieve multiplies on tensor cores and tests in registers. Where there are none, and as a
yardstick, a library product writes first limbs to a tile, float32 (Q, N), and ``threshold`` tests
them.

The first range is as wide as the buffer, and widths double from there, so that the bound is worth
something before many rows are tested. Nothing here is specific to CUDA: ``KernelDevice`` says
where the arrays live.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from matchwright.kernels.compile import limit
from matchwright.kernels.cuda_gates import Gate, HostBits
from matchwright.kernels.device import (
    NOTHING,
    POINTS,
    ROW,
    WORD,
    DeviceError,
    DeviceSegment,
    KernelDevice,
    QueryBlock,
    Tile,
    padded,
)
from matchwright.kernels.limbs import limbs
from matchwright.kernels.types import Int32, Queries, UInt32

_INT32 = np.iinfo(np.int32)
_WIDEST = {"queries": 4_096, "columns": 8_192, "capacity": 4_096}
_WIDEST_SIEVED = 1 << 22


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is worked on at once.

    Attributes:
        queries: of one block.
        columns: rows of one tile, a multiple of 32.
        capacity: entries of one query's buffer, a multiple of 32, at least k.
        tensor: the sieve works out first limbs, so that no tile is written.
    """

    queries: int
    columns: int
    capacity: int
    tensor: bool = False

    def temporary_bytes(self, width: int, k: int) -> int:
        """Most device memory that a block and its tile take, in bytes."""
        tile = self.columns // 8 if self.tensor else 4 * self.columns + self.columns // 8
        entries = 16 * (self.capacity + k + 1)
        per_query = tile + entries + 3 * 4 * width + 64
        return self.queries * per_query + (0 if self.tensor else 4 * self.columns * width)


def fit(
    queries: int, rows: int, width: int, k: int, budget_bytes: int, *, tensor: bool = False
) -> Sizes | None:
    """The largest useful sizes within ``budget_bytes``; None when even the least do not fit."""
    least = Sizes(1, WORD, _whole_words(k), tensor)
    sizes = Sizes(
        max(1, min(queries, _WIDEST["queries"], limit("QUERIES_MAX"))),
        min(_whole_words(rows), _WIDEST_SIEVED if tensor else _WIDEST["columns"]),
        max(least.capacity, min(_whole_words(4 * k), _WIDEST["capacity"])),
        tensor,
    )
    for smaller in _SHRINK:
        while sizes.temporary_bytes(width, k) > budget_bytes:
            shrunk = smaller(sizes, least)
            if shrunk == sizes:
                break
            sizes = shrunk
    return sizes if sizes.temporary_bytes(width, k) <= budget_bytes else None


def _whole_words(n: int) -> int:
    return max(1, -(-n // WORD)) * WORD


def _fewer_queries(down_to: int) -> Callable[[Sizes, Sizes], Sizes]:
    def smaller(sizes: Sizes, least: Sizes) -> Sizes:
        queries = max(-(-sizes.queries // 2), min(down_to, sizes.queries), least.queries)
        return replace(sizes, queries=queries)

    return smaller


def _fewer_columns(sizes: Sizes, least: Sizes) -> Sizes:
    return replace(sizes, columns=max(_whole_words(sizes.columns // 2), least.columns))


def _less_capacity(sizes: Sizes, least: Sizes) -> Sizes:
    return replace(sizes, capacity=max(_whole_words(sizes.capacity // 2), least.capacity))


_SHRINK = (_fewer_queries(256), _fewer_columns, _less_capacity, _fewer_queries(1))


@dataclass(slots=True)
class Tally:
    """What a scan did; telemetry, outside the contract."""

    pairs: int = 0
    found: int = 0
    tiles: int = 0
    overflows: int = 0


@dataclass(slots=True)
class Scan:
    """One block of queries against resident segments.

    Args:
        device: where the arrays live.
        sizes: from ``fit``.
        k: entries to be kept.
    """

    device: KernelDevice
    sizes: Sizes
    k: int
    tally: Tally = field(default_factory=Tally)

    def run(
        self,
        segments: Sequence[DeviceSegment],
        queries: Queries,
        bits: Sequence[UInt32],
        row_q: Int32,
    ) -> tuple[Int32, Int32]:
        """The best entries of every query.

        Args:
            segments: the corpus's parts, in order.
            queries: at most ``sizes.queries`` of them.
            bits: per segment, uint32 (G, words): eligibility, dead rows excluded.
            row_q: int32 (Q,), each query's row of ``bits``.

        Returns:
            int32 (Q, K, 4) entries, best first, and int32 (Q,), how many are in use.
        """
        return self.find(segments, queries, HostBits(self.device, bits, row_q))

    def find(
        self, segments: Sequence[DeviceSegment], queries: Queries, gate: Gate
    ) -> tuple[Int32, Int32]:
        """As ``run``; the gate says who is eligible."""
        block = gate.prepare(self.block(queries, gate.row_q))
        everybody = np.arange(queries.q, dtype=np.int32)
        tile_qn = None
        if not self.sizes.tensor:
            tile_qn = self.device.empty((queries.q, self.sizes.columns), np.float32)
        row0, width = 0, self.sizes.capacity
        for part, segment in enumerate(segments):
            for begin, end in self._tiles(segment.n, width):
                width = max(width, 2 * _whole_words(end - begin))
                bits, active = gate.tile(part, begin, end)
                active = everybody if active is None else active
                if active.size:
                    tile = Tile(tile_qn, segment.slice(begin, end), row0 + begin, bits)
                    self._tile(block, tile, active, gate, part, row0)
            row0 += segment.n
        return self.device.download(block.top_qk4), self.device.download(block.have_q)

    def _tiles(self, n: int, width: int) -> Iterator[tuple[int, int]]:
        begin = 0
        while begin < n:
            end = min(n, begin + min(width, self.sizes.columns))
            yield begin, end
            begin, width = end, 2 * width

    def block(self, queries: Queries, row_q: Int32) -> QueryBlock:
        device, q = self.device, queries.q
        high_qd, low_qd = (padded(limb) for limb in limbs(queries.q_qd))
        low = device.upload(low_qd)
        product_dtype = np.float16 if device.half else np.float32
        high_dtype = np.int8 if self.sizes.tensor else product_dtype
        return QueryBlock(
            high_qd=device.upload(high_qd.astype(high_dtype)),
            low_qd=low,
            low_norm_q=device.norms(low),
            key_q=device.upload(queries.key_q),
            group_q=device.upload(row_q),
            bound_q4=device.upload(first_bounds(queries)),
            top_qk4=device.upload(np.tile(np.array(NOTHING, np.int32), (q, self.k, 1))),
            have_q=device.upload(np.zeros(q, np.int32)),
            found_qc4=device.empty((q, self.sizes.capacity, 4), np.int32),
            count_q=device.upload(np.zeros(q, np.uint32)),
        )

    def _tile(
        self, block: QueryBlock, tile: Tile, active: Int32, gate: Gate, part: int, row0: int
    ) -> None:
        """Scan a tile; halve the ranges in which queries find more than their buffer holds."""
        columns = tile.rows.n
        if tile.first_qn is not None:
            self.device.product(block.high_qd, tile.rows.x_nd, tile.first_qn[:, :columns])
        self.tally.tiles += 1
        self.tally.pairs += columns * int(active.size)
        todo = [(0, columns, active)]
        while todo:
            begin, end, some = todo.pop()
            over = self._range(block, tile, some, (begin, end), gate, part, row0)
            if over.size:
                if end - begin <= block.capacity:
                    raise DeviceError(
                        f"{self.device.name} counted more than {block.capacity} entries "
                        f"in {end - begin} rows; its memory or driver is at fault"
                    )
                middle = begin + _whole_words((end - begin) // 2)
                todo += [(middle, end, over), (begin, middle, over)]

    def _range(
        self,
        block: QueryBlock,
        tile: Tile,
        active: Int32,
        span: tuple[int, int],
        gate: Gate,
        part: int,
        row0: int,
    ) -> Int32:
        """The queries that overflowed; all others are done with these columns."""
        active_a = self.device.upload(active)
        block.count_q.fill(0)
        test = self.device.sieve if self.sizes.tensor else self.device.threshold
        test(block, tile, active_a, *span)
        gate.sort_out(block, part, row0, active_a)
        self.device.select(block, active_a)
        count = self.device.download(block.count_q)[active]
        over = active[count > block.capacity]
        self.tally.found += int(count.sum())
        self.tally.overflows += int(over.size)
        return over


def first_bounds(queries: Queries) -> Int32:
    """int32 (Q, 4): entries above which a result must be; lets points >= floor pass."""
    bound_q4 = np.tile(np.array(NOTHING, np.int32), (queries.q, 1))
    if queries.floor_q is not None:
        below = np.clip(queries.floor_q, _INT32.min + 1, _INT32.max) - 1
        above_all = queries.floor_q > _INT32.max
        bound_q4[:, POINTS] = np.where(above_all, _INT32.max, below)
        bound_q4[:, POINTS + 1 : ROW] = -1
        bound_q4[queries.floor_q <= _INT32.min + 1] = NOTHING
    return bound_q4


def rows_and_points(top_qk4: Int32, have_q: Int32) -> tuple[NDArray[np.int64], Int32]:
    """(row_qk int64, points_qk int32) with -1 and 0 beyond ``have_q``."""
    used = np.arange(top_qk4.shape[1]) < have_q[:, None]
    row_qk = np.where(used, top_qk4[:, :, ROW], -1).astype(np.int64)
    return row_qk, np.where(used, top_qk4[:, :, POINTS], 0).astype(np.int32)
