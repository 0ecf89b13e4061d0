"""Every error that a user of the engine can meet, in one tree.

::

    MatchwrightError                 reason      exit  gRPC status
    ├── InvalidArgument              INVALID_ARGUMENT  2  INVALID_ARGUMENT
    │   ├── UnknownKey               UNKNOWN_KEY       2  INVALID_ARGUMENT
    │   └── LowResolution            LOW_RESOLUTION    2  INVALID_ARGUMENT
    ├── InvalidData                  INVALID_DATA      3  INVALID_ARGUMENT
    ├── NotFound                     NOT_FOUND         2  NOT_FOUND
    ├── AlreadyExists                ALREADY_EXISTS    2  ALREADY_EXISTS
    │   └── KeyCollision             KEY_COLLISION     3  ALREADY_EXISTS
    ├── FailedPrecondition           FAILED_PRECONDITION  2  FAILED_PRECONDITION
    │   ├── EpochGone                EPOCH_GONE        75  FAILED_PRECONDITION
    │   ├── EpochNotReached          EPOCH_NOT_REACHED 75  FAILED_PRECONDITION
    │   └── NoGeneration             NO_GENERATION     2  FAILED_PRECONDITION
    ├── StoreError                   STORE_ERROR       3  INTERNAL
    │   ├── StoreDamaged             STORE_DAMAGED     3  DATA_LOSS
    │   ├── StoreFormat              STORE_FORMAT      3  FAILED_PRECONDITION
    │   ├── StoreFull                STORE_FULL        75  RESOURCE_EXHAUSTED
    │   ├── StoreReadOnly            STORE_READ_ONLY   2  FAILED_PRECONDITION
    │   └── StoreLocked              STORE_LOCKED      75  UNAVAILABLE
    ├── Overloaded                   OVERLOADED        75  RESOURCE_EXHAUSTED
    ├── DeadlineExceeded             DEADLINE_EXCEEDED 75  DEADLINE_EXCEEDED
    │   └── ModelLate                MODEL_LATE        75  DEADLINE_EXCEEDED
    ├── Cancelled                    CANCELLED         75  CANCELLED
    ├── DependencyUnavailable        DEPENDENCY_UNAVAILABLE  5  UNAVAILABLE
    │   ├── ModelUnavailable         MODEL_UNAVAILABLE 5  UNAVAILABLE
    │   └── ModelWrong               MODEL_WRONG       5  UNAVAILABLE
    ├── Unauthenticated              UNAUTHENTICATED   2  UNAUTHENTICATED
    ├── PermissionDenied             PERMISSION_DENIED 2  PERMISSION_DENIED
    ├── Unimplemented                UNIMPLEMENTED     2  UNIMPLEMENTED
    ├── VerificationFailed           VERIFICATION_FAILED     6  FAILED_PRECONDITION
    └── PartlyDone                   PARTLY_DONE       4  INTERNAL

A message says what was got, what was expected and what to do next. ``reason`` goes into
``google.rpc.ErrorInfo`` and into the command line's JSON; it never changes once published.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import ClassVar


class MatchwrightError(Exception):
    """The root. ``details`` are short strings for machines: field, file, row, limit."""

    reason: ClassVar[str] = "INTERNAL"
    exit_code: ClassVar[int] = 1
    grpc_status: ClassVar[str] = "INTERNAL"

    def __init__(self, message: str, **details: object) -> None:
        super().__init__(message)
        self.details: dict[str, str] = {name: str(value) for name, value in details.items()}


class InvalidArgument(MatchwrightError):
    """A request, an option, a policy or a map that cannot be used as it stands."""

    reason, exit_code, grpc_status = "INVALID_ARGUMENT", 2, "INVALID_ARGUMENT"


class UnknownKey(InvalidArgument):
    """A key that does not exist; the message names the nearest one that does."""

    reason = "UNKNOWN_KEY"


class LowResolution(InvalidArgument):
    """A weight override that the 15-bit query grid cannot express well enough."""

    reason = "LOW_RESOLUTION"


class InvalidData(MatchwrightError):
    """Input rows that had to be refused."""

    reason, exit_code, grpc_status = "INVALID_DATA", 3, "INVALID_ARGUMENT"


class NotFound(MatchwrightError):
    """An entity, epoch, policy, file or folder that is not there."""

    reason, exit_code, grpc_status = "NOT_FOUND", 2, "NOT_FOUND"


class AlreadyExists(MatchwrightError):
    """Something that would be made twice."""

    reason, exit_code, grpc_status = "ALREADY_EXISTS", 2, "ALREADY_EXISTS"


class KeyCollision(AlreadyExists):
    """Two different ids with the same 64-bit key; rename one (see docs/scoring.md)."""

    reason, exit_code = "KEY_COLLISION", 3


class FailedPrecondition(MatchwrightError):
    """The call is well formed, but the state does not allow it."""

    reason, exit_code, grpc_status = "FAILED_PRECONDITION", 2, "FAILED_PRECONDITION"


class EpochGone(FailedPrecondition):
    """The epoch asked for is no longer kept."""

    reason, exit_code = "EPOCH_GONE", 75


class EpochNotReached(FailedPrecondition):
    """The epoch asked for has not come yet."""

    reason, exit_code = "EPOCH_NOT_REACHED", 75


class NoGeneration(FailedPrecondition):
    """The store has no generation of the kind asked for."""

    reason = "NO_GENERATION"


class StoreError(MatchwrightError):
    """The store could not be read or written; the message names the file."""

    reason, exit_code, grpc_status = "STORE_ERROR", 3, "INTERNAL"


class StoreDamaged(StoreError):
    """A checksum or a length does not match."""

    reason, grpc_status = "STORE_DAMAGED", "DATA_LOSS"


class StoreFormat(StoreError):
    """A file of a newer or unknown format."""

    reason, grpc_status = "STORE_FORMAT", "FAILED_PRECONDITION"


class StoreFull(StoreError):
    """The disk, a quota or a limit on file sizes leaves no room; free some and try again."""

    reason, exit_code, grpc_status = "STORE_FULL", 75, "RESOURCE_EXHAUSTED"


class StoreReadOnly(StoreError):
    """A file system that is mounted read-only, or a folder without write permission."""

    reason, exit_code, grpc_status = "STORE_READ_ONLY", 2, "FAILED_PRECONDITION"


class StoreLocked(StoreError):
    """Another process is the writer."""

    reason, exit_code, grpc_status = "STORE_LOCKED", 75, "UNAVAILABLE"


class Overloaded(MatchwrightError):
    """Refused at the door: a bounded queue is full."""

    reason, exit_code, grpc_status = "OVERLOADED", 75, "RESOURCE_EXHAUSTED"


class DeadlineExceeded(MatchwrightError):
    """The caller's deadline passed before an answer was ready."""

    reason, exit_code, grpc_status = "DEADLINE_EXCEEDED", 75, "DEADLINE_EXCEEDED"


