"""Explanations of any pair, and what each audience may see of them."""

from __future__ import annotations

import itertools
import json
from types import SimpleNamespace

import numpy as np
import pytest

from matchwright.engine import synthetic
from matchwright.engine.columns import columns
from matchwright.engine.eligibility import RULE, RULES, Veto, VetoClass
from matchwright.engine.errors import InvalidArgument, NotFound
from matchwright.engine.explain import NOT_AVAILABLE
from matchwright.engine.generation import starter
from matchwright.engine.matcher import Matcher, Request
from matchwright.engine.policy import Policy
from matchwright.engine.records import to_frame
from matchwright.engine.skill_match import match_skills
from matchwright.kernels.ops import Ops
from matchwright.kernels.order import hash_keys
from matchwright.kernels.types import Corpus, Segment

SALT = bytes(16)
AS_OF = synthetic.AS_OF
KINDS = ("job", "freelancer")


class Market:
    """A snapshot over frames, one segment a kind."""

    def __init__(self, frames, generation):
        self.epoch = SimpleNamespace(uuid="u", number=1, digest="d")
        self.generation, self.salt, self.frames = generation, SALT, frames
        self._ids = {kind: frame["id"].to_list() for kind, frame in frames.items()}
        self._corpora = {kind: self._corpus(kind, frame) for kind, frame in frames.items()}

    def _corpus(self, kind, frame):
        scalars, sets = columns(kind, frame, SALT, self.generation)
        x_nd = self.generation.encode(kind, frame).x_nd
        return Corpus(((Segment(x_nd, self.keys(self._ids[kind]), scalars, sets), None),))

    def corpus(self, kind):
        return self._corpora[kind]

    def keys(self, ids):
        return hash_keys(ids, SALT)

    def rows_of(self, kind, ids):
        place = {name: n for n, name in enumerate(self._ids[kind])}
        return np.array([place.get(name, -1) for name in ids], dtype=np.int64)

    def ids_of(self, kind, rows):
        return [self._ids[kind][row] for row in np.asarray(rows).tolist()]

    def rows(self, kind, ids):
        return self.frames[kind][self.rows_of(kind, ids).tolist()].to_dicts()


def skill(name, must=None, level=None):
    return {"name": name, "level": level, **({} if must is None else {"must": must})}


JOB = {
    "id": "the-job",
    "client_id": "the-client",
    "title": "Rust engineer",
    "skills": [skill("Rust", True), skill("Python", False), skill("Zig", False)],
    "rate_max_cents": 5_000,
    "max_rate_cents": 4_321,
    "status": "OPEN",
    "country": "FR",
    "weekly_hours": 20,
    "excluded_freelancers": ["someone-else", "excluded-one"],
}
GOOD = {
    "id": "good-one",
    "title": "Rust engineer",
    "skills": [skill("Rust", level=5), skill("SQL"), skill("Python", level=2)],
    "rate_cents": 4_000,
    "status": "AVAILABLE",
    "rating_milli": 4_800,
    "reviews": 12,
    "min_rate_cents": 3_777,
    "excluded_clients": ["another-client"],
}
DEAR = {**GOOD, "id": "dear-one", "rate_cents": 4_999, "min_rate_cents": None}
LIMITED = {**GOOD, "id": "limited-one", "min_rate_cents": 6_789}
HATED = {**GOOD, "id": "excluded-one"}
HATING = {**GOOD, "id": "hating-one", "excluded_clients": ["the-client", "third-client"]}
GONE = {**GOOD, "id": "gone-one", "status": "GONE"}
SILENT = {"id": "silent-one"}
BARE = {**GOOD, "id": "bare-one", "skills": [skill("SQL")], "rate_cents": 9_000}
OTHERS = tuple({**GOOD, "id": f"other-{n}", "rate_cents": 3_800 + 50 * n} for n in range(6))
CAST = (GOOD, DEAR, LIMITED, HATED, HATING, GONE, SILENT, BARE, *OTHERS)


@pytest.fixture(scope="module")
def market():
    frames = {kind: synthetic.frame(kind, 120, seed=5) for kind in KINDS}
    frames["job"] = frames["job"].vstack(to_frame("job", [JOB]))
    frames["freelancer"] = frames["freelancer"].vstack(to_frame("freelancer", CAST))
    return Market(frames, starter())


@pytest.fixture(scope="module")
def matcher(market):
    return Matcher(market, Ops(threads=1), Policy.load())


def told(matcher, freelancer, **options):
    return matcher.explain("the-job", freelancer, **{"as_of": AS_OF, **options})


# ── Numbers ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("direction", KINDS)
def test_ranks_are_those_of_the_match(market, matcher, direction):
    asking = "the-job" if direction == "job" else "good-one"
    result = matcher.match(Request(kind=direction, id=asking, k=1_000, as_of=AS_OF))
    assert result.returned > 3
    for match in result:
        pair = (asking, match.id) if direction == "job" else (match.id, asking)
        said = matcher.explain(*pair, direction=direction, as_of=AS_OF, k=3)
        assert said.eligible
        assert said.rank == match.rank
        assert said.points == match.points
        assert said.score == match.score
        assert {s.name: s.points for s in said.contributions} == match.contributions
        assert said.eligible_count == result.eligible
        assert said.kth_points == result.points[2]
        assert said.gap_points == result.points[2] - match.points
        assert (said.gap_points > 0) <= (match.rank > 3)
        assert said.unverified == () or result.unverified


