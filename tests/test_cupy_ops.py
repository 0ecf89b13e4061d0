"""``CupyOps`` beside the reference: on a device where there is one, and everywhere on the NumPy
emulation of the kernels, so that the loop above them runs in full."""

from __future__ import annotations

import ctypes
import gc
import inspect
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from matchwright.kernels import cuda_device, cupy_ops
from matchwright.kernels.compile import limit
from matchwright.kernels.cuda_device import (
    CudaDevice,
    DeviceError,
    LaunchRefused,
    NumpyDevice,
    QueryBlock,
    Tile,
    architecture,
)
from matchwright.kernels.cuda_scan import Sizes, fit, pack_bits
from matchwright.kernels.cupy_ops import CupyOps, DeviceMismatch, installed, no_device_reason
from matchwright.kernels.ops import Ops
from matchwright.kernels.resident import Resident, resident_bytes
from matchwright.kernels.types import Bitmap, Corpus, InRange, Queries, Segment, TopK

NO_DEVICE = no_device_reason()
needs_device = pytest.mark.skipif(NO_DEVICE is not None, reason=NO_DEVICE or "a device is there")


class Watched(NumpyDevice):
    """Keeps account of what was launched."""

    def __init__(self, *, tensor: bool = False) -> None:
        super().__init__(tensor=tensor)
        self.called: list[str] = []

    def select(self, block, active_a):
        self.called.append("select")
        super().select(block, active_a)

    def points(self, x_nd, q_d, offset_b):
        self.called.append("points")
        return super().points(x_nd, q_d, offset_b)


ON_DEVICE = (needs_device, pytest.mark.gpu)


@pytest.fixture(
    params=[
        pytest.param((Watched, False), id="emulated-product"),
        pytest.param((Watched, True), id="emulated-sieve"),
        pytest.param((CudaDevice, False), id="cuda-product", marks=ON_DEVICE),
        pytest.param((CudaDevice, True), id="cuda-sieve", marks=ON_DEVICE),
    ]
)
def device(request):
    made, tensor = request.param
    return made(tensor=tensor)


@pytest.fixture
def reference():
    return Ops()


def a_corpus(rng, sizes, d, spread=127, dead=0.1):
    keys = np.unique(rng.integers(0, 2**63, sum(sizes) + 99, dtype=np.uint64))
    rng.shuffle(keys)
    parts, at = [], 0
    for i, n in enumerate(sizes):
        x_nd = rng.integers(-spread, spread + 1, (n, d)).astype(np.int8)
        scalars = {"rate": rng.integers(0, 100, n).astype(np.int32)}
        segment = Segment(x_nd, keys[at : at + n], scalars=scalars)
        parts.append((segment, None if i % 2 else rng.random(n) >= dead))
        at += n
    return Corpus(tuple(parts))


def some_queries(rng, corpus, q, d, *, groups=None, floor=False, most=16_255):
    groups = groups or [()]
    return Queries(
        q_qd=rng.integers(-most, most + 1, (q, d)).astype(np.int16),
        key_q=rng.integers(0, 2**63, q, dtype=np.uint64),
        groups=groups,
        group_q=rng.integers(0, len(groups), q).astype(np.int32),
        floor_q=rng.integers(-(2**24), 2**24, q) if floor else None,
    )


def some_groups(rng, corpus):
    return [
        (),
        (InRange("rate", 0, 9, "RATE"),),
        (InRange("rate", 101, 200, "RATE"),),
        Bitmap(rng.random(corpus.n) < 0.5),
        Bitmap(rng.random(corpus.n) < 0.01),
    ]


def assert_same(got: TopK, expected: TopK) -> None:
    for name in ("row_qk", "points_qk", "returned_q", "eligible_q", "unverified_q"):
        one, other = getattr(got, name), getattr(expected, name)
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other, err_msg=name)
    assert got.counted == expected.counted


# ── The scan beside the reference ─────────────────────────────────────────────────────────────


@pytest.mark.parametrize("d", [1, 16, 37, 384])
@pytest.mark.parametrize("sizes", [(1,), (37, 0, 199), (2_500,)])
@pytest.mark.parametrize("k", [1, 37, 1_000])
def test_topk(device, reference, d, sizes, k):
    rng = np.random.default_rng(k + d)
    corpus = a_corpus(rng, sizes, d)
    queries = some_queries(rng, corpus, 7, d, groups=some_groups(rng, corpus))
    got = CupyOps(device=device, verify=False).topk(corpus, queries, k)
    assert got.telemetry["device"] == device.name
    assert_same(got, reference.topk(corpus, queries, k))


def test_many_shapes(device, reference, count):
    rng = np.random.default_rng(11)
    for _ in range(count(reduced=40, full=2_000)):
        d, q, k = int(rng.choice([1, 3, 16, 33])), int(rng.integers(1, 9)), int(rng.integers(1, 60))
        corpus = a_corpus(rng, rng.integers(0, 300, 3).tolist(), d, int(rng.choice([0, 1, 127])))
        groups = some_groups(rng, corpus)
        most = int(rng.choice([0, 1, 63, 64, 16_255]))
        queries = some_queries(
            rng, corpus, q, d, groups=groups, floor=rng.random() < 0.3, most=most
        )
        ops = CupyOps(device=device, memory_bytes=int(2 ** rng.uniform(13, 22)), verify=False)
        got = ops.topk(corpus, queries, k, count=bool(rng.random() < 0.5))
        expected = reference.topk(corpus, queries, k, count=got.counted != 0)
        assert_same(got, expected)


