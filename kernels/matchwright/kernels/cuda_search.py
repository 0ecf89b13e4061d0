"""One call of ``topk`` on a device: blocks of queries, the way each group is asked, the scans.

Rules are planned a block ahead: what the host has to do for a block it does while the device scans
the one before::

    host     plan 1 | queue 1 | plan 2 | wait 1 | queue 2 | plan 3 | wait 2 | ...
    device            scan 1 ------------------>  scan 2 ----------------->
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from matchwright.kernels.ahead import Ahead
from matchwright.kernels.checks import empty_topk
from matchwright.kernels.compile import limit
from matchwright.kernels.cuda_gates import Gate, HostBits, RuleBits, RuleSurvivors
from matchwright.kernels.cuda_scan import Scan, Sizes, Tally, rows_and_points
from matchwright.kernels.device import WORD, DeviceColumns, DeviceSegment
from matchwright.kernels.device_planner import (
    DeviceCosts,
    Loads,
    Way,
    calibrated,
    choose,
    rates,
)
from matchwright.kernels.numpy_device import pack_bits
from matchwright.kernels.resident import ROW_EXTRA_BYTES
from matchwright.kernels.rule_program import Program, compile_program
from matchwright.kernels.rule_sets import bitmaps_among, rules_among
from matchwright.kernels.types import (
    Bool,
    Corpus,
    Counted,
    Int32,
    Int64,
    Queries,
    Rules,
    TopK,
    UInt32,
)

if TYPE_CHECKING:
    from matchwright.kernels.cupy_ops import CupyOps

Picked = NDArray[np.intp]
SAMPLE_CHUNKS, SAMPLE_ROWS = 16, 1_024
"""Rows from which a group's pass rate is guessed: so many stretches of so many rows."""

TAKEN_EXTRA_BYTES = ROW_EXTRA_BYTES + 8
"""Beside its vector, a row that is taken to another place takes this, with its number."""


@dataclass(frozen=True, slots=True, eq=False)
class _Block:
    """Queries that are asked together, as far as the host can say without the device.

    Attributes:
        picked: which of the call's queries, ordered by group.
        groups: their distinct groups.
        row_q: int32 (Q,), each query's place among these.
        program: their rules; None where bitmaps are asked, whose bits come from the host.
    """

    picked: Picked
    groups: NDArray[np.int32]
    row_q: Int32
    program: Program | None


