"""``matchwright models ...``: the model repository, and the server that serves it."""

from __future__ import annotations

import typer

from matchwright.engine.cli import (
    models_build,
    models_check,
    models_list,
    models_promote,
    models_roll,
    models_serve,
)

group = typer.Typer(
    help="Build, check and serve the models: encoder and ranker.", rich_markup_mode=None
)


def register(app: typer.Typer) -> None:
    """Add the group, its commands in the order of a model's life."""
    for module in (
        models_build,
        models_check,
        models_promote,
        models_list,
        models_roll,
        models_serve,
    ):
        module.register(group)
    app.add_typer(group, name="models")
