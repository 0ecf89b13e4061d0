"""A process that copies a store until it is killed, and what it leaves."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import store_copies_child as child
from store_fakes import contents, neighbours, open_store

from matchwright.engine.store.check import damages

CHILD = Path(__file__).with_name("store_copies_child.py")


def whole(folder):
    """The one version that all records of a store have; everything else about it is sound."""
    assert damages(folder, neighbours()) == []
    with open_store(folder) as store:
        held = contents(store.snapshot(), "job")
    assert len(held) == child.ROWS
    (version,) = {row["rate_cents"] for row in held.values()}
    assert held == {row["id"]: row for row in child.version(version).to_dicts()}
    return version


def run_and_kill(what, folder, rng, most):
    """Lets a process work for a while; what it acknowledged."""
    command = [sys.executable, str(CHILD), what, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "open\n"
            time.sleep(rng.uniform(0.0, most))
        finally:
            process.kill()
        lines = process.stdout.readlines()
    return [int(line.split()[1]) for line in lines if line.endswith("\n")]
