"""``matchwright policy show|check``: the shipped policy, and whether one's own is right."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from matchwright.engine.cli._options import FormatOption, OutputOption, PolicyOption
from matchwright.engine.cli._output import Format, View, Writer, choose_format

if TYPE_CHECKING:
    from rich.console import Console

    from matchwright.engine.policy import Policy

group = typer.Typer(
    help="Weights, rules and budgets.", no_args_is_help=False, rich_markup_mode=None
)


@group.command()
def show(
    policy: PolicyOption = None, format_: FormatOption = None, output: OutputOption = None
) -> None:
    """Show a policy; as a table, its own TOML with every comment."""
    from matchwright.engine.policy import Policy, default_policy_text

    loaded = Policy.load(policy)
    source = default_policy_text() if policy is None else policy.read_text("utf-8")
    view = _view(loaded, source)
    # What people pipe into a file of their own is the TOML, with its comments.
    chosen = Format.TABLE if format_ is None and output is None else choose_format(format_, output)
    with Writer(chosen, output) as writer:
        writer.add(view)


@group.command()
def check(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A policy in TOML.")],
    format_: FormatOption = None,
    output: OutputOption = None,
) -> None:
    """Check a policy and say its id; exit code 2 when it is wrong."""
    from matchwright.engine.policy import Policy

    loaded = Policy.load(file)
    document = {"file": str(file), "id": loaded.id, "valid": True}
    line = f"{file}: right; policy {loaded.id}"
    with Writer(format_, output) as writer:
        writer.add(View(document, [document], lambda console: console.print(line)))


def _view(policy: Policy, source: str) -> View:
    weights = dict(policy.weights)
    document = {"id": policy.id, "weights": weights, "source": source}
    rows = [{"id": policy.id, "facet": name, "weight": weight} for name, weight in weights.items()]

    def draw(console: Console) -> None:
        console.print(source.rstrip("\n"), soft_wrap=True)

    return View(document, rows, draw)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(group, name="policy")
