"""Making the folder and the catalog of a new store."""

from __future__ import annotations

import os
import uuid as uuids
from pathlib import Path

from matchwright.engine.errors import InvalidArgument, NotFound
from matchwright.engine.store import blobs, files
from matchwright.engine.store.catalog import FILE, Catalog, State
from matchwright.engine.store.encode import Neighbours
from matchwright.engine.store.refit import save_generation

SALT_BYTES = 16


def make_folders(root: Path) -> None:
    """The folders of a store, there or not."""
    try:
        (root / "segments").mkdir(parents=True, exist_ok=True)
        (root / "generations").mkdir(exist_ok=True)
        files.sync_folder(root)
    except OSError as error:
        raise files.failure(root, error)


def create(root: Path, neighbours: Neighbours, keep_text: bool, salt: bytes | None) -> None:
    """Makes the catalog, unless it is there. Killed in between, the next creation goes on."""
    salt = os.urandom(SALT_BYTES) if salt is None else salt
    if len(salt) != SALT_BYTES:
        raise InvalidArgument(f"got a salt of {len(salt)} bytes, expected {SALT_BYTES}")
    made = Catalog(root / FILE, write=True)
    try:
        made.check()
    except NotFound:
        generation = neighbours.starter()
        save_generation(root, generation)
        name = str(uuids.uuid4())
        digest = blobs.digest(name.encode(), salt)
        made.create(State(name, salt, keep_text, 0, digest, generation.id, 3, 1, 1, 2))
        files.sync_folder(root)
    finally:
        made.close()
