"""What the commands about models share: options, a client for the time of a command, views."""

from __future__ import annotations

import contextlib
import enum
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from matchwright.engine.cli._failures import harmless
from matchwright.engine.cli._output import View, plainly

if TYPE_CHECKING:
    from rich.console import Console

    from matchwright.engine.models.triton import Triton


class ModelOption(enum.StrEnum):
    """A model on the command line."""

    ENCODER = "encoder"
    RANKER = "ranker"


RepositoryArgument = Annotated[
    Path, typer.Argument(metavar="REPO", help="The model repository's folder.")
]
RepositoryOrNone = Annotated[
    Path | None,
    typer.Argument(metavar="REPO", help="The model repository's folder.", show_default=False),
]
ServerOption = Annotated[
    str, typer.Option("--server", metavar="HOST:PORT", help="The Triton server's gRPC port.")
]
ServerOrNone = Annotated[
    str | None,
    typer.Option("--server", metavar="HOST:PORT", help="The Triton server's gRPC port."),
]
TlsCaOption = Annotated[
    Path | None,
    typer.Option("--tls-ca", metavar="FILE", help="Speak TLS; the authorities to trust (PEM)."),
]
TimeoutOption = Annotated[
    float, typer.Option("--timeout", metavar="SECONDS", min=0.1, help="How long to wait.")
]


@contextlib.contextmanager
def connected(address: str, tls_ca: Path | None, timeout_s: float) -> Iterator[Triton]:
    """A client for the server at ``address``, which may carry a scheme as URLs do.

    Raises:
        InvalidArgument: it is no address.
    """
    from matchwright.engine.models.triton import Triton, TritonConfig

    scheme, separator, rest = address.partition("://")
    url = rest.rstrip("/") if separator and scheme in {"grpc", "http"} else address
    config = TritonConfig(url=url, tls_ca=tls_ca, timeout_ms=round(timeout_s * 1000))
    with Triton(config) as client:
        yield client


def deadline(timeout_s: float) -> float:
    """The moment of ``time.monotonic()`` that a command waits for at most."""
    return time.monotonic() + timeout_s


def table(document: dict[str, Any], rows: Sequence[dict[str, Any]]) -> View:
    """Rows of equal keys as a table, and a document for JSON."""

    def draw(console: Console) -> None:
        from rich.table import Table

        drawn = Table(box=None, pad_edge=False, header_style="dim")
        for name in rows[0] if rows else ("nothing",):
            drawn.add_column(name, overflow="fold")
        for row in rows:
            drawn.add_row(*map(_cell, row.values()))
        console.print(drawn)

    return View(document, rows, draw)


def _cell(value: Any) -> str:
    """For people: a list by its items, nothing where there is none."""
    value = plainly(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(harmless, value))
    return "" if value is None else harmless(value)
