"""Publishing a store and pulling it: the same epoch, only what is missing, whole or not at all."""

# ruff: noqa: F401, F811 (fixtures come by import)
from __future__ import annotations

import random
import shutil
import threading

import numpy as np
import pytest
import store_fakes as fakes
from patience import PATIENCE, until
from store_fakes import contents, frame, look_always, open_store, record
from store_publish_cases import made, root, seen

from matchwright.engine.errors import (
    DependencyUnavailable,
    EpochGone,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    StoreLocked,
)
from matchwright.engine.store import Store, files, published, replica
from matchwright.engine.store.check import damages
from matchwright.engine.store.publish import publish
from matchwright.engine.store.pull import pull
from matchwright.engine.store.remote import Target

# ── There and back ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("scheme", ["{}", "file://{}", "memory://publish{}"])
def test_a_replica_is_the_store_again(root, tmp_path, scheme):
    url = scheme.format(tmp_path / "target")
    done = publish(root, url, name="shop/eu")
    assert (done.changed, done.uploaded > 3, done.removed) == (True, True, 0)
    pulled = pull(url, tmp_path / "replica", name="shop/eu")
    assert pulled.epoch == done.epoch == str(seen(root)[0])
    assert (pulled.changed, pulled.fetched) == (True, done.uploaded)
    assert seen(tmp_path / "replica") == seen(root)
    assert damages(tmp_path / "replica", fakes.neighbours()) == []


def test_store_has_both_as_methods(root, tmp_path):
    with open_store(root) as store:
        done = store.publish(tmp_path / "target")
        Store.pull(tmp_path / "target", tmp_path / "replica")
        with open_store(tmp_path / "replica") as other:
            assert str(other.snapshot().epoch) == done.epoch


def test_nothing_new_moves_nothing(root, tmp_path):
    target = tmp_path / "target"
    publish(root, target)
    before = {name: entry.written for name, entry in Target(target).list().items()}
    again = publish(root, target)
    assert (again.changed, again.uploaded) == (False, 0)
    assert {name: entry.written for name, entry in Target(target).list().items()} == before
    pull(target, tmp_path / "replica")
    again = pull(target, tmp_path / "replica")
    assert (again.changed, again.fetched) == (False, 0)


def test_only_what_is_new_moves(tmp_path):
    """A store of some MiB: a small change moves a few blocks, no segment."""
    root, target = tmp_path / "store", tmp_path / "target"
    with open_store(root, "w", chunk_rows=1_000) as store:
        rng = random.Random(3)
        with store.bulk("job") as sink:
            for low in range(0, 4_000, 1_000):
                texts = (rng.randbytes(1_200).hex() for _ in range(1_000))
                sink.write(frame(*(record(f"x{low + n}", text=t) for n, t in enumerate(texts))))
        first = publish(root, target)
        pull(target, tmp_path / "replica")
        store.upsert("job", frame(record("x1", 5)))
        second = publish(root, target)
    assert first.uploaded_bytes > 5_000_000
    assert second.uploaded <= 6
    assert second.uploaded_bytes < first.uploaded_bytes / 2
    pulled = pull(target, tmp_path / "replica")
    assert (pulled.fetched, pulled.fetched_bytes) == (second.uploaded, second.uploaded_bytes)
    assert seen(tmp_path / "replica") == seen(root)


def test_what_a_refit_replaced_goes_from_the_replica(root, tmp_path):
    target, copy = tmp_path / "target", tmp_path / "replica"
    publish(root, target)
    pull(target, copy)
    with open_store(root, "w") as store:
        store.refit(seed=4, sample=10, as_of=9)
    publish(root, target)
    pull(target, copy)
    assert seen(copy) == seen(root)
    with open_store(root) as store, store._catalog.look() as connection:
        named = {row.file for row in store._catalog.segments(connection)}
        assert {path.name for path in (copy / "segments").iterdir()} == named
        assert [path.name for path in (copy / "generations").iterdir()] == [store.generation.id]


def test_texts_stay_at_home(root, tmp_path):
    publish(root, tmp_path / "target", keep_text=False)
    pull(tmp_path / "target", tmp_path / "replica")
    for path in (tmp_path / "target").rglob("*"):
        if path.is_file() and path.parent.parent.name == "blocks":
            data = published.unpack_block(path.read_bytes(), path.name, "")
            assert b"text 9 of x9" not in data
            assert b"\xa4text" in data or b"title of x" not in data
    assert b"text 9 of x9" not in (tmp_path / "replica" / "catalog.sqlite").read_bytes()
    with open_store(tmp_path / "replica") as store, open_store(root) as original:
        assert not store.keep_text
        row, whole = (one.records("job", ["x9"]).to_dicts()[0] for one in (store, original))
        assert row == {**whole, "text": None}
        assert store.snapshot().epoch == original.snapshot().epoch
        one, other = (side.snapshot().corpus("job").parts for side in (store, original))
        for (left, _), (right, _) in zip(one, other, strict=True):
            assert np.array_equal(left.x_nd, right.x_nd)
        assert store.verify() == []
    with_texts = publish(root, tmp_path / "target")
    assert with_texts.changed
    assert pull(tmp_path / "target", tmp_path / "replica").changed
    assert seen(tmp_path / "replica") == seen(root)


