"""The Match service: checks, hands over to the marketplace, answers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from matchwright.engine.batcher import Outcomes
from matchwright.engine.config import Limits
from matchwright.engine.errors import (
    EpochNotReached,
    InvalidArgument,
    MatchwrightError,
    NotFound,
)
from matchwright.engine.matcher import OTHER
from matchwright.engine.records import Kind
from matchwright.engine.request import Request
from matchwright.engine.results import Result
from matchwright.engine.service import auth, incoming, outgoing
from matchwright.engine.service.auth import Caller
from matchwright.engine.service.marketplace import Market, Marketplace
from matchwright.engine.service.status import status_of
from matchwright.engine.service.texts import need_text
from matchwright.v1 import match_service_pb2 as wire

DAY_S = 86_400


@dataclass(frozen=True, slots=True)
class Context:
    """What is known of a call besides its message.

    Attributes:
        deadline: the moment on the monotonic clock at which the caller gives up.
    """

    caller: Caller
    deadline: float


class MatchService:
    """The calls of ``matchwright.v1.MatchService``, without gRPC.

    Args:
        markets: marketplaces by name.
        limits: how much one request may ask for.
    """

    def __init__(self, markets: Mapping[str, Marketplace], limits: Limits) -> None:
        self._markets = markets
        self._limits = limits

    async def find_freelancers(
        self, request: wire.FindFreelancersRequest, context: Context
    ) -> wire.FindFreelancersResponse:
        """The best freelancers for one job."""
        ranking, telemetry = await self._find(request, context)
        return wire.FindFreelancersResponse(ranking=ranking, telemetry=telemetry)

    async def find_jobs(
        self, request: wire.FindJobsRequest, context: Context
    ) -> wire.FindJobsResponse:
        """The best jobs for one freelancer."""
        ranking, telemetry = await self._find(request, context)
        return wire.FindJobsResponse(ranking=ranking, telemetry=telemetry)

    async def batch_find(
        self, request: wire.BatchFindRequest, context: Context
    ) -> wire.BatchFindResponse:
        """Many queries; an item that is wrong has its own error."""
        market = self._market(request.marketplace, auth.MATCH, context)
        limits, items = self._limits, request.items
        incoming.within(
            "items", len(items), "batch_items_max", limits.batch_items_max, "items", least=1
        )
        asked = await asyncio.to_thread(self._items, market, request)
        matches = sum(one.k for one in asked if isinstance(one, Request))
        incoming.within(
            "items", matches, "batch_matches_max", limits.batch_matches_max, "matches (sum of k)"
        )
        late = await self._late_epochs(market, asked)
        asked = [late.get(getattr(one, "min_epoch", None), one) for one in asked]
        sound = [one for one in asked if isinstance(one, Request)]
        made = await market.find(sound, context.deadline)
        answers = iter(made.items)
        outcomes = [next(answers) if isinstance(one, Request) else one for one in asked]
        return await asyncio.to_thread(_batch_response, outcomes, made)

    async def score_pairs(
        self, request: wire.ScorePairsRequest, context: Context
    ) -> wire.ScorePairsResponse:
        """The scores of named pairs, eligible or not, all of one epoch."""
        market = self._market(request.marketplace, auth.MATCH, context)
        limits, options = self._limits, request.options
        incoming.within(
            "pairs", len(request.pairs), "score_pairs_max", limits.score_pairs_max, "pairs", least=1
        )
        kind = incoming.kind_of(request.query_kind, "query_kind")
        _refuse(options, ("k", "exclude_ids", "candidates", "min_score", "count"))
        market.check_policy(options.policy)
        how = incoming.options_of(options, kind, limits, _today())
        pairs = [_pair_of(pair, kind, limits) for pair in request.pairs]
        await self._await_epoch(market, how["min_epoch"])
        run = partial(_score, market, kind, how, pairs)
        response, made = await market.call(run, len(pairs), context.deadline)
        response.telemetry.CopyFrom(outgoing.telemetry(made))
        return response  # type: ignore[no-any-return]

    async def explain(self, request: wire.ExplainRequest, context: Context) -> wire.ExplainResponse:
        """Why a pair matches, or why not, as far as the audience may know."""
        audience = incoming.audience_of(request.audience)
        market = self._market(request.marketplace, auth.EXPLAIN, context)
        if audience == "operator":
            context.caller.require(auth.EXPLAIN_OPERATOR, market.name)
        limits, options = self._limits, request.options
        kind = incoming.kind_of(request.query_kind, "query_kind", default="job")
        job = _side(request, "job_side", limits)
        freelancer = _side(request, "freelancer_side", limits)
        market.check_policy(options.policy)
        how = incoming.options_of(options, kind, limits, _today())
        how.pop("count")
        how.pop("contributions")
        await self._await_epoch(market, how["min_epoch"])
        await _texts_of_pair(market, kind, {"job": job, "freelancer": freelancer}, how, context)
        run = partial(
            market.matcher.explain,
            job,
            freelancer,
            direction=kind,
            audience=audience,
            **how,
        )
        told, made = await market.call(run, market.scan_pairs(kind), context.deadline)
        return wire.ExplainResponse(
            explanation=outgoing.explanation(told), telemetry=outgoing.telemetry(made)
        )

    async def count_eligible(
        self, request: wire.CountEligibleRequest, context: Context
    ) -> wire.CountEligibleResponse:
        """How many pass every rule."""
        market = self._market(request.marketplace, auth.MATCH, context)
        _refuse(request.options, ("k", "weights", "min_score", "contributions"))
        asked = self._request(market, request, request.options)
        await self._await_epoch(market, asked.min_epoch)
        await market.encode_ahead([asked], context.deadline)
        run = partial(market.matcher.count_eligible, asked)
        count, made = await market.call(run, market.scan_pairs(asked.kind), context.deadline)
        return outgoing.eligible(count, asked.as_of or 0, made)

    # ── Shared steps ──────────────────────────────────────────────────────────────────────────

    def _market(self, name: str, scope: str, context: Context) -> Market:
        """The marketplace that a request names, if the caller may ask it, as it is now: the call
        ends under the policy that it begins with."""
        wanted = incoming.marketplace_of(name, self._limits)
        context.caller.require(scope, wanted)
        market = self._markets.get(wanted)
        if market is None:
            raise NotFound(f"there is no marketplace {wanted!r} here", marketplace=wanted)
        return market.now()

    def _request(self, market: Market, message: Any, options: wire.FindOptions) -> Request:
        market.check_policy(options.policy)
        return incoming.request_of(message, options, self._limits, _today())

    def _items(
        self, market: Market, request: wire.BatchFindRequest
    ) -> list[Request | MatchwrightError]:
        return [self._item(market, item, request.options) for item in request.items]

    def _item(
        self, market: Market, item: wire.BatchFindItem, shared: wire.FindOptions
    ) -> Request | MatchwrightError:
        options = item.options if item.HasField("options") else shared
        try:
            return self._request(market, item, options)
        except MatchwrightError as error:
            return error

    async def _find(
        self, request: wire.FindFreelancersRequest | wire.FindJobsRequest, context: Context
    ) -> tuple[wire.Ranking, wire.Telemetry]:
        market = self._market(request.marketplace, auth.MATCH, context)
        asked = self._request(market, request, request.options)
        await self._await_epoch(market, asked.min_epoch)
        made = await market.find([asked], context.deadline)
        result = made.items[0]
        if isinstance(result, MatchwrightError):
            raise result
        return outgoing.ranking(result), outgoing.telemetry(made, result.telemetry)

    async def _await_epoch(self, market: Market, number: int | None) -> None:
        if number is not None:
            await market.reached(number, self._limits.epoch_wait_ms / 1_000)

    async def _late_epochs(
        self, market: Market, asked: Sequence[Request | MatchwrightError]
    ) -> dict[int | None, EpochNotReached]:
        """The epochs that items of a batch want and that do not come, with the reason."""
        wanted = {one.min_epoch for one in asked if isinstance(one, Request)} - {None}
        late: dict[int | None, EpochNotReached] = {}
        for number in sorted(number for number in wanted if number is not None):
            if late:  # a lower one has not come either
                late[number] = EpochNotReached(f"epoch {number} has not come yet", epoch=number)
                continue
            try:
                await self._await_epoch(market, number)
            except EpochNotReached as error:
                late[number] = error
        return late


def _batch_response(outcomes: Sequence[Any], made: Outcomes) -> wire.BatchFindResponse:
    """Not in the event loop: a batch's answer takes a while to put together."""
    told = next((one.telemetry for one in outcomes if isinstance(one, Result)), None)
    return wire.BatchFindResponse(
        results=map(_batch_result, outcomes), telemetry=outgoing.telemetry(made, told)
    )


