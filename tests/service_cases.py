"""A marketplace behind a real server, and results that came over the wire."""

from __future__ import annotations

import numpy as np
import pytest

from matchwright.clients import Client
from matchwright.engine import synthetic
from matchwright.engine.config import Limits, ServerConfig
from matchwright.engine.matcher import Matcher
from matchwright.engine.policy import Policy
from matchwright.engine.results import OrderKey, Reranked, Result, Shortfall
from matchwright.engine.service import running
from matchwright.engine.service.together import Together
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


@pytest.fixture
def gathered(monkeypatch):
    """Grows by each caller that comes to wait for a model's answer."""
    came, ask = [], Together.ask

    async def counted(self, share, **how):
        came.append(share)
        return await ask(self, share, **how)

    monkeypatch.setattr(Together, "ask", counted)
    return came


def job_id(n):
    return f"j-{n:07d}"


def person_id(n):
    return f"f-{n:07d}"


def as_result(matches):
    """The engine's own result, put together from what came over the wire alone."""
    shape = (len(matches.ids), len(matches.contributions) // max(1, len(matches.ids)))
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
        kth_key=as_key(matches.kth_key),
        shortfall=None if matches.shortfall is None else Shortfall(matches.shortfall),
        resolution=matches.resolution,
        attainable=matches.attainable,
        t=matches.step,
        degraded=matches.degraded,
        rerank=None if matches.rerank is None else as_reranked(matches.rerank),
    )


def as_key(key):
    return None if key is None else OrderKey(key.points, key.mix, key.low)


def as_reranked(part):
    scores = np.ldexp(np.array(part.model_scores), part.grid_bits)
    assert np.array_equal(scores, np.rint(scores))
    return Reranked(
        model=part.model,
        version=part.version,
        content_hash=part.content_hash,
        grid_bits=part.grid_bits,
        candidates=part.candidates,
        scores=scores.astype(np.int32),
        first_ranks=np.array(part.first_ranks, dtype=np.int32),
        last_key=as_key(part.last_key),
        degraded=part.degraded,
    )


def assert_same(matches, result):
    assert as_result(matches).canonical_bytes() == result.canonical_bytes()
    assert matches.digest == result.digest()
    assert matches.scores == tuple(result.scores.tolist())
    told, known = matches.to_dict(), result.to_dict()
    told.pop("telemetry")
    known.pop("telemetry")
    assert told == known
