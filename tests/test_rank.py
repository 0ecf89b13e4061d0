"""Points, contributions, ranks and limbs."""

from __future__ import annotations

import kernel_cases as cases
import numpy as np
import pytest
import topk_cases
from topk_cases import a_corpus, good, some_queries

from matchwright.kernels import limbs as limbs_module
from matchwright.kernels.ops import limbs
from matchwright.kernels.types import Bitmap, Corpus, Queries

backend = topk_cases.backend
make = topk_cases.make
ops = topk_cases.ops


# ── The other answers ─────────────────────────────────────────────────────────────────────────


def test_points_and_contributions(ops):
    rng = np.random.default_rng(13)
    for d in (1, 9, 384, 1_040):
        x_nd = rng.integers(-127, 128, (50, d)).astype(np.int8)
        q_d = rng.integers(-16_255, 16_256, d).astype(np.int16)
        expected = x_nd.astype(np.int64) @ q_d.astype(np.int64)
        assert (ops.points(x_nd, q_d) == expected).all()
        offsets = sorted({0, d, *rng.integers(0, d + 1, 5).tolist()})
        parts = ops.contributions(x_nd, q_d, [*offsets, d])
        assert parts.dtype == np.int32
        assert (parts.sum(axis=1, dtype=np.int64) == expected).all()
        assert (parts[:, -1] == 0).all()
    assert ops.points(np.empty((0, 4), np.int8), np.ones(4, np.int16)).shape == (0,)


def test_rank_is_the_place_in_the_full_answer(ops):
    rng = np.random.default_rng(14)
    corpus = a_corpus(rng, (300, 200), 3, spread=2, dead=0.3)
    for group in ((), Bitmap(rng.random(500) < 0.4)):
        queries = some_queries(rng, 1, 3, [group], most=3)
        answer = ops.topk(corpus, queries, 500)
        rows = answer.row_qk[0, : answer.returned_q[0]].tolist()
        for row in range(0, 500, 7):
            rank = ops.rank(corpus, queries, row, k=20)
            assert rank.eligible == len(rows)
            assert rank.kth_points == int(answer.points_qk[0, 19])
            assert rank.points == cases.points_of(corpus, queries.q_qd[0])[row]
            if row in rows:
                assert rank.rank == rows.index(row) + 1
        assert ops.rank(corpus, queries, 0, k=501).gap_points is None


@pytest.mark.parametrize("rate", [1.0, 0.3, 0.01, 0.0])
def test_rank_over_blocks(make, rate):
    rng = np.random.default_rng(21)
    corpus = a_corpus(rng, (20_000, 3_000), 2, spread=9)
    group = Bitmap(rng.random(corpus.n) < rate)
    queries = some_queries(rng, 1, 2, [group], most=9)
    keys, points = cases.keys_of(corpus), cases.points_of(corpus, queries.q_qd[0])
    rows, _ = cases.eligible_rows(corpus, group)
    key_q = int(queries.key_q[0])
    for row in (0, 19_999, 20_000, 22_999):
        mine = (-points[row], cases.tie_of(key_q, keys[row]))
        ahead = sum((-points[n], cases.tie_of(key_q, keys[n])) < mine for n in rows if n != row)
        for memory_bytes in (10_000, 1 << 28):
            rank = make(memory_bytes=memory_bytes).rank(corpus, queries, row)
            assert (rank.rank, rank.eligible) == (ahead + 1, len(rows))
            assert (rank.mix << 32) | rank.low == mine[1]


@pytest.mark.parametrize("rate", [1.0, 0.3, 0.01])
@pytest.mark.parametrize("most", [127, 16_255])
def test_rank_where_first_limbs_decide(make, rate, most):
    """Many different points; two parts whose rows differ in length; rows all over the ranking."""
    rng = np.random.default_rng(22)
    long, short = a_corpus(rng, (17_000,), 40), a_corpus(rng, (9_000, 1), 40, spread=9)
    corpus = Corpus((*long.parts, *short.parts))
    group = Bitmap(rng.random(corpus.n) < rate)
    queries = some_queries(rng, 1, 40, [group], most=most)
    keys, points = cases.keys_of(corpus), cases.points_of(corpus, queries.q_qd[0])
    rows, _ = cases.eligible_rows(corpus, group)
    key_q = int(queries.key_q[0])
    ties = np.array([cases.tie_of(key_q, key) for key in keys], dtype=np.uint64)
    ranked = sorted(rows, key=lambda n: (-points[n], int(ties[n])))
    ops = make()
    for k, row in zip((1, 37, 100, None), (*ranked[:: len(ranked) // 3][:3], 0), strict=True):
        rank = ops.rank(corpus, queries, row, k=k)
        before = [n for n in ranked if (-points[n], ties[n]) < (-points[row], ties[row])]
        assert (rank.rank, rank.eligible) == (len(before) + 1, len(rows))
        assert rank.points == points[row]
        assert rank.kth_points == (None if k is None else points[ranked[k - 1]])


@pytest.mark.parametrize("row", [-1, 10])
def test_rank_of_no_row(ops, row):
    corpus, queries = good()
    one = Queries(queries.q_qd[:1], queries.key_q[:1])
    with pytest.raises(ValueError, match="rank takes"):
        ops.rank(corpus, one, row)
    with pytest.raises(ValueError, match="rank takes"):
        ops.rank(corpus, queries, 0)


def test_limbs():
    q = np.arange(-16_255, 16_256, dtype=np.int16)
    high, low = limbs(q)
    assert (128 * high.astype(int) + low == q).all()
    assert (abs(high.astype(int)) <= 127).all()
    assert (low >= -64).all()
    assert (low <= 63).all()


@pytest.mark.parametrize("most", [0, 1, 200, 16_255])
@pytest.mark.parametrize("d", [1, 100, 1_040])
def test_splits_stay_exact(most, d):
    rng = np.random.default_rng(most)
    q_qd = rng.integers(-most, most + 1, (9, d)).astype(np.int16)
    q_qd[0] = most
    for dtype in (np.float32, np.int8):
        split = limbs_module.split(q_qd, 127 * 127 * d, dtype)
        first, rest = split.first_qd.astype(np.int64), split.rest_qd.astype(np.int64)
        assert ((first << split.shift_q[:, None]) + rest == q_qd).all()
        assert (np.abs(first).sum(axis=1) * 127 < 2**24).all() or d == 1_040
        assert (split.slack_q >= np.minimum(np.abs(rest).sum(axis=1) * 127, 2**40)).all() or d > 1


def test_a_small_norm_allows_a_narrow_rest():
    q_qd = np.random.default_rng(0).integers(-16_255, 16_256, (4, 256)).astype(np.int16)
    wide = limbs_module.split(q_qd, limbs_module.norm2_max(256), np.float32)
    narrow = limbs_module.split(q_qd, 40 * 40 * 256, np.float32)
    assert (narrow.shift_q < wide.shift_q).all()
    assert (narrow.slack_q < wide.slack_q).all()
