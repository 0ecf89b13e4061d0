"""What a scan needs of a device: arrays, a library product, and the kernels in ``cuda/``.

``KernelDevice`` turns arrays into checked launches and leaves three things open: where arrays
live (``xp``, NumPy or CuPy), how a kernel is launched, and the product. ``CudaDevice`` fills them
in with CuPy. ``NumpyDevice`` says in NumPy what each kernel does, so that everything above the
kernels runs, and is tested, on a machine without a device.

What is uploaded while other work runs goes *aside*: ``with device.aside()`` queues copies and
launches apart from the main queue, ``mark`` remembers a place in them, and ``hold`` makes the main
queue wait for that place.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from matchwright.kernels.compile import limit
from matchwright.kernels.rule_program import Program

Array = Any
"""An array on the device: NumPy's or CuPy's."""

WORD = 32
"""Eligibility bits in one word; tiles begin at multiples of it."""
POINTS, NMIX, NLOW, ROW = range(4)
"""The int32 columns of an entry; ``cuda/order.cuh`` says what they hold."""
NOTHING = (-(2**31), 0, 0, -1)
"""The entry below every real one."""

_BLOCKS_MAX = 4_096
_FEW_BLOCKS = 1_056  # eight for each of an H100's multiprocessors
_FEW_SIZES = (8, 16, 32, 64)
_NULL = np.uint64(0)
_ALIGNED = 256


class DeviceError(RuntimeError):
    """A device that cannot be used: not there, out of memory, or it gives wrong answers."""


class LaunchRefused(DeviceError):
    """Arguments beyond what a kernel's header states."""


@dataclass(frozen=True, slots=True)
class DeviceSegment:
    """A segment's arrays on the device.

    Attributes:
        x_nd: int8 (N, width), padded with zeros to a multiple of ``limit("ALIGN")``.
        norm_n: int32 (N,), the rows' norms, rounded up.
        key_n: uint64 (N,).
    """

    x_nd: Array
    norm_n: Array
    key_n: Array

    @property
    def n(self) -> int:
        return int(self.x_nd.shape[0])

    @property
    def nbytes(self) -> int:
        return int(self.x_nd.nbytes + self.norm_n.nbytes + self.key_n.nbytes)

    def slice(self, begin: int, end: int) -> DeviceSegment:
        """Rows begin..end - 1, without a copy."""
        return DeviceSegment(self.x_nd[begin:end], self.norm_n[begin:end], self.key_n[begin:end])

    def take(self, rows: Array) -> DeviceSegment:
        """A copy of some rows, int64, in their order."""
        return DeviceSegment(self.x_nd[rows], self.norm_n[rows], self.key_n[rows])


@dataclass(frozen=True, slots=True, eq=False)
class DeviceColumns:
    """Rule columns of a whole segment on the device.

    Attributes:
        key_n: uint64 (N,), the segment's keys.
        scalars: name -> int32 (N,).
        sets: name -> (int64 (N + 1,) starts, uint64 values, uint8 (N,) known).
    """

    key_n: Array
    scalars: dict[str, Array] = field(default_factory=dict)
    sets: dict[str, tuple[Array, Array, Array]] = field(default_factory=dict)

    @property
    def n(self) -> int:
        return int(self.key_n.shape[0])


@dataclass(frozen=True, slots=True, eq=False)
class DeviceProgram:
    """A program on the device; see ``rule_program.Program``."""

    program: Program
    rule_m8: Array
    start_g: Array
    pool: Array


@dataclass(frozen=True, slots=True)
class QueryBlock:
    """A block of queries on the device, and what has been found for them.

    Attributes:
        high_qd: the first limb, (Q, width): int8 for the sieve, else what the product takes.
        low_qd: the second limb, int8 (Q, width).
        low_norm_q: int32 (Q,), norms of ``low_qd``, rounded up.
        key_q: uint64 (Q,).
        group_q: int32 (Q,), rows of the tile's eligibility bits.
        bound_q4, top_qk4, found_qc4: int32 entries (Q, 4), (Q, K, 4), (Q, C, 4).
        have_q: int32 (Q,), entries of ``top_qk4`` in use.
        count_q: uint32 (Q,), entries found since it was last set to zero.
    """

    high_qd: Array
    low_qd: Array
    low_norm_q: Array
    key_q: Array
    group_q: Array
    bound_q4: Array
    top_qk4: Array
    have_q: Array
    found_qc4: Array
    count_q: Array

    @property
    def k(self) -> int:
        return int(self.top_qk4.shape[1])

    @property
    def capacity(self) -> int:
        return int(self.found_qc4.shape[1])


