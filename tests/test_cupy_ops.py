"""``CupyOps`` beside the reference: on a device where there is one, and everywhere on the NumPy
emulation of the kernels, so that the loop above them runs in full."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
from cupy_cases import NO_DEVICE, a_corpus, some_groups, some_queries

from matchwright.kernels import cupy_ops
from matchwright.kernels.compile import limit
from matchwright.kernels.cuda_device import CudaDevice
from matchwright.kernels.cupy_ops import CupyOps, DeviceMismatch
from matchwright.kernels.device import DeviceError
from matchwright.kernels.numpy_device import NumpyDevice
from matchwright.kernels.ops import Ops
from matchwright.kernels.types import Corpus, Queries, Segment, TopK

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


@pytest.mark.parametrize("first", [33, 100, 138, 255])
def test_tiles_begin_on_whole_words_after_any_segment(device, reference, first):
    """A segment of an odd size, wider than the buffer, must not shift the tiles of the next."""
    rng = np.random.default_rng(first)
    corpus = a_corpus(rng, (first, 43, 900), 4)
    queries = some_queries(rng, corpus, 5, 4, groups=some_groups(rng, corpus))
    got = CupyOps(device=device, verify=False).topk(corpus, queries, 3)
    assert_same(got, reference.topk(corpus, queries, 3))


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


def test_the_device_is_compared_with_the_reference_at_the_start(device, monkeypatch):
    selected, select = [], device.select

    def watched(block, active_a):
        selected.append(block.k)
        select(block, active_a)

    monkeypatch.setattr(device, "select", watched)
    assert CupyOps(device=device, verify=False).device is device
    assert not selected
    CupyOps(device=device)
    assert set(selected) == {37}


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
