"""Figures of the whole run as blocks of the page: rates, skills, speed, the exposure pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matchwright.engine.records import Kind
from matchwright.engine.runs.report import charts, words
from matchwright.engine.runs.report.blocks import Block, Table, drawn
from matchwright.engine.runs.report.charts import Bar, Pair
from matchwright.engine.runs.report.figures import Way
from matchwright.engine.runs.report.market import Rates, Skill, Skills
from matchwright.engine.runs.report.throughput import Throughput
from matchwright.engine.runs.report.words import money, of, whole

SKILLS_DRAWN, SKILLS_LISTED, CLASSES_MAX = 10, 25, 24
_LOOK: Mapping[Kind, str] = {"job": "a", "freelancer": "b"}


def rates(found: Rates) -> list[Block]:
    """Rates against budgets."""
    blocks = [_amounts(found)]
    if found.pairs:
        blocks.append(_matched(found))
    return blocks


def _amounts(found: Rates) -> Block:
    used = [n for n, pair in enumerate(_counts(found)) if any(pair)]
    title = "Rates asked and budgets stated"
    note = (
        f"Hourly, in the marketplace's currency, on a logarithmic scale. "
        f"{whole(found.people_known)} of {whole(found.people)} available freelancers state a rate "
        f"(half ask at least {money(found.rate_median)}); {whole(found.jobs_known)} of "
        f"{whole(found.jobs)} open jobs state the top of an hourly budget (half pay at least "
        f"{money(found.budget_median)}). Each side adds up to 100%."
    )
    if not used:
        return Block(title, note)
    step = -(-(used[-1] - used[0] + 1) // CLASSES_MAX)
    rows, classes = [], []
    for start in range(used[0], used[-1] + 1, step):
        stop = min(start + step, len(found.edges) - 1)
        budget, rate = (
            sum(counts[start:stop]) for counts in (found.budget_counts, found.rate_counts)
        )
        span = f"{money(found.edges[start])} to {money(found.edges[stop])}"
        classes.append((span, whole(budget), whole(rate)))
        rows.append(
            Pair(
                money(charts.round_money(found.edges[start])),
                budget / max(found.jobs_known, 1),
                rate / max(found.people_known, 1),
                tip=f"{span}: {whole(budget)} jobs, {whole(rate)} freelancers",
            )
        )
    return Block(
        title=title,
        note=note,
        chart=drawn(lambda w: charts.mirrored(w, rows, title, ("budgets", "rates"))),
        legend=[("b", "jobs, top of the budget"), ("a", "freelancers, rate")],
        tables=[Table("By class", ("An hour", "Jobs", "Freelancers"), classes)],
    )


def _counts(found: Rates) -> list[tuple[int, int]]:
    return list(zip(found.budget_counts, found.rate_counts, strict=True))


def _matched(found: Rates) -> Block:
    ratio = found.ratio.quantiles
    return Block(
        title="Rates of those shown, by the job's budget",
        note=f"The {whole(found.matches_known)} of {whole(found.matches)} matches of jobs in which "
        f"both amounts are stated. {of(found.within, found.matches_known)} ask no more than the "
        f"budget's top (the line); half ask at most {ratio[2]:.2f} of it.",
        chart=drawn(
            lambda w: charts.heat(
                w, found.pairs, found.edges, "Matches by budget and rate",
                x_name="top of the job's hourly budget", y_name="rate asked",
            )
        ),
        tables=[
            Table("Rate divided by the budget's top", ("5%", "25%", "half", "75%", "95%"),
                  [tuple(f"{q:.2f}" for q in ratio)], text=0)
        ],
    )  # fmt: skip


def skills(found: Skills) -> list[Block]:
    """Where demand outruns supply, and where supply outruns demand."""
    sample = "" if found.jobs_read == found.jobs_of else " (a seeded sample)"
    about = (
        f"Share of the {whole(found.jobs)} open jobs that name skills{sample} asking for each, and "
        f"of the {whole(found.people)} available freelancers who name skills offering it. "
    )
    missing = (
        f"Of {whole(found.names)} different skills asked for, {whole(found.unserved)} are offered "
        f"by nobody under that name ({of(found.unserved_jobs, found.jobs)} of jobs ask for one); "
        f"{whole(found.rare)} asked for by fewer than 5 jobs are not listed."
    )
    blocks = []
    for title, rows, note in (
        ("Demand outruns supply", found.short, about + missing),
        ("Supply outruns demand", found.ample, "The same, from the other end. " + about),
    ):
        blocks.append(_skills(found, title, rows, note.strip()))
    return blocks


def _skills(found: Skills, title: str, rows: Sequence[Skill], note: str) -> Block:
    if not rows:
        return Block(title, note + " There is no such skill.")
    pairs = [
        Pair(
            one.name,
            one.jobs / max(found.jobs, 1),
            one.people / max(found.people, 1),
            of(one.jobs, found.jobs),
            of(one.people, found.people),
            f"{whole(one.jobs)} jobs, {whole(one.people)} freelancers",
        )
        for one in rows[:SKILLS_DRAWN]
    ]
    return Block(
        title=title,
        note=note,
        chart=drawn(lambda w: charts.butterfly(w, pairs, title)),
        legend=[("b", "jobs asking"), ("a", "freelancers offering")],
        tables=[
            Table(f"{title}: the first {min(len(rows), SKILLS_LISTED)}",
                  ("Skill", "Jobs", "Must", "People", "People per job"), [
                (one.name, whole(one.jobs), whole(one.must), whole(one.people),
                 f"{one.people / one.jobs:.2f}")
                for one in rows[:SKILLS_LISTED]
            ])
        ],
    )  # fmt: skip


def speed(found: Throughput) -> list[Block]:
    """Throughput over time."""
    steps = [
        (
            one.start_s,
            one.end_s,
            one.per_s,
            _LOOK[one.kind],
            f"{whole(one.queries)} {words.PLURAL[one.kind]} in "
            f"{words.seconds(one.end_s - one.start_s)}: {words.short(one.per_s)} a second",
        )
        for one in found.steps
    ]
    kinds = dict.fromkeys(one.kind for one in found.steps)
    kernel = found.kernel_s or 1e-9
    outside = max(found.working_s - found.kernel_s, 0.0)
    rows = [
        ("Queries", whole(found.queries)),
        ("Queries a second", words.short(found.queries / found.working_s)),
        ("Matches written", whole(found.rows)),
        ("Pairs looked at", words.short(found.pairs)),
        ("Pairs a second, in kernels", words.short(found.pairs / kernel)),
        ("Working time, all units added", words.seconds(found.working_s)),
        ("In kernels", f"{words.seconds(found.kernel_s)} ({of(found.kernel_s, found.working_s)})"),
        ("Outside of kernels, per million matches",
         words.seconds(outside * 1e6 / found.rows) if found.rows else "–"),
        ("From start to end, pauses included",
         "–" if found.wall_s is None else words.seconds(found.wall_s)),
        ("Units", whole(found.units)),
    ]  # fmt: skip
    return [
        Block(
            title="Queries a second, unit by unit",
            note="Units in the order in which they ended, one after another, without pauses. Their "
            "width is the time they took.",
            chart=drawn(lambda w: charts.speed(w, steps, "Queries a second over time", "a second")),
            legend=[(_LOOK[kind], words.PLURAL[kind]) for kind in kinds],
        ),
        Block(
            title="What it took",
            note="Seconds are those that the units' records tell.",
            tables=[Table("", ("", ""), rows)],
        ),
    ]


def moved(way: Way, told: Mapping[str, Any]) -> list[Block]:
    """What the exposure pass did to a direction, and what it cost.

    Args:
        told: what run.json says of this direction; empty when it says nothing.
    """
    moves = way.moves
    if moves is None:
        return []
    total = sum(moves.reasons.values())
    rows = [
        Bar(words.first_up(words.MOVED.get(name, name)), n, f"{whole(n)} ({of(n, moves.rows, 2)})")
        for name, n in moves.reasons.items()
    ]
    changed = Block(
        title=f"{whole(total)} of {whole(moves.rows)} places changed",
        note=f"In {of(moves.queries, way.outcome.queries)} of the queries. {whole(moves.up)} stand "
        f"better than by score alone, {whole(moves.down)} worse.",
        chart=drawn(lambda w: charts.bars(w, rows, "Why rows stand where they stand")),
    )
    return [changed, _price(told)] if told else [changed]


def _price(told: Mapping[str, Any]) -> Block:
    """What run.json says of the pass: before beside after, and what was lost."""
    flat_ = dict(flat(told))
    twice, once = [], []
    for name, value in flat_.items():
        if name.endswith(" before"):
            plain = name.removesuffix(" before")
            twice.append((words.first_up(plain), _plain(value), _plain(flat_[f"{plain} after"])))
        elif not (
            name.startswith("rows moved")  # the chart tells them
            or (name.endswith(" after") and f"{name.removesuffix('after')}before" in flat_)
        ):
            once.append((words.first_up(name), _plain(value)))
    return Block(
        title="What it cost",
        note="As run.json tells it; docs/runs.md says what each figure is. Scores lost are those "
        "of the matches that are shown, beside those that scores alone would show.",
        tables=[Table("", ("", "Before", "After"), twice), Table("", ("", ""), once)],
    )


def settings(told: Mapping[str, Any]) -> Block:
    """The settings of the exposure pass."""
    rows = [
        (words.first_up(name), _plain(value)) for name, value in flat(told.get("settings") or {})
    ]
    return Block(
        title="What was asked for",
        note="The policy's section on exposure; 0 switches a part off.",
        tables=[Table("", ("", ""), rows)],
    )


def flat(told: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested figures with their names joined by blanks."""
    found: list[tuple[str, Any]] = []
    for name, value in told.items():
        plain = f"{prefix}{name.replace('_', ' ')}"
        if isinstance(value, Mapping):
            found += flat(value, f"{plain}: ")
        else:
            found.append((plain, value))
    return found


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return whole(value)
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    if not isinstance(value, float):
        return str(value)
    small = f"{value:.7f}".rstrip("0").rstrip(".")  # never in powers of ten
    return f"{value:,.4g}" if abs(value) >= 1e-3 or small in ("0", "-0") else small
