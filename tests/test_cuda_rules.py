"""Rules on the device: programs, their evaluation compiled as C++ for the host, the kernels on the
emulated execution model, and whole searches under rules; all beside the row-wise reference."""

from __future__ import annotations

import ctypes
from dataclasses import replace

import cuda_host_cases
import kernel_cases as cases
import numpy as np
import pytest
from cuda_host_cases import GXX, build, copied, sieved
from cupy_cases import NO_DEVICE, a_corpus

from matchwright.kernels import cuda_scan, cuda_search, rules
from matchwright.kernels.cuda_device import CudaDevice
from matchwright.kernels.cuda_gates import RuleBits, RuleSurvivors
from matchwright.kernels.cupy_ops import CupyOps
from matchwright.kernels.device import NOTHING, DeviceColumns, LaunchRefused, RowRuns, TileRules
from matchwright.kernels.device_planner import FORCED, DeviceCosts
from matchwright.kernels.numpy_device import NumpyDevice, pack_bits
from matchwright.kernels.ops import Ops
from matchwright.kernels.resident import Resident
from matchwright.kernels.rule_program import compile_program
from matchwright.kernels.types import (
    NO_LIMIT,
    UNKNOWN,
    Bitmap,
    Corpus,
    HasAll,
    HoursOverlap,
    InRange,
    KeyIn,
    OneOf,
    Queries,
    Segment,
    SetColumn,
)

host = cuda_host_cases.host
needs_gxx = pytest.mark.skipif(GXX is None, reason="needs g++ to compile CUDA sources as C++")
ON_DEVICE = (pytest.mark.skipif(NO_DEVICE is not None, reason=NO_DEVICE or ""), pytest.mark.gpu)

JUDGE = r"""
#include <cmath>
#include "rules.cuh"
extern "C" void judge_n(int n, const Rule* rules, int begin, int end, const u64* pool,
                        const u64* columns, const u64* keys, u32* out) {
    for (int i = 0; i < n; ++i) out[i] = judge(rules, begin, end, pool, columns, i, keys + i);
}
"""


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    """(program, segment, group) -> 0 fails, 1 passes, 2 passes on an unknown value."""
    library = build(tmp_path_factory.mktemp("judge"), "judge", JUDGE)

    def call(program, segment, g):
        columns = on_host(segment)
        table = NumpyDevice().column_table(program, columns)
        out = np.full(segment.n, 9, np.uint32)
        arrays = (program.rule_m8, program.pool, table, segment.key_n, out)
        rule_m8, pool, table_at, keys, out_at = (ctypes.c_void_p(a.ctypes.data) for a in arrays)
        span = (int(program.start_g[g]), int(program.start_g[g + 1]))
        library.judge_n(segment.n, rule_m8, *span, pool, table_at, keys, out_at)
        return out

    return call


def on_host(segment):
    """Columns as a device would hold them."""
    sets = {
        name: (column.start_n, column.value, column.known_n.view(np.uint8))
        for name, column in segment.sets.items()
    }
    return DeviceColumns(segment.key_n, dict(segment.scalars), sets)


def expected(group, segment):
    passed, unsure = rules.eligible(group, rules.Rows(segment))
    return passed.astype(np.uint32) + unsure


HOURS = ("hours_start", "hours_end")


def wild(rng, segment):
    """The same segment with scalars anywhere in int32 in a third of the rows; hours stay hours."""
    ends = np.array([UNKNOWN, UNKNOWN + 1, -1, 0, 1, 1_439, 1_440, NO_LIMIT - 1, NO_LIMIT])
    scalars = {}
    for name, column in segment.scalars.items():
        anywhere = rng.integers(UNKNOWN, NO_LIMIT, segment.n)
        other = np.where(rng.random(segment.n) < 0.5, rng.choice(ends, segment.n), anywhere)
        chance = 0.0 if name in HOURS else 0.3
        scalars[name] = np.where(rng.random(segment.n) < chance, other, column).astype(np.int32)
    return replace(segment, scalars=scalars, memo={})


