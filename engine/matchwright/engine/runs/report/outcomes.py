"""What the units of a run hold, read one after another: who found how many, and how good."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import polars as pl

from matchwright.engine.records import Kind
from matchwright.engine.runs.plan import Plan, Unit
from matchwright.engine.runs.report.histogram import Bins, Histogram, Tally
from matchwright.engine.runs.report.second import SecondPhase, SecondTally, before_pass
from matchwright.kernels.types import Float64, Int64, UInt64

SAMPLE_SHORT = 200
"""Queries with fewer than K matches whose rules are counted, at most."""
SHOWN_SHORT, SHOWN = 40, 120
"""Queries that are shown: with no match and with few, at most each; in all, at most."""
_ODD = np.uint64(0x9E3779B97F4A7C15)


class Files(Protocol):
    """What is read of a run's folder."""

    def part(self, unit: Unit) -> pl.DataFrame: ...
    def queries(self, unit: Unit) -> pl.DataFrame: ...
    def slack(self, unit: Unit) -> pl.DataFrame: ...


@dataclass(frozen=True)
class Outcome:
    """How many queries found how many matches.

    Attributes:
        queries: all of them.
        full: with K matches; few: with fewer, but some; none; errors: could not be asked.
        rows: matches in all.
        shortfalls: reason of those with fewer than K -> queries.
        few_counts: (matches, queries) of those with a few.
        eligible: eligible pairs of each query, as log2(1 + pairs); None when not counted.
    """

    queries: int
    full: int
    few: int
    none: int
    errors: int
    rows: int
    shortfalls: Mapping[str, int]
    few_counts: tuple[tuple[int, int], ...]
    eligible: Bins | None


@dataclass(frozen=True)
class FacetGave:
    """What one facet gave to the scores.

    Attributes:
        name: the facet.
        weight: in the policy: the most that it can give.
        spread: its part of the score over all matches.
        first, last: its mean part in first matches, and in K-th ones.
    """

    name: str
    weight: float
    spread: Bins
    first: float
    last: float


@dataclass(frozen=True)
class Moves:
    """What the exposure pass did to the rows of a direction.

    Attributes:
        rows: that it looked at; queries: with at least one row moved.
        reasons: why a row moved -> rows.
        up, down: rows that stand better, or worse, than before; entered: from beyond K.
    """

    rows: int
    queries: int
    reasons: Mapping[str, int]
    up: int
    down: int
    entered: int


@dataclass(frozen=True)
class Sampled:
    """Queries that were drawn, as their rows of the files say.

    Attributes:
        short: ids of queries with fewer than K matches, to count rules for.
        queries: rows of the queries' files that are shown, by id.
        rows: their rows of the part files, best first.
    """

    short: tuple[str, ...]
    queries: Mapping[str, Mapping[str, Any]]
    rows: pl.DataFrame


@dataclass(frozen=True, eq=False)
class Direction:
    """One direction of a run, read.

    Attributes:
        kind: the kind that asks.
        first, last: scores of first and of K-th matches; ``first_share``, ``last_share``: the same
            as shares of what the best conceivable match of the query would score.
        facets: empty when the run does not keep contributions.
        shown: how often each key was shown.
        moves: None when no row has a place from an exposure pass.
        second: None when no model ordered the rows.
    """

    kind: Kind
    outcome: Outcome
    first: Bins
    last: Bins
    first_share: Bins
    last_share: Bins
    facets: tuple[FacetGave, ...]
    shown: tuple[UInt64, Int64]
    moves: Moves | None
    second: SecondPhase | None
    sampled: Sampled


Watcher = Callable[[Kind, UInt64, UInt64], None]
"""Is told (kind that asks, query key of each row, key of each row) of every unit."""


def read_direction(files: Files, plan: Plan, kind: Kind, *, seed: int, watch: Watcher) -> Direction:
    """Read every unit of a direction, twice its queries and once its rows, one unit at a time.

    Args:
        seed: decides who is drawn.
        watch: is told of all rows.
    """
    units, k = plan.units_of(kind), plan.options.k
    outcomes, draw = _Outcomes(k), _Draw(k, seed)
    for unit in units:
        queries = files.queries(unit)
        outcomes.add(queries)
        draw.add(queries)
    rows = _Rows(plan, kind, draw.chosen)
    exposed = plan.options.policy.exposure is not None and plan.ranker is not None
    for unit in units:
        part = files.part(unit)
        moved = part
        if exposed and "moved" in part.columns:
            moved = before_pass(part, files.slack(unit) if plan.options.slack else None)
        rows.add(part, files.queries(unit), moved)
        watch(kind, part["query_key"].to_numpy(), part["key"].to_numpy())
    return rows.direction(outcomes.done(), draw)


