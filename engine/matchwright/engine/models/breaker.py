"""A circuit breaker: whoever does not answer is not waited for again and again.

::

             failures in a row                       the probe was answered
    CLOSED ────────────────────► OPEN ─────────────────────────────► HALF_OPEN
       ▲                          ▲ │ the probe failed: wait again       │ │
       │                          │ └──►(open_s)                         │ │
       │                          └──────────────── the trial failed ────┘ │
       └──────────────────────────────── the trial was answered ───────────┘

While it is open, calls are refused at once; somebody in the background asks the server whether it
is there (the probe), so that no caller pays for finding out. Then one call is let through (the
trial), and the others are refused until it has ended.

Pure: no threads, no sleeping, and the clock is an argument.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from matchwright.engine.models.watch import BreakerState


@dataclass(frozen=True, slots=True)
class Permit:
    """Leave to make one call. Hand it back with ``answered``, ``failed`` or ``abandoned``."""

    started: float
    era: int
    trial: bool


class Breaker:
    """Counts failures in a row, and opens. Thread-safe.

    Args:
        failures: so many in a row open it.
        open_s: from opening to the first probe, and from a failed probe to the next.
        patience_s: calls that were late open it only when the server has been silent for so long:
            a caller with hardly any time left says nothing about the server.
        clock: seconds, monotonic.
        changed: told the new state, while the breaker is locked; it must not call back.
    """

    def __init__(
        self,
        *,
        failures: int,
        open_s: float,
        patience_s: float,
        clock: Callable[[], float] = time.monotonic,
        changed: Callable[[BreakerState], None] = lambda state: None,
    ) -> None:
        self._failures = failures
        self._open_s = open_s
        self._patience_s = patience_s
        self._clock = clock
        self._changed = changed
        self._lock = threading.Lock()
        self._state: BreakerState = "closed"
        self._in_a_row = 0
        self._silent_since = 0.0
        self._era = 0  # grows when it opens, so that calls from before say nothing any more
        self._probe_at = 0.0
        self._probing = False
        self._trying = False

    @property
    def state(self) -> BreakerState:
        """Closed: calls go through. Open: none. Half-open: one at a time."""
        return self._state

    def admit(self) -> Permit | None:
        """Leave for one call, or None: do not wait, it is refused."""
        with self._lock:
            if self._state == "open" or (self._state == "half_open" and self._trying):
                return None
            trial = self._state == "half_open"
            self._trying = trial
            return Permit(self._clock(), self._era, trial)

    def answered(self, permit: Permit) -> None:
        """The server has answered, whatever it said."""
        with self._lock:
            if permit.era != self._era:
                return
            self._in_a_row = 0
            if permit.trial:
                self._trying = False
                self._become("closed")

    def failed(self, permit: Permit, *, late: bool = False) -> None:
        """There was no answer: the server is not there, or was ``late``."""
        with self._lock:
            if permit.era != self._era:
                return
            now = self._clock()
            if permit.trial:
                self._trying = False
                if not late or now - permit.started >= self._patience_s:
                    self._open(now)
                return
            if self._in_a_row == 0 or permit.started < self._silent_since:
                self._silent_since = permit.started
            self._in_a_row += 1
            patient = not late or now - self._silent_since >= self._patience_s
            if self._in_a_row >= self._failures and patient:
                self._open(now)

    def abandoned(self, permit: Permit) -> None:
        """The caller left before anything was known."""
        with self._lock:
            if permit.era == self._era and permit.trial:
                self._trying = False

    def probe_in_s(self) -> float | None:
        """Seconds until a probe is due, 0 when it is; None when the breaker is not open."""
        with self._lock:
            if self._state != "open":
                return None
            return max(0.0, self._probe_at - self._clock())

    def probe(self) -> bool:
        """Whether to probe now. If so, ``probed`` has to follow; until then nobody else may."""
        with self._lock:
            if self._state != "open" or self._probing or self._clock() < self._probe_at:
                return False
            self._probing = True
            return True

    def probed(self, *, there: bool) -> None:
        """What the probe has found."""
        with self._lock:
            if not self._probing:
                return
            self._probing = False
            if there:
                self._become("half_open")
            else:
                self._probe_at = self._clock() + self._open_s

    def _open(self, now: float) -> None:
        self._era += 1
        self._in_a_row = 0
        self._trying = False
        self._probe_at = now + self._open_s
        self._become("open")

    def _become(self, state: BreakerState) -> None:
        self._state = state
        self._changed(state)
