"""The options that name the models and the server that serves them."""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from matchwright.engine.config import ModelsConfig
    from matchwright.engine.models.opened import Models


class SharedMemory(enum.StrEnum):
    """Whether tensors go through memory that this host shares with the server."""

    AUTO = "auto"
    ON = "on"
    OFF = "off"


ModelsOption = Annotated[
    Path | None,
    typer.Option("--models", metavar="DIR", help="The model repository (docs/models.md)."),
]
TritonOption = Annotated[
    str | None,
    typer.Option("--triton", metavar="HOST:PORT", help="gRPC address of the Triton server."),
]
TritonCaOption = Annotated[
    Path | None,
    typer.Option(
        "--triton-ca", metavar="FILE", help="Speak TLS with Triton; the authorities to trust (PEM)."
    ),
]
SharedMemoryOption = Annotated[
    SharedMemory,
    typer.Option(
        "--shared-memory", help="Shared memory with a Triton server on this host, or the wire."
    ),
]


def models_of(
    models: Path | None,
    triton: str | None,
    *,
    tls_ca: Path | None = None,
    wait_s: float | None = None,
    shared_memory: SharedMemory = SharedMemory.AUTO,
) -> ModelsConfig | None:
    """The options as a config; None when neither folder nor server was given.

    Args:
        wait_s: how long writes wait for a server that does not answer; the config's own default
            when None.
    """
    if models is None and triton is None:
        return None
    from dataclasses import replace

    from matchwright.engine.config import ModelsConfig

    config = ModelsConfig(
        repository=models, triton=triton, shared_memory=shared_memory.value, tls_ca=tls_ca
    )
    return config if wait_s is None else replace(config, write_wait_ms=round(wait_s * 1000))


@contextlib.contextmanager
def opened(config: ModelsConfig | None) -> Iterator[Models | None]:
    """The models of a config for the time of a command; None where there is no config."""
    if config is None:
        yield None
        return
    from matchwright.engine.models.opened import Models

    with Models(config) as models:
        yield models
