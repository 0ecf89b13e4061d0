"""Waiting for the writer's lock, and housekeeping by a process that only reads."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import shutil
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
from patience import until

from matchwright.engine import synthetic
from matchwright.engine.cli import main
from matchwright.engine.errors import (
    FailedPrecondition,
    InvalidArgument,
    StoreDamaged,
    StoreFull,
    StoreLocked,
)
from matchwright.engine.service.housekeeping import BETWEEN_S, Housekeeper
from matchwright.engine.store import Store
from matchwright.engine.store.compact import Figures
from matchwright.engine.store.files import WriterLock

CHUNK = 64


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Five sealed segments of ten people each."""
    folder = tmp_path_factory.mktemp("made") / "store"
    with Store.open(folder, mode="w", create=True) as store:
        people = synthetic.frame("freelancer", 50)
        for n in range(5):
            store.upsert("freelancer", people[n * 10 : n * 10 + 10])
            store.seal()
    return folder


@pytest.fixture
def folder(made, tmp_path):
    return Path(shutil.copytree(made, tmp_path / "store"))


def segments(store):
    return [part.source.n for part in store.snapshot().parts["freelancer"]]


@contextmanager
def held(folder):
    """Another process that has the writer's lock; ends when its stdin does."""
    code = (
        "import sys; from pathlib import Path; from matchwright.engine.store.files import "
        "WriterLock; lock = WriterLock(Path(sys.argv[1]) / 'LOCK'); print('held', flush=True); "
        "sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(folder)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


# ── The lock ──────────────────────────────────────────────────────────────────────────────────


def test_who_waits_gets_the_lock_and_says_for_whom(folder):
    said = []
    with held(folder) as process:

        def told(text):
            said.append(text)
            process.stdin.close()

        Store.open(folder, mode="w", wait_s=30, waiting=told).close()
        assert said == [
            f"{folder}: process {process.pid} is writing to this store; waiting for it, 30 s "
            "at most"
        ]


def test_who_waits_in_vain_is_told(folder):
    with held(folder) as process:
        with pytest.raises(StoreLocked, match=f"process {process.pid} .* after 0.2 s still"):
            Store.open(folder, mode="w", wait_s=0.2)
        with pytest.raises(StoreLocked, match=f"process {process.pid} is writing to this store; "):
            Store.open(folder, mode="w")
    for wait_s in (-1, float("nan")):
        with pytest.raises(InvalidArgument, match="expected 0 or more"):
            Store.open(folder, mode="w", wait_s=wait_s)
    Store.open(folder, mode="w").close()


def test_a_lock_whose_file_was_replaced_is_not_one(folder, monkeypatch):
    """A restore puts another folder, with its own LOCK, where somebody waits."""
    first = WriterLock(folder / "LOCK")
    got, tries, tried = [], [], WriterLock._tried

    def counted(self):
        tries.append(self)
        return tried(self)

    monkeypatch.setattr(WriterLock, "_tried", counted)
    waiter = threading.Thread(
        target=lambda: got.append(WriterLock(folder / "LOCK", wait_s=30, waiting=said.append))
    )
    said = []
    waiter.start()
    until(lambda: said, "who waits")
    (folder / "LOCK").rename(folder / "old")
    second = WriterLock(folder / "LOCK")  # of the store that is there now
    first.release()
    before = len(tries)
    until(lambda: len(tries) > before + 3, "three more tries")
    assert got == []
    second.release()
    waiter.join(30)
    assert len(got) == 1
    with (folder / "LOCK").open() as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    got[0].release()


def test_a_folder_that_became_a_replica_meanwhile_is_not_written_to(folder):
    lock = WriterLock(folder / "LOCK")

    def becomes_a_replica(_said):
        (folder / "REPLICA.json").write_text("{}")
        lock.release()

    with pytest.raises(FailedPrecondition, match="is a replica"):
        Store.open(folder, mode="w", wait_s=30, waiting=becomes_a_replica)
    WriterLock(folder / "LOCK").release()


COMMANDS = {
    "compact": ["store", "compact"],
    "refit": ["store", "refit", "--as-of", "2026-01-01"],
    "migrate": ["store", "migrate"],
    "erase": ["store", "erase", "nobody", "--kind", "job", "--yes"],
    "ingest": ["ingest", "freelancers"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_that_write_wait(folder, tmp_path, capsys, monkeypatch, name):
    tried, refused = WriterLock._tried, []

    def then_free(self):
        got = tried(self)
        refused.extend([self] * (not got))
        if len(refused) == 2:  # after the first time it says that it waits
            process.stdin.close()
        return got

    line = [*COMMANDS[name], "--store", str(folder)]
    if name == "ingest":
        synthetic.frame("freelancer", 60).write_parquet(tmp_path / "people.parquet")
        line.append(str(tmp_path / "people.parquet"))
    with held(folder) as process:
        assert main([*line, "--wait", "0"]) == 75
        assert f"process {process.pid} is writing to this store" in capsys.readouterr().err
        monkeypatch.setattr(WriterLock, "_tried", then_free)
        assert main([*line, "--wait", "30"]) == 0
        told = f"process {process.pid} is writing to this store; waiting for it, 30 s at most"
        assert told in capsys.readouterr().err


# ── What there is to do, and doing it ─────────────────────────────────────────────────────────


def test_looking_writes_nothing_and_takes_no_lock(folder):
    def files_there():
        return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}

    with Store.open(folder) as reader, held(folder):
        before = files_there()
        found = reader.due(retain_s=3600)
        assert (found.merge, found.sweep) == (True, False)
        assert reader.due(retain_s=0).sweep
        assert files_there() == before


def test_one_step_merges_once_and_lets_go(folder):
    with Store.open(folder) as reader:
        before = reader.snapshot()
        done = reader.tend(retain_s=3600, pace=0)
        assert (done.merges, done.segments_before, done.segments_after) == (1, 4, 1)
        WriterLock(folder / "LOCK").release()
        assert sorted(segments(reader)) == [10, 40]
        assert reader.snapshot().epoch.number > before.epoch.number
        assert [part.source.n for part in before.parts["freelancer"]] == [10] * 5
        assert not reader.due(retain_s=3600)
        # Without a retention time the files go that only epochs before it need.
        assert reader.due(retain_s=0).sweep
        reader.tend(retain_s=0, pace=0)
        assert not reader.due(retain_s=0)
        assert len(list((folder / "segments").iterdir())) == 2


def test_a_lease_is_heeded(folder):
    with Store.open(folder) as reader:
        reader.keep("somebody", epoch=3)
        reader.tend(retain_s=0, pace=0)
        assert not reader.due(retain_s=0)
        assert reader.snapshot(epoch=3).count("freelancer") == 20
        reader.release("somebody")
        assert reader.due(retain_s=0).sweep


def test_a_replica_is_left_alone(folder, tmp_path):
    with Store.open(folder) as store:
        store.publish(tmp_path / "there")
    Store.pull(tmp_path / "there", tmp_path / "replica")
    with Store.open(tmp_path / "replica") as reader:
        assert not reader.due(retain_s=0)


def test_a_step_that_is_asked_to_stop_leaves_nothing(folder):
    stop = threading.Event()
    stop.set()
    with Store.open(folder) as reader:
        assert reader.tend(retain_s=3600, stop=stop).merges == 0
        assert segments(reader) == [10] * 5
        assert reader.verify() == []
    assert len(list((folder / "segments").iterdir())) == 5


# ── The housekeeper ───────────────────────────────────────────────────────────────────────────


class Fake:
    """A store that does as it is told: what ``due`` and ``tend`` give or raise, in turn."""

    def __init__(self, *turns):
        self.turns = list(turns)

    def due(self, *, retain_s):
        assert retain_s == 7.0
        return self._give() if self.turns and not isinstance(self.turns[0], Figures) else True

    def tend(self, *, retain_s, stop):
        assert not stop.is_set()
        return self._give()

    def _give(self):
        turn = self.turns.pop(0)
        if isinstance(turn, Exception):
            raise turn
        return turn


def keeper_of(*turns):
    return Housekeeper({"shop": Fake(*turns)}, retain_s=7.0, look_s=5.0, retry_s=60.0)


def test_when_the_next_look_is():
    done = Figures(merges=1, segments_before=4, segments_after=1)
    keeper = keeper_of(False, done, Figures(), True, StoreLocked("busy"))
    assert keeper.step("shop") == 5.0
    assert BETWEEN_S <= keeper.step("shop") < 5.0
    assert keeper.merges == {"shop": 1}
    assert keeper.step("shop") == 5.0
    assert keeper.step("shop") == 5.0


def test_trouble_is_logged_once_and_tried_again(caplog):
    caplog.set_level(logging.INFO, "matchwright.engine.service.housekeeping")
    full = StoreFull("no room")
    keeper = keeper_of(full, full, StoreDamaged("broken"), PermissionError("no"), False)
    assert [keeper.step("shop") for _ in range(5)] == [60.0] * 4 + [5.0]
    said = [record.getMessage() for record in caplog.records]
    assert [line.split(": ")[-1] for line in said] == [
        "no room", "broken", "no", "compaction of 'shop' goes on",
    ]  # fmt: skip
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 3 + ["INFO"]


def test_a_defect_ends_nothing(caplog):
    keeper = keeper_of(ZeroDivisionError("oh"), False)
    assert keeper.step("shop") == 60.0
    assert "ZeroDivisionError" in caplog.text
    assert keeper.step("shop") == 5.0


def test_one_store_in_trouble_does_not_hold_up_another(folder):
    class Broken:
        def due(self, *, retain_s):
            raise StoreDamaged("broken")

    with Store.open(folder) as reader:
        keeper = Housekeeper({"broken": Broken(), "shop": reader}, retain_s=3600, look_s=0.05)
        keeper.start()
        until(lambda: keeper.merges["shop"], "the merge")
        keeper.stop()
        assert keeper.merges == {"broken": 0, "shop": 1}
        assert sorted(segments(reader)) == [10, 40]


def test_a_busy_store_is_waited_for(folder):
    refused = []

    class Tried:
        def __init__(self, store):
            self.due, self._tend = store.due, store.tend

        def tend(self, **how):
            try:
                return self._tend(**how)
            except StoreLocked as error:
                refused.append(error)
                raise

    with Store.open(folder) as reader, Store.open(folder, mode="w") as writer:
        keeper = Housekeeper({"shop": Tried(reader)}, retain_s=3600, look_s=0.05)
        keeper.start()
        writer.upsert("freelancer", synthetic.frame("freelancer", 55)[50:])
        until(lambda: len(refused) >= 3, "three tries in vain")
        assert keeper.merges == {"shop": 0}
        writer.close()
        until(lambda: keeper.merges["shop"], "the merge")
        keeper.stop()
        assert keeper.merges == {"shop": 1}
        assert reader.snapshot().count("freelancer") == 55


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC])
def test_a_folder_that_takes_nothing(folder, caplog, monkeypatch, number):
    """Answers go on, and so does compaction when it is over."""
    opened = os.open

    def refused(path, flags, *rest, **more):
        if flags & (os.O_RDWR | os.O_WRONLY) and str(path).startswith(str(folder)):
            raise OSError(number, os.strerror(number), str(path))
        return opened(path, flags, *rest, **more)

    with Store.open(folder) as reader:
        keeper = Housekeeper({"shop": reader}, retain_s=3600)
        with monkeypatch.context() as patched:
            patched.setattr(os, "open", refused)
            assert keeper.step("shop") == 60.0
            assert keeper.step("shop") == 60.0
        (said,) = [record.getMessage() for record in caplog.records]
        assert f"{folder / 'LOCK'}: could not be written: {os.strerror(number)}" in said
        assert segments(reader) == [10] * 5
        assert keeper.step("shop") < 60.0
        assert sorted(segments(reader)) == [10, 40]
