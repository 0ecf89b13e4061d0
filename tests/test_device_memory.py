"""Rows on a device: uploaded once and aside, shared by epochs, gone with the last of them; and the
plan that says beforehand what they take."""

from __future__ import annotations

import gc
import threading
import weakref
from dataclasses import replace

import numpy as np
import pytest
from cupy_cases import NO_DEVICE, a_corpus, some_queries
from device_fakes import MEMORY, FailingDevice, LazyDevice

from matchwright.kernels.cuda_device import CudaDevice
from matchwright.kernels.cupy_ops import CupyOps
from matchwright.kernels.device import DeviceError, DeviceSegment
from matchwright.kernels.device_planner import FORCED
from matchwright.kernels.faults import DeviceFault
from matchwright.kernels.memory_plan import plan_memory
from matchwright.kernels.numpy_device import NumpyDevice
from matchwright.kernels.ops import Ops
from matchwright.kernels.planner import Costs
from matchwright.kernels.resident import Resident, Uploader, column_bytes, resident_bytes
from matchwright.kernels.rule_program import compile_program
from matchwright.kernels.types import Corpus, InRange, Segment

RULES = (InRange("rate", 0, 50, "RATE"),)
ON_DEVICE = (pytest.mark.skipif(NO_DEVICE is not None, reason=NO_DEVICE or ""), pytest.mark.gpu)


def segments_of(corpus):
    return [segment for segment, _ in corpus.parts]


@pytest.fixture(params=[LazyDevice, pytest.param(CudaDevice, marks=ON_DEVICE)])
def device(request):
    return request.param()


# ── Uploads ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("staging", [1, 64, 1_000, 1 << 20])
@pytest.mark.parametrize("shape", [(0,), (1,), (777,), (0, 3), (5, 3), (300, 16), (41, 1_040)])
def test_what_arrives_is_what_was_sent(device, staging, shape):
    rng = np.random.default_rng(staging)
    uploader = Uploader(device, staging)
    width = None if len(shape) == 1 else shape[1] + -shape[1] % 16
    for _ in range(3):  # halves are used again
        host = rng.integers(-127, 128, shape).astype(np.int8 if width else np.uint64)
        got, mark = uploader.run(lambda host=host: uploader.send(host, width))
        device.hold(mark)
        there = device.download(got)
        np.testing.assert_array_equal(there if width is None else there[:, : shape[1]], host)
        assert width is None or not there[:, shape[1] :].any()


def test_a_half_is_not_filled_before_its_copy_has_gone():
    """Without the wait in ``_half`` the lazy device copies what came later."""
    device = LazyDevice()
    uploader = Uploader(device, 64)
    host = np.arange(500, dtype=np.uint64)
    got, mark = uploader.run(lambda: uploader.send(host))
    assert device.ran >= len(device.queue) - 2, "all but the last two copies had to happen"
    assert device.ran < len(device.queue)
    mark.synchronize()
    np.testing.assert_array_equal(got, host)


def test_rows_are_there_when_they_are_handed_out(device):
    corpus = a_corpus(np.random.default_rng(2), (300, 90), 8)
    copies = Resident(device, 1 << 20).get(segments_of(corpus))
    for copy, segment in zip(copies, segments_of(corpus), strict=True):
        np.testing.assert_array_equal(device.download(copy.x_nd)[:, :8], segment.x_nd)
        np.testing.assert_array_equal(device.download(copy.key_n), segment.key_n)
        norms = NumpyDevice().norms(segment.x_nd)
        np.testing.assert_array_equal(device.download(copy.norm_n), norms)


def test_a_scan_waits_for_its_rows(device):
    rng = np.random.default_rng(3)
    corpus = a_corpus(rng, (300, 90), 8)
    queries = some_queries(rng, corpus, 4, 8, groups=[RULES, ()])
    ops = CupyOps(device=device, verify=False)
    got = ops.topk(corpus, queries, 7)
    wanted = Ops(costs=Costs()).topk(corpus, queries, 7)
    np.testing.assert_array_equal(got.row_qk, wanted.row_qk)
    np.testing.assert_array_equal(got.eligible_q, wanted.eligible_q)


