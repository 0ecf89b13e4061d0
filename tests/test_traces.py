"""Traces: spans of a call from the caller's to the model's, and nothing at all without them."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent import futures

import grpc
import pytest
import service_cases
from service_cases import AS_OF, job_id

from matchwright import clients
from matchwright.clients import AsyncClient, Client, Query
from matchwright.engine.batcher import Batcher, Lane
from matchwright.engine.cli.serve import traces_to
from matchwright.engine.config import ServerConfig
from matchwright.engine.errors import DependencyUnavailable, InvalidArgument
from matchwright.engine.models.watch import Hop
from matchwright.engine.service import running
from matchwright.engine.service.observe import Observer
from matchwright.v1 import match_service_pb2 as wire

pytest.importorskip("opentelemetry.sdk", reason="needs matchwright[otel]")

from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from matchwright.engine.service import traces

folder = service_cases.folder
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = (("traceparent", f"00-{TRACE}-{PARENT}-01"),)
NOT_SAMPLED = (("traceparent", f"00-{TRACE}-{PARENT}-00"),)
FIND = "/matchwright.v1.MatchService/FindFreelancers"


@pytest.fixture
def exporter(monkeypatch):
    """Where spans go once the server has ended."""
    made = InMemorySpanExporter()
    monkeypatch.setattr(traces, "exporter_to", lambda endpoint: made)
    monkeypatch.setattr(made, "shutdown", lambda: None)
    return made


def traced(folder, **more):
    endpoint = "http://127.0.0.1:4317"
    return running(
        ServerConfig(stores={"default": folder}, port=0, trace_endpoint=endpoint, **more)
    )


def ask(address, metadata=TRACEPARENT, **request):
    request = {"job_id": job_id(1), "options": wire.FindOptions(as_of_day=AS_OF), **request}
    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary(FIND, response_deserializer=bytes)
        data = wire.FindFreelancersRequest(**request).SerializeToString()
        return call(data, timeout=30.0, metadata=metadata)


def by_name(exporter):
    return {span.name: span for span in exporter.get_finished_spans()}


def spans_of(exporter, name):
    return [span for span in exporter.get_finished_spans() if span.name == name]


# ── The spans of a call ───────────────────────────────────────────────────────────────────────


def test_the_spans_of_a_call(folder, exporter):
    with traced(folder) as address:
        ask(address)
    spans = by_name(exporter)
    name = FIND.strip("/")
    assert set(spans) == {name, "queue", "batch", "kernels", "output"}
    call = spans[name]
    assert f"{call.context.trace_id:032x}" == TRACE
    assert f"{call.parent.span_id:016x}" == PARENT
    assert call.kind is SpanKind.SERVER
    assert dict(call.attributes) == {
        "rpc.system": "grpc",
        "rpc.service": "matchwright.v1.MatchService",
        "rpc.method": "FindFreelancers",
        "rpc.grpc.status_code": 0,
    }
    parents = {"queue": name, "batch": name, "kernels": "batch", "output": name}
    for child, parent in parents.items():
        assert spans[child].parent.span_id == spans[parent].context.span_id, child
        assert spans[child].context.trace_id == call.context.trace_id
        assert spans[child].start_time >= spans[parent].start_time, child
        assert spans[child].end_time <= spans[parent].end_time, child
    assert spans["queue"].end_time == spans["batch"].start_time
    assert spans["output"].start_time >= spans["batch"].end_time
    assert spans["batch"].attributes["matchwright.items"] == 1
    assert spans["kernels"].attributes["matchwright.queries"] == 1
    assert spans["kernels"].attributes["matchwright.device"]
    resource = call.resource.attributes
    assert resource["service.name"] == "matchwright"
    assert resource["service.version"]


def test_a_call_without_a_context_begins_a_trace(folder, exporter):
    with traced(folder) as address:
        ask(address, metadata=())
        ask(address, metadata=(("traceparent", "nonsense"),))
    calls = spans_of(exporter, FIND.strip("/"))
    assert [call.parent for call in calls] == [None, None]
    assert len({call.context.trace_id for call in calls}) == 2


def test_what_the_caller_does_not_sample_leaves_no_span(folder, exporter):
    with traced(folder) as address:
        ask(address, metadata=NOT_SAMPLED)
    assert exporter.get_finished_spans() == ()


def test_a_batch_of_several_calls_is_one_trace_and_links(folder, exporter, monkeypatch):
    from matchwright.engine.matcher import Matcher

    gather, submit = Matcher.gather_many, Batcher.submit
    begun, go, came = threading.Event(), threading.Event(), []

    def held(self, requests, deadline=None):
        begun.set()
        go.wait(60)
        return gather(self, requests, deadline)

    async def counted(self, *given, **more):
        came.append(given)
        if len(came) == 4:  # once this one waits as well
            asyncio.get_running_loop().call_soon(go.set)
        return await submit(self, *given, **more)

    monkeypatch.setattr(Matcher, "gather_many", held)
    monkeypatch.setattr(Batcher, "submit", counted)

    async def many(address):
        async with AsyncClient(address, timeout_s=30.0) as client:
            first = asyncio.create_task(client.find_freelancers(job_id(0), as_of=AS_OF))
            assert await asyncio.to_thread(begun.wait, 60)
            rest = (client.find_freelancers(job_id(n), as_of=AS_OF) for n in range(1, 4))
            await asyncio.gather(first, *rest)

    with traced(folder) as address:
        asyncio.run(many(address))
    shared = [
        one for one in spans_of(exporter, "batch") if one.attributes["matchwright.items"] == 3
    ]
    assert len(shared) == 3
    assert len({one.context.trace_id for one in shared}) == 3
    assert len({(one.start_time, one.end_time) for one in shared}) == 1
    (leader,) = [one for one in shared if not one.links]
    for one in shared:
        if one is not leader:
            assert [link.context.span_id for link in one.links] == [leader.context.span_id]
    parents = {one.parent.span_id for one in spans_of(exporter, "kernels")}
    assert {one.context.span_id for one in shared} <= parents


def test_errors_and_batches_with_errors(folder, exporter):
    with traced(folder) as address, Client(address, timeout_s=30.0) as client:
        with pytest.raises(clients.NotFound):
            client.find_freelancers("nobody", as_of=AS_OF)
        with pytest.raises(clients.InvalidRequest):
            client.find_freelancers(job_id(1), k=5_000)
        client.batch_find([Query("job", job_id(1)), Query("job", "nobody")], as_of=AS_OF)
    calls = {}
    for span in exporter.get_finished_spans():
        if span.kind is SpanKind.SERVER:
            calls.setdefault(span.attributes["rpc.grpc.status_code"], []).append(span)
    assert set(calls) == {0, 3, 5}
    for found in calls.values():  # the caller's fault is no error of the server
        assert all(span.status.status_code is StatusCode.UNSET for span in found)


def test_a_defect_is_an_error_without_its_text(folder, exporter, monkeypatch):
    from matchwright.engine.matcher import Matcher

    def broken(self, requests, deadline=None):
        raise RuntimeError("a secret path")

    monkeypatch.setattr(Matcher, "gather_many", broken)
    with traced(folder) as address, pytest.raises(grpc.RpcError):
        ask(address)
    call = by_name(exporter)[FIND.strip("/")]
    assert call.status.status_code is StatusCode.ERROR
    assert "secret" not in "".join(span.to_json() for span in exporter.get_finished_spans())


def test_spans_say_nothing_of_people(folder, exporter):
    with traced(folder) as address:
        ask(address)
    told = "".join(span.to_json() for span in exporter.get_finished_spans())
    assert job_id(1) not in told
    assert "f-0000" not in told


# ── On to the models ──────────────────────────────────────────────────────────────────────────


def test_the_context_goes_on_to_the_models(exporter):
    """A call of a model from within a batch is a child of that batch, and carries its context."""
    tracing = traces.tracing("http://127.0.0.1:4317")
    seen = []

    def rank(items):
        mark = tracing.begin("ranker", 3)
        seen.append(dict(mark.headers))
        mark.end(
            Hop(
                model="ranker", version=3, outcome="LATE", seconds=0.1, attempts=2, rows=200,
                way="wire", sent_bytes=10, received_bytes=0,
            )
        )  # fmt: skip
        return items

    async def call():
        batcher = Batcher(queue_pairs_max=2**32, batch_pairs_max=2**28)
        way = tracing.batcher(batcher)
        with tracing._tracer.start_as_current_span("outside"):
            await way.submit(Lane("x", rank), [1], pairs=1)
        await batcher.drain(1.0)

    asyncio.run(call())
    tracing.close()
    spans = by_name(exporter)
    model = spans["model ranker"]
    assert model.kind is SpanKind.CLIENT
    assert model.parent.span_id == spans["batch"].context.span_id
    assert model.context.trace_id == spans["outside"].context.trace_id
    assert model.status.status_code is StatusCode.ERROR
    assert model.attributes["matchwright.outcome"] == "LATE"
    ids = f"00-{model.context.trace_id:032x}-{model.context.span_id:016x}-"
    assert seen[0]["traceparent"].startswith(ids)


# ── To a collector ────────────────────────────────────────────────────────────────────────────


def test_spans_reach_a_collector(folder):
    """Over OTLP, to a collector that speaks it, sent before the server has ended."""
    from opentelemetry.proto.collector.trace.v1 import (
        trace_service_pb2,
        trace_service_pb2_grpc,
    )

    names = []

    class Collector(trace_service_pb2_grpc.TraceServiceServicer):
        def Export(self, request, context):
            for resource in request.resource_spans:
                for scope in resource.scope_spans:
                    names.extend(span.name for span in scope.spans)
            return trace_service_pb2.ExportTraceServiceResponse()

    collector = grpc.server(futures.ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(Collector(), collector)
    port = collector.add_insecure_port("127.0.0.1:0")
    collector.start()
    try:
        endpoint = f"http://127.0.0.1:{port}"
        config = ServerConfig(stores={"default": folder}, port=0, trace_endpoint=endpoint)
        with running(config) as address:
            ask(address)
        assert {"queue", "batch", "kernels", "output", FIND.strip("/")} <= set(names)
    finally:
        collector.stop(None).wait()


SERVE = """
import sys
from pathlib import Path
from matchwright.engine.config import ServerConfig
from matchwright.engine.service import serve
config = ServerConfig(stores={"default": Path(sys.argv[1])}, port=0, trace_endpoint=sys.argv[2])
sys.exit(serve(config))
"""


def test_a_collector_that_is_away_keeps_nobody_waiting(folder):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        command = [sys.executable, "-c", SERVE, str(folder), endpoint]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            try:
                address = process.stdout.readline().removeprefix("listening on ").strip()
                with Client(address, timeout_s=30.0) as client:
                    assert client.find_freelancers(job_id(1), as_of=AS_OF).k == 10
                began = time.monotonic()
                process.send_signal(signal.SIGTERM)
                assert process.wait(timeout=30) == 0
                assert time.monotonic() - began < traces.CLOSE_S + 3
            finally:
                if process.poll() is None:
                    process.kill()


# ── Off ───────────────────────────────────────────────────────────────────────────────────────


def test_without_traces_nothing_is_imported(folder):
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from matchwright.clients import Client\n"
        "from matchwright.engine.config import ServerConfig\n"
        "from matchwright.engine.service import running\n"
        "with running(ServerConfig(stores={'default': Path(sys.argv[1])}, port=0)) as address:\n"
        "    with Client(address, timeout_s=30.0) as client:\n"
        f"        client.find_freelancers({job_id(1)!r}, as_of={AS_OF})\n"
        "print(sorted(name for name in sys.modules if 'opentelemetry' in name))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder)],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    assert done.stdout.strip() == "[]"


def test_without_the_package_it_is_told(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "matchwright.engine.service.traces", None)
    monkeypatch.delattr("matchwright.engine.service.traces", raising=False)
    asked = ServerConfig(stores={"default": folder}, trace_endpoint="http://127.0.0.1:4317")
    with pytest.raises(DependencyUnavailable, match=r"matchwright\[otel\]"):
        Observer(asked, ())


# ── The standard variables ────────────────────────────────────────────────────────────────────

_OTLP = "OTEL_EXPORTER_OTLP"


@pytest.mark.parametrize(
    ("environ", "endpoint"),
    [
        ({}, None),
        ({f"{_OTLP}_ENDPOINT": "http://c:4317"}, "http://c:4317"),
        ({f"{_OTLP}_ENDPOINT": "http://c:1", f"{_OTLP}_TRACES_ENDPOINT": "http://t:2"}, "http://t:2"),
        ({f"{_OTLP}_ENDPOINT": ""}, None),
        ({f"{_OTLP}_ENDPOINT": "http://c:1", "OTEL_SDK_DISABLED": "TRUE"}, None),
        ({f"{_OTLP}_ENDPOINT": "http://c:1", "OTEL_TRACES_EXPORTER": "none"}, None),
        ({f"{_OTLP}_PROTOCOL": "http/protobuf"}, None),
    ],
)  # fmt: skip
def test_the_standard_variables(environ, endpoint):
    assert traces_to(environ) == endpoint


def test_another_protocol_is_refused():
    with pytest.raises(InvalidArgument, match="4317"):
        traces_to({f"{_OTLP}_ENDPOINT": "http://c:4318", f"{_OTLP}_PROTOCOL": "http/protobuf"})


def test_the_service_may_be_named_by_the_environment(monkeypatch):
    monkeypatch.setenv("OTEL_SERVICE_NAME", "match-eu")
    assert traces._resource().attributes["service.name"] == "match-eu"
