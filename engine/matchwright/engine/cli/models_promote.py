"""``matchwright models promote|rollback``: a ranker through the gate, and the way back."""

from __future__ import annotations

import datetime
import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from matchwright.engine.cli import _models
from matchwright.engine.cli._options import FormatOption
from matchwright.engine.cli._output import Writer
from matchwright.engine.cli._progress import progress, say
from matchwright.engine.cli.models_build import BackendOption
from matchwright.engine.errors import InvalidArgument, MatchwrightError

SEGMENT_LOSS_MAX = 0.02

TritonOption = Annotated[
    str | None,
    typer.Option("--triton", metavar="HOST:PORT", help="Load the version there, and wait for it."),
]


def promote(
    repository: _models.RepositoryArgument,
    candidate: Annotated[
        Path, typer.Option("--candidate", metavar="DIR", help="A folder of `train ranker`.")
    ],
    force: Annotated[
        bool, typer.Option("--force", help="Although the gate refuses; needs --reason.")
    ] = False,
    reason: Annotated[
        str, typer.Option("--reason", metavar="TEXT", help="Why it is forced; recorded.")
    ] = "",
    segment_loss: Annotated[
        float,
        typer.Option("--segment-loss", min=0, max=1, help="NDCG that a segment may lose."),
    ] = SEGMENT_LOSS_MAX,
    decisions: Annotated[
        list[Path] | None,
        typer.Option("--decisions", metavar="FILE", help="Judge anew, against what serves now."),
    ] = None,
    backend: Annotated[
        BackendOption | None,
        typer.Option("--backend", help="Of a new repository; its own is kept.", show_default=False),
    ] = None,
    triton: TritonOption = None,
    timeout: _models.TimeoutOption = 120.0,
    tls_ca: _models.TlsCaOption = None,
    format_: FormatOption = None,
) -> None:
    """Add a trained ranker as the next version, if it is better and worse for no segment.

    Exit code 6, with the figures, when the gate refuses. Answers do not change: policies pin
    versions, and one that names the new version switches.
    """
    from matchwright.engine.rerank import promotion

    evaluation = judged_anew(repository, candidate, decisions) if decisions else None
    line = promotion.promote(
        repository,
        candidate,
        now=_now(),
        backend=None if backend is None else backend.value,
        force=force,
        reason=reason,
        segment_loss_max=segment_loss,
        evaluation=evaluation,
    )
    for doubt in line["verdict"]["doubts"]:
        say(f"not certain: {doubt}")
    _answer(line, triton, tls_ca, timeout, format_)


def rollback(
    repository: _models.RepositoryArgument,
    to: Annotated[
        int | None, typer.Option("--to", min=1, help="This version; else the one before.")
    ] = None,
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Recorded.")] = "",
    triton: TritonOption = None,
    timeout: _models.TimeoutOption = 120.0,
    tls_ca: _models.TlsCaOption = None,
    format_: FormatOption = None,
) -> None:
    """Name the ranker that was in service before; nothing is removed and no answer changes."""
    from matchwright.engine.rerank import promotion

    line = promotion.rollback(repository, now=_now(), to=to, reason=reason)
    _answer(line, triton, tls_ca, timeout, format_)


def judged_anew(repository: Path, candidate: Path, decisions: list[Path]) -> dict[str, Any]:
    """The evaluation of a candidate on other decisions, against the ranker in service now."""
    from matchwright.engine.rerank import promotion
    from matchwright.engine.rerank.decisions_read import read
    from matchwright.engine.rerank.train import judge_again
    from matchwright.engine.rerank.trees import Trees

    trees = Trees.load(candidate)
    before = promotion.in_service(repository)
    serving = None if before is None else Trees.load(before.path)
    if not trees.training:
        raise InvalidArgument(f"{candidate} has no training record; train the ranker anew")
    with progress("reading decisions") as advance:
        logged = read(decisions, features_version=trees.features_version, advance=advance)
    return judge_again(logged, trees, serving)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _answer(
    line: dict[str, Any],
    triton: str | None,
    tls_ca: Path | None,
    timeout: float,
    format_: FormatOption,
) -> None:
    ready: list[int] | None = None
    if triton is not None:
        ready = _loaded(line["version"], triton, tls_ca, timeout)
    told = {
        "version": line["version"],
        "before": line["before"],
        "ready": ready,
        "warnings": line.get("warnings", []),
        "forced": line.get("forced", False),
    }
    for warning in told["warnings"]:
        say(f"{warning}: the features that it learned from were joined after the decisions")
    with Writer(format_, None) as writer:
        writer.add(_models.table({**told, "record": line}, [told]))
    where = "" if ready is not None else " (load it first: matchwright models load ranker)"
    keep = f"; keep version {line['before']} loaded until no policy names it"
    say(
        f"answers change when a policy says [rerank] version = {line['version']}{where}"
        f"{'' if line['before'] is None else keep}"
    )


def _loaded(version: int, triton: str, tls_ca: Path | None, timeout: float) -> list[int]:
    """The versions that the server has ready, this one among them.

    Raises:
        MatchwrightError: as ``rolling.load``, saying that the repository has the version all the
            same and how to load it.
    """
    from matchwright.engine.models import rolling

    try:
        with _models.connected(triton, tls_ca, timeout) as client:
            return list(rolling.load(client, "ranker", version, deadline=_models.deadline(timeout)))
    except MatchwrightError as error:
        raise type(error)(
            f"version {version} is recorded, but was not loaded: {error}; load it later with: "
            f"matchwright models load ranker --version {version} --server {shlex.quote(triton)}",
            **error.details,
        ) from error


def register(group: typer.Typer) -> None:
    """Add the commands."""
    group.command()(promote)
    group.command()(rollback)
