"""``matchwright run gc``: remove runs that nobody needs any more."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from matchwright.engine.cli import _run, _runs, _source
from matchwright.engine.cli._options import FormatOption
from matchwright.engine.cli._output import View
from matchwright.engine.errors import InvalidArgument

if TYPE_CHECKING:
    from rich.console import Console

    from matchwright.engine.runs.gc import Fate

KeepOption = Annotated[
    int, typer.Option("--keep", help="Complete runs that stay whatever their age, the newest.")
]
OlderOption = Annotated[
    float, typer.Option("--older-than", metavar="DAYS", help="Younger complete runs stay as well.")
]
YesOption = Annotated[
    bool, typer.Option("--yes/--dry-run", help="Remove them, or only say which would go.")
]


def gc(
    store: _source.StoreOrNone = None,
    output: _run.TargetOption = None,
    keep: KeepOption = 7,
    older_than: OlderOption = 30,
    yes: YesOption = False,
    format_: FormatOption = None,
) -> int:
    """Remove old and abandoned runs; without --yes only say which.

    The published run, the one before it, and the base of a run that is not complete always stay.
    """
    from matchwright.engine.runs.gc import collect

    if keep < 0 or not 0 <= older_than <= 1e6:
        raise InvalidArgument(
            f"--keep takes 0 or more and --older-than 0 or more days, got {keep} and {older_than}"
        )
    fates = collect(
        _runs.output_of(store, output),
        now=datetime.now(UTC),
        keep=keep,
        older_than_days=older_than,
        dry_run=not yes,
    )
    _run.write(_view(fates, dry_run=not yes), format_)
    return 0


def _view(fates: Sequence[Fate], *, dry_run: bool) -> View:
    rows = [fate.to_dict() for fate in fates]
    going = [fate for fate in fates if fate.goes]
    document = {
        "dry_run": dry_run,
        "runs": len(fates),
        "removed": 0 if dry_run else len(going),
        "would_go": len(going),
        "bytes": sum(fate.bytes for fate in going),
        "fates": rows,
    }
    return View(document, rows, lambda console: _draw(console, fates, dry_run=dry_run))


def _draw(console: Console, fates: Sequence[Fate], *, dry_run: bool) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("run", "state", "since", "MB", "", "why"):
        table.add_column(name, justify="right" if name == "MB" else "left")
    for fate in fates:
        since = "" if fate.since is None else fate.since.strftime("%Y-%m-%d %H:%M")
        what = ("goes" if dry_run else "gone") if fate.goes else "stays"
        table.add_row(fate.run_id, fate.state, since, f"{fate.bytes / 1e6:,.1f}", what, fate.why)
    console.print(table)
    if dry_run and any(fate.goes for fate in fates):
        console.print("nothing was removed; say --yes to remove what goes")


def register(group: typer.Typer) -> None:
    """Add the command."""
    group.command()(gc)
