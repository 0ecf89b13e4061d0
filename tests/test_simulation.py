"""The simulated marketplace is the one on the page, and shows what training recovers."""

from __future__ import annotations

import importlib.util
import itertools
import sys

import numpy as np
import polars as pl
import pytest
from training_cases import SPLIT, logged_of, market_frame

from matchwright.engine.rerank import simulate
from matchwright.engine.rerank.bias import Method
from matchwright.engine.rerank.decisions_read import read
from matchwright.engine.rerank.train import Settings

pytest.importorskip("lightgbm")


def test_a_seed_names_a_marketplace():
    one, same, other = (simulate.simulate(seed, 50) for seed in (1, 1, 2))
    assert one.frame.equals(same.frame)
    np.testing.assert_array_equal(one.rho, same.rho)
    assert not one.frame.equals(other.frame)


def test_what_is_logged_is_read_without_a_refusal(tmp_path):
    made = simulate.simulate(3, 200)
    made.frame.write_parquet(tmp_path / "a.parquet")
    logged = read([tmp_path / "a.parquet"])
    assert logged.refused == {}
    assert logged.day_d.size == 200
    np.testing.assert_array_equal(logged.f_nf, made.f_nf)
    np.testing.assert_array_equal(logged.first_rank, made.first_rank)
    assert not {"rho", "wanted", "examined"} & set(made.frame.columns)


def test_the_page_says_what_is_simulated(repo_root):
    page = (repo_root / "docs" / "simulation.md").read_text("utf-8")
    for name in simulate.FEATURES:
        assert f"| `{name}` |" in page
    assert f"`M = {simulate.LISTED}`" in page
    assert f"`eta = {simulate.ETA:g}`" in page
    assert "Days 0..79 are for training, 80..99 for judging" in page
    assert (simulate.SPLIT, simulate.DAYS) == (80, 100)


def test_views_follow_examination_trust_and_wishes(count):
    made = simulate.simulate(4, count(reduced=3_000, full=30_000))
    viewed = made.frame["viewed_at"].is_not_null().to_numpy().reshape(-1, simulate.LISTED)
    rho = made.rho.reshape(-1, simulate.LISTED)
    place = np.arange(1, simulate.LISTED + 1)
    wanted = (rho * 0.95 + (1 - rho) * (0.05 + 0.15 / place)) / place
    error = np.sqrt((wanted * (1 - wanted)).sum(axis=0)) / len(rho)
    assert (np.abs(viewed.mean(axis=0) - wanted.mean(axis=0)) < 5 * error).all()
    steps = [f"{name}_at" for name in ("viewed", "invited", "replied", "hired")]
    happened = made.frame.select(pl.col(name).is_not_null() for name in steps)
    for before, after in itertools.pairwise(steps):
        assert not (happened[after] & ~happened[before]).any()
        assert 0 < happened[after].sum() < happened[before].sum()


def test_a_tenth_plays_swaps_and_half_of_those_look_different():
    made = simulate.simulate(5, 4_000)
    by = made.frame.group_by("decision_id").agg(
        pl.col("explored").is_not_null().sum().alias("marked"),
        (pl.col("position") != pl.col("first_rank")).sum().alias("moved"),
        pl.col("position").filter(pl.col("explored").is_not_null()).min().alias("top"),
    )
    assert set(by["marked"]) == {0, 2}
    assert set(by["moved"]) == {0, 2}
    assert abs((by["marked"] == 2).mean() - 0.1) < 0.02
    assert abs((by.filter(pl.col("marked") == 2)["moved"] == 2).mean() - 0.5) < 0.1
    assert set(by["top"].drop_nulls()) == {1}
    assert set(made.frame["propensity"].drop_nulls()) == {0.5}


def test_newcomers_have_no_past():
    made = simulate.simulate(6, 500)
    new = made.frame.filter(pl.col("newcomer"))
    assert abs(new.height / made.frame.height - 0.2) < 0.02
    assert set(new["f.reviews"]) == {0}
    assert set(new["f.rating"]) == {simulate.UNKNOWN}
    assert made.frame.filter(~pl.col("newcomer"))["f.reviews"].min() == 1


