"""What a server is told, once, when it starts. Nothing below reads the environment.

Each limit has one name: that of its field here, which the protos' comments, the checks and the
errors' ``limit`` detail use as well.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

from matchwright.engine.errors import InvalidArgument


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much one request may ask for. The limits of records are those of the record schemas.

    Attributes:
        k_max: matches per query. Kernels are built for 1,000; lower it to keep answers small.
        batch_items_max: queries of one BatchFind, and of one batch on the device.
        batch_matches_max: sum of k over one BatchFind; keeps its answer below message_bytes_max.
        score_pairs_max: pairs of one ScorePairs.
        exclude_ids_max: ids that one query may exclude.
        candidate_ids_max: ids that one query may be restricted to.
        id_bytes_max: UTF-8 bytes of an external id or a marketplace's name.
        weights_max: weights that one query may override.
        rules_max: rules that one query may set stricter.
        message_bytes_max: bytes of one gRPC message, either way.
        epoch_wait_ms: how long a query waits for a ``min_epoch`` that has not come yet.
        deadline_ms_max: deadline of calls that come with none or a later one.
    """

    k_max: int = 1_000
    batch_items_max: int = 1_000
    batch_matches_max: int = 100_000
    score_pairs_max: int = 10_000
    exclude_ids_max: int = 10_000
    candidate_ids_max: int = 100_000
    id_bytes_max: int = 128
    weights_max: int = 64
    rules_max: int = 64
    message_bytes_max: int = 64 << 20
    epoch_wait_ms: int = 2_000
    deadline_ms_max: int = 60_000

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if value < 1 or (each.name == "k_max" and value > 1_000):
                raise InvalidArgument(
                    f"{each.name} is {value}; expected 1 or more (k_max: at most 1,000)",
                    field=each.name,
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelsConfig:
    """Which models there are, and who serves them. See docs/models.md.

    Attributes:
        repository: the model repository's folder: versions, tokenizers, exported trees. None: a
            store whose texts were encoded by a served encoder answers from what is stored.
        triton: ``host:port`` of the Triton server's gRPC port; None: nothing new is asked of a
            model.
        shared_memory: tensors through memory shared with a server on this host: "auto" tries it
            and falls back to the wire, "on" fails when it cannot be had, "off" does not try.
        tls_ca: PEM file; when set, the connection is TLS and the server's certificate is checked.
        timeout_ms: budget of a call whose caller gave no deadline.
        write_wait_ms: how long a write waits for an encoder that does not answer before it is
            refused. Bulk commands ask for it with --wait.
    """

    repository: Path | None = None
    triton: str | None = None
    shared_memory: Literal["auto", "on", "off"] = "auto"
    tls_ca: Path | None = None
    timeout_ms: int = 1_000
    write_wait_ms: int = 10_000

    def __post_init__(self) -> None:
        if self.shared_memory not in ("auto", "on", "off"):
            raise InvalidArgument(
                f"shared_memory is {self.shared_memory!r}; expected auto, on or off",
                field="shared_memory",
            )
        if self.timeout_ms < 1 or self.write_wait_ms < 0:
            raise InvalidArgument(
                f"timeout_ms is {self.timeout_ms} and write_wait_ms {self.write_wait_ms}; "
                "expected 1 or more, and 0 or more",
                field="timeout_ms",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """Everything that ``serve`` needs to know.

    Attributes:
        stores: marketplace -> folder of its store. The one named "default" answers requests that
            name none.
        policy: the policy file of every marketplace; None takes the shipped default.
        device: "auto", "cpu", "numpy" or "gpu"; answers are the same.
        device_memory_bytes: most memory of a GPU, rows and temporary memory together; None takes
            4/5 of what is free.
        threads: kernel threads; None takes one for each core.
        memory_bytes: temporary memory of the kernels; 256 MiB serves a laptop, more helps many
            queries at once.
        host: address to listen on. Loopback unless the machine is meant to serve others.
        port: port to listen on; 0 lets the system choose one, which is then printed.
        insecure_listen: allows a listener without TLS on an address that others can reach.
        tls_cert, tls_key: PEM files; both or neither.
        tls_client_ca: PEM file; when set, clients must present a certificate that it signed.
        tokens: TOML file of tokens and scopes (docs/api.md); None asks for no token.
        queue_pairs_max: work that may wait, in pairs (queries x corpus rows). Choose the pairs per
            second of the device times the seconds that a caller would wait; 2**32 is some 20 s
            on a laptop and 5 ms on an H100.
        batch_pairs_max: work of one batch, in pairs; a lone query may exceed it. It bounds how
            long a query waits behind others: 2**28 is about 1.5 s on a laptop.
        inflight_bytes_max: bytes of the requests that are being answered; the objects that are
            made of them take several times that. A request counts as 4,096 bytes at least.
        shutdown_grace_ms: how long a stopping server lets waiting calls finish.
        models: the model repository and the server of the models; None uses none.
        metrics_address: ``host:port`` of ``/metrics`` and ``/healthz``, plain HTTP; None, the
            default, opens none. Choose loopback, or a network that only your monitoring reaches.
        compact: whether the server merges segments of its stores and removes what no epoch needs,
            beside answering. It writes then; without it, it only reads. See docs/store.md.
        retain_s: with ``compact``, how long an epoch without a lease stays; that of the writers.
        trace_endpoint: URL of an OTLP collector (gRPC), such as ``http://127.0.0.1:4317``; None,
            the default, traces nothing.
        limits: how much one request may ask for.
    """

    stores: Mapping[str, Path]
    policy: Path | None = None
    device: str = "auto"
    threads: int | None = None
    memory_bytes: int = 256 << 20
    device_memory_bytes: int | None = None
    host: str = "127.0.0.1"
    port: int = 50_051
    insecure_listen: bool = False
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_client_ca: Path | None = None
    tokens: Path | None = None
    queue_pairs_max: int = 2**32
    batch_pairs_max: int = 2**28
    inflight_bytes_max: int = 256 << 20
    shutdown_grace_ms: int = 10_000
    models: ModelsConfig | None = None
    metrics_address: str | None = None
    trace_endpoint: str | None = None
    compact: bool = False
    retain_s: float = 60.0
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if not self.stores:
            raise InvalidArgument("got no store; name one folder for each marketplace")
        if not 0 <= self.port <= 65_535:
            raise InvalidArgument(f"port is {self.port}; expected 0..65535", field="port")
        for name in ("queue_pairs_max", "batch_pairs_max", "inflight_bytes_max", "memory_bytes"):
            if getattr(self, name) < 1:
                raise InvalidArgument(f"{name} must be 1 or more", field=name)
        if self.device_memory_bytes is not None and self.device_memory_bytes < 1:
            raise InvalidArgument(
                f"device_memory_bytes is {self.device_memory_bytes}; expected 1 or more, or None",
                field="device_memory_bytes",
            )
        if self.metrics_address is not None:
            host_and_port(self.metrics_address, "metrics_address")
        if not self.retain_s >= 0:
            raise InvalidArgument(
                f"retain_s is {self.retain_s}; expected 0 or more", field="retain_s"
            )
        if self.shutdown_grace_ms < 0:
            raise InvalidArgument("shutdown_grace_ms must be 0 or more", field="shutdown_grace_ms")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise InvalidArgument("TLS needs both a certificate and its key", field="tls_key")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise InvalidArgument("a client CA needs a server certificate", field="tls_client_ca")
        if self.tls_cert is None and not self.insecure_listen and not is_loopback(self.host):
            raise InvalidArgument(
                f"{self.host} can be reached by others and there is no TLS; give a certificate and "
                "a key, or ask for it with --insecure-listen",
                field="host",
            )

    @property
    def address(self) -> str:
        """``host:port``, an IPv6 host in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def host_and_port(address: str, field: str) -> tuple[str, int]:
    """``("::1", 9464)`` out of ``[::1]:9464``.

    Raises:
        InvalidArgument: a part is missing, or the port is none.
    """
    host, colon, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not (port.isascii() and port.isdigit()) or int(port) > 65_535:
        raise InvalidArgument(
            f"{field} is {address!r}; expected HOST:PORT, such as 127.0.0.1:9464", field=field
        )
    return host, int(port)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def tritonserver_in(environ: Mapping[str, str]) -> Path | None:
    """The ``tritonserver`` that MATCHWRIGHT_TRITONSERVER names, for servers that we start."""
    named = environ.get("MATCHWRIGHT_TRITONSERVER", "").strip()
    return Path(named) if named else None
