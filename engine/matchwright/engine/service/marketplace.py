"""One marketplace behind the server: its store, the policy in force, its lanes to the device.

A call is bound to the policy in force when it begins (``Marketplace.now``), and ends under it,
whatever is switched meanwhile. Calls of two policies may wait side by side: each item brings its
matcher along.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from matchwright.engine.batcher import Lane, Outcomes
from matchwright.engine.errors import (
    EpochNotReached,
    FailedPrecondition,
    MatchwrightError,
    NotFound,
)
from matchwright.engine.limits import check_limits
from matchwright.engine.matcher import OTHER, Matcher
from matchwright.engine.records import KINDS, Kind
from matchwright.engine.request import Request
from matchwright.engine.results import Result
from matchwright.engine.service.metrics import Submits
from matchwright.engine.service.texts import Texts

EPOCH_LOOK_S = 0.05
"""How often a store is asked whether an epoch has come: as often as it looks itself."""
GENERATIONS_MAX = 3
"""How often a search is made again because another generation came in force meanwhile."""

_log = logging.getLogger(__name__)


class StoreLike(Protocol):
    """What the server needs of a store."""

    def snapshot(self, *, epoch: int | None = None, min_epoch: int | None = None) -> Any: ...


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """Work for the device thread that is not a search; it may pin a snapshot by itself."""

    run: Callable[[], Any]


@dataclass(frozen=True, slots=True, eq=False)
class Find:
    """A search for the device thread, under the policy that it began with."""

    matcher: Matcher
    request: Request


class Marketplace:
    """Answers for one marketplace, through the batcher.

    Args:
        name: as requests spell it.
        store: where epochs come from.
        matcher: answers from the same store, under the policy in force.
        batcher: the way to the queue before the device, which all marketplaces share.
        texts: has texts encoded that requests bring along.
    """

    def __init__(
        self, name: str, store: StoreLike, matcher: Matcher, batcher: Submits, texts: Texts
    ) -> None:
        self.name = name
        self.store = store
        self.batcher = batcher
        self.texts = texts
        self.finds = Lane(f"find in {name}", self._find)
        self.calls = Lane(f"calls in {name}", self._call)
        self._now = Market(self, matcher)
        self._rows: dict[Kind, int] = {}
        self._count_rows()

    def now(self) -> Market:
        """The marketplace under the policy in force at this moment."""
        return self._now

    def switch(self, matcher: Matcher) -> None:
        """Put another policy in force, for all calls that begin from now on."""
        self._now = Market(self, matcher)

    def cost(self, kind: Kind) -> int:
        """What one query of a kind costs: the rows of the other kind."""
        return self._rows.get(OTHER[kind], 0)

    # ── On the device thread ──────────────────────────────────────────────────────────────────

    def _find(self, finds: Sequence[Find]) -> Sequence[Any]:
        try:
            groups: dict[int, list[int]] = {}
            for n, find in enumerate(finds):
                groups.setdefault(id(find.matcher), []).append(n)
            outcomes: dict[int, Any] = {}
            for places in groups.values():
                requests = [finds[n].request for n in places]
                matcher = finds[places[0]].matcher
                found = run_apart(partial(_gather, matcher), requests)
                outcomes |= dict(zip(places, found, strict=True))
            return [outcomes[n] for n in range(len(finds))]
        finally:
            self._count_rows()

    def _call(self, calls: Iterable[Call]) -> Sequence[Any]:
        outcomes: list[Any] = []
        for call in calls:
            try:
                outcomes.append(call.run())
            except MatchwrightError as error:
                outcomes.append(error)
            except Exception as error:
                outcomes.append(_defect(error))
        return outcomes

    def _count_rows(self) -> None:
        with contextlib.suppress(MatchwrightError):  # the next query tells what is wrong
            snapshot = self.store.snapshot()
            self._rows = {kind: snapshot.count(kind) for kind in KINDS}


class Market:
    """A marketplace under one policy: what one call needs of it, from its beginning to its end.

    Args:
        place: the marketplace.
        matcher: under the policy.
    """

    def __init__(self, place: Marketplace, matcher: Matcher) -> None:
        self.name, self.store, self.matcher = place.name, place.store, matcher
        self._place = place
        self._policies = {matcher.policy.id, matcher.policy.effective().id}

    def check_policy(self, wanted: str) -> None:
        """Refuse a request for another policy than the one in force.

        Raises:
            NotFound: naming both.
        """
        if wanted and wanted not in self._policies:
            raise NotFound(
                f"the policy {wanted[:64]!r} is not in force here; this marketplace answers by "
                f"{self.matcher.policy.id}",
                policy=self.matcher.policy.id,
            )

    async def reached(self, number: int, wait_s: float) -> None:
        """Wait until an epoch or a later one has come.

        Raises:
            EpochNotReached: it has not within ``wait_s`` seconds.
        """
        until = time.monotonic() + wait_s
        while True:
            try:
                await asyncio.to_thread(self.store.snapshot, min_epoch=number)
                return
            except FailedPrecondition as error:
                if time.monotonic() >= until:
                    raise EpochNotReached(
                        f"{error}; ask again in a second, or check which store took the write",
                        **error.details,
                    ) from None
            await asyncio.sleep(EPOCH_LOOK_S)

    async def find(self, requests: Sequence[Request], deadline: float) -> Outcomes:
        """Results or errors of requests, which are one unit.

        Args:
            deadline: on the batcher's clock.
        """
        pairs = max((self.scan_pairs(request.kind) for request in requests), default=0)
        finds = [Find(self.matcher, request) for request in requests]
        encoded = await self.encode_ahead(requests, deadline)
        for _ in range(GENERATIONS_MAX):
            made = await self._place.batcher.submit(
                self._place.finds, finds, pairs=pairs, deadline=deadline
            )
            if not _overtaken(made.items, encoded):
                break
            # The next generation came in between, and its encoder was not asked.
            encoded |= await self.encode_ahead(requests, deadline)
        return made

    async def encode_ahead(self, requests: Sequence[Request], deadline: float) -> set[str]:
        """Has the texts of inline requests encoded; the generations that this was done for.

        The device thread then finds them, or goes without: it waits for no model.
        """
        inline = [request for request in requests if request.record is not None]
        if not inline:
            return set()
        snapshots = await asyncio.to_thread(self._snapshots, inline)
        texts = self._place.texts
        await asyncio.gather(*(texts.ahead(one, some, deadline) for one, some in snapshots))
        return {snapshot.generation.id for snapshot, _ in snapshots}

    def _snapshots(self, requests: Sequence[Request]) -> list[tuple[Any, list[Request]]]:
        """The epochs of requests, as far as there are any; blocks."""
        found: dict[str, tuple[Any, list[Request]]] = {}
        for request in requests:
            with contextlib.suppress(MatchwrightError):  # said where it is answered
                snapshot = self.matcher.snapshot(request)
                found.setdefault(snapshot.generation.id, (snapshot, []))[1].append(request)
        return list(found.values())

    async def call(self, run: Callable[[], Any], pairs: int, deadline: float) -> Any:
        """(what ``run`` gives on the device thread, outcomes).

        Raises:
            MatchwrightError: whatever it raises.
        """
        place = self._place
        made = await place.batcher.submit(place.calls, [Call(run)], pairs=pairs, deadline=deadline)
        if isinstance(made.items[0], MatchwrightError):
            raise made.items[0]
        return made.items[0], made

    def scan_pairs(self, kind: Kind) -> int:
        """What one query of a kind costs: the rows of the other kind."""
        return self._place.cost(kind)

    def pinned(self) -> tuple[Any, Matcher]:
        """(snapshot, a matcher that answers from it alone)."""
        snapshot = self.store.snapshot()
        own = self.matcher
        pinned = Matcher(snapshot, own.ops, own.policy, own.rankers)
        pinned.on_kernels = own.on_kernels
        return snapshot, pinned

    def effective_policy(self, request: Request) -> str:
        """The id of the policy that a request runs under."""
        return self.matcher.effective(request, check_limits(request.kind, request.limits)).id


def _gather(matcher: Matcher, requests: Sequence[Request]) -> Sequence[Any]:
    """Answers and candidates. What no model has given by now, answers go without."""
    return matcher.gather_many(requests, time.monotonic())


def _overtaken(items: Sequence[Any], encoded: Collection[str]) -> bool:
    """Whether an answer lacks a text because its generation's encoder was never asked for it."""
    return bool(encoded) and any(
        isinstance(one, Result) and one.degraded and one.generation not in encoded for one in items
    )


def run_apart(
    run: Callable[[Sequence[Any]], Sequence[Any]], requests: Sequence[Any]
) -> Sequence[Any]:
    """Outcomes of requests; those that break the whole batch are found by halving it.

    What a request does wrong is its own outcome already. This is for defects, and for batches that
    need more memory than there is: their halves may fit.
    """
    try:
        return run(requests)
    except MatchwrightError as error:
        return [error] * len(requests)
    except Exception as error:
        if len(requests) == 1:
            return [_defect(error)]
        half = len(requests) // 2
        return [*run_apart(run, requests[:half]), *run_apart(run, requests[half:])]


def _defect(error: Exception) -> MatchwrightError:
    _log.error("a request failed", exc_info=error)
    return MatchwrightError(
        f"the request failed: {type(error).__name__}; this is a defect, the server's log says more"
    )
