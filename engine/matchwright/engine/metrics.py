"""Every metric of the server, defined once; docs/deploy.md shows this table.

Labels hold what the operator chose (marketplaces, models) or what the program knows (methods,
codes, reasons), never what a request says: a value that nobody foresaw counts as ``other``, so the
number of series is bounded from the start.

``python -m matchwright.engine.metrics`` prints the table of the documentation.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import prometheus_client
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector, CollectorRegistry

OTHER = "other"
"""What a label holds that nobody foresaw."""

REQUEST_S = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)
WORK_S = (0.0001, 0.00025, 0.0005, *REQUEST_S[:-2])


@dataclass(frozen=True, slots=True)
class Definition:
    """One metric.

    Attributes:
        name: as Prometheus shows it; counters end in ``_total``, units are seconds and bytes.
        kind: counters only grow; gauges are what is; histograms count durations by size.
        help: one sentence.
        labels: label -> what it holds.
        buckets: upper bounds of a histogram, in seconds.
        read: a counter that is kept elsewhere and read when somebody looks, as all gauges are.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: Mapping[str, str] = field(default_factory=dict)
    buckets: tuple[float, ...] = ()
    read: bool = False


_MARKET = {"marketplace": "a name given to `--store`"}
_MODEL = {"model": "`encoder`, `ranker`"}
_METHOD = "a method of the API"

DEFINITIONS = (
    Definition(
        "matchwright_build_info", "gauge", "Always 1; the version that runs.", {"version": "its"}
    ),
    # Calls
    Definition(
        "matchwright_requests_total",
        "counter",
        "Calls that ended.",
        {"method": _METHOD, "code": "the gRPC status"},
    ),
    Definition(
        "matchwright_request_duration_seconds",
        "histogram",
        "From a call's arrival to its end, whatever the end.",
        {"method": _METHOD},
        REQUEST_S,
    ),
    Definition("matchwright_requests_in_flight", "gauge", "Calls that are being answered."),
    Definition(
        "matchwright_inflight_bytes", "gauge", "Bytes of the requests that are being answered."
    ),
    Definition("matchwright_inflight_bytes_max", "gauge", "The limit of the same name."),
    Definition(
        "matchwright_answers_total",
        "counter",
        "Queries answered, each item of a batch by itself.",
        {**_MARKET, "outcome": "`answered`, `failed`"},
    ),
    Definition(
        "matchwright_degraded_answers_total",
        "counter",
        "Reasons why answers went without a model: in the first phase's order, or without a text.",
        {**_MARKET, "reason": "why, as in the answer"},
    ),
    # The queue before the device, and the device
    Definition("matchwright_queue_pairs", "gauge", "Work that waits: queries times rows."),
    Definition("matchwright_queue_pairs_max", "gauge", "The limit of the same name."),
    Definition("matchwright_queue_units", "gauge", "Requests that wait or run."),
    Definition(
        "matchwright_queue_dropped_total",
        "counter",
        "Requests that never ran.",
        {"reason": "`refused` at the door, `expired` while waiting, `left` by the caller"},
        read=True,
    ),
    Definition(
        "matchwright_queue_duration_seconds",
        "histogram",
        "How long a request waited for its first batch.",
        _MARKET,
        WORK_S,
    ),
    Definition(
        "matchwright_batch_duration_seconds",
        "histogram",
        "How long the batches of a request took.",
        _MARKET,
        WORK_S,
    ),
    Definition(
        "matchwright_batches_total", "counter", "Batches that the device has run.", read=True
    ),
    Definition(
        "matchwright_batch_failures_total", "counter", "Batches that failed as a whole.", read=True
    ),
    Definition("matchwright_batch_items_total", "counter", "Items of those batches.", read=True),
    Definition(
        "matchwright_pairs_total", "counter", "Pairs weighed: queries times rows.", read=True
    ),
    Definition(
        "matchwright_device_busy_seconds_total", "counter", "Time spent on batches.", read=True
    ),
    Definition(
        "matchwright_kernel_duration_seconds",
        "histogram",
        "One call of the kernels: the search for a block of queries.",
        {},
        WORK_S,
    ),
    Definition(
        "matchwright_device_info",
        "gauge",
        "Always 1; what runs the kernels.",
        {"device": "its name"},
    ),
    Definition(
        "matchwright_device_lost",
        "gauge",
        "1 since the GPU was lost and the CPU answers in its place.",
    ),
    Definition(
        "matchwright_device_fallbacks_total",
        "counter",
        "Calls that the CPU answered although there was a GPU.",
        {"reason": "`OUT_OF_MEMORY`, `CALL_FAILED`, `DEVICE_LOST`, `UNFIT`, `RESTING`, `LOST`"},
        read=True,
    ),
    Definition(
        "matchwright_device_errors_total",
        "counter",
        "What went wrong on the GPU.",
        {"reason": "`OUT_OF_MEMORY`, `CALL_FAILED`, `DEVICE_LOST`"},
        read=True,
    ),
    Definition(
        "matchwright_device_splits_total",
        "counter",
        "Times that a call was halved because the GPU's memory was short.",
        read=True,
    ),
    # The catalog
    Definition("matchwright_epoch_number", "gauge", "The epoch that is answered from.", _MARKET),
    Definition(
        "matchwright_epoch_timestamp_seconds",
        "gauge",
        "When that epoch came in force, in seconds since 1970: `time()` less this is its age.",
        _MARKET,
    ),
    Definition(
        "matchwright_generation_info",
        "gauge",
        "Always 1; the generation in force.",
        {**_MARKET, "generation": "its id; one series at a time"},
    ),
    Definition(
        "matchwright_store_rows",
        "gauge",
        "Entities that can be matched.",
        {**_MARKET, "kind": "`job`, `freelancer`"},
    ),
    Definition(
        "matchwright_store_trouble",
        "gauge",
        "1 while the store cannot be read anew and answers stay on an older epoch.",
        _MARKET,
    ),
    # Served models
    Definition(
        "matchwright_model_calls_total",
        "counter",
        "Calls of a model, retries not counted.",
        {**_MODEL, "outcome": "`OK`, or the reason as in a degraded answer"},
    ),
    Definition(
        "matchwright_model_call_duration_seconds",
        "histogram",
        "From asking a model to its answer or failure, retries included.",
        _MODEL,
        WORK_S,
    ),
    Definition("matchwright_model_retries_total", "counter", "Calls sent again.", _MODEL),
    Definition(
        "matchwright_model_bytes_total",
        "counter",
        "Tensors sent to a model and received from it.",
        {**_MODEL, "direction": "`sent`, `received`", "way": "`wire`, `shared_memory`"},
    ),
    Definition(
        "matchwright_model_breaker_state",
        "gauge",
        "How many of a model's versions have a circuit breaker in that state.",
        {**_MODEL, "state": "`closed`, `open`, `half_open`"},
    ),
)
BY_NAME: Mapping[str, Definition] = {each.name: each for each in DEFINITIONS}

