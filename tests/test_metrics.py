"""Metrics: what a server counts, and that nothing a caller says makes a series."""

from __future__ import annotations

import asyncio
import re
import threading

import grpc
import metrics_cases
import pytest
import service_cases
from grpc_health.v1 import health_pb2, health_pb2_grpc
from metrics_cases import METHODS, config, get, value, values
from patience import until
from prometheus_client.parser import text_string_to_metric_families
from service_cases import AS_OF, job_id, person_id

from matchwright import clients
from matchwright.clients import AsyncClient, Client, Query
from matchwright.engine.batcher import QUERY_PAIRS_MIN, Batcher, Lane
from matchwright.engine.config import ModelsConfig
from matchwright.engine.matcher import Matcher
from matchwright.engine.metrics import BY_NAME, DEFINITIONS, OTHER, PROCESS, Metrics, table
from matchwright.engine.models.watch import Hop
from matchwright.engine.service import running
from matchwright.engine.service.metrics import CountUnits
from matchwright.engine.service.observe import Observer
from matchwright.engine.store import Store

folder = service_cases.folder
watched = metrics_cases.watched


# ── Definitions ───────────────────────────────────────────────────────────────────────────────


def test_definitions_follow_the_conventions():
    assert len(BY_NAME) == len(DEFINITIONS)
    for it in DEFINITIONS:
        assert re.fullmatch(r"matchwright_[a-z_]+", it.name)
        assert it.name.endswith("_total") == (it.kind == "counter"), it.name
        assert it.name.endswith("_duration_seconds") == (it.kind == "histogram"), it.name
        assert bool(it.buckets) == (it.kind == "histogram")
        assert list(it.buckets) == sorted(set(it.buckets))
        assert it.help.endswith(".")
        assert "|" not in it.help + "".join(it.labels.values())
        assert not it.name.endswith(("_ms", "_milliseconds", "_kib", "_mb"))


def test_the_page_shows_every_definition(repo_root):
    page = (repo_root / "docs" / "deploy.md").read_text("utf-8")
    assert table() in page, "run python -m matchwright.engine.metrics and put its table there"
    for name in PROCESS:
        assert f"`{name}`" in page


def test_everything_that_is_told_is_defined(watched):
    address, at = watched
    with Client(address) as client:
        client.find_freelancers(job_id(1), as_of=AS_OF)
    families = {family.name for family in text_string_to_metric_families(get(at))}
    defined = {it.name.removesuffix("_total") for it in DEFINITIONS}
    process = {name.removesuffix("_total") for name in PROCESS}
    assert families <= defined | process
    assert process <= families
    absent = {"matchwright_degraded_answers", "matchwright_queue_dropped"}
    silent = {it.name.removesuffix("_total") for it in DEFINITIONS if "model" in it.labels}
    silent |= {f"matchwright_device_{name}" for name in ("fallbacks", "errors", "splits")}
    assert defined - families <= absent | silent


# ── What is counted ───────────────────────────────────────────────────────────────────────────


