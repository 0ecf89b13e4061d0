"""Explanations of the second phase: sums, moves, and what each audience may see of them."""

from __future__ import annotations

import json

import market_cases
import numpy as np
import pytest
from market_cases import AS_OF, KINDS, Market, ask
from rerank_cases import (
    ALLOWED,
    GRID_BITS,
    FakeServer,
    policy,
    random_trees,
    ranker,
    wider_policy,
)

from matchwright.engine.matcher import OTHER, Matcher
from matchwright.engine.records import to_frame
from matchwright.engine.rerank.features import FEATURES, INDEX, UNKNOWN
from matchwright.engine.rerank.features_pairs import FeatureMaker
from matchwright.engine.rerank.rerank_explain import effect_of
from matchwright.kernels.ops import Ops

OPS = Ops(threads=1)
M = 30

frames = market_cases.frames
generation = market_cases.generation
market = market_cases.market


@pytest.fixture(scope="module")
def trees(market):
    plain = Matcher(market, OPS, policy().without_rerank())
    parts = []
    for kind in KINDS:
        query = plain.prepare_one(market, ask(market, kind))
        rows = market.rows_of(OTHER[kind], plain.match(ask(market, kind, k=200)).ids)
        parts.append(FeatureMaker().make(market, [query], [rows]))
    keep = [INDEX[name] for name in ALLOWED]
    return random_trees(5, splits=6, trees=30, spread=np.concatenate(parts)[:, keep])


@pytest.fixture(scope="module")
def matcher(market, trees):
    return Matcher(market, OPS, policy(candidates=M), ranker(trees))


def explained(matcher, market, kind, n, match_id, **more):
    own = market.frames[kind]["id"][n]
    pair = (own, match_id) if kind == "job" else (match_id, own)
    return matcher.explain(*pair, direction=kind, **{"as_of": AS_OF, **more})


# ── Numbers ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", KINDS)
def test_an_explanation_is_of_the_answer(matcher, market, trees, kind):
    moves = set()
    for n in range(4):
        result = matcher.match(ask(market, kind, n, k=M))
        for match in result:
            second = explained(matcher, market, kind, n, match.id).rerank
            assert second.considered
            assert (second.rank, second.first_rank) == (match.rank, match.first_rank)
            assert second.score == match.model_score
            assert (second.version, second.content_hash) == (3, trees.content_hash)
            assert second.method == "path"
            # Contributions are dyadic: their sum is exact in any order.
            assert second.bias + sum(one.score for one in second.contributions) == second.score
            gone = (match.first_rank > match.rank) - (match.first_rank < match.rank)
            assert second.moved == {1: "up", -1: "down", 0: "not"}[gone]
            moves.add(second.moved)
    assert moves == {"up", "down", "not"}


@pytest.mark.parametrize("kind", KINDS)
def test_what_moved_a_pair_is_what_made_the_difference(matcher, market, trees, kind):
    """Against a plain computation: whom it passed, and by which features."""
    result = matcher.match(ask(market, kind, 2, k=M))
    query = matcher.prepare_one(market, ask(market, kind, 2))
    rows = market.rows_of(OTHER[kind], result.ids)
    parts = trees.contributions(matcher.ranker.features(market, [query], [rows])).astype(float)
    first = result.rerank.first_ranks
    assert (first != np.arange(1, len(first) + 1)).any()
    for at, match in enumerate(result):
        second = explained(matcher, market, kind, 2, match.id).rerank
        if match.first_rank == match.rank:
            assert second.moved_by == ()
            continue
        up = match.rank < match.first_rank
        others = [
            n
            for n in range(result.returned)
            if (n > at and first[n] < first[at] if up else n < at and first[n] > first[at])
        ]
        assert second.compared_with == len(others)
        difference = {
            name: (parts[at, n] - parts[others, n].mean()) * 2.0**-GRID_BITS
            for n, name in enumerate(trees.features)
        }
        told = [(one.name, one.score) for one in second.moved_by]
        sign = 1 if up else -1
        expected = sorted(
            ((name, value) for name, value in difference.items() if sign * value > 0),
            key=lambda pair: -abs(pair[1]),
        )
        assert 0 < len(told) <= 5
        assert [abs(value) for _, value in told] == pytest.approx(
            [abs(value) for _, value in expected[: len(told)]]
        )
        for name, value in told:
            assert value == pytest.approx(difference[name])


