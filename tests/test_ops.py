"""What ``Ops`` refuses, its budgets, threads and backends."""

from __future__ import annotations

import inspect
import subprocess
import sys
import threading
import tracemalloc

import kernel_cases as cases
import numpy as np
import pytest
import topk_cases
from topk_cases import BACKENDS, a_corpus, good, some_queries

from matchwright.kernels.ops import Ops, get_ops
from matchwright.kernels.planner import Costs
from matchwright.kernels.types import Bitmap, Corpus, Queries, Segment
from matchwright.kernels.workers import _controller, single_threaded_blas

backend = topk_cases.backend
make = topk_cases.make
ops = topk_cases.ops


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
