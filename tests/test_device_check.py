"""A device's answers beside the reference's on rows of a store; whoever differs is refused."""

from __future__ import annotations

from dataclasses import replace

import kernel_cases as cases
import numpy as np
import pytest
from cupy_cases import NO_DEVICE, a_corpus

from matchwright.kernels.cuda_device import CudaDevice
from matchwright.kernels.cupy_ops import CupyOps, DeviceMismatch
from matchwright.kernels.device_check import compare, compare_resident
from matchwright.kernels.device_planner import FORCED
from matchwright.kernels.numpy_device import NumpyDevice
from matchwright.kernels.types import Corpus, Queries

ON_DEVICE = (pytest.mark.skipif(NO_DEVICE is not None, reason=NO_DEVICE or ""), pytest.mark.gpu)


def problem(seed=1, queries=70):
    rng = np.random.default_rng(seed)
    x_nd = rng.integers(-127, 128, (500, 12))
    x_nd[rng.permutation(500)[:40]] = x_nd[0]
    segment = cases.a_segment(rng, x_nd, indexed=False)
    corpus = Corpus(((segment, rng.random(500) < 0.9),))
    groups = [(), *(cases.some_rules(rng, segment.key_n) for _ in range(5))]
    return corpus, Queries(
        rng.integers(-16_255, 16_256, (queries, 12)).astype(np.int16),
        rng.integers(0, 2**64, queries, dtype=np.uint64),
        groups,
        rng.integers(0, 6, queries).astype(np.int32),
    )


@pytest.mark.parametrize("made", [NumpyDevice, pytest.param(CudaDevice, marks=ON_DEVICE)])
def test_a_device_that_is_right_passes(made):
    ops = CupyOps(device=made(tensor=True), verify=False)
    corpus, queries = problem()
    assert compare(ops, corpus, queries, (1, 10, 400)) == 70 * 3 * len(FORCED)
    assert ops.device_costs is None
    assert compare_resident(ops, [corpus.parts[0][0]], seed=1) == 500


class Wrong(NumpyDevice):
    def __init__(self, what):
        super().__init__(tensor=True)
        self.what = what

    def sieve(self, block, tile, active_a, begin, end):
        before = block.count_q.copy()
        if self.what == "rules of survivors":
            tile = replace(tile, rules=None)
        super().sieve(block, tile, active_a, begin, end)
        if self.what == "a row in a thousand" and begin == 0 and block.count_q[0] > 3:
            block.count_q[0] -= 1
        if self.what == "points":
            block.found_qc4[:, : int(before.max()) + 1, 0] += 1

    def select(self, block, active_a):
        if self.what == "ties":
            found = block.found_qc4
            found[:, :, 1], found[:, :, 2] = found[:, :, 2].copy(), found[:, :, 1].copy()
        super().select(block, active_a)

    def rule_bits(self, program, columns, table, alive_w, rows, eligible_g, unverified_g):
        words = super().rule_bits(program, columns, table, alive_w, rows, eligible_g, unverified_g)
        if self.what == "counts":
            eligible_g[-1] += 1
        if self.what == "dead rows":
            words |= np.uint32(1)
        return words


@pytest.mark.parametrize(
    ("what", "named"),
    [
        ("a row in a thousand", "row_qk"),
        ("points", "points_qk"),
        ("ties", "row_qk"),
        ("counts", "eligible_q"),
        ("dead rows", "qk"),
        ("rules of survivors", "survivors"),
    ],
)
def test_whatever_is_wrong_is_found_and_named(what, named):
    ops = CupyOps(device=Wrong(what), verify=False)
    corpus, queries = problem()
    with pytest.raises(DeviceMismatch, match=named) as caught:
        compare(ops, corpus, queries, (1, 10, 400), "70 jobs of this store")
    assert "disagree on 70 jobs of this store, k = " in str(caught.value)
    assert ops.device_costs is None


@pytest.mark.parametrize("name", ["x", "norms", "keys"])
def test_rows_that_did_not_arrive_are_found(name):
    ops = CupyOps(device=NumpyDevice(), verify=False)
    corpus = a_corpus(np.random.default_rng(2), (300, 200), 10)
    segments = [segment for segment, _ in corpus.parts]
    copy = ops.resident.get(segments)[1]
    array = {"x": copy.x_nd, "norms": copy.norm_n, "keys": copy.key_n}[name]
    array[77] += 1
    with pytest.raises(DeviceMismatch, match=f"{name} of segment 1 differ"):
        compare_resident(ops, segments, seed=3)
