"""The parts of the service that need no server: status table, tokens, configuration, conversion."""

from __future__ import annotations

import contextlib
import hashlib
import random
from pathlib import Path

import grpc
import pytest
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2
from hypothesis import given
from hypothesis import strategies as st

from matchwright import clients
from matchwright.clients import _errors, _messages
from matchwright.engine import errors, synthetic
from matchwright.engine.config import Limits, ServerConfig, is_loopback
from matchwright.engine.errors import (
    InvalidArgument,
    MatchwrightError,
    NotFound,
    PermissionDenied,
    StoreDamaged,
    Unauthenticated,
    UnknownKey,
)
from matchwright.engine.records import FIELDS
from matchwright.engine.service import auth, incoming, marketplace
from matchwright.engine.service import status as status_module
from matchwright.engine.service.status import CODES, status_of
from matchwright.v1 import match_service_pb2 as wire
from matchwright.v1 import records_pb2


def tree(root=MatchwrightError):
    return [root, *(kind for child in root.__subclasses__() for kind in tree(child))]


ERRORS = [kind for kind in tree() if kind.__module__ == errors.__name__]


# ── Errors ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
def test_every_error_has_a_code_details_and_a_line_in_the_docs(kind, repo_root):
    status = status_of(kind("what was got, what was expected", field="k", limit="k_max"))
    assert CODES[kind.grpc_status].value[0] == status.code
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert (info.reason, info.domain) == (kind.reason, "matchwright")
    docs = (repo_root / "docs" / "api.md").read_text("utf-8")
    name = kind.grpc_status
    client_class = _errors.CLASSES.get(name, clients.ServerError).__name__
    assert f"| `{kind.reason}` | {name} | `{client_class}` |" in docs


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
def test_every_error_comes_back_as_its_client_class(kind):
    error = _errors.of_status(status_of(kind("a message", field="k")))
    assert isinstance(error, _errors.CLASSES.get(kind.grpc_status, clients.ServerError))
    assert error.reason == kind.reason
    assert error.status == kind.grpc_status
    retriable = any(issubclass(kind, one) for one in status_module.RETRY_MS)
    assert (error.retry_after_s is not None) == retriable


def test_limits_have_one_name(repo_root):
    docs = (repo_root / "docs" / "api.md").read_text("utf-8")
    protos = "".join(
        path.read_text("utf-8") for path in (repo_root / "protos" / "matchwright").rglob("*.proto")
    )
    of_the_server = {"deadline_ms_max"}
    for name in Limits.__dataclass_fields__:
        assert f"`{name}` | {getattr(Limits(), name):,} |" in docs, name
        assert name in of_the_server or f"limit: {name}" in protos.replace("\n  // ", " "), name


def test_an_overload_says_when_to_try_again():
    error = _errors.of_status(status_of(errors.Overloaded("full", retry_after_ms=1_500)))
    assert error.retry_after_s == 1.5


def test_a_store_error_does_not_name_files_of_the_server():
    status = status_of(StoreDamaged("/srv/secret/catalog.sqlite: broken", file="/srv/secret"))
    assert "secret" not in str(status)
    assert CODES["DATA_LOSS"].value[0] == status.code


def test_what_is_no_error_of_ours_is_a_defect_without_its_text():
    status = status_of(ValueError("secret"))
    assert "secret" not in str(status)
    assert status.code == grpc.StatusCode.INTERNAL.value[0]


@given(st.text(max_size=5_000), st.dictionaries(st.text(max_size=300), st.text(max_size=3_000)))
def test_a_status_always_fits_the_headers(message, details):
    error = InvalidArgument(message)
    error.details = details
    status = status_of(error)
    assert len(status.SerializeToString()) + 3 * len(status.message.encode()) < 8_000
    assert all(char.isprintable() for char in status.message)
    assert _errors.of_status(status).status == "INVALID_ARGUMENT"


# ── Tokens ────────────────────────────────────────────────────────────────────────────────────

DIGEST = hashlib.sha256(b"secret").hexdigest()
SOUND = f"""
[[token]]
name = "a"
sha256 = "{DIGEST}"
scopes = ["match"]
marketplaces = ["default"]
"""


def load(tmp_path, text):
    path = tmp_path / "tokens.toml"
    path.write_text(text, "utf-8")
    return auth.Tokens.load(path)


def test_a_token_opens_its_scopes_and_marketplaces(tmp_path):
    tokens = load(tmp_path, SOUND)
    caller = tokens.caller([("authorization", "Bearer secret")])
    assert caller == tokens.caller([("authorization", "bearer  secret ")])
    caller.require("match", "default")
    for scope, market in (("explain", "default"), ("match", "other"), ("match", "")):
        with pytest.raises(PermissionDenied):
            caller.require(scope, market)
    for metadata in (
        None,
        [],
        [("authorization", "secret")],
        [("authorization", "Bearer ")],
        [("authorization", "Bearer \udcff")],
        [("authorization", b"Bearer secret")],
        [("authorization", "Bearer secret"), ("authorization", "Bearer secret")],
        [("authorization", f"Bearer {DIGEST}")],
    ):
        with pytest.raises(Unauthenticated):
            tokens.caller(metadata)


