"""What watches a server: metrics and traces, each only when it is asked for.

Without either, a server has no interceptor, no wrapper and no thread more than it needs.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from importlib import metadata
from typing import TYPE_CHECKING

import grpc.aio

from matchwright.engine.batcher import Batcher
from matchwright.engine.config import ServerConfig, host_and_port
from matchwright.engine.errors import DependencyUnavailable
from matchwright.engine.metrics import Metrics, Sample
from matchwright.engine.models.watch import BreakerState, Hop, Mark, Watch, Way
from matchwright.engine.service.conditions import Breakers, Conditions
from matchwright.engine.service.endpoint import Endpoint
from matchwright.engine.service.metrics import CODES, CountCalls, CountHops, CountUnits, Submits
from matchwright.engine.service.metrics import batcher_samples as queue_samples

MODELS = ("encoder", "ranker")

if TYPE_CHECKING:
    from matchwright.engine.service.traces import Tracing

_log = logging.getLogger(__name__)

Health = tuple[bool, Mapping[str, str | None]]


class Observer:
    """The watching side of one server.

    Args:
        config: says whether and where.
        methods: names of the methods that are served.

    Raises:
        DependencyUnavailable: traces are asked for and OpenTelemetry is not installed.
    """

    def __init__(self, config: ServerConfig, methods: Collection[str]) -> None:
        self._config = config
        self._metrics: Metrics | None = None
        self._tracing: Tracing | None = None
        self._endpoint: Endpoint | None = None
        self.breakers = Breakers()
        if config.metrics_address is not None:
            known = {"method": methods, "code": CODES, "marketplace": tuple(config.stores)}
            known["model"] = MODELS
            self._metrics = Metrics(known)
            self._metrics.at_scrape(_build)
        if config.trace_endpoint is not None:
            self._tracing = _tracing(config.trace_endpoint)

    def interceptors(self) -> list[grpc.aio.ServerInterceptor]:
        """Around every call, outermost first."""
        made: list[grpc.aio.ServerInterceptor] = []
        if self._metrics is not None:
            made.append(CountCalls(self._metrics))
        if self._tracing is not None:
            made.append(self._tracing.interceptor())
        return made

    def batcher(self, marketplace: str, batcher: Submits) -> Submits:
        """A marketplace's way to the batcher."""
        if self._metrics is not None:
            batcher = CountUnits(batcher, self._metrics, marketplace)
        if self._tracing is not None:
            batcher = self._tracing.batcher(batcher)
        return batcher

    @property
    def kernels(self) -> Callable[[float, float, int, str], None] | None:
        """Told of each call of the kernels; None when nobody wants to know."""
        told = [] if self._metrics is None else [self._count_kernels]
        told += [] if self._tracing is None else [self._tracing.kernels]
        if not told:
            return None

        def tell(began: float, seconds: float, queries: int, device: str) -> None:
            for each in told:
                each(began, seconds, queries, device)

        return tell

    @property
    def hops(self) -> Watch:
        """Told of each call of a model: what the client of the models takes as its watch."""
        watches: list[Watch] = [self.breakers]
        if self._metrics is not None:
            watches.append(CountHops(self._metrics))
        if self._tracing is not None:
            watches.append(self._tracing)
        return All(watches)

    def start(
        self,
        batcher: Batcher,
        conditions: Conditions,
        inflight_bytes: Callable[[], int],
        health: Callable[[], Health],
    ) -> str | None:
        """Open the endpoint.

        Returns:
            Its address; None when there is none.

        Raises:
            DependencyUnavailable: the address cannot be listened on.
        """
        metrics, config = self._metrics, self._config
        if metrics is None:
            return None
        assert config.metrics_address is not None
        metrics.at_scrape(lambda: queue_samples(batcher, config.queue_pairs_max))
        metrics.at_scrape(conditions.samples)
        metrics.at_scrape(
            lambda: (
                Sample("matchwright_inflight_bytes", inflight_bytes()),
                Sample("matchwright_inflight_bytes_max", config.inflight_bytes_max),
            )
        )
        self._endpoint = Endpoint(metrics, health)
        return self._endpoint.start(*host_and_port(config.metrics_address, "metrics_address"))

    def close(self) -> None:
        """Close the endpoint, and send the spans that are left; blocks while it does."""
        if self._endpoint is not None:
            self._endpoint.close()
        if self._tracing is not None:
            self._tracing.close()

    def _count_kernels(self, began: float, seconds: float, queries: int, device: str) -> None:
        assert self._metrics is not None
        self._metrics.observe("matchwright_kernel_duration_seconds", seconds)


class All:
    """Tells several watches; one that fails is logged and does not fail the call."""

    def __init__(self, watches: Sequence[Watch]) -> None:
        self._watches = watches

    def begin(self, model: str, version: int) -> Mark:
        """A mark that carries everybody's headers."""
        marks: list[Mark] = []
        for watch in self._watches:
            with _harmless():
                marks.append(watch.begin(model, version))
        return _Marks(marks)

    def breaker(self, model: str, version: int, state: BreakerState) -> None:
        """The circuit breaker of a model's version has changed."""
        for watch in self._watches:
            with _harmless():
                watch.breaker(model, version, state)

    def way(self, way: Way, why: str) -> None:
        """Tensors travel another way from now on."""
        for watch in self._watches:
            with _harmless():
                watch.way(way, why)


class _Marks:
    def __init__(self, marks: Sequence[Mark]) -> None:
        self._marks = marks
        self.headers: Mapping[str, str] = {
            key: value for mark in marks for key, value in mark.headers.items()
        }

    def end(self, hop: Hop) -> None:
        for mark in self._marks:
            with _harmless():
                mark.end(hop)


@contextlib.contextmanager
def _harmless() -> Iterator[None]:
    try:
        yield
    except Exception:
        _log.exception("a call of a model could not be counted or traced")


def _build() -> list[Sample]:
    return [Sample("matchwright_build_info", 1, {"version": metadata.version("matchwright")})]


def _tracing(endpoint: str) -> Tracing:
    try:
        from matchwright.engine.service import traces
    except ImportError as error:
        raise DependencyUnavailable(
            f"traces to {endpoint} are asked for and OpenTelemetry is not installed ({error}); "
            "pip install 'matchwright[otel]', or ask for none",
            field="trace_endpoint",
        ) from None
    return traces.tracing(endpoint)


__all__ = ["Observer"]
