"""Is what the device says what the reference says? On rows and queries that somebody brings.

Every way of asking (``device_planner.Way``) is forced in turn, with several K, and what lies on
the device is read back and compared with what was sent.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from matchwright.kernels.cupy_ops import CupyOps, DeviceMismatch
from matchwright.kernels.device_planner import FORCED
from matchwright.kernels.ops import Ops
from matchwright.kernels.types import Corpus, Queries, Segment, TopK

READ_BACK = 4_096
"""Rows of each segment that are read back."""
_COMPARED = ("returned_q", "row_qk", "points_qk", "eligible_q", "unverified_q")


def compare(
    ops: CupyOps, corpus: Corpus, queries: Queries, ks: Iterable[int], what: str = "the sample"
) -> int:
    """Compare answers; how many were compared.

    Raises:
        DeviceMismatch: they differ; the message says at which K, way, query and rank.
    """
    reference = Ops(threads=ops.threads, memory_bytes=ops.memory_bytes)
    before, compared = ops.device_costs, 0
    try:
        for k in ks:
            expected = reference.topk(corpus, queries, k)
            for way, costs in FORCED.items():
                ops.device_costs = costs
                got = ops.topk(corpus, queries, k, count=way != "survivors")
                _same(got, expected, f"{what}, k = {k}, {way}", ops.device.name)
                compared += queries.q
    finally:
        ops.device_costs = before
    return compared


def _same(got: TopK, expected: TopK, where: str, device: str) -> None:
    for name in _COMPARED:
        if name in ("eligible_q", "unverified_q") and not got.counted:
            continue
        ours, theirs = getattr(got, name), getattr(expected, name)
        if np.array_equal(ours, theirs):
            continue
        at = tuple(int(i) for i in np.argwhere(ours != theirs)[0])
        raise DeviceMismatch(
            f"{device} and the NumPy reference disagree on {where}: {name}{list(at)} is "
            f"{ours[at]}, expected {theirs[at]}; use device='cpu' and check the driver, CuPy and "
            "the device's memory"
        )


def compare_resident(ops: CupyOps, segments: Sequence[Segment], seed: int) -> int:
    """Read some rows of resident segments back; how many.

    Raises:
        DeviceMismatch: what is there is not what was sent.
    """
    generator = np.random.default_rng(seed)
    device, read = ops.device, 0
    for number, (segment, copy) in enumerate(
        zip(segments, ops.resident.get(segments), strict=True)
    ):
        rows = np.sort(generator.choice(segment.n, min(segment.n, READ_BACK), replace=False))
        there = copy.take(device.upload(rows.astype(np.int64)))
        d = segment.x_nd.shape[1]
        x_nd, norm_n, key_n = map(device.download, (there.x_nd, there.norm_n, there.key_n))
        wanted = segment.x_nd[rows]
        square = (wanted.astype(np.int64) ** 2).sum(axis=1)
        norms = np.ceil(np.sqrt(square)).astype(np.int64)
        same = {
            "x": np.array_equal(x_nd[:, :d], wanted) and not x_nd[:, d:].any(),
            "norms": np.array_equal(norm_n, norms),
            "keys": np.array_equal(key_n, segment.key_n[rows]),
        }
        wrong = [name for name, good in same.items() if not good]
        if wrong:
            raise DeviceMismatch(
                f"{device.name} does not hold what was sent: {', '.join(wrong)} of segment "
                f"{number} differ; use device='cpu' and check the device's memory"
            )
        read += rows.size
    return read
