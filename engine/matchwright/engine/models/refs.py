"""Which model is meant, how its server is reached, and what the server says of its models."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from matchwright.engine.config import is_loopback
from matchwright.engine.errors import InvalidArgument

_NUMBERS = {
    "retries": 0,
    "breaker_failures": 1,
    "breaker_open_ms": 1,
    "breaker_patience_ms": 0,
    "timeout_ms": 1,
    "message_bytes_max": 1 << 20,
    "shared_memory_bytes_min": 0,
    "shared_memory_bytes_max": 1 << 16,
    "silence_ms": 100,
}


@dataclass(frozen=True, slots=True, order=True)
class ModelRef:
    """A model and its version; each call names both. Version 0 is none: the name stands alone."""

    name: str
    version: int

    def __str__(self) -> str:
        return f"{self.name}:{self.version}" if self.version else self.name


@dataclass(frozen=True, slots=True)
class ModelState:
    """A line of the server's index. ``version`` is 0 for a model of which none was loaded."""

    name: str
    version: int
    state: str
    reason: str

    @property
    def ready(self) -> bool:
        """Whether it answers."""
        return self.state == "READY"


@dataclass(frozen=True, slots=True, kw_only=True)
class TritonConfig:
    """How a Triton server is reached. ``docs/models.md`` says how to choose.

    Attributes:
        url: ``host:port`` of its gRPC port.
        shared_memory: "auto" when the address is loopback and the server can open the memory, with
            a fall-back to the wire; "on" fails instead; "off".
        tls_ca: PEM file of the authority that signed the server's certificate; None: no TLS.
        retries: further attempts after UNAVAILABLE, within the deadline.
        breaker_failures: calls in a row without an answer that open the breaker of a model.
        breaker_open_ms: from opening to the first probe, and between probes.
        breaker_patience_ms: late calls open it only after the model was silent for so long.
        timeout_ms: budget of a call whose caller states no deadline.
        message_bytes_max: of one gRPC message, either way.
        shared_memory_bytes_min: inputs below this go over the wire, where they are quicker.
        shared_memory_bytes_max: of all regions together; calls beyond go over the wire.
        silence_ms: a connection on which nothing was heard for so long, while a probe was lost, is
            replaced: its other end may be gone without a word.
    """

    url: str
    shared_memory: Literal["auto", "on", "off"] = "auto"
    tls_ca: Path | None = None
    retries: int = 2
    breaker_failures: int = 5
    breaker_open_ms: int = 1_000
    breaker_patience_ms: int = 50
    timeout_ms: int = 1_000
    message_bytes_max: int = 64 << 20
    shared_memory_bytes_min: int = 64 << 10
    shared_memory_bytes_max: int = 256 << 20
    silence_ms: int = 5_000

    def __post_init__(self) -> None:
        if not re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^\s:/\[\]]+):[0-9]{1,5}", self.url):
            raise InvalidArgument(
                f"the server's address is {self.url!r}; expected host:port of its gRPC port, "
                "without a scheme",
                field="url",
            )
        for name, least in _NUMBERS.items():
            if getattr(self, name) < least:
                raise InvalidArgument(
                    f"{name} is {getattr(self, name)}; expected {least} or more", field=name
                )
        if self.shared_memory not in ("auto", "on", "off"):
            raise InvalidArgument(
                f"shared_memory is {self.shared_memory!r}; expected auto, on or off",
                field="shared_memory",
            )
        if self.shared_memory == "on" and not self.on_this_host:
            raise InvalidArgument(
                f"shared memory needs a server on this host, and {self.url} is none; "
                "choose auto or off",
                field="shared_memory",
            )

    @property
    def on_this_host(self) -> bool:
        """Whether the address is a loopback one."""
        return is_loopback(self.url.rpartition(":")[0].strip("[]"))
