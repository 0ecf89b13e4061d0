"""Why a pair matches and where it ranks, or every reason why it does not.

An explanation is made in full and then shown to an audience. Operators see numbers. A client never
learns a freelancer's private limit, nor that a freelancer excluded them, and the other way round:
every reason that is private to the other side is shown as one and the same "not available", with
no values, so that one cannot be told from another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from matchwright.engine.columns import columns
from matchwright.engine.eligibility import (
    RULE,
    RULE_OF_VETO,
    Rule,
    Veto,
    VetoClass,
    values_shown,
)
from matchwright.engine.errors import InvalidArgument, NotFound
from matchwright.engine.limits import tightened
from matchwright.engine.matcher import as_queries
from matchwright.engine.prepare import Prepared, SnapshotLike, inline_key, inline_row
from matchwright.engine.records import Kind
from matchwright.engine.request import Request, check_id
from matchwright.engine.rerank.features_pairs import Inline
from matchwright.engine.rerank.rerank import refuse_k
from matchwright.engine.rerank.rerank_explain import SecondPhase, not_eligible, second_phase
from matchwright.engine.results import OrderKey
from matchwright.engine.skill_match import SkillMatch, match_skills
from matchwright.kernels.ops import Rank
from matchwright.kernels.types import Bool, Corpus, Int64, Queries, Segment

if TYPE_CHECKING:
    from matchwright.engine.matcher import Audience, Matcher

AUDIENCES = ("operator", "client", "freelancer")
OWN_KIND: Mapping[str, Kind] = {"client": "job", "freelancer": "freelancer"}
"""Whose limits an audience may see."""
NOT_AVAILABLE = "NOT_AVAILABLE"
"""What the other side's private reasons look like."""
RANK_STEPS = (10, 100, 1_000)
"""People who are not operators are told the first of these that a rank lies within."""
STRONG, FAIR = 2 / 3, 1 / 3
"""Shares of a facet's best from which it is called strong, or fair."""

_WORDS = {
    VetoClass.STATUS: "does not take part at present",
    VetoClass.REQUIREMENT: "something that the job asks for is not there",
    VetoClass.PRIVATE_LIMIT: "outside a limit that one side has set",
    VetoClass.EXCLUSION: "one side has excluded the other",
    VetoClass.REQUEST: "the request itself left this one out",
}
_CLOSED = {
    "client": "this freelancer is not available for this job",
    "freelancer": "this job is not available to you",
}


@dataclass(frozen=True, slots=True)
class Reason:
    """A veto, or a rule that was passed on an unknown value.

    Attributes:
        reason: the veto's name; ``NOT_AVAILABLE`` where it is the other side's business.
        veto_class: its class; ``NOT_AVAILABLE`` likewise.
        text: in words.
        values: ``kind.field`` -> value, of both sides; empty where they are not shown.
    """

    reason: str
    veto_class: str
    text: str
    values: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        return {
            "reason": self.reason,
            "class": self.veto_class,
            "text": self.text,
            "values": dict(self.values),
        }


@dataclass(frozen=True, slots=True)
class FacetShare:
    """What one facet gave.

    Attributes:
        points: its part of the points; None when not shown.
        score: ``points * t``; None when not shown.
        best: the most that it could give, in score; None when not shown.
        fit: "strong", "fair", "weak"; "not asked" where the one that asks tells nothing, or the
            weight is 0; "not known" where the other tells nothing and counts as the average.
    """

    name: str
    points: int | None
    score: float | None
    best: float | None
    fit: str

    def to_dict(self) -> dict[str, Any]:
        return {
            "facet": self.name,
            "points": self.points,
            "score": self.score,
            "best": self.best,
            "fit": self.fit,
        }


