"""One epoch's files, held open: a consistent copy of a store while a writer goes on.

The catalog is copied by SQLite's own online backup within one read transaction; the files that it
names are opened within the same one. Whatever a writer replaces meanwhile stays readable through
the open files.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from matchwright.engine.errors import NotFound, StoreDamaged
from matchwright.engine.store import blobs, collect, embeddings, files, migrate, schema
from matchwright.engine.store.catalog import FILE, KINDS, Catalog, SegmentRow, State
from matchwright.engine.store.embeddings import encoders_of
from matchwright.engine.store.embeddings_sweep import keep_only, keys_of
from matchwright.engine.store.embeddings_sweep import opened as opened_file
from matchwright.engine.store.encode import default_neighbours
from matchwright.engine.store.leases import LeaseFolder
from matchwright.engine.store.snapshot import stored_record

SEGMENTS, GENERATIONS = "segments", "generations"
_TRIES = 20
"""Where no lock can be taken: in a folder that is read-only here, and that a writer changes."""
_PAGES = 2_048
_RECORDS = 4_096

Progress = Callable[[str, int, int], None]
"""``progress(what, done, total)``: bytes, or -1 where a total is not known yet."""


def silent(what: str, done: int, total: int) -> None:
    """Progress that nobody watches."""


@dataclass(frozen=True)
class Held:
    """A store at one epoch.

    Attributes:
        state: what the copied catalog says.
        format: of the catalog.
        manifest: the segments that it names.
        catalog: the copy, not in write-ahead mode: one file, complete by itself.
        files: ``segments/NAME`` and ``generations/ID/NAME`` -> open file.
        counts: records of each kind.
        embeddings: ``embeddings/NAME`` -> a copy of that file, as the catalog's is one.
    """

    state: State
    format: int
    manifest: list[SegmentRow]
    catalog: Path
    files: dict[str, IO[bytes]]
    counts: dict[str, int]
    embeddings: dict[str, Path]

    @property
    def epoch(self) -> str:
        """uuid:number:digest."""
        return f"{self.state.uuid}:{self.state.number}:{self.state.digest.hex()}"


@contextmanager
def hold(
    root: Path,
    scratch: Path,
    *,
    newest_only: bool = False,
    keep_text: bool = True,
    progress: Progress = silent,
) -> Iterator[Held]:
    """Holds the newest epoch of the store in ``root``.

    Args:
        root: a store.
        scratch: a folder for the catalog's copy.
        newest_only: leave out what only older epochs need, overwriting what is left out.
        keep_text: whether the copy keeps records' texts.
        progress: told of the catalog's bytes.

    Raises:
        NotFound: there is no store.
        StoreDamaged, StoreFormat: a file is damaged, gone or newer; the message names it.
    """
    if not (root / FILE).is_file():
        raise NotFound(f"{root}: holds no store", file=root)
    copy = scratch / FILE
    leases = LeaseFolder(root)
    with (
        closing(Catalog(root / FILE, write=False)) as catalog,
        ExitStack() as opened,
        embeddings.held(root, alone=False),
    ):
        version = catalog.check()
        if newest_only:
            migrate.refuse_older(catalog.path, version)
        for attempt in range(_TRIES):
            with ExitStack() as reading, catalog.look() as connection:
                reading.enter_context(leases.reading())
                state = catalog.state(connection)
                named = _named(catalog, connection, newest_only)
                manifest, fitted = named
                try:
                    held = _open_files(root, manifest, fitted, opened)
                except FileNotFoundError as error:
                    if attempt + 1 == _TRIES or _named_now(catalog, newest_only) == named:
                        raise StoreDamaged(
                            f"{error.filename}: is named by the manifest but is not there; "
                            "restore it from a copy, or import again",
                            file=error.filename,
                        )
                    opened.close()
                    continue
                encoders = encoders_of(root, fitted)
                reading.close()  # open files stay readable, also when their names go
                _copy(connection, copy, progress)
                break
        copies = _copy_embeddings(root, encoders, scratch, progress)
        with closing(Catalog(copy, write=True)) as copied:
            if newest_only:
                forget_older(copied)
            if not keep_text and state.keep_text:
                state = _strip_texts(copied)
            if newest_only:
                _keep_only_named(copied, copies)
            version, counts = _about(copied)
        yield Held(state, version, manifest, copy, held, counts, copies)


def generations(
    catalog: Catalog, connection: sqlite3.Connection, *, newest_only: bool = False
) -> list[str]:
    """The generations that the newest epoch, or every kept one, needs."""
    found = {catalog.state(connection).generation}
    if not newest_only and catalog.version(connection) >= schema.FORMAT:
        kept = connection.execute("SELECT DISTINCT generation FROM epoch WHERE open = 1")
        found.update(name for (name,) in kept)
    return sorted(found)


def _open_files(
    root: Path, manifest: list[SegmentRow], fitted: list[str], opened: ExitStack
) -> dict[str, IO[bytes]]:
    names = [f"{SEGMENTS}/{row.file}" for row in manifest]
    for generation in fitted:
        folder = root / GENERATIONS / generation
        with files.naming(folder, "read"):
            found = sorted(path for path in folder.rglob("*") if path.is_file())
        if not found:
            raise FileNotFoundError(2, "No such generation", str(folder))
        names += [path.relative_to(root).as_posix() for path in found]
    held: dict[str, IO[bytes]] = {}
    for name in names:
        try:
            held[name] = opened.enter_context((root / name).open("rb"))
        except FileNotFoundError:
            raise
        except OSError as error:
            raise files.failure(root / name, error, "read")
    return held


def _named(
    catalog: Catalog, connection: sqlite3.Connection, newest_only: bool
) -> tuple[list[SegmentRow], list[str]]:
    """The segments and generations that are to be held."""
    rows = catalog.segments if newest_only else catalog.all_segments
    return rows(connection), generations(catalog, connection, newest_only=newest_only)


def _named_now(catalog: Catalog, newest_only: bool) -> tuple[list[SegmentRow], list[str]]:
    """The same, as a transaction that begins now sees it."""
    with closing(catalog.connect()) as connection, catalog.look(connection):
        return _named(catalog, connection, newest_only)


def _copy_embeddings(
    root: Path, encoders: set[str], scratch: Path, progress: Progress
) -> dict[str, Path]:
    """Copies the embeddings of some encoders."""
    copies = {}
    for encoder in sorted(encoders):
        source = embeddings.path_of(root, encoder)
        if not source.is_file():
            continue  # no text was ever encoded, or it is gone: `store verify` says so
        copy = embeddings.path_of(scratch, encoder)
        copy.parent.mkdir(exist_ok=True)
        with opened_file(source, write=False) as file, file.look() as connection:
            _copy(connection, copy, progress)
        copies[source.relative_to(root).as_posix()] = copy
    return copies


def _keep_only_named(copied: Catalog, encoders: dict[str, Path]) -> None:
    """Leaves of each copy of embeddings what the records of the newest epoch have."""
    neighbours = default_neighbours()
    for path in encoders.values():
        with opened_file(path, write=True) as file:
            keep_only(file, keys_of(copied, neighbours, KINDS))


def _copy(connection: sqlite3.Connection, copy: Path, progress: Progress) -> None:
    """Copies the catalog as the connection's read transaction sees it."""
    (page,) = connection.execute("PRAGMA page_size").fetchone()

    def told(_status: int, left: int, total: int) -> None:
        progress("catalog", (total - left) * page, total * page)

    target = Catalog(copy, write=True)
    with target.guard(), closing(target.connect()) as into:
        into.execute("PRAGMA synchronous = OFF")
        connection.backup(into, pages=_PAGES, progress=told)
        # One file that is complete by itself: no log beside it, and it can be read anywhere.
        into.execute("PRAGMA journal_mode = DELETE")
    target.close()