def test_older_epochs_stay_at_home(root, tmp_path):
    with open_store(root, "w", retain_s=1e6) as store:
        store.keep("nightly")
        store.upsert("job", frame(record("live", text="quite another text")))
        assert len(store.epochs()) > 1
    publish(root, tmp_path / "target")
    pull(tmp_path / "target", tmp_path / "replica")
    catalog = (tmp_path / "replica" / "catalog.sqlite").read_bytes()
    assert b"quite another text" in catalog
    assert b"text 0 of live" not in catalog
    assert b"text 0 of live" in (root / "catalog.sqlite").read_bytes()
    with open_store(tmp_path / "replica") as store:
        assert [epoch.newest for epoch in store.epochs()] == [True]


def test_an_epoch_that_is_kept_can_be_asked_for(root, tmp_path):
    target, epochs = tmp_path / "target", []
    with open_store(root, "w") as store:
        for version in range(5):
            store.upsert("job", frame(record("live", version + 1)))
            epochs.append(publish(root, target, keep=3).epoch)
    for asked in (epochs[2], epochs[2].split(":")[1]):
        assert pull(target, tmp_path / "replica", epoch=asked).epoch == epochs[2]
    assert seen(tmp_path / "replica")[4][0]["live"]["rate_cents"] == 3
    for asked in (epochs[1], "999"):
        with pytest.raises(NotFound, match=r"not kept there; kept are \d+, \d+, \d+"):
            pull(target, tmp_path / "replica", epoch=asked)
    with pytest.raises(InvalidArgument, match="a number or uuid"):
        pull(target, tmp_path / "replica", epoch="newest")
    uuid, number, digest = epochs[2].split(":")
    with pytest.raises(NotFound, match="not kept"):
        pull(target, tmp_path / "replica", epoch=f"{uuid}:{number}:{digest[::-1]}")
    assert pull(target, tmp_path / "replica").epoch == epochs[4]


# ── Readers and writers of a replica ──────────────────────────────────────────────────────────


def test_readers_stay_up_and_see_the_next_epoch(root, tmp_path):
    target, copy = tmp_path / "target", tmp_path / "replica"
    publish(root, target)
    pull(target, copy)
    with open_store(copy) as reader:
        before = reader.snapshot()
        with open_store(root, "w") as store:
            store.refit(seed=8, sample=10, as_of=9)
            store.upsert("job", frame(record("live", 99), record("x9", 99)))
            now = publish(root, target).epoch
        pull(target, copy)
        until(lambda: str(reader.snapshot().epoch) == now, "the pulled epoch", within=PATIENCE)
        after = reader.snapshot()
        assert after.records("job", ["live"])["rate_cents"].to_list() == [99]
        assert contents(before, "job")["x9"] == record("x9", 9)
        assert reader.snapshot(epoch=before.epoch.number) is before
        assert contents(after, "freelancer").keys() == contents(before, "freelancer").keys()
        assert reader.trouble is None
        assert reader.verify() == []