@dataclass(frozen=True)
class Explanation:
    """All about one pair, as one audience may see it.

    Attributes:
        direction: the kind that asks; points and rank are in its ranking.
        eligible: no rule vetoes the pair.
        vetoes: every reason why not.
        unverified: rules passed on unknown values.
        rank: exact rank among the eligible, or the rank it would have had; None when not shown.
        rank_within: 10, 100 or 1,000 when the rank lies within; None beyond.
        eligible_count: how many are eligible, a number or "fewer than 10".
        points, score, contributions: as in a result; for a vetoed pair, what it would have had.
        k, kth_points, gap_points: the points of the K-th, and what is missing to draw level with
            it (not above 0 when nothing is); None when fewer than K are eligible.
        attainable: score of the best conceivable match.
        skills: matched, missing and further skills by name.
        rerank: what the second phase made of the pair; None where the policy has none. ``rank``,
            ``points`` and what else stands here are the first phase's.
        degraded: what a served encoder did not give in time, as in a result.
    """

    direction: Kind
    audience: str
    job_id: str | None
    freelancer_id: str | None
    epoch: str
    generation: str
    policy: str
    as_of: int
    eligible: bool
    vetoes: tuple[Reason, ...]
    unverified: tuple[Reason, ...]
    rank: int | None
    rank_within: int | None
    eligible_count: int | str
    points: int | None
    score: float | None
    t: float | None
    order_key: str | None
    k: int
    kth_points: int | None
    gap_points: int | None
    attainable: float | None
    contributions: tuple[FacetShare, ...]
    skills: SkillMatch
    rerank: SecondPhase | None = None
    degraded: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON and tables."""
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__}
        for name in ("vetoes", "unverified", "contributions"):
            plain[name] = [one.to_dict() for one in plain[name]]
        plain["skills"] = self.skills.to_dict()
        second, missed = plain.pop("rerank"), list(plain.pop("degraded"))
        plain |= {"degraded": missed} if missed else {}
        return plain if second is None else {**plain, "rerank": second.to_dict()}


@dataclass(frozen=True, slots=True, eq=False)
class _Target:
    """The other side of the pair: where it stands in the corpus.

    Attributes:
        corpus: with the entity in it, even when it was given inline.
        known_b: facet by facet, whether it tells anything.
    """

    corpus: Corpus
    row: int
    record: Mapping[str, Any]
    identity: str | None
    known_b: Sequence[bool]


def explain(
    matcher: Matcher,
    job: str | Mapping[str, Any],
    freelancer: str | Mapping[str, Any],
    *,
    direction: Kind = "job",
    audience: Audience = "operator",
    as_of: int | None = None,
    **options: Any,
) -> Explanation:
    """See ``Matcher.explain``.

    Raises:
        NotFound: an id that is not there.
        InvalidArgument: an audience or an option that does not exist.
    """
    if audience not in AUDIENCES:
        raise InvalidArgument(
            f"audience is {audience!r}; expected one of {', '.join(AUDIENCES)}", field="audience"
        )
    if direction not in ("job", "freelancer"):
        raise InvalidArgument(
            f"direction is {direction!r}; expected 'job' or 'freelancer'", field="direction"
        )
    asking, other = (job, freelancer) if direction == "job" else (freelancer, job)
    request = _request(direction, asking, as_of, options)
    refuse_k(matcher.policy, request.k)
    snapshot = matcher.snapshot(request)
    query = matcher.prepare_one(snapshot, request)
    target = _target(snapshot, "freelancer" if direction == "job" else "job", other)
    return _shown(_full(matcher, snapshot, query, target), audience, query)


def _request(
    kind: Kind, asking: str | Mapping[str, Any], as_of: int | None, options: Mapping[str, Any]
) -> Request:
    who: dict[str, Any] = {"id": asking} if isinstance(asking, str) else {"record": asking}
    try:
        return Request(kind=kind, as_of=as_of, **who, **options)
    except TypeError:
        known = [name for name in Request.__dataclass_fields__ if name not in ("kind", "id")]
        raise InvalidArgument(
            f"explain got the options {sorted(options)}; it takes {', '.join(known)}"
        ) from None


def _target(snapshot: SnapshotLike, kind: Kind, other: str | Mapping[str, Any]) -> _Target:
    corpus = snapshot.corpus(kind)
    if isinstance(other, str):
        check_id(other, kind)
        row = int(snapshot.rows_of(kind, [other])[0])
        if row < 0:
            raise NotFound(f"there is no {kind} with the id {other!r}", id=other, kind=kind)
        record = snapshot.rows(kind, [other])[0]
        known = snapshot.generation.encode(kind, [record]).known_nb[0].tolist()
        return _Target(corpus, row, record, str(record["id"]), known)
    record, identity = inline_row(kind, other)
    segment, known = _inline_segment(snapshot, kind, record, identity)
    stored = -1 if identity is None else int(snapshot.rows_of(kind, [identity])[0])
    parts = corpus.parts if stored < 0 else _without(corpus, stored)
    whole = Corpus((*parts, (segment, None)))
    return _Target(whole, corpus.n, record, identity, known)


def _without(corpus: Corpus, row: int) -> tuple[tuple[Segment, Bool | None], ...]:
    """The corpus' parts with one row dead: an inline record stands in for the stored one."""
    part = int(np.searchsorted(corpus.base, row, side="right")) - 1
    parts = list(corpus.parts)
    segment, alive = parts[part]
    alive = np.ones(segment.n, dtype=np.bool_) if alive is None else alive.copy()
    alive[row - int(corpus.base[part])] = False
    parts[part] = segment, alive
    return tuple(parts)


