"""From many callers to one model: what is ready at the same moment goes in one call.

There is no timer. While calls are on their way, the next callers gather; a call that ends lets
them go together::

    ask ──> waiting: bounded ──> one call for all that are alike ──> each gets its own share
    (until)                      (at most ``calls_max`` at once)

Each caller waits until its own moment and no longer; the call goes on for the others.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Sequence
from contextvars import Context, copy_context
from dataclasses import dataclass
from typing import Generic, TypeVar

CALLS_MAX = 2
"""One call is made up and one is answered: the model need not wait for us."""

Share = TypeVar("Share")
Told = TypeVar("Told")

_log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Caller(Generic[Share, Told]):
    """Who waits; ``context`` is what its spans belong to."""

    share: Share
    size: int
    alike: Hashable
    until: float
    context: Context
    future: asyncio.Future[Told]


class Together(Generic[Share, Told]):
    """Asks for many callers at once. For one event loop.

    Args:
        call: asks for all of these shares; gives one answer for each. Gets the moment until which
            somebody waits, and must end by then.
        size_max: of the shares of one call together; a larger one goes alone.
        waiting_max: of all shares that wait.
        calls_max: calls on their way.
        clock: seconds that only grow; moments are told in it.
    """

    def __init__(
        self,
        call: Callable[[Sequence[Share], float], Awaitable[Sequence[Told]]],
        *,
        size_max: int,
        waiting_max: int,
        calls_max: int = CALLS_MAX,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._call, self._clock = call, clock
        self._size_max, self._waiting_max, self._calls_max = size_max, waiting_max, calls_max
        self._waiting: deque[_Caller[Share, Told]] = deque()
        self._size = 0
        self._calls: set[asyncio.Task[None]] = set()
        self._closed = False

    @property
    def waiting(self) -> int:
        """The size of all shares that wait for a call."""
        return self._size

    async def ask(self, share: Share, *, size: int, alike: Hashable, until: float) -> Told | None:
        """The answer for one share; None when there is none by ``until``, or too much waits.

        Args:
            size: of the share.
            alike: shares of equal value may share a call.
            until: the moment on the clock after which nobody wants the answer.
        """
        left = until - self._clock()
        crowded = self._waiting and self._size + size > self._waiting_max
        if self._closed or left <= 0 or crowded:
            return None
        loop = asyncio.get_running_loop()
        caller = _Caller(share, size, alike, until, copy_context(), loop.create_future())
        self._waiting.append(caller)
        self._size += size
        self._start()
        try:
            await asyncio.wait((caller.future,), timeout=left)
        finally:
            self._leave(caller)
        future = caller.future
        return None if future.cancelled() else future.result()

    def close(self) -> None:
        """Whoever waits gets None; calls on their way are cancelled."""
        self._closed = True
        for task in self._calls:
            task.cancel()
        for caller in tuple(self._waiting):
            self._leave(caller)

    def _leave(self, caller: _Caller[Share, Told]) -> None:
        """The caller has its answer, or wants none any more."""
        if caller in self._waiting:
            self._waiting.remove(caller)
            self._size -= caller.size
        caller.future.cancel()  # does nothing to a future that has its answer

    def _start(self) -> None:
        while self._waiting and len(self._calls) < self._calls_max and not self._closed:
            members = self._take()
            # The spans of a call belong to the first caller.
            task = asyncio.create_task(self._run(members), context=members[0].context)
            self._calls.add(task)
            task.add_done_callback(self._ended)

    def _take(self) -> list[_Caller[Share, Told]]:
        """The first that waits, and all that may go with it, in their order."""
        taken: list[_Caller[Share, Told]] = []
        stay: deque[_Caller[Share, Told]] = deque()
        size, alike = 0, self._waiting[0].alike
        for caller in self._waiting:
            if caller.alike == alike and (not taken or size + caller.size <= self._size_max):
                taken.append(caller)
                size += caller.size
            else:
                stay.append(caller)
        self._waiting = stay
        self._size -= size
        return taken

    async def _run(self, members: Sequence[_Caller[Share, Told]]) -> None:
        try:
            shares = [caller.share for caller in members]
            told = await self._call(shares, max(caller.until for caller in members))
            for caller, one in zip(members, told, strict=True):
                if not caller.future.done():
                    caller.future.set_result(one)
        except Exception:  # a defect: the callers must hear of it
            _log.exception("a call for %d callers failed", len(members))
        finally:
            for caller in members:
                caller.future.cancel()

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._calls.discard(task)
        self._start()