def test_without_a_file_everybody_may_do_everything():
    for metadata in (None, [], [("authorization", "Bearer of nothing")]):
        caller = auth.Tokens.load(None).caller(metadata)
        assert caller.scopes == set(auth.SCOPES)
        assert caller.marketplaces is None
        assert [caller.require(scope, "any") for scope in auth.SCOPES] == [None] * len(auth.SCOPES)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", InvalidArgument),
        ("token = 3", InvalidArgument),
        ("token = [3]", InvalidArgument),
        ("[[token]]", InvalidArgument),
        ("[tokens]", UnknownKey),
        ("\x00", InvalidArgument),
        (SOUND.replace(DIGEST, "12"), InvalidArgument),
        (SOUND.replace(DIGEST, "z" * 64), InvalidArgument),
        (SOUND.replace('["match"]', '["macth"]'), UnknownKey),
        (SOUND.replace('["match"]', "3"), InvalidArgument),
        (SOUND.replace('["default"]', "[1]"), InvalidArgument),
        (SOUND.replace("sha256", "sha265"), UnknownKey),
        (SOUND.replace('"a"', '""'), InvalidArgument),
    ],
)
def test_a_wrong_token_file_is_refused(tmp_path, text, error):
    with pytest.raises(error):
        load(tmp_path, text)


def test_a_token_file_that_is_not_there_is_told(tmp_path):
    with pytest.raises(NotFound):
        auth.Tokens.load(tmp_path / "nothing.toml")


# ── Configuration ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "more",
    [
        {"stores": {}},
        {"host": "0.0.0.0"},
        {"host": "::"},
        {"host": "example.org"},
        {"port": -1},
        {"port": 65_536},
        {"tls_cert": Path("a")},
        {"tls_key": Path("a")},
        {"tls_client_ca": Path("a")},
        {"queue_pairs_max": 0},
        {"batch_pairs_max": 0},
        {"shutdown_grace_ms": -1},
    ],
)
def test_an_unsafe_or_senseless_configuration_is_refused(more):
    with pytest.raises(InvalidArgument):
        ServerConfig(**{"stores": {"default": Path("store")}, **more})


def test_a_public_listener_has_to_be_asked_for():
    stores = {"default": Path("store")}
    assert ServerConfig(stores=stores, host="0.0.0.0", insecure_listen=True).insecure_listen
    assert ServerConfig(
        stores=stores, host="0.0.0.0", tls_cert=Path("c"), tls_key=Path("k")
    ).tls_cert
    assert ServerConfig(stores=stores, host="::1").address == "[::1]:50051"
    assert [is_loopback(host) for host in ("localhost", "127.9.9.9", "10.0.0.1", "a b")] == [
        True, True, False, False,
    ]  # fmt: skip


@pytest.mark.parametrize("more", [{"k_max": 0}, {"k_max": 1_001}, {"batch_items_max": 0}])
def test_senseless_limits_are_refused(more):
    with pytest.raises(InvalidArgument):
        Limits(**more)


# ── Records over the wire ─────────────────────────────────────────────────────────────────────


def sent_and_received(kind, record):
    """What the server makes of what the client sends."""
    message = wire.CountEligibleRequest()
    _messages.put_query(message, kind, record)
    data = wire.CountEligibleRequest.FromString(message.SerializeToString())
    received, identity, made = incoming.query_of(data, "query", Limits())
    assert (received, identity) == (kind, None)
    return made


@pytest.mark.parametrize("kind", ["job", "freelancer"])
def test_a_record_arrives_as_it_was_sent(kind):
    for record in synthetic.frame(kind, 200).to_dicts():
        known = {name: value for name, value in record.items() if value is not None}
        limits = {name for name, field in FIELDS[kind].items() if field.limit}
        known = {
            name: value
            for name, value in known.items()
            if not (name in limits and value == [])  # an empty limit asks for nothing
        }
        assert sent_and_received(kind, record) == known


@pytest.mark.parametrize("kind", ["job", "freelancer"])
def test_every_field_of_the_schema_travels(kind):
    message = {"job": records_pb2.Job, "freelancer": records_pb2.Freelancer}[kind]
    own = set(message.DESCRIPTOR.fields_by_name) - {"limits", "known_empty"}
    limits = set(message.DESCRIPTOR.fields_by_name["limits"].message_type.fields_by_name)
    assert own == {name for name, field in FIELDS[kind].items() if not field.limit}
    assert limits == {name for name, field in FIELDS[kind].items() if field.limit}


