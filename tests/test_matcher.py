"""The matcher: both directions, against brute force; the same bytes on every way to the answer."""

from __future__ import annotations

import dataclasses
import math

import market_cases
import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from market_cases import (
    AS_OF,
    DEAD,
    JOBS,
    KINDS,
    SALT,
    Market,
    ask,
    bytes_of,
    requests_of_a_scenario,
    some_id,
)

from matchwright.engine.columns import columns
from matchwright.engine.eligibility import compile_rules
from matchwright.engine.errors import (
    InvalidArgument,
    InvalidData,
)
from matchwright.engine.matcher import OTHER, Matcher, Request
from matchwright.engine.policy import Policy
from matchwright.engine.prepare import points_floor
from matchwright.engine.records import SCHEMAS
from matchwright.engine.results import Shortfall
from matchwright.engine.rule_shapes import Day, QueryRow
from matchwright.engine.zones import offset_minutes
from matchwright.kernels import rules as kernel_rules
from matchwright.kernels.ops import Ops, get_ops
from matchwright.kernels.order import hash_keys

frames = market_cases.frames
generation = market_cases.generation
market = market_cases.market
matcher = market_cases.matcher


# ── Brute force ───────────────────────────────────────────────────────────────────────────────


def brute_force(market, policy, kind, name, *, weights=None, as_of=AS_OF, exclude=()):
    """(ids in order, points, eligible, unverified) by Python integers and row-wise rules."""
    generation, other = market.generation, OTHER[kind]
    frame = pl.DataFrame(market.rows(kind, [name]), SCHEMAS[kind])
    vectors = generation.query(kind, frame, policy.facets, as_of)
    made = generation.quantise(vectors, kind, {**policy.weights, **(weights or {})})
    q = [int(value) for value in made.q_qd[0]]
    scalars, sets = columns(kind, frame, SALT, generation)
    key = int(hash_keys([name], SALT)[0])
    day = Day(as_of, offset_minutes(tuple(generation.zones), as_of))
    compiled = compile_rules(QueryRow(kind, scalars, sets, 0, key), policy.rules, day)
    found, unverified = [], 0
    for row, one in enumerate(market.frames[other]["id"].to_list()):
        if one in market._dead[other] or one in exclude:
            continue
        part = int(np.searchsorted(market.corpus(other).base, row, side="right")) - 1
        segment = market.corpus(other).parts[part][0]
        local = row - int(market.corpus(other).base[part])
        vetoes, unsure = kernel_rules.vetoes(compiled.predicates, segment, local)
        if vetoes:
            continue
        unverified += bool(unsure or compiled.unsure)
        x = [int(value) for value in segment.x_nd[local]]
        points = sum(a * b for a, b in zip(q, x, strict=True))
        found.append((-points, tie(key, int(segment.key_n[local])), one))
    found.sort()
    return [one for *_, one in found], [-p for p, *_ in found], len(found), unverified


def tie(g, c):
    """The tie-break of docs/scoring.md, in Python integers."""
    mask = 0xFFFFFFFF
    left, right = c >> 32, c & mask
    z = right ^ (g & mask)
    z = ((z ^ (z >> 16)) * 0x85EBCA6B) & mask
    z = ((z ^ (z >> 13)) + (g >> 32)) & mask
    z = ((z ^ (z >> 13)) * 0xC2B2AE35) & mask
    z ^= z >> 16
    return left ^ z, right


@pytest.mark.parametrize("kind", KINDS)
def test_matches_are_those_of_brute_force(market, matcher, kind, count):
    for n in range(count(reduced=12, full=JOBS)):
        name = some_id(market, kind, n)
        if name == DEAD:
            continue
        ids, points, eligible, unverified = brute_force(market, matcher.policy, kind, name)
        for k in (1, 10, 1_000):
            result = matcher.match(ask(market, kind, n, k=k))
            assert list(result.ids) == ids[:k]
            assert result.points.tolist() == points[:k]
            assert (result.eligible, result.unverified) == (eligible, unverified)
            assert result.counted == "EXACT"
            assert result.returned == min(k, eligible)
            assert result.contributions.sum(axis=1).tolist() == points[:k]
            assert result.scores.tolist() == [p * result.t for p in points[:k]]
            check_certificate(result)


def test_the_market_is_worth_asking(market, matcher):
    """Jobs that are closed find nobody, but the first of each kind must not be among them."""
    for kind in KINDS:
        found = [matcher.match(ask(market, kind, n)).eligible for n in range(10)]
        assert min(found) > 5, (kind, found)


def check_certificate(result):
    if result.returned == result.k:
        mix, low = tie(result.query_key, int(result.keys[-1]))
        last = result.kth_key
        assert (last.points, last.mix, last.low) == (int(result.points[-1]), mix, low)
        assert result.shortfall is None
    else:
        assert result.kth_key is None
        vetoed = {Shortfall.QUERY_VETOED} if result.eligible == 0 else set()
        assert result.shortfall in {Shortfall.FEW_ELIGIBLE, *vetoed}


@pytest.mark.parametrize("kind", KINDS)
def test_weights_as_of_and_exclusions(market, matcher, kind):
    name = some_id(market, kind, 1)
    first = matcher.match(ask(market, kind, 1, k=1_000))
    exclude = first.ids[:3]
    weights = {"skills": 20.0, "rate": 0.0}
    result = matcher.match(
        ask(market, kind, 1, k=1_000, weights=weights, exclude_ids=exclude, as_of=AS_OF + 30)
    )
    ids, points, eligible, _ = brute_force(
        market, matcher.policy, kind, name, weights=weights, as_of=AS_OF + 30, exclude=exclude
    )
    assert list(result.ids) == ids
    assert result.points.tolist() == points
    assert result.eligible == eligible
    assert result.policy != first.policy
    rate = result.facets.index("rate")
    assert not result.contributions[:, rate].any()


