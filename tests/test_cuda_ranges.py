"""The ranges of a scan: all queued before the host waits, and what overflows is asked for again."""

from __future__ import annotations

from itertools import pairwise

import cuda_host_cases
import kernel_cases as cases
import numpy as np
import pytest
from cuda_host_cases import GXX, copied, sieved
from cupy_cases import a_corpus, some_queries
from test_cupy_ops import assert_same

from matchwright.kernels import cuda_scan
from matchwright.kernels import device as kernel_device
from matchwright.kernels.compile import limit
from matchwright.kernels.cuda_scan import RANGES_MAX, Scan, Sizes, fit
from matchwright.kernels.cupy_ops import CupyOps
from matchwright.kernels.device import DeviceSegment
from matchwright.kernels.device_planner import FORCED
from matchwright.kernels.numpy_device import NumpyDevice
from matchwright.kernels.ops import Ops
from matchwright.kernels.types import Bitmap, Corpus, InRange, Queries, Segment

host = cuda_host_cases.host
needs_gxx = pytest.mark.skipif(GXX is None, reason="needs g++ to compile CUDA sources as C++")


class Queue(NumpyDevice):
    """Writes down what is asked of it, in its order."""

    def __init__(self, *, tensor=True):
        super().__init__(tensor=tensor)
        self.log = []

    def upload(self, host):
        self.log.append("upload")
        return super().upload(host)

    def download(self, array):
        self.log.append("download")
        return super().download(array)

    def sieve(self, block, tile, active_a, begin, end):
        self.log.append("sieve")
        super().sieve(block, tile, active_a, begin, end)

    def threshold(self, block, tile, active_a, begin, end):
        self.log.append("sieve")
        super().threshold(block, tile, active_a, begin, end)


def spans(sizes, k, *lengths):
    """(begin, end) of the ranges of some segments."""
    empty = [
        DeviceSegment(np.zeros((n, 0), np.int8), np.zeros(n, np.int32), np.zeros(n, np.uint64))
        for n in lengths
    ]
    return [one[:3] for one in Scan(NumpyDevice(tensor=True), sizes, k)._spans(empty)]


def rising(n, d=16):
    """Rows each of which is better than all before it; one query, asked twice."""
    x_nd = np.zeros((n, d), np.int8)
    x_nd[:, 0], x_nd[:, 1] = np.arange(n) // 127, np.arange(n) % 127
    key_n = np.random.default_rng(5).permutation(n).astype(np.uint64)
    q_qd = np.zeros((2, d), np.int16)
    q_qd[:, 0], q_qd[:, 1] = 127, 1
    return x_nd, key_n, q_qd


# ── One wait ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("tensor", [True, False])
def test_a_scan_waits_once(tensor):
    rng = np.random.default_rng(1)
    device = Queue(tensor=tensor)
    corpus = a_corpus(rng, (9_000, 3_000), 16)
    queries = some_queries(rng, corpus, 5, 16)
    ops = CupyOps(device=device, verify=False)
    ops.resident.get([part for part, _ in corpus.parts])
    device.log.clear()
    got = ops.topk(corpus, queries, 5, count=False)
    assert got.telemetry["overflows"] == 0
    assert device.log.count("sieve") > 4
    assert device.log.count("download") == 1
    assert device.log[-1] == "download"
    first = device.log.index("sieve")
    assert "upload" not in device.log[first:], "ranges bring nothing with them"
    assert_same(got, Ops().topk(corpus, queries, 5, count=False))


def test_rules_add_one_wait_for_what_a_sample_says():
    rng = np.random.default_rng(2)
    device = Queue()
    corpus = a_corpus(rng, (9_000, 3_000), 16)
    queries = some_queries(rng, corpus, 3, 16, groups=[(InRange("rate", 0, 40, "RATE"),)])
    for way in ("survivors", "bits"):
        ops = CupyOps(device=device, device_costs=FORCED[way], verify=False)
        ops.topk(corpus, queries, 5, count=False)
        device.log.clear()
        got = ops.topk(corpus, queries, 5, count=False)
        assert got.telemetry["rules"] == way
        assert device.log.count("download") == 2
        assert_same(got, Ops().topk(corpus, queries, 5, count=False))


