"""The options that name the models and the server that serves them."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from matchwright.engine.config import ModelsConfig


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
SharedMemoryOption = Annotated[
    SharedMemory,
    typer.Option(
        "--shared-memory", help="Shared memory with a Triton server on this host; auto measures."
    ),
]
WaitOption = Annotated[
    float,
    typer.Option(
        "--wait",
        metavar="SECONDS",
        min=0,
        help="How long to wait for a Triton server that does not answer.",
    ),
]


def models_of(
    models: Path | None,
    triton: str | None,
    *,
    wait_s: float | None = None,
    shared_memory: SharedMemory = SharedMemory.AUTO,
) -> ModelsConfig | None:
    """The two options as a config; None when neither was given."""
    if models is None and triton is None:
        return None
    from matchwright.engine.config import ModelsConfig

    config = ModelsConfig(repository=models, triton=triton, shared_memory=shared_memory.value)
    if wait_s is None:
        return config
    from dataclasses import replace

    return replace(config, write_wait_ms=round(wait_s * 1000))