def test_a_vetoed_pair_says_the_points_it_would_have_had(matcher):
    said = told(matcher, "bare-one")
    assert not said.eligible
    assert {reason.reason for reason in said.vetoes} == {
        "SKILL_MISSING",
        "RATE_ABOVE_CEILING",
        "RATE_ABOVE_BUDGET",
    }
    assert said.points == sum(share.points for share in said.contributions) != 0
    result = matcher.match(Request(kind="job", id="the-job", k=1_000, as_of=AS_OF))
    assert said.rank == 1 + int((result.points > said.points).sum())
    values = {name: value for reason in said.vetoes for name, value in reason.values.items()}
    assert values["job.max_rate_cents"] == 4_321
    assert values["freelancer.rate_cents"] == 9_000
    assert values["job.skills"] == ["Rust"]
    assert values["freelancer.skills"] == ["SQL"]


def test_every_pair_agrees_with_the_match(market, matcher):
    result = matcher.match(Request(kind="job", id="the-job", k=1_000, as_of=AS_OF))
    for name in market.frames["freelancer"]["id"].to_list():
        said = told(matcher, name)
        assert said.eligible == (name in result.ids) == (said.vetoes == ())


def test_a_facet_is_described_by_its_fit(matcher):
    fits = {share.name: share.fit for share in told(matcher, "good-one").contributions}
    assert fits["rate"] == "strong"
    assert fits["text"] in ("strong", "fair")
    assert fits["hours"] == "not asked"
    silent = {share.name: share.fit for share in told(matcher, "silent-one").contributions}
    assert silent["skills"] == "not known"
    off = told(matcher, "good-one", weights={"rate": 0})
    assert {share.name: share.fit for share in off.contributions}["rate"] == "not asked"


def test_unknown_values_that_passed_are_listed(matcher):
    said = told(matcher, {"id": "new-one", "rate_cents": 4_000, "country": "FR"})
    assert said.eligible
    reasons = {reason.reason for reason in said.unverified}
    assert reasons == {"FREELANCER_NOT_AVAILABLE", "SKILL_MISSING"}


# ── Inline ────────────────────────────────────────────────────────────────────────────────────


def test_an_inline_freelancer_ranks_as_if_stored(market, matcher):
    stored = told(matcher, "good-one")
    inline = told(matcher, {**GOOD})
    assert inline.to_dict() == stored.to_dict()
    new = told(matcher, {**GOOD, "rate_cents": 3_000, "id": "new-one"})
    assert new.eligible
    assert new.freelancer_id == "new-one"
    assert new.eligible_count == stored.eligible_count + 1


def test_both_inline(matcher):
    said = matcher.explain(
        {**JOB, "id": None, "excluded_freelancers": None},
        {**GOOD, "id": None},
        direction="freelancer",
        as_of=AS_OF,
    )
    assert (said.job_id, said.freelancer_id) == (None, None)
    assert said.eligible


@pytest.mark.parametrize("direction", KINDS)
def test_somebody_without_an_id_may_be_one_that_is_excluded(matcher, direction):
    said = told(matcher, {**GOOD, "id": None}, direction=direction)
    assert [reason.reason for reason in said.vetoes] == ["EXCLUDED_BY_CLIENT"]
    policy = Policy.parse('rules.excluded_freelancers.on_unknown = "pass"')
    lenient = Matcher(matcher.source, matcher.ops, policy)
    said = told(lenient, {**GOOD, "id": None}, direction=direction)
    assert said.eligible
    assert "EXCLUDED_BY_CLIENT" in {reason.reason for reason in said.unverified}


# ── Skills ────────────────────────────────────────────────────────────────────────────────────


def test_skills_by_name(matcher):
    skills = told(matcher, "good-one").skills
    assert [one.name for one in skills.matched] == ["Rust", "Python"]
    assert skills.matched[0].must
    assert skills.matched[0].level == 5
    assert [one.name for one in skills.missing] == ["zig"]
    assert skills.extra == ("SQL",)
    assert skills.known
    assert not told(matcher, "silent-one").skills.known


def test_collisions_are_itemised():
    generation = SimpleNamespace(skill_dim=len)
    job = {"skills": [skill("aaa", True), skill("bb", False), skill("cccc", False)]}
    one = {"skills": [skill("ddd"), skill("bb"), skill("eeeee")]}
    found = match_skills(job, one, generation)
    assert [(c.asked, c.counted, c.dimension) for c in found.collisions] == [("aaa", "ddd", 3)]
    many = {"skills": [skill(f"s{n:02}") for n in range(33)]}
    assert match_skills(job, many, generation).uncounted == ("s30", "s31", "s32")