# ── Programs, and one row at a time ───────────────────────────────────────────────────────────


@needs_gxx
def test_random_rules_are_the_reference_s(judge, count):
    rng = np.random.default_rng(1)
    seen = set()
    for _ in range(count(reduced=150, full=20_000)):
        n = int(rng.integers(1, 60))
        segment = wild(rng, cases.a_segment(rng, np.zeros((n, 1)), indexed=False))
        groups = [cases.some_rules(rng, segment.key_n, 4) for _ in range(4)]
        program = compile_program(groups)
        for g, group in enumerate(groups):
            got = judge(program, segment, g)
            np.testing.assert_array_equal(got, expected(group, segment), err_msg=str(group))
            seen |= {(type(rule), value) for rule in group for value in got.tolist()}
    assert len(seen) >= 23  # 8 kinds of predicate, 3 outcomes; of keys nothing is unknown


@needs_gxx
@pytest.mark.parametrize(
    "rule",
    [
        InRange("v", -(2**40), 2**40, "V"),
        InRange("v", 2**40, 2**41, "V"),
        InRange("v", -(2**41), -(2**40), "V", unknown_passes=True),
        InRange("v", 5, 4, "V"),
        InRange("v", UNKNOWN, NO_LIMIT, "V", unknown_passes=True),
        OneOf("v", (), "V", negate=True),
        OneOf("v", (UNKNOWN, -1, 7, 7), "V", unknown_passes=True),
        OneOf("v", (2**33 + 7, -(2**33) + 7), "V"),
        HasAll("s", (), "S"),
        HasAll("s", (2**64 - 1, 1, 1), "S", unknown_passes=True),
        KeyIn((), "K"),
        KeyIn((2**64 - 1, 3), "K", negate=True),
    ],
)
def test_the_ends_of_ranges(judge, rule):
    value = np.array([UNKNOWN, UNKNOWN + 1, -1, 0, 7, 2**31 - 1], np.int32)
    top = 2**64 - 1
    sets = SetColumn(
        np.array([0, 0, 0, 2, 3, 3, 5]), np.array([1, top, top, 0, 1], np.uint64), value != 0
    )
    keys = np.array([1, 2, 3, 4, 5, top], np.uint64)
    segment = Segment(np.zeros((6, 1), np.int8), keys, {"v": value}, {"s": sets})
    got = judge(compile_program([(rule,)]), segment, 0)
    np.testing.assert_array_equal(got, expected((rule,), segment))


@needs_gxx
def test_every_pair_of_windows(judge, count):
    """Start and end of both windows, crossing midnight or not, in zones east and west."""
    step = count(reduced=240, full=60)
    day = np.arange(0, 1_440 + step, step)
    start, end, zone = (a.reshape(-1) for a in np.meshgrid(day, day, [-1, 0, 1, 2, 3]))
    n = start.size
    scalars = {
        "hours_start": start.astype(np.int32),
        "hours_end": end.astype(np.int32),
        "zone": zone.astype(np.int32),
        "overlap_minutes": np.resize([0, 60, UNKNOWN, 480], n).astype(np.int32),
    }
    segment = Segment(np.zeros((n, 1), np.int8), np.arange(n, dtype=np.uint64), scalars)
    for ours in day:
        for asked in (None, 0, 120):
            rule = HoursOverlap((0, 345, -600), int(ours), 600, asked, "H", True)
            got = judge(compile_program([(rule,)]), segment, 0)
            np.testing.assert_array_equal(got, expected((rule,), segment))


def test_equal_values_share_a_place_and_columns_a_slot():
    asked = tuple(range(50))
    groups = [
        (HasAll("s", asked, "S"), OneOf("v", (3, 1), "V")),
        (HasAll("s", asked[::-1], "S"), InRange("v", 1, 2, "V")),
        (),
    ]
    program = compile_program(groups)
    assert program.start_g.tolist() == [0, 2, 4, 4]
    assert program.slots == (("set", "s"), ("scalar", "v"))
    assert program.pool.tolist() == [*asked, 1, 3]
    assert compile_program([]).pool.size == 1


