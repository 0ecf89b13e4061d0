"""Compaction of the stores that a server serves, in a thread of its own.

It looks every ``LOOK_S``, which writes nothing. Only when there is something to do and nobody else
writes, it takes the store's lock, for one merge at the background's pace. Whatever goes wrong is a
line in the log and another try: answers come from the epochs that readers hold, and need no lock.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Protocol

from matchwright.engine.errors import MatchwrightError, StoreLocked
from matchwright.engine.store.compact import PACE, RETRY_S, Figures

LOOK_S = 5.0
"""How often each store is looked at while there is nothing to do."""
BETWEEN_S = 0.2
"""The least rest between two steps: longer than who waits for the lock waits between two tries."""
_log = logging.getLogger(__name__)


class StoreLike(Protocol):
    """The part of ``Store`` that is used."""

    def due(self, *, retain_s: float) -> object: ...

    def tend(self, *, retain_s: float, stop: threading.Event) -> Figures: ...


class Housekeeper:
    """Keeps the segments of some stores few, and removes what no epoch needs any more.

    Args:
        stores: by marketplace, open for reading.
        retain_s: how long an epoch without a lease stays.
        look_s: seconds between two looks at a store that needs nothing.
        retry_s: seconds after a failure, such as a full disk.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        stores: Mapping[str, StoreLike],
        *,
        retain_s: float,
        look_s: float = LOOK_S,
        retry_s: float = RETRY_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stores = stores
        self._retain_s = retain_s
        self._look_s = look_s
        self._retry_s = retry_s
        self._clock = clock
        self._next = dict.fromkeys(stores, clock())
        self._said = dict.fromkeys(stores, "")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="housekeeping", daemon=True)
        self.merges = dict.fromkeys(stores, 0)

    def start(self) -> None:
        """Begins to work."""
        self._thread.start()

    def ask_to_stop(self) -> None:
        """Ends after what is under way; a merge that is not committed leaves nothing."""
        self._stop.set()

    def stop(self, wait_s: float | None = None) -> None:
        """Asks it to stop and waits until it has, ``wait_s`` at most.

        What is left behind by then ends with the process, as a SIGKILL would end it: no harm.
        """
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(wait_s)

    def _run(self) -> None:
        while not self._stop.is_set():
            for name, at in self._next.items():
                if self._stop.is_set():
                    return
                if at <= self._clock():
                    rest_s = self.step(name)
                    self._next[name] = self._clock() + rest_s
            self._stop.wait(max(0.0, min(self._next.values()) - self._clock()))

    def step(self, name: str) -> float:
        """Looks at a store and does what is due; seconds until the next look at it."""
        store, began = self._stores[name], self._clock()
        try:
            if not store.due(retain_s=self._retain_s):
                self._say(name, "")
                return self._look_s
            done = store.tend(retain_s=self._retain_s, stop=self._stop)
        except StoreLocked as error:
            _log.debug("compaction of %r waits: %s", name, error)
            return self._look_s
        except (MatchwrightError, OSError) as error:
            self._say(name, str(error))
            return self._retry_s
        except Exception:  # a defect: it must be seen, and end nothing
            _log.exception("compaction of %r rests for %g s", name, self._retry_s)
            return self._retry_s
        self._say(name, "")
        if not done.merges:
            return self._look_s
        self.merges[name] += done.merges
        _log.info(
            "compaction of %r: %d segments became %d, %d rows, %.2f s",
            *(name, done.segments_before, done.segments_after, done.rows, done.seconds),
        )
        return max(BETWEEN_S, PACE * (self._clock() - began))

    def _say(self, name: str, trouble: str) -> None:
        """Logs a trouble once, and that it is over."""
        if trouble and trouble != self._said[name]:
            _log.warning(
                "compaction of %r rests, and tries every %g s: %s", name, self._retry_s, trouble
            )
        elif self._said[name] and not trouble:
            _log.info("compaction of %r goes on", name)
        self._said[name] = trouble
