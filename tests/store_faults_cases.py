"""A small store of everything, file systems that are full or read-only, and what damages a file."""

from __future__ import annotations

import os
import subprocess
from contextlib import contextmanager, suppress

import pytest
import store_fakes as fakes
from store_fakes import contents, frame, open_store, record, seal_both

MIB = 1 << 20
neighbours = fakes.neighbours()
N = 60


def fill_store(folder):
    """A store with a segment of each kind, tombstones and live rows."""
    with open_store(folder, "w", chunk_rows=N, retain_s=0) as store:
        seal_both(store, N)
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
