"""Spans of a call: what it waited for and what was done for it.

::

    FindFreelancers                        the call, child of the caller's span (W3C trace context)
    ├─ model encoder                       a text that came with the request, encoded ahead
    ├─ queue                               until the device was ready
    ├─ batch                               the batch that it was in
    │  └─ kernels                          the search of the block
    ├─ model ranker                        the second phase; the context goes on to the model
    └─ output                              the answer is put together

A batch answers many calls. The first of them that is sampled has it as it happens. The others get a
span of the same times that links to it. A call of a model for many requests belongs to the first.

This module alone imports OpenTelemetry, and it is imported only when traces are asked for. Spans
hold names, counts and times, never what a request or an answer says.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

import grpc
import grpc.aio
from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from matchwright.engine.batcher import Lane, Outcomes
from matchwright.engine.models.watch import BreakerState, Hop, Mark, Way
from matchwright.engine.service.metrics import (
    UNWATCHED,
    Answer,
    Submits,
    code_of,
    method_of,
    wrapped,
)

CLOSE_S = 3.0
"""How long the end of a server waits for a collector."""
CARRIED = ("traceparent", "tracestate")
SERVER_FAULTS = (
    "UNKNOWN",
    "DEADLINE_EXCEEDED",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
)
"""Codes that make a server's span an error, by the semantic conventions of RPC."""
_log = logging.getLogger(__name__)
_PROPAGATOR = TraceContextTextMapPropagator()


@dataclass(slots=True, eq=False)
class _Batch:
    """A batch on the device thread; times in nanoseconds since 1970."""

    began: int
    items: int
    leader: _Unit | None = None
    context: Context | None = None
    ended: int | None = None
    kernels: list[tuple[int, int, int, str]] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class _Unit:
    """What one call has waiting."""

    context: Context
    submitted: int
    pairs: int
    batches: list[_Batch] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class _Call:
    answered: int | None = None


@dataclass(slots=True, eq=False)
class _Item:
    """An item on its way through the batcher, with the unit that it belongs to."""

    item: Any
    unit: _Unit | None


_CALL: ContextVar[_Call | None] = ContextVar("matchwright_call", default=None)
_BATCH: ContextVar[_Batch | None] = ContextVar("matchwright_batch", default=None)


