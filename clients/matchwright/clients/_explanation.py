"""Why a pair matches, or why not: the client's form of an explanation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from matchwright.clients import _results
from matchwright.clients._results import Epoch, Kind, OrderKey, Telemetry
from matchwright.v1 import match_service_pb2 as wire


@dataclass(frozen=True, slots=True)
class Reason:
    """A reason why a pair is not eligible, or a rule that was passed on an unknown value.

    Attributes:
        values: ``kind.field`` -> value of both sides, as far as the audience may know.
    """

    reason: str
    reason_class: str
    text: str
    values: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        return {
            "reason": self.reason,
            "class": self.reason_class,
            "text": self.text,
            "values": dict(self.values),
        }


@dataclass(frozen=True, slots=True)
class FacetShare:
    """What one facet gives; numbers are None where the audience may not know them."""

    facet: str
    points: int | None
    score: float | None
    best: float | None
    fit: str


@dataclass(frozen=True, slots=True)
class AskedSkill:
    """A skill that the job asks for; levels are 1 to 5 or None."""

    name: str
    must: bool
    asked_level: int | None
    level: int | None


@dataclass(frozen=True, slots=True)
class SkillCollision:
    """Two names on one dimension: ``counted`` is taken for ``asked``."""

    asked: str
    counted: str
    dimension: int


@dataclass(frozen=True, slots=True)
class Skills:
    """How the skills of a pair compare, by name."""

    known: bool
    matched: tuple[AskedSkill, ...]
    missing: tuple[AskedSkill, ...]
    extra: tuple[str, ...]
    collisions: tuple[SkillCollision, ...]
    uncounted: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        told = asdict(self)
        return {name: list(v) if isinstance(v, tuple) else v for name, v in told.items()}


@dataclass(frozen=True, slots=True)
class FeatureShare:
    """What one feature gave to the model's score.

    Attributes:
        text: the feature in words.
        value, unit: what it is for this pair; None when unknown, or not to be shown.
        score: its part of the model's score; None where the audience may not know it.
        effect: "strongly for", "for", "neither", "against" or "strongly against".
    """

    feature: str
    text: str
    value: int | None
    unit: str | None
    score: float | None
    effect: str


@dataclass(frozen=True, slots=True)
class SecondPhase:
    """What the second phase's model made of one pair; what the audience may not know is None.

    Attributes:
        model, version, content_hash: who orders.
        method: how contributions are made.
        considered: the pair was among the first ``candidates`` of the first phase.
        first_rank, rank: ranks before and after; ``rank_within``: 10, 100 or 1,000.
        moved: "up", "down" or "not"; None when not considered.
        compared_with: how many it passed, or passed it.
        score, bias: the model's; contributions and bias add up to the score.
        moved_by: the features that made most of the difference.
        text: the outcome in words.
    """

    model: str
    version: int
    content_hash: str
    method: str
    considered: bool
    candidates: int
    first_rank: int | None
    rank: int | None
    rank_within: int | None
    moved: str | None
    compared_with: int | None
    score: float | None
    bias: float | None
    contributions: tuple[FeatureShare, ...]
    moved_by: tuple[FeatureShare, ...]
    text: str

    def to_dict(self) -> dict[str, Any]:
        told = asdict(self)
        return {name: list(v) if isinstance(v, tuple) else v for name, v in told.items()}


@dataclass(frozen=True, slots=True)
class Explanation:
    """All about one pair, as one audience may see it; what it may not know is None.

    Attributes:
        direction: the kind that asks; points and rank are in its ranking.
        rank: exact rank among the eligible, or the rank that a vetoed pair would have.
        rank_within: 10, 100 or 1,000 when the rank lies within.
        eligible_count: a number, or "fewer than 10".
        gap_points: what is missing to draw level with the k-th; not above 0 when nothing is.
        rerank: what the second phase made of the pair; None where the policy has none. ``rank``,
            ``points`` and what else stands here are the first phase's.
        degraded: what a served encoder did not give in time; empty when all is well.
    """

    direction: Kind
    audience: str
    job_id: str | None
    freelancer_id: str | None
    epoch: Epoch
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
    step: float | None
    order_key: OrderKey | None
    k: int
    kth_points: int | None
    gap_points: int | None
    attainable: float | None
    contributions: tuple[FacetShare, ...]
    skills: Skills
    telemetry: Telemetry
    rerank: SecondPhase | None = None
    degraded: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values, in the form that the engine's own explanations have."""
        told = {
            name: getattr(self, name)
            for name in ("direction", "audience", "job_id", "freelancer_id", "generation", "policy",
                         "as_of", "eligible", "rank", "rank_within", "eligible_count", "points",
                         "score", "k", "kth_points", "gap_points", "attainable")
        }  # fmt: skip
        if self.rerank is not None:
            told["rerank"] = self.rerank.to_dict()
        if self.degraded:
            told["degraded"] = list(self.degraded)
        return told | {
            "epoch": str(self.epoch),
            "t": self.step,
            "order_key": None if self.order_key is None else str(self.order_key),
            "vetoes": [reason.to_dict() for reason in self.vetoes],
            "unverified": [reason.to_dict() for reason in self.unverified],
            "contributions": [asdict(share) for share in self.contributions],
            "skills": self.skills.to_dict(),
        }


