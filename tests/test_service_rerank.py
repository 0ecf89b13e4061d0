"""The second phase behind the server: the answers are those of this process, whatever the model
does, and rows of concurrent requests travel together."""

# ruff: noqa: F401, F811 (fixtures come by import)
from __future__ import annotations

import asyncio
import json
import time

import pytest
from patience import until, until_async
from rerank_cases import FAILURES
from rerank_service_cases import (
    GREEDY,
    M,
    first_phase,
    folder,
    in_process,
    jobs,
    model,
    people,
    repo,
    section,
    serving,
    store,
)
from service_cases import AS_OF, assert_same, gathered, job_id, person_id

from matchwright import clients
from matchwright.clients import AsyncClient, Client, Query
from matchwright.engine.cli import main
from matchwright.engine.config import ModelsConfig
from matchwright.engine.errors import FailedPrecondition, ModelUnavailable, NotFound
from matchwright.engine.matcher import Request
from matchwright.engine.service import rerank

OPTIONS = (
    {},
    {"k": M, "contributions": True},
    {"k": 7, "weights": {"text": 3.0, "recency": 0.0}},
    {"k": 5, "min_score": 2.0},
    {"k": 5, "exclude_ids": [person_id(n) for n in range(40)]},
    {"k": 5, "candidate_ids": [person_id(n) for n in range(0, 400, 8)]},
    {"k": 5, "candidate_ids": []},
)


@pytest.fixture
def server(folder, repo, model, tmp_path, monkeypatch):
    with serving(folder, repo, model, tmp_path, monkeypatch) as address:
        yield address


@pytest.fixture
def client(server):
    with Client(server, timeout_s=30.0) as client:
        yield client


@pytest.fixture
def matcher(store, repo, model):
    return in_process(store, repo, model)


# ── Congruence ────────────────────────────────────────────────────────────────────────────────


def test_the_same_answer_in_process_and_over_grpc(client, matcher, jobs, people):
    moved = 0
    for options in OPTIONS:
        asked = {"contributions": False, **options}
        for own in jobs[::15]:
            known = matcher.match(Request(kind="job", id=own, as_of=AS_OF, **asked))
            answer = client.find_freelancers(own, as_of=AS_OF, **options)
            assert_same(answer, known)
            assert answer.rerank.degraded is None
            assert (answer.rerank.model, answer.rerank.version) == ("ranker", 1)
            assert answer.rerank.content_hash == matcher.ranker.trees.content_hash
            ranks = answer.rerank.first_ranks
            moved += tuple(sorted(ranks)) != ranks
            assert [one.first_rank for one in answer] == list(ranks)
            assert [one.model_score for one in answer] == list(answer.rerank.model_scores)
        if "exclude_ids" in options or "candidate_ids" in options:
            continue
        for own in people[::17]:
            known = matcher.match(Request(kind="freelancer", id=own, as_of=AS_OF, **asked))
            assert_same(client.find_jobs(own, as_of=AS_OF, **options), known)
    assert moved > 10


def test_an_inline_record_answers_as_in_process(client, matcher, store, jobs):
    record = store.records("job", [jobs[7]]).to_dicts()[0]
    anonymous = {name: value for name, value in record.items() if name != "id"}
    for given in (record, anonymous):
        known = matcher.match(Request(kind="job", record=given, as_of=AS_OF, contributions=False))
        assert_same(client.find_freelancers(given, as_of=AS_OF), known)


def test_a_batch_of_both_kinds_answers_as_single_calls_do_and_goes_in_one_block(
    client, model, jobs, people
):
    queries = [
        Query("job", jobs[n]) if n % 2 else Query("freelancer", people[n], {"k": 4})
        for n in range(20)
    ]
    queries.append(Query("job", "nobody"))
    batch = client.batch_find(queries, k=7, as_of=AS_OF)
    assert len(model.calls) == 1, "one block, one call"
    assert batch[20].reason == "NOT_FOUND"
    for n, matches in enumerate(batch[:20]):
        if n % 2:
            single = client.find_freelancers(jobs[n], k=7, as_of=AS_OF)
        else:
            single = client.find_jobs(people[n], k=4, as_of=AS_OF)
        assert matches.digest == single.digest
        assert matches.rerank == single.rerank
    assert batch.telemetry.model_ms > 0


@pytest.mark.parametrize("audience", ["operator", "client", "freelancer"])
@pytest.mark.parametrize("direction", ["job", "freelancer"])
def test_explanations_of_both_phases_are_the_same(client, matcher, jobs, audience, direction):
    seen = set()
    for n, own in enumerate(jobs[::9]):
        request = Request(kind="job", id=own, as_of=AS_OF, k=30)
        pair = (own, matcher.match(request).ids[n] if n < 6 else person_id(n))
        known = matcher.explain(
            *pair, direction=direction, audience=audience, as_of=AS_OF, contributions=False
        )
        told = client.explain(*pair, direction=direction, audience=audience, as_of=AS_OF)
        assert json.loads(json.dumps(told.to_dict())) == json.loads(json.dumps(known.to_dict()))
        seen.add(told.rerank.moved)
        if told.rerank.score is not None:
            parts = [share.score for share in told.rerank.contributions]
            assert sum(parts) + told.rerank.bias == told.rerank.score
    assert seen & {"up", "down", "not"}


