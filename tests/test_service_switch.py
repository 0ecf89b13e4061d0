"""Another policy takes its place while calls are answered: whole and checked, or not at all."""

# ruff: noqa: F401, F811 (fixtures come by import)
from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys

import pytest
from patience import until, until_async
from rerank_service_cases import (
    EASY,
    GREEDY,
    folder,
    jobs,
    model,
    people,
    repo,
    section,
    store,
)
from service_cases import AS_OF, LIMITS, gathered

from matchwright import clients
from matchwright.clients import AsyncClient, Client, Query
from matchwright.engine.config import ModelsConfig, ServerConfig
from matchwright.engine.models import opened
from matchwright.engine.policy import Policy
from matchwright.engine.service import server as service
from matchwright.engine.service.server import Server


@pytest.fixture
def path(tmp_path):
    made = tmp_path / "policy.toml"
    made.write_text(section(version=1))
    return made


@pytest.fixture
def config(folder, repo, model, path, monkeypatch):
    monkeypatch.setattr(opened, "_triton", lambda config, watch: model)
    models = ModelsConfig(repository=repo, triton="127.0.0.1:1")
    stores = {"default": folder, "other": folder}
    return ServerConfig(stores=stores, port=0, limits=LIMITS, policy=path, models=models)


def during(config, work):
    """What ``work(server, client)`` gives, in one event loop with the server."""

    async def run():
        server = Server(config)
        try:
            async with AsyncClient(await server.start(), timeout_s=60.0) as client:
                return await work(server, client)
        finally:
            await server.stop(5.0)

    return asyncio.run(run())


def named(answer):
    """What an answer says that it was made by."""
    version = None if answer.rerank is None else answer.rerank.version
    return answer.policy, version


def effective(text):
    return Policy.parse(text).effective().id


V1, V2, OFF = section(version=1), section(version=2), EASY
NAMED = {(effective(V1), 1), (effective(V2), 2), (effective(OFF), None)}


# ── Switching ─────────────────────────────────────────────────────────────────────────────────


def test_the_file_decides_what_is_in_force(config, path, jobs, caplog):
    async def work(server, client):
        told = []
        for text in (V2, OFF, V1, V1):
            path.write_text(text)
            assert await server.reload()
            told.append(await client.find_freelancers(jobs[0], as_of=AS_OF))
            other = await client.find_freelancers(jobs[0], as_of=AS_OF, marketplace="other")
            assert named(other) == named(told[-1])
        return told

    told = during(config, work)
    assert [named(one) for one in told] == [
        (effective(text), version) for text, version in ((V2, 2), (OFF, None), (V1, 1), (V1, 1))
    ]
    assert {one.rerank.degraded for one in told if one.rerank} == {None}
    assert told[0].rerank.content_hash != told[2].rerank.content_hash
    said = [one.getMessage() for one in caplog.records if "is in force" in one.getMessage()]
    assert len(said) == 3, "the same again is no switch"


def test_calls_end_under_the_policy_that_they_began_with(config, path, model, jobs, gathered):
    async def work(server, client):
        model.open.clear()
        begun = [asyncio.create_task(client.find_freelancers(own, as_of=AS_OF)) for own in jobs[:4]]
        await until_async(lambda: len(gathered) == 4, "those who began")
        path.write_text(V2)
        assert await server.reload()
        after = asyncio.create_task(client.find_freelancers(jobs[0], as_of=AS_OF))
        await until_async(lambda: len(gathered) == 5, "who came after")
        assert not any(task.done() for task in begun)
        model.open.set()
        return await asyncio.gather(*begun), await after

    begun, after = during(config, work)
    assert {named(one) for one in begun} == {(effective(V1), 1)}
    assert named(after) == (effective(V2), 2)
    assert {one.rerank.degraded for one in (*begun, after)} == {None}


