"""How the parts of a server are: looked at once a second, told in health checks and metrics.

A part that is in trouble leaves the service itself SERVING: answers go on, from an older epoch,
from the CPU, or in the order of the first phase. Health checks name the parts::

    matchwright.store.NAME    the store of a marketplace can be read anew
    matchwright.device        the device that was chosen at the start is the one that answers
    matchwright.models        the model server can be asked
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, get_args

from matchwright.engine.errors import MatchwrightError
from matchwright.engine.metrics import Sample
from matchwright.engine.models.watch import QUIET, BreakerState, Mark, Way
from matchwright.engine.records import KINDS

if TYPE_CHECKING:
    from matchwright.kernels.health import Health

LOOK_S = 1.0
STORE, DEVICE, MODELS = "matchwright.store.", "matchwright.device", "matchwright.models"

_log = logging.getLogger(__name__)


class StoreLike(Protocol):
    """What is looked at in a store; ``trouble`` and ``epochs()`` where it has them."""

    def snapshot(self) -> Any: ...


class Device(Protocol):
    """What is looked at in the kernels; a ``health`` as well, where a device can be lost."""

    @property
    def name(self) -> str: ...


@dataclass(frozen=True, slots=True)
class StoreState:
    """What a marketplace answers from.

    Attributes:
        number: of the epoch; None where there has never been one that could be read.
        since: when it came in force, seconds since 1970; None where the format does not tell.
        generation: id of the one in force.
        rows: kind -> entities that can be matched.
        trouble: why it stays on that epoch; None when all is well.
    """

    number: int | None = None
    since: float | None = None
    generation: str = ""
    rows: Mapping[str, int] | None = None
    trouble: str | None = None


class Breakers:
    """The circuit breakers of the models that were asked; a ``Watch`` of them alone."""

    def __init__(self) -> None:
        self._states: dict[tuple[str, int], BreakerState] = {}

    def begin(self, model: str, version: int) -> Mark:
        """Calls are counted elsewhere."""
        return QUIET.begin(model, version)

    def breaker(self, model: str, version: int, state: BreakerState) -> None:
        """A breaker is in another state; said in the log when it opens and when it closes."""
        before = self._states.get((model, version), "closed")
        self._states[model, version] = state
        if state == "open" and before == "closed":
            _log.warning("%s:%d failed too often in a row; it is not asked for now", model, version)
        elif state == "closed" != before:
            _log.warning("%s:%d answers again", model, version)

    def way(self, way: Way, why: str) -> None:
        """Said once in the log: it costs time, never an answer."""
        _log.info("tensors of models travel by %s: %s", way, why)

    @property
    def trouble(self) -> str | None:
        """The first model that is not asked at present; None when all are."""
        states = sorted(self._states.items())
        return next((f"{name}:{n} BREAKER_OPEN" for (name, n), s in states if s != "closed"), None)

    def samples(self) -> Iterator[Sample]:
        """How many breakers of each model are in each state."""
        counts = Counter((model, state) for (model, _), state in list(self._states.items()))
        for model in sorted({model for model, _ in counts}):
            for state in get_args(BreakerState):
                labels = {"model": model, "state": state}
                yield Sample("matchwright_model_breaker_state", counts[model, state], labels)


class Conditions:
    """The state of a server's parts.

    Args:
        stores: by marketplace.
        device: the kernels.
        breakers: those of the models; None where none are asked.
        models: says what is wrong with the models in use, shortly; None where none are asked.
    """

    def __init__(
        self,
        stores: Mapping[str, StoreLike],
        device: Device,
        breakers: Breakers | None = None,
        models: Callable[[], str | None] | None = None,
    ) -> None:
        self._stores = stores
        self._device = device
        self._breakers = breakers
        self._models = models
        self._models_trouble: str | None = None
        self.states = {name: StoreState() for name in stores}

    def look(self) -> None:
        """Read every store, and ask whether models are ready. Blocks while it does; one that fails
        does not hide the others."""
        for name, store in self._stores.items():
            try:
                self.states[name] = _state(store, self.states[name])
            except Exception as error:
                if not isinstance(error, MatchwrightError):
                    _log.exception("the store of %r cannot be looked at", name)
                before = self.states[name]
                reason = getattr(error, "reason", "INTERNAL")
                self.states[name] = StoreState(
                    before.number, before.since, before.generation, before.rows, reason
                )
        if self._models is not None:
            try:
                self._models_trouble = self._models()
            except Exception as error:  # the store's own trouble is told by itself
                self._models_trouble = getattr(error, "reason", "INTERNAL")

    def parts(self) -> dict[str, str | None]:
        """Name of a part -> what is wrong with it, None for nothing."""
        told = {f"{STORE}{name}": state.trouble for name, state in self.states.items()}
        told[DEVICE] = self.device_lost
        if self._breakers is not None:
            told[MODELS] = self._breakers.trouble or self._models_trouble
        return told

    @property
    def device_lost(self) -> str | None:
        """Why the device no longer answers; None while it does."""
        health = self._device_health
        return None if health is None else health.lost

    @property
    def _device_health(self) -> Health | None:
        return getattr(self._device, "health", None)

    def samples(self) -> Iterator[Sample]:
        """What ``look`` saw last, as metrics; reads no file."""
        yield from self._of_device()
        if self._breakers is not None:
            yield from self._breakers.samples()
        for name, state in self.states.items():
            yield from _samples({"marketplace": name}, state)

    def _of_device(self) -> Iterator[Sample]:
        health = self._device_health
        device = self._device.name if health is None else health.device or self._device.name
        yield Sample("matchwright_device_info", 1, {"device": device})
        yield Sample("matchwright_device_lost", float(self.device_lost is not None))
        if health is None:
            return
        for name, counts in (("fallbacks", health.cpu_batches), ("errors", health.errors)):
            for reason, number in dict(counts).items():
                yield Sample(f"matchwright_device_{name}_total", number, {"reason": reason})
        yield Sample("matchwright_device_splits_total", health.splits)

    async def watch(self, tell: Callable[[Mapping[str, str | None]], Awaitable[None]]) -> None:
        """Look every ``LOOK_S``, and tell what is wrong with each part. Ends when cancelled."""
        while True:
            await asyncio.to_thread(self.look)
            await tell(self.parts())
            await asyncio.sleep(LOOK_S)


def _state(store: StoreLike, before: StoreState) -> StoreState:
    snapshot = store.snapshot()
    number = snapshot.epoch.number
    since = before.since if number == before.number else _since(store, number)
    trouble = getattr(store, "trouble", None)
    return StoreState(
        number=number,
        since=since,
        generation=snapshot.generation.id,
        rows={kind: snapshot.count(kind) for kind in KINDS},
        trouble=None if trouble is None else trouble.reason,
    )


def _since(store: Any, number: int) -> float | None:
    return next((epoch.since for epoch in store.epochs() if epoch.number == number), None)


def _samples(market: Mapping[str, str], state: StoreState) -> Iterator[Sample]:
    yield Sample("matchwright_store_trouble", float(state.trouble is not None), market)
    if state.number is None:
        return
    yield Sample("matchwright_epoch_number", state.number, market)
    if state.since is not None:
        yield Sample("matchwright_epoch_timestamp_seconds", state.since, market)
    named = {**market, "generation": state.generation}
    yield Sample("matchwright_generation_info", 1, named)
    for kind, rows in (state.rows or {}).items():
        yield Sample("matchwright_store_rows", rows, {**market, "kind": kind})
