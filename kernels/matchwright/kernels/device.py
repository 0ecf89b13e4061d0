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
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from matchwright.kernels.compile import limit
from matchwright.kernels.device_arrays import (
    NLOW,
    NMIX,
    NOTHING,
    POINTS,
    ROW,
    WORD,
    Array,
    DeviceColumns,
    DeviceProgram,
    DeviceSegment,
    QueryBlock,
    RowRuns,
    Tile,
    TileRules,
    padded,
)
from matchwright.kernels.rule_program import Program

__all__ = [
    "NLOW",
    "NMIX",
    "NOTHING",
    "POINTS",
    "ROW",
    "WORD",
    "Array",
    "DeviceColumns",
    "DeviceError",
    "DeviceProgram",
    "DeviceSegment",
    "Ended",
    "KernelDevice",
    "LaunchRefused",
    "Mark",
    "QueryBlock",
    "RowRuns",
    "Tile",
    "TileRules",
    "padded",
]

_BLOCKS_MAX = 4_096
_FEW_BLOCKS = 1_056  # eight for each of an H100's multiprocessors
_WIDE_BLOCKS = 1_056  # so many at least, so that multiprocessors end together
_FEW_SIZES = (8, 16, 32, 64)
_NULL = np.uint64(0)
_ALIGNED = 256


class DeviceError(RuntimeError):
    """A device that cannot be used: not there, out of memory, or it gives wrong answers."""


class LaunchRefused(DeviceError):
    """Arguments beyond what a kernel's header states."""


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
    wide: bool = False
    """More than a tile of queries go to the sieve on warpgroups, where rows are narrow enough.
    Off: no device has run it yet, and only ``compile.WARPGROUP_ARCH`` can."""
    timed: bool = False
    """Its times are a device's: the planner measures it."""

    def launch(
        self, kernel: str, grid: tuple[int, int], args: Sequence[Any], shared: int = 0
    ) -> None:
        """Run a kernel with ``threads_of(kernel)`` threads a block; integers come sized.

        Args:
            shared: bytes of shared memory for a block, beside those that the kernel declares.
        """
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
        if self.wide and active_a.shape[0] > limit("TILE") and width <= limit("WIDE_WIDTH_MAX"):
            self._wide(block, tile, active_a, begin, end, width)
            return
        most = limit("TILES_MAX") * limit("TILE")
        for first in range(begin, end, most):  # ranges for few queries are wider than one launch
            last = min(end, first + most)
            grid = -(-active_a.shape[0] // limit("TILE")), -(-(last - first) // limit("TILE"))
            self.launch("sieve", grid, _sieve_arguments(block, tile, active_a, first, last, width))

    def _few(
        self, block: QueryBlock, tile: Tile, active_a: Array, begin: int, end: int, width: int
    ) -> None:
        """The sieve for a few queries, which reads every row once and stages nothing."""
        strips = -(-(end - begin) // (limit("FEW_ROWS") * _warps()))
        if strips:
            args = _sieve_arguments(block, tile, active_a, begin, end, width)
            size = next(size for size in _FEW_SIZES if active_a.shape[0] <= size)
            self.launch(f"few_{size}", (min(_FEW_BLOCKS, strips), 1), args)

    def _wide(
        self, block: QueryBlock, tile: Tile, active_a: Array, begin: int, end: int, width: int
    ) -> None:
        """The sieve on warpgroups: a block keeps its queries and goes through several tiles."""
        queries = -(-active_a.shape[0] // limit("WIDE_QUERIES"))
        tiles = -(-(end - begin) // limit("TILE"))
        a_block = max(1, min(limit("WIDE_TILES"), tiles * queries // _WIDE_BLOCKS))
        most = limit("TILES_MAX") * a_block * limit("TILE")
        for first in range(begin, end, most):
            last = min(end, first + most)
            grid = queries, -(-(last - first) // (a_block * limit("TILE")))
            args = _sieve_arguments(block, tile, active_a, first, last, width)
            self.launch("sieve_wide", grid, (*args, np.int32(a_block)), wide_bytes(width))

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

    def some_groups(self, program: DeviceProgram, some: NDArray[Any]) -> DeviceProgram:
        """Some of a program's groups; values and slots stay where they are."""
        part = program.program.take(some)
        rule_m8, start_g = self.upload_together([part.rule_m8, part.start_g])
        return DeviceProgram(part, rule_m8, start_g, program.pool)

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


def wide_bytes(width: int) -> int:
    """Shared memory that a block of ``sieve_wide`` asks for: queries, ring and list."""
    stage = limit("STAGE")
    queries = -(-width // stage) * stage * limit("WIDE_QUERIES")
    ring = limit("WIDE_STAGES") * limit("TILE") * stage
    return queries + ring + 4 * limit("WIDE_LISTED") + limit("WIDE_ALIGN")


def _sieve_arguments(
    block: QueryBlock, tile: Tile, active_a: Array, begin: int, end: int, width: int
) -> tuple[Any, ...]:
    """What ``sieve.cu`` and ``few.cu`` take."""
    return (
        *(active_a, np.int32(active_a.shape[0]), block.high_qd, block.low_qd),
        *(block.low_norm_q, block.key_q, block.group_q, block.bound_q4),
        *(tile.rows.x_nd, tile.rows.norm_n, tile.rows.key_n, np.int32(width)),
        *(np.int32(tile.row0), np.int32(begin), np.int32(end)),
        *(tile.bits_gw, np.int64(tile.bits_gw.strides[0] // 4)),
        *(block.found_qc4, np.int32(block.capacity), block.count_q, *_rule_arguments(tile)),
    )


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
        width=(width, limit("ALIGN"), _width_max()),  # the sieve's barriers are those of stages
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
