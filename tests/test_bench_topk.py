"""The bench runs, adds up, and says what it lacks; its figures mean nothing at this size."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest

from matchwright.kernels import bench_peers, bench_rules, bench_topk
from matchwright.kernels.ops import Ops

SIZE = dataclasses.replace(bench_topk.QUICK, rows=2_000, queries=6, dimensions=(16,))


@pytest.fixture(scope="module")
def figures():
    return bench_topk.run(size=SIZE)


def test_every_section_has_figures(figures):
    for name in ("bounds", "unfiltered", "sweep", "by k", "ties", "single", "rules", "claims"):
        assert figures[name], name
    assert "passed" not in figures
    json.dumps(figures, allow_nan=False)
    assert {row["what"] for row in figures["unfiltered"]} >= {"numpy", "mask + argpartition"}
    bounds = figures["bounds"][0]
    assert bounds["operations"] == 2 * 2_000 * 6 * 16
    assert bounds["corpus bytes"] == 2_000 * 16


def test_claims_compare_in_the_right_direction(figures):
    for row in figures["claims"]:
        least = "largest" not in row["claim"] and ", of " not in row["claim"]
        least |= row["claim"].endswith("of sgemm")
        if row["claim"] == "one query, times reading the corpus":
            least = False
        reached = row["measured"] >= row["target"] if least else row["measured"] <= row["target"]
        assert row["met"] == reached, row


def test_without_faiss_it_says_so(monkeypatch):
    monkeypatch.setattr(bench_peers.Faiss, "version", staticmethod(lambda: None))
    small = dataclasses.replace(SIZE, rows=500, pass_rates=(1.0, 0.1))
    told = bench_topk.run(size=small)
    assert "not installed" in told["faiss"]
    assert told["beside selectors"] == []
    assert all(row["times FAISS"] is None for row in told["unfiltered"])


def test_peers_find_the_same_rows():
    rng = np.random.default_rng(0)
    x_nd = rng.integers(-127, 128, (40_000, 8)).astype(np.int8)
    q_qd = rng.integers(-99, 99, (3, 8)).astype(np.float32)
    found = bench_peers.mask_and_argpartition(q_qd, x_nd, 10)
    scores = q_qd @ x_nd.T.astype(np.float32)
    best = np.sort(scores, axis=1)[:, -10:]
    assert (np.sort(np.take_along_axis(scores, found, 1), axis=1) == best).all()


def test_rule_sets_are_realistic():
    scalars, sets = bench_rules.columns(3_000)
    assert {len(column) for column in scalars.values()} == {3_000}
    assert all((np.diff(column.start_n) >= 0).all() for column in sets.values())
    groups = bench_rules.rule_sets(20)
    assert len(set(groups)) == 20
    x_nd = np.ones((3_000, 4), np.int8)
    told = bench_rules.rule_figures(
        x_nd, np.ones((20, 4), np.int16), np.arange(20, dtype=np.uint64), Ops(), 5
    )
    assert 0.005 < told[0]["mean pass rate"] < 0.6


def test_the_command_line():
    command = [sys.executable, "-m", "matchwright.kernels.bench_topk", "--quick", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["rows"] == bench_topk.QUICK.rows
