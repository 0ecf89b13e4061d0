"""The store's contract: what is written is there, for whom, from when on, and nothing else."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import store_fakes as fakes
from patience import PATIENCE, until
from store_fakes import contents, frame, record, stores_in

from matchwright.engine.errors import (
    EpochGone,
    FailedPrecondition,
    InvalidData,
    NotFound,
    StoreError,
    StoreLocked,
    UnknownKey,
)


@pytest.fixture
def open_store(tmp_path):
    with stores_in(tmp_path) as opening:
        yield opening


def test_upsert_patch_and_delete(open_store):
    store = open_store()
    first = store.upsert("job", frame(record("a"), record("b")))
    assert (first.accepted, first.replaced, first.duplicate) == (2, 0, 0)
    second = store.upsert("job", frame(record("b", 1), record("a"), record("c")))
    assert (second.accepted, second.replaced, second.duplicate) == (1, 1, 1)
    assert second.epoch.number == first.epoch.number + 1
    assert second.epoch.digest != first.epoch.digest
    patched = store.patch("job", "c", {"rate_cents": 77, "skills": None})
    assert (patched.replaced, patched.duplicate) == (1, 0)
    deleted = store.delete("job", ["a", "never", "a"])
    assert (deleted.deleted, deleted.absent) == (1, 1)
    expected = {"b": record("b", 1), "c": record("c", rate_cents=77, skills=None)}
    assert contents(store.snapshot(), "job") == expected
    assert contents(store.snapshot(), "freelancer") == {}
    store.close()
    assert contents(open_store("r").snapshot(), "job") == expected


def test_an_unchanged_record_makes_no_epoch(open_store):
    store = open_store()
    first = store.upsert("job", frame(record("a")))
    assert store.upsert("job", frame(record("a"))).epoch == first.epoch
    assert store.patch("job", "a", {"rate_cents": 0}).epoch == first.epoch
    assert store.delete("job", ["b"]).epoch == first.epoch
    back = store.upsert("job", frame(record("a", 1), record("a")))
    assert (back.replaced, back.duplicate, back.epoch) == (2, 0, first.epoch)


def test_within_one_frame_later_rows_replace_earlier_ones(open_store):
    store = open_store()
    write = store.upsert("job", frame(record("a"), record("a", 1), record("a", 1), record("b")))
    assert (write.accepted, write.replaced, write.duplicate) == (2, 1, 1)
    assert contents(store.snapshot(), "job") == {"a": record("a", 1), "b": record("b")}


def test_an_empty_store_has_the_starter_generation_and_empty_corpora(open_store):
    store = open_store()
    assert store.generation == fakes.FakeGeneration()
    snapshot = store.snapshot()
    assert snapshot.corpus("job").n == snapshot.corpus("freelancer").n == 0
    assert snapshot.rows_of("job", ["a"]).tolist() == [-1]
    assert snapshot.ids_of("job", []) == []
    assert snapshot.records("job", []).height == 0
    assert store.upsert("job", frame()).epoch == snapshot.epoch


def test_a_snapshot_stays_what_it_was(open_store):
    store = open_store(seal_rows=8)
    store.upsert("job", frame(*(record(f"j{n}") for n in range(5))))
    before = store.snapshot()
    for n in range(40):
        store.upsert("job", frame(record(f"j{n % 10}", n + 1)))
    store.delete("job", ["j1"])
    store.refit(seed=3, sample=10, as_of=9)
    assert contents(before, "job") == {f"j{n}": record(f"j{n}") for n in range(5)}
    assert before.generation == fakes.FakeGeneration()
    assert store.snapshot(epoch=before.epoch.number) is before
    number = before.epoch.number
    del before
    again = store.snapshot(epoch=number)
    assert contents(again, "job") == {f"j{n}": record(f"j{n}") for n in range(5)}


def test_an_epoch_goes_after_its_retention(open_store):
    store = open_store(retain_s=0.0)
    store.upsert("job", frame(record("a")))
    before = store.snapshot()
    store.upsert("job", frame(record("b")))
    store.upsert("job", frame(record("c")))
    number = before.epoch.number
    assert store.snapshot(epoch=number) is before  # this process holds it
    with pytest.raises(EpochGone, match="no longer kept"):
        open_store("r").snapshot(epoch=number)
    del before
    with pytest.raises(EpochGone, match="no longer kept"):
        store.snapshot(epoch=number)


def test_replaced_records_go_after_their_retention(open_store):
    store = open_store(retain_s=0.0)
    store.upsert("job", frame(record("a")))
    before = store.snapshot()
    store.upsert("job", frame(record("a", 1)))
    assert before.records("job", ["a"]).to_dicts() == [record("a")]
    store.upsert("job", frame(record("b")))
    with pytest.raises(EpochGone, match="new snapshot"):
        before.records("job", ["a"])


def test_epochs_are_asked_for_by_number(open_store):
    store = open_store()
    write = store.upsert("job", frame(record("a")))
    reader = open_store("r")
    write = store.upsert("job", frame(record("a", 1)))
    snapshot = reader.snapshot(min_epoch=write.epoch.number)
    assert snapshot.epoch == write.epoch
    with pytest.raises(FailedPrecondition, match="store is at"):
        reader.snapshot(min_epoch=write.epoch.number + 1)
    earlier = open_store("r").snapshot(epoch=write.epoch.number - 1)
    assert contents(earlier, "job") == {"a": record("a")}


@pytest.mark.parametrize("keep_text", [True, False])
def test_texts_are_kept_only_if_asked_for(open_store, keep_text):
    store = open_store(keep_text=keep_text)
    store.upsert("job", frame(record("a")))
    x = store.snapshot().corpus("job").parts[0][0].x_nd[0].copy()
    (stored,) = store.records("job", ["a"]).to_dicts()
    assert stored == record("a", text=record("a")["text"] if keep_text else None)
    assert store.upsert("job", frame(record("a"))).duplicate == 1
    raw = store.root / "catalog.sqlite-wal"
    assert (b"text 0 of a" in raw.read_bytes()) == keep_text
    store.patch("job", "a", {"rate_cents": 5})
    snapshot = store.snapshot()
    segment, _ = snapshot.corpus("job").parts[0]
    row = segment.x_nd[snapshot.rows_of("job", ["a"])[0]]
    assert np.array_equal(row[:8], x[:8])
    assert not np.array_equal(row[8:], x[8:])
    assert store.upsert("job", frame(record("a", rate_cents=5))).duplicate == 1


def test_without_texts_title_and_generation_stay(open_store):
    store = open_store(keep_text=False)
    store.refit(seed=1, sample=5, as_of=0)  # nothing to encode yet
    store.upsert("job", frame(record("a")))
    with pytest.raises(FailedPrecondition, match="does not keep texts"):
        store.patch("job", "a", {"title": "new"})
    assert store.patch("job", "a", {"title": "new", "text": "new"}).replaced == 1
    with pytest.raises(FailedPrecondition, match="import them into a new store"):
        store.refit(seed=1, sample=5, as_of=0)


def test_refused_changes_change_nothing(open_store):
    store = open_store()
    store.upsert("job", frame(record("a")))
    epoch = store.snapshot().epoch
    with pytest.raises(UnknownKey, match="rate_cents"):
        store.patch("job", "a", {"rate_cent": 1})
    with pytest.raises(InvalidData, match="cannot change"):
        store.patch("job", "a", {"id": "b"})
    with pytest.raises(NotFound, match="'b'"):
        store.patch("job", "b", {"rate_cents": 1})
    with pytest.raises(InvalidData):
        store.patch("job", "a", {"rate_cents": "much"})
    with pytest.raises(NotFound):
        store.records("job", ["a", "b"])
    with pytest.raises(InvalidData, match=r"missing: .*skills"):
        store.upsert("job", frame(record("b")).drop("skills"))
    for bad in ("", "x" * 129, "e\u0301"):
        with pytest.raises(InvalidData, match="id"):
            store.upsert("job", frame(record("good"), record(bad)))
    assert store.snapshot().epoch == epoch
    assert contents(store.snapshot(), "job") == {"a": record("a")}


def test_one_writer_many_readers(open_store):
    store = open_store()
    with pytest.raises(StoreLocked, match=r"process \d+ is writing"):
        open_store()
    readers = [open_store("r") for _ in range(3)]
    store.upsert("job", frame(record("a")))
    for reader in readers:
        assert contents(reader.snapshot(min_epoch=1), "job") == {"a": record("a")}
        with pytest.raises(FailedPrecondition, match="not open for writing"):
            reader.upsert("job", frame(record("b")))
    store.close()
    open_store().upsert("job", frame(record("b")))
    assert readers[0].snapshot(min_epoch=2).count("job") == 2


def test_opening_needs_a_store(open_store, tmp_path):
    with pytest.raises(NotFound, match="holds no store"):
        open_store("r")
    with pytest.raises(NotFound, match="holds no store"):
        open_store("w", create=False)
    assert not list(tmp_path.iterdir())


def test_a_creation_that_was_cut_off_is_finished(open_store, tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "catalog.sqlite").touch()
    with pytest.raises(NotFound):
        open_store("r")
    assert open_store().snapshot().epoch.number == 0


def test_threads_read_while_one_writes(open_store, count):
    store = open_store(seal_rows=16)
    store.upsert("job", frame(record("fixed")))
    stop, failures = threading.Event(), []

    def read():
        last = -1
        try:
            while not stop.is_set():
                snapshot = store.snapshot()
                assert snapshot.epoch.number >= last
                last = snapshot.epoch.number
                held = contents(snapshot, "job")
                assert held["fixed"] == record("fixed")
                assert len(held) == 1 + sum(name.startswith("n") for name in held)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    for n in range(count(reduced=60, full=1_000)):
        write = store.upsert("job", frame(record(f"n{n % 40}", n)))
        assert store.snapshot().epoch.number >= write.epoch.number
    stop.set()
    for thread in threads:
        thread.join()
    assert not failures


def test_digests_chain_over_every_change(open_store):
    def epochs(folder):
        store = open_store(folder=folder, salt=bytes(16))
        done = [store.upsert("job", frame(record("a"))), store.upsert("job", frame(record("b")))]
        return [write.epoch for write in done]

    one, two = epochs("one"), epochs("two")
    assert one[0].digest != two[0].digest  # the store's uuid is where the chain begins
    assert len({epoch.digest for epoch in one + two}) == 4
    assert one[0] < one[1]
    assert str(one[0]) == f"{one[0].uuid}:1:{one[0].digest}"


def test_orphans_are_removed_when_a_writer_opens(open_store):
    store = open_store()
    store.upsert("job", frame(record("a")))
    store.seal()
    store.close()
    for name in ("job-00000099.mwseg", ".job-00000100.mwseg.tmp"):
        (store.root / "segments" / name).write_bytes(b"half")
    assert len(list((store.root / "segments").iterdir())) == 3
    open_store("r")
    assert len(list((store.root / "segments").iterdir())) == 3
    open_store()
    assert len(list((store.root / "segments").iterdir())) == 1


def test_a_change_in_this_process_is_seen_at_once_and_by_readers_soon(open_store):
    store = open_store()
    reader = open_store("r")
    assert reader.snapshot().count("job") == 0
    store.upsert("job", frame(record("a")))
    assert store.snapshot().count("job") == 1
    until(lambda: reader.snapshot().count("job"), "the reader's next epoch", within=PATIENCE)


def test_a_closed_store_changes_nothing_and_its_snapshots_stay(open_store):
    store = open_store()
    store.upsert("job", frame(record("a")))
    sink = store.bulk("job")
    sink.write(frame(record("b")))
    snapshot = store.snapshot()
    store.close()
    with pytest.raises(StoreError, match="closed"):
        sink.flush()
    with pytest.raises(FailedPrecondition, match="not open for writing"):
        store.upsert("job", frame(record("c")))
    assert snapshot.corpus("job").n == 1
    assert snapshot.rows_of("job", ["a"]).tolist() == [0]
    with pytest.raises(StoreError, match="closed"):
        snapshot.records("job", ["a"])
    assert contents(open_store("r").snapshot(), "job") == {"a": record("a")}


def test_key_lookups(open_store):
    store = open_store(seal_rows=30)
    store.upsert("job", frame(*(record(f"j{n}") for n in range(30))))
    store.upsert("job", frame(*(record(f"k{n}") for n in range(20))))
    snapshot = store.snapshot()
    ids = ["j3", "k19", "none", "j29", "k0"]
    rows = snapshot.rows_of("job", ids)
    assert rows.tolist() == [3, 49, -1, 29, 30]
    found = rows[rows >= 0]
    assert (
        snapshot.keys_of("job", found).tolist()
        == snapshot.keys([name for name in ids if name != "none"]).tolist()
    )
    with pytest.raises(IndexError):
        snapshot.ids_of("job", [50])
    many = [f"k{n}" for n in range(20)]
    assert snapshot.rows_of("job", many).tolist() == list(range(30, 50))
