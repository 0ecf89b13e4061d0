"""Publishing a store and pulling it: the same epoch, only what is missing, whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import sqlite3
import threading
import time
from pathlib import Path
from typing import ClassVar

import fsspec
import msgspec
import numpy as np
import pytest
import store_copies_child as child
import store_fakes as fakes
from fsspec.implementations.memory import MemoryFileSystem
from store_copies_cases import run_and_kill, whole
from store_fakes import contents, frame, open_store, record

from matchwright.engine import synthetic
from matchwright.engine.cli._output import plainly
from matchwright.engine.errors import (
    DependencyUnavailable,
    EpochGone,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    StoreDamaged,
    StoreFormat,
    StoreLocked,
)
from matchwright.engine.matcher import Matcher
from matchwright.engine.policy import Policy
from matchwright.engine.request import Request
from matchwright.engine.store import Store, files, published, replica
from matchwright.engine.store.check import damages
from matchwright.engine.store.publish import collect, publish
from matchwright.engine.store.pull import pull
from matchwright.engine.store.remote import Target
from matchwright.kernels.ops import get_ops

N = 300


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A store with two sealed segments, tombstones, live rows and a record of an older epoch."""
    folder = tmp_path_factory.mktemp("publish") / "store"
    with open_store(folder, "w", chunk_rows=N) as store:
        for kind in ("job", "freelancer"):
            with store.bulk(kind) as sink:
                sink.write(frame(*(record(f"x{n}", n) for n in range(N))))
        store.delete("job", ["x3", "x5"])
        store.upsert("job", frame(record("live"), record("x7", 7_777)))
    return folder


@pytest.fixture
def root(made, tmp_path):
    return Path(shutil.copytree(made, tmp_path / "store"))


def seen(folder):
    """The epoch and everything in a store."""
    with open_store(folder) as store:
        snapshot = store.snapshot()
        held = [contents(snapshot, kind) for kind in ("job", "freelancer")]
        keys = snapshot.keys_of("job", np.arange(snapshot.corpus("job").n))
        return snapshot.epoch, store.salt, snapshot.generation, keys.tolist(), held


def objects(target):
    return {name for name in Target(target).list() if name.startswith(("blocks/", "files/"))}


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
        start = time.monotonic()
        while str(reader.snapshot().epoch) != now:
            assert time.monotonic() - start < 1.0
            time.sleep(0.002)
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


def test_an_earlier_epoch_is_switched_to_only_when_asked_for(root, tmp_path):
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
        time.sleep(0.06)
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


# ── Damage ────────────────────────────────────────────────────────────────────────────────────


def means_the_same(path):
    """A block's last bits mean nothing to the one who inflates it."""
    if path.parent.parent.name != "blocks":
        return False
    try:
        return bool(published.unpack_block(path.read_bytes(), path.name, ""))
    except StoreDamaged:
        return False


