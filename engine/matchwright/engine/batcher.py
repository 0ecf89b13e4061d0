"""From many callers to one device: requests wait here, and leave together.

There is no timer. A batch leaves when the device is ready for one, and grows while it is busy::

    submit ──> waiting: two lines ──> next: one batch, open ──> device thread: run
    (event      bounded by pairs,      joined by whatever        (one thread owns
     loops)     refused at the door    still fits                 the device)

The next batch is always made up beforehand, and takes in whatever fits until the very moment at
which the device takes it; no event loop stands between two batches.

*Units.* The items of one ``submit`` are one unit. A unit that fits a batch is never split, so its
items are answered by one epoch. A longer one gives as many items to each batch as there is room
for. Short and long units wait in lines of their own; short ones go first, unless the batch before
had no part of a long one: a short unit waits for two batches at most before its line's own turn,
and long ones always get on.

*Every unit ends*: with outcomes, with a typed error, or dropped because its caller left or its
deadline passed while it waited.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from matchwright.engine.errors import (
    DeadlineExceeded,
    DependencyUnavailable,
    MatchwrightError,
    Overloaded,
)

QUERY_PAIRS_MIN = 100_000
"""What a query costs at least, in pairs: it has an overhead of its own, and the number of requests
that wait stays bounded on a small corpus."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Lane:
    """Items that may share a batch: those of one marketplace and one kind of call.

    Attributes:
        name: for logs.
        run: gives one outcome for each item, in order; an item that fails alone yields its error.
            Called on the device thread only.
    """

    name: str
    run: Callable[[Sequence[Any]], Sequence[Any]]


@dataclass(frozen=True, slots=True)
class Outcomes:
    """What came of a unit.

    Attributes:
        items: the outcome of each item: what ``Lane.run`` gave, or a ``MatchwrightError``.
        queue_s: seconds from submission to the unit's first batch.
        run_s: seconds that its batches took.
        batch_items: items of the largest batch that it was in.
    """

    items: list[Any]
    queue_s: float
    run_s: float
    batch_items: int


@dataclass(frozen=True, slots=True)
class Stats:
    """Counters since the start; ``queued_pairs`` wait now, ``queued_units`` wait or run."""

    queued_pairs: int = 0
    queued_units: int = 0
    batches: int = 0
    items: int = 0
    pairs: int = 0
    busy_s: float = 0.0
    refused: int = 0
    expired: int = 0
    left: int = 0
    failed_batches: int = 0


@dataclass(slots=True, eq=False)
class _Unit:
    """The items of one caller.

    ``taken`` items have joined a batch, ``left_over`` have no outcome yet; ``long``: it does not
    fit one batch.
    """

    lane: Lane
    items: Sequence[Any]
    pairs: int
    deadline: float | None
    submitted: float
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Outcomes]
    outcomes: list[Any]
    left_over: int
    taken: int = 0
    long: bool = False
    ended: bool = False
    started: float | None = None
    run_s: float = 0.0
    batch_items: int = 0

    @property
    def waiting(self) -> int:
        return len(self.items) - self.taken


@dataclass(slots=True, eq=False)
class _Batch:
    """Slices of units of one lane, for the device."""

    lane: Lane
    slices: list[tuple[_Unit, int, int]] = field(default_factory=list)
    pairs: int = 0
    items: int = 0


