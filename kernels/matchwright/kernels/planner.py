"""Which plan answers a group of queries soonest on this machine.

Both plans cost time in proportion to what they touch, so the choice is one comparison, with
constants that are measured here and not guessed::

    scan    rows * scan_row  +  rows * queries * scan_pair
    gather  query  +  eligible * gather_row  +  eligible * queries * gather_pair     (per group)
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from matchwright.kernels.access import Scratch

if TYPE_CHECKING:
    from matchwright.kernels.ops import Ops

Plan = Literal["auto", "scan", "gather", "skip"]


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds of one thread, for rows of ``d`` dimensions.

    Attributes:
        d: dimensions at which the costs were measured; others are scaled in proportion.
        scan_row: reading one row of the corpus, once for all queries.
        scan_pair: one query against one row of a scan.
        gather_row: taking one eligible row to a place of its own.
        gather_pair: one query against one row that was taken.
        query: what a gathered query costs besides.
    """

    d: int = 256
    scan_row: float = 20e-9
    scan_pair: float = 4e-9
    gather_row: float = 60e-9
    gather_pair: float = 30e-9
    query: float = 60e-6

    def scan(self, rows: int, queries: int, d: int) -> float:
        """Seconds of one scan for some queries."""
        return rows * (self.scan_row + queries * self.scan_pair) * d / self.d

    def gather(self, eligible: int, queries: int, d: int) -> float:
        """Seconds of gathering a group's rows for its queries."""
        each = (self.gather_row + queries * self.gather_pair) * d / self.d
        return queries * self.query + eligible * each


@dataclass(frozen=True, slots=True)
class Load:
    """A group as the planner sees it: how many queries, and how many rows are eligible."""

    queries: int
    eligible: int


def gathered(costs: Costs, loads: Sequence[Load], rows: int, d: int) -> list[bool]:
    """Which groups should be gathered; the others share one scan."""
    alone = [costs.gather(load.eligible, load.queries, d) for load in loads]
    shared = costs.scan(rows, 0, d)
    choice = [
        gather <= costs.scan(rows, load.queries, d) - shared
        for gather, load in zip(alone, loads, strict=True)
    ]
    rest = [i for i, gather in enumerate(choice) if not gather]
    scan = costs.scan(rows, sum(loads[i].queries for i in rest), d)
    if rest and sum(alone[i] for i in rest) <= scan:
        return [True] * len(loads)
    return choice


# ── Calibration ───────────────────────────────────────────────────────────────────────────────

_KNOWN: dict[tuple[str, int], Costs] = {}
_LOCK = threading.Lock()
_ROWS, _QUERIES, _GATHERED = 2_048, 64, 2_048


def calibrated(ops: Ops, d: int) -> Costs:
    """Costs of this backend on this machine, measured once in a process (about 0.1 s)."""
    with _LOCK:
        key = (type(ops).__name__, d)
        if key not in _KNOWN:
            _KNOWN[key] = ops.alone(lambda: _measure(ops, d))
        return _KNOWN[key]


def _measure(ops: Ops, d: int) -> Costs:
    generator = np.random.default_rng(0)
    corpus = generator.integers(-127, 128, (max(_ROWS, (16 << 20) // max(d, 1)), d), dtype=np.int8)
    q_qd = generator.integers(-16_255, 16_256, (_QUERIES, d)).astype(np.int16)
    scratch, block = Scratch(), corpus[:_ROWS]
    first = ops.split(q_qd, norm2=127 * 127 * d).first_qd
    least = np.zeros(_QUERIES, dtype=first.dtype)

    def scan(q: int) -> None:
        for tile in ops.tiles(first[:q], block, [(0, q)], scratch):
            np.flatnonzero(np.packbits(tile >= least[:q, None], axis=1).view(np.uint64))

    def gather(q: int) -> None:
        rows = np.sort(generator.integers(0, corpus.shape[0], _GATHERED))
        ops.exact(q_qd[:q], corpus.take(rows, axis=0), scratch)

    few, many = (_seconds(lambda q=q: scan(q)) / _ROWS for q in (8, _QUERIES))  # type: ignore[misc]
    pair = max((many - few) / (_QUERIES - 8), 1e-12)
    one, eight = (_seconds(lambda q=q: gather(q)) / _GATHERED for q in (1, 8))  # type: ignore[misc]
    gather_pair = max((eight - one) / 7, 1e-12)
    return Costs(
        d=max(d, 1),
        scan_row=max(few - 8 * pair, 1e-12),
        scan_pair=pair,
        gather_row=max(one - gather_pair, 1e-12),
        gather_pair=gather_pair,
        query=_seconds(lambda: ops.exact(q_qd[:1], corpus[:8], scratch)) * 3,
    )


def _seconds(work: Callable[[], object], repeats: int = 7) -> float:
    """The shortest of some runs: what the machine can do when nothing disturbs it."""
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best
