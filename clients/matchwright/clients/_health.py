"""Asks a server how it is: the standard health service, name by name."""

from __future__ import annotations

from collections.abc import Iterable

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from matchwright.clients._channel import SERVICE, Connection
from matchwright.clients._errors import of_rpc

NOT_KNOWN = "NOT_KNOWN"
"""The server has no part of that name."""
OVERALL = ""

__all__ = ["NOT_KNOWN", "OVERALL", "SERVICE", "statuses"]


def statuses(connection: Connection, names: Iterable[str]) -> dict[str, str]:
    """SERVING, NOT_SERVING or ``NOT_KNOWN`` for each name; "" is the server as a whole.

    Raises:
        ClientError: the server did not answer.
    """
    credentials, options = connection.credentials(), connection.options
    if credentials is None:
        channel = grpc.insecure_channel(connection.address, options=options)
    else:
        channel = grpc.secure_channel(connection.address, credentials, options=options)
    with channel:
        stub = health_pb2_grpc.HealthStub(channel)
        return {name: _status(stub, name, connection.timeout_s) for name in names}


def _status(stub: health_pb2_grpc.HealthStub, name: str, timeout_s: float) -> str:
    request = health_pb2.HealthCheckRequest(service=name)
    try:
        reply = stub.Check(request, timeout=timeout_s)
    except grpc.RpcError as error:
        if error.code() is grpc.StatusCode.NOT_FOUND:
            return NOT_KNOWN
        raise of_rpc(error) from None
    status: str = health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status)
    return status
