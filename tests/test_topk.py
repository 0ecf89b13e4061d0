"""The K best of every query, beside a brute force in Python integers."""

from __future__ import annotations

import itertools

import kernel_cases as cases
import numpy as np
import pytest
import topk_cases
from topk_cases import PLANS, a_corpus, assert_exact, some_queries

from matchwright.kernels.ops import Ops
from matchwright.kernels.planner import Costs
from matchwright.kernels.types import Bitmap, Corpus, Counted, InRange, Queries, Segment

backend = topk_cases.backend
make = topk_cases.make
ops = topk_cases.ops
tiny_samples = topk_cases.tiny_samples


# ── Exactness ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("d", [1, 37, 384, 1_040])
@pytest.mark.parametrize("sizes", [(), (0,), (1,), (37, 0, 199)])
@pytest.mark.parametrize("k", [1, 37, 1_000])
def test_odd_sizes(ops, d, sizes, k):
    rng = np.random.default_rng(d + k)
    corpus = a_corpus(rng, sizes, d)
    assert_exact(ops, corpus, some_queries(rng, 3, d), k)


def test_many_shapes(make, count, tiny_samples):
    rng = np.random.default_rng(0)
    for _ in range(count(reduced=25, full=3_000)):
        d, q = int(rng.choice([1, 7, 16, 33])), int(rng.choice([1, 2, 5, 40]))
        corpus = a_corpus(
            rng,
            rng.integers(0, 260, int(rng.integers(1, 4))).tolist(),
            d,
            spread=int(rng.choice([0, 1, 127])),
            distinct=int(rng.choice([0, 1, 3])),
            columns=True,
            indexed=bool(rng.random() < 0.7),
        )
        keys = np.array(cases.keys_of(corpus), dtype=np.uint64)
        rate = float(10.0 ** -rng.uniform(0, 3))
        groups = [
            (),
            cases.some_rules(rng, keys),
            cases.some_rules(rng, keys),
            Bitmap(rng.random(corpus.n) < rate),
        ][: int(rng.integers(1, 5))]
        most = int(rng.choice([0, 1, 100, 16_255]))
        queries = some_queries(rng, q, d, groups, most=most, floor=bool(rng.random() < 0.3))
        made = make(threads=int(rng.integers(1, 4)), memory_bytes=int(2 ** rng.uniform(0, 26)))
        assert_exact(made, corpus, queries, int(rng.choice([1, 3, 20, 300])))


@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_numbers(ops, sign):
    x_nd = np.full((70, 1_040), 127, np.int8)
    x_nd[1::2] = -127
    x_nd[2, 5:900] = 3
    corpus = Corpus(((cases.a_segment(np.random.default_rng(1), x_nd, columns=False), None),))
    q_qd = np.full((2, 1_040), sign * 16_255, np.int16)
    q_qd[1, ::2] = -16_255
    queries = Queries(q_qd, np.array([1, 2], np.uint64))
    assert_exact(ops, corpus, queries, 9)
    assert ops.topk(corpus, queries, 1).points_qk[0, 0] == 127 * 1_040 * 16_255


def test_a_query_of_zeros_ties_everything(ops, tiny_samples):
    rng = np.random.default_rng(2)
    corpus = a_corpus(rng, (700, 300), 5)
    queries = some_queries(rng, 4, 5, most=0)
    assert_exact(ops, corpus, queries, 20)


@pytest.mark.parametrize("distinct", [1, 2, 5])
@pytest.mark.parametrize("k", [1, 30, 1_000])
def test_duplicates(make, distinct, k, tiny_samples):
    rng = np.random.default_rng(distinct)
    corpus = a_corpus(rng, (900, 700), 8, distinct=distinct)
    groups = [(), Bitmap(rng.random(corpus.n) < 0.3)]
    queries = some_queries(rng, 6, 8, groups)
    for memory_bytes in (1 << 12, 1 << 26):
        assert_exact(make(memory_bytes=memory_bytes), corpus, queries, k)


@pytest.mark.parametrize("spread", [0, 1])
def test_mixes_that_collide_are_decided_by_the_low_word(ops, spread, tiny_samples):
    rng = np.random.default_rng(3)
    key_q = int(rng.integers(0, 2**63))
    lows = rng.permutation(2_000)
    keys = [cases.key_with_mix(key_q, int(rng.integers(0, 2)), int(low)) for low in lows]
    x_nd = rng.integers(-spread, spread + 1, (2_000, 3)).astype(np.int8)
    segment = Segment(x_nd, np.array(keys, dtype=np.uint64))
    queries = Queries(np.array([[1, 1, -1]], np.int16), np.array([key_q], dtype=np.uint64))
    for k in (1, 10, 999):
        assert_exact(ops, Corpus(((segment, None),)), queries, k)