PROCESS = (
    *("process_cpu_seconds_total", "process_resident_memory_bytes"),
    *("process_virtual_memory_bytes", "process_start_time_seconds"),
    *("process_open_fds", "process_max_fds"),
)
"""What the client library itself says of the process, where there is a /proc."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A value that is read when somebody looks."""

    name: str
    value: float
    labels: Mapping[str, str] = field(default_factory=dict)


class Metrics:
    """The metrics of one server. Thread-safe.

    Args:
        known: label -> the values that it may hold; labels that are not named here hold what the
            program gives.
    """

    def __init__(self, known: Mapping[str, Collection[str]]) -> None:
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
        self._known = {label: frozenset(values) for label, values in known.items()}
        self._registry = CollectorRegistry()
        self._counters: dict[str, prometheus_client.Counter] = {}
        self._histograms: dict[str, prometheus_client.Histogram] = {}
        self._reads: list[Callable[[], Iterable[Sample]]] = []
        for it in DEFINITIONS:
            names = tuple(it.labels)
            if it.kind == "histogram":
                self._histograms[it.name] = prometheus_client.Histogram(
                    it.name, it.help, names, registry=self._registry, buckets=it.buckets
                )
            elif it.kind == "counter" and not it.read:
                self._counters[it.name] = prometheus_client.Counter(
                    it.name, it.help, names, registry=self._registry
                )
        self._registry.register(_Read(self._reads))
        prometheus_client.ProcessCollector(registry=self._registry)

    def count(self, name: str, more: float = 1.0, **labels: str) -> None:
        """Add to a counter."""
        held = self._counters[name]
        (held.labels(**self._bounded(labels)) if labels else held).inc(more)

    def observe(self, name: str, seconds: float, **labels: str) -> None:
        """Put a duration into a histogram."""
        held = self._histograms[name]
        (held.labels(**self._bounded(labels)) if labels else held).observe(seconds)

    def at_scrape(self, read: Callable[[], Iterable[Sample]]) -> None:
        """Ask ``read`` whenever the metrics are read; it must be quick and must not fail."""
        self._reads.append(read)

    def text(self, accept: str = "") -> tuple[bytes, str]:
        """(the exposition, its content type), in the format that an Accept header asks for."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type

    def _bounded(self, labels: Mapping[str, str]) -> dict[str, str]:
        return {name: self._value(name, value) for name, value in labels.items()}

    def _value(self, label: str, value: str) -> str:
        known = self._known.get(label)
        return value if known is None or value in known else OTHER


class _Read(Collector):
    """Samples that are read when somebody looks, as families of their definitions."""

    def __init__(self, reads: Iterable[Callable[[], Iterable[Sample]]]) -> None:
        self._reads = reads

    def collect(self) -> Iterator[Metric]:
        found: dict[str, list[Sample]] = {}
        for read in self._reads:
            for sample in read():
                found.setdefault(sample.name, []).append(sample)
        for it in DEFINITIONS:
            if it.name in found:
                yield _family(it, found[it.name])


def _family(it: Definition, samples: Iterable[Sample]) -> Metric:
    kind = CounterMetricFamily if it.kind == "counter" else GaugeMetricFamily
    family = kind(it.name, it.help, labels=tuple(it.labels))
    for sample in samples:
        family.add_metric([sample.labels[name] for name in it.labels], sample.value)
    return family


def table() -> str:
    """The definitions as a table in Markdown, as docs/deploy.md shows them."""
    lines = ["| metric | kind | labels | meaning |", "|---|---|---|---|"]
    for it in DEFINITIONS:
        labels = "; ".join(f"`{name}`: {what}" for name, what in it.labels.items())
        lines.append(f"| `{it.name}` | {it.kind} | {labels} | {it.help} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(table() + "\n")
