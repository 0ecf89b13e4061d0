"""``matchwright models load|unload``: which versions a server has ready."""

from __future__ import annotations

from typing import Annotated

import typer

from matchwright.engine.cli import _models
from matchwright.engine.cli._options import FormatOption
from matchwright.engine.cli._output import Writer

ModelArgument = Annotated[_models.ModelOption, typer.Argument(metavar="MODEL", help="Which.")]
VersionOption = Annotated[
    int | None, typer.Option("--version", min=1, help="Which version; all when not given.")
]


def load(
    model: ModelArgument,
    server: _models.ServerOption,
    version: VersionOption = None,
    timeout: _models.TimeoutOption = 120.0,
    tls_ca: _models.TlsCaOption = None,
    format_: FormatOption = None,
) -> None:
    """Make a version ready, beside those that are, and wait until it is."""
    from matchwright.engine.models import rolling

    with _models.connected(server, tls_ca, timeout) as client:
        ready = rolling.load(client, model.value, version, deadline=_models.deadline(timeout))
    _answer(model, ready, format_)


def unload(
    model: ModelArgument,
    server: _models.ServerOption,
    version: VersionOption = None,
    force: Annotated[
        bool, typer.Option("--force", help="Also when no version is left that answers.")
    ] = False,
    timeout: _models.TimeoutOption = 120.0,
    tls_ca: _models.TlsCaOption = None,
    format_: FormatOption = None,
) -> None:
    """Take a version away; the only one that is ready is kept, unless --force is given."""
    from matchwright.engine.models import rolling

    with _models.connected(server, tls_ca, timeout) as client:
        ready = rolling.unload(
            client, model.value, version, force=force, deadline=_models.deadline(timeout)
        )
    _answer(model, ready, format_)


def _answer(model: _models.ModelOption, ready: tuple[int, ...], format_: FormatOption) -> None:
    row = {"model": model.value, "ready": list(ready)}
    with Writer(format_, None) as writer:
        writer.add(_models.table(row, [row]))


def register(group: typer.Typer) -> None:
    """Add the commands."""
    group.command()(load)
    group.command()(unload)
