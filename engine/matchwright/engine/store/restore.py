"""A store out of a backup: whole in its place, or nothing.

The archive is unpacked beside, every checksum compared, every block and record read; then one
rename puts the folder in its place. With ``replace`` the two folders change places at once.
"""

from __future__ import annotations

import ctypes
import hashlib
import lzma
import os
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import msgspec

from matchwright.engine.errors import (
    AlreadyExists,
    InvalidArgument,
    NotFound,
    StoreDamaged,
    StoreError,
    StoreFormat,
)
from matchwright.engine.store import catalog as catalogs
from matchwright.engine.store import files, segment_file
from matchwright.engine.store.backup import ABOUT, FORMAT, STDOUT, SUMS, About, split
from matchwright.engine.store.catalog import FILE
from matchwright.engine.store.check import damages
from matchwright.engine.store.encode import Neighbours, default_neighbours
from matchwright.engine.store.hold import GENERATIONS, SEGMENTS, Progress, silent
from matchwright.engine.store.remote import pieces_of, remove_tree

_NAMES = re.compile(
    r"catalog\.sqlite|segments/(?!\.)[^/]+\.mwseg|generations/[0-9A-Za-z]+/(?!\.)[^/]+"
    r"|embeddings/[0-9a-f]+\.sqlite|leases/[A-Za-z0-9_][A-Za-z0-9._-]*\.json"
)
_EXCHANGE = 2
_HERE = -100


@dataclass(frozen=True)
class Restored:
    """What a restore did.

    Attributes:
        epoch: uuid:number:digest.
        made: when the backup was made, ISO 8601 in UTC.
        files, bytes: what it holds.
        records: of each kind.
        replaced: whether a store was there before.
    """

    epoch: str
    made: str
    files: int
    bytes: int
    records: dict[str, int]
    replaced: bool


def restore(
    source: str | os.PathLike[str],
    root: str | os.PathLike[str],
    *,
    replace: bool = False,
    stdin: IO[bytes] | None = None,
    neighbours: Neighbours | None = None,
    progress: Progress = silent,
    wait_s: float = 0.0,
    waiting: Callable[[str], None] | None = None,
) -> Restored:
    """Makes the store in ``root`` from a backup.

    Args:
        source: a file or URL; "-" reads ``stdin``. Also packed with gzip, bzip2 or xz.
        root: a folder that is not there or empty; its parent is on the same file system.
        replace: take the place of the store that is there; its readers see the restored one.
        stdin: where "-" reads from.
        neighbours: what loads a generation.
        progress: told of bytes and records.
        wait_s, waiting: how long to wait for a writer of the store that is replaced, and who is
            told; see ``files.WriterLock``.

    Raises:
        NotFound: there is no such backup.
        AlreadyExists: ``root`` holds something, and not a store that may be replaced.
        StoreLocked: a writer has the store, or another restore is at work.
        StoreDamaged: the backup is cut off or damaged; ``root`` is as it was.
        StoreFormat: it needs a newer version; so is it here.
        StoreFull, StoreReadOnly: so is it here.
    """
    root = Path(root).resolve()
    before = _check_place(root, replace)
    temporary = root.with_name(f".{root.name}.restore")
    with ExitStack() as stack:
        opened = stack.enter_context(_opened(os.fspath(source), stdin))
        if before:
            lock = files.WriterLock(root / "LOCK", wait_s=wait_s, waiting=waiting)
            stack.callback(lock.release)
        with files.naming(temporary):
            temporary.mkdir(parents=True, exist_ok=True)
        # It becomes the lock of the store, held until all is done.
        stack.callback(files.WriterLock(temporary / "LOCK").release)
        try:
            about, count = _unpack(opened, str(source), temporary, progress)
            _verify(temporary, str(source), neighbours or default_neighbours(), progress)
            _switch(temporary, root, before)
        finally:
            remove_tree(temporary)
    epoch = f"{about.store}:{about.number}:{about.digest}"
    return Restored(epoch, about.made, count, about.bytes, about.records, before)


