"""From the engine's errors to gRPC: the one table.

Every error becomes a ``google.rpc.Status`` whose details hold

- ``ErrorInfo`` with the reason, the domain and the error's own details;
- ``BadRequest`` when the error names a field of an argument;
- ``RetryInfo`` when the same call may succeed later.

Headers hold 8 KiB, so long texts are cut.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import grpc
from google.protobuf.any_pb2 import Any as Packed
from google.rpc import error_details_pb2, status_pb2

from matchwright.engine import errors
from matchwright.engine.errors import MatchwrightError

DOMAIN = "matchwright"
DETAILS_KEY = "grpc-status-details-bin"
MESSAGE_BYTES_MAX = 1_000
VALUE_BYTES_MAX = 200
VALUES_MAX = 8

CODES: Mapping[str, grpc.StatusCode] = MappingProxyType(
    {
        name: getattr(grpc.StatusCode, name)
        for name in (
            "INVALID_ARGUMENT", "NOT_FOUND", "ALREADY_EXISTS", "FAILED_PRECONDITION", "INTERNAL",
            "DATA_LOSS", "UNAVAILABLE", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED", "CANCELLED",
            "UNAUTHENTICATED", "PERMISSION_DENIED", "UNIMPLEMENTED",
        )
    }
)  # fmt: skip
"""What an error's ``grpc_status`` names."""

RETRY_MS: Mapping[type[MatchwrightError], int] = MappingProxyType(
    {
        errors.Overloaded: 1_000,
        errors.EpochNotReached: 1_000,
        errors.EpochGone: 0,
        errors.StoreLocked: 1_000,
        errors.DependencyUnavailable: 1_000,
    }
)
"""When to try again, unless the error's own ``retry_after_ms`` says."""

_PRIVATE = (errors.StoreError,)
"""Their messages name files of the server: the log has them, callers do not."""


def status_of(error: BaseException) -> status_pb2.Status:
    """The status that a caller is told. What is no ``MatchwrightError`` is told as a defect."""
    if not isinstance(error, MatchwrightError):
        error = MatchwrightError("this is a defect of the server; its log says more")
    message = str(error)
    details = error.details
    if isinstance(error, _PRIVATE):
        message, details = f"{_first_line(error)}; the server's log names the file", {}
    status = status_pb2.Status(
        code=CODES[error.grpc_status].value[0], message=cut(message, MESSAGE_BYTES_MAX)
    )
    for detail in _details(error, message, details):
        packed = Packed()
        packed.Pack(detail)
        status.details.append(packed)
    return status


def _first_line(error: MatchwrightError) -> str:
    """What a class of errors means, from its docstring."""
    return (type(error).__doc__ or "The store failed").strip().splitlines()[0].rstrip(".")


def _details(error: MatchwrightError, message: str, details: Mapping[str, str]) -> list[Any]:
    told = list(details.items())[:VALUES_MAX]
    metadata = {cut(key, 64): cut(value, VALUE_BYTES_MAX) for key, value in told}
    made: list[Any] = [
        error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=metadata)
    ]
    if error.grpc_status == "INVALID_ARGUMENT":
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=cut(details.get("field", ""), VALUE_BYTES_MAX),
            description=cut(message, VALUE_BYTES_MAX),
            reason=error.reason,
        )
        made.append(error_details_pb2.BadRequest(field_violations=[violation]))
    retry_ms = _retry_ms(error)
    if retry_ms is not None:
        info = error_details_pb2.RetryInfo()
        info.retry_delay.FromMilliseconds(retry_ms)
        made.append(info)
    return made


def _retry_ms(error: MatchwrightError) -> int | None:
    default = next((ms for kind, ms in RETRY_MS.items() if isinstance(error, kind)), None)
    if default is None:
        return None
    told = error.details.get("retry_after_ms", "")
    return int(told) if told.isascii() and told.isdigit() else default


async def abort(context: Any, error: BaseException) -> None:
    """End a call of grpc.aio with an error and its details. Does not return."""
    status = status_of(error)
    code = next(code for code in grpc.StatusCode if code.value[0] == status.code)
    await context.abort(code, status.message, ((DETAILS_KEY, status.SerializeToString()),))


def cut(text: str, bytes_max: int) -> str:
    """``text`` without control characters, at most ``bytes_max`` bytes of UTF-8."""
    clean = "".join(char if char.isprintable() else " " for char in text[:bytes_max])
    data = clean.encode("utf-8", "replace")
    if len(data) <= bytes_max:
        return data.decode()
    return data[: bytes_max - 3].decode("utf-8", "ignore") + "..."
