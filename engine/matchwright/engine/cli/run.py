"""``matchwright run ...``: bulk rematches, from the plan to the published result."""

from __future__ import annotations

import importlib
import importlib.util

import typer

group = typer.Typer(help="Match everybody in one go, unattended.", rich_markup_mode=None)

COMMANDS = ("start", "verify", "publish", "report", "diff", "gc", "erase")
"""Each is in the module ``run_NAME``, whose ``register`` adds it; ``start`` adds three."""


def register(app: typer.Typer) -> None:
    """Add the group."""
    for name in COMMANDS:
        module = f"{__package__}.run_{name}"
        if importlib.util.find_spec(module) is not None:
            importlib.import_module(module).register(group)
    app.add_typer(group, name="run")
