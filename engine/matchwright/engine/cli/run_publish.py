"""``matchwright run publish``: switch to a run, or say which figures speak against it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from matchwright.engine.cli import _run, _runs, _source
from matchwright.engine.cli._failures import harmless
from matchwright.engine.cli._models_options import ModelsOption
from matchwright.engine.cli._options import FormatOption
from matchwright.engine.cli._output import View
from matchwright.engine.cli._progress import say
from matchwright.engine.cli.run_verify import verdict_of
from matchwright.engine.errors import InvalidArgument, VerificationFailed

if TYPE_CHECKING:
    from rich.console import Console

    from matchwright.engine.runs.folder import RunFolder
    from matchwright.engine.runs.publish import Publication, Thresholds
    from matchwright.engine.runs.verify import Verdict

SAMPLE = 20

RunOrNone = Annotated[str | None, typer.Argument(metavar="RUN", help="A run's folder, or its id.")]
UnderKOption = Annotated[
    float | None,
    typer.Option(
        "--max-under-k-share",
        metavar="SHARE",
        help="Most queries with fewer than K matches; the last run's share + 0.05 if not given.",
    ),
]
NoneOption = Annotated[
    float | None,
    typer.Option(
        "--max-none-share",
        metavar="SHARE",
        help="Most queries with no match; the last run's + 0.02 if not given, 0.9 for the first.",
    ),
]
ChurnOption = Annotated[
    float,
    typer.Option(
        "--max-churn", metavar="SHARE", help="Most of a top K that may be other people, mean."
    ),
]
DriftOption = Annotated[
    float,
    typer.Option(
        "--max-score-drift", metavar="SHARE", help="Most that the median top score may move."
    ),
]
DropOption = Annotated[
    float,
    typer.Option("--max-query-drop", metavar="SHARE", help="Most queries that may be gone."),
]
DegradedOption = Annotated[
    int,
    typer.Option(
        "--max-degraded",
        metavar="N",
        min=0,
        help="Most queries that may be in the first phase's order because no model answered.",
    ),
]
ForceOption = Annotated[
    bool,
    typer.Option(
        "--force", help="Publish beyond the limits; a failed verification always refuses."
    ),
]
RollbackOption = Annotated[
    bool, typer.Option("--rollback", help="Go back to the run that was published before.")
]


def publish(
    run: RunOrNone = None,
    store: _source.StoreOrNone = None,
    output: _run.TargetOption = None,
    max_under_k_share: UnderKOption = None,
    max_none_share: NoneOption = None,
    max_churn: ChurnOption = 0.5,
    max_score_drift: DriftOption = 0.1,
    max_query_drop: DropOption = 0.2,
    max_degraded: DegradedOption = 0,
    force: ForceOption = False,
    rollback: RollbackOption = False,
    sample: _runs.SampleOption = SAMPLE,
    seed: _runs.SeedOption = None,
    models: ModelsOption = None,
    format_: FormatOption = None,
) -> int:
    """Verify a run, weigh it against the published one, and switch PUBLISHED.json to it.

    Exit code 6, and the figures, when it is not fit to be published; nothing has changed then.
    """
    from matchwright.engine.runs.publish import Thresholds
    from matchwright.engine.runs.publish import publish as switch
    from matchwright.engine.runs.units import now

    if rollback:
        return _roll_back(run, store, output, format_)
    if run is None:
        raise InvalidArgument("name the RUN to publish, or say --rollback")
    _runs.check_sample(sample)
    thresholds = Thresholds(
        under_k_share=max_under_k_share,
        none_share=max_none_share,
        churn=max_churn,
        score_drift=max_score_drift,
        query_drop=max_query_drop,
        degraded=max_degraded,
    )
    _check_shares(thresholds)
    folder = _runs.find(run, store, output)

    def verify(one: RunFolder) -> Verdict:
        return verdict_of(one, store, sample, seed, models, tell=say)

    done = switch(
        _runs.output_with(folder),
        folder.run_id,
        verify=verify,
        thresholds=thresholds,
        now=now(),
        force=force,
    )
    _run.write(_view(done), format_)
    if not done.published:
        raise VerificationFailed(
            f"run {done.run_id} is not published, {done.before or 'nothing'} still is: "
            + " | ".join(done.refused),
            run=done.run_id,
        )
    for line in done.forced:
        say(f"forced: {harmless(line)}")
    return 0


def _check_shares(thresholds: Thresholds) -> None:
    for name, option in (
        ("under_k_share", "--max-under-k-share"),
        ("none_share", "--max-none-share"),
        ("churn", "--max-churn"),
        ("score_drift", "--max-score-drift"),
        ("query_drop", "--max-query-drop"),
    ):
        value = getattr(thresholds, name)
        most = 1e6 if name == "score_drift" else 1.0
        if value is not None and not 0 <= value <= most:
            raise InvalidArgument(f"{option} takes 0 to {most:g}, got {value}")


def _roll_back(run: str | None, store: Path | None, output: str | None, format_: Any) -> int:
    from matchwright.engine.runs.publish import rollback
    from matchwright.engine.runs.units import now

    if run is not None:
        raise InvalidArgument("--rollback takes no RUN; to publish a certain one, name it alone")
    before, after = rollback(_runs.output_of(store, output), now=now())
    document = {"run": after, "published": True, "before": before}
    _run.write(_run.facts_view(document, [("published", after), ("before", before)]), format_)
    return 0


def _view(done: Publication) -> View:
    document = done.to_dict()
    rows = [{"run": done.run_id, **gate} for gate in document["gates"]]
    return View(document, rows, lambda console: _draw(console, done))


def _draw(console: Console, done: Publication) -> None:
    from rich.table import Table

    if not done.changed and done.published:
        console.print(f"run {done.run_id} is the published one already: nothing to do")
        return
    state = "published" if done.published else "not published"
    console.print(f"run {done.run_id}: {state}; before it {done.before or 'there was nothing'}")
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("gate", "value", "at most", "", "note"):
        table.add_column(name, justify="right" if name in ("value", "at most") else "left")
    for gate in done.gates:
        shown = ["" if value is None else f"{value:.4g}" for value in (gate.value, gate.limit)]
        table.add_row(gate.name, *shown, "" if gate.passed else "FAILED", gate.note)
    console.print(table)


def register(group: typer.Typer) -> None:
    """Add the command."""
    group.command()(publish)