def test_better_and_better_rows(ops, tiny_samples):
    """The bound never helps: every row beats all rows before it."""
    rng = np.random.default_rng(4)
    x_nd = np.sort(rng.integers(-127, 128, (3_000, 1)), axis=0).astype(np.int8)
    segment = Segment(x_nd, cases.some_keys(rng, 3_000))
    for q in (1, 16_255, -16_255):
        queries = Queries(np.array([[q]], np.int16), np.array([5], np.uint64))
        assert_exact(ops, Corpus(((segment, None),)), queries, 100)


def test_a_sample_that_misleads(ops, tiny_samples):
    """All good rows share a few words, and the sample sees too many or none of them."""
    rng = np.random.default_rng(5)
    for word in range(12):
        x_nd = rng.integers(-3, 4, (64 * 40, 4)).astype(np.int8)
        x_nd[word * 64 : word * 64 + 90] += 100
        corpus = Corpus(((Segment(x_nd, cases.some_keys(rng, x_nd.shape[0])), None),))
        queries = some_queries(rng, 3, 4, [(), Bitmap(rng.random(corpus.n) < 0.5)], most=50)
        assert_exact(ops, corpus, queries, 200, plans=("scan",))


def test_how_the_corpus_is_cut_changes_no_answer(ops):
    rng = np.random.default_rng(6)
    x_nd = rng.integers(-127, 128, (1_000, 24)).astype(np.int8)
    keys = cases.some_keys(rng, 1_000)
    queries = some_queries(rng, 9, 24)
    whole = ops.topk(Corpus(((Segment(x_nd, keys), None),)), queries, 50)
    for cuts in ([1], [64, 65], [500], [0, 3, 999]):
        edges = [0, *cuts, 1_000]
        parts = tuple((Segment(x_nd[a:b], keys[a:b]), None) for a, b in itertools.pairwise(edges))
        cut = ops.topk(Corpus(parts), queries, 50)
        assert (cut.row_qk == whole.row_qk).all()
        assert (cut.points_qk == whole.points_qk).all()


@pytest.mark.parametrize("q", [1, 3, 60])
def test_segments_mapped_read_only(ops, tmp_path, q):
    rng = np.random.default_rng(22)
    corpus = a_corpus(rng, (700,), 16, columns=True, dead=0)
    segment = corpus.parts[0][0]
    np.save(tmp_path / "x.npy", segment.x_nd)
    np.save(tmp_path / "key.npy", segment.key_n)
    mapped = Segment(
        np.load(tmp_path / "x.npy", mmap_mode="r"),
        np.load(tmp_path / "key.npy", mmap_mode="r"),
        segment.scalars,
        segment.sets,
        segment.index,
    )
    groups = [(), Bitmap(rng.random(700) < 0.05)]
    assert_exact(ops, Corpus(((mapped, None),)), some_queries(rng, q, 16, groups), 9)


def test_threads_blocks_of_queries_and_budgets_change_no_answer(make, tiny_samples):
    rng = np.random.default_rng(7)
    corpus = a_corpus(rng, (3_000, 2_000), 20)
    groups = [(), *(Bitmap(rng.random(corpus.n) < rate) for rate in (0.5, 0.05, 0.001, 0))]
    queries = some_queries(rng, 90, 20, groups, floor=True)
    expected = Ops(costs=Costs()).topk(corpus, queries, 40)
    for threads, memory_bytes in ((1, 1 << 28), (2, 40_000), (5, 1 << 20), (2, 1)):
        made = make(threads=threads, memory_bytes=memory_bytes)
        for plan in PLANS if memory_bytes > 1 else ("scan",):
            got = made.topk(corpus, queries, 40, plan=plan)
            for name in ("row_qk", "points_qk", "returned_q", "eligible_q"):
                assert (getattr(got, name) == getattr(expected, name)).all()


