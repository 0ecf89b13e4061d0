"""The store's contract: what is written is there, for whom, from when on, and nothing else."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
import store_fakes as fakes
from store_fakes import contents, frame, record

from matchwright.engine.errors import (
    EpochGone,
    FailedPrecondition,
    InvalidData,
    KeyCollision,
    NotFound,
    StoreError,
    StoreLocked,
    UnknownKey,
)
from matchwright.engine.store import Store


@pytest.fixture
def open_store(tmp_path):
    opened = []

    def open_(mode="w", create=None, folder="store", **options):
        options.setdefault("neighbours", fakes.neighbours())
        create = mode == "w" if create is None else create
        store = Store.open(tmp_path / folder, mode=mode, create=create, **options)
        opened.append(store)
        return store

    yield open_
    for store in opened:
        store.close()


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


def test_sealing_keeps_content_and_drops_dead_rows(open_store):
    store = open_store(seal_rows=10)
    expected = {}
    for n in range(35):
        expected[f"j{n % 12}"] = record(f"j{n % 12}", n)
        store.upsert("job", frame(record(f"j{n % 12}", n)))
        assert contents(store.snapshot(), "job") == expected
    info = store.info()["kinds"]["job"]
    assert info["records"] == 12
    assert info["segments"] == 3
    assert info["live_rows"] == 5
    store.seal()
    assert contents(store.snapshot(), "job") == expected
    segment, _ = store.snapshot().corpus("job").parts[0]
    assert set(segment.index) == {"rate_order", "nothing", "scalar"}
    assert segment.index["scalar"] == 7
    assert contents(open_store("r").snapshot(), "job") == expected


def test_an_index_of_another_version_is_not_used(open_store):
    store = open_store(seal_rows=1)
    store.upsert("job", frame(record("a")))
    other = open_store("r", neighbours=fakes.neighbours(index_version=2))
    segment, _ = other.snapshot().corpus("job").parts[0]
    assert segment.index == {}


def test_live_batches_are_joined(open_store):
    store = open_store()
    expected = {}
    for n in range(150):
        expected[f"j{n}"] = record(f"j{n}", n)
        store.upsert("job", frame(expected[f"j{n}"]))
    with store._catalog.look() as connection:
        (batches,) = connection.execute("SELECT count(*) FROM live").fetchone()
    assert batches < 40
    assert contents(open_store("r").snapshot(), "job") == expected


def test_live_rows_with_other_columns_join(open_store):
    """A newer version may add rule columns while older live rows lack them."""
    store = open_store()
    store.upsert("job", frame(record("a", 4)))
    store.close()

    def wider(generation, kind, records, salt):
        encoded = fakes.encode_rows(generation, kind, records, salt)
        encoded.scalars["new"] = np.full(records.height, 9, np.int32)
        encoded.sets["extra"] = encoded.sets["skills"]
        return encoded

    store = open_store(neighbours=fakes.neighbours(encode_rows=wider))
    store.upsert("job", frame(record("b", 5)))
    segment, _ = store.snapshot().corpus("job").parts[0]
    assert segment.scalars["new"].tolist() == [fakes.UNKNOWN, 9]
    assert segment.sets["extra"].known_n.tolist() == [False, True]
    assert contents(store.snapshot(), "job") == {"a": record("a", 4), "b": record("b", 5)}


def test_bulk_counts_and_seals(open_store):
    store = open_store(chunk_rows=10)
    store.upsert("job", frame(record("j0"), record("j1", 5), record("j2")))
    with store.bulk("job") as sink:
        one = sink.write(frame(*(record(f"j{n}") for n in range(8))))
        assert (one.accepted, one.replaced, one.duplicate) == (5, 1, 2)
        two = sink.write(frame(*(record(f"j{n}", 1) for n in range(6, 14))))
        assert (two.accepted, two.replaced, two.duplicate) == (6, 2, 0)
        three = sink.write(frame(record("j13", 1), record("j13", 2)))
        assert (three.accepted, three.replaced, three.duplicate) == (0, 1, 1)
    expected = {f"j{n}": record(f"j{n}") for n in range(6)}
    expected.update({f"j{n}": record(f"j{n}", 1) for n in range(6, 13)}, j13=record("j13", 2))
    assert contents(store.snapshot(), "job") == expected
    assert store.info()["kinds"]["job"]["segments"] == 2
    assert contents(open_store("r").snapshot(), "job") == expected


def test_an_import_that_fails_keeps_its_earlier_chunks(open_store):
    store = open_store(chunk_rows=4)

    def import_some():
        with store.bulk("job") as sink:
            sink.write(frame(*(record(f"j{n}") for n in range(5))))
            sink.write(frame(record("late")))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        import_some()
    assert sorted(contents(store.snapshot(), "job")) == ["j0", "j1", "j2", "j3", "j4"]


def test_writes_between_bulk_and_its_flush(open_store):
    store = open_store(chunk_rows=100)
    with store.bulk("job") as sink:
        sink.write(frame(record("a"), record("b")))
        store.upsert("job", frame(record("a", 1), record("c")))
        store.delete("job", ["b"])
    assert contents(store.snapshot(), "job") == {n: record(n) for n in "abc"}


def test_colliding_keys_are_refused(open_store):
    def same_key_for_bad(ids, salt):
        keys = fakes.hash_keys(ids, salt)
        keys[[name.startswith("bad") for name in ids]] = 2**63 + 5
        return keys

    store = open_store(neighbours=fakes.neighbours(hash_keys=same_key_for_bad))
    with pytest.raises(KeyCollision, match=r"'bad1'.*have the same"):
        store.upsert("job", frame(record("bad1"), record("bad2")))
    store.upsert("job", frame(record("bad1")))
    for change in (store.upsert, lambda kind, records: store.bulk(kind).write(records)):
        with pytest.raises(KeyCollision) as caught:
            change("job", frame(record("x"), record("bad2")))
        assert caught.value.details == {"id": "bad2", "other": "bad1"}
    assert contents(store.snapshot(), "job").keys() == {"bad1"}
    assert store.snapshot().rows_of("job", ["bad2", "bad1"]).tolist() == [-1, 0]
    assert store.delete("job", ["bad2"]).absent == 1
    sink = store.bulk("job")
    sink.write(frame(record("x")))
    store.delete("job", ["bad1"])
    sink.write(frame(record("bad2")))
    store.upsert("job", frame(record("bad1")))
    with pytest.raises(KeyCollision):
        sink.flush()
    assert contents(store.snapshot(), "job").keys() == {"bad1"}


def test_refit_switches_everything_at_once(open_store):
    store = open_store(chunk_rows=7, seal_rows=9, retain_s=0.0)
    expected = {f"j{n}": record(f"j{n}", n) for n in range(25)}
    store.upsert("job", frame(*expected.values()))
    store.upsert("freelancer", frame(record("f")))
    reader = open_store("r")
    before = reader.snapshot()
    files_before = set((store.root / "segments").iterdir())
    generation = store.refit(seed=5, sample=10, as_of=3)
    assert generation == store.generation == fakes.FakeGeneration(seed=5, as_of=3)
    assert contents(store.snapshot(), "job") == expected
    assert contents(before, "job") == expected
    assert not files_before & set((store.root / "segments").iterdir())
    after = reader.snapshot(min_epoch=store.snapshot().epoch.number)
    assert after.generation == generation
    assert contents(after, "job") == expected
    store.close()
    assert contents(open_store().snapshot(), "freelancer") == {"f": record("f")}


def test_refit_takes_in_what_changes_meanwhile(open_store):
    changes = []

    def encode(generation, kind, records, salt):
        if generation.seed and kind == "job" and changes:
            changes.pop()()
        return fakes.encode_rows(generation, kind, records, salt)

    store = open_store(chunk_rows=3, neighbours=fakes.neighbours(encode_rows=encode))
    store.upsert("job", frame(*(record(f"j{n}") for n in range(9))))
    sink = store.bulk("job")
    sink.write(frame(record("bulk")))
    changes[:] = [
        lambda: store.delete("job", ["j0", "j8"]),
        lambda: store.upsert("job", frame(record("j1", 1), record("new"))),
        sink.flush,
    ]
    store.refit(seed=5, sample=10, as_of=3)
    assert not changes
    expected = {f"j{n}": record(f"j{n}") for n in range(2, 8)}
    expected.update(j1=record("j1", 1), new=record("new"), bulk=record("bulk"))
    assert contents(store.snapshot(), "job") == expected
    assert contents(open_store("r").snapshot(), "job") == expected


def test_a_bulk_chunk_that_meets_a_refit_is_encoded_again(open_store):
    def encode(generation, kind, records, salt):
        encoded = fakes.encode_rows(generation, kind, records, salt)
        if not generation.seed:
            store.refit(seed=2, sample=10, as_of=3)
        return encoded

    store = open_store(neighbours=fakes.neighbours(encode_rows=encode))
    with store.bulk("job") as sink:
        sink.write(frame(record("a")))
    assert store.generation.seed == 2
    assert contents(store.snapshot(), "job") == {"a": record("a")}
    assert len(list((store.root / "segments").iterdir())) == 1


def test_a_refit_that_fails_leaves_the_old_generation(open_store):
    def encode(generation, kind, records, salt):
        if generation.seed and records["id"][0] == "j6":
            raise ZeroDivisionError
        return fakes.encode_rows(generation, kind, records, salt)

    store = open_store(chunk_rows=3, neighbours=fakes.neighbours(encode_rows=encode))
    store.upsert("job", frame(*(record(f"j{n}") for n in range(9))))
    epoch = store.snapshot().epoch
    with pytest.raises(ZeroDivisionError):
        store.refit(seed=5, sample=10, as_of=3)
    assert store.snapshot().epoch == epoch
    assert not list((store.root / "segments").iterdir())
    assert contents(store.snapshot(), "job") == {f"j{n}": record(f"j{n}") for n in range(9)}


def test_the_refit_sample_depends_on_ids_and_seed_alone(open_store):
    seen = []

    def fit(jobs, freelancers, *, seed, sample, as_of):
        seen.append(jobs["id"].to_list())
        return fakes.FakeGeneration(seed, as_of)

    for folder, order in (("one", range(50)), ("two", range(49, -1, -1))):
        store = open_store(folder=folder, neighbours=fakes.neighbours(fit=fit))
        store.upsert("job", frame(*(record(f"j{n:02}") for n in order)))
        for seed in (1, 2):
            store.refit(seed=seed, sample=10, as_of=0)
    assert seen[0] == seen[2] == sorted(seen[0])
    assert seen[1] == seen[3] != seen[0]
    assert len(seen[0]) == 10


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
    start = time.monotonic()
    while reader.snapshot().count("job") == 0:
        assert time.monotonic() - start < 1.0
        time.sleep(0.005)


def test_closing_seals_many_live_rows(open_store):
    store = open_store(seal_rows=5)
    store.upsert("job", frame(*(record(f"j{n}") for n in range(4))))
    store.upsert("freelancer", frame(*(record(f"f{n}") for n in range(5))))
    store.close()
    store.close()
    info = open_store("r").info()
    assert info["kinds"]["job"]["live_rows"] == 4
    assert info["kinds"]["freelancer"]["live_rows"] == 0


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
