"""How fast a run went, unit by unit."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matchwright.engine.records import Kind

STEPS_MAX = 200


@dataclass(frozen=True)
class Step:
    """Some units of one kind that were done one after another.

    Attributes:
        start_s, end_s: working seconds since the run began.
        queries, rows: done; ``per_s`` is queries a second of working time.
    """

    kind: Kind
    start_s: float
    end_s: float
    queries: int
    rows: int
    per_s: float


@dataclass(frozen=True)
class Throughput:
    """How fast a run went.

    Attributes:
        units: done; ``working_s`` is the sum of their seconds, ``kernel_s`` of those in kernels.
        wall_s: from the run's start to its end, pauses included; None when not told.
        queries, rows, pairs: done; a pair is a query and a row of the corpus.
        steps: in the order in which units ended.
    """

    units: int
    working_s: float
    kernel_s: float
    wall_s: float | None
    queries: int
    rows: int
    pairs: int
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class Timing:
    """What one unit took.

    Attributes:
        ended: UTC, ISO 8601; "" when not told.
        kernel_s, total_s: seconds.
    """

    kind: Kind
    number: int
    queries: int
    rows: int
    kernel_s: float
    total_s: float
    ended: str


def throughput(
    timings: Sequence[Timing], corpus: Mapping[Kind, int], started: str, ended: str
) -> Throughput | None:
    """Figures of speed; None when no unit tells its seconds.

    Args:
        corpus: kind that asks -> rows that each of its queries was matched with.
        started, ended: of the run, UTC, ISO 8601, or "".
    """
    timed = [one for one in timings if one.total_s > 0]
    if not timed:
        return None
    timed.sort(key=lambda one: (one.ended, one.kind != "job", one.number))
    return Throughput(
        units=len(timed),
        working_s=sum(one.total_s for one in timed),
        kernel_s=sum(one.kernel_s for one in timed),
        wall_s=_between(started, ended),
        queries=sum(one.queries for one in timed),
        rows=sum(one.rows for one in timed),
        pairs=sum(one.queries * corpus[one.kind] for one in timed),
        steps=tuple(_steps(timed)),
    )


def _steps(timed: Sequence[Timing]) -> list[Step]:
    """At most about ``STEPS_MAX`` steps, each of units of one kind."""
    together = -(-len(timed) // STEPS_MAX)
    steps: list[Step] = []
    group: list[Timing] = []
    clock = 0.0
    for one, following in zip(timed, [*timed[1:], None], strict=True):
        group.append(one)
        if following is None or len(group) >= together or following.kind != one.kind:
            spent = sum(unit.total_s for unit in group)
            queries, rows = sum(u.queries for u in group), sum(u.rows for u in group)
            steps.append(Step(one.kind, clock, clock + spent, queries, rows, queries / spent))
            clock, group = clock + spent, []
    return steps


def _between(started: str, ended: str) -> float | None:
    if not started or not ended:
        return None
    first, last = (datetime.datetime.fromisoformat(text) for text in (started, ended))
    return (last - first).total_seconds()


def timing_of(kind: Kind, number: int, told: Mapping[str, Any]) -> Timing:
    """A unit's record as figures; what it does not tell is 0."""
    seconds = told.get("seconds", {})
    return Timing(
        kind=kind,
        number=number,
        queries=int(told.get("queries", 0)),
        rows=int(told.get("rows", 0)),
        kernel_s=float(seconds.get("kernel", 0.0)),
        total_s=float(seconds.get("total", 0.0)),
        ended=str(told.get("ended", "")),
    )
