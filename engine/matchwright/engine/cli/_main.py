"""Runs one command and turns whatever happens into an exit code and at most one clear line."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Sequence

import typer

from matchwright.engine.cli._failures import INTERRUPTED, READER_GONE, Interrupted, report


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: arguments without the program's name; ``sys.argv[1:]`` when None.

    Returns:
        The exit code. Nothing is raised, except with ``--debug``.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    as_json = _wants_json(arguments)
    _print_anything()
    try:
        code = _run([argument for argument in arguments if argument != "--debug"])
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        _forget_stdout()
        return READER_GONE
    except (KeyboardInterrupt, typer.Abort):
        return report(Interrupted(), as_json=as_json)
    except (SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # a panic inside Polars is no Exception
        if debug and not isinstance(error, Interrupted):
            raise
        return report(error, as_json=as_json)


def _run(arguments: list[str]) -> int:
    from matchwright.engine.cli._app import app

    command = typer.main.get_command(app)
    try:
        with command.make_context("matchwright", arguments) as context:
            code = command.invoke(context)
    except typer.Exit as done:
        if done.exit_code == INTERRUPTED:
            raise Interrupted from None
        return int(done.exit_code)
    return code if isinstance(code, int) else 0


def _wants_json(arguments: Sequence[str]) -> bool:
    """Whether ``--format json`` (or jsonl) was asked for, even on a line that does not parse."""
    for word, following in zip(arguments, [*arguments[1:], ""], strict=False):
        name, equals, value = word.partition("=")
        if name in {"--format", "-f"} and (value if equals else following) in {"json", "jsonl"}:
            return True
    return False


def _print_anything() -> None:
    """Ids and paths may hold what the terminal's encoding cannot; print an escape, do not fail."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _forget_stdout() -> None:
    """Keep the interpreter from complaining on its way out that nobody reads stdout any more."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
