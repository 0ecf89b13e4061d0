"""What a call can end with, in one tree.

::

    ClientError              gRPC status
    ├── InvalidRequest       INVALID_ARGUMENT
    ├── NotFound             NOT_FOUND
    ├── FailedPrecondition   FAILED_PRECONDITION
    ├── Unauthenticated      UNAUTHENTICATED
    ├── PermissionDenied     PERMISSION_DENIED
    ├── Overloaded           RESOURCE_EXHAUSTED
    ├── DeadlineExceeded     DEADLINE_EXCEEDED
    ├── Cancelled            CANCELLED
    ├── Unavailable          UNAVAILABLE
    ├── Unimplemented        UNIMPLEMENTED
    └── ServerError          every other

``reason`` is one of those in docs/api.md and never changes once published; act on it, or on the
class, and show the message to people.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

_DETAILS_KEY = "grpc-status-details-bin"


class ClientError(Exception):
    """The root.

    Attributes:
        reason: the typed reason, such as "EPOCH_GONE"; the status' name where the server gave none.
        details: short strings for machines: field, limit, id.
        status: the gRPC status' name.
        retry_after_s: when the same call may succeed; None where trying again is of no use.
    """

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        details: Mapping[str, str] | None = None,
        status: str = "INTERNAL",
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason or status
        self.details = dict(details or {})
        self.status = status
        self.retry_after_s = retry_after_s


class InvalidRequest(ClientError):
    """The request cannot be used as it stands; ``details["field"]`` names what is wrong."""


class NotFound(ClientError):
    """An entity, marketplace or policy that is not there."""


class FailedPrecondition(ClientError):
    """The state does not allow it: an epoch that is gone or has not come."""


class Unauthenticated(ClientError):
    """The server asks for a token that it knows."""


class PermissionDenied(ClientError):
    """The token does not hold the scope or the marketplace."""


class Overloaded(ClientError):
    """Refused at the door; try again after ``retry_after_s``. Also an answer that is too large."""


class DeadlineExceeded(ClientError):
    """No answer in time."""


class Cancelled(ClientError):
    """The call was cancelled."""


class Unavailable(ClientError):
    """The server cannot be reached, is shutting down, or lacks something that it depends on."""


class Unimplemented(ClientError):
    """The server does not know this call yet."""


class ServerError(ClientError):
    """A defect or a damaged store; the server's log says more."""


CLASSES: Mapping[str, type[ClientError]] = {
    "INVALID_ARGUMENT": InvalidRequest,
    "OUT_OF_RANGE": InvalidRequest,
    "NOT_FOUND": NotFound,
    "FAILED_PRECONDITION": FailedPrecondition,
    "UNAUTHENTICATED": Unauthenticated,
    "PERMISSION_DENIED": PermissionDenied,
    "RESOURCE_EXHAUSTED": Overloaded,
    "DEADLINE_EXCEEDED": DeadlineExceeded,
    "CANCELLED": Cancelled,
    "UNAVAILABLE": Unavailable,
    "UNIMPLEMENTED": Unimplemented,
}
NAMES: Mapping[int, str] = {
    1: "CANCELLED", 2: "UNKNOWN", 3: "INVALID_ARGUMENT", 4: "DEADLINE_EXCEEDED", 5: "NOT_FOUND",
    6: "ALREADY_EXISTS", 7: "PERMISSION_DENIED", 8: "RESOURCE_EXHAUSTED", 9: "FAILED_PRECONDITION",
    10: "ABORTED", 11: "OUT_OF_RANGE", 12: "UNIMPLEMENTED", 13: "INTERNAL", 14: "UNAVAILABLE",
    15: "DATA_LOSS", 16: "UNAUTHENTICATED",
}  # fmt: skip


def of_rpc(error: Any) -> ClientError:
    """The client's error for a ``grpc.RpcError`` of either kind of channel."""
    status = status_pb2.Status(code=error.code().value[0], message=error.details() or "")
    for key, value in error.trailing_metadata() or ():
        if key == _DETAILS_KEY:
            with contextlib.suppress(DecodeError):  # the code and the message are enough
                status = status_pb2.Status.FromString(value)
    return of_status(status)


def of_status(status: status_pb2.Status) -> ClientError:
    """The client's error for a ``google.rpc.Status``."""
    name = NAMES.get(status.code, "UNKNOWN")
    reason, details, retry_s = "", {}, None
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    for packed in status.details:
        if packed.Unpack(info):
            reason, details = info.reason, dict(info.metadata)
        elif packed.Unpack(retry):
            retry_s = retry.retry_delay.ToNanoseconds() / 1e9
    return CLASSES.get(name, ServerError)(
        status.message, reason=reason, details=details, status=name, retry_after_s=retry_s
    )


def wrong(message: str, field: str, reason: str = "INVALID_ARGUMENT") -> InvalidRequest:
    """A request that is refused before it is sent."""
    return InvalidRequest(
        message, reason=reason, details={"field": field}, status="INVALID_ARGUMENT"
    )
