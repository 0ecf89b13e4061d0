"""``CupyOps``: the same answers on an NVIDIA GPU.

A sieve on tensor cores, or a library's product and a threshold, keeps what beats the running
bound, and a selection kernel keeps the best (see ``cuda_scan``). Rules are evaluated there too, for
all rows or for those that were found, whichever is cheaper (see ``cuda_search``). Whatever a kernel
cannot take, the base class answers.

"Installed" and "has a device" are two questions: ``installed`` and ``no_device_reason``. Importing
this module imports no CuPy.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from matchwright.kernels.compile import limit
from matchwright.kernels.cuda_device import CudaDevice
from matchwright.kernels.cuda_scan import Sizes, fit
from matchwright.kernels.cuda_search import DeviceSearch, count_rules, device_costs
from matchwright.kernels.device import DeviceError, KernelDevice, padded
from matchwright.kernels.device_planner import DeviceCosts
from matchwright.kernels.ops import Ops, check
from matchwright.kernels.planner import Costs, Plan
from matchwright.kernels.probe import Missing, installed, probe
from matchwright.kernels.resident import Loading, Resident, corpus_segments
from matchwright.kernels.types import (
    D_MAX,
    Bitmap,
    Corpus,
    Int8,
    Int16,
    Int32,
    Queries,
    Rules,
    Segment,
    TopK,
)

__all__ = ["CupyOps", "DeviceMismatch", "installed", "no_device_reason", "verify_device"]

ROWS_MIN = 4_096
"""Rows below which ``points`` and ``contributions`` are not worth the way to the device."""


class DeviceMismatch(DeviceError):
    """The device's answers are not the reference's."""


def no_device_reason() -> str | None:
    """Why no CUDA device can be used here; None when one can."""
    found = probe()
    return found.text if isinstance(found, Missing) else None


class CupyOps(Ops):
    """The device backend.

    Args:
        threads: host threads, for what the base class answers.
        memory_bytes: budget of temporary memory, on the host and again on the device.
        costs: the planner's cost model, for what the base class answers.
        corpus_bytes: budget of resident segments and rule columns; None for 4/5 of the memory now
            free.
        device_costs: the planner's cost model of the device; None to calibrate it on first use.
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
        device_costs: DeviceCosts | None = None,
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
        self.device_costs = device_costs
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
            return DeviceSearch(self, corpus, queries, k, sizes, count).run()
        return super().topk(corpus, queries, k, plan=plan, count=count)

    def count(self, corpus: Corpus, group: Rules | Bitmap) -> tuple[int, int]:
        if not isinstance(group, Bitmap) and self._takes(corpus):
            counted = count_rules(self, corpus, group)
            if counted is not None:
                return counted
        return super().count(corpus, group)

    def points(self, x_nd: Int8, q_d: Int16) -> Int32:
        if self._takes_rows(x_nd, 1):
            return self._by_facet(x_nd, q_d, (0, x_nd.shape[1]))[:, 0]
        return super().points(x_nd, q_d)

    def contributions(self, x_nd: Int8, q_d: Int16, offsets: Sequence[int]) -> Int32:
        if self._takes_rows(x_nd, len(offsets) - 1):
            return self._by_facet(x_nd, q_d, offsets)
        return super().contributions(x_nd, q_d, offsets)

    def load(self, corpora: Sequence[Corpus]) -> Loading:
        return self.resident.load(corpus_segments(corpora))

    def scan_seconds(self, rows: int, queries: int, d: int) -> float:
        return device_costs(self, d).scan(rows, queries, d)

    def fits(self, corpus: Corpus) -> bool:
        return self.resident.fits(corpus_segments([corpus]))

    def _takes(self, corpus: Corpus) -> bool:
        return 0 < corpus.n < limit("ROWS_MAX") and self.fits(corpus)

    def _scan_sizes(self, corpus: Corpus, queries: Queries, k: int, plan: Plan) -> Sizes | None:
        """Can the kernels take this scan, and if so, in which pieces?"""
        d = queries.q_qd.shape[1]
        able = (
            plan in ("auto", "scan")
            and queries.q > 0
            and 1 <= d <= limit("D_MAX")
            and k <= limit("K_MAX")
            and self._takes(corpus)
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


def verify_device(ops: CupyOps) -> None:
    """Compare answers with the reference on a sample of extremes, ties and random rows.

    Raises:
        DeviceMismatch: they differ; the message says in which sample.
    """
    reference = Ops(threads=ops.threads, memory_bytes=ops.memory_bytes)
    for name, corpus, queries in _samples(ops.device.wide):
        got, expected = (one.topk(corpus, queries, 37) for one in (ops, reference))
        x_nd, q_d = corpus.parts[0][0].x_nd, queries.q_qd[0]
        offsets = (0, 1, x_nd.shape[1] // 2, x_nd.shape[1])
        parts = ops._by_facet(x_nd, q_d, offsets)
        ops.resident.forget(corpus_segments([corpus]))  # the room is the rows'
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


def _samples(wide: bool) -> list[tuple[str, Corpus, Queries]]:
    generator = np.random.default_rng(7)
    n, d = 20_011, 96  # wide enough for a full tile
    q = limit("TILE") + 33 if wide else 33
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
