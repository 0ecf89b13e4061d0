"""Erasing people from everything that a store knows of: records, segments, runs, quarantine.

The store first, in one transaction; then the pages and files that still hold what it replaced;
then runs and quarantine files. What cannot be reached is said, never passed over: published copies
and backups, runs that are being written, readers that hold on. Killed at any moment, erasing the
same ids again completes it. See docs/erasure.md.
"""

from __future__ import annotations

import os
import tempfile
import time
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matchwright.engine.errors import InvalidArgument, MatchwrightError
from matchwright.engine.records import quarantine as quarantines
from matchwright.engine.runs.redact import Gone, Redaction, redact_output
from matchwright.engine.store import embeddings_sweep, erase, migrate, places
from matchwright.engine.store.catalog import KINDS, Catalog
from matchwright.engine.store.erase import Who
from matchwright.engine.store.hold import scratch_folder

if TYPE_CHECKING:
    from matchwright.engine.store.store import Store
    from matchwright.engine.store.writer import Writer

RUNS = "runs"
QUARANTINE = "quarantine"
_OUT_OF_REACH: Mapping[places.What, str] = {
    "published": "a published copy of the store; publish again, then remove the older epochs there",
    "backup": "a backup; make a new one and destroy this one",
}

Step = Callable[[str], None]


@dataclass(slots=True)
class Erasure:
    """What one erasure did.

    Attributes:
        who, ids: whom, and how many ids were given.
        epoch: number of the epoch that no longer shows them.
        living: records that were there; of clients, their jobs.
        earlier: replaced or deleted forms of their records that went.
        mentions: records of others in which a stand-in took the place of an id.
        rows, files: encoded rows that went, and segment files that were replaced for it.
        embeddings: of texts that nobody who stays has, of theirs and of earlier texts of others.
        runs: what became of each run.
        quarantine: path -> rows that were taken out or blanked.
        not_reached: what may still hold them, and why. Empty: nothing that is known of does.
        incomplete: whether doing the same again would reach more of it.
        seconds: it took.
    """

    who: Who
    ids: int
    epoch: int = 0
    living: int = 0
    earlier: int = 0
    mentions: int = 0
    rows: int = 0
    files: int = 0
    embeddings: int = 0
    runs: list[Redaction] = field(default_factory=list)
    quarantine: dict[str, int] = field(default_factory=dict)
    not_reached: list[str] = field(default_factory=list)
    incomplete: bool = False
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        plain = {name: getattr(self, name) for name in self.__slots__}
        return {**plain, "runs": [run.to_dict() for run in self.runs]}


@dataclass(frozen=True, slots=True, eq=False)
class Places:
    """Where to erase beside the store itself: URLs of outputs, quarantine files."""

    runs: Sequence[str]
    quarantine: Sequence[Path]


def places_of(
    root: Path,
    runs: Sequence[str | os.PathLike[str]] = (),
    quarantine: Sequence[str | os.PathLike[str]] = (),
) -> Places:
    """The places that are known of, and those that were given."""
    outputs = [str(root / RUNS), *places.known(root, "runs"), *(os.fspath(url) for url in runs)]
    files = sorted((root / QUARANTINE).glob("*.parquet"))
    files += map(Path, places.known(root, "quarantine"))
    given = [Path(path) for path in quarantine]
    for path in given:
        if not path.is_file():
            raise InvalidArgument(f"{path}: there is no such quarantine file", field="quarantine")
    return Places(tuple(dict.fromkeys(outputs)), tuple(dict.fromkeys([*files, *given])))


def checked_ids(ids: Sequence[str]) -> list[str]:
    """Distinct ids in NFC, as the store keeps them.

    Raises:
        InvalidArgument: none were given, or one is empty.
    """
    distinct = list(dict.fromkeys(unicodedata.normalize("NFC", name) for name in ids))
    if not distinct or not all(distinct):
        raise InvalidArgument("give the ids to erase, none of them empty", field="ids")
    return distinct


