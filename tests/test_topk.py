"""Top-K on every CPU backend and plan beside a brute force in Python integers."""

from __future__ import annotations

import importlib.util
import inspect
import itertools
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from matchwright.kernels import limbs as limbs_module
from matchwright.kernels import search
from matchwright.kernels.ops import Ops, get_ops, limbs
from matchwright.kernels.planner import Costs
from matchwright.kernels.types import Bitmap, Corpus, Counted, InRange, Queries, Segment
from matchwright.kernels.workers import _controller, single_threaded_blas


def _load(name):
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


cases = _load("kernel_cases")

PLANS = ("auto", "scan", "skip", "gather")
BACKENDS = ["numpy"]
if importlib.util.find_spec("numkong"):
    BACKENDS.append("numkong")


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


# ── Refusals, budgets, backends ───────────────────────────────────────────────────────────────


def good():
    rng = np.random.default_rng(15)
    corpus = a_corpus(rng, (10,), 4, dead=0)
    return corpus, some_queries(rng, 2, 4)


@pytest.mark.parametrize("k", [0, -1, 1_001])
def test_k_out_of_range(ops, k):
    with pytest.raises(ValueError, match="k is"):
        ops.topk(*good(), k)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q_qd": np.full((2, 4), 16_256, np.int16)}, "beyond"),
        ({"q_qd": np.zeros((2, 5), np.int16)}, "expected int8"),
        ({"q_qd": np.zeros((2, 4), np.int32)}, "int16"),
        ({"key_q": np.zeros(3, np.uint64)}, "key_q"),
        ({"groups": [(), ()], "group_q": None}, "group_q"),
        ({"group_q": np.array([0, 1], np.int32)}, "outside"),
        ({"group_q": np.array([0], np.int32)}, "group_q"),
        ({"floor_q": np.zeros(1, np.int64)}, "floor_q"),
        ({"groups": [Bitmap(np.zeros(9, bool))]}, "bitmap"),
        ({"groups": [Bitmap(np.zeros(10, np.uint8))]}, "bitmap"),
        ({"groups": [Bitmap(np.zeros(2, np.int64))]}, "bitmap"),
    ],
)
def test_what_does_not_fit_is_refused(ops, change, message):
    corpus, queries = good()
    given = {
        "q_qd": queries.q_qd,
        "key_q": queries.key_q,
        "groups": queries.groups,
        "group_q": queries.group_q,
        "floor_q": None,
    } | change
    with pytest.raises(ValueError, match=message):
        ops.topk(corpus, Queries(**given), 3)


@pytest.mark.parametrize("megabytes", [8, 64])
@pytest.mark.parametrize("k", [10, 1_000])
def test_temporary_memory_stays_within_the_budget(megabytes, k):
    """On NumPy, whose every buffer is traced; NumKong is given the same sizes."""
    rng = np.random.default_rng(16)
    n, d, q = 60_000, 64, 300
    x_nd = rng.integers(-127, 128, (n, d)).astype(np.int8)
    corpus = Corpus(((cases.with_index(Segment(x_nd, cases.some_keys(rng, n))), None),))
    groups = [Bitmap(rng.random(n) < 0.3) for _ in range(30)]
    queries = some_queries(rng, q, d, groups)
    made = Ops(threads=2, memory_bytes=megabytes << 20, costs=Costs())
    for plan in ("scan", "gather"):
        tracemalloc.start()
        got = made.topk(corpus, queries, k, plan=plan)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        answer = got.row_qk.nbytes + got.points_qk.nbytes
        assert peak - 2 * answer <= megabytes << 20


