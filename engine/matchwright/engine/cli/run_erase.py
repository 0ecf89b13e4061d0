"""``matchwright run erase``: whoever was erased from a store, out of runs that are elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from matchwright.engine.cli import _run
from matchwright.engine.cli._failures import harmless
from matchwright.engine.cli._options import FormatOption, StoreOption
from matchwright.engine.cli._output import View
from matchwright.engine.errors import InvalidArgument, PartlyDone

if TYPE_CHECKING:
    from rich.console import Console


def erase(
    store: StoreOption,
    run: Annotated[str | None, typer.Argument(metavar="RUN", help="A run's id.")] = None,
    every: Annotated[bool, typer.Option("--all", help="All runs of the output.")] = False,
    output: _run.TargetOption = None,
    format_: FormatOption = None,
) -> int:
    """Take everybody who was erased from a store out of runs that were copied elsewhere.

    The store knows whom it erased, by key and epoch: no ids are needed. Runs in STORE/runs and in
    outputs that the store knows are redacted by ``store erase`` already.
    """
    from matchwright.engine.erasure import gone_from_store, now
    from matchwright.engine.runs.folder import Output
    from matchwright.engine.runs.redact import redact_output
    from matchwright.engine.store import Store

    if (run is None) != every:
        raise InvalidArgument("name one run, or say --all")
    url = str(store / "runs") if output is None else output
    if run is not None:
        run = _one(Output(url).runs(), run, url)
    with Store.open(store) as opened:
        gone = gone_from_store(opened)
    done = redact_output(url, gone, now(), run)
    _run.write(_view([one.to_dict() for one in done]), format_)
    missed = any(one.outcome == "not reached" for one in done)
    return PartlyDone.exit_code if missed else 0


def _one(names: list[str], reference: str, url: str) -> str:
    found = [name for name in names if name.startswith(reference)]
    if len(found) != 1:
        raise InvalidArgument(f"{reference!r} is {len(found)} of the {len(names)} runs in {url}")
    return found[0]


def _view(runs: list[dict[str, Any]]) -> View:
    def draw(console: Console) -> None:
        for one in runs:
            why = f" ({one['why']})" if one["why"] else ""
            line = f"{one['run']}: {one['outcome']}{why}, {one['rows']:,} rows"
            console.print(harmless(line), soft_wrap=True, markup=False, highlight=False)
        if not runs:
            console.print("no runs here")

    return View({"runs": runs}, runs, draw)


def register(group: typer.Typer) -> None:
    """Add the command."""
    group.command()(erase)