def test_larger_corpora_beside_the_plain_product(make, count):
    rng = np.random.default_rng(8)
    for _ in range(count(reduced=2, full=60)):
        n, d, k = int(rng.integers(20_000, 60_000)), int(rng.integers(8, 64)), 100
        x_nd = np.rint(rng.normal(0, 30, (n, d))).clip(-127, 127).astype(np.int8)
        keys = cases.some_keys(rng, n)
        corpus = Corpus(((cases.with_index(Segment(x_nd, keys)), None),))
        bitmap = rng.random(n) < 0.1
        queries = some_queries(rng, 20, d, [(), Bitmap(bitmap)])
        points = x_nd.astype(np.int64) @ queries.q_qd.T.astype(np.int64)
        for plan in PLANS:
            got = make(threads=2).topk(corpus, queries, k, plan=plan)
            for i in range(20):
                rows = np.flatnonzero(bitmap) if queries.group_q[i] else np.arange(n)
                tie = [cases.tie_of(int(queries.key_q[i]), int(keys[r])) for r in got.row_qk[i]]
                order = sorted(zip((-points[got.row_qk[i], i]).tolist(), tie, strict=True))
                assert order == list(zip((-got.points_qk[i]).tolist(), tie, strict=True))
                kth = np.partition(points[rows, i], rows.size - k)[rows.size - k]
                assert got.points_qk[i, -1] == kth
                assert set(rows[points[rows, i] > kth]) <= set(got.row_qk[i].tolist())


# ── Floors, counts, certificates ──────────────────────────────────────────────────────────────


def test_floors(ops):
    rng = np.random.default_rng(9)
    corpus = a_corpus(rng, (500,), 6)
    base = some_queries(rng, 5, 6)
    for floor in (-(2**40), 0, 700_000, 2**31 - 1, 2**40):
        queries = Queries(base.q_qd, base.key_q, floor_q=np.full(5, floor, dtype=np.int64))
        assert_exact(ops, corpus, queries, 10)


def test_counts_are_exact_or_not_given(ops):
    rng = np.random.default_rng(10)
    corpus = a_corpus(rng, (300,), 4, columns=True)
    group = (InRange("rate", 0, 50_000, "RATE", unknown_passes=True),)
    queries = some_queries(rng, 2, 4, [group])
    counted = ops.topk(corpus, queries, 5)
    assert counted.counted == Counted.EXACT
    assert (int(counted.eligible_q[0]), int(counted.unverified_q[0])) == ops.count(corpus, group)
    blind = ops.topk(corpus, queries, 5, count=False)
    assert blind.counted == Counted.NOT_COUNTED
    assert (blind.eligible_q == -1).all()
    assert (blind.row_qk == counted.row_qk).all()


@pytest.mark.parametrize("sizes", [(200,), (64, 13), (13, 0, 51, 8), (16, 24, 5)])
@pytest.mark.parametrize("dead", [0.0, 0.3])
def test_packed_bitmaps_are_bitmaps(ops, sizes, dead):
    rng = np.random.default_rng(20)
    corpus = a_corpus(rng, sizes, 4, dead=dead)
    flags = rng.random(corpus.n) < 0.4
    packed = np.packbits(flags, bitorder="little")
    packed[-1] |= 0xFF << (corpus.n % 8 or 8) & 0xFF  # what lies beyond the rows does not count
    queries = some_queries(rng, 5, 4, [Bitmap(flags), Bitmap(packed)])
    swapped = Queries(queries.q_qd, queries.key_q, queries.groups, 1 - queries.group_q)
    one, other = ops.topk(corpus, queries, 9), ops.topk(corpus, swapped, 9)
    assert (one.row_qk == other.row_qk).all()
    assert (one.eligible_q == other.eligible_q).all()


def test_everything_vetoed_and_nobody_asks(ops):
    rng = np.random.default_rng(11)
    corpus = a_corpus(rng, (200,), 4)
    nobody = Bitmap(np.zeros(200, dtype=bool))
    assert_exact(ops, corpus, some_queries(rng, 3, 4, [nobody]), 5)
    empty = ops.topk(corpus, some_queries(rng, 0, 4), 5)
    assert empty.row_qk.shape == (0, 5)


def test_one_in_a_million_is_found(ops):
    rng = np.random.default_rng(12)
    corpus = a_corpus(rng, (100_000,), 2, dead=0)
    chosen = np.zeros(100_000, dtype=bool)
    chosen[77_777] = True
    for plan in PLANS:
        got = ops.topk(corpus, some_queries(rng, 3, 2, [Bitmap(chosen)]), 10, plan=plan)
        alive = corpus.parts[0][1] is None or corpus.parts[0][1][77_777]
        assert got.returned_q.tolist() == [int(alive)] * 3
