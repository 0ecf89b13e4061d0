"""``matchwright explain``: why a pair matches, or why not."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from matchwright.engine.cli import _source
from matchwright.engine.cli._failures import harmless
from matchwright.engine.cli._options import (
    AsOfOption,
    FormatOption,
    KindOption,
    OutputOption,
    PolicyOption,
    day_of,
)
from matchwright.engine.cli._output import View, Writer, plainly

if TYPE_CHECKING:
    from rich.console import Console


class Audience(enum.StrEnum):
    """Who reads the explanation."""

    OPERATOR = "operator"
    CLIENT = "client"
    FREELANCER = "freelancer"


def explain(
    job: Annotated[str, typer.Option("--job", metavar="ID", help="The job.")],
    freelancer: Annotated[str, typer.Option("--freelancer", metavar="ID", help="The freelancer.")],
    store: Annotated[
        Path | None, typer.Option("--store", metavar="DIR", help="The folder of the marketplace.")
    ] = None,
    server: Annotated[
        str | None,
        typer.Option("--server", metavar="HOST:PORT", help="Ask this server instead of a folder."),
    ] = None,
    asks: Annotated[
        KindOption, typer.Option("--asks", help="Which side's ranking is explained.")
    ] = KindOption.JOB,
    audience: Annotated[
        Audience, typer.Option("--audience", help="Who reads it; limits of the other are hidden.")
    ] = Audience.OPERATOR,
    policy: PolicyOption = None,
    as_of: AsOfOption = None,
    device: _source.DeviceOption = "auto",
    format_: FormatOption = None,
    output: OutputOption = None,
) -> None:
    """Say why a pair matches and where it ranks, or every reason why it does not."""
    with (
        _source.open_source(store, server, policy, device) as source,
        Writer(format_, output) as writer,
    ):
        told = source.explain(
            job,
            freelancer,
            direction=asks.value,
            audience=audience.value,
            as_of=day_of(as_of),
        )
        writer.add(explanation_view(told.to_dict()))


def explanation_view(told: Mapping[str, Any]) -> View:
    """``told`` is ``Explanation.to_dict()``."""
    document = plainly(told)
    return View(document, [], lambda console: draw_explanation(console, document))


def draw_explanation(console: Console, told: Mapping[str, Any]) -> None:
    """Put an explanation on a terminal."""
    console.print(harmless(told))


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(explain)
