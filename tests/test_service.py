"""The service end to end: a store in a folder, a real server, both clients, the same answers."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from matchwright import clients
from matchwright.clients import AsyncClient, Client, Query
from matchwright.engine import synthetic
from matchwright.engine.batcher import QUERY_PAIRS_MIN
from matchwright.engine.config import Limits, ServerConfig
from matchwright.engine.errors import DependencyUnavailable, MatchwrightError, NotFound
from matchwright.engine.matcher import Matcher, Request
from matchwright.engine.policy import Policy
from matchwright.engine.results import OrderKey, Result, Shortfall
from matchwright.engine.service import running
from matchwright.engine.store import Store
from matchwright.kernels.ops import get_ops
from matchwright.v1 import match_service_pb2 as wire

AS_OF = synthetic.AS_OF
JOBS, PEOPLE = 80, 400
LIMITS = Limits(
    batch_items_max=40, batch_matches_max=2_000, exclude_ids_max=50, candidate_ids_max=60,
    weights_max=12, rules_max=5, score_pairs_max=30, epoch_wait_ms=200,
)  # fmt: skip
METHODS = tuple(wire.DESCRIPTOR.services_by_name["MatchService"].methods_by_name)
SERVICE = "matchwright.v1.MatchService"


# ── A marketplace, its server and its matcher ─────────────────────────────────────────────────


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("service") / "store"
    with Store.open(folder, mode="w", create=True, salt=bytes(16)) as store:
        store.upsert("job", synthetic.frame("job", JOBS))
        store.upsert("freelancer", synthetic.frame("freelancer", PEOPLE))
        store.refit(seed=0, sample=1_000, as_of=AS_OF)
    return folder


@pytest.fixture(scope="module")
def server(folder):
    with running(ServerConfig(stores={"default": folder}, port=0, limits=LIMITS)) as address:
        yield address


@pytest.fixture(scope="module")
def client(server):
    with Client(server, timeout_s=30.0) as client:
        yield client


@pytest.fixture(scope="module")
def store(folder):
    with Store.open(folder) as store:
        yield store


@pytest.fixture(scope="module")
def matcher(store):
    return Matcher(store, get_ops("cpu"), Policy.load())


def job_id(n):
    return f"j-{n:07d}"


def person_id(n):
    return f"f-{n:07d}"


def as_result(matches):
    """The engine's own result, put together from what came over the wire alone."""
    shape = (len(matches.ids), len(matches.contributions) // max(1, len(matches.ids)))
    key = matches.kth_key
    return Result(
        epoch=str(matches.epoch),
        generation=matches.generation,
        policy=matches.policy,
        as_of=matches.as_of,
        kind=matches.kind,
        query_id=matches.query_id,
        query_key=matches.query_key,
        k=matches.k,
        facets=matches.facets,
        ids=matches.ids,
        keys=np.array(matches.keys, dtype=np.uint64),
        points=np.array(matches.points, dtype=np.int32),
        contributions=np.array(matches.contributions, dtype=np.int32).reshape(shape),
        scores=np.array(matches.scores, dtype=np.float64),
        eligible=matches.eligible,
        counted=matches.counted,
        unverified=matches.unverified,
        kth_key=None if key is None else OrderKey(key.points, key.mix, key.low),
        shortfall=None if matches.shortfall is None else Shortfall(matches.shortfall),
        resolution=matches.resolution,
        attainable=matches.attainable,
        t=matches.step,
    )


def assert_same(matches, result):
    assert as_result(matches).canonical_bytes() == result.canonical_bytes()
    assert matches.digest == result.digest()
    assert matches.scores == tuple(result.scores.tolist())
    told, known = matches.to_dict(), result.to_dict()
    told.pop("telemetry")
    known.pop("telemetry")
    assert told == known


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


# ── Errors ────────────────────────────────────────────────────────────────────────────────────


def many(n):
    return [person_id(i) for i in range(n)]


WRONG = [
    ({"k": 0}, "INVALID_ARGUMENT", "options.k"),
    ({"k": 1_001}, "INVALID_ARGUMENT", "options.k"),
    ({"k": -1}, "INVALID_ARGUMENT", "options.k"),
    ({"weights": {"text": -1.0}}, "INVALID_ARGUMENT", None),
    ({"weights": {"text": float("nan")}}, "INVALID_ARGUMENT", None),
    ({"weights": {"txet": 1.0}}, "UNKNOWN_KEY", None),
    ({"weights": {str(n): 1.0 for n in range(13)}}, "INVALID_ARGUMENT", "options.weights"),
    ({"weights": {"text": 1e-3}}, "LOW_RESOLUTION", None),
    ({"min_score": float("inf")}, "INVALID_ARGUMENT", "min_score"),
    ({"exclude_ids": many(51)}, "INVALID_ARGUMENT", "options.exclude_ids"),
    ({"exclude_ids": [""]}, "INVALID_ARGUMENT", "options.exclude_ids"),
    ({"exclude_ids": ["é" * 65]}, "INVALID_ARGUMENT", "options.exclude_ids"),
    ({"candidate_ids": many(61)}, "INVALID_ARGUMENT", "options.candidates.ids"),
    ({"as_of": -1}, "INVALID_ARGUMENT", "as_of"),
    ({"as_of": 2**31 - 1}, "INVALID_ARGUMENT", "as_of"),
    ({"epoch": -1}, "INVALID_ARGUMENT", "options.epoch"),
    ({"rules": {"languages": {"enabled": False}}}, "INVALID_ARGUMENT", "rules.languages"),
    ({"rules": {"langauges": {"enabled": True}}}, "UNKNOWN_KEY", "langauges"),
    ({"rules": {str(n): {} for n in range(6)}}, "INVALID_ARGUMENT", "options.rules.settings"),
    ({"limits": {"max_rate_cents": -5}}, "INVALID_ARGUMENT", None),
]


@pytest.mark.parametrize(("options", "reason", "field"), WRONG, ids=range(len(WRONG)))
def test_a_wrong_option_is_told_by_its_field(client, options, reason, field):
    with pytest.raises(clients.InvalidRequest) as caught:
        client.find_freelancers(job_id(1), **{"as_of": AS_OF, **options})
    assert caught.value.reason == reason
    assert caught.value.status == "INVALID_ARGUMENT"
    if field is not None:
        assert caught.value.details["field"] == field
    batch = client.batch_find(
        [Query("job", job_id(1)), Query("job", job_id(1), {"as_of": AS_OF, **options})],
        as_of=AS_OF,
    )
    assert isinstance(batch[0], clients.Matches)
    assert isinstance(batch[1], clients.InvalidRequest)
    assert batch[1].reason == reason


def test_limits_are_named(client):
    for options, limit in (
        ({"k": 1_001}, "k_max"),
        ({"exclude_ids": many(51)}, "exclude_ids_max"),
        ({"candidate_ids": many(61)}, "candidate_ids_max"),
        ({"exclude_ids": ["x" * 129]}, "id_bytes_max"),
        ({"weights": {str(n): 1.0 for n in range(13)}}, "weights_max"),
        ({"rules": {str(n): {} for n in range(6)}}, "rules_max"),
    ):
        with pytest.raises(clients.InvalidRequest, match=limit) as caught:
            client.find_freelancers(job_id(1), as_of=AS_OF, **options)
        assert caught.value.details["limit"] == limit
    for queries, options, limit in (
        ([], {}, "batch_items_max"),
        ([Query("job", job_id(1))] * 41, {}, "batch_items_max"),
        ([Query("job", job_id(1))] * 21, {"k": 100}, "batch_matches_max"),
    ):
        with pytest.raises(clients.InvalidRequest, match=limit):
            client.batch_find(queries, as_of=AS_OF, **options)
    for pairs in ([], [(job_id(1), person_id(1))] * 31):
        with pytest.raises(clients.InvalidRequest, match="score_pairs_max"):
            client.score_pairs(pairs, as_of=AS_OF)


def test_what_is_not_there_is_told(client):
    for call in (
        lambda: client.find_freelancers("nobody", as_of=AS_OF),
        lambda: client.find_jobs("nobody", as_of=AS_OF),
        lambda: client.find_jobs(person_id(1), marketplace="elsewhere"),
        lambda: client.explain(job_id(1), "nobody", audience="operator"),
        lambda: client.explain("nobody", person_id(1), audience="client"),
        lambda: client.score_pairs([(job_id(1), "nobody")]),
        lambda: client.score_pairs([("nobody", person_id(1))]),
        lambda: client.count_eligible("job", "nobody"),
    ):
        with pytest.raises(clients.NotFound) as caught:
            call()
        assert caught.value.reason == "NOT_FOUND"


def test_options_without_a_meaning_are_refused(client):
    for options in ({"k": 3}, {"min_score": 1.0}, {"exclude_ids": ["a"]}, {"count": True}):
        with pytest.raises(clients.InvalidRequest, match="no meaning"):
            client.score_pairs([(job_id(1), person_id(1))], as_of=AS_OF, **options)
    for options in ({"k": 3}, {"weights": {"text": 1.0}}, {"contributions": True}):
        with pytest.raises(clients.InvalidRequest, match="no meaning"):
            client.count_eligible("job", job_id(1), as_of=AS_OF, **options)


def test_limits_of_the_other_side_are_refused(server):
    options = wire.FindOptions()
    options.rules.job_limits.max_rate_cents = 5
    request = wire.FindJobsRequest(freelancer_id=person_id(1), options=options)
    code, status = raw_error(server, "FindJobs", request.SerializeToString())
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "job_limits" in status.message


def test_a_deadline_that_is_too_short_is_told(client):
    with pytest.raises(clients.DeadlineExceeded):
        client.find_freelancers(job_id(1), as_of=AS_OF, timeout_s=1e-4)


# ── Bytes that are no requests ────────────────────────────────────────────────────────────────


def send(address, method, data):
    with grpc.insecure_channel(address) as channel:
        return channel.unary_unary(f"/{SERVICE}/{method}")(data, timeout=30.0)


def raw_error(address, method, data):
    """(code, google.rpc.Status or None) of a call that has to fail."""
    with pytest.raises(grpc.RpcError) as caught:
        send(address, method, data)
    error = caught.value
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            return error.code(), status_pb2.Status.FromString(value)
    return error.code(), None


def mutate(rng, data):
    """Random bytes, or a sound request with some bytes changed, added or taken away."""
    if rng.random() < 0.2 or not data:
        return rng.randbytes(rng.randrange(0, 60))
    made = bytearray(data)
    for _ in range(rng.randrange(1, 5)):
        at = rng.randrange(len(made))
        gone, new = (1, 1) if rng.random() < 0.7 else (rng.randrange(3), rng.randrange(3))
        made[at : at + gone] = rng.randbytes(new)
        if not made:
            break
    return bytes(made)


HOSTILE = {
    "int": (0, 1, -1, 5, 10, AS_OF, 1_000, 1_001, 2**31 - 1, -(2**31)),
    "long": (0, 1, -1, 2, 3, 2**63 - 1, -(2**63)),
    "float": (0.0, 1.0, -1.0, 0.5, 1e-300, 1e300, float("nan"), float("inf"), -float("inf")),
    "text": (
        "", "a", "python", "en", "US", "zz", "Europe/Berlin", "../../etc", "text", "skills",
        "languages", "job_status", "OPEN", "\0", "\u202e", "\U0001f9d1", "é" * 65, "x" * 129,
        "x" * 2_000, "j-0000001", "f-0000001", "title", "category",
    ),
    "enum": (0, 1, 2, 3, 77, -1),
}  # fmt: skip
KINDS_OF_FIELD = {1: "float", 3: "long", 5: "int", 9: "text", 14: "enum", 17: "int", 18: "long"}


def scramble(rng, message, share):
    """Set fields of a message at random, to values that are as likely wrong as right."""
    for field in message.DESCRIPTOR.fields:
        if rng.random() > share:
            continue
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            scramble_map(rng, message, field)
        elif field.message_type is not None:
            for _ in range(rng.randrange(1, 3)):
                target = getattr(message, field.name)
                scramble(rng, target.add() if field.is_repeated else target, share)
                if not field.is_repeated:
                    target.SetInParent()
                    break
        elif field.is_repeated:
            pool = HOSTILE[KINDS_OF_FIELD[field.type]]
            getattr(message, field.name).extend(rng.choices(pool, k=rng.randrange(1, 4)))
        elif field.type == field.TYPE_BOOL:
            setattr(message, field.name, rng.random() < 0.5)
        else:
            setattr(message, field.name, rng.choice(HOSTILE[KINDS_OF_FIELD[field.type]]))
    return message


def scramble_map(rng, message, field):
    entries = getattr(message, field.name)
    name = rng.choice(HOSTILE["text"])
    if field.message_type.fields_by_name["value"].message_type is None:
        entries[name] = rng.choice(HOSTILE["float"])
    else:
        scramble(rng, entries[name], 0.5)


def hostile_request(rng, method, sound):
    """A request of a method: bytes changed, fields changed, or fields at random."""
    data = rng.choice(sound[method])
    way = rng.random()
    if way < 0.4:
        return mutate(rng, data)
    input_type = wire.DESCRIPTOR.services_by_name["MatchService"].methods_by_name[method].input_type
    message = getattr(wire, input_type.name)()
    if way < 0.9:
        message.MergeFromString(data)
    return scramble(rng, message, rng.choice((0.02, 0.1, 0.4))).SerializeToString()


def sound_requests():
    options = wire.FindOptions(
        k=3, as_of_day=AS_OF, weights={"text": 2.0}, exclude_ids=["a"], min_score=0.5
    )
    options.rules.settings["languages"].on_unknown = wire.UNKNOWN_HANDLING_FAIL
    find = wire.FindFreelancersRequest(job_id=job_id(1), options=options)
    inline = wire.FindFreelancersRequest(options=options)
    inline.job.title = "engineer"
    inline.job.rate_max_cents = 7_000
    inline.job.skills.add(name="python", must=True)
    batch = wire.BatchFindRequest(options=options)
    batch.items.add(job_id=job_id(1))
    batch.items.add(freelancer_id=person_id(1))
    pair = wire.Pair(job_id=job_id(1), freelancer_id=person_id(1))
    return {
        "FindFreelancers": [find, inline],
        "FindJobs": [wire.FindJobsRequest(freelancer_id=person_id(1), options=options)],
        "BatchFind": [batch],
        "ScorePairs": [wire.ScorePairsRequest(pairs=[pair], query_kind=1)],
        "Explain": [
            wire.ExplainRequest(
                job_id=job_id(1), freelancer_id=person_id(1), audience=3, options=options
            )
        ],
        "CountEligible": [wire.CountEligibleRequest(job_id=job_id(1))],
    }


def outcome(channel, method, data):
    """The error of a call, or None."""
    try:
        channel.unary_unary(f"/{SERVICE}/{method}")(data, timeout=30.0)
    except grpc.RpcError as error:
        return error
    return None


REFUSALS = {"INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION"}


def test_no_bytes_give_an_internal_error(server, count):
    rng = random.Random(5)
    sound = {
        method: [message.SerializeToString() for message in messages]
        for method, messages in sound_requests().items()
    }
    ended: dict[str, int] = {}
    with grpc.insecure_channel(server) as channel:
        for n in range(count(reduced=400, full=20_000)):
            method = METHODS[n % len(METHODS)]
            data = hostile_request(rng, method, sound)
            error = outcome(channel, method, data)
            name = "ok" if error is None else error.code().name
            ended[name] = ended.get(name, 0) + 1
            if error is not None:
                assert name in REFUSALS, (method, data, error.details())
                keys = [key for key, _ in error.trailing_metadata() or ()]
                assert "grpc-status-details-bin" in keys, (method, data)
    assert ended["ok"] > 0
    assert ended["INVALID_ARGUMENT"] > 0


def test_bytes_that_are_no_message_are_told_with_details(server):
    for method in METHODS:
        code, status = raw_error(server, method, b"\xff\xff\xff")
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        info = error_details_pb2.ErrorInfo()
        assert status.details[0].Unpack(info)
        assert (info.reason, info.domain) == ("INVALID_ARGUMENT", "matchwright")


def test_an_empty_request_names_what_is_missing(server):
    for method in METHODS:
        code, status = raw_error(server, method, b"")
        assert code is grpc.StatusCode.INVALID_ARGUMENT, method
        bad = error_details_pb2.BadRequest()
        assert any(detail.Unpack(bad) for detail in status.details)
        assert bad.field_violations[0].field


def test_a_message_beyond_64_mib_is_refused(server):
    with grpc.insecure_channel(server) as channel:
        call = channel.unary_unary(f"/{SERVICE}/FindJobs")
        with pytest.raises(grpc.RpcError) as caught:
            call(bytes((64 << 20) + 1), timeout=30.0)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


# ── Health, reflection, tokens, TLS ───────────────────────────────────────────────────────────


def test_health_is_told_for_each_service(server):
    with grpc.insecure_channel(server) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for name in ("", SERVICE):
            reply = health.Check(health_pb2.HealthCheckRequest(service=name), timeout=10.0)
            assert reply.status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.RpcError) as caught:
            health.Check(health_pb2.HealthCheckRequest(service="nothing"), timeout=10.0)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def reflected(channel, metadata=()):
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    replies = stub.ServerReflectionInfo(iter([request]), timeout=10.0, metadata=metadata)
    return {one.name for one in next(replies).list_services_response.service}


