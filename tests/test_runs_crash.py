"""Runs that are killed, stopped or refused by their target go on to the same digest."""

from __future__ import annotations

import errno
import json
import os
import random
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import run_cases as cases
from patience import until

from matchwright.engine import synthetic
from matchwright.engine.errors import StoreFull
from matchwright.engine.runs import execute
from matchwright.engine.runs.folder import Output, RunFolder, Target
from matchwright.engine.store import Store
from matchwright.kernels.ops import Ops

DAY = "2026-01-01"
PROGRAM = [sys.executable, "-m", "matchwright.engine.cli"]
PATIENCE_S = 60.0


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    return cases.make_store(tmp_path_factory.mktemp("crash") / "a store", 300, 90)


@pytest.fixture(scope="module")
def wanted(shop, tmp_path_factory):
    """The digest of the run that nothing happened to."""
    with Store.open(shop) as store:
        _, outcome = cases.do(store.snapshot(), tmp_path_factory.mktemp("wanted"), slack=5)
    return outcome.summary["digest"]


def start_words(shop, output, block=8):
    asked = ["--store", shop, "--as-of", DAY, "-k", 20, "--slack", 5, "--output", output]
    return ["run", "start", *map(str, asked), "--block", str(block), "--workers", "1", "-f", "json"]


def launch(words, **more):
    return subprocess.Popen(
        [*PROGRAM, *words, "--no-report"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **more,
    )


def ended(process):
    """(exit code, stdout, stderr)."""
    out, err = process.communicate(timeout=PATIENCE_S)
    return process.returncode, out, err


def wait_until(process, output, units):
    """Until so many units are done, or the process has ended."""
    until(lambda: done_units(output) >= units or process.poll() is not None, f"{units} units")


def done_units(output):
    return len(list(Path(output).glob("*/for=*/unit-*.json")))


def summary_of(output):
    (run,) = Output(output).runs()
    return Output(output).folder(run).summary()


# ── SIGKILL ───────────────────────────────────────────────────────────────────────────────────


def test_killed_at_random_moments_it_goes_on_to_the_same_digest(shop, wanted, tmp_path, count):
    rng = random.Random(11)
    kills = 0
    output = tmp_path / "runs"
    while kills < count(reduced=3, full=20):
        there = done_units(output)
        process = launch(start_words(shop, output))
        # Somewhere within the work, not always in the same place of a unit.
        goal = there + rng.randint(1, 12)
        try:
            wait_until(process, output, goal)
            time.sleep(rng.random() * 0.02)
        finally:
            process.kill()
            code, _, err = ended(process)
        if code == 0:  # it was quicker: the next one begins anew
            assert summary_of(output)["digest"] == wanted
            shutil.rmtree(output)
            continue
        assert code == -signal.SIGKILL, err
        kills += 1
    code, out, err = ended(launch(start_words(shop, output)))
    assert code == 0, err
    assert json.loads(out)["digest"] == wanted
    assert not list(output.glob("*/*.part"))
    assert not list(output.glob("*/*/*.part"))


class Killed(BaseException):
    """Stands for SIGKILL: nothing handles it."""


def test_killed_after_every_single_write_it_goes_on(shop, tmp_path, monkeypatch):
    """The n-th file is not written any more, for every n; then the run is resumed."""
    write = Target.write
    left = [1_000]

    def failing(self, name, data):
        if left[0] == 0:
            raise Killed
        left[0] -= 1
        write(self, name, data)

    monkeypatch.setattr(Target, "write", failing)
    asked = {"kinds": ("job",), "slack": 5, "block": 50}
    with Store.open(shop) as store:
        snapshot = store.snapshot()
        _, outcome = cases.do(snapshot, tmp_path / "whole", **asked)
        wanted = outcome.summary["digest"]
        writes = 1_000 - left[0]
        assert writes == 1 + 2 * 4 + 1 + 2  # plan, four files a unit, fingerprints, the end
        for n in range(writes):
            left[0] = n
            with pytest.raises(Killed):
                cases.do(snapshot, tmp_path / str(n), **asked)
            left[0] = 1_000
            _, outcome = cases.do(snapshot, tmp_path / str(n), **asked)
            assert outcome.summary["digest"] == wanted, n


# ── Damage ────────────────────────────────────────────────────────────────────────────────────


def stopped(shop, output):
    """A run that was stopped after all units but the last."""
    with Store.open(shop) as store:
        with pytest.raises(Exception, match="enough"):
            cases.do(
                store.snapshot(), output, slack=5, block=30,
                stop=lambda done, total: "enough" if total - done <= 30 else None,
            )  # fmt: skip
    (run,) = Output(output).runs()
    return Output(output).folder(run)


def truncated(data, rng):
    return data[: rng.randrange(len(data))]


def flipped(data, rng):
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]


