"""The service end to end: a store in a folder, a real server, both clients, the same answers."""

from __future__ import annotations

import asyncio
import json
import time

import pytest
import service_cases
from service_cases import AS_OF, JOBS, LIMITS, PEOPLE, assert_same, job_id, person_id

from matchwright import clients
from matchwright.clients import AsyncClient, Client, Query
from matchwright.engine import synthetic
from matchwright.engine.config import ServerConfig
from matchwright.engine.matcher import Request
from matchwright.engine.policy import Policy
from matchwright.engine.service import running
from matchwright.engine.store import Store

client = service_cases.client
folder = service_cases.folder
matcher = service_cases.matcher
server = service_cases.server
store = service_cases.store


# ── Congruence ────────────────────────────────────────────────────────────────────────────────

OPTIONS = (
    {},
    {"k": 1},
    {"k": 1_000, "contributions": True},
    {"k": 25, "contributions": True, "weights": {"text": 3.0, "recency": 0.0}},
    {"k": 30, "min_score": 2.0},
    {"k": 5, "exclude_ids": [person_id(n) for n in range(40)]},
    {"k": 5, "candidate_ids": [person_id(n) for n in range(0, 400, 8)]},
    {"k": 5, "candidate_ids": []},
    {"rules": {"languages": {"on_unknown": "fail"}, "rate_budget": {"tolerance_permille": 0}}},
)


@pytest.mark.parametrize("options", OPTIONS, ids=range(len(OPTIONS)))
def test_the_same_answer_in_process_and_over_grpc(client, matcher, options):
    asked = {"contributions": False, **options}
    for n in range(0, JOBS, 13):
        known = matcher.match(Request(kind="job", id=job_id(n), as_of=AS_OF, **asked))
        assert_same(client.find_freelancers(job_id(n), as_of=AS_OF, **options), known)
    if "exclude_ids" in options or "candidate_ids" in options:
        return
    for n in range(0, PEOPLE, 67):
        known = matcher.match(Request(kind="freelancer", id=person_id(n), as_of=AS_OF, **asked))
        assert_same(client.find_jobs(person_id(n), as_of=AS_OF, **options), known)


def test_some_answers_are_full_and_some_are_not(client):
    answers = [client.find_freelancers(job_id(n), as_of=AS_OF, k=3) for n in range(20)]
    assert any(len(one) == 3 and one.shortfall is None and one.kth_key for one in answers)
    assert any(len(one) < 3 and one.shortfall and one.kth_key is None for one in answers)


def test_a_batch_of_both_kinds_answers_as_single_calls_do(client):
    queries = [
        Query("job", job_id(n)) if n % 2 else Query("freelancer", person_id(n), {"k": 4})
        for n in range(20)
    ]
    batch = client.batch_find(queries, k=7, as_of=AS_OF)
    assert len(batch) == 20
    for n, matches in enumerate(batch):
        if n % 2:
            single = client.find_freelancers(job_id(n), k=7, as_of=AS_OF)
        else:
            single = client.find_jobs(person_id(n), k=4, as_of=AS_OF)
        assert isinstance(matches, clients.Matches)
        assert matches.digest == single.digest
    assert batch.telemetry.batch_queries == 20


def test_concurrent_callers_get_what_they_would_get_alone(server):
    async def ask():
        async with AsyncClient(server, timeout_s=30.0) as client:
            alone = [await client.find_freelancers(job_id(n), as_of=AS_OF) for n in range(10)]
            again = await asyncio.gather(
                *(client.find_freelancers(job_id(n % 10), as_of=AS_OF) for n in range(60))
            )
            return alone, again

    alone, again = asyncio.run(ask())
    assert [one.digest for one in again] == [alone[n % 10].digest for n in range(60)]
    assert max(one.telemetry.batch_queries for one in again) > 1


def test_an_inline_record_answers_as_in_process(client, matcher, store):
    record = {
        name: value
        for name, value in store.records("job", [job_id(7)]).to_dicts()[0].items()
        if name != "id"
    }
    known = matcher.match(
        Request(kind="job", record=record, as_of=AS_OF, contributions=False, k=20)
    )
    assert_same(client.find_freelancers(record, as_of=AS_OF, k=20), known)
    person = store.records("freelancer", [person_id(3)]).to_dicts()[0]
    known = matcher.match(
        Request(kind="freelancer", record=person, as_of=AS_OF, contributions=False)
    )
    assert_same(client.find_jobs(person, as_of=AS_OF), known)


