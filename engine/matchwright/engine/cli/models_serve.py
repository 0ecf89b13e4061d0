"""``matchwright models serve``: a Triton server on this host, until it is told to stop."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from matchwright.engine.config import tritonserver_in
from matchwright.engine.errors import DependencyUnavailable, InvalidArgument


def serve(
    repository: Annotated[
        Path, typer.Option("--repository", metavar="DIR", help="The model repository's folder.")
    ],
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model", metavar="NAME", help="Load this one; repeat it. All, if not given."
        ),
    ] = None,
    port: Annotated[int, typer.Option(help="gRPC port on 127.0.0.1; 0 for any free one.")] = 8001,
    threads: Annotated[int, typer.Option(min=1, help="Threads of each model's libraries.")] = 1,
    log: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The server's log, appended to.")
    ] = None,
    tritonserver: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The program; MATCHWRIGHT_TRITONSERVER, PATH and .venv-triton when not given.",
        ),
    ] = None,
) -> int:
    """Serve a repository on loopback until Ctrl-C or SIGTERM. Production runs the container."""
    from matchwright.engine.models.local_server import LocalServer, find_tritonserver

    if not 0 <= port <= 65_535:
        raise InvalidArgument(f"--port is {port}; expected 0..65535", field="port")
    server = LocalServer(
        repository=repository,
        models=model or all_models(repository),
        found=find_tritonserver(tritonserver, tritonserver_in(os.environ)),
        port=port,
        threads=threads,
        log=log,
    )
    signal.signal(signal.SIGTERM, _as_interrupt)
    with server:
        where = f", log {server.log_file}" if log else ""
        print(f"serving {', '.join(server.models)} on {server.url}{where}", flush=True)
        try:
            while server.running:
                time.sleep(0.2)
        except KeyboardInterrupt:
            print("stopping", file=sys.stderr)
            return 0
        raise DependencyUnavailable(f"the Triton server ended: {server.log_tail()}")


def all_models(repository: Path) -> list[str]:
    """Names of the models of a repository.

    Raises:
        InvalidArgument: there are none.
    """
    names = sorted(path.parent.name for path in repository.glob("*/config.pbtxt"))
    if not names:
        raise InvalidArgument(
            f"{repository} holds no model; make some: matchwright models build --help",
            field="repository",
        )
    return names


def _as_interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(serve)