def anothers(data, rng):
    return b"PAR1" + rng.randbytes(40) + b"PAR1"


@pytest.mark.parametrize("how", [truncated, flipped, anothers])
def test_damaged_units_are_named_and_done_again(shop, wanted, tmp_path, how):
    rng = random.Random(5)
    folder = stopped(shop, tmp_path)
    units = folder.plan().units
    chosen = rng.sample(units[:-1], 4)
    for unit, what in zip(chosen, ("part", "queries", "slack", "unit"), strict=True):
        name = unit.file(what)
        folder.write(name, how(folder.read(name), rng))
    events = []
    with Store.open(shop) as store:
        _, outcome = cases.do(store.snapshot(), tmp_path, slack=5, progress=events.append)
    redone = {event.fields["unit"] for event in events if event.name == "redo"}
    assert redone == {str(unit) for unit in chosen}
    assert all(folder.url in e.fields["why"] for e in events if e.name == "redo")
    assert outcome.summary["digest"] == wanted


def test_a_unit_of_another_run_is_done_again(shop, wanted, tmp_path):
    folder = stopped(shop, tmp_path)
    first, second = folder.plan().units[:2]
    for what in ("part", "queries", "slack", "unit"):
        folder.write(first.file(what), folder.read(second.file(what)))
    folder.remove(second.file("slack"))
    events = []
    with Store.open(shop) as store:
        _, outcome = cases.do(store.snapshot(), tmp_path, slack=5, progress=events.append)
    assert [event.fields["unit"] for event in events if event.name == "redo"] == [
        str(first), str(second)
    ]  # fmt: skip
    assert outcome.summary["digest"] == wanted


# ── Signals ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_prints_the_command_that_goes_on(shop, wanted, tmp_path, number, code):
    output = tmp_path / "it's here"
    process = launch(start_words(shop, output))
    until(lambda: done_units(output) >= 2, "two units")
    process.send_signal(number)
    got, out, err = ended(process)
    assert (got, out) == (code, ""), err
    message = json.loads(err.splitlines()[-1])["error"]["message"]
    command = shlex.split(message.split("go on with: ")[1])
    assert command[:3] == ["matchwright", "run", "resume"]
    got, out, err = ended(launch([*command[1:], "-f", "json"]))
    assert got == 0, err
    assert json.loads(out)["digest"] == wanted
    events = [json.loads(line) for line in err.splitlines()]
    began = [event for event in events if event["event"] == "start"]
    assert began[0]["done"] >= 6
    assert any(event.get("text", "").startswith("device: ") for event in events)


def test_a_run_that_is_being_written_is_locked(shop, wanted, tmp_path):
    output = tmp_path / "runs"
    process = launch(start_words(shop, output))
    try:
        until(lambda: done_units(output) >= 1, "a unit")
        process.send_signal(signal.SIGSTOP)
        code, _, err = ended(launch(start_words(shop, output)))
        assert code == 75
        assert f"process {process.pid} on" in err
    finally:
        process.send_signal(signal.SIGCONT)
    code, out, err = ended(process)
    assert code == 0, err
    assert json.loads(out)["digest"] == wanted


# ── Targets that refuse ───────────────────────────────────────────────────────────────────────


