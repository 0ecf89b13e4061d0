"""``matchwright run ...``: bulk rematches, from the plan to the published result."""

from __future__ import annotations

import typer

from matchwright.engine.cli import (
    run_diff,
    run_erase,
    run_gc,
    run_publish,
    run_report,
    run_start,
    run_verify,
)

group = typer.Typer(help="Match everybody in one go, unattended.", rich_markup_mode=None)


def register(app: typer.Typer) -> None:
    """Add the group, its commands in the order of a run's life."""
    for module in (run_start, run_verify, run_publish, run_report, run_diff, run_gc, run_erase):
        module.register(group)
    app.add_typer(group, name="run")