def test_ten_million_rows_are_few_ranges():
    one = fit(1, 10_000_000, 256, 100, 256 << 20, tensor=True)
    many = fit(4_096, 10_000_000, 256, 100, 1 << 30, tensor=True)
    assert len(spans(one, 100, 10_000_000)) <= 6
    assert len(spans(many, 100, 10_000_000)) <= 24
    for k in (1, 10, 100, 500, 1_000):
        for queries in (1, 64, 65, 4_096):
            sizes = fit(queries, 10_000_000, 256, k, 1 << 30, tensor=True)
            assert len(spans(sizes, k, 10_000_000)) <= RANGES_MAX
            # What a range finds on average is at most half of what the buffer holds, where the
            # buffer can be twice as large as k.
            assert (sizes.growth(k) - 1) * k <= max(sizes.capacity / 2, k)


@pytest.mark.parametrize("lengths", [(1,), (70, 0, 33, 1_000), (5_000,)])
def test_ranges_cover_all_rows_once_and_begin_on_words(lengths):
    found = spans(Sizes(3, 4_096, 64, True), 4, *lengths)
    for part, n in enumerate(lengths):
        mine = [(begin, end) for at, begin, end in found if at == part]
        assert [begin for begin, _ in mine[:1]] == [0][: len(mine)]
        assert all(end == begin for (_, end), (begin, _) in pairwise(mine))
        assert sum(end - begin for begin, end in mine) == n
        assert all(begin % 32 == 0 for begin, _ in mine)


# ── What overflows ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("order", ["rising", "falling", "mixed", "last"])
@pytest.mark.parametrize("budget", [12_000, 70_000, 1 << 20])
def test_any_order_of_rows(order, budget):
    """The first ranges, the last, all or none overflow; ties of ranges meet at the bound."""
    n = 5_000
    x_nd, key_n, q_qd = rising(n)
    rng = np.random.default_rng(3)
    place = {
        "rising": np.arange(n),
        "falling": np.arange(n)[::-1],
        "mixed": rng.permutation(n),
        "last": np.r_[np.zeros(n - 700, int), np.arange(700)],
    }[order]
    alive = rng.random(n) < 0.9
    half = n // 2 - 19
    corpus = Corpus(
        tuple(
            (Segment(x_nd[place[part]], key_n[part]), alive[part])
            for part in (slice(0, half), slice(half, n))
        )
    )
    queries = Queries(q_qd, np.arange(2, dtype=np.uint64))
    ops = CupyOps(device=Queue(), memory_bytes=budget, verify=False)
    got = ops.topk(corpus, queries, 10)
    assert (got.telemetry["overflows"] > 0) == (order == "rising" or order == "last")
    assert_same(got, Ops().topk(corpus, queries, 10))


def test_the_last_range_is_asked_first():
    """In rising rows it holds the best: the others find nothing when they are asked again."""
    n = 5_000
    x_nd, key_n, q_qd = rising(n)
    corpus = Corpus(((Segment(x_nd, key_n), None),))
    device = Queue()
    ops = CupyOps(device=device, memory_bytes=70_000, verify=False)
    got = ops.topk(corpus, Queries(q_qd, np.arange(2, dtype=np.uint64)), 10, count=False)
    assert got.telemetry["overflows"] > 4
    assert device.log.count("sieve") <= 20


