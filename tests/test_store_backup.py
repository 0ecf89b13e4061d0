"""Backups of a store and what is restored from them: everything, or nothing at all."""

from __future__ import annotations

import gzip
import io
import json
import random
import shutil
import subprocess
import tarfile
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import store_copies_child as child
import store_fakes as fakes
from store_copies_cases import run_and_kill, whole, written_to
from store_fakes import contents, flip, frame, look_always, open_store, record, seal_both

from matchwright.engine.errors import (
    AlreadyExists,
    EpochGone,
    InvalidArgument,
    NotFound,
    StoreDamaged,
    StoreError,
    StoreFormat,
    StoreLocked,
)
from matchwright.engine.store import Store, files, hold
from matchwright.engine.store.backup import backup
from matchwright.engine.store.check import damages
from matchwright.engine.store.restore import restore

neighbours = fakes.neighbours()
N = 100


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A store with sealed and live rows, tombstones, two generations, and an epoch on lease."""
    folder = tmp_path_factory.mktemp("backup") / "store"
    with open_store(folder, "w", chunk_rows=N, retain_s=0) as store:
        seal_both(store, N)
        store.keep("nightly")
        store.refit(seed=2, sample=9, as_of=4)
        store.delete("job", ["x3", "x5"])
        store.upsert("job", frame(record("live"), record("x7", 7_777)))
    return folder


@pytest.fixture(scope="module")
def archive(made, tmp_path_factory):
    file = tmp_path_factory.mktemp("archive") / "backup.tar"
    backup(made, file, neighbours=neighbours)
    return file


@pytest.fixture
def root(made, tmp_path):
    return Path(shutil.copytree(made, tmp_path / "store"))


def seen(folder):
    """Every epoch that can be opened, and everything in it."""
    with open_store(folder) as store:
        epochs = {epoch.number: epoch.leases for epoch in store.epochs()}
        snapshots = [store.snapshot(epoch=number) for number in epochs]
        held = [
            (one.epoch, one.generation, contents(one, "job"), contents(one, "freelancer"))
            for one in snapshots
        ]
        return store.salt, epochs, held


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# ── There and back ────────────────────────────────────────────────────────────────────────────


def test_a_restored_store_is_the_store_again(root, tmp_path):
    done = backup(root, tmp_path / "b.tar", neighbours=neighbours)
    assert (done.file, done.records) == (str(tmp_path / "b.tar"), {"job": 99, "freelancer": 100})
    back = restore(tmp_path / "b.tar", tmp_path / "back", neighbours=neighbours)
    assert (back.epoch, back.bytes, back.files) == (done.epoch, done.bytes, done.files)
    assert not back.replaced
    assert seen(tmp_path / "back") == seen(root)
    assert ("nightly",) in seen(root)[1].values()
    assert names(tmp_path / "back") == [
        "LOCK", "catalog.sqlite", "generations", "leases", "segments"
    ]  # fmt: skip
    assert names(tmp_path) == ["b.tar", "back", "store"]
    with open_store(tmp_path / "back", "w") as store:
        store.upsert("job", frame(record("more")))
        store.release("nightly")
    assert damages(tmp_path / "back", neighbours) == []


def test_store_has_both_as_methods(root, tmp_path):
    with open_store(root, "w") as store:
        done = store.backup(tmp_path)
    assert Path(done.file).name.startswith(done.epoch.split(":")[0])
    Store.restore(done.file, tmp_path / "back", neighbours=neighbours)
    assert seen(tmp_path / "back") == seen(root)


@pytest.mark.parametrize("url", ["file://{}/b.tar", "memory://backups/b.tar"])
def test_a_backup_goes_to_any_target(root, tmp_path, url):
    url = url.format(tmp_path)
    backup(root, url, neighbours=neighbours)
    restore(url, tmp_path / "back", neighbours=neighbours)
    assert seen(tmp_path / "back") == seen(root)


def test_a_backup_goes_through_a_pipe(root, tmp_path):
    pipe = io.BytesIO()
    assert backup(root, "-", stdout=pipe, neighbours=neighbours).file == "-"
    packed = io.BytesIO(gzip.compress(pipe.getvalue()))
    restore("-", tmp_path / "back", stdin=packed, neighbours=neighbours)
    assert seen(tmp_path / "back") == seen(root)
    with pytest.raises(InvalidArgument, match="needs a stream"):
        backup(root, "-")
    with pytest.raises(InvalidArgument, match="needs a stream"):
        restore("-", tmp_path / "more")


def test_ordinary_tools_check_a_backup(archive, tmp_path):
    subprocess.run(["tar", "xf", archive, "-C", tmp_path], check=True)
    subprocess.run(
        ["sha256sum", "--quiet", "--strict", "-c", "SHA256SUMS"], cwd=tmp_path, check=True
    )
    assert json.loads((tmp_path / "backup.json").read_text())["records"]["job"] == 99
    (tmp_path / "SHA256SUMS").unlink()
    (tmp_path / "backup.json").unlink()
    assert damages(tmp_path, neighbours) == []


def test_a_backup_is_of_one_moment(tmp_path):
    root = tmp_path / "store"
    with written_to(root):
        for n in range(5):
            backup(root, tmp_path / "b.tar", neighbours=neighbours)
            restore(tmp_path / "b.tar", tmp_path / f"back-{n}", neighbours=neighbours)
            assert whole(tmp_path / f"back-{n}") >= 0


@pytest.mark.parametrize("locked", [True, False], ids=["locked", "read-only"])
def test_what_an_epoch_names_stays_while_it_is_opened(root, tmp_path, monkeypatch, locked):
    """A writer closes epochs, without a new one, after their names were read."""
    opening, gone = hold._open_files, []

    def late(*arguments):
        if not gone:
            before = names(root / "segments")
            open_store(root, "w", retain_s=0).close()
            gone.extend(set(before) - set(names(root / "segments")))
            assert bool(gone) != locked
            gone.append("looked")
        return opening(*arguments)

    with open_store(root, "w") as store:
        store.release("nightly")
    if not locked:
        monkeypatch.setattr(hold.LeaseFolder, "reading", lambda self: nullcontext(False))
    monkeypatch.setattr(hold, "_open_files", late)
    backup(root, tmp_path / "b.tar", neighbours=neighbours)
    restore(tmp_path / "b.tar", tmp_path / "back", neighbours=neighbours)
    assert gone
    assert damages(tmp_path / "back", neighbours) == []
    assert seen(tmp_path / "back")[2][-1] == seen(root)[2][-1]


def test_a_generation_that_goes_while_a_backup_is_made_is_in_it(root, tmp_path):
    """A writer removes it when its last epoch was closed; its files were open by then."""
    wanted, loaded = sorted(names(root / "generations")), []

    def load(folder):
        if folder.parent.parent == root:
            loaded.append(folder.name)
            shutil.rmtree(folder)
        return neighbours.load(folder)

    backup(root, tmp_path / "b.tar", neighbours=replace(neighbours, load=load))
    assert sorted(loaded) == wanted
    restore(tmp_path / "b.tar", tmp_path / "back", neighbours=neighbours)
    assert sorted(names(tmp_path / "back" / "generations")) == wanted
    assert damages(tmp_path / "back", neighbours) == []


def test_the_target_of_a_backup_is_said(root, tmp_path):
    with pytest.raises(NotFound, match="no store"):
        backup(tmp_path / "nowhere", tmp_path / "b.tar")
    with pytest.raises(InvalidArgument, match="ends in a file's name"):
        backup(root, "memory://")
    with pytest.raises(NotFound, match=r"b\.tar"):
        restore(tmp_path / "b.tar", tmp_path / "back")
    with pytest.raises(InvalidArgument, match="is a folder"):
        restore(tmp_path, tmp_path / "back")
    assert names(tmp_path) == ["store"]


# ── In the place of another ───────────────────────────────────────────────────────────────────


def test_a_store_is_replaced_only_when_asked_for(archive, root, tmp_path):
    with open_store(root, "w") as store:
        store.upsert("job", frame(record("newer")))
        before = seen(root)
        with pytest.raises(AlreadyExists, match="--replace"):
            restore(archive, root, neighbours=neighbours)
        with pytest.raises(StoreLocked, match="is writing"):
            restore(archive, root, replace=True, neighbours=neighbours)
    assert seen(root) == before
    assert restore(archive, root, replace=True, neighbours=neighbours).replaced
    assert "newer" not in seen(root)[2][-1][2]
    assert names(tmp_path) == ["store"]


def test_a_folder_with_something_else_is_left_alone(archive, tmp_path):
    (tmp_path / "thesis").write_text("ten years of work")
    for place in (tmp_path, tmp_path / "thesis"):
        with pytest.raises(AlreadyExists, match="holds no store"):
            restore(archive, place, replace=True, neighbours=neighbours)
    (tmp_path / "empty").mkdir()
    restore(archive, tmp_path / "empty", neighbours=neighbours)
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    restore(archive, tmp_path / "link", replace=True, neighbours=neighbours)
    assert (tmp_path / "link").is_symlink()
    assert names(tmp_path) == ["empty", "link", "thesis"]


def test_readers_of_a_replaced_store_go_on(archive, root, monkeypatch):
    look_always(monkeypatch)
    with open_store(root) as reader:
        with open_store(root, "w") as store:
            newest = store.upsert("job", frame(record("newer"), record("live", 4))).epoch
        before = reader.snapshot(min_epoch=newest.number)
        restore(archive, root, replace=True, neighbours=neighbours)
        assert contents(before, "job")["live"] == record("live", 4)
        after = reader.snapshot()
        assert contents(after, "job")["live"] == record("live")
        with open_store(root, "w") as store:
            other = store.upsert("job", frame(record("other"), record("live", 5))).epoch
        assert (other.number, other.digest != newest.digest) == (newest.number, True)
        assert contents(before, "job")["live"] == record("live", 4)
        again = reader.snapshot(min_epoch=other.number)
        assert again.epoch == reader.snapshot(epoch=other.number).epoch == other
        assert contents(again, "job")["live"] == record("live", 5)
        assert reader.trouble is None


def test_where_folders_cannot_change_places_it_is_said(archive, root, monkeypatch):
    before = seen(root)
    library = type("libc", (), {"renameat2": staticmethod(lambda *_: -1)})
    monkeypatch.setattr("ctypes.CDLL", lambda *_, **__: library)
    with pytest.raises(StoreError, match="move it away"):
        restore(archive, root, replace=True, neighbours=neighbours)
    monkeypatch.undo()
    assert seen(root) == before
    assert names(root.parent) == ["store"]


def test_restores_take_turns(archive, tmp_path):
    (tmp_path / ".back.restore").mkdir()
    lock = files.WriterLock(tmp_path / ".back.restore" / "LOCK")
    with pytest.raises(StoreLocked):
        restore(archive, tmp_path / "back", neighbours=neighbours)
    lock.release()
    (tmp_path / ".back.restore" / "segments").mkdir()
    (tmp_path / ".back.restore" / "left").write_text("by one that was killed")
    restore(archive, tmp_path / "back", neighbours=neighbours)
    assert "left" not in names(tmp_path / "back")


# ── Damage ────────────────────────────────────────────────────────────────────────────────────


def refusal(data, tmp_path):
    """Why a backup of these bytes is not restored; nothing of it is."""
    file = tmp_path / "bad.tar"
    file.write_bytes(data)
    with pytest.raises(StoreError, match=file.name) as caught:
        restore(file, tmp_path / "back", neighbours=neighbours)
    assert names(tmp_path) == [file.name]
    return caught.value


def test_a_backup_that_is_cut_off_is_refused(archive, tmp_path, count):
    data = archive.read_bytes()
    rng = random.Random(2)
    ends = [0, 1, 511, 512, 1_024, 1_500]
    ends += [rng.randrange(len(data) - 11_000) for _ in range(count(reduced=15, full=1_000))]
    for end in ends:
        assert type(refusal(data[:end], tmp_path)) is StoreDamaged, end
    packed = gzip.compress(data)
    assert type(refusal(packed[: len(packed) // 2], tmp_path)) is StoreDamaged


def test_flipped_bits_of_a_backup_are_noticed(archive, tmp_path, count):
    """Anywhere but in what tar fills up with, and what it says of owners and times."""
    data = archive.read_bytes()
    with tarfile.open(archive) as opened:
        spans = [(one.offset_data, one.size) for one in opened.getmembers()]
    rng = random.Random(3)
    for _ in range(count(reduced=25, full=3_000)):
        start, size = rng.choice(spans)
        bad = bytearray(data)
        at, bit = start + rng.randrange(size), rng.randrange(8)
        bad[at] ^= 1 << bit
        assert type(refusal(bad, tmp_path)) in (StoreDamaged, StoreFormat), (at, bit)
    assert type(refusal(b"no backup at all", tmp_path)) is StoreDamaged


def remade(archive, change):
    """The archive with other members: ``change`` gets (name, data) of each, gives a list."""
    out = io.BytesIO()
    with tarfile.open(archive) as opened, tarfile.open(fileobj=out, mode="w") as made:
        members = [(one.name, opened.extractfile(one).read()) for one in opened.getmembers()]
        for name, data in change(members):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            made.addfile(info, io.BytesIO(data))
    return out.getvalue()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda members: members[1:], "starts with"),
        (lambda members: members[:-1], "SHA256SUMS is missing"),
        (lambda members: [members[0], *members[2:]], "catalog.sqlite in it does not match"),
        (lambda members: [*members[:-2], members[-1]], "in it does not match"),
        (lambda members: [members[0], ("../evil", b""), *members[1:]], "does not belong"),
        (lambda members: [members[0], ("/tmp/evil", b""), *members[1:]], "does not belong"),
        (lambda members: [members[0], ("segments/../evil", b""), *members[1:]], "not belong"),
        (lambda members: [members[0], ("generations/a/..", b""), *members[1:]], "not belong"),
        (lambda members: [members[0], members[1], *members[1:]], "does not belong"),
        (lambda members: [members[0], ("segments/x.mwseg", b""), *members[1:]], "x.mwseg"),
        (lambda members: [members[0], (members[-1][0], b"\xff")], "does not match"),
    ],
)
def test_other_members_are_refused(archive, tmp_path, change, match):
    error = refusal(remade(archive, change), tmp_path)
    assert type(error) is StoreDamaged
    assert match in str(error)
    assert not list(tmp_path.rglob("evil"))


def test_a_link_in_a_backup_is_refused(archive, tmp_path):
    out = io.BytesIO()
    with tarfile.open(archive) as opened, tarfile.open(fileobj=out, mode="w") as made:
        first = opened.getmembers()[0]
        made.addfile(first, opened.extractfile(first))
        link = tarfile.TarInfo("segments/a.mwseg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        made.addfile(link)
    error = refusal(out.getvalue(), tmp_path)
    assert type(error) is StoreDamaged
    assert "segments/a.mwseg" in str(error)
    assert "no plain file" in str(error)


def test_a_newer_backup_is_said_to_be_newer(archive, tmp_path):
    for field in ("format", "catalog_format", "segment_format"):

        def newer(members, field=field):
            about = json.loads(members[0][1]) | {field: 9}
            return [("backup.json", json.dumps(about).encode()), *members[1:]]

        error = refusal(remade(archive, newer), tmp_path)
        assert type(error) is StoreFormat
        assert "newer matchwright" in str(error)


def test_a_damaged_store_is_not_backed_up(root, tmp_path):
    path = next((root / "segments").glob("job*"))
    flip(path, 500)
    with pytest.raises(StoreDamaged, match=path.name):
        backup(root, tmp_path / "b.tar", neighbours=neighbours)
    path.unlink()
    with pytest.raises(StoreDamaged, match=f"{path.name}.*not there"):
        backup(root, tmp_path / "b.tar", neighbours=neighbours)
    assert names(tmp_path) == ["store"]


def test_a_store_that_is_replaced_while_it_is_checked_is_not_called_damaged(root, archive):
    def swap(what, done, total):
        if what == "segments" and root.exists() and not swapped:
            swapped.append(restore(archive, root, replace=True, neighbours=neighbours))
            for path in (root / "segments").iterdir():
                path.unlink()  # whatever it says now is not about the store that it began with

    swapped = []
    with pytest.raises(EpochGone, match="check it again"):
        damages(root, neighbours, swap)


# ── Kill -9 ───────────────────────────────────────────────────────────────────────────────────


def test_a_killed_backup_leaves_the_one_before(tmp_path, count):
    rng = random.Random(4)
    with open_store(tmp_path / "store", "w", seal_rows=child.ROWS) as store:
        store.upsert("job", child.version(1))
    acknowledged = False
    for _ in range(count(reduced=3, full=20)):
        acknowledged |= bool(run_and_kill("backup", tmp_path, rng, 0.2))
        assert acknowledged <= (tmp_path / "backup.tar").exists()
        if (tmp_path / "backup.tar").exists():
            shutil.rmtree(tmp_path / "back", ignore_errors=True)
            restore(tmp_path / "backup.tar", tmp_path / "back", neighbours=neighbours)
            assert whole(tmp_path / "back") == 1
    backup(tmp_path / "store", tmp_path / "backup.tar", neighbours=neighbours)
    assert set(names(tmp_path)) <= {"store", "backup.tar", "back"}  # parts and scratch are swept


def test_a_killed_restore_leaves_one_store_or_the_other(tmp_path, count):
    rng = random.Random(6)
    for number in range(2):
        with open_store(tmp_path / "store", "w", seal_rows=child.ROWS) as store:
            store.upsert("job", child.version(number))
        backup(tmp_path / "store", tmp_path / f"backup-{number}.tar", neighbours=neighbours)
    for _ in range(count(reduced=3, full=20)):
        done = run_and_kill("restore", tmp_path, rng, 0.3)
        if not (tmp_path / "restored").exists():
            assert not done
            continue
        assert whole(tmp_path / "restored") in (0, 1)
        with open_store(tmp_path / "restored", "w") as store:
            assert store.verify() == []
    restore(tmp_path / "backup-1.tar", tmp_path / "restored", replace=True, neighbours=neighbours)
    assert whole(tmp_path / "restored") == 1
    assert not (tmp_path / ".restored.restore").exists()
