"""One file with everything of a store: a tar archive whose last member is ``SHA256SUMS``.

::

    backup.json                      which store, which epoch, formats; first
    catalog.sqlite                   complete by itself, no log beside it
    segments/.. generations/.. embeddings/.. leases/..
    SHA256SUMS                       as sha256sum writes it; last, so an archive without is cut off

It is written in one pass and read in one pass, so it goes through pipes. ``tar xf FILE`` and
``sha256sum -c SHA256SUMS`` check it anywhere.
"""

from __future__ import annotations

import datetime
import hashlib
import io
import os
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import msgspec

from matchwright.engine.errors import InvalidArgument, NotFound, StoreDamaged, StoreError
from matchwright.engine.store import files, segment_file
from matchwright.engine.store.catalog import FILE, Catalog
from matchwright.engine.store.embeddings_sweep import check_file
from matchwright.engine.store.encode import Neighbours, default_neighbours
from matchwright.engine.store.hold import (
    GENERATIONS,
    SEGMENTS,
    Held,
    Progress,
    hold,
    scratch_folder,
    silent,
)
from matchwright.engine.store.leases import FOLDER, SUFFIX
from matchwright.engine.store.remote import Target
from matchwright.engine.store.segment_file import SegmentFile

FORMAT = 1
ABOUT, SUMS = "backup.json", "SHA256SUMS"
STDOUT = "-"


class About(msgspec.Struct, frozen=True):
    """The content of ``backup.json``."""

    format: int
    store: str
    number: int
    digest: str
    catalog_format: int
    segment_format: int
    records: dict[str, int]
    bytes: int
    made: str


@dataclass(frozen=True)
class Backup:
    """What a backup did.

    Attributes:
        file: where it is.
        epoch: uuid:number:digest.
        files: members, without the first and the last.
        bytes: of them.
        records: of each kind.
    """

    file: str
    epoch: str
    files: int
    bytes: int
    records: dict[str, int]


def backup(
    root: str | os.PathLike[str],
    to: str | os.PathLike[str],
    *,
    stdout: IO[bytes] | None = None,
    neighbours: Neighbours | None = None,
    scratch: Path | None = None,
    progress: Progress = silent,
) -> Backup:
    """Writes a backup of the store in ``root``, as it is at one moment; a writer may go on.

    Args:
        root: a store.
        to: a file or URL; a folder of this machine gets a file named after the store and epoch. A
            file that is there is replaced when the new one is complete. "-" writes to ``stdout``.
        stdout: where "-" writes to.
        neighbours: what loads a generation.
        scratch: a folder with room for a copy of the catalog; by default the file's own folder,
            or the system's for an URL.
        progress: told of bytes.

    Raises:
        NotFound: there is no store.
        StoreDamaged: a file of it is damaged: a backup of that would look sound.
        StoreFull, StoreReadOnly, DependencyUnavailable: the target refused; no file is left.
    """
    root, text = Path(root), os.fspath(to)
    if text == STDOUT and stdout is None:
        raise InvalidArgument("a backup to '-' needs a stream to write to", field="to")
    target, name = (None, "") if text == STDOUT else split(text)
    here = target.local if target is not None else None
    parent = scratch or here or Path(tempfile.gettempdir())
    with (
        scratch_folder(parent, "backup") as folder,
        hold(root, folder, progress=progress) as held,
    ):
        _check(root, held, neighbours or default_neighbours(), folder)
        name = name or f"{held.state.uuid}-{held.state.number:012d}.tar"
        where = target.url_of(name) if target is not None else STDOUT
        with _opened(target, name, stdout) as out:
            count, size = _write(root, held, out, where, progress)
    return Backup(where, held.epoch, count, size, held.counts)


def split(text: str) -> tuple[Target, str]:
    """The folder of a file or URL, and the file's name; no name where ``text`` is a folder."""
    whole = Target(text)
    if whole.local is not None:
        if text.endswith("/") or whole.local.is_dir():
            return whole, ""
        return Target(whole.local.parent), whole.local.name
    folder, slash, name = text.rpartition("/")
    if not slash or not name or folder.endswith(("/", ":")):
        raise InvalidArgument(f"got {text!r}, expected an URL that ends in a file's name")
    return Target(folder), name


@contextmanager
def _opened(target: Target | None, name: str, stdout: IO[bytes] | None) -> Iterator[IO[bytes]]:
    if target is not None:
        with target.writing(name) as file:
            yield file
    elif stdout is not None:
        yield stdout
        stdout.flush()


