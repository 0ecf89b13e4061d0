"""What the device takes, by a model calibrated on it, and how each group of rules is best asked.

Three ways to ask, which give the same answer (seconds; N rows, q queries of a group, its rules m,
p the share of rows that pass, E = p N)::

    survivors   q found(p) rule_pair                         + q N scan_pair      rules last
    bits        N m rule_row                                 + q N scan_pair      rules first
    gather      N m rule_row + N/8 byte + E take_row + E scan_row + q E scan_pair   rules, then few

beside one reading of all rows, N scan_row, which the groups of the first two ways share.
``found(p)`` is how many rows of a query reach the running bound before rules are known: about
(k / p) (1 + ln(E / k)), all of them at most. The sieve leaves out tiles in which no query has an
eligible row by itself: bits that are zero are what ``skip`` is on a device.

All terms are continuous in p, and the least of continuous functions is continuous, so a sweep of
the pass rate meets no cliff.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from matchwright.kernels.cuda_gates import HostBits, RuleSurvivors
from matchwright.kernels.cuda_scan import Scan, fit
from matchwright.kernels.device import DeviceColumns, KernelDevice
from matchwright.kernels.numpy_device import pack_bits
from matchwright.kernels.rule_program import compile_program
from matchwright.kernels.types import Float64, InRange, Queries

if TYPE_CHECKING:
    from matchwright.kernels.types import Int64

Way = Literal["survivors", "bits", "gather"]
CALIBRATION_SECONDS = 2.0
"""Most that a calibration may take, the compilation of kernels left out."""
CAPACITY = 4_096
"""Entries of a query's buffer, about; a scan's first range is as wide."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceCosts:
    """Seconds, for rows of ``d`` dimensions. The defaults are derived from an H100's data sheet.

    Attributes:
        d: dimensions at which they hold; what moves rows is scaled in proportion to others.
        launch: one range of a scan: its launches, and the wait for what it found.
        scan_row: reading one row, once for all queries.
        scan_pair: one query against one row.
        rule_row: one rule for one row of the corpus, side by side.
        rule_pair: one rule for one row that a query found.
        take_row: taking one row to a place of its own.
        byte: one byte to the host.
    """

    d: int = 256
    launch: float = 30e-6
    scan_row: float = 0.1e-9
    scan_pair: float = 0.43e-12
    rule_row: float = 2e-12
    rule_pair: float = 20e-12
    take_row: float = 0.3e-9
    byte: float = 50e-12

    def read(self, rows: int, d: int) -> float:
        """Seconds of reading rows once, in ranges that double up."""
        ranges = 1 + math.log2(1 + rows / CAPACITY)
        return ranges * self.launch + rows * self.scan_row * d / self.d

    def scan(self, rows: int, queries: int, d: int) -> float:
        """Seconds of one scan for some queries."""
        return self.read(rows, d) + rows * queries * self.scan_pair * d / self.d


_FREE, _DEAR = 1e-15, 1e3
FORCED: Mapping[Way, DeviceCosts] = {
    "survivors": DeviceCosts(rule_pair=_FREE, rule_row=_DEAR),
    "bits": DeviceCosts(rule_pair=_DEAR, rule_row=_FREE, take_row=_DEAR, byte=_DEAR),
    "gather": DeviceCosts(
        rule_row=_FREE, take_row=_FREE, byte=_FREE, launch=_FREE, scan_pair=_DEAR
    ),
}
"""Costs under which groups with rules are asked in one way, where it is possible."""


@dataclass(frozen=True, slots=True)
class DeviceLoad:
    """A group as the planner sees it.

    Attributes:
        queries: how many share the rules.
        rules: predicates.
        rate: share of the rows that pass, about.
    """

    queries: int
    rules: int
    rate: float


def found_rows(rows: int, rate: float, k: int) -> float:
    """How many rows of one query reach the running bound, whatever the rules say of them."""
    eligible = max(rows * rate, 1e-9)
    rise = 1.0 + math.log(max(1.0, eligible / k))
    return min(float(rows), CAPACITY + k / max(rate, 1e-12) * rise)


