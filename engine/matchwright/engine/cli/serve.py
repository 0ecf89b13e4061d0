"""``matchwright serve``: the gRPC server, until it is told to stop."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from matchwright.engine.cli._models_options import (
    ModelsOption,
    SharedMemory,
    SharedMemoryOption,
    TritonCaOption,
    TritonOption,
    models_of,
)
from matchwright.engine.cli._options import PolicyOption
from matchwright.engine.cli._source import (
    MEMORY_MB_MAX,
    Device,
    DeviceMemoryOption,
    DeviceOption,
    need_device,
    tell_device,
)
from matchwright.engine.config import ServerConfig
from matchwright.engine.errors import InvalidArgument

_DEFAULT = "default"
_MIB = 1 << 20
_OTLP = "OTEL_EXPORTER_OTLP"

StoresOption = Annotated[
    list[str],
    typer.Option(
        "--store",
        metavar="[NAME=]DIR",
        help="The folder of a marketplace; repeat it with names for several.",
    ),
]
ThreadsOption = Annotated[
    int | None, typer.Option(help="Kernel threads; one for each core when not given.")
]
MemoryOption = Annotated[
    int,
    typer.Option(
        "--memory-mb",
        min=1,
        max=MEMORY_MB_MAX,
        help="Temporary memory of the kernels, in MiB.",
    ),
]
CompactOption = Annotated[
    bool,
    typer.Option(
        "--compact",
        help="Merge segments of the stores beside answering; it writes to them then.",
    ),
]
RetainOption = Annotated[
    float,
    typer.Option(
        "--retain-seconds", min=0, help="With --compact, how long epochs without a lease stay."
    ),
]
MetricsOption = Annotated[
    str | None,
    typer.Option(
        metavar="HOST:PORT",
        help="Serve /metrics and /healthz there, in plain HTTP; nowhere when not given.",
    ),
]
TracesOption = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="Send traces to this OTLP collector (gRPC), or to the one that "
        f"{_OTLP}_TRACES_ENDPOINT or {_OTLP}_ENDPOINT names.",
    ),
]


def serve(
    store: StoresOption,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 for any free one.")] = 50_051,
    policy: PolicyOption = None,
    models: ModelsOption = None,
    triton: TritonOption = None,
    triton_ca: TritonCaOption = None,
    shared_memory: SharedMemoryOption = SharedMemory.AUTO,
    device: DeviceOption = Device.AUTO,
    threads: ThreadsOption = None,
    memory_mb: MemoryOption = 256,
    device_memory_mb: DeviceMemoryOption = None,
    queue_pairs_max: Annotated[
        int, typer.Option(help="Work that may wait, in pairs; beyond it callers are refused.")
    ] = 2**32,
    batch_pairs_max: Annotated[
        int, typer.Option(help="Work of one batch, in pairs; bounds how long others wait.")
    ] = 2**28,
    shutdown_grace_ms: Annotated[
        int, typer.Option(help="How long waiting calls may take to finish when it stops.")
    ] = 10_000,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate, PEM.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its key, PEM.")] = None,
    tls_client_ca: Annotated[
        Path | None, typer.Option(help="Clients must show a certificate that this one signed.")
    ] = None,
    tokens: Annotated[Path | None, typer.Option(help="Tokens and their scopes, TOML.")] = None,
    insecure_listen: Annotated[
        bool, typer.Option("--insecure-listen", help="Allow others to reach it without TLS.")
    ] = False,
    compact: CompactOption = False,
    retain: RetainOption = 60.0,
    metrics_address: MetricsOption = None,
    trace_endpoint: TracesOption = None,
) -> int:
    """Answer over gRPC until Ctrl-C or SIGTERM. SIGHUP has the policy's file read again."""
    config = ServerConfig(
        stores=stores_of(store),
        policy=policy,
        models=models_of(models, triton, tls_ca=triton_ca, shared_memory=shared_memory),
        device=device.value,
        threads=threads,
        memory_bytes=memory_mb * _MIB,
        device_memory_bytes=None if device_memory_mb is None else device_memory_mb * _MIB,
        host=host,
        port=port,
        insecure_listen=insecure_listen,
        tls_cert=tls_cert,
        tls_key=tls_key,
        tls_client_ca=tls_client_ca,
        tokens=tokens,
        queue_pairs_max=queue_pairs_max,
        batch_pairs_max=batch_pairs_max,
        shutdown_grace_ms=shutdown_grace_ms,
        compact=compact,
        retain_s=retain,
        metrics_address=metrics_address,
        trace_endpoint=trace_endpoint or traces_to(os.environ),
    )
    if threads is not None and threads < 1:
        raise InvalidArgument("--threads takes 1 or more")
    need_device(device)
    tell_device()
    from matchwright.engine.service import serve as run

    run(config)
    return 0


def traces_to(environ: Mapping[str, str]) -> str | None:
    """Where OpenTelemetry's standard variables send traces; None for nowhere.

    This is the one place that reads them; the SDK reads the rest (sampler, headers, certificates,
    resource) by itself, once traces are asked for.

    Raises:
        InvalidArgument: a protocol other than gRPC is asked for.
    """
    off = environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    if off or environ.get("OTEL_TRACES_EXPORTER", "otlp").strip() == "none":
        return None
    endpoint = environ.get(f"{_OTLP}_TRACES_ENDPOINT") or environ.get(f"{_OTLP}_ENDPOINT")
    protocol = environ.get(f"{_OTLP}_TRACES_PROTOCOL") or environ.get(f"{_OTLP}_PROTOCOL") or "grpc"
    if endpoint and protocol != "grpc":
        raise InvalidArgument(
            f"the environment asks for OTLP over {protocol!r}; traces are sent over grpc: set "
            f"{_OTLP}_TRACES_PROTOCOL=grpc and an endpoint that speaks it (port 4317 by custom), "
            "or OTEL_TRACES_EXPORTER=none",
            field="trace_endpoint",
        )
    return endpoint or None


def stores_of(given: list[str]) -> dict[str, Path]:
    """``["shop", "other=dir"]`` as marketplace -> folder; one without a name is the default.

    Raises:
        InvalidArgument: a name is given twice, or a folder is empty.
    """
    stores: dict[str, Path] = {}
    for item in given:
        name, equals, folder = item.partition("=")
        if not equals:
            name, folder = _DEFAULT, item
        if not name or not folder or name in stores:
            raise InvalidArgument(
                f"--store takes DIR or NAME=DIR, each name once; got {item!r}", field="store"
            )
        stores[name] = Path(folder)
    return stores


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(serve)