def _inline_segment(
    snapshot: SnapshotLike,
    kind: Kind,
    record: Mapping[str, Any],
    identity: str | None,
) -> tuple[Segment, Sequence[bool]]:
    """A segment of one row for an entity that is not stored."""
    encoded = snapshot.generation.encode(kind, [record])
    scalars, sets = columns(kind, [record], snapshot.salt, snapshot.generation)
    if identity is None:
        key = np.array([inline_key(kind, record, False, snapshot.salt)], dtype=np.uint64)
    else:
        key = snapshot.keys([identity])
    return Segment(encoded.x_nd, key, scalars, sets), encoded.known_nb[0].tolist()


@dataclass(frozen=True, slots=True, eq=False)
class _Full:
    """Everything about a pair, before anybody sees it."""

    snapshot: SnapshotLike
    target: _Target
    vetoes: tuple[str, ...]
    unverified: tuple[str, ...]
    rank: Rank
    shares: tuple[FacetShare, ...]
    skills: SkillMatch
    second: SecondPhase | None


def _full(matcher: Matcher, snapshot: SnapshotLike, query: Prepared, target: _Target) -> _Full:
    ops, corpus, row = matcher.ops, target.corpus, target.row
    queries = Queries(
        q_qd=query.q_d[None, :],
        key_q=np.array([query.key], dtype=np.uint64),
        groups=(query.rules,),
    )
    rank = ops.rank(corpus, queries, row, k=query.request.k)
    vetoes, unverified = ops.vetoes(corpus, query.rules, row)
    vetoes, unsure = _nameless(query, target, vetoes)
    x_nd = _vector(corpus, row)
    parts = ops.contributions(x_nd, query.q_d, snapshot.generation.offsets)[0].tolist()
    both = {query.request.kind: query.record, _other(query): target.record}
    return _Full(
        snapshot,
        target,
        vetoes,
        tuple(dict.fromkeys((*query.compiled.unsure, *unverified, *unsure))),
        rank,
        _shares(snapshot, query, parts, target.known_b),
        match_skills(both["job"], both["freelancer"], snapshot.generation),
        _second(matcher, snapshot, query, target, eligible=not vetoes),
    )


def _second(
    matcher: Matcher, snapshot: SnapshotLike, query: Prepared, target: _Target, *, eligible: bool
) -> SecondPhase | None:
    """Where the model puts the pair; None where the policy has no second phase."""
    ranker, settings = matcher.ranker, query.policy.rerank
    if ranker is None or settings is None:
        return None
    if not eligible:
        return not_eligible(ranker, settings.candidates)
    top = matcher.ops.topk(target.corpus, as_queries([query]), settings.candidates)
    rows = top.row_qk[0, : int(top.returned_q[0])]
    inline = None
    if target.corpus is not snapshot.corpus(_other(query)):
        inline = Inline(target.corpus, {target.row: target.record})
    return second_phase(ranker, snapshot, query, rows, target.row, inline, RANK_STEPS)


