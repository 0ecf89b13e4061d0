"""Texts that requests bring along, encoded before the device thread needs them.

A served encoder is asked here, for many requests at once, on threads of its own; the device thread
then finds the vectors, or goes without at once. Stored entities need none of it: their vectors are
in the store.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial

from matchwright.engine.errors import InvalidArgument, InvalidData, ModelUnavailable
from matchwright.engine.generation.text import is_served
from matchwright.engine.models.description import ENCODER_BATCH_MAX
from matchwright.engine.prepare import SnapshotLike, encode_ahead, inline_row
from matchwright.engine.request import Request
from matchwright.engine.service.together import CALLS_MAX, Together

WAITING_TEXTS_MAX = 4_096
"""Texts that may wait for a call; a request beyond goes without its text."""
TEXTS_AT_ONCE = 64
"""So many texts of one batch go into a call."""
NOTE_S = 0.02
"""How much sooner the encoder has to answer than its callers go on."""
SHARE = 0.5
"""How much of what is left of a deadline the encoder may take: the rest is for the search."""


@dataclass(frozen=True, slots=True, eq=False)
class _Share:
    snapshot: SnapshotLike
    requests: Sequence[Request]


class Texts:
    """Has inline texts encoded, for all marketplaces of a server.

    Args:
        timeout_s: the most that one request waits for the encoder, or ``TEXTS_AT_ONCE`` of a batch.
        clock: of deadlines.
    """

    def __init__(self, timeout_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._timeout_s, self._clock = timeout_s, clock
        self._threads = ThreadPoolExecutor(CALLS_MAX, "matchwright-texts")
        self._calls: Together[_Share, bool] = Together(
            self._call, size_max=ENCODER_BATCH_MAX, waiting_max=WAITING_TEXTS_MAX, clock=clock
        )

    async def ahead(
        self, snapshot: SnapshotLike, requests: Sequence[Request], deadline: float
    ) -> None:
        """Ends when the texts of requests are encoded, or when it is not worth waiting any more.

        Args:
            snapshot: whose encoder is meant.
            requests: with records.
            deadline: of the requests.
        """
        generation, now = snapshot.generation, self._clock()
        if not is_served(generation.encoder):
            return
        last = now + SHARE * max(0.0, deadline - now)
        for start in range(0, len(requests), TEXTS_AT_ONCE):
            some = requests[start : start + TEXTS_AT_ONCE]
            until = min(last, self._clock() + self._timeout_s)
            told = await self._calls.ask(
                _Share(snapshot, some), size=len(some), alike=generation.id, until=until
            )
            if told is None:
                return

    async def _call(self, shares: Sequence[_Share], until: float) -> Sequence[bool]:
        requests = [request for share in shares for request in share.requests]
        loop = asyncio.get_running_loop()
        snapshot = shares[-1].snapshot
        # A failure is noted before anybody goes on, so that the device thread need not ask again.
        work = partial(encode_ahead, snapshot, requests, until - NOTE_S)
        # Spans of the call belong to the first caller, in that thread as well.
        await loop.run_in_executor(self._threads, copy_context().run, work)
        return [True] * len(shares)

    def close(self) -> None:
        """Nobody waits any more; calls on their way end by their own moment."""
        self._calls.close()
        self._threads.shutdown(wait=False, cancel_futures=True)


def need_text(snapshot: Callable[[Request], SnapshotLike], request: Request) -> None:
    """Refuse a record on the side that is searched whose text has no vector, before it reaches the
    device thread: it has to be encoded in full, or not at all. Blocks no longer than a look-up.

    Args:
        snapshot: gives the epoch of a request.
        request: holds the record.

    Raises:
        ModelUnavailable: the encoder did not give it.
    """
    kind, record = request.kind, request.record or {}
    generation = snapshot(request).generation
    with suppress(InvalidArgument, InvalidData):  # said where it is used
        said = generation.asked_text([inline_row(kind, record)[0]], time.monotonic())
        if said is not None and said.missing:
            why = next(iter(said.missing.values()))
            raise ModelUnavailable(
                f"the text of the {kind} cannot be encoded at present ({why}), and its side of "
                "the pair cannot go without; store it, or ask again in a second",
                model="encoder",
                why=why.removeprefix("ENCODER_"),
            )
