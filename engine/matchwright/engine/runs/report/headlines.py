"""The first lines of a report: what happened, in sentences and a few large numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from matchwright.engine.matcher import OTHER
from matchwright.engine.runs.report import words
from matchwright.engine.runs.report.figures import Figures, Way
from matchwright.engine.runs.report.words import of, percent, whole

SKILLS_NAMED = 3


class Tile(NamedTuple):
    """A large number, what it is, and what stands below it."""

    value: str
    name: str
    below: str


def tiles(figures: Figures) -> list[Tile]:
    """The large numbers."""
    k = figures.head.k
    found = [
        Tile(
            of(way.outcome.full, way.outcome.queries),
            f"of {words.PLURAL[way.kind]} found {whole(k)}",
            f"{whole(way.outcome.none)} without any match",
        )
        for way in figures.ways
    ]
    for way in figures.ways:
        if way.exposure is not None:
            other = words.PLURAL[OTHER[way.kind]]
            found.append(
                Tile(
                    of(way.exposure.shown, way.exposure.available),
                    f"of available {other} are shown",
                    f"Gini {way.exposure.gini:.2f}",
                )
            )
    if figures.throughput is not None:
        rate = figures.throughput.queries / figures.throughput.working_s
        took = words.seconds(figures.throughput.working_s)
        found.append(Tile(words.short(rate), "queries a second", f"{took} of work"))
    return found


def sentences(figures: Figures) -> list[str]:
    """What to know before reading on."""
    found: list[str] = []
    for way in figures.ways:
        found += _outcome(way, figures.head.k)
    for way in figures.ways:
        found += _exposure(way)
    skills = figures.skills
    if skills is not None and skills.short:
        named = ", ".join(
            f"{one.name} ({of(one.jobs, skills.jobs)} ask, {of(one.people, skills.people)} offer)"
            for one in skills.short[:SKILLS_NAMED]
        )
        found.append(f"Demand outruns supply most for {named}.")
    return found


def _outcome(way: Way, k: int) -> Iterator[str]:
    counts, asking = way.outcome, words.PLURAL[way.kind]
    short = counts.none + counts.few
    if not counts.queries:
        yield f"There were no {asking} to match."
        return
    if not short and not counts.errors:
        yield f"Every one of {whole(counts.queries)} {asking} found {k} matches."
        return
    none = f"{whole(counts.none)} of {whole(counts.queries)} {asking}"
    yield (
        f"{none} ({of(counts.none, counts.queries)}) found no match, {whole(counts.few)} "
        f"({of(counts.few, counts.queries)}) fewer than {k}."
    )
    if counts.errors:
        yield f"{whole(counts.errors)} {asking} could not be asked; their reasons are in the files."
    if way.causes is not None and way.causes.rules and way.causes.rules[0].freed:
        first = way.causes.rules[0]
        yield (
            f"{of(first.freed, way.causes.sampled)} of the {asking} that are short would have {k} "
            f"but for one rule: {words.veto(first.veto)[0].lower()}{words.veto(first.veto)[1:]}."
        )


def _exposure(way: Way) -> Iterator[str]:
    other = words.PLURAL[OTHER[way.kind]]
    shown = way.exposure
    if shown is not None and shown.places:
        never = shown.available - shown.shown
        yield (
            f"The most shown 1% of {other} hold {percent(shown.top_share)} of all places; "
            f"{whole(never)} available {other} ({of(never, shown.available)}) are shown nowhere."
        )
    if way.newcomers is not None and shown is not None and shown.places:
        groups = {group.name: group for group in way.newcomers.groups}
        new = groups["newcomers"]
        places = sum(groups[name].places for name in ("newcomers", "established", "not known"))
        yield (
            f"Newcomers are {of(new.people, way.newcomers.sampled)} of the freelancers and hold "
            f"{of(new.places, places)} of their places."
        )


def notices(figures: Figures) -> list[str]:
    """What limits the figures."""
    head = figures.head
    found = []
    if head.state != "complete":
        found.append("This run is not complete: the figures are about the units that are done.")
    if head.redacted_rows or head.redacted_queries:
        found.append(
            "People were erased since. Taken out of this run's files: matches "
            f"{whole(head.redacted_rows)}, queries {whole(head.redacted_queries)}."
        )
    degraded = sum(
        sum(way.second.degraded.values()) for way in figures.ways if way.second is not None
    )
    if degraded:
        found.append(
            f"{whole(degraded)} queries are in the order of the first phase, because their model "
            "could not be asked; the run was told to allow that."
        )
    if head.seen is None:
        found.append(
            "There was no store: who could be shown, rules, rates, skills and titles are left out."
        )
    elif head.seen != head.epoch:
        found.append(
            f"The store has moved on from epoch {_number(head.epoch)} to {_number(head.seen)}: who "
            "could be shown, rules, rates, skills and titles are those of the newer one."
        )
    return found


def _number(epoch: str) -> str:
    """The number in an epoch's name."""
    return whole(int(epoch.split(":")[1])) if epoch.count(":") == 2 else epoch