def _batch_result(outcome: Any) -> wire.BatchFindResult:
    if isinstance(outcome, MatchwrightError):
        return wire.BatchFindResult(error=status_of(outcome))
    return wire.BatchFindResult(ranking=outgoing.ranking(outcome))


def _today() -> int:
    """The current UTC day: the one place of the service that reads the calendar."""
    return int(time.time()) // DAY_S


def _refuse(options: wire.FindOptions, names: Sequence[str]) -> None:
    """Refuse options that a call has no use for."""
    told = {field.name for field, _ in options.ListFields()}
    for name in names:
        if name in told:
            raise InvalidArgument(
                f"options.{name} has no meaning in this call; leave it out", field=f"options.{name}"
            )


def _side(request: wire.ExplainRequest, side: str, limits: Limits) -> str | Mapping[str, Any]:
    """An id or a record."""
    _, identity, record = incoming.query_of(request, side, limits)
    return identity or record or {}


async def _texts_of_pair(
    market: Market,
    kind: Kind,
    sides: Mapping[Kind, str | Mapping[str, Any]],
    how: Mapping[str, Any],
    context: Context,
) -> None:
    """Has the texts of an inline pair encoded before the device thread needs them.

    Args:
        kind: who asks, and may go without its text.

    Raises:
        ModelUnavailable: the other side's text has no vector.
    """
    given = [
        Request(kind=side, record=record, epoch=how["epoch"], min_epoch=how["min_epoch"])
        for side, record in sides.items()
        if not isinstance(record, str)
    ]
    await market.encode_ahead(given, context.deadline)
    for request in given:
        if request.kind != kind:
            await asyncio.to_thread(need_text, market.matcher.snapshot, request)


