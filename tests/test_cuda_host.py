"""The CUDA sources compiled as C++ for the host: device functions one by one, whole kernels on a
small emulation of CUDA's execution model (``simt.hpp``), both against NumPy, bit for bit."""

from __future__ import annotations

import ctypes
from dataclasses import replace
from functools import partial
from typing import Any

import cuda_host_cases
import numpy as np
import pytest
from cuda_host_cases import GXX, a_block, build, copied, sieved, some_entries, some_keys

from matchwright.kernels import device as kernel_device
from matchwright.kernels import order
from matchwright.kernels.compile import limit
from matchwright.kernels.device import NOTHING, Tile
from matchwright.kernels.numpy_device import NumpyDevice, entry_keys, pack_bits, predecessor
from matchwright.kernels.ops import Ops

pytestmark = pytest.mark.skipif(GXX is None, reason="needs g++ to compile CUDA sources as C++")

FUNCTIONS = r"""
#include <cmath>
#include "order.cuh"
extern "C" {
void norm_of_n(int n, const i32* square, i32* out) {
    for (int i = 0; i < n; ++i) out[i] = norm_of(square[i]);
}
void dot4_n(int n, const i32* a, const i32* b, const i32* sum, i32* out) {
    for (int i = 0; i < n; ++i) out[i] = dot4(a[i], b[i], sum[i]);
}
void points_of_n(int n, const i32* first, const i32* second, i32* out) {
    for (int i = 0; i < n; ++i) out[i] = points_of(first[i], second[i]);
}
void may_reach_n(int n, const i32* first, const i32* low, const i32* norm, const i32* bound,
                 i32* out) {
    for (int i = 0; i < n; ++i) out[i] = may_reach(first[i], low[i], norm[i], bound[i]);
}
void mix32_n(int n, const u64* key_q, const u64* key_n, u32* out) {
    for (int i = 0; i < n; ++i) out[i] = mix32(key_q[i], key_n[i]);
}
void entry_of_n(int n, const i32* points, const u64* key_q, const u64* key_n, Entry* out) {
    for (int i = 0; i < n; ++i) out[i] = entry_of(points[i], key_q[i], key_n[i], i);
}
void before_n(int n, const Entry* a, const Entry* b, i32* out) {
    for (int i = 0; i < n; ++i) out[i] = before(a[i], b[i]);
}
void predecessor_n(int n, const Entry* a, Entry* out) {
    for (int i = 0; i < n; ++i) out[i] = predecessor(a[i]);
}
void nothing_n(int n, Entry* out) {
    for (int i = 0; i < n; ++i) out[i] = nothing();
}
}
"""

host = cuda_host_cases.host


