"""The progress of a run on stderr: a bar with rate and time left, or JSON lines."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from matchwright.engine.cli._failures import harmless
from matchwright.engine.cli._progress import rate_bar, say

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

    from matchwright.engine.runs.execute import Event, Progress

LINE_EVERY_S = 5.0
"""Between JSON lines about units; other events are told at once."""


class Rate:
    """Queries per second since the first time that it was asked, and seconds left."""

    def __init__(self) -> None:
        self._first: tuple[float, int] | None = None

    def tell(self, done: int, total: int) -> tuple[float, float | None]:
        """(queries per second, seconds left or None while nobody knows)."""
        now = time.monotonic()
        if self._first is None:
            self._first = now, done
        began, first = self._first
        if done <= first or now <= began:
            return 0.0, None
        rate = (done - first) / (now - began)
        return rate, (total - done) / rate


@contextlib.contextmanager
def run_progress() -> Iterator[Progress]:
    """A progress for ``execute.run``."""
    if not sys.stderr.isatty():
        yield _Lines()
        return
    with rate_bar() as bar:
        yield _Terminal(bar)


class _Lines:
    def __init__(self) -> None:
        self._rate, self._total, self._due = Rate(), 0, 0.0

    def __call__(self, event: Event) -> None:
        told: dict[str, Any] = {"event": event.name, **event.fields}
        if event.name == "start":
            self._total = int(event.fields["of"])
            self._rate.tell(int(event.fields["done"]), self._total)
        elif event.name == "unit":
            done = int(event.fields["done"])
            if time.monotonic() < self._due and done < self._total:
                return
            self._due = time.monotonic() + LINE_EVERY_S
            rate, left = self._rate.tell(done, self._total)
            told |= {"of": self._total, "queries_per_s": round(rate, 1)}
            told["seconds_left"] = None if left is None else round(left, 1)
        say(json.dumps(told))


class _Terminal:
    def __init__(self, bar: Bar) -> None:
        self._bar, self._rate, self._total = bar, Rate(), 0
        self._task: Any = None

    def __call__(self, event: Event) -> None:
        fields = event.fields
        if event.name == "start":
            self._total = int(fields["of"])
            self._rate.tell(int(fields["done"]), self._total)
            what = f"run {fields['run']}"
            asking = " and ".join(f"{n:,} {kind}s" for kind, n in fields["asking"].items())
            self._print(f"{what}: {asking} ask, {fields['units']:,} units to do, {fields['url']}")
            if "ranker" in fields:
                self._print(f"{fields['ranker']} orders the candidates of each unit")
            self._task = self._bar.add_task(what, total=self._total, rate="")
            self._bar.update(self._task, completed=int(fields["done"]))
        elif event.name == "unit":
            rate, _ = self._rate.tell(int(fields["done"]), self._total)
            self._bar.update(
                self._task, completed=int(fields["done"]), rate=f"{rate:,.0f} queries/s"
            )
        elif event.name == "redo":
            self._print(f"{fields['unit']} is done again: {fields['why']}")
        else:
            self._print(str(fields.get("text", "")))

    def _print(self, line: str) -> None:
        self._bar.console.print(harmless(line), markup=False, highlight=False)