def explanation(response: wire.ExplainResponse) -> Explanation:
    """An explanation out of its wire form."""
    message = response.explanation
    told = _results.set_or_none
    fewer = message.WhichOneof("eligible_count_choice") == "eligible_fewer_than"
    floor = f"fewer than {message.eligible_fewer_than}"
    has_key = message.HasField("order_key")
    return Explanation(
        direction=_results.kind(message.query_kind),
        audience=_results.enum_name(message, "audience").lower(),
        job_id=told(message, "job_id"),
        freelancer_id=told(message, "freelancer_id"),
        epoch=_results.epoch(message.epoch),
        generation=message.generation,
        policy=message.policy,
        as_of=message.as_of_day,
        eligible=message.eligible,
        vetoes=tuple(map(_reason, message.vetoes)),
        unverified=tuple(map(_reason, message.unverified)),
        rank=told(message, "rank"),
        rank_within=told(message, "rank_within"),
        eligible_count=floor if fewer else message.eligible_count,
        points=told(message, "points"),
        score=told(message, "score"),
        step=told(message, "step"),
        order_key=_results.order_key(message.order_key) if has_key else None,
        k=message.k,
        kth_points=told(message, "kth_points"),
        gap_points=told(message, "gap_points"),
        attainable=told(message, "attainable"),
        contributions=tuple(map(_share, message.contributions)),
        skills=_skills(message.skills),
        telemetry=_results.telemetry(response.telemetry),
        rerank=_second(message.rerank) if message.HasField("rerank") else None,
        degraded=tuple(message.degraded),
    )


def _second(message: wire.SecondPhase) -> SecondPhase:
    told = _results.set_or_none
    moved = _results.enum_name(message, "moved").lower()
    return SecondPhase(
        model=message.model,
        version=message.version,
        content_hash=message.content_hash,
        method=message.method,
        considered=message.considered,
        candidates=message.candidates,
        first_rank=told(message, "first_rank"),
        rank=told(message, "rank"),
        rank_within=told(message, "rank_within"),
        moved=None if moved == "unspecified" else moved,
        compared_with=told(message, "compared_with"),
        score=told(message, "score"),
        bias=told(message, "bias"),
        contributions=tuple(map(_feature, message.contributions)),
        moved_by=tuple(map(_feature, message.moved_by)),
        text=message.text,
    )


def _feature(message: wire.FeatureShare) -> FeatureShare:
    told = _results.set_or_none
    return FeatureShare(
        feature=message.feature,
        text=message.text,
        value=told(message, "value"),
        unit=told(message, "unit"),
        score=told(message, "score"),
        effect=_results.enum_name(message, "effect").lower().replace("_", " "),
    )


def _reason(message: wire.Reason) -> Reason:
    values = {name: _results.plain(message.values[name]) for name in sorted(message.values)}
    return Reason(message.reason, _results.enum_name(message, "reason_class"), message.text, values)


def _share(message: wire.FacetShare) -> FacetShare:
    told = _results.set_or_none
    return FacetShare(
        facet=message.facet,
        points=told(message, "points"),
        score=told(message, "score"),
        best=told(message, "best"),
        fit=_results.enum_name(message, "fit").lower().replace("_", " "),
    )


def _skills(message: wire.SkillComparison) -> Skills:
    return Skills(
        known=message.known,
        matched=tuple(map(_asked, message.matched)),
        missing=tuple(map(_asked, message.missing)),
        extra=tuple(message.extra),
        collisions=tuple(
            SkillCollision(one.asked, one.counted, one.dimension) for one in message.collisions
        ),
        uncounted=tuple(message.uncounted),
    )


def _asked(message: wire.AskedSkill) -> AskedSkill:
    return AskedSkill(
        message.name,
        message.must,
        _results.set_or_none(message, "asked_level"),
        _results.set_or_none(message, "level"),
    )
