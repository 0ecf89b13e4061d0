"""The clients without a server: what they import, how they connect, what they refuse."""

from __future__ import annotations

import asyncio
import inspect
import json
import subprocess
import sys

import pytest

from matchwright import clients
from matchwright.clients import AsyncClient, Client
from matchwright.clients._channel import IDEMPOTENT, SERVICE, Connection
from matchwright.clients._results import matches, plain
from matchwright.v1 import match_service_pb2 as wire

CALLS = (
    "find_freelancers", "find_jobs", "batch_find", "score_pairs", "explain", "count_eligible",
)  # fmt: skip


def test_importing_the_client_imports_nothing_of_the_engine():
    script = "import matchwright.clients, sys; print('\\n'.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    loaded = set(done.stdout.split())
    for name in ("numpy", "polars", "cupy", "matchwright.engine", "matchwright.kernels"):
        assert name not in loaded, name


def test_both_clients_have_the_same_calls():
    for name in CALLS:
        one, other = getattr(Client, name), getattr(AsyncClient, name)
        assert str(inspect.signature(one)) == str(inspect.signature(other)), name
        assert inspect.iscoroutinefunction(other), name
        assert one.__doc__ == other.__doc__, name


def test_the_public_names_are_sorted_and_there():
    assert clients.__all__ == sorted(clients.__all__)
    assert all(hasattr(clients, name) for name in clients.__all__)


def test_every_read_is_tried_again_on_unavailable_only():
    methods = wire.DESCRIPTOR.services_by_name["MatchService"].methods_by_name
    assert set(IDEMPOTENT) == set(methods)
    options = dict(Connection(address="localhost:1").options)
    config = json.loads(options["grpc.service_config"])["methodConfig"][0]
    assert config["retryPolicy"]["retryableStatusCodes"] == ["UNAVAILABLE"]
    assert {one["method"] for one in config["name"]} == set(methods)
    assert {one["service"] for one in config["name"]} == {SERVICE}
    once = dict(Connection(address="localhost:1", attempts_max=1).options)
    assert "retryPolicy" not in json.loads(once["grpc.service_config"])["methodConfig"][0]


@pytest.mark.parametrize(
    "more",
    [
        {"attempts_max": 0},
        {"attempts_max": 9},
        {"timeout_s": 0.0},
        {"timeout_s": float("nan")},
        {"keepalive_s": 1.0},
        {"address": "10.0.0.1:50051", "token": "secret"},
        {"address": "example.org:50051", "token": "secret"},
    ],
)
def test_a_senseless_or_unsafe_connection_is_refused(more):
    with pytest.raises(clients.InvalidRequest):
        Client(**{"address": "127.0.0.1:1", **more})


def test_a_token_goes_in_the_clear_only_where_that_is_safe_or_asked_for():
    for more in (
        {"address": "127.0.0.1:1"},
        {"address": "[::1]:1"},
        {"address": "localhost:1"},
        {"address": "unix:/run/matchwright"},
        {"address": "example.org:1", "token_in_clear": True},
        {"address": "example.org:1", "tls": clients.Tls()},
    ):
        connection = Connection(token="secret", **more)
        assert connection.metadata == (("authorization", "Bearer secret"),)


def test_files_that_are_not_there_are_told(tmp_path):
    for tls in (clients.Tls(ca=tmp_path / "nothing"), clients.Tls(cert=tmp_path / "nothing")):
        with pytest.raises(clients.InvalidRequest):
            Client("127.0.0.1:1", tls=tls)


def test_no_server_is_unavailable():
    with Client("127.0.0.1:1", attempts_max=1, timeout_s=5.0) as client:
        with pytest.raises(clients.Unavailable) as caught:
            client.find_jobs("a")
        assert caught.value.reason == "UNAVAILABLE"

    async def ask():
        async with AsyncClient("127.0.0.1:1", attempts_max=1, timeout_s=5.0) as client:
            with pytest.raises(clients.Unavailable):
                await client.find_jobs("a")

    asyncio.run(ask())


@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.explain("a", "b", audience="everybody"),
        lambda client: client.explain("a", "b", audience="client", direction="client"),
        lambda client: client.score_pairs([("a", "b", "c")]),
        lambda client: client.score_pairs([("a", 3)]),
        lambda client: client.score_pairs([("a", "b")], direction="x"),
        lambda client: client.find_jobs(3),
        lambda client: client.find_jobs(["a"]),
        lambda client: client.find_jobs("a", kk=3),
        lambda client: client.count_eligible("person", "a"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_sent(call):
    with Client("127.0.0.1:1") as client:
        with pytest.raises(clients.InvalidRequest) as caught:
            call(client)
        assert caught.value.details["field"]


def ranking():
    message = wire.Ranking(
        ids=["a", "b"],
        keys=[1, 2],
        points=[30, -10],
        scores=[3.0, -1.0],
        facets=["x", "y"],
        contributions=[10, 20, -4, -6],
        k=2,
        step=0.1,
    )
    message.certificate.kth_key.points = -10
    message.certificate.kth_key.mix = 0xAB
    return message


def test_matches_are_a_sequence_over_arrays():
    found = matches(ranking())
    assert len(found) == 2
    assert [match.rank for match in found] == [1, 2]
    assert found[-1] == found[1]
    assert found[1].contributions == {"x": -4, "y": -6}
    assert found[0:1] == (found[0],)
    assert list(found) == [found[0], found[1]]
    assert found.eligible == -1
    assert str(found.kth_key) == "-10:000000ab:00000000"
    assert found.shortfall is None
    with pytest.raises(IndexError):
        found[2]
    with pytest.raises(AttributeError):
        found.k = 3


def test_matches_without_contributions_have_none():
    message = ranking()
    del message.contributions[:]
    assert matches(message)[0].contributions == {}


def test_plain_values_keep_whole_numbers_whole():
    value = wire.Reason().values["a"]
    value.list_value.append(3)
    value.list_value.append({"b": 1.5, "c": None})
    assert plain(value) == [3, {"b": 1.5, "c": None}]