@pytest.fixture(scope="module")
def functions(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return build(tmp_path_factory.mktemp("functions"), "functions", FUNCTIONS)


def call(function: Any, *inputs: np.ndarray, like: np.ndarray) -> np.ndarray:
    """Run one of FUNCTIONS over arrays; the result has the shape and dtype of ``like``."""
    held = [np.ascontiguousarray(one) for one in inputs]
    out = np.empty_like(like)
    pointers = (ctypes.c_void_p(one.ctypes.data) for one in (*held, out))
    function(ctypes.c_int(len(like)), *pointers)
    return out


def some_int32(rng: np.random.Generator, n: int, most: int) -> np.ndarray:
    """Uniform and small values and both ends."""
    ends = np.array([-most, most, 0, 1, -1], np.int32)
    kinds = rng.integers(-most, most + 1, n), rng.integers(-3, 4, n), rng.choice(ends, n)
    return np.choose(rng.integers(0, 3, n), kinds).astype(np.int32)


# ── Device functions ──────────────────────────────────────────────────────────────────────────


def test_norms_are_rounded_up(functions, count):
    step = count(reduced=97, full=1)
    square = np.unique(np.r_[np.arange(0, 127 * 127 * 1040 + 1, step), np.arange(4_097) ** 2])
    square = square[square <= 127 * 127 * 1_040].astype(np.int32)
    got = call(functions.norm_of_n, square, like=square).astype(np.int64)
    assert (got * got >= square).all()
    assert ((got == 0) | ((got - 1) ** 2 < square)).all()


def test_four_products(functions, count):
    n = count(reduced=5_000, full=1_000_000)
    rng = np.random.default_rng(1)
    a, b = rng.choice(np.array([-128, -127, -1, 0, 1, 127], np.int8), (2, n, 4))
    total = some_int32(rng, n, 2**24)
    got = call(functions.dot4_n, a.view(np.int32)[:, 0], b.view(np.int32)[:, 0], total, like=total)
    products = (a.astype(np.int64) * b.astype(np.int64)).sum(axis=1)
    np.testing.assert_array_equal(got, total + products)


def test_points_from_limbs(functions, count):
    n = count(reduced=5_000, full=1_000_000)
    rng = np.random.default_rng(2)
    first, second = some_int32(rng, n, 127 * 127 * 1_040), some_int32(rng, n, 2**17)
    got = call(functions.points_of_n, first, second, like=first)
    wide = 128 * first.astype(np.int64) + second
    fits = np.abs(wide) < 2**31
    np.testing.assert_array_equal(got[fits], wide[fits])


def test_the_sieve_is_exact_arithmetic(functions, count):
    n = count(reduced=5_000, full=1_000_000)
    rng = np.random.default_rng(3)
    first = some_int32(rng, n, 127 * 127 * 1_040)
    low, norm = np.abs(some_int32(rng, n, 2_064)), np.abs(some_int32(rng, n, 4_096))
    wide = 128 * first.astype(np.int64) + low.astype(np.int64) * norm
    edge = np.clip(wide + rng.integers(-1, 2, n), -(2**31), 2**31 - 1)
    bound = np.where(rng.random(n) < 0.7, edge, -(2**31)).astype(np.int32)
    got = call(functions.may_reach_n, first, low, norm, bound, like=bound)
    np.testing.assert_array_equal(got.astype(bool), wide >= bound)


def test_the_mix_is_the_reference_s(functions, count):
    n = count(reduced=20_000, full=2_000_000)
    rng = np.random.default_rng(4)
    key_q, key_n = some_keys(rng, n), some_keys(rng, n)
    got = call(functions.mix32_n, key_q, key_n, like=np.empty(n, np.uint32))
    np.testing.assert_array_equal(got, order.mix32(key_q, key_n))


def test_entries_order_as_the_reference_does(functions, count):
    n = count(reduced=2_000, full=200_000)
    rng = np.random.default_rng(5)
    points, key_n = some_int32(rng, n, 3), np.unique(some_keys(rng, n))
    points = points[: key_n.size]
    key_q = np.full(key_n.size, 0xDEADBEEF12345678, np.uint64)
    like = np.empty((key_n.size, 4), np.int32)
    entries = call(functions.entry_of_n, points, key_q, key_n, like=like)
    best = order.best(points, order.tie64(key_q, key_n), key_n.size)
    ranked = np.ascontiguousarray(entries[best])
    assert call(functions.before_n, ranked[:-1], ranked[1:], like=points[1:]).all()
    assert not call(functions.before_n, ranked[1:], ranked[:-1], like=points[1:]).any()
    assert not call(functions.before_n, ranked, ranked, like=points).any()


def test_the_predecessor_is_the_next_key_below(functions, count):
    entries = some_entries(np.random.default_rng(6), count(reduced=1_000, full=100_000))
    entries[:3] = [[5, 0, 0, 1], [5, 1, 0, 1], [5, 0, 1, 1]]
    got = entry_keys(call(functions.predecessor_n, entries, like=entries))
    emulated = entry_keys(np.stack([predecessor(entry) for entry in entries]))
    for key, below, same in zip(entry_keys(entries), got, emulated, strict=True):
        numbers = [(p << 64) + (mix << 32) + low for p, mix, low in (key, below)]
        assert numbers[0] - numbers[1] == 1
        assert below == same


def test_nothing_is_below_everything(functions):
    got = call(functions.nothing_n, like=np.empty((1, 4), np.int32))
    assert tuple(got[0]) == NOTHING


# ── Kernels, each beside what NumPy says it does ──────────────────────────────────────────────


@pytest.mark.parametrize(("n", "d"), [(0, 16), (1, 16), (37, 48), (199, 1_040)])
def test_norms(host, n, d):
    x_nd = np.random.default_rng(n).integers(-127, 128, (n, d), dtype=np.int8)
    np.testing.assert_array_equal(host.norms(x_nd), NumpyDevice().norms(x_nd))


@pytest.mark.parametrize(
    ("n", "offsets"), [(1, (0, 16)), (37, (0, 1, 1, 40, 48)), (199, (0, 500, 1_040))]
)
def test_points_by_facet(host, n, offsets):
    rng = np.random.default_rng(n)
    x_nd = rng.choice(np.array([-127, 127, 3], np.int8), (n, offsets[-1]))
    q_d = rng.choice(np.array([-16_255, 16_255, 64], np.int16), offsets[-1])
    offset_b = np.array(offsets, np.int32)
    got = host.points(x_nd, q_d, offset_b)
    np.testing.assert_array_equal(got, NumpyDevice().points(x_nd, q_d, offset_b))
    np.testing.assert_array_equal(got.sum(axis=1), Ops().points(x_nd, q_d))


@pytest.mark.parametrize(
    ("n", "begin", "end"), [(1, 0, 1), (37, 32, 37), (199, 0, 199), (640, 64, 300)]
)
def test_threshold(host, n, begin, end):
    rng = np.random.default_rng(n)
    block = a_block(rng, q=5, k=10, capacity=n + 1, d=32)
    x_nd = rng.integers(-3, 4, (n, 32), dtype=np.int8)
    bits = pack_bits(list(rng.random((3, n)) < np.array([[0.02], [0.5], [1.0]])))
    rows = NumpyDevice().segment(x_nd, some_keys(rng, n))
    tile = Tile(np.empty((5, n + 7), np.float32), rows, 1_000, bits)
    host.product(block.high_qd, x_nd, tile.first_qn[:, :n])
    active = np.array([4, 0, 2, 3], np.int32)
    # One bound is the key of an eligible pair: that pair itself must not pass.
    everything = replace(copied(block), bound_q4=np.tile(np.array(NOTHING, np.int32), (5, 1)))
    NumpyDevice().threshold(everything, tile, active, begin, end)
    if everything.count_q[2]:
        block.bound_q4[2] = everything.found_qc4[2, everything.count_q[2] // 2]
    expected = copied(block)
    host.threshold(block, tile, active, begin, end)
    NumpyDevice().threshold(expected, tile, active, begin, end)
    np.testing.assert_array_equal(block.count_q, expected.count_q)
    assert block.count_q[1] == 0
    for q, found in enumerate(block.count_q):
        got, want = (sorted(map(tuple, b.found_qc4[q, :found])) for b in (block, expected))
        assert got == want


def test_threshold_counts_on_when_the_buffer_is_full(host):
    rng = np.random.default_rng(9)
    block = a_block(rng, q=1, k=4, capacity=8, d=16)
    block.bound_q4[:] = NOTHING
    rows = NumpyDevice().segment(np.ones((100, 16), np.int8), some_keys(rng, 100))
    bits = np.tile(pack_bits([np.ones(100, bool)]), (3, 1))
    guarded = np.concatenate([block.found_qc4, np.full((1, 8, 4), 77, np.int32)], axis=1)
    block = replace(block, found_qc4=guarded[:, :8])
    tile = Tile(np.zeros((1, 100), np.float32), rows, 0, bits)
    host.threshold(block, tile, np.zeros(1, np.int32), 0, 100)
    assert block.count_q[0] == 100
    assert (guarded[:, 8:] == 77).all()


@pytest.mark.parametrize("k", [1, 37, 1_000])
@pytest.mark.parametrize("count_of", [0, 1, 199, 1_048, 1_049, 3_000, 3_001])
def test_select(host, k, count_of):
    rng = np.random.default_rng(count_of)
    block = a_block(rng, q=3, k=k, capacity=3_000, d=16)
    for q, have in enumerate((0, k // 2, k)):
        top = np.unique(some_entries(rng, have), axis=0)
        ranked = sorted(map(tuple, top), key=lambda e: entry_keys(np.array([e], np.int32))[0])
        block.top_qk4[q, : len(top)] = np.array(ranked[::-1], np.int32).reshape(-1, 4)
        block.have_q[q] = len(top)
        block.found_qc4[q] = some_entries(rng, 3_000)
        block.found_qc4[q, :, 1] = rng.permutation(3_000) + 10
    block.count_q[:] = count_of
    active = np.array([2, 0, 1], np.int32)
    expected = copied(block)
    host.select(block, active)
    NumpyDevice().select(expected, active)
    np.testing.assert_array_equal(block.have_q, expected.have_q)
    np.testing.assert_array_equal(block.bound_q4[:, :3], expected.bound_q4[:, :3])
    for q, have in enumerate(block.have_q):
        np.testing.assert_array_equal(block.top_qk4[q, :have, :3], expected.top_qk4[q, :have, :3])


@pytest.fixture(params=["sieve", "few", "wide"])
def form(request, host, monkeypatch):
    """The sieve in its three forms; the one for many queries gets few as well."""
    monkeypatch.setattr(host, "few", request.param == "few")
    if request.param == "wide":
        monkeypatch.setattr(host, "sieve", partial(wide_sieve, host))
        monkeypatch.setattr(kernel_device, "_WIDE_BLOCKS", 1)  # so that blocks have many tiles
    return request.param


def wide_sieve(device, block, tile, active_a, begin, end):
    device._wide(block, tile, active_a, begin, end, tile.rows.x_nd.shape[1])


@pytest.mark.parametrize(
    ("q", "n", "d", "begin", "end"),
    [
        *((1, 1, 16, 0, 1), (5, 37, 48, 32, 37), (10, 65, 64, 0, 65), (17, 300, 1_040, 0, 300)),
        *((37, 640, 144, 64, 411), (65, 130, 16, 0, 130), (130, 199, 80, 0, 199)),
    ],
)
def test_sieve(host, form, q, n, d, begin, end):
    if form == "wide" and d > limit("WIDE_WIDTH_MAX"):
        pytest.skip("wider than what the sieve on warpgroups is asked")
    block, tile = sieved(q, n, d, capacity=n + 1)
    active = np.random.default_rng(q).permutation(q)[: max(1, q - 1)].astype(np.int32)
    expected = copied(block)
    host.launches.clear()
    host.sieve(block, tile, active, begin, end)
    size = next((size for size in (8, 16, 32, 64) if form == "few" and len(active) <= size), None)
    many = "sieve_wide" if form == "wide" else "sieve"
    assert host.launches == [many if size is None else f"few_{size}"]
    NumpyDevice().sieve(expected, tile, active, begin, end)
    np.testing.assert_array_equal(block.count_q, expected.count_q)
    assert n == 1 or expected.count_q.any()
    for i, many in enumerate(expected.count_q):
        got, want = (sorted(map(tuple, b.found_qc4[i, :many])) for b in (block, expected))
        assert got == want


def test_sieve_counts_on_when_the_buffer_is_full(host, form):
    block, tile = sieved(q=1, n=300, d=32, capacity=40)
    block.group_q[:] = 2  # whose bits are all set
    guarded = np.full((1, 48, 4), 77, np.int32)
    block = replace(block, found_qc4=guarded[:, :40])
    host.sieve(block, tile, np.zeros(1, np.int32), 0, 300)
    assert block.count_q.tolist() == [300]
    assert np.unique(guarded[0, :40, 3]).size == 40
    assert (guarded[0, 40:] == 77).all()


@pytest.mark.parametrize("row", [0, 40, 127, 128])
def test_the_second_limb_alone_can_reach_the_bound(host, form, row):
    block, tile = sieved(q=1, n=150, d=16, capacity=256)
    x_nd = np.zeros((150, 16), np.int8)
    x_nd[row] = 127  # the only row of its tile that has a norm
    tile = replace(tile, rows=NumpyDevice().segment(x_nd, some_keys(np.random.default_rng(0), 150)))
    low_qd = np.full((1, 16), 63, np.int8)
    block = replace(block, high_qd=np.zeros((1, 16), np.int8), low_qd=low_qd)
    block = replace(block, low_norm_q=NumpyDevice().norms(low_qd))
    block.group_q[:] = 2
    block.bound_q4[0] = (63 * 127 * 16 - 1, 0, 0, -1)
    host.sieve(block, tile, np.zeros(1, np.int32), 0, 150)
    assert block.count_q.tolist() == [1]
    assert block.found_qc4[0, 0, 0] == 63 * 127 * 16


def test_a_tile_without_an_eligible_row_is_left_out(host, form):
    block, tile = sieved(q=3, n=256, d=16, capacity=256)
    tile = replace(tile, bits_gw=np.zeros_like(tile.bits_gw))
    block.bound_q4[:] = NOTHING
    host.sieve(block, tile, np.arange(3, dtype=np.int32), 0, 256)
    assert not block.count_q.any()


def test_a_strip_is_read_when_anybody_may_find_something(host, form):
    """Of 40 queries only the first eight have eligible rows; lanes look at two queries each."""
    block, tile = sieved(q=40, n=128, d=16, capacity=256)
    bits = np.zeros_like(tile.bits_gw)
    bits[2] = 0xFFFFFFFF
    tile = replace(tile, bits_gw=bits)
    block.group_q[:] = np.where(np.arange(40) < 8, 2, 0)
    block.bound_q4[:] = NOTHING
    host.sieve(block, tile, np.arange(40, dtype=np.int32), 0, 128)
    assert block.count_q.tolist() == [128] * 8 + [0] * 32


def test_a_thread_that_waits_for_ever_is_reported(tmp_path):
    source = """
#include "simt.hpp"
static void stuck() { if (threadIdx.x == 0) __syncthreads(); }
extern "C" int run_stuck() { return simt::launch(&stuck, 1, 1, 64, 0, nullptr); }
"""
    assert build(tmp_path, "stuck", source).run_stuck() == 1
