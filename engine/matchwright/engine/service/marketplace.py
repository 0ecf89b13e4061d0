"""One marketplace behind the server: its store, its matcher and its lanes before the device."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
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
from matchwright.engine.service.metrics import Submits

EPOCH_LOOK_S = 0.05
"""How often a store is asked whether an epoch has come: as often as it looks itself."""

_log = logging.getLogger(__name__)


class StoreLike(Protocol):
    """What the server needs of a store."""

    def snapshot(self, *, epoch: int | None = None, min_epoch: int | None = None) -> Any: ...


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """Work for the device thread that is not a search; it may pin a snapshot by itself."""

    run: Callable[[], Any]


class Marketplace:
    """Answers for one marketplace, through the batcher.

    Args:
        name: as requests spell it.
        store: where epochs come from.
        matcher: answers from the same store.
        batcher: the way to the queue before the device, which all marketplaces share.
    """

    def __init__(self, name: str, store: StoreLike, matcher: Matcher, batcher: Submits) -> None:
        self.name = name
        self.store = store
        self.matcher = matcher
        self._batcher = batcher
        self._finds = Lane(f"find in {name}", self._find)
        self._calls = Lane(f"calls in {name}", self._call)
        self._policies = {matcher.policy.id, matcher.policy.effective().id}
        self._rows: dict[Kind, int] = {}
        self._count_rows()

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
        pairs = max((self._cost(request.kind) for request in requests), default=0)
        return await self._batcher.submit(self._finds, requests, pairs=pairs, deadline=deadline)

    async def call(self, run: Callable[[], Any], pairs: int, deadline: float) -> Any:
        """(what ``run`` gives on the device thread, outcomes).

        Raises:
            MatchwrightError: whatever it raises.
        """
        made = await self._batcher.submit(self._calls, [Call(run)], pairs=pairs, deadline=deadline)
        if isinstance(made.items[0], MatchwrightError):
            raise made.items[0]
        return made.items[0], made

    def scan_pairs(self, kind: Kind) -> int:
        """What one query of a kind costs: the rows of the other kind."""
        return self._cost(kind)

    def pinned(self) -> tuple[Any, Matcher]:
        """(snapshot, a matcher that answers from it alone)."""
        snapshot = self.store.snapshot()
        own = self.matcher
        return snapshot, Matcher(snapshot, own.ops, own.policy, own.rankers)

    def effective_policy(self, request: Request) -> str:
        """The id of the policy that a request runs under."""
        return self.matcher.effective(request, check_limits(request.kind, request.limits)).id

    # ── On the device thread ──────────────────────────────────────────────────────────────────

    def _find(self, requests: Sequence[Request]) -> Sequence[Any]:
        try:
            return run_apart(self.matcher.match_many, requests)
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

    # ── What a query costs ────────────────────────────────────────────────────────────────────

    def _cost(self, kind: Kind) -> int:
        return self._rows.get(OTHER[kind], 0)

    def _count_rows(self) -> None:
        with contextlib.suppress(MatchwrightError):  # the next query tells what is wrong
            snapshot = self.store.snapshot()
            self._rows = {kind: snapshot.count(kind) for kind in KINDS}


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
