"""The second phase over a real Triton server: what is served is what the trees say."""

from __future__ import annotations

import time

import numpy as np
import pytest
from patience import PATIENCE

pytest.importorskip("tritonclient.grpc", reason="needs the extra [triton]")
pytest.importorskip("lightgbm", reason="needs LightGBM")

import market_cases
from market_cases import AS_OF, KINDS, ask
from rerank_cases import ALLOWED, policy, ranker_folder
from triton_cases import need_server, served

from matchwright.engine.config import ModelsConfig
from matchwright.engine.matcher import OTHER, Matcher
from matchwright.engine.models.opened import Models
from matchwright.engine.models.repository import add_ranker
from matchwright.engine.rerank.features import INDEX
from matchwright.engine.rerank.features_pairs import FeatureMaker
from matchwright.engine.rerank.rerank import Candidates
from matchwright.engine.rerank.rerank_models import Rankers
from matchwright.kernels.ops import Ops

OPS = Ops(threads=1)
M = 60

frames = market_cases.frames
generation = market_cases.generation
market = market_cases.market


@pytest.fixture(scope="module")
def repo(tmp_path_factory, market):
    """Two versions of the ranker, whose thresholds lie among real features."""
    need_server()
    folder = tmp_path_factory.mktemp("rerank-served")
    plain = Matcher(market, OPS, policy().without_rerank())
    parts = []
    for kind in KINDS:
        query = plain.prepare_one(market, ask(market, kind))
        rows = market.rows_of(OTHER[kind], plain.match(ask(market, kind, k=200)).ids)
        parts.append(FeatureMaker().make(market, [query], [rows]))
    spread = np.concatenate(parts)[:, [INDEX[name] for name in ALLOWED]]
    for version in (1, 2):
        source = ranker_folder(folder / f"source-{version}", seed=version, spread=spread)
        add_ranker(folder / "repo", source, backend="python")
    return folder / "repo"


@pytest.fixture(scope="module")
def server(repo):
    with served(repo, ["ranker"]) as running:
        yield running


@pytest.fixture(scope="module")
def rankers(repo, server):
    with Models(ModelsConfig(repository=repo, triton=server.url)) as models:
        yield Rankers(models)


def matcher_of(market, rankers, version=1, timeout_ms=20_000, candidates=M):
    section = policy(candidates=candidates, version=version, timeout_ms=timeout_ms)
    return Matcher(market, OPS, section, rankers)


@pytest.mark.parametrize("kind", KINDS)
def test_served_answers_add_up_and_keep_their_order(market, rankers, kind, count):
    matcher = matcher_of(market, rankers)
    trees, moved, pairs, asked = matcher.ranker.trees, 0, 0, 0
    wanted = count(reduced=500, full=60_000)
    while pairs < wanted:
        requests = [
            ask(market, kind, at % 140, k=M, as_of=AS_OF - at // 140)
            for at in range(asked, asked + 16)
        ]
        asked += len(requests)
        found = matcher.gather_many(requests)
        items = [one for one in found if isinstance(one, Candidates)]
        scored = matcher.ranker.ask_blocking(items)
        for item, result in zip(items, matcher.ranker.finish(items, scored), strict=True):
            assert result.rerank.degraded is None, result.telemetry
            at = result.rerank.first_ranks - 1
            features = item.features_mf[at]
            assert np.array_equal(trees.contributions(features).sum(axis=1), result.rerank.scores)
            assert np.array_equal(trees.score(features), result.rerank.scores)
            assert (np.diff(result.rerank.scores) <= 0).all()
            moved += int((np.diff(at) < 0).any())
            pairs += result.returned
    assert moved


def test_answers_are_the_same_in_any_batch(market, rankers):
    matcher = matcher_of(market, rankers)
    requests = [ask(market, kind, n, k=10) for kind in KINDS for n in range(6)]
    together = [answer.canonical_bytes() for answer in matcher.match_many(requests)]
    assert together == [matcher.match(request).canonical_bytes() for request in requests]


def test_every_answer_names_the_version_that_made_it(market, rankers):
    by_version = {v: matcher_of(market, rankers, v).match(ask(market, "job", k=M)) for v in (1, 2)}
    for version, result in by_version.items():
        assert (result.rerank.version, result.rerank.degraded) == (version, None)
        assert result.rerank.content_hash == rankers.ranker(version).trees.content_hash
    assert by_version[1].rerank.scores.tolist() != by_version[2].rerank.scores.tolist()


def test_an_explanation_agrees_with_the_served_score(market, rankers):
    matcher = matcher_of(market, rankers)
    own = market.frames["job"]["id"][0]
    result = matcher.match(ask(market, "job", k=3))
    assert result.returned == 3
    for match in result:
        second = matcher.explain(own, match.id, as_of=AS_OF).rerank
        assert (second.rank, second.score) == (match.rank, match.model_score)


def test_a_server_that_is_stopped_killed_and_started_again(market, repo):
    """Every answer comes in time; those without the model say why."""
    with served(repo, ["ranker"]) as server:
        with Models(ModelsConfig(repository=repo, triton=server.url)) as models:
            matcher = matcher_of(market, Rankers(models), timeout_ms=500)
            request = ask(market, "job", k=5)
            assert matcher_of(market, Rankers(models)).match(request).rerank.degraded is None
            server.pause()
            began = time.monotonic()
            result = matcher.match(request)
            assert time.monotonic() - began < 2.0 * PATIENCE
            assert result.rerank.degraded == "LATE"
            server.resume()
            server.kill()
            reasons = {matcher.match(request).rerank.degraded for _ in range(10)}
            assert reasons <= {"UNREACHABLE", "BREAKER_OPEN", "LATE"}
            first = Matcher(market, OPS, policy().without_rerank()).match(request)
            assert matcher.match(request).ids == first.ids


def test_a_version_that_is_not_served_degrades_the_answer(market, repo, tmp_path):
    """The repository has it, the server does not know it yet."""
    source = ranker_folder(tmp_path / "source", seed=9)
    with served(repo, ["ranker"]) as server:
        made = add_ranker(repo, source, backend="python")
        with Models(ModelsConfig(repository=repo, triton=server.url)) as models:
            matcher = matcher_of(market, Rankers(models), version=made.version)
            result = matcher.match(ask(market, "job"))
    assert result.rerank.degraded == "NOT_READY"
    assert result.rerank.version == made.version