def test_loading_goes_on_aside_and_the_current_rows_answer_meanwhile():
    gate, device = threading.Event(), LazyDevice()
    put = device.put

    def slow(target, host):
        if threading.current_thread().name.startswith("matchwright-upload"):
            assert gate.wait(20)
        put(target, host)

    device.put = slow
    rng = np.random.default_rng(4)
    old, new = a_corpus(rng, (200,), 8), a_corpus(rng, (300,), 8)
    queries = some_queries(rng, old, 2, 8)
    ops = CupyOps(device=device, verify=False)
    before = ops.topk(old, queries, 5).row_qk
    loading = ops.load([new])
    assert not loading.done
    np.testing.assert_array_equal(ops.topk(old, queries, 5).row_qk, before)
    # A column that no rule has read yet, a few new rows and dead ones need not wait either.
    asked = some_queries(rng, old, 2, 8, groups=[RULES])
    small = Corpus((*old.parts, *a_corpus(rng, (40,), 8).parts))
    for corpus in (old, small):
        got = ops.topk(corpus, asked, 5).row_qk
        np.testing.assert_array_equal(got, Ops(costs=Costs()).topk(corpus, asked, 5).row_qk)
    assert not loading.done
    gate.set()
    loading.wait()
    assert loading.done
    uploads = ops.resident.uploads
    got = ops.topk(new, queries, 5)
    assert ops.resident.uploads == uploads
    np.testing.assert_array_equal(got.row_qk, Ops(costs=Costs()).topk(new, queries, 5).row_qk)


def test_nothing_to_load_is_done_at_once():
    corpus = a_corpus(np.random.default_rng(5), (50,), 8)
    ops = CupyOps(device=NumpyDevice(), verify=False)
    ops.load([corpus]).wait()
    assert ops.load([corpus]).done
    assert ops.resident.uploads == 1


def test_an_upload_that_fails_leaves_nothing_behind_and_is_tried_anew():
    corpus = a_corpus(np.random.default_rng(6), (50, 60), 8)
    device = FailingDevice()
    resident = Resident(device, 1 << 20)
    clean = len(device.calls)
    device.fails = {clean + 2: MEMORY}
    with pytest.raises(DeviceFault):
        resident.get(segments_of(corpus))
    copies = resident.get(segments_of(corpus))
    assert [copy.n for copy in copies] == [50, 60]
    device.fails, device.since = MEMORY, 0
    other = a_corpus(np.random.default_rng(7), (30,), 8)
    loading = resident.load(segments_of(other))
    with pytest.raises(DeviceFault):
        loading.wait()
    assert loading.done
    assert resident.segments == 2


def test_rows_on_their_way_when_the_device_is_given_up():
    gate, device = threading.Event(), NumpyDevice()
    device.put = lambda target, host: gate.wait(20)
    resident = Resident(device, 1 << 20)
    corpus = a_corpus(np.random.default_rng(8), (40, 50), 8)
    first, second = segments_of(corpus)
    resident.load([first])
    waiting = resident.load([second])  # behind the first one
    failed = []

    def ask():
        try:
            resident.get([second])
        except DeviceError as error:
            failed.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    resident.close()
    gate.set()
    thread.join(20)
    assert not thread.is_alive()
    assert failed
    assert waiting.done
    assert resident.nbytes == 0
    # Whoever comes later is told at once, and waits for nothing that nobody will bring.
    for ask_again in (resident.get, resident.load):
        with pytest.raises(DeviceError, match="given up"):
            ask_again([first])
    assert resident.nbytes == 0


def test_a_device_that_is_given_up_between_two_steps_leaves_nobody_waiting():
    """Rows whose place is taken and whose upload was not begun when somebody else gave up."""
    resident = Resident(NumpyDevice(), 1 << 20)
    segments = segments_of(a_corpus(np.random.default_rng(8), (40,), 8))
    reserve = resident._reserve

    def reserved(wanted):
        made = reserve(wanted)
        resident.close()
        return made

    resident._reserve = reserved
    for ask in (resident.get, lambda wanted: resident.load(wanted).wait()):
        resident._closed = False
        with pytest.raises(DeviceError, match="given up"):
            ask(segments)
    assert resident.segments == 0


