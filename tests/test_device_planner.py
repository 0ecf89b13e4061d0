"""The device's cost model: its arithmetic, that it has no cliff, its calibration."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from cupy_cases import NO_DEVICE

from matchwright.kernels import device_planner
from matchwright.kernels.cuda_device import CudaDevice
from matchwright.kernels.cuda_search import device_costs, sample_spans
from matchwright.kernels.cupy_ops import CupyOps
from matchwright.kernels.device_planner import (
    FORCED,
    ROWS_LEAST,
    ROWS_MOST,
    DeviceCosts,
    DeviceLoad,
    bench_rows,
    calibrated,
    choose,
    judged,
    measure,
    near_share,
    planned_seconds,
    rates,
    seconds,
    work,
)
from matchwright.kernels.faults import DeviceFault
from matchwright.kernels.numpy_device import NumpyDevice
from matchwright.kernels.ops import Ops
from matchwright.kernels.types import Corpus, InRange, Queries, Segment

ON_DEVICE = (pytest.mark.skipif(NO_DEVICE is not None, reason=NO_DEVICE or ""), pytest.mark.gpu)
H100 = DeviceCosts()
ROWS, D, K = 10_000_000, 256, 100


def sweep(queries, groups, rules, k, count, costs=H100, rows=ROWS):
    """Planned seconds at pass rates 1, 1/2, ... 2**-24, and the ways taken."""
    found, ways = [], []
    for step in range(25):
        loads = [DeviceLoad(queries // groups, rules, 2.0**-step)] * groups
        found.append(planned_seconds(costs, loads, rows, k, D, count=count))
        ways.append(set(choose(costs, loads, rows, k, D, count=count)))
    return found, ways


def steps(found):
    return [later / earlier for earlier, later in itertools.pairwise(found)]


# ── No cliff ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("count", [True, False])
@pytest.mark.parametrize("k", [10, 100, 500])
@pytest.mark.parametrize(
    ("queries", "groups"), [(1, 1), (64, 1), (4_096, 1), (4_096, 64), (65_536, 64)]
)
def test_a_sweep_of_the_pass_rate_meets_no_cliff(queries, groups, k, count):
    """No step of a factor of 2 makes the planned time more than 1.3 times as long."""
    found, _ = sweep(queries, groups, 6, k, count)
    assert max(steps(found)) <= 1.3
    assert max(found) <= 2.5 * found[0]


@pytest.mark.parametrize("queries", [8, 64, 512, 4_096])
@pytest.mark.parametrize("rules", [1, 2, 6, 12])
@pytest.mark.parametrize("k", [10, 100, 500])
def test_with_a_rule_set_for_each_query_there_is_no_cliff_either(queries, rules, k):
    """Then rules for all rows cost more than the scan; judged in it, they cost less and less."""
    found, ways = sweep(queries, queries, rules, k, count=False)
    assert max(steps(found)) <= 1.3
    assert max(found) <= 4.0 * found[0]
    assert ways[0] == {"survivors"}


def test_judging_all_rows_takes_what_it_takes():
    assert work(1.0, 1, 1e-9) == pytest.approx(1.0)
    assert work(1.0, 6, 1.0) == pytest.approx(6.0)
    assert work(0.0, 6, 0.5) == 0.0
    assert work(0.001, 6, 0.01) < 0.1
    assert judged(6, 1.0) == 6.0
    assert 1.0 < judged(6, 1e-9) < 2.1
    assert judged(0, 0.5) == 0.0


def test_each_way_has_its_place():
    _, ways = sweep(1, 1, 6, K, count=False)
    assert ways[0] == {"survivors"}
    assert ways[-1] == {"gather"}
    _, counted = sweep(1, 1, 6, K, count=True)
    assert counted[0] == {"bits"}
    assert counted[-1] == {"gather"}
    # Many queries share the reading of the rows, so one group leaves it only for far fewer rows.
    _, many = sweep(4_096, 64, 6, K, count=True)
    assert many[3] == {"bits"}


@pytest.mark.parametrize("way", FORCED)
def test_ways_can_be_forced(way):
    loads = [DeviceLoad(3, 2, 0.4), DeviceLoad(1, 1, 1e-6)]
    assert choose(FORCED[way], loads, 5_000, K, D, count=False) == [way] * 2


def test_the_chosen_ways_are_no_dearer_than_any_one_way(count):
    rng = np.random.default_rng(1)
    for _ in range(count(reduced=300, full=30_000)):
        many = int(rng.integers(1, 9))
        loads = [
            DeviceLoad(int(rng.integers(1, 2_000)), int(rng.integers(0, 12)), float(rate))
            for rate in 2.0 ** -rng.uniform(0, 20, many)
        ]
        k, counted = int(rng.integers(1, 1_000)), bool(rng.random() < 0.5)
        planned = planned_seconds(H100, loads, ROWS, k, D, count=counted)
        for way in ("bits", "gather") if counted else ("survivors", "bits", "gather"):
            alone = sum(seconds(H100, way, one, ROWS, k, D) for one in loads)
            alone += 0.0 if way == "gather" else H100.read(ROWS, D)
            assert planned <= alone * 1.000001


def test_costs_scale():
    assert H100.scan(ROWS, 10, 512) - H100.scan(ROWS, 0, 512) == pytest.approx(
        20 * ROWS * H100.scan_pair
    )
    assert H100.read(0, D) == pytest.approx(H100.call + H100.launch)
    assert near_share(1_000, 1.0, 10) == 1.0  # the first range alone holds them
    assert near_share(ROWS, 1e-9, 10) == 1.0
    assert 4_096 + K * 16 < ROWS * near_share(ROWS, 1.0, K) < 4_096 + K * 20


def test_nothing_to_plan():
    assert choose(H100, [], ROWS, K, D, count=True) == []


def test_a_rate_is_never_nothing():
    share = rates(np.array([0, 500, 1_000]), 1_000)
    assert (share > 0).all()
    assert (share < 1).all()
    assert share[1] == pytest.approx(0.5)


def test_a_sample_is_spread_over_all_rows():
    def segment(n):
        return Segment(np.zeros((n, 1), np.int8), np.arange(n, dtype=np.uint64)), None

    spans = sample_spans(Corpus((segment(1_000_000), segment(0), segment(70))))
    assert all(begin % 32 == 0 for _, begin, _ in spans)
    assert {part for part, _, _ in spans} == {0, 2}
    assert sum(end - begin for _, begin, end in spans) <= 18_000
    assert max(end for part, _, end in spans if part == 0) > 930_000
    assert sample_spans(Corpus(())) == []


# ── Calibration ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "made",
    [
        NumpyDevice,
        pytest.param(
            CudaDevice,
            marks=(
                pytest.mark.skipif(NO_DEVICE is not None, reason=NO_DEVICE or ""),
                pytest.mark.gpu,
            ),
        ),
    ],
)
def test_what_is_measured_is_positive(made):
    device = made(tensor=True)
    rows = 1 << 17 if isinstance(device, CudaDevice) else 2_048
    costs = measure(device, 24, 64 << 20, rows=rows, seconds_most=0.5)
    assert costs.d == 24
    for name in DeviceCosts.__dataclass_fields__:
        assert getattr(costs, name) > 0, name


class Counted(NumpyDevice):
    """Its clock shows its work, in units that the test knows."""

    def __init__(self):
        super().__init__(tensor=True)
        self.time = 0.0

    def clock(self):
        return self.time

    def download(self, array):
        self.time += 1e-2
        return super().download(array)

    def sieve(self, block, tile, active_a, begin, end):
        vetoes = 0.0 if tile.rules is None else 5e-8
        self.time += 1e-3 + (end - begin) * (1e-6 + len(active_a) * (1e-8 + vetoes))
        super().sieve(block, tile, active_a, begin, end)

    def rule_bits(self, program, columns, table, alive_w, rows, eligible_g, unverified_g):
        self.time += rows.rows.size * len(program.program.groups) * 1e-7
        return super().rule_bits(program, columns, table, alive_w, rows, eligible_g, unverified_g)


def test_the_constants_are_found():
    device = Counted()
    costs = measure(device, 8, 1 << 30, rows=4_096, clock=device.clock)
    assert costs.scan_pair == pytest.approx(1e-8, rel=0.05)
    assert costs.scan_row == pytest.approx(1e-6, rel=0.1)
    assert costs.call == pytest.approx(1e-2, rel=0.1)
    assert costs.launch == pytest.approx(1e-3, rel=0.1)
    assert costs.rule_row == pytest.approx(1e-7, rel=0.01)
    assert costs.rule_pair == pytest.approx(5e-8, rel=0.1)


def test_calibration_ends_in_time():
    """Repeats stop at the limit; every piece of work is done twice at least, once to warm up."""

    class Slow(Counted):
        def sieve(self, block, tile, active_a, begin, end):
            super().sieve(block, tile, active_a, begin, end)
            self.time += 10.0

    device = Slow()
    measure(device, 8, 1 << 30, rows=1_024, clock=device.clock, seconds_most=2.0)
    slow = device.time
    device.time = 0.0
    measure(device, 8, 1 << 30, rows=1_024, clock=device.clock, seconds_most=1e9)
    assert slow < device.time / 2.5


def test_measured_once_in_a_process(monkeypatch):
    monkeypatch.setattr(device_planner, "_KNOWN", {})
    monkeypatch.setattr(device_planner, "measure", lambda device, d, memory, rows: DeviceCosts(d=d))
    device = NumpyDevice()
    assert calibrated(device, 31, 1 << 20) is calibrated(NumpyDevice(), 31, 1 << 20)
    device.timed = True
    ops = CupyOps(device=device, verify=False)
    assert device_costs(ops, 31) is calibrated(device, 31, 1 << 20)
    given = CupyOps(device=device, verify=False, device_costs=H100)
    assert device_costs(given, 31) is H100
    assert given.scan_seconds(1_000, 2, 256) == H100.scan(1_000, 2, 256)
    assert Ops(threads=2).scan_seconds(1_000, 2, 8) > 0


def test_rows_to_measure_on_follow_from_the_memory():
    assert bench_rows(384, 256 << 20) == ROWS_MOST == 131_072
    for d in (16, 384, 1_040):
        rows = bench_rows(d, 64 << 20)
        assert rows * (d + d // 2 + 20) <= 32 << 20
        assert rows % 32 == 0
        assert bench_rows(d, 1) == ROWS_LEAST


class Crowded(NumpyDevice):
    """A device's times, and so many bytes for an array."""

    timed = True
    most = 1 << 40

    def _room(self, array):
        if array.nbytes > self.most:
            raise DeviceFault("cudaErrorMemoryAllocation: out of memory", 2)
        return array

    def upload(self, host):
        return self._room(super().upload(host))

    def empty(self, shape, dtype):
        return self._room(super().empty(shape, dtype))


