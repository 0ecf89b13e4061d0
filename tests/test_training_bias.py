"""Examination curves: known ones are found again, and a way without enough is not taken."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from training_cases import SPLIT, logged_of, market_frame

from matchwright.engine.errors import InvalidData
from matchwright.engine.rerank import bias
from matchwright.engine.rerank.bias import Method
from matchwright.engine.rerank.decisions_read import NEVER, Logged
from matchwright.engine.rerank.train import Settings, _Regression

pytest.importorskip("lightgbm")
REGRESS = _Regression(Settings(), lambda what, done, of: None)


def logged_with(unit, position, viewed, *, propensity=None, pair=None, f_nf=None):
    """Decisions ``unit`` (ascending) with nothing but what a curve needs."""
    n = len(position)
    starts = np.flatnonzero(np.diff(unit, prepend=-1))
    reached = np.full((n, 5), NEVER, dtype=np.int32)
    reached[viewed, 0] = 1
    return Logged(
        features=("a",), features_version=1,
        f_nf=np.zeros((n, 1), dtype=np.int32) if f_nf is None else f_nf,
        start_d=np.append(starts, n), day_d=np.zeros(starts.size, dtype=np.int32),
        position=position.astype(np.int32), first_rank=position.astype(np.int32),
        shown=np.ones(n, dtype=bool), reached=reached,
        propensity=np.full(n, np.nan) if propensity is None else propensity,
        pair=np.arange(n).astype(np.uint64) if pair is None else pair.astype(np.uint64),
        ranker=np.zeros(n, dtype=np.int32), segments={}, point_in_time=True, digest="",
        rows_read=n, refused={},
    )  # fmt: skip


def test_shuffled_places_give_the_curve_back():
    rng = np.random.default_rng(0)
    decisions, places = 6_000, 8
    truth = 1.0 / np.arange(1, places + 1) ** 0.8
    position = np.tile(np.arange(1, places + 1), decisions)
    viewed = rng.random(position.size) < 0.5 * truth[position - 1]
    logged = logged_with(np.repeat(np.arange(decisions), places), position, viewed,
                         propensity=np.full(position.size, 1 / places))  # fmt: skip
    curve = bias.estimate(logged, Method.AUTO, REGRESS, known_until=NEVER)
    assert curve.method is Method.RANDOMISED
    np.testing.assert_allclose(curve.examined, truth, rtol=0.12)
    np.testing.assert_allclose(curve.weight([1, 4, 8]), 1 / curve.examined[[0, 3, 7]])


def test_pairs_that_moved_give_the_curve_back_whatever_their_relevance():
    rng = np.random.default_rng(1)
    pairs, places = 4_000, 6
    truth = 1.0 / np.arange(1, places + 1)
    pair = np.tile(np.arange(pairs), 2)
    # Good pairs stand high both times: views by place alone would say a steeper curve.
    relevance = np.where(np.arange(pairs) % 2, 0.9, 0.2)
    place = np.where(rng.random(2 * pairs) < 0.8, np.where(pair % 2, 1, 4), 0)
    position = 1 + (place + rng.integers(0, 3, 2 * pairs)) % places
    viewed = rng.random(2 * pairs) < relevance[pair] * truth[position - 1]
    logged = logged_with(np.arange(2 * pairs), position, viewed, pair=pair)
    curve = bias.estimate(logged, Method.AUTO, REGRESS, known_until=NEVER)
    assert curve.method is Method.HARVESTED
    assert "randomised: 0 views" in curve.note
    np.testing.assert_allclose(curve.examined, truth, rtol=0.2)
    naive = [viewed[position == p].mean() for p in range(1, places + 1)]
    errors = np.abs(np.log(np.array(naive) / naive[0] / truth)).max()
    assert np.abs(np.log(curve.examined / truth)).max() < errors / 2


def test_em_tells_places_from_features():
    rng = np.random.default_rng(2)
    decisions, places = 3_000, 10
    f_nf = rng.integers(0, 100, (decisions * places, 1)).astype(np.int32)
    position = np.tile(np.arange(1, places + 1), decisions)
    viewed = rng.random(position.size) < (f_nf[:, 0] / 100) / position
    logged = logged_with(np.repeat(np.arange(decisions), places), position, viewed, f_nf=f_nf)
    curve = bias.estimate(logged, Method.AUTO, REGRESS, known_until=NEVER)
    assert curve.method is Method.EM
    np.testing.assert_allclose(curve.examined, 1 / np.arange(1, 11), rtol=0.3)


def test_too_little_to_go_on_is_said_and_not_guessed():
    logged = logged_with(np.arange(20) // 5, np.tile(np.arange(1, 6), 4), np.arange(20) % 5 == 0)
    curve = bias.estimate(logged, Method.AUTO, REGRESS, known_until=NEVER)
    assert curve.method is Method.NONE
    assert (curve.weight([1, 5, 900]) == 1).all()
    assert "em: 4 views, 100 are needed" in curve.note
    with pytest.raises(InvalidData, match="randomised: 0 views, 100 are needed"):
        bias.estimate(logged, Method.RANDOMISED, REGRESS, known_until=NEVER)


def test_curves_do_not_rise_and_weights_are_clipped(tmp_path):
    logged = logged_of(market_frame(decisions=600), tmp_path)
    before = logged.part(logged.day_d < SPLIT)
    curve = bias.estimate(before, Method.EM, REGRESS, known_until=SPLIT, weight_max=5.0)
    assert curve.examined[0] == 1
    assert (np.diff(curve.examined) <= 0).all()
    assert curve.weight(np.arange(1, 1_001)).max() == 5.0
    again = bias.from_record(curve.record())
    places = np.arange(1, 50)
    np.testing.assert_allclose(again.weight(places), curve.weight(places), rtol=1e-5)


def test_a_swapped_market_shows_how_much_is_looked_at(tmp_path):
    logged = logged_of(market_frame(seed=5, decisions=6_000, judged=10), tmp_path)
    curve = bias.estimate(logged, Method.RANDOMISED, REGRESS, known_until=NEVER)
    truth = 1 / curve.first**1.0
    assert np.abs(np.log(curve.examined / truth)).max() < 0.6
    few = logged.part(np.arange(logged.day_d.size) < 800)
    blind = dataclasses.replace(few, propensity=np.full_like(few.propensity, np.nan))
    assert bias.estimate(blind, Method.AUTO, REGRESS, known_until=NEVER).method is Method.EM


@pytest.mark.parametrize("last", [1, 2, 9, 10, 11, 30, 1_000])
def test_buckets_cover_every_position_once(last):
    first = bias.buckets(last)
    assert first[0] == 1
    assert first[-1] <= last
    assert (np.diff(first) > 0).all()
    assert first[: min(last, 10)].tolist() == list(range(1, min(last, 10) + 1))


def test_bradley_terry_is_the_share_of_two():
    np.testing.assert_allclose(bias.bradley_terry(np.array([[0, 30.0], [10.0, 0]])), [1, 1 / 3])