def test_reflection_lists_the_services(server):
    with grpc.insecure_channel(server) as channel:
        assert {SERVICE, "grpc.health.v1.Health"} <= reflected(channel)


TOKENS = """
[[token]]
name = "search"
sha256 = "{search}"
scopes = ["match"]

[[token]]
name = "desk"
sha256 = "{desk}"
scopes = ["match", "explain", "explain.operator"]
marketplaces = ["other"]

[[token]]
name = "page"
sha256 = "{page}"
scopes = ["explain"]
"""


def test_tokens_open_what_their_scopes_say(folder, tmp_path):
    digests = {
        name: hashlib.sha256(f"{name}-secret".encode()).hexdigest()
        for name in ("search", "desk", "page")
    }
    tokens = tmp_path / "tokens.toml"
    tokens.write_text(TOKENS.format(**digests))
    config = ServerConfig(stores={"default": folder, "other": folder}, port=0, tokens=tokens)

    def ask(address, token, call):
        with Client(address, token=token) as client:
            return call(client)

    def find(client):
        return client.find_freelancers(job_id(1), as_of=AS_OF)

    def find_other(client):
        return client.find_freelancers(job_id(1), as_of=AS_OF, marketplace="other")

    def explain(audience, marketplace=""):
        return lambda client: client.explain(
            job_id(1), person_id(1), audience=audience, marketplace=marketplace, as_of=AS_OF
        )

    with running(config) as address:
        for token in (None, "wrong", ""):
            with pytest.raises(clients.Unauthenticated):
                ask(address, token, find)
        assert ask(address, "search-secret", find).k == 10
        assert ask(address, "desk-secret", find_other).k == 10
        assert ask(address, "desk-secret", explain("operator", "other")).rank is not None
        assert ask(address, "page-secret", explain("client")).rank is None
        for token, call in (
            ("search-secret", explain("client")),
            ("desk-secret", find),
            ("page-secret", find),
            ("page-secret", explain("operator")),
        ):
            with pytest.raises(clients.PermissionDenied):
                ask(address, token, call)
        with grpc.insecure_channel(address) as channel:
            health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10.0)
            with pytest.raises(grpc.RpcError) as caught:
                reflected(channel)
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
            assert SERVICE in reflected(channel, (("authorization", "Bearer page-secret"),))