def test_where_there_is_no_room_to_measure_a_data_sheet_is_believed(monkeypatch):
    """A device that is all but full of rows answers all the same, and is not found short."""
    monkeypatch.setattr(device_planner, "_KNOWN", {})
    device = Crowded(tensor=True)
    device.most = 1 << 15
    segment = Segment(
        np.random.default_rng(0).integers(-9, 9, (900, 8)).astype(np.int8),
        np.arange(900, dtype=np.uint64),
        {"v": np.arange(900, dtype=np.int32)},
    )
    corpus = Corpus(((segment, None),))
    rules = (InRange("v", 0, 400, "V"),)
    queries = Queries(np.ones((2, 8), np.int16), np.arange(2, dtype=np.uint64), [rules])
    ops = CupyOps(device=device, verify=False, memory_bytes=1 << 20)
    got = ops.topk(corpus, queries, 5)
    np.testing.assert_array_equal(got.row_qk, Ops().topk(corpus, queries, 5).row_qk)
    assert got.telemetry["device"] == "emulated"
    assert device_costs(ops, 8) == DeviceCosts()
    assert ops.scan_seconds(1_000, 2, 8) == DeviceCosts().scan(1_000, 2, 8)


def test_another_fault_while_measuring_is_told(monkeypatch):
    monkeypatch.setattr(device_planner, "_KNOWN", {})
    device = Crowded(tensor=True)
    monkeypatch.setattr(device, "norms", _fails)
    for _ in range(2):
        with pytest.raises(DeviceFault, match="illegal"):
            calibrated(device, 8, 1 << 20)


def _fails(*_):
    raise DeviceFault("cudaErrorIllegalAddress: an illegal memory access", 700)
