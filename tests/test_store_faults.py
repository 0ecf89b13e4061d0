"""Bad days: no room, no permission, damaged, newer and vanished files, and a disk that fails.

Each ends in an error that names the file and says what to do; nothing that was acknowledged is
lost, readers stay up on the epoch that they have, and all goes on when the trouble is over.
"""

from __future__ import annotations

import errno
import json
import os
import pathlib
import random
import shutil
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
import store_fakes as fakes
from store_fakes import contents, frame, open_store, record

from matchwright.engine.cli import main
from matchwright.engine.errors import (
    FailedPrecondition,
    NotFound,
    StoreDamaged,
    StoreError,
    StoreFormat,
    StoreFull,
    StoreReadOnly,
)
from matchwright.engine.store import Store, files, loader
from matchwright.engine.store.backup import backup
from matchwright.engine.store.catalog import FILE, FORMAT, Catalog
from matchwright.engine.store.check import damages
from matchwright.engine.store.encode import default_neighbours
from matchwright.engine.store.publish import publish
from matchwright.engine.store.pull import pull
from matchwright.engine.store.restore import restore

HERE = Path(__file__).parent
MIB = 1 << 20


neighbours = fakes.neighbours()
N = 60


def fill_store(folder):
    """A store with a segment of each kind, tombstones and live rows."""
    with open_store(folder, "w", chunk_rows=N, retain_s=0) as store:
        for kind in ("job", "freelancer"):
            with store.bulk(kind) as sink:
                sink.write(frame(*(record(f"x{n}", n) for n in range(N))))
        store.delete("job", ["x3"])
        store.upsert("job", frame(record("live")))
    return folder


@pytest.fixture
def root(tmp_path):
    return fill_store(tmp_path / "store")


def held(store):
    return contents(store.snapshot(), "job")


# ── Mounts ────────────────────────────────────────────────────────────────────────────────────


def _mount(*arguments):
    if os.geteuid() != 0:
        pytest.skip("mounting a file system needs root")
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"mounting is not allowed here: {done.stderr.strip()}")


class Disk:
    """A small file system of its own."""

    def __init__(self, folder):
        self.folder = folder
        self._ballast = folder / "ballast"

    def fill(self, keep=0):
        """Leaves at most ``keep`` bytes free."""
        with self._ballast.open("ab") as file:
            for size in (MIB, 4_096):
                with suppress(OSError):
                    while self.free() > keep + size:
                        os.write(file.fileno(), bytes(size))
            if not keep:
                with suppress(OSError):
                    while True:
                        os.write(file.fileno(), bytes(4_096))

    def free(self):
        disk = os.statvfs(self.folder)
        return disk.f_bavail * disk.f_frsize

    def relieve(self):
        self._ballast.unlink(missing_ok=True)