def make_certificates(folder):
    """An authority, and a server's and a client's certificate that it signed."""

    def openssl(*arguments):
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-days", "2",
            "-subj", "/CN=test authority")  # fmt: skip
    (folder / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
    for name in ("server", "client"):
        openssl(
            "req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}"
        )
        signer = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "names")
        openssl("x509", "-req", "-in", f"{name}.csr", *signer, "-days", "2", "-out", f"{name}.pem")


def test_tls_and_client_certificates(folder, tmp_path):
    try:
        make_certificates(tmp_path)
    except FileNotFoundError:
        pytest.skip("needs the openssl command to make certificates")
    config = ServerConfig(
        stores={"default": folder},
        port=0,
        tls_cert=tmp_path / "server.pem",
        tls_key=tmp_path / "server.key",
        tls_client_ca=tmp_path / "ca.pem",
    )
    known = clients.Tls(
        ca=tmp_path / "ca.pem", cert=tmp_path / "client.pem", key=tmp_path / "client.key"
    )
    with running(config) as address:
        with Client(address, tls=known, token="over TLS only") as client:
            assert client.find_freelancers(job_id(1), as_of=AS_OF).k == 10
        for tls in (None, clients.Tls(ca=tmp_path / "ca.pem"), clients.Tls()):
            with Client(address, tls=tls, attempts_max=1) as client:
                with pytest.raises(clients.Unavailable):
                    client.find_freelancers(job_id(1), as_of=AS_OF)


