"""``matchwright run report``: one HTML page about a run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from matchwright.engine.cli import _run, _run_models, _runs, _source
from matchwright.engine.cli._failures import harmless
from matchwright.engine.cli._models_options import ModelsOption
from matchwright.engine.cli._progress import say
from matchwright.engine.errors import MatchwrightError

if TYPE_CHECKING:
    from matchwright.engine.runs.folder import RunFolder
    from matchwright.engine.runs.plan import Plan
    from matchwright.engine.store import Snapshot

ToOption = Annotated[
    Path | None,
    typer.Option("--to", metavar="FILE", help="Write it here too, beside the run's own copy."),
]

ReportOption = Annotated[
    bool,
    typer.Option("--report/--no-report", help="Write report.html into the run when it is done."),
]


def report(
    run: _runs.RunArgument,
    store: _source.StoreOrNone = None,
    output: _run.TargetOption = None,
    to: ToOption = None,
    models: ModelsOption = None,
) -> int:
    """Write report.html into the run's folder: figures, charts, and a sample to search.

    It opens in any browser without a network. The store adds who could be shown, which rules stand
    in the way, rates, skills and titles; where its epoch is gone, the newest one does, and the
    report says so. The model repository adds what the model goes by, where one ordered the run.
    """
    folder = _runs.find(run, store, output)
    plan = folder.plan()
    trees, _ = _run_models.trees_of(plan, models)
    with _seen(plan, store) as snapshot:
        written = write(folder, snapshot, trees)
    print(folder.url_of("report.html"))
    if to is not None:
        part = to.with_name(f"{to.name}.part")
        part.write_bytes(written)
        part.replace(to)
    return 0


def write(folder: RunFolder, snapshot: Snapshot | None, trees: Any = None) -> bytes:
    """Make a run's report and put it into its folder; ``trees`` are those of its model."""
    from matchwright.engine.runs.report.make import REPORT, report_of
    from matchwright.kernels.ops import get_ops

    data = report_of(folder, snapshot, get_ops("cpu"), trees)
    folder.write(REPORT, data)
    return data


def write_or_say(folder: RunFolder, snapshot: Snapshot, models: Path | None = None) -> None:
    """``write`` at the end of a run that is complete: if it fails, the run is none the worse."""
    try:
        trees, _ = _run_models.trees_of(folder.plan(), models)
        write(folder, snapshot, trees)
    except (MatchwrightError, OSError) as error:
        say(
            f"the report was not written ({harmless(error)}); the run is complete; "
            f"try again with: matchwright run report {folder.url}"
        )


@contextlib.contextmanager
def _seen(plan: Plan, store: Path | None) -> Iterator[Snapshot | None]:
    """The run's epoch, or the newest of its store, or None, with a line that says so."""
    with contextlib.ExitStack() as opened:
        snapshot, absent = opened.enter_context(_runs.at_hand(plan, store))
        if snapshot is None:
            snapshot = _newest(opened, plan, store, absent)
        yield snapshot


def _newest(
    opened: contextlib.ExitStack, plan: Plan, store: Path | None, absent: str
) -> Snapshot | None:
    path = Path(plan.store) if store is None and plan.store else store
    if path is not None and path.is_dir():
        found, snapshot = opened.enter_context(_run.epoch_of(path))
        if found.uuid == plan.determinants["store"]:
            say(f"figures about people and jobs are of epoch {snapshot.epoch.number}: {absent}")
            return snapshot
    say(f"no figures that need the store: {absent}")
    return None


def register(group: typer.Typer) -> None:
    """Add the command."""
    group.command()(report)
