"""From format 1 to format 2, with a store that the last version of format 1 wrote."""

from __future__ import annotations

import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import store_fakes as fakes
from store_fakes import contents, frame, record

from matchwright.engine.errors import (
    EpochGone,
    NotFound,
    StoreDamaged,
    StoreError,
    StoreFormat,
    StoreLocked,
)
from matchwright.engine.store import Store, schema
from matchwright.engine.store.migrate import migrate

HERE = Path(__file__).parent
ARCHIVE = HERE / "golden" / "store_format_1.tar.gz"  # made by golden/make_store_format_1.py
COPY = "catalog.format-1.sqlite"


JOBS = {f"x{n}": record(f"x{n}", n) for n in range(30) if n not in (3, 25)} | {
    "x4": record("x4", 44),
    "live": record("live", 1),
}
PEOPLE = {f"x{n}": record(f"x{n}", n) for n in range(30)} | {"x7": record("x7", 7, rate_cents=777)}


@pytest.fixture
def folder(tmp_path):
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "format-1"


def open_store(folder, mode="r", **options):
    return Store.open(folder, mode=mode, neighbours=fakes.neighbours(), **options)


def user_version(path):
    connection = sqlite3.connect(path)
    try:
        return connection.execute("PRAGMA user_version").fetchone()[0]
    finally:
        connection.close()


def check(folder):
    with open_store(folder) as store:
        snapshot = store.snapshot()
        assert contents(snapshot, "job") == JOBS
        assert contents(snapshot, "freelancer") == PEOPLE
        assert store.verify() == []
        return snapshot.epoch


def test_format_1_can_be_read_as_it_is(folder):
    epoch = check(folder)
    with open_store(folder) as store:
        assert store.info()["format"]["catalog"] == 1
        assert [kept.number for kept in store.epochs()] == [epoch.number]
        with pytest.raises(EpochGone):
            store.snapshot(epoch=epoch.number - 1)
        with pytest.raises(StoreFormat, match="store migrate --store"):
            store.keep("x")
    assert user_version(folder / "catalog.sqlite") == 1


def test_format_1_is_not_written_to(folder):
    with pytest.raises(
        StoreFormat, match=r"catalog\.sqlite: has format 1.*store migrate --store"
    ) as error:
        open_store(folder, "w")
    assert error.value.details["file"] == str(folder / "catalog.sqlite")
    check(folder)


def test_migration_keeps_content_name_and_a_copy(folder):
    epoch = check(folder)
    done = migrate(folder)
    assert (done.before, done.after, done.copy) == (1, 2, folder / COPY)
    assert check(folder) == epoch
    assert user_version(folder / "catalog.sqlite") == 2
    assert migrate(folder).copy is None
    with open_store(folder, "w", retain_s=100.0) as store:
        assert not (folder / "generations" / fakes.FakeGeneration().id).exists()
        lease = store.keep("before")
        store.delete("job", ["x1"])
        store.upsert("job", frame(record("x2", 99)))
        store.seal()
        store.compact(everything=True)
    with open_store(folder) as store:
        assert contents(store.snapshot(epoch=lease.epoch), "job") == JOBS
        expected = {k: v for k, v in JOBS.items() if k != "x1"} | {"x2": record("x2", 99)}
        assert contents(store.snapshot(), "job") == expected
        assert store.verify() == []


def test_the_copy_is_a_whole_catalog_of_format_1(folder):
    epoch = check(folder)
    migrate(folder)
    with open_store(folder) as store:
        connection = sqlite3.connect(folder / COPY)
        assert connection.execute("SELECT number FROM state").fetchone() == (epoch.number,)
        connection.close()
        assert store.snapshot().epoch == epoch
    for end in ("", "-wal", "-shm"):
        (folder / f"catalog.sqlite{end}").unlink(missing_ok=True)
    (folder / COPY).rename(folder / "catalog.sqlite")
    assert check(folder) == epoch


