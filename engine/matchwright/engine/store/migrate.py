"""From an older format of the catalog to this one, in one transaction.

Segment files have not changed: format 1 of them is what this version writes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from matchwright.engine.errors import NotFound, StoreFormat
from matchwright.engine.store import catalog, files, history, schema
from matchwright.engine.store.catalog import Catalog


@dataclass(frozen=True, slots=True)
class Migrated:
    """What a migration did.

    Attributes:
        before, after: formats of the catalog; equal when there was nothing to do.
        copy: the catalog as it was, or None.
    """

    before: int
    after: int
    copy: Path | None


def migrate(
    root: Path,
    *,
    keep_copy: bool = True,
    wait_s: float = 0.0,
    waiting: Callable[[str], None] | None = None,
) -> Migrated:
    """Brings the store in a folder to this version's format. Killed in between, it starts over.

    Args:
        root: the folder.
        keep_copy: keep the catalog as it was beside the new one, as ``catalog.format-N.sqlite``.
        wait_s, waiting: how long to wait for a writer, and who is told; see ``files.WriterLock``.

    Raises:
        NotFound: there is no store.
        StoreLocked: a writer has it.
        StoreFull: no room for the copy, or for the changed pages.
        StoreDamaged, StoreFormat: the catalog is damaged, or newer.
    """
    path = root / catalog.FILE
    if not path.is_file():
        raise NotFound(f"{root}: holds no store", file=root)
    lock = files.WriterLock(root / "LOCK", wait_s=wait_s, waiting=waiting)
    try:
        with closing(Catalog(path, write=True)) as opened:
            before = opened.check()
            if before == schema.FORMAT:
                return Migrated(before, before, None)
            copy = _copy(opened, path.with_name(f"catalog.format-{before}.sqlite"))
            _upgrade(opened)
        if not keep_copy:
            copy.unlink()
            files.sync_folder(root)
        return Migrated(before, schema.FORMAT, copy if keep_copy else None)
    finally:
        lock.release()


def _copy(opened: Catalog, copy: Path) -> Path:
    """A durable copy; made anew if an earlier try left one: the catalog may have gone on."""
    temporary = copy.with_name(f".{copy.name}.tmp")
    temporary.unlink(missing_ok=True)
    target = Catalog(temporary, write=True)
    with opened.guard(), opened.lend() as source, closing(target), target.guard():
        with closing(target.connect()) as into:
            source.backup(into)
            # Complete by itself: no log beside it.
            into.execute("PRAGMA journal_mode = DELETE")
    with files.naming(copy):
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.rename(copy)
        files.sync_folder(copy.parent)
    return copy


def _upgrade(opened: Catalog) -> None:
    with opened.change() as connection:
        state = opened.state(connection)
        for statement in schema.from_1():
            connection.execute(statement)
        ((what,),) = connection.execute(
            "SELECT what FROM epoch WHERE number = ?", (state.number,)
        ).fetchall()
        history.begin(connection, state, what, time.time())
        connection.execute(f"PRAGMA user_version = {schema.FORMAT}")


def drop_copies(root: Path) -> list[Path]:
    """Removes the catalogs that migrations left; they hold what was erased since."""
    copies = sorted(root.glob("catalog.format-*.sqlite"))
    for path in copies:
        with files.naming(path):
            path.unlink(missing_ok=True)
    return copies


def refuse_older(path: Path, version: int) -> None:
    """Stops whoever would write to a store of an older format.

    Raises:
        StoreFormat: names the file, its format and the command to run.
    """
    if version < schema.FORMAT:
        raise StoreFormat(
            f"{path}: has format {version}, this version writes format {schema.FORMAT}; "
            "stop older programs that read it, then run: "
            f"matchwright store migrate --store {path.parent}",
            file=path,
        )
