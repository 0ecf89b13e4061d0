"""From results to messages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from google.protobuf.json_format import ParseDict
from google.protobuf.struct_pb2 import Value

from matchwright.engine.batcher import Outcomes
from matchwright.engine.explain import Explanation, FacetShare, Reason
from matchwright.engine.matcher import Eligible, PairScore
from matchwright.engine.rerank.rerank_explain import FeatureShare, SecondPhase
from matchwright.engine.results import OrderKey, Reranked, Result
from matchwright.engine.skill_match import AskedSkill, SkillMatch
from matchwright.v1 import match_service_pb2 as wire

KINDS = {"job": wire.ENTITY_KIND_JOB, "freelancer": wire.ENTITY_KIND_FREELANCER}
COUNTS = {
    "NOT_COUNTED": wire.COUNT_KIND_NOT_COUNTED,
    "AT_LEAST": wire.COUNT_KIND_AT_LEAST,
    "EXACT": wire.COUNT_KIND_EXACT,
}


def epoch(text: str) -> wire.Epoch:
    """An epoch out of its name, ``uuid:number:digest``."""
    uuid, number, digest = text.split(":")
    return wire.Epoch(store_uuid=uuid, number=int(number), digest=digest)


def ranking(result: Result) -> wire.Ranking:
    """The wire form of a result: everything that its canonical form holds."""
    return wire.Ranking(
        epoch=epoch(result.epoch),
        generation=result.generation,
        policy=result.policy,
        as_of_day=result.as_of,
        query_kind=KINDS[result.kind],
        query_id=result.query_id,
        query_key=result.query_key,
        k=result.k,
        ids=result.ids,
        keys=result.keys.tolist(),
        points=result.points.tolist(),
        scores=result.scores.tolist(),
        facets=result.facets,
        contributions=result.contributions.ravel().tolist(),
        certificate=_certificate(result),
        resolution=result.resolution,
        attainable=result.attainable,
        step=result.t,
        digest=result.digest(),
        degraded=result.degraded,
        rerank=None if result.rerank is None else _rerank(result.rerank),
    )


def _rerank(part: Reranked) -> wire.Rerank:
    degraded = "UNSPECIFIED" if part.degraded is None else part.degraded
    return wire.Rerank(
        model=part.model,
        version=part.version,
        content_hash=part.content_hash,
        grid_bits=part.grid_bits,
        candidates=part.candidates,
        degraded=f"DEGRADED_REASON_{degraded}",
        first_ranks=part.first_ranks.tolist(),
        model_scores=np.ldexp(part.scores.astype(np.float64), -part.grid_bits).tolist(),
        last_key=_key(part.last_key),
    )


def _key(key: OrderKey | None) -> wire.OrderKey | None:
    return None if key is None else wire.OrderKey(points=key.points, mix=key.mix, low=key.low)


def _certificate(result: Result) -> wire.Certificate:
    shortfall = "UNSPECIFIED" if result.shortfall is None else str(result.shortfall)
    return wire.Certificate(
        count_kind=COUNTS[result.counted],
        eligible=None if result.eligible < 0 else result.eligible,
        unverified=None if result.unverified < 0 else result.unverified,
        returned=result.returned,
        kth_key=_key(result.kth_key),
        shortfall=f"SHORTFALL_REASON_{shortfall}",
    )


def telemetry(outcomes: Outcomes, told: Mapping[str, Any] | None = None) -> wire.Telemetry:
    """How a unit was computed.

    Args:
        told: a result's own telemetry.
    """
    told = told or {}
    plan = told.get("plan", "")
    return wire.Telemetry(
        plan=plan if isinstance(plan, str) else "+".join(sorted(map(str, plan))),
        device=str(told.get("device", "")),
        batch_queries=outcomes.batch_items,
        queue_ms=1_000 * outcomes.queue_s,
        run_ms=1_000 * outcomes.run_s,
        model_ms=1_000 * told.get("model", {}).get("seconds", 0.0),
    )


def eligible(count: Eligible, as_of: int, outcomes: Outcomes) -> wire.CountEligibleResponse:
    """The answer of CountEligible."""
    return wire.CountEligibleResponse(
        epoch=epoch(count.epoch),
        policy=count.policy,
        as_of_day=as_of,
        count_kind=wire.COUNT_KIND_EXACT,
        eligible=count.eligible,
        unverified=count.unverified,
        telemetry=telemetry(outcomes),
    )


def fill_pair(message: wire.ScorePairsResponse, pair: PairScore, contributions: bool) -> None:
    """Append one pair to the struct of arrays."""
    message.points.append(pair.points)
    message.scores.append(pair.score)
    message.eligible.append(not pair.vetoes)
    if contributions:
        message.contributions.extend(pair.contributions.values())


# ── Explanations ──────────────────────────────────────────────────────────────────────────────


def explanation(told: Explanation) -> wire.Explanation:
    """The wire form of an explanation; what the audience may not know stays unset."""
    message = wire.Explanation(
        query_kind=KINDS[told.direction],
        audience=f"AUDIENCE_{told.audience.upper()}",
        job_id=told.job_id,
        freelancer_id=told.freelancer_id,
        epoch=epoch(told.epoch),
        generation=told.generation,
        policy=told.policy,
        as_of_day=told.as_of,
        eligible=told.eligible,
        vetoes=map(_reason, told.vetoes),
        unverified=map(_reason, told.unverified),
        rank=told.rank,
        rank_within=told.rank_within,
        points=told.points,
        score=told.score,
        step=told.t,
        order_key=_order_key(told.order_key),
        k=told.k,
        kth_points=told.kth_points,
        gap_points=told.gap_points,
        attainable=told.attainable,
        contributions=map(_share, told.contributions),
        skills=_skills(told.skills),
        rerank=None if told.rerank is None else _second(told.rerank),
        degraded=told.degraded,
    )
    if isinstance(told.eligible_count, int):
        message.eligible_count = told.eligible_count
    else:
        message.eligible_fewer_than = int(told.eligible_count.rpartition(" ")[2])
    return message


def _order_key(text: str | None) -> wire.OrderKey | None:
    """An order key out of its text, ``points:mix:low``."""
    if text is None:
        return None
    points, mix, low = text.split(":")
    return wire.OrderKey(points=int(points), mix=int(mix, 16), low=int(low, 16))


def _reason(reason: Reason) -> wire.Reason:
    return wire.Reason(
        reason=reason.reason,
        reason_class=f"REASON_CLASS_{reason.veto_class}",
        text=reason.text,
        values={name: ParseDict(value, Value()) for name, value in reason.values.items()},
    )


def _share(share: FacetShare) -> wire.FacetShare:
    fit = share.fit.upper().replace(" ", "_")
    return wire.FacetShare(
        facet=share.name,
        points=share.points,
        score=share.score,
        best=share.best,
        fit=f"FACET_FIT_{fit}",
    )


def _second(second: SecondPhase) -> wire.SecondPhase:
    return wire.SecondPhase(
        model=second.model,
        version=second.version,
        content_hash=second.content_hash,
        method=second.method,
        considered=second.considered,
        candidates=second.candidates,
        first_rank=second.first_rank,
        rank=second.rank,
        rank_within=second.rank_within,
        moved=f"MOVEMENT_{(second.moved or 'unspecified').upper()}",
        compared_with=second.compared_with,
        score=second.score,
        bias=second.bias,
        contributions=map(_feature, second.contributions),
        moved_by=map(_feature, second.moved_by),
        text=second.text,
    )


def _feature(share: FeatureShare) -> wire.FeatureShare:
    effect = share.effect.upper().replace(" ", "_")
    return wire.FeatureShare(
        feature=share.name,
        text=share.text,
        value=share.value,
        unit=share.unit,
        score=share.score,
        effect=f"FEATURE_EFFECT_{effect}",
    )


def _skills(skills: SkillMatch) -> wire.SkillComparison:
    return wire.SkillComparison(
        known=skills.known,
        matched=map(_asked, skills.matched),
        missing=map(_asked, skills.missing),
        extra=skills.extra,
        collisions=[
            wire.SkillCollision(asked=one.asked, counted=one.counted, dimension=one.dimension)
            for one in skills.collisions
        ],
        uncounted=skills.uncounted,
    )


def _asked(skill: AskedSkill) -> wire.AskedSkill:
    return wire.AskedSkill(
        name=skill.name, must=skill.must, asked_level=skill.asked_level, level=skill.level
    )
