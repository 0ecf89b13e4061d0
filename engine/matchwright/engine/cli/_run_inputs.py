"""Files instead of a store: they are imported into a store of their own, kept for the next time.

It lies in a cache, under a name that hashes what the files and maps hold: the same files give the
same store, so a second start finds its run done, and ``resume`` finds its epoch.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from matchwright.engine.cli._progress import say
from matchwright.engine.errors import InvalidArgument, NotFound

if TYPE_CHECKING:
    from matchwright.engine.records import Kind

_SALT_BYTES = 16
_SAMPLE = 50_000
_CHUNK = 1 << 20


def cache_folder() -> Path:
    """Where stores made of files are kept: $XDG_CACHE_HOME/matchwright/stores."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "matchwright" / "stores"


def store_of(
    files: Mapping[Kind, Sequence[Path]], maps: Sequence[Path], as_of: int, work: Path | None
) -> Path:
    """The store that holds what the files hold, made now unless it is there.

    Args:
        files: of both kinds, at least one each.
        maps: map files; each says its kind. One for a kind, or one for each of its files, in
            their order.
        as_of: the day that the generation is fitted for.
        work: the folder of such stores; the cache when None.

    Raises:
        MatchwrightError: what is wrong with a file or a map.
    """
    by_kind = _maps(files, maps)
    name = _digest(files, maps, as_of)
    folder = (cache_folder() if work is None else work) / name[:_SALT_BYTES]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        if folder.is_dir():
            say(f"the files are in the store {folder} already")
            return folder
        part = folder.with_name(f"{folder.name}.part")
        shutil.rmtree(part, ignore_errors=True)  # left behind by one that was killed
        _make(by_kind, as_of, part, bytes.fromhex(name[: 2 * _SALT_BYTES]))
        part.replace(folder)
    say(f"the files were imported into the store {folder}, which is kept; remove it at will")
    return folder


def _maps(
    files: Mapping[Kind, Sequence[Path]], maps: Sequence[Path]
) -> dict[Kind, list[tuple[list[Path], Path | None]]]:
    """Kind -> files, and the map that they are read with."""
    import tomllib

    found: dict[str, list[Path]] = {kind: [] for kind in files}
    for path in maps:
        try:
            kind = str(tomllib.loads(path.read_text("utf-8")).get("kind"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise InvalidArgument(f"{path}: not TOML: {error}") from None
        if kind not in found:
            raise InvalidArgument(f"{path}: kind is {kind!r}; expected 'job' or 'freelancer'")
        found[kind].append(path)
    return {kind: _paired(kind, list(given), found[kind]) for kind, given in files.items()}


def _paired(kind: str, files: list[Path], maps: list[Path]) -> list[tuple[list[Path], Path | None]]:
    if len(maps) <= 1:
        return [(files, maps[0] if maps else None)]
    if len(maps) != len(files):
        raise InvalidArgument(
            f"--map: {len(maps)} maps for {len(files)} files of {kind}s; give one, or one for "
            "each file in their order"
        )
    return [([file], one) for file, one in zip(files, maps, strict=True)]


def _digest(files: Mapping[Kind, Sequence[Path]], maps: Sequence[Path], as_of: int) -> str:
    """SHA-256 over what the files hold, in hexadecimal."""
    state = hashlib.sha256(f"{metadata.version('matchwright')}:{as_of}:".encode())
    for kind, paths in (*files.items(), ("map", maps)):
        for path in paths:
            if not path.is_file():
                raise NotFound(f"there is no file {str(path)!r}", file=path)
            state.update(f"{kind}:{path.suffix}:{path.stat().st_size}:".encode())
            with path.open("rb") as file:
                while chunk := file.read(_CHUNK):
                    state.update(chunk)
    return state.hexdigest()


def _make(
    files: Mapping[Kind, Sequence[tuple[list[Path], Path | None]]],
    as_of: int,
    folder: Path,
    salt: bytes,
) -> None:
    from matchwright.engine.cli.ingest import checked_map, free_name, into_store, summary
    from matchwright.engine.store import Store

    checked = [
        (kind, paths, checked_map(kind, path, None))
        for kind, groups in files.items()
        for paths, path in groups
    ]
    with Store.open(folder, mode="w", create=True, salt=salt):
        pass  # keys depend on the salt: the same files give the same keys, and the same digest
    for kind, paths, record_map in checked:
        refused = free_name(folder / "quarantine", f"{kind}s")
        report = into_store(kind, paths, folder, record_map, quarantine=refused, show=True)
        say(f"{kind}s: {summary(report)}")
        if report.quarantined:
            say(f"{kind}s: {report.quarantined:,} rows were refused; see quarantine/ in the store")
    with Store.open(folder, mode="w") as store:
        store.refit(seed=0, sample=_SAMPLE, as_of=as_of)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Whoever comes second waits until the store is there."""
    with folder.with_name(f"{folder.name}.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
