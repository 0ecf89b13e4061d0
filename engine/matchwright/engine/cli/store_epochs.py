"""``matchwright store compact|migrate|epochs|keep|release``: segments, formats, kept epochs."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from matchwright.engine.cli._failures import Interrupted
from matchwright.engine.cli._options import (
    WAIT_S,
    FormatOption,
    OutputOption,
    StoreOption,
    WaitOption,
)
from matchwright.engine.cli._output import View, Writer
from matchwright.engine.cli._progress import say
from matchwright.engine.errors import InvalidArgument

if TYPE_CHECKING:
    from rich.console import Console

    from matchwright.engine.store.epochs import KeptEpoch

_UNITS = {"": 1, "s": 1, "m": 60, "h": 3_600, "d": 86_400}
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([smhd]?)")


def seconds_of(duration: str) -> float:
    """``90``, ``90s``, ``15m``, ``12h`` or ``7d`` in seconds.

    Raises:
        InvalidArgument: it is none of these.
    """
    found = _DURATION.fullmatch(duration.strip())
    seconds = float(found[1]) * _UNITS[found[2]] if found else 0.0
    if not seconds:
        raise InvalidArgument(f"got {duration!r}, expected a time such as 90s, 15m, 12h or 7d")
    return seconds


def compact(
    store: StoreOption,
    everything: Annotated[
        bool, typer.Option("--all", help="Leave no dead row, and as few segments as possible.")
    ] = False,
    retain: Annotated[
        float,
        typer.Option(
            "--retain-seconds",
            min=0,
            help="How long epochs without a lease stay, and files that only they need.",
        ),
    ] = 60.0,
    wait: WaitOption = WAIT_S,
    format_: FormatOption = None,
    output: OutputOption = None,
) -> None:
    """Merge small segments and those with many dead rows. Readers go on; nothing else changes."""
    from matchwright.engine.store import Store
    from matchwright.engine.store.compact import Figures

    def told(done: Figures) -> None:
        say(f"merge {done.merges}: {done.rows:,} rows, {done.bytes_written:,} bytes so far")

    try:
        with Store.open(store, mode="w", retain_s=retain, wait_s=wait, waiting=say) as opened:
            figures = opened.compact(everything=everything, told=told)
            after = opened.info(drift=False)
    except KeyboardInterrupt:
        raise Interrupted("what was merged stays, the rest is as it was") from None
    done = figures.document()
    document = {name: done[name] for name in done if name not in ("running", "error")}
    document |= {
        "segments": {kind: figure["segments"] for kind, figure in after["kinds"].items()},
        "held_bytes": after["compaction"]["held_bytes"],
    }
    _write(document, format_, output)


def migrate(
    store: StoreOption,
    no_copy: Annotated[
        bool, typer.Option("--no-copy", help="Do not keep the catalog as it was.")
    ] = False,
    wait: WaitOption = WAIT_S,
    format_: FormatOption = None,
    output: OutputOption = None,
) -> None:
    """Bring a store of an older version to this one's format. Stop older programs first."""
    from matchwright.engine.store.migrate import migrate as run

    began = time.monotonic()
    try:
        done = run(store, keep_copy=not no_copy, wait_s=wait, waiting=say)
    except KeyboardInterrupt:
        raise Interrupted("the store has the format that it had; run it again") from None
    document = {
        "before": done.before,
        "after": done.after,
        "copy": None if done.copy is None else str(done.copy),
        "seconds": round(time.monotonic() - began, 1),
    }
    _write(document, format_, output)


def epochs(store: StoreOption, format_: FormatOption = None, output: OutputOption = None) -> None:
    """List the epochs that can be opened, and why each is kept."""
    from matchwright.engine.store import Store

    with Store.open(store) as opened:
        rows = [_row(epoch) for epoch in opened.epochs()]

    def draw(console: Console) -> None:
        from rich.table import Table

        table = Table("epoch", "since (UTC)", "made by", "why it is kept", box=None)
        for row in rows:
            why = ", ".join(row["why"])
            table.add_row(f"{row['number']:,}", row["since"] or "", row["what"], why)
        console.print(table)

    flat = [row | {"why": " ".join(row["why"])} for row in rows]
    with Writer(format_, output) as writer:
        writer.add(View({"epochs": rows}, flat, draw))


def keep(
    name: Annotated[str, typer.Argument(help="Of the lease: A-Z a-z 0-9 . _ -")],
    store: StoreOption,
    epoch: Annotated[int | None, typer.Option(help="A number; else the newest.")] = None,
    duration: Annotated[
        str | None,
        typer.Option("--for", metavar="TIME", help="90s, 15m, 12h, 7d; else until it is released."),
    ] = None,
    format_: FormatOption = None,
    output: OutputOption = None,
) -> None:
    """Keep an epoch from going, under a name."""
    from matchwright.engine.store import Store

    seconds = None if duration is None else seconds_of(duration)
    with Store.open(store) as opened:
        lease = opened.keep(name, epoch=epoch, seconds=seconds)
    document = {"name": name, "epoch": lease.epoch, "expires": _time(lease.expires)}
    _write(document, format_, output)


def release(
    name: Annotated[str, typer.Argument(help="Of the lease.")],
    store: StoreOption,
    format_: FormatOption = None,
    output: OutputOption = None,
) -> None:
    """Let the epoch of a lease go."""
    from matchwright.engine.store import Store

    with Store.open(store) as opened:
        number = opened.release(name)
    _write({"name": name, "released": number}, format_, output)


def _row(epoch: KeptEpoch) -> dict[str, Any]:
    return {
        "number": epoch.number,
        "digest": epoch.digest,
        "what": epoch.what,
        "generation": epoch.generation,
        "since": _time(epoch.since),
        "until": _time(epoch.until),
        "why": epoch.why,
    }


def _time(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _write(document: dict[str, Any], format_: FormatOption, output: OutputOption) -> None:
    from matchwright.engine.cli.store import view

    with Writer(format_, output) as writer:
        writer.add(view(document))


def add_to(group: typer.Typer) -> None:
    """Add the commands."""
    for command in (compact, migrate, epochs, keep, release):
        group.command()(command)
