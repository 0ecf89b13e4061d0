"""What is asked of the server itself: what it has, and to load and unload models."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from matchwright.engine.errors import MatchwrightError
from matchwright.engine.models.refs import ModelRef, ModelState
from matchwright.engine.models.triton.messages import plain

Answer = TypeVar("Answer")

SERVER = ModelRef("the server", 0)
"""Stands for no model in particular, in messages."""

_LOAD_S = 60.0


class Control(ABC):
    """The calls that are no inference. They block, and have neither retries nor a breaker.

    ``deadline`` is a moment of ``time.monotonic()``, the client's ``timeout_ms`` from now when
    None. All but ``ready`` raise ``ModelLate``, ``ModelUnavailable`` or ``ModelWrong``.
    """

    @abstractmethod
    def _control(
        self,
        ref: ModelRef,
        call: Callable[[Any, float], Awaitable[Answer]],
        deadline: float | None,
    ) -> Answer:
        """The answer of ``call(tritonclient's client, seconds left)``."""

    def ready(self, ref: ModelRef | None = None, *, deadline: float | None = None) -> bool:
        """Whether the server, or one version of a model, is ready. Says no instead of raising."""

        def ask(client: Any, left: float) -> Awaitable[bool]:
            if ref is None:
                return _bool(client.is_server_ready(client_timeout=left))
            return _bool(client.is_model_ready(ref.name, str(ref.version), client_timeout=left))

        try:
            return self._control(ref or SERVER, ask, deadline)
        except MatchwrightError:
            return False

    def index(self, *, deadline: float | None = None) -> list[ModelState]:
        """Every model of the server's repository, and what became of its versions."""

        async def ask(client: Any, left: float) -> list[ModelState]:
            told = await client.get_model_repository_index(client_timeout=left)
            return [
                ModelState(each.name, int(each.version or 0), each.state, each.reason)
                for each in told.models
            ]

        return self._control(SERVER, ask, deadline)

    def versions(self, name: str, *, deadline: float | None = None) -> tuple[int, ...]:
        """The versions of a model that are ready, ascending."""
        states = self.index(deadline=deadline)
        return tuple(sorted(one.version for one in states if one.name == name and one.ready))

    def load(self, name: str, *, deadline: float | None = None, config: str | None = None) -> None:
        """Load a model, or load it anew with the versions that its folder has now.

        Args:
            name: of the model.
            deadline: a minute from now when None.
            config: JSON that stands in for its ``config.pbtxt``.

        Raises:
            ModelWrong: the server could not load it; the message says why.
        """
        self._control(
            ModelRef(name, 0),
            lambda client, left: client.load_model(name, config=config, client_timeout=left),
            deadline or time.monotonic() + _LOAD_S,
        )

    def unload(self, name: str, *, deadline: float | None = None) -> None:
        """Unload every version of a model; calls that it is at are finished first."""
        self._control(
            ModelRef(name, 0),
            lambda client, left: client.unload_model(name, client_timeout=left),
            deadline or time.monotonic() + _LOAD_S,
        )

    def config_of(self, ref: ModelRef, *, deadline: float | None = None) -> dict[str, Any]:
        """The configuration that the server uses, as Triton's ``ModelConfig``."""

        async def ask(client: Any, left: float) -> dict[str, Any]:
            told = await client.get_model_config(ref.name, str(ref.version), client_timeout=left)
            return plain(told.config)

        return self._control(ref, ask, deadline)

    def statistics(self, ref: ModelRef, *, deadline: float | None = None) -> dict[str, Any]:
        """Triton's ``ModelStatistics``: counts, and nanoseconds in queue and in compute."""

        async def ask(client: Any, left: float) -> dict[str, Any]:
            told = await client.get_inference_statistics(
                ref.name, str(ref.version), client_timeout=left
            )
            return plain(told.model_stats[0])

        return self._control(ref, ask, deadline)


async def _bool(answer: Awaitable[Any]) -> bool:
    return bool(await answer)
