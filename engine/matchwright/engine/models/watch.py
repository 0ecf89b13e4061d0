"""What happens between the engine and a model server, told to whoever counts and traces it.

Nothing here may raise: a call of a model must not fail because nobody could count it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

Way = Literal["wire", "shared_memory"]
BreakerState = Literal["closed", "open", "half_open"]
Outcome = Literal[
    "OK", "LATE", "UNREACHABLE", "BREAKER_OPEN", "NOT_READY", "WRONG_OUTPUT", "CANCELLED"
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hop:
    """One call of a model that has ended.

    Attributes:
        model: its name.
        version: its version.
        outcome: "OK", or why there is no answer.
        seconds: from asking to the end, retries included.
        attempts: times that the call was sent; 0 when it was refused before.
        rows: size of the batch, the first dimension of each tensor.
        way: how the tensors travelled, inputs and outputs alike where they could.
        sent_bytes: of all input tensors, once.
        received_bytes: of all output tensors.
    """

    model: str
    version: int
    outcome: Outcome
    seconds: float
    attempts: int
    rows: int
    way: Way
    sent_bytes: int
    received_bytes: int


class Mark(Protocol):
    """A call that has begun. ``headers`` go with it, such as W3C's ``traceparent``."""

    @property
    def headers(self) -> Mapping[str, str]: ...

    def end(self, hop: Hop) -> None:
        """The call has ended. Called once, in the caller's thread or in the client's own."""


class Watch(Protocol):
    """Told of every call. Thread-safe."""

    def begin(self, model: str, version: int) -> Mark:
        """A call begins. Called in the caller's thread and context."""

    def breaker(self, model: str, version: int, state: BreakerState) -> None:
        """The circuit breaker of a model's version has changed."""

    def way(self, way: Way, why: str) -> None:
        """Tensors travel another way from now on; ``why`` is a sentence for people."""


@dataclass(frozen=True, slots=True)
class QuietMark:
    """Sends no headers and forgets the call."""

    headers: Mapping[str, str] = field(default_factory=dict)

    def end(self, hop: Hop) -> None:
        """Nothing."""


class Quiet:
    """Watches nothing."""

    def begin(self, model: str, version: int) -> Mark:
        """A mark that sends no headers."""
        return _QUIET_MARK

    def breaker(self, model: str, version: int, state: BreakerState) -> None:
        """Nothing."""

    def way(self, way: Way, why: str) -> None:
        """Nothing."""


_QUIET_MARK = QuietMark()
QUIET: Watch = Quiet()
