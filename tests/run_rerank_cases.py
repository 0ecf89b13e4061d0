"""Runs with a second phase for tests: a store, a ranker over a stand-in, and runs of both."""

from __future__ import annotations

import time

import numpy as np
from rerank_cases import ALLOWED, FakeServer, policy, random_trees, ranker
from run_cases import AS_OF, KINDS, make_store

from matchwright.engine.matcher import OTHER, Matcher
from matchwright.engine.request import Request
from matchwright.engine.rerank.features import INDEX
from matchwright.engine.rerank.features_pairs import FeatureMaker
from matchwright.engine.runs.base import Base
from matchwright.engine.runs.execute import LocalExecutor, go_on, quiet, run
from matchwright.engine.runs.folder import Output
from matchwright.engine.runs.incremental import IncrementalExecutor
from matchwright.engine.runs.pairing import side
from matchwright.engine.runs.pinned import PinnedRanker
from matchwright.engine.runs.plan import RunOptions, asking, make_plan
from matchwright.engine.runs.rerank_stage import RerankStage
from matchwright.kernels.ops import Ops

OPS = Ops(threads=1)
K, M = 6, 15
POLICY = policy(candidates=M, timeout_ms=60_000)
"""Its time is never over, however busy the machine is: what is late is said by a stand-in."""

__all__ = ["AS_OF", "KINDS", "make_store"]


def spread_of(snapshot, queries=20):
    """int32 (N, F): features of real pairs, so that thresholds lie among them."""
    plain = Matcher(snapshot, OPS, POLICY.without_rerank())
    parts = []
    for kind in KINDS:
        for name in snapshot.ids_of(kind, asking(snapshot, kind).row_n[:queries]):
            request = Request(kind=kind, id=name, k=M, as_of=AS_OF)
            rows = snapshot.rows_of(OTHER[kind], plain.match(request).ids)
            query = plain.prepare_one(snapshot, request)
            parts.append(FeatureMaker().make(snapshot, [query], [rows]))
    return np.concatenate(parts)[:, [INDEX[name] for name in ALLOWED]]


def trees_of(snapshot, seed=0):
    """Trees that move people about; they name a content."""
    trees = random_trees(seed, spread=spread_of(snapshot))
    trees.content_hash = f"{seed:032x}"
    return trees


def ranker_of(trees, client=None, version=3):
    """The ranker of ``POLICY`` over a stand-in, with the real clock."""
    return ranker(trees, client or FakeServer(trees), clock=time.monotonic, version=version)


def options(**asked):
    return RunOptions(**{"kinds": KINDS, "k": K, "as_of": AS_OF, "policy": POLICY, **asked})


def plan_of(snapshot, model, **asked):
    return make_plan(snapshot, options(**asked), ranker=PinnedRanker.of(model))


def do(snapshot, output, model, *, executor=None, wait_s=0.0, progress=quiet, stop=go_on, **asked):
    """(folder, run.json) of a whole run."""
    plan = plan_of(snapshot, model, **asked)
    folder = Output(output).folder(plan.run_id)
    worker = LocalExecutor(OPS, snapshot, plan) if executor is None else executor(plan)
    stage = RerankStage(plan, model, wait_s=wait_s)
    done = run(plan, folder, worker, progress, stop, snapshot=snapshot, stage=stage)
    return folder, done.summary


def in_market(market, model, base=None, *, policy=POLICY, **options):
    """(folder, run.json) of a run of a ``run_market.Market``, incremental when there is a base."""
    asked = RunOptions(
        **{"kinds": KINDS, "k": 4, "slack": 20, "as_of": AS_OF, "block": 100, **options},
        policy=policy,
        base=None if base is None else base.run_id,
    )
    snapshot = market.store.snapshot()
    pin = None if policy.rerank is None else PinnedRanker.of(model)
    plan = make_plan(snapshot, asked, ranker=pin, store=str(market.store.root))
    if base is None:
        executor = LocalExecutor(OPS, snapshot, plan)
    else:
        executor = IncrementalExecutor(OPS, snapshot, plan, Base(side(base)))
    folder = market.output.folder(plan.run_id)
    stage = None if pin is None else RerankStage(plan, model, wait_s=0)
    return folder, run(plan, folder, executor, snapshot=snapshot, stage=stage).summary