class Batcher:
    """The queue before one device, and the thread that owns it.

    ``submit`` may be called from any event loop. ``close`` (or ``await drain``) ends the thread.

    Args:
        queue_pairs_max: pairs that may wait; a unit that finds nobody waiting is always let in.
        batch_pairs_max: pairs of one batch; an item that exceeds it goes alone.
        batch_items_max: items of one batch.
        clock: seconds that only grow; deadlines are told in it.
    """

    def __init__(
        self,
        *,
        queue_pairs_max: int,
        batch_pairs_max: int,
        batch_items_max: int = 1_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._queue_pairs_max = queue_pairs_max
        self._batch_pairs_max = batch_pairs_max
        self._batch_items_max = batch_items_max
        self._clock = clock
        self._changed = threading.Condition()
        self._short: deque[_Unit] = deque()
        self._long: deque[_Unit] = deque()
        self._long_first = False
        self._next: _Batch | None = None
        self._closing = False
        self._ended = False
        self._tell_end: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []
        self._stats = Stats()
        self._thread = threading.Thread(target=self._work, name="matchwright-device", daemon=True)
        self._thread.start()

    @property
    def clock(self) -> Callable[[], float]:
        """The clock that deadlines are told in."""
        return self._clock

    def stats(self) -> Stats:
        """Counters, all of one moment."""
        with self._changed:
            return self._stats

    async def submit(
        self, lane: Lane, items: Sequence[Any], *, pairs: int, deadline: float | None = None
    ) -> Outcomes:
        """Wait for the outcomes of ``items``, which are one unit.

        Args:
            lane: whose batches they may join.
            items: what ``lane.run`` takes.
            pairs: cost of each item: the rows that it is matched against.
            deadline: the moment on ``clock`` after which the unit is not worth starting.

        Raises:
            Overloaded: too much is waiting already.
            DeadlineExceeded: the deadline passed before the device was ready.
            DependencyUnavailable: the batcher is closing.
        """
        loop = asyncio.get_running_loop()
        unit = _Unit(
            lane=lane,
            items=items,
            pairs=max(pairs, QUERY_PAIRS_MIN),
            deadline=deadline,
            submitted=self._clock(),
            loop=loop,
            future=loop.create_future(),
            outcomes=[None] * len(items),
            left_over=len(items),
        )
        if not items:
            return Outcomes([], 0.0, 0.0, 0)
        self._admit(unit)
        try:
            return await unit.future
        except asyncio.CancelledError:
            self._leave(unit)
            raise

    async def drain(self, grace_s: float) -> None:
        """Refuse new units, let those that wait finish for ``grace_s`` seconds, refuse the rest."""
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            if self._ended:
                ended.set_result(None)
            else:
                self._tell_end.append((loop, ended))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(ended, grace_s)
        self.close()
        await asyncio.sleep(0)  # lets callers of this loop see their refusals

    def close(self) -> None:
        """Refuse new units and those that wait. A batch on the device is not interrupted."""
        with self._changed:
            self._closing = True
            units = [unit for unit, _, _ in self._next.slices] if self._next else []
            for unit in dict.fromkeys((*units, *self._short, *self._long)):
                self._end(unit, _closed())
            self._next = None
            self._changed.notify_all()

    # ── At the door ───────────────────────────────────────────────────────────────────────────

    def _admit(self, unit: _Unit) -> None:
        cost = unit.pairs * len(unit.items)
        with self._changed:
            if self._closing:
                raise _closed()
            queued = self._stats.queued_pairs
            if queued and queued + cost > self._queue_pairs_max:
                self._count(refused=1)
                raise self._overloaded(queued, cost)
            self._count(queued_pairs=cost, queued_units=1)
            unit.long = len(unit.items) > self._room(unit)
            (self._long if unit.long else self._short).append(unit)
            self._fill()
            self._changed.notify()

    def _overloaded(self, queued: int, cost: int) -> Overloaded:
        speed = self._stats.pairs / self._stats.busy_s if self._stats.busy_s else 1e8
        retry_ms = min(60_000, max(10, round(1_000 * queued / speed)))
        return Overloaded(
            f"{queued:,} pairs are waiting and {cost:,} more would exceed queue_pairs_max = "
            f"{self._queue_pairs_max:,}; try again in {retry_ms} ms",
            limit="queue_pairs_max",
            retry_after_ms=retry_ms,
        )

    def _leave(self, unit: _Unit) -> None:
        """The caller has gone: nothing of the unit that still waits is worth running."""
        with self._changed:
            if not unit.ended:
                self._count(left=1)
                self._forget(unit)

    def _forget(self, unit: _Unit) -> None:
        unit.ended = True
        self._count(queued_pairs=-unit.pairs * unit.waiting, queued_units=-1)
        unit.taken = len(unit.items)
        with contextlib.suppress(ValueError):
            (self._long if unit.long else self._short).remove(unit)
        if self._next is not None:
            self._drop_from_next(unit)
        self._fill()

    def _drop_from_next(self, unit: _Unit) -> None:
        batch = self._next
        assert batch is not None
        for slice_ in [slice_ for slice_ in batch.slices if slice_[0] is unit]:
            count = slice_[2] - slice_[1]
            pairs = unit.pairs * count
            batch.slices.remove(slice_)
            batch.pairs -= pairs
            batch.items -= count
            self._count(queued_pairs=-pairs)
        if not batch.slices:
            self._next = None

    # ── Making up the next batch ──────────────────────────────────────────────────────────────

    def _fill(self) -> None:
        """Let everything that fits join the next batch; each line in its order."""
        lines = (self._long, self._short) if self._long_first else (self._short, self._long)
        for line in lines:
            stay: list[_Unit] = []
            rotated: list[_Unit] = []
            for unit in line:
                count = self._fitting(unit)
                if count:
                    self._join(unit, count)
                if unit.waiting:
                    (rotated if count else stay).append(unit)
            line.clear()
            line.extend((*stay, *rotated))

    def _room(self, unit: _Unit) -> int:
        """How many items of a unit an empty batch holds."""
        return min(self._batch_items_max, max(1, self._batch_pairs_max // unit.pairs))

    def _fitting(self, unit: _Unit) -> int:
        """How many items of a unit can join the next batch now."""
        batch = self._next
        if batch is None:
            return min(unit.waiting, self._room(unit))
        if batch.lane is not unit.lane or any(one is unit for one, _, _ in batch.slices):
            return 0
        room = max(0, (self._batch_pairs_max - batch.pairs) // unit.pairs)
        room = min(room, self._batch_items_max - batch.items)
        if room >= unit.waiting:
            return unit.waiting
        return room if unit.long else 0

    def _join(self, unit: _Unit, count: int) -> None:
        if self._next is None:
            self._next = _Batch(unit.lane)
        self._next.slices.append((unit, unit.taken, unit.taken + count))
        self._next.pairs += count * unit.pairs
        self._next.items += count
        unit.taken += count

    # ── The device thread ─────────────────────────────────────────────────────────────────────

    def _work(self) -> None:
        while (batch := self._take()) is not None:
            self._run(batch)
        with self._changed:
            self._ended = True
            for loop, future in self._tell_end:
                _call(loop, _settle, future, None)

    def _take(self) -> _Batch | None:
        """The next batch, without those whose deadline has passed; None when closed and empty."""
        with self._changed:
            while True:
                self._expire()
                if self._next is not None:
                    break
                if self._closing:
                    return None
                self._changed.wait()
            batch, self._next = self._next, None
            self._count(queued_pairs=-batch.pairs)
            self._long_first = not any(unit.long for unit, _, _ in batch.slices)
            now = self._clock()
            for unit, _, _ in batch.slices:
                unit.started = now if unit.started is None else unit.started
            self._fill()
            return batch

    def _expire(self) -> None:
        """Answer the units of the next batch whose deadline has passed; others move up."""
        now = self._clock()
        while self._next is not None:
            late = [
                unit
                for unit, _, _ in self._next.slices
                if unit.deadline is not None and unit.deadline <= now
            ]
            if not late:
                return
            for unit in late:
                self._count(expired=1)
                self._end(unit, DeadlineExceeded("the deadline passed before the device was ready"))

    def _run(self, batch: _Batch) -> None:
        items = [item for unit, start, stop in batch.slices for item in unit.items[start:stop]]
        began = self._clock()
        failed = 0
        try:
            outcomes = list(batch.lane.run(items))
            if len(outcomes) != len(items):
                raise RuntimeError(f"{len(items)} items gave {len(outcomes)} outcomes")
        except MatchwrightError as error:
            outcomes, failed = [error] * len(items), 1
        except BaseException as error:  # whatever it is, the callers must hear of it
            _log.exception("a batch of %d items failed in lane %s", len(items), batch.lane.name)
            outcomes, failed = [_defect(error)] * len(items), 1
        took = self._clock() - began
        with self._changed:
            self._count(
                batches=1, items=len(items), pairs=batch.pairs, busy_s=took, failed_batches=failed
            )
            self._deliver(batch, outcomes, took)

    def _deliver(self, batch: _Batch, outcomes: list[Any], took: float) -> None:
        at = 0
        for unit, start, stop in batch.slices:
            unit.outcomes[start:stop] = outcomes[at : at + stop - start]
            at += stop - start
            unit.left_over -= stop - start
            unit.run_s += took
            unit.batch_items = max(unit.batch_items, len(outcomes))
            if not unit.left_over:
                self._end(unit, None)

    # ── Ends ──────────────────────────────────────────────────────────────────────────────────

    def _end(self, unit: _Unit, error: MatchwrightError | None) -> None:
        """Answer the caller, once, in its own event loop."""
        if unit.ended:
            return
        self._forget(unit)
        started = unit.submitted if unit.started is None else unit.started
        answer = error or Outcomes(
            unit.outcomes, started - unit.submitted, unit.run_s, unit.batch_items
        )
        _call(unit.loop, _settle, unit.future, answer)

    def _count(self, **more: float) -> None:
        added = {name: getattr(self._stats, name) + value for name, value in more.items()}
        self._stats = replace(self._stats, **added)


def _call(loop: asyncio.AbstractEventLoop, function: Callable[..., None], *given: Any) -> None:
    """Call a function in an event loop, from any thread."""
    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits there
        loop.call_soon_threadsafe(function, *given)


def _settle(future: asyncio.Future[Any], answer: Any) -> None:
    if future.done():
        return
    if isinstance(answer, MatchwrightError):
        future.set_exception(answer)
    else:
        future.set_result(answer)


def _closed() -> DependencyUnavailable:
    return DependencyUnavailable("the server is shutting down; ask another one or try again")


def _defect(error: BaseException) -> MatchwrightError:
    return MatchwrightError(
        f"the batch failed: {type(error).__name__}; this is a defect, the server's log says more"
    )
