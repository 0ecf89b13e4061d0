"""``matchwright store erase``: people out of a store, its runs and its quarantine files."""

from __future__ import annotations

import enum
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from matchwright.engine.cli._failures import Interrupted, harmless
from matchwright.engine.cli._options import (
    WAIT_S,
    FormatOption,
    OutputOption,
    StoreOption,
    WaitOption,
    ids_of,
)
from matchwright.engine.cli._output import View, Writer, plainly
from matchwright.engine.cli._progress import say
from matchwright.engine.errors import InvalidArgument, PartlyDone

if TYPE_CHECKING:
    from rich.console import Console


class WhoOption(enum.StrEnum):
    """Whom to erase; of clients their jobs, and lists that name them."""

    JOB = "job"
    FREELANCER = "freelancer"
    CLIENT = "client"


def erase(
    ids: Annotated[
        list[str], typer.Argument(metavar="ID...", help="Who; @FILE for one id in a line.")
    ],
    store: StoreOption,
    kind: Annotated[WhoOption, typer.Option("--kind", help="What they are.")],
    runs: Annotated[
        list[str] | None,
        typer.Option("--runs", metavar="URL", help="Runs elsewhere that the store does not know."),
    ] = None,
    quarantine: Annotated[
        list[Path] | None,
        typer.Option("--quarantine", metavar="FILE", help="Quarantine files elsewhere."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what there is, erase none.")] = (
        False
    ),
    wait: WaitOption = WAIT_S,
    format_: FormatOption = None,
    output: OutputOption = None,
) -> int:
    """Erase people for good: records, history, runs, quarantine. Cannot be undone.

    Killed at any moment, the same command completes it. With exit code 4 something could not be
    reached now; run it again when it can.
    """
    from matchwright.engine.erasure import checked_ids, places_of, survey
    from matchwright.engine.store import Store

    names = checked_ids(ids_of(ids))
    with Store.open(store) as opened:
        where = places_of(opened.root, runs or (), quarantine or ())
        found = survey(opened, kind.value, names)
    if dry_run:
        document = {
            "would_erase": found,
            "runs": list(where.runs),
            "quarantine": [str(path) for path in where.quarantine],
        }
        _write(document, f"nothing was erased: {_told(found)}", format_, output)
        return 0
    _confirm(len(names), kind.value, found, yes)
    try:
        with Store.open(store, mode="w", wait_s=wait, waiting=say) as opened:
            done = opened.erase(
                kind.value, names, runs=runs or (), quarantine=quarantine or (), step=say
            )
    except KeyboardInterrupt:
        raise Interrupted("run the same command again to complete it") from None
    _write(done.to_dict(), _summary(done), format_, output)
    return PartlyDone.exit_code if done.incomplete else 0


def _confirm(n: int, kind: str, found: dict[str, int], yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise InvalidArgument("erasing cannot be undone; say --yes, or look first with --dry-run")
    typer.confirm(f"Erase {n:,} {kind}s for good ({_told(found)})?", abort=True, err=True)


def _told(found: dict[str, int]) -> str:
    return (
        f"{found['living']:,} living, {found['earlier']:,} earlier records, "
        f"{found['mentions']:,} lists of others that name them"
    )


def _summary(done: Any) -> str:
    rows = sum(done.quarantine.values())
    lines = [
        f"erased {done.ids:,} {done.who}s as of epoch {done.epoch}: {done.living:,} living and "
        f"{done.earlier:,} earlier records, {done.rows:,} rows out of {done.files:,} segment files",
        f"{done.mentions:,} lists of others name them by a key now; {len(done.runs):,} runs and "
        f"{rows:,} quarantined rows were redacted",
        *(f"NOT REACHED: {harmless(line)}" for line in done.not_reached),
    ]
    if done.incomplete:
        lines.append("run the same command again to complete it")
    return "\n".join(lines)


def _write(document: dict[str, Any], told: str, format_: Any, output: Path | None) -> None:
    def draw(console: Console) -> None:
        console.print(told, soft_wrap=True, markup=False, highlight=False)

    plain = plainly(document)
    with Writer(format_, output) as writer:
        writer.add(View(plain, [{name: str(value) for name, value in plain.items()}], draw))


def register(group: typer.Typer) -> None:
    """Add the command."""
    group.command()(erase)