def forget_older(copied: Catalog) -> None:
    """Takes out what only older epochs need; SQLite overwrites what it frees."""
    with copied.guard(), copied.lend() as connection:
        _leave_no_trace(connection)
    with copied.change() as connection:
        collect.forget_older(connection)


def _strip_texts(copied: Catalog) -> State:
    """Puts a digest in the place of every text, as in a store that never kept them."""
    where = str(copied.path)
    with copied.guard(), copied.lend() as connection:
        _leave_no_trace(connection)
    with copied.change() as connection:
        for kind in KINDS:
            _strip_kind(connection, kind, where)
        state = replace(copied.state(connection), keep_text=False)
        copied.rewrite_state(connection, state)
    with copied.guard(), copied.lend() as connection:
        connection.execute("VACUUM")
    return state


def _strip_kind(connection: sqlite3.Connection, kind: str, where: str) -> None:
    last = -1
    while rows := connection.execute(
        f"SELECT seq, id, hash, body FROM {kind} WHERE seq > ? ORDER BY seq LIMIT ?",
        (last, _RECORDS),
    ).fetchall():
        last = rows[-1][0]
        changed = []
        for seq, name, content, body in rows:
            record = stored_record(name, content, body, where)
            if isinstance(record.get(blobs.TEXT_FIELD), str):
                _, stripped = blobs.pack_record(record, keep_text=False)
                changed.append((stripped, seq))
        connection.executemany(f"UPDATE {kind} SET body = ? WHERE seq = ?", changed)


def _leave_no_trace(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA secure_delete = ON")
    # The copy is thrown away when anything fails.
    connection.execute("PRAGMA synchronous = OFF")
    connection.execute("PRAGMA journal_mode = MEMORY")


def _about(copied: Catalog) -> tuple[int, dict[str, int]]:
    """The catalog's format, and how many records of each kind it holds."""
    with copied.look() as connection:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        counts: dict[str, int] = {
            kind: int(connection.execute(f"SELECT count(*) FROM {kind}").fetchone()[0])
            for kind in KINDS
        }
    return int(version), counts


@contextmanager
def scratch_folder(parent: Path, what: str) -> Iterator[Path]:
    """A folder of this process, removed at the end; what killed ones left behind goes too.

    Args:
        parent: where; ``tempfile.gettempdir()`` for instance.
        what: part of its name, so that only the like is swept.

    Raises:
        StoreError: it cannot be made.
    """
    prefix = f".matchwright-{what}-"
    with files.naming(parent):
        parent.mkdir(parents=True, exist_ok=True)
        for left in parent.glob(f"{prefix}*"):
            with suppress(OSError), closing(_Claim(left)):
                shutil.rmtree(left, ignore_errors=True)
        folder, claim = _claimed_folder(parent, prefix)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        claim.close()


def _claimed_folder(parent: Path, prefix: str) -> tuple[Path, _Claim]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        with suppress(FileNotFoundError, BlockingIOError):  # somebody swept it just now
            claim = _Claim(folder)
            if folder.is_dir():
                return folder, claim
            claim.close()


class _Claim:
    """A lock on a folder itself, dropped by the kernel when its process dies.

    Raises:
        BlockingIOError: another process holds it.
    """

    def __init__(self, folder: Path) -> None:
        self._fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BaseException:
            os.close(self._fd)
            raise

    def close(self) -> None:
        os.close(self._fd)