def test_an_empty_list_differs_from_no_list():
    assert sent_and_received("freelancer", {"skills": []}) == {"skills": []}
    assert sent_and_received("freelancer", {"skills": None}) == {}
    assert sent_and_received("freelancer", {"declined_categories": []}) == {}


@pytest.mark.parametrize(
    ("kind", "record"),
    [
        ("job", {"titel": "a"}),
        ("job", {"title": 3}),
        ("job", {"rate_max_cents": "3"}),
        ("job", {"rate_max_cents": 2**40}),
        ("job", {"rate_max_cents": 1.5}),
        ("job", {"experience_level": "SENIOR"}),
        ("job", {"experience_level": "UNSPECIFIED"}),
        ("job", {"experience_level": 1}),
        ("job", {"skills": "python"}),
        ("job", {"skills": ["python"]}),
        ("job", {"skills": [{"nmae": "python"}]}),
        ("job", {"countries_allowed": "US"}),
        ("job", {"title": "\udcff"}),
        ("job", {"limits": {}}),
        ("job", {"known_empty": ["skills"]}),
        ("freelancer", {"languages": [{"code": "en", "level": "C9"}]}),
        ("job", 3),
        ("job", None),
    ],
)
def test_what_cannot_be_sent_is_refused_by_the_client(kind, record):
    with pytest.raises(clients.InvalidRequest):
        sent_and_received(kind, record)


@pytest.mark.parametrize(
    "change",
    [
        lambda job: job.known_empty.append("titel"),
        lambda job: job.known_empty.append("title"),
        lambda job: job.known_empty.append("countries_denied"),
        lambda job: (job.known_empty.append("skills"), job.skills.add(name="a")),
        lambda job: setattr(job, "status", 77),
        lambda job: setattr(job.limits, "min_experience", 77),
        lambda job: job.languages.add(code="en", level=77),
    ],
)
def test_what_cannot_be_a_record_is_refused_by_the_server(change):
    job = records_pb2.Job()
    change(job)
    with pytest.raises(InvalidArgument):
        incoming.record_of(job, "job")


def test_options_of_the_client_have_the_defaults_of_the_server():
    made = incoming.options_of(_messages.options_of("job", {}), "job", Limits(), 7)
    assert made == {
        "k": 10, "weights": {}, "limits": {}, "rules": {}, "exclude_ids": (), "candidate_ids": None,
        "min_score": None, "as_of": 7, "epoch": None, "min_epoch": None, "count": True,
        "contributions": False,
    }  # fmt: skip


@pytest.mark.parametrize(
    "options",
    [
        {"kk": 3},
        {"k": "3"},
        {"k": 2**40},
        {"weights": {"text": "1"}},
        {"weights": 3},
        {"exclude_ids": [3]},
        {"exclude_ids": 3},
        {"min_score": "x"},
        {"limits": {"max_rate": 3}},
        {"limits": {"max_rate_cents": "3"}},
        {"limits": {"required_skills": 3}},
        {"limits": {"required_languages": [{"code": 3}]}},
        {"rules": {"languages": {"on_unknwon": "fail"}}},
        {"rules": {"languages": {"on_unknown": "maybe"}}},
        {"rules": {"languages": 3}},
        {"epoch": -(2**70)},
    ],
)
def test_wrong_options_are_refused_by_the_client(options):
    with pytest.raises(clients.InvalidRequest):
        _messages.options_of("job", options)


def test_wire_records_of_any_content_convert_or_are_refused(count):
    """Random messages: a record of plain values, or a typed error."""
    for seed in range(count(reduced=500, full=20_000)):
        rng = random.Random(seed)
        kind, cls = rng.choice((("job", records_pb2.Job), ("freelancer", records_pb2.Freelancer)))
        message = cls()
        with contextlib.suppress(DecodeError):
            message.MergeFromString(rng.randbytes(rng.randrange(60)))
        try:
            record = incoming.record_of(message, kind)
        except InvalidArgument:
            continue
        assert set(record) <= set(FIELDS[kind])


# ── A batch that breaks ───────────────────────────────────────────────────────────────────────


def test_the_one_that_breaks_a_batch_is_found_by_halving(caplog):
    def fragile(items):
        if "bad" in items:
            raise RuntimeError("broken")
        return [item.upper() for item in items]

    made = marketplace.run_apart(fragile, ["a", "b", "bad", "c", "bad", "d", "e"])
    assert [one if isinstance(one, str) else one.reason for one in made] == [
        "A", "B", "INTERNAL", "C", "INTERNAL", "D", "E",
    ]  # fmt: skip
    assert marketplace.run_apart(fragile, []) == []


def test_a_batch_too_large_for_the_memory_is_halved():
    def narrow(items):
        if len(items) > 3:
            raise MemoryError
        return list(items)

    assert marketplace.run_apart(narrow, list(range(17))) == list(range(17))
