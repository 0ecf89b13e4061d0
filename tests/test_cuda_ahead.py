"""The host plans the next block's rules while the device scans: in which order, and what becomes of
errors; and a block's rules are asked in parts without being compiled again."""

from __future__ import annotations

import numpy as np
import pytest
from cupy_cases import a_corpus, some_queries
from test_cuda_ranges import Queue
from test_cupy_ops import assert_same

from matchwright.kernels import cuda_scan, cuda_search
from matchwright.kernels.ahead import Ahead
from matchwright.kernels.cupy_ops import CupyOps
from matchwright.kernels.device_planner import FORCED, DeviceCosts
from matchwright.kernels.enduring import EnduringOps
from matchwright.kernels.numpy_device import NumpyDevice
from matchwright.kernels.ops import Ops
from matchwright.kernels.rule_program import compile_program
from matchwright.kernels.types import Bitmap, InRange

QUERIES, BLOCK, K = 10, 3, 9


class Broken(RuntimeError):
    """What the planning of a block meets."""


@pytest.fixture
def planned(monkeypatch):
    """(device, ops by costs, corpus, queries): each query has a rule of its own; blocks of three.

    ``device.fails_at`` says which plan fails.
    """
    monkeypatch.setitem(cuda_scan._WIDEST, "queries", BLOCK)
    rng = np.random.default_rng(1)
    device = Queue()
    device.plans, device.fails_at = 0, None

    def plan(groups):
        device.log.append("plan")
        device.plans += 1
        if device.plans - 1 == device.fails_at:
            raise Broken("no such rule")
        return compile_program(groups)

    monkeypatch.setattr(cuda_search, "compile_program", plan)
    corpus = a_corpus(rng, (900, 300), 8)
    groups = [(InRange("rate", low, low + 60, "RATE"),) for low in range(QUERIES)]
    queries = some_queries(rng, corpus, QUERIES, 8, groups=groups)
    queries.group_q[:] = np.arange(QUERIES)

    def ops(costs):
        made = CupyOps(device=device, device_costs=costs, verify=False)
        made.topk(corpus, queries, K, count=False)  # everything is resident
        device.log.clear()
        device.plans = 0
        return made

    return device, ops, corpus, queries


def blocks(log):
    """What happens from one block's first scan to the next one's, uploads left out."""
    told = [what for what in log if what != "upload"]
    return [what for at, what in enumerate(told) if at == 0 or what != told[at - 1]]


@pytest.mark.parametrize("way", ["survivors", "bits"])
def test_the_next_block_is_planned_before_the_host_waits(planned, way):
    device, ops, corpus, queries = planned
    made = ops(FORCED[way])
    got = made.topk(corpus, queries, K, count=False)
    assert got.telemetry["rules"] == way
    # A sample's counts are waited for; then all ranges are queued; then the next plan; then a wait.
    between = ["download", "sieve", "plan"]
    assert blocks(device.log) == ["plan", *between * 3, "download", "sieve", "download"]
    assert device.plans == 4, "each block once"
    assert_same(got, Ops().topk(corpus, queries, K, count=False))


def test_the_next_block_is_planned_before_counters_are_read(planned, monkeypatch):
    device, ops, corpus, queries = planned
    monkeypatch.setattr(cuda_scan, "RANGES_MAX", 2)
    monkeypatch.setattr(cuda_scan, "_WIDEST_FEW", 128)
    got = ops(FORCED["survivors"]).topk(corpus, queries, K, count=False)
    first = blocks(device.log)[:8]
    assert first == [
        *("plan", "download", "sieve", "plan", "download", "sieve", "download"),
        "sieve",
    ]
    assert device.plans == 4
    assert_same(got, Ops().topk(corpus, queries, K, count=False))


def test_an_error_waits_until_the_device_has_done_its_work(planned):
    """The third block's plan fails while the second is scanned: that scan is read first."""
    device, ops, corpus, queries = planned
    made = ops(FORCED["survivors"])
    device.fails_at = 2
    with pytest.raises(Broken, match="no such rule"):
        made.topk(corpus, queries, K, count=False)
    assert device.plans == 3, "nothing is planned twice, nor the fourth block"
    assert blocks(device.log)[-3:] == ["sieve", "plan", "download"]
    device.fails_at = None
    device.log.clear()
    got = made.topk(corpus, queries, K, count=False)
    assert_same(got, Ops().topk(corpus, queries, K, count=False))


