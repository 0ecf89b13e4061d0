"""``matchwright models build``: add versions to a model repository."""

from __future__ import annotations

import enum
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from matchwright.engine.cli import _models
from matchwright.engine.cli._options import FormatOption
from matchwright.engine.cli._output import Writer
from matchwright.engine.cli._progress import say
from matchwright.engine.errors import InvalidArgument

if TYPE_CHECKING:
    from matchwright.engine.models.repository import EncoderArtefact, RankerArtefact

MAX_TOKENS = 256
SMALL_DIMENSIONS = 128


class BackendOption(enum.StrEnum):
    """Who will run the models."""

    PRODUCTION = "production"
    PYTHON = "python"


def build(
    repository: Annotated[
        Path, typer.Option("--output", "-o", metavar="REPO", help="The repository; may be new.")
    ],
    encoder: Annotated[
        Path | None,
        typer.Option("--encoder", metavar="DIR", help="A folder with model.onnx, tokenizer.json."),
    ] = None,
    small_encoder: Annotated[
        bool,
        typer.Option("--small-encoder", help="Make a small encoder, for tests and demos."),
    ] = False,
    ranker: Annotated[
        Path | None,
        typer.Option("--ranker", metavar="DIR", help="A folder that `train ranker` wrote."),
    ] = None,
    backend: Annotated[
        BackendOption,
        typer.Option(
            "--backend", help="production: onnxruntime and FIL. python: CPU, needs no other."
        ),
    ] = BackendOption.PRODUCTION,
    version: Annotated[
        int | None, typer.Option("--version", min=1, help="The version to make; else the next.")
    ] = None,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", help="Texts are cut to so many tokens.")
    ] = MAX_TOKENS,
    dimensions: Annotated[
        int, typer.Option("--dimensions", help="Of the small encoder's embeddings.")
    ] = SMALL_DIMENSIONS,
    seed: Annotated[int, typer.Option("--seed", help="Of the small encoder.")] = 0,
    format_: FormatOption = None,
) -> None:
    """Add versions of encoder and ranker; each appears when it is whole, and never changes."""
    if encoder is not None and small_encoder:
        raise InvalidArgument("give --encoder DIR or --small-encoder, not both")
    if encoder is None and ranker is None and not small_encoder:
        raise InvalidArgument("nothing to build; give --encoder, --small-encoder or --ranker")
    made: list[EncoderArtefact | RankerArtefact] = []
    with tempfile.TemporaryDirectory(prefix="matchwright-") as folder:
        if small_encoder:
            from matchwright.engine.models.small import make_small_encoder

            encoder = Path(folder)
            make_small_encoder(encoder, dimensions=dimensions, seed=seed)
        if encoder is not None:
            made.append(_add_encoder(repository, encoder, backend.value, version, max_tokens))
        if ranker is not None:
            from matchwright.engine.models.repository import add_ranker

            made.append(add_ranker(repository, ranker, backend=backend.value, version=version))
    rows = [_row(one, backend.value) for one in made]
    with Writer(format_, None) as writer:
        writer.add(_models.table({"repository": str(repository), "models": rows}, rows))


def _add_encoder(
    repository: Path,
    source: Path,
    backend: Literal["production", "python"],
    version: int | None,
    max_tokens: int,
) -> EncoderArtefact:
    from matchwright.engine.models.artefacts import PROBES
    from matchwright.engine.models.repository import add_encoder

    made = add_encoder(repository, source, backend=backend, version=version, max_tokens=max_tokens)
    if not (made.path / PROBES).exists():
        say(
            "ONNX Runtime is not installed, so no answers were recorded: `models check --server` "
            "will compare this encoder only where onnxruntime is installed"
        )
    return made


def _row(made: EncoderArtefact | RankerArtefact, backend: str) -> dict[str, Any]:
    return {
        "model": made.path.parent.name,
        "version": made.version,
        "backend": backend,
        "content_hash": made.content_hash,
        "dimensions": getattr(made, "dimensions", None),
        "max_tokens": getattr(made, "max_tokens", None),
        "features": len(made.features) if hasattr(made, "features") else None,
        "path": str(made.path),
    }


def register(group: typer.Typer) -> None:
    """Add the command."""
    group.command()(build)