class _Outcomes:
    """Counts of outcomes."""

    def __init__(self, k: int) -> None:
        self._k = k
        self._found: Counter[int] = Counter()
        self._short: Counter[str] = Counter()
        self._errors = 0
        self._eligible = Histogram()
        self._counted = False

    def add(self, queries: pl.DataFrame) -> None:
        good = queries.filter(pl.col("error").is_null())
        self._errors += queries.height - good.height
        self._found.update(dict(good["returned"].value_counts().iter_rows()))
        short = good["shortfall"].drop_nulls().cast(pl.String).value_counts()
        self._short.update(dict(short.iter_rows()))
        counted = good["eligible"].to_numpy()
        counted = counted[counted >= 0]
        self._counted |= bool(counted.size)
        self._eligible.add(np.log2(1.0 + counted))

    def done(self) -> Outcome:
        k, found = self._k, self._found
        few = {n: queries for n, queries in found.items() if 0 < n < k}
        return Outcome(
            queries=found.total() + self._errors,
            full=sum(queries for n, queries in found.items() if n >= k),
            few=sum(few.values()),
            none=found[0],
            errors=self._errors,
            rows=sum(n * queries for n, queries in found.items()),
            shortfalls=dict(self._short.most_common()),
            few_counts=tuple(sorted(few.items())),
            eligible=self._eligible.done() if self._counted else None,
        )


class _Draw:
    """Seeded samples of queries: those whose keys mix to the smallest numbers."""

    def __init__(self, k: int, seed: int) -> None:
        self._k, self._seed = k, np.uint64(seed)
        self._kept: dict[str, list[tuple[int, dict[str, Any]]]] = {}

    def add(self, queries: pl.DataFrame) -> None:
        good = queries.filter(pl.col("error").is_null() & pl.col("query_id").is_not_null())
        returned = good["returned"].to_numpy()
        mixed = scrambled(good["query_key"].to_numpy(), self._seed)
        for name, mask, most in (
            ("short", returned < self._k, SAMPLE_SHORT),
            ("none", returned == 0, SHOWN_SHORT),
            ("few", (returned > 0) & (returned < self._k), SHOWN_SHORT),
            ("full", returned >= self._k, SHOWN),
        ):
            here = np.flatnonzero(mask)
            here = here[np.argsort(mixed[here], kind="stable")[:most]]
            rows = [(int(mixed[at]), good.row(at, named=True)) for at in here.tolist()]
            kept = [*self._kept.get(name, ()), *rows]
            self._kept[name] = sorted(kept, key=lambda pair: pair[0])[:most]

    @property
    def short(self) -> tuple[str, ...]:
        return tuple(row["query_id"] for _, row in self._kept.get("short", ()))

    @property
    def chosen(self) -> dict[str, dict[str, Any]]:
        """Drawn queries by id."""
        names = ("none", "few", "full")
        rows = [row for name in names for _, row in self._kept.get(name, ())]
        return {row["query_id"]: row for row in rows[:SHOWN]}


def scrambled(keys: UInt64, seed: np.uint64) -> UInt64:
    """Keys in an order that the seed decides (the finaliser of splitmix64)."""
    with np.errstate(over="ignore"):
        z = (keys ^ seed) + _ODD
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        scrambled: UInt64 = z ^ (z >> np.uint64(31))
    return scrambled


