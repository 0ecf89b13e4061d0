"""The second phase in the service: outside the device thread, in calls for many requests at once.

::

    submit ──> device thread: first phase ──> ask: one call for all that are ready ──> finish
               (goes on with the next batch)  (awaited; until the request's own time)  (a thread)

Whatever the model does, each unit ends with answers before its deadline; those that had to go
without the model are the first phase's, and say why.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from matchwright.engine.batcher import Lane, Outcomes
from matchwright.engine.models.description import RANKER_ROWS_MAX
from matchwright.engine.rerank.rerank import FINISH_S, Candidates, Ranker, Scored, late
from matchwright.engine.results import Degraded, Result
from matchwright.engine.service.metrics import Submits
from matchwright.engine.service.together import Together

WAITING_ROWS_MAX = 8 * RANKER_ROWS_MAX
"""Rows that may wait for a call: some 1,300 requests of 200 candidates, 30 MB."""
ANSWER_S, ANSWER_ITEM_S = 0.25, 0.002
"""What is kept of a deadline for putting the answer together and sending it: of each unit, and of
each of its items; at most a quarter of what is left."""

Block = Sequence[Candidates]


def model_deadline(now: float, deadline: float | None, items: int) -> float | None:
    """The moment by which models must have answered, so that the answer arrives in time."""
    if deadline is None:
        return None
    return deadline - min((deadline - now) / 4, ANSWER_S + ANSWER_ITEM_S * items)


class SecondPhase:
    """A way to the batcher that ends with answers where the batcher ends with candidates.

    Args:
        inner: the way on.
        clock: of deadlines; the ranker's and the batcher's.
    """

    def __init__(self, inner: Submits, clock: Callable[[], float] = time.monotonic) -> None:
        self._inner, self._clock = inner, clock
        self._rows: Together[Block, Sequence[Scored]] = Together(
            _ask, size_max=RANKER_ROWS_MAX, waiting_max=WAITING_ROWS_MAX, clock=clock
        )

    async def submit(
        self, lane: Lane, items: Sequence[Any], *, pairs: int, deadline: float | None = None
    ) -> Outcomes:
        """As ``Batcher.submit``, with results in the place of candidates."""
        made = await self._inner.submit(lane, items, pairs=pairs, deadline=deadline)
        blocks: dict[int, list[int]] = {}
        for n, one in enumerate(made.items):
            if isinstance(one, Candidates):
                blocks.setdefault(id(one.ranker), []).append(n)
        if not blocks:
            return made
        until = model_deadline(self._clock(), deadline, len(items))
        done: dict[int, Result] = {}
        for places in blocks.values():
            results = await self._answers([made.items[n] for n in places], until)
            done |= dict(zip(places, results, strict=True))
        return replace(made, items=[done.get(n, one) for n, one in enumerate(made.items)])

    async def _answers(self, block: Block, until: float | None) -> list[Result]:
        """Answers of one ranker's candidates."""
        scored: list[Scored] = []
        failed: Scored | None = None
        for part in _parts(block):
            if failed is None:
                told = await self._scores(part, until)
                failed = next(filter(_in_vain, told), None)
            else:  # nor would the rest be answered
                told = [_left_out(failed, one) for one in part]
            scored += told
        return await asyncio.to_thread(block[0].ranker.finish, block, scored)

    async def _scores(self, block: Block, until: float | None) -> Sequence[Scored]:
        ranker, rows = block[0].ranker, sum(one.rows for one in block)
        if not rows:  # nothing to ask about
            return await ranker.ask(block, until)
        moment = min(ranker.until(one.settings, until) for one in block)
        told = await self._rows.ask(block, size=rows, alike=_Alike(ranker), until=moment)
        return [_left_out(late(), one) for one in block] if told is None else told

    def close(self) -> None:
        """Nobody waits for a model any more."""
        self._rows.close()


class _Alike:
    """Rankers are the same only when they are one object."""

    def __init__(self, ranker: Ranker) -> None:
        self._ranker = ranker

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Alike) and other._ranker is self._ranker

    def __hash__(self) -> int:
        return id(self._ranker)


async def _ask(blocks: Sequence[Block], until: float) -> Sequence[Sequence[Scored]]:
    """One call for blocks of one ranker."""
    whole = [one for block in blocks for one in block]
    scored = await whole[0].ranker.ask(whole, until + FINISH_S)
    shares, start = [], 0
    for block in blocks:
        shares.append(scored[start : start + len(block)])
        start += len(block)
    return shares


def _parts(block: Block) -> Iterator[list[Candidates]]:
    """A block in parts of what one call takes."""
    part: list[Candidates] = []
    rows = 0
    for one in block:
        if part and rows + one.rows > RANKER_ROWS_MAX:
            yield part
            part, rows = [], 0
        part.append(one)
        rows += one.rows
    if part:
        yield part


def _in_vain(scored: Scored) -> bool:
    return scored.degraded not in (None, Degraded.NO_FEATURES)


def _left_out(like: Scored, one: Candidates) -> Scored:
    """What is said of candidates that were not asked about."""
    if one.features_mf is None:
        return Scored(None, Degraded.NO_FEATURES, one.why)
    return like
