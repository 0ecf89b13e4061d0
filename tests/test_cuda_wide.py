"""The sieve on warpgroups: what its form adds to the others', on the emulated execution model."""

from __future__ import annotations

import ctypes
from dataclasses import replace

import kernel_cases as cases
import numpy as np
import pytest
from cuda_host_cases import GXX, build, copied, hosted, sieved
from cupy_cases import NO_DEVICE, a_corpus, some_groups, some_queries
from test_cuda_rules import on_host
from test_cupy_ops import assert_same

from matchwright.kernels import device as kernel_device
from matchwright.kernels import rules
from matchwright.kernels.compile import WARPGROUP_ARCH, limit
from matchwright.kernels.cuda_device import CudaDevice
from matchwright.kernels.cupy_ops import CupyOps
from matchwright.kernels.device import NOTHING, DeviceError, TileRules, wide_bytes
from matchwright.kernels.device_planner import FORCED
from matchwright.kernels.numpy_device import NumpyDevice, pack_bits
from matchwright.kernels.ops import Ops
from matchwright.kernels.rule_program import compile_program
from matchwright.kernels.types import InRange, KeyIn

needs_gxx = pytest.mark.skipif(GXX is None, reason="needs g++ to compile CUDA sources as C++")


def no_warpgroups():
    """Why this machine cannot run the kernel; empty when it can."""
    if NO_DEVICE is not None:
        return NO_DEVICE
    arch = CudaDevice().arch
    return "" if arch == WARPGROUP_ARCH else f"needs {WARPGROUP_ARCH}, this is {arch}"


NO_WARPGROUPS = no_warpgroups()
ON_DEVICE = (pytest.mark.skipif(bool(NO_WARPGROUPS), reason=NO_WARPGROUPS), pytest.mark.gpu)


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    device = hosted(tmp_path_factory, ("norms", "rules", "select", "sieve", "sieve_wide"))
    device.tensor, device.few, device.wide = True, False, True
    return device


@pytest.fixture(autouse=True)
def few_blocks(monkeypatch):
    """A block goes through as many tiles as it may."""
    monkeypatch.setattr(kernel_device, "_WIDE_BLOCKS", 1)


def scan(host, block, tile, begin, end):
    """What the kernel found, which must be what NumPy finds; entries by query."""
    active, expected = np.arange(block.count_q.size, dtype=np.int32), copied(block)
    host.launches.clear()
    host._wide(block, tile, active, begin, end, tile.rows.x_nd.shape[1])
    assert set(host.launches) == {"sieve_wide"}
    NumpyDevice().sieve(expected, tile, active, begin, end)
    np.testing.assert_array_equal(block.count_q, expected.count_q)
    found = []
    for q, many in enumerate(expected.count_q):
        got, want = (sorted(map(tuple, b.found_qc4[q, :many])) for b in (block, expected))
        assert got == want
        found.append(got)
    return found


@needs_gxx
@pytest.mark.parametrize(
    ("q", "n", "d", "begin", "end"),
    [(300, 900, 64, 32, 899), (260, 140, 640, 0, 140), (40, 500, 16, 0, 500)],
)
def test_several_blocks_and_tiles(host, q, n, d, begin, end):
    """Blocks of 256 queries and of one, stages of one to ten, ranges that end within a word."""
    block, tile = sieved(q, n, d, capacity=n + 1)
    assert sum(map(len, scan(host, block, tile, begin, end))) > q


@needs_gxx
def test_in_every_order(host):
    """Five stages, two tiles, in each of the emulation's eight orders of threads and of what they
    wait for: no stage is overwritten before its products are done, or read before it is there."""
    for _ in range(8):
        block, tile = sieved(3, 200, 320, capacity=200)
        assert any(scan(host, block, tile, 0, 200))


@needs_gxx
@pytest.mark.parametrize("dead", [(), (0,), (0, 1, 2, 5, 31, 32, 33), (*range(35),), (34,)])
def test_tiles_in_which_nobody_is_eligible_are_left_out(host, dead):
    """More tiles than one word has bits; the next stage of rows may be that of a later tile."""
    n = 35 * 128 - 100
    block, tile = sieved(3, n, 80, capacity=n)
    eligible = np.ones((3, n), bool)
    for one in dead:
        eligible[:, one * 128 : one * 128 + 128] = False
    tile = replace(tile, bits_gw=pack_bits(list(eligible)))
    block.bound_q4[:, 0] = np.sort(block.bound_q4[:, 0])
    found = scan(host, block, tile, 0, n)
    assert any(found) == (len(dead) < 35)


@needs_gxx
@pytest.mark.parametrize("floods", [1, 2])
def test_a_list_that_is_full_is_emptied_and_filled_again(host, floods):
    """Every pair is near: in a tile eight times as many as the list has room for."""
    n = 128 * floods - 28
    block, tile = sieved(257, n, 48, capacity=n)
    tile = replace(tile, bits_gw=pack_bits([np.ones(n, bool)] * 3))
    block.bound_q4[:] = NOTHING
    assert 0 < 256 * 100 % limit("WIDE_LISTED") < limit("WIDE_LISTED") // 2
    found = scan(host, block, tile, 0, n)
    assert [len(one) for one in found] == [n] * 257


