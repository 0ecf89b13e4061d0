"""How a published store looks: immutable files by their content, manifests, and one pointer.

::

    URL/CURRENT.json                 which manifest is in force; written last
        manifests/NUMBER-SHA.json    every file of one epoch, with its checksum
        blocks/AB/SHA256             a MiB of an SQLite file after one byte: plain 0, deflated 1
        files/AB/SHA256              a segment, or a file of a generation
        GARBAGE.json                 what no manifest names, and since when
"""

from __future__ import annotations

import hashlib
import re
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import PurePosixPath
from typing import TypeVar

import msgspec

from matchwright.engine.errors import InvalidArgument, NotFound, StoreDamaged, StoreFormat
from matchwright.engine.store.catalog import FILE as CATALOG
from matchwright.engine.store.hold import GENERATIONS, SEGMENTS
from matchwright.engine.store.remote import Target

FORMAT = 1
CURRENT, GARBAGE, MANIFESTS = "CURRENT.json", "GARBAGE.json", "manifests"
BLOCKS, FILES = "blocks", "files"
BLOCK_BYTES = 1 << 20
WORKERS = 4
_PLAIN, _DEFLATED = b"\x00", b"\x01"
_EMBEDDINGS = re.compile(r"embeddings/[0-9a-f]+\.sqlite")

T = TypeVar("T")
S = TypeVar("S", bound=msgspec.Struct)


class File(msgspec.Struct, frozen=True):
    """A file of a store. ``digest``: what the catalog's manifest says of a segment, in hex."""

    sha256: str
    size: int
    digest: str = ""


class CatalogFile(msgspec.Struct, frozen=True):
    """An SQLite file (catalog, embeddings): its bytes, and the SHA-256 of every started MiB."""

    size: int
    blocks: list[str]


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """All of one published epoch. ``embeddings``: file -> the like, of a served encoder."""

    format: int
    store: str
    number: int
    digest: str
    generation: str
    keep_text: bool
    catalog_format: int
    segment_format: int
    records: dict[str, int]
    catalog: CatalogFile
    files: dict[str, File]
    embeddings: dict[str, CatalogFile] = {}
    made: str

    @property
    def epoch(self) -> str:
        """uuid:number:digest."""
        return f"{self.store}:{self.number}:{self.digest}"

    @property
    def size(self) -> int:
        """Bytes of all files."""
        in_blocks = sum(file.size for file in self.in_blocks().values())
        return in_blocks + sum(file.size for file in self.files.values())

    def in_blocks(self) -> dict[str, CatalogFile]:
        """The files that are stored in blocks, the catalog among them."""
        return {CATALOG: self.catalog, **self.embeddings}

    def objects(self) -> set[str]:
        """The names of all objects of a target that hold its content."""
        blocks = {
            block_name(sha256) for file in self.in_blocks().values() for sha256 in file.blocks
        }
        return blocks | {file_name(file.sha256) for file in self.files.values()}


class Pointer(msgspec.Struct, frozen=True):
    """CURRENT.json."""

    format: int
    manifest: str
    sha256: str
    store: str
    number: int
    digest: str

    @property
    def epoch(self) -> str:
        """uuid:number:digest."""
        return f"{self.store}:{self.number}:{self.digest}"


def block_name(sha256: str) -> str:
    """Where a block of a catalog is."""
    return f"{BLOCKS}/{sha256[:2]}/{sha256}"


def file_name(sha256: str) -> str:
    """Where a file's content is."""
    return f"{FILES}/{sha256[:2]}/{sha256}"


def manifest_name(number: int, sha256: str) -> str:
    """Where a manifest is: names of later epochs sort after those of earlier ones."""
    return f"{MANIFESTS}/{number:012d}-{sha256[:16]}.json"


def is_manifest(name: str) -> bool:
    """Whether a file of a target is a manifest; parts of one are not."""
    folder, _, file = name.rpartition("/")
    return folder == MANIFESTS and file.endswith(".json") and not file.startswith(".")


def pack_block(data: bytes) -> bytes:
    """A block as it is stored."""
    packed = zlib.compress(data, 1)
    return _DEFLATED + packed if len(packed) < len(data) else _PLAIN + data