def test_two_versions_never_share_a_call(config, path, model, jobs, gathered):
    """Candidates of both wait at once; each call is of one version."""

    async def work(server, client):
        model.open.clear()
        first = [
            asyncio.create_task(client.find_freelancers(jobs[n], as_of=AS_OF)) for n in range(6)
        ]
        await until_async(lambda: len(gathered) == 6, "the first")
        path.write_text(V2)
        assert await server.reload()
        then = [
            asyncio.create_task(client.find_freelancers(jobs[n], as_of=AS_OF)) for n in range(6)
        ]
        await until_async(lambda: len(gathered) == 12, "all of them")
        model.open.set()
        return await asyncio.gather(*first), await asyncio.gather(*then)

    first, then = during(config, work)
    assert {named(one) for one in first} == {(effective(V1), 1)}
    assert {named(one) for one in then} == {(effective(V2), 2)}
    assert {one.rerank.degraded for one in (*first, *then)} == {None}


def test_a_request_may_insist_on_the_policy_in_force(config, path, jobs):
    async def work(server, client):
        mine = Policy.parse(V2).id
        with pytest.raises(clients.NotFound) as caught:
            await client.find_freelancers(jobs[0], as_of=AS_OF, policy=mine)
        assert caught.value.details["policy"] == Policy.parse(V1).id
        path.write_text(V2)
        assert await server.reload()
        return await client.find_freelancers(jobs[0], as_of=AS_OF, policy=mine)

    assert named(during(config, work)) == (effective(V2), 2)


def _broken_toml(model, repo):
    return "weights = ["


def _unknown_key(model, repo):
    return "[rerankk]\nversion = 2\n" + EASY


def _no_such_version(model, repo):
    return section(version=77)


def _forbidden_field(model, repo):
    return section(version=GREEDY)


def _not_ready(model, repo):
    model.ready_versions = {1}
    return V2


def _server_away(model, repo):
    model.there = False
    return V2


def _another_model(model, repo):
    model.by_version[2] = model.by_version[1]
    return V2


def _does_not_answer(model, repo):
    model.mode = "late"
    return V2


def _narrow_batches(model, repo):
    return V1 + f"\n[budgets]\nbatch_max = {LIMITS.batch_items_max - 1}\n"


BAD = {
    _broken_toml: "policy.toml",
    _unknown_key: "rerankk",
    _no_such_version: "has not version 77",
    _forbidden_field: "freelancer.response_permille",
    _not_ready: "matchwright models load ranker --version 2",
    _server_away: "not ready",
    _another_model: "is not what",
    _does_not_answer: "no answer",
    _narrow_batches: "batch_items_max",
}


@pytest.mark.parametrize("spoil", BAD, ids=lambda spoil: spoil.__name__[1:])
def test_a_policy_that_cannot_be_in_force_changes_nothing(
    config, path, model, repo, jobs, caplog, spoil
):
    async def work(server, client):
        before = await client.find_freelancers(jobs[0], as_of=AS_OF)
        path.write_text(spoil(model, repo))
        assert not await server.reload()
        model.mode = "right"
        after = await client.find_freelancers(jobs[0], as_of=AS_OF)
        path.write_text(OFF)
        assert await server.reload(), "the next one is taken"
        return before, after

    before, after = during(config, work)
    assert after.digest == before.digest
    said = [one.getMessage() for one in caplog.records if "stays in force" in one.getMessage()]
    assert BAD[spoil] in said[0]
    assert Policy.parse(V1).id in said[0]


def test_a_policy_file_that_is_gone_changes_nothing(config, path, jobs, caplog):
    async def work(server, client):
        path.unlink()
        assert not await server.reload()
        return await client.find_freelancers(jobs[0], as_of=AS_OF)

    assert named(during(config, work)) == (effective(V1), 1)
    assert "stays in force" in caplog.text


def test_the_version_in_force_need_not_be_ready_for_a_change_of_weights(config, path, model, jobs):
    """The model is away already; a better policy must not wait for it."""

    async def work(server, client):
        model.there, model.mode = False, "unreachable"
        path.write_text(V1 + "\n[weights]\ntext = 2.0\n")
        assert await server.reload()
        return await client.find_freelancers(jobs[0], as_of=AS_OF)

    answer = during(config, work)
    assert answer.policy != effective(V1)
    assert answer.rerank.degraded == "UNREACHABLE"


