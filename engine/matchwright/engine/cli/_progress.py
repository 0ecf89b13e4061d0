"""Progress on stderr: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

_LINE_EVERY_SECONDS = 5.0

Advance = Callable[[int], None]


@contextlib.contextmanager
def progress(what: str, total: int | None = None) -> Iterator[Advance]:
    """``with progress("rows", total) as advance: advance(1_000)``."""
    if sys.stderr.isatty():
        yield from _bar(what, total)
    else:
        yield from _lines(what, total)


@contextlib.contextmanager
def bytes_progress(what: str) -> Iterator[Callable[[int, int, int], None]]:
    """``tell(rows read, bytes read, bytes in all)``, as an import calls it."""
    if not sys.stderr.isatty():
        with progress(f"{what} rows") as advance:
            told = 0

            def rows_only(rows: int, _done: int, _total: int) -> None:
                nonlocal told
                advance(rows - told)
                told = rows

            yield rows_only
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Progress(
        *columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True
    ) as bar:
        task = bar.add_task(what, total=None)

        def tell(rows: int, done: int, total: int) -> None:
            bar.update(task, description=f"{what} {rows:,} rows", completed=done, total=total)

        yield tell


@contextlib.contextmanager
def rate_bar() -> Iterator[Bar]:
    """A bar on a terminal; its tasks have a field ``rate``, and the time that is left."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        yield bar


def say(line: str) -> None:
    """One line on stderr for whoever watches."""
    print(line, file=sys.stderr, flush=True)


def _bar(what: str, total: int | None) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(
        *columns, TimeElapsedColumn(), console=Console(stderr=True), transient=True
    ) as bar:
        task = bar.add_task(what, total=total)
        yield lambda n: bar.advance(task, n)


def _lines(what: str, total: int | None) -> Iterator[Advance]:
    done = 0
    due = time.monotonic() + _LINE_EVERY_SECONDS
    of = f" of {total:,}" if total is not None else ""

    def advance(n: int) -> None:
        nonlocal done, due
        done += n
        if time.monotonic() >= due:
            due = time.monotonic() + _LINE_EVERY_SECONDS
            say(f"{what}: {done:,}{of}")

    yield advance