def test_calls_batches_and_the_catalog_are_counted(folder):
    asked = config(folder)
    with running(asked) as address, Client(address, timeout_s=30.0) as client:
        for n in range(3):
            client.find_freelancers(job_id(n), as_of=AS_OF)
        with pytest.raises(clients.NotFound):
            client.find_jobs("nobody", as_of=AS_OF)
        batch = [Query("job", job_id(1)), Query("freelancer", person_id(2)), Query("job", "none")]
        client.batch_find(batch, as_of=AS_OF)
        text = get(asked.metrics_address)
    total = "matchwright_requests_total"
    assert value(text, total, method="FindFreelancers", code="OK") == 3
    assert value(text, total, method="FindJobs", code="NOT_FOUND") == 1
    assert value(text, total, method="BatchFind", code="OK") == 1
    took = "matchwright_request_duration_seconds"
    assert value(text, f"{took}_count", method="FindFreelancers") == 3
    assert 0 < value(text, f"{took}_sum", method="FindFreelancers") < 60
    assert value(text, "matchwright_requests_in_flight") == 0
    assert value(text, "matchwright_inflight_bytes") == 0
    assert value(text, "matchwright_inflight_bytes_max") == asked.inflight_bytes_max
    answers = "matchwright_answers_total"
    assert value(text, answers, marketplace="default", outcome="answered") == 5
    assert value(text, answers, marketplace="default", outcome="failed") == 2
    assert value(text, "matchwright_batch_items_total") == 7
    assert value(text, "matchwright_batches_total") <= 5
    assert value(text, "matchwright_pairs_total") == 7 * QUERY_PAIRS_MIN
    assert value(text, "matchwright_device_busy_seconds_total") > 0
    assert value(text, "matchwright_kernel_duration_seconds_count") >= 4
    assert value(text, "matchwright_queue_duration_seconds_count", marketplace="default") == 5
    with Store.open(folder) as store:
        epoch = store.snapshot().epoch.number
        generation = store.generation.id
        since = store.epochs()[-1].since
    assert value(text, "matchwright_epoch_number", marketplace="default") == epoch
    assert value(text, "matchwright_epoch_timestamp_seconds", marketplace="default") == since
    name = "matchwright_generation_info"
    assert value(text, name, marketplace="default", generation=generation) == 1
    rows = "matchwright_store_rows"
    assert value(text, rows, marketplace="default", kind="job") == service_cases.JOBS
    assert value(text, rows, marketplace="default", kind="freelancer") == service_cases.PEOPLE
    assert value(text, "matchwright_store_trouble", marketplace="default") == 0
    assert value(text, "matchwright_device_lost") == 0
    assert sum(n == "matchwright_device_info" for n, _ in values(text)) == 1


def test_nothing_that_a_caller_says_makes_a_series(watched):
    address, at = watched
    with Client(address, timeout_s=30.0) as client:
        client.find_freelancers(job_id(1), as_of=AS_OF)
        with pytest.raises(clients.NotFound):
            client.find_freelancers("nobody", as_of=AS_OF)
    with grpc.insecure_channel(address) as channel:
        with pytest.raises(grpc.RpcError):
            channel.unary_unary("/matchwright.v1.MatchService/Nothing0")(b"", timeout=10.0)
        before = set(values(get(at)))
        for n in range(40):
            for path in (f"/matchwright.v1.MatchService/Nothing{n}", f"/some.Service{n}/Call"):
                with pytest.raises(grpc.RpcError):
                    channel.unary_unary(path)(b"", timeout=10.0)
    with Client(address, timeout_s=30.0) as client:
        for n in range(40):
            with pytest.raises(clients.NotFound):
                client.find_freelancers(f"nobody-{n}", marketplace=f"m{n}", as_of=AS_OF)
    after = values(get(at))
    assert set(after) == before
    labels = (("code", "UNIMPLEMENTED"), ("method", OTHER))
    assert after["matchwright_requests_total", labels] >= 81


def test_health_checks_are_no_requests(watched):
    address, at = watched
    before = sum(v for (name, _), v in values(get(at)).items() if name.endswith("requests_total"))
    with grpc.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for _ in range(5):
            stub.Check(health_pb2.HealthCheckRequest(service=""), timeout=10.0)
    after = sum(v for (name, _), v in values(get(at)).items() if name.endswith("requests_total"))
    assert after == before


def test_refused_expired_and_left_are_told_apart(folder, monkeypatch):
    sound, device, begun = Matcher.gather_many, threading.Event(), threading.Event()

    def slower(self, requests, deadline=None):
        begun.set()
        device.wait(30.0)
        return sound(self, requests, deadline)

    monkeypatch.setattr(Matcher, "gather_many", slower)
    asked = config(folder, queue_pairs_max=3 * QUERY_PAIRS_MIN)

    def pairs():
        return value(get(asked.metrics_address), "matchwright_queue_pairs")

    async def waiting_are(number):
        wanted = number * QUERY_PAIRS_MIN
        await asyncio.to_thread(until, lambda: pairs() == wanted, f"{number} that wait")

    async def ask(address):
        async with AsyncClient(address, timeout_s=30.0, attempts_max=1) as client:

            def find(n):
                return asyncio.create_task(client.find_freelancers(job_id(n), as_of=AS_OF))

            first = find(0)
            assert await asyncio.to_thread(begun.wait, 30.0), "it is on the device"
            waiting = [find(1), find(2), find(3)]
            await waiting_are(3)
            refused = find(4)
            await asyncio.wait((refused,))
            waiting[1].cancel()
            await waiting_are(2)
            device.set()
            told = await asyncio.gather(first, refused, *waiting, return_exceptions=True)
            return [type(one).__name__ for one in told]

    with running(asked) as address:
        told = asyncio.run(ask(address))
        text = get(asked.metrics_address)
    assert told[:2] == ["Matches", "Overloaded"]
    assert value(text, "matchwright_queue_dropped_total", reason="refused") == 1
    assert value(text, "matchwright_queue_dropped_total", reason="left") == 1
    name = "matchwright_requests_total"
    assert value(text, name, method="FindFreelancers", code="RESOURCE_EXHAUSTED") == 1
    assert value(text, name, method="FindFreelancers", code="CANCELLED") == 1
    assert value(text, name, method="FindFreelancers", code="OK") == 3