def test_swaps_and_rollbacks_under_load_fail_nothing(config, path, jobs, people, count):
    swaps = count(reduced=12, full=120)

    async def work(server, client):
        told, stop = [], asyncio.Event()

        async def ask(n):
            while not stop.is_set():
                n += 1
                if n % 5 == 0:
                    queries = [Query("job", jobs[(n + at) % 30]) for at in range(6)]
                    batch = await client.batch_find(queries, as_of=AS_OF)
                    assert len({named(one) for one in batch}) == 1, "a batch has one policy"
                    told.extend(batch)
                elif n % 2:
                    told.append(await client.find_freelancers(jobs[n % 30], as_of=AS_OF))
                else:
                    told.append(await client.find_jobs(people[n % 30], as_of=AS_OF))

        asking = [asyncio.create_task(ask(7 * n)) for n in range(4)]
        for n in range(swaps):
            policy, version = ((V2, 2), (V1, 1), (OFF, None), (V1, 1))[n % 4]
            wanted, seen = (effective(policy), version), len(told)
            path.write_text(policy)
            assert await server.reload()
            await until_async(
                lambda wanted=wanted, seen=seen: wanted in map(named, told[seen:]), "its answer"
            )
        stop.set()
        await asyncio.gather(*asking)
        return told

    told = during(config, work)
    assert {named(one) for one in told} == NAMED
    assert {one.rerank.degraded for one in told if one.rerank} == {None}
    hashes = {(one.rerank.version, one.rerank.content_hash) for one in told if one.rerank}
    assert len(hashes) == 2, "one content for each version"


# ── By signal ─────────────────────────────────────────────────────────────────────────────────

SERVE = """
import sys
from pathlib import Path
from matchwright.engine.config import ServerConfig
from matchwright.engine.service import serve
stores = {"default": Path(sys.argv[1])}
sys.exit(serve(ServerConfig(stores=stores, port=0, policy=Path(sys.argv[2]))))
"""


def test_sighup_has_the_policy_read_again(folder, tmp_path, jobs):
    path = tmp_path / "policy.toml"
    path.write_text(EASY)
    heavy = EASY + "\n[weights]\ntext = 3.0\n"
    command = [sys.executable, "-c", SERVE, str(folder), str(path)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            address = process.stdout.readline().removeprefix("listening on ").strip()
            with Client(address, timeout_s=30.0) as client:

                def policy_is(wanted):
                    until(
                        lambda: client.find_freelancers(jobs[0], as_of=AS_OF).policy == wanted,
                        f"policy {wanted}",
                    )

                policy_is(effective(EASY))
                path.write_text(heavy)
                process.send_signal(signal.SIGHUP)
                policy_is(effective(heavy))
                path.write_text("no policy at all")
                process.send_signal(signal.SIGHUP)
                path_said = process.stderr.readline() + process.stderr.readline()
                policy_is(effective(heavy))
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=30) == 0
        finally:
            if process.poll() is None:
                process.kill()
    assert "is in force" in path_said
    assert "stays in force" in path_said


class Slow:
    """A server that takes its time to start and to read its policy."""

    metrics_address = None

    def __init__(self, config):
        os.kill(os.getpid(), signal.SIGHUP)
        self.reading, self.read, self.may = 0, 0, asyncio.Event()

    async def start(self):
        return "127.0.0.1:1"

    async def reload(self):
        self.reading += 1
        await self.may.wait()
        self.reading, self.read = self.reading - 1, self.read + 1

    async def stop(self, grace_s=None):
        pass


def test_signals_that_come_together_have_the_policy_read_once_more(monkeypatch):
    """Also while the server starts."""
    made = []
    monkeypatch.setattr(service, "Server", lambda config: made.append(Slow(config)) or made[0])

    async def ask():
        slow = made[0]
        while not slow.reading:
            await asyncio.sleep(0)
        for _ in range(50):
            os.kill(os.getpid(), signal.SIGHUP)
            await asyncio.sleep(0.001)
        assert slow.reading == 2
        slow.may.set()
        while slow.read < 2:
            await asyncio.sleep(0)
        os.kill(os.getpid(), signal.SIGHUP)
        while slow.read < 3:
            await asyncio.sleep(0)
        os.kill(os.getpid(), signal.SIGTERM)

    asking = []

    async def serve():
        await service._serve(None, lambda address: asking.append(asyncio.ensure_future(ask())))
        await asking[0]

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        asyncio.run(asyncio.wait_for(serve(), 60))
    finally:
        signal.signal(signal.SIGHUP, before)
    assert made[0].read == 3