def test_without_a_copy(folder):
    assert migrate(folder, keep_copy=False).copy is None
    assert not (folder / COPY).exists()
    check(folder)


def test_a_reader_that_is_open_goes_on(folder):
    with open_store(folder) as reader:
        before = reader.snapshot()
        migrate(folder)
        with open_store(folder, "w") as store:
            store.upsert("job", frame(record("new")))
            store.seal()
            number = store.snapshot().epoch.number
        assert contents(reader.snapshot(min_epoch=number), "job") == JOBS | {"new": record("new")}
        assert before.count("job") == len(JOBS)


def test_a_program_that_knows_only_format_1_stops(folder):
    """It asks for a table that is no longer there, so it never reads history as the present."""
    old = sqlite3.connect(folder / "catalog.sqlite")
    try:
        assert old.execute("SELECT count(*) FROM segment").fetchone() == (4,)
        migrate(folder)
        with pytest.raises(sqlite3.OperationalError, match="no such table: segment"):
            old.execute("SELECT count(*) FROM segment")
    finally:
        old.close()


def test_what_cannot_be_migrated(folder, tmp_path):
    with pytest.raises(NotFound):
        migrate(tmp_path / "nothing")
    lock = folder / "LOCK"
    code = (
        "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX);"
        "print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(lock)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(StoreLocked):
            migrate(folder)
        holder.communicate("")
    connection = sqlite3.connect(folder / "catalog.sqlite")
    connection.execute("PRAGMA user_version = 3")
    connection.close()
    for use in (migrate, open_store, lambda path: open_store(path, "w")):
        with pytest.raises(StoreFormat, match=r"catalog\.sqlite: has format 3.*newer matchwright"):
            use(folder)


def test_a_damaged_state_is_not_migrated(folder):
    connection = sqlite3.connect(folder / "catalog.sqlite")
    with connection:
        connection.execute("UPDATE state SET number = number + 1")
    connection.close()
    with pytest.raises(StoreDamaged, match=r"catalog\.sqlite"):
        migrate(folder)
    assert user_version(folder / "catalog.sqlite") == 1


KILLED = """
import os, signal, sys
from pathlib import Path
from matchwright.engine.store import connections, migrate
left = int(sys.argv[2])
real = connections.Connections.connect
def connect(self, *arguments, **options):
    connection = real(self, *arguments, **options)
    def trace(statement):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
    connection.set_trace_callback(trace)
    return connection
connections.Connections.connect = connect
migrate.migrate(Path(sys.argv[1]))
print("statements", int(sys.argv[2]) - left)
"""


def killed_at(folder, statement):
    command = [sys.executable, "-c", KILLED, str(folder), str(statement)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_killed_at_any_statement_it_starts_over(folder, tmp_path, count):
    whole = Path(shutil.copytree(folder, tmp_path / "whole"))
    done = killed_at(whole, 1_000_000)
    total = int(done.stdout.split()[1])
    assert total > 30
    rng = random.Random(2)
    steps = sorted(rng.sample(range(1, total + 1), count(reduced=5, full=total)))
    for step in steps:
        copy = Path(shutil.copytree(folder, tmp_path / f"killed-{step}"))
        assert killed_at(copy, step).returncode == -signal.SIGKILL
        assert user_version(copy / "catalog.sqlite") in (1, 2)
        check(copy)
        migrate(copy)
        assert user_version(copy / "catalog.sqlite") == 2
        check(copy)
        shutil.rmtree(copy)


def test_a_migration_that_fails_leaves_format_1(folder, monkeypatch):
    steps = [*schema.from_1(), "INSERT INTO nowhere VALUES (1)"]
    monkeypatch.setattr(schema, "from_1", lambda: steps)
    with pytest.raises(StoreError, match="nowhere"):
        migrate(folder)
    assert user_version(folder / "catalog.sqlite") == 1
    check(folder)