class DeviceSearch:
    """The best rows of any number of queries.

    Args:
        ops: the backend; its resident segments are searched.
        corpus, queries, k, count: as ``Ops.topk`` takes them, checked; they fit the device.
        sizes: of one block.
    """

    def __init__(
        self, ops: CupyOps, corpus: Corpus, queries: Queries, k: int, sizes: Sizes, count: bool
    ) -> None:
        self.ops, self.device, self.corpus, self.queries = ops, ops.device, corpus, queries
        self.k, self.sizes, self.count = k, sizes, count
        self.tally = Tally()
        self.asked: dict[str, int] = {}
        self.segments = [segment for segment, _ in corpus.parts]
        self.copies = ops.resident.get(self.segments)
        self.result = empty_topk(queries.q, k, Counted.EXACT if count else Counted.NOT_COUNTED)
        group_q = queries.group_q
        self.group_q = np.zeros(queries.q, np.int32) if group_q is None else group_q
        self.next: Ahead[_Block] | None = None

    def run(self) -> TopK:
        """The answer."""
        started = time.perf_counter()
        plans = (Ahead(partial(self._plan, *one)) for one in self._blocks())
        plan = next(plans, None)
        while plan is not None:
            block = plan.outcome()
            plan = self.next = next(plans, None)
            if block.program is None or not self._by_rules(block, block.program):
                self._by_bits(block)
        return replace(self.result, telemetry=self._telemetry(time.perf_counter() - started))

    def _blocks(self) -> Iterator[tuple[Picked, bool]]:
        """(queries ordered by group, whether they are under rules and not under bitmaps)."""
        mapped_g = bitmaps_among(self.queries.groups)
        by_group = np.argsort(self.group_q, kind="stable")
        mapped = mapped_g[self.group_q[by_group]]
        for bits in (False, True):
            same = by_group[mapped == bits]
            for at in range(0, same.size, self.sizes.queries):
                yield same[at : at + self.sizes.queries], not bits

    def _plan(self, picked: Picked, ruled: bool) -> _Block:
        """What can be done for a block before its turn."""
        groups, row_q = np.unique(self.group_q[picked], return_inverse=True)
        program = compile_program(rules_among(self.queries.groups, groups)) if ruled else None
        return _Block(picked, groups, row_q.astype(np.int32), program)

    def _meanwhile(self) -> None:
        """The host is about to wait: it plans the next block first."""
        if self.next is not None:
            self.next.start()

    # ── Bits from the host ────────────────────────────────────────────────────────────────────

    def _by_bits(self, block: _Block) -> None:
        picked, row_q = block.picked, block.row_q
        eligible = [self._eligible(g) for g in block.groups.tolist()]
        if self.count:
            self.result.eligible_q[picked] = np.array([e for _, e, _ in eligible])[row_q]
            self.result.unverified_q[picked] = np.array([u for _, _, u in eligible])[row_q]
        bits = bits_by_part(self.corpus, [bits for bits, _, _ in eligible])
        self._find(picked, HostBits(self.device, bits, row_q))
        self._note("host", picked.size)

    def _eligible(self, g: int) -> tuple[Bool, int, int]:
        eligible, unverified = self.ops.eligible(self.corpus, self.queries.groups[g])
        return eligible, int(eligible.sum()), int(unverified.sum())

    # ── Rules on the device ───────────────────────────────────────────────────────────────────

    def _by_rules(self, block: _Block, program: Program) -> bool:
        """Ask each group in its best way; False where the rules or columns do not fit."""
        picked, row_q = block.picked, block.row_q
        ready = rules_ready(self.ops, self.corpus, program)
        if ready is None:
            return False
        gate = RuleBits(self.device, self.device.program(program), *ready, row_q)
        way_q = np.array(self._ways(gate, np.bincount(row_q, minlength=block.groups.size)))[row_q]
        for way in ("bits", "survivors"):
            at = np.flatnonzero(way_q == way)
            if at.size:
                self._scan_rules(picked[at], _gate_of(gate, row_q[at], way), way)
                self._note(way, at.size)
        for g in np.unique(row_q[way_q == "gather"]):
            some = picked[row_q == g]
            self._gather(some, gate.narrowed(np.array([g]), np.zeros(some.size, np.int32)))
            self._note("gather", some.size)
        return True

    def _ways(self, gate: RuleBits, queries_g: NDArray[np.intp]) -> list[Way]:
        """How each group is asked, from what a sample says of its pass rate."""
        program = gate.program.program
        if not program.rule_m8.size and self.ops.device_costs is None:  # nothing to choose from
            return ["bits" if self.count else "survivors"] * len(program.groups)
        seen = sum(end - begin for _, begin, end in sample_spans(self.corpus))
        for part, segment in enumerate(self.segments):
            if segment.n:
                gate.sample(part, SAMPLE_ROWS // WORD, sample_step(self.corpus.n) // WORD)
        share_g = rates(gate.counts()[0], seen)
        rules_g = np.diff(program.start_g).astype(np.float64)
        loads = Loads(queries_g.astype(np.float64), rules_g, share_g)
        d = self.queries.q_qd.shape[1]
        costs = device_costs(self.ops, d)
        return choose(costs, loads, self.corpus.n, self.k, d, count=self.count)

    def _scan_rules(self, picked: Picked, gate: RuleBits, way: str) -> None:
        if way == "survivors":
            self._find(picked, RuleSurvivors(gate))
            return
        self._find(picked, gate)
        self._counted(picked, gate, gate.row_q)

    def _counted(self, picked: Picked, gate: RuleBits, row_q: Int32) -> None:
        if self.count:
            eligible_g, unverified_g = gate.counts()
            self.result.eligible_q[picked] = eligible_g[row_q]
            self.result.unverified_q[picked] = unverified_g[row_q]

    def _gather(self, picked: Picked, gate: RuleBits) -> None:
        """Scan copies of the rows of one group, whose queries these are."""
        rows: list[Int64] = [np.empty(0, np.int64)]
        turns = (
            (pieces, HostBits(self.device, [_all_of(piece) for piece in pieces], gate.row_q))
            for pieces in self._taken(gate, rows)
        )
        self._keep(picked, self._scan().find_in_turn(turns, pick(self.queries, picked), gate.row_q))
        self._counted(picked, gate, gate.row_q)
        row_n, found = np.concatenate(rows), self.result.row_qk[picked]
        self.result.row_qk[picked] = np.where(found >= 0, np.append(row_n, -1)[found], -1)

    def _taken(self, gate: RuleBits, rows: list[Int64]) -> Iterator[list[DeviceSegment]]:
        """Copies of a group's rows, as many at a time as the budget has room for; the last maybe 0.

        Args:
            rows: gets their global numbers.
        """
        pieces: list[DeviceSegment] = []
        room = most = self._taken_most()
        for part, begin, end in self._stretches():
            words, _ = gate.tile(part, begin, end)
            octets = self.device.download(words)[0].view(np.uint8)
            local = begin + np.flatnonzero(np.unpackbits(octets, bitorder="little"))
            while local.size:
                some, local = local[:room], local[room:]
                pieces.append(self.copies[part].take(self.device.upload(some)))
                rows.append(int(self.corpus.base[part]) + some)
                room -= some.size
                if not room:
                    yield pieces
                    pieces.clear()  # before the next are made, whoever still has the list
                    room = most
        yield pieces

    def _taken_most(self) -> int:
        """Rows that may lie on the device a second time: in what a block leaves of the budget."""
        d, budget = int(self.queries.q_qd.shape[1]), int(self.ops.memory_bytes)
        width = d + -d % limit("ALIGN")
        left = max(budget // 4, budget - self.sizes.temporary_bytes(width, self.k))
        return max(WORD, left // (width + TAKEN_EXTRA_BYTES))

    def _stretches(self) -> Iterator[tuple[int, int, int]]:
        """(part, begin, end) over all rows, of the size of a tile."""
        for part, segment in enumerate(self.segments):
            for begin in range(0, segment.n, self.sizes.columns):
                yield part, begin, min(begin + self.sizes.columns, segment.n)

    # ── Scans ─────────────────────────────────────────────────────────────────────────────────

    def _scan(self) -> Scan:
        return Scan(self.device, self.sizes, self.k, self.tally, self._meanwhile)

    def _find(self, picked: Picked, gate: Gate) -> None:
        self._keep(picked, self._scan().find(self.copies, pick(self.queries, picked), gate))

    def _keep(self, picked: Picked, found: tuple[Int32, Int32]) -> None:
        top, have = found
        self.result.row_qk[picked], self.result.points_qk[picked] = rows_and_points(top, have)
        self.result.returned_q[picked] = have

    def _note(self, way: str, queries: int) -> None:
        self.asked[way] = self.asked.get(way, 0) + queries

    def _telemetry(self, seconds: float) -> dict[str, object]:
        ways = sorted(self.asked)
        plans = [plan for plan in ("scan", "gather") if any(_plan_of(way) == plan for way in ways)]
        return {
            "plan": "+".join(plans) or "scan",
            "device": self.device.name,
            "product": "sieve" if self.device.tensor else "library",
            "rules": "+".join(ways),
            "pairs": self.tally.pairs,
            "survivors": self.tally.found,
            "tiles": self.tally.tiles,
            "overflows": self.tally.overflows,
            "seconds": seconds,
        }


def _all_of(piece: DeviceSegment) -> UInt32:
    """uint32 (1, words): bits of all rows."""
    words = np.full((1, -(-piece.n // WORD)), 0xFFFFFFFF, np.uint32)
    if piece.n % WORD:
        words[0, -1] = (1 << piece.n % WORD) - 1
    return words


def _gate_of(gate: RuleBits, row_q: Int32, way: str) -> RuleBits:
    """A gate for some of its queries. Bits are made of each group: of theirs alone, then."""
    some, own_q = np.unique(row_q, return_inverse=True)
    if way == "survivors" or some.size == len(gate.program.program.groups):
        return gate.asked_by(row_q)
    return gate.narrowed(some, own_q.astype(np.int32))


def device_costs(ops: CupyOps, d: int) -> DeviceCosts:
    """The device's cost model for rows of d dimensions, measured on first use."""
    if ops.device_costs is not None:
        return ops.device_costs
    if not ops.device.timed:
        return DeviceCosts()
    return calibrated(ops.device, d, ops.memory_bytes)


def rules_ready(
    ops: CupyOps, corpus: Corpus, program: Program
) -> tuple[list[DeviceColumns], list[Any]] | None:
    """(columns, living rows) of each part; None where they, or the program, do not fit.

    Raises:
        KeyError: a rule names a column that a segment lacks.
    """
    segments = [segment for segment, _ in corpus.parts]
    for segment in segments:
        if segment.n:
            program.check(segment)
    if program.nbytes > ops.memory_bytes // 4 or len(program.groups) > limit("GROUPS_MAX"):
        return None
    columns = ops.resident.columns(segments, program)
    if columns is None:
        return None
    return columns, [ops.resident.alive(alive) for _, alive in corpus.parts]


def count_rules(ops: CupyOps, corpus: Corpus, rules: Rules) -> tuple[int, int] | None:
    """Exact counts of one group on the device; None where its columns do not fit."""
    program = compile_program([rules])
    ready = rules_ready(ops, corpus, program)
    if ready is None:
        return None
    gate = RuleBits(ops.device, ops.device.program(program), *ready, np.zeros(1, np.int32))
    step = max(WORD, ops.memory_bytes * 4 // WORD * WORD)
    for part, (segment, _) in enumerate(corpus.parts):
        for begin in range(0, segment.n, step):
            gate.tile(part, begin, min(begin + step, segment.n))
    eligible_g, unverified_g = gate.counts()
    return int(eligible_g[0]), int(unverified_g[0])


def sample_spans(corpus: Corpus) -> list[tuple[int, int, int]]:
    """(part, begin, end) of stretches spread over the corpus; begins are multiples of 32."""
    step = sample_step(corpus.n)
    return [
        (part, begin, min(begin + SAMPLE_ROWS, segment.n))
        for part, (segment, _) in enumerate(corpus.parts)
        for begin in range(0, segment.n, step)
    ]


def sample_step(rows: int) -> int:
    """Rows from the beginning of a stretch to that of the next."""
    return max(SAMPLE_ROWS, rows // SAMPLE_CHUNKS // WORD * WORD)


def bits_by_part(corpus: Corpus, eligible_gn: Sequence[Bool]) -> list[UInt32]:
    """Per part, uint32 (G, words) of bool (N,) over the corpus."""
    edges = corpus.base.tolist()
    return [
        pack_bits([eligible[begin:end] for eligible in eligible_gn])
        for begin, end in itertools.pairwise(edges)
    ]


def pick(queries: Queries, picked: Picked) -> Queries:
    """Some of the queries; their groups are said by a gate."""
    floor_q = queries.floor_q
    return Queries(
        q_qd=queries.q_qd[picked],
        key_q=queries.key_q[picked],
        floor_q=None if floor_q is None else floor_q[picked],
    )


def _plan_of(way: str) -> str:
    return "gather" if way == "gather" else "scan"