class ModelLate(DeadlineExceeded):
    """A served model gave no answer within the time that was left for it."""

    reason = "MODEL_LATE"


class Cancelled(MatchwrightError):
    """The caller left."""

    reason, exit_code, grpc_status = "CANCELLED", 75, "CANCELLED"


class DependencyUnavailable(MatchwrightError):
    """A server or device that the call needs does not answer."""

    reason, exit_code, grpc_status = "DEPENDENCY_UNAVAILABLE", 5, "UNAVAILABLE"


class ModelUnavailable(DependencyUnavailable):
    """A served model cannot be asked. ``why``: UNREACHABLE, BREAKER_OPEN or NOT_READY."""

    reason = "MODEL_UNAVAILABLE"


class ModelWrong(DependencyUnavailable):
    """A served model answered what cannot be used: shape, type, NaN, or an error of its own."""

    reason = "MODEL_WRONG"


class Unauthenticated(MatchwrightError):
    """The server asks for a token, and none or an unknown one was given."""

    reason, exit_code, grpc_status = "UNAUTHENTICATED", 2, "UNAUTHENTICATED"


class PermissionDenied(MatchwrightError):
    """The token does not hold the scope or the marketplace that the call needs."""

    reason, exit_code, grpc_status = "PERMISSION_DENIED", 2, "PERMISSION_DENIED"


class Unimplemented(MatchwrightError):
    """A call that this server does not answer yet."""

    reason, exit_code, grpc_status = "UNIMPLEMENTED", 2, "UNIMPLEMENTED"


class VerificationFailed(MatchwrightError):
    """Two answers that must be equal are not."""

    reason, exit_code, grpc_status = "VERIFICATION_FAILED", 6, "FAILED_PRECONDITION"


class PartlyDone(MatchwrightError):
    """Some of the work is done and kept; the message says how to go on."""

    reason, exit_code = "PARTLY_DONE", 4


def unknown_key(what: str, got: str, known: Iterable[str], where: str = "") -> UnknownKey:
    """An ``UnknownKey`` that names the nearest right name, if one is near."""
    known = sorted(known)
    near = difflib.get_close_matches(got, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
    place = f" in {where}" if where else ""
    return UnknownKey(f"unknown {what} {got!r}{place}; {hint}", field=got)
