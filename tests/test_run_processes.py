"""A run that several processes share: the files of a local one, whoever is lost on the way."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from multiprocessing import Pipe
from pathlib import Path

import pytest
import run_cases as cases
from patience import lives, until

from matchwright.engine.cli import main
from matchwright.engine.cli._options import date_of
from matchwright.engine.errors import NotFound
from matchwright.engine.runs import processes
from matchwright.engine.runs.block import BlockAnswer
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


@pytest.fixture
def run_by(plan, snapshot, store_folder, expected, tmp_path):
    """``run_by(n)``: the summary of the run by so many processes, whose files are as expected."""

    def ran(n, **options):
        folder = Output(tmp_path).folder(plan.run_id)
        executor = executor_of(plan, snapshot, store_folder, n, **options)
        summary = run(plan, folder, executor, snapshot=snapshot).summary
        cases.check_same(summary, folder, expected)
        return summary

    return ran


class Others:
    """What passes between this process and the others, and when this one may answer.

    Attributes:
        sent: messages, over all lines.
        kill_at: the message after which the first of them is killed; None kills nobody.
        signal: by which it is.
        killed: who was there then.
        own: units that this process answered itself.
        go: it answers none before this is set, so that the others have a part in every run.
    """

    def __init__(self):
        self.sent = 0
        self.own = []
        self.go = threading.Event()
        self.kill_at = None
        self.killed = []
        self.signal = signal.SIGKILL

    def told(self):
        if self.sent == self.kill_at and not self.killed:
            # The system names it a moment after it has begun.
            self.killed = until(children, "a process")
            os.kill(self.killed[0], self.signal)


@pytest.fixture
def others(monkeypatch):
    seen, answer = Others(), LocalExecutor.answer

    class Line(processes.Connection):
        def __init__(self, fd):
            super().__init__(fd)
            seen.told()

        def send(self, value):
            super().send(value)
            seen.sent += 1
            seen.told()

        def recv(self):
            value = super().recv()
            if isinstance(value[1], BlockAnswer) and seen.kill_at is None:
                seen.go.set()
            return value

    def late(self, unit):
        assert seen.go.wait(120)
        seen.own.append(unit)
        return answer(self, unit)

    monkeypatch.setattr(processes, "Connection", Line)
    monkeypatch.setattr(LocalExecutor, "answer", late)
    return seen


def children(parent=None):
    """Processes that this one (or another one) started for runs and that live."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended just now
            state, started_by = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            mine = int(started_by) == (parent or os.getpid()) and state != "Z"
            if mine and processes.__name__.encode() in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
    return found


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """The command runs in a folder with modules of the same names, none of which is meant."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    for name in ("numpy", "polars", "queue", "matchwright"):
        (folder / f"{name}.py").write_text("raise SystemExit(7)")
    monkeypatch.chdir(folder)


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize("n", [2, 3, 50])
def test_processes_give_the_files_of_a_local_run(plan, run_by, others, n, count):
    if n == 50 and count(reduced=0, full=1) == 0:
        n = 4  # more than there are units is tried with full counts: each one opens the store
    limits = run_by(n)["limits"]
    assert (limits["executor"], limits["processes"], limits["processes_lost"]) == ("local", n, 0)
    assert 0 < len(others.own) < len(plan.units)
    assert children() == []


@pytest.mark.parametrize("moment", range(4), ids=["starts", "opens", "answers", "answers-again"])
def test_a_process_that_is_killed_gives_its_work_to_the_others(run_by, others, moment):
    said = []

    def say(line):
        said.append(line)
        others.go.set()

    others.kill_at = moment
    assert run_by(2, say=say)["limits"]["processes_lost"] == len(others.killed) == 1
    assert len(said) == 1
    assert "signal 9" in said[0]
    assert others.own


def test_a_process_that_hangs_gives_its_work_to_the_others(run_by, others, monkeypatch):
    monkeypatch.setattr(processes, "HUNG_S", 0.0)
    monkeypatch.setattr(processes, "HUNG_TIMES", 0)
    others.kill_at, others.signal = 2, signal.SIGSTOP  # when it has got a unit
    others.go.set()
    answer = LocalExecutor.answer

    def late(self, unit):
        until(lambda: others.killed, "the other's signal")  # so that a unit is left for it
        return answer(self, unit)

    monkeypatch.setattr(LocalExecutor, "answer", late)
    said = []
    assert run_by(2, say=said.append)["limits"]["processes_lost"] == len(others.killed) == 1
    assert len(said) == 1
    assert "gave no answer" in said[0]
    assert children() == []


def test_only_a_unit_that_takes_far_longer_than_others_hangs(plan, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(processes.time, "monotonic", lambda: now[0])
    work = processes._Work(plan.units, len(plan.units))
    slow, other = work.take(), work.take()
    now[0] = 30.0
    work.put((slow, None))
    now[0] = 300.0  # ten times as long as the slowest
    assert not work.hangs(other)
    assert not work.hangs(slow)
    assert not work.hangs(None)
    now[0] = 301.0
    assert work.hangs(other)
    work.give_back(other)
    assert not work.hangs(other)


@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), KeyboardInterrupt()])
@pytest.mark.parametrize("n", range(3))
def test_a_thread_that_cannot_be_started_ends_the_others(
    plan, snapshot, store_folder, monkeypatch, n, error
):
    start = threading.Thread.start

    def fails(self):
        if self.name == f"run-process-{n}":
            raise error
        start(self)

    monkeypatch.setattr(threading.Thread, "start", fails)
    with pytest.raises(type(error)) as caught:
        list(executor_of(plan, snapshot, store_folder, 3).answers(plan.units))
    assert caught.value is error
    assert children() == []
    assert not [one for one in threading.enumerate() if one.name.startswith("run-process")]


class Unreadable:
    """Can be pickled, and not be read again."""

    def __reduce__(self):
        return int, ("no number",)


def _raises(error):
    raise error


@pytest.mark.parametrize(
    ("do", "why"),
    [
        (lambda: _raises(MemoryError("of the child")), "MemoryError: of the child"),
        (lambda: _raises(OSError(24, "Too many open files")), "Too many open files"),
        (lambda: _raises(KeyboardInterrupt()), "KeyboardInterrupt"),
        (threading.Lock, "cannot pickle"),
        (Unreadable, "cannot be read: ValueError"),
    ],
)
def test_whatever_fails_in_a_process_is_said_on_its_line(do, why):
    ours, theirs = Pipe()
    with ours, theirs:
        processes._tell(theirs, do)
        with pytest.raises(EOFError, match=why):
            processes._received(ours)
        processes._tell(theirs, lambda: 5)
        assert processes._received(ours) == 5
        processes._tell(theirs, lambda: _raises(NotFound("no store", file="x")))
        with pytest.raises(NotFound, match="no store") as caught:
            processes._received(ours)
        assert caught.value.details == {"file": "x"}


def test_a_process_that_cannot_be_started_is_one_that_was_lost(run_by, tmp_path, monkeypatch):
    monkeypatch.setattr(processes.sys, "executable", str(tmp_path / "no-python"))
    said = []
    run_by(3, say=said.append)
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

    def two():
        assert parent.stdout.readline()
        found = children(parent.pid)
        return found if len(found) >= 2 else []

    try:
        started = until(two, "two processes")
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()
    until(lambda: not any(map(lives, started)), "their end")


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