def _check_place(root: Path, replace: bool) -> bool:
    """Whether a store is there that is to be replaced."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    if not (root / FILE).is_file():
        raise AlreadyExists(f"{root}: is there and holds no store; name another folder", file=root)
    if not replace:
        raise AlreadyExists(
            f"{root}: holds a store; restore into another folder, or give --replace", file=root
        )
    return True


@contextmanager
def _opened(source: str, stdin: IO[bytes] | None) -> Iterator[IO[bytes]]:
    if source == STDOUT:
        if stdin is None:
            raise InvalidArgument("a restore from '-' needs a stream to read from", field="from")
        yield stdin
        return
    target, name = split(source)
    if not name:
        raise InvalidArgument(f"{source}: is a folder; name the backup in it", field="from")
    with target.opened(name) as file:
        yield file


def _unpack(opened: IO[bytes], source: str, folder: Path, progress: Progress) -> tuple[About, int]:
    """Writes the members into ``folder`` and compares their checksums.

    Raises:
        StoreDamaged: cut off, damaged, or no backup.
    """
    with files.naming(folder):
        for path in folder.iterdir():  # of a restore that was killed
            if path.is_dir():
                remove_tree(path)
            elif path.name != "LOCK":
                path.unlink()
        for name in (SEGMENTS, GENERATIONS):
            (folder / name).mkdir()
    try:
        with tarfile.open(fileobj=opened, mode="r|*") as archive:
            return _unpack_all(archive, source, folder, progress)
    except (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise files.failure(source, error, "read")
        raise _cut_off(source, str(error))


def _unpack_all(
    archive: tarfile.TarFile, source: str, folder: Path, progress: Progress
) -> tuple[About, int]:
    about: About | None = None
    sums: dict[str, str] = {}
    done = 0
    for member in archive:
        file = archive.extractfile(member) if member.isreg() else None
        if file is None:
            raise _cut_off(source, f"{member.name!r} is no plain file")
        if about is None:
            about = _read_about(member.name, file.read(), source, sums)
        elif member.name == SUMS:
            _compare(file.read(), sums, source)
            return about, len(sums) - 1
        elif _NAMES.fullmatch(member.name) and member.name not in sums:
            sums[member.name] = _write_member(file, folder / member.name, source)
            done += member.size
            progress("restore", done, about.bytes)
        else:
            raise _cut_off(source, f"{member.name!r} does not belong into a backup")
    raise _cut_off(source, f"{SUMS} is missing at its end")


def _read_about(name: str, data: bytes, source: str, sums: dict[str, str]) -> About:
    if name != ABOUT:
        raise _cut_off(source, f"it starts with {name!r}, expected {ABOUT}")
    sums[ABOUT] = hashlib.sha256(data).hexdigest()
    try:
        about = msgspec.json.decode(data, type=About)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _cut_off(source, f"{ABOUT}: {error}")
    reads = (FORMAT, catalogs.FORMAT, segment_file.FORMAT)
    has = (about.format, about.catalog_format, about.segment_format)
    if any(got > known for got, known in zip(has, reads, strict=True)):
        raise StoreFormat(
            f"{source}: has formats {has} (backup, catalog, segments), this version reads up to "
            f"{reads}; use a newer matchwright",
            file=source,
        )
    return about


def _write_member(file: IO[bytes], path: Path, source: str) -> str:
    state = hashlib.sha256()
    with files.naming(path):
        path.parent.mkdir(exist_ok=True)
        with path.open("xb") as into:
            for piece in pieces_of(file, source):
                state.update(piece)
                into.write(piece)
            into.flush()
            os.fsync(into.fileno())
    return state.hexdigest()


def _compare(data: bytes, sums: dict[str, str], source: str) -> None:
    try:
        lines = [line.split("  ", 1) for line in data.decode().splitlines()]
        stated = {name: sha256 for sha256, name in lines}
    except (UnicodeDecodeError, ValueError):
        stated = {}
    other = [name for name in {*stated, *sums} if stated.get(name) != sums.get(name)]
    if other:
        raise StoreDamaged(
            f"{source}: {min(other)} in it does not match {SUMS}; use another backup", file=source
        )


def _cut_off(source: str, why: str) -> StoreDamaged:
    return StoreDamaged(
        f"{source}: is no backup, or is cut off or damaged: {why}; use another one", file=source
    )


def _verify(folder: Path, source: str, neighbours: Neighbours, progress: Progress) -> None:
    """Reads everything before it is put in place."""
    found: list[StoreError] = []
    try:
        found = damages(folder, neighbours, progress)
    except NotFound:
        raise _cut_off(source, f"{FILE} is missing")
    if found:
        raise StoreDamaged(
            f"{source}: {found[0]}" + (f" (and {len(found) - 1} more)" if found[1:] else ""),
            file=source,
        )


def _switch(temporary: Path, root: Path, before: bool) -> None:
    with files.naming(root):
        files.sync_tree(temporary)
        if before:
            _exchange(temporary, root)
        else:
            temporary.rename(root)
        files.sync_folder(root.parent)


def _exchange(one: Path, other: Path) -> None:
    """Two folders change names at once (Linux, ``renameat2``)."""
    libc = ctypes.CDLL(None, use_errno=True)
    names = (_HERE, os.fsencode(one), _HERE, os.fsencode(other))
    if libc.renameat2(*names, _EXCHANGE) != 0:
        number = ctypes.get_errno()
        raise StoreError(
            f"{other}: cannot be replaced in one step here ({os.strerror(number)}); move it away "
            "and restore without --replace",
            file=other,
        )
