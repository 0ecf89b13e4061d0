"""The second phase: order, certificates, every way in which a model can fail, and its deadlines."""

from __future__ import annotations

import asyncio
import dataclasses

import market_cases
import numpy as np
import pytest
from market_cases import AS_OF, DEAD, KINDS, Market, ask, bytes_of
from rerank_cases import (
    FAILURES,
    GRID_BITS,
    FakeClock,
    FakeServer,
    policy,
    random_trees,
    ranker,
)

from matchwright.engine.errors import FailedPrecondition, InvalidArgument, NotFound
from matchwright.engine.matcher import OTHER, Matcher, Request
from matchwright.engine.policy import Policy
from matchwright.engine.rerank.features import FEATURES
from matchwright.engine.rerank.features_pairs import FeatureMaker
from matchwright.engine.rerank.rerank import Candidates, Ranker, late, settle
from matchwright.engine.results import Degraded, Result
from matchwright.kernels.ops import Ops, get_ops

OPS = Ops(threads=1)
M = 40

frames = market_cases.frames
generation = market_cases.generation
market = market_cases.market


@pytest.fixture(scope="module")
def trees(market):
    """Trees whose thresholds lie among real features."""
    first = Matcher(market, OPS, Policy.load())
    rows = {kind: first.match(ask(market, kind, k=1_000)) for kind in KINDS}
    parts = []
    for kind in KINDS:
        query = first.prepare_one(market, ask(market, kind))
        found = market.rows_of(OTHER[kind], rows[kind].ids)
        parts.append(FeatureMaker().make(market, [query], [found]))
    spread = np.concatenate(parts)
    keep = [n for n, feature in enumerate(FEATURES) if feature.name != "response"]
    return random_trees(3, splits=6, trees=25, spread=spread[:, keep])


@pytest.fixture
def clock():
    return FakeClock()


def matcher_of(market, trees, clock=None, mode="right", takes_s=0.0, ops=OPS, **more):
    clock = clock or FakeClock()
    server = FakeServer(trees, clock, mode, takes_s)
    return Matcher(market, ops, policy(**more), ranker(trees, server, clock)), server


def referee(market, trees, request, candidates):
    """The reranked answer by another way: features of all, plain Python sort."""
    plain = Matcher(market, OPS, policy().without_rerank())
    wide = plain.match(dataclasses.replace(request, k=candidates))
    query = plain.prepare_one(market, request)
    rows = market.rows_of(OTHER[request.kind], wide.ids)
    features = FeatureMaker().make(market, [query], [rows])
    keep = [n for n, feature in enumerate(FEATURES) if feature.name in trees.features]
    scores = trees.score(np.ascontiguousarray(features[:, keep])).tolist()
    order = sorted(
        range(len(wide.ids)),
        key=lambda n: (-scores[n], wide[n].points * -1, *_tie(plain, query, wide, n)),
    )
    return wide, scores, order[: request.k]


def _tie(matcher, query, wide, n):
    from matchwright.engine.matcher import order_key

    return order_key(query.key, wide.points[n], wide.keys[n]).rank_order[1:]


# ── Order and certificates ────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [1, 7, M])
def test_the_order_is_the_models(market, trees, kind, k):
    matcher, server = matcher_of(market, trees)
    moved = 0
    for n in range(8):
        request = ask(market, kind, n, k=k)
        wide, scores, order = referee(market, trees, request, M)
        result = matcher.match(request)
        assert result.ids == tuple(wide.ids[at] for at in order)
        assert result.points.tolist() == wide.points[order].tolist()
        assert np.array_equal(result.contributions, wide.contributions[order])
        part = result.rerank
        assert part is not None
        assert part.scores.tolist() == [scores[at] for at in order]
        assert part.first_ranks.tolist() == [at + 1 for at in order]
        assert (part.version, part.content_hash) == (3, trees.content_hash)
        assert (part.candidates, part.degraded) == (len(wide.ids), None)
        moved += part.first_ranks.tolist() != sorted(part.first_ranks.tolist())
        for at, match in zip(order, result, strict=True):
            assert match.model_score == scores[at] * 2.0**-GRID_BITS
            assert match.first_rank == at + 1
    assert moved or k == 1
    assert len(server.calls) == 8