def test_many_threads_share_what_is_left_of_a_replaced_catalog(root, tmp_path):
    target, copy = tmp_path / "target", tmp_path / "replica"
    publish(root, target)
    pull(target, copy)
    with open_store(copy) as reader:
        before = reader.snapshot()
        with open_store(root, "w") as store:
            store.upsert("job", frame(record("live", 99)))
        publish(root, target)
        pull(target, copy)
        found = []

        def read():
            found.extend(before.records("job", ["live"])["rate_cents"].to_list())

        threads = [threading.Thread(target=read) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == [0] * 8


def test_a_connection_to_a_replaced_catalog_is_refused(root, tmp_path):
    target, copy = tmp_path / "target", tmp_path / "replica"
    publish(root, target)
    pull(target, copy)
    with open_store(copy) as reader:
        held = reader._catalog
        with open_store(root, "w") as store:
            store.upsert("job", frame(record("live", 99)))
        publish(root, target)
        pull(target, copy)
        with pytest.raises(EpochGone, match="was replaced"):
            held.connect()


def test_no_writer_opens_a_replica_until_it_is_promoted(root, tmp_path):
    target, copy = tmp_path / "target", tmp_path / "replica"
    publish(root, target)
    pull(target, copy)
    with pytest.raises(FailedPrecondition, match=r"is a replica of .*target.*--promote"):
        open_store(copy, "w")
    with open_store(copy) as reader:
        replica.promote(copy)
        with open_store(copy, "w") as store:
            epoch = store.upsert("job", frame(record("new"))).epoch
            assert epoch.number == seen(root)[0].number + 1
            assert reader.snapshot(min_epoch=epoch.number).epoch == epoch
    assert damages(copy, fakes.neighbours()) == []
    with pytest.raises(FailedPrecondition, match="no replica"):
        pull(target, copy)
    with pytest.raises(NotFound, match="no replica"):
        replica.promote(copy)
    assert publish(copy, target).changed


def test_a_damaged_mark_still_keeps_writers_out(root, tmp_path):
    publish(root, tmp_path / "target")
    pull(tmp_path / "target", tmp_path / "replica")
    (tmp_path / "replica" / "REPLICA.json").write_text("{")
    with pytest.raises(FailedPrecondition, match="is a replica"):
        open_store(tmp_path / "replica", "w")
    (found,) = damages(tmp_path / "replica", fakes.neighbours())
    assert found.details["file"].endswith("REPLICA.json")
    pull(tmp_path / "target", tmp_path / "replica")
    assert damages(tmp_path / "replica", fakes.neighbours()) == []


def test_pulls_take_turns(root, tmp_path):
    publish(root, tmp_path / "target")
    (tmp_path / "replica").mkdir()
    lock = files.WriterLock(tmp_path / "replica" / "LOCK")
    with pytest.raises(StoreLocked):
        pull(tmp_path / "target", tmp_path / "replica")
    lock.release()
    pull(tmp_path / "target", tmp_path / "replica")


# ── What does not fit ─────────────────────────────────────────────────────────────────────────


def test_stores_are_not_mixed_up(root, tmp_path):
    target = tmp_path / "target"
    publish(root, target)
    with open_store(tmp_path / "other", "w") as store:
        store.upsert("job", frame(record("a")))
    with pytest.raises(FailedPrecondition, match="is published there"):
        publish(tmp_path / "other", target)
    publish(tmp_path / "other", target, name="other")
    pull(target, tmp_path / "replica")
    with pytest.raises(FailedPrecondition, match="into another folder"):
        pull(target, tmp_path / "replica", name="other")
    with pytest.raises(FailedPrecondition, match="no replica"):
        pull(target, tmp_path / "other")
    assert pull(target, tmp_path / "elsewhere", name="other").changed


def test_an_earlier_epoch_is_switched_to_only_when_asked_for(root, tmp_path, monkeypatch):
    look_always(monkeypatch)
    target = tmp_path / "target"
    shutil.copytree(root, tmp_path / "older")
    with open_store(root, "w") as store:
        store.upsert("job", frame(record("live", 4)))
    publish(root, target)
    pull(target, tmp_path / "replica")
    with pytest.raises(FailedPrecondition, match="--allow-older"):
        publish(tmp_path / "older", target)
    assert publish(tmp_path / "older", target, allow_older=True).changed
    with open_store(tmp_path / "replica") as reader:
        assert pull(target, tmp_path / "replica").changed
        assert contents(reader.snapshot(), "job") == seen(tmp_path / "older")[4][0]
    with open_store(tmp_path / "older", "w") as store:
        store.upsert("job", frame(record("live", 5)))
    assert publish(tmp_path / "older", target).changed
    pull(target, tmp_path / "replica")
    assert seen(tmp_path / "replica") == seen(tmp_path / "older")


def test_a_file_name_that_two_histories_gave_out_is_refused(root, tmp_path):
    target = tmp_path / "target"
    shutil.copytree(root, tmp_path / "older")
    for folder, low in ((root, 0), (tmp_path / "older", 50)):
        with open_store(folder, "w", chunk_rows=50) as store, store.bulk("job") as sink:
            sink.write(frame(*(record(f"y{low + n}") for n in range(50))))
    publish(root, target)
    pull(target, tmp_path / "replica")
    before = seen(tmp_path / "replica")
    publish(tmp_path / "older", target, allow_older=True)
    with pytest.raises(FailedPrecondition, match="restored from a backup"):
        pull(target, tmp_path / "replica")
    assert seen(tmp_path / "replica") == before
    pull(target, tmp_path / "fresh")
    assert seen(tmp_path / "fresh") == seen(tmp_path / "older")


@pytest.mark.parametrize("url", ["nosuch://x/y", "s3://bucket/x", "gs://bucket/x"])
def test_a_target_that_cannot_be_reached_is_named(root, url):
    with pytest.raises((InvalidArgument, DependencyUnavailable), match="x"):
        publish(root, url)


@pytest.mark.parametrize("name", ["", "../x", "/x", "a/../../x"])
def test_a_name_stays_below_the_target(root, tmp_path, name):
    with pytest.raises(InvalidArgument, match="name"):
        publish(root, tmp_path, name=name)


def test_nothing_published_is_said(tmp_path, root):
    with pytest.raises(NotFound, match="nothing is published"):
        pull(tmp_path / "target", tmp_path / "replica")
    assert not (tmp_path / "replica").exists()
    with pytest.raises(NotFound, match="no store"):
        publish(tmp_path / "nowhere", tmp_path / "target")
    assert not (tmp_path / "target").exists()
