"""``matchwright models check``: is a repository whole, and does a server do what is relied on?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from matchwright.engine.cli import _models
from matchwright.engine.cli._failures import harmless
from matchwright.engine.cli._options import FormatOption, OutputOption
from matchwright.engine.cli._output import View, Writer
from matchwright.engine.errors import InvalidArgument, VerificationFailed

if TYPE_CHECKING:
    from rich.console import Console

    from matchwright.engine.models.findings import Verdict
    from matchwright.engine.models.repository import Repository

_SIZES = "Sizes of the calls, as in 1,200,1000."


def check(
    repository: _models.RepositoryOrNone = None,
    server: _models.ServerOrNone = None,
    model: Annotated[
        _models.ModelOption | None, typer.Option("--model", help="Only this one.")
    ] = None,
    rows: Annotated[
        int, typer.Option("--rows", min=1, help="Random rows that a ranker scores.")
    ] = 10_000,
    batches: Annotated[str, typer.Option("--batches", help=f"Rows. {_SIZES}")] = "1,7,200,1000",
    texts: Annotated[str, typer.Option("--texts", help=f"Texts. {_SIZES}")] = "1,8,32",
    repeats: Annotated[
        int, typer.Option("--repeats", min=1, help="Calls that a latency is taken from.")
    ] = 50,
    p99_ms: Annotated[
        float | None,
        typer.Option("--p99-ms", min=0.001, help="Fail when a 99th percentile is above."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the random rows.")] = 0,
    timeout: _models.TimeoutOption = 10.0,
    tls_ca: _models.TlsCaOption = None,
    format_: FormatOption = None,
    output: OutputOption = None,
) -> int:
    """Check a repository's files; with --server also what a server answers, beside them.

    Exit code 6 when something is not as it must be. What could not be checked is listed, with the
    reason. Latencies are of one caller, and are judged only by --p99-ms.
    """
    if repository is None and server is None:
        raise InvalidArgument("give REPO to check its files, --server HOST:PORT, or both")
    from matchwright.engine.models import offline
    from matchwright.engine.models.conformance import Plan, check_server
    from matchwright.engine.models.repository import Repository

    plan = Plan(
        rows=rows,
        batches=_numbers(batches, "--batches", 32_768),
        texts=_numbers(texts, "--texts", 256),
        repeats=repeats,
        p99_ms=p99_ms,
        timeout_ms=round(timeout * 1000),
        seed=seed,
    )
    opened: Repository | None = None if repository is None else Repository.open(repository)
    verdicts = [] if opened is None else [offline.check_repository(opened)]
    if server is not None:
        names = ("encoder", "ranker") if model is None else (model.value,)
        with _models.connected(server, tls_ca, timeout) as client:
            verdicts.append(check_server(client, opened, plan, subject=server, models=names))
    with Writer(format_, output, many=len(verdicts) > 1) as writer:
        for verdict in verdicts:
            writer.add(view(verdict))
    if not all(one.conforms for one in verdicts):
        raise _failure(verdicts)
    return 0


def _numbers(text: str, option: str, most: int) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and 1 <= int(part) <= most for part in parts):
        raise InvalidArgument(
            f"{option} takes numbers from 1 to {most:,} with commas between, got {text!r}"
        )
    return tuple(dict.fromkeys(map(int, parts)))


def _failure(verdicts: list[Verdict]) -> VerificationFailed:
    failed = [one for verdict in verdicts for one in verdict.failed]
    if not failed:
        return VerificationFailed("nothing could be checked; the reasons are listed")
    first = f"{failed[0].model} {failed[0].check}: {failed[0].told}"
    more = f", and {len(failed) - 1} more" if len(failed) > 1 else ""
    return VerificationFailed(
        f"{first}{more}", checks=",".join(f"{one.model} {one.check}" for one in failed)
    )


def view(verdict: Verdict) -> View:
    """The findings, one in a row."""
    document = verdict.to_dict()
    rows = [
        {"subject": verdict.subject, **one, "figures": dict(one["figures"])}
        for one in document["findings"]
    ]
    return View(document, rows, lambda console: _draw(console, verdict))


def _draw(console: Console, verdict: Verdict) -> None:
    from rich.table import Table

    console.print(
        f"{harmless(verdict.subject)}: {'conforms' if verdict.conforms else 'does not conform'}"
    )
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("model", "check", "", "found"):
        table.add_column(name, overflow="fold")
    for one in verdict.findings:
        table.add_row(one.model, one.check, one.outcome, harmless(one.told))
    console.print(table)


def register(group: typer.Typer) -> None:
    """Add the command."""
    group.command()(check)