def hop(outcome="OK", attempts=1, way="wire"):
    return Hop(
        model="ranker", version=3, outcome=outcome, seconds=0.02, attempts=attempts, rows=200,
        way=way, sent_bytes=20_000, received_bytes=800,
    )  # fmt: skip


def test_calls_of_models_are_counted(folder):
    observer = Observer(config(folder, models=ModelsConfig(triton="127.0.0.1:1")), METHODS)
    metrics = observer._metrics
    metrics.at_scrape(observer.breakers.samples)
    for one in (hop(), hop(attempts=3, way="shared_memory"), hop("LATE", attempts=0)):
        observer.hops.begin("ranker", 3).end(one)
    observer.hops.breaker("ranker", 3, "open")
    observer.hops.breaker("ranker", 2, "closed")
    observer.hops.way("wire", "the server is on another host")
    text = metrics.text()[0].decode()
    calls = "matchwright_model_calls_total"
    assert value(text, calls, model="ranker", outcome="OK") == 2
    assert value(text, calls, model="ranker", outcome="LATE") == 1
    assert value(text, "matchwright_model_retries_total", model="ranker") == 2
    name = "matchwright_model_bytes_total"
    assert value(text, name, model="ranker", direction="sent", way="wire") == 40_000
    assert value(text, name, model="ranker", direction="received", way="shared_memory") == 800
    took = "matchwright_model_call_duration_seconds"
    assert value(text, f"{took}_count", model="ranker") == 3
    state = "matchwright_model_breaker_state"
    assert value(text, state, model="ranker", state="open") == 1
    assert value(text, state, model="ranker", state="closed") == 1
    assert value(text, state, model="ranker", state="half_open") == 0
    assert observer.breakers.trouble == "ranker:3 BREAKER_OPEN"
    observer.hops.breaker("ranker", 3, "closed")
    assert observer.breakers.trouble is None


def test_a_watch_that_fails_fails_no_call(folder, monkeypatch, caplog):
    observer = Observer(config(folder), METHODS)

    def broken(*given, **more):
        raise RuntimeError("no counter")

    monkeypatch.setattr(Metrics, "count", broken)
    mark = observer.hops.begin("ranker", 3)
    assert dict(mark.headers) == {}
    mark.end(hop())
    assert "could not be counted" in caplog.text


def test_degraded_answers_are_counted_by_reason(folder):
    """Answers as the matcher makes them, with what a model did not give."""
    from dataclasses import replace

    from matchwright.engine.policy import Policy
    from matchwright.engine.request import Request
    from matchwright.kernels.ops import get_ops

    with Store.open(folder) as store:
        request = Request(kind="job", id=job_id(1), k=5, as_of=AS_OF)
        result = Matcher(store, get_ops("cpu"), Policy.load()).match(request)
    late = replace(result, degraded=("ENCODER_LATE",))

    async def ask(metrics):
        batcher = Batcher(queue_pairs_max=2**32, batch_pairs_max=2**28)
        way = CountUnits(batcher, metrics, "default")
        await way.submit(Lane("x", lambda items: items), [late, result, late], pairs=1)
        await batcher.drain(1.0)

    metrics = Metrics({})
    asyncio.run(ask(metrics))
    text = metrics.text()[0].decode()
    name = "matchwright_degraded_answers_total"
    assert value(text, name, marketplace="default", reason="ENCODER_LATE") == 2
    assert value(text, "matchwright_answers_total", marketplace="default", outcome="answered") == 3
