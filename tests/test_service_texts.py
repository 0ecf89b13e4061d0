"""Texts that requests bring along, with a served encoder behind the server: encoded ahead of the
device thread, together, and never at the price of an answer."""

# ruff: noqa: F401, F811 (fixtures come by import)
from __future__ import annotations

import asyncio
import json
import threading
import time

import encoder_cases as cases
import pytest
from encoder_cases import REFIT, client, made, repo, shop
from patience import PATIENCE, until_async
from service_cases import LIMITS, assert_same, gathered

from matchwright import clients
from matchwright.clients import AsyncClient, Client, Query
from matchwright.engine.config import ModelsConfig, ServerConfig
from matchwright.engine.errors import ModelLate, ModelUnavailable
from matchwright.engine.matcher import Matcher, Request
from matchwright.engine.models import opened
from matchwright.engine.policy import Policy
from matchwright.engine.service import running
from matchwright.engine.store import Store
from matchwright.kernels.ops import Ops

AS_OF = cases.AS_OF
EASY = "".join(
    f"\n[rules.{rule}]\nenabled = false\n"
    for rule in ("required_skills", "rate_ceiling", "rate_budget", "languages")
)


class Encoder(cases.FakeTriton):
    """Can be held up like a stopped server: nothing is answered, each call ends by its deadline."""

    def __init__(self, dimensions=96):
        super().__init__(dimensions)
        self.stopped = False
        self.took = []

    def infer_blocking(self, ref, inputs, outputs, *, deadline):
        left = deadline - time.monotonic()
        if left <= 0:
            raise ModelLate("no time was left")
        if self.stopped:
            self.took.append(threading.current_thread().name)
            time.sleep(left)
            raise ModelLate("it is stopped")
        return super().infer_blocking(ref, inputs, outputs, deadline=deadline)

    def ready(self, ref=None, *, deadline):
        return not self.stopped


@pytest.fixture
def encoder():
    return Encoder()


@pytest.fixture
def policy_file(tmp_path):
    path = tmp_path / "policy.toml"
    path.write_text(EASY)
    return path


@pytest.fixture
def timeout_ms():
    return 500


@pytest.fixture
def server(shop, repo, encoder, policy_file, monkeypatch, timeout_ms):
    monkeypatch.setattr(opened, "_triton", lambda config, watch: encoder)
    config = ServerConfig(
        stores={"default": shop},
        port=0,
        limits=LIMITS,
        policy=policy_file,
        models=ModelsConfig(repository=repo, triton="127.0.0.1:1", timeout_ms=timeout_ms),
    )
    with running(config) as address:
        yield address


@pytest.fixture
def asking(server):
    with Client(server, timeout_s=20.0) as client:
        yield client


def inline(n):
    """A job that nobody stored."""
    return {"title": f"a job that nobody stored {n}", "text": f"with words of its own {n}"}


def in_process(shop, repo, encoder, record, **more):
    with Store.open(shop, models=cases.models(repo, encoder)) as store:
        matcher = Matcher(store, Ops(threads=1), Policy.parse(EASY))
        request = Request(kind="job", record=record, as_of=AS_OF, contributions=False, **more)
        return matcher.match(request)


def test_an_inline_text_answers_as_in_process(asking, shop, repo, encoder):
    for n in range(4):
        answer = asking.find_freelancers(inline(n), as_of=AS_OF)
        assert answer.degraded == ()
        assert_same(answer, in_process(shop, repo, Encoder(), inline(n)))
    texts = len(encoder.sent)
    assert texts == 4
    asking.find_freelancers(inline(0), as_of=AS_OF)
    assert len(encoder.sent) == texts, "remembered"


def test_without_the_encoder_answers_say_so_and_are_those_of_this_process(
    asking, shop, repo, encoder
):
    encoder.away = True
    answer = asking.find_freelancers(inline(1), as_of=AS_OF)
    assert answer.degraded == ("ENCODER_UNREACHABLE",)
    away = Encoder()
    away.away = True
    assert_same(answer, in_process(shop, repo, away, inline(1)))
    batch = asking.batch_find([Query("job", inline(n)) for n in range(2, 8)], as_of=AS_OF)
    assert {one.degraded for one in batch} == {("ENCODER_UNREACHABLE",)}
    encoder.away = False
    stored = asking.batch_find([Query("job", "j-0000001"), Query("job", inline(9))], as_of=AS_OF)
    assert [one.degraded for one in stored] == [(), ()]


def test_a_stopped_encoder_costs_half_of_the_time_at_most_and_never_the_device(asking, encoder):
    asking.find_freelancers(inline(0), as_of=AS_OF)
    encoder.stopped = True
    for n, seconds in enumerate((0.9, 3.0)):
        began = time.monotonic()
        answer = asking.find_freelancers(inline(10 + n), as_of=AS_OF, timeout_s=seconds)
        assert answer.degraded == ("ENCODER_LATE",)
        assert time.monotonic() - began < min(seconds, 2.0)
    count = asking.count_eligible("job", inline(20), as_of=AS_OF, timeout_s=3.0)
    assert count.eligible >= 0
    assert {name.rpartition("_")[0] for name in encoder.took} == {"matchwright-texts"}