@pytest.mark.parametrize("kind", KINDS)
def test_certificates_are_those_of_the_first_phase(market, trees, kind):
    matcher, _ = matcher_of(market, trees)
    plain = Matcher(market, OPS, policy().without_rerank())
    for n in range(10):
        for more in ({"k": 5}, {"k": M, "min_score": 2.0}, {"candidate_ids": ["nobody"]}):
            first, second = (one.match(ask(market, kind, n, **more)) for one in (plain, matcher))
            for name in ("kth_key", "shortfall", "eligible", "counted", "unverified", "k",
                         "attainable", "resolution", "t", "returned"):  # fmt: skip
                assert getattr(first, name) == getattr(second, name), name
            wide = plain.match(ask(market, kind, n, **{**more, "k": M}))
            part = second.rerank
            assert part.candidates == wide.returned
            assert part.last_key == wide.kth_key


def test_everybody_found_is_ordered_when_m_exceeds_the_corpus(market, trees):
    matcher, _ = matcher_of(market, trees, candidates=1_000)
    result = matcher.match(ask(market, "freelancer", k=1_000))
    assert 0 < result.returned == result.rerank.candidates < 1_000
    assert result.rerank.last_key is None
    assert sorted(result.rerank.first_ranks.tolist()) == list(range(1, result.returned + 1))
    assert DEAD not in result.ids


def test_ties_fall_back_to_the_first_phase(market):
    """A model that says the same of all changes nothing."""
    flat = random_trees(1, trees=1, splits=1)
    flat._leaf[:] = 5
    matcher, _ = matcher_of(market, flat)
    plain = Matcher(market, OPS, policy().without_rerank())
    for kind in KINDS:
        request = ask(market, kind, 1, k=M)
        assert matcher.match(request).ids == plain.match(request).ids
        assert matcher.match(request).rerank.degraded is None


def test_an_empty_corpus_asks_nobody(frames, generation, trees):
    nobody = {"job": frames["job"], "freelancer": frames["freelancer"].head(0)}
    matcher, server = matcher_of(Market(nobody, generation), trees)
    result = matcher.match(Request(kind="job", id=frames["job"]["id"][0], as_of=AS_OF))
    assert (result.returned, str(result.shortfall)) == (0, "EMPTY_CORPUS")
    assert result.rerank.candidates == 0
    assert result.rerank.degraded is None
    assert server.calls == []


def test_a_request_for_more_than_the_model_orders_is_refused(market, trees):
    matcher, _ = matcher_of(market, trees, candidates=20)
    with pytest.raises(InvalidArgument, match=r"k is 21.*rerank\.candidates is 20"):
        matcher.match(ask(market, "job", k=21))
    good, bad = matcher.match_many([ask(market, "job", k=20), ask(market, "job", k=30)])
    assert isinstance(good, Result)
    assert isinstance(bad, InvalidArgument)
    with pytest.raises(InvalidArgument, match="candidates is 20"):
        matcher.explain("a", "b", as_of=AS_OF, k=21)


# ── Congruence ────────────────────────────────────────────────────────────────────────────────


def scenario(market):
    """Both directions, options, some requests wrong."""
    made = []
    for kind in KINDS:
        made += [ask(market, kind, n, k=k) for n, k in enumerate((1, 10, 37, 41, M))]
        made.append(ask(market, kind, 5, weights={"skills": 7.0}))
        made.append(ask(market, kind, 6, min_score=1.5, k=30))
        made.append(ask(market, kind, 7, exclude_ids=["f-0000001", "j-0000001"]))
        made.append(Request(kind=kind, id="nobody", as_of=AS_OF))
        made.append(ask(market, kind, 8, count=False, contributions=False))
        made.append(ask(market, kind, 9, as_of=AS_OF + 200))
        record = market.record(kind, market.frames[kind]["id"][2])
        made.append(Request(kind=kind, record=record, as_of=AS_OF, k=9))
    return made


def test_answers_are_the_same_in_any_batch(market, trees):
    matcher, server = matcher_of(market, trees)
    requests = scenario(market)
    together = bytes_of(matcher.match_many(requests))
    assert len(server.calls) == 1
    alone = [bytes_of(matcher.match_many([request]))[0] for request in requests]
    assert alone == together
    backwards = bytes_of(matcher.match_many(requests[::-1]))[::-1]
    assert backwards == together
    threads = matcher_of(market, trees, ops=get_ops("cpu", threads=2))[0]
    assert bytes_of(threads.match_many(requests)) == together
    whole = Market(market.frames, market.generation, cuts=(7, 300), dead=(DEAD,))
    assert bytes_of(matcher_of(whole, trees)[0].match_many(requests)) == together