@dataclass(frozen=True, slots=True, eq=False)
class TileRules:
    """Rules that a scan tests for the rows that may reach a bound.

    Attributes:
        program, columns: the rules, and what they read: a whole segment's.
        table: of ``KernelDevice.column_table``.
        rule_q: int32 (Q,), each query's group of the program.
        row: the tile's first row within the segment.
    """

    program: DeviceProgram
    columns: DeviceColumns
    table: Array
    rule_q: Array
    row: int


@dataclass(frozen=True, slots=True)
class Tile:
    """First limbs of a query block and some rows of a segment.

    Attributes:
        first_qn: float32 (Q, N), exact integers; None where the sieve works them out.
        rows: the rows, a slice of a resident segment.
        row0: global row of the first column.
        bits_gw: uint32 (G, words), eligibility; bit 0 of word 0 is the first column.
        rules: what rows must pass besides; None: nothing.
    """

    first_qn: Array | None
    rows: DeviceSegment
    row0: int
    bits_gw: Array
    rules: TileRules | None = None


@dataclass(frozen=True, slots=True)
class RowRuns:
    """Rows of a segment: all of a stretch, or a sample, runs of words spread over it.

    Attributes:
        begin, end: of the stretch; begin is a multiple of 32.
        run: words that follow one another.
        step: words from the beginning of a run to that of the next.
    """

    begin: int
    end: int
    run: int
    step: int

    @classmethod
    def all(cls, begin: int, end: int) -> RowRuns:
        """Every row."""
        words = max(1, -(-(end - begin) // WORD))
        return cls(begin, end, words, words)

    @property
    def words(self) -> int:
        """Words of eligibility bits."""
        all_of_them = -(-(self.end - self.begin) // WORD)
        whole, left = divmod(all_of_them, self.step)
        return whole * self.run + min(left, self.run)

    @property
    def rows(self) -> NDArray[np.int64]:
        """int64: their numbers, ascending."""
        word = np.arange(self.words, dtype=np.int64)
        first = self.begin + (word // self.run * self.step + word % self.run) * WORD
        rows = (first[:, None] + np.arange(WORD)).reshape(-1)
        found: NDArray[np.int64] = rows[rows < self.end]
        return found


def padded(a_nd: NDArray[Any]) -> NDArray[Any]:
    """``a_nd`` with its rows filled up with zeros to a multiple of ``limit("ALIGN")`` entries."""
    missing = -a_nd.shape[1] % limit("ALIGN")
    if not missing:
        return np.ascontiguousarray(a_nd)
    return np.pad(a_nd, ((0, 0), (0, missing)))


class Mark(Protocol):
    """A place in a queue of work."""

    @property
    def done(self) -> bool:
        """Whether the work before it has ended."""
        ...

    def synchronize(self) -> None:
        """Wait, on the host, until it has."""


class Ended:
    """The mark of work that has ended."""

    done = True

    def synchronize(self) -> None:
        """Nothing to wait for."""


class KernelDevice:
    """Checked launches of the kernels in ``cuda/``; see ``CudaDevice``.

    Attributes:
        name: what telemetry calls this device.
        xp: the array module.
        half: the product takes float16 inputs; float32 otherwise. Both hold int8 exactly.
        tensor: first limbs come from the sieve, on int8 tensor cores, and not from the product.
    """

    name: str
    xp: Any
    half: bool
    tensor: bool
    few: bool = True
    """Few queries go to the sieve that reads rows once; False: to the other one, as a yardstick."""
    timed: bool = False
    """Its times are a device's: the planner measures it."""

    def launch(self, kernel: str, grid: tuple[int, int], args: Sequence[Any]) -> None:
        """Run a kernel with ``limit("THREADS")`` threads a block; integers come sized."""
        raise NotImplementedError

    def product(self, high_qd: Array, x_nd: Array, out_qn: Array) -> None:
        """``high_qd @ x_nd.T`` into float32 ``out_qn``; ``x_nd`` is int8."""
        raise NotImplementedError

    def upload(self, host: NDArray[Any]) -> Array:
        """A contiguous copy on the device."""
        return self.xp.ascontiguousarray(self.xp.asarray(host))

    def upload_together(self, hosts: Sequence[NDArray[Any]]) -> list[Array]:
        """Copies of several arrays, in one piece of memory and one transfer."""
        edges = [0]
        for host in hosts:
            edges.append(edges[-1] + -(-host.nbytes // _ALIGNED) * _ALIGNED)
        whole = np.zeros(edges[-1], np.uint8)
        for host, begin in zip(hosts, edges, strict=False):
            whole[begin : begin + host.nbytes] = (
                np.ascontiguousarray(host).reshape(-1).view(np.uint8)
            )
        there = self.upload(whole)
        return [
            there[begin : begin + host.nbytes].view(host.dtype).reshape(host.shape)
            for host, begin in zip(hosts, edges, strict=False)
        ]

    def download(self, array: Array) -> NDArray[Any]:
        """A copy on the host; waits for the device."""
        return np.array(array)

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        return self.xp.empty(shape, dtype=dtype)

    def memory_free(self) -> int | None:
        """Bytes that can still be allocated; None where nobody counts them."""
        return None

    def release(self) -> None:
        """Give unused memory that is kept for later back to the driver."""

    def limit_memory(self, nbytes: int) -> None:
        """Refuse to allocate more than so many bytes in all, as if there were no more."""

    # ── Aside ─────────────────────────────────────────────────────────────────────────────────

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """What is done within goes to a queue beside the main one."""
        yield

    def staging(self, nbytes: int) -> NDArray[np.uint8]:
        """Host memory that ``put`` can read while the host goes on."""
        return np.empty(nbytes, np.uint8)

    def put(self, target: Array, host: NDArray[Any]) -> None:
        """Queue a copy of ``host``, contiguous and out of ``staging``, to a contiguous target."""
        target[...] = host

    def mark(self) -> Mark:
        """Remember this place of the current queue."""
        return Ended()

    def hold(self, mark: Mark) -> None:
        """What is queued from now on waits for the mark."""

    def segment(self, x_nd: NDArray[np.int8], key_n: NDArray[np.uint64]) -> DeviceSegment:
        """Upload a segment's rows and keys; the norms are worked out there."""
        x = self.upload(padded(x_nd))
        return DeviceSegment(x, self.norms(x), self.upload(key_n))

    # ── Launches ──────────────────────────────────────────────────────────────────────────────

    def norms(self, x_nd: Array) -> Array:
        """int32 (N,): Euclidean norms of int8 rows, rounded up."""
        n, width = x_nd.shape
        _check(width=(width, 0, _width_max()), aligned=(width % limit("ALIGN"), 0, 0))
        out = self.empty((n,), np.int32)
        if n:
            args = (x_nd, np.int64(n), np.int32(width), out)
            self.launch("norms", (_row_blocks(n), 1), args)
        return out

    def points(self, x_nd: Array, q_d: Array, offset_b: Array) -> Array:
        """int32 (N, B): points of rows by facet; ``offset_b`` is int32 (B + 1,)."""
        (n, width), facets = x_nd.shape, offset_b.shape[0] - 1
        _check(width=(width, 0, _width_max()), facets=(facets, 1, limit("FACETS_MAX")))
        out = self.empty((n, facets), np.int32)
        if n:
            sizes = np.int64(n), np.int32(width)
            args = (x_nd, *sizes, q_d, offset_b, np.int32(facets), out)
            self.launch("points_by_facet", (_row_blocks(n), facets), args)
        return out

    def threshold(
        self, block: QueryBlock, tile: Tile, active_a: Array, begin: int, end: int
    ) -> None:
        """Append the pairs of columns begin..end - 1 that beat their bound to ``found_qc4``."""
        width = _check_range(tile, active_a, begin, end)
        first_qn = tile.first_qn
        assert first_qn is not None, "the product comes first"
        words = -(-(end - begin) // WORD)
        args = (
            *(first_qn, np.int64(first_qn.strides[0] // 4)),
            *(np.int32(begin), np.int32(end), active_a),
            *(block.low_qd, block.low_norm_q, block.key_q, block.group_q, block.bound_q4),
            *(tile.rows.x_nd, tile.rows.norm_n, tile.rows.key_n, np.int32(width)),
            *(np.int32(tile.row0), tile.bits_gw, np.int64(tile.bits_gw.strides[0] // 4)),
            *(block.found_qc4, np.int32(block.capacity), block.count_q, *_rule_arguments(tile)),
        )
        blocks = min(_BLOCKS_MAX, max(1, -(-words // _warps())))
        self.launch("threshold", (blocks, active_a.shape[0]), args)

    def sieve(self, block: QueryBlock, tile: Tile, active_a: Array, begin: int, end: int) -> None:
        """As ``threshold``, but first limbs are worked out on the way and written nowhere."""
        width = _check_range(tile, active_a, begin, end)
        if self.few and active_a.shape[0] <= limit("FEW_MAX"):
            self._few(block, tile, active_a, begin, end, width)
            return
        rows = -(-(end - begin) // limit("TILE"))
        _check(tiles=(rows, 0, limit("TILES_MAX")))
        args = (
            *(active_a, np.int32(active_a.shape[0]), block.high_qd, block.low_qd),
            *(block.low_norm_q, block.key_q, block.group_q, block.bound_q4),
            *(tile.rows.x_nd, tile.rows.norm_n, tile.rows.key_n, np.int32(width)),
            *(np.int32(tile.row0), np.int32(begin), np.int32(end)),
            *(tile.bits_gw, np.int64(tile.bits_gw.strides[0] // 4)),
            *(block.found_qc4, np.int32(block.capacity), block.count_q, *_rule_arguments(tile)),
        )
        if rows:
            self.launch("sieve", (-(-active_a.shape[0] // limit("TILE")), rows), args)

    def _few(
        self, block: QueryBlock, tile: Tile, active_a: Array, begin: int, end: int, width: int
    ) -> None:
        """The sieve for a few queries, which reads every row once and stages nothing."""
        queries = active_a.shape[0]
        args = (
            *(active_a, np.int32(queries), block.high_qd, block.low_qd),
            *(block.low_norm_q, block.key_q, block.group_q, block.bound_q4),
            *(tile.rows.x_nd, tile.rows.norm_n, tile.rows.key_n, np.int32(width)),
            *(np.int32(tile.row0), np.int32(begin), np.int32(end)),
            *(tile.bits_gw, np.int64(tile.bits_gw.strides[0] // 4)),
            *(block.found_qc4, np.int32(block.capacity), block.count_q, *_rule_arguments(tile)),
        )
        strips = -(-(end - begin) // (limit("FEW_ROWS") * _warps()))
        if strips:
            size = next(size for size in _FEW_SIZES if queries <= size)
            self.launch(f"few_{size}", (min(_FEW_BLOCKS, strips), 1), args)

    def select(self, block: QueryBlock, active_a: Array) -> None:
        """Merge ``found_qc4`` into ``top_qk4``, or after an overflow raise the bound alone."""
        _check(
            k=(block.k, 1, limit("K_MAX")),
            capacity=(block.capacity, block.k, 2**31 - 1),
            queries=(active_a.shape[0], 1, limit("QUERIES_MAX")),
        )
        args = (
            *(active_a, np.int32(block.k), block.found_qc4, np.int32(block.capacity)),
            *(block.count_q, block.top_qk4, block.have_q, block.bound_q4),
        )
        self.launch("select_best", (active_a.shape[0], 1), args)

    # ── Rules ─────────────────────────────────────────────────────────────────────────────────

    def address(self, array: Array) -> int:
        """Where an array begins, as kernels see it."""
        return int(array.ctypes.data)

    def program(self, program: Program) -> DeviceProgram:
        """Upload a program."""
        arrays = self.upload_together([program.rule_m8, program.start_g, program.pool])
        return DeviceProgram(program, *arrays)

    def column_table(self, program: Program, columns: DeviceColumns) -> Array:
        """uint64 (3 * slots,): where the program's columns lie; 0 for those that it never reads."""
        table = np.zeros(3 * max(1, len(program.slots)), np.uint64)
        for at, (kind, name) in enumerate(program.slots):
            found: Mapping[str, Any] = columns.scalars if kind == "scalar" else columns.sets
            arrays = found.get(name, ())
            for i, array in enumerate((arrays,) if kind == "scalar" and name in found else arrays):
                table[3 * at + i] = self.address(array)
        return self.upload(table)

    def rule_bits(
        self,
        program: DeviceProgram,
        columns: DeviceColumns,
        table: Array,
        alive_w: Array | None,
        rows: RowRuns,
        eligible_g: Array,
        unverified_g: Array,
    ) -> Array:
        """uint32 (G, words): bits of some rows that each group lets pass.

        Args:
            program, columns, table: the rules, what they read, and ``column_table`` of both.
            alive_w: uint32, bits of the segment's living rows; None when all live.
            rows: which.
            eligible_g, unverified_g: uint64 (G,); counts are added to them.
        """
        groups, words = program.start_g.shape[0] - 1, rows.words
        sets = -(-groups // limit("RULE_GROUPS"))
        _check(
            groups=(groups, 1, limit("GROUPS_MAX")),
            begin=(rows.begin, 0, rows.end),
            begin_in_word=(rows.begin % WORD, 0, 0),
            end=(rows.end, 0, columns.n),
            run=(rows.run, 1, rows.step),
        )
        bits_gw = self.empty((groups, words), np.uint32)
        if words:
            args = (
                *(program.rule_m8, program.start_g, program.pool, table, columns.key_n),
                *(_NULL if alive_w is None else alive_w, np.int64(rows.begin)),
                *(np.int64(rows.end - rows.begin), np.int32(groups)),
                *(np.int64(rows.run), np.int64(rows.step)),
                *(bits_gw, np.int64(words), eligible_g, unverified_g),
            )
            blocks = min(_BLOCKS_MAX, -(-words // _warps()))
            self.launch("rule_bits", (blocks, sets), args)
        return bits_gw


def _rule_arguments(tile: Tile) -> tuple[Any, ...]:
    """What the scans take at their end."""
    rules = tile.rules
    if rules is None:
        return (*[_NULL] * 5, np.int32(0))
    _check(rule_rows=(rules.row + tile.rows.n, 0, rules.columns.n))
    program = rules.program
    arrays = program.rule_m8, program.start_g, program.pool, rules.table, rules.rule_q
    return (*arrays, np.int32(rules.row))


def _check(**sizes: tuple[int, int, int]) -> None:
    for name, (got, least, most) in sizes.items():
        if not least <= got <= most:
            raise LaunchRefused(f"{name} is {got}, the kernel takes {least}..{most}")


def _check_range(tile: Tile, active_a: Array, begin: int, end: int) -> int:
    """Refuse columns that kernels cannot take; the rows' width."""
    columns, width = tile.rows.x_nd.shape
    _check(
        width=(width, 0, _width_max()),
        aligned=(width % limit("ALIGN"), 0, 0),
        begin=(begin, 0, end),
        begin_in_word=(begin % WORD, 0, 0),
        end=(end, 0, columns),
        words=(tile.bits_gw.shape[1] * WORD, columns, columns + WORD),
        last_row=(tile.row0 + columns, 0, limit("ROWS_MAX")),
        queries=(active_a.shape[0], 1, limit("QUERIES_MAX")),
    )
    return int(width)


def _width_max() -> int:
    return -(-limit("D_MAX") // limit("ALIGN")) * limit("ALIGN")


def _warps() -> int:
    return limit("THREADS") // 32


def _row_blocks(n: int) -> int:
    return min(_BLOCKS_MAX, -(-n // _warps()))
