"""What the device takes, by a model calibrated on it, and how each group of rules is best asked.

Three ways to ask, which give the same answer (seconds; N rows, q queries of a group, its rules m,
p the share of rows that pass, E = p N)::

    survivors   q N work(f, m, p) rule_pair                  + q N scan_pair      rules last
    bits        N judged(m, p) rule_row                      + q N scan_pair      rules first
    gather      N judged(m, p) rule_row + N/8 byte + E take_row + E scan_row + q E scan_pair
                                                                                  rules, then few

beside one reading of all rows, N scan_row, which the groups of the first two ways share.

``f`` is the share of pairs that reach the running bound before rules are known: about
(k / E) (1 + ln(E / k)) where the bound always is the latest, 1 at most. In the sieve a lane judges
its 16 rows of a query, rule after rule, as long as any is left, and the warp waits for its slowest
lane: ``work`` is what that is of judging every pair by one rule. It grows with f, but never beyond
what all pairs take, and slower than f on the way there. For bits a warp judges 32 rows, rule after
rule, as long as any is left: ``judged``. A rule is taken to let p^(1/m) of the rows pass. The sieve
leaves out tiles in which no query has an eligible row by itself: bits that are zero are what
``skip`` is on a device.

All terms are continuous in p, and the least of continuous functions is continuous, so a sweep of
the pass rate meets no cliff.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from matchwright.kernels.compile import limit
from matchwright.kernels.cuda_gates import Gate, HostBits, RuleBits, RuleSurvivors
from matchwright.kernels.cuda_scan import Scan, fit
from matchwright.kernels.device import WORD, DeviceColumns, KernelDevice
from matchwright.kernels.faults import Fault, fault_of
from matchwright.kernels.numpy_device import pack_bits
from matchwright.kernels.rule_program import compile_program
from matchwright.kernels.types import Float64, InRange, Int32, Queries, Rules

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
        call: one scan: its queries' way there, the wait, the results' way back.
        launch: one range of a scan: its launches.
        scan_row: reading one row, once for all queries.
        scan_pair: one query against one row.
        rule_row: one rule for one row, where bits are made.
        rule_pair: one rule for one row of one query, in a scan, where all are near the bound.
        take_row: taking one row to a place of its own.
        byte: one byte to the host.
    """

    d: int = 256
    call: float = 150e-6
    launch: float = 15e-6
    scan_row: float = 0.1e-9
    scan_pair: float = 0.43e-12
    rule_row: float = 0.8e-12
    rule_pair: float = 0.5e-12
    take_row: float = 0.3e-9
    byte: float = 50e-12

    def read(self, rows: int, d: int) -> float:
        """Seconds of reading rows once, in ranges that double up."""
        ranges = 1 + math.log2(1 + rows / CAPACITY)
        return self.call + ranges * self.launch + rows * self.scan_row * d / self.d

    def scan(self, rows: int, queries: int, d: int) -> float:
        """Seconds of one scan for some queries."""
        return self.read(rows, d) + rows * queries * self.scan_pair * d / self.d