# ── Whose they are, and when they go ──────────────────────────────────────────────────────────


def test_epochs_share_segments():
    rng = np.random.default_rng(9)
    corpus = a_corpus(rng, (60, 70), 8)
    ops = CupyOps(device=NumpyDevice(), verify=False)
    queries = some_queries(rng, corpus, 2, 8, groups=[RULES])
    ops.topk(corpus, queries, 3)
    (first, _), (second, _) = corpus.parts
    later = a_corpus(rng, (40,), 8).parts[0]
    for alive in (None, rng.random(60) < 0.5, rng.random(60) < 0.5):
        epoch = Corpus(((first, alive), (second, None), later))
        got = ops.topk(epoch, queries, 3)
        wanted = Ops(costs=Costs()).topk(epoch, queries, 3)
        np.testing.assert_array_equal(got.row_qk, wanted.row_qk)
    assert ops.resident.uploads == 3


def test_no_growth_over_many_epochs():
    """Each epoch brings a new small segment and new dead rows; the old ones are let go of."""
    rng = np.random.default_rng(10)
    big = a_corpus(rng, (500,), 8).parts[0][0]
    ops = CupyOps(device=NumpyDevice(), verify=False)
    sizes, segments = [], []
    for turn in range(12):
        live = a_corpus(rng, (20,), 8).parts[0][0]
        epoch = Corpus(((big, rng.random(500) < 0.9), (live, rng.random(20) < 0.9)))
        ops.load([epoch]).wait()
        ops.topk(epoch, some_queries(rng, epoch, 2, 8, groups=[RULES]), 3)
        del live, epoch
        gc.collect()
        sizes.append(ops.resident.nbytes)
        segments.append(ops.resident.segments)
        assert turn == 0 or sizes[-1] == sizes[0]
    assert set(segments) == {1}
    assert ops.resident.uploads == 13
    assert sizes[0] == resident_bytes(big) + 4 * 500  # and the column of the rule


def test_columns_come_with_the_first_rule_and_go_with_their_segment():
    corpus = a_corpus(np.random.default_rng(11), (64,), 8)
    segment = corpus.parts[0][0]
    resident = Resident(NumpyDevice(), resident_bytes(segment) + 4 * 64)
    resident.get([segment])
    assert resident.nbytes == resident_bytes(segment)
    columns = resident.columns([segment], compile_program([RULES]))
    assert columns is not None
    np.testing.assert_array_equal(columns[0].scalars["rate"], segment.scalars["rate"])
    again = resident.columns([segment], compile_program([RULES]))
    assert again[0].scalars["rate"] is columns[0].scalars["rate"]
    assert resident.nbytes == resident.budget_bytes
    tight = Resident(NumpyDevice(), resident_bytes(segment) + 4 * 64 - 1)
    assert tight.columns([segment], compile_program([RULES])) is None
    del corpus, segment
    gc.collect()
    assert resident.nbytes == 0


def test_a_column_is_known_by_its_own_array():
    """Two segments over the same rows with other columns: each gets its own."""
    rng = np.random.default_rng(16)
    corpus = a_corpus(rng, (300,), 8)
    one = corpus.parts[0][0]
    other = replace(one, scalars={"rate": (99 - one.scalars["rate"]).astype(np.int32)}, memo={})
    ops = CupyOps(device=NumpyDevice(), verify=False)
    queries = some_queries(rng, corpus, 2, 8, groups=[(InRange("rate", 0, 30, "RATE"),)])
    for segment in (one, other, one):
        some = Corpus(((segment, None),))
        wanted = Ops(costs=Costs()).topk(some, queries, 5)
        np.testing.assert_array_equal(ops.topk(some, queries, 5).row_qk, wanted.row_qk)
        assert ops.resident.nbytes == resident_bytes(one) + 4 * 300
    assert ops.resident.uploads == 1


