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
class Explanation:
    """All about one pair, as one audience may see it; what it may not know is None.

    Attributes:
        direction: the kind that asks; points and rank are in its ranking.
        rank: exact rank among the eligible, or the rank that a vetoed pair would have.
        rank_within: 10, 100 or 1,000 when the rank lies within.
        eligible_count: a number, or "fewer than 10".
        gap_points: what is missing to draw level with the k-th; not above 0 when nothing is.
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

    def to_dict(self) -> dict[str, Any]:
        """Plain values, in the form that the engine's own explanations have."""
        told = {
            name: getattr(self, name)
            for name in ("direction", "audience", "job_id", "freelancer_id", "generation", "policy",
                         "as_of", "eligible", "rank", "rank_within", "eligible_count", "points",
                         "score", "k", "kth_points", "gap_points", "attainable")
        }  # fmt: skip
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
