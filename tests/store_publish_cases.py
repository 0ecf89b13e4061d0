"""A store to publish, and what is seen of it where it arrives."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from store_fakes import contents, frame, open_store, record, seal_both

from matchwright.engine.store.remote import Target

N = 300


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A store with two sealed segments, tombstones, live rows and a record of an older epoch."""
    folder = tmp_path_factory.mktemp("publish") / "store"
    with open_store(folder, "w", chunk_rows=N) as store:
        seal_both(store, N)
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
