"""How a client reaches its server: addresses, TLS, tokens, keepalive, retries."""

from __future__ import annotations

import ipaddress
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from matchwright.clients._errors import wrong
from matchwright.v1 import match_service_pb2 as wire

SERVICE = wire.DESCRIPTOR.services_by_name["MatchService"].full_name
IDEMPOTENT = (
    "FindFreelancers", "FindJobs", "BatchFind", "ScorePairs", "Explain", "CountEligible",
)  # fmt: skip
"""Reads: they may be sent again when the server could not be reached."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """TLS to the server.

    Attributes:
        ca: PEM file of the authorities to trust; None takes the system's.
        cert, key: PEM files that this client presents; both or neither.
        server_name: the name in the server's certificate, where it is not the address.
    """

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    server_name: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """How to reach a server.

    Attributes:
        address: ``host:port``.
        timeout_s: deadline of calls that name none. Choose what your caller would wait.
        tls: None for plain text, which is meant for one machine or a mesh that encrypts.
        token: sent as ``authorization: Bearer``; over plain text only to this machine, unless
            ``token_in_clear``.
        token_in_clear: allows a token over plain text to other machines.
        attempts_max: how often a read is sent when the server is not reachable, 1 to 5.
        keepalive_s: how often an idle connection is checked, 10 or more.
        message_bytes_max: largest message, either way.
    """

    address: str
    timeout_s: float = 10.0
    tls: Tls | None = None
    token: str | None = None
    token_in_clear: bool = False
    attempts_max: int = 4
    keepalive_s: float = 60.0
    message_bytes_max: int = 64 << 20

    def __post_init__(self) -> None:
        if not 1 <= self.attempts_max <= 5:
            raise wrong(f"attempts_max is {self.attempts_max}; expected 1..5", "attempts_max")
        if not self.timeout_s > 0:
            raise wrong(f"timeout_s is {self.timeout_s}; expected more than 0", "timeout_s")
        if self.keepalive_s < 10:
            raise wrong(f"keepalive_s is {self.keepalive_s}; expected 10 or more", "keepalive_s")
        in_clear = self.token is not None and self.tls is None and not self.token_in_clear
        if in_clear and not _is_local(self.address):
            raise wrong(
                f"a token would go to {self.address} in plain text; use TLS, or say token_in_clear",
                "token",
            )

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What every call carries."""
        return () if self.token is None else (("authorization", f"Bearer {self.token}"),)

    @property
    def options(self) -> list[tuple[str, Any]]:
        """Channel options of gRPC."""
        options: list[tuple[str, Any]] = [
            ("grpc.max_send_message_length", self.message_bytes_max),
            ("grpc.max_receive_message_length", self.message_bytes_max),
            ("grpc.keepalive_time_ms", int(self.keepalive_s * 1_000)),
            ("grpc.keepalive_timeout_ms", 20_000),
            ("grpc.enable_retries", 1),
            ("grpc.service_config", json.dumps(self._service_config())),
        ]
        if self.tls is not None and self.tls.server_name is not None:
            options.append(("grpc.ssl_target_name_override", self.tls.server_name))
        return options

    def _service_config(self) -> dict[str, Any]:
        names = [{"service": SERVICE, "method": method} for method in IDEMPOTENT]
        config: dict[str, Any] = {"name": names}
        if self.attempts_max > 1:
            config["retryPolicy"] = {
                "maxAttempts": self.attempts_max,
                "initialBackoff": "0.1s",
                "maxBackoff": "2s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            }
        return {"methodConfig": [config]}

    def credentials(self) -> grpc.ChannelCredentials | None:
        """TLS credentials; None for plain text.

        Raises:
            InvalidRequest: a file that is not there, or a certificate without its key.
        """
        if self.tls is None:
            return None
        if (self.tls.cert is None) != (self.tls.key is None):
            raise wrong("TLS with a client certificate needs both cert and key", "tls")
        return grpc.ssl_channel_credentials(
            _pem(self.tls.ca), private_key=_pem(self.tls.key), certificate_chain=_pem(self.tls.cert)
        )


def _pem(path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        return path.read_bytes()
    except OSError as error:
        raise wrong(f"{path}: {error.strerror}", "tls") from None


def _is_local(address: str) -> bool:
    if address.startswith("unix:"):
        return True
    host = address.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
