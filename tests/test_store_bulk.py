"""Many rows at once: sealing, live rows, imports and refits."""

from __future__ import annotations

import numpy as np
import pytest
import store_fakes as fakes
from store_fakes import contents, frame, record, stores_in

from matchwright.engine.errors import KeyCollision


@pytest.fixture
def open_store(tmp_path):
    with stores_in(tmp_path) as opening:
        yield opening


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


def test_closing_seals_many_live_rows(open_store):
    store = open_store(seal_rows=5)
    store.upsert("job", frame(*(record(f"j{n}") for n in range(4))))
    store.upsert("freelancer", frame(*(record(f"f{n}") for n in range(5))))
    store.close()
    store.close()
    info = open_store("r").info()
    assert info["kinds"]["job"]["live_rows"] == 4
    assert info["kinds"]["freelancer"]["live_rows"] == 0