def test_a_column_that_is_not_there_is_named():
    segment = Segment(
        np.zeros((1, 1), np.int8), np.zeros(1, np.uint64), {"v": np.zeros(1, np.int32)}
    )
    compile_program([(InRange("v", 0, 1, "V"),)]).check(segment)
    with pytest.raises(KeyError, match="no column 'w' in this segment; it has: v"):
        compile_program([(InRange("w", 0, 1, "V"),)]).check(segment)
    closed = HoursOverlap((0,), None, 600, 60, "H")  # reads no column
    compile_program([(closed,)]).check(segment)
    with pytest.raises(KeyError, match="overlap_minutes"):
        compile_program([(replace(closed, required_minutes=None),)]).check(segment)


# ── The kernels ───────────────────────────────────────────────────────────────────────────────


@pytest.fixture(
    params=[
        pytest.param(False, id="emulated"),
        pytest.param(True, id="host", marks=needs_gxx),
        pytest.param(None, id="cuda", marks=ON_DEVICE),
    ]
)
def device(request):
    if request.param is None:
        return CudaDevice()
    return request.getfixturevalue("host") if request.param else NumpyDevice(tensor=True)


@pytest.mark.parametrize(("n", "begin", "end"), [(1, 0, 1), (70, 0, 70), (600, 64, 333), (9, 0, 0)])
@pytest.mark.parametrize("living", [True, False])
def test_bits_and_counts(device, n, begin, end, living):
    rng = np.random.default_rng(n)
    segment = cases.a_segment(rng, np.zeros((n, 1)), indexed=False)
    groups = [(), *(cases.some_rules(rng, segment.key_n, 3) for _ in range(5))]
    groups.append((KeyIn(tuple(segment.key_n[::3].tolist()), "K"),))
    program = device.program(compile_program(groups))
    columns = Resident(device, 1 << 20).columns([segment], program.program)[0]
    alive = None if living else rng.random(n) < 0.7
    words = None if living else device.upload(pack_bits([alive])[0])
    counts = [device.upload(np.full(7, 5, np.uint64)) for _ in range(2)]
    where = columns, device.column_table(program.program, columns), words
    rows = RowRuns.all(begin, end)
    bits = device.download(device.rule_bits(program, *where, rows, *counts))
    flags = np.unpackbits(bits.view(np.uint8), axis=1, bitorder="little")
    assert bits.shape == (7, -(-(end - begin) // 32))
    for g, group in enumerate(groups):
        passed, unsure = rules.eligible(group, rules.Rows(segment, np.arange(begin, end)))
        there = np.ones(n, bool) if alive is None else alive
        passed, unsure = passed & there[begin:end], unsure & there[begin:end]
        np.testing.assert_array_equal(flags[g, : end - begin], passed)
        assert not flags[g, end - begin :].any()
        assert int(device.download(counts[0])[g]) == 5 + passed.sum()
        assert int(device.download(counts[1])[g]) == 5 + unsure.sum()


@pytest.mark.parametrize(("run", "step"), [(1, 1), (1, 3), (2, 5), (4, 4), (8, 9), (40, 40)])
def test_samples_are_runs_of_words(device, run, step):
    """What a sample counts is what its rows count, the last run cut short or not."""
    rng = np.random.default_rng(step)
    segment = cases.a_segment(rng, np.zeros((1_130, 1)), indexed=False)
    groups = [cases.some_rules(rng, segment.key_n, 2) for _ in range(40)]  # two turns of groups
    columns = Resident(device, 1 << 20).columns([segment], compile_program(groups))
    alive = rng.random(segment.n) < 0.7
    living = [device.upload(pack_bits([alive])[0])]
    program = device.program(compile_program(groups))
    gate = RuleBits(device, program, columns, living, np.zeros(0, np.int32))
    gate.sample(0, run, step)
    rows = RowRuns(0, segment.n, run, step).rows
    assert (np.diff(rows) > 0).all()
    assert set((rows // 32 % step).tolist()) <= set(range(run))
    assert (rows.size == segment.n) == (run == step)
    for g, group in enumerate(groups):
        passed, unsure = rules.eligible(group, rules.Rows(segment, rows))
        assert gate.counts()[0][g] == (passed & alive[rows]).sum()
        assert gate.counts()[1][g] == (unsure & alive[rows]).sum()


@needs_gxx
@pytest.mark.parametrize("test", ["sieve", "few", "threshold"])
@pytest.mark.parametrize(
    ("n", "q", "begin", "end"), [(37, 1, 0, 37), (300, 9, 64, 300), (200, 33, 0, 200)]
)
def test_scans_judge_what_is_near_the_bound(host, monkeypatch, test, n, q, begin, end):
    """Rules of every kind, a tile that is not the segment's first, dead rows, few and many near."""
    rng = np.random.default_rng(n)
    monkeypatch.setattr(host, "few", test == "few")
    segment = cases.a_segment(rng, np.zeros((n + 64, 1)), indexed=False)
    groups = [(), *(cases.some_rules(rng, segment.key_n, 2) for _ in range(12))]
    groups.append((KeyIn(tuple(segment.key_n[::3].tolist()), "K"),))
    program = host.program(compile_program(groups))
    table = host.column_table(program.program, on_host(segment))
    rule_q = rng.integers(0, len(groups), q).astype(np.int32)
    asked = TileRules(program, on_host(segment), table, rule_q, 64)
    block, tile = sieved(q, n, 32, capacity=n + 1)
    block.bound_q4[::2] = NOTHING
    rows = replace(tile.rows, key_n=segment.key_n[64:])
    tile = replace(tile, rows=rows, rules=asked)
    if test == "threshold":
        block = replace(block, high_qd=block.high_qd.astype(np.float32))
        tile = replace(tile, first_qn=block.high_qd @ rows.x_nd.astype(np.float32).T)
    expected, active = copied(block), np.arange(q, dtype=np.int32)
    on = (host, NumpyDevice())
    for device, one in zip(on, (block, expected), strict=True):
        run = device.threshold if test == "threshold" else device.sieve
        run(one, tile, active, begin, end)
    np.testing.assert_array_equal(block.count_q, expected.count_q)
    assert expected.count_q.any()
    for i, many in enumerate(expected.count_q):
        got, want = (sorted(map(tuple, b.found_qc4[i, :many])) for b in (block, expected))
        assert got == want
        local = block.found_qc4[i, :many, 3].astype(np.int64) - tile.row0 + 64
        passed, _ = rules.eligible(groups[rule_q[i]], rules.Rows(segment, local))
        assert passed.all()


def test_rules_beyond_the_columns_are_refused(device):
    segment = cases.a_segment(np.random.default_rng(1), np.zeros((64, 1)), indexed=False)
    block, tile = sieved(1, 64, 16, capacity=96)
    program = device.program(compile_program([(InRange("v", 0, 1, "V"),)]))
    asked = TileRules(program, on_host(segment), np.zeros(3, np.uint64), np.zeros(1, np.int32), 32)
    if isinstance(device, NumpyDevice):
        pytest.skip("what NumPy reads it checks by itself")
    with pytest.raises(LaunchRefused, match="rule_rows is 96"):
        device.sieve(block, replace(tile, rules=asked), np.zeros(1, np.int32), 0, 64)


# ── Whole searches ────────────────────────────────────────────────────────────────────────────


def ruled(rng, sizes, d, groups, queries, floor=False, spread=127):
    """A corpus with columns, and queries of which some are under a bitmap."""
    keys, parts, at = cases.some_keys(rng, sum(sizes)), [], 0
    for i, n in enumerate(sizes):
        x_nd = rng.integers(-spread, spread + 1, (n, d))
        segment = cases.a_segment(rng, x_nd, keys[at : at + n], indexed=bool(i % 2))
        parts.append((segment, rng.random(n) < 0.8 if i % 2 == 0 else None))
        at += n
    corpus = Corpus(tuple(parts))
    made = [(), *(cases.some_rules(rng, keys) for _ in range(groups))]
    made.append(Bitmap(rng.random(corpus.n) < 0.4))
    return corpus, Queries(
        q_qd=rng.integers(-16_255, 16_256, (queries, d)).astype(np.int16),
        key_q=rng.integers(0, 2**64, queries, dtype=np.uint64),
        groups=made,
        group_q=rng.integers(0, len(made), queries).astype(np.int32),
        floor_q=rng.integers(-3_000, 3_000, queries) if floor else None,
    )


def assert_same(got, wanted):
    for name in ("row_qk", "points_qk", "returned_q", "eligible_q", "unverified_q"):
        np.testing.assert_array_equal(getattr(got, name), getattr(wanted, name), err_msg=name)


@pytest.mark.parametrize("way", FORCED)
@pytest.mark.parametrize("tensor", [False, True])
def test_every_way_gives_the_reference_s_answer(way, tensor, count):
    rng = np.random.default_rng(5)
    seen = set()
    for _ in range(count(reduced=25, full=1_000)):
        sizes = rng.integers(0, 400, 3).tolist()
        corpus, queries = ruled(
            rng, sizes, int(rng.integers(1, 20)), 3, int(rng.integers(1, 9)),
            rng.random() < 0.3, int(rng.choice([0, 1, 127])),
        )  # fmt: skip
        if not corpus.n:
            continue
        k, counted = int(rng.integers(1, 40)), way != "survivors" and bool(rng.random() < 0.5)
        ops = CupyOps(
            device=NumpyDevice(tensor=tensor),
            device_costs=FORCED[way],
            memory_bytes=int(2 ** rng.uniform(16, 22)),
            verify=False,
        )
        got = ops.topk(corpus, queries, k, count=counted)
        assert_same(got, Ops().topk(corpus, queries, k, count=counted))
        seen |= set(got.telemetry.get("rules", "").split("+"))
    assert way in seen


@needs_gxx
@pytest.mark.parametrize("way", FORCED)
def test_every_way_on_the_kernels_themselves(host, monkeypatch, way, count):
    monkeypatch.setattr(host, "tensor", True)
    rng = np.random.default_rng(6)
    for _ in range(count(reduced=2, full=40)):
        corpus, queries = ruled(rng, (150, 260), 9, 3, 5)
        ops = CupyOps(device=host, device_costs=FORCED[way], memory_bytes=1 << 18, verify=False)
        host.launches.clear()
        got = ops.topk(corpus, queries, 7, count=False)
        assert_same(got, Ops().topk(corpus, queries, 7, count=False))
        assert {"rule_bits", "select_best"} <= set(host.launches)
        assert way in got.telemetry["rules"].split("+")


@needs_gxx
def test_several_ways_on_the_kernels_from_one_program(host, monkeypatch):
    """Some groups of a program alone: their rules are moved, their values stay where they are."""
    monkeypatch.setattr(host, "tensor", True)
    rng = np.random.default_rng(12)
    corpus, queries = ruled(rng, (150, 260), 9, 5, 12)
    ways = ["gather", "survivors", "bits"]

    def choose(costs, loads, rows, k, d, *, count):
        return [ways[g % 3] for g in range(loads.rate.size)]

    monkeypatch.setattr(cuda_search, "choose", choose)
    ops = CupyOps(device=host, memory_bytes=1 << 18, device_costs=DeviceCosts(), verify=False)
    got = ops.topk(corpus, queries, 7, count=False)
    assert got.telemetry["rules"] == "bits+gather+survivors"
    assert_same(got, Ops().topk(corpus, queries, 7, count=False))


@pytest.mark.parametrize("pass_rate", [0.5, 0.05, 0.002])
def test_rows_that_fail_take_no_room(pass_rate):
    """However few rows pass, the buffer holds none that do not, and nothing overflows."""
    rng = np.random.default_rng(7)
    n = 3_000
    value = (rng.random(n) >= pass_rate).astype(np.int32)
    segment = Segment(
        rng.integers(-9, 10, (n, 8)).astype(np.int8), cases.some_keys(rng, n), {"v": value}
    )
    corpus = Corpus(((segment, None),))
    queries = Queries(
        rng.integers(-99, 99, (3, 8)).astype(np.int16),
        np.arange(3, dtype=np.uint64),
        [(InRange("v", 0, 0, "V"),)],
    )
    ops = CupyOps(
        device=NumpyDevice(tensor=True), device_costs=FORCED["survivors"], memory_bytes=40_000,
        verify=False,
    )  # fmt: skip
    got = ops.topk(corpus, queries, 20, count=False)
    assert got.telemetry["rules"] == "survivors"
    assert got.telemetry["overflows"] == 0
    assert got.telemetry["survivors"] <= 3 * min(n * pass_rate * 2, 500)
    assert_same(got, Ops().topk(corpus, queries, 20, count=False))


@pytest.mark.parametrize("way", FORCED)
def test_rows_come_in_tiles(monkeypatch, way):
    """Tiles far smaller than a segment: every way takes all of them, and counts each row once."""
    monkeypatch.setattr(cuda_scan, "_WIDEST_FEW", 64)
    rng = np.random.default_rng(11)
    corpus, queries = ruled(rng, (500, 300), 8, 4, 6)
    ops = CupyOps(device=NumpyDevice(tensor=True), device_costs=FORCED[way], verify=False)
    counted = way != "survivors"
    got = ops.topk(corpus, queries, 9, count=counted)
    assert got.telemetry["tiles"] > 13 or way == "gather"
    assert_same(got, Ops().topk(corpus, queries, 9, count=counted))


def test_counts_come_from_the_device(device):
    rng = np.random.default_rng(8)
    corpus, queries = ruled(rng, (400, 300), 4, 5, 1)
    ops = CupyOps(device=device, verify=False)
    for group in queries.groups:
        assert ops.count(corpus, group) == Ops().count(corpus, group)
    tight = CupyOps(device=device, corpus_bytes=700 * 28 + 64, verify=False)
    for group in queries.groups:  # rows fit, columns do not: the host counts
        assert tight.count(corpus, group) == Ops().count(corpus, group)


def test_columns_that_do_not_fit_leave_rules_to_the_host():
    rng = np.random.default_rng(9)
    corpus, queries = ruled(rng, (400, 300), 16, 5, 4)
    ops = CupyOps(device=NumpyDevice(), corpus_bytes=700 * 28 + 200, verify=False)
    got = ops.topk(corpus, queries, 9)
    assert got.telemetry["rules"] == "host"
    assert_same(got, Ops().topk(corpus, queries, 9))


def test_a_missing_column_is_the_caller_s_error():
    rng = np.random.default_rng(10)
    corpus = a_corpus(rng, (64, 64), 16)
    asked = Queries(
        np.ones((1, 16), np.int16), np.ones(1, np.uint64), [(InRange("other", 0, 1, "V"),)]
    )
    with pytest.raises(KeyError, match="no column 'other'"):
        CupyOps(device=NumpyDevice(), verify=False).topk(corpus, asked, 3)


def test_rules_take_no_part_of_an_unfiltered_scan():
    device, columns = NumpyDevice(), [DeviceColumns(np.zeros(70, np.uint64))]
    program = device.program(compile_program([()]))
    gate = RuleSurvivors(RuleBits(device, program, columns, [None], np.zeros(3, np.int32)))
    assert gate.rules(0, 0) is None
    bits, active = gate.tile(0, 32, 70)
    assert bits.tolist() == [[2**32 - 1, 63]]
    assert active is None