def _check(root: Path, held: Held, neighbours: Neighbours, scratch: Path) -> None:
    """Everything that is copied is sound, as far as that can be seen without reading records."""
    for row in held.manifest:
        name = f"{SEGMENTS}/{row.file}"
        SegmentFile(root / name, row.digest, held.files[name]).verify()
    folders = {name.split("/")[1] for name in held.files if name.startswith(f"{GENERATIONS}/")}
    for folder in sorted(folders):
        path = root / GENERATIONS / folder
        try:
            with files.naming(path, "read"):
                neighbours.load(path)
        except (NotFound, StoreError):
            if path.is_dir():
                raise
            neighbours.load(_still_open(held, folder, scratch))
    for name in held.embeddings:
        check_file(root / name)
    with closing(Catalog(held.catalog, write=False)) as copied, copied.look() as connection:
        problems = connection.execute("PRAGMA quick_check").fetchall()
    if problems != [("ok",)]:
        raise StoreDamaged(
            f"{root / FILE}: is damaged: {problems[0][0]}; restore it from a backup",
            file=root / FILE,
        )


def _still_open(held: Held, folder: str, scratch: Path) -> Path:
    """A generation that a writer has removed since it was held, by way of its open files."""
    for name, file in held.files.items():
        if name.startswith(f"{GENERATIONS}/{folder}/"):
            (scratch / name).parent.mkdir(parents=True, exist_ok=True)
            (scratch / name).symlink_to(f"/proc/self/fd/{file.fileno()}")
    return scratch / GENERATIONS / folder


@dataclass(frozen=True)
class _Member:
    """A file that goes into the archive: its name there, where it is from, its bytes."""

    name: str
    path: Path
    file: IO[bytes]
    size: int


def _write(
    root: Path, held: Held, out: IO[bytes], where: str, progress: Progress
) -> tuple[int, int]:
    """Writes the archive; (members, bytes)."""
    with (
        files.naming(held.catalog, "read"),
        held.catalog.open("rb") as catalog,
        ExitStack() as stack,
    ):
        copies = {
            name: stack.enter_context(path.open("rb")) for name, path in held.embeddings.items()
        }
        opened: dict[str, IO[bytes]] = {FILE: catalog, **held.files, **copies}
        members = [
            _Member(name, root / name, file, os.fstat(file.fileno()).st_size)
            for name, file in opened.items()
        ]
        members += _leases(root)
        total, done = sum(member.size for member in members), 0
        about = _about(held, total)
        first = _Member(ABOUT, root / ABOUT, io.BytesIO(about), len(about))
        sums = ""
        with tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT) as archive:
            for member in (first, *members):
                sums += f"{_add(archive, member, where)}  {member.name}\n"
                done += member.size
                progress("backup", done - len(about), total)
            text = sums.encode()
            _add(archive, _Member(SUMS, root / SUMS, io.BytesIO(text), len(text)), where)
    return len(members), total


def _leases(root: Path) -> list[_Member]:
    """Leases, as they are now; one that ends meanwhile is left out."""
    found = []
    for path in sorted((root / FOLDER).glob(f"*{SUFFIX}")):
        with files.naming(path, "read"), suppress(FileNotFoundError):
            data = path.read_bytes()
            name = path.relative_to(root).as_posix()
            found.append(_Member(name, path, io.BytesIO(data), len(data)))
    return found


def _about(held: Held, size: int) -> bytes:
    about = About(
        format=FORMAT,
        store=held.state.uuid,
        number=held.state.number,
        digest=held.state.digest.hex(),
        catalog_format=held.format,
        segment_format=segment_file.FORMAT,
        records=held.counts,
        bytes=size,
        made=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )
    return msgspec.json.format(msgspec.json.encode(about), indent=1) + b"\n"


def _add(archive: tarfile.TarFile, member: _Member, where: str) -> str:
    """Adds a member; its SHA-256 in hex."""
    info = tarfile.TarInfo(member.name)
    info.size, info.mode = member.size, 0o644
    source = _Hashing(member.file, member.path)
    try:
        archive.addfile(info, source)
    except StoreError:
        raise
    except OSError as error:
        if error.errno is None:  # tarfile's own: the file had fewer bytes than it said
            raise StoreDamaged(f"{member.path}: got shorter while it was read", file=member.path)
        raise files.failure(where, error)
    return source.hexdigest()


class _Hashing:
    """Reads a file from its start and hashes what is read."""

    def __init__(self, file: IO[bytes], path: Path) -> None:
        self._file = file
        self._path = path
        self._state = hashlib.sha256()
        file.seek(0)

    def read(self, size: int = -1) -> bytes:
        with files.naming(self._path, "read"):
            data = self._file.read(size)
        self._state.update(data)
        return data

    def hexdigest(self) -> str:
        return self._state.hexdigest()
