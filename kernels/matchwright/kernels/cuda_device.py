"""What a scan needs of a device: arrays, a library product, and the kernels in ``cuda/``.

``KernelDevice`` turns arrays into checked launches and leaves three things open: where arrays
live (``xp``, NumPy or CuPy), how a kernel is launched, and the product. ``CudaDevice`` fills them
in with CuPy. ``NumpyDevice`` says in NumPy what each kernel does, so that everything above the
kernels runs, and is tested, on a machine without a device.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from matchwright.kernels import order
from matchwright.kernels.compile import KERNELS, compiled, limit

Array = Any
"""An array on the device: NumPy's or CuPy's."""

WORD = 32
"""Eligibility bits in one word; tiles begin at multiples of it."""
POINTS, NMIX, NLOW, ROW = range(4)
"""The int32 columns of an entry; ``cuda/order.cuh`` says what they hold."""
NOTHING = (-(2**31), 0, 0, -1)
"""The entry below every real one."""

_BLOCKS_MAX = 4_096
_TENSOR_CORES_SINCE = 80
_GEMM_HALF, _GEMM_SINGLE = 2, 0  # CUDA_R_16F, CUDA_R_32F
_COMPUTE_32F, _GEMM_DEFAULT = 68, -1  # CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT


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


@dataclass(frozen=True, slots=True)
class Tile:
    """First limbs of a query block and some rows of a segment.

    Attributes:
        first_qn: float32 (Q, N), exact integers; None where the sieve works them out.
        rows: the rows, a slice of a resident segment.
        row0: global row of the first column.
        bits_gw: uint32 (G, words), eligibility; bit 0 of word 0 is the first column.
    """

    first_qn: Array | None
    rows: DeviceSegment
    row0: int
    bits_gw: Array


def padded(a_nd: NDArray[Any]) -> NDArray[Any]:
    """``a_nd`` with its rows filled up with zeros to a multiple of ``limit("ALIGN")`` entries."""
    missing = -a_nd.shape[1] % limit("ALIGN")
    if not missing:
        return np.ascontiguousarray(a_nd)
    return np.pad(a_nd, ((0, 0), (0, missing)))


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

    def launch(self, kernel: str, grid: tuple[int, int], args: Sequence[Any]) -> None:
        """Run a kernel with ``limit("THREADS")`` threads a block; integers come sized."""
        raise NotImplementedError

    def product(self, high_qd: Array, x_nd: Array, out_qn: Array) -> None:
        """``high_qd @ x_nd.T`` into float32 ``out_qn``; ``x_nd`` is int8."""
        raise NotImplementedError

    def upload(self, host: NDArray[Any]) -> Array:
        """A contiguous copy on the device."""
        return self.xp.ascontiguousarray(self.xp.asarray(host))

    def download(self, array: Array) -> NDArray[Any]:
        """A copy on the host; waits for the device."""
        return np.asarray(array)

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        return self.xp.empty(shape, dtype=dtype)

    def memory_free(self) -> int | None:
        """Bytes that can still be allocated; None where nobody counts them."""
        return None

    def segment(self, x_nd: NDArray[np.int8], key_n: NDArray[np.uint64]) -> DeviceSegment:
        """Upload a segment's rows and keys; the norms are worked out there."""
        x = self.upload(padded(x_nd))
        return DeviceSegment(x, self.norms(x), self.upload(key_n))

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
            *(np.int32(tile.row0), tile.bits_gw, np.int64(tile.bits_gw.shape[1])),
            *(block.found_qc4, np.int32(block.capacity), block.count_q),
        )
        blocks = min(_BLOCKS_MAX, max(1, -(-words // _warps())))
        self.launch("threshold", (blocks, active_a.shape[0]), args)

    def sieve(self, block: QueryBlock, tile: Tile, active_a: Array, begin: int, end: int) -> None:
        """As ``threshold``, but first limbs are worked out on the way and written nowhere."""
        width = _check_range(tile, active_a, begin, end)
        rows = -(-(end - begin) // limit("TILE"))
        _check(tiles=(rows, 0, limit("TILES_MAX")))
        args = (
            *(active_a, np.int32(active_a.shape[0]), block.high_qd, block.low_qd),
            *(block.low_norm_q, block.key_q, block.group_q, block.bound_q4),
            *(tile.rows.x_nd, tile.rows.norm_n, tile.rows.key_n, np.int32(width)),
            *(np.int32(tile.row0), np.int32(begin), np.int32(end)),
            *(tile.bits_gw, np.int64(tile.bits_gw.shape[1])),
            *(block.found_qc4, np.int32(block.capacity), block.count_q),
        )
        if rows:
            self.launch("sieve", (-(-active_a.shape[0] // limit("TILE")), rows), args)

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


class CudaDevice(KernelDevice):
    """The current CUDA device, through CuPy.

    Args:
        half: tensor cores on float16 inputs (accumulated and written in float32); otherwise
            float32 without TF32. Sums of the first limb are below 2**24, exact in both.
        tensor: use the sieve where the device can (from compute capability 8.0 on), and the
            library's product only elsewhere; False: the product everywhere, as a yardstick.
    """

    def __init__(self, *, half: bool = True, tensor: bool = True) -> None:
        import cupy

        self.xp = cupy
        self.half = half
        device = cupy.cuda.Device()
        properties = cupy.cuda.runtime.getDeviceProperties(device.id)
        self.name = f"cuda:{properties['name'].decode()}"
        self.arch = architecture(device.compute_capability)
        self.tensor = tensor and int(device.compute_capability) >= _TENSOR_CORES_SINCE
        self._cublas: Any = None if self.tensor else _cublas()
        self._functions: dict[str, Any] = {}

    def launch(self, kernel: str, grid: tuple[int, int], args: Sequence[Any]) -> None:
        if kernel not in self._functions:
            module = self.xp.cuda.function.Module()
            module.load(compiled(KERNELS[kernel], self.arch).cubin)
            self._functions[kernel] = module.get_function(kernel)
        self._functions[kernel]((*grid, 1), (limit("THREADS"), 1, 1), tuple(args))

    def product(self, high_qd: Array, x_nd: Array, out_qn: Array) -> None:
        """cuBLAS is column-major: it is told to work out the transpose, x_nd @ high_qd.T."""
        cublas = self._cublas = self._cublas or _cublas()
        (q, width), n = high_qd.shape, x_nd.shape[0]
        x = x_nd.astype(high_qd.dtype)
        inputs = _GEMM_HALF if self.half else _GEMM_SINGLE
        one, zero = np.ones(1, np.float32), np.zeros(1, np.float32)
        cublas.gemmEx(
            self.xp.cuda.device.get_cublas_handle(),
            *(cublas.CUBLAS_OP_T, cublas.CUBLAS_OP_N, n, q, width, one.ctypes.data),
            *(x.data.ptr, inputs, width, high_qd.data.ptr, inputs, width, zero.ctypes.data),
            *(out_qn.data.ptr, _GEMM_SINGLE, out_qn.strides[0] // 4, _COMPUTE_32F, _GEMM_DEFAULT),
        )

    def download(self, array: Array) -> NDArray[Any]:
        host: NDArray[Any] = self.xp.asnumpy(array)
        return host

    def memory_free(self) -> int | None:
        free, _ = self.xp.cuda.runtime.memGetInfo()
        return int(free) + int(self.xp.get_default_memory_pool().free_bytes())


def _cublas() -> Any:
    """CuPy's cuBLAS, which only the product needs: half a gigabyte that the sieve does without.

    Raises:
        DeviceError: it is not installed.
    """
    try:
        from cupy_backends.cuda.libs import cublas  # type: ignore[import-untyped]
    except ImportError as error:
        raise DeviceError(f"CuPy finds no cuBLAS; install nvidia-cublas: {error}") from error
    return cublas


def architecture(capability: str) -> str:
    """What NVRTC calls a compute capability such as "90" or "80"."""
    return "sm_90a" if capability == "90" else f"sm_{capability}"


class NumpyDevice(KernelDevice):
    """What the kernels do, said in NumPy; the referee of the kernels and of the loop above them."""

    name = "emulated"
    xp = np
    half = False

    def __init__(self, *, tensor: bool = False) -> None:
        self.tensor = tensor

    def upload(self, host: NDArray[Any]) -> Array:
        return np.array(host, order="C")

    def product(self, high_qd: Array, x_nd: Array, out_qn: Array) -> None:
        np.matmul(high_qd, x_nd.astype(np.float32).T, out=out_qn)

    def norms(self, x_nd: Array) -> Array:
        square = (x_nd.astype(np.int64) ** 2).sum(axis=1)
        return np.ceil(np.sqrt(square)).astype(np.int32)

    def points(self, x_nd: Array, q_d: Array, offset_b: Array) -> Array:
        facets = itertools.pairwise(offset_b.tolist())
        wide_nd, wide_d = x_nd.astype(np.int64), q_d.astype(np.int64)
        sums = [wide_nd[:, a:b] @ wide_d[a:b] for a, b in facets]
        return np.stack(sums, axis=1).astype(np.int32)

    def threshold(
        self, block: QueryBlock, tile: Tile, active_a: Array, begin: int, end: int
    ) -> None:
        assert tile.first_qn is not None
        self._test(block, tile, tile.first_qn, active_a, begin, end)

    def sieve(self, block: QueryBlock, tile: Tile, active_a: Array, begin: int, end: int) -> None:
        first_qn = block.high_qd.astype(np.int64) @ tile.rows.x_nd.astype(np.int64).T
        self._test(block, tile, first_qn, active_a, begin, end)

    @staticmethod
    def _test(
        block: QueryBlock, tile: Tile, first_qn: Array, active_a: Array, begin: int, end: int
    ) -> None:
        bits_gn = np.unpackbits(tile.bits_gw.view(np.uint8), axis=1, bitorder="little")
        for q in active_a:
            bound = entry_keys(block.bound_q4[q : q + 1])[0]
            wanted = np.flatnonzero(bits_gn[block.group_q[q], begin:end]) + begin
            first = first_qn[q, wanted].astype(np.int64)
            slack = int(block.low_norm_q[q]) * tile.rows.norm_n[wanted].astype(np.int64)
            near = 128 * first + slack >= bound[0]
            entries = _entries(block, tile, int(q), wanted[near], first[near])
            found = [i for i, key in enumerate(entry_keys(entries)) if key > bound]
            at = int(block.count_q[q])
            fits = entries[found][: max(0, block.capacity - at)]
            block.found_qc4[q, at : at + len(fits)] = fits
            block.count_q[q] += len(found)

    def select(self, block: QueryBlock, active_a: Array) -> None:
        for q in active_a[block.count_q[active_a] > 0]:
            count, have = int(block.count_q[q]), int(block.have_q[q])
            found = block.found_qc4[q, : min(count, block.capacity)]
            entries = np.concatenate([block.top_qk4[q, :have], found])
            best = _best_first(entries)[: block.k]
            if len(best) == block.k:
                reached = best[-1]
                if count > block.capacity:
                    reached = predecessor(reached)
                if entry_keys(reached[None])[0] > entry_keys(block.bound_q4[q : q + 1])[0]:
                    block.bound_q4[q] = reached
            if count <= block.capacity:
                block.top_qk4[q, : len(best)] = best
                block.have_q[q] = len(best)


def entry_keys(entries: NDArray[np.int32]) -> list[tuple[int, int, int]]:
    """The 96-bit keys of (n, 4) entries as Python integers; more is better."""
    points = entries[:, POINTS].tolist()
    ties = np.ascontiguousarray(entries[:, NMIX:ROW]).view(np.uint32)
    return list(zip(points, ties[:, 0].tolist(), ties[:, 1].tolist(), strict=True))


def predecessor(entry: NDArray[np.int32]) -> NDArray[np.int32]:
    """The key just below that of an entry."""
    points, nmix, nlow = entry_keys(entry[None])[0]
    number = (points << 64) + (nmix << 32) + nlow - 1
    tie = np.array([number >> 32 & 0xFFFFFFFF, number & 0xFFFFFFFF], np.uint32)
    return np.array([number >> 64, *tie.view(np.int32), -1], np.int32)


def _entries(
    block: QueryBlock, tile: Tile, q: int, columns: NDArray[np.intp], first: NDArray[np.int64]
) -> NDArray[np.int32]:
    x_nd = tile.rows.x_nd[columns].astype(np.int64)
    key_n = tile.rows.key_n[columns]
    out = np.empty((len(columns), 4), np.int32)
    out[:, POINTS] = 128 * first + x_nd @ block.low_qd[q].astype(np.int64)
    out[:, NMIX] = (~order.mix32(block.key_q[q], key_n)).view(np.int32)
    out[:, NLOW] = (~(key_n & np.uint64(0xFFFFFFFF)).astype(np.uint32)).view(np.int32)
    out[:, ROW] = tile.row0 + columns
    return out


def _best_first(entries: NDArray[np.int32]) -> NDArray[np.int32]:
    ties = np.ascontiguousarray(entries[:, NMIX:ROW]).view(np.uint32)
    ranked = np.lexsort((ties[:, 1], ties[:, 0], entries[:, POINTS]))[::-1]
    return entries[ranked]