def test_a_damaged_object_is_named_and_switches_nothing(root, tmp_path, count):
    target, copy = tmp_path / "target", tmp_path / "replica"
    publish(root, target)
    pull(target, copy)
    before = seen(copy)
    with open_store(root, "w") as store:
        store.refit(seed=1, sample=9, as_of=3)
    publish(root, target, grace_s=0, keep=1)
    rng = random.Random(5)
    for name in sorted(objects(target)):
        path = target / name
        data = path.read_bytes()
        for _ in range(count(reduced=2, full=50)):
            bad = bytearray(data)
            bad[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            path.write_bytes(rng.choice((bad, data[: rng.randrange(len(data))])))
            if means_the_same(path):
                continue
            with pytest.raises(StoreDamaged, match=path.name):
                pull(target, copy)
            assert seen(copy) == before
        path.unlink()
        with pytest.raises(NotFound, match=path.name):
            pull(target, copy)
        assert publish(root, target).changed
        assert path.read_bytes() == data or name.startswith("blocks/")
    pull(target, copy)
    assert seen(copy) == seen(root)


def test_damaged_manifests_and_pointers_are_named(root, tmp_path):
    target, copy = tmp_path / "target", tmp_path / "replica"
    publish(root, target)
    (manifest,) = (target / "manifests").iterdir()
    for path in (manifest, target / "CURRENT.json"):
        data = path.read_bytes()
        path.write_bytes(data[:-9])
        with pytest.raises(StoreDamaged, match=path.name):
            pull(target, copy)
        path.write_bytes(data)
    manifest.write_bytes(b"{}")
    assert publish(root, target).changed
    pull(target, copy)
    assert seen(copy) == seen(root)


def rewrite_manifest(target, **changes):
    """Publishes a manifest with other values, its checksums right."""
    current = json.loads((target / "CURRENT.json").read_bytes())
    document = json.loads((target / current["manifest"]).read_bytes()) | changes
    data = json.dumps(document).encode()
    sha256 = hashlib.sha256(data).hexdigest()
    name = published.manifest_name(document["number"], sha256)
    (target / name).write_bytes(data)
    (target / "CURRENT.json").write_text(
        json.dumps({**current, "manifest": name, "sha256": sha256})
    )
    return document


def test_a_newer_format_leaves_the_replica_as_it_is(root, tmp_path):
    target, copy = tmp_path / "target", tmp_path / "replica"
    publish(root, target)
    pull(target, copy)
    before = seen(copy)
    for changes in ({"format": 9}, {"catalog_format": 9, "format": 1}, {"segment_format": 9}):
        rewrite_manifest(target, **changes)
        with pytest.raises(StoreFormat, match="newer matchwright"):
            pull(target, copy)
        assert seen(copy) == before
    pointer = json.loads((target / "CURRENT.json").read_bytes())
    (target / "CURRENT.json").write_text(json.dumps({**pointer, "format": 2}))
    with pytest.raises(StoreFormat, match=r"CURRENT.json: has format 2"):
        pull(target, copy)


@pytest.mark.parametrize(
    "name", ["../evil", "/etc/evil", "segments/../../evil", "LOCK", "catalog.sqlite", "segments",
             "generations/evil", "segments//evil", "other/evil/evil"]
)  # fmt: skip
def test_names_that_leave_the_folder_are_refused(root, tmp_path, name):
    target = tmp_path / "target"
    publish(root, target)
    document = json.loads(next((target / "manifests").iterdir()).read_bytes())
    evil = next(iter(document["files"].values()))
    rewrite_manifest(target, files={**document["files"], name: evil})
    with pytest.raises(StoreDamaged, match="that no store has"):
        pull(target, tmp_path / "replica")
    assert not list(tmp_path.rglob("evil"))


def test_a_manifest_without_one_of_its_files_is_refused(root, tmp_path):
    target = tmp_path / "target"
    publish(root, target)
    document = json.loads(next((target / "manifests").iterdir()).read_bytes())
    few = {name: file for name, file in document["files"].items() if "job" not in name}
    rewrite_manifest(target, files=few)
    with pytest.raises(StoreDamaged, match="lacks segments/job"):
        pull(target, tmp_path / "replica")
    assert not (tmp_path / "replica" / "catalog.sqlite").exists()


def test_damage_in_a_replica_is_found_and_healed(root, tmp_path):
    target, copy = tmp_path / "target", tmp_path / "replica"
    publish(root, target)
    pull(target, copy)
    some = [next(copy.glob(pattern)) for pattern in ("segments/job*", "generations/*/*")]
    names = ["catalog.sqlite", *(path.relative_to(copy).as_posix() for path in some)]
    for name in names:
        data = bytearray((copy / name).read_bytes())
        data[9 if "generations" in name else -200] ^= 1  # a digit of the fake's seed
        (copy / name).write_bytes(data)
        found = [error.details["file"] for error in damages(copy, fakes.neighbours())]
        assert str(copy / name) in found or str((copy / name).parent) in found
        assert pull(target, copy, verify=True).fetched >= 1
        assert damages(copy, fakes.neighbours()) == []
    (copy / names[1]).unlink()
    assert pull(target, copy).fetched == 1
    assert seen(copy) == seen(root)


def test_a_damaged_store_is_not_published(root, tmp_path):
    path = next((root / "segments").glob("job*"))
    data = bytearray(path.read_bytes())
    data[500] ^= 1
    path.write_bytes(data)
    with pytest.raises(StoreDamaged, match=path.name):
        publish(root, tmp_path / "target")
    assert not (tmp_path / "target" / "CURRENT.json").exists()


# ── What nobody needs any more ────────────────────────────────────────────────────────────────


def age(target, seconds):
    """Makes everything at a target older, marks included."""
    for path in target.rglob("*"):
        if path.is_file():
            then = path.stat().st_mtime - seconds
            os.utime(path, (then, then))
    marks = target / "GARBAGE.json"
    if marks.exists():
        older = {name: since - seconds for name, since in json.loads(marks.read_bytes()).items()}
        marks.write_text(json.dumps(older))


def test_garbage_goes_after_its_grace(root, tmp_path):
    target = tmp_path / "target"
    publish(root, target)
    first = objects(target)
    with open_store(root, "w") as store:
        store.refit(seed=1, sample=9, as_of=3)
    publish(root, target, keep=1)
    assert len(list((target / "manifests").iterdir())) == 1
    needed = objects(target) - first
    assert first < objects(target)
    age(target, 3_600)
    assert collect(Target(target), 1, 7_200) == 0
    age(target, 3_700)
    kept = next(name for name in first if name.startswith("files/"))
    os.utime(target / kept)  # written anew by somebody who counts on it
    assert collect(Target(target), 1, 7_200) == len(first) - 1
    assert objects(target) == needed | {kept}
    age(target, 7_300)
    assert collect(Target(target), 1, 7_200) == 1
    assert objects(target) == needed
    pull(target, tmp_path / "replica")
    assert seen(tmp_path / "replica") == seen(root)


def test_a_publish_does_not_count_on_what_is_marked(root, tmp_path):
    """What is marked may be removed by somebody else at any moment: it is uploaded again."""
    target = tmp_path / "target"
    shutil.copytree(root, tmp_path / "older")
    publish(root, target)
    first = objects(target)
    with open_store(root, "w") as store:
        store.refit(seed=1, sample=9, as_of=3)
    publish(root, target, keep=1)
    again = publish(tmp_path / "older", target, allow_older=True)
    assert again.uploaded == len(first)
    age(target, 1e6)
    collect(Target(target), 1, 7_200)
    assert first <= objects(target)  # needed again, so no longer marked
    pull(target, tmp_path / "replica")
    assert seen(tmp_path / "replica") == seen(tmp_path / "older")


def test_parts_of_killed_uploads_go_too(root, tmp_path):
    target = tmp_path / "target"
    publish(root, target)
    part = target / "blocks" / "ab" / ".abc.123.part"
    part.parent.mkdir(exist_ok=True)
    part.write_bytes(b"half")
    assert collect(Target(target), 1, 3_600) == 0
    age(target, 4_000)
    assert collect(Target(target), 1, 3_600) == 1
    assert not part.exists()


# ── While others go on ────────────────────────────────────────────────────────────────────────


def test_a_published_epoch_is_one_that_was(tmp_path):
    """A writer goes on while its store is published: every record of an epoch has one version."""
    root, target = tmp_path / "store", tmp_path / "target"
    stop = threading.Event()
    with open_store(root, "w", seal_rows=child.ROWS, retain_s=0) as store:
        store.upsert("job", child.version(0))

        def write():
            number = 0
            while not stop.is_set():
                number += 1
                store.upsert("job", child.version(number))
                if number % 5 == 0:
                    store.refit(seed=number, sample=5, as_of=1)

        writer = threading.Thread(target=write)
        writer.start()
        try:
            for _ in range(8):
                publish(root, target)
                pull(target, tmp_path / "replica")
                assert whole(tmp_path / "replica") >= 0
        finally:
            stop.set()
            writer.join()


def test_a_killed_publish_leaves_the_epoch_before_or_the_next(tmp_path, count):
    rng = random.Random(7)
    root, target = tmp_path / "store", tmp_path / "target"
    with open_store(root, "w", seal_rows=child.ROWS) as store:
        store.upsert("job", child.version(0))
    published_last = -1
    for _ in range(count(reduced=3, full=20)):
        done = run_and_kill("publish", tmp_path, rng, 0.5)
        published_last = done[-1] if done else published_last
        if not (target / "CURRENT.json").exists():
            assert published_last == -1
            continue
        pull(target, tmp_path / "replica")
        assert whole(tmp_path / "replica") >= published_last
        published_last = whole(tmp_path / "replica")
        assert whole(root) >= published_last
    assert publish(root, target).epoch == str(seen(root)[0])
    pull(target, tmp_path / "replica")
    assert seen(tmp_path / "replica") == seen(root)
    assert whole(root) > 0


def test_a_killed_pull_leaves_one_epoch_or_the_other(tmp_path, count):
    rng = random.Random(9)
    root, target, copy = tmp_path / "store", tmp_path / "target", tmp_path / "replica"
    with open_store(root, "w", seal_rows=child.ROWS) as store:
        for number in range(2):
            store.upsert("job", child.version(number))
            store.refit(seed=number, sample=5, as_of=1)
            (tmp_path / f"epoch-{number}").write_text(publish(root, target).epoch)
    for _ in range(count(reduced=3, full=20)):
        done = run_and_kill("pull", tmp_path, rng, 0.3)
        if not (copy / "catalog.sqlite").exists():
            assert not done
            continue
        assert whole(copy) in (0, 1)
        with pytest.raises(FailedPrecondition, match="replica"):
            open_store(copy, "w")
    pull(target, copy)
    assert seen(copy) == seen(root)
    names = {path.name for path in copy.iterdir()}
    assert names == {"LOCK", "REPLICA.json", "catalog.sqlite", "segments", "generations"}


def test_the_catalog_of_a_replica_needs_no_log(root, tmp_path):
    publish(root, tmp_path / "target")
    pull(tmp_path / "target", tmp_path / "replica")
    connection = sqlite3.connect(tmp_path / "replica" / "catalog.sqlite")
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)
    connection.close()
    assert seen(tmp_path / "replica") == seen(root)
    assert not list((tmp_path / "replica").glob("catalog.sqlite-*"))


