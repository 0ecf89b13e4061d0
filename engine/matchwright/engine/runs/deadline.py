"""``--finish-by``: when a run has to be done, and whether it will be."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from datetime import datetime, timedelta

from matchwright.engine.errors import InvalidArgument

_CLOCK = re.compile(r"(\d{1,2}):(\d{2})")
_SPAN = re.compile(r"(?:(\d+(?:\.\d+)?)d)?(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+)s)?")
_UNITS = ("days", "hours", "minutes", "seconds")
SURE_AFTER_S = 2.0
"""Seconds of work after which the rate is believed."""


def parse_finish_by(text: str, now: datetime) -> datetime:
    """The moment that is meant.

    Args:
        text: HH:MM (the next time that a clock shows it), an ISO 8601 date and time, or a
            duration such as 2h, 90m, 1h30m.
        now: with a zone; times without one are in it.

    Raises:
        InvalidArgument: none of these.
    """
    clock = _CLOCK.fullmatch(text)
    if clock and int(clock[1]) < 24 and int(clock[2]) < 60:
        at = now.replace(hour=int(clock[1]), minute=int(clock[2]), second=0, microsecond=0)
        return at if at > now else at + timedelta(days=1)
    span = _SPAN.fullmatch(text)
    if text and span:
        parts = zip(_UNITS, span.groups(), strict=True)
        return now + timedelta(**{name: float(value) for name, value in parts if value})
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise InvalidArgument(
            f"--finish-by takes HH:MM, an ISO date and time, or a duration such as 2h or 1h30m, "
            f"got {text!r}",
            field="finish_by",
        ) from None
    return at if at.tzinfo else at.replace(tzinfo=now.tzinfo)


class Deadline:
    """Says when to stop, and once, early, that it will not be done by then.

    Args:
        at: the moment.
        warn: called with one sentence.
        clock: seconds since 1970.
    """

    def __init__(
        self, at: datetime, warn: Callable[[str], None], clock: Callable[[], float] = time.time
    ) -> None:
        self.at, self.warn, self._clock = at, warn, clock
        self._began: tuple[float, int] | None = None
        self._warned = False

    def stop(self, done: int, total: int) -> str | None:
        """Why to stop now, or None. Asked with the queries that are done, and all of them."""
        now = self._clock()
        if self._began is None:
            self._began = now, done
        if now >= self.at.timestamp():
            return f"it had to be done by {self.at.isoformat(timespec='seconds')}"
        began, first = self._began
        if not self._warned and done > first and now - began >= SURE_AFTER_S:
            left = (total - done) * (now - began) / (done - first)
            if now + left > self.at.timestamp():
                self._warned = True
                self.warn(self._late(now + left))
        return None

    def _late(self, expected: float) -> str:
        when = datetime.fromtimestamp(expected, self.at.tzinfo).isoformat(timespec="seconds")
        return (
            f"at this rate it ends at {when}, after {self.at.isoformat(timespec='seconds')}; "
            "it will stop then in good order, to be resumed"
        )
