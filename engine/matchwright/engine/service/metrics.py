"""What is counted around calls and batches. Everything here wraps; nothing inside knows of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import grpc
import grpc.aio

from matchwright.engine.batcher import Batcher, Lane, Outcomes
from matchwright.engine.errors import MatchwrightError
from matchwright.engine.metrics import Metrics, Sample
from matchwright.engine.models.watch import BreakerState, Hop, Mark, Way
from matchwright.engine.results import Result

CODES = tuple(code.name for code in grpc.StatusCode)
UNWATCHED = ("/grpc.health.", "/grpc.reflection.")
"""Calls of these services are no work of ours."""

_BY_NUMBER = {code.value[0]: code.name for code in grpc.StatusCode}


class Submits(Protocol):
    """Takes work for the device: the batcher, or what stands around it."""

    async def submit(
        self, lane: Lane, items: Sequence[Any], *, pairs: int, deadline: float | None = None
    ) -> Outcomes: ...


def method_of(path: str) -> str:
    """``FindJobs`` out of ``/matchwright.v1.MatchService/FindJobs``."""
    return path.rpartition("/")[2]


def code_of(context: Any, error: BaseException | None) -> str:
    """The gRPC status that a handler has ended with."""
    if isinstance(error, asyncio.CancelledError):
        return "CANCELLED"
    code = context.code()
    number = code.value[0] if isinstance(code, grpc.StatusCode) else code
    if error is not None and not number:  # neither told nor a success: gRPC says UNKNOWN
        return "UNKNOWN"
    return _BY_NUMBER.get(number or 0, "UNKNOWN")


class CountCalls(grpc.aio.ServerInterceptor):
    """Counts and times calls. Goes first, so that it sees what others refuse."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._running = 0
        metrics.at_scrape(self._samples)

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        path = handler_call_details.method
        handler = await continuation(handler_call_details)
        if path.startswith(UNWATCHED):
            return handler
        if handler is None:
            self._metrics.count(
                "matchwright_requests_total", method=method_of(path), code="UNIMPLEMENTED"
            )
            return None
        return wrapped(handler, lambda answer: self._counted(method_of(path), answer))

    def _counted(self, method: str, answer: Answer) -> Answer:
        async def counted(request: Any, context: Any) -> Any:
            began, failed = time.perf_counter(), None
            self._running += 1  # in the one event loop
            try:
                return await answer(request, context)
            except BaseException as error:
                failed = error
                raise
            finally:
                self._running -= 1
                code, took = code_of(context, failed), time.perf_counter() - began
                self._metrics.count("matchwright_requests_total", method=method, code=code)
                self._metrics.observe("matchwright_request_duration_seconds", took, method=method)

        return counted

    def _samples(self) -> Iterator[Sample]:
        yield Sample("matchwright_requests_in_flight", self._running)


Answer = Callable[[Any, Any], Awaitable[Any]]


def wrapped(handler: Any, around: Callable[[Answer], Answer]) -> Any:
    """A handler of one message each way, with something around it; others as they are."""
    if handler.unary_unary is None:
        return handler
    return grpc.unary_unary_rpc_method_handler(
        around(handler.unary_unary),
        request_deserializer=handler.request_deserializer,
        response_serializer=handler.response_serializer,
    )


class CountUnits:
    """A marketplace's way to the batcher, on which units and their answers are counted."""

    def __init__(self, inner: Submits, metrics: Metrics, marketplace: str) -> None:
        self._inner = inner
        self._metrics = metrics
        self._marketplace = marketplace

    async def submit(
        self, lane: Lane, items: Sequence[Any], *, pairs: int, deadline: float | None = None
    ) -> Outcomes:
        """As ``Batcher.submit``."""
        made = await self._inner.submit(lane, items, pairs=pairs, deadline=deadline)
        market, metrics = self._marketplace, self._metrics
        metrics.observe("matchwright_queue_duration_seconds", made.queue_s, marketplace=market)
        metrics.observe("matchwright_batch_duration_seconds", made.run_s, marketplace=market)
        self._answers(made.items)
        return made

    def _answers(self, items: Sequence[Any]) -> None:
        failed = sum(isinstance(item, MatchwrightError) for item in items)
        for outcome, number in (("answered", len(items) - failed), ("failed", failed)):
            if number:
                self._metrics.count(
                    "matchwright_answers_total", number,
                    marketplace=self._marketplace, outcome=outcome,
                )  # fmt: skip
        for reason in (reason for item in items for reason in degraded_of(item)):
            self._metrics.count(
                "matchwright_degraded_answers_total", marketplace=self._marketplace, reason=reason
            )


def degraded_of(item: Any) -> tuple[str, ...]:
    """What an answer went without because a model did not give it; empty when all is well."""
    if not isinstance(item, Result):
        return ()
    unranked = getattr(getattr(item, "rerank", None), "degraded", None)
    return item.degraded if unranked is None else (*item.degraded, unranked)


class CountHops:
    """Counts the calls of models."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def begin(self, model: str, version: int) -> Mark:
        """A call that is counted when it ends."""
        return _CountedHop(self._metrics)

    def breaker(self, model: str, version: int, state: BreakerState) -> None:
        """Read where it is kept (``Breakers``)."""

    def way(self, way: Way, why: str) -> None:
        """Each call says which way it went."""


@dataclass(frozen=True, slots=True)
class _CountedHop:
    metrics: Metrics
    headers: Mapping[str, str] = field(default_factory=dict)

    def end(self, hop: Hop) -> None:
        metrics, model = self.metrics, hop.model
        metrics.count("matchwright_model_calls_total", model=model, outcome=hop.outcome)
        metrics.observe("matchwright_model_call_duration_seconds", hop.seconds, model=model)
        if hop.attempts > 1:
            metrics.count("matchwright_model_retries_total", hop.attempts - 1, model=model)
        for direction, size in (("sent", hop.sent_bytes), ("received", hop.received_bytes)):
            metrics.count(
                "matchwright_model_bytes_total", size, model=model, direction=direction, way=hop.way
            )


def batcher_samples(batcher: Batcher, queue_pairs_max: int) -> Iterator[Sample]:
    """The batcher's counters, all of one moment."""
    stats = batcher.stats()
    yield Sample("matchwright_queue_pairs", stats.queued_pairs)
    yield Sample("matchwright_queue_pairs_max", queue_pairs_max)
    yield Sample("matchwright_queue_units", stats.queued_units)
    for reason in ("refused", "expired", "left"):
        value = getattr(stats, reason)
        yield Sample("matchwright_queue_dropped_total", value, {"reason": reason})
    yield Sample("matchwright_batches_total", stats.batches)
    yield Sample("matchwright_batch_failures_total", stats.failed_batches)
    yield Sample("matchwright_batch_items_total", stats.items)
    yield Sample("matchwright_pairs_total", stats.pairs)
    yield Sample("matchwright_device_busy_seconds_total", stats.busy_s)
