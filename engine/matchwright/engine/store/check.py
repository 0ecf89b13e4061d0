"""Reads everything in a store and says what is damaged."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from types import TracebackType

import numpy as np

from matchwright.engine.errors import EpochGone, NotFound, StoreDamaged, StoreError, StoreFormat
from matchwright.engine.store import (
    blobs,
    embeddings,
    embeddings_sweep,
    files,
    history,
    published,
    schema,
)
from matchwright.engine.store.catalog import FILE, KINDS, Catalog, Kind, SegmentRow, State
from matchwright.engine.store.embeddings import encoders_of
from matchwright.engine.store.encode import Neighbours
from matchwright.engine.store.hold import GENERATIONS, SEGMENTS, Progress, generations, silent
from matchwright.engine.store.leases import FOLDER, SUFFIX, LeaseFolder
from matchwright.engine.store.loader import Loader
from matchwright.engine.store.remote import sha256_of
from matchwright.engine.store.replica import MARK, Replica, read_mark
from matchwright.engine.store.segment_file import SUFFIX as SEGMENT_SUFFIX
from matchwright.engine.store.segment_file import SegmentFile
from matchwright.engine.store.snapshot import Snapshot, stored_record
from matchwright.kernels.types import Int64

_RECORDS_AT_ONCE = 4_096


def damages(root: Path, neighbours: Neighbours, progress: Progress = silent) -> list[StoreError]:
    """One error per damaged thing, each naming its file; it need not be possible to open the store.

    Args:
        root: the store's folder.
        neighbours: what loads a generation.
        progress: told of records, and of bytes of segments.

    Raises:
        NotFound: there is no store.
        StoreFormat: a newer version wrote it.
        EpochGone: it was replaced meanwhile.
    """
    if not (root / FILE).is_file():
        raise NotFound(f"{root}: holds no store; import into it to make one", file=root)
    with closing(Catalog(root / FILE, write=False)) as catalog:
        return _Check(root, catalog, neighbours, progress).run()


class _Noting:
    """Keeps the error that ends its block, and goes on after it. A newer format ends the check."""

    def __init__(self, found: list[StoreError]) -> None:
        self._found = found

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        if not isinstance(error, StoreError) or isinstance(error, StoreFormat):
            return False
        if str(error) not in map(str, self._found):
            self._found.append(error)
        return True


class _Check:
    """One check of one store; what is found is kept and the check goes on."""

    def __init__(
        self, root: Path, catalog: Catalog, neighbours: Neighbours, progress: Progress
    ) -> None:
        self._root = root
        self._catalog = catalog
        self._neighbours = neighbours
        self._progress = progress
        self._found: list[StoreError] = []

    def run(self) -> list[StoreError]:
        self._catalog_itself()
        self._leases()
        manifest, fitted = self._named()
        self._segments(manifest)
        for name in fitted:
            with self._noting():
                self._generation(self._root / GENERATIONS / name)
        self._embeddings()
        self._replica()
        if not self._found:
            with self._noting():
                self._rows()
            with self._noting():
                self._embedded()
            with self._noting():
                self._kept()
        if self._found and self._catalog.replaced():
            raise EpochGone(
                f"{self._root}: a pull or restore replaced it while it was checked; check it again"
            )
        return self._found

    def _noting(self) -> _Noting:
        return _Noting(self._found)

    def _catalog_itself(self) -> None:
        checks: tuple[Callable[[], object], ...] = (
            self._pages,
            self._values,
            self._epochs,
            *(lambda kind=kind: self._records(kind) for kind in KINDS),
        )
        with self._noting():
            self._catalog.check()
            for check in checks:
                with self._noting():
                    check()

    def _pages(self) -> None:
        with self._catalog.look() as connection:
            problems = connection.execute("PRAGMA integrity_check").fetchall()
            self._catalog.state(connection)
        if problems != [("ok",)]:
            said = "; ".join(str(problem) for (problem,) in problems[:3])
            raise StoreDamaged(
                f"{self._catalog.path}: is damaged: {said}; restore it from a backup",
                file=self._catalog.path,
            )

    def _values(self) -> None:
        where = str(self._catalog.path)
        with self._catalog.look() as connection:
            for (packed,) in connection.execute("SELECT rows FROM dead"):
                blobs.unpack_array(packed, np.int32, where)
            for (packed,) in connection.execute("SELECT rows FROM live"):
                blobs.unpack_rows(packed, where)

    def _epochs(self) -> None:
        with self._catalog.look() as connection:
            if self._catalog.version(connection) >= schema.FORMAT:
                history.read_all(connection, str(self._catalog.path))

    def _records(self, table: str) -> None:
        with self._catalog.look() as connection:
            (total,) = connection.execute(f"SELECT count(*) FROM {table}").fetchone()
            cursor = connection.execute(f"SELECT id, hash, body FROM {table}")
            done = 0
            while rows := cursor.fetchmany(_RECORDS_AT_ONCE):
                for name, content, body in rows:
                    stored_record(name, content, body, str(self._catalog.path))
                done += len(rows)
                self._progress(f"{table} records", done, total)

    def _leases(self) -> None:
        folder = LeaseFolder(self._root)
        for path in sorted((self._root / FOLDER).glob(f"*{SUFFIX}")):
            with self._noting():
                folder.find(path.name.removesuffix(SUFFIX))

    def _named(self) -> tuple[list[SegmentRow], list[str]]:
        """Segments and generations that the catalog names; none when it cannot be read."""
        found: tuple[list[SegmentRow], list[str]] | None = None
        with self._noting(), self._catalog.look() as connection:
            manifest = self._catalog.all_segments(connection)
            found = manifest, generations(self._catalog, connection)
        return found or (self._loose(), [])

    def _loose(self) -> list[SegmentRow]:
        """Segment files as they lie there, when nothing says what they should be."""
        found = sorted((self._root / SEGMENTS).glob(f"*{SEGMENT_SUFFIX}"))
        return [SegmentRow(0, "job", "", path.name, 0, path.stat().st_size, b"") for path in found]

    def _segments(self, manifest: list[SegmentRow]) -> None:
        total, done = sum(row.size for row in manifest), 0

        def told(size: int) -> None:
            nonlocal done
            done += size
            self._progress("segments", done, total)

        for row in manifest:
            path = self._root / SEGMENTS / row.file
            with self._noting():
                try:
                    SegmentFile(path, row.digest or None).verify(told)
                except FileNotFoundError:
                    if row.file in {named.file for named in self._named()[0]}:
                        raise StoreDamaged(
                            f"{path}: is named by the manifest but is not there; "
                            "restore it from a copy, or import again",
                            file=path,
                        )

    def _generation(self, folder: Path) -> None:
        try:
            self._neighbours.load(folder)
        except (NotFound, FileNotFoundError) as error:
            if folder.name not in self._named()[1]:
                return  # a writer went on, and removed it
            raise StoreDamaged(f"{folder}: is named by the catalog: {error}", file=folder)
        except OSError as error:
            raise files.failure(error.filename or folder, error, "read")

    def _embeddings(self) -> None:
        for path in embeddings.paths(self._root):
            with self._noting():
                embeddings_sweep.check_file(path)

    def _embedded(self) -> None:
        """The records of the newest epoch have the embeddings that a served encoder gave them."""
        with self._catalog.look() as connection:
            name = self._catalog.state(connection).generation
        for encoder in encoders_of(self._root, [name]):
            path = embeddings.path_of(self._root, encoder)
            embeddings_sweep.check_whole(path, self._catalog, self._neighbours)

    def _replica(self) -> None:
        """A replica's catalog never changes in place, so the checksum of every block is known."""
        with self._noting():
            mark = read_mark(self._root)
            if mark is not None and self._is_of(mark):
                for name, blocks in mark.manifest.in_blocks().items():
                    with self._noting():
                        self._blocks(self._root / name, blocks)
                for name, file in mark.manifest.files.items():
                    if name.startswith(GENERATIONS):
                        with self._noting():
                            self._sha256(self._root / name, file.sha256)

    def _is_of(self, mark: Replica) -> bool:
        """Whether the mark is of the catalog in force: a pull may have been killed in between."""
        made = mark.manifest
        state: State | None = None
        with self._noting(), self._catalog.look() as connection:
            state = self._catalog.state(connection)
        return state is None or (state.number, state.digest.hex()) == (made.number, made.digest)

    def _blocks(self, path: Path, blocks: published.CatalogFile) -> None:
        with files.naming(path, "read"), path.open("rb") as file:
            for n, sha256 in enumerate(blocks.blocks):
                block = file.read(published.BLOCK_BYTES)
                if hashlib.sha256(block).hexdigest() != sha256:
                    low = n * published.BLOCK_BYTES
                    raise StoreDamaged(
                        f"{path}: block {n} (bytes {low}..) does not match {MARK}; pull again "
                        "with --verify",
                        file=path,
                    )

    @staticmethod
    def _sha256(path: Path, sha256: str) -> None:
        if sha256_of(path) != sha256:
            raise StoreDamaged(
                f"{path}: does not match {MARK}; pull again with --verify", file=path
            )

    def _rows(self) -> None:
        """Every record has one living row, every living row its record."""
        catalog = Catalog(self._catalog.path, write=False)
        with closing(Loader(self._root, catalog, self._neighbours, poll=False)) as loader:
            snapshot = loader.newest(now=True)
            with catalog.look() as connection:
                number = catalog.state(connection).number
                stored = {
                    kind: connection.execute(f"SELECT seq FROM {kind} ORDER BY seq").fetchall()
                    for kind in KINDS
                }
        for kind in KINDS if number == snapshot.epoch.number else ():
            with self._noting():
                self._compare(snapshot, kind, np.array(stored[kind], np.int64).reshape(-1))

    def _kept(self) -> None:
        """Every living row of a leased epoch, and of the oldest open one, has its record still."""
        catalog = Catalog(self._catalog.path, write=False)
        with closing(Loader(self._root, catalog, self._neighbours, poll=False)) as loader:
            with catalog.look() as connection:
                known = catalog.version(connection) >= schema.FORMAT
                opened = history.numbers(connection) if known else []
            leased = {note.epoch for note in LeaseFolder(self._root).notes()}
            for number in opened[:-1]:
                if number == opened[0] or number in leased:
                    with suppress(EpochGone), self._noting():
                        self._kept_epoch(catalog, loader.at(number))

    def _kept_epoch(self, catalog: Catalog, snapshot: Snapshot) -> None:
        number = snapshot.epoch.number
        for kind in KINDS:
            both = f"SELECT seq FROM {kind} UNION ALL SELECT seq FROM {kind}_old"
            with catalog.look() as connection:
                if not history.is_open(connection, number):
                    return
                stored = np.array(connection.execute(both).fetchall(), np.int64).reshape(-1)
            missing = np.setdiff1d(_living(snapshot, kind), stored)
            if len(missing):
                raise StoreDamaged(
                    f"{self._catalog.path}: lacks {len(missing)} {kind} records of epoch {number}, "
                    "which is kept; restore it from a copy, or release the epoch's leases",
                    file=self._catalog.path,
                )

    def _compare(self, snapshot: Snapshot, kind: Kind, stored: Int64) -> None:
        seqs = _living(snapshot, kind)
        if not np.array_equal(seqs, stored):
            raise StoreDamaged(
                f"{self._catalog.path}: has {len(stored)} {kind} records, but {len(seqs)} living "
                "rows, or others; restore it from a copy, or import again",
                file=self._catalog.path,
            )


def _living(snapshot: Snapshot, kind: Kind) -> Int64:
    """Numbers of the living rows' records, in ascending order."""
    alive = [np.zeros(0, dtype=np.int64)]
    for part in snapshot.parts[kind]:
        rows = np.arange(part.source.n) if part.alive is None else np.flatnonzero(part.alive)
        alive.append(part.source.seqs(rows))
    return np.sort(np.concatenate(alive))