def test_rows_are_counted_once_though_their_bits_are_made_twice():
    n = 3_000
    x_nd, key_n, q_qd = rising(n)
    value = np.arange(n, dtype=np.int32) % 10
    corpus = Corpus(((Segment(x_nd, key_n, {"v": value}), None),))
    rules = [(InRange("v", 0, 6, "V"),)]
    queries = Queries(q_qd, np.arange(2, dtype=np.uint64), rules)
    ops = CupyOps(device=Queue(), device_costs=FORCED["bits"], memory_bytes=40_000, verify=False)
    got = ops.topk(corpus, queries, 10)
    assert got.telemetry["overflows"] > 0
    assert got.eligible_q.tolist() == [2_100, 2_100]
    assert_same(got, Ops().topk(corpus, queries, 10))


@pytest.mark.parametrize("way", ["bits", "survivors"])
def test_more_ranges_than_counters(monkeypatch, way):
    """Counters begin anew, and what overflowed before that is not forgotten."""
    monkeypatch.setattr(cuda_scan, "RANGES_MAX", 3)
    monkeypatch.setattr(cuda_scan, "_WIDEST_FEW", 128)
    n = 3_000
    x_nd, key_n, q_qd = rising(n)
    value = np.arange(n, dtype=np.int32) % 10
    corpus = Corpus(((Segment(x_nd, key_n, {"v": value}), None),))
    queries = Queries(q_qd, np.arange(2, dtype=np.uint64), [(InRange("v", 2, 9, "V"),)])
    device = Queue()
    ops = CupyOps(device=device, device_costs=FORCED[way], memory_bytes=40_000, verify=False)
    got = ops.topk(corpus, queries, 4, count=False)
    assert got.telemetry["overflows"] > 0
    assert device.log.count("download") > 8
    assert_same(got, Ops().topk(corpus, queries, 4, count=False))


def test_some_queries_overflow_and_some_do_not(monkeypatch, count):
    """Buffers hardly larger than k, ties, floors, rules; every query for itself."""
    monkeypatch.setattr(cuda_scan, "_CAPACITY_FEW", 1)
    rng = np.random.default_rng(4)
    overflows = 0
    for _ in range(count(reduced=30, full=1_500)):
        n, q, k = int(rng.integers(1, 1_500)), int(rng.integers(1, 7)), int(rng.integers(1, 20))
        corpus = a_corpus(rng, (n, int(rng.integers(0, 200))), 4, int(rng.choice([1, 3, 127])))
        if rng.random() < 0.5:  # the first query's best rows last
            segment, alive = corpus.parts[0]
            ranked = np.argsort(segment.x_nd[:, 0], kind="stable")
            scalars = {"rate": segment.scalars["rate"][ranked]}
            better = Segment(segment.x_nd[ranked], segment.key_n[ranked], scalars)
            corpus = Corpus(((better, alive), *corpus.parts[1:]))
        groups = [(), (InRange("rate", 0, int(rng.integers(0, 100)), "RATE"),)]
        queries = some_queries(rng, corpus, q, 4, groups=groups, floor=rng.random() < 0.2, most=300)
        queries.q_qd[0, 1:] = 0
        ops = CupyOps(
            device=NumpyDevice(tensor=bool(rng.random() < 0.7)),
            device_costs=FORCED[("bits", "survivors", "gather")[rng.integers(3)]],
            memory_bytes=int(2 ** rng.uniform(11.5, 17)),
            verify=False,
        )
        got = ops.topk(corpus, queries, k, count=False)
        overflows += int(got.telemetry.get("overflows", 0))
        assert_same(got, Ops().topk(corpus, queries, k, count=False))
    assert overflows > 20


@needs_gxx
def test_overflows_on_the_kernels_themselves(host, monkeypatch):
    monkeypatch.setattr(host, "tensor", True)
    x_nd, key_n, q_qd = rising(1_200)
    corpus = Corpus(((Segment(x_nd, key_n), None),))
    queries = Queries(q_qd, np.arange(2, dtype=np.uint64))
    for few in (True, False):
        monkeypatch.setattr(host, "few", few)
        ops = CupyOps(device=host, memory_bytes=20_000, verify=False)
        got = ops.topk(corpus, queries, 10, count=False)
        assert got.telemetry["overflows"] > 0
        assert_same(got, Ops().topk(corpus, queries, 10, count=False))


