"""A device that fails at each of its calls in turn, whatever it was doing: uploading, measuring
itself, searching, for several requests at once. The answers are right; nothing hangs or stays."""

from __future__ import annotations

import gc
import itertools
import threading
import weakref
from functools import partial

import numpy as np
import pytest
from cupy_cases import a_corpus, some_groups, some_queries
from device_fakes import ILLEGAL, INVALID, MEMORY, FailingDevice

from matchwright.kernels import device_planner
from matchwright.kernels.cupy_ops import CupyOps
from matchwright.kernels.device_planner import DeviceCosts
from matchwright.kernels.enduring import EnduringOps
from matchwright.kernels.faults import DeviceFault
from matchwright.kernels.ops import Ops
from matchwright.kernels.planner import Costs
from matchwright.kernels.types import InRange

NAMES = ("row_qk", "points_qk", "returned_q", "eligible_q", "unverified_q")
RULES = (InRange("rate", 0, 50, "RATE"),)
STATUSES = {"lost": ILLEGAL, "failed": INVALID, "memory": MEMORY}


class TimedDevice(FailingDevice):
    """One that the planner measures."""

    timed = True


@pytest.fixture
def small_bench(monkeypatch):
    monkeypatch.setattr(device_planner, "_KNOWN", {})
    monkeypatch.setattr(device_planner, "ROWS_LEAST", 544)
    monkeypatch.setattr(device_planner, "ROWS_MOST", 544)
    monkeypatch.setattr(device_planner.measure, "__kwdefaults__", MEASURE)


MEASURE = {
    **device_planner.measure.__kwdefaults__,
    "seconds_most": 0.0,
    "clock": partial(next, itertools.count()),  # so that the same ways are chosen each time
}


def ops_of(device, **options):
    made = CupyOps(device=device, verify=False, **options)
    cpu = Ops(threads=1, costs=Costs())
    return EnduringOps(made, cpu)


def problem(seed=3):
    rng = np.random.default_rng(seed)
    corpus = a_corpus(rng, (90, 130), 8)
    groups = [*some_groups(rng, corpus), RULES]
    queries = some_queries(rng, corpus, 2 * len(groups), 8, groups=groups)
    queries.group_q[:] = np.arange(queries.q) % len(groups)
    return corpus, queries


def assert_right(got, wanted):
    for name in NAMES:
        np.testing.assert_array_equal(getattr(got, name), getattr(wanted, name), err_msg=name)


@pytest.fixture(scope="module")
def asked():
    corpus, queries = problem()
    return corpus, queries, Ops(threads=1, costs=Costs()).topk(corpus, queries, 5)


def calls_of(work):
    device = TimedDevice()
    ops = ops_of(device)
    device.calls.clear()
    work(ops)
    return len(device.calls)


@pytest.mark.parametrize("status", STATUSES)
def test_while_it_measures_itself(status, asked, small_bench, count):
    """The first search calibrates, and so may the first estimate: both are answered."""
    corpus, queries, wanted = asked
    total = calls_of(lambda ops: ops.topk(corpus, queries, 5))
    assert total > 250, "it was measured"
    for number in range(7, total, count(reduced=67, full=1)):
        device_planner._KNOWN.clear()
        device = TimedDevice()
        ops = ops_of(device)
        device.calls.clear()
        device.fails = {number: STATUSES[status]}
        assert_right(ops.topk(corpus, queries, 5), wanted)
        assert len(device.calls) > number
        assert (ops.health.lost is not None) == (status == "lost")
        if status == "lost":
            assert ops.health.cpu_batches == {"DEVICE_LOST": 1}
        assert ops.scan_seconds(10_000, 5, 8) > 0


@pytest.mark.parametrize("status", STATUSES)
def test_an_estimate_is_the_cpu_s_where_the_device_cannot_be_measured(status, small_bench):
    device = TimedDevice()
    ops = ops_of(device)
    device.fails = STATUSES[status]
    got = ops.scan_seconds(10_000, 5, 8)
    if status == "memory":  # a data sheet's constants
        assert got == DeviceCosts().scan(10_000, 5, 8)
        assert not ops.health.errors
        return
    assert got == ops.cpu.scan_seconds(10_000, 5, 8)
    assert sum(ops.health.errors.values()) == 1
    assert (ops.health.lost is not None) == (status == "lost")
    assert (ops.device_ops is None) == (status == "lost")


