"""A run that several processes share: the files of a local one, whoever is lost on the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import run_cases as cases

from matchwright.engine.cli import main
from matchwright.engine.cli._options import date_of
from matchwright.engine.errors import NotFound
from matchwright.engine.runs import processes
from matchwright.engine.runs.execute import LocalExecutor, run
from matchwright.engine.runs.folder import Output
from matchwright.engine.runs.plan import make_plan
from matchwright.engine.runs.processes import ProcessExecutor, processes_for
from matchwright.engine.store import Store
from matchwright.kernels.ops import Ops

OPS = Ops(threads=1)


@pytest.fixture(scope="module")
def store_folder(tmp_path_factory):
    return cases.make_store(tmp_path_factory.mktemp("processes") / "store")


@pytest.fixture(scope="module")
def snapshot(store_folder):
    with Store.open(store_folder) as opened:
        yield opened.snapshot()


@pytest.fixture(scope="module")
def plan(snapshot):
    return make_plan(snapshot, cases.options(slack=5, contributions=True, count=True, block=40))


@pytest.fixture(scope="module")
def expected(plan, snapshot, tmp_path_factory):
    """(folder, run.json) of a local run."""
    folder = Output(tmp_path_factory.mktemp("local")).folder(plan.run_id)
    return folder, run(plan, folder, LocalExecutor(OPS, snapshot, plan), snapshot=snapshot).summary


def executor_of(plan, snapshot, store_folder, n, **options):
    return ProcessExecutor(OPS, snapshot, plan, store_folder, processes=n, **options)


def check_same(summary, folder, expected):
    there, wanted = expected
    assert summary["digest"] == wanted["digest"]
    assert summary["counts"] == wanted["counts"]
    for name in sorted(there.list()):
        if name.endswith(".parquet"):
            assert folder.read(name) == there.read(name), name


@pytest.fixture
def own(monkeypatch):
    """Units that this process answers itself: slowly, so that the others have a part in it."""
    answered = []
    answer = LocalExecutor.answer

    def slow(self, unit):
        time.sleep(0.4)
        answered.append(unit)
        return answer(self, unit)

    monkeypatch.setattr(LocalExecutor, "answer", slow)
    return answered


def children(pid=None):
    """Processes that this one (or another one) started for runs and that live."""
    found = subprocess.run(
        ["ps", "-o", "pid=,stat=,args=", "--ppid", str(pid or os.getpid())],
        capture_output=True, text=True, check=False,
    ).stdout  # fmt: skip
    lines = [line.split(None, 2) for line in found.splitlines() if processes.__name__ in line]
    return [int(number) for number, state, _ in lines if not state.startswith("Z")]


@pytest.mark.parametrize("n", [2, 3, 50])
def test_processes_give_the_files_of_a_local_run(
    plan, snapshot, store_folder, expected, tmp_path, own, n, count
):
    if n == 50 and count(reduced=0, full=1) == 0:
        n = 4  # more than there are units is tried with full counts: each one opens the store
    folder = Output(tmp_path).folder(plan.run_id)
    executor = executor_of(plan, snapshot, store_folder, n)
    summary = run(plan, folder, executor, snapshot=snapshot).summary
    check_same(summary, folder, expected)
    limits = summary["limits"]
    assert (limits["executor"], limits["processes"], limits["processes_lost"]) == ("local", n, 0)
    assert 0 < len(own) < len(plan.units)
    assert children() == []


def test_a_process_that_is_killed_gives_its_work_to_the_others(
    plan, snapshot, store_folder, expected, tmp_path, own, count
):
    """While it starts, and while it answers: whenever the SIGKILL comes."""
    for n in range(count(reduced=2, full=12)):
        said, killed = [], []
        executor = executor_of(plan, snapshot, store_folder, 2, say=said.append)
        folder = Output(tmp_path / str(n)).folder(plan.run_id)

        def kill(event, killed=killed, late=n % 2):
            if event.name == ("unit" if late else "start") and not killed:
                until = time.monotonic() + 10
                while not (there := children()) and event.name == "unit":
                    assert time.monotonic() < until
                killed.extend(there[:1])
                for pid in killed:
                    os.kill(pid, signal.SIGKILL)

        summary = run(plan, folder, executor, progress=kill, snapshot=snapshot).summary
        check_same(summary, folder, expected)
        assert summary["limits"]["processes_lost"] == len(killed) == len(said)
        assert all("signal 9" in line for line in said)
    assert killed


def test_a_process_that_cannot_be_started_is_one_that_was_lost(
    plan, snapshot, store_folder, expected, tmp_path, monkeypatch
):
    monkeypatch.setattr(processes.sys, "executable", str(tmp_path / "no-python"))
    said = []
    executor = executor_of(plan, snapshot, store_folder, 3, say=said.append)
    folder = Output(tmp_path).folder(plan.run_id)
    check_same(run(plan, folder, executor, snapshot=snapshot).summary, folder, expected)
    assert len(said) == 2
    assert all("no-python" in line for line in said)


def test_what_a_process_says_of_its_store_ends_the_run(plan, snapshot, tmp_path):
    executor = executor_of(plan, snapshot, tmp_path / "none", 2)
    with pytest.raises(NotFound, match="none"):
        list(executor.answers(plan.units * 1_000))
    assert children() == []


def test_closing_early_ends_every_process(plan, snapshot, store_folder):
    answers = executor_of(plan, snapshot, store_folder, 3).answers(plan.units)
    next(answers)
    answers.close()
    assert children() == []


_ORPHANS = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import run_cases as cases
from matchwright.engine.runs.plan import make_plan
from matchwright.engine.runs.processes import ProcessExecutor
from matchwright.engine.store import Store
from matchwright.kernels.ops import Ops
with Store.open(Path(sys.argv[1])) as store:
    snapshot = store.snapshot()
    plan = make_plan(snapshot, cases.options(block=1))
    made = ProcessExecutor(Ops(threads=1), snapshot, plan, Path(sys.argv[1]), processes=3)
    for unit, answer in made.answers(plan.units * 50):
        print(unit, flush=True)
"""


def test_processes_end_with_the_one_that_started_them(store_folder):
    parent = subprocess.Popen(
        [sys.executable, "-c", _ORPHANS, str(store_folder), str(Path(__file__).parent)],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert parent.stdout.readline()
        until = time.monotonic() + 20
        while len(started := children(parent.pid)) < 2:
            assert time.monotonic() < until
            assert parent.stdout.readline()
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()
    until = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in started):
        assert time.monotonic() < until
        time.sleep(0.05)


def test_small_runs_stay_in_one_process(plan):
    assert processes_for(plan, 8) == 1


def test_no_more_processes_than_units(plan, monkeypatch):
    monkeypatch.setattr(processes, "PAIRS_MIN", 1)
    assert processes_for(plan, 2) == 2
    assert processes_for(plan, 1_000) == len(plan.units)


def test_a_command_shares_its_work(store_folder, expected, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(processes, "PAIRS_MIN", 1)
    words = ["run", "start", "--store", str(store_folder), "-k", "20", "--slack", "5", "--count"]
    words += ["--contributions", "--block", "40", "--as-of", date_of(cases.AS_OF), "--workers", "2"]
    assert main([*words, "--device", "cpu", "-o", str(tmp_path), "--no-report", "-f", "json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["digest"] == expected[1]["digest"]
    assert summary["limits"]["processes"] == 2