def _nameless(
    query: Prepared, target: _Target, vetoes: tuple[str, ...]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(vetoes, unverified) of a freelancer without an id, who may be one that is excluded by name:
    keys of rows are never unknown, so the kernels cannot say it."""
    rule = RULE["excluded_freelancers"]
    setting = query.policy.rules[rule.name]
    excluded = tightened(query.record, query.policy.limits).get("excluded_freelancers")
    if query.request.kind != "job" or target.identity or not (setting.enabled and excluded):
        return vetoes, ()
    if setting.unknown_passes:
        return vetoes, (rule.veto,)
    return (*vetoes, rule.veto), ()


def _other(query: Prepared) -> Kind:
    return "freelancer" if query.request.kind == "job" else "job"


def _vector(corpus: Corpus, row: int) -> Any:
    part = int(np.searchsorted(corpus.base, row, side="right")) - 1
    local: Int64 = np.array([row - int(corpus.base[part])], dtype=np.int64)
    return corpus.parts[part][0].x_nd[local]


def _shares(
    snapshot: SnapshotLike, query: Prepared, parts: Sequence[int], known_b: Sequence[bool]
) -> tuple[FacetShare, ...]:
    generation, kind = snapshot.generation, query.request.kind
    vectors = generation.query(
        kind, [query.record], query.policy.facets, query.request.as_of, query.text
    )
    shares = []
    for b, (facet, points) in enumerate(zip(generation.facets, parts, strict=True)):
        weight = query.policy.weights.get(facet.name, 0.0)
        best = weight * float(vectors.best_qb[0, b])
        asked = bool(vectors.known_qb[0, b]) and weight > 0
        fit = fit_of(points * query.t, best, asked, known_b[b])
        shares.append(FacetShare(facet.name, points, points * query.t, best, fit))
    return tuple(shares)


def fit_of(score: float, best: float, asked: bool, known: bool) -> str:
    """In a word, how much of a facet's best was reached; see ``FacetShare.fit``."""
    if not asked or best <= 0:
        return "not asked"
    if not known:
        return "not known"
    share = score / best
    return "strong" if share >= STRONG else "fair" if share >= FAIR else "weak"


# ── Showing ───────────────────────────────────────────────────────────────────────────────────


def _shown(full: _Full, audience: Audience, query: Prepared) -> Explanation:
    """What ``audience`` may see of it."""
    open_ = audience == "operator"
    rank, request = full.rank, query.request
    both = {request.kind: query.record, _other(query): full.target.record}
    ids = {request.kind: query.query_id, _other(query): full.target.identity}
    key = OrderKey(rank.points, rank.mix, rank.low)
    within = next((step for step in RANK_STEPS if rank.rank <= step), None)
    eligible = not full.vetoes
    return Explanation(
        direction=request.kind,
        audience=audience,
        job_id=ids["job"],
        freelancer_id=ids["freelancer"],
        epoch=str(full.snapshot.epoch),
        generation=full.snapshot.generation.id,
        policy=query.policy.id,
        as_of=int(request.as_of or 0),
        eligible=eligible,
        vetoes=_reasons(full.vetoes, both, audience),
        unverified=_unverified(full.unverified, both, audience),
        rank=rank.rank if open_ else None,
        rank_within=within if open_ or eligible else None,
        eligible_count=_count(rank.eligible, query.policy.count_floor, open_),
        points=rank.points if open_ else None,
        score=rank.points * query.t if open_ else None,
        t=query.t if open_ else None,
        order_key=str(key) if open_ else None,
        k=request.k,
        kth_points=rank.kth_points if open_ else None,
        gap_points=rank.gap_points if open_ else None,
        attainable=query.attainable if open_ else None,
        contributions=tuple(share if open_ else _closed(share) for share in full.shares),
        skills=full.skills if open_ else full.skills.without_collisions(),
        rerank=full.second if open_ or full.second is None else full.second.shown(),
        degraded=query.degraded,
    )


def _count(n: int, floor: int, open_: bool) -> int | str:
    return n if open_ or n >= floor else f"fewer than {floor}"


def _closed(share: FacetShare) -> FacetShare:
    return FacetShare(share.name, None, None, None, share.fit)


def _hidden(rule: Rule | None, audience: str) -> bool:
    """Whether a reason is the other side's business."""
    if rule is None or rule.private_to is None or audience == "operator":
        return False
    return rule.private_to != OWN_KIND[audience]


def _reasons(
    vetoes: Sequence[str], both: Mapping[Kind, Mapping[str, Any]], audience: str
) -> tuple[Reason, ...]:
    shown: list[Reason] = []
    hidden = False
    for veto in vetoes:
        rule = RULE_OF_VETO.get(veto)
        if _hidden(rule, audience):
            hidden = True
        elif rule is None:
            shown.append(Reason(veto, VetoClass.REQUEST, _WORDS[VetoClass.REQUEST], {}))
        else:
            values = _pruned(rule, both)
            shown.append(Reason(veto, rule.veto_class, _WORDS[rule.veto_class], values))
    if hidden:
        shown.append(Reason(NOT_AVAILABLE, NOT_AVAILABLE, _CLOSED[audience], {}))
    return tuple(shown)


def _unverified(
    vetoes: Sequence[str], both: Mapping[Kind, Mapping[str, Any]], audience: str
) -> tuple[Reason, ...]:
    """Rules passed on unknown values. Those private to the other side are left out altogether: to
    say that one exists would tell that there is a limit."""
    shown = []
    for veto in vetoes:
        rule = RULE_OF_VETO[veto]
        if not _hidden(rule, audience):
            text = "passed, because the value that it needs is not known"
            shown.append(Reason(veto, rule.veto_class, text, _pruned(rule, both)))
    return tuple(shown)


def _pruned(rule: Rule, both: Mapping[Kind, Mapping[str, Any]]) -> dict[str, Any]:
    """The values that a rule looks at, without what does not concern this pair."""
    values = values_shown(rule, both)
    if rule.veto is Veto.SKILL_MISSING:
        must = [skill["name"] for skill in values["job.skills"] or () if skill["must"]]
        return {**values, "job.skills": must, "freelancer.skills": _names(both["freelancer"])}
    if rule.veto_class is VetoClass.EXCLUSION:
        lists, name = rule.fields
        excluded = [one for one in values[lists] or () if one == values[name]]
        return {lists: excluded, name: values[name]}
    return values


def _names(record: Mapping[str, Any]) -> list[str] | None:
    skills = record.get("skills")
    return None if skills is None else [skill["name"] for skill in skills]
