"""Rates against budgets, and skills asked for against skills offered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from matchwright.engine.columns import fold, name_hash
from matchwright.engine.runs.report.histogram import Bins, Histogram
from matchwright.engine.runs.report.side import Side
from matchwright.kernels.types import NO_LIMIT, UNKNOWN, Bool, Int32, Int64, UInt64

RATE_EDGES = tuple(round(100 * 10 ** (step / 8)) for step in range(-8, 33))
"""Edges of the classes of money, cents: eight to a factor of ten, from 0.10 to 10,000."""
SKILL_JOBS_MIN, SKILLS_SHOWN = 5, 40
"""A skill that fewer jobs ask for is not named."""
RECORDS_AT_ONCE, RECORDS_MAX = 4_096, 50_000


@dataclass(frozen=True)
class Rates:
    """Hourly rates asked for, hourly budgets stated, and both of the pairs that were matched.

    Attributes:
        edges: of the classes, cents; the first and last class also hold what lies beyond.
        people, jobs: who is available; ``people_known`` and ``jobs_known`` state a rate, or the
            top of an hourly budget.
        rate_counts, budget_counts: of each class.
        pairs: (class of the budget, class of the rate, matches), where both are stated.
        matches: rows in which jobs are shown people; ``matches_known`` have both amounts.
        ratio: rate divided by the budget's top, over those matches.
    """

    edges: tuple[int, ...]
    people: int
    people_known: int
    jobs: int
    jobs_known: int
    rate_counts: tuple[int, ...]
    budget_counts: tuple[int, ...]
    rate_median: float
    budget_median: float
    matches: int
    matches_known: int
    within: int
    pairs: tuple[tuple[int, int, int], ...]
    ratio: Bins


def stated(cents_n: Int32) -> Bool:
    """Where an amount is stated."""
    known: Bool = (cents_n != UNKNOWN) & (cents_n != NO_LIMIT)
    return known


class RatePairs:
    """Counts the amounts of matched pairs, unit by unit."""

    def __init__(self, jobs: Side, people: Side) -> None:
        self._jobs, self._people = jobs, people
        self._grid = np.zeros((len(RATE_EDGES) - 1,) * 2, dtype=np.int64)
        self._ratio = Histogram()
        self._rows = self._known = self._within = 0

    def add(self, job_m: UInt64, person_m: UInt64) -> None:
        """Count pairs of keys."""
        self._rows += job_m.size
        job, person = self._jobs.find(job_m), self._people.find(person_m)
        there = (job >= 0) & (person >= 0)
        top = self._jobs.scalar("budget_top")[job[there]]
        rate = self._people.scalar("rate")[person[there]]
        both = stated(top) & stated(rate)
        top, rate = top[both], rate[both]
        self._known += top.size
        self._within += int(np.count_nonzero(rate <= top))
        np.add.at(self._grid, (classes(top), classes(rate)), 1)
        paid = top > 0
        self._ratio.add(rate[paid] / top[paid])

    def done(self, jobs: Bool, people: Bool) -> Rates:
        """Figures of the pairs, and of all jobs and people that take part."""
        rate, budget = self._people.scalar("rate")[people], self._jobs.scalar("budget_top")[jobs]
        rate, budget = rate[stated(rate)], budget[stated(budget)]
        size = len(RATE_EDGES) - 1
        budgets, rates = np.nonzero(self._grid)
        counts = self._grid[budgets, rates]
        return Rates(
            edges=RATE_EDGES,
            people=int(np.count_nonzero(people)),
            people_known=int(rate.size),
            jobs=int(np.count_nonzero(jobs)),
            jobs_known=int(budget.size),
            rate_counts=tuple(np.bincount(classes(rate), minlength=size).tolist()),
            budget_counts=tuple(np.bincount(classes(budget), minlength=size).tolist()),
            rate_median=float(np.median(rate)) if rate.size else 0.0,
            budget_median=float(np.median(budget)) if budget.size else 0.0,
            matches=self._rows,
            matches_known=self._known,
            within=self._within,
            pairs=tuple(zip(budgets.tolist(), rates.tolist(), counts.tolist(), strict=True)),
            ratio=self._ratio.done(),
        )


def classes(cents_n: Int32) -> Int64:
    """The class of each amount, int64 (N,)."""
    at = np.searchsorted(np.array(RATE_EDGES[1:-1]), cents_n, side="right")
    return at.astype(np.int64)


@dataclass(frozen=True)
class Skill:
    """A skill on both sides: jobs that ask for it, people who offer it."""

    name: str
    jobs: int
    must: int
    people: int


@dataclass(frozen=True)
class Skills:
    """Skills asked for against skills offered.

    Attributes:
        jobs: jobs looked at that name skills, of ``jobs_of`` that are available (a seeded sample
            when fewer were looked at: ``jobs_read``).
        people: available people who name skills, all of them.
        names: distinct skills asked for; ``rare`` are asked for by fewer than 5 jobs and not
            named; ``unserved`` are asked for and offered by nobody, by ``unserved_jobs`` jobs.
        short: most in short supply first: share of jobs asking minus share of people offering.
        ample: the other way round.
    """

    jobs: int
    jobs_read: int
    jobs_of: int
    people: int
    names: int
    rare: int
    unserved: int
    unserved_jobs: int
    short: tuple[Skill, ...]
    ample: tuple[Skill, ...]


def records_of(side: Side, at: Int64) -> Iterator[dict[str, Any]]:
    """The records of places in a side, read some at a time."""
    for start in range(0, at.size, RECORDS_AT_ONCE):
        yield from side.snapshot.rows(side.kind, side.ids(at[start : start + RECORDS_AT_ONCE]))


def drawn(good_n: Bool, most: int, seed: int) -> Int64:
    """Places that hold, at most so many of them, ascending; seeded when there are more."""
    at = np.flatnonzero(good_n)
    if at.size <= most:
        return at
    chosen: Int64 = np.sort(np.random.default_rng(seed).choice(at, most, replace=False))
    return chosen


class _Asked:
    """Skills that jobs ask for, by folded name."""

    def __init__(self) -> None:
        self.jobs, self.must = Counter[str](), Counter[str]()
        self.spelling: dict[str, str] = {}
        self.lists: list[tuple[str, ...]] = []

    def add(self, job: Mapping[str, Any]) -> None:
        """Count one job."""
        named = {fold(one["name"]): one for one in job["skills"] or ()}
        if named:
            self.lists.append(tuple(named))
        self.jobs.update(named.keys())
        self.must.update(name for name, one in named.items() if one["must"])
        for name, one in named.items():
            self.spelling.setdefault(name, one["name"])


def skills(jobs: Side, people: Side, job_n: Bool, person_n: Bool, seed: int) -> Skills:
    """Figures of skills.

    Args:
        job_n, person_n: who takes part.
        seed: of the sample of jobs.
    """
    at = drawn(job_n, RECORDS_MAX, seed)
    asked = _Asked()
    for job in records_of(jobs, at):
        asked.add(job)
    names = list(asked.jobs)
    offered, offering = _offered(people, person_n, names)
    common = [name for name in names if asked.jobs[name] >= SKILL_JOBS_MIN]
    ranked = _ranked(asked, common, offered, offering)
    unserved = {name for name in names if not offered[name]}
    return Skills(
        jobs=len(asked.lists),
        jobs_read=int(at.size),
        jobs_of=int(np.count_nonzero(job_n)),
        people=offering,
        names=len(names),
        rare=len(names) - len(common),
        unserved=len(unserved),
        unserved_jobs=sum(not unserved.isdisjoint(listed) for listed in asked.lists),
        short=tuple(one for one in ranked[:SKILLS_SHOWN] if _gap(one, asked, offering) > 0),
        ample=tuple(
            one for one in reversed(ranked[-SKILLS_SHOWN:]) if _gap(one, asked, offering) < 0
        ),
    )


def _gap(one: Skill, asked: _Asked, offering: int) -> float:
    """Share of jobs that ask minus share of people who offer."""
    return one.jobs / max(len(asked.lists), 1) - one.people / max(offering, 1)


def _ranked(asked: _Asked, names: list[str], offered: Counter[str], offering: int) -> list[Skill]:
    found = [
        Skill(asked.spelling[name], asked.jobs[name], asked.must[name], offered[name])
        for name in names
    ]
    return sorted(found, key=lambda one: (-_gap(one, asked, offering), one.name))


def _offered(people: Side, person_n: Bool, names: list[str]) -> tuple[Counter[str], int]:
    """(people who offer each of the names, people who name skills), of those who take part."""
    wanted = np.array([name_hash(name) for name in names], dtype=np.uint64)
    order = np.argsort(wanted, kind="stable")
    total, offering = np.zeros(wanted.size, dtype=np.int64), 0
    taking = np.zeros(people.corpus.n, dtype=np.bool_)
    taking[people.row_n[person_n]] = True
    for (segment, _), base in zip(people.corpus.parts, people.corpus.base.tolist(), strict=False):
        column = segment.sets["skills"]
        size_n = np.diff(column.start_n)
        here = taking[base : base + segment.n]
        offering += int(np.count_nonzero(here & (size_n > 0)))
        value = column.value[np.repeat(here, size_n)]
        if wanted.size and value.size:
            found, counts = np.unique(value, return_counts=True)
            at = np.minimum(np.searchsorted(found, wanted[order]), found.size - 1)
            total[order] += np.where(found[at] == wanted[order], counts[at], 0)
    return Counter(dict(zip(names, total.tolist(), strict=True))), offering
