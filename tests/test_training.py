"""Training: deterministic, split by time, blind to what is excluded, judged as exported."""

from __future__ import annotations

import dataclasses

import numpy as np
import polars as pl
import pytest
from training_cases import QUICK, SPLIT, logged_of, market_frame

from matchwright.engine.errors import InvalidArgument, InvalidData
from matchwright.engine.rerank import evaluate
from matchwright.engine.rerank.bias import Method
from matchwright.engine.rerank.decisions_read import NEVER
from matchwright.engine.rerank.evaluate import Judged, ranks
from matchwright.engine.rerank.train import (
    Settings,
    gains,
    judge_again,
    method_of,
    split_day,
    train,
)

pytest.importorskip("lightgbm")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("training")


@pytest.fixture(scope="module")
def logged(folder):
    return logged_of(market_frame(), folder)


@pytest.fixture(scope="module")
def trained(logged):
    return train(logged, QUICK, split_at=SPLIT)


def test_the_same_input_gives_the_same_bytes(logged, trained):
    again = train(logged, QUICK, split_at=SPLIT)
    assert again.text == trained.text
    assert again.record == trained.record
    two = train(logged, dataclasses.replace(QUICK, threads=2), split_at=SPLIT)
    assert two.text == trained.text


def test_another_seed_is_in_the_record_and_judges_by_other_draws(logged, trained):
    other = train(logged, dataclasses.replace(QUICK, seed=7), split_at=SPLIT)
    assert other.record["seed"] == 7
    ours, theirs = (t.evaluation["metrics"]["ndcg@10"]["vs_first_phase"] for t in (trained, other))
    assert ours["low"] != theirs["low"]


def test_nothing_after_the_split_is_learnt_from(folder, logged, trained):
    frame = market_frame()
    late = pl.col("decided_at").dt.epoch("d") >= SPLIT
    spoilt = frame.with_columns(
        pl.when(late).then(0).otherwise(pl.col("f.coverage")).cast(pl.Int32).alias("f.coverage"),
        pl.when(late & (pl.col("position") == 9)).then(pl.col("decided_at"))
        .otherwise(pl.when(~late).then(pl.col("hired_at"))).alias("hired_at"),
    )  # fmt: skip
    other = train(logged_of(spoilt, folder, "spoilt.parquet"), QUICK, split_at=SPLIT)
    assert other.text == trained.text
    assert other.evaluation["metrics"] != trained.evaluation["metrics"]


def test_outcomes_after_the_split_are_not_known_to_training(folder, trained):
    frame = market_frame()
    early = pl.col("decided_at").dt.epoch("d") < SPLIT
    late = pl.lit(SPLIT * 86_400_000_000).cast(pl.Datetime("us", "UTC"))
    third = early & (pl.col("position") == 3)
    changed = frame.with_columns(
        pl.when(third).then(late).otherwise(pl.col("hired_at")).alias("hired_at")
    )
    without = frame.with_columns(pl.when(~third).then(pl.col("hired_at")).alias("hired_at"))
    logs = [logged_of(f, folder, f"{n}.parquet") for n, f in enumerate((changed, without))]
    texts = [train(log, QUICK, split_at=SPLIT).text for log in logs]
    assert texts[0] == texts[1] != trained.text


def test_a_day_is_never_cut(logged):
    day = split_day(logged)
    assert 0.7 < (logged.day_d < day).mean() <= 0.8
    for wrong in (int(logged.day_d.min()), int(logged.day_d.max()) + 1):
        with pytest.raises(InvalidData, match="leaves nothing on one side"):
            split_day(logged, wrong)


def test_excluded_features_are_asked_by_no_tree(logged, trained):
    assert "coverage" in trained.trees.asked
    blind = dataclasses.replace(QUICK, excluded={"coverage": ("job.skills",)})
    made = train(logged, blind, split_at=SPLIT)
    assert "coverage" not in made.trees.asked
    assert made.trees.features == trained.trees.features
    assert made.record["excluded"] == {"coverage": ["job.skills"]}
    assert made.evaluation["importance"]["coverage"] == 0.0