def test_a_limit_on_file_sizes_keeps_what_was_written(shop, wanted, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Store.open(shop) as store:
        snapshot = store.snapshot()
        resource.setrlimit(resource.RLIMIT_FSIZE, (9_000, hard))
        try:
            with pytest.raises(StoreFull, match="File too large"):
                cases.do(snapshot, tmp_path, slack=5, block=100)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert not list(tmp_path.glob("*/*.part"))
        assert not list(tmp_path.glob("*/*/*.part"))
        _, outcome = cases.do(snapshot, tmp_path, slack=5)
    assert outcome.summary["digest"] == wanted


def test_a_full_target_ends_the_run_and_nothing_half_is_there(shop, wanted, tmp_path, monkeypatch):
    room = [6]
    write = Target.write

    def full(self, name, data):
        if room[0] == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.path(name))
        room[0] -= 1
        write(self, name, data)

    with Store.open(shop) as store:
        snapshot = store.snapshot()
        monkeypatch.setattr(RunFolder, "write", full)
        with pytest.raises(OSError, match="No space left"):
            cases.do(snapshot, tmp_path, slack=5, block=30)
        monkeypatch.setattr(RunFolder, "write", write)
        _, outcome = cases.do(snapshot, tmp_path, slack=5)
    assert outcome.summary["digest"] == wanted


# ── The store moves on ────────────────────────────────────────────────────────────────────────


def test_a_run_goes_on_with_the_epoch_that_it_began_with(wanted, tmp_path):
    shop = cases.make_store(tmp_path / "store", 300, 90)
    output = tmp_path / "runs"
    process = launch(start_words(shop, output))
    until(lambda: done_units(output) >= 3, "three units")
    process.kill()
    ended(process)
    with Store.open(shop, mode="w", retain_s=0.0) as store:
        for n in range(3):
            store.upsert("freelancer", synthetic.frame("freelancer", 5, seed=n + 1, block=5))
            store.delete("job", [f"j-{n + 50:07d}"])
        store.seal()
    (run,) = Output(output).runs()
    code, out, err = ended(
        launch(["run", "resume", run, "--output", str(output), "--store", str(shop), "-f", "json"])
    )
    assert code == 0, err
    assert json.loads(out)["digest"] == wanted
    with Store.open(shop) as store:
        assert store.epochs()[-1].number != json.loads(out)["determinants"]["epoch"].split(":")[1]
        assert not list((shop / "leases").glob("run-*"))


def test_a_kept_epoch_that_has_gone_is_an_error_that_says_so(tmp_path):
    shop = cases.make_store(tmp_path / "store", 60, 30)
    output = tmp_path / "runs"
    with Store.open(shop) as store:
        with pytest.raises(Exception, match="now"):
            cases.do(
                store.snapshot(), output, slack=5, block=10,
                stop=lambda done, total: "now" if done else None,
            )  # fmt: skip
    with Store.open(shop, mode="w", retain_s=0.0) as store:
        for n in range(3):
            store.upsert("freelancer", synthetic.frame("freelancer", 5, seed=n + 1, block=5))
    (run,) = Output(output).runs()
    words = ["run", "resume", str(output / run), "--store", str(shop), "-f", "json"]
    code, _, err = ended(launch(words))
    error = json.loads(err)["error"]
    assert (code, error["reason"]) == (75, "EPOCH_GONE")
    assert "start a new run" in error["message"]


def test_the_executor_is_closed_when_writing_fails(shop, tmp_path, monkeypatch):
    """No unit is prepared any more once the target has refused one."""
    asked = []

    class Counting(execute.LocalExecutor):
        def answers(self, todo):
            for unit, answer in super().answers(todo):
                asked.append(unit)
                yield unit, answer

    def full(self, name, data):
        if "queries" in name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)

    monkeypatch.setattr(Target, "write", full)
    monkeypatch.setattr(RunFolder, "exists", lambda self, name: False)
    with Store.open(shop) as store:
        snapshot = store.snapshot()
        with pytest.raises(OSError, match="No space left"):
            cases.do(
                snapshot, tmp_path, block=5,
                executor=lambda inner: Counting(Ops(threads=1), snapshot, inner.plan),
            )  # fmt: skip
    assert len(asked) <= 3
