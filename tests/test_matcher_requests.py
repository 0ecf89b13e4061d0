"""Limits, rules, certificates and errors of requests; epochs."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter

import market_cases
import pytest
from market_cases import (
    AS_OF,
    DEAD,
    KINDS,
    SALT,
    Market,
    ask,
    bytes_of,
    requests_of_a_scenario,
    some_id,
)

from matchwright.engine.errors import (
    EpochGone,
    EpochNotReached,
    FailedPrecondition,
    InvalidArgument,
    LowResolution,
    NotFound,
    UnknownKey,
)
from matchwright.engine.matcher import Matcher, Request
from matchwright.engine.policy import Policy
from matchwright.engine.records import SCHEMAS
from matchwright.engine.results import Result, Shortfall
from matchwright.engine.store import Store
from matchwright.kernels.ops import Ops, get_ops
from matchwright.kernels.types import Corpus

frames = market_cases.frames
generation = market_cases.generation
market = market_cases.market
matcher = market_cases.matcher


# ── Limits and rules of a request ─────────────────────────────────────────────────────────────


def test_limits_of_a_request_narrow(market, matcher):
    everyone = matcher.match(ask(market, "job", 4, k=1_000))
    rates = [market.record("freelancer", name)["rate_cents"] for name in everyone.ids]
    ceiling = sorted(rate for rate in rates if rate is not None)[len(rates) // 3]
    result = matcher.match(ask(market, "job", 4, k=1_000, limits={"max_rate_cents": ceiling}))
    expected = [
        name
        for name, rate in zip(everyone.ids, rates, strict=True)
        if rate is not None and rate <= ceiling
    ]
    assert list(result.ids) == expected
    assert result.policy != everyone.policy
    # The record itself, and so the order of the rest, is as it was.
    assert result.t == everyone.t


def test_limits_that_are_wrong(market, matcher):
    with pytest.raises(UnknownKey, match="max_rate_cents"):
        matcher.match(ask(market, "job", limits={"max_rate_cent": 1}))
    with pytest.raises(InvalidArgument):
        matcher.match(ask(market, "job", limits={"max_rate_cents": "cheap"}))
    with pytest.raises(UnknownKey):
        matcher.match(ask(market, "freelancer", limits={"max_rate_cents": 1}))


def test_required_skills_of_a_request(market, matcher):
    everyone = matcher.match(ask(market, "job", 4, k=1_000))
    people = [market.record("freelancer", name)["skills"] or () for name in everyone.ids]
    names = Counter(skill["name"] for skills in people for skill in skills)
    skill = names.most_common()[-1][0]
    result = matcher.match(ask(market, "job", 4, k=1_000, limits={"required_skills": [skill]}))
    for name in result.ids:
        skills = market.record("freelancer", name)["skills"]
        assert skills is None or skill in [one["name"] for one in skills]
    assert 0 < result.returned < everyone.returned


# ── Certificates ──────────────────────────────────────────────────────────────────────────────


def test_a_closed_job_finds_nobody_and_says_so(market, matcher):
    record = {**market.record("job", some_id(market, "job")), "status": "CLOSED"}
    result = matcher.match(Request(kind="job", record=record, as_of=AS_OF))
    assert (result.returned, result.eligible) == (0, 0)
    assert result.shortfall is Shortfall.QUERY_VETOED


def test_a_query_that_hides_its_state_leaves_everybody_unverified(market, matcher):
    record = {**market.record("job", some_id(market, "job")), "status": None}
    result = matcher.match(Request(kind="job", record=record, as_of=AS_OF))
    assert result.unverified == result.eligible > 0


def test_an_empty_corpus(frames, generation):
    empty = {"job": frames["job"], "freelancer": frames["freelancer"].head(0)}
    for cuts in ((), (0,)):
        market = Market(empty, generation, cuts=cuts)
        result = Matcher(market, Ops(threads=1), Policy.load()).match(ask(market, "job"))
        assert result.returned == 0
        assert result.shortfall is Shortfall.EMPTY_CORPUS
    market._corpora["freelancer"] = Corpus(())
    result = Matcher(market, Ops(threads=1), Policy.load()).match(ask(market, "job"))
    assert result.shortfall is Shortfall.EMPTY_CORPUS


def test_not_counted(market, matcher):
    result = matcher.match(ask(market, "job", count=False))
    assert (result.counted, result.eligible, result.unverified) == ("NOT_COUNTED", -1, -1)
    counted = matcher.match(ask(market, "job"))
    assert result.ids == counted.ids


def test_counts_by_themselves(market, matcher):
    for kind in KINDS:
        result = matcher.match(ask(market, kind, 3))
        told = matcher.count_eligible(ask(market, kind, 3))
        assert (told.eligible, told.unverified) == (result.eligible, result.unverified)


def test_scores_of_pairs(market, matcher):
    result = matcher.match(ask(market, "job", 3, k=1_000))
    ids = market.frames["freelancer"]["id"].to_list()
    pairs = matcher.score_pairs(ask(market, "job", 3), [*ids, "nobody"])
    assert pairs[-1] is None
    dead = ids.index(DEAD)
    assert pairs[dead] is None
    points = dict(zip(result.ids, result.points.tolist(), strict=True))
    for pair in pairs:
        if pair is not None:
            assert (not pair.vetoes) == (pair.id in points)
            assert pair.points == points.get(pair.id, pair.points)
            assert sum(pair.contributions.values()) == pair.points
    assert sum(1 for p in pairs if p is not None and not p.vetoes and p.unverified) == (
        result.unverified
    )


# ── Errors ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "change",
    [
        {"k": 0},
        {"k": 1_001},
        {"k": True},
        {"k": 2.0},
        {"as_of": None},
        {"as_of": -1},
        {"as_of": 10**12},
        {"plan": "guess"},
        {"min_score": math.nan},
        {"min_score": math.inf},
        {"min_score": 10**400},
        {"min_score": "high"},
        {"weights": {"skills": math.nan}},
        {"weights": {"skills": -1.0}},
        {"weights": {"skills": "much"}},
        {"rules": {"languages": {"on_unknown": "pass"}}},
        {"rules": {"languages": {"enabled": False}}},
        {"rules": {"languages": []}},
        {"exclude_ids": "abc"},
        {"exclude_ids": [""]},
        {"exclude_ids": ["x" * 129]},
        {"exclude_ids": ["\ud800"]},
        {"candidate_ids": [1]},
        {"kind": "person"},
        {"id": None},
        {"record": {}},
        {"id": "x" * 129},
        {"epoch": -1},
    ],
    ids=str,
)
def test_requests_that_are_wrong(market, matcher, change):
    with pytest.raises(InvalidArgument):
        matcher.match(dataclasses.replace(ask(market, "job"), **change))


def test_misspelt_overrides_name_the_right_one(market, matcher):
    with pytest.raises(UnknownKey, match="'skills'"):
        matcher.match(ask(market, "job", weights={"skill": 1.0}))
    with pytest.raises(UnknownKey, match="'languages'"):
        matcher.match(ask(market, "job", rules={"language": {}}))


def test_an_error_leaves_its_neighbours_alone(market, matcher):
    good = ask(market, "job")
    answers = matcher.match_many(
        [good, Request(kind="job", id="nobody", as_of=AS_OF), good, ask(market, "job", k=0)]
    )
    assert isinstance(answers[1], NotFound)
    assert isinstance(answers[3], InvalidArgument)
    assert answers[0].canonical_bytes() == answers[2].canonical_bytes()


def test_a_batch_has_a_limit(market, matcher):
    with pytest.raises(InvalidArgument, match="1,001"):
        matcher.match_many([ask(market, "job")] * 1_001)
    assert matcher.match_many([]) == []


def test_an_override_that_rounds_a_facet_to_noise_is_refused(market, matcher):
    with pytest.raises(LowResolution, match="levels"):
        matcher.match(ask(market, "job", weights={"skills": 1e6}))


def test_epochs(market, matcher):
    assert isinstance(matcher.match(ask(market, "job", epoch=7, min_epoch=7)), Result)
    with pytest.raises(EpochGone):
        matcher.match(ask(market, "job", epoch=6))
    with pytest.raises(EpochNotReached, match="at least 8"):
        matcher.match(ask(market, "job", min_epoch=8))


def test_a_batch_may_ask_for_several_epochs(tmp_path, frames):
    with Store.open(tmp_path, mode="w", create=True, salt=SALT) as store:
        for kind in KINDS:
            store.upsert(kind, frames[kind])
        matcher = Matcher(store, Ops(threads=1), Policy.load())
        job = frames["job"]["id"][0]
        old = store.snapshot()
        before = matcher.match(Request(kind="job", id=job, as_of=AS_OF))
        gone = before.ids[0]
        store.delete("freelancer", [gone])
        number = old.epoch.number
        asked = [
            Request(kind="job", id=job, as_of=AS_OF, epoch=epoch, min_epoch=least)
            for epoch, least in ((None, None), (number, None), (None, number + 1), (None, 10**6))
        ]
        answers = matcher.match_many([*asked, dataclasses.replace(asked[0], epoch="new")])
        assert gone not in answers[0].ids
        assert answers[1].canonical_bytes() == before.canonical_bytes()
        assert answers[2].canonical_bytes() == answers[0].canonical_bytes()
        assert isinstance(answers[3], FailedPrecondition)
        assert isinstance(answers[4], InvalidArgument)


def test_the_store_gives_what_the_market_in_memory_gives(tmp_path, frames, generation, matcher):
    """Import in chunks, refit, tombstones and a live segment: the same answers."""
    with Store.open(tmp_path, mode="w", create=True, salt=SALT, chunk_rows=64) as store:
        for kind in KINDS:
            with store.bulk(kind) as sink:
                sink.write(frames[kind].slice(0, 90))
            store.upsert(kind, frames[kind].slice(80))
        store.delete("freelancer", [DEAD])
        fitted = store.refit(seed=1, sample=1_000, as_of=AS_OF)
        snapshot = store.snapshot()
        answers = Matcher(store, get_ops("cpu"), Policy.load()).match_many(
            requests_of_a_scenario(matcher.source)
        )
    local = Market(frames, fitted, dead=(DEAD,))
    local.epoch = snapshot.epoch
    told = Matcher(local, Ops(threads=1), Policy.load()).match_many(requests_of_a_scenario(local))
    assert bytes_of(answers) == bytes_of(told)


def test_requests_that_share_rules_share_a_group(market):
    seen = []

    class Spy(Ops):
        def topk(self, corpus, queries, k, **options):
            seen.append((queries.q, len(queries.groups)))
            return super().topk(corpus, queries, k, **options)

    blank = [{"id": f"j{n}", "title": f"title {n}", "status": "OPEN"} for n in range(5)]
    requests = [Request(kind="job", record=record, as_of=AS_OF) for record in blank]
    Matcher(market, Spy(threads=1), Policy.load()).match_many(requests)
    assert seen == [(5, 1)]


def test_the_schemas_are_what_the_fake_market_holds(frames):
    for kind in KINDS:
        assert dict(frames[kind].schema) == dict(SCHEMAS[kind])
