"""A device that is lost in service: the CPU answers at once and from then on, and says so."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest
from cupy_cases import a_corpus, some_groups, some_queries
from device_fakes import ILLEGAL, INVALID, MEMORY, CudaError, FailingDevice

from matchwright.kernels import enduring
from matchwright.kernels.compile import CompileError
from matchwright.kernels.cupy_ops import CupyOps
from matchwright.kernels.device import DeviceError, LaunchRefused
from matchwright.kernels.device_planner import FORCED
from matchwright.kernels.enduring import FAILURES_MOST, REST_S, SPLITS_MOST, EnduringOps
from matchwright.kernels.faults import DeviceFault, Fault, fault_of
from matchwright.kernels.ops import Ops
from matchwright.kernels.planner import Costs
from matchwright.kernels.resident import resident_bytes
from matchwright.kernels.types import InRange

NAMES = ("row_qk", "points_qk", "returned_q", "eligible_q", "unverified_q")
RULES = (InRange("rate", 0, 50, "RATE"),)


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def enduring_ops(device, clock=None, way=None, **options):
    costs = None if way is None else FORCED[way]
    ops = CupyOps(device=device, verify=False, device_costs=costs, **options)
    cpu = Ops(threads=1, costs=Costs())
    return EnduringOps(ops, cpu, clock=clock or Clock())


def problem(seed=1, queries=9, sizes=(90, 130)):
    rng = np.random.default_rng(seed)
    corpus = a_corpus(rng, sizes, 8)
    groups = [*some_groups(rng, corpus), RULES]
    return corpus, some_queries(rng, corpus, queries, 8, groups=groups)


def assert_right(got, corpus, queries, k=5, count=True):
    wanted = Ops(threads=1, costs=Costs()).topk(corpus, queries, k, count=count)
    for name in NAMES:
        np.testing.assert_array_equal(getattr(got, name), getattr(wanted, name), err_msg=name)


def calls_of(way, **options):
    """What a search asks of the device, in order."""
    corpus, queries = problem()
    device = FailingDevice()
    ops = enduring_ops(device, way=way, **options)
    device.calls.clear()
    ops.topk(corpus, queries, 5, count=way != "survivors")
    return list(device.calls)


# ── Every place at which it can fail ──────────────────────────────────────────────────────────


@pytest.mark.parametrize("way", FORCED)
@pytest.mark.parametrize("status", [ILLEGAL, INVALID, MEMORY])
def test_a_failure_at_any_call_is_answered(way, status, count):
    corpus, queries = problem()
    counted = way != "survivors"
    calls = calls_of(way)
    step = count(reduced=3, full=1)
    seen = set()
    for number in range(0, len(calls), step):
        device = FailingDevice()
        ops = enduring_ops(device, way=way)
        device.calls.clear()
        device.fails = {number: status}
        got = ops.topk(corpus, queries, 5, count=counted)
        assert_right(got, corpus, queries, count=counted)
        assert len(device.calls) > number, "the failure was met"
        seen.add(calls[number])
        lost = status == ILLEGAL
        assert (ops.health.lost is not None) == lost
        assert ops.health.on_device is not lost
        # The next one is right, whoever answers it.
        again = ops.topk(corpus, queries, 5, count=counted)
        assert_right(again, corpus, queries, count=counted)
        answered_by_cpu = "gpu" in again.telemetry["device"]
        assert answered_by_cpu == lost
    assert {"upload", "sieve", "select", "download", "rule_bits"} <= seen or step > 1


def test_a_device_that_is_lost_stays_lost_and_is_left_alone():
    corpus, queries = problem()
    device = FailingDevice()
    ops = enduring_ops(device)
    told = []
    ops.health.listeners.append(lambda health: told.append(health.device))
    assert ops.name == "cupy"
    device.fails, device.since = ILLEGAL, len(device.calls) + 5
    first = ops.topk(corpus, queries, 5)
    assert first.telemetry["device"].startswith("numpy (gpu lost: DeviceFault: status 700")
    device.fails = None  # even if it came back: its context is gone
    calls = len(device.calls)
    second = ops.topk(corpus, queries, 5)
    assert second.telemetry["device"] == first.telemetry["device"] == ops.health.device
    assert len(device.calls) == calls
    assert ops.name == "numpy"
    assert ops.health.cpu_batches == {"DEVICE_LOST": 1, "LOST": 1}
    assert ops.health.errors == {"DEVICE_LOST": 1}
    assert told[-1] == ops.health.device
    assert_right(second, corpus, queries)


def test_the_small_calls_fall_back_too():
    rng = np.random.default_rng(2)
    x_nd = rng.integers(-127, 128, (5_000, 16), dtype=np.int8)
    q_d = rng.integers(-16_255, 16_256, 16).astype(np.int16)
    corpus, _ = problem()
    for status, lost in ((ILLEGAL, True), (INVALID, False), (MEMORY, False)):
        device = FailingDevice()
        ops = enduring_ops(device)
        device.fails = status
        np.testing.assert_array_equal(ops.points(x_nd, q_d), Ops().points(x_nd, q_d))
        parts = ops.contributions(x_nd, q_d, (0, 5, 16))
        np.testing.assert_array_equal(parts, Ops().contributions(x_nd, q_d, (0, 5, 16)))
        assert ops.count(corpus, RULES) == Ops().count(corpus, RULES)
        assert (ops.health.lost is not None) == (lost or status == INVALID)  # three in a row
        assert sum(ops.health.cpu_batches.values()) == 3


def test_a_counter_that_runs_wild_loses_the_device():
    class Wild(FailingDevice):
        def select(self, block, active_a):
            block.count_q[active_a] = 1 << 20

    corpus, queries = problem()
    ops = enduring_ops(Wild())
    assert_right(ops.topk(corpus, queries, 5), corpus, queries)
    assert "counted more than" in ops.health.lost


# ── Out of memory ─────────────────────────────────────────────────────────────────────────────


class Small(FailingDevice):
    """Has room for so many queries at a time."""

    def __init__(self, most):
        super().__init__()
        self.most = most

    def empty(self, shape, dtype):
        if len(shape) == 3 and shape[0] > self.most:
            raise DeviceFault("cudaErrorMemoryAllocation: out of memory", MEMORY)
        return super().empty(shape, dtype)


@pytest.mark.parametrize("most", [1, 2, 4, 8, 100])
def test_too_large_a_batch_is_halved(most):
    corpus, queries = problem(queries=32)
    device = Small(most)
    ops = enduring_ops(device)
    got = ops.topk(corpus, queries, 5)
    assert_right(got, corpus, queries)
    assert ops.health.lost is None
    # 32 queries in five groups of rules and two bitmaps: an eighth is four of them.
    assert (ops.health.splits == 0) == (most == 100)
    assert ops.health.splits <= 2**SPLITS_MOST - 1
    assert (
        device.released
        == ops.health.splits + ops.health.errors["OUT_OF_MEMORY"] - ops.health.splits
    )
    if most == 1:
        assert ops.health.cpu_batches
        assert "numpy (gpu: " in got.telemetry["device"]
    if most >= 4:
        assert not ops.health.cpu_batches
        assert got.telemetry["device"] == "emulated"


def test_after_a_piece_that_did_not_fit_the_device_rests():
    corpus, queries = problem(queries=1)
    clock, device = Clock(), Small(0)
    ops = enduring_ops(device, clock)
    first = ops.topk(corpus, queries, 5)
    assert first.telemetry["device"] == "numpy (gpu: out of memory for this batch)"
    calls = len(device.calls)
    clock.now += REST_S / 2
    second = ops.topk(corpus, queries, 5)
    assert second.telemetry["device"] == "numpy (gpu: rests after a lack of memory)"
    assert len(device.calls) == calls
    device.most = 100
    clock.now += REST_S
    third = ops.topk(corpus, queries, 5)
    assert third.telemetry["device"] == "emulated"
    for got in (first, second, third):
        assert_right(got, corpus, queries)
    assert ops.health.cpu_batches == {"OUT_OF_MEMORY": 1, "RESTING": 1}


def test_a_failed_call_is_retried_nowhere_and_three_in_a_row_lose_the_device():
    corpus, queries = problem()
    device = FailingDevice()
    ops = enduring_ops(device)
    ops.topk(corpus, queries, 5)
    for turn in range(FAILURES_MOST):
        assert ops.health.lost is None, turn
        device.fails = {len(device.calls) + 3: INVALID}
        assert_right(ops.topk(corpus, queries, 5), corpus, queries)
    assert ops.health.lost is not None
    assert ops.health.errors == {"CALL_FAILED": FAILURES_MOST}


def test_a_success_between_failures_forgives_them():
    corpus, queries = problem()
    device = FailingDevice()
    ops = enduring_ops(device)
    for _ in range(2 * FAILURES_MOST):
        device.fails = {len(device.calls) + 3: INVALID}
        ops.topk(corpus, queries, 5)
        device.fails = None
        ops.topk(corpus, queries, 5)
    assert ops.health.lost is None


def test_rows_that_do_not_fit_are_the_cpu_s():
    corpus, queries = problem()
    ops = enduring_ops(FailingDevice(), corpus_bytes=100)
    got = ops.topk(corpus, queries, 5)
    assert got.telemetry["device"] == "numpy (gpu: the rows do not fit its memory)"
    assert_right(got, corpus, queries)
    assert ops.load([corpus]).done


def test_rows_that_fit_one_by_one_alone_are_not_loaded_ahead_together():
    one, other = (problem(seed=seed)[0] for seed in (1, 2))
    size = sum(resident_bytes(segment) for segment, _ in one.parts)
    ops = enduring_ops(FailingDevice(), corpus_bytes=size * 3 // 2)
    ops.load([one, other]).wait()
    assert ops.device_ops.resident.nbytes <= size * 3 // 2
    ops.load([one]).wait()
    assert ops.device_ops.resident.nbytes == size


# ── Whose error it is ─────────────────────────────────────────────────────────────────────────


def test_a_caller_s_errors_pass_through():
    corpus, queries = problem()
    ops = enduring_ops(FailingDevice())
    with pytest.raises(ValueError, match="k is 0"):
        ops.topk(corpus, queries, 0)
    missing = some_queries(
        np.random.default_rng(1), corpus, 2, 8, groups=[(InRange("no", 0, 1, "V"),)]
    )
    with pytest.raises(KeyError, match="no column 'no'"):
        ops.topk(corpus, missing, 3)
    with pytest.raises(KeyError, match="no column 'no'"):
        ops.count(corpus, missing.groups[0])
    assert ops.health.lost is None
    assert not ops.health.errors


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (CudaError(2), Fault.MEMORY),
        (MemoryError("host"), Fault.MEMORY),
        (CudaError(1), Fault.CALL),
        (CudaError(701), Fault.CALL),
        (CudaError(700), Fault.LOST),
        (CudaError(719), Fault.LOST),
        (CudaError(214), Fault.LOST),
        (CudaError(999), Fault.LOST),
        (CudaError(None), Fault.LOST),
        (LaunchRefused("k is 0"), Fault.CALL),
        (CompileError("no"), Fault.LOST),
        (DeviceError("counted"), Fault.LOST),
        (ValueError("k"), None),
        (KeyError("column"), None),
        (RuntimeError("a defect"), None),
    ],
)
def test_what_an_error_means(error, fault):
    assert fault_of(error) is fault


def test_callers_on_many_threads_all_get_answers_while_it_is_lost():
    corpus, queries = problem(queries=6)
    device = FailingDevice()
    ops = enduring_ops(device)
    ops.topk(corpus, queries, 5)
    device.fails, device.since = ILLEGAL, len(device.calls) + 40
    answers = []

    def ask():
        answers.extend(ops.topk(corpus, queries, 5) for _ in range(5))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 20
    for got in answers:
        assert_right(got, corpus, queries)
    assert ops.health.errors["DEVICE_LOST"] >= 1
    assert ops.device_ops is None


def test_who_answered_is_told_in_one_line():
    corpus, queries = problem(queries=1)
    clock, device = Clock(), Small(100)
    ops = enduring_ops(device, clock)
    ops.topk(corpus, queries, 5)
    assert ops.health.told == "emulated"
    device.most = 0
    for _ in range(3):
        ops.topk(corpus, queries, 5)
    assert ops.health.told == ("emulated; 3 of 4 calls by the CPU: OUT_OF_MEMORY 1, RESTING 2")
    assert Ops().health.told == "numpy"


def test_joined_answers_name_both_devices():
    corpus, queries = problem(queries=8)
    whole = Ops(costs=Costs()).topk(corpus, queries, 5)
    halves = [
        Ops(costs=Costs()).topk(corpus, enduring._some(queries, span), 5)
        for span in (slice(0, 3), slice(3, None))
    ]
    first = replace(halves[0], telemetry={**halves[0].telemetry, "device": "cuda"})
    got = enduring._joined(first, halves[1])
    assert got.telemetry["device"] == "cuda+numpy"
    assert got.telemetry["pairs"] == sum(one.telemetry["pairs"] for one in halves)
    for name in NAMES:
        np.testing.assert_array_equal(getattr(got, name), getattr(whole, name))
