"""Reads everything in a store and says what is damaged."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from matchwright.engine.errors import StoreDamaged, StoreError
from matchwright.engine.store import blobs
from matchwright.engine.store.catalog import KINDS, Catalog, Kind
from matchwright.engine.store.loader import Loader
from matchwright.engine.store.segment_file import SegmentFile
from matchwright.engine.store.snapshot import stored_record

_RECORDS_AT_ONCE = 4_096


def damages(root: Path, catalog: Catalog, loader: Loader) -> list[StoreError]:
    """One error per damaged thing: catalog pages, records, values, segment files, generation."""
    found: list[StoreError] = []

    @contextmanager
    def noting() -> Iterator[None]:
        try:
            yield
        except StoreError as error:
            found.append(error)

    checks: tuple[Callable[[], None], ...] = (
        lambda: _check_pages(catalog),
        lambda: _check_values(catalog),
        *(lambda kind=kind: _check_records(catalog, kind) for kind in KINDS),
    )
    for check in checks:
        with noting():
            check()
    with noting(), catalog.look() as connection:
        manifest = catalog.all_segments(connection)
        for row in manifest:
            with noting():
                _check_file(root / "segments" / row.file, row.digest)
    for kind in KINDS if not found else ():
        with noting():
            _check_rows(catalog, loader, kind)
    return found


def _check_pages(catalog: Catalog) -> None:
    with catalog.look() as connection:
        problems = connection.execute("PRAGMA integrity_check").fetchall()
        catalog.state(connection)
    if problems != [("ok",)]:
        said = "; ".join(str(problem) for (problem,) in problems[:3])
        raise StoreDamaged(f"{catalog.path}: is damaged: {said}", file=catalog.path)


def _check_values(catalog: Catalog) -> None:
    where = str(catalog.path)
    with catalog.look() as connection:
        for (packed,) in connection.execute("SELECT rows FROM dead"):
            blobs.unpack_array(packed, np.int32, where)
        for (packed,) in connection.execute("SELECT rows FROM live"):
            blobs.unpack_rows(packed, where)


def _check_records(catalog: Catalog, table: str) -> None:
    with catalog.look() as connection:
        cursor = connection.execute(f"SELECT id, hash, body FROM {table}")
        while rows := cursor.fetchmany(_RECORDS_AT_ONCE):
            for name, content, body in rows:
                stored_record(name, content, body, str(catalog.path))


def _check_rows(catalog: Catalog, loader: Loader, kind: Kind) -> None:
    """Every record has one living row, every living row its record."""
    snapshot = loader.newest(now=True)
    with catalog.look() as connection:
        stored = connection.execute(f"SELECT seq FROM {kind} ORDER BY seq").fetchall()
        number = catalog.state(connection).number
    if number != snapshot.epoch.number:
        return  # a writer went on; what it replaced need not fit what it left
    alive = [np.zeros(0, dtype=np.int64)]
    for part in snapshot.parts[kind]:
        rows = np.arange(part.source.n) if part.alive is None else np.flatnonzero(part.alive)
        alive.append(part.source.seqs(rows))
    seqs = np.sort(np.concatenate(alive))
    if not np.array_equal(seqs, np.array(stored, dtype=np.int64).reshape(-1)):
        raise StoreDamaged(
            f"{catalog.path}: has {len(stored)} {kind} records, but {len(seqs)} living rows, "
            "or others",
            file=catalog.path,
        )


def _check_file(path: Path, digest: bytes) -> None:
    try:
        SegmentFile(path, digest).verify()
    except FileNotFoundError:
        raise StoreDamaged(f"{path}: is named by the manifest but is not there", file=path)