class _Rows:
    """Figures over the rows of a direction."""

    def __init__(self, plan: Plan, kind: Kind, chosen: Mapping[str, Mapping[str, Any]]) -> None:
        self._plan, self._kind, self._chosen = plan, kind, chosen
        self._scores = {name: Histogram() for name in ("first", "last", "a", "b")}
        self._facets = FacetSums(plan)
        self._tally = Tally()
        self._moves = _Moves()
        self._second = SecondTally(plan)
        self._rows: list[pl.DataFrame] = []

    def add(self, part: pl.DataFrame, queries: pl.DataFrame, moved: pl.DataFrame) -> None:
        """Count a unit; query keys ascend in both frames.

        Args:
            moved: the part, with ranks before the exposure pass in ``first_rank``.
        """
        self._tally.add(part["key"].to_numpy())
        at = np.searchsorted(queries["query_key"].to_numpy(), part["query_key"].to_numpy())
        rank, score = part["rank"].to_numpy(), part["score"].to_numpy()
        best = queries["attainable"].to_numpy()[at]
        ends = {"first": rank == 1, "last": rank == self._plan.options.k}
        for name, share, mask in (("first", "a", ends["first"]), ("last", "b", ends["last"])):
            self._scores[name].add(score[mask])
            able = mask & (best > 0)
            self._scores[share].add(score[able] / best[able])
        self._facets.add(part, queries["t"].to_numpy()[at])
        self._moves.add(moved)
        self._second.add(part, queries)
        self._rows.append(part.filter(pl.col("query_id").is_in(list(self._chosen))))

    def _kept(self) -> pl.DataFrame:
        return pl.concat(self._rows) if self._rows else pl.DataFrame()

    def direction(self, outcome: Outcome, draw: _Draw) -> Direction:
        """All that was counted."""
        scores = {name: histogram.done() for name, histogram in self._scores.items()}
        return Direction(
            kind=self._kind,
            outcome=outcome,
            first=scores["first"],
            last=scores["last"],
            first_share=scores["a"],
            last_share=scores["b"],
            facets=self._facets.done(),
            shown=self._tally.done(),
            moves=self._moves.done(),
            second=self._second.done(),
            sampled=Sampled(
                draw.short, self._chosen, pl.concat(self._rows) if self._rows else pl.DataFrame()
            ),
        )


class FacetSums:
    """What facets gave, from the columns of contributions where they are there."""

    def __init__(self, plan: Plan) -> None:
        self._k, self._weights = plan.options.k, plan.options.policy.weights
        self._spread = {name: Histogram() for name in plan.facets}
        self._ends = {name: _Means() for name in plan.facets}

    def add(self, part: pl.DataFrame, t_n: Float64) -> None:
        """Count rows; ``t_n`` is the step of each row's query."""
        rank = part["rank"].to_numpy()
        for name, spread in self._spread.items():
            if f"points_{name}" in part.columns:
                gave = part[f"points_{name}"].to_numpy() * t_n
                spread.add(gave)
                self._ends[name].add(gave[rank == 1], gave[rank == self._k])

    def done(self) -> tuple[FacetGave, ...]:
        """All that was counted; nothing when no row has contributions."""
        return tuple(
            FacetGave(name, self._weights.get(name, 0.0), bins, *self._ends[name].means)
            for name, spread in self._spread.items()
            if (bins := spread.done()).n
        )


class _Means:
    """Means of two sets of values that grow."""

    def __init__(self) -> None:
        self._sums, self._n = [0.0, 0.0], [0, 0]

    def add(self, *values: Float64) -> None:
        for at, v_n in enumerate(values):
            self._sums[at] += float(v_n.sum())
            self._n[at] += v_n.size

    @property
    def means(self) -> tuple[float, float]:
        first, last = (s / n if n else 0.0 for s, n in zip(self._sums, self._n, strict=True))
        return first, last


class _Moves:
    """What an exposure pass moved."""

    def __init__(self) -> None:
        self._reasons: Counter[str] = Counter()
        self._rows = self._queries = self._up = self._down = self._entered = 0
        self._there = False

    def add(self, part: pl.DataFrame) -> None:
        if "moved" not in part.columns or part["moved"].null_count() == part.height:
            self._rows += part.height
            return
        self._there = True
        self._rows += part.height
        moved = part.filter(pl.col("moved").is_not_null())
        counted = moved["moved"].cast(pl.String).value_counts()
        self._reasons.update(dict(counted.iter_rows()))
        self._queries += moved["query_key"].n_unique()
        rank, before = moved["rank"].to_numpy(), moved["first_rank"].fill_null(0).to_numpy()
        self._up += int(np.count_nonzero(before > rank))
        self._down += int(np.count_nonzero((before > 0) & (before < rank)))

    def done(self) -> Moves | None:
        if not self._there:
            return None
        entered = self._reasons.get("entered", 0)
        reasons = dict(self._reasons.most_common())
        return Moves(self._rows, self._queries, reasons, self._up, self._down, entered)