@pytest.mark.parametrize("kind", KINDS)
def test_candidates(market, matcher, kind):
    everyone = matcher.match(ask(market, kind, k=1_000))
    chosen = (*everyone.ids[::2], "nobody")
    result = matcher.match(ask(market, kind, k=1_000, candidate_ids=chosen))
    assert result.ids == everyone.ids[::2]
    nobody = matcher.match(ask(market, kind, candidate_ids=()))
    assert (nobody.returned, nobody.eligible) == (0, 0)
    assert nobody.shortfall is Shortfall.FEW_ELIGIBLE


@pytest.mark.parametrize("kind", KINDS)
def test_min_score_is_a_floor_to_the_bit(market, matcher, kind):
    everyone = matcher.match(ask(market, kind, k=1_000))
    assert everyone.returned > 4
    middle = float(everyone.scores[everyone.returned // 2])
    at_least = int((everyone.scores >= middle).sum())
    result = matcher.match(ask(market, kind, k=1_000, min_score=middle))
    assert result.ids == everyone.ids[:at_least]
    assert result.shortfall is Shortfall.MIN_SCORE
    assert result.eligible == everyone.eligible
    above = matcher.match(ask(market, kind, k=1_000, min_score=math.nextafter(middle, math.inf)))
    assert above.returned == int((everyone.scores > middle).sum())


@given(
    st.floats(-1e6, 1e6, allow_nan=False),
    st.floats(1e-9, 1.0, allow_nan=False),
)
def test_points_floor_is_the_smallest(min_score, t):
    p = points_floor(min_score, t)
    assert p >= 1 << 31 or p * t >= min_score
    assert p <= -(1 << 31) or (p - 1) * t < min_score


def test_points_floor_of_huge_scores():
    assert points_floor(1e308, 1e-9) == 1 << 31
    assert points_floor(-1e308, 1e-9) == -(1 << 31)


@pytest.fixture(scope="module")
def expected(market, matcher):
    return bytes_of(matcher.match_many(requests_of_a_scenario(market)))


@pytest.mark.parametrize("plan", ["auto", "scan", "gather", "skip"])
@pytest.mark.parametrize("threads", [1, 2])
def test_every_plan_and_thread_count_gives_the_same_bytes(market, expected, plan, threads):
    matcher = Matcher(market, get_ops("cpu", threads=threads), Policy.load())
    requests = [dataclasses.replace(r, plan=plan) for r in requests_of_a_scenario(market)]
    assert bytes_of(matcher.match_many(requests)) == expected


@pytest.mark.parametrize("memory_bytes", [1 << 16, 1 << 20])
def test_every_memory_budget_gives_the_same_bytes(market, expected, memory_bytes):
    matcher = Matcher(market, Ops(threads=1, memory_bytes=memory_bytes), Policy.load())
    assert bytes_of(matcher.match_many(requests_of_a_scenario(market))) == expected


@pytest.mark.parametrize("cuts", [(), (1,), (50, 51, 52, 300), tuple(range(0, 420, 37))])
def test_every_split_into_segments_gives_the_same_bytes(frames, generation, expected, cuts):
    split = Market(frames, generation, cuts=cuts, dead=(DEAD,))
    matcher = Matcher(split, get_ops("cpu", threads=2), Policy.load())
    assert bytes_of(matcher.match_many(requests_of_a_scenario(split))) == expected


def test_one_by_one_gives_the_same_bytes_as_a_batch(market, matcher, expected):
    for request, told in zip(requests_of_a_scenario(market), expected, strict=True):
        assert bytes_of(matcher.match_many([request])) == [told]


# ── Inline entities ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", KINDS)
def test_an_inline_record_finds_what_the_stored_one_finds(market, matcher, kind):
    record = market.record(kind, some_id(market, kind, 2))
    stored = matcher.match(ask(market, kind, 2, k=1_000))
    inline = matcher.match(Request(kind=kind, record=record, k=1_000, as_of=AS_OF))
    assert inline.points.tolist() == stored.points.tolist()
    assert set(inline.ids) == set(stored.ids)
    assert inline.query_id == stored.query_id
    # Its key hashes the whole message, so that equal points may come in another order.
    assert inline.query_key != stored.query_key
    again = matcher.match(Request(kind=kind, record=dict(record), k=1_000, as_of=AS_OF))
    assert again.canonical_bytes() == inline.canonical_bytes()


def test_an_inline_record_needs_no_id(market, matcher):
    record = {"title": "Rust engineer", "skills": [{"name": "rust", "must": True}]}
    result = matcher.match(Request(kind="job", record=record, as_of=AS_OF))
    assert result.query_id is None
    named = matcher.match(Request(kind="job", record={**record, "id": "j"}, as_of=AS_OF))
    assert named.query_id == "j"
    assert named.query_key != result.query_key


def test_an_empty_record_scores_nothing_and_orders_by_key(market, matcher):
    result = matcher.match(Request(kind="job", record={}, as_of=AS_OF, k=1_000))
    assert result.returned == result.eligible > 0
    keys = [tie(result.query_key, int(key)) for key in result.keys]
    by_points = list(zip([-p for p in result.points.tolist()], keys, strict=True))
    assert by_points == sorted(by_points)


def test_inline_records_are_checked(matcher):
    with pytest.raises(InvalidData):
        matcher.match(Request(kind="job", record={"rate_max_cents": "lots"}, as_of=AS_OF))
    with pytest.raises(InvalidArgument):
        matcher.match(Request(kind="job", record={"id": ""}, as_of=AS_OF))
