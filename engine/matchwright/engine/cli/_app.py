"""The commands, put together. Importing this imports no array library: ``--help`` is quick."""

from __future__ import annotations

import sys
from importlib import metadata
from typing import Annotated

import typer

from matchwright.engine.cli import (
    bench,
    demo,
    doctor,
    embed,
    explain,
    ingest,
    match,
    models,
    policy,
    run,
    serve,
    store,
    train,
)

app = typer.Typer(
    name="matchwright",
    help="Exact, explainable batch matching of freelancers and jobs.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=(
        "Exit codes: 0 done, 2 usage, 3 invalid data, 4 partly done, 5 dependency unavailable, "
        "6 verification failed, 75 try again later, 130 interrupted."
    ),
)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"matchwright {metadata.version('matchwright')}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Say which.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error. Works anywhere.")
    ] = False,
) -> None:
    """Exact, explainable batch matching of freelancers and jobs."""
    if context.invoked_subcommand is None:
        print(context.get_help(), file=sys.stderr)
        raise typer.Exit(2)


for module in (
    demo,
    ingest,
    embed,
    match,
    explain,
    serve,
    policy,
    models,
    store,
    run,
    train,
    doctor,
    bench,
):
    module.register(app)