@pytest.mark.parametrize("memory_bytes", [1, 10_000, 30_000, 100_000, 1 << 22])
def test_budgets_change_no_answer(device, reference, memory_bytes):
    rng = np.random.default_rng(3)
    corpus = a_corpus(rng, (900, 1_100), 16)
    queries = some_queries(rng, corpus, 9, 16, groups=some_groups(rng, corpus))
    ops = CupyOps(device=device, memory_bytes=memory_bytes, verify=False)
    assert_same(ops.topk(corpus, queries, 20), reference.topk(corpus, queries, 20))


def test_all_tied_overflows_and_goes_on(device, reference):
    rng = np.random.default_rng(4)
    corpus = a_corpus(rng, (6_000,), 16, spread=0)
    queries = some_queries(rng, corpus, 3, 16)
    got = CupyOps(device=device, memory_bytes=200_000, verify=False).topk(corpus, queries, 10)
    assert_same(got, reference.topk(corpus, queries, 10))
    # The mix decides ties in the kernel, so that ties find no more than other rows do.
    assert got.telemetry["survivors"] < 1_000


def test_rising_points_overflow_every_tile(device, reference):
    n = 5_000
    x_nd = np.zeros((n, 16), np.int8)
    x_nd[:, 0], x_nd[:, 1] = np.arange(n) // 127, np.arange(n) % 127
    key_n = np.random.default_rng(5).permutation(n).astype(np.uint64)
    corpus = Corpus(((Segment(x_nd, key_n), None),))
    q_qd = np.zeros((2, 16), np.int16)
    q_qd[:, 0], q_qd[:, 1] = 127, 1
    queries = Queries(q_qd=q_qd, key_q=np.arange(2, dtype=np.uint64))
    got = CupyOps(device=device, memory_bytes=70_000, verify=False).topk(corpus, queries, 10)
    assert got.telemetry["overflows"] > 10
    assert_same(got, reference.topk(corpus, queries, 10))


@pytest.mark.parametrize("floor", [-(2**40), -(2**31), 0, 2**31 - 1, 2**31, 2**40])
def test_floors_of_any_size(device, reference, floor):
    rng = np.random.default_rng(6)
    corpus = a_corpus(rng, (300,), 16)
    queries = some_queries(rng, corpus, 2, 16)
    queries = Queries(queries.q_qd, queries.key_q, floor_q=np.full(2, floor, np.int64))
    got = CupyOps(device=device, verify=False).topk(corpus, queries, 10)
    assert_same(got, reference.topk(corpus, queries, 10))


def test_a_floor_lets_its_own_points_pass(device, reference):
    rng = np.random.default_rng(6)
    corpus = a_corpus(rng, (300,), 16)
    queries = some_queries(rng, corpus, 1, 16)
    fifth = reference.topk(corpus, queries, 5).points_qk[:, 4].astype(np.int64)
    for floor_q, returned in ((fifth, 5), (fifth + 1, 4)):
        some = Queries(queries.q_qd, queries.key_q, floor_q=floor_q)
        got = CupyOps(device=device, verify=False).topk(corpus, some, 10)
        assert got.returned_q.tolist() == [returned]
        assert_same(got, reference.topk(corpus, some, 10))


def test_a_counter_that_runs_wild_is_an_error_not_a_loop():
    class Wild(NumpyDevice):
        def select(self, block, active_a):
            block.count_q[active_a] = 1 << 20

    rng = np.random.default_rng(6)
    corpus = a_corpus(rng, (300,), 16)
    with pytest.raises(DeviceError, match="counted"):
        CupyOps(device=Wild(), verify=False).topk(corpus, some_queries(rng, corpus, 2, 16), 5)


def test_the_largest_points_there_can_be(device, reference):
    d = limit("D_MAX")
    signs = np.random.default_rng(7).choice(np.array([-1, 1], np.int8), (40, d))
    signs[:2] = 1
    corpus = Corpus(((Segment(127 * signs, np.arange(40, dtype=np.uint64)), None),))
    q_qd = np.stack(
        [np.full(d, 16_255), np.full(d, -16_255), 16_255 * signs[7].astype(int)]
    ).astype(np.int16)
    queries = Queries(q_qd=q_qd, key_q=np.arange(3, dtype=np.uint64))
    got = CupyOps(device=device, verify=False).topk(corpus, queries, 40)
    assert int(got.points_qk[0, 0]) == 16_255 * 127 * d
    assert int(got.points_qk[1, -1]) == -16_255 * 127 * d
    assert_same(got, reference.topk(corpus, queries, 40))