def test_an_explanation_has_the_score_and_rank_of_the_answer(client, jobs):
    found = client.find_freelancers(jobs[3], as_of=AS_OF, k=4)
    assert len(found) == 4
    for match in found:
        second = client.explain(jobs[3], match.id, audience="operator", as_of=AS_OF).rerank
        assert (second.rank, second.score) == (match.rank, match.model_score)
        assert second.first_rank == match.first_rank


def test_scores_and_counts_are_the_first_phases(client, store):
    known = first_phase(store).count_eligible(Request(kind="job", id=job_id(2), as_of=AS_OF))
    assert client.count_eligible("job", job_id(2), as_of=AS_OF).eligible == known.eligible
    (score,) = first_phase(store).score_pairs(
        Request(kind="job", id=job_id(2), as_of=AS_OF), [person_id(1)]
    )
    assert client.score_pairs([(job_id(2), person_id(1))], as_of=AS_OF).points == (score.points,)


def test_more_results_than_the_model_orders_are_refused(client):
    with pytest.raises(clients.InvalidRequest) as caught:
        client.find_freelancers(job_id(1), k=M + 1, as_of=AS_OF)
    assert "rerank.candidates" in str(caught.value)


# ── When the model fails ──────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("mode", FAILURES)
def test_no_request_fails_because_of_the_model(client, matcher, model, store, mode, jobs):
    model.mode = mode
    asked = {"kind": "job", "as_of": AS_OF, "k": 10, "contributions": False}
    for own in jobs[:3]:
        known = matcher.match(Request(id=own, **asked))
        answer = client.find_freelancers(own, as_of=AS_OF)
        assert_same(answer, known)
        assert answer.rerank.degraded == FAILURES[mode]
        assert answer.ids == first_phase(store).match(Request(id=own, **asked)).ids
        assert [one.model_score for one in answer] == [None] * len(answer)
    batch = client.batch_find([Query("job", own) for own in jobs[:9]], as_of=AS_OF)
    # The stand-in spoils single rows of a block; whom they do not concern is answered.
    assert {one.rerank.degraded for one in batch} - {None} == {FAILURES[mode]}
    model.mode = "right"
    assert client.find_freelancers(jobs[0], as_of=AS_OF).rerank.degraded is None


def test_a_batch_in_several_parts_asks_no_more_after_one_failed(client, model, monkeypatch, jobs):
    monkeypatch.setattr(rerank, "RANKER_ROWS_MAX", 3 * M)
    queries = [Query("job", own) for own in jobs[:30]]
    whole = client.batch_find(queries, as_of=AS_OF)
    calls = len(model.calls)
    assert calls == 10
    assert {one.rerank.degraded for one in whole} == {None}
    model.mode = "unreachable"
    batch = client.batch_find(queries, as_of=AS_OF)
    assert len(model.calls) == calls + 1
    assert {one.rerank.degraded for one in batch} == {"UNREACHABLE"}


def test_a_late_model_costs_what_the_policy_allows(
    folder, repo, model, tmp_path, monkeypatch, jobs
):
    """The stand-in heeds no deadline, which a client of Triton does."""
    model.late_by = 30.0
    text = section(timeout_ms=150)
    with serving(folder, repo, model, tmp_path, monkeypatch, text) as address:
        with Client(address, timeout_s=20.0) as client:
            for own in jobs[:4]:
                began = time.monotonic()
                answer = client.find_freelancers(own, as_of=AS_OF)
                assert answer.rerank.degraded == "LATE"
                assert time.monotonic() - began < 5.0


def test_the_requests_own_deadline_goes_before(client, model, store, jobs):
    """The policy allows 20 s, the caller waits one."""
    client.find_freelancers(jobs[1], as_of=AS_OF)
    model.open.clear()
    for own in jobs[:3]:
        answer = client.find_freelancers(own, as_of=AS_OF, timeout_s=1.0)
        assert answer.rerank.degraded == "LATE"
        plain = first_phase(store).match(Request(kind="job", id=own, as_of=AS_OF))
        assert answer.ids == plain.ids
    batch = client.batch_find([Query("job", own) for own in jobs[:10]], as_of=AS_OF, timeout_s=2.0)
    assert {one.rerank.degraded for one in batch} == {"LATE"}
    model.open.set()


# ── Together ──────────────────────────────────────────────────────────────────────────────────


