"""What the service refuses: wrong options, limits, and bytes that are no requests."""

from __future__ import annotations

import random

import grpc
import pytest
import service_cases
from google.rpc import error_details_pb2, status_pb2
from service_cases import AS_OF, METHODS, SERVICE, job_id, person_id

from matchwright import clients
from matchwright.clients import Query
from matchwright.v1 import match_service_pb2 as wire

client = service_cases.client
folder = service_cases.folder
server = service_cases.server


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