@pytest.mark.parametrize("status", STATUSES)
def test_while_rows_are_on_their_way(status, asked, count):
    """An upload ahead that fails is met again when its rows are needed, and told by nobody else."""
    corpus, queries, wanted = asked

    def both(ops):
        loading = ops.load([corpus])
        try:
            loading.wait()
        except DeviceFault:
            assert ops.health.errors == {}
        return ops.topk(corpus, queries, 5)

    device = FailingDevice()
    ops = ops_of(device)
    device.calls.clear()
    both(ops)
    for number in range(0, len(device.calls), count(reduced=5, full=1)):
        device = FailingDevice()
        ops = ops_of(device)
        device.calls.clear()
        device.fails = {number: STATUSES[status]}
        assert_right(both(ops), wanted)
        assert len(device.calls) > number
    device = FailingDevice()
    ops = ops_of(device)
    device.fails = STATUSES[status]
    assert_right(both(ops), wanted)


class Meeting(FailingDevice):
    """Searches of several threads meet in the middle, and one of them fails."""

    def __init__(self, threads):
        super().__init__()
        self.barrier = threading.Barrier(threads)
        self.status, self.meets = None, False
        self._first = threading.Lock()

    def sieve(self, *args):
        if self.meets and not getattr(_HERE, "met", False):
            _HERE.met = True
            self.barrier.wait(60)
            if self._first.acquire(blocking=False):
                raise DeviceFault("status of one of them", self.status)
        super().sieve(*args)


_HERE = threading.local()


@pytest.mark.parametrize("status", STATUSES)
def test_two_requests_at_once_when_it_fails_for_one(status, asked):
    corpus, queries, wanted = asked
    device = Meeting(2)
    ops = ops_of(device)
    assert_right(ops.topk(corpus, queries, 5), wanted)
    device.status, device.meets = STATUSES[status], True
    answers = []
    threads = [
        threading.Thread(target=lambda: answers.append(ops.topk(corpus, queries, 5)), daemon=True)
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert len(answers) == 2
    for got in answers:
        assert_right(got, wanted)
    assert (ops.health.lost is not None) == (status == "lost")
    assert sum(ops.health.errors.values()) == 1


def test_a_lost_device_leaves_nothing_behind(asked):
    """Its rows, buffers and threads go, though the CPU still holds the rows that it had."""
    corpus, queries, wanted = asked
    before = set(threading.enumerate())
    device = FailingDevice()
    ops = ops_of(device)
    ops.load([corpus]).wait()
    kept = weakref.ref(ops.device_ops.resident)
    copy = weakref.ref(ops.device_ops.resident.get([corpus.parts[0][0]])[0].x_nd)
    assert copy() is not None
    device.fails, device.since = ILLEGAL, len(device.calls) + 9
    assert_right(ops.topk(corpus, queries, 5), wanted)
    gc.collect()
    assert ops.health.lost is not None
    assert copy() is None
    assert kept() is None
    for thread in set(threading.enumerate()) - before:
        thread.join(60)
        assert not thread.is_alive(), thread.name
    assert ops.load([corpus]).done


@pytest.mark.parametrize("status", ["failed", "memory"])
def test_failures_that_pass_leave_nothing_behind(status, asked):
    corpus, queries, wanted = asked
    device = FailingDevice()
    ops = ops_of(device)
    ops.topk(corpus, queries, 5)
    resident = ops.device_ops.resident
    size = resident.nbytes
    for number in range(3, 40, 6):
        device.fails = {len(device.calls) + number: STATUSES[status]}
        ops._rests_until = 0.0
        assert_right(ops.topk(corpus, queries, 5), wanted)
        device.fails = None
        ops._rests_until = 0.0
        assert_right(ops.topk(corpus, queries, 5), wanted)
        assert resident.nbytes == size
    assert ops.health.lost is None
