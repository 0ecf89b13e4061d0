"""Publishing on bad days: damage, garbage, killed processes, and targets that are no disk."""

# ruff: noqa: F401, F811 (fixtures come by import)
from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import sqlite3
from typing import ClassVar

import fsspec
import msgspec
import pytest
import store_copies_child as child
import store_fakes as fakes
from fsspec.implementations.memory import MemoryFileSystem
from store_copies_cases import run_and_kill, whole, written_to
from store_fakes import flip, frame, open_store, record
from store_publish_cases import made, objects, root, seen

from matchwright.engine import synthetic
from matchwright.engine.cli._output import plainly
from matchwright.engine.errors import (
    DependencyUnavailable,
    FailedPrecondition,
    NotFound,
    StoreDamaged,
    StoreFormat,
)
from matchwright.engine.matcher import Matcher
from matchwright.engine.policy import Policy
from matchwright.engine.request import Request
from matchwright.engine.store import Store, published
from matchwright.engine.store.check import damages
from matchwright.engine.store.publish import collect, publish
from matchwright.engine.store.pull import pull
from matchwright.engine.store.remote import Target
from matchwright.kernels.ops import get_ops

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


def test_an_earlier_manifest_that_is_damaged_keeps_nothing(root, tmp_path):
    target, copy = tmp_path / "target", tmp_path / "replica"
    publish(root, target)
    (damaged,) = (target / "manifests").iterdir()
    damaged.write_bytes(b"{}")
    with open_store(root, "w") as store:
        store.upsert("job", frame(record("more")))
    assert publish(root, target).changed
    assert damaged.exists(), "somebody may be writing it"
    publish(root, target, grace_s=0)
    assert not damaged.exists()
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
    flip(path, 500)
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
    with written_to(root):
        for _ in range(8):
            publish(root, target)
            pull(target, tmp_path / "replica")
            assert whole(tmp_path / "replica") >= 0


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