def test_values_are_in_words_and_units(matcher, market):
    result = matcher.match(ask(market, "job", 0, k=3))
    assert result.returned == 3
    query = matcher.prepare_one(market, ask(market, "job", 0))
    for match in result:
        row = market.rows_of("freelancer", [match.id])
        made = FeatureMaker().make(market, [query], [row])[0]
        second = explained(matcher, market, "job", 0, match.id).rerank
        assert {one.name for one in second.contributions} == set(matcher.ranker.asked)
        for one in second.contributions:
            feature, value = FEATURES[INDEX[one.name]], int(made[INDEX[one.name]])
            assert one.text == feature.text
            assert one.value == (None if value == UNKNOWN else value)
            assert one.unit == (None if value == UNKNOWN else feature.unit)


def test_a_pair_beyond_the_candidates_says_so(matcher, market):
    wide = Matcher(market, OPS, policy().without_rerank()).match(ask(market, "job", 1, k=100))
    assert wide.returned > M
    said = explained(matcher, market, "job", 1, wide.ids[M])
    assert said.rank == M + 1
    assert not said.rerank.considered
    assert said.rerank.text == "not among the first 30 candidates, which alone the model orders"
    assert said.rerank.rank is said.rerank.score is said.rerank.moved is None


def test_a_vetoed_pair_was_never_seen_by_the_model(matcher, market):
    for name in market.frames["freelancer"]["id"]:
        said = explained(matcher, market, "job", 0, name)
        if not said.eligible:
            assert not said.rerank.considered
            assert "eligible" in said.rerank.text
            return
    raise AssertionError("nobody is vetoed")


def test_a_record_given_inline_is_placed_among_the_stored(matcher, market):
    result = matcher.match(ask(market, "job", 0, k=M))
    for match in (result[0], result[7]):
        stored = explained(matcher, market, "job", 0, match.id).to_dict()
        record = market.record("freelancer", match.id)
        inline = matcher.explain(market.frames["job"]["id"][0], record, as_of=AS_OF).to_dict()
        assert inline["rerank"] == stored["rerank"]
    better = {**market.record("freelancer", result.ids[3]), "id": "somebody-new"}
    said = matcher.explain(market.frames["job"]["id"][0], better, as_of=AS_OF)
    assert said.rerank.considered


def test_a_server_that_is_down_does_not_matter_to_an_explanation(market, trees, matcher):
    down = Matcher(
        market, OPS, policy(candidates=M), ranker(trees, FakeServer(trees, mode="wrong"))
    )
    name = matcher.match(ask(market, "job", 0)).ids[0]
    told = [explained(one, market, "job", 0, name).to_dict() for one in (matcher, down)]
    assert told[0] == told[1]


def test_without_a_second_phase_nothing_is_said_of_it(market):
    plain = Matcher(market, OPS, policy().without_rerank())
    said = explained(plain, market, "job", 0, market.frames["freelancer"]["id"][0])
    assert said.rerank is None
    assert "rerank" not in said.to_dict()


def test_effects_are_classes():
    told = {units: effect_of(units, 100.0) for units in (0, 1, 5, 20, 90, -1, -5, -30)}
    assert told == {
        0: "neither", 1: "neither", 5: "for", 20: "strongly for", 90: "strongly for",
        -1: "neither", -5: "against", -30: "strongly against",
    }  # fmt: skip
    assert effect_of(0.0, 0.0) == "neither"


# ── Audiences ─────────────────────────────────────────────────────────────────────────────────

EFFECTS = {"neither", "for", "against", "strongly for", "strongly against"}
NUMBERS = {"version", "candidates", "rank_within"}
"""The only numbers of the second phase that people who are not operators see."""


def numbers_in(value, name=""):
    if isinstance(value, dict):
        for key, item in value.items():
            yield from numbers_in(item, key)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from numbers_in(item, name)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield name