@pytest.mark.parametrize("rows_max", [1, 33, 40, 1_000])
def test_big_batches_are_split_at_the_models_limit(market, trees, rows_max):
    told = bytes_of(matcher_of(market, trees)[0].match_many(scenario(market)))
    clock = FakeClock()
    server = FakeServer(trees, clock)
    small = Matcher(market, OPS, policy(), ranker(trees, server, clock, rows_max=rows_max))
    assert bytes_of(small.match_many(scenario(market))) == told
    assert max(len(call.rows) for call in server.calls) <= rows_max
    sizes = [len(call.rows) for call in server.calls]
    assert sizes[:-1] == [rows_max] * (len(sizes) - 1)
    assert all(call.ref.version == 3 for call in server.calls)


def test_awaited_and_blocking_answers_are_the_same(market, trees):
    matcher, _ = matcher_of(market, trees)
    requests = scenario(market)
    told = bytes_of(matcher.match_many(requests))
    items = matcher.gather_many(requests)
    block = [one for one in items if isinstance(one, Candidates)]
    scored = asyncio.run(matcher.ranker.ask(block))
    made = iter(matcher.ranker.finish(block, scored))
    answers = [next(made) if isinstance(one, Candidates) else one for one in items]
    assert bytes_of(answers) == told


# ── When the model fails ──────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("awaited", [False, True])
@pytest.mark.parametrize("mode", list(FAILURES))
def test_whatever_fails_the_answer_is_the_first_phase(market, trees, clock, mode, awaited):
    matcher, _ = matcher_of(market, trees, clock, mode)
    plain = Matcher(market, OPS, policy().without_rerank())
    requests = [ask(market, "job", n, k=5) for n in range(3)]
    block = matcher.gather_many(requests)
    if awaited:
        scored = asyncio.run(matcher.ranker.ask(block))
    else:
        scored = matcher.ranker.ask_blocking(block)
    results = matcher.ranker.finish(block, scored)
    one_row = {"nan": 0, "off the grid": 0, "huge": 0, "infinite": 2}
    for n, (request, result) in enumerate(zip(requests, results, strict=True)):
        if mode in one_row and n != one_row[mode]:
            assert result.rerank.degraded is None  # another query's rows were right
            continue
        first = plain.match(request)
        assert result.rerank.degraded == FAILURES[mode] == Degraded(FAILURES[mode])
        assert result.rerank.scores.size == 0
        assert result.rerank.first_ranks.tolist() == [1, 2, 3, 4, 5]
        assert result.ids == first.ids
        assert result.kth_key == first.kth_key
        assert all(match.model_score is None for match in result)
        assert result.digest() != first.digest()


def test_a_wrong_score_of_one_that_is_not_returned_does_no_harm_or_is_found(market, trees, clock):
    """A score that is off by one step is caught as soon as it gets its row returned."""
    matcher, _ = matcher_of(market, trees, clock)
    request = ask(market, "job", k=5)
    right = matcher.match(request)

    class Liar(FakeServer):
        def __init__(self, row, units):
            super().__init__(trees, clock)
            self.row, self.units = row, units

        def _spoilt(self, scores):
            scores[self.row] += self.units * 2.0**-GRID_BITS
            return scores

    outcomes = set()
    for row in range(M):
        for units in (1, 3_000, -3_000):
            liar = Matcher(market, OPS, policy(), ranker(trees, Liar(row, units), clock))
            result = liar.match(request)
            if result.rerank.degraded is None:
                assert result.canonical_bytes() == right.canonical_bytes() or units < 0
            outcomes.add((units, result.rerank.degraded))
    assert {(3_000, "WRONG_OUTPUT"), (1, "WRONG_OUTPUT"), (1, None)} <= outcomes


def test_the_policys_time_bounds_the_wait(market, trees, clock):
    matcher, server = matcher_of(market, trees, clock, takes_s=0.050, timeout_ms=60)
    assert matcher.match(ask(market, "job")).rerank.degraded is None
    assert server.calls[-1].deadline == pytest.approx(clock.now - 0.050 + 0.060)
    server.takes_s = 0.061  # it answers, and right, but too late
    assert matcher.match(ask(market, "job")).rerank.degraded == "LATE"


def test_a_requests_deadline_bounds_the_wait(market, trees, clock):
    matcher, server = matcher_of(market, trees, clock, takes_s=0.010, timeout_ms=1_000)
    request = [ask(market, "job")]
    (result,) = matcher.match_many(request, deadline=clock.now + 0.5)
    assert result.rerank.degraded is None
    assert server.calls[-1].deadline < clock.now - 0.010 + 0.5
    (result,) = matcher.match_many(request, deadline=clock.now + 0.009)
    assert result.rerank.degraded == "LATE"
    before = len(server.calls)
    (result,) = matcher.match_many(request, deadline=clock.now - 1)
    assert result.rerank.degraded == "LATE"
    assert len(server.calls) == before  # nobody is asked when nothing is left