@needs_gxx
@pytest.mark.parametrize("near", ["few", "all"])
def test_rules_are_judged_before_listing_and_after(host, near):
    """Few of a lane's rows wait for the list's judge; many are judged at once, and again there."""
    rng = np.random.default_rng(5)
    q, n = 40, 400
    segment = cases.a_segment(rng, np.zeros((n + 64, 1)), indexed=False)
    groups = [(), *(cases.some_rules(rng, segment.key_n, 2) for _ in range(12))]
    groups.append((KeyIn(tuple(segment.key_n[::3].tolist()), "K"),))
    program = host.program(compile_program(groups))
    columns = on_host(segment)
    table = host.column_table(program.program, columns)
    rule_q = rng.integers(0, len(groups), q).astype(np.int32)
    block, tile = sieved(q, n, 32, capacity=n + 1)
    if near == "all":
        block.bound_q4[:] = NOTHING
    rows = replace(tile.rows, key_n=segment.key_n[64:])
    tile = replace(tile, rows=rows, rules=TileRules(program, columns, table, rule_q, 64))
    found = scan(host, block, tile, 0, n)
    assert any(found)
    for g, entries in zip(rule_q, found, strict=True):
        local = np.array([one[3] for one in entries], np.int64) - tile.row0 + 64
        assert rules.eligible(groups[g], rules.Rows(segment, local))[0].all()


@pytest.fixture(
    params=[
        pytest.param("host", marks=needs_gxx),
        pytest.param("cuda", marks=ON_DEVICE),
    ]
)
def device(request):
    if request.param == "cuda":
        return CudaDevice(wide=True)
    return request.getfixturevalue("host")


@pytest.mark.parametrize("way", ["survivors", "bits"])
def test_whole_searches(device, monkeypatch, way):
    """Two segments, dead rows, groups of rules, overflowing buffers: the reference's answers."""
    rng = np.random.default_rng(3)
    corpus = a_corpus(rng, (260, 140), 48)
    groups = [(InRange("rate", low, 90, "RATE"),) for low in (5, 80)]
    queries = some_queries(rng, corpus, 140, 48, groups=groups)
    ops = CupyOps(memory_bytes=16 << 20, device=device, device_costs=FORCED[way], verify=False)
    launched, launch = [], device.launch

    def noted(kernel, *args):
        launched.append(kernel)
        launch(kernel, *args)

    monkeypatch.setattr(device, "launch", noted)
    got = ops.topk(corpus, queries, 20, count=False)
    assert "sieve_wide" in launched
    assert_same(got, Ops().topk(corpus, queries, 20, count=False))


@pytest.mark.gpu
@pytest.mark.skipif(bool(NO_WARPGROUPS), reason=NO_WARPGROUPS)
@pytest.mark.parametrize("k", [1, 100, 1_000])
@pytest.mark.parametrize("d", [1, 64, 100, 384, 640, 641])
@pytest.mark.parametrize("spread", [1, 127])
def test_on_the_chip(d, k, spread):
    """Many tiles and blocks, ties in their thousands, lists that overflow: what only it can do."""
    rng = np.random.default_rng(d + k)
    corpus = a_corpus(rng, (30_011, 517), d, spread)
    queries = some_queries(rng, corpus, 700, d, groups=some_groups(rng, corpus), floor=k == 100)
    got = CupyOps(device=CudaDevice(wide=True), verify=False).topk(corpus, queries, k)
    assert_same(got, Ops().topk(corpus, queries, k))


@needs_gxx
def test_shared_memory_that_is_too_small_is_reported(host):
    block, tile = sieved(3, 128, 64, capacity=128)
    args = kernel_device._sieve_arguments(block, tile, np.arange(3, dtype=np.int32), 0, 128, 64)
    block.bound_q4[:] = NOTHING
    with pytest.raises(DeviceError, match="beyond its shared memory"):
        host.launch("sieve_wide", (1, 1), (*args, np.int32(1)), wide_bytes(64) - 4 * 4_096)


def test_memory_fits_the_chip():
    """227 KB are what a block may have on the chips of this architecture."""
    least, most = wide_bytes(16), wide_bytes(limit("WIDE_WIDTH_MAX"))
    assert least == 256 * 64 + 4 * 128 * 64 + 4 * 4_096 + 1_024
    assert most + 4_112 <= 227 << 10


LATE = r"""
#include "simt.hpp"
#include "tensor.cuh"
static void copies(int* seen) {
    __shared__ signed char line[16];
    alignas(16) signed char there[16] = {1};
    line[0] = 0;
    copy_ahead(line, there, true);
    end_of_stage();
    if (seen[blockIdx.x] != 0) wait_for_stage<0>();
    seen[blockIdx.x] = line[0];
}
extern "C" int run_copies(int* seen) {
    void* arguments[] = {&seen};
    return simt::launch(&copies, 8, 1, 32, 0, arguments);
}
"""


@needs_gxx
def test_a_copy_that_nobody_waits_for_may_come_late(tmp_path):
    """In half of the blocks: so the emulation shows that a wait is missing."""
    run = build(tmp_path, "late", LATE).run_copies
    for waits, seen in ((1, 8), (0, 4)):
        got = np.full(8, waits, np.int32)
        assert run(got.ctypes.data_as(ctypes.c_void_p)) == 0
        assert got.sum() == seen
