"""The progress of encoding texts: a bar with rate and time left, or JSON lines; on stderr."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator

from matchwright.engine.cli._progress import rate_bar, say
from matchwright.engine.cli._run_progress import LINE_EVERY_S, Rate

Tell = Callable[[int, int], None]


@contextlib.contextmanager
def embed_progress() -> Iterator[Tell]:
    """``tell(records done, records in all)``."""
    if not sys.stderr.isatty():
        yield _lines()
        return
    with rate_bar() as bar:
        task, rate = bar.add_task("encoding", total=None, rate=""), Rate()

        def tell(done: int, total: int) -> None:
            speed, _ = rate.tell(done, total)
            bar.update(task, completed=done, total=total, rate=f"{speed:,.0f} records/s")

        yield tell


def _lines() -> Tell:
    rate, due = Rate(), 0.0

    def tell(done: int, total: int) -> None:
        nonlocal due
        speed, left = rate.tell(done, total)
        if time.monotonic() < due and done < total:
            return
        due = time.monotonic() + LINE_EVERY_S
        told = {"event": "embed", "done": done, "of": total, "records_per_s": round(speed, 1)}
        say(json.dumps({**told, "seconds_left": None if left is None else round(left, 1)}))

    return tell
