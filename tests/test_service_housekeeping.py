"""A server that compacts its store while calls are answered and other processes import."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest
from patience import until

from matchwright.clients import Client
from matchwright.engine import synthetic
from matchwright.engine.cli.ingest import into_store
from matchwright.engine.config import ServerConfig
from matchwright.engine.errors import InvalidArgument
from matchwright.engine.service import running
from matchwright.engine.service.housekeeping import Housekeeper
from matchwright.engine.store import Store, compact

AS_OF = synthetic.AS_OF
BATCH = 20


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """40 jobs, and 12 sealed segments of 20 freelancers."""
    folder = tmp_path_factory.mktemp("made") / "store"
    people = synthetic.frame("freelancer", 12 * BATCH)
    with Store.open(folder, mode="w", create=True) as store:
        store.upsert("job", synthetic.frame("job", 40))
        for n in range(12):
            store.upsert("freelancer", people[n * BATCH : (n + 1) * BATCH])
            store.seal()
    return folder


@pytest.fixture
def folder(made, tmp_path):
    return Path(shutil.copytree(made, tmp_path / "store"))


def segments(folder):
    with Store.open(folder) as store:
        return [part.source.n for part in store.snapshot().parts["freelancer"]]


def keepers():
    return [thread for thread in threading.enumerate() if thread.name == "housekeeping"]


def times(folder):
    return {(path, path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


class Load:
    """Callers that never pause; what each was answered."""

    def __init__(self, address, callers=3):
        self.address, self.codes, self.epochs = address, Counter(), set()
        self.ends = threading.Event()
        self.threads = [threading.Thread(target=self._call, args=(n,)) for n in range(callers)]

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.ends.set()
        for thread in self.threads:
            thread.join()

    def _call(self, number):
        with Client(self.address, timeout_s=30.0) as client:
            while not self.ends.is_set():
                try:
                    job = f"j-{number % 40:07d}"
                    result = client.find_freelancers(job, as_of=AS_OF)
                    self.epochs.add(result.epoch)
                    self.codes["OK"] += 1
                except Exception as error:
                    self.codes[repr(error)] += 1
                number += 1


@pytest.fixture
def eager(monkeypatch):
    """A housekeeper that looks often."""
    monkeypatch.setitem(Housekeeper.__init__.__kwdefaults__, "look_s", 0.05)


def test_import_and_compaction_and_calls_at_once(folder, tmp_path, count, eager):
    batches = count(reduced=12, full=60)
    people = synthetic.frame("freelancer", (12 + batches) * BATCH)
    paths = []
    for n in range(batches):
        paths.append(tmp_path / f"{n}.parquet")
        people[(12 + n) * BATCH : (13 + n) * BATCH].write_parquet(paths[-1])
    config = ServerConfig(stores={"default": folder}, port=0, compact=True, retain_s=0.5)
    with running(config) as address, Load(address) as load:
        for n, path in enumerate(paths):
            if n % max(1, batches // 2) == 0:  # a process of its own now and then
                line = ["ingest", "freelancers", path, "--store", folder, "--format", "json"]
                done = subprocess.run(
                    [sys.executable, "-m", "matchwright.engine.cli", *map(str, line)],
                    capture_output=True, text=True, check=False,
                )  # fmt: skip
                assert done.returncode == 0, done.stderr
            else:
                assert into_store("freelancer", [path], folder, wait_s=60).accepted == BATCH
        # 12 + batches segments came; at most three of a tier, of three tiers, stay.
        until(lambda: len(segments(folder)) <= 8, "eight segments")
    assert set(load.codes) == {"OK"}
    assert load.codes["OK"] > batches
    assert len(load.epochs) > batches // 2
    with Store.open(folder) as store:
        assert store.snapshot().count("freelancer") == (12 + batches) * BATCH
        whats = Counter(epoch.what for epoch in store.epochs())
        assert store.verify() == []
    assert set(whats) <= {"bulk", "compact"}


def test_without_being_asked_a_server_writes_nothing(folder, eager):
    before = times(folder)
    with running(ServerConfig(stores={"default": folder}, port=0)) as address:
        with Client(address, timeout_s=30.0) as client:
            assert client.find_freelancers("j-0000001", as_of=AS_OF).k == 10
        assert not keepers(), "who would write later"
        after = times(folder)
    changed = {path.name for path, _ in before ^ after}
    assert changed <= {"catalog.sqlite-shm", "catalog.sqlite-wal"}  # which readers make
    assert len(segments(folder)) == 12


SLOW = """
import sys
import threading
from matchwright.engine.service.housekeeping import Housekeeper
from matchwright.engine.store import compact
asked, quick, ask_to_stop = threading.Event(), compact.copy_rows, Housekeeper.ask_to_stop
def told(self):
    ask_to_stop(self)
    asked.set()
def slow(*args):
    print("copying", file=sys.stderr, flush=True)
    assert asked.wait(60)
    return quick(*args)
Housekeeper.ask_to_stop, compact.copy_rows = told, slow
from matchwright.engine.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_a_signal_ends_it_after_the_step(folder):
    line = ["serve", "--store", folder, "--port", "0", "--compact", "--retain-seconds", "0"]
    with subprocess.Popen(
        [sys.executable, "-c", SLOW, *map(str, line)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        try:
            assert process.stdout.readline().startswith("listening on ")
            assert "copying\n" in iter(process.stderr.readline, "")
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=60) == 0
            assert re.fullmatch("(copying\n)?", process.stderr.read())
        finally:
            process.kill()
    assert len(segments(folder)) == 12
    with Store.open(folder, mode="w") as store:
        assert store.verify() == []


def test_its_retention_is_the_one_that_it_was_told(folder, eager):
    config = ServerConfig(stores={"default": folder}, port=0, compact=True, retain_s=3600)
    with running(config), Store.open(folder) as store:
        assert len(keepers()) == 1
        until(lambda: len(segments(folder)) <= 3, "three segments")
        assert store.epochs()[0].number == 0
    with pytest.raises(InvalidArgument, match="retain_s is -1"):
        ServerConfig(stores={"default": folder}, retain_s=-1)


def test_a_full_disk_fails_no_call(folder, eager, monkeypatch, caplog):
    def full(*_args):
        raise compact.StoreError(f"{folder}/segments: no space left")

    monkeypatch.setattr(compact, "write_copy", full)
    monkeypatch.setitem(Housekeeper.__init__.__kwdefaults__, "retry_s", 0.05)
    config = ServerConfig(stores={"default": folder}, port=0, compact=True)
    with running(config) as address:
        with Load(address) as load:
            until(lambda: "no space left" in caplog.text, "the trouble in the log")
            monkeypatch.undo()
            until(lambda: len(segments(folder)) <= 3, "three segments")
    assert set(load.codes) == {"OK"}
    assert caplog.text.count("no space left") == 1
