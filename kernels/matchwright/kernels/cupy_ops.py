"""``CupyOps``: the same answers on an NVIDIA GPU.

A sieve on tensor cores, or a library's product and a threshold, keeps what beats the running
bound, and a selection kernel keeps the best (see ``cuda_scan``). Rules are evaluated by the base
class on the host, and their bits are uploaded. Whatever a kernel cannot take, the base class
answers.

"Installed" and "has a device" are two questions: ``installed`` and ``no_device_reason``. Importing
this module imports no CuPy.
"""

from __future__ import annotations

import importlib.util
import itertools
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from matchwright.kernels.compile import limit
from matchwright.kernels.cuda_device import CudaDevice, DeviceError, KernelDevice, padded
from matchwright.kernels.cuda_scan import Scan, Sizes, Tally, fit, pack_bits, rows_and_points
from matchwright.kernels.ops import Ops, check, empty_topk
from matchwright.kernels.planner import Costs, Plan
from matchwright.kernels.resident import Resident
from matchwright.kernels.types import (
    D_MAX,
    Bool,
    Corpus,
    Counted,
    Int8,
    Int16,
    Int32,
    Queries,
    Segment,
    TopK,
    UInt32,
)

ROWS_MIN = 4_096
"""Rows below which ``points`` and ``contributions`` are not worth the way to the device."""


class DeviceMismatch(DeviceError):
    """The device's answers are not the reference's."""


def installed() -> bool:
    """Whether CuPy can be imported."""
    return importlib.util.find_spec("cupy") is not None


def no_device_reason() -> str | None:
    """Why no CUDA device can be used here; None when one can."""
    if not installed():
        return "CuPy is not installed; install matchwright[gpu]"
    import cupy

    try:
        found = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return f"CuPy is installed, but finds no CUDA device: {error}"
    return None if found else "CuPy is installed, but there is no CUDA device"


