"""``matchwright embed``: encodes the texts of a store ahead of time, in bulk."""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from matchwright.engine.cli._embed_progress import embed_progress
from matchwright.engine.cli._failures import Interrupted
from matchwright.engine.cli._models_options import (
    ModelsOption,
    SharedMemory,
    SharedMemoryOption,
    TritonCaOption,
    TritonOption,
    models_of,
    opened,
)
from matchwright.engine.cli._options import WAIT_S, FormatOption, OutputOption, StoreOption
from matchwright.engine.cli._output import Writer
from matchwright.engine.cli._progress import say
from matchwright.engine.errors import DependencyUnavailable, InvalidArgument, ModelLate

EncoderVersionOption = Annotated[
    int | None,
    typer.Option("--encoder-version", min=1, help="Of the model; the newest when not given."),
]
WaitOption = Annotated[
    float,
    typer.Option(
        "--wait",
        metavar="SECONDS",
        min=0,
        help="How long to wait for a Triton server that does not answer; 0 fails at once.",
    ),
]


def embed(
    store: StoreOption,
    models: ModelsOption = None,
    triton: TritonOption = None,
    encoder_version: EncoderVersionOption = None,
    wait: WaitOption = WAIT_S,
    shared_memory: SharedMemoryOption = SharedMemory.AUTO,
    triton_ca: TritonCaOption = None,
    format_: FormatOption = None,
    output: OutputOption = None,
) -> None:
    """Encode every text of a store that has no embedding yet, so that a refit finds them all.

    Readers and a writer of the store may be at work. What was encoded stays, however it ends, and
    the same command goes on from there.
    """
    config = models_of(models, triton, tls_ca=triton_ca, wait_s=wait, shared_memory=shared_memory)
    if config is None or config.repository is None or config.triton is None:
        raise InvalidArgument("embed needs both --models DIR and --triton HOST:PORT")
    from matchwright.engine.cli.store import view
    from matchwright.engine.store.embeddings_ahead import embed as run

    again = command(store, config.repository, config.triton, encoder_version)
    with resumable(again), opened(config) as served, embed_progress() as tell:
        assert served is not None, "a config was given"
        done = run(store, served, encoder_version, tell)
    document = dataclasses.asdict(done)
    document["records_per_s"] = round(done.records / done.seconds, 1) if done.seconds else None
    with Writer(format_, output) as writer:
        writer.add(view(document))


def command(store: Path, repository: Path, triton: str, version: int | None) -> str:
    """The command that goes on, for a shell."""
    words = ["matchwright", "embed", "--store", str(store), "--models", str(repository)]
    words += ["--triton", triton]
    words += [] if version is None else ["--encoder-version", str(version)]
    return shlex.join(words)


@contextlib.contextmanager
def resumable(again: str) -> Iterator[None]:
    """Says how to go on when the server went away, or somebody stopped it."""
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(f"what was encoded stays; go on with: {again}") from None
    except (DependencyUnavailable, ModelLate):
        say(f"what was encoded stays; go on with: {again}")
        raise


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(embed)