def test_arrays_that_go_together_arrive_apart():
    rng = np.random.default_rng(6)
    hosts = [
        rng.integers(0, 99, shape).astype(kind)
        for shape, kind in (
            ((3, 5), np.int8),
            ((0, 4), np.int32),
            ((7,), np.uint64),
            ((), np.int16),
        )
    ]
    device = Queue()
    there = device.upload_together([*hosts, cases.some_keys(rng, 9)[::2]])
    assert device.log == ["upload"]
    for one, other in zip(hosts, there, strict=False):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        np.testing.assert_array_equal(one, other)
        assert other.ctypes.data % 8 == 0


# ── The whole scan ────────────────────────────────────────────────────────────────────────────


@needs_gxx
@pytest.mark.parametrize(
    ("n", "q", "d", "k", "spread", "budget"),
    [
        (1, 1, 1, 1, 127, 1 << 20),
        (199, 3, 37, 10, 127, 1 << 20),
        (700, 2, 16, 37, 0, 1 << 16),
        (1_500, 4, 32, 5, 1, 40_000),
    ],
)
@pytest.mark.parametrize("test", ["threshold", "sieve", "few_8"])
def test_topk_on_the_kernels_is_the_reference(host, monkeypatch, n, q, d, k, spread, budget, test):
    monkeypatch.setattr(host, "tensor", test != "threshold")
    monkeypatch.setattr(host, "few", test == "few_8")
    rng = np.random.default_rng(n)
    x_nd = rng.integers(-spread, spread + 1, (n, d)).astype(np.int8)
    key = np.unique(rng.integers(0, 2**63, n + q + 50, dtype=np.uint64))
    rng.shuffle(key)
    corpus = Corpus(((Segment(x_nd, key[:n]), rng.random(n) < 0.9),))
    queries = Queries(
        q_qd=rng.integers(-16_255, 16_256, (q, d)).astype(np.int16),
        key_q=key[n : n + q],
        groups=[(), Bitmap(rng.random(n) < 0.3)],
        group_q=(np.arange(q) % 2).astype(np.int32),
    )
    host.launches.clear()
    got = CupyOps(device=host, memory_bytes=budget, verify=False).topk(corpus, queries, k)
    expected = Ops().topk(corpus, queries, k)
    assert set(host.launches) == {"norms", "rule_bits", test, "select_best"}
    np.testing.assert_array_equal(got.row_qk, expected.row_qk)
    np.testing.assert_array_equal(got.points_qk, expected.points_qk)
    np.testing.assert_array_equal(got.returned_q, expected.returned_q)
    np.testing.assert_array_equal(got.eligible_q, expected.eligible_q)


@needs_gxx
def test_a_range_in_several_launches_finds_the_same(host, monkeypatch):
    """Where a range has more tiles than a grid takes; each launch appends to what is there."""
    block, tile = sieved(q=7, n=640, d=16, capacity=640)
    expected, active = copied(block), np.arange(7, dtype=np.int32)
    NumpyDevice().sieve(expected, tile, active, 32, 600)
    one_tile = {"TILES_MAX": 1}
    monkeypatch.setattr(kernel_device, "limit", lambda name: one_tile.get(name) or limit(name))
    monkeypatch.setattr(host, "few", False)
    host.launches.clear()
    host.sieve(block, tile, active, 32, 600)
    assert host.launches == ["sieve"] * 5
    assert block.count_q.tolist() == expected.count_q.tolist()
    assert expected.count_q.all()
    for i, many in enumerate(expected.count_q):
        got, want = (sorted(map(tuple, b.found_qc4[i, :many])) for b in (block, expected))
        assert got == want