_FREE, _DEAR = 1e-15, 1e3
FORCED: Mapping[Way, DeviceCosts] = {
    "survivors": DeviceCosts(rule_pair=_FREE, rule_row=_DEAR),
    "bits": DeviceCosts(rule_pair=_DEAR, rule_row=_FREE, take_row=_DEAR, byte=_DEAR),
    "gather": DeviceCosts(
        rule_row=_FREE, take_row=_FREE, byte=_FREE, call=_FREE, launch=_FREE, scan_pair=_DEAR
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


Amount = float | Float64
"""One number, or an array of them, as its counterparts are."""


def near_share(rows: int, rate: Amount, k: int) -> Amount:
    """Share of its rows that reach a query's running bound, whatever the rules say of them.

    Within a range the bound stands still while the rows seen double, which finds 1 / ln 2 times
    as many as a bound that is always the latest.
    """
    eligible = np.maximum(rows * rate, 1e-9)
    rise = 1.0 + np.log2(np.maximum(1.0, eligible / k))
    share: Amount = np.minimum(1.0, CAPACITY / max(rows, 1) + k / eligible * rise)
    return share


def passing(rules: Amount, rate: Amount) -> Amount:
    """What one of some rules alone lets pass, when all let ``rate`` pass and none stands out."""
    one: Amount = np.exp(np.log(np.maximum(rate, 1e-12)) / np.maximum(rules, 1))
    return one


def judged(rules: Amount, rate: Amount) -> Amount:
    """Rules after which none of 32 rows is left, or all of them, about."""
    least = -np.log(np.minimum(passing(rules, rate), 1 - 1e-9))
    many: Amount = np.minimum(rules, 1.0 + math.log(32.0) / least)
    return many


def work(near: Amount, rules: Amount, rate: Amount) -> Amount:
    """What judging those near the bound takes of judging every pair by one rule.

    A lane has 16 rows, of which some are near; a warp goes on until its slowest lane is done. The
    most that 32 lanes have is about the mean and two deviations, once any of the 512 is near.
    """
    one, total = passing(rules, rate), 0.0 * np.asarray(near)
    for rule in range(int(np.max(rules, initial=0))):
        share = near * one**rule
        most = -np.expm1(-512.0 * share) + 16.0 * share + 2.0 * np.sqrt(16.0 * share)
        total = total + (rule < np.asarray(rules)) * np.minimum(16.0, most) / 16.0
    return total


def seconds(costs: DeviceCosts, way: Way, load: DeviceLoad, rows: int, k: int, d: int) -> float:
    """What a group costs in a way, the shared reading left out."""
    return float(_seconds(costs, way, Loads.of([load]), rows, k, d)[0])


@dataclass(frozen=True, slots=True)
class Loads:
    """``DeviceLoad`` of several groups, float64 (G,) each."""

    queries: Float64
    rules: Float64
    rate: Float64

    @classmethod
    def of(cls, loads: Sequence[DeviceLoad]) -> Loads:
        rows = [(one.queries, one.rules, one.rate) for one in loads]
        return cls(*np.array(rows, np.float64).reshape(-1, 3).T)


def _seconds(costs: DeviceCosts, way: Way, load: Loads, rows: int, k: int, d: int) -> Float64:
    scale, q = d / costs.d, load.queries
    pairs: Float64 = q * rows * costs.scan_pair * scale
    if way == "survivors":
        near = near_share(rows, load.rate, k)
        return pairs + q * rows * work(near, load.rules, load.rate) * costs.rule_pair
    evaluated = rows * judged(load.rules, load.rate) * costs.rule_row
    if way == "bits":
        return evaluated + pairs
    eligible = rows * load.rate
    taken = eligible * (costs.take_row * scale + q * costs.scan_pair * scale)
    ranges = 1 + np.log2(1 + np.floor(eligible) / CAPACITY)
    read = costs.call + ranges * costs.launch + np.floor(eligible) * costs.scan_row * scale
    alone: Float64 = evaluated + rows / 8 * costs.byte + taken + read
    return alone


def choose(
    costs: DeviceCosts,
    loads: Sequence[DeviceLoad] | Loads,
    rows: int,
    k: int,
    d: int,
    *,
    count: bool,
) -> list[Way]:
    """How each group is asked.

    Args:
        loads: the groups, one by one or as columns.
        rows: of the corpus.
        count: exact counts are wanted, so that rules are evaluated for every row anyway.
    """
    return _plan(costs, loads, rows, k, d, count=count)[0]


def planned_seconds(
    costs: DeviceCosts, loads: Sequence[DeviceLoad], rows: int, k: int, d: int, *, count: bool
) -> float:
    """What the chosen ways cost in all."""
    return _plan(costs, loads, rows, k, d, count=count)[1]


def _plan(
    costs: DeviceCosts,
    loads: Sequence[DeviceLoad] | Loads,
    rows: int,
    k: int,
    d: int,
    *,
    count: bool,
) -> tuple[list[Way], float]:
    ways: tuple[Way, ...] = ("bits",) if count else ("survivors", "bits")
    load = loads if isinstance(loads, Loads) else Loads.of(loads)
    each = np.stack([_seconds(costs, way, load, rows, k, d) for way in ways])
    in_scan = each.min(axis=0, initial=math.inf)
    alone = _seconds(costs, "gather", load, rows, k, d)
    apart = alone < in_scan
    read = costs.read(rows, d)
    if alone[~apart].sum() <= read + in_scan[~apart].sum():
        apart[:] = True
    best = each.argmin(axis=0) if each.size else np.zeros(0, np.intp)
    chosen: list[Way] = [
        "gather" if by_itself else ways[at] for by_itself, at in zip(apart, best, strict=True)
    ]
    total = float(np.where(apart, alone, in_scan).sum())
    return chosen, total + (0.0 if apart.all() else read)


def rates(eligible_g: Int64, seen: int) -> Float64:
    """float64 (G,): shares of rows that pass, from a sample of ``seen`` rows; never 0."""
    share: Float64 = (eligible_g.astype(np.float64) + 0.5) / (seen + 1.0)
    return share


# ── Calibration ───────────────────────────────────────────────────────────────────────────────

ROWS_LEAST, ROWS_MOST = 1 << 12, 1 << 17
"""Synthetic rows that are measured on; fewer than the most where temporary memory is short."""
_SCAN_BYTES_LEAST = 4 << 20  # of 128 queries at the widest, k = 10
_KNOWN: dict[tuple[str, int], DeviceCosts] = {}
_LOCK = threading.Lock()


def calibrated(device: KernelDevice, d: int, memory_bytes: int) -> DeviceCosts:
    """Costs of this device, measured once in a process and kept for its life, nowhere else.

    Where there is no memory left to measure in, a data sheet's: they change no answer.
    """
    with _LOCK:
        key = (device.name, d)
        if key not in _KNOWN:
            try:
                _KNOWN[key] = measure(device, d, memory_bytes, rows=bench_rows(d, memory_bytes))
            except Exception as error:
                if fault_of(error) is not Fault.MEMORY:
                    raise
                _KNOWN[key] = DeviceCosts()
        return _KNOWN[key]


def bench_rows(d: int, memory_bytes: int) -> int:
    """Rows to measure on: with half of them taken to another place, half of the memory at most."""
    most = memory_bytes // 2 // (3 * (d + -d % limit("ALIGN")) // 2 + 20)
    return max(ROWS_LEAST, min(ROWS_MOST, most // WORD * WORD))


def measure(
    device: KernelDevice,
    d: int,
    memory_bytes: int,
    *,
    rows: int = ROWS_MOST,
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
    launch = max((took["ranges"] - took["least"]) / (bench.narrow - 1), 1e-9)
    ranges = {name: many * launch for name, many in bench.ranges.items()}
    both = took["many"] - ranges["many"], took["few"] - ranges["few"]
    pair = max((both[0] - both[1]) / (rows * (bench.many - 1)), 1e-15)
    call = max(took["least"] - launch, 1e-9)
    return DeviceCosts(
        d=max(d, 1),
        call=call,
        launch=launch,
        scan_row=max((both[1] - call) / rows - pair, 1e-15),
        scan_pair=pair,
        rule_row=max((took["rules"] - took["wait"]) / (bench.turns * rows * bench.groups), 1e-15),
        rule_pair=max((took["vetoed"] - took["many"]) / (rows * bench.many), 1e-15),
        take_row=max((took["take"] - took["wait"]) / (rows // 2), 1e-15),
        byte=max((took["download"] - took["wait"]) / (4 * rows), 1e-15),
    )


class _Bench:
    """A synthetic corpus and the pieces of work that are timed on it."""

    many, groups, turns = 128, 16, 8
    narrow = 17  # ranges of a scan that is all launches

    def __init__(
        self,
        device: KernelDevice,
        d: int,
        memory_bytes: int,
        rows: int,
        clock: Callable[[], float],
    ) -> None:
        self.device, self.d, self.rows = device, d, rows
        self.memory_bytes = max(_SCAN_BYTES_LEAST, memory_bytes // 2)
        self.clock = clock
        self.ranges: dict[str, int] = {}  # of each scan
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
        self.rules = self._gate(rules, np.zeros(0, np.int32))
        nobody = self._gate([(InRange("value", 200, 300, "VALUE"),)], np.zeros(self.many, np.int32))
        self.nobody = RuleSurvivors(nobody)
        self.taken = device.upload(np.sort(rng.permutation(rows)[: rows // 2]).astype(np.int64))

    def _gate(self, rules: Sequence[Rules], row_q: Int32) -> RuleBits:
        program = self.device.program(compile_program(rules))
        return RuleBits(self.device, program, [self.columns], [None], row_q)

    def works(self) -> dict[str, Callable[[], object]]:
        return {
            "least": lambda: self._scan("least", 1, WORD),
            "ranges": lambda: self._scan("ranges", 1, self.narrow * WORD, narrow=True),
            "many": lambda: self._scan("many", self.many, self.rows),
            "vetoed": lambda: self._scan("vetoed", self.many, self.rows, self.nobody),
            "few": lambda: self._scan("few", 1, self.rows),
            "rules": self._rules,
            "wait": self.rules.counts,
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

    def _scan(
        self, name: str, q: int, rows: int, gate: Gate | None = None, *, narrow: bool = False
    ) -> object:
        sizes = fit(q, rows, self.segment.x_nd.shape[1], 10, self.memory_bytes,
                    tensor=self.device.tensor)  # fmt: skip
        assert sizes is not None, "a budget for one query"
        if narrow:
            sizes = replace(sizes, columns=WORD)
        some = Queries(self.queries.q_qd[: sizes.queries], self.queries.key_q[: sizes.queries])
        if gate is None:
            bits = pack_bits([np.ones(rows, np.bool_)])
            gate = HostBits(self.device, [bits], np.zeros(some.q, np.int32))
        scan = Scan(self.device, sizes, 10)
        scan.find([self.segment.slice(0, rows)], some, gate)
        self.ranges[name] = scan.tally.tiles
        return scan

    def _rules(self) -> object:
        for _ in range(self.turns):
            self.rules.tile(0, 0, self.rows)
        return self.rules.counts()