def test_calls_at_the_same_time(ops):
    rng = np.random.default_rng(17)
    corpus = a_corpus(rng, (4_000,), 16)
    blocks = [some_queries(rng, 12, 16) for _ in range(6)]
    expected = [ops.topk(corpus, queries, 30).row_qk for queries in blocks]
    got = [None] * len(blocks)

    def ask(i):
        got[i] = ops.topk(corpus, blocks[i], 30).row_qk

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(blocks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all((one == other).all() for one, other in zip(got, expected, strict=True))


def test_an_error_in_a_worker_reaches_the_caller(make):
    class Broken(Ops):
        def tiles(self, first_qd, x_nd, spans, scratch):
            raise MemoryError("no more")

    rng = np.random.default_rng(18)
    corpus = a_corpus(rng, (3_000,), 4)
    with pytest.raises(MemoryError, match="no more"):
        Broken(threads=3, costs=Costs()).topk(corpus, some_queries(rng, 2, 4), 3, plan="scan")


def test_blas_is_left_as_it_was():
    threadpoolctl = pytest.importorskip("threadpoolctl")

    known = {pool["filepath"] for pool in _controller().info()}  # SciPy may bring another later

    def threads():
        return [
            pool["num_threads"]
            for pool in threadpoolctl.threadpool_info()
            if pool["user_api"] == "blas" and pool["filepath"] in known
        ]

    before = threads()
    assert before
    with single_threaded_blas():
        with single_threaded_blas():
            assert set(threads()) <= {1}
        assert set(threads()) <= {1}
    assert threads() == before


def subclasses():
    from matchwright.kernels.cupy_ops import CupyOps
    from matchwright.kernels.numkong_ops import NumkongOps

    return [NumkongOps, CupyOps]


@pytest.mark.parametrize("one", subclasses(), ids=lambda one: one.name)
def test_backends_do_not_drift_from_the_base(one):
    """What a backend overrides has the base's names, parameters and defaults, and nothing new."""
    for name, member in vars(one).items():
        if name.startswith("_") or not inspect.isfunction(member):
            continue
        base = getattr(Ops, name)
        assert inspect.signature(member) == inspect.signature(base), name
    for name, parameter in inspect.signature(Ops.__init__).parameters.items():
        own = inspect.signature(one.__init__).parameters[name]
        assert (own.default, own.kind) == (parameter.default, parameter.kind), name


def test_get_ops():
    assert get_ops("numpy").name == "numpy"
    assert get_ops("cpu").name in BACKENDS
    with pytest.raises(ValueError, match="unknown device"):
        get_ops("abacus")


def test_numpy_alone_is_enough():
    """Without NumKong, threadpoolctl, CuPy and Polars the kernels import, and are exact."""
    program = """
import sys
for name in ("numkong", "threadpoolctl", "cupy", "polars", "faiss"):
    sys.modules[name] = None
import numpy as np
from matchwright.kernels.ops import get_ops
from matchwright.kernels.types import Corpus, Queries, Segment
x_nd = np.arange(-100, 100, dtype=np.int8).reshape(200, 1)
corpus = Corpus(((Segment(x_nd, np.arange(200, dtype=np.uint64)), None),))
queries = Queries(np.array([[-16_000]], np.int16), np.array([1], np.uint64))
ops = get_ops("cpu")
print(ops.name, ops.topk(corpus, queries, 2).row_qk.tolist())
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.stdout == "numpy [[0, 1]]\n", done.stderr


def test_numkong_that_is_not_exact_is_not_used(monkeypatch):
    pytest.importorskip("numkong")
    from matchwright.kernels import numkong_ops

    def wrong(self, first_qd, x_nd, spans, scratch):
        for begin, end in spans:
            yield np.zeros((end - begin, x_nd.shape[0]), np.int32)

    monkeypatch.setattr(numkong_ops.NumkongOps, "tiles", wrong)
    with pytest.raises(numkong_ops.Inexact, match="inexact int8 products"):
        numkong_ops.NumkongOps()
    assert get_ops("cpu").name == "numpy"


def test_numkong_passes_on_what_it_cannot_take():
    pytest.importorskip("numkong")
    from matchwright.kernels.access import Scratch
    from matchwright.kernels.numkong_ops import NumkongOps

    ops, rng = NumkongOps(), np.random.default_rng(19)
    x_nd = rng.integers(-127, 128, (30, 16)).astype(np.int8)
    first = rng.integers(-127, 128, (3, 8)).astype(np.int8)
    gaps = x_nd[:, ::2]
    tile = next(iter(ops.tiles(first, gaps, [(0, 3)], Scratch())))
    assert tile.dtype == np.float32
    assert (tile == first.astype(int) @ gaps.T.astype(int)).all()
    dots = ops.pair_dots(first, gaps[:3])
    assert (dots == (first.astype(int) * gaps[:3]).sum(axis=1)).all()