def seconds(costs: DeviceCosts, way: Way, load: DeviceLoad, rows: int, k: int, d: int) -> float:
    """What a group costs in a way, the shared reading left out."""
    scale, q = d / costs.d, load.queries
    pairs = q * rows * costs.scan_pair * scale
    if way == "survivors":
        return pairs + q * found_rows(rows, load.rate, k) * load.rules * costs.rule_pair
    evaluated = rows * load.rules * costs.rule_row
    if way == "bits":
        return evaluated + pairs
    eligible = rows * load.rate
    taken = eligible * (costs.take_row * scale + q * costs.scan_pair * scale)
    return evaluated + rows / 8 * costs.byte + taken + costs.read(int(eligible), d)


def choose(
    costs: DeviceCosts, loads: Sequence[DeviceLoad], rows: int, k: int, d: int, *, count: bool
) -> list[Way]:
    """How each group is asked.

    Args:
        rows: of the corpus.
        count: exact counts are wanted, so that rules are evaluated for every row anyway.
    """
    ways: tuple[Way, ...] = ("bits",) if count else ("survivors", "bits")
    best = [min(ways, key=lambda way: seconds(costs, way, one, rows, k, d)) for one in loads]
    in_scan = [seconds(costs, way, one, rows, k, d) for way, one in zip(best, loads, strict=True)]
    alone = [seconds(costs, "gather", one, rows, k, d) for one in loads]
    chosen: list[Way] = [
        "gather" if taken < scanned else way
        for way, taken, scanned in zip(best, alone, in_scan, strict=True)
    ]
    left = [i for i, way in enumerate(chosen) if way != "gather"]
    shared = costs.read(rows, d) + sum(in_scan[i] for i in left)
    if left and sum(alone[i] for i in left) <= shared:
        return ["gather"] * len(loads)
    return chosen


def planned_seconds(
    costs: DeviceCosts, loads: Sequence[DeviceLoad], rows: int, k: int, d: int, *, count: bool
) -> float:
    """What the chosen ways cost in all."""
    ways = choose(costs, loads, rows, k, d, count=count)
    total = sum(seconds(costs, w, one, rows, k, d) for w, one in zip(ways, loads, strict=True))
    return total + (0.0 if set(ways) <= {"gather"} else costs.read(rows, d))


def rates(eligible_g: Int64, seen: int) -> Float64:
    """float64 (G,): shares of rows that pass, from a sample of ``seen`` rows; never 0."""
    share: Float64 = (eligible_g.astype(np.float64) + 0.5) / (seen + 1.0)
    return share


# ── Calibration ───────────────────────────────────────────────────────────────────────────────

_KNOWN: dict[tuple[str, int], DeviceCosts] = {}
_LOCK = threading.Lock()


def calibrated(device: KernelDevice, d: int, memory_bytes: int) -> DeviceCosts:
    """Costs of this device, measured once in a process and kept for its life, nowhere else."""
    with _LOCK:
        key = (device.name, d)
        if key not in _KNOWN:
            _KNOWN[key] = measure(device, d, memory_bytes)
        return _KNOWN[key]


