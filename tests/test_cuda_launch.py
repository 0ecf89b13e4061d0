"""Sizes, launches and memory of a device; what is installed; the library product."""

from __future__ import annotations

import ctypes
import gc
import importlib.util
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from cupy_cases import NO_DEVICE, a_corpus, some_queries

from matchwright.kernels import cupy_ops
from matchwright.kernels import device as kernel_device
from matchwright.kernels.compile import limit
from matchwright.kernels.cuda_device import CudaDevice, architecture
from matchwright.kernels.cuda_scan import Scan, Sizes, fit
from matchwright.kernels.cupy_ops import CupyOps, installed, no_device_reason
from matchwright.kernels.device import DeviceError, LaunchRefused, QueryBlock, Tile
from matchwright.kernels.numpy_device import NumpyDevice, pack_bits
from matchwright.kernels.resident import Resident, resident_bytes
from matchwright.kernels.types import Queries

# ── Sizes, launches, memory ───────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("queries", [1, 37, 100_000])
@pytest.mark.parametrize("rows", [1, 199, 10_000_000])
@pytest.mark.parametrize("k", [1, 100, 1_000])
@pytest.mark.parametrize("tensor", [False, True])
def test_sizes_fit_their_budget(queries, rows, k, tensor):
    for width in (16, 384, 1_040):
        for power in range(10, 34):
            sizes = fit(queries, rows, width, k, 1 << power, tensor=tensor)
            if sizes is None:
                least = Sizes(1, 32, -(-k // 32) * 32, tensor)
                assert least.temporary_bytes(width, k) > 1 << power
                continue
            assert sizes.tensor is tensor
            assert sizes.temporary_bytes(width, k) <= 1 << power
            assert 1 <= sizes.queries <= min(queries, limit("QUERIES_MAX"))
            assert sizes.columns % 32 == 0
            assert sizes.capacity % 32 == 0
            assert sizes.capacity >= k


def test_many_queries_stay_together():
    """Every block reads all rows once more: columns are given up before queries are."""
    for width, budget, queries in ((384, 1 << 30, 4_096), (256, 256 << 20, 1_024)):
        sizes = fit(4_096, 10_000_000, width, 100, budget, tensor=True)
        assert sizes is not None
        assert sizes.queries == queries
        assert sizes.columns >= 1 << 20
    few = fit(64, 10_000_000, 384, 100, 256 << 20, tensor=True)
    assert few is not None
    assert (few.queries, few.columns) == (64, 10_000_000)


@pytest.mark.parametrize("tensor", [False, True])
def test_temporary_arrays_stay_within_the_budget(tensor):
    class Counting(NumpyDevice):
        taken: int

        def upload(self, host):
            self.taken += host.nbytes
            return super().upload(host)

        def empty(self, shape, dtype):
            self.taken += int(np.prod(shape)) * np.dtype(dtype).itemsize
            return super().empty(shape, dtype)

        def segment(self, x_nd, key_n):
            before = self.taken
            made = super().segment(x_nd, key_n)
            self.taken = before
            return made

    device = Counting(tensor=tensor)
    rng = np.random.default_rng(2)
    corpus = a_corpus(rng, (4_000,), 48)
    queries = some_queries(rng, corpus, 6, 48)
    for budget in (60_000, 400_000):
        sizes = fit(6, 4_000, 48, 20, budget, tensor=tensor)
        assert sizes is not None
        device.taken = 0
        one = Queries(queries.q_qd[: sizes.queries], queries.key_q[: sizes.queries])
        scan = Scan(device, sizes, 20)
        segments = [device.segment(corpus.parts[0][0].x_nd, corpus.parts[0][0].key_n)]
        bits = pack_bits([np.zeros(4_000, bool)])
        scan.run(segments, one, [bits], np.zeros(sizes.queries, np.int32))
        assert device.taken <= budget


def test_bits_are_packed_little_endian():
    eligible = np.zeros((2, 70), bool)
    eligible[0, [0, 33, 69]] = True
    eligible[1] = True
    assert pack_bits(list(eligible)).tolist() == [[1, 2, 32], [2**32 - 1, 2**32 - 1, 63]]


def a_launch(width=16, n=64, k=4, capacity=32, q=2):
    block = QueryBlock(
        *(np.zeros((q, width), np.float32), np.zeros((q, width), np.int8)),
        *(np.zeros(q, np.int32), np.zeros(q, np.uint64), np.zeros(q, np.int32)),
        *(np.zeros((q, 4), np.int32), np.zeros((q, k, 4), np.int32), np.zeros(q, np.int32)),
        *(np.zeros((q, capacity, 4), np.int32), np.zeros(q, np.uint32)),
    )
    rows = NumpyDevice().segment(np.zeros((n, width), np.int8), np.zeros(n, np.uint64))
    bits = np.zeros((1, -(-n // 32)), np.uint32)
    return block, Tile(np.zeros((q, n), np.float32), rows, 0, bits)


class Recorded(kernel_device.KernelDevice):
    xp = np

    def __init__(self) -> None:
        self.launched: list[tuple[str, tuple[int, int], tuple]] = []

    def launch(self, kernel, grid, args, shared=0):
        self.launched.append((kernel, grid, tuple(args)))
        self.shared = shared


def test_launches_are_checked_against_the_headers():
    device = Recorded()
    block, tile = a_launch()
    one = np.zeros(1, np.int32)
    for begin, end, named in ((8, 64, "begin_in_word"), (0, 65, "end"), (64, 32, "begin")):
        with pytest.raises(LaunchRefused, match=named):
            device.threshold(block, tile, one, begin, end)
    with pytest.raises(LaunchRefused, match="queries"):
        device.threshold(block, tile, np.zeros(0, np.int32), 0, 64)
    with pytest.raises(LaunchRefused, match="queries"):
        device.threshold(block, tile, np.zeros(65_536, np.int32), 0, 64)
    far = Tile(tile.first_qn, tile.rows, 2**31 - 32, tile.bits_gw)
    with pytest.raises(LaunchRefused, match="last_row"):
        device.threshold(block, far, one, 0, 64)
    with pytest.raises(LaunchRefused, match="capacity"):
        device.select(a_launch(k=40, capacity=32)[0], one)
    with pytest.raises(LaunchRefused, match="k is 1001"):
        device.select(a_launch(k=1_001, capacity=1_024)[0], one)
    for test in (device.threshold, device.sieve):
        with pytest.raises(LaunchRefused, match="width is 0, the kernel takes 16"):
            test(*a_launch(width=0), one, 0, 64)
    with pytest.raises(LaunchRefused, match="aligned"):
        device.norms(np.zeros((4, 17), np.int8))
    with pytest.raises(LaunchRefused, match="width"):
        device.norms(np.zeros((4, 1_056), np.int8))
    with pytest.raises(LaunchRefused, match="facets"):
        device.points(np.zeros((4, 16), np.int8), np.zeros(16, np.int16), np.zeros(1, np.int32))
    assert device.launched == []


@pytest.mark.parametrize(
    ("queries", "width", "kernel"),
    [(64, 640, "few_64"), (128, 640, "sieve"), (129, 640, "sieve_wide"), (129, 656, "sieve")],
)
def test_who_goes_to_the_sieve_on_warpgroups(queries, width, kernel):
    """More than a tile of queries, no wider than fit in shared memory; nobody unless it is on."""
    device = Recorded()
    block, tile = a_launch(width=width, n=256, q=queries)
    for device.wide in (False, True):
        device.sieve(block, tile, np.zeros(queries, np.int32), 0, 256)
    assert device.launched[1][0] == kernel
    assert device.launched[0][0] == kernel.replace("sieve_wide", "sieve")


@pytest.mark.parametrize(
    ("queries", "rows", "tiles"), [(256, 128, 1), (4_096, 1 << 18, 31), (4_096, 1 << 20, 64)]
)
def test_a_block_keeps_its_queries_for_as_many_tiles_as_leave_enough_blocks(queries, rows, tiles):
    device = Recorded()
    device.wide = True
    block, tile = a_launch(n=rows)
    device.sieve(block, tile, np.zeros(queries, np.int32), 0, rows)
    ((_, grid, args),) = device.launched
    assert args[-1] == tiles
    assert grid == (queries // 256, -(-rows // (128 * tiles)))


def test_launch_arguments_are_sized():
    device = Recorded()
    block, tile = a_launch(n=10_000)
    device.threshold(block, tile, np.zeros(2, np.int32), 0, 10_000)
    device.select(block, np.zeros(2, np.int32))
    device.norms(np.zeros((100_000, 32), np.int8))
    grids = [(kernel, grid) for kernel, grid, _ in device.launched]
    assert grids == [("threshold", (40, 2)), ("select_best", (2, 1)), ("norms", (4_096, 1))]
    for _, _, args in device.launched:
        assert all(isinstance(one, (np.ndarray, np.generic)) for one in args)


def test_a_range_wider_than_a_grid_takes_several_launches(monkeypatch):
    """65,535 tiles of 128 rows are 8.4 M, and a range for few queries is up to 16.8 M."""
    monkeypatch.setattr(
        kernel_device, "limit", lambda name: {"TILES_MAX": 3}.get(name, limit(name))
    )
    device = Recorded()
    device.few = False
    block, tile = a_launch(n=1_000)
    device.sieve(block, tile, np.zeros(130, np.int32), 32, 1_000)
    launched = [(grid, int(args[13]), int(args[14])) for _, grid, args in device.launched]
    assert launched == [((2, 3), 32, 416), ((2, 3), 416, 800), ((2, 2), 800, 1_000)]
    device.launched.clear()
    device.wide = True
    device.sieve(block, tile, np.zeros(257, np.int32), 32, 1_000)
    launched = [(kernel, grid, *args[13:15], args[-1]) for kernel, grid, args in device.launched]
    assert launched == [
        ("sieve_wide", (2, 3), 32, 416, 1),
        ("sieve_wide", (2, 3), 416, 800, 1),
        ("sieve_wide", (2, 2), 800, 1_000, 1),
    ]
    assert device.shared == kernel_device.wide_bytes(16)
    device.wide = False
    device.launched.clear()
    device.sieve(block, tile, np.zeros(2, np.int32), 64, 64)
    assert device.launched == []


@pytest.mark.parametrize(
    ("capability", "arch"), [("80", "sm_80"), ("89", "sm_89"), ("90", "sm_90a")]
)
def test_architectures(capability, arch):
    assert architecture(capability) == arch


def test_segments_are_uploaded_once_and_leave_oldest_first():
    rng = np.random.default_rng(1)
    segments = [part[0] for part in a_corpus(rng, (32, 32, 32), 16).parts]
    size = resident_bytes(segments[0])
    resident = Resident(NumpyDevice(), 2 * size)
    first = resident.get(segments[:2])
    assert resident.get(segments[:2])[0] is first[0]
    assert resident.nbytes == 2 * size
    assert not resident.fits(segments)
    resident.get(segments[:1])
    resident.get(segments[2:])
    assert resident.nbytes == 2 * size
    assert resident.get(segments[:1])[0] is first[0]
    assert resident.get(segments[1:2])[0] is not first[1]


def test_a_segment_s_copy_goes_when_the_host_lets_go():
    resident = Resident(NumpyDevice(), 1 << 20)
    corpus = a_corpus(np.random.default_rng(1), (32,), 16)
    resident.get([corpus.parts[0][0]])
    assert resident.nbytes > 0
    del corpus
    gc.collect()
    assert resident.nbytes == 0


def test_the_samples_of_the_start_take_no_room_afterwards():
    """At once, whether or not the collector has come by: plans of memory are told next."""
    gc.disable()
    try:
        ops = CupyOps(device=NumpyDevice(tensor=True))
        assert ops.resident.uploads > 0
        assert ops.resident.segments == ops.resident.nbytes == 0
    finally:
        gc.enable()


# ── Installed, and has a device ───────────────────────────────────────────────────────────────


def test_without_a_device_the_error_says_what_to_do(monkeypatch):
    monkeypatch.setattr(cupy_ops, "no_device_reason", lambda: NO_DEVICE or "no CUDA device")
    with pytest.raises(DeviceError, match="use device='cpu'"):
        CupyOps()


def test_not_installed_is_another_answer(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert not installed()
    assert "not installed" in str(no_device_reason())


def test_importing_imports_no_cupy():
    code = (
        "import sys, matchwright.kernels.cupy_ops, matchwright.kernels.compile\n"
        "assert not {'cupy', 'polars'} & set(sys.modules), sorted(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# ── The library product's arguments ───────────────────────────────────────────────────────────


class Located(np.ndarray):
    """A NumPy array with CuPy's way of telling its address."""

    @property
    def data(self):
        return SimpleNamespace(ptr=self.ctypes.data)


class ColumnMajor:
    """What cuBLAS's gemmEx does with its arguments, for the one use made of it."""

    CUBLAS_OP_N, CUBLAS_OP_T = 0, 1

    def gemmEx(self, handle, op_a, op_b, m, n, k, alpha, *rest):
        a, a_type, lda, b, b_type, ldb, beta, c, c_type, ldc, compute, _ = rest
        assert (op_a, op_b, a_type, b_type, c_type, compute) == (1, 0, 2, 2, 0, 68)
        one, zero = (ctypes.c_float.from_address(at).value for at in (alpha, beta))
        assert (one, zero) == (1.0, 0.0)
        a_km = self.matrix(a, np.float16, lda, m)[:k]
        b_kn = self.matrix(b, np.float16, ldb, n)[:k]
        c_mn = self.matrix(c, np.float32, ldc, n)[:m]
        c_mn[:] = a_km.T.astype(np.float32) @ b_kn.astype(np.float32)

    def matrix(self, at, dtype, leading, columns):
        size = leading * columns * np.dtype(dtype).itemsize
        buffer = (ctypes.c_char * size).from_address(at)
        return np.frombuffer(buffer, dtype).reshape(columns, leading).T


def test_the_product_s_arguments_are_column_major():
    rng = np.random.default_rng(1)
    device = object.__new__(CudaDevice)
    handle = SimpleNamespace(get_cublas_handle=lambda: 1)
    device.xp = SimpleNamespace(cuda=SimpleNamespace(device=handle))
    device.half, device._cublas = True, ColumnMajor()
    x_nd = rng.integers(-127, 128, (5, 16), dtype=np.int8).view(Located)
    high_qd = rng.integers(-127, 128, (3, 16)).astype(np.float16).view(Located)
    tile_qn = np.full((3, 32), 7, np.float32).view(Located)
    device.product(high_qd, x_nd, tile_qn[:, :5])
    wanted = np.asarray(high_qd, np.float32) @ np.asarray(x_nd, np.float32).T
    np.testing.assert_array_equal(np.asarray(tile_qn[:, :5]), wanted)
    assert (np.asarray(tile_qn[:2, 5:]) == 7).all()
