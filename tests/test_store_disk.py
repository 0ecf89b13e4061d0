"""Files that are damaged, newer or gone under a reader, and a disk that fails.

Each is named; readers stay up on the epoch that they have, and nothing that was acknowledged is
lost.
"""

# ruff: noqa: F401, F811 (fixtures come by import)
from __future__ import annotations

import errno
import os
import pathlib
import sqlite3
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from store_fakes import frame, look_always, open_store, record
from store_faults_cases import N, bulk, held, neighbours, refit, root

from matchwright.engine.errors import (
    FailedPrecondition,
    StoreDamaged,
    StoreError,
    StoreFormat,
    StoreFull,
    StoreReadOnly,
)
from matchwright.engine.store import files, loader
from matchwright.engine.store.backup import backup
from matchwright.engine.store.catalog import FILE, FORMAT, Catalog
from matchwright.engine.store.check import damages
from matchwright.engine.store.publish import publish

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
    look_always(monkeypatch)
    with open_store(root, "w", chunk_rows=N) as store, open_store(root) as reader:
        before = held(reader)
        earlier = set((root / "segments").iterdir())
        with store.bulk("job") as sink:
            sink.write(frame(*(record(f"y{n}", n) for n in range(N))))
        (path,) = set((root / "segments").iterdir()) - earlier
        sound = path.read_bytes()
        spoil(path)
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
        assert held(reader) == held(store) != before
        assert reader.trouble is None


def test_a_reader_stays_up_when_the_catalog_becomes_newer(root, monkeypatch):
    look_always(monkeypatch)
    with open_store(root) as reader, closing(Catalog(root / FILE, write=True)) as other:
        before, number = held(reader), reader.snapshot().epoch.number

        def become(version, number):
            with other.change() as connection:
                state = other.state(connection)
                other.rewrite_state(connection, replace(state, number=number))
                connection.execute(f"PRAGMA user_version = {version}")

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
    look_always(monkeypatch)
    with open_store(root, "w", chunk_rows=N) as store, open_store(root) as reader:
        before = held(reader)
        with store.bulk("job") as sink:
            sink.write(frame(*(record(f"y{n}", n) for n in range(N))))
        with failing(monkeypatch, errno.EIO, ".mwseg"):
            assert held(reader) == before
            assert "check the disk" in str(reader.trouble)
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
