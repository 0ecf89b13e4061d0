"""The planner: its arithmetic, its calibration, its choices."""

from __future__ import annotations

import dataclasses
import time

import numpy as np
import pytest

from matchwright.kernels import planner
from matchwright.kernels.ops import Ops
from matchwright.kernels.planner import Costs, Load, gathered
from matchwright.kernels.types import Bitmap, Corpus, Queries, Segment

COSTS = Costs(d=64, scan_row=10e-9, scan_pair=1e-9, gather_row=50e-9, gather_pair=5e-9, query=1e-5)


def test_costs_scale_with_dimensions_and_rows():
    assert COSTS.scan(1_000, 0, 64) == pytest.approx(1e-5)
    assert COSTS.scan(1_000, 10, 128) == pytest.approx(4e-5)
    assert COSTS.gather(1_000, 1, 64) == pytest.approx(6.5e-5)


def test_few_eligible_rows_are_gathered_and_many_scanned():
    loads = [Load(1, 10), Load(1, 500_000), Load(1, 0)] + [Load(1, 400_000)] * 20
    assert gathered(COSTS, loads, 1_000_000, 64) == [True, False, True] + [False] * 20


def test_a_scan_for_one_is_weighed_with_what_it_reads():
    rows, alone = 1_000_000, Load(1, 100_000)
    assert gathered(COSTS, [alone], rows, 64) == [True]
    busy = [Load(1, 900_000)] * 50
    assert gathered(COSTS, [alone, *busy], rows, 64)[0] is False


def test_no_cliff_along_a_sweep():
    """The planned cost never jumps: a step down by a factor of 2 is not dearer than the last."""
    rows, q = 1_000_000, 512
    last = float("inf")
    for step in range(21):
        loads = [Load(1, rows >> step)] * q
        choice = gathered(COSTS, loads, rows, 64)
        assert len(set(choice)) == 1
        gather = q * COSTS.gather(rows >> step, 1, 64)
        scan = COSTS.scan(rows, q, 64)
        cost = gather if choice[0] else scan
        assert cost <= min(gather, scan) * 1.000001
        assert cost <= last * 1.000001
        last = cost


def test_nothing_to_plan():
    assert gathered(COSTS, [], 1_000, 64) == []


def test_calibration_is_quick_kept_and_sensible():
    ops = Ops(threads=1)
    start = time.thread_time()
    costs = planner.calibrated(ops, 48)
    assert time.thread_time() - start < 0.5
    assert planner.calibrated(Ops(), 48) is costs
    assert 0 < costs.scan_pair < 1e-6
    assert 0 < costs.gather_row + costs.gather_pair < 1e-4
    assert ops.costs_for(48) is costs
    assert Ops(costs=COSTS).costs_for(48) is COSTS


def test_the_plan_is_told():
    rng = np.random.default_rng(0)
    n = 20_000
    x_nd = rng.integers(-127, 128, (n, 8)).astype(np.int8)
    corpus = Corpus(((Segment(x_nd, np.arange(n, dtype=np.uint64)), None),))
    few = np.zeros(n, bool)
    few[:5] = True
    queries = Queries(
        rng.integers(-99, 99, (4, 8)).astype(np.int16),
        np.arange(4, dtype=np.uint64),
        [(), Bitmap(few)],
        np.array([0, 1, 0, 1], np.int32),
    )
    costs = dataclasses.replace(COSTS, scan_pair=1e-8)
    told = Ops(costs=costs).topk(corpus, queries, 3).telemetry
    assert told["plan"] == "scan+gather"
    assert (told["scanned_queries"], told["gathered_queries"]) == (2, 2)
    assert Ops(costs=COSTS).topk(corpus, queries, 3, plan="gather").telemetry["plan"] == "gather"
    assert Ops(costs=COSTS).topk(corpus, queries, 3, plan="scan").telemetry["plan"] == "scan"


def test_blocks_without_an_eligible_row_are_skipped():
    rng = np.random.default_rng(1)
    n = 100_000
    x_nd = rng.integers(-127, 128, (n, 8)).astype(np.int8)
    corpus = Corpus(((Segment(x_nd, np.arange(n, dtype=np.uint64)), None),))
    near = np.zeros(n, bool)
    near[3_000:9_000] = True
    q_qd = rng.integers(-99, 99, (300, 8)).astype(np.int16)
    queries = Queries(q_qd, np.arange(300, dtype=np.uint64), [Bitmap(near)])
    ops = Ops(costs=COSTS)
    skipping, scanning = (ops.topk(corpus, queries, 5, plan=plan) for plan in ("skip", "scan"))
    assert (skipping.row_qk == scanning.row_qk).all()
    assert skipping.telemetry["pairs"] * 5 < scanning.telemetry["pairs"]
