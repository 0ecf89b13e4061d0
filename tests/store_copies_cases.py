"""A process that copies a store until it is killed, and what it leaves."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from contextlib import contextmanager
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


@contextmanager
def written_to(root):
    """A store whose records all go from version to version, with refits, until the end."""
    stop = threading.Event()
    with open_store(root, "w", seal_rows=child.ROWS, retain_s=0) as store:
        store.upsert("job", child.version(0))

        def write():
            number = 0
            while not stop.is_set():
                number += 1
                store.upsert("job", child.version(number))
                if number % 5 == 0:
                    store.refit(seed=number, sample=5, as_of=1)

        writer = threading.Thread(target=write)
        writer.start()
        try:
            yield
        finally:
            stop.set()
            writer.join()


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
