"""Errors as a user meets them: one line on stderr (or one JSON object), and an exit code."""

from __future__ import annotations

import contextlib
import errno
import json
import sys
from typing import Any

from matchwright.engine import errors

DEFECT = 1
INTERRUPTED = 130
READER_GONE = 141

_EXTRAS = {
    "tritonclient": "triton", "tokenizers": "triton", "onnx": "triton", "lightgbm": "train",
    "ray": "ray", "cupy": "gpu",
}  # fmt: skip
"""The extra of pyproject.toml that brings a package; all others come with ``engine``."""

_LINE_MAX = 2_000
_CLEAR_OF_CONTROLS = {
    code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"
} | {code: f"\\u{code:04x}" for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x2028)}


class Interrupted(Exception):
    """Ctrl-C; ``kept`` says what was kept and how to go on."""

    def __init__(self, kept: str = "") -> None:
        super().__init__(f"interrupted; {kept}" if kept else "interrupted; nothing was changed")


def harmless(text: object) -> str:
    """``text`` on one line, for a terminal; control and bidi characters become escapes."""
    return str(text).translate(_CLEAR_OF_CONTROLS).replace("\n", " ").replace("\t", " ")


def shorten(text: str, limit: int = _LINE_MAX) -> str:
    """``text``, its middle cut out when it is longer than ``limit`` characters."""
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]} ... {text[-half:]}"


def report(error: BaseException, *, as_json: bool) -> int:
    """Print one line (or one JSON object) on stderr.

    Returns:
        The exit code that belongs to the error.
    """
    told = describe(error)
    line = json.dumps({"error": told}) if as_json else f"matchwright: {told['message']}"
    with contextlib.suppress(BrokenPipeError):  # nobody reads stderr either; the code says it
        print(line, file=sys.stderr)
    return int(told["exit_code"])


def describe(error: BaseException) -> dict[str, Any]:
    """Any error as a JSON object: reason, exit_code, message, details; harmless on a terminal."""
    reason, code, message, details = _describe(error)
    return {
        "reason": reason,
        "exit_code": code,
        "message": shorten(harmless(message)),
        "details": {key: shorten(harmless(value)) for key, value in details.items()},
    }


def _describe(error: BaseException) -> tuple[str, int, str, dict[str, str]]:
    """(reason, exit code, message, details) of any error."""
    if isinstance(error, errors.MatchwrightError):
        return error.reason, error.exit_code, str(error), error.details
    if isinstance(error, Interrupted):
        return "INTERRUPTED", INTERRUPTED, str(error), {}
    if hasattr(error, "format_message"):  # what typer says of a command line
        hint = _where_help_is(error)
        told = error.format_message().replace(": Value error, ", ": ")  # whose error it was
        message = f"{told} {hint}".strip()
        return "INVALID_ARGUMENT", errors.InvalidArgument.exit_code, message, {}
    if isinstance(error, OSError):
        return _describe_os_error(error)
    if isinstance(error, ModuleNotFoundError) and not str(error.name).startswith("matchwright"):
        missing = errors.DependencyUnavailable
        extra = _EXTRAS.get(str(error.name).partition(".")[0], "engine")
        message = f"{error.name!r} is not installed; pip install 'matchwright[{extra}]'"
        return missing.reason, missing.exit_code, message, {}
    if isinstance(error, MemoryError):
        return "OUT_OF_MEMORY", errors.Overloaded.exit_code, "out of memory; ask for less", {}
    hint = "this is a defect; run it again with --debug and report what it prints"
    return "INTERNAL", DEFECT, f"{type(error).__name__}: {error}; {hint}", {}


def _where_help_is(error: BaseException) -> str:
    context = getattr(error, "ctx", None)
    return f"(try: {context.command_path} --help)" if context is not None else ""


def _describe_os_error(error: OSError) -> tuple[str, int, str, dict[str, str]]:
    """What the operating system refused: a path that was named wrongly, or a full disk."""
    where = f" {error.filename}" if error.filename else ""
    message = f"{error.strerror or error}:{where}" if where else str(error)
    named_wrongly = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
    if isinstance(error, (*named_wrongly, FileExistsError)) or error.errno in {
        errno.ENAMETOOLONG,
        errno.EROFS,
        errno.EINVAL,
        errno.ELOOP,
    }:
        return "INVALID_ARGUMENT", errors.InvalidArgument.exit_code, message, {}
    if isinstance(error, ConnectionError):
        return "DEPENDENCY_UNAVAILABLE", errors.DependencyUnavailable.exit_code, message, {}
    hint = "free some space and run it again" if error.errno == errno.ENOSPC else "run it again"
    return "TRY_AGAIN", errors.Overloaded.exit_code, f"{message}; {hint}", {}
