"""Starting and ending a server, overload, callers that leave."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import grpc
import pytest
import service_cases
from grpc_health.v1 import health_pb2, health_pb2_grpc
from patience import until_async
from service_cases import AS_OF, job_id, person_id

from matchwright import clients
from matchwright.clients import AsyncClient, Client, Query
from matchwright.engine.batcher import QUERY_PAIRS_MIN, Batcher
from matchwright.engine.config import ServerConfig
from matchwright.engine.errors import DependencyUnavailable, MatchwrightError, NotFound
from matchwright.engine.matcher import Matcher
from matchwright.engine.service import running

SERVING = health_pb2.HealthCheckResponse.SERVING
client = service_cases.client
folder = service_cases.folder
server = service_cases.server


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
quick = Matcher.gather_many
def slow(self, requests, deadline=None):
    print("begun", flush=True)
    time.sleep({seconds})
    return quick(self, requests, deadline)
Matcher.gather_many = slow
"""


def serving(folder, script):
    return subprocess.Popen(
        [sys.executable, "-c", script, str(folder)], stdout=subprocess.PIPE, text=True
    )


async def takes_no_more(address):
    """Waits until a server has begun to end."""
    async with grpc.aio.insecure_channel(address) as channel, asyncio.timeout(60):
        check = health_pb2_grpc.HealthStub(channel).Check
        with suppress(grpc.aio.AioRpcError):
            while (await check(health_pb2.HealthCheckRequest())).status == SERVING:
                await asyncio.sleep(0.01)


async def call_that_runs(client, process, address):
    """A call during which the server has begun to end."""
    call = asyncio.create_task(client.find_freelancers(job_id(1), as_of=AS_OF))
    assert await asyncio.to_thread(process.stdout.readline) == "begun\n"
    process.send_signal(signal.SIGTERM)
    await takes_no_more(address)
    return call


def test_a_call_that_runs_is_answered_while_the_server_ends(folder):
    with serving(folder, SLOW.format(seconds=1.0) + SERVE) as process:
        address = process.stdout.readline().removeprefix("listening on ").strip()

        async def ask():
            async with AsyncClient(address, timeout_s=30.0, attempts_max=1) as client:
                call = await call_that_runs(client, process, address)
                return await call

        assert asyncio.run(ask()).k == 10
        assert process.wait(timeout=30) == 0


def test_a_second_signal_ends_the_server_at_once(folder):
    patient = SERVE.replace("port=0", "port=0, shutdown_grace_ms=600_000")
    with serving(folder, SLOW.format(seconds=90.0) + patient) as process:
        address = process.stdout.readline().removeprefix("listening on ").strip()

        async def ask():
            async with AsyncClient(address, timeout_s=30.0, attempts_max=1) as client:
                call = await call_that_runs(client, process, address)
                process.send_signal(signal.SIGTERM)
                with pytest.raises((clients.Unavailable, clients.Cancelled)):
                    await call

        asyncio.run(ask())
        assert process.wait(timeout=30) == 0


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


class Held:
    """Holds every batch until it may ``go``; knows their sizes, and the batcher."""

    def __init__(self, monkeypatch):
        self.sizes, self.go, self._batchers = [], threading.Event(), []
        quick, made = Matcher.gather_many, Batcher.__init__

        def slow(matcher, requests, deadline=None):
            self.sizes.append(len(requests))
            assert self.go.wait(60)
            return quick(matcher, requests, deadline)

        def remembered(batcher, **how):
            self._batchers.append(batcher)
            made(batcher, **how)

        monkeypatch.setattr(Matcher, "gather_many", slow)
        monkeypatch.setattr(Batcher, "__init__", remembered)

    def stats(self):
        return self._batchers[0].stats()


@pytest.fixture
def held(monkeypatch):
    held = Held(monkeypatch)
    yield held
    held.go.set()


def test_overload_is_refused_at_the_door(folder, held):
    config = ServerConfig(stores={"default": folder}, port=0, queue_pairs_max=5 * QUERY_PAIRS_MIN)

    async def ask(address):
        async with AsyncClient(address, timeout_s=30.0) as client:
            first = asyncio.create_task(client.find_freelancers(job_id(0), as_of=AS_OF))
            await until_async(lambda: held.sizes, "the first batch")
            calls = [client.find_freelancers(job_id(n), as_of=AS_OF) for n in range(1, 30)]
            rest = [asyncio.create_task(call) for call in calls]
            await until_async(lambda: sum(task.done() for task in rest) == 24, "the refused")
            held.go.set()
            return await asyncio.gather(first, *rest, return_exceptions=True)

    with running(config) as address:
        ended = asyncio.run(ask(address))
    refused = [one for one in ended if isinstance(one, clients.Overloaded)]
    assert len(refused) == 24
    assert held.sizes == [1, 5]
    for one in refused:
        assert one.reason == "OVERLOADED"
        assert one.details["limit"] == "queue_pairs_max"
        assert one.retry_after_s > 0


def test_a_caller_that_leaves_is_not_run(folder, held):
    async def ask(address):
        async with AsyncClient(address, timeout_s=30.0) as client:
            first = asyncio.create_task(client.find_freelancers(job_id(0), as_of=AS_OF))
            await until_async(lambda: held.sizes, "the first batch")
            rest = [
                asyncio.create_task(client.find_freelancers(job_id(n), as_of=AS_OF))
                for n in range(1, 6)
            ]
            await until_async(lambda: held.stats().queued_units == 6, "the rest")
            late = client.find_freelancers(job_id(6), as_of=AS_OF, timeout_s=0.1)
            (late,) = await asyncio.gather(late, return_exceptions=True)
            for task in rest[1:]:
                task.cancel()
            await until_async(lambda: held.stats().queued_units == 2, "those who leave")
            held.go.set()
            return [*await asyncio.gather(first, *rest, return_exceptions=True), late]

    with running(ServerConfig(stores={"default": folder}, port=0)) as address:
        ended = asyncio.run(ask(address))
    assert held.sizes == [1, 1]
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
    def broken(self, requests, deadline=None):
        if any(request.id == job_id(3) for request in requests):
            raise RuntimeError("a secret path")
        return sound(self, requests, deadline)

    sound = Matcher.gather_many
    monkeypatch.setattr(Matcher, "gather_many", broken)
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
