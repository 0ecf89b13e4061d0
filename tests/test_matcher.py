"""The matcher: both directions, against brute force; the same bytes on every way to the answer."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import Counter
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from matchwright.engine import synthetic
from matchwright.engine.columns import columns
from matchwright.engine.eligibility import compile_rules
from matchwright.engine.errors import (
    EpochGone,
    EpochNotReached,
    FailedPrecondition,
    InvalidArgument,
    InvalidData,
    LowResolution,
    MatchwrightError,
    NotFound,
    UnknownKey,
)
from matchwright.engine.generation import fit
from matchwright.engine.matcher import OTHER, Matcher, Request
from matchwright.engine.policy import Policy
from matchwright.engine.prepare import points_floor
from matchwright.engine.records import FIELDS, SCHEMAS, to_frame
from matchwright.engine.results import Result, Shortfall
from matchwright.engine.rule_shapes import Day, QueryRow
from matchwright.engine.store import Store
from matchwright.engine.zones import offset_minutes
from matchwright.kernels import rules as kernel_rules
from matchwright.kernels.index import build_index
from matchwright.kernels.ops import Ops, get_ops
from matchwright.kernels.order import hash_keys
from matchwright.kernels.types import Corpus, Segment

SALT = bytes(range(16))
AS_OF = synthetic.AS_OF
KINDS = ("job", "freelancer")
PEOPLE, JOBS = 400, 150
DEAD = "f-0000015"


# ── A marketplace in memory ───────────────────────────────────────────────────────────────────


class Market:
    """A snapshot over frames: one segment for each slice, some rows of them dead."""

    def __init__(self, frames, generation, cuts=(), dead=()):
        self.epoch = SimpleNamespace(uuid="u", number=7, digest="d")
        self.generation, self.salt = generation, SALT
        self.frames = frames
        self._ids = {kind: frame["id"].to_list() for kind, frame in frames.items()}
        self._dead = {kind: set(dead) & set(self._ids[kind]) for kind in KINDS}
        self._corpora = {kind: self._corpus(kind, cuts) for kind in KINDS}

    def _corpus(self, kind, cuts):
        frame = self.frames[kind]
        edges = [0, *(cut for cut in cuts if cut < frame.height), frame.height]
        parts = []
        for low, high in itertools.pairwise(edges):
            rows = frame.slice(low, high - low)
            scalars, sets = columns(kind, rows, SALT, self.generation)
            keys = hash_keys(rows["id"].to_list(), SALT)
            x_nd = self.generation.encode(kind, rows).x_nd
            index = build_index(scalars, sets, x_nd, keys)
            alive = np.array([name not in self._dead[kind] for name in rows["id"].to_list()])
            segment = Segment(x_nd, keys, scalars, sets, index)
            parts.append((segment, None if alive.all() else alive))
        return Corpus(tuple(parts))

    def corpus(self, kind):
        return self._corpora[kind]

    def keys(self, ids):
        return hash_keys(ids, SALT)

    def rows_of(self, kind, ids):
        place = {name: n for n, name in enumerate(self._ids[kind])}
        dead = self._dead[kind]
        return np.array([-1 if n in dead else place.get(n, -1) for n in ids], dtype=np.int64)

    def ids_of(self, kind, rows):
        return [self._ids[kind][row] for row in np.asarray(rows).tolist()]

    def rows(self, kind, ids):
        return self.frames[kind][self.rows_of(kind, ids).tolist()].to_dicts()

    def record(self, kind, name):
        return self.rows(kind, [name])[0]


def open_minded(kind, row):
    """Take its limits away, so that many on the other side are eligible."""
    row.update({name: None for name, field in FIELDS[kind].items() if field.limit})
    if kind == "job":
        row.update(status="OPEN", closes=None, languages=None, rate_max_cents=20_000)
        for skill in row["skills"] or ():
            skill["must"] = False
    else:
        row.update(status="AVAILABLE", rate_cents=2_000)


@pytest.fixture(scope="module")
def frames():
    made = {
        "job": synthetic.frame("job", JOBS, seed=3),
        "freelancer": synthetic.frame("freelancer", PEOPLE, seed=3),
    }
    for kind in KINDS:
        rows = made[kind].to_dicts()
        for row in rows[:10]:
            open_minded(kind, row)
        made[kind] = to_frame(kind, rows)
    # Twins: the same record under other ids ties in points.
    twins = made["freelancer"].head(20)
    twins = twins.with_columns(id="twin-" + twins["id"])
    made["freelancer"] = made["freelancer"].vstack(twins)
    return made


@pytest.fixture(scope="module")
def generation(frames):
    return fit(frames["job"], frames["freelancer"], seed=1, sample=1_000, as_of=AS_OF)


@pytest.fixture(scope="module")
def market(frames, generation):
    return Market(frames, generation, cuts=(100, 101, 260), dead=(DEAD,))


@pytest.fixture(scope="module")
def matcher(market):
    return Matcher(market, Ops(threads=1), Policy.load())


def some_id(market, kind, n=0):
    return market.frames[kind]["id"][n]


def ask(market, kind, n=0, **more):
    return Request(kind=kind, id=some_id(market, kind, n), **{"as_of": AS_OF, **more})


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


# ── Congruence ────────────────────────────────────────────────────────────────────────────────


def requests_of_a_scenario(market):
    """Both directions, every kind of option, some of them wrong."""
    made = []
    for kind in KINDS:
        made += [ask(market, kind, n, k=k) for n, k in enumerate((1, 10, 37, 1_000, 100))]
        made.append(ask(market, kind, 5, weights={"skills": 7.0}))
        made.append(ask(market, kind, 6, min_score=1.5, k=50))
        made.append(ask(market, kind, 7, rules={"same_category": {"enabled": True}}))
        made.append(Request(kind=kind, id="nobody", as_of=AS_OF))
        made.append(ask(market, kind, 8, count=False))
        made.append(ask(market, kind, 9, as_of=AS_OF + 200))
    return made


def bytes_of(answers):
    return [
        str(answer).encode() if isinstance(answer, MatchwrightError) else answer.canonical_bytes()
        for answer in answers
    ]


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
