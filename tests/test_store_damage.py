"""Damaged, cut off, swapped and newer files: an error that names the file, never half an answer."""

from __future__ import annotations

import random
import shutil
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from store_fakes import contents, flip, frame, open_store, record, seal_both

from matchwright.engine.errors import StoreDamaged, StoreError, StoreFormat
from matchwright.engine.store import segment_file
from matchwright.engine.store.segment_file import BLOCK, SegmentFile, write_segment

N = 200


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A store with one segment of each kind, tombstones and live rows."""
    folder = tmp_path_factory.mktemp("damage") / "store"
    with open_store(folder, "w", chunk_rows=N) as store:
        seal_both(store, N)
        store.delete("job", ["x3", "x5"])
        store.upsert("job", frame(record("live")))
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "store"))


def segment_of(folder, kind="job"):
    (path,) = (folder / "segments").glob(f"{kind}-*")
    return path


def use(folder):
    """Everything that a server reads."""
    with open_store(folder) as store:
        snapshot = store.snapshot()
        return [contents(snapshot, kind) for kind in ("job", "freelancer")]


def verified(folder):
    """The names of damaged files, as opening or else verifying says."""
    try:
        with open_store(folder) as store:
            return [Path(error.details["file"]).name for error in store.verify()]
    except StoreDamaged as error:
        return [Path(error.details["file"]).name]


def test_every_flipped_bit_of_a_segment_is_noticed(folder, count):
    path = segment_of(folder)
    expected = use(folder)
    data = path.read_bytes()
    rng = random.Random(1)
    size = len(data)
    offsets = [*range(64), *range(size - 64, size)]
    offsets += [rng.randrange(size) for _ in range(count(reduced=60, full=5_000))]
    for offset in offsets[:: count(reduced=3, full=1)]:
        flip(path, offset, 1 << rng.randrange(8))
        with pytest.raises(StoreDamaged, match=path.name) as caught:
            use(folder)
        assert Path(caught.value.details["file"]).name == path.name
        assert verified(folder) == [path.name]
        path.write_bytes(data)
    assert use(folder) == expected


@pytest.mark.parametrize("keep", [0, 1, 63, 128, 1000, -1, -64])
def test_a_truncated_segment_is_named(folder, keep):
    path = segment_of(folder)
    data = path.read_bytes()
    path.write_bytes(data[:keep])
    with pytest.raises(StoreDamaged, match=path.name):
        use(folder)
    path.write_bytes(data + b"more")
    with pytest.raises(StoreDamaged, match=path.name):
        use(folder)


def test_a_missing_segment_is_named(folder):
    path = segment_of(folder)
    path.unlink()
    with pytest.raises(StoreDamaged, match=f"{path.name}.*not there"):
        use(folder)


def test_a_valid_segment_in_the_place_of_another_is_noticed(folder):
    path = segment_of(folder)
    shutil.copy(segment_of(folder, "freelancer"), path)
    with pytest.raises(StoreDamaged, match=f"{path.name}.*not the file that the manifest names"):
        use(folder)


def test_a_block_is_checked_when_it_is_first_read(tmp_path):
    big = np.arange(BLOCK, dtype=np.int32)
    written = write_segment(tmp_path, 1, 3, {"kind": "job"}, {"one": big, "two": big + 1})
    path = tmp_path / written.file
    flip(path, 64 + big.nbytes + 5 * BLOCK // 2)
    file = SegmentFile(path, written.digest)
    assert np.array_equal(file.array("one"), big)
    with pytest.raises(StoreDamaged, match=r"block 6 .*does not match"):
        file.array("two")
    with pytest.raises(StoreDamaged, match="block 6"):
        file.verify()


def test_arrays_come_back_aligned_and_read_only(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        f"{dtype}/{n}": (rng.random(shape) * 100).astype(dtype)
        for n, shape in enumerate([(), (0,), (3, 0), (1,), (7, 5), (300_001,)])
        for dtype in ("int8", "uint64", "float32", "bool", "int32", "float64", "uint16")
    }
    written = write_segment(tmp_path, 5, 9, {"kind": "job", "x": 1}, arrays)
    file = SegmentFile(tmp_path / written.file, written.digest)
    assert (file.n, file.number, file.size, file.about["x"]) == (9, 5, written.size, 1)
    for name, array in arrays.items():
        read = file.array(name)
        assert read.dtype == array.dtype
        assert read.shape == array.shape
        assert np.array_equal(read, array)
        if array.size:
            assert not read.flags.writeable
            assert read.ctypes.data % 64 == 0
    file.verify()
    assert [path.name for path in tmp_path.iterdir()] == [written.file]


def test_only_plain_arrays_are_written(tmp_path):
    for array in (np.array(["text"]), np.array([1], dtype=">i4"), np.array([None])):
        with pytest.raises(StoreError, match="dtype"):
            write_segment(tmp_path, 1, 1, {"kind": "job"}, {"bad": array})


def test_a_newer_segment_format_is_refused(folder, monkeypatch):
    path = segment_of(folder)
    old = SegmentFile(path)
    arrays = {name: old.array(name).copy() for name in old.names}
    about = {key: old.about[key] for key in ("kind", "generation", "store")}
    monkeypatch.setattr(segment_file, "FORMAT", 2)
    write_segment(path.parent, old.number, old.n, about, arrays)
    monkeypatch.undo()
    with pytest.raises(StoreFormat, match=f"{path.name}.*has format 2.*newer matchwright"):
        use(folder)


def change(folder, statement, *values):
    connection = sqlite3.connect(folder / "catalog.sqlite")
    with connection:
        connection.execute(statement, values)
    connection.close()


def test_a_newer_or_foreign_catalog_is_refused(folder):
    change(folder, "PRAGMA user_version = 3")
    with pytest.raises(StoreFormat, match=r"catalog\.sqlite.*has format 3"):
        use(folder)
    change(folder, "PRAGMA application_id = 7")
    with pytest.raises(StoreFormat, match="not a store's catalog"):
        use(folder)


def test_a_catalog_that_is_no_database_is_named(folder):
    path = folder / "catalog.sqlite"
    data = path.read_bytes()
    path.write_bytes(b"x" * len(data))
    with pytest.raises(StoreDamaged, match=r"catalog\.sqlite"):
        use(folder)
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(StoreDamaged, match=r"catalog\.sqlite"):
        use(folder)


@pytest.mark.parametrize(
    ("statement", "seen_in_use"),
    [
        ("UPDATE state SET number = number + 1", True),
        ("UPDATE state SET salt = zeroblob(16)", True),
        ("UPDATE dead SET rows = zeroblob(length(rows))", True),
        ("UPDATE live SET rows = substr(rows, 1, length(rows) - 9) || zeroblob(9)", True),
        ("DELETE FROM live", False),
        ("UPDATE job SET body = substr(body, 1, length(body) - 1)", True),
        ("UPDATE job SET body = x'0181' WHERE id = 'x9'", True),
        ("UPDATE job SET id = 'other' WHERE id = 'x9'", True),
    ],
)
def test_changed_values_in_the_catalog_are_noticed(folder, statement, seen_in_use):
    change(folder, statement)
    if seen_in_use:
        with pytest.raises(StoreDamaged, match=r"catalog\.sqlite"):
            use(folder)
        return
    with open_store(folder) as store:
        assert store.verify()


def test_verify_lists_every_damage(folder):
    with open_store(folder) as store:
        assert store.verify() == []
    change(folder, "UPDATE job SET body = x'00' WHERE id = 'x9'")
    for kind in ("job", "freelancer"):
        flip(segment_of(folder, kind), 1000)
    with open_store(folder) as store:
        found = store.verify()
    named = [Path(error.details["file"]).name for error in found]
    segments = [segment_of(folder, kind).name for kind in ("job", "freelancer")]
    assert named == ["catalog.sqlite", *segments]


def test_flipped_bits_of_the_catalog_never_raise_anything_else(folder, count):
    """SQLite has no page checksums: what it cannot notice, hashes of records and values do."""
    path = folder / "catalog.sqlite"
    data = path.read_bytes()
    rng = random.Random(4)
    for _ in range(count(reduced=60, full=5_000)):
        flip(path, rng.randrange(len(data)), 1 << rng.randrange(8))
        try:
            use(folder)
        except (StoreError, StoreFormat):
            pass
        except AssertionError:
            with open_store(folder) as store:
                assert store.verify()
        path.write_bytes(data)