# ── Targets that are neither a disk nor an object store ───────────────────────────────────────


class PluginError(Exception):
    """What a library behind a plugin raises: no OSError."""


class Shelf(MemoryFileSystem):
    """A file system whose writes are not atomic, and which fails when told to."""

    protocol = "shelf"
    store: ClassVar[dict] = {}
    pseudo_dirs: ClassVar[list] = [""]
    failing = None
    moved = 0

    def _fail(self, path, what):
        if Shelf.failing and Shelf.failing in f"{what} {path.split('a/b/')[-1]}":
            raise PluginError("the shelf broke")

    def _open(self, path, mode="rb", **options):
        self._fail(path, "write" if "w" in mode else "read")
        return super()._open(path, mode=mode, **options)

    def cat_file(self, path, **options):
        self._fail(path, "read")
        return super().cat_file(path, **options)

    def mv(self, path1, path2, **options):
        self._fail(path2, "move")
        Shelf.moved += 1
        super().mv(path1, path2, **options)

    def find(self, path, **options):
        self._fail(path, "find")
        return super().find(path, **options)


@pytest.fixture
def shelf():
    fsspec.register_implementation("shelf", Shelf, clobber=True)
    Shelf.store.clear()
    Shelf.failing, Shelf.moved = None, 0
    yield "shelf://a/b"
    Shelf.failing = None