def test_others_are_answered_while_the_encoder_is_stopped(server, encoder):
    async def ask():
        async with AsyncClient(server, timeout_s=20.0) as client:
            await client.find_freelancers("j-0000001", as_of=AS_OF)
            encoder.stopped = True
            waiting = [
                asyncio.create_task(client.find_freelancers(inline(n), as_of=AS_OF))
                for n in range(30)
            ]
            await until_async(lambda: encoder.took, "the encoder")
            began = time.monotonic()
            stored = [await client.find_freelancers("j-0000001", as_of=AS_OF) for _ in range(5)]
            quick = time.monotonic() - began
            return stored, quick, await asyncio.gather(*waiting)

    stored, quick, waited = asyncio.run(ask())
    assert quick < 1.5 * PATIENCE
    assert {one.degraded for one in stored} == {()}
    assert {one.degraded for one in waited} == {("ENCODER_LATE",)}


@pytest.mark.parametrize("timeout_ms", [20_000])
def test_texts_of_concurrent_requests_go_together(server, encoder, gathered):
    gate = threading.Event()
    encoder.before = lambda: gate.wait(15.0)

    async def ask():
        async with AsyncClient(server, timeout_s=30.0) as client:
            tasks = [
                asyncio.create_task(client.find_freelancers(inline(n), as_of=AS_OF))
                for n in range(24)
            ]
            await until_async(lambda: len(gathered) == 24, "all of them")
            gate.set()
            return await asyncio.gather(*tasks)

    answers = asyncio.run(ask())
    assert {one.degraded for one in answers} == {()}
    assert len(encoder.sent) == 24
    assert len(encoder.calls) < 8


def test_an_explanation_says_what_it_went_without(asking, shop, repo, encoder):
    pair = (inline(3), "f-0000003")
    with Store.open(shop, models=cases.models(repo, Encoder())) as store:
        matcher = Matcher(store, Ops(threads=1), Policy.parse(EASY))
        known = matcher.explain(*pair, as_of=AS_OF, contributions=False)
    told = asking.explain(*pair, audience="operator", as_of=AS_OF)
    assert json.loads(json.dumps(told.to_dict())) == json.loads(json.dumps(known.to_dict()))
    encoder.away = True
    told = asking.explain(inline(4), "f-0000003", audience="operator", as_of=AS_OF)
    assert told.degraded == ("ENCODER_UNREACHABLE",)
    text = next(share for share in told.contributions if share.facet == "text")
    assert text.fit == "not asked"


def test_the_side_that_is_searched_cannot_go_without_its_text(asking, encoder):
    person = {"title": "somebody new", "text": "words that nobody has said"}
    assert asking.explain("j-0000001", person, audience="operator", as_of=AS_OF).degraded == ()
    encoder.stopped = True
    person["text"] += " before"
    began = time.monotonic()
    with pytest.raises(clients.Unavailable) as caught:
        asking.explain("j-0000001", person, audience="operator", as_of=AS_OF, timeout_s=5.0)
    assert caught.value.reason == "MODEL_UNAVAILABLE"
    assert caught.value.details["why"] == "LATE"
    assert time.monotonic() - began < 3.0


def test_the_next_generation_in_between_is_asked_as_well(
    shop, repo, encoder, policy_file, monkeypatch
):
    """A text that was encoded for one generation, and searched in the next one."""
    from matchwright.engine.service.texts import Texts

    monkeypatch.setattr(opened, "_triton", lambda config, watch: encoder)
    switched = []
    ahead = Texts.ahead

    async def then_refit(self, snapshot, requests, deadline):
        await ahead(self, snapshot, requests, deadline)
        if not switched:
            switched.append(await asyncio.to_thread(refit))

    def refit():
        models = cases.models(repo, Encoder())
        with Store.open(shop, mode="w", models=models) as store:
            return store.refit(**REFIT, encoder_version=2).id

    monkeypatch.setattr(Texts, "ahead", then_refit)
    config = ServerConfig(
        stores={"default": shop},
        port=0,
        policy=policy_file,
        models=ModelsConfig(repository=repo, triton="127.0.0.1:1"),
    )
    with running(config) as address, Client(address, timeout_s=60.0) as client:
        answer = client.find_freelancers(inline(5), as_of=AS_OF)
    assert answer.generation == switched[0]
    assert answer.degraded == ()
    assert {name for name, _ in encoder.calls} == {"encoder:1", "encoder:2"}


def test_one_text_that_fails_costs_its_block_nothing(shop, repo):
    """Queries that share a batch with an inline one get what they get alone."""
    from rerank_cases import FakeServer, policy, random_trees, ranker

    trees = random_trees(0)
    away = Encoder()
    away.away = True
    with Store.open(shop, models=cases.models(repo, away)) as store:
        one = ranker(trees, FakeServer(trees))
        matcher = Matcher(store, Ops(threads=1), policy(text=EASY), one)
        assert "reciprocal" in " ".join(one.asked)
        requests = [Request(kind="job", id=f"j-000000{n}", as_of=AS_OF) for n in range(6)]
        requests.insert(3, Request(kind="job", record=inline(40), as_of=AS_OF))
        together = matcher.match_many(requests)
        alone = [matcher.match(request) for request in requests]
    assert [one.canonical_bytes() for one in together] == [one.canonical_bytes() for one in alone]
    assert [one.rerank.degraded for one in together] == [None] * 3 + ["NO_FEATURES"] + [None] * 3
