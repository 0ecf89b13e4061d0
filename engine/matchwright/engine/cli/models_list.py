"""``matchwright models list``: versions in a repository, and on a server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from matchwright.engine.cli import _models
from matchwright.engine.cli._options import FormatOption, OutputOption
from matchwright.engine.cli._output import Writer
from matchwright.engine.errors import InvalidArgument, MatchwrightError

NAMES = ("encoder", "ranker")


def list_(
    repository: _models.RepositoryOrNone = None,
    server: _models.ServerOrNone = None,
    timeout: _models.TimeoutOption = 10.0,
    tls_ca: _models.TlsCaOption = None,
    format_: FormatOption = None,
    output: OutputOption = None,
) -> None:
    """List versions: what a repository holds, what a server has ready, side by side."""
    if repository is None and server is None:
        raise InvalidArgument("give REPO, --server HOST:PORT, or both")
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    if repository is not None:
        _add_held(rows, repository)
    if server is not None:
        with _models.connected(server, tls_ca, timeout) as client:
            for state in client.index(deadline=_models.deadline(timeout)):
                _row(rows, state.name, state.version)["server"] = state.state
    listed = [rows[key] for key in sorted(rows)]
    document = {"repository": repository, "server": server, "models": listed}
    with Writer(format_, output) as writer:
        writer.add(_models.table(document, listed))


def _row(rows: dict[tuple[str, int], dict[str, Any]], name: str, version: int) -> dict[str, Any]:
    empty = {
        "model": name,
        "version": version,
        "content_hash": None,
        "about": None,
        "backend": None,
        "server": None,
    }
    return rows.setdefault((name, version), empty)


def _add_held(rows: dict[tuple[str, int], dict[str, Any]], folder: Path) -> None:
    from matchwright.engine.models.repository import Repository

    repository = Repository.open(folder)
    for name in NAMES:
        for version in repository.versions(name):
            row = _row(rows, name, version)
            try:
                row["backend"] = repository.variant(name)
                row["content_hash"], row["about"] = _about(repository, name, version)
            except MatchwrightError as error:  # a damaged version is listed, and says so
                row["about"] = f"{error.reason}: {error}"


def _about(repository: Any, name: str, version: int) -> tuple[str, str]:
    if name == "encoder":
        held = repository.encoder(version)
        return held.content_hash, f"{held.dimensions} dimensions, {held.max_tokens} tokens"
    held = repository.ranker(version)
    about = f"{len(held.features)} features of version {held.features_version}"
    return held.content_hash, f"{about}, scores in 2^-{held.grid_bits}"


def register(group: typer.Typer) -> None:
    """Add the command."""
    group.command("list")(list_)
