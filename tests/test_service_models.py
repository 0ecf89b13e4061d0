"""The service over a real Triton server: killed, stopped and started again under load; models that
are swapped and rolled back under load."""

# ruff: noqa: F401, F811 (fixtures come by import)
from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from metrics_cases import value, values
from models_service_cases import (
    DEADLINE_S,
    REFIT,
    TIMEOUT_MS,
    Load,
    asking,
    config,
    repo,
    reranked,
    serve,
    shop,
    triton,
)
from patience import PATIENCE, until
from rerank_service_cases import section
from service_cases import AS_OF, assert_same
from triton_cases import served

from matchwright.clients import Client
from matchwright.engine.config import ServerConfig
from matchwright.engine.matcher import Matcher, Request
from matchwright.engine.models import rolling
from matchwright.engine.models.opened import Models
from matchwright.engine.policy import Policy
from matchwright.engine.rerank.rerank_models import Rankers
from matchwright.engine.service import running
from matchwright.engine.store import Store
from matchwright.kernels.ops import Ops

RECOVERY_S = 2.0
SERVING = health_pb2.HealthCheckResponse.SERVING


@pytest.fixture
def server(shop, repo, triton, tmp_path):
    with serve(shop, repo, triton, tmp_path) as serving:
        yield serving


def v(version):
    return section(version=version, timeout_ms=TIMEOUT_MS)


def effective(version):
    return Policy.parse(v(version)).effective().id


def test_the_same_answer_in_process_and_over_grpc(server, shop, repo, triton, asking):
    jobs, people = asking
    inline = {"title": "a job of its own", "text": "that nobody has stored so far"}
    with Models(config(repo, triton)) as models, Store.open(shop, models=models) as store:
        matcher = Matcher(store, Ops(threads=1), Policy.parse(v(1)), Rankers(models))
        with Client(server.address, timeout_s=30.0) as client:
            for own in jobs[:40:8]:
                request = Request(kind="job", id=own, as_of=AS_OF, contributions=False)
                assert_same(client.find_freelancers(own, as_of=AS_OF), matcher.match(request))
            for own in people[:40:8]:
                request = Request(kind="freelancer", id=own, as_of=AS_OF, contributions=False)
                answer = client.find_jobs(own, as_of=AS_OF)
                assert_same(answer, matcher.match(request))
                assert reranked(answer)
            request = Request(kind="job", record=inline, as_of=AS_OF, contributions=False)
            answer = client.find_freelancers(inline, as_of=AS_OF)
            assert_same(answer, matcher.match(request))
            assert answer.degraded == ()
            pair = (jobs[0], answer.ids[0])
            told = client.explain(*pair, audience="operator", as_of=AS_OF)
            known = matcher.explain(*pair, as_of=AS_OF, contributions=False)
            assert json.loads(json.dumps(told.to_dict())) == json.loads(json.dumps(known.to_dict()))
    text = server.metrics()
    calls = "matchwright_model_calls_total"
    assert value(text, calls, model="ranker", outcome="OK") >= 10
    assert value(text, calls, model="encoder", outcome="OK") >= 1


