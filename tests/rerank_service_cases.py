"""A server whose policy reranks: a model repository, and whom the server asks in Triton's place.

Not a test module. The trees' thresholds lie among the features of the store of ``service_cases``.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time

import numpy as np
import pytest
import service_cases
from rerank_cases import ALLOWED, FakeServer, policy, ranker_folder
from service_cases import AS_OF, LIMITS, job_id, person_id

from matchwright.engine.config import ModelsConfig, ServerConfig
from matchwright.engine.matcher import OTHER, Matcher, Request
from matchwright.engine.models import opened
from matchwright.engine.models.repository import Repository, add_ranker
from matchwright.engine.policy import Policy
from matchwright.engine.rerank.features import INDEX
from matchwright.engine.rerank.features_pairs import FeatureMaker
from matchwright.engine.rerank.rerank import Ranker
from matchwright.engine.rerank.trees import Trees
from matchwright.engine.service import running
from matchwright.kernels.ops import Ops

folder = service_cases.folder
store = service_cases.store
M = 40
OPS = Ops(threads=1)
EASY = "".join(
    f"\n[rules.{rule}]\nenabled = false\n"
    for rule in ("required_skills", "rate_ceiling", "rate_budget", "languages")
)
"""So many are eligible that the model has something to order."""
IDS = {"job": job_id, "freelancer": person_id}


def first_phase(store):
    return Matcher(store, OPS, Policy.parse(EASY))


def askers(store, kind, least=2):
    """Ids of a kind whose searches find so many, those that find most first."""
    plain, found = first_phase(store), {}
    for n in range(80):
        request = Request(kind=kind, id=IDS[kind](n), as_of=AS_OF)
        found[IDS[kind](n)] = plain.count_eligible(request).eligible
    return sorted((own for own in found if found[own] >= least), key=lambda own: -found[own])


@pytest.fixture(scope="module")
def jobs(store):
    return askers(store, "job")


@pytest.fixture(scope="module")
def people(store):
    return askers(store, "freelancer")


def spread(store):
    """int32 (N, F): features of pairs of a store, for thresholds that tell them apart."""
    plain, snapshot, parts = first_phase(store), store.snapshot(), []
    for kind in ("job", "freelancer"):
        own = askers(store, kind)[0]
        request = Request(kind=kind, id=own, k=200, as_of=AS_OF)
        query = plain.prepare_one(snapshot, request)
        rows = snapshot.rows_of(OTHER[kind], plain.match(request).ids)
        parts.append(FeatureMaker().make(snapshot, [query], [rows]))
    return np.concatenate(parts)[:, [INDEX[name] for name in ALLOWED]]


GREEDY = 3
"""A version that asks for a field which the shipped policy does not allow."""


def repository(folder, store, versions=(1, 2)):
    """A repository with versions of the ranker, and the greedy one."""
    values = spread(store)
    for version in versions:
        source = ranker_folder(folder / f"source-{version}", seed=version, spread=values)
        add_ranker(folder / "repo", source, backend="python", version=version)
    source = ranker_folder(folder / "greedy", names=(*ALLOWED[1:], "response"), seed=GREEDY)
    add_ranker(folder / "repo", source, backend="python", version=GREEDY)
    return folder / "repo"


@pytest.fixture(scope="module")
def repo(tmp_path_factory, store):
    pytest.importorskip("lightgbm", reason="needs LightGBM")
    return repository(tmp_path_factory.mktemp("rerank-service"), store)


class InTritonsPlace(FakeServer):
    """Serves every version of a repository, fails on demand, and can be held up.

    ``open``: calls are answered while it is set. ``late_by``: seconds that each takes.
    """

    def __init__(self, repo):
        self.repository = Repository.open(repo)
        self.by_version = {
            version: Trees.load(self.repository.ranker(version).path)
            for version in self.repository.versions("ranker")
        }
        super().__init__(self.by_version[1])
        self.open = threading.Event()
        self.open.set()
        self.there = True
        self.late_by = 0.0
        self.ready_versions = set(self.by_version)
        self.lock = threading.Lock()

    async def infer(self, ref, inputs, outputs, *, deadline):
        until = time.monotonic() + self.late_by
        while not self.open.is_set() or time.monotonic() < until:
            await asyncio.sleep(0.002)
        return self.infer_blocking(ref, inputs, outputs, deadline=deadline)

    def infer_blocking(self, ref, inputs, outputs, *, deadline):
        with self.lock:
            self.trees = self.by_version[ref.version]
            return super().infer_blocking(ref, inputs, outputs, deadline=deadline)

    def _spoilt(self, scores):
        if self.mode == "off the grid":
            scores[0] = 0.1  # the stand-in's own is on the finer grid of an export
            return scores
        return super()._spoilt(scores)

    def ready(self, ref=None, *, deadline):
        return self.there and (ref is None or ref.version in self.ready_versions)

    def close(self):
        pass


@pytest.fixture
def model(repo):
    return InTritonsPlace(repo)


def section(version=1, candidates=M, timeout_ms=20_000):
    """A policy file that reranks; the time is long, since tests share the machine."""
    settings = {"version": version, "candidates": candidates, "timeout_ms": timeout_ms}
    return "[rerank]\n" + "".join(f"{name} = {n}\n" for name, n in settings.items()) + EASY


@contextlib.contextmanager
def serving(folder, repo, model, tmp_path, monkeypatch, text=None, **more):
    """A server that asks ``model``; yields its address."""
    monkeypatch.setattr(opened, "_triton", lambda config, watch: model)
    path = tmp_path / "policy.toml"
    path.write_text(section() if text is None else text)
    models = more.pop("models", ModelsConfig(repository=repo, triton="127.0.0.1:1"))
    settings = {"stores": {"default": folder}, "port": 0, "limits": LIMITS, **more}
    with running(ServerConfig(policy=path, models=models, **settings)) as address:
        yield address


class Here:
    """One ranker for a matcher in this process."""

    def __init__(self, repo, client, version=1):
        self._args = client, Trees.load(Repository.open(repo).ranker(version).path), version

    def ranker(self, version):
        from matchwright.engine.models.refs import ModelRef

        client, trees, own = self._args
        assert version == own
        return Ranker(client, trees, ModelRef("ranker", version), maker=FeatureMaker())


def in_process(source, repo, client, version=1, candidates=M, timeout_ms=20_000):
    """The matcher that a server's answers are compared with."""
    asked = policy(candidates=candidates, version=version, timeout_ms=timeout_ms, text=EASY)
    return Matcher(source, OPS, asked, Here(repo, client, version))


__all__ = ["GREEDY", "InTritonsPlace", "folder", "in_process", "repo", "section", "serving"]