def test_points_and_contributions(device, reference):
    rng = np.random.default_rng(8)
    x_nd = rng.integers(-127, 128, (cupy_ops.ROWS_MIN + 1, 37), dtype=np.int8)
    q_d = rng.integers(-16_255, 16_256, 37).astype(np.int16)
    offsets = (0, 5, 5, 36, 37)
    ops = CupyOps(device=device, memory_bytes=50_000, verify=False)
    got = ops.contributions(x_nd, q_d, offsets)
    np.testing.assert_array_equal(got, reference.contributions(x_nd, q_d, offsets))
    np.testing.assert_array_equal(ops.points(x_nd, q_d), got.sum(axis=1))


def test_the_device_is_compared_with_the_reference_at_the_start(device):
    CupyOps(device=device)


def test_a_device_that_is_wrong_is_refused():
    class Wrong(NumpyDevice):
        def product(self, high_qd, x_nd, out_qn):
            super().product(high_qd, x_nd, out_qn)
            out_qn[:, 5_000:] += 1

    with pytest.raises(DeviceMismatch, match="disagree on the sample 'random'"):
        CupyOps(device=Wrong())


# ── One question per override ─────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("plan", ["gather", "skip"])
def test_other_plans_are_the_base_s(reference, plan):
    rng, device = np.random.default_rng(1), Watched()
    corpus = a_corpus(rng, (50,), 16)
    queries = some_queries(rng, corpus, 2, 16)
    got = CupyOps(device=device, verify=False).topk(corpus, queries, 5, plan=plan)
    assert device.called == []
    assert_same(got, reference.topk(corpus, queries, 5))


@pytest.mark.parametrize("budget", ["memory_bytes", "corpus_bytes"])
def test_what_does_not_fit_is_the_base_s(reference, budget):
    rng, device = np.random.default_rng(1), Watched()
    corpus = a_corpus(rng, (50,), 16)
    queries = some_queries(rng, corpus, 2, 16)
    got = CupyOps(device=device, verify=False, **{budget: 1}).topk(corpus, queries, 5)
    assert device.called == []
    assert_same(got, reference.topk(corpus, queries, 5))


def test_empty_queries_and_corpora_are_the_base_s(reference):
    rng, device = np.random.default_rng(1), Watched()
    ops = CupyOps(device=device, verify=False)
    for sizes, q in (((), 2), ((0,), 2), ((9,), 0)):
        corpus = a_corpus(rng, sizes, 16)
        queries = some_queries(rng, corpus, q, 16)
        assert_same(ops.topk(corpus, queries, 5), reference.topk(corpus, queries, 5))
    assert device.called == []


def test_few_rows_are_the_base_s(reference):
    device = Watched()
    ops = CupyOps(device=device, verify=False)
    x_nd, q_d = np.ones((9, 16), np.int8), np.ones(16, np.int16)
    np.testing.assert_array_equal(ops.points(x_nd, q_d), np.full(9, 16))
    np.testing.assert_array_equal(ops.contributions(x_nd, q_d, (0, 16)), np.full((9, 1), 16))
    assert device.called == []


def test_bad_arguments_are_refused_before_anything_runs():
    rng, device = np.random.default_rng(1), Watched()
    corpus = a_corpus(rng, (50,), 16)
    with pytest.raises(ValueError, match="k is 0"):
        CupyOps(device=device, verify=False).topk(corpus, some_queries(rng, corpus, 2, 16), 0)
    assert device.called == []


def test_overrides_have_the_base_s_parameters():
    overridden = {
        name
        for name, method in vars(CupyOps).items()
        if inspect.isfunction(method) and name in vars(Ops) and name != "__init__"
    }
    assert {"topk", "points", "contributions"} <= overridden
    for name in overridden:
        ours, theirs = (inspect.signature(getattr(one, name)) for one in (CupyOps, Ops))
        assert list(ours.parameters.values()) == list(theirs.parameters.values()), name


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
        scan = cupy_ops.Scan(device, sizes, 20)
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


class Recorded(cuda_device.KernelDevice):
    xp = np

    def __init__(self) -> None:
        self.launched: list[tuple[str, tuple[int, int], tuple]] = []

    def launch(self, kernel, grid, args):
        self.launched.append((kernel, grid, tuple(args)))


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
    with pytest.raises(LaunchRefused, match="aligned"):
        device.norms(np.zeros((4, 17), np.int8))
    with pytest.raises(LaunchRefused, match="width"):
        device.norms(np.zeros((4, 1_056), np.int8))
    with pytest.raises(LaunchRefused, match="facets"):
        device.points(np.zeros((4, 16), np.int8), np.zeros(16, np.int16), np.zeros(1, np.int32))
    assert device.launched == []


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


# ── Installed, and has a device ───────────────────────────────────────────────────────────────


def test_without_a_device_the_error_says_what_to_do(monkeypatch):
    monkeypatch.setattr(cupy_ops, "no_device_reason", lambda: NO_DEVICE or "no CUDA device")
    with pytest.raises(DeviceError, match="use device='cpu'"):
        CupyOps()


def test_not_installed_is_another_answer(monkeypatch):
    monkeypatch.setattr(cupy_ops.importlib.util, "find_spec", lambda name: None)
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
