"""Steps, two limbs, t, resolution and attainable against Python integers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from matchwright.engine.errors import InvalidArgument, UnknownKey
from matchwright.engine.generation.quantise import (
    QueryVectors,
    check_weights,
    decompose,
    quantise_queries,
    quantise_rows,
)
from matchwright.kernels.types import Q_ABS_MAX


def test_every_query_entry_splits_into_two_int8_limbs() -> None:
    q = np.arange(-Q_ABS_MAX, Q_ABS_MAX + 1).astype(np.int16)
    high, low = decompose(q)
    assert (128 * high.astype(int) + low.astype(int) == q).all()
    assert np.abs(high.astype(int)).max() == 127
    assert (low.min(), low.max()) == (-64, 63)


def test_rows_are_rounded_and_clipped() -> None:
    step = 0.25 / 127
    v = np.rint(np.array([[0.25, -0.25, 1.0, -1.0, 0.0, step * 1.51]]) * 2**20)
    assert quantise_rows(v, step).tolist() == [[127, -127, 127, -127, 0, 2]]


def _queries(v: np.ndarray, facets: int = 2) -> QueryVectors:
    half = v.shape[1] // facets
    known = np.stack([v[:, :half].any(1), v[:, half:].any(1)], 1)
    return QueryVectors(v, known, np.ones((len(v), facets)))


finite = st.floats(-1, 1).map(lambda x: round(x * 2**20) / 2**20)
weights = st.lists(st.just(0.0) | st.floats(1e-6, 1e6), min_size=2, max_size=2).filter(any)
steps = st.lists(st.floats(1e-4, 0.1), min_size=2, max_size=2)


@given(st.lists(finite, min_size=8, max_size=8), weights, steps)
def test_query_limits(values: list[float], w: list[float], s: list[float]) -> None:
    made = quantise_queries(_queries(np.array([values])), s, np.array(w), (0, 4, 8))
    q, t = made.q_qd[0].astype(int), float(made.t_q[0])
    u = [(w[d // 4] * s[d // 4]) * v for d, v in enumerate(values)]
    if not any(u):
        assert (t, not q.any(), made.resolution_q[0]) == (1.0, True, Q_ABS_MAX)
        return
    assert t == max(map(abs, u)) / Q_ABS_MAX
    assert np.abs(q).max() == Q_ABS_MAX
    assert all(abs(x * t - y) <= t * 0.5000001 for x, y in zip(q, u, strict=True))
    levels = [np.abs(q[b : b + 4]).max() for b in (0, 4) if any(u[b : b + 4])]
    assert made.resolution_q[0] == min(levels)


def test_weights_move_attainable_not_the_corpus() -> None:
    v = _queries(np.array([[0.5, 0, 0, 0, 0.25, 0, 0, 0]]))
    made = quantise_queries(v, (0.01, 0.01), np.array([1.0, 3.0]), (0, 4, 8))
    assert made.attainable_q[0] == 4.0


@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf, 1e7, 1e-7])
def test_refused_weights(bad: float) -> None:
    with pytest.raises(InvalidArgument, match="weight of facet text"):
        check_weights(["text", "rate"], {"text": bad})


def test_all_zero_weights_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="all weights are zero"):
        check_weights(["text", "rate"], {"text": 0.0})


def test_a_misspelt_facet_is_named() -> None:
    with pytest.raises(UnknownKey, match="did you mean 'rate'"):
        check_weights(["text", "rate"], {"rat": 1.0})
