"""The command line: ``matchwright``, or ``python -m matchwright.engine.cli``.

Answers go to stdout, progress and errors to stderr. Exit codes are those of
``matchwright.engine.errors``: 0 done, 2 usage, 3 invalid data, 4 partly done, 5 dependency
unavailable, 6 verification failed, 75 try again later; 1 is a defect of ours, 130 Ctrl-C, and 141
a reader of stdout that went away, as for every program that SIGPIPE ends.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; ``matchwright`` alone, without ``[engine]``, says what is missing.

    Args:
        argv: arguments without the program's name; ``sys.argv[1:]`` when None.

    Returns:
        The exit code.
    """
    try:
        from matchwright.engine.cli._main import main as run
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("matchwright"):
            raise
        print(
            f"matchwright: the command line needs {error.name!r}, which the client alone does not "
            "bring; pip install 'matchwright[engine]'",
            file=sys.stderr,
        )
        return 5
    return run(argv)
