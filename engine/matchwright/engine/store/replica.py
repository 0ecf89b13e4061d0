"""What makes a folder a replica: a store that is pulled, and that no writer opens.

``REPLICA.json`` says where it comes from, and the checksum of every file that a pull has verified.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from matchwright.engine.errors import FailedPrecondition, NotFound, StoreDamaged, StoreReadOnly
from matchwright.engine.store import files
from matchwright.engine.store.catalog import FILE
from matchwright.engine.store.published import Manifest, decode

MARK = "REPLICA.json"


class Replica(msgspec.Struct, frozen=True):
    """The content of ``REPLICA.json``."""

    format: int
    url: str
    manifest: Manifest


def read_mark(root: Path) -> Replica | None:
    """What a replica says of itself; None where there is no replica.

    Raises:
        StoreFormat, StoreDamaged, StoreError: the mark cannot be used.
    """
    path = root / MARK
    with files.naming(path, "read"):
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
    return decode(Replica, data, str(path))


def refuse_writer(root: Path) -> None:
    """Raises FailedPrecondition when the folder is a replica."""
    if not (root / MARK).exists():
        return
    try:
        mark = read_mark(root)
        origin = f" of {mark.url}" if mark is not None else ""
    except StoreDamaged:
        origin = ""
    raise FailedPrecondition(
        f"{root}: is a replica{origin}, which nothing writes to; write to the original, or "
        "make this one a store of its own with: store pull --promote"
    )


def refuse_lease(root: Path) -> None:
    """Raises StoreReadOnly when the folder is a replica: a pull takes leases into no account."""
    if (root / MARK).exists():
        raise StoreReadOnly(
            f"{root}: is a replica, where the next pull puts another epoch in this one's place; "
            "leases hold epochs of the original only",
            file=root / MARK,
        )


def promote(root: Path) -> None:
    """Makes a replica a store of its own, which a writer may open; it is pulled no more.

    It keeps its uuid and goes on with the next epoch's number: do this when the original is lost.

    Raises:
        NotFound: there is no replica.
        StoreLocked: a pull is at work.
    """
    if not (root / MARK).exists() or not (root / FILE).is_file():
        raise NotFound(f"{root}: holds no replica", file=root)
    lock = files.WriterLock(root / "LOCK")
    try:
        with files.naming(root / MARK, "removed"):
            (root / MARK).unlink()
            files.sync_folder(root)
    finally:
        lock.release()