def measure(
    device: KernelDevice,
    d: int,
    memory_bytes: int,
    *,
    rows: int = 1 << 17,
    seconds_most: float = CALIBRATION_SECONDS,
    clock: Callable[[], float] = time.perf_counter,
) -> DeviceCosts:
    """Measure: a scan of few and of many rows for few and for many queries, rules, a gather.

    Args:
        rows: of the synthetic corpus.
        seconds_most: repeats end then; each is measured once at least, after one to warm up.
    """
    bench = _Bench(device, d, memory_bytes, rows, clock)
    until = clock() + seconds_most
    took = {name: bench.least(work, until) for name, work in bench.works().items()}
    pair = max((took["many"] - took["few"]) / (rows * (bench.many - 1)), 1e-15)
    few = took["few"] - rows * pair
    return DeviceCosts(
        d=max(d, 1),
        launch=max(took["least"], 1e-9),
        scan_row=max((few - bench.ranges * took["least"]) / rows, 1e-15),
        scan_pair=pair,
        rule_row=max(took["rules"] / (rows * bench.groups), 1e-15),
        rule_pair=max(took["survivors"] / (bench.many * bench.capacity), 1e-15),
        take_row=max(took["take"] / (rows // 2), 1e-15),
        byte=max(took["download"] / (4 * rows), 1e-15),
    )


class _Bench:
    """A synthetic corpus and the pieces of work that are timed on it."""

    many, groups, capacity = 128, 16, 1_024
    ranges = 1  # of the last scan of all rows

    def __init__(
        self,
        device: KernelDevice,
        d: int,
        memory_bytes: int,
        rows: int,
        clock: Callable[[], float],
    ) -> None:
        self.device, self.d, self.memory_bytes, self.rows = device, d, memory_bytes, rows
        self.clock = clock
        rng = np.random.default_rng(0)
        x_nd = rng.integers(-127, 128, (rows, max(d, 1)), dtype=np.int8)
        keys = rng.permutation(rows).astype(np.uint64)
        self.segment = device.segment(x_nd, keys)
        self.columns = DeviceColumns(self.segment.key_n)
        value = rng.integers(0, 100, rows).astype(np.int32)
        self.columns.scalars["value"] = device.upload(value)
        q_qd = rng.integers(-16_255, 16_256, (self.many, max(d, 1))).astype(np.int16)
        self.queries = Queries(q_qd, np.arange(self.many, dtype=np.uint64))
        rules = [(InRange("value", 0, high, "VALUE"),) for high in range(self.groups)]
        self.program = device.program(compile_program(rules))
        self.taken = device.upload(np.sort(rng.permutation(rows)[: rows // 2]).astype(np.int64))

    def works(self) -> dict[str, Callable[[], object]]:
        return {
            "least": lambda: self._scan(1, 32),
            "few": lambda: self._scan(1, self.rows),
            "many": lambda: self._scan(self.many, self.rows),
            "rules": self._rules,
            "survivors": self._survivors(),
            "take": lambda: self._wait(self.segment.x_nd[self.taken][:1]),
            "download": lambda: self.device.download(self.columns.scalars["value"]),
        }

    def least(self, work: Callable[[], object], until: float, repeats: int = 5) -> float:
        """The shortest of some runs, the first one left out."""
        work()
        best = math.inf
        for turn in range(repeats):
            if turn and self.clock() >= until:
                break
            start = self.clock()
            work()
            best = min(best, self.clock() - start)
        return best

    def _wait(self, array: object) -> object:
        return self.device.download(array)

    def _scan(self, q: int, rows: int) -> object:
        sizes = fit(q, rows, self.segment.x_nd.shape[1], 10, self.memory_bytes,
                    tensor=self.device.tensor)  # fmt: skip
        assert sizes is not None, "a budget for one query"
        some = Queries(self.queries.q_qd[: sizes.queries], self.queries.key_q[: sizes.queries])
        bits = pack_bits([np.ones(rows, np.bool_)])
        gate = HostBits(self.device, [bits], np.zeros(some.q, np.int32))
        scan = Scan(self.device, sizes, 10)
        scan.find([self.segment.slice(0, rows)], some, gate)
        self.ranges = scan.tally.tiles
        return scan

    def _rules(self) -> object:
        counts = [self.device.upload(np.zeros(self.groups, np.uint64)) for _ in range(2)]
        self.device.rule_bits(self.program, self.columns, None, 0, self.rows, *counts)
        return self._wait(counts[0])

    def _survivors(self) -> Callable[[], object]:
        """Rules for full buffers of random rows."""
        sizes = fit(self.many, self.rows, self.segment.x_nd.shape[1], 10, 1 << 40,
                    tensor=self.device.tensor)  # fmt: skip
        assert sizes is not None
        rule_q = (np.arange(self.many) % self.groups).astype(np.int32)
        gate = RuleSurvivors(self.device, self.program, [self.columns], [None], rule_q)
        scan = Scan(self.device, sizes, 10)
        block = gate.prepare(scan.block(self.queries, gate.row_q))
        rng = np.random.default_rng(1)
        entries = np.zeros((self.many, block.capacity, 4), np.int32)
        entries[:, :, 3] = rng.integers(0, self.rows, entries.shape[:2])
        block.found_qc4[...] = self.device.upload(entries)
        block.count_q[...] = min(self.capacity, block.capacity)
        everybody = self.device.upload(np.arange(self.many, dtype=np.int32))

        def work() -> object:
            gate.sort_out(block, 0, 0, everybody)
            return self._wait(block.kept_q)

        return work
