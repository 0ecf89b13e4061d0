"""The hop to a real model server, counted and traced as a server does it."""

from __future__ import annotations

import time
import zlib
from pathlib import Path

import pytest
import triton_cases
from metrics_cases import value
from triton_cases import FINE, HEADER, NAN, ask, question

from matchwright.engine.config import ModelsConfig, ServerConfig
from matchwright.engine.errors import ModelWrong
from matchwright.engine.metrics import OTHER
from matchwright.engine.models.refs import TritonConfig
from matchwright.engine.service.observe import Observer

pytest.importorskip("opentelemetry.sdk", reason="needs matchwright[otel]")

from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from matchwright.engine.service import traces

toy_server = triton_cases.toy_server


@pytest.fixture
def exporter(monkeypatch):
    made = InMemorySpanExporter()
    monkeypatch.setattr(traces, "exporter_to", lambda endpoint: made)
    monkeypatch.setattr(made, "shutdown", lambda: None)
    return made


@pytest.fixture
def observer(toy_server, exporter):
    return Observer(
        ServerConfig(
            stores={"default": Path("nowhere")},
            metrics_address="127.0.0.1:0",
            trace_endpoint="http://127.0.0.1:4317",
            models=ModelsConfig(triton=toy_server.url),
        ),
        (),
    )


def test_a_call_of_a_model_is_counted_and_traced(toy_server, observer, exporter):
    from matchwright.engine.models.triton import Triton

    inputs = question(rows=7)
    with Triton(TritonConfig(url=toy_server.url, shared_memory="off"), observer.hops) as client:
        answer = ask(client, inputs)
        echoed = ask(client, question(what=HEADER))[0, 0]
        with pytest.raises(ModelWrong):
            ask(client, question(what=NAN))
    observer.close()
    assert answer.shape == (7, 4)
    spans = exporter.get_finished_spans()
    assert [span.name for span in spans] == ["model toy"] * 3
    assert [span.attributes["matchwright.outcome"] for span in spans] == [
        "OK",
        "OK",
        "WRONG_OUTPUT",
    ]
    assert spans[0].attributes["matchwright.rows"] == 7
    context = spans[1].context
    flags = int(context.trace_flags)
    sent = f"00-{context.trace_id:032x}-{context.span_id:016x}-{flags:02x}"
    assert echoed == zlib.crc32(sent.encode()) % 65_536, "the model saw this span's context"
    text = observer._metrics.text()[0].decode()
    calls = "matchwright_model_calls_total"  # the toy is no model of ours: one series for all such
    assert value(text, calls, model=OTHER, outcome="OK") == 2
    assert value(text, calls, model=OTHER, outcome="WRONG_OUTPUT") == 1
    sizes = "matchwright_model_bytes_total"
    sent_bytes = sum(array.nbytes for array in inputs.values()) * (7 + 3 + 3) // 7
    assert value(text, sizes, model=OTHER, direction="sent", way="wire") == sent_bytes


def test_shared_memory_is_told_from_the_wire(toy_server, observer):
    from matchwright.engine.models.triton import Triton

    with Triton(TritonConfig(url=toy_server.url, shared_memory="on"), observer.hops) as client:
        ask(client, question(rows=50_000, what=FINE))
    observer.close()
    text = observer._metrics.text()[0].decode()
    sizes = "matchwright_model_bytes_total"
    assert value(text, sizes, model=OTHER, direction="sent", way="shared_memory") == 50_000 * 20
    assert value(text, sizes, model=OTHER, direction="received", way="shared_memory") == 50_000 * 16


def test_a_breaker_that_opens_is_told(toy_server, observer):
    """Nobody listens there: after some failures the model is not asked for a while."""
    from matchwright.engine.errors import ModelUnavailable
    from matchwright.engine.models.triton import Triton

    config = TritonConfig(url="127.0.0.1:9", shared_memory="off", breaker_failures=2, retries=0)
    with Triton(config, observer.hops) as client:
        until = time.monotonic() + 60.0
        while observer.breakers.trouble is None:
            assert time.monotonic() < until
            with pytest.raises(ModelUnavailable):
                ask(client, question(), seconds=1.0)
    observer.close()
    assert observer.breakers.trouble == "toy:1 BREAKER_OPEN"
    told = {s.labels["state"]: s.value for s in observer.breakers.samples()}
    assert told == {"closed": 0, "open": 1, "half_open": 0}
    text = observer._metrics.text()[0].decode()
    assert value(text, "matchwright_model_calls_total", model=OTHER, outcome="UNREACHABLE") >= 2
