"""Puts an epoch of a store where replicas and tests can pull it from.

Only what is not there yet is uploaded. The pointer is switched last, so whoever pulls sees the
epoch before or this one, whole; what a killed publish has uploaded, the next one finds.
"""

from __future__ import annotations

import datetime
import hashlib
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import IO

import msgspec

from matchwright.engine.errors import (
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    StoreDamaged,
    StoreFormat,
)
from matchwright.engine.store import files, published, segment_file
from matchwright.engine.store.catalog import FILE, Catalog, State
from matchwright.engine.store.hold import SEGMENTS, Held, Progress, hold, scratch_folder, silent
from matchwright.engine.store.published import (
    CatalogFile,
    File,
    Manifest,
    Pointer,
    block_name,
    file_name,
    in_parallel,
)
from matchwright.engine.store.remote import PART, Entry, Target, copy_all, pieces_of
from matchwright.engine.store.segment_file import SegmentFile

KEEP = 3
"""Epochs that stay at a target when more are published."""
GRACE_S = 24 * 3600.0
"""Seconds that something must have been garbage before it is removed: longer than any publish or
pull takes, since those may still count on it."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Published:
    """What a publish did.

    Attributes:
        url: where.
        epoch: uuid:number:digest, in force there now.
        changed: whether the pointer was switched; False when that epoch was in force already.
        bytes: of all files of the epoch.
        uploaded, uploaded_bytes: objects that were not there yet.
        removed: objects and manifests that went.
    """

    url: str
    epoch: str
    changed: bool
    bytes: int
    uploaded: int
    uploaded_bytes: int
    removed: int


def publish(
    root: str | os.PathLike[str],
    url: str | os.PathLike[str],
    *,
    name: str | None = None,
    keep_text: bool = True,
    keep: int = KEEP,
    grace_s: float = GRACE_S,
    allow_older: bool = False,
    scratch: Path | None = None,
    progress: Progress = silent,
) -> Published:
    """Publishes the newest epoch of the store in ``root``; a writer may go on meanwhile.

    Args:
        root: a store, or a replica of one.
        url: any target that fsspec writes to.
        name: a folder below it.
        keep_text: False leaves the records' texts out.
        keep: epochs that stay there.
        grace_s: seconds that something must have been garbage before it is removed.
        allow_older: switch also from a later epoch to an earlier one, after a restore.
        scratch: a folder with room for a copy of the catalog; the system's by default.
        progress: told of bytes.

    Raises:
        FailedPrecondition: another store is published there, or a later epoch of this one.
        StoreDamaged: a file of the store is damaged; nothing was switched.
        StoreFull, StoreReadOnly, DependencyUnavailable: the target refused; nothing was switched.
    """
    if keep < 1 or grace_s < 0:
        raise InvalidArgument(f"got keep {keep}, grace {grace_s}; expected at least 1, and 0")
    root, target = Path(root), Target(url, name)
    before = published.pointer(target)
    state = _state(root)
    _check_order(target, before, state, allow_older)
    there = target.list()
    previous = _previous(target, before)
    if previous is not None and _is_there(previous, state, keep_text, there):
        removed = collect(target, keep, grace_s)
        return Published(target.url, previous.epoch, False, previous.size, 0, 0, removed)
    parent = scratch or Path(tempfile.gettempdir())
    with (
        scratch_folder(parent, "publish") as folder,
        hold(root, folder, newest_only=True, keep_text=keep_text, progress=progress) as held,
    ):
        upload = _Upload(target, there, _trusted(target, there), progress)
        manifest = upload.everything(root, held, previous)
        _check_order(target, published.pointer(target), held.state, allow_older)
        _switch(target, manifest)
    removed = collect(target, keep, grace_s)
    return Published(
        target.url, manifest.epoch, True, manifest.size, upload.count, upload.size, removed
    )


def _state(root: Path) -> State:
    if not (root / FILE).is_file():
        raise NotFound(f"{root}: holds no store; import into it to make one", file=root)
    with closing(Catalog(root / FILE, write=False)) as catalog:
        catalog.check()
        with catalog.look() as connection:
            return catalog.state(connection)


def _check_order(target: Target, before: Pointer | None, state: State, allow_older: bool) -> None:
    if before is None:
        return
    if before.store != state.uuid:
        raise FailedPrecondition(
            f"{target.url}: the store {before.store} is published there, this one is "
            f"{state.uuid}; choose another --name or URL"
        )
    if before.number > state.number and not allow_older:
        raise FailedPrecondition(
            f"{target.url}: epoch {before.number} is published there, this store is at "
            f"{state.number}; after a restore, --allow-older switches back"
        )


def _previous(target: Target, before: Pointer | None) -> Manifest | None:
    """The manifest in force; None too when it is lost or damaged: then all is made anew."""
    if before is None:
        return None
    try:
        return published.manifest_at(target, before.manifest, before.sha256)
    except (NotFound, StoreDamaged, StoreFormat):
        return None


def _is_there(
    previous: Manifest, state: State, keep_text: bool, there: Mapping[str, Entry]
) -> bool:
    same = (previous.number, previous.digest) == (
        state.number,
        state.digest.hex(),
    ) and previous.keep_text == (keep_text and state.keep_text)
    whole = all(
        file_name(file.sha256) in there and there[file_name(file.sha256)].size == file.size
        for file in previous.files.values()
    )
    in_blocks = previous.in_blocks().values()
    return same and whole and all(block_name(one) in there for it in in_blocks for one in it.blocks)


def _trusted(target: Target, there: Mapping[str, Entry]) -> set[str]:
    """Objects that are there to stay: what is marked as garbage may be removed at any moment."""
    return set(there) - set(_marked(target))


class _Upload:
    """Uploads what a target lacks."""

    def __init__(
        self, target: Target, there: Mapping[str, Entry], trusted: set[str], progress: Progress
    ) -> None:
        self._target = target
        self._there = there
        self._trusted = trusted
        self._progress = progress
        self.count = self.size = 0

    def everything(self, root: Path, held: Held, previous: Manifest | None) -> Manifest:
        """Blocks, segments and generations; then the manifest's content."""
        in_blocks = {FILE: held.catalog, **held.embeddings}
        total = sum(path.stat().st_size for path in in_blocks.values())
        total += sum(os.fstat(file.fileno()).st_size for file in held.files.values())
        done = 0
        blocks: dict[str, list[str]] = {name: [] for name in in_blocks}
        entries: dict[str, File] = {}
        known = previous.files if previous is not None else {}
        jobs = self._jobs(root, held, known, entries)
        for size in in_parallel(chain(jobs, self._blocks(in_blocks, blocks))):
            done += size
            self._progress("publish", done, total)
        made = {
            name: CatalogFile(path.stat().st_size, blocks[name]) for name, path in in_blocks.items()
        }
        state = held.state
        return Manifest(
            format=published.FORMAT,
            store=state.uuid,
            number=state.number,
            digest=state.digest.hex(),
            generation=state.generation,
            keep_text=state.keep_text,
            catalog_format=held.format,
            segment_format=segment_file.FORMAT,
            records=held.counts,
            catalog=made[FILE],
            files={name: entries[name] for name in sorted(entries)},
            embeddings={name: made[name] for name in sorted(held.embeddings)},
            made=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        )

    def _jobs(
        self,
        root: Path,
        held: Held,
        known: Mapping[str, File],
        entries: dict[str, File],
    ) -> Iterator[Callable[[], int]]:
        digests = {f"{SEGMENTS}/{row.file}": row.digest for row in held.manifest}
        for name, file in held.files.items():
            yield partial(self._file, root, name, file, digests.get(name), known, entries)

    def _blocks(
        self, in_blocks: Mapping[str, Path], blocks: Mapping[str, list[str]]
    ) -> Iterator[Callable[[], int]]:
        seen: set[str] = set()
        for name, path in in_blocks.items():
            with files.naming(path, "read"), path.open("rb") as file:
                while block := file.read(published.BLOCK_BYTES):
                    sha256 = hashlib.sha256(block).hexdigest()
                    blocks[name].append(sha256)
                    if sha256 not in seen:
                        seen.add(sha256)
                        yield partial(self._block, sha256, block)

    def _block(self, sha256: str, block: bytes) -> int:
        name = block_name(sha256)
        if name not in self._trusted:
            packed = published.pack_block(block)
            self._target.write(name, packed)
            self._tell(len(packed))
        return len(block)

    def _file(
        self,
        root: Path,
        name: str,
        file: IO[bytes],
        digest: bytes | None,
        known: Mapping[str, File],
        entries: dict[str, File],
    ) -> int:
        """Uploads one file, unless it is there; a segment is checked block by block before."""
        where, size = root / name, os.fstat(file.fileno()).st_size
        before = known.get(name)
        hexed = digest.hex() if digest is not None else ""
        if before is None or not hexed or (before.digest, before.size) != (hexed, size):
            if digest is not None:
                SegmentFile(where, digest, file).verify()
            before = File(_sha256(file, where), size, hexed)
        entries[name] = before
        there = self._there.get(file_name(before.sha256))
        trusted = file_name(before.sha256) in self._trusted
        if there is None or not trusted or there.size != size:
            self._put(file, where, before)
        return size

    def _put(self, file: IO[bytes], where: Path, entry: File) -> None:
        with self._target.writing(file_name(entry.sha256)) as into:
            if copy_all(file, into, where) != entry.sha256:
                raise StoreDamaged(f"{where}: changed while it was read; verify it", file=where)
        self._tell(entry.size)

    def _tell(self, size: int) -> None:
        self.count += 1
        self.size += size