def test_extra_limits_answer_as_in_process(client, matcher):
    limits = {
        "max_rate_cents": 6_000,
        "countries_denied": ["US"],
        "min_experience": "INTERMEDIATE",
        "required_skills": ["python"],
        "required_languages": [{"code": "en", "level": 4}],
    }
    for n in range(0, JOBS, 9):
        request = Request(kind="job", id=job_id(n), as_of=AS_OF, limits=limits, contributions=False)
        answer = client.find_freelancers(job_id(n), as_of=AS_OF, limits=limits)
        assert_same(answer, matcher.match(request))
    limits = {"min_rate_cents": 2_000, "declined_categories": ["design"]}
    request = Request(
        kind="freelancer", id=person_id(1), as_of=AS_OF, limits=limits, contributions=False
    )
    answer = client.find_jobs(person_id(1), as_of=AS_OF, limits=limits)
    assert_same(answer, matcher.match(request))


def plainly(value):
    return json.loads(json.dumps(value))


@pytest.mark.parametrize("audience", ["operator", "client", "freelancer"])
@pytest.mark.parametrize("direction", ["job", "freelancer"])
def test_explanations_are_the_same_in_process_and_over_grpc(client, matcher, audience, direction):
    for n in range(0, 40, 5):
        pair = (job_id(n), person_id(n * 3))
        known = matcher.explain(
            *pair, direction=direction, audience=audience, as_of=AS_OF, contributions=False
        )
        told = client.explain(*pair, direction=direction, audience=audience, as_of=AS_OF)
        assert plainly(told.to_dict()) == plainly(known.to_dict())


def test_scores_and_counts_are_the_same_in_process_and_over_grpc(client, matcher):
    pairs = [(job_id(n % 4), person_id(n)) for n in range(20)]
    scores = client.score_pairs(pairs, as_of=AS_OF, contributions=True)
    width = len(scores.facets)
    for n, (job, person) in enumerate(pairs):
        known = matcher.score_pairs(Request(kind="job", id=job, as_of=AS_OF), [person])[0]
        assert scores.points[n] == known.points
        assert scores.scores[n] == known.score
        assert scores.eligible[n] == (not known.vetoes)
        assert sum(scores.contributions[n * width : (n + 1) * width]) == known.points
    for n in range(10):
        known = matcher.count_eligible(Request(kind="job", id=job_id(n), as_of=AS_OF))
        count = client.count_eligible("job", job_id(n), as_of=AS_OF)
        assert (count.eligible, count.unverified) == (known.eligible, known.unverified)
        assert (str(count.epoch), count.policy) == (known.epoch, known.policy)


# ── Epochs and policies ───────────────────────────────────────────────────────────────────────


def test_a_write_is_read_by_its_epoch(tmp_path):
    folder = tmp_path / "store"
    people = synthetic.frame("freelancer", 60)
    with Store.open(folder, mode="w", create=True, retain_s=0.0) as store:
        store.upsert("job", synthetic.frame("job", 20))
        first = store.upsert("freelancer", people.head(50)).epoch.number
        lease = store.keep("test")
        config = ServerConfig(stores={"default": folder}, port=0, limits=LIMITS)
        with running(config) as address, Client(address) as client:
            before = client.count_eligible("job", job_id(2), as_of=AS_OF, epoch=first)
            later = store.upsert("freelancer", people.tail(10)).epoch.number
            after = client.find_freelancers(job_id(2), as_of=AS_OF, min_epoch=later)
            assert after.epoch.number >= later > before.epoch.number
            again = client.count_eligible("job", job_id(2), as_of=AS_OF, epoch=first)
            assert (again.epoch, again.eligible) == (before.epoch, before.eligible)
            lease.release()
            later = store.upsert("job", synthetic.frame("job", 21).tail(1)).epoch.number
            with pytest.raises(clients.FailedPrecondition) as caught:
                client.find_freelancers(job_id(2), as_of=AS_OF, epoch=first)
            assert caught.value.reason == "EPOCH_GONE"
            with pytest.raises(clients.FailedPrecondition) as caught:
                client.find_freelancers(job_id(2), as_of=AS_OF, min_epoch=later + 5)
            assert caught.value.reason == "EPOCH_NOT_REACHED"
            assert caught.value.retry_after_s == 1.0
            batch = client.batch_find(
                [
                    Query("job", job_id(1), {"min_epoch": later}),
                    Query("job", job_id(1), {"min_epoch": later + 5}),
                    Query("job", job_id(1), {"min_epoch": later + 6}),
                ],
                as_of=AS_OF,
            )
            reasons = [getattr(one, "reason", None) for one in batch]
            assert reasons == [None, "EPOCH_NOT_REACHED", "EPOCH_NOT_REACHED"]


def test_the_policy_asked_for_has_to_be_in_force(client):
    policy = Policy.load()
    for known in (policy.id, policy.effective().id):
        assert client.find_freelancers(job_id(1), as_of=AS_OF, policy=known).k == 10
    with pytest.raises(clients.NotFound) as caught:
        client.find_freelancers(job_id(1), as_of=AS_OF, policy="0" * 64)
    assert caught.value.details["policy"] == policy.id


def test_no_day_means_today(client):
    days = {int(time.time()) // 86_400}
    answer = client.find_freelancers(job_id(1))
    days.add(int(time.time()) // 86_400)
    assert answer.as_of in days