# ── Audiences ─────────────────────────────────────────────────────────────────────────────────

SECRETS = {
    "client": ("6789", "3777", "third-client", "another-client", "PAY_", "EXCLUDED_BY_FREELANCER"),
    "freelancer": ("4321", "someone-else", "CEILING", "EXCLUDED_BY_CLIENT"),
}
"""What must not appear anywhere in what the audience gets."""


@pytest.mark.parametrize("audience", SECRETS)
@pytest.mark.parametrize("direction", KINDS)
@pytest.mark.parametrize("name", [one["id"] for one in CAST])
def test_nothing_private_leaks(matcher, audience, direction, name):
    said = told(matcher, name, audience=audience, direction=direction)
    shown = json.dumps(said.to_dict())
    for secret in SECRETS[audience]:
        assert secret not in shown
    if name == "limited-one" and audience == "freelancer":
        assert "6789" in shown  # one's own limit is one's own


def test_a_client_cannot_tell_why_a_freelancer_is_not_available(matcher):
    """A limit, an exclusion and somebody's absence look the same."""
    shown = []
    for name in ("limited-one", "hating-one", "gone-one"):
        said = told(matcher, name, audience="client").to_dict()
        assert [reason["reason"] for reason in said["vetoes"]] == [NOT_AVAILABLE]
        assert said.pop("freelancer_id") == name
        shown.append(said)
    assert shown[0] == shown[1] == shown[2]
    assert shown[0]["vetoes"][0]["text"] == "this freelancer is not available for this job"


def test_a_freelancer_cannot_tell_an_exclusion_from_a_ceiling(matcher):
    shown = []
    for name in ("excluded-one", "dear-one"):
        said = told(matcher, name, audience="freelancer").to_dict()
        assert [reason["reason"] for reason in said["vetoes"]] == [NOT_AVAILABLE]
        shown.append(said["vetoes"])
    assert shown[0] == shown[1]


def test_owners_and_operators_see_their_limits(matcher):
    own = told(matcher, "dear-one", audience="client").vetoes
    assert [reason.reason for reason in own] == ["RATE_ABOVE_CEILING"]
    assert own[0].values == {"job.max_rate_cents": 4_321, "freelancer.rate_cents": 4_999}
    own = told(matcher, "limited-one", audience="freelancer").vetoes
    assert [reason.reason for reason in own] == ["PAY_BELOW_MINIMUM"]
    operator = told(matcher, "hating-one").vetoes
    assert operator[0].veto_class == VetoClass.EXCLUSION
    assert operator[0].values == {
        "freelancer.excluded_clients": ["the-client"],
        "job.client_id": "the-client",
    }


@pytest.mark.parametrize("audience", SECRETS)
def test_people_see_no_numbers_of_the_ranking(matcher, audience):
    said = told(matcher, "good-one", audience=audience)
    assert said.points is said.score is said.rank is said.gap_points is said.kth_points is None
    assert said.t is said.attainable is said.order_key is None
    assert said.rank_within in (10, 100, 1_000)
    assert all(share.points is share.score is share.best is None for share in said.contributions)
    assert said.skills.collisions == ()


def test_small_counts_have_a_floor(matcher):
    few = told(matcher, "good-one", audience="client", candidate_ids=["good-one"])
    assert few.eligible_count == "fewer than 10"
    assert told(matcher, "good-one", candidate_ids=["good-one"]).eligible_count == 1
    many = told(matcher, "good-one", audience="client")
    assert many.eligible_count == "fewer than 10" or many.eligible_count >= 10


def test_each_private_rule_is_private_to_the_owner_of_its_limit():
    for rule in RULES:
        if rule.private_to is not None:
            assert rule.fields[0].startswith(f"{rule.private_to}.")
        if rule.veto_class in (VetoClass.PRIVATE_LIMIT, VetoClass.EXCLUSION):
            assert rule.private_to is not None
    assert {str(veto) for veto in Veto} == {
        *(str(rule.veto) for rule in RULE.values()),
        "EXCLUDED_BY_REQUEST",
        "NOT_A_CANDIDATE",
    }


# ── Errors ────────────────────────────────────────────────────────────────────────────────────


def test_what_is_not_there(matcher):
    with pytest.raises(NotFound, match="nobody"):
        told(matcher, "nobody")
    with pytest.raises(NotFound):
        matcher.explain("nothing", "good-one", as_of=AS_OF)


@pytest.mark.parametrize(
    "options", [{"audience": "public"}, {"direction": "both"}, {"colour": 1}, {"as_of": None}]
)
def test_options_that_are_wrong(matcher, options):
    with pytest.raises(InvalidArgument):
        told(matcher, "good-one", **options)


def test_an_explanation_is_plain_json(matcher):
    for name, audience in itertools.product(("good-one", "bare-one"), ("operator", "client")):
        document = told(matcher, name, audience=audience).to_dict()
        assert json.loads(json.dumps(document)) == document