def test_importance_finds_what_matters(trained):
    lost, gain = trained.evaluation["importance"], trained.record["gain_importance"]
    for name in ("must_missing", "coverage", "rate_gap"):
        assert lost[name] > 2 * abs(lost["noise"])
        assert gain[name] > gain["noise"]
    assert set(lost) == set(gain) == set(trained.trees.features)


def test_the_record_says_what_anybody_needs(logged, trained):
    record = trained.record
    assert record["data"]["digest"] == logged.digest
    assert record["data"]["decisions_trained"] == 1_000
    assert record["data"]["decisions_judged"] == 300
    assert record["data"]["split_at"] == "2024-12-23"
    assert record["warnings"] == []
    assert record["correction"]["method"] == "none"
    auto = train(logged, dataclasses.replace(QUICK, correction=Method.AUTO), split_at=SPLIT)
    assert auto.record["correction"]["method"] == "em"
    assert "randomised" in auto.record["correction"]["note"]
    assert auto.evaluation["correction"] == "em"
    assert set(record["libraries"]) == {"lightgbm", "numpy", "polars", "matchwright"}
    assert record["settings"]["rounds"] == 60


def test_joined_features_are_recorded(logged):
    joined = dataclasses.replace(logged, point_in_time=False)
    made = train(joined, QUICK, split_at=SPLIT)
    assert made.record["warnings"] == ["FEATURES_NOT_POINT_IN_TIME"]
    assert made.record["data"]["point_in_time"] is False


def test_the_exported_model_is_what_is_judged(logged, trained):
    after = logged.part(logged.day_d >= SPLIT)
    weight = trained.curve.weight(after.position)
    gain = gains(after.grade(), "graded") * weight
    rank = ranks(after.decision, trained.trees.score(after.f_nf), after.first_rank)
    best = ranks(after.decision, gain, after.first_rank)

    def dcg(order):
        return sum(g / np.log2(r + 2) for g, r in zip(gain, order, strict=True) if r < 10)

    told = trained.evaluation["metrics"]["ndcg@10"]
    assert told["model"] == pytest.approx(dcg(rank) / dcg(best), abs=1e-6)
    first = after.first_rank - 1
    assert told["first_phase"] == pytest.approx(dcg(first) / dcg(best), abs=1e-6)
    assert told["vs_first_phase"]["difference"] == pytest.approx(
        told["model"] - told["first_phase"], abs=2e-6
    )
    assert told["vs_first_phase"]["low"] < told["vs_first_phase"]["difference"]


def test_the_model_in_service_is_compared_pair_by_pair(logged, trained):
    made = train(logged, QUICK, split_at=SPLIT, in_service=trained.trees)
    told = made.evaluation["metrics"]["ndcg@10"]["vs_in_service"]
    assert told == {"difference": 0.0, "low": 0.0, "high": 0.0}
    assert made.evaluation["in_service"] == trained.trees.content_hash
    shuffled = dataclasses.replace(
        logged, f_nf=np.random.default_rng(0).permutation(logged.f_nf, axis=0)
    )
    worse = train(shuffled, QUICK, split_at=SPLIT)
    after = logged.part(logged.day_d >= SPLIT)
    trees = worse.trees
    again = dataclasses.replace(trained)
    gain = gains(after.grade(), "graded")
    found = evaluate.evaluate(after, gain, (gain > 0) * 1.0, again.trees, trees, bootstraps=200)
    assert found["metrics"]["ndcg@10"]["vs_in_service"]["low"] > 0


def test_a_trained_model_is_judged_again_on_other_days(logged, trained):
    trained.trees.training = trained.record
    again = judge_again(logged, trained.trees, None)
    for figure in ("ndcg@10", "map", "recall@10"):
        for name in ("model", "first_phase"):
            assert again["metrics"][figure][name] == pytest.approx(
                trained.evaluation["metrics"][figure][name], abs=1e-5
            )
    early = logged.part(logged.day_d < SPLIT)
    with pytest.raises(InvalidData, match="no decision from 2024-12-23 on"):
        judge_again(early, trained.trees, None)