def test_a_block_of_several_calls_keeps_one_deadline(market, trees, clock):
    server = FakeServer(trees, clock, takes_s=0.030)
    small = ranker(trees, server, clock, rows_max=M)
    matcher = Matcher(market, OPS, policy(timeout_ms=100), small)
    answers = matcher.match_many([ask(market, "job", n) for n in range(10)])
    assert {answer.rerank.degraded for answer in answers} == {"LATE"}
    assert len(server.calls) == 4
    assert len({call.deadline for call in server.calls}) == 1


def test_a_caller_that_cannot_wait_finishes_late(market, trees):
    matcher, _ = matcher_of(market, trees)
    (item,) = matcher.gather_many([ask(market, "job")])
    (result,) = matcher.ranker.finish([item], [late()])
    assert result.rerank.degraded == "LATE"
    assert settle([item])[0].rerank.degraded is None


def test_features_that_need_a_model_which_is_down_degrade_the_answer(market, trees, clock):
    from rerank_cases import unavailable

    class Deaf(FeatureMaker):
        def make(self, *given, **more):
            raise unavailable("UNREACHABLE")

    server = FakeServer(trees, clock)
    matcher = Matcher(market, OPS, policy(), ranker(trees, server, clock, maker=Deaf()))
    result = matcher.match(ask(market, "job"))
    assert result.rerank.degraded == "NO_FEATURES"
    assert "UNREACHABLE" in result.telemetry["model"]["why"]
    assert server.calls == []


# ── Off, and who may be asked ─────────────────────────────────────────────────────────────────


def test_without_the_section_nothing_changes(market):
    shipped = Policy.load()
    assert shipped.rerank is None
    assert "rerank" not in shipped.to_dict()
    reranked = policy()
    assert reranked.id != shipped.id
    assert reranked.without_rerank().id == shipped.id
    assert shipped.without_rerank() is shipped
    result = Matcher(market, OPS, shipped).match(ask(market, "job"))
    assert result.rerank is None
    assert "rerank" not in result.to_dict()
    assert b"rerank" not in result.canonical_bytes()
    assert all(match.first_rank is match.model_score is None for match in result)


def test_a_policy_that_reranks_needs_a_ranker(market, trees):
    with pytest.raises(FailedPrecondition, match=r"ranker:3.*--models.*--no-rerank"):
        Matcher(market, OPS, policy())
    with pytest.raises(FailedPrecondition, match=r"ranker:4 is asked for; there is ranker:3"):
        Matcher(market, OPS, policy(version=4), ranker(trees))

    class Empty:
        def ranker(self, version):
            raise NotFound(f"no version {version}")

    with pytest.raises(NotFound):
        Matcher(market, OPS, policy(), Empty())


def test_features_of_another_version_are_refused(trees):
    other = random_trees()
    other.features_version = 99
    with pytest.raises(FailedPrecondition, match="version 99"):
        ranker(other)
    with pytest.raises(FailedPrecondition, match="'shoe_size'"):
        ranker(random_trees(names=("score", "shoe_size")))
    assert isinstance(ranker(trees), Ranker)


def test_effective_policies_keep_the_section(market, trees):
    matcher, _ = matcher_of(market, trees)
    request = ask(market, "job", weights={"skills": 4.0})
    effective = matcher.effective(request, ())
    assert effective.rerank == matcher.policy.rerank
    assert matcher.match(request).policy == effective.id


def test_the_part_is_in_the_canonical_form(market, trees):
    matcher, _ = matcher_of(market, trees)
    result = matcher.match(ask(market, "job", k=3))
    for change in (
        {"version": 4},
        {"degraded": "LATE"},
        {"content_hash": "x"},
        {"candidates": 7},
        {"scores": result.rerank.scores + 1},
        {"first_ranks": result.rerank.first_ranks + 1},
        {"last_key": None},
        {"grid_bits": 3},
    ):
        other = dataclasses.replace(result.rerank, **change)
        assert dataclasses.replace(result, rerank=other).digest() != result.digest()
    told = result.to_dict()
    assert told["rerank"]["version"] == 3
    assert [m["first_rank"] for m in told["matches"]] == result.rerank.first_ranks.tolist()