# ── Temporary memory ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("share", [0.0, 0.003, 0.4, 1.0])
def test_taken_rows_keep_to_the_budget(monkeypatch, share):
    """Rows of one group that are taken to a place of their own come in turns, one at a time."""
    rng = np.random.default_rng(17)
    corpus = a_corpus(rng, (7_000, 64, 5_000), 16, spread=3)  # many ties: buffers overflow
    rules = (InRange("rate", 0, round(100 * share) - 1, "RATE"),)
    queries = some_queries(rng, corpus, 3, 16, groups=[rules], most=200)
    ops = CupyOps(
        device=NumpyDevice(tensor=True), device_costs=FORCED["gather"], memory_bytes=1 << 17,
        verify=False,
    )  # fmt: skip
    take, living, most = DeviceSegment.take, [], [0, 0]

    def taking(self, rows):
        gc.collect()
        made = take(self, rows)
        living.append(weakref.ref(made.x_nd, living.remove))
        most[:] = max(most[0], sum(one().nbytes for one in living)), most[1] + len(rows)
        return made

    monkeypatch.setattr(DeviceSegment, "take", taking)
    got = ops.topk(corpus, queries, 60)
    wanted = Ops(costs=Costs()).topk(corpus, queries, 60)
    for name in ("row_qk", "points_qk", "returned_q", "eligible_q", "unverified_q"):
        np.testing.assert_array_equal(getattr(got, name), getattr(wanted, name), err_msg=name)
    assert got.telemetry["rules"] == "gather"
    assert most[1] == wanted.eligible_q[0]
    assert most[0] <= ops.memory_bytes
    assert share < 0.4 or most[1] * 16 > 2 * most[0] > 0, "several turns"
    assert not living


# ── The plan ──────────────────────────────────────────────────────────────────────────────────


def test_the_plan_is_what_is_taken():
    rng = np.random.default_rng(12)
    corpus = a_corpus(rng, (333, 64), 20)
    plan = plan_memory({"freelancers": corpus}, temporary_bytes=1 << 24, budget_bytes=1 << 20)
    assert plan.fits
    assert plan.refusal() is None
    ops = CupyOps(device=NumpyDevice(), verify=False)
    assert sum(one.x + one.norms + one.keys for one in plan.segments) == sum(
        resident_bytes(segment) for segment in segments_of(corpus)
    )
    ops.topk(corpus, some_queries(rng, corpus, 2, 20, groups=[RULES]), 3)
    assert ops.resident.nbytes == plan.needed + plan.column_bytes
    assert [one.x for one in plan.segments] == [333 * 32, 64 * 32]
    assert [one.alive for one in plan.segments] == [11 * 4, 0]
    assert plan.segments[0].columns == {"rate": 4 * 333}
    assert sum(plan.temporary.values()) - plan.temporary["queries"] <= 1 << 24


def test_a_refusal_names_the_shard_that_fits():
    corpus = a_corpus(np.random.default_rng(13), (1_000, 500), 20)
    plan = plan_memory({"jobs": corpus}, temporary_bytes=1 << 20, budget_bytes=20_000)
    rows, shards = plan.shard()
    assert not plan.fits
    assert rows * shards >= 1_500 > rows * (shards - 1)
    part = a_corpus(np.random.default_rng(14), (rows,), 20)
    assert plan_memory({"jobs": part}, temporary_bytes=1 << 20, budget_bytes=20_000).fits
    told = plan.refusal()
    assert f"a shard of {rows:,} rows fits" in told
    assert f"--executor ray --device gpu --workers {shards} --shards {shards}" in told
    assert "not even one row" in plan_memory(
        {"jobs": corpus}, temporary_bytes=1, budget_bytes=10
    ).refusal()  # fmt: skip


def test_a_plan_of_nothing():
    plan = plan_memory({"jobs": Corpus(())}, temporary_bytes=1 << 20, budget_bytes=0)
    assert (plan.needed, plan.rows, plan.fits, plan.shard()) == (0, 0, True, (0, 1))
    assert plan.to_dict()["fits"]
    assert plan.lines()[-1].startswith("device memory: 0.0 MiB")


def test_column_sizes_are_their_arrays():
    segment = a_corpus(np.random.default_rng(15), (10,), 4).parts[0][0]
    assert column_bytes(segment, ("scalar", "rate")) == 40
    bare = Segment(segment.x_nd, segment.key_n)
    assert plan_memory({"x": Corpus(((bare, None),))}, temporary_bytes=1).column_bytes == 0