def test_matches_that_were_not_shown_do_not_count(folder, logged, trained):
    frame = market_frame()
    hidden = pl.col("position") > 15
    names = [f"{name}_at" for name in ("viewed", "invited", "replied", "hired")]
    cut = frame.with_columns(pl.when(~hidden).then(pl.col(n)).alias(n) for n in names)
    shown = cut.with_columns(pl.when(~hidden).then(pl.col("decided_at")).alias("shown_at"))
    gone = cut.filter(~hidden)
    a, b = (train(logged_of(f, folder, "shown.parquet"), QUICK, split_at=SPLIT) for f in
            (shown, gone))  # fmt: skip
    assert a.text == b.text
    assert a.evaluation == b.evaluation


@pytest.mark.parametrize("label", ["viewed", "hired"])
def test_labels_are_what_came_to_it_or_further(label):
    grade = np.array([0, 1, 2, 3, 4, 5], dtype=np.int8)
    step = {"viewed": 1, "hired": 4}[label]
    assert gains(grade, label).tolist() == [float(g >= step) for g in grade]
    assert gains(grade, "graded").tolist() == [0, 1, 3, 7, 15, 31]


def test_nothing_to_learn_from_is_an_error(logged):
    with pytest.raises(InvalidData, match="no outcome that counts as 'success'"):
        train(logged, dataclasses.replace(QUICK, label="success"), split_at=SPLIT)
    nothing_late = logged.reached.copy()
    nothing_late[nothing_late >= SPLIT] = NEVER
    with pytest.raises(InvalidData, match="nothing to judge by"):
        train(dataclasses.replace(logged, reached=nothing_late), QUICK, split_at=SPLIT)


@pytest.mark.parametrize(
    "change",
    [{"label": "clicked"}, {"rounds": 0}, {"leaves": 1}, {"k": 0}, {"threads": 0}, {"seed": -1},
     {"learning_rate": 0.0}, {"weight_max": 0.5}, {"bootstraps": 1}],
)  # fmt: skip
def test_settings_are_checked(change):
    with pytest.raises(InvalidArgument):
        Settings(**change)
    with pytest.raises(InvalidArgument, match="randomised"):
        method_of("magic")
    assert method_of("em") is Method.EM


def test_progress_is_told_and_ctrl_c_ends_it(logged):
    seen = []

    def tell(what, done, of):
        seen.append(what)
        if what == "training" and done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(logged, dataclasses.replace(QUICK, correction=Method.EM), split_at=SPLIT, tell=tell)
    assert {"estimating who looks where", "choosing the number of trees", "training"} <= set(seen)
    assert train(logged, QUICK, split_at=SPLIT).text  # the lock was let go


def test_figures_are_those_of_a_small_example():
    decision = np.array([0, 0, 0, 1, 1, 1])
    first = np.array([1, 2, 3, 1, 2, 3], dtype=np.int32)
    gain = np.array([0, 2.0, 0, 0, 0, 6.0])
    judged = Judged(decision, first, gain, (gain > 0) * 1.0)
    rank = first.astype(np.int64) - 1
    told = evaluate.compare(judged, {"model": rank, "first_phase": rank}, 2, 0, 100)
    best = 2.0 + 6.0
    assert told["ndcg@2"]["model"] == pytest.approx((2.0 / np.log2(3)) / best, abs=1e-6)
    assert told["map"]["model"] == pytest.approx((1 / 2 + 1 / 3) / 2, abs=1e-6)
    assert told["recall@2"]["model"] == 0.5
    assert told["map"]["decisions"] == 2


def test_equal_scores_keep_the_first_phases_order():
    decision = np.array([0, 0, 0, 1, 1])
    first = np.array([3, 1, 2, 2, 1], dtype=np.int32)
    assert ranks(decision, np.zeros(5), first).tolist() == [2, 0, 1, 1, 0]
    assert ranks(decision, np.array([9, 0, 0, 0, 0]), first).tolist() == [0, 1, 2, 1, 0]