def unpack_block(packed: bytes, sha256: str, where: str) -> bytes:
    """The inverse of ``pack_block``.

    Raises:
        StoreDamaged: it does not have that SHA-256.
    """
    try:
        data = zlib.decompress(packed[1:]) if packed[:1] == _DEFLATED else packed[1:]
    except zlib.error:
        data = b""
    if hashlib.sha256(data).hexdigest() != sha256:
        raise damaged_object(where)
    return data


def damaged_object(where: str) -> StoreDamaged:
    """The error for an object that is not what its name says."""
    return StoreDamaged(
        f"{where}: does not match its checksum; remove it there and publish again", file=where
    )


def decode(kind: type[S], data: bytes, where: str, sha256: str | None = None) -> S:
    """A manifest or pointer out of a file.

    Raises:
        StoreFormat: a newer format.
        StoreDamaged: another checksum, or not such a file.
    """
    if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
        raise damaged_object(where)
    try:
        version = msgspec.json.decode(data, type=_Version).format
        if version > FORMAT:
            raise StoreFormat(
                f"{where}: has format {version}, this version reads up to {FORMAT}; "
                "use a newer matchwright",
                file=where,
            )
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise StoreDamaged(f"{where}: is damaged: {error}; publish again", file=where)


class _Version(msgspec.Struct):
    format: int


def pointer(target: Target) -> Pointer | None:
    """What is in force at a target, or None where nothing was ever published."""
    try:
        data = target.read(CURRENT)
    except NotFound:
        return None
    return decode(Pointer, data, target.url_of(CURRENT))


def manifest_at(target: Target, name: str, sha256: str | None = None) -> Manifest:
    """A manifest of a target.

    Raises:
        NotFound, StoreFormat, StoreDamaged: it cannot be used; the message names it.
    """
    where = target.url_of(name)
    data = target.read(name)
    named = name.rpartition("-")[2].removesuffix(".json")
    if not hashlib.sha256(data).hexdigest().startswith(named):
        raise damaged_object(where)
    manifest = decode(Manifest, data, where, sha256)
    for path in manifest.files:
        _check_name(path, where)
    for path in manifest.embeddings:
        if not _EMBEDDINGS.fullmatch(path):
            raise _strange(path, where)
    return manifest


def _check_name(path: str, where: str) -> None:
    """Refuses names that would be written outside a store's own folders."""
    parts = PurePosixPath(path).parts
    deep = {SEGMENTS: 2, GENERATIONS: 3}
    sound = len(parts) >= 2 and len(parts) >= deep.get(parts[0], 99) and ".." not in parts
    if not sound or path.startswith("/") or "\\" in path or "/".join(parts) != path:
        raise _strange(path, where)


def _strange(path: str, where: str) -> StoreDamaged:
    return StoreDamaged(f"{where}: names a file {path!r} that no store has", file=where)


def choose(target: Target, epoch: str | None) -> Manifest:
    """The manifest in force, or that of an epoch that is still kept.

    Args:
        target: where a store was published.
        epoch: a number, or a whole name (uuid:number:digest).

    Raises:
        NotFound: nothing is published there, or not that epoch (any more).
    """
    current = pointer(target)
    if current is None:
        raise NotFound(f"{target.url}: nothing is published there", file=target.url)
    if epoch is None:
        return manifest_at(target, current.manifest, current.sha256)
    number = epoch.split(":")[1] if epoch.count(":") == 2 else epoch
    if not number.isdecimal():
        raise InvalidArgument(f"got the epoch {epoch!r}, expected a number or uuid:number:digest")
    names = [name for name in target.list(MANIFESTS) if is_manifest(name)]
    for name in sorted(names, reverse=True):
        if name.startswith(f"{MANIFESTS}/{int(number):012d}-"):
            manifest = manifest_at(target, name)
            if ":" not in epoch or manifest.epoch == epoch:
                return manifest
    kept = ", ".join(sorted({str(int(name.split("/")[1].split("-")[0])) for name in names}))
    raise NotFound(f"{target.url}: epoch {epoch} is not kept there; kept are {kept}", epoch=epoch)


def in_parallel(jobs: Iterable[Callable[[], T]]) -> Iterator[T]:
    """Runs jobs on a few threads, few of them waiting at a time; results in order."""
    with ThreadPoolExecutor(WORKERS) as pool:
        waiting: deque[Future[T]] = deque()
        try:
            for job in jobs:
                waiting.append(pool.submit(job))
                if len(waiting) >= 2 * WORKERS:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