# ── Starting and ending ───────────────────────────────────────────────────────────────────────

SERVE = """
import sys
import time
from pathlib import Path
from matchwright.engine.config import ServerConfig
from matchwright.engine.service import serve
sys.exit(serve(ServerConfig(stores={"default": Path(sys.argv[1])}, port=0)))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_server_after_running_calls(folder, number):
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", SERVE, str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            address = process.stdout.readline().removeprefix("listening on ").strip()
            with Client(address, timeout_s=30.0) as client:
                assert client.find_freelancers(job_id(1), as_of=AS_OF).k == 10
            process.send_signal(number)
            assert process.wait(timeout=30) == 0
            assert process.stderr.read() == ""
        finally:
            if process.poll() is None:
                process.kill()


SLOW = """
import time
from matchwright.engine.matcher import Matcher
quick = Matcher.match_many
def slow(self, requests):
    time.sleep({seconds})
    return quick(self, requests)
Matcher.match_many = slow
"""


def serving(folder, script):
    return subprocess.Popen(
        [sys.executable, "-c", script, str(folder)], stdout=subprocess.PIPE, text=True
    )


def test_a_call_that_runs_is_answered_while_the_server_ends(folder):
    with serving(folder, SLOW.format(seconds=1.0) + SERVE) as process:
        address = process.stdout.readline().removeprefix("listening on ").strip()

        async def ask():
            async with AsyncClient(address, timeout_s=30.0, attempts_max=1) as client:
                running_call = asyncio.create_task(client.find_freelancers(job_id(1), as_of=AS_OF))
                await asyncio.sleep(0.4)
                process.send_signal(signal.SIGTERM)
                return await running_call

        assert asyncio.run(ask()).k == 10
        assert process.wait(timeout=30) == 0


def test_a_second_signal_ends_the_server_at_once(folder):
    with serving(folder, SLOW.format(seconds=60.0) + SERVE) as process:
        address = process.stdout.readline().removeprefix("listening on ").strip()

        async def ask():
            async with AsyncClient(address, timeout_s=30.0, attempts_max=1) as client:
                running_call = asyncio.create_task(client.find_freelancers(job_id(1), as_of=AS_OF))
                await asyncio.sleep(0.4)
                process.send_signal(signal.SIGTERM)
                await asyncio.sleep(0.4)
                process.send_signal(signal.SIGTERM)
                with pytest.raises((clients.Unavailable, clients.Cancelled)):
                    await running_call

        asyncio.run(ask())
        assert process.wait(timeout=6) == 0


def test_too_many_bytes_at_once_are_refused_at_the_door(folder):
    config = ServerConfig(stores={"default": folder}, port=0, inflight_bytes_max=10_000)

    async def ask(address):
        async with AsyncClient(address, timeout_s=30.0) as client:
            return await asyncio.gather(
                *(client.find_freelancers(job_id(n), as_of=AS_OF) for n in range(40)),
                return_exceptions=True,
            )

    with running(config) as address:
        ended = asyncio.run(ask(address))
        refused = [one for one in ended if isinstance(one, clients.Overloaded)]
        answered = [one for one in ended if isinstance(one, clients.Matches)]
        assert len(refused) + len(answered) == 40
        assert answered
        assert {one.details["limit"] for one in refused} == {"inflight_bytes_max"}
        with Client(address) as client:
            exclude = [person_id(n) for n in range(2_000)]
            assert client.find_freelancers(job_id(1), as_of=AS_OF, exclude_ids=exclude).k == 10


def slowly(monkeypatch, seconds):
    """Make every batch take longer; gives the list of batch sizes."""
    sizes = []
    quick = Matcher.match_many

    def slow(self, requests):
        sizes.append(len(requests))
        time.sleep(seconds)
        return quick(self, requests)

    monkeypatch.setattr(Matcher, "match_many", slow)
    return sizes


def test_overload_is_refused_at_the_door(folder, monkeypatch):
    sizes = slowly(monkeypatch, 0.3)
    config = ServerConfig(stores={"default": folder}, port=0, queue_pairs_max=5 * QUERY_PAIRS_MIN)

    async def ask(address):
        async with AsyncClient(address, timeout_s=30.0) as client:
            calls = [client.find_freelancers(job_id(n), as_of=AS_OF) for n in range(30)]
            return await asyncio.gather(*calls, return_exceptions=True)

    with running(config) as address:
        ended = asyncio.run(ask(address))
    refused = [one for one in ended if isinstance(one, clients.Overloaded)]
    assert len(refused) + sum(sizes) == 30
    assert 5 <= sum(sizes) <= 12
    for one in refused:
        assert one.reason == "OVERLOADED"
        assert one.details["limit"] == "queue_pairs_max"
        assert one.retry_after_s > 0


def test_a_caller_that_leaves_is_not_run(folder, monkeypatch):
    sizes = slowly(monkeypatch, 0.5)

    async def ask(address):
        async with AsyncClient(address, timeout_s=30.0) as client:
            first = asyncio.create_task(client.find_freelancers(job_id(0), as_of=AS_OF))
            await asyncio.sleep(0.15)
            rest = [
                asyncio.create_task(client.find_freelancers(job_id(n), as_of=AS_OF))
                for n in range(1, 6)
            ]
            late = asyncio.create_task(
                client.find_freelancers(job_id(6), as_of=AS_OF, timeout_s=0.1)
            )
            await asyncio.sleep(0.1)
            for task in rest[1:]:
                task.cancel()
            return await asyncio.gather(first, *rest, late, return_exceptions=True)

    with running(ServerConfig(stores={"default": folder}, port=0)) as address:
        ended = asyncio.run(ask(address))
    assert sizes == [1, 1]
    assert isinstance(ended[1], clients.Matches)
    assert isinstance(ended[-1], clients.DeadlineExceeded)


def test_a_port_that_is_taken_is_told(folder):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        config = ServerConfig(stores={"default": folder}, port=taken.getsockname()[1])
        with pytest.raises(DependencyUnavailable, match="cannot listen"), running(config):
            pass


def test_what_is_missing_at_the_start_is_told(folder, tmp_path):
    for more in (
        {"stores": {"default": tmp_path / "nothing"}},
        {"policy": tmp_path / "nothing.toml"},
        {"tokens": tmp_path / "nothing.toml"},
        {"tls_cert": tmp_path / "a.pem", "tls_key": tmp_path / "a.key"},
    ):
        config = ServerConfig(**{"stores": {"default": folder}, "port": 0, **more})
        with pytest.raises(NotFound), running(config):
            pass


def test_many_calls_leave_nothing_behind(server, client):
    folder = Path("/proc/self/fd")
    if not folder.is_dir():
        pytest.skip("needs /proc to count open files")
    client.find_freelancers(job_id(1), as_of=AS_OF)
    before = len(list(folder.iterdir()))
    for _ in range(50):
        with pytest.raises(clients.NotFound):
            client.find_freelancers("nobody", as_of=AS_OF)
        client.find_freelancers(job_id(1), as_of=AS_OF)
    assert len(list(folder.iterdir())) <= before + 5


def test_a_defect_of_the_matcher_is_told_without_its_text(folder, monkeypatch):
    def broken(self, requests):
        if any(request.id == job_id(3) for request in requests):
            raise RuntimeError("a secret path")
        return sound(self, requests)

    sound = Matcher.match_many
    monkeypatch.setattr(Matcher, "match_many", broken)
    with running(ServerConfig(stores={"default": folder}, port=0)) as address:
        with Client(address) as client:
            batch = client.batch_find([Query("job", job_id(n)) for n in range(8)], as_of=AS_OF)
            assert [isinstance(one, clients.Matches) for one in batch] == [n != 3 for n in range(8)]
            assert isinstance(batch[3], clients.ServerError)
            assert "secret" not in str(batch[3])
            with pytest.raises(clients.ServerError) as caught:
                client.find_freelancers(job_id(3), as_of=AS_OF)
            assert caught.value.reason == "INTERNAL"
            assert "secret" not in str(caught.value)
    assert issubclass(MatchwrightError, Exception)
