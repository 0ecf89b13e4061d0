"""Kill -9 at random moments: what was acknowledged stays, what was not is whole or not there."""

from __future__ import annotations

import json
import random
import subprocess
import sys

import pytest
import store_fakes as fakes
from patience import PATIENCE, until
from store_crash_cases import CHILD, applied, run_and_kill

from matchwright.engine.errors import StoreLocked
from matchwright.engine.store import Store


def test_nothing_acknowledged_is_lost(tmp_path, count):
    rng = random.Random(8)
    folder, model, flown = tmp_path / "store", {}, 0
    kills = count(reduced=5, full=50)
    for seed in range(kills + 20):  # a slow machine gets more tries to be killed in mid-flight
        if seed >= kills and flown:
            break
        model, flying = run_and_kill(folder, seed, rng, model)
        with Store.open(folder, mode="r", neighbours=fakes.neighbours()) as store:
            seen = fakes.contents(store.snapshot(), "job")
        allowed = [model] + ([applied(model, flying)] if flying else [])
        assert seen in allowed
        flown += flying is not None
        with Store.open(folder, mode="w", neighbours=fakes.neighbours()) as store:
            assert fakes.contents(store.snapshot(), "job") == seen
            assert store.verify() == []
            files = {path.name for path in (folder / "segments").iterdir()}
            with store._catalog.look() as connection:
                assert files == {row.file for row in store._catalog.all_segments(connection)}
        model = seen
    assert model
    assert flown


def test_a_killed_writer_leaves_no_lock(tmp_path):
    folder = tmp_path / "store"
    command = [sys.executable, str(CHILD), str(folder), "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout.readline() == "open\n"
            with pytest.raises(StoreLocked, match=f"process {child.pid} is writing"):
                Store.open(folder, mode="w", neighbours=fakes.neighbours())
        finally:
            child.kill()
        child.stdout.read()
    Store.open(folder, mode="w", neighbours=fakes.neighbours()).close()


def test_a_reader_process_sees_changes_within_a_second(tmp_path, count):
    """The child writes one change at a time; this process only reads."""
    folder, model = tmp_path / "store", {}
    command = [sys.executable, str(CHILD), str(folder), "3", "step"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, bufsize=1) as child:
        try:
            assert child.stdout.readline() == "open\n"
            with Store.open(folder, neighbours=fakes.neighbours()) as reader:
                for _ in range(count(reduced=40, full=1_000)):
                    reader.snapshot()
                    child.stdin.write("go\n")
                    model = applied(model, json.loads(child.stdout.readline()[3:]))
                    assert child.stdout.readline() == "done\n"
                    until(
                        lambda model=model: fakes.contents(reader.snapshot(), "job") == model,
                        "what the other has written",
                        within=PATIENCE,
                    )
        finally:
            child.kill()