def test_the_first_plan_fails_before_anything_is_queued(planned):
    device, ops, corpus, queries = planned
    made = ops(FORCED["survivors"])
    device.fails_at = 0
    with pytest.raises(Broken):
        made.topk(corpus, queries, K, count=False)
    assert blocks(device.log) == ["plan"]


def test_a_fault_of_the_device_comes_before_an_error_of_the_plan(planned, monkeypatch):
    """Both at once: the scan that is waited for is older."""
    device, ops, corpus, queries = planned
    made = ops(FORCED["survivors"])
    device.fails_at = 1
    waits = []

    def download(array):
        waits.append(array)
        if len(waits) == 2:  # the sample's, then the first block's
            raise MemoryError("lost")
        return np.array(array)

    monkeypatch.setattr(device, "download", download)
    with pytest.raises(MemoryError, match="lost"):
        made.topk(corpus, queries, K, count=False)


def test_callers_are_told_their_own_errors_though_they_come_late(planned):
    """An error in the rules of a later block is the caller's, and costs no device."""
    device, ops, corpus, queries = planned
    enduring = EnduringOps(ops(FORCED["survivors"]), Ops())
    device.fails_at = 1
    with pytest.raises(Broken):
        enduring.topk(corpus, queries, K, count=False)
    assert enduring.health.on_device
    assert enduring.health.lost is None


def test_blocks_under_bitmaps_are_not_worked_out_ahead(planned):
    """Their bits are long: one block's at a time, as the budget has it."""
    device, ops, corpus, queries = planned
    made = ops(FORCED["survivors"])
    rng = np.random.default_rng(2)
    for g in (1, 2, 5, 6, 7, 8):
        queries.groups[g] = Bitmap(rng.random(corpus.n) < 0.5)
    told = []
    eligible = made.eligible

    def noted(corpus, group):
        told.append(len(device.log))
        device.log.append("bits")
        return eligible(corpus, group)

    made.eligible = noted
    got = made.topk(corpus, queries, K, count=False)
    assert_same(got, Ops().topk(corpus, queries, K, count=False))
    order = blocks(device.log)
    assert order[-4:] == ["download", "bits", "sieve", "download"], order


# ── Once, and errors kept ─────────────────────────────────────────────────────────────────────


def test_work_is_done_once():
    done = []
    for early in (True, False):
        ahead = Ahead(lambda: done.append(1) or len(done))
        if early:
            ahead.start()
            ahead.start()
        assert ahead.outcome() == ahead.outcome() == len(done)
    assert len(done) == 2


def test_an_error_is_kept():
    def fail():
        raise Broken("kept")

    ahead = Ahead(fail)
    ahead.start()
    for _ in range(2):
        with pytest.raises(Broken, match="kept"):
            ahead.outcome()


def test_an_interrupt_is_not():
    """Whoever interrupts wants it to end now."""

    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Ahead(stop).start()


# ── One program for all ways ──────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("count", [True, False])
def test_groups_are_asked_in_several_ways_from_one_program(monkeypatch, count):
    """Some of a block's groups by bits, some as survivors, some gathered: compiled once."""
    rng = np.random.default_rng(3)
    corpus = a_corpus(rng, (3_000, 500), 8)
    groups = [(InRange("rate", 0, top, "RATE"),) for top in (0, 2, 90, 97)]
    groups += [(InRange("rate", 5, 70, "RATE"), InRange("rate", 0, 60 + i, "R")) for i in range(3)]
    queries = some_queries(rng, corpus, 30, 8, groups=groups)
    compiled = []

    def counted(some):
        compiled.append(len(some))
        return compile_program(some)

    def choose(costs, loads, rows, k, d, *, count):
        ways = ["bits", "gather"] if count else ["survivors", "bits", "gather"]
        return [ways[g % len(ways)] for g in range(loads.rate.size)]

    monkeypatch.setattr(cuda_search, "compile_program", counted)
    monkeypatch.setattr(cuda_search, "choose", choose)
    ops = CupyOps(device=NumpyDevice(tensor=True), device_costs=DeviceCosts(), verify=False)
    got = ops.topk(corpus, queries, 9, count=count)
    assert_same(got, Ops().topk(corpus, queries, 9, count=count))
    assert got.telemetry["rules"] == ("bits+gather" if count else "bits+gather+survivors")
    assert compiled == [len(groups)]
