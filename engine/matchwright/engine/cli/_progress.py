"""Progress on stderr: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

_LINE_EVERY_SECONDS = 5.0

Advance = Callable[[int], None]


@contextlib.contextmanager
def progress(what: str, total: int | None = None) -> Iterator[Advance]:
    """``with progress("rows", total) as advance: advance(1_000)``."""
    if sys.stderr.isatty():
        yield from _bar(what, total)
    else:
        yield from _lines(what, total)


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
