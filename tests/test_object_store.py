"""Stores and runs on S3, over a real socket that breaks, loses answers and dawdles."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import object_store
import pytest
import run_cases
from object_store import BUCKET, Fault, left_over, once
from patience import until

from matchwright.engine import synthetic
from matchwright.engine.cli import main
from matchwright.engine.errors import (
    DependencyUnavailable,
    MatchwrightError,
    NotFound,
    StoreLocked,
)
from matchwright.engine.runs import lock
from matchwright.engine.runs.folder import Output, RunFolder
from matchwright.engine.store import Store
from matchwright.engine.store.remote import Target

wire = object_store.wire
place = object_store.place
CALM = ("-f", "json")


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    return run_cases.make_store(tmp_path_factory.mktemp("shop") / "store", 120, 60)


def answer(capsys, *line):
    """(exit code, the answer or the error of a command)."""
    code = main([str(word) for word in (*line, *CALM)])
    out, err = capsys.readouterr()
    told = [line for line in (out if code in (0, 4) else err).splitlines() if line.strip()]
    text = out if code in (0, 4) else told[-1]
    return code, json.loads(text)


def write_slowly(target, name, size, error=None):
    with target.writing(name) as file:
        for _ in range(0, size, 100_000):
            file.write(b"1" * 100_000)
        if error is not None:
            raise error


# ── Objects ───────────────────────────────────────────────────────────────────────────────────


def test_objects_come_and_go(place):
    target = Target(place)
    assert target.list() == {}
    assert target.names() == []
    target.write("a/b.bin", b"one")
    target.write("a/b.bin", b"two!")
    target.write("empty", b"")
    assert {name: entry.size for name, entry in target.list().items()} == {"a/b.bin": 4, "empty": 0}
    assert abs(target.list()["a/b.bin"].written - time.time()) < 60
    assert target.names() == ["a", "empty"]
    assert (target.read("a/b.bin"), target.size("a/b.bin")) == (b"two!", 4)
    assert target.exists("a")
    assert not target.exists("b")
    target.remove("a/b.bin")
    target.remove("a/b.bin")
    with pytest.raises(NotFound, match=r"a/b\.bin: is not there"):
        target.read("a/b.bin")
    target.remove_all()
    assert target.list() == {}


def test_a_bucket_that_is_not_there_is_not_made(wire):
    import s3fs

    wire.mend()
    with pytest.raises(NotFound, match="make the bucket or share first"):
        Target("s3://mistyped/folder").write("a", b"1")
    assert s3fs.S3FileSystem().ls("", refresh=True) == [BUCKET]


@pytest.mark.parametrize("kind", ["break", "lose", "slow"])
def test_one_fault_is_overcome(place, wire, kind):
    target = Target(place)
    wire.rule = once(kind, where="/a", body=1_000, seconds=0.5)
    target.write("a", b"1" * 100_000)
    assert target.read("a") == b"1" * 100_000
    assert len([seen for seen in wire.seen if seen[0] == "PUT"]) == (1 if kind == "slow" else 2)


@pytest.mark.parametrize("bytes_", [100_000, 51 << 20])
def test_a_put_that_breaks_leaves_what_was_there(place, wire, bytes_):
    """Also of an object that goes in parts: none of them stay."""
    target = Target(place)
    target.write("a", b"before")
    where = "partNumber=2" if bytes_ > 50 << 20 else "/a"
    wire.rule = once("break", where=where, times=99, body=1_000)
    with pytest.raises(DependencyUnavailable, match="/a: could not be written"):
        write_slowly(target, "a", bytes_)
    wire.mend()
    gc.collect()  # a file that is forgotten must not be closed into its place
    assert target.read("a") == b"before"
    assert left_over() == []


def test_a_writer_that_fails_leaves_what_was_there(place):
    target = Target(place)
    target.write("a", b"before")
    with pytest.raises(MatchwrightError, match="of ours"):
        write_slowly(target, "a", 100_000, error=OSError("of ours"))
    gc.collect()
    assert target.read("a") == b"before"


# ── Stores ────────────────────────────────────────────────────────────────────────────────────


def test_publish_and_pull(shop, place, tmp_path, capsys):
    code, first = answer(capsys, "store", "publish", "--store", shop, "--to", place)
    assert code == 0
    code, again = answer(capsys, "store", "publish", "--store", shop, "--to", place)
    assert (code, again["epoch"], again["uploaded"]) == (0, first["epoch"], 0)
    replica = tmp_path / "replica"
    code, pulled = answer(capsys, "store", "pull", "--from", place, "--store", replica)
    assert (code, pulled["epoch"]) == (0, first["epoch"])
    with Store.open(shop) as one, Store.open(replica) as other:
        assert one.snapshot().epoch == other.snapshot().epoch
        assert other.verify() == []


def test_a_publish_that_breaks_off_is_gone_on_with(shop, place, wire, tmp_path, capsys):
    with Store.open(shop) as store:
        whole = store.publish(place)
    fresh = run_cases.make_store(tmp_path / "store", 60, 30)
    place = f"{place}-other"
    wire.rule = once("break", where="/files/", times=99, body=100)
    code, told = answer(capsys, "store", "publish", "--store", fresh, "--to", place)
    assert (code, told["error"]["reason"]) == (5, "DEPENDENCY_UNAVAILABLE")
    wire.rule = once("break", where="/CURRENT.json", times=99, body=10)
    assert answer(capsys, "store", "publish", "--store", fresh, "--to", place)[0] == 5
    wire.mend()
    assert "CURRENT.json" not in Target(place).list()
    code, _ = answer(capsys, "store", "pull", "--from", place, "--store", tmp_path / "r")
    assert code == 2  # nothing is published
    code, told = answer(capsys, "store", "publish", "--store", fresh, "--to", place)
    assert code == 0
    assert told["uploaded"] < whole.uploaded
    Store.pull(place, tmp_path / "r")
    with Store.open(tmp_path / "r") as replica, Store.open(fresh) as original:
        assert replica.snapshot().epoch == original.snapshot().epoch
    assert left_over() == []


def test_a_pull_that_breaks_off_is_gone_on_with(shop, place, wire, tmp_path, capsys):
    with Store.open(shop) as store:
        store.publish(place)
    wire.rule = once("lose", method="GET", where="/files/", times=9_999)
    code, told = answer(capsys, "store", "pull", "--from", place, "--store", tmp_path / "r")
    assert (code, told["error"]["reason"]) == (5, "DEPENDENCY_UNAVAILABLE")
    wire.rule = once("slow", method="GET", times=5, seconds=0.2)
    assert answer(capsys, "store", "pull", "--from", place, "--store", tmp_path / "r")[0] == 0
    with Store.open(tmp_path / "r") as replica:
        assert replica.verify() == []


def test_two_publishers_at_once(place, wire, tmp_path, count):
    """Of one store that grows meanwhile: what is in force is always whole."""
    folder = run_cases.make_store(tmp_path / "store", 60, 30)
    wire.rule = lambda method, path: Fault("slow", seconds=0.002)
    ends, failed, published = threading.Event(), [], []

    def publisher():
        while not ends.is_set():
            try:
                with Store.open(folder) as store:
                    published.append(store.publish(place))
            except MatchwrightError as error:
                if "allow-older" not in str(error) and "older" not in str(error):
                    failed.append(error)

    threads = [threading.Thread(target=publisher) for _ in range(2)]
    for thread in threads:
        thread.start()
    people = synthetic.frame("freelancer", 100)
    try:
        with Store.open(folder, mode="w") as store:
            for n in range(count(reduced=3, full=15)):
                store.upsert("freelancer", people[n : n + 1])
                before = len(published)
                until(lambda before=before: failed or len(published) > before, "a publication")
                Store.pull(place, tmp_path / f"r{n}")
                with Store.open(tmp_path / f"r{n}") as replica:
                    assert replica.verify() == []
    finally:
        ends.set()
    for thread in threads:
        thread.join()
    assert failed == []


def test_backup_and_restore(shop, place, wire, tmp_path, capsys):
    wire.rule = once("break", where=".tar", times=99, body=1_000)
    assert answer(capsys, "store", "backup", "--store", shop, "--to", f"{place}/b.tar")[0] == 5
    wire.mend()
    assert Target(place).list() == {}
    code, told = answer(capsys, "store", "backup", "--store", shop, "--to", f"{place}/b.tar")
    assert code == 0
    wire.rule = once("lose", method="GET", where=".tar", times=99)
    line = ("store", "restore", "--from", f"{place}/b.tar", "--store", tmp_path / "again")
    assert answer(capsys, *line)[0] == 5
    assert not (tmp_path / "again").exists()
    wire.rule = once("slow", method="GET", where=".tar", seconds=0.5)
    code, restored = answer(capsys, *line)
    assert (code, restored["epoch"]) == (0, told["epoch"])
    with Store.open(tmp_path / "again") as store:
        assert store.verify() == []


# ── Runs ──────────────────────────────────────────────────────────────────────────────────────


def start(shop, place, *more):
    day = "--as-of", "2026-01-01"
    return ("run", "start", "--store", shop, "--output", place, "-k", "10", "--block", "20",
            "--workers", "1", *day, *more)  # fmt: skip


@pytest.fixture(scope="module")
def digest(shop, tmp_path_factory):
    """Of the same run in a folder."""
    output = tmp_path_factory.mktemp("runs")
    assert main([str(word) for word in (*start(shop, output), *CALM)]) == 0
    (run,) = Output(output).runs()
    return Output(output).folder(run).summary()["digest"]


def test_a_run_from_its_plan_to_gc(shop, place, digest, capsys):
    code, done = answer(capsys, *start(shop, place))
    assert (code, done["digest"]) == (0, digest)
    run = done["run_id"]
    folder = Output(place).folder(run)
    assert not folder.exists("LOCK")
    for command in ("verify", "publish"):
        assert answer(capsys, "run", command, folder.url, "--store", shop)[0] == 0
    assert main(["run", "report", folder.url, "--store", str(shop)]) == 0
    assert folder.read("report.html").startswith(b"<!doctype html>")
    capsys.readouterr()
    assert Output(place).published()["run_id"] == run
    other = answer(capsys, *start(shop, place, "--slack", "3"))[1]["run_id"]
    assert set(Output(place).runs()) == {run, other}
    line = ("run", "gc", "--output", place, "--keep", "0", "--older-than", "0", "--yes")
    assert answer(capsys, *line)[0] == 0
    assert Output(place).runs() == [run]


def test_a_run_whose_target_goes_away_is_resumed(shop, place, wire, digest, capsys, count):
    """At one file after the other: each start gets further."""
    wheres = ["plan.json", "LOCK", "part-00001", "unit-00002", "run.json", "metrics.prom"]
    step = count(reduced=2, full=1)
    for where in wheres[step - 1 :: step]:
        wire.rule = once("break", where=where, times=999, body=20)
        code, told = answer(capsys, *start(shop, place))
        assert (code, told["error"]["reason"]) == (5, "DEPENDENCY_UNAVAILABLE"), told
        assert "run" in told["error"]["details"]["resume"]
        wire.mend()
    code, done = answer(capsys, *start(shop, place))
    assert (code, done["digest"]) == (0, digest)
    folder = Output(place).folder(done["run_id"])
    assert not folder.exists("LOCK")
    assert answer(capsys, "run", "verify", folder.url, "--store", shop)[0] == 0
    assert left_over() == []


def test_a_run_over_a_wire_with_faults(shop, place, wire, digest, capsys):
    """Every fifth request breaks, loses its answer or dawdles: the plugin's retries are enough."""
    met = [0]

    def rule(method, path):
        met[0] += 1
        kinds = ("break", "lose", "slow")
        return Fault(kinds[met[0] // 5 % 3], body=50, seconds=0.2) if met[0] % 5 == 0 else None

    wire.rule = rule
    code, done = answer(capsys, *start(shop, place))
    assert (code, done["digest"]) == (0, digest)
    assert met[0] > 30


def test_a_run_that_is_killed_is_resumed(shop, place, wire, digest, capsys, monkeypatch):
    """SIGKILL of the process leaves its LOCK; it is taken over when it has got stale."""
    wire.rule = once("slow", where="unit-00001", seconds=20)
    command = [sys.executable, "-m", "matchwright.engine.cli", *map(str, start(shop, place))]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as child:
        until(lambda: any("unit-00001" in path for _, path in wire.seen), "its second unit")
        child.kill()
    wire.mend()
    code, told = answer(capsys, *start(shop, place))
    assert (code, told["error"]["reason"]) == (75, "STORE_LOCKED")
    monkeypatch.setitem(lock.object_lock.__wrapped__.__kwdefaults__, "stale_s", 0.0)
    code, done = answer(capsys, *start(shop, place))
    assert (code, done["digest"]) == (0, digest)


# ── Locks ─────────────────────────────────────────────────────────────────────────────────────


def test_one_at_a_time(place):
    folder = RunFolder(f"{place}/0123456789abcdef")
    with folder.lock():
        with pytest.raises(StoreLocked, match=r"process \d+ on .* is writing it"):
            RunFolder(folder.url).lock().__enter__()
    assert not folder.exists("LOCK")


def test_of_many_at_the_same_moment_one_gets_it(place, count):
    folder = RunFolder(f"{place}/0123456789abcdef")
    for _ in range(count(reduced=3, full=20)):
        got, barrier = [], threading.Barrier(4)

        def take(got=got, barrier=barrier):
            barrier.wait()
            try:
                with folder.lock():
                    got.append("held")
                    barrier.wait(60)
            except StoreLocked:
                got.append("locked")
                barrier.wait(60)

        threads = [threading.Thread(target=take) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(got) == ["held", "locked", "locked", "locked"]


def test_a_lock_whose_answer_is_lost_is_ours(place, wire):
    folder = RunFolder(f"{place}/0123456789abcdef")
    wire.rule = once("lose", where="LOCK")
    with folder.lock():
        assert len([path for method, path in wire.seen if method == "PUT"]) == 2
    assert not folder.exists("LOCK")


def test_a_heartbeat_outlives_a_target_that_is_away(place, wire):
    target = Target(place)
    held = lock.object_lock(target.fs, target.path("LOCK"), "the run", heartbeat_s=0.05)
    with held:
        before = target.read_json("LOCK")["heartbeat"]
        wire.rule = once("break", method="GET", where="LOCK", times=999)
        broken = len(wire.seen)
        until(
            lambda: wire.seen[broken:].count(("GET", wire.seen[-1][1])) >= 3, "three broken looks"
        )
        wire.mend()
        until(lambda: target.read_json("LOCK")["heartbeat"] != before, "the next heartbeat")
    assert not target.exists("LOCK")


def test_without_the_plugin_the_error_says_so(tmp_path):
    """As it is in the base install."""
    code = (
        "import sys; sys.modules['s3fs'] = None\n"
        "from matchwright.engine.cli import main\n"
        "sys.exit(main(['store', 'pull', '--from', 's3://b/x', '--store', sys.argv[1]]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, Path(tmp_path) / "r"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 5
    assert "s3fs" in done.stderr
