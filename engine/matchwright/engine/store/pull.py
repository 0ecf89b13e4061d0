"""Makes or updates a replica: a local copy of a published store, for readers.

Everything is fetched beside what is in force, and checked; then the catalog is renamed into its
place. Readers have the epoch before or this one, whole.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec

from matchwright.engine.errors import FailedPrecondition, NotFound, StoreDamaged, StoreFormat
from matchwright.engine.store import catalog as catalogs
from matchwright.engine.store import files, published, segment_file
from matchwright.engine.store.catalog import FILE, Catalog, State
from matchwright.engine.store.embeddings import FOLDER as EMBEDDINGS
from matchwright.engine.store.hold import GENERATIONS, SEGMENTS, Progress, silent
from matchwright.engine.store.published import (
    CatalogFile,
    Manifest,
    block_name,
    file_name,
    in_parallel,
)
from matchwright.engine.store.remote import Target, remove_tree, sha256_of
from matchwright.engine.store.replica import MARK, Replica, read_mark

_PULLING = ".pull"
_TRIES = 3


@dataclass(frozen=True)
class Pulled:
    """What a pull did.

    Attributes:
        url: where from.
        epoch: uuid:number:digest, in force here now.
        changed: False when that epoch was in force already and every file in place.
        bytes: of all files of the epoch.
        fetched, fetched_bytes: files and blocks that were not here yet.
    """

    url: str
    epoch: str
    changed: bool
    bytes: int
    fetched: int
    fetched_bytes: int


def pull(
    url: str | os.PathLike[str],
    root: str | os.PathLike[str],
    *,
    name: str | None = None,
    epoch: str | None = None,
    verify: bool = False,
    progress: Progress = silent,
    wait_s: float = 0.0,
    waiting: Callable[[str], None] | None = None,
) -> Pulled:
    """Makes or updates the replica in ``root``; readers of it stay up and see the new epoch.

    Args:
        url: where a store was published.
        root: the replica's folder; made when it is not there.
        name: the folder below ``url`` that was published to.
        epoch: a number or whole name that is still kept there; the one in force by default.
        verify: read what is here already too, and fetch again what is damaged.
        progress: told of bytes.
        wait_s, waiting: how long to wait for another pull, and who is told; see
            ``files.WriterLock``.

    Raises:
        NotFound: nothing is published there, or not that epoch.
        FailedPrecondition: ``root`` holds a store that is no replica, or one of another store.
        StoreDamaged: what is published is damaged; the replica stays what it was.
        StoreFormat: it needs a newer version; the replica stays what it was.
        StoreFull, StoreReadOnly, DependencyUnavailable: so does it here.
    """
    root, target = Path(root), Target(url, name)
    manifest = published.choose(target, epoch)
    _check_formats(target, manifest)
    _check_place(root, manifest)
    with files.naming(root):
        root.mkdir(parents=True, exist_ok=True)
        for folder in (SEGMENTS, GENERATIONS):
            (root / folder).mkdir(exist_ok=True)
    lock = files.WriterLock(root / "LOCK", wait_s=wait_s, waiting=waiting)
    try:
        _check_place(root, manifest)
        for attempt in range(_TRIES):
            try:
                return _Pull(root, target, manifest, verify, progress).run()
            except NotFound:
                # An epoch that was published long ago may go while it is pulled.
                newer = published.choose(target, epoch)
                if attempt + 1 == _TRIES or newer == manifest:
                    raise
                manifest = newer
        raise AssertionError("unreachable")
    finally:
        lock.release()


def _check_formats(target: Target, manifest: Manifest) -> None:
    reads = (catalogs.FORMAT, segment_file.FORMAT)
    if manifest.catalog_format > reads[0] or manifest.segment_format > reads[1]:
        raise StoreFormat(
            f"{target.url}: epoch {manifest.number} has formats {manifest.catalog_format} "
            f"(catalog) and {manifest.segment_format} (segments), this version reads up to "
            f"{reads[0]} and {reads[1]}; use a newer matchwright",
            file=target.url,
        )


def _check_place(root: Path, manifest: Manifest) -> None:
    if not (root / FILE).exists():
        return
    if not (root / MARK).exists():
        raise FailedPrecondition(
            f"{root}: holds a store that is no replica; pull into another folder"
        )
    with suppress(StoreDamaged):  # what is damaged here is fetched again
        state = _state(root / FILE)
        if state.uuid != manifest.store:
            raise FailedPrecondition(
                f"{root}: is a replica of the store {state.uuid}, and {manifest.store} is "
                "published there; pull into another folder"
            )


def _state(path: Path) -> State:
    with closing(Catalog(path, write=False)) as catalog:
        catalog.check()
        with catalog.look() as connection:
            return catalog.state(connection)


def _named(path: Path) -> dict[str, str]:
    """Segment files that a catalog names, and their digests in hex."""
    with closing(Catalog(path, write=False)) as catalog, catalog.look() as connection:
        rows = catalog.segments(connection)
        return {f"{SEGMENTS}/{row.file}": row.digest.hex() for row in rows}


class _Pull:
    """One pull, under the lock."""

    def __init__(
        self, root: Path, target: Target, manifest: Manifest, verify: bool, progress: Progress
    ) -> None:
        self._root = root
        self._target = target
        self._manifest = manifest
        self._verify = verify
        self._progress = progress
        self._temporary = root / _PULLING
        self._count = self._size = 0

    def run(self) -> Pulled:
        """Fetches what is missing, then switches."""
        try:
            changed = self._run()
        finally:
            remove_tree(self._temporary)
        made = self._manifest
        return Pulled(self._target.url, made.epoch, changed, made.size, self._count, self._size)

    def _run(self) -> bool:
        missing, other = self._missing(), self._other_embeddings()
        if not missing and not other and self._is_in_force():
            return False
        remove_tree(self._temporary)
        with files.naming(self._temporary):
            self._temporary.mkdir()
        fetched = {FILE: self._manifest.catalog, **other}
        done = self._manifest.size - sum(file.size for file in fetched.values())
        done -= sum(self._manifest.files[name].size for name in missing)
        with ExitStack() as opened:
            fds = {name: self._made(name, opened) for name in fetched}
            for size in in_parallel(self._jobs(missing, fetched, fds)):
                done += size
                self._progress("pull", done, self._manifest.size)
            for name, fd in fds.items():
                with files.naming(self._temporary / name):
                    os.fsync(fd)
        self._check_catalog()
        self._place(missing)
        self._place_embeddings(other)
        self._switch()
        self._remove_unnamed()
        return True

    # ── What is here already ──────────────────────────────────────────────────────────────────

    def _missing(self) -> list[str]:
        """Files that are not here, or not as they should be."""
        verified = {}
        with suppress(StoreDamaged, StoreFormat):
            mark = read_mark(self._root)
            verified = {} if mark is None or self._verify else mark.manifest.files
        return [
            name
            for name, file in self._manifest.files.items()
            if not self._is_here(name, file, verified.get(name) == file)
        ]

    def _other_embeddings(self) -> dict[str, CatalogFile]:
        """Files of embeddings that are not here as they should be."""
        verified: dict[str, CatalogFile] = {}
        with suppress(StoreDamaged, StoreFormat):
            mark = read_mark(self._root)
            verified = {} if mark is None or self._verify else mark.manifest.embeddings
        return {
            name: file
            for name, file in self._manifest.embeddings.items()
            if verified.get(name) != file
            or not (self._root / name).is_file()
            or (self._root / name).stat().st_size != file.size
        }

    def _made(self, name: str, opened: ExitStack) -> int:
        """A file that is put together of blocks, as a descriptor."""
        path = self._temporary / name
        with files.naming(path):
            path.parent.mkdir(exist_ok=True)
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        opened.callback(os.close, fd)
        return fd

    def _is_here(self, name: str, file: published.File, verified: bool) -> bool:
        path = self._root / name
        if not path.is_file() or path.stat().st_size != file.size:
            return False
        return verified or sha256_of(path) == file.sha256

    def _is_in_force(self) -> bool:
        made, path = self._manifest, self._root / FILE
        with suppress(StoreDamaged, StoreFormat, NotFound):
            mark, state = read_mark(self._root), _state(path)
            same = (state.uuid, state.number, state.digest.hex(), state.keep_text)
            if mark is None or same != (made.store, made.number, made.digest, made.keep_text):
                return False
            whole = mark.manifest.in_blocks() == made.in_blocks()
            return whole and path.stat().st_size == made.catalog.size and not self._verify
        return False

    # ── Fetching ──────────────────────────────────────────────────────────────────────────────

    def _jobs(
        self, missing: list[str], fetched: Mapping[str, CatalogFile], fds: Mapping[str, int]
    ) -> Iterator[Callable[[], int]]:
        for name in missing:
            (self._temporary / name).parent.mkdir(parents=True, exist_ok=True)
            yield partial(self._file, name)
        for name, file in fetched.items():
            here = self._blocks_here(name)
            for n, sha256 in enumerate(file.blocks):
                yield partial(self._block, name, fds[name], n, sha256, here.get(sha256))

    def _file(self, name: str) -> int:
        file = self._manifest.files[name]
        remote = file_name(file.sha256)
        if self._target.fetch(remote, self._temporary / name) != file.sha256:
            raise published.damaged_object(self._target.url_of(remote))
        self._tell(file.size)
        return file.size

    def _block(self, file: str, fd: int, n: int, sha256: str, here: int | None) -> int:
        name, data = block_name(sha256), None
        if here is not None:
            data = self._read_here(file, here)
            if hashlib.sha256(data).hexdigest() != sha256:
                data = None
        if data is None:
            packed = self._target.read(name)
            data = published.unpack_block(packed, sha256, self._target.url_of(name))
            self._tell(len(packed))
        with files.naming(self._temporary / file):
            view, at = memoryview(data), n * published.BLOCK_BYTES
            while view:
                written = os.pwrite(fd, view, at)
                view, at = view[written:], at + written
        return len(data)

    def _blocks_here(self, name: str) -> dict[str, int]:
        """SHA-256 -> offset of every block of the file of that name that is in force here."""
        path, found = self._root / name, {}
        with files.naming(path, "read"):
            if not path.is_file():
                return {}
            with path.open("rb") as file:
                offset = 0
                while block := file.read(published.BLOCK_BYTES):
                    found[hashlib.sha256(block).hexdigest()] = offset
                    offset += len(block)
        return found

    def _read_here(self, name: str, offset: int) -> bytes:
        with files.naming(self._root / name, "read"), (self._root / name).open("rb") as file:
            file.seek(offset)
            return file.read(published.BLOCK_BYTES)

    def _tell(self, size: int) -> None:
        self._count += 1
        self._size += size

    # ── Switching ─────────────────────────────────────────────────────────────────────────────

    def _check_catalog(self) -> None:
        """Opens what was put together: it is what the manifest says, or nothing is switched."""
        made, path = self._manifest, self._temporary / FILE
        state = _state(path)
        if (state.uuid, state.number, state.digest.hex()) != (made.store, made.number, made.digest):
            raise StoreDamaged(
                f"{self._target.url}: the catalog of epoch {made.number} is another's", file=path
            )
        for name, digest in _named(path).items():
            if name not in made.files or made.files[name].digest != digest:
                where = self._target.url
                raise StoreDamaged(
                    f"{where}: epoch {made.number} lacks {name}; publish it again", file=where
                )

    def _place(self, missing: list[str]) -> None:
        """Renames what was fetched; files of the epoch in force are only replaced by the same."""
        in_force: dict[str, str] = {}
        with suppress(StoreDamaged, NotFound):
            in_force = _named(self._root / FILE) if (self._root / FILE).exists() else {}
        for name in missing:
            if in_force.get(name, self._manifest.files[name].digest) != (
                self._manifest.files[name].digest
            ):
                raise FailedPrecondition(
                    f"{self._root / name}: the published store has another file of this name, "
                    "so it was restored from a backup and took another way since; pull into "
                    "another folder"
                )
        folders = set()
        for name in missing:
            path = self._root / name
            with files.naming(path):
                if not path.parent.exists():
                    path.parent.mkdir()
                    files.sync_folder(path.parent.parent)
                (self._temporary / name).rename(path)
            folders.add(path.parent)
        for folder in folders:
            with files.naming(folder):
                files.sync_folder(folder)

    def _place_embeddings(self, other: Mapping[str, CatalogFile]) -> None:
        """Renames files of embeddings; readers look into the new one for what theirs lacks."""
        for name in other:
            path = self._root / name
            with files.naming(path):
                path.parent.mkdir(exist_ok=True)
                (self._temporary / name).rename(path)
                files.sync_folder(path.parent)

    def _switch(self) -> None:
        """The mark first, so that a writer is refused whatever happens; then the catalog."""
        mark = Replica(published.FORMAT, self._target.url, self._manifest)
        files.write_atomic(self._root / MARK, msgspec.json.encode(mark))
        path = self._root / FILE
        with files.naming(path):
            (self._temporary / FILE).rename(path)
            files.sync_folder(self._root)

    def _remove_unnamed(self) -> None:
        """Files that the epoch in force does not need; readers that map them keep them."""
        named = {*self._manifest.files, *self._manifest.embeddings}
        for folder in (SEGMENTS, GENERATIONS, EMBEDDINGS):
            for path in sorted((self._root / folder).rglob("*"), reverse=True):
                name = path.relative_to(self._root).as_posix()
                with suppress(OSError):
                    if path.is_dir():
                        path.rmdir()  # refused while anything is in it
                    elif name not in named:
                        path.unlink()