@pytest.mark.parametrize("audience", ["client", "freelancer"])
@pytest.mark.parametrize("kind", KINDS)
def test_people_see_words_and_classes(matcher, market, kind, audience):
    for n in range(3):
        result = matcher.match(ask(market, kind, n, k=M))
        assert result.returned
        for match in result:
            said = explained(matcher, market, kind, n, match.id, audience=audience).rerank
            assert set(numbers_in(said.to_dict())) <= NUMBERS
            assert said.rank_within in (10, 100, 1_000, None)
            shares = (*said.contributions, *said.moved_by)
            assert {share.effect for share in shares} <= EFFECTS
            for listed in (said.contributions, said.moved_by):  # an order that tells no sizes
                places = [INDEX[share.name] for share in listed]
                assert places == sorted(places)


HIDDEN = {
    "freelancer": {
        "min_rate_cents": 1, "min_fixed_cents": 1, "min_weekly_hours": 0,
        "excluded_clients": ["a-client-of-old"], "declined_categories": ["Astrology"],
        "countries_denied": ["AQ"],
    },
    "job": {
        "max_rate_cents": 9_999_999, "min_rate_cents": 0, "min_reviews": 0,
        "excluded_freelancers": ["a-freelancer-of-old"], "min_rating_milli": 0,
        "countries_denied": ["AQ"],
    },
}  # fmt: skip
"""Limits that bind nobody here: who may not see them must not notice that they are set."""
KNOWN = {
    "job": {"client_id": "the-client", "rate_min_cents": None, "rate_max_cents": 20_000,
            "fixed_cents": None, "country": "FR", "category": "Writing", "weekly_hours": 20},
    "freelancer": {"rate_cents": 2_000, "country": "FR", "rating_milli": 4_000, "reviews": 3},
}  # fmt: skip
"""What these limits are asked about, so that none fails on an unknown value."""


@pytest.mark.parametrize("audience", ["client", "freelancer"])
@pytest.mark.parametrize("asks", KINDS)
def test_a_limit_of_the_other_side_cannot_be_noticed(market, trees, generation, audience, asks):
    private = "freelancer" if audience == "client" else "job"
    asked_of = [
        {**row, **KNOWN[OTHER[private]]} for row in market.frames[OTHER[private]].to_dicts()
    ]
    known = {**market.frames, OTHER[private]: to_frame(OTHER[private], asked_of)}
    rows = market.frames[private].to_dicts()
    for n in range(10):
        rows[n].update(HIDDEN[private])
    other = Market({**known, private: to_frame(private, rows)}, generation)
    bare = Market(known, generation)
    told = []
    for one in (bare, other):
        made = Matcher(one, OPS, policy(candidates=M), ranker(trees))
        pairs = [(j, f) for j in range(4) for f in range(10)]
        ids = {kind: one.frames[kind]["id"].to_list() for kind in KINDS}
        told.append([
            made.explain(ids["job"][j], ids["freelancer"][f], direction=asks, audience=audience,
                         as_of=AS_OF).to_dict()["rerank"]
            for j, f in pairs
        ])  # fmt: skip
    assert told[0] == told[1]
    assert any(second["considered"] for second in told[0])


def test_values_of_the_other_side_do_not_leak(market, generation):
    """Numbers that a ranker uses and that are nobody else's business."""
    rows = market.frames["freelancer"].to_dicts()
    for row in rows[:10]:
        row.update(response_permille=613, success_permille=617, rating_milli=4_619)
    loud = Market({**market.frames, "freelancer": to_frame("freelancer", rows)}, generation)
    names = ("response", "success", "rating", "reciprocal", "score")
    trees = random_trees(8, names=names, splits=6)
    made = Matcher(loud, OPS, wider_policy(candidates=400), ranker(trees))
    for n in range(10):
        said = made.explain(loud.frames["job"]["id"][0], rows[n]["id"], as_of=AS_OF,
                            audience="client").to_dict()  # fmt: skip
        shown = json.dumps(said)
        assert not any(secret in shown for secret in ("613", "617", "4619"))
        operator = made.explain(loud.frames["job"]["id"][0], rows[n]["id"], as_of=AS_OF)
        if operator.rerank.considered:
            assert "613" in json.dumps(operator.to_dict())
            return
    raise AssertionError("nobody was considered")
