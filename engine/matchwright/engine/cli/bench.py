"""``matchwright bench``: the speed of this machine, beside its peers, in one run."""

from __future__ import annotations

import importlib
import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from matchwright.engine.cli._failures import harmless
from matchwright.engine.cli._output import console
from matchwright.engine.cli._progress import say
from matchwright.engine.cli._source import Device, DeviceOption, need_device
from matchwright.engine.errors import DependencyUnavailable, VerificationFailed, unknown_key

if TYPE_CHECKING:
    from collections.abc import Mapping

BENCHES = {"topk": "matchwright.kernels.bench_topk"}


def bench(
    name: Annotated[str, typer.Argument(help="Which bench: topk.")] = "topk",
    as_json: Annotated[bool, typer.Option("--json", help="Figures as one JSON object.")] = False,
    full: Annotated[
        bool, typer.Option("--full", help="The sizes that the proofs use; takes minutes.")
    ] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Tiny sizes, to see that it works.")
    ] = False,
    device: DeviceOption = Device.AUTO,
) -> int:
    """Measure this machine, beside its peers, as ratios."""
    if name not in BENCHES:
        raise unknown_key("bench", name, BENCHES)
    need_device(device)
    try:
        module: Any = importlib.import_module(BENCHES[name])
    except ImportError as error:
        raise DependencyUnavailable(
            f"the bench needs {error.name}: pip install 'matchwright[dev]'"
        ) from None
    from matchwright.engine.device import open_ops

    ops = open_ops(device.value, say=say)
    gpu = ops if ops.health.on_device else None
    figures: Mapping[str, Any] = module.run(full=full, quick=quick, device=gpu)
    if as_json:
        print(json.dumps(figures, indent=2))
    else:
        _draw(figures)
    return VerificationFailed.exit_code if figures.get("passed") is False else 0


def _draw(figures: Mapping[str, Any]) -> None:
    from rich.table import Table

    to = console()
    for name, value in figures.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            columns = list(dict.fromkeys(key for row in value for key in row))
            table = Table(*columns, title=name, title_justify="left", box=None, pad_edge=False)
            for row in value:
                table.add_row(*(_number(row.get(key, "")) for key in columns))
            to.print(table)
        else:
            to.print(f"{name}: {_number(value)}")


def _number(value: Any) -> str:
    return f"{value:,.3g}" if isinstance(value, float) else harmless(value)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(bench)
