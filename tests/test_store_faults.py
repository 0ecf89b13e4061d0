"""Bad days: no room and no permission.

Each ends in an error that names the file and says what to do; nothing that was acknowledged is
lost, and all goes on when the trouble is over.
"""

# ruff: noqa: F401, F811 (fixtures come by import)
from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from store_fakes import frame, look_always, open_store, record
from store_faults_cases import (
    TEXT,
    N,
    bulk,
    disk,
    fill_store,
    held,
    neighbours,
    read_only,
    refit,
    root,
    upsert,
)

from matchwright.engine.cli import main
from matchwright.engine.errors import NotFound, StoreError, StoreFull, StoreReadOnly
from matchwright.engine.store import Store
from matchwright.engine.store.backup import backup
from matchwright.engine.store.check import damages
from matchwright.engine.store.encode import default_neighbours
from matchwright.engine.store.publish import publish
from matchwright.engine.store.pull import pull
from matchwright.engine.store.restore import restore

HERE = Path(__file__).parent


# ── No room ───────────────────────────────────────────────────────────────────────────────────


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
def test_a_full_target_gets_nothing(disk, tmp_path, root, way, monkeypatch):
    look_always(monkeypatch)
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
