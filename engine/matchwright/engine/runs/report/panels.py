"""Figures of one direction as blocks of the page: outcomes, rules, scores, exposure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from matchwright.engine.matcher import OTHER
from matchwright.engine.results import Shortfall
from matchwright.engine.runs.report import charts, words
from matchwright.engine.runs.report.blocks import Block, Table, drawn
from matchwright.engine.runs.report.charts import Band, Bar
from matchwright.engine.runs.report.exposure import Exposure, Newcomers
from matchwright.engine.runs.report.figures import Way
from matchwright.engine.runs.report.histogram import Bins
from matchwright.engine.runs.report.words import of, percent, whole

RULES_DRAWN = 8
OUTCOMES = (
    ("full", "a", "all {k} matches"),
    ("few", "few", "fewer than {k}"),
    ("none", "none", "none"),
    ("errors", "g", "could not be asked"),
)


def outcome(way: Way, k: int) -> Block:
    """How many queries found how many matches."""
    counts = {name: getattr(way.outcome, name) for name, _, _ in OUTCOMES}
    total, asking = way.outcome.queries, words.PLURAL[way.kind]
    parts = [
        (counts[name], look, f"{text.format(k=k)}: {whole(counts[name])}")
        for name, look, text in OUTCOMES
    ]
    said = ", ".join(tip for value, _, tip in parts if value)
    rows = [
        (text.format(k=k).capitalize(), whole(counts[name]), of(counts[name], total))
        for name, _, text in OUTCOMES
    ]
    note = (
        f"Each was matched with every one of the {words.PLURAL[OTHER[way.kind]]} stored, under "
        f"every rule of the policy. {whole(way.outcome.rows)} matches in all."
    )
    vetoed = way.outcome.shortfalls.get(Shortfall.QUERY_VETOED, 0)
    if vetoed:
        note += (
            f" {whole(vetoed)} {asking} rule out every answer by themselves: by their own status, "
            "or by a value that they do not tell."
        )
    reasons = [
        (words.SHORTFALL.get(name, name).capitalize(), whole(n), of(n, total))
        for name, n in way.outcome.shortfalls.items()
    ]
    tables = [Table("", ("Found", asking.capitalize(), "Share"), rows)]
    if reasons:
        tables.append(Table("Why fewer than K", ("Reason", asking.capitalize(), "Share"), reasons))
    return Block(
        title=f"{words.number(total, way.kind)} asked",
        note=note,
        chart=drawn(lambda w: charts.stacked(w, parts, f"Outcome of {total:,} {asking}: {said}"))
        if total
        else None,
        legend=[
            (look, f"{text.format(k=k)}: {whole(counts[name])} ({of(counts[name], total)})")
            for name, look, text in OUTCOMES
            if counts[name] or name != "errors"
        ],
        tables=tables,
    )


def eligible(way: Way) -> Block | None:
    """How many pass every rule, query by query."""
    bins = way.outcome.eligible
    if bins is None or not bins.n:
        return None
    other = words.PLURAL[OTHER[way.kind]]
    half = 2 ** bins.quantiles[2] - 1
    ticks = [0.0, *range(2, int(bins.most) + 2, 2)]
    return Block(
        title=f"Eligible {other} for each query",
        note=f"Who passes every rule, before any score is looked at; the axis is logarithmic. Half "
        f"of the queries have at least about {whole(half)}, the least has "
        f"{whole(2**bins.least - 1)}, the most {whole(2**bins.most - 1)}.",
        chart=drawn(
            lambda w: charts.histogram(
                w, bins, None, f"Eligible {other} for each query",
                text=lambda v: words.short(max(round(2**v - 1), 0)), x_name=f"eligible {other}",
                y_name="queries", x_ticks=ticks,
            )
        ),
        tables=[
            Table(f"Eligible {other}, about", _QUANTILES[1:],
                  [tuple(whole(2**q - 1) for q in bins.quantiles)], text=0)
        ],
    )  # fmt: skip


def rules(way: Way, k: int) -> Block:
    """Which rules keep short queries short."""
    title = "What stands in the way"
    counted, short = way.causes, way.outcome.few + way.outcome.none
    if not short:
        return Block(title, f"Nothing: every query that could be asked has all its {k} matches.")
    if counted is None or not counted.sampled:
        return Block(title, "Not counted: that needs the store (run report with --store DIR).")
    asking = words.PLURAL[way.kind]
    rows = [
        Bar(
            words.veto(one.veto),
            one.freed,
            f"{whole(one.freed)} ({of(one.freed, counted.sampled)})",
            f"rules out {whole(one.pairs)} pairs, {whole(one.alone)} of them alone",
        )
        for one in counted.rules[:RULES_DRAWN]
    ]
    sample = "all" if counted.sampled == short else "a seeded sample of"
    head = ("Rule", f"{asking.capitalize()} it alone keeps short", "Pairs ruled out", "Alone")
    table = Table(
        "Rules, counted exactly",
        head,
        [
            (
                words.veto(one.veto),
                whole(one.freed),
                of(one.pairs, counted.pairs),
                of(one.alone, counted.pairs, 2),
            )
            for one in counted.rules
        ],
    )
    return Block(
        title=title,
        note=f"Bars: how many of {sample} {whole(counted.sampled)} {asking} with fewer than {k} "
        f"matches would have {k} if this rule alone were dropped. {whole(counted.unfreed)} of them "
        f"would still be short, whichever single rule went. Counted exactly over "
        f"{words.short(counted.pairs)} pairs, of which {of(counted.eligible, counted.pairs, 2)} "
        "pass every rule.",
        chart=drawn(lambda w: charts.bars(w, rows, "Queries that one rule alone keeps short")),
        tables=[table],
    )


def scores(way: Way, k: int) -> Block:
    """How good first and K-th matches are."""
    first, last = way.first_share, way.last_share
    if not first.n:
        return Block("How good matches are", "No query found a match.")
    return Block(
        title="How good matches are",
        note="Score of a match as a share of what the best conceivable match of the same query "
        "would score. That one seldom exists, so few come close to 100%. "
        f"The {words.ordinal(k)} match is told of the queries that have one.",
        chart=drawn(
            lambda w: charts.histogram(
                w, first, last if last.n else None, "Scores of first and of last matches",
                text=lambda v: f"{100 * v:.3g}%", x_name="share of the attainable score",
                y_name="queries",
            )
        ),
        legend=[("a", "best match"), ("line b", f"{words.ordinal(k)} match")][: 1 + bool(last.n)],
        tables=[
            Table("Share of the attainable score", _QUANTILES, _spread(first, last, k, percent)),
            Table("Score", _QUANTILES, _spread(way.first, way.last, k, lambda v: f"{v:.3f}")),
        ],
    )  # fmt: skip


_QUANTILES = ("", "5%", "25%", "half", "75%", "95%")


def _spread(first: Bins, last: Bins, k: int, text: Callable[[float], str]) -> list[tuple[str, ...]]:
    named = (("Best match", first), (f"{words.ordinal(k)} match", last))
    return [(name, *(text(q) for q in bins.quantiles)) for name, bins in named if bins.n]


def facets(way: Way, k: int) -> Block:
    """What each facet gave."""
    title = "What scores are made of"
    weighted = [one for one in way.facets if one.weight > 0]
    if not weighted:
        return Block(title, "Not known: the run keeps no contributions, and there is no store.")
    rows = [
        Band(
            f"{one.name} (at most {one.weight:g})",
            f"{one.first:.2f} / {one.last:.2f}",
            one.spread.quantiles,
            one.first,
            one.last,
            one.weight,
        )
        for one in weighted
    ]
    about = f"all {whole(way.facets_rows)} matches"
    if way.facets_sampled is not None:
        about = f"{whole(way.facets_rows)} matches of {way.facets_sampled} queries drawn by seed"
    mean = sum(one.first for one in weighted)
    return Block(
        title=title,
        note=f"Points of each facet times the query's step, over {about}; the parts of a match add "
        f"up to its score (best matches: {mean:.2f} on average). What a side does not tell counts "
        "as the average. The tick at the right is the facet's weight, the most that it can give.",
        chart=drawn(lambda w: charts.bands(w, rows, "Part of each facet in the score")),
        legend=[
            ("a half", "half of all matches"),
            ("a thin", "9 in 10"),
            ("dot b", "mean of best matches"),
            ("dot ring", f"mean of {words.ordinal(k)}"),
        ],
        tables=[
            Table(
                "Part of the score",
                ("Facet", "Weight", "Best", words.ordinal(k), "5%", "Half", "95%"),
                [
                    (one.name, f"{one.weight:g}", f"{one.first:.3f}", f"{one.last:.3f}",
                     *(f"{one.spread.quantiles[q]:.3f}" for q in (0, 2, 4)))
                    for one in way.facets
                ],
            )
        ],
    )  # fmt: skip


def concentration(way: Way, shown: Exposure) -> Block:
    """The Lorenz curve."""
    other = words.PLURAL[OTHER[way.kind]]
    if not shown.places:
        return Block("Who is shown", f"None of the {whole(shown.available)} available {other} is.")
    top = words.number(shown.top_count, OTHER[way.kind])
    return Block(
        title=f"Who is shown: {of(shown.shown, shown.available)} of available {other}",
        note=f"A place is one row of the run. The most shown 1% ({top}) hold "
        f"{percent(shown.top_share)} of the {whole(shown.places)} places; "
        f"{whole(shown.half_count)} hold half of them; one holds {whole(shown.most)}. "
        f"Gini {shown.gini:.3f}: 0 when all are shown alike, 1 when one takes everything. "
        "Those who are available and never shown count.",
        chart=drawn(lambda w: charts.lorenz(w, shown.lorenz, f"Lorenz curve of places of {other}")),
        tables=[
            Table("Exposure", ("", ""), [
                ("Available", whole(shown.available)),
                ("Shown at least once", whole(shown.shown)),
                ("Shown at least once, share", of(shown.shown, shown.available)),
                ("Places", whole(shown.places)),
                ("Places of others than those available", whole(shown.elsewhere)),
                ("Gini", f"{shown.gini:.4f}"),
                ("Share of the top 1%", percent(shown.top_share, 2)),
                ("Hold half of all places", whole(shown.half_count)),
                ("Most places of one", whole(shown.most)),
            ])
        ],
    )  # fmt: skip


def often(way: Way, shown: Exposure) -> Block:
    """How often each is shown."""
    other = words.PLURAL[OTHER[way.kind]]
    rows = [
        Bar(
            "never" if not high else words.times(low, high) + "×",
            n,
            f"{whole(n)} ({of(n, shown.available)})",
            look="none" if not high else "a",
        )
        for low, high, n in shown.times
    ]
    return Block(
        title="How often each is shown",
        note=f"Available {other} by the number of their places; classes double.",
        chart=drawn(lambda w: charts.columns(w, rows, f"{other} by how often they are shown")),
    )


def newcomers(found: Newcomers) -> Block:
    """How newcomers fare."""
    by_name = {group.name: group for group in found.groups}
    people, places = found.sampled or 1, sum(
        by_name[name].places for name in ("newcomers", "established", "not known")
    )  # fmt: skip
    new = by_name["newcomers"]
    note = (
        f"A newcomer joined within {found.days} days of the run's day, or has no review. "
        f"Newcomers are {of(new.people, people)} of the freelancers and hold "
        f"{of(new.places, places)} of their places. The first two groups overlap. "
    )
    if found.joined_unknown:
        note += f"{whole(found.joined_unknown)} do not tell when they joined. "
    if found.reviews_unknown:
        note += f"{whole(found.reviews_unknown)} do not tell their reviews. "
    if found.sampled < found.of:
        note += f"A seeded sample of {whole(found.sampled)} of {whole(found.of)}."
    rows: list[Any] = [
        charts.Pair(
            group.name.capitalize(),
            group.people / people,
            group.places / (places or 1),
            of(group.people, people),
            of(group.places, places),
            f"{whole(group.people)} freelancers, {whole(group.places)} places",
        )
        for group in found.groups
    ]
    return Block(
        title="How newcomers fare",
        note=note.strip(),
        chart=drawn(lambda w: charts.butterfly(w, rows, "Share of freelancers and of places")),
        legend=[("b", "share of freelancers"), ("a", "share of places")],
        tables=[
            Table("Groups", ("Group", "People", "Shown", "Places", "Places each"), [
                (group.name.capitalize(), whole(group.people), of(group.shown, group.people),
                 whole(group.places), f"{group.places / group.people:.2f}" if group.people else "–")
                for group in found.groups
            ])
        ],
    )  # fmt: skip
