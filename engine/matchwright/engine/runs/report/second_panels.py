"""The panels about a run's second phase."""

from __future__ import annotations

from matchwright.engine.runs.report import charts, words
from matchwright.engine.runs.report.blocks import Block, Table, drawn
from matchwright.engine.runs.report.charts import Bar
from matchwright.engine.runs.report.figures import Way
from matchwright.engine.runs.report.second import SecondPhase
from matchwright.engine.runs.report.words import of, whole

FEATURES_SHOWN = 12


def blocks(way: Way, k: int) -> list[Block | None]:
    """All of a direction."""
    second = way.second
    assert second is not None, "checked by the caller"
    return [_moved(second, k), _features(second), _degraded(second)]


def _moved(second: SecondPhase, k: int) -> Block:
    """How far the model moved matches from their first-phase ranks."""
    name = f"{second.model} orders the first {whole(second.candidates)}"
    if not second.rows:
        return Block(name, "No query is in its order.")
    rows = [
        Bar(
            "stayed" if not high else words.times(low, high),
            n,
            f"{whole(n)} ({of(n, second.rows)})",
            look="g" if not high else "a",
        )
        for low, high, n in second.classes
    ]
    facts = [
        ("Queries in its order", whole(second.queries)),
        ("Of these with a match at another rank", of(second.moved, second.queries)),
        ("Best match is the first phase's", of(second.same_best, second.queries)),
        ("Matches", whole(second.rows)),
        (f"Of these not among the first phase's {k}", of(second.lifted, second.rows)),
        ("Places moved, mean", f"{second.places:.2f}"),
    ]
    return Block(
        title=name,
        note="Places between a match's rank and its rank in the first phase. "
        f"{of(second.lifted, second.rows)} of the matches would not have been shown by score "
        f"alone; for {of(second.same_best, second.queries)} of the queries the best match is the "
        "same.",
        chart=drawn(lambda w: charts.columns(w, rows, "Matches by places moved")),
        tables=[Table("The model's order", ("", ""), facts)],
    )


def _features(second: SecondPhase) -> Block:
    """What the model goes by."""
    title = "What the model goes by"
    if not second.features:
        return Block(
            title,
            "Not known: that needs the model repository and the run's store (run report with "
            "--models DIR and --store DIR).",
        )
    shown = second.features[:FEATURES_SHOWN]
    rows = [Bar(words.first_up(one.text), one.size, f"{one.size:.3f}") for one in shown]
    return Block(
        title=title,
        note="Mean magnitude of each feature's contribution to the model's score, over "
        f"{whole(second.features_rows)} matches of {whole(second.features_queries)} queries drawn "
        f"by seed. Contributions (method: {second.method}) and the model's bias add up to a score.",
        chart=drawn(lambda w: charts.bars(w, rows, "Contribution of each feature")),
        tables=[
            Table(
                "Contributions",
                ("Feature", "Magnitude", "Mean"),
                [(one.name, f"{one.size:.4f}", f"{one.mean:+.4f}") for one in second.features],
            )
        ],
    )


def _degraded(second: SecondPhase) -> Block | None:
    """Queries whose model was not asked."""
    if not second.degraded:
        return None
    return Block(
        title=f"{whole(sum(second.degraded.values()))} queries without the model",
        note="They are in the order of the first phase, which does not compare with the model's.",
        tables=[
            Table("", ("Reason", "Queries"), [(w, whole(n)) for w, n in second.degraded.items()])
        ],
    )