@pytest.fixture
def disk(tmp_path):
    """16 MiB in memory."""
    folder = tmp_path / "disk"
    folder.mkdir()
    _mount("-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder))
    yield Disk(folder)
    subprocess.run(["umount", "-l", str(folder)], check=True)


@contextmanager
def read_only(folder):
    """A folder that nobody can write to, root included."""
    _mount("--bind", str(folder), str(folder))
    try:
        _mount("-o", "remount,bind,ro", str(folder))
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


# ── No room ───────────────────────────────────────────────────────────────────────────────────

TEXT = "many words " * 3_000


def upsert(store, n):
    store.upsert("job", frame(record(f"new{n}", n, text=TEXT)))
    return {f"new{n}": record(f"new{n}", n, text=TEXT)}


def bulk(store, n):
    rows = [record(f"b{n}-{m}", m, text=f"{m} {TEXT[: 40 * m]}") for m in range(N)]
    with store.bulk("job") as sink:
        sink.write(frame(*rows))
    return {row["id"]: row for row in rows}


def refit(store, n):
    store.refit(seed=n, sample=9, as_of=n)
    return {}


def seal(store, n):
    rows = [record(f"s{n}-{m}", m) for m in range(N)]
    store.upsert("job", frame(*rows))
    with suppress_full():
        store.seal()
    return {row["id"]: row for row in rows}


def patch(store, n):
    store.patch("job", "live", {"text": f"{n} {TEXT}"})
    return {"live": record("live", text=f"{n} {TEXT}")}


@contextmanager
def suppress_full():
    try:
        yield
    except StoreFull as error:
        suppress_full.seen.append(error)


suppress_full.seen = []


@pytest.mark.parametrize("way", [upsert, bulk, patch, refit, seal])
def test_a_full_disk_refuses_and_loses_nothing(disk, way):
    root = fill_store(disk.folder / "store")
    suppress_full.seen.clear()
    with open_store(root, "w", chunk_rows=N, retain_s=0) as store, open_store(root) as reader:
        model = held(store)
        disk.fill()
        error = None
        for n in range(300):
            try:
                model |= way(store, n)
            except StoreFull as full:
                error = full
                break
            if suppress_full.seen:
                error = suppress_full.seen.pop()
                break
            disk.fill()
        assert error is not None
        assert str(root) in str(error)
        assert "free some space" in str(error)
        assert error.exit_code == 75
        assert held(store) == model
        assert held(reader) == model
        assert reader.trouble is None
        with store._catalog.look() as connection:
            named = {row.file for row in store._catalog.all_segments(connection)}
        assert {path.name for path in (root / "segments").iterdir()} == named
        disk.relieve()
        suppress_full.seen.clear()
        model |= way(store, 1_000)
        assert not suppress_full.seen
        epoch = store.snapshot().epoch
        assert reader.snapshot(min_epoch=epoch.number).epoch == epoch
        assert held(reader) == held(store) == model
    assert damages(root, neighbours) == []
    with open_store(root) as store:
        assert held(store) == model


def test_a_store_opens_and_closes_on_a_full_disk(disk):
    root = fill_store(disk.folder / "store")
    with open_store(root) as reader:
        disk.fill()
        with open_store(root, "w") as store:
            assert held(store) == held(reader)
        assert held(reader)
    assert damages(root, neighbours) == []


def test_a_store_that_cannot_be_made_is_not_half_there(disk):
    disk.fill()
    with pytest.raises(StoreFull, match="free some space"):
        open_store(disk.folder / "store", "w")
    disk.relieve()
    with open_store(disk.folder / "store", "w") as store:
        store.upsert("job", frame(record("a")))


@pytest.mark.parametrize("way", ["publish", "pull", "backup", "restore"])
def test_a_full_target_gets_nothing(disk, tmp_path, root, way):
    source = tmp_path / "b.tar"
    backup(root, source, neighbours=neighbours)
    publish(root, tmp_path / "target")
    ways = {
        "publish": lambda folder: publish(root, folder / "target"),
        "pull": lambda folder: pull(tmp_path / "target", folder / "replica"),
        "backup": lambda folder: backup(root, folder / "b.tar", neighbours=neighbours),
        "restore": lambda folder: restore(source, folder / "back", neighbours=neighbours),
    }
    (disk.folder / "dry").mkdir()
    ways[way](disk.folder / "dry")
    needed = -disk.free()
    shutil.rmtree(disk.folder / "dry")
    needed += disk.free()
    # First no room at all, then room for something, but not for all.
    for keep in (0, needed // 4, needed // 2):
        disk.relieve()
        disk.fill(keep // 4_096 * 4_096)
        with pytest.raises(StoreFull, match=f"{disk.folder}.*free some space"):
            ways[way](disk.folder)
        here = {path.name for path in disk.folder.rglob("*") if path.is_file()}
        assert not here & {"CURRENT.json", "b.tar", "catalog.sqlite"}
        assert not [name for name in here if name.endswith(".part")]
    disk.relieve()
    ways[way](disk.folder)
    if way == "pull":
        assert damages(disk.folder / "replica", neighbours) == []
        with open_store(root, "w") as store:
            store.upsert("job", frame(record("live", 3)))
        publish(root, tmp_path / "target")
        with open_store(disk.folder / "replica") as reader:
            before = held(reader)
            disk.fill()
            with pytest.raises(StoreFull):
                ways[way](disk.folder)
            assert held(reader) == before
            disk.relieve()
            ways[way](disk.folder)
            time.sleep(0.06)
            assert held(reader)["live"]["rate_cents"] == 3


def test_a_limit_on_file_sizes_is_a_full_disk(tmp_path, root):
    publish(root, tmp_path / "target")
    backup(root, tmp_path / "backup.tar", neighbours=neighbours)
    child = subprocess.run(
        [sys.executable, HERE / "store_faults_child.py", tmp_path, "20000"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    told = [json.loads(line) for line in child.stdout.splitlines()]
    ways = ["upsert", "bulk", "refit", "publish", "pull", "backup", "restore"]
    assert [one["way"] for one in told] == ways
    for one in told:
        assert (one["way"], one["error"]) == (one["way"], "STORE_FULL"), one
        assert str(tmp_path) in one["message"] or "/tmp" in one["message"]
        assert "limit on file sizes" in one["message"]
        assert one["file"]
        assert one["exit"] == 75
        assert (one["kept"], one["read"], one["trouble"], one["after"]) == (True, True, "", True)
    assert damages(root, neighbours) == []
    assert damages(tmp_path / "replica", neighbours) == []
    assert damages(tmp_path / "back", neighbours) == []


def test_a_killed_import_goes_on(tmp_path, count):
    rng = random.Random(12)
    rows = [{"id": f"j{n}", "title": "Web shop", "text": f"{n} {TEXT[:900]}"} for n in range(4_000)]
    source, root = tmp_path / "jobs.jsonl", tmp_path / "store"
    source.write_text("\n".join(map(json.dumps, rows)))
    program = [sys.executable, "-m", "matchwright.engine.cli"]
    command = [*program, "ingest", "jobs", source, "--store", root]
    for _ in range(count(reduced=2, full=20)):
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
            try:
                child.communicate(timeout=rng.uniform(0.4, 3.0))
            except subprocess.TimeoutExpired:
                child.kill()
        with suppress(NotFound):  # killed before there was a store
            assert damages(root, default_neighbours()) == []
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    with Store.open(root, mode="w") as store:
        assert store.snapshot().count("job") == len(rows)
        assert store.verify() == []


def test_an_import_on_a_full_disk_says_how_to_go_on(disk, tmp_path, capfd):
    rows = [{"id": f"j{n}", "title": "Web shop", "text": f"{n} {TEXT[:200]}"} for n in range(40)]
    source = tmp_path / "jobs.jsonl"
    source.write_text("\n".join(map(json.dumps, rows)))
    command = ["ingest", "jobs", str(source), "--store", str(disk.folder / "store")]
    assert main(command) == 0
    rows = [{**row, "id": f"more-{row['id']}", "text": f"{row['id']} {TEXT}"} for row in rows]
    source.write_text("\n".join(map(json.dumps, rows)))
    disk.fill()
    capfd.readouterr()
    assert main(command) == 75
    line = capfd.readouterr().err.splitlines()[-1]
    assert str(disk.folder / "store") in line
    assert "free some space" in line
    disk.relieve()
    assert main(command) == 0
    with Store.open(disk.folder / "store") as store:
        assert store.snapshot().count("job") == 80
        assert store.verify() == []


# ── No permission ─────────────────────────────────────────────────────────────────────────────


def test_a_read_only_store_is_read_and_copied(root, tmp_path):
    with open_store(root) as store:
        before = held(store)
    with read_only(root):
        with pytest.raises(StoreReadOnly, match=r"LOCK.*read-write") as caught:
            open_store(root, "w")
        assert caught.value.exit_code == 2
        with open_store(root) as store:
            assert held(store) == before
            with pytest.raises(StoreReadOnly, match="leases"):
                store.keep("nightly")
        assert damages(root, neighbours) == []
        publish(root, tmp_path / "target")
        backup(root, tmp_path / "b.tar", neighbours=neighbours)
        for way in (
            lambda: pull(tmp_path / "target", root / "replica"),
            lambda: publish(root, root / "target"),
            lambda: backup(root, root / "b.tar", neighbours=neighbours),
            lambda: restore(tmp_path / "b.tar", root / "back", neighbours=neighbours),
        ):
            with pytest.raises(StoreReadOnly, match=f"{root}.*read-write"):
                way()
    pull(tmp_path / "target", tmp_path / "replica")
    restore(tmp_path / "b.tar", tmp_path / "back", neighbours=neighbours)
    for copy in ("replica", "back"):
        with open_store(tmp_path / copy) as store:
            assert held(store) == before
    with open_store(root, "w") as store:
        store.upsert("job", frame(record("more")))


def test_a_log_in_a_read_only_folder_is_explained(root, tmp_path):
    with open_store(root, "w") as store:
        store.upsert("job", frame(record("in the log")))
        shutil.copytree(root, tmp_path / "cut")  # as after kill -9: the log is still there
    (tmp_path / "cut" / "catalog.sqlite-shm").unlink()
    with read_only(tmp_path / "cut"):
        with pytest.raises(StoreError, match=r"catalog\.sqlite.*needs write access to the folder"):
            open_store(tmp_path / "cut")
    with open_store(tmp_path / "cut") as store:
        assert "in the log" in held(store)


def test_a_read_only_replica_is_served(root, tmp_path):
    publish(root, tmp_path / "target")
    pull(tmp_path / "target", tmp_path / "replica")
    with read_only(tmp_path / "replica"), open_store(tmp_path / "replica") as store:
        with open_store(root) as original:
            assert held(store) == held(original)


# ── Files that are damaged, newer or gone under a reader ──────────────────────────────────────


def in_place(path, data):
    """Another file under the same name: what is mapped stays what it was."""
    other = path.with_name("other")
    other.write_bytes(data)
    other.rename(path)


def cut(path):
    in_place(path, path.read_bytes()[:-100])


def flip(path):
    data = bytearray(path.read_bytes())
    data[20] ^= 4
    in_place(path, data)


def newer(path):
    data = path.read_bytes()
    header = bytearray(data[:60])
    header[8] = 9
    import zlib

    in_place(path, bytes(header) + zlib.crc32(header).to_bytes(4, "little") + data[64:])


def vanish(path):
    path.unlink()


@pytest.mark.parametrize(
    ("spoil", "kind"),
    [(cut, StoreDamaged), (flip, StoreDamaged), (newer, StoreFormat), (vanish, StoreDamaged)],
)
def test_readers_stay_on_the_epoch_that_they_have(root, monkeypatch, caplog, spoil, kind):
    monkeypatch.setattr(loader, "RETRY_S", 0.02)
    with open_store(root, "w", chunk_rows=N) as store, open_store(root) as reader:
        before = held(reader)
        earlier = set((root / "segments").iterdir())
        with store.bulk("job") as sink:
            sink.write(frame(*(record(f"y{n}", n) for n in range(N))))
        (path,) = set((root / "segments").iterdir()) - earlier
        sound = path.read_bytes()
        spoil(path)
        time.sleep(0.06)
        assert held(reader) == before
        assert type(reader.trouble) is kind
        assert path.name in str(reader.trouble)
        assert [entry.message for entry in caplog.records].count(caplog.messages[0]) == 1
        assert path.name in caplog.text
        with pytest.raises(FailedPrecondition, match=f"cannot go on .{kind.reason}, see the log"):
            reader.snapshot(min_epoch=store.snapshot().epoch.number)
        with pytest.raises(kind, match=path.name):
            open_store(root)
        in_place(path, sound)
        time.sleep(0.1)
        assert held(reader) == held(store) != before
        assert reader.trouble is None


def test_a_reader_stays_up_when_the_catalog_becomes_newer(root, monkeypatch):
    monkeypatch.setattr(loader, "RETRY_S", 0.02)
    with open_store(root) as reader, closing(Catalog(root / FILE, write=True)) as other:
        before, number = held(reader), reader.snapshot().epoch.number

        def become(version, number):
            with other.change() as connection:
                state = other.state(connection)
                other.rewrite_state(connection, replace(state, number=number))
                connection.execute(f"PRAGMA user_version = {version}")
            time.sleep(0.06)

        become(99, number + 1)
        assert held(reader) == before
        assert type(reader.trouble) is StoreFormat
        for mode in ("r", "w"):
            with pytest.raises(StoreFormat, match=r"catalog\.sqlite.*format 99.*newer matchwright"):
                open_store(root, mode)
        become(FORMAT, number)
        assert held(reader) == before
        assert reader.trouble is None


# ── A disk that fails ─────────────────────────────────────────────────────────────────────────


@contextmanager
def failing(monkeypatch, number, part, modes="rb"):
    """Opening a file whose path has ``part`` in it ends in an error of the operating system."""
    original = pathlib.Path.open
    met = []

    def opened(self, mode="r", *arguments, **options):
        if part in str(self) and mode in modes.split("|"):
            met.append(str(self))
            raise OSError(number, os.strerror(number), str(self))
        return original(self, mode, *arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(pathlib.Path, "open", opened)
        yield met
    assert met


@pytest.mark.parametrize(
    ("number", "hint"),
    [(errno.EIO, "check the disk"), (errno.EMFILE, "ulimit -n"), (errno.EACCES, "check the disk")],
)
def test_a_segment_that_cannot_be_read_is_named(root, tmp_path, monkeypatch, number, hint):
    ways = (
        lambda: open_store(root),
        lambda: publish(root, tmp_path / "target"),
        lambda: backup(root, tmp_path / "b.tar", neighbours=neighbours),
    )
    for way in ways:
        with failing(monkeypatch, number, ".mwseg"):
            with pytest.raises(StoreError, match=rf"\.mwseg: could not be read.*{hint}"):
                way()
    with failing(monkeypatch, number, ".mwseg"):
        found = damages(root, neighbours)
    assert [Path(error.details["file"]).suffix for error in found] == [".mwseg"] * 2
    assert not (tmp_path / "b.tar").exists()
    assert not (tmp_path / "target" / "CURRENT.json").exists()


def test_a_reader_stays_up_while_the_disk_fails(root, monkeypatch):
    monkeypatch.setattr(loader, "RETRY_S", 0.02)
    with open_store(root, "w", chunk_rows=N) as store, open_store(root) as reader:
        before = held(reader)
        with store.bulk("job") as sink:
            sink.write(frame(*(record(f"y{n}", n) for n in range(N))))
        with failing(monkeypatch, errno.EIO, ".mwseg"):
            time.sleep(0.06)
            assert held(reader) == before
            assert "check the disk" in str(reader.trouble)
        time.sleep(0.06)
        assert held(reader) == held(store)
        assert reader.trouble is None


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EROFS])
def test_a_segment_that_cannot_be_written_changes_nothing(root, monkeypatch, number):
    kinds = {errno.EIO: StoreError, errno.ENOSPC: StoreFull, errno.EROFS: StoreReadOnly}
    with open_store(root, "w", chunk_rows=N) as store:
        before, earlier = held(store), set((root / "segments").iterdir())
        for way in (bulk, refit, lambda opened, _: opened.seal()):
            with failing(monkeypatch, number, ".mwseg", "wb"):
                with pytest.raises(kinds[number], match=r"\.mwseg: could not be written"):
                    way(store, 5)
            assert held(store) == before
            assert set((root / "segments").iterdir()) == earlier
        bulk(store, 6)
    assert damages(root, neighbours) == []


def test_a_sync_that_fails_is_no_acknowledgement(root, monkeypatch):
    def broken(_):
        raise OSError(errno.EIO, "Input/output error")

    with open_store(root, "w", chunk_rows=N) as store:
        before, earlier = held(store), set((root / "segments").iterdir())
        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", broken)
            for way in (bulk, refit):
                with pytest.raises(StoreError, match="check the disk"):
                    way(store, 5)
        assert held(store) == before
        assert set((root / "segments").iterdir()) == earlier


def test_a_commit_that_fails_leaves_no_file(root, monkeypatch):
    """The segment is there before its commit; when that fails, it goes."""
    with open_store(root, "w", chunk_rows=N) as store:
        before, earlier = held(store), set((root / "segments").iterdir())

        def broken(*_):
            raise StoreFull("no room")

        with monkeypatch.context() as patched:
            patched.setattr(store._catalog, "put_state", broken)
            for way in (bulk, refit, lambda opened, _: opened.seal()):
                with pytest.raises(StoreFull, match="no room"):
                    way(store, 5)
                assert held(store) == before
                assert set((root / "segments").iterdir()) == earlier
        bulk(store, 6)
    assert damages(root, neighbours) == []


def test_a_file_of_a_doubtful_commit_stays_until_the_next(root):
    """A commit that fails on its way to the disk may be found in the log after a crash."""
    with open_store(root, "w", chunk_rows=N) as store:
        before, earlier = held(store), set((root / "segments").iterdir())
        real = store._catalog._connect
        connections = []

        class Broken:
            def __init__(self):
                self._connection = real()
                connections.append(self)

            def execute(self, statement, *arguments):
                if statement == "COMMIT" and Broken.on:
                    raise sqlite3.OperationalError("disk I/O error")
                return self._connection.execute(statement, *arguments)

            def __getattr__(self, name):
                return getattr(self._connection, name)

        Broken.on = True
        for connection in store._catalog._free:
            connection.close()
        store._catalog._free.clear()
        store._catalog._connect = Broken
        for way in (bulk, refit):
            with pytest.raises(StoreError, match="disk I/O error"):
                way(store, 5)
            assert held(store) == before
        doubtful = set((root / "segments").iterdir()) - earlier
        assert len(doubtful) == 3
        Broken.on = False
        store.upsert("job", frame(record("next")))
        assert set((root / "segments").iterdir()) == earlier
        bulk(store, 6)
    assert damages(root, neighbours) == []


def test_a_lock_that_cannot_be_written_to_still_locks(root, monkeypatch):
    def broken(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", broken)
        lock = files.WriterLock(root / "LOCK")
    with pytest.raises(StoreError, match="is writing to this store"):
        open_store(root, "w")
    lock.release()


# ── Checking everything ───────────────────────────────────────────────────────────────────────


@pytest.fixture
def real(tmp_path, capfd):
    """A store of the engine's own records."""
    rows = [{"id": f"j{n}", "title": "Web shop", "text": f"number {n}"} for n in range(30)]
    source = tmp_path / "jobs.jsonl"
    source.write_text("\n".join(map(json.dumps, rows)))
    assert main(["ingest", "jobs", str(source), "--store", str(tmp_path / "real")]) == 0
    capfd.readouterr()
    return tmp_path / "real"


def verify(folder, capfd):
    code = main(["store", "verify", "--store", str(folder), "--format", "json"])
    told = capfd.readouterr()
    return code, told.out, told.err


def test_verify_names_every_damaged_file(real, capfd):
    code, out, _ = verify(real, capfd)
    assert (code, json.loads(out)) == (0, {"sound": True, "damages": []})
    spoilt = [next((real / "segments").iterdir()), next((real / "generations").rglob("id"))]
    for path in spoilt:
        data = bytearray(path.read_bytes())
        data[len(data) // 3] ^= 1
        path.write_bytes(data)
    (real / "leases").mkdir(exist_ok=True)
    (real / "leases" / "mine.json").write_text("{}")
    code, out, _ = verify(real, capfd)
    document = json.loads(out)
    assert (code, document["sound"]) == (6, False)
    named = {Path(damage["file"]).name for damage in document["damages"]}
    assert named >= {spoilt[0].name, "mine.json"}
    assert any("generation" in damage["message"] for damage in document["damages"])
    assert main(["store", "verify", "--store", str(real), "--format", "table"]) == 6
    assert spoilt[0].name in capfd.readouterr().out


def test_verify_goes_on_when_the_catalog_cannot_be_read(real, capfd):
    (real / "catalog.sqlite").write_bytes(b"x" * 10_000)
    path = next((real / "segments").iterdir())
    path.write_bytes(path.read_bytes()[:-1])
    code, out, _ = verify(real, capfd)
    named = [Path(damage["file"]).name for damage in json.loads(out)["damages"]]
    assert (code, set(named)) == (6, {"catalog.sqlite", path.name})


def test_verify_of_no_store_and_of_a_newer_one(real, tmp_path, capfd):
    assert verify(tmp_path / "nowhere", capfd)[0] == 2
    connection = sqlite3.connect(real / "catalog.sqlite")
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    code, _, err = verify(real, capfd)
    assert (code, json.loads(err)["error"]["reason"]) == (3, "STORE_FORMAT")


# ── On the command line ───────────────────────────────────────────────────────────────────────


def run(capfd, *arguments):
    code = main([*map(str, arguments), "--format", "json"])
    told = capfd.readouterr()
    return code, json.loads(told.out if code == 0 else told.err)


def test_copies_on_the_command_line(real, tmp_path, capfd):
    url, copy, tar = tmp_path / "target", tmp_path / "replica", tmp_path / "b.tar"
    code, done = run(capfd, "store", "publish", "--store", real, "--to", url, "--name", "shop")
    assert (code, done["changed"]) == (0, True)
    pulling = ("store", "pull", "--from", url, "--name", "shop", "--store", copy)
    code, pulled = run(capfd, *pulling)
    assert (code, pulled["epoch"]) == (0, done["epoch"])
    code, failed = run(capfd, "store", "refit", "--store", copy)
    assert (code, failed["error"]["reason"]) == (2, "FAILED_PRECONDITION")
    code, failed = run(capfd, "store", "pull", "--store", copy)
    assert (code, failed["error"]["reason"]) == (2, "INVALID_ARGUMENT")
    code, done = run(capfd, "store", "pull", "--promote", "--store", copy)
    assert (code, done["promoted"]) == (0, True)
    assert run(capfd, *pulling)[0] == 2
    code, done = run(capfd, "store", "backup", "--store", copy, "--to", tar)
    assert (code, done["records"]["job"]) == (0, 30)
    restoring = ("store", "restore", "--from", tar, "--store", tmp_path / "back")
    assert run(capfd, *restoring)[0] == 0
    code, failed = run(capfd, *restoring)
    assert (code, failed["error"]["reason"]) == (2, "ALREADY_EXISTS")
    assert run(capfd, *restoring, "--replace")[1]["replaced"]
    assert verify(tmp_path / "back", capfd)[0] == 0


def test_a_backup_through_a_pipe_on_the_command_line(real, tmp_path):
    program = [sys.executable, "-m", "matchwright.engine.cli", "store"]
    made = subprocess.run(
        [*program, "backup", "--store", real, "--to", "-"], capture_output=True, check=True
    )
    assert b"files" in made.stderr
    subprocess.run(
        [*program, "restore", "--from", "-", "--store", tmp_path / "back"],
        input=made.stdout,
        capture_output=True,
        check=True,
    )
    assert (tmp_path / "back" / "catalog.sqlite").exists()
