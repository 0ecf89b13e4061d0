"""All figures of a report, worked out from a run's files and an epoch of its store.

The run's files are read unit by unit. What needs the store (who could be shown, rules, rates,
skills, titles) is left out where there is none, and the figures say so.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from matchwright.engine.matcher import OTHER, Matcher
from matchwright.engine.policy import Policy
from matchwright.engine.prepare import SnapshotLike
from matchwright.engine.records import Kind
from matchwright.engine.rerank.rerank_block import TreesLike
from matchwright.engine.runs.plan import Plan
from matchwright.engine.runs.report import market
from matchwright.engine.runs.report.causes import Blocked, Causes, causes
from matchwright.engine.runs.report.contributions import with_contributions
from matchwright.engine.runs.report.exposure import (
    Exposure,
    Newcomers,
    exposure,
    newcomers,
    places_of,
)
from matchwright.engine.runs.report.histogram import Bins
from matchwright.engine.runs.report.market import RatePairs, Rates, Skills, drawn, records_of
from matchwright.engine.runs.report.outcomes import (
    Direction,
    FacetGave,
    FacetSums,
    Files,
    Moves,
    Outcome,
    read_direction,
)
from matchwright.engine.runs.report.sample import Query, Teller, plain_queries
from matchwright.engine.runs.report.second import SecondPhase, features_gave
from matchwright.engine.runs.report.side import Side
from matchwright.engine.runs.report.throughput import Throughput, Timing, throughput
from matchwright.kernels.ops import Ops
from matchwright.kernels.types import UInt64

FIGURES_FORMAT = 1
NEWCOMER_DAYS = 90
PEOPLE_MAX = 50_000
"""Freelancers whose records are read for the figures of newcomers, at most."""


@dataclass(frozen=True)
class Head:
    """What was run.

    Attributes:
        epoch: the run's; ``seen`` is the epoch that the figures about people and jobs come from,
            None when there was no store.
        generation, policy: ids; ``policy_name`` for people.
        as_of: days since 1970-01-01.
        living: kind -> rows in the run's epoch.
        state: "complete", or "incomplete" while run.json is not there.
        verdict: of a verification, "" when none is known.
        base: the run that an incremental one starts from, else None.
        redacted_rows, redacted_queries: what was taken out of the files since, because people were
            erased.
        summary: run.json's started, ended, seconds, device, versions, digest.
    """

    run_id: str
    epoch: str
    seen: str | None
    generation: str
    policy: str
    policy_name: str
    as_of: int
    kinds: tuple[Kind, ...]
    k: int
    slack: int
    living: Mapping[Kind, int]
    state: str
    verdict: str
    published: bool
    base: str | None
    redacted_rows: int
    redacted_queries: int
    summary: Mapping[str, Any]


@dataclass(frozen=True)
class Way:
    """Figures of one direction.

    Attributes:
        kind: the kind that asks.
        facets_rows: rows that ``facets`` are about; ``facets_sampled`` queries were drawn for them,
            None when they are about all rows.
        causes: None when there is no store or no short query.
        exposure: None when there is no store.
        newcomers: of freelancers who are shown; None else.
        second: None when no model ordered the candidates.
    """

    kind: Kind
    outcome: Outcome
    first: Bins
    last: Bins
    first_share: Bins
    last_share: Bins
    facets: tuple[FacetGave, ...]
    facets_rows: int
    facets_sampled: int | None
    causes: Causes | None
    exposure: Exposure | None
    newcomers: Newcomers | None
    moves: Moves | None
    second: SecondPhase | None


@dataclass(frozen=True)
class Figures:
    """Everything that a report says.

    Attributes:
        moved: what run.json says of the exposure pass; empty when there was none.
    """

    format: int
    head: Head
    ways: tuple[Way, ...]
    rates: Rates | None
    skills: Skills | None
    throughput: Throughput | None
    moved: Mapping[str, Any]
    sample: tuple[Query, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, eq=False)
class Run:
    """A run's files, read.

    Attributes:
        files: gives the units' frames.
        summary: run.json, or None while it is not there.
        timings: of the units that are done.
        verdict, published: of a verification; whether it is the published run.
    """

    plan: Plan
    files: Files
    summary: Mapping[str, Any] | None
    timings: Sequence[Timing]
    verdict: str = ""
    published: bool = False


def compute(
    run: Run, snapshot: SnapshotLike | None, ops: Ops, trees: TreesLike | None = None
) -> Figures:
    """All figures of a run.

    Args:
        run: its files.
        snapshot: the run's epoch of its store, or a later one, or None.
        ops: to count with.
        trees: of the run's model, where it has one and they are at hand.
    """
    plan, summary = run.plan, run.summary or {}
    seed = int(plan.run_id, 16)
    store = None if snapshot is None else _Store(snapshot, ops, plan, seed, trees)
    ways: list[Way] = []
    sample: list[Query] = []
    for kind in plan.options.kinds:
        watch = _ignore if store is None else store.watch
        read = read_direction(run.files, plan, kind, seed=seed, watch=watch)
        queries = plain_queries(kind, read.sampled, plan.options.k)
        way = _way(read) if store is None else store.way(read, queries, sample)
        if store is None:
            sample += queries
        ways.append(way)
    corpus: dict[Kind, int] = {kind: plan.counts[OTHER[kind]] for kind in plan.options.kinds}
    started, ended = str(summary.get("started", "")), str(summary.get("ended", ""))
    return Figures(
        format=FIGURES_FORMAT,
        head=_head(run, snapshot),
        ways=tuple(ways),
        rates=None if store is None else store.rates(),
        skills=None if store is None else store.skills(),
        throughput=throughput(run.timings, corpus, started, ended),
        moved=summary.get("moved") or {},
        sample=tuple(sample),
    )


def _ignore(kind: Kind, query_m: UInt64, key_m: UInt64) -> None:
    """Watches nothing."""


def _head(run: Run, snapshot: SnapshotLike | None) -> Head:
    plan, summary = run.plan, run.summary or {}
    told = ("started", "ended", "seconds", "device", "versions", "digest")
    return Head(
        run_id=plan.run_id,
        epoch=plan.epoch,
        seen=None if snapshot is None else str(snapshot.epoch),
        generation=plan.generation,
        policy=plan.policy_id,
        policy_name=plan.options.policy.name,
        as_of=plan.options.as_of,
        kinds=plan.options.kinds,
        k=plan.options.k,
        slack=plan.options.slack,
        living=dict(plan.counts),
        state="incomplete" if run.summary is None else "complete",
        verdict=run.verdict,
        published=run.published,
        base=plan.options.base,
        redacted_rows=sum(int(one["rows"]) for one in summary.get("redacted") or ()),
        redacted_queries=sum(int(one["queries"]) for one in summary.get("redacted") or ()),
        summary={name: summary[name] for name in told if name in summary},
    )


def _way(read: Direction) -> Way:
    """A direction as the files alone tell it."""
    return Way(
        kind=read.kind,
        outcome=read.outcome,
        first=read.first,
        last=read.last,
        first_share=read.first_share,
        last_share=read.last_share,
        facets=read.facets,
        facets_rows=read.outcome.rows if read.facets else 0,
        facets_sampled=None,
        causes=None,
        exposure=None,
        newcomers=None,
        moves=read.moves,
        second=read.second,
    )


class _Store:
    """What the store adds to the figures of a run."""

    def __init__(
        self, snapshot: SnapshotLike, ops: Ops, plan: Plan, seed: int, trees: TreesLike | None
    ) -> None:
        self._snapshot, self._ops, self._plan, self._seed = snapshot, ops, plan, seed
        self._trees = trees
        policy, self._day = plan.options.policy.without_rerank(), plan.options.as_of
        self._policy: Policy = policy
        self._sides = {kind: Side.of(snapshot, kind) for kind in OTHER}
        self._open = {kind: side.available(policy, self._day) for kind, side in self._sides.items()}
        self._pairs = RatePairs(self._sides["job"], self._sides["freelancer"])
        self._matcher = Matcher(snapshot, ops, policy)

    def watch(self, kind: Kind, query_m: UInt64, key_m: UInt64) -> None:
        """Count the amounts of jobs that are shown people."""
        if kind == "job":
            self._pairs.add(query_m, key_m)

    @property
    def _own_generation(self) -> bool:
        return str(self._snapshot.generation.id) == self._plan.generation

    def way(self, read: Direction, queries: Sequence[Query], sample: list[Query]) -> Way:
        """A direction, all of it; its drawn queries are added to ``sample``."""
        kind = read.kind
        way = _way(read)
        rows = read.sampled.rows
        if self._own_generation:
            rows = with_contributions(self._matcher, kind, rows, self._day)
        if not way.facets and rows.height:
            way = dataclasses.replace(way, **self._facets(read, rows))
        if way.second is not None and self._trees is not None and self._own_generation:
            gave, n, q = features_gave(self._matcher, self._trees, kind, rows, self._plan)
            told = dataclasses.replace(
                way.second, features=gave, features_rows=n, features_queries=q
            )
            way = dataclasses.replace(way, second=told)
        blocked: Mapping[str, Sequence[Blocked]] = {}
        counted: Causes | None = None
        if read.sampled.short:
            short = [query.id for query in queries if query.outcome != "full"]
            counted, blocked = self._causes(read, short)
        teller = Teller(self._snapshot, self._policy, self._day)
        sample += teller.told(kind, queries, rows, blocked)
        place_n = places_of(self._sides[OTHER[kind]].key_n, read.shown)
        able = self._open[OTHER[kind]]
        return dataclasses.replace(
            way,
            causes=counted,
            exposure=exposure(place_n[able], int(read.shown[1].sum())),
            newcomers=self._newcomers(place_n) if kind == "job" else None,
        )

    def _facets(self, read: Direction, rows: Any) -> dict[str, Any]:
        """Figures of facets from the rows of drawn queries."""
        steps = {name: row["t"] for name, row in read.sampled.queries.items()}
        sums = FacetSums(self._plan)
        sums.add(rows, np.array([steps[name] for name in rows["query_id"]], dtype=np.float64))
        return {
            "facets": sums.done(),
            "facets_rows": rows.height,
            "facets_sampled": rows["query_id"].n_unique(),
        }

    def _causes(
        self, read: Direction, more: Sequence[str]
    ) -> tuple[Causes, Mapping[str, Sequence[Blocked]]]:
        return causes(
            self._snapshot,
            self._ops,
            self._policy,
            read.kind,
            read.sampled.short,
            k=self._plan.options.k,
            as_of=self._day,
            of=read.outcome.few + read.outcome.none,
            more=more,
        )

    def _newcomers(self, place_n: Any) -> Newcomers:
        side = self._sides["freelancer"]
        able = self._open["freelancer"]
        at = drawn(able, PEOPLE_MAX, self._seed)
        joined: list[int | None] = []
        reviews: list[int | None] = []
        for person in records_of(side, at):
            joined.append(person["joined"])
            reviews.append(person["reviews"])
        return newcomers(
            joined,
            reviews,
            place_n[at],
            as_of=self._day,
            days=NEWCOMER_DAYS,
            of=int(np.count_nonzero(able)),
        )

    def rates(self) -> Rates:
        """Rates and budgets of both sides, and of pairs when jobs ask."""
        return self._pairs.done(self._open["job"], self._open["freelancer"])

    def skills(self) -> Skills:
        """Skills of both sides."""
        jobs, people = self._sides["job"], self._sides["freelancer"]
        return market.skills(jobs, people, self._open["job"], self._open["freelancer"], self._seed)


__all__ = ["Figures", "Files", "Head", "Run", "Way", "compute"]