def test_the_true_order_scores_best_and_its_reverse_worst():
    made = simulate.simulate(7, 50)
    rho = made.rho.reshape(-1, simulate.LISTED)
    rank = np.argsort(np.argsort(-rho, axis=1), axis=1)
    best, worst = rank.reshape(-1), (simulate.LISTED - 1 - rank).reshape(-1)
    np.testing.assert_allclose(simulate.true_ndcg(made.rho, best), 1.0)
    np.testing.assert_allclose(simulate.true_tau(made.rho, best), 1.0)
    np.testing.assert_allclose(simulate.true_tau(made.rho, worst), -1.0)
    assert (simulate.true_ndcg(made.rho, worst) < 0.6).all()


def test_shuffled_outcomes_stay_in_their_decision():
    frame = simulate.simulate(8, 60).frame
    other = simulate.shuffled_outcomes(frame, 1)
    count = pl.col("viewed_at").is_not_null().sum()
    a, b = (f.group_by("decision_id", maintain_order=True).agg(count) for f in (frame, other))
    assert a.equals(b)
    assert not frame["viewed_at"].equals(other["viewed_at"])
    assert frame.drop("viewed_at", "invited_at", "replied_at", "hired_at").equals(
        other.drop("viewed_at", "invited_at", "replied_at", "hired_at")
    )
    without = simulate.without_outcomes(frame, pl.col("newcomer"))
    assert without.filter(pl.col("newcomer"))["viewed_at"].null_count() == (
        without.filter(pl.col("newcomer")).height
    )
    kept = ~frame["newcomer"]
    assert without.filter(kept)["viewed_at"].equals(frame.filter(kept)["viewed_at"])


def test_the_interval_holds_the_difference():
    rng = np.random.default_rng(0)
    parts = [0.02 + 0.1 * rng.standard_normal(400) for _ in range(5)]
    mean, low, high = simulate.interval(parts)
    assert low < mean < high
    assert low > 0
    assert simulate.interval([part - mean for part in parts])[1] < 0


@pytest.fixture(scope="module")
def bench(repo_root):
    path = repo_root / "bench" / "bench_training.py"
    spec = importlib.util.spec_from_file_location("bench_training", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench_training"] = module
    spec.loader.exec_module(module)
    return module


def test_correcting_recovers_more_of_the_true_order_and_the_gate_is_right(bench, tmp_path):
    # Seeds beyond those of the page, one marketplace of its size; the bench has the whole claim.
    settings = Settings(rounds=120, bootstraps=300, leaves=15)
    at = bench.market(21, 4_000, 1_000, tmp_path)
    made = {
        "raw": bench.train(at.logged, bench.dataclasses.replace(
            settings, correction=Method.NONE), split_at=SPLIT),
        "swaps": bench.train(at.logged, bench.dataclasses.replace(
            settings, correction=Method.RANDOMISED), split_at=SPLIT),
    }  # fmt: skip
    ranked = bench.orders(at, {name: one.trees for name, one in made.items()})
    ndcg = {name: simulate.true_ndcg(at.after.rho, rank) for name, rank in ranked.items()}
    for other in ("raw", "first_phase"):
        assert simulate.interval([ndcg["swaps"] - ndcg[other]])[1] > 0
    found = bench.gates(at, made, settings)
    assert bench.right(found["verdicts"]) == dict.fromkeys(found["verdicts"], True)
    truth = found["truth"]
    assert truth["worse"] < truth["first_phase"] < truth["segment"]
    assert truth["first_phase"] < truth["swaps"]


def test_logged_cases_of_the_other_tests_are_of_this_marketplace(tmp_path):
    logged = logged_of(market_frame(decisions=20, judged=5), tmp_path)
    assert (logged.day_d < SPLIT).sum() == 20
    assert logged.features == simulate.FEATURES
