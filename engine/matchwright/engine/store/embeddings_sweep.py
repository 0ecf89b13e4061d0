"""Takes embeddings out of a store that belong to no record any more, and checks those that do.

Whose an embedding is, no file says: its key is that of a text. So what stays is found from the
records that stay, living and kept for older epochs; all else goes. A text that two people share
stays while one of them does.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from matchwright.engine.store import embeddings, erase
from matchwright.engine.store.catalog import KINDS, Catalog
from matchwright.engine.store.embeddings import EmbeddingFile, damaged, unpack
from matchwright.engine.store.embeddings_ahead import ROWS_AT_ONCE, stored_rows

if TYPE_CHECKING:
    from matchwright.engine.store.encode import Neighbours
    from matchwright.engine.store.writer import Writer

EVERY_EPOCH = (*KINDS, *(f"{kind}_old" for kind in KINDS))
"""The tables of the catalog with all records that an epoch shows."""
_KEEP = "CREATE TEMP TABLE keep (key BLOB PRIMARY KEY) WITHOUT ROWID"
_DROP = "DROP TABLE temp.keep"
_DELETE = "DELETE FROM embedding WHERE key NOT IN (SELECT key FROM temp.keep)"


@contextmanager
def opened(path: Path, *, write: bool) -> Iterator[EmbeddingFile]:
    """A file of embeddings, whatever its dimensions.

    Raises:
        StoreDamaged, StoreFormat: it is none that can be read.
    """
    with closing(EmbeddingFile(path, 0, write=write)) as file:
        with file.look() as connection:
            row = connection.execute("SELECT dimensions FROM about").fetchone()
        file.dimensions = int(row[0]) if row is not None else 0
        file.check()
        yield file


def keys_of(
    catalog: Catalog, neighbours: Neighbours, tables: Iterable[str], low: int = 0
) -> Iterator[list[bytes]]:
    """Keys of the texts of all records in some tables, from number ``low`` on; no blank ones."""
    for table in tables:
        for rows in stored_rows(catalog, neighbours, table, ROWS_AT_ONCE, low):
            yield [one.key for one in neighbours.prose(rows) if not one.blank]


def sweep(writer: Writer) -> tuple[int, list[Path]]:
    """Removes the embeddings that no record has; the number, and logs that a reader holds on to.

    Writes that are under way keep theirs. Must not be called while holding the writer's lock.

    Raises:
        StoreDamaged: a record or a file cannot be read.
    """
    removed, busy = 0, []
    paths = embeddings.paths(writer.root)
    with embeddings.held(writer.root, alone=True):
        for path in paths:
            with opened(path, write=True) as file:
                gone, clean = _sweep_file(writer, file)
            removed += gone
            busy += [] if clean else [path]
    return removed, busy


def _sweep_file(writer: Writer, file: EmbeddingFile) -> tuple[int, bool]:
    """Marks without the lock, what came meanwhile under it; (removed, whether the log is empty).

    A write enters its texts as under way before it takes record numbers. So whatever it commits
    is under way now, or when the lock is taken, or has a number from ``start`` on.
    """
    catalog, neighbours = writer.catalog, writer.neighbours
    start = writer.take_seqs(0)
    with file.guard(), file.lend() as connection:
        connection.execute(_KEEP)
        try:
            _mark(connection, [list(writer.texts.keys_in_flight())])
            _mark(connection, keys_of(catalog, neighbours, EVERY_EPOCH))
            with writer.lock:
                _mark(connection, [list(writer.texts.keys_in_flight())])
                _mark(connection, keys_of(catalog, neighbours, EVERY_EPOCH, start))
                removed = connection.execute(_DELETE).rowcount
        finally:
            connection.execute(_DROP)
    return removed, erase.scrub(file)


def keep_only(copied: EmbeddingFile, keys: Iterable[list[bytes]]) -> None:
    """Leaves in a copy what has one of the keys, packed; nothing of the rest can be read in it."""
    with copied.guard(), copied.lend() as connection:
        connection.execute("PRAGMA synchronous = OFF")  # the copy is thrown away on failure
        connection.execute(_KEEP)
        _mark(connection, keys)
        connection.execute(_DELETE)
        connection.execute(_DROP)
        connection.execute("UPDATE about SET ahead = NULL")
        connection.execute("VACUUM")


def _mark(connection: sqlite3.Connection, keys: Iterable[list[bytes]]) -> None:
    for some in keys:
        connection.execute("BEGIN")
        connection.executemany(
            "INSERT INTO temp.keep VALUES (?) ON CONFLICT DO NOTHING", [(key,) for key in some]
        )
        connection.execute("COMMIT")


def check_file(path: Path) -> None:
    """Reads every page and every value.

    Raises:
        StoreDamaged, StoreFormat: the message names the file.
    """
    with opened(path, write=False) as file, file.look() as connection:
        problems = connection.execute("PRAGMA integrity_check").fetchall()
        if problems != [("ok",)]:
            raise damaged(path, "; ".join(str(problem) for (problem,) in problems[:3]))
        for key, value in connection.execute("SELECT key, value FROM embedding"):
            unpack(key, value, file.dimensions, path)


def check_whole(
    path: Path, catalog: Catalog, neighbours: Neighbours, tables: Iterable[str] = KINDS
) -> None:
    """Every record has the embedding of its text.

    Raises:
        StoreDamaged: some are missing; the message names the file.
    """
    keys = keys_of(catalog, neighbours, tables)
    if not path.is_file():
        missing = sum(map(len, keys))
    else:
        with opened(path, write=False) as file:
            missing = sum(len(file.missing(some)) for some in keys)
    if missing:
        raise damaged(path, f"lacks {missing} embeddings of the store's records")