def test_concurrent_requests_share_calls_and_get_what_they_would_get_alone(
    server, model, jobs, count, gathered
):
    n = count(reduced=40, full=300)

    async def ask():
        async with AsyncClient(server, timeout_s=60.0) as client:
            alone = [await client.find_freelancers(jobs[at], as_of=AS_OF) for at in range(10)]
            before, there = len(model.calls), len(gathered)
            model.open.clear()
            tasks = [
                asyncio.create_task(client.find_freelancers(jobs[at % 10], as_of=AS_OF))
                for at in range(n)
            ]
            await until_async(lambda: len(gathered) == there + n, "all of them")
            model.open.set()
            again = await asyncio.gather(*tasks)
            return alone, again, [len(call.rows) for call in model.calls[before:]]

    alone, again, rows = asyncio.run(ask())
    assert [one.digest for one in again] == [alone[at % 10].digest for at in range(n)]
    assert {one.rerank.degraded for one in again} == {None}
    assert sum(rows) == sum(alone[at % 10].rerank.candidates for at in range(n))
    assert len(rows) < n / 4, rows
    assert max(rows) > M * n / 2


def test_a_caller_with_little_time_does_not_wait_for_the_others(server, model, jobs, gathered):
    async def ask():
        async with AsyncClient(server, timeout_s=30.0) as client:
            model.open.clear()
            patient = [
                asyncio.create_task(client.find_freelancers(own, as_of=AS_OF)) for own in jobs[:5]
            ]
            await until_async(lambda: len(gathered) == 5, "the others")
            hasty = await client.find_freelancers(jobs[7], as_of=AS_OF, timeout_s=1.0)
            assert not any(task.done() for task in patient)
            model.open.set()
            return hasty, await asyncio.gather(*patient)

    hasty, patient = asyncio.run(ask())
    assert hasty.rerank.degraded == "LATE"
    assert {one.rerank.degraded for one in patient} == {None}


def test_the_device_goes_on_while_the_model_is_asked(server, model, jobs, gathered):
    """Searches without the second phase's call are answered while others wait for the model."""

    async def ask():
        async with AsyncClient(server, timeout_s=30.0) as client:
            model.open.clear()
            waiting = [
                asyncio.create_task(client.find_freelancers(own, as_of=AS_OF)) for own in jobs[:5]
            ]
            await until_async(lambda: len(gathered) == 5, "those who wait")
            counts = [await client.count_eligible("job", job_id(n), as_of=AS_OF) for n in range(5)]
            assert not any(task.done() for task in waiting)
            model.open.set()
            await asyncio.gather(*waiting)
            return counts

    assert len(asyncio.run(ask())) == 5


# ── At the start ──────────────────────────────────────────────────────────────────────────────


def test_a_policy_that_reranks_needs_a_model_that_is_there(
    folder, repo, model, tmp_path, monkeypatch
):
    def start(text=None, **more):
        with serving(folder, repo, model, tmp_path, monkeypatch, text, **more):
            pass

    with pytest.raises(FailedPrecondition) as caught:
        start(models=None)
    assert "--models DIR --triton HOST:PORT" in str(caught.value)
    with pytest.raises(ModelUnavailable):
        start(models=ModelsConfig(repository=repo))
    with pytest.raises(NotFound):
        start(section(version=9))
    with pytest.raises(FailedPrecondition) as caught:
        start(section(version=GREEDY))
    assert "freelancer.response_permille" in str(caught.value)


def test_a_server_starts_without_its_model_and_says_so(
    folder, repo, model, tmp_path, monkeypatch, jobs
):
    """Answers go on: health checks name the models alone."""
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    model.mode, model.there = "unreachable", False
    with serving(folder, repo, model, tmp_path, monkeypatch) as address:
        with Client(address) as client, grpc.insecure_channel(address) as channel:
            check = health_pb2_grpc.HealthStub(channel).Check
            serving_now = health_pb2.HealthCheckResponse.SERVING

            def state(name):
                return check(health_pb2.HealthCheckRequest(service=name), timeout=60.0).status

            assert client.find_freelancers(jobs[1], as_of=AS_OF).rerank.degraded == "UNREACHABLE"
            assert state("") == serving_now
            assert state("matchwright.models") != serving_now
            model.mode, model.there = "right", True
            until(lambda: state("matchwright.models") == serving_now, "the model's return")
            assert client.find_freelancers(jobs[1], as_of=AS_OF).rerank.degraded is None


def test_the_command_line_shows_both_phases_of_a_server(server, model, jobs, capsys):
    day = ["--as-of", "2026-01-01", "--format", "json"]
    for mode, degraded in (("right", None), ("late", "LATE")):
        model.mode = mode
        assert main(["match", "--server", server, "--job", jobs[0], *day]) == 0
        told = json.loads(capsys.readouterr().out)
        assert told["rerank"]["degraded"] == degraded
        assert {match["model_score"] is None for match in told["matches"]} == {bool(degraded)}
        assert {match["first_rank"] for match in told["matches"]} - {None}
    other = told["matches"][0]["id"]
    asked = ["explain", "--server", server, "--job", jobs[0], "--freelancer", other]
    assert main([*asked, *day]) == 0
    assert json.loads(capsys.readouterr().out)["rerank"]["model"] == "ranker"
    assert main(["match", "--server", server, "--job", jobs[0]]) == 0
    assert "LATE" in capsys.readouterr().out
