"""A process that writes to a store until it is killed, and what it leaves."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from store_fakes import record

CHILD = Path(__file__).with_name("store_crash_child.py")


def applied(model, operation):
    """The model (id -> record) after an operation."""
    what, *arguments = operation
    if what in ("upsert", "bulk"):
        names, version = arguments
        return model | {name: record(name, version) for name in names}
    if what == "delete":
        return {name: row for name, row in model.items() if name not in arguments[0]}
    return model


def run_and_kill(folder, seed, rng, model, how="run"):
    """Lets a child work for a while; (acknowledged model, the operation in flight or None)."""
    command = [sys.executable, str(CHILD), str(folder), str(seed), how]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout.readline() == "open\n"
            deadline = time.monotonic() + rng.uniform(0.0, 0.6)
            lines = []
            while time.monotonic() < deadline:
                lines.append(child.stdout.readline())
        finally:
            child.kill()
        lines += child.stdout.readlines()
    flying = None
    for line in lines:
        if line.startswith("do ") and line.endswith("\n"):
            flying = json.loads(line[3:])
        elif line == "done\n":
            model, flying = applied(model, flying), None
    return model, flying
