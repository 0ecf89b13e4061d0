"""The command line: ``matchwright``, or ``python -m matchwright.engine.cli``.

Answers go to stdout, progress and errors to stderr. Exit codes are those of
``matchwright.engine.errors``: 0 done, 2 usage, 3 invalid data, 4 partly done, 5 dependency
unavailable, 6 verification failed, 75 try again later; 1 is a defect of ours, 130 Ctrl-C, and 141
a reader of stdout that went away, as for every program that SIGPIPE ends.
"""

from __future__ import annotations

from matchwright.engine.cli._main import main

__all__ = ["main"]
