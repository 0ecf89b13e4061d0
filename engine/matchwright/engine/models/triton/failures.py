"""From what Triton and gRPC say to the engine's errors: what to do about it, and what it tells.

The messages are those of Triton 2.51 and later; ``tests/test_triton_failures.py`` has them said by
a real server.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from matchwright.engine.errors import (
    MatchwrightError,
    ModelLate,
    ModelUnavailable,
    ModelWrong,
)
from matchwright.engine.models.refs import ModelRef
from matchwright.engine.models.watch import Outcome

Sign = Literal["answered", "late", "down"]

_NOT_READY = ("not at ready state", "unknown model", "no available versions", "not available")
_EXPIRED = "timeout expired"
_QUEUE_FULL = "maximum queue size"
_NO_REGION = "Unable to find shared memory region"
_MESSAGE_MAX = 500


@dataclass(eq=False)
class Failure(Exception):
    """A call that was not answered.

    Attributes:
        error: what the caller gets.
        outcome: the same, in a word.
        sign: what it says of the server: it has answered, was late, or is not there.
        again: whether the same call may be sent once more. Only UNAVAILABLE is.
        no_region: the server does not know the memory that it was pointed to: it was restarted.
        known_already: the server knows the memory that was to be registered.
    """

    error: MatchwrightError
    outcome: Outcome
    sign: Sign
    again: bool = False
    no_region: bool = False
    known_already: bool = False


def failure_of(status: str, message: str, ref: ModelRef, url: str) -> Failure:
    """What a gRPC status and its message mean.

    Args:
        status: such as "StatusCode.UNAVAILABLE".
        message: of the server, or of gRPC when there was none.
        ref: who was asked.
        url: where.
    """
    code = status.rpartition(".")[2]
    message = " ".join(message.split())[:_MESSAGE_MAX]
    if code == "DEADLINE_EXCEEDED":
        return late(ref, "no answer within the time that was left", sign="late")
    if code == "UNAVAILABLE" and _EXPIRED in message:
        return late(ref, "it waited in the server's queue for as long as it had", sign="answered")
    if code == "UNAVAILABLE" and _QUEUE_FULL in message:
        return late(ref, "the server's queue is full", sign="answered", again=True)
    if code == "NOT_FOUND" and _NO_REGION in message:
        return Failure(wrongly(ref, message), "WRONG_OUTPUT", "answered", no_region=True)
    if code == "ALREADY_EXISTS":
        return Failure(wrongly(ref, message), "WRONG_OUTPUT", "answered", known_already=True)
    if code == "NOT_FOUND" or any(part in message for part in _NOT_READY):
        return not_ready(ref, url, message, again=code == "UNAVAILABLE")
    if code in ("UNAVAILABLE", "CANCELLED"):
        return unreachable(ref, url, message)
    return Failure(wrongly(ref, message), "WRONG_OUTPUT", "answered")


def late(ref: ModelRef, why: str, *, sign: Sign, again: bool = False) -> Failure:
    """No answer in time."""
    error = ModelLate(f"{ref}: {why}; give it more time, or less to do", model=ref)
    return Failure(error, "LATE", sign, again)


def not_ready(ref: ModelRef, url: str, message: str, *, again: bool = False) -> Failure:
    """The server is there, that version of the model is not."""
    error = ModelUnavailable(
        f"{ref} is not ready at {url} ({message}); load it: matchwright models load {ref.name}",
        model=ref,
        why="NOT_READY",
    )
    return Failure(error, "NOT_READY", "answered", again)


def unreachable(ref: ModelRef, url: str, message: str) -> Failure:
    """Nobody is there, or the connection broke."""
    error = ModelUnavailable(
        f"{ref}: no Triton server at {url} ({message}); is it running, and is that its gRPC port?",
        model=ref,
        why="UNREACHABLE",
    )
    return Failure(error, "UNREACHABLE", "down", again=True)


def breaker_open(ref: ModelRef, url: str) -> ModelUnavailable:
    """It did not answer again and again; it is not asked until it answers a probe."""
    return ModelUnavailable(
        f"{ref} at {url} did not answer several times in a row and is not asked until it does",
        model=ref,
        why="BREAKER_OPEN",
    )


def wrongly(ref: ModelRef, message: str) -> ModelWrong:
    """The server refused the call, or the model failed at it."""
    return ModelWrong(f"{ref} failed: {message}; the server's log says more", model=ref)


def unreadable(ref: ModelRef, why: str) -> Failure:
    """The server answered what is no answer."""
    error = ModelWrong(
        f"{ref}: the server's answer cannot be read ({why}); is it a Triton server, and its gRPC "
        "port?",
        model=ref,
    )
    return Failure(error, "WRONG_OUTPUT", "answered")