def erase_entities(
    writer: Writer,
    who: Who,
    ids: Sequence[str],
    *,
    runs: Sequence[str | os.PathLike[str]] = (),
    quarantine: Sequence[str | os.PathLike[str]] = (),
    step: Step = lambda what: None,
) -> Erasure:
    """Erase entities of a kind, or clients; see ``Store.erase``."""
    began = time.monotonic()
    names = checked_ids(ids)
    where = places_of(writer.root, runs, quarantine)
    done = Erasure(who, len(names))
    hash_keys = writer.neighbours.hash_keys
    step(f"records and rows of {len(names):,} {who}s")
    target = erase.target_of(writer.root, writer.catalog, hash_keys, who, names)
    for name, figure in asdict(erase.erase_rows(writer, target)).items():
        setattr(done, name, figure)
    migrate.drop_copies(writer.root)
    _sweep_scratch(writer.root)
    step("pages and log of the catalog")
    if not erase.scrub(writer.catalog):
        done.incomplete = True
        done.not_reached.append(
            f"{writer.catalog.path}-wal: a reader holds on to it; erase again when it has ended"
        )
    step("embeddings of texts")
    done.embeddings, held = embeddings_sweep.sweep(writer)
    done.incomplete |= bool(held)
    done.not_reached += [
        f"{path}-wal: a reader holds on to it; erase again when it has ended" for path in held
    ]
    _quarantine(done, where.quarantine, [*dict.fromkeys((*names, *target.names))], step)
    _runs(done, where.runs, gone_from(writer.catalog), step)
    for what, why in _OUT_OF_REACH.items():
        done.not_reached += [f"{place}: {why}" for place in places.known(writer.root, what)]
    if not done.incomplete:
        erase.finish(writer.catalog, target)
        erase.scrub(writer.catalog)
    done.seconds = round(time.monotonic() - began, 3)
    return done


def _sweep_scratch(root: Path) -> None:
    """Copies of the catalog that a killed publish or backup left behind."""
    for what in ("publish", "backup"):
        for parent in (Path(tempfile.gettempdir()), root):
            with scratch_folder(parent, what):
                pass  # entering it sweeps what nobody holds


def survey(store: Store, who: Who, ids: Sequence[str]) -> dict[str, int]:
    """What erasing would find in the store itself; nothing is changed."""
    names, hash_keys = checked_ids(ids), store._neighbours.hash_keys
    target = erase.target_of(store.root, store._catalog, hash_keys, who, names)
    return erase.count(store._catalog, target)


def gone_from_store(store: Store) -> Gone:
    """Everybody who was erased from a store so far."""
    return gone_from(store._catalog)


def gone_from(catalog: Catalog) -> Gone:
    """Everybody who was erased from a store so far."""
    everybody = erase.erased(catalog)
    with catalog.look() as connection:
        uuid = catalog.state(connection).uuid
    return Gone(
        uuid,
        {kind: everybody[kind].key_n for kind in KINDS},
        {kind: everybody[kind].epoch_n for kind in KINDS},
    )


def _quarantine(done: Erasure, files: Sequence[Path], names: Sequence[str], step: Step) -> None:
    for path in files:
        if not path.is_file():
            continue  # moved or removed since it was written
        step(f"quarantine {path}")
        try:
            rows = quarantines.erase(path, names)
        except (MatchwrightError, OSError) as error:
            done.incomplete = True
            done.not_reached.append(f"{path}: {error}")
            continue
        if rows:
            done.quarantine[str(path)] = rows


def _runs(done: Erasure, outputs: Sequence[str], gone: Gone, step: Step) -> None:
    for url in outputs:
        step(f"runs in {url}")
        try:
            redacted = redact_output(url, gone, now())
        except Exception as error:  # file systems have errors of their own
            done.incomplete = True
            done.not_reached.append(f"{url}: {error}")
            continue
        done.runs += [run for run in redacted if run.outcome != "untouched"]
        missed = [run for run in redacted if run.outcome == "not reached"]
        done.incomplete |= bool(missed)
        done.not_reached += [f"{run.run}: {run.why}" for run in missed]
        done.not_reached += [
            f"{run.run}/{name}: is no file of a run; look at it yourself"
            for run in redacted
            for name in run.strange
        ]


def now() -> str:
    """UTC, ISO 8601, whole seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
