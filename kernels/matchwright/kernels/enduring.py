"""``EnduringOps``: a device while it works, the CPU when it does not; the answers are the same.

What happens after an error is decided by ``faults.fault_of``, and bounded::

    out of memory     the call is halved, up to SPLITS_MOST times; a piece that still does not fit
                      is answered by the CPU, and the device rests for REST_S seconds
    this call failed  the CPU answers it; FAILURES_MOST in a row, and the device is lost
    device lost       the CPU answers this call and all that follow, for the process's life

Nothing is retried as it was: the same work would fail again. A caller's own errors (sizes, columns
that are not there) pass through.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np

from matchwright.kernels.checks import check
from matchwright.kernels.cupy_ops import CupyOps
from matchwright.kernels.device import DeviceError
from matchwright.kernels.faults import Fault, fault_of
from matchwright.kernels.health import Health
from matchwright.kernels.ops import Ops
from matchwright.kernels.planner import Costs, Plan
from matchwright.kernels.rank import Rank
from matchwright.kernels.resident import LOADED, Loading, corpus_segments
from matchwright.kernels.types import (
    Bitmap,
    Bool,
    Corpus,
    Int8,
    Int16,
    Int32,
    Queries,
    Rules,
    TopK,
)

SPLITS_MOST = 3
"""A call that needs too much memory is cut into eighths at most."""
FAILURES_MOST = 3
"""So many failed calls in a row, and the device is given up."""
REST_S = 30.0
"""After a piece that did not fit, the device is left alone for so long."""
UNFIT, RESTING, LOST = "UNFIT", "RESTING", "LOST"
"""Why the CPU answers, beside the names of ``Fault``."""
_REASON_MAX = 200

T = TypeVar("T")


class EnduringOps(Ops):
    """A device's backend with the CPU's behind it.

    Args:
        device_ops: the device's.
        cpu: answers what the device does not.
        clock: seconds, monotonic.
    """

    def __init__(
        self, device_ops: CupyOps, cpu: Ops, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(threads=cpu.threads, memory_bytes=cpu.memory_bytes, costs=cpu.costs)
        self.device_ops: CupyOps | None = device_ops
        self.cpu = cpu
        self.name = device_ops.name
        self.health = Health(device=device_ops.device.name, on_device=True)
        self._clock = clock
        self._rests_until = 0.0
        self._failures = 0
        self._lock = threading.Lock()

    # ── Answers ───────────────────────────────────────────────────────────────────────────────

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
        return self._topk(corpus, queries, k, plan, count, 0)

    def points(self, x_nd: Int8, q_d: Int16) -> Int32:
        return self._either(lambda ops: ops.points(x_nd, q_d))

    def contributions(self, x_nd: Int8, q_d: Int16, offsets: Sequence[int]) -> Int32:
        return self._either(lambda ops: ops.contributions(x_nd, q_d, offsets))

    def eligible(self, corpus: Corpus, group: Rules | Bitmap) -> tuple[Bool, Bool]:
        return self._either(lambda ops: ops.eligible(corpus, group))

    def count(self, corpus: Corpus, group: Rules | Bitmap) -> tuple[int, int]:
        return self._either(lambda ops: ops.count(corpus, group))

    def rank(self, corpus: Corpus, queries: Queries, row: int, *, k: int | None = None) -> Rank:
        return self.cpu.rank(corpus, queries, row, k=k)

    def costs_for(self, d: int) -> Costs:
        return self.cpu.costs_for(d)

    def scan_seconds(self, rows: int, queries: int, d: int) -> float:
        """The first estimate calibrates the device, which may fail like any work there."""
        ops, _ = self._usable(None)
        if ops is not None:
            try:
                return ops.scan_seconds(rows, queries, d)
            except Exception as error:
                fault = fault_of(error)
                if fault is None:
                    raise
                self._failed(fault, error)
        return self.cpu.scan_seconds(rows, queries, d)

    def load(self, corpora: Sequence[Corpus]) -> Loading:
        """Upload what is missing, aside; an upload that fails is met again when it is needed."""
        ops = self.device_ops
        if ops is None or not ops.resident.fits(corpus_segments(corpora)):
            return LOADED  # a call brings what it needs, and puts out what is in its way
        try:
            return ops.load(corpora)
        except DeviceError:  # given up meanwhile
            return LOADED

    # ── The device, or not ────────────────────────────────────────────────────────────────────

    def _topk(
        self, corpus: Corpus, queries: Queries, k: int, plan: Plan, count: bool, cuts: int
    ) -> TopK:
        ops, reason = self._usable(corpus)
        if ops is not None:
            try:
                result = ops.topk(corpus, queries, k, plan=plan, count=count)
            except Exception as error:
                fault = fault_of(error)
                if fault is None:
                    raise
                if fault is Fault.MEMORY and queries.q > 1 and cuts < SPLITS_MOST:
                    return self._halved(corpus, queries, k, plan, count, cuts, error)
                self._failed(fault, error)
                reason = fault.value
            else:
                self._worked()
                return result
        result = self.cpu.topk(corpus, queries, k, plan=plan, count=count)
        if not reason:
            return result
        self.health.by_cpu(reason)
        told = f"{self.cpu.name} ({self._why(reason)})"
        return replace(result, telemetry={**result.telemetry, "device": told})

    def _halved(
        self,
        corpus: Corpus,
        queries: Queries,
        k: int,
        plan: Plan,
        count: bool,
        cuts: int,
        error: BaseException,
    ) -> TopK:
        self.health.halved()
        self.health.failed(Fault.MEMORY.value)
        self._release(error)
        middle = queries.q // 2
        halves = [
            self._topk(corpus, _some(queries, span), k, plan, count, cuts + 1)
            for span in (slice(0, middle), slice(middle, None))
        ]
        return _joined(*halves)

    def _either(self, work: Callable[[Ops], T]) -> T:
        """One of the small calls: the device once, else the CPU."""
        ops, reason = self._usable(None)
        if ops is not None:
            try:
                answer = work(ops)
            except Exception as error:
                fault = fault_of(error)
                if fault is None:
                    raise
                self._failed(fault, error)
                reason = fault.value
            else:
                self._worked()
                return answer
        if reason:
            self.health.by_cpu(reason)
        return work(self.cpu)

    def _usable(self, corpus: Corpus | None) -> tuple[CupyOps | None, str]:
        """(the device's backend, "") or (None, why not); no reason where it was left on purpose."""
        ops = self.device_ops
        if ops is None:
            return None, LOST if self.health.lost is not None else ""
        if self._clock() < self._rests_until:
            return None, RESTING
        if corpus is not None and not ops.fits(corpus):
            return None, UNFIT
        return ops, ""

    def _why(self, reason: str) -> str:
        if self.health.lost is not None:
            return f"gpu lost: {self.health.lost}"
        words = {
            UNFIT: "gpu: the rows do not fit its memory",
            RESTING: "gpu: rests after a lack of memory",
            Fault.MEMORY.value: "gpu: out of memory for this batch",
            Fault.CALL.value: "gpu: failed on this batch",
        }
        return words[reason]

    def _worked(self) -> None:
        self._failures = 0
        self.health.answered()

    def _failed(self, fault: Fault, error: BaseException) -> None:
        self.health.failed(fault.value)
        with self._lock:
            self._failures += fault is Fault.CALL
            if fault is Fault.MEMORY:
                self._rests_until = self._clock() + REST_S
        if fault is Fault.MEMORY:
            self._release(error)
        if fault is Fault.LOST or self._failures >= FAILURES_MOST:
            self._lose(error)

    def _release(self, error: BaseException) -> None:
        """Give back what the failed call holds, and what the device's pool keeps unused."""
        error.__traceback__ = None
        if self.device_ops is not None:
            with contextlib.suppress(Exception):
                self.device_ops.device.release()

    def give_up(self, error: BaseException) -> None:
        """Leave the device for good, because of an error that somebody else has met."""
        self._lose(error)

    def leave(self, why: str) -> None:
        """Let the CPU answer everything from now on, because it was decided so at the start."""
        ops, self.device_ops = self.device_ops, None
        self.name = self.cpu.name
        self.health.leave(self.cpu.name, why)
        if ops is not None:
            ops.resident.close()

    def _lose(self, error: BaseException) -> None:
        why = " ".join(f"{type(error).__name__}: {error}".split())[:_REASON_MAX]
        ops, self.name = self.device_ops, self.cpu.name
        self.health.lose(why, f"{self.cpu.name} (gpu lost: {why})")
        self.device_ops = None
        if ops is not None:
            with contextlib.suppress(Exception):  # a lost device frees nothing, and need not
                ops.resident.close()


def _some(queries: Queries, span: slice) -> Queries:
    """Some of the queries; they keep their groups."""
    group_q, floor_q = queries.group_q, queries.floor_q
    return Queries(
        q_qd=queries.q_qd[span],
        key_q=queries.key_q[span],
        groups=queries.groups,
        group_q=None if group_q is None else group_q[span],
        floor_q=None if floor_q is None else floor_q[span],
    )


def _joined(first: TopK, second: TopK) -> TopK:
    """Two answers as one; telemetry adds up, and names both devices where they differ."""
    names = ("row_qk", "points_qk", "returned_q", "eligible_q", "unverified_q")
    told = dict(first.telemetry)
    for name, value in second.telemetry.items():
        before = told.get(name)
        if isinstance(value, (int, float)) and isinstance(before, (int, float)):
            told[name] = before + value
        elif before is None:
            told[name] = value
        elif before != value:
            told[name] = "+".join(dict.fromkeys((str(before), str(value))))
    return TopK(
        **{name: np.concatenate([getattr(first, name), getattr(second, name)]) for name in names},
        counted=first.counted,
        telemetry=told,
    )
