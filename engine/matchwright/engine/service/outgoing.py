"""From results to messages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matchwright.engine.batcher import Outcomes
from matchwright.engine.matcher import Eligible, PairScore
from matchwright.engine.results import Result
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
    message = wire.Ranking(
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
    )
    return message


def _certificate(result: Result) -> wire.Certificate:
    key = result.kth_key
    shortfall = "UNSPECIFIED" if result.shortfall is None else str(result.shortfall)
    return wire.Certificate(
        count_kind=COUNTS[result.counted],
        eligible=None if result.eligible < 0 else result.eligible,
        unverified=None if result.unverified < 0 else result.unverified,
        returned=result.returned,
        kth_key=None if key is None else wire.OrderKey(points=key.points, mix=key.mix, low=key.low),
        shortfall=wire.ShortfallReason.Value(f"SHORTFALL_REASON_{shortfall}"),
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