class CupyOps(Ops):
    """The device backend.

    Args:
        threads: host threads, for what the base class answers.
        memory_bytes: budget of temporary memory, on the host and again on the device.
        costs: the planner's cost model, for what the base class answers.
        corpus_bytes: budget of resident segments; None for 4/5 of the memory now free.
        device: where to run; None for the current CUDA device.
        verify: compare a sample with the reference first.

    Raises:
        DeviceError: there is no device, or its answers are wrong (``DeviceMismatch``).
    """

    name = "cupy"

    def __init__(
        self,
        *,
        threads: int | None = None,
        memory_bytes: int = 256 << 20,
        costs: Costs | None = None,
        corpus_bytes: int | None = None,
        device: KernelDevice | None = None,
        verify: bool = True,
    ) -> None:
        super().__init__(threads=threads, memory_bytes=memory_bytes, costs=costs)
        if device is None:
            reason = no_device_reason()
            if reason is not None:
                raise DeviceError(f"{reason}; use device='cpu' to run without one")
            device = CudaDevice()
        self.device = device
        if corpus_bytes is None:
            free = device.memory_free()
            corpus_bytes = 1 << 62 if free is None else max(0, free * 4 // 5 - memory_bytes)
        self.resident = Resident(device, corpus_bytes)
        if verify:
            verify_device(self)

    def topk(
        self,
        corpus: Corpus,
        queries: Queries,
        k: int,
        *,
        plan: Plan = "auto",
        count: bool = True,
    ) -> TopK:
        check(corpus, queries, k)
        sizes = self._scan_sizes(corpus, queries, k, plan)
        if sizes is not None:
            return self._scan(corpus, queries, k, sizes, count)
        return super().topk(corpus, queries, k, plan=plan, count=count)

    def points(self, x_nd: Int8, q_d: Int16) -> Int32:
        if self._takes_rows(x_nd, 1):
            return self._by_facet(x_nd, q_d, (0, x_nd.shape[1]))[:, 0]
        return super().points(x_nd, q_d)

    def contributions(self, x_nd: Int8, q_d: Int16, offsets: Sequence[int]) -> Int32:
        if self._takes_rows(x_nd, len(offsets) - 1):
            return self._by_facet(x_nd, q_d, offsets)
        return super().contributions(x_nd, q_d, offsets)

    def _scan_sizes(self, corpus: Corpus, queries: Queries, k: int, plan: Plan) -> Sizes | None:
        """Can the kernels take this scan, and if so, in which pieces?"""
        d = queries.q_qd.shape[1]
        segments = [segment for segment, _ in corpus.parts]
        able = (
            plan in ("auto", "scan")
            and queries.q > 0
            and 1 <= d <= limit("D_MAX")
            and k <= limit("K_MAX")
            and 0 < corpus.n < limit("ROWS_MAX")
            and self.resident.fits(segments)
        )
        width = d + -d % limit("ALIGN")
        if not able:
            return None
        tensor = self.device.tensor
        return fit(queries.q, corpus.n, width, k, self.memory_bytes, tensor=tensor)

    def _takes_rows(self, x_nd: Int8, facets: int) -> bool:
        """Can the kernel take these rows, and is it worth it?"""
        n, d = x_nd.shape
        return n >= ROWS_MIN and 1 <= d <= D_MAX and 1 <= facets <= limit("FACETS_MAX")

    def _by_facet(self, x_nd: Int8, q_d: Int16, offsets: Sequence[int]) -> Int32:
        device, n = self.device, x_nd.shape[0]
        out = np.empty((n, len(offsets) - 1), np.int32)
        q = device.upload(padded(q_d[None])[0])
        offset_b = device.upload(np.asarray(offsets, np.int32))
        step = max(1, self.memory_bytes // (x_nd.shape[1] + limit("ALIGN") + 4 * out.shape[1]))
        for at in range(0, n, step):
            rows = device.upload(padded(x_nd[at : at + step]))
            out[at : at + step] = device.download(device.points(rows, q, offset_b))
        return out

    def _scan(self, corpus: Corpus, queries: Queries, k: int, sizes: Sizes, count: bool) -> TopK:
        started = time.perf_counter()
        result = empty_topk(queries.q, k, Counted.EXACT if count else Counted.NOT_COUNTED)
        segments = self.resident.get([segment for segment, _ in corpus.parts])
        group_q = queries.group_q
        if group_q is None:
            group_q = np.zeros(queries.q, np.int32)
        by_group = np.argsort(group_q, kind="stable")
        tally = Tally()
        for at in range(0, queries.q, sizes.queries):
            picked = by_group[at : at + sizes.queries]
            groups, row_q = np.unique(group_q[picked], return_inverse=True)
            eligible = [self._eligible(corpus, queries, int(g)) for g in groups]
            if count:
                result.eligible_q[picked] = np.array([e for _, e, _ in eligible])[row_q]
                result.unverified_q[picked] = np.array([u for _, _, u in eligible])[row_q]
            bits = _bits_by_part(corpus, [bits for bits, _, _ in eligible])
            scan = Scan(self.device, sizes, k, tally)
            top, have = scan.run(segments, _pick(queries, picked), bits, row_q.astype(np.int32))
            result.row_qk[picked], result.points_qk[picked] = rows_and_points(top, have)
            result.returned_q[picked] = have
        return replace(result, telemetry=self._telemetry(tally, time.perf_counter() - started))

    def _eligible(self, corpus: Corpus, queries: Queries, g: int) -> tuple[Bool, int, int]:
        eligible, unverified = self.eligible(corpus, queries.groups[g])
        return eligible, int(eligible.sum()), int(unverified.sum())

    def _telemetry(self, tally: Tally, seconds: float) -> dict[str, object]:
        return {
            "plan": "scan",
            "device": self.device.name,
            "product": "sieve" if self.device.tensor else "library",
            "pairs": tally.pairs,
            "survivors": tally.found,
            "tiles": tally.tiles,
            "overflows": tally.overflows,
            "seconds": seconds,
        }


def _bits_by_part(corpus: Corpus, eligible_gn: Sequence[Bool]) -> list[UInt32]:
    edges = corpus.base.tolist()
    return [
        pack_bits([eligible[begin:end] for eligible in eligible_gn])
        for begin, end in itertools.pairwise(edges)
    ]


def _pick(queries: Queries, picked: np.ndarray[tuple[int], np.dtype[np.intp]]) -> Queries:
    """Some of the queries; their groups are said by the bits."""
    floor_q = queries.floor_q
    return Queries(
        q_qd=queries.q_qd[picked],
        key_q=queries.key_q[picked],
        floor_q=None if floor_q is None else floor_q[picked],
    )


def verify_device(ops: CupyOps) -> None:
    """Compare answers with the reference on a sample of extremes, ties and random rows.

    Raises:
        DeviceMismatch: they differ; the message says in which sample.
    """
    reference = Ops(threads=ops.threads, memory_bytes=ops.memory_bytes)
    for name, corpus, queries in _samples():
        got, expected = (one.topk(corpus, queries, 37) for one in (ops, reference))
        x_nd, q_d = corpus.parts[0][0].x_nd, queries.q_qd[0]
        offsets = (0, 1, x_nd.shape[1] // 2, x_nd.shape[1])
        parts = ops._by_facet(x_nd, q_d, offsets)
        same = (
            np.array_equal(got.row_qk, expected.row_qk)
            and np.array_equal(got.points_qk, expected.points_qk)
            and np.array_equal(parts, reference.contributions(x_nd, q_d, offsets))
        )
        if not same:
            raise DeviceMismatch(
                f"{ops.device.name} and the NumPy reference disagree on the sample {name!r}; "
                "use device='cpu' and check the driver, CuPy and the device's memory"
            )


def _samples() -> list[tuple[str, Corpus, Queries]]:
    generator = np.random.default_rng(7)
    n, d, q = 20_011, 96, 33  # wide enough for a full tile
    x_nd = generator.integers(-127, 128, (n, d), dtype=np.int8)
    q_qd = generator.integers(-16_255, 16_256, (q, d), dtype=np.int16)
    return [
        ("random", *_sample(generator, x_nd, q_qd)),
        ("narrow", *_sample(generator, x_nd[:, :17], q_qd[:, :17])),
        ("ties", *_sample(generator, x_nd // 127, q_qd // 16_255)),
        ("largest", *_largest(generator)),
    ]


def _largest(generator: np.random.Generator) -> tuple[Corpus, Queries]:
    signs = generator.choice(np.array([-1, 1], np.int8), (64, D_MAX))
    signs[0] = 1
    return _sample(generator, 127 * signs, 16_255 * signs[:3].astype(np.int16))


def _sample(generator: np.random.Generator, x_nd: Int8, q_qd: Int16) -> tuple[Corpus, Queries]:
    key = generator.integers(0, 2**63, x_nd.shape[0] + q_qd.shape[0], dtype=np.uint64)
    rows = np.ascontiguousarray(x_nd)
    corpus = Corpus(((Segment(rows, key[: rows.shape[0]]), None),))
    return corpus, Queries(np.ascontiguousarray(q_qd), key[rows.shape[0] :])
