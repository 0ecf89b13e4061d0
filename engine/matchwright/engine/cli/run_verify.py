"""``matchwright run verify``: is a run what it says it is?"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from matchwright.engine.cli import _run, _run_models, _runs, _source
from matchwright.engine.cli._failures import harmless
from matchwright.engine.cli._models_options import ModelsOption
from matchwright.engine.cli._options import FormatOption
from matchwright.engine.cli._output import View
from matchwright.engine.cli._progress import progress, say
from matchwright.engine.errors import VerificationFailed

if TYPE_CHECKING:
    from rich.console import Console

    from matchwright.engine.runs.folder import RunFolder
    from matchwright.engine.runs.verify import Verdict

SAMPLE = 100


def verify(
    run: _runs.RunArgument,
    store: _source.StoreOrNone = None,
    output: _run.TargetOption = None,
    sample: _runs.SampleOption = SAMPLE,
    seed: _runs.SeedOption = None,
    models: ModelsOption = None,
    format_: FormatOption = None,
) -> int:
    """Check files, order, keys and digest of a run; with its epoch at hand also points and rules.

    A sample of queries is recomputed by brute force over everybody; where a model ordered them,
    with --models its features and scores as well. What could not be checked, and why, is listed.
    Exit code 6 when something is wrong.
    """
    _runs.check_sample(sample)
    folder = _runs.find(run, store, output)
    verdict = verdict_of(folder, store, sample, seed, models)
    _keep(folder, verdict)
    _run.write(verdict_view(verdict), format_)
    if not verdict.sound:
        raise failure(verdict)
    return 0


def verdict_of(
    folder: RunFolder,
    store: Path | None,
    sample: int,
    seed: int | None,
    models: Path | None,
    tell: Callable[[str], None] = lambda line: None,
) -> Verdict:
    """What a look at a run finds; with its epoch and its model, where they are at hand.

    Args:
        tell: told beforehand what is not checked, and why.
    """
    from matchwright.engine.runs.verify import verify as check

    plan = folder.plan()
    total = sum(unit.queries for unit in plan.units)
    trees, no_trees = _run_models.trees_of(plan, models)
    if no_trees:
        tell(f"features and model scores are not checked: {no_trees}")
    with (
        _runs.at_hand(plan, store) as (snapshot, absent),
        progress("verifying queries", total) as advance,
    ):
        if absent:
            tell(f"points and rules are not checked: {absent}")
        return check(
            folder,
            snapshot,
            sample=sample,
            seed=_runs.seed_of(seed, plan.run_id),
            absent=absent,
            advance=advance,
            trees=trees,
            no_trees=no_trees,
        )


def _keep(folder: RunFolder, verdict: Verdict) -> None:
    """Leave the verdict in the run's folder, where its report finds it."""
    from matchwright.engine.runs.report.make import VERDICT

    told = {"digest": verdict.digest, "verdict": verdict.verdict, "sampled": verdict.sampled}
    try:
        folder.write(VERDICT, json.dumps(told).encode() + b"\n")
    except OSError as error:
        say(f"the verdict is not kept for the report: {harmless(error)}")


def failure(verdict: Verdict) -> VerificationFailed:
    """The error of a run that is not what it says."""
    names = [str(check["check"]) for check in verdict.checks if check["failed"]]
    return VerificationFailed(
        f"run {verdict.run_id} is not what it says: " + " | ".join(verdict.figures()),
        run=verdict.run_id,
        checks=",".join(names),
    )


def verdict_view(verdict: Verdict) -> View:
    """The checks, one in a row."""
    document = verdict.to_dict()
    rows = [
        {**check, "examples": "; ".join(check["examples"]), "run": verdict.run_id}
        for check in document["checks"]
    ]
    return View(document, rows, lambda console: _draw(console, verdict))


def _draw(console: Console, verdict: Verdict) -> None:
    from rich.table import Table

    console.print(
        f"run {verdict.run_id}: {verdict.verdict}; {verdict.queries:,} queries, "
        f"{verdict.rows:,} rows, {verdict.sampled:,} recomputed (seed {verdict.seed})"
    )
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("check", "checked", "failed", ""):
        table.add_column(name, justify="right" if name in ("checked", "failed") else "left")
    for check in verdict.checks:
        told = check["examples"] or [f"not checked: {check['skipped']}" if check["skipped"] else ""]
        table.add_row(
            check["check"],
            f"{check['checked']:,}",
            f"{check['failed']:,}",
            harmless("\n".join(told)) if len(told) == 1 else "\n".join(map(harmless, told)),
        )
    console.print(table)


def register(group: typer.Typer) -> None:
    """Add the command."""
    group.command()(verify)
