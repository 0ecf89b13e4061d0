"""Backends, corpora and queries of the top-K tests."""

from __future__ import annotations

import importlib.util

import kernel_cases as cases
import numpy as np
import pytest

from matchwright.kernels import search
from matchwright.kernels.ops import Ops
from matchwright.kernels.planner import Costs
from matchwright.kernels.types import Corpus, Queries

PLANS = ("auto", "scan", "skip", "gather")
BACKENDS = ["numpy", *(["numkong"] if importlib.util.find_spec("numkong") else [])]


@pytest.fixture(
    params=[
        "numpy",
        pytest.param(
            "numkong",
            marks=pytest.mark.skipif("numkong" not in BACKENDS, reason="NumKong is not installed"),
        ),
    ]
)
def backend(request):
    return request.param


@pytest.fixture
def make(backend):
    """Makes a backend with some threads and memory; costs are given, to leave out calibration."""

    def made(**options):
        options.setdefault("costs", Costs())
        if backend == "numpy":
            return Ops(**options)
        from matchwright.kernels.numkong_ops import NumkongOps

        return NumkongOps(**options)

    return made


@pytest.fixture
def ops(make):
    return make(threads=2)


@pytest.fixture
def tiny_samples(monkeypatch):
    """Guess a bound from a sample even where the corpus is tiny, so that guesses fail too."""
    monkeypatch.setattr(search, "SAMPLE_LEAST", 64)
    monkeypatch.setattr(search, "SAMPLE_MOST", 192)
    monkeypatch.setattr(search, "STEP_LEAST", 1)
    monkeypatch.setattr(search, "GUESS_BLOCKS", 1)


def a_corpus(rng, sizes, d, *, spread=127, distinct=0, dead=0.2, **options):
    options.setdefault("columns", False)
    keys = cases.some_keys(rng, sum(sizes))
    pool = rng.integers(-spread, spread + 1, (max(distinct, 1), d))
    parts, at = [], 0
    for n in sizes:
        rows = pool[rng.integers(0, distinct, n)] if distinct else None
        x_nd = rng.integers(-spread, spread + 1, (n, d)) if rows is None else rows
        segment = cases.a_segment(rng, x_nd.astype(np.int8), keys[at : at + n], **options)
        parts.append((segment, None if rng.random() < 0.5 else rng.random(n) >= dead))
        at += n
    return Corpus(tuple(parts))


def some_queries(rng, q, d, groups=((),), *, most=16_255, floor=False):
    return Queries(
        q_qd=rng.integers(-most, most + 1, (q, d)).astype(np.int16),
        key_q=rng.integers(0, 2**64, q, dtype=np.uint64),
        groups=list(groups),
        group_q=rng.integers(0, len(groups), q).astype(np.int32),
        floor_q=rng.integers(-3_000, 3_000, q) if floor else None,
    )


def assert_exact(ops, corpus, queries, k, plans=PLANS):
    expected = cases.brute_topk(corpus, queries, k)
    for plan in plans:
        cases.assert_answers(ops.topk(corpus, queries, k, plan=plan), expected)


# ── Refusals, budgets, backends ───────────────────────────────────────────────────────────────


def good():
    rng = np.random.default_rng(15)
    corpus = a_corpus(rng, (10,), 4, dead=0)
    return corpus, some_queries(rng, 2, 4)