class Tracing:
    """The spans of one server.

    Args:
        exporter: where they go.
    """

    def __init__(self, exporter: SpanExporter) -> None:
        self._provider = TracerProvider(resource=_resource(), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer: Tracer = self._provider.get_tracer("matchwright")

    def interceptor(self) -> grpc.aio.ServerInterceptor:
        """Makes the span of each call."""
        return _TraceCalls(self._tracer)

    def batcher(self, inner: Submits) -> Submits:
        """A way to the batcher on which queue, batches and kernels are traced."""
        return _TraceUnits(inner, self._tracer)

    def kernels(self, began: float, seconds: float, queries: int, device: str) -> None:
        """Told by the matcher, on the device thread, of each call of the kernels.

        Args:
            began: on ``time.perf_counter``.
        """
        batch = _BATCH.get()
        if batch is not None:
            start = time.time_ns() - round((time.perf_counter() - began) * 1e9)
            batch.kernels.append((start, start + round(seconds * 1e9), queries, device))

    def begin(self, model: str, version: int) -> Mark:
        """A span of a call of a model, child of whatever runs now; its context goes along."""
        about: dict[str, str | int] = {"matchwright.model": model, "matchwright.version": version}
        span = self._tracer.start_span(f"model {model}", kind=SpanKind.CLIENT, attributes=about)
        carrier: dict[str, str] = {}
        _PROPAGATOR.inject(carrier, trace.set_span_in_context(span))
        return _TracedHop(span, carrier)

    def breaker(self, model: str, version: int, state: BreakerState) -> None:
        """Calls that it stops say so."""

    def way(self, way: Way, why: str) -> None:
        """Each call says which way it went."""

    def close(self) -> None:
        """Send what is left; blocks for ``CLOSE_S`` at most, then the rest is lost."""
        sending = threading.Thread(
            target=self._provider.shutdown, name="matchwright-traces", daemon=True
        )
        sending.start()
        sending.join(CLOSE_S)
        if sending.is_alive():
            _log.warning("spans were lost: the collector took more than %g s at the end", CLOSE_S)


def tracing(endpoint: str) -> Tracing:
    """Tracing to an OTLP collector; the SDK reads the other OTEL_ variables by itself."""
    return Tracing(exporter_to(endpoint))


def exporter_to(endpoint: str) -> SpanExporter:
    """Sends spans over gRPC; ``http://`` is plain text, ``https://`` is TLS."""
    return OTLPSpanExporter(endpoint=endpoint)


def _resource() -> Resource:
    """What sends the spans; the service's name is the environment's, else ours."""
    told = Resource.create()
    ours = {SERVICE_NAME: "matchwright", SERVICE_VERSION: metadata.version("matchwright")}
    if not str(told.attributes.get(SERVICE_NAME, "unknown_service")).startswith("unknown_service"):
        del ours[SERVICE_NAME]
    return told.merge(Resource(ours))


@dataclass(frozen=True, slots=True)
class _TracedHop:
    span: Span
    headers: Mapping[str, str]

    def end(self, hop: Hop) -> None:
        self.span.set_attributes(
            {
                "matchwright.outcome": hop.outcome,
                "matchwright.attempts": hop.attempts,
                "matchwright.rows": hop.rows,
                "matchwright.way": hop.way,
            }
        )
        if hop.outcome != "OK":
            self.span.set_status(Status(StatusCode.ERROR, hop.outcome))
        self.span.end()


# ── Calls ─────────────────────────────────────────────────────────────────────────────────────


class _TraceCalls(grpc.aio.ServerInterceptor):
    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        path = handler_call_details.method
        handler = await continuation(handler_call_details)
        if handler is None or path.startswith(UNWATCHED):
            return handler
        return wrapped(handler, lambda answer: self._traced(path, answer))

    def _traced(self, path: str, answer: Answer) -> Answer:
        async def traced(request: Any, context: Any) -> Any:
            span = self._start(path, context)
            token = contexts.attach(trace.set_span_in_context(span))
            call = _Call()
            _CALL.set(call)  # the task is this call's own
            failed: BaseException | None = None
            try:
                return await answer(request, context)
            except BaseException as error:
                failed = error
                raise
            finally:
                self._end(span, call, code_of(context, failed))
                contexts.detach(token)

        return traced

    def _start(self, path: str, context: Any) -> Span:
        given = {
            key: str(value) for key, value in context.invocation_metadata() or () if key in CARRIED
        }
        service = path.strip("/").partition("/")[0]
        return self._tracer.start_span(
            path.strip("/"),
            context=_PROPAGATOR.extract(given),
            kind=SpanKind.SERVER,
            attributes={
                "rpc.system": "grpc",
                "rpc.service": service,
                "rpc.method": method_of(path),
            },
        )

    def _end(self, span: Span, call: _Call, code: str) -> None:
        if call.answered is not None:
            output = self._tracer.start_span("output", start_time=call.answered)
            output.end()
        number = next(each.value[0] for each in grpc.StatusCode if each.name == code)
        span.set_attribute("rpc.grpc.status_code", number)
        if code in SERVER_FAULTS:
            span.set_status(Status(StatusCode.ERROR, code))
        span.end()


# ── Units and batches ─────────────────────────────────────────────────────────────────────────


class _TraceUnits:
    def __init__(self, inner: Submits, tracer: Tracer) -> None:
        self._inner = inner
        self._tracer = tracer
        self._lanes: dict[Lane, Lane] = {}

    async def submit(
        self, lane: Lane, items: Sequence[Any], *, pairs: int, deadline: float | None = None
    ) -> Outcomes:
        """As ``Batcher.submit``. Items of calls that are not sampled go the same way."""
        unit = None
        if trace.get_current_span().is_recording():
            unit = _Unit(contexts.get_current(), time.time_ns(), pairs * len(items))
        carried = [_Item(item, unit) for item in items]
        try:
            made = await self._inner.submit(
                self._lane(lane), carried, pairs=pairs, deadline=deadline
            )
        finally:
            if unit is not None:
                self._told(unit)
        call = _CALL.get()
        if call is not None:
            call.answered = time.time_ns()
        return made

    def _lane(self, lane: Lane) -> Lane:
        made = self._lanes.get(lane)
        if made is None:
            made = Lane(lane.name, lambda carried: self._run(lane, carried))
            made = self._lanes.setdefault(lane, made)
        return made

    def _run(self, lane: Lane, carried: Sequence[_Item]) -> Sequence[Any]:
        """On the device thread."""
        batch = _Batch(time.time_ns(), len(carried))
        for unit in {id(one.unit): one.unit for one in carried if one.unit is not None}.values():
            unit.batches.append(batch)
            batch.leader = batch.leader or unit
        with self._live(batch):
            return lane.run([one.item for one in carried])

    @contextlib.contextmanager
    def _live(self, batch: _Batch) -> Iterator[None]:
        """The batch as a span of its leader, current for all that is done within."""
        if batch.leader is None:
            yield
            return
        span = self._tracer.start_span(
            "batch", context=batch.leader.context, start_time=batch.began, attributes=_about(batch)
        )
        batch.context = trace.set_span_in_context(span, batch.leader.context)
        token, told = contexts.attach(batch.context), _BATCH.set(batch)
        try:
            yield
        finally:
            _BATCH.reset(told)
            contexts.detach(token)
            batch.ended = time.time_ns()
            span.end(batch.ended)

    def _told(self, unit: _Unit) -> None:
        """The spans of a unit that has ended, after the fact: the device does not wait for them."""
        began = unit.batches[0].began if unit.batches else time.time_ns()
        queue = self._tracer.start_span(
            "queue", context=unit.context, start_time=unit.submitted,
            attributes={"matchwright.pairs": unit.pairs},
        )  # fmt: skip
        queue.end(began)
        for batch in unit.batches:
            if batch.ended is not None:  # else the caller left while it runs
                self._batch(unit, batch, batch.ended)

    def _batch(self, unit: _Unit, batch: _Batch, ended: int) -> None:
        assert batch.context is not None
        context = batch.context
        if unit is not batch.leader:
            there = trace.get_current_span(batch.context).get_span_context()
            span = self._tracer.start_span(
                "batch", context=unit.context, start_time=batch.began, attributes=_about(batch),
                links=[Link(there)],
            )  # fmt: skip
            context = trace.set_span_in_context(span, unit.context)
            span.end(ended)
        for start, stop, queries, device in batch.kernels:
            kernels = self._tracer.start_span(
                "kernels", context=context, start_time=start,
                attributes={"matchwright.queries": queries, "matchwright.device": device},
            )  # fmt: skip
            kernels.end(stop)


def _about(batch: _Batch) -> dict[str, int]:
    return {"matchwright.items": batch.items}
