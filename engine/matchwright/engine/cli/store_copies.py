"""``matchwright store publish|pull|backup|restore|verify``: copies of a store, and its checks."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from matchwright.engine.cli._failures import Interrupted, harmless
from matchwright.engine.cli._options import (
    WAIT_S,
    FormatOption,
    OutputOption,
    StoreOption,
    WaitOption,
)
from matchwright.engine.cli._output import View, Writer, facts, plainly
from matchwright.engine.cli._progress import say
from matchwright.engine.errors import InvalidArgument, StoreError, VerificationFailed

if TYPE_CHECKING:
    from rich.console import Console

_LINE_EVERY_S = 5.0
_STREAM = "-"

NameOption = Annotated[
    str | None,
    typer.Option("--name", help="A folder below the URL, so that many stores share one place."),
]
ScratchOption = Annotated[
    Path | None,
    typer.Option("--scratch", metavar="DIR", help="A folder with room for a copy of the catalog."),
]


def publish(
    store: StoreOption,
    to: Annotated[str, typer.Option("--to", metavar="URL", help="A path, or any fsspec URL.")],
    name: NameOption = None,
    no_text: Annotated[
        bool, typer.Option("--no-text", help="Leave the texts of the records out.")
    ] = False,
    keep: Annotated[int, typer.Option(min=1, help="Epochs that stay there.")] = 3,
    grace_hours: Annotated[
        float,
        typer.Option(min=0, help="How long what no kept epoch needs stays there all the same."),
    ] = 24.0,
    allow_older: Annotated[
        bool, typer.Option("--allow-older", help="Switch back to an earlier epoch.")
    ] = False,
    scratch: ScratchOption = None,
    format_: FormatOption = None,
    output: OutputOption = None,
) -> None:
    """Put the newest epoch of a store where replicas pull it from; upload what is not there yet."""
    from matchwright.engine.store.publish import publish as run

    _remember(store, "published", to)
    with _kept("what was uploaded stays and nothing was switched"), _progress() as progress:
        done = run(
            store,
            to,
            name=name,
            keep_text=not no_text,
            keep=keep,
            grace_s=grace_hours * 3600,
            allow_older=allow_older,
            scratch=scratch,
            progress=progress,
        )
    _answer(dataclasses.asdict(done), format_, output)


def pull(
    store: StoreOption,
    source: Annotated[
        str | None,
        typer.Option("--from", metavar="URL", help="Where a store was published."),
    ] = None,
    name: NameOption = None,
    epoch: Annotated[
        str | None,
        typer.Option(metavar="EPOCH", help="A number or name that is kept there; else the newest."),
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read what is here too; fetch again what is damaged.")
    ] = False,
    promote: Annotated[
        bool,
        typer.Option("--promote", help="Make the replica a store of its own, to be written to."),
    ] = False,
    wait: WaitOption = WAIT_S,
    format_: FormatOption = None,
    output: OutputOption = None,
) -> None:
    """Make or update a read-only replica; fetch what is missing, check it, then switch."""
    from matchwright.engine.store import replica
    from matchwright.engine.store.pull import pull as run

    if promote == (source is not None):
        got = "both" if promote else "neither"
        raise InvalidArgument(f"give --from URL to pull or --promote to end that; got {got}")
    if source is None:
        replica.promote(store)
        _answer({"store": str(store), "promoted": True}, format_, output)
        return
    with _kept("the replica is what it was"), _progress() as progress:
        done = run(
            source,
            store,
            name=name,
            epoch=epoch,
            verify=verify,
            progress=progress,
            wait_s=wait,
            waiting=say,
        )
    _answer(dataclasses.asdict(done), format_, output)


def backup(
    store: StoreOption,
    to: Annotated[
        str, typer.Option("--to", metavar="FILE", help="A file, folder or URL; - is stdout.")
    ],
    scratch: ScratchOption = None,
    format_: FormatOption = None,
    output: OutputOption = None,
) -> None:
    """Write one tar file with everything of a store, while a writer goes on."""
    from matchwright.engine.store.backup import backup as run

    _remember(store, "backup", "stream://stdout" if to == _STREAM else to)
    with _kept("no backup was left"), _progress() as progress:
        done = run(store, to, stdout=sys.stdout.buffer, scratch=scratch, progress=progress)
    if to == _STREAM:
        say(f"{done.epoch}: {done.files:,} files, {done.bytes:,} bytes")
    else:
        _answer(dataclasses.asdict(done), format_, output)


def restore(
    source: Annotated[
        str, typer.Option("--from", metavar="FILE", help="A backup: a file or URL; - is stdin.")
    ],
    store: StoreOption,
    replace: Annotated[
        bool, typer.Option("--replace", help="Take the place of the store that is there.")
    ] = False,
    wait: WaitOption = WAIT_S,
    format_: FormatOption = None,
    output: OutputOption = None,
) -> None:
    """Make a store from a backup; everything is checked before it is in its place."""
    from matchwright.engine.store.restore import restore as run

    with _kept("nothing was put in place"), _progress() as progress:
        done = run(
            source,
            store,
            replace=replace,
            stdin=sys.stdin.buffer,
            progress=progress,
            wait_s=wait,
            waiting=say,
        )
    _answer(dataclasses.asdict(done), format_, output)


def verify(store: StoreOption, format_: FormatOption = None, output: OutputOption = None) -> int:
    """Read and check every block and record of a store; name each file that is damaged."""
    from matchwright.engine.store import check
    from matchwright.engine.store.encode import default_neighbours

    with _progress() as progress:
        found = check.damages(store, default_neighbours(), progress)
    damages = [
        {"reason": error.reason, "message": harmless(error), **error.details} for error in found
    ]
    document = {"sound": not damages, "damages": damages}
    rows = [
        {"file": d.get("file", ""), "reason": d["reason"], "message": d["message"]} for d in damages
    ]
    told = [row["message"] for row in rows] or [f"{store}: sound"]
    with Writer(format_, output) as writer:
        writer.add(View(document, rows, lambda console: console.print("\n".join(told))))
    return VerificationFailed.exit_code if damages else 0


def _remember(store: Path, what: Literal["published", "backup"], where: str) -> None:
    """Lets the store know of copies, so that erasing somebody names what it cannot reach."""
    from matchwright.engine.store import places
    from matchwright.engine.store.catalog import FILE

    if not (store / FILE).is_file():
        return  # the command says so
    try:
        places.note(store, what, where)
    except StoreError as error:
        say(f"the store cannot remember this copy ({harmless(error)}): keep track of it yourself")


@contextlib.contextmanager
def _kept(what: str) -> Iterator[None]:
    """Says what an interruption left, and that the same command goes on."""
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(f"{what}; the same command goes on") from None


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """``tell(what, done, total)``: a bar for each step on a terminal, a line now and then else."""
    if not sys.stderr.isatty():
        yield _lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f}%"))
    with Progress(
        *columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True
    ) as bar:
        tasks: dict[str, TaskID] = {}

        def tell(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done, total=total)

        yield tell


def _lines() -> Callable[[str, int, int], None]:
    due = time.monotonic() + _LINE_EVERY_S

    def tell(what: str, done: int, total: int) -> None:
        nonlocal due
        if time.monotonic() >= due:
            due = time.monotonic() + _LINE_EVERY_S
            say(f"{what}: {done:,} of {total:,}")

    return tell


def _answer(document: dict[str, Any], format_: Any, output: Path | None) -> None:
    flat = {name: value for name, value in plainly(document).items() if value is not None}

    def draw(console: Console) -> None:
        console.print(facts(flat.items()))

    with Writer(format_, output) as writer:
        writer.add(View(document, [flat], draw))


def add_to(group: typer.Typer) -> None:
    """Add the commands to ``matchwright store``."""
    for command in (publish, pull, backup, restore, verify):
        group.command()(command)