def _pair_of(pair: wire.Pair, kind: Kind, limits: Limits) -> tuple[str, str]:
    """(id of who asks, id of the other)."""
    job = incoming.id_of(pair.job_id, "pairs.job_id", limits)
    freelancer = incoming.id_of(pair.freelancer_id, "pairs.freelancer_id", limits)
    return (job, freelancer) if kind == "job" else (freelancer, job)


def _score(
    market: Market, kind: Kind, how: Mapping[str, Any], pairs: Sequence[tuple[str, str]]
) -> wire.ScorePairsResponse:
    """On the device thread: all pairs from one snapshot, query by query."""
    snapshot, matcher = market.pinned()
    asked: dict[str, list[int]] = {}
    for at, (query, _) in enumerate(pairs):
        asked.setdefault(query, []).append(at)
    scores: dict[int, Any] = {}
    policy = ""
    for query, places in asked.items():
        request = Request(kind=kind, id=query, **how)
        policy = policy or market.effective_policy(request)
        made = matcher.score_pairs(request, [pairs[at][1] for at in places])
        for at, score in zip(places, made, strict=True):
            if score is None:
                other, name = OTHER[kind], pairs[at][1]
                raise NotFound(f"there is no {other} with the id {name!r}", id=name, kind=other)
            scores[at] = score
    response = wire.ScorePairsResponse(
        epoch=outgoing.epoch(str(snapshot.epoch)),
        generation=snapshot.generation.id,
        policy=policy,
        as_of_day=how["as_of"],
    )
    if how["contributions"]:
        response.facets.extend(facet.name for facet in snapshot.generation.facets)
    for at in range(len(pairs)):
        outgoing.fill_pair(response, scores[at], how["contributions"])
    return response