def test_where_a_write_is_not_atomic_a_move_is(root, tmp_path, shelf):
    done = publish(root, shelf)
    assert Shelf.moved == done.uploaded + 2
    pull(shelf, tmp_path / "replica")
    assert seen(tmp_path / "replica") == seen(root)
    assert not [path for path in Shelf.store if path.endswith(".part")]


@pytest.mark.parametrize(
    "failing",
    ["write blocks", "move files", "move manifests", "move CURRENT", "find "],
)
def test_a_target_that_fails_leaves_the_epoch_before(root, tmp_path, shelf, failing):
    publish(root, shelf)
    before = seen(root)
    with open_store(root, "w", chunk_rows=5) as store, store.bulk("job") as sink:
        sink.write(frame(*(record(f"y{n}") for n in range(5))))
    Shelf.failing = failing
    with pytest.raises(DependencyUnavailable, match=r"shelf://.*the shelf broke") as caught:
        publish(root, shelf)
    assert caught.value.exit_code == 5
    Shelf.failing = None
    pull(shelf, tmp_path / "replica")
    assert seen(tmp_path / "replica") == before
    assert publish(root, shelf).changed
    Shelf.failing = "read blocks"
    with pytest.raises(DependencyUnavailable, match="the shelf broke"):
        pull(shelf, tmp_path / "replica")
    assert seen(tmp_path / "replica") == before
    Shelf.failing = None
    pull(shelf, tmp_path / "replica")
    assert seen(tmp_path / "replica") == seen(root)


# ── With the engine's own records and generation ──────────────────────────────────────────────


def answers(folder, jobs):
    """What a server says of stored and inline queries, and why."""
    with Store.open(folder) as store:
        snapshot = store.snapshot()
        matcher = Matcher(snapshot, get_ops("cpu"), Policy.load(None))
        requests = [Request(kind="job", id=row["id"], k=15, as_of=20_500) for row in jobs]
        requests += [Request(kind="job", record=jobs[0] | {"id": "new"}, k=15, as_of=20_500)]
        found = [(one.ids, one.points.tolist()) for one in matcher.match_many(requests)]
        pairs = [
            matcher.explain(row["id"], name, as_of=20_500)
            for row, (ids, _) in zip(jobs, found, strict=False)
            for name in ids[:2]
        ]
        return found, [plainly(msgspec.to_builtins(pair, enc_hook=plainly)) for pair in pairs]


def test_a_replica_answers_as_the_store_does(tmp_path):
    jobs, people = (synthetic.frame(kind, n) for kind, n in (("job", 40), ("freelancer", 200)))
    with Store.open(tmp_path / "store", mode="w", create=True, chunk_rows=150) as store:
        for kind, rows in (("job", jobs), ("freelancer", people)):
            with store.bulk(kind) as sink:
                sink.write(rows)
        store.refit(seed=1, sample=200, as_of=20_500)
        store.delete("freelancer", people["id"].to_list()[:5])
    some = jobs.head(12).to_dicts()
    found, pairs = answers(tmp_path / "store", some)
    assert len(pairs) > 3
    publish(tmp_path / "store", tmp_path / "target")
    pull(tmp_path / "target", tmp_path / "replica")
    assert answers(tmp_path / "replica", some) == (found, pairs)
    publish(tmp_path / "store", tmp_path / "target", keep_text=False)
    pull(tmp_path / "target", tmp_path / "replica")
    # Who asks inline brings the text along; a stored one asks without.
    assert answers(tmp_path / "replica", some)[0][-1] == found[-1] != ((), [])