def _sha256(file: IO[bytes], where: Path) -> str:
    state = hashlib.sha256()
    file.seek(0)
    for piece in pieces_of(file, where):
        state.update(piece)
    return state.hexdigest()


def _switch(target: Target, manifest: Manifest) -> None:
    data = msgspec.json.format(msgspec.json.encode(manifest), indent=1)
    sha256 = hashlib.sha256(data).hexdigest()
    name = published.manifest_name(manifest.number, sha256)
    target.write(name, data)
    pointer = Pointer(
        published.FORMAT, name, sha256, manifest.store, manifest.number, manifest.digest
    )
    target.write(published.CURRENT, msgspec.json.encode(pointer))


# ── What nobody needs any more ────────────────────────────────────────────────────────────────────


def collect(target: Target, keep: int, grace_s: float) -> int:
    """Removes manifests beyond ``keep``, and objects that were garbage for ``grace_s`` seconds.

    What no manifest names is first marked, with the time. It goes when it is still named by none
    ``grace_s`` later, and was not written anew meanwhile. A publish does not count on what is
    marked, so nothing that one counts on goes, as long as it takes less than ``grace_s``. An
    earlier manifest that is damaged keeps nothing: nobody can pull it.

    Returns:
        How many files were removed.
    """
    there = target.list()
    current = published.pointer(target)
    if current is None:
        return 0
    manifests = [name for name in there if published.is_manifest(name)]
    manifests.sort(key=lambda name: (there[name].written or 0.0, name), reverse=True)
    kept, needed, dropped = 0, published.manifest_at(target, current.manifest).objects(), []
    for name in manifests:
        if name == current.manifest:
            continue
        try:
            objects = published.manifest_at(target, name).objects()
        except NotFound:  # another one collects as well
            continue
        except StoreDamaged as error:  # nobody can pull it
            _log.warning("%s", error)
            if _older(there[name], time.time() - grace_s):
                dropped.append(name)
            continue
        kept += 1
        if kept < keep:
            needed |= objects
        else:
            dropped.append(name)
    for name in dropped:
        target.remove(name)
    now = time.time()
    ours = (f"{published.BLOCKS}/", f"{published.FILES}/")
    garbage = {name for name in there if name.startswith(ours) or name.endswith(PART)} - needed
    marked = {name: since for name, since in _marked(target).items() if name in garbage}
    expired = [
        name
        for name, since in marked.items()
        if now - since >= grace_s and _older(there[name], now - grace_s)
    ]
    if grace_s == 0:
        expired = sorted(garbage)
    for name in expired:
        target.remove(name)
    marks = {name: marked.get(name, now) for name in garbage - set(expired)}
    if marks or published.GARBAGE in there:
        target.write(published.GARBAGE, msgspec.json.encode(marks))
    return len(dropped) + len(expired)


def _older(entry: Entry, than: float) -> bool:
    """Whether it was written before a time; where that is unknown, no."""
    return entry.written is not None and entry.written <= than


def _marked(target: Target) -> dict[str, float]:
    """Object -> since when it is garbage (seconds since 1970)."""
    try:
        data = target.read(published.GARBAGE)
        return msgspec.json.decode(data, type=dict[str, float])
    except (NotFound, msgspec.DecodeError):
        return {}
