"""Hypothesis looks for a corpus and queries on which any backend or plan differs from Python."""

from __future__ import annotations

import importlib.util
import itertools

import kernel_cases as cases
import numpy as np
import pytest

from matchwright.kernels import search
from matchwright.kernels.ops import Ops
from matchwright.kernels.planner import Costs
from matchwright.kernels.types import Bitmap, Corpus, Queries, Segment

pytest.importorskip("hypothesis")

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp


def backends():
    yield Ops
    if importlib.util.find_spec("numkong"):
        from matchwright.kernels.numkong_ops import NumkongOps

        yield NumkongOps


@st.composite
def scenes(draw):
    d = draw(st.integers(1, 12))
    most = draw(st.sampled_from([0, 1, 3, 127]))
    loud = draw(st.sampled_from([0, 1, 64, 128, 16_255]))
    sizes = draw(st.lists(st.integers(0, 90), min_size=1, max_size=3))
    n = sum(sizes)
    keys = draw(
        hnp.arrays(np.uint64, n, elements=st.integers(0, 2**64 - 1), unique=True)
        if draw(st.booleans())
        else st.just(np.arange(n, dtype=np.uint64))
    )
    parts, at = [], 0
    for size in sizes:
        x_nd = draw(hnp.arrays(np.int8, (size, d), elements=st.integers(-most, most)))
        alive = draw(st.none() | hnp.arrays(np.bool_, size))
        parts.append((Segment(x_nd, keys[at : at + size]), alive))
        at += size
    q = draw(st.integers(0, 4))
    groups = [(), *(Bitmap(draw(hnp.arrays(np.bool_, n))) for _ in range(draw(st.integers(0, 2))))]
    queries = Queries(
        draw(hnp.arrays(np.int16, (q, d), elements=st.integers(-loud, loud))),
        draw(hnp.arrays(np.uint64, q, elements=st.integers(0, 2**64 - 1))),
        groups,
        draw(hnp.arrays(np.int32, q, elements=st.integers(0, len(groups) - 1))),
        draw(st.none() | hnp.arrays(np.int64, q, elements=st.integers(-5_000, 5_000))),
    )
    return Corpus(tuple(parts)), queries


@given(
    scene=scenes(),
    k=st.sampled_from([1, 2, 5, 40, 1_000]),
    plan=st.sampled_from(["auto", "scan", "skip", "gather"]),
    threads=st.integers(1, 3),
    memory_bytes=st.sampled_from([1, 1_000, 50_000, 1 << 20, 1 << 28]),
)
def test_any_corpus_any_query(scene, k, plan, threads, memory_bytes, monkeypatch_sample):
    corpus, queries = scene
    expected = cases.brute_topk(corpus, queries, k)
    for backend in backends():
        ops = backend(threads=threads, memory_bytes=memory_bytes, costs=Costs())
        cases.assert_answers(ops.topk(corpus, queries, k, plan=plan), expected)


@pytest.fixture(scope="module")
def monkeypatch_sample():
    """Samples so small that guessed bounds are often wrong."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "SAMPLE_LEAST", 64)
        patch.setattr(search, "SAMPLE_MOST", 64)
        patch.setattr(search, "STEP_LEAST", 1)
        patch.setattr(search, "GUESS_BLOCKS", 1)
        yield


@given(
    d=st.integers(1, 1_040),
    seed=st.integers(0, 2**32 - 1),
    loud=st.sampled_from([1, 64, 16_255]),
    pieces=st.integers(1, 12),
)
def test_contributions_sum_to_points(d, seed, loud, pieces):
    rng = np.random.default_rng(seed)
    x_nd = rng.integers(-127, 128, (5, d)).astype(np.int8)
    q_d = rng.integers(-loud, loud + 1, d).astype(np.int16)
    offsets = [0, *np.sort(rng.integers(0, d + 1, pieces - 1)).tolist(), d]
    for backend in backends():
        ops = backend()
        parts = ops.contributions(x_nd, q_d, offsets)
        assert (parts.sum(axis=1) == ops.points(x_nd, q_d)).all()
        for b, (begin, end) in enumerate(itertools.pairwise(offsets)):
            wide = x_nd[:, begin:end].astype(np.int64) @ q_d[begin:end].astype(np.int64)
            assert (parts[:, b] == wide).all()
