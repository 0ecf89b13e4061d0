"""Rewriting history: rows go from every epoch, the newest and those that are kept."""

from __future__ import annotations

import pytest
import store_fakes as fakes
from store_fakes import contents, frame, record, stores_in, write_history

from matchwright.engine.store import blobs
from matchwright.engine.store.segment_file import SegmentFile


@pytest.fixture
def open_store(tmp_path):
    with stores_in(tmp_path, retain_s=0.0) as opening:
        yield opening


def everywhere(root):
    return b"".join(
        path.read_bytes() for path in sorted((root / "segments").iterdir()) if path.is_file()
    )


def keys_everywhere(store):
    """Keys in every segment file and every live batch."""
    with store._catalog.look() as connection:
        live = connection.execute("SELECT rows FROM live").fetchall()
    arrays = [blobs.unpack_rows(packed, "").encoded.key_n for (packed,) in live]
    arrays += [SegmentFile(path).array("key") for path in (store.root / "segments").iterdir()]
    return {key for array in arrays for key in array.tolist()}


def test_a_rewrite_takes_rows_out_of_every_epoch(open_store):
    store = open_store(retain_s=100.0)
    history = write_history(store)
    for n in range(3):
        store.upsert("job", frame(record(f"j{n}", 500)))
    history[store.snapshot().epoch.number] = contents(store.snapshot(), "job")
    gone = ["j1", "j4"]
    keys = store.snapshot().keys(gone)
    held = store.snapshot()
    assert keys_everywhere(store) & set(keys.tolist())

    def change(connection, number):
        assert number == held.epoch.number + 2  # live rows are sealed first
        for name in gone:
            connection.execute("DELETE FROM job WHERE id = ?", (name,))
            connection.execute("DELETE FROM job_old WHERE id = ?", (name,))

    done = store._writing().rewrite({"job": keys}, change)
    assert done.epoch == store.snapshot().epoch
    assert done.rows > 4
    assert done.live
    assert not any(path.exists() for path in done.removed)
    assert not keys_everywhere(store) & set(keys.tolist())
    assert set(held.keys(["j5", "j7"]).tolist()) < keys_everywhere(store)
    for reader in (store, open_store("r")):
        assert reader.verify() == []
        for number, model in history.items():
            expected = {name: row for name, row in model.items() if name not in gone}
            snapshot = held if number == held.epoch.number else reader._loader.at(number)
            if snapshot is not held:
                assert contents(snapshot, "job") == expected
        assert set(contents(reader.snapshot(), "job")) == set(model) - set(gone)


def test_a_rewrite_catches_what_is_written_meanwhile(open_store):
    changes = []
    store = open_store(neighbours=fakes.indexing(changes), retain_s=100.0)
    store.upsert("job", frame(*(record(f"j{n}") for n in range(9))))
    store.seal()
    changes[:] = [lambda: store.upsert("job", frame(record("j3", 5), record("new")))]
    keys = store.snapshot().keys(["j3"])
    drop = "DELETE FROM job WHERE id = 'j3'"
    store._writing().rewrite({"job": keys}, lambda connection, number: connection.execute(drop))
    assert not changes
    expected = {f"j{n}": record(f"j{n}") for n in range(9) if n != 3} | {"new": record("new")}
    assert contents(store.snapshot(), "job") == expected
    assert contents(open_store("r").snapshot(), "job") == expected
    assert store.verify() == []


def test_a_rewrite_that_fails_changes_nothing(open_store):
    store = open_store(retain_s=100.0)
    store.upsert("job", frame(*(record(f"j{n}") for n in range(9))))
    store.seal()
    before, epoch = everywhere(store.root), store.snapshot().epoch

    def change(connection, number):
        connection.execute("DELETE FROM job")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        store._writing().rewrite({"job": store.snapshot().keys(["j3"])}, change)
    assert everywhere(store.root) == before
    assert store.snapshot().epoch == epoch
    assert store.verify() == []