def test_killed_stopped_and_started_again_under_load(shop, repo, asking, tmp_path, count):
    """Every request is answered before its deadline; those without a model say so; both models are
    in use again within two seconds of readiness; nothing grows."""
    cycles = count(reduced=2, full=100)

    async def work(server, triton):
        sizes = []
        async with Load(server.address, asking) as load:
            await load.until(reranked, 20.0)
            for n in range(cycles):
                triton.pause()
                await load.until(lambda answer: not reranked(answer), 5.0)
                await asyncio.sleep(0.3)
                triton.resume()
                stopped = await load.until(reranked, 10.0)
                await asyncio.to_thread(triton.kill)
                await load.until(lambda answer: not reranked(answer), 5.0)
                await asyncio.to_thread(triton.start)
                killed = await load.until(reranked, 10.0)
                inline = await load.until(
                    lambda answer: answer.query_id is None and not answer.degraded, 10.0
                )
                assert max(stopped, killed, inline) < RECOVERY_S * PATIENCE, (
                    stopped,
                    killed,
                    inline,
                )
                if n in (cycles // 10, cycles - 1):
                    sizes.append((server.descriptors, server.memory))
        return load, sizes

    with served(repo, ["encoder", "ranker"]) as triton:
        with serve(shop, repo, triton, tmp_path) as server:
            load, sizes = asyncio.run(work(server, triton))
            text = server.metrics()
    assert load.errors == []
    assert len(load.told) > 50 * cycles
    assert max(one.seconds for one in load.told) < DEADLINE_S
    reasons = {one.answer.rerank.degraded for one in load.told}
    assert None in reasons
    assert reasons <= {None, "LATE", "UNREACHABLE", "BREAKER_OPEN", "NOT_READY", "NO_FEATURES"}
    lost = {why for one in load.told for why in one.answer.degraded}
    assert {why.removeprefix("ENCODER_") for why in lost} <= reasons
    assert_counted(text, load)
    (descriptors, memory), (later, more) = sizes[0], sizes[-1]
    assert later <= descriptors + 4
    assert more <= memory + (48 << 20)


def assert_counted(text, load):
    """Degraded answers are counted by reason, as the callers saw them."""
    seen: dict[str, int] = {}
    for one in load.told:
        told = (*one.answer.degraded, *filter(None, (one.answer.rerank.degraded,)))
        for reason in told:
            seen[reason] = seen.get(reason, 0) + 1
    name = "matchwright_degraded_answers_total"
    counted = {
        dict(labels)["reason"]: number
        for (found, labels), number in values(text).items()
        if found == name
    }
    assert counted == seen


def test_the_ranker_is_swapped_and_rolled_back_under_load(server, triton, repo, asking, count):
    """`models load`, another policy, SIGHUP; and back the same way."""
    rounds = count(reduced=3, full=30)

    async def work():
        async with Load(server.address, asking) as load:
            await load.until(reranked, 20.0)
            for n in range(rounds):
                version = (2, 1)[n % 2]
                said = await asyncio.to_thread(server.say, v(version))
                assert Policy.parse(v(version)).id in said
                assert "is in force" in said
                await load.until(lambda one, version=version: one.rerank.version == version, 5.0)
                await asyncio.sleep(0.3)
        return load

    load = asyncio.run(work())
    assert load.errors == []
    made_by = {(one.answer.policy, one.answer.rerank.version) for one in load.told}
    assert made_by == {(effective(1), 1), (effective(2), 2)}
    assert {one.answer.rerank.degraded for one in load.told} == {None}
    assert {why for one in load.told for why in one.answer.degraded} == set()
    with Models(config(repo, triton)) as models:
        hashes = {version: models.ranker(version).content_hash for version in (1, 2)}
    for one in load.told:
        assert one.answer.rerank.content_hash == hashes[one.answer.rerank.version]


def test_a_version_that_is_not_loaded_does_not_come_in_force(server, triton, repo, asking):
    """Unloaded, refused; loaded, taken: no answer goes without the model in between."""

    async def work(client):
        async with Load(server.address, asking) as load:
            await load.until(reranked, 20.0)
            until = time.monotonic() + 60.0
            await asyncio.to_thread(
                rolling.unload, client, "ranker", 2, force=False, deadline=until
            )
            said = await asyncio.to_thread(server.say, v(2))
            assert "stays in force" in said
            assert "matchwright models load ranker --version 2" in said
            await asyncio.to_thread(rolling.load, client, "ranker", 2, deadline=until)
            said = await asyncio.to_thread(server.say, v(2) + "\n[weights]\ntext = 1.5\n")
            assert "is in force" in said
            await load.until(lambda one: one.rerank.version == 2, 5.0)
        return load

    with Models(config(repo, triton)) as models:
        load = asyncio.run(work(models.client))
    assert load.errors == []
    assert {one.answer.rerank.degraded for one in load.told} == {None}


def test_the_encoder_is_swapped_and_rolled_back_under_load(
    server, shop, triton, repo, asking, count
):
    """Each refit builds the next generation beside the one in force, and switches at once."""
    rounds = count(reduced=2, full=20)

    def refit(version):
        with Models(config(repo, triton)) as models:
            with Store.open(shop, mode="w", models=models, wait_s=30.0) as store:
                return store.refit(**REFIT, encoder_version=version).id

    async def work():
        generations = {}
        async with Load(server.address, asking) as load:
            await load.until(reranked, 20.0)
            generations[load.told[-1].answer.generation] = 1
            for n in range(rounds):
                version = (2, 1)[n % 2]
                made = await asyncio.to_thread(refit, version)
                generations[made] = version
                await load.until(lambda answer, made=made: answer.generation == made, 5.0)
                await load.until(lambda answer: answer.query_id is None, 5.0)
        return load, generations

    load, generations = asyncio.run(work())
    assert load.errors == []
    assert {one.answer.generation for one in load.told} == set(generations)
    assert set(generations.values()) == {1, 2}
    assert {why for one in load.told for why in one.answer.degraded} == set()
    assert {one.answer.rerank.degraded for one in load.told} == {None}
    epochs: dict[str, str] = {}
    batches: dict[int, set[str]] = {}
    for one in load.told:  # an epoch has one generation, and so has a batch
        epoch = str(one.answer.epoch)
        assert epochs.setdefault(epoch, one.answer.generation) == one.answer.generation
        batches.setdefault(one.batch, set()).add(one.answer.generation)
    assert {len(found) for found in batches.values()} == {1}


def test_calls_of_models_are_spans_of_the_request(shop, repo, triton, tmp_path, monkeypatch):
    """The encoder's before the queue, the ranker's after the batch, both below the call."""
    pytest.importorskip("opentelemetry.sdk", reason="needs matchwright[otel]")
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from matchwright.engine.service import traces

    exporter = InMemorySpanExporter()
    monkeypatch.setattr(traces, "exporter_to", lambda endpoint: exporter)
    monkeypatch.setattr(exporter, "shutdown", lambda: None)
    policy = tmp_path / "policy.toml"
    policy.write_text(v(1))
    asked = ServerConfig(
        stores={"default": shop},
        port=0,
        policy=policy,
        models=config(repo, triton),
        trace_endpoint="http://127.0.0.1:4317",
    )
    with running(asked) as address, Client(address, timeout_s=30.0) as client:
        record = {"title": "with a text of its own", "text": "that nobody has seen"}
        assert reranked(client.find_freelancers(record, as_of=AS_OF))
    spans = {span.name: span for span in exporter.get_finished_spans()}
    call = spans["matchwright.v1.MatchService/FindFreelancers"]
    for name in ("model encoder", "model ranker", "queue", "batch", "output"):
        assert spans[name].parent.span_id == call.context.span_id, name
    assert spans["model encoder"].end_time <= spans["batch"].start_time
    assert spans["batch"].end_time <= spans["model ranker"].start_time
    assert spans["model ranker"].end_time <= spans["output"].start_time
    assert spans["model ranker"].attributes["matchwright.rows"] > 10


def test_the_health_of_the_models_is_told_and_never_the_services(shop, repo, tmp_path):
    """`doctor --server` says which part is away, and still ends with 0."""

    def doctor(address):
        command = [sys.executable, "-m", "matchwright.engine.cli", "doctor", "--server", address]
        done = subprocess.run(
            [*command, "--format", "json"], capture_output=True, text=True, timeout=60, check=False
        )
        findings = json.loads(done.stdout)["findings"]
        return done.returncode, {one["check"]: one["state"] for one in findings}

    with served(repo, ["encoder", "ranker"]) as triton:
        with serve(shop, repo, triton, tmp_path) as server:
            code, told = doctor(server.address)
            assert (code, told["matchwright.models"]) == (0, "ok")
            triton.kill()
            with grpc.insecure_channel(server.address) as channel:
                check = health_pb2_grpc.HealthStub(channel).Check
                models = health_pb2.HealthCheckRequest(service="matchwright.models")
                until(lambda: check(models, timeout=60.0).status != SERVING, "what health says")
            code, told = doctor(server.address)
            assert code == 0
            assert told["matchwright.models"] != "ok"
            assert told["server"] == "ok"
