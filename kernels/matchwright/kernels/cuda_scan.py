"""The exact top-k on a device: ranges of rows, a sieve, a selection.

::

    for each range of rows       sieve ──> entries above the bound, appended per query
                                 select ──> best k so far, a higher bound
    read back, once              the best k, and how many entries each query found in each range
    a query overflowed?          then that range only raised its bound: it is scanned again for
                                 it, now with the bound that the last range left, and halved where
                                 even that overflows; a range not wider than the buffer cannot

Bounds, lists and counters live on the device: all ranges are queued before the host waits, so that
a scan costs one wait, however many ranges it has. (At most ``RANGES_MAX``; then counters are read
and begin anew.) What the host has to do for the next block of queries it does before that wait.
Nothing is lost by going on after an overflow: its bound is one that k eligible rows are known to
reach, and later ranges only raise it.

The sieve multiplies on tensor cores and tests in registers. Where there are none, and as a
yardstick, a library product writes first limbs to a tile, float32 (Q, N), and ``threshold`` tests
them.

The first range is as wide as the buffer. Each further one brings the rows seen to ``growth`` times
as many, so that a query finds about (growth - 1) k entries in it, half of its buffer at most:
eight times for few queries, where a launch counts, twice for many, where found entries do. Nothing
here is specific to CUDA: ``KernelDevice`` says where the arrays live.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
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
    Array,
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
_WIDEST_FEW = 1 << 24
_GROWTH_FEW = 8
_CAPACITY_FEW = 16  # times k
RANGES_MAX = 32
"""Ranges that are queued before counters are read."""


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
        per_query = tile + entries + 3 * 4 * width + 64 + 4 * RANGES_MAX
        return self.queries * per_query + (0 if self.tensor else 4 * self.columns * width)

    def growth(self, k: int) -> int:
        """How many times as many rows are seen after a range as before it."""
        few = self.tensor and self.queries <= limit("FEW_MAX")
        return max(2, min(_GROWTH_FEW if few else 2, 1 + self.capacity // (2 * k)))


def fit(
    queries: int, rows: int, width: int, k: int, budget_bytes: int, *, tensor: bool = False
) -> Sizes | None:
    """The largest useful sizes within ``budget_bytes``; None when even the least do not fit."""
    least = Sizes(1, WORD, _whole_words(k), tensor)
    few = tensor and queries <= limit("FEW_MAX")
    sieved = _WIDEST_FEW if few else _WIDEST_SIEVED
    entries = _whole_words((_CAPACITY_FEW if few else 4) * k)
    sizes = Sizes(
        max(1, min(queries, _WIDEST["queries"], limit("QUERIES_MAX"))),
        min(_whole_words(rows), sieved if tensor else _WIDEST["columns"]),
        max(least.capacity, min(entries, _WIDEST["capacity"])),
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


def _fewer_columns(down_to: int) -> Callable[[Sizes, Sizes], Sizes]:
    def smaller(sizes: Sizes, least: Sizes) -> Sizes:
        half = _whole_words(sizes.columns // 2)
        return replace(sizes, columns=max(half, min(down_to, sizes.columns), least.columns))

    return smaller


def _less_capacity(sizes: Sizes, least: Sizes) -> Sizes:
    return replace(sizes, capacity=max(_whole_words(sizes.capacity // 2), least.capacity))


_SHRINK = (
    _fewer_columns(1 << 20),  # 128 KiB of bits for each query; a further range costs some 15 us
    _fewer_queries(1_024),  # four readings of the rows for 4,096: still less than the products
    _fewer_columns(1 << 18),
    _fewer_queries(256),
    _fewer_columns(WORD),
    _less_capacity,
    _fewer_queries(1),
)


@dataclass(slots=True)
class Tally:
    """What a scan did; telemetry, outside the contract."""

    pairs: int = 0
    found: int = 0
    tiles: int = 0
    overflows: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class _Range:
    """Rows begin..end - 1 of a segment, and who asks about them."""

    part: int
    begin: int
    end: int
    row0: int  # global row of the segment's first
    active: Int32


@dataclass(slots=True)
class Scan:
    """One block of queries against resident segments.

    Args:
        device: where the arrays live.
        sizes: from ``fit``.
        k: entries to be kept.
        meanwhile: called when everything is queued, before the host waits.
    """

    device: KernelDevice
    sizes: Sizes
    k: int
    tally: Tally = field(default_factory=Tally)
    meanwhile: Callable[[], None] = lambda: None

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
        return self.find_in_turn([(segments, gate)], queries, gate.row_q)

    def find_in_turn(
        self,
        turns: Iterable[tuple[Sequence[DeviceSegment], Gate]],
        queries: Queries,
        row_q: Int32,
    ) -> tuple[Int32, Int32]:
        """As ``find``, of rows that need not be there all at once: one turn at least."""
        board, rows = self.board(queries, row_q), 0
        for segments, gate in turns:
            if rows:
                board.count_rq.fill(0)
            top, have = self._ask(board, segments, gate, rows)
            rows += sum(segment.n for segment in segments)
        return top, have

    def _ask(
        self, board: Board, segments: Sequence[DeviceSegment], gate: Gate, before: int
    ) -> tuple[Int32, Int32]:
        asked: list[_Range] = []
        for part, begin, end, row0 in self._spans(segments, before):
            bits, active = gate.tile(part, begin, end)
            one = _Range(part, begin, end, row0, board.everybody if active is None else active)
            if one.active.size:
                tile = self._tile(board, segments[part], one, bits, gate)
                active_a = board.everybody_a if active is None else self.device.upload(active)
                self._queue(board.at(len(asked)), tile, active_a, (0, end - begin))
                asked.append(one)
            if len(asked) == RANGES_MAX:
                self.meanwhile()
                self._settle(board, self.device.download(board.count_rq), asked, segments, gate)
                board.count_rq.fill(0)
                asked = []
        self.meanwhile()
        top, have, count = board.read()
        if self._settle(board, count, asked, segments, gate):
            top, have, _ = board.read()
        return top, have

    def _spans(
        self, segments: Sequence[DeviceSegment], row0: int = 0
    ) -> Iterator[tuple[int, int, int, int]]:
        """(segment, begin, end, global row of its first) of ranges; they begin on whole words.

        ``row0`` rows have been asked about before, in other turns.
        """
        growth, seen = self.sizes.growth(self.k), row0
        for part, segment in enumerate(segments):
            begin = 0
            while begin < segment.n:
                width = max(self.sizes.capacity, _whole_words((growth - 1) * seen))
                end = min(segment.n, begin + min(width, self.sizes.columns))
                yield part, begin, end, row0
                seen, begin = seen + end - begin, end
            row0 += segment.n

    def board(self, queries: Queries, row_q: Int32) -> Board:
        """Queries on the device, with room for what is found."""
        device, q, k = self.device, queries.q, self.k
        high_qd, low_qd = (padded(limb) for limb in limbs(queries.q_qd))
        product_dtype = np.float16 if device.half else np.float32
        high_dtype = np.int8 if self.sizes.tensor else product_dtype
        everybody = np.arange(q, dtype=np.int32)
        high, low, key, group, bound, everybody_a = device.upload_together(
            [
                *(
                    high_qd.astype(high_dtype, copy=False),
                    low_qd,
                    queries.key_q,
                    row_q.astype(np.int32),
                ),
                *(first_bounds(queries), everybody),
            ]
        )
        out = device.empty((4 * q * k + q + RANGES_MAX * q,), np.int32)
        out[4 * q * k :].fill(0)
        count_rq = out[4 * q * k + q :].view(np.uint32).reshape(RANGES_MAX, q)
        block = QueryBlock(
            high_qd=high,
            low_qd=low,
            low_norm_q=device.norms(low),
            key_q=key,
            group_q=group,
            bound_q4=bound,
            top_qk4=out[: 4 * q * k].reshape(q, k, 4),
            have_q=out[4 * q * k : 4 * q * k + q],
            found_qc4=device.empty((q, self.sizes.capacity, 4), np.int32),
            count_q=count_rq[0],
        )
        tile_qn = None
        if not self.sizes.tensor:
            tile_qn = device.empty((q, self.sizes.columns), np.float32)
        return Board(device, block, out, count_rq, tile_qn, everybody, everybody_a)

    def _tile(
        self, board: Board, segment: DeviceSegment, one: _Range, bits: Array, gate: Gate
    ) -> Tile:
        """The range's rows, with first limbs where a product has to work them out."""
        rows = segment.slice(one.begin, one.end)
        first_qn = board.tile_qn
        if first_qn is not None:
            self.device.product(board.block.high_qd, rows.x_nd, first_qn[:, : rows.n])
        self.tally.tiles += 1
        self.tally.pairs += rows.n * int(one.active.size)
        rules = gate.rules(one.part, one.begin)
        return Tile(first_qn, rows, one.row0 + one.begin, bits, rules)

    def _queue(self, block: QueryBlock, tile: Tile, active_a: Array, span: tuple[int, int]) -> None:
        test = self.device.sieve if self.sizes.tensor else self.device.threshold
        test(block, tile, active_a, *span)
        self.device.select(block, active_a)

    # ── After the wait ────────────────────────────────────────────────────────────────────────

    def _settle(
        self,
        board: Board,
        count_rq: UInt32,
        asked: Sequence[_Range],
        segments: Sequence[DeviceSegment],
        gate: Gate,
    ) -> bool:
        """Scan again what overflowed, the last range first; whether anything did."""
        count_rq = count_rq[: len(asked)]  # of those who did not ask: 0
        if count_rq.max(initial=0) <= self.sizes.capacity:
            self.tally.found += int(count_rq.sum())
            return False
        again = []
        for one, count_q in zip(asked, count_rq, strict=True):
            over = self._over(count_q[one.active], one.active)
            if over.size:
                again.append(replace(one, active=over))
        for one in reversed(again):
            bits = gate.again(one.part, one.begin, one.end)
            tile = self._tile(board, segments[one.part], one, bits, gate)
            self._halve(board.at(0), tile, one.active)
        return True

    def _over(self, count: UInt32, active: Int32) -> Int32:
        over = active[count > self.sizes.capacity]
        self.tally.found += int(count.sum())
        self.tally.overflows += int(over.size)
        return over

    def _halve(self, block: QueryBlock, tile: Tile, active: Int32) -> None:
        """Scan a range for some queries; halve it for those that find more than they can hold."""
        todo = [(0, tile.rows.n, active)]
        while todo:
            begin, end, some = todo.pop()
            block.count_q.fill(0)
            self._queue(block, tile, self.device.upload(some), (begin, end))
            over = self._over(self.device.download(block.count_q)[some], some)
            if over.size:
                if end - begin <= block.capacity:
                    raise DeviceError(
                        f"{self.device.name} counted more than {block.capacity} entries "
                        f"in {end - begin} rows; its memory or driver is at fault"
                    )
                middle = begin + _whole_words((end - begin) // 2)
                todo += [(begin, middle, over), (middle, end, over)]  # the last one first


@dataclass(frozen=True, slots=True, eq=False)
class Board:
    """A block of queries and everything that a scan writes for them.

    Attributes:
        block: the queries, and what has been found; its counters are those of the first range.
        out: int32, ``top_qk4``, ``have_q`` and ``count_rq`` one after the other: one read.
        count_rq: uint32 (RANGES_MAX, Q), entries found in each range.
        tile_qn: float32 (Q, columns), room for a product; None with the sieve.
        everybody, everybody_a: int32 (Q,), all queries, here and on the device.
    """

    device: KernelDevice
    block: QueryBlock
    out: Array
    count_rq: Array
    tile_qn: Array | None
    everybody: Int32
    everybody_a: Array

    def at(self, number: int) -> QueryBlock:
        """The block with the counters of a range."""
        return self.block.counting(self.count_rq[number])

    def read(self) -> tuple[Int32, Int32, UInt32]:
        """(top_qk4, have_q, count_rq) on the host; waits for the device."""
        q, k = self.everybody.size, self.block.k
        out = self.device.download(self.out)
        top, have, count = np.split(out, [4 * q * k, 4 * q * k + q])
        return top.reshape(q, k, 4), have, count.view(np.uint32).reshape(RANGES_MAX, q)


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
