"""Epochs that stay: retention, leases, and opening by number."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import store_fakes as fakes
from patience import HANGS_S
from store_fakes import contents, frame, record, stores_in, write_history

from matchwright.engine.errors import (
    AlreadyExists,
    EpochGone,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    StoreDamaged,
    StoreFormat,
    StoreReadOnly,
)
from matchwright.engine.store import Store, collect
from matchwright.engine.store.leases import LeaseFolder


@pytest.fixture
def open_store(tmp_path):
    with stores_in(tmp_path, retain_s=0.0) as opening:
        yield opening


def table_sizes(store):
    tables = ("manifest", "live_segment", "live", "dead", "job_old")
    with store._catalog.look() as connection:
        return {
            table: connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
            for table in tables
        }


def numbers(store):
    return [epoch.number for epoch in store.epochs()]


def test_every_retained_epoch_opens_also_elsewhere_and_after_a_restart(open_store):
    store = open_store(retain_s=100.0)
    history = write_history(store)
    opened = {number: store.snapshot(epoch=number).epoch for number in history}
    assert numbers(store) == list(range(max(history) + 1))
    store.close()
    for reader in (open_store("r"), open_store("w", retain_s=100.0)):
        for number, model in history.items():
            snapshot = reader.snapshot(epoch=number)
            assert contents(snapshot, "job") == model
            assert snapshot.epoch == opened[number]
        assert len({reader.snapshot(epoch=number).generation.id for number in history}) == 2
        assert reader.verify() == []
    with pytest.raises(FailedPrecondition, match="store is at"):
        reader.snapshot(epoch=max(history) + 5)


def test_without_a_lease_everything_goes_that_the_newest_does_not_need(open_store):
    store = open_store()
    history = write_history(store)
    store.seal()
    store.upsert("job", frame(record("last")))
    store.close()
    store = open_store()
    newest = store.snapshot().epoch.number
    assert numbers(store) == [newest]
    sizes = table_sizes(store)
    assert sizes["job_old"] == 0
    assert sizes["live_segment"] == 2
    assert sizes["live"] == 1
    manifest = {path.name for path in (store.root / "segments").iterdir()}
    assert len(manifest) == sizes["manifest"]
    assert [path.name for path in (store.root / "generations").iterdir()] == [store.generation.id]
    for number in history:
        with pytest.raises(EpochGone, match="no longer kept"):
            store.snapshot(epoch=number)


def test_leases_keep_epochs_and_only_those(open_store):
    store = open_store()
    history, leases, kept = {}, {}, {}
    for n in range(4):
        history.update(write_history(store, 12))
        number = store.snapshot().epoch.number
        leases[number] = store.keep(f"night-{n}")
        kept[number] = contents(store.snapshot(), "job")
    for n in range(25):
        store.upsert("job", frame(record(f"j{n % 12}", 1_000 + n)))
    store.seal()
    store.upsert("job", frame(record("after")))
    store.close()
    store = open_store()
    assert numbers(store) == [*kept, store.snapshot().epoch.number]
    for number, model in kept.items():
        assert contents(store.snapshot(epoch=number), "job") == model
    assert store.verify() == []
    for number, lease in leases.items():
        lease.release()
        lease.release()
        assert store.upsert("job", frame(record("x", number))).epoch
        with pytest.raises(EpochGone):
            open_store("r").snapshot(epoch=number)
        for other, model in kept.items():
            if other > number:
                assert contents(store.snapshot(epoch=other), "job") == model
    store.seal()
    store.seal()
    assert table_sizes(store)["job_old"] == 0
    assert len(list((store.root / "segments").iterdir())) == table_sizes(store)["manifest"]


def test_a_reader_keeps_what_it_reads(open_store):
    store = open_store()
    store.upsert("job", frame(record("a")))
    reader = open_store("r")
    with reader.keep("reading", seconds=60) as lease:
        assert lease.epoch == reader.snapshot().epoch.number
        assert lease.expires == pytest.approx(time.time() + 60, abs=5)
        for n in range(1, 5):
            store.upsert("job", frame(record("a", n)))
        (kept,) = [epoch for epoch in reader.epochs() if epoch.number == lease.epoch]
        assert kept.why == ["reading"]
        assert kept.what == "upsert"
        assert reader.epochs()[-1].why == ["newest"]
        assert contents(open_store("r").snapshot(epoch=lease.epoch), "job") == {"a": record("a")}
    assert not list((store.root / "leases").glob("*.json"))
    store.upsert("job", frame(record("a", 9)))
    with pytest.raises(EpochGone):
        open_store("r").snapshot(epoch=lease.epoch)


def test_an_expired_lease_holds_nothing(open_store):
    store = open_store()
    store.upsert("job", frame(record("a")))
    held = store.snapshot()
    lease = store.keep("short", seconds=60)
    store.upsert("job", frame(record("a", 1)))
    assert held.records("job", ["a"]).to_dicts() == [record("a")]
    lease.renew(0.3)
    time.sleep(0.35)
    store.upsert("job", frame(record("b")))
    with pytest.raises(EpochGone, match="new snapshot"):
        held.records("job", ["a"])
    with pytest.raises(EpochGone, match="cannot be kept"):
        lease.renew(10)
    with pytest.raises(EpochGone, match="cannot be kept"):
        store.keep("again", epoch=held.epoch.number)
    assert not list((store.root / "leases").glob("*.json"))


def test_names_of_leases(open_store):
    store = open_store(retain_s=100.0)
    one = store.upsert("job", frame(record("a"))).epoch.number
    two = store.upsert("job", frame(record("b"))).epoch.number
    store.keep("nightly", epoch=one)
    assert store.keep("nightly", epoch=one, seconds=50).expires is not None
    with pytest.raises(AlreadyExists, match=f"keeps epoch {one}"):
        store.keep("nightly", epoch=two)
    with pytest.raises(FailedPrecondition, match="store is at"):
        store.keep("later", epoch=two + 1)
    for name in ("", ".hidden", "a/b", "x" * 101, "é", "a\n"):
        with pytest.raises(InvalidArgument, match="lease name"):
            store.keep(name)
    for seconds in (0, -1, float("nan"), float("inf")):
        with pytest.raises(InvalidArgument, match="more than 0"):
            store.keep("x", seconds=seconds)
    assert store.release("nightly") == one
    with pytest.raises(NotFound, match="no lease 'nightly'"):
        store.release("nightly")


def test_a_name_that_ended_can_be_given_again(open_store):
    store = open_store(retain_s=100.0)
    one = store.upsert("job", frame(record("a"))).epoch.number
    old = store.keep("nightly", seconds=0.05)
    time.sleep(0.1)
    two = store.upsert("job", frame(record("b"))).epoch.number
    assert store.keep("nightly").epoch == two
    with pytest.raises(AlreadyExists):
        old.renew(5)
    old.release()  # the name is another's now
    assert [epoch.leases for epoch in store.epochs() if epoch.number in (one, two)] == [
        (),
        ("nightly",),
    ]


def test_within_the_retention_time_an_epoch_cannot_vanish(open_store):
    """The race between taking a snapshot and keeping it: 30 readers against a busy writer."""
    store = open_store(retain_s=30.0)
    store.upsert("job", frame(record("a")))
    stop, failures = threading.Event(), []

    def read(who):
        try:
            with Store.open(store.root, neighbours=fakes.neighbours()) as reader:
                for n in range(20):
                    snapshot = reader.snapshot()
                    number = snapshot.epoch.number
                    time.sleep(0.001)
                    with reader.keep(f"r{who}-{n}", epoch=number, seconds=9):
                        assert contents(reader.snapshot(epoch=number), "job")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=read, args=(who,)) for who in range(6)]
    for thread in threads:
        thread.start()
    n = 0
    while any(thread.is_alive() for thread in threads):
        n += 1
        store.upsert("job", frame(record(f"j{n % 20}", n)))
        if n % 50 == 0:
            store.seal()
    stop.set()
    for thread in threads:
        thread.join()
    assert failures == []


def test_without_retention_an_epoch_is_kept_or_gone_never_both(open_store):
    """``keep`` of a number that may just be closing: when it returns, the epoch is readable."""
    store = open_store(retain_s=0.0)
    store.upsert("job", frame(record("a")))
    outcomes, failures, stop = [], [], threading.Event()

    def read(who):
        try:
            with Store.open(store.root, neighbours=fakes.neighbours()) as reader:
                n = 0
                while not stop.is_set():
                    n += 1
                    number = reader._loader.newest(now=True).epoch.number
                    try:
                        lease = reader.keep(f"r{who}-{n}", epoch=number)
                    except EpochGone:
                        outcomes.append("gone")
                        continue
                    with lease:
                        time.sleep(0.002)
                        with Store.open(store.root, neighbours=fakes.neighbours()) as other:
                            assert "a" in contents(other.snapshot(epoch=number), "job")
                        outcomes.append("kept")
                    assert reader.keep(f"r{who}-newest").epoch >= number
                    reader.release(f"r{who}-newest")
        except BaseException as error:
            failures.append(error)
            stop.set()

    threads = [threading.Thread(target=read, args=(who,)) for who in range(2)]
    for thread in threads:
        thread.start()
    end = time.monotonic() + 1.5
    n = 0
    while not stop.is_set():
        now = time.monotonic()
        if now > end and ("kept" in outcomes or now > end + HANGS_S):
            break
        n += 1
        store.upsert("job", frame(record(f"j{n % 20}", n)))
    stop.set()
    for thread in threads:
        thread.join()
    assert failures == []
    assert "kept" in outcomes


def test_a_lease_of_a_process_that_died_stays(open_store):
    store = open_store()
    write = store.upsert("job", frame(record("a")))
    code = (
        "import sys, os; sys.path.insert(0, sys.argv[2]); from store_fakes import neighbours\n"
        "from matchwright.engine.store import Store\n"
        "Store.open(sys.argv[1], neighbours=neighbours()).keep('dead'); os._exit(9)"
    )
    here = str(Path(__file__).parent)
    done = subprocess.run([sys.executable, "-c", code, str(store.root), here], check=False)
    assert done.returncode == 9
    for n in range(3):
        store.upsert("job", frame(record("a", n + 1)))
    assert contents(open_store("r").snapshot(epoch=write.epoch.number), "job") == {"a": record("a")}
    (note,) = LeaseFolder(store.root).notes()
    assert note.process != 0


def test_a_replica_takes_no_lease(open_store):
    store = open_store()
    store.upsert("job", frame(record("a")))
    store.close()
    reader = open_store("r")
    (reader.root / "REPLICA.json").touch()
    with pytest.raises(StoreReadOnly, match="is a replica"):
        reader.keep("x")
    (reader.root / "REPLICA.json").unlink()
    assert reader.keep("x").epoch == 1


def test_a_lease_that_cannot_be_read_stops_nothing_but_the_going_of_epochs(open_store):
    store = open_store()
    store.upsert("job", frame(record("a")))
    (store.root / "leases" / "bad.json").write_text("{")
    first = store.upsert("job", frame(record("a", 1))).epoch.number
    store.upsert("job", frame(record("a", 2)))
    assert contents(open_store("r").snapshot(epoch=first), "job") == {"a": record("a", 1)}
    with pytest.raises(StoreDamaged, match=r"bad\.json.*no epoch goes"):
        store.epochs()
    assert [Path(error.details["file"]).name for error in store.verify()] == ["bad.json"]
    note = {"format": 2, "name": "bad", "new": 1}
    (store.root / "leases" / "bad.json").write_text(json.dumps(note))
    with pytest.raises(StoreFormat, match=r"bad\.json.*has format 2"):
        store.epochs()
    (store.root / "leases" / "bad.json").unlink()
    store.upsert("job", frame(record("a", 3)))
    with pytest.raises(EpochGone):
        open_store("r").snapshot(epoch=first)


def test_what_kept_epochs_need_is_verified_too(open_store):
    store = open_store()
    store.upsert("job", frame(record("a"), record("b")))
    store.seal()
    store.keep("nightly")
    store.upsert("job", frame(record("a", 1)))
    store.seal()
    assert store.verify() == []
    for damage, said in (
        ("DELETE FROM job_old", "lacks 1 job records of epoch 2"),
        ("UPDATE epoch SET n_job = 1 WHERE number = 2", "row of epoch 2 does not match"),
    ):
        with store._catalog.change() as connection:
            connection.execute(damage)
        (error,) = store.verify()
        assert said in str(error)
        assert error.details["file"].endswith("catalog.sqlite")


def test_many_old_records_go_in_steps(open_store, monkeypatch):
    monkeypatch.setattr(collect, "RECORDS_AT_ONCE", 10)
    store = open_store()
    store.upsert("job", frame(*(record(f"j{n}") for n in range(45))))
    store.keep("held")
    store.upsert("job", frame(*(record(f"j{n}", 1) for n in range(45))))
    store.upsert("job", frame(record("x")))
    assert table_sizes(store)["job_old"] == 45
    store.release("held")
    for n, left in enumerate((35, 25, 15, 5, 0, 0)):
        store.upsert("job", frame(record(f"y{n}")))
        assert table_sizes(store)["job_old"] == left


def test_the_log_of_closed_epochs_has_an_end(open_store, monkeypatch):
    monkeypatch.setattr(collect, "HISTORY_EPOCHS", 7)
    store = open_store()
    store.upsert("job", frame(record("a")))
    lease = store.keep("held")
    for n in range(40):
        store.upsert("job", frame(record("a", n + 1)))
    with store._catalog.look() as connection:
        rows = connection.execute("SELECT number FROM epoch ORDER BY number").fetchall()
    newest = store.snapshot().epoch.number
    assert [number for (number,) in rows] == [lease.epoch, *range(newest - 8, newest + 1)]
    assert contents(open_store("r").snapshot(epoch=lease.epoch), "job") == {"a": record("a")}


def test_tombstones_are_joined_but_never_across_a_kept_epoch(open_store):
    store = open_store()
    names = [f"j{n:03}" for n in range(80)]
    store.upsert("job", frame(*(record(name) for name in names)))
    store.seal()
    model = {name: record(name) for name in names}
    kept = {}
    for n, name in enumerate(names[:60]):
        store.delete("job", [name])
        del model[name]
        if n in (10, 11, 30):
            kept[store.keep(f"k{n}").epoch] = dict(model)
    store.upsert("freelancer", frame(record("f")))
    store.seal()
    assert table_sizes(store)["dead"] <= 8
    for number, expected in kept.items():
        assert contents(open_store("r").snapshot(epoch=number), "job") == expected
    assert contents(open_store("r").snapshot(), "job") == model
