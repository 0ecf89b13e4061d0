"""The store: one folder per marketplace. See docs/store.md for the format and the guarantees.

::

    DIR/LOCK              held by the writer
        catalog.sqlite    records, manifest, tombstones, live rows, epochs (with -wal and -shm)
        segments/         sealed segment files
        generations/ID/   what was fitted
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from matchwright.engine.errors import (
    EpochGone,
    FailedPrecondition,
    StoreError,
)
from matchwright.engine.store import catalog, creation, files, migrate, refit, tend
from matchwright.engine.store.bulk import BulkWriter
from matchwright.engine.store.catalog import KINDS, Catalog, Kind
from matchwright.engine.store.check import damages
from matchwright.engine.store.collect import Collector
from matchwright.engine.store.compact import PACE, Compactor, Figures, Stopped, vacuum
from matchwright.engine.store.embeddings_ahead import Embeddings, Tell, silent
from matchwright.engine.store.embeddings_sweep import sweep
from matchwright.engine.store.encode import Neighbours, default_neighbours
from matchwright.engine.store.leases import LeaseFolder
from matchwright.engine.store.loader import Loader
from matchwright.engine.store.patch import patch_record, patched
from matchwright.engine.store.reading import Reading
from matchwright.engine.store.report import report
from matchwright.engine.store.snapshot import Snapshot
from matchwright.engine.store.writer import Write, Writer

if TYPE_CHECKING:
    import polars as pl

    from matchwright.engine.erasure import Erasure
    from matchwright.engine.models.opened import Models
    from matchwright.engine.store.backup import Backup
    from matchwright.engine.store.erase import Who
    from matchwright.engine.store.publish import Published
    from matchwright.engine.store.pull import Pulled
    from matchwright.engine.store.restore import Restored

SEAL_ROWS = 65_536
"""Live rows at which they are sealed: bounds what is scanned without an index."""
CHUNK_ROWS = 131_072
"""Rows of a bulk chunk and of its segment: large enough to scan well, small enough to hold."""
CLOSE_SEAL_ROWS = 4_096
"""Live rows from which closing seals them, so that the next opening need not load them."""
RETAIN_S = 60.0
"""How long an epoch can be opened after the next one came in force, without a lease."""


class Store(Reading):
    """A marketplace's records and the arrays that are matched. Use ``Store.open``.

    Any thread may call any method. One ``Store`` in one process may be open for writing, any
    number for reading, also while it writes.
    """

    def __init__(
        self,
        root: Path,
        lock: files.WriterLock | None,
        neighbours: Neighbours,
        *,
        seal_rows: int,
        chunk_rows: int,
        retain_s: float,
        compact: Literal["background", "off"],
        texts: Embeddings,
    ) -> None:
        self.root = root
        self._file_lock = lock
        self._neighbours = neighbours
        self._texts = texts
        self._seal_rows = seal_rows
        self._chunk_rows = chunk_rows
        opened = Catalog(root / catalog.FILE, write=lock is not None)
        self._held = weakref.WeakValueDictionary[int, Snapshot]()
        self._leases = LeaseFolder(root)
        self._writer = None
        self._compactor: Compactor | None = None
        with ExitStack() as undo:
            undo.callback(texts.close)
            undo.callback(opened.close)
            version = opened.check()
            if lock is not None:
                migrate.refuse_older(opened.path, version)
                opened.use_log()
            self._loader = Loader(root, opened, neighbours, poll=lock is None)
            undo.callback(self._loader.close)
            self._loader.newest(now=True)
            if lock is not None:
                collector = Collector(root, self._leases, retain_s)
                self._writer = Writer(root, opened, self._loader, neighbours, collector, texts)
                self._writer.collect()
                with opened.look() as connection:
                    collector.remove_orphans(connection)
                self._compactor = Compactor(self._writer, chunk_rows, PACE)
            self._closing = undo.pop_all()
        if self._compactor is not None and compact == "background":
            self._compactor.start()

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        mode: Literal["r", "w"] = "r",
        create: bool = False,
        keep_text: bool = True,
        salt: bytes | None = None,
        neighbours: Neighbours | None = None,
        seal_rows: int = SEAL_ROWS,
        chunk_rows: int = CHUNK_ROWS,
        retain_s: float = RETAIN_S,
        compact: Literal["background", "off"] = "off",
        models: Models | None = None,
        wait_s: float = 0.0,
        waiting: Callable[[str], None] | None = None,
    ) -> Self:
        """Opens the store in a folder.

        Args:
            path: the folder.
            mode: "r" to read, "w" to change (one at a time).
            create: make the store when there is none; needs mode "w".
            keep_text: for a new store, whether records keep their texts. Without them the store
                cannot be refitted: a new generation needs a new import.
            salt: for a new store, 16 bytes that keys are hashed with; random by default.
            neighbours: what encodes, fits and indexes; the engine's own by default.
            seal_rows: live rows at which they are sealed.
            chunk_rows: rows of a bulk chunk and of its segment.
            retain_s: seconds that an epoch can be opened for after the next one came in force;
                longer ones take a lease. The writer's counts.
            compact: "background" merges segments in a thread while the store is open for writing;
                for processes that stay.
            models: the model repository and who serves its models. Where the generation's encoder
                is a served one, new texts need it; what is stored is read without.
            wait_s: for mode "w", seconds to wait for another writer; 0 fails at once.
            waiting: told once who is waited for; by default the log is.

        Raises:
            NotFound: there is no store, and ``create`` was not asked for.
            StoreLocked: another writer has it, after ``wait_s`` still.
            StoreDamaged, StoreFormat: a file is damaged or newer; the message names it.
        """
        root = creation.place(path, mode, create)
        texts = Embeddings(root, models, write=mode == "w")
        neighbours = neighbours or default_neighbours(texts.encoder)
        lock = creation.locked(root, create, wait_s, waiting) if mode == "w" else None
        try:
            if create:
                creation.create(root, neighbours, keep_text, salt)
            while True:
                with suppress(EpochGone):  # a pull put another catalog in place just now
                    return cls(
                        root,
                        lock,
                        neighbours,
                        seal_rows=seal_rows,
                        chunk_rows=chunk_rows,
                        retain_s=retain_s,
                        compact=compact,
                        texts=texts,
                    )
        except BaseException:
            if lock is not None:
                lock.release()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Seals many live rows, lets the next writer in. Snapshots keep their corpora."""
        if self._compactor is not None:
            self._compactor.stop()
        writer, self._writer = self._writer, None
        try:
            if writer is not None:
                with writer.lock:
                    for kind in KINDS:
                        if self._loader.live(kind).n >= min(CLOSE_SEAL_ROWS, self._seal_rows):
                            writer.seal(kind)
                    writer.collect()
        finally:
            self._closing.close()
            if self._file_lock is not None:
                self._file_lock.release()

    # ── What is in it ─────────────────────────────────────────────────────────────────────────

    def info(self, *, drift: bool = True) -> dict[str, Any]:
        """What is in the store and how much of the disk it takes. All values fit JSON.

        Args:
            drift: with the drift figures, for which the newest 2,000 records of each kind are
                encoded again (a quarter of a second).
        """
        figures = self._compactor.figures if self._compactor is not None else None
        snapshot = self.snapshot()
        return report(self.root, self._catalog, snapshot, self._neighbours, drift, figures)

    def verify(self) -> list[StoreError]:
        """Reads and checks everything; one error per damaged thing, none when all is well."""
        return damages(self.root, self._neighbours)

    # ── Copies ────────────────────────────────────────────────────────────────────────────────

    def publish(self, url: str | os.PathLike[str], **options: Any) -> Published:
        """Puts the newest epoch where replicas pull it from. See ``publish.publish``."""
        from matchwright.engine.store.publish import publish

        return publish(self.root, url, **options)

    @staticmethod
    def pull(url: str | os.PathLike[str], path: str | os.PathLike[str], **options: Any) -> Pulled:
        """Makes or updates a replica of a published store in a folder. See ``pull.pull``."""
        from matchwright.engine.store.pull import pull

        return pull(url, path, **options)

    def backup(self, to: str | os.PathLike[str], **options: Any) -> Backup:
        """Writes one file with everything of the store. See ``backup.backup``."""
        from matchwright.engine.store.backup import backup

        return backup(self.root, to, neighbours=self._neighbours, **options)

    @staticmethod
    def restore(
        source: str | os.PathLike[str], path: str | os.PathLike[str], **options: Any
    ) -> Restored:
        """Makes a store in a folder from a backup. See ``restore.restore``."""
        from matchwright.engine.store.restore import restore

        return restore(source, path, **options)

    # ── Changing ──────────────────────────────────────────────────────────────────────────────

    def upsert(self, kind: Kind, records: pl.DataFrame) -> Write:
        """Adds records, or replaces those whose ids are there. Durable when it returns.

        Args:
            kind: what the records are.
            records: a frame of that kind's schema; of equal ids the last one counts.

        Raises:
            InvalidData: columns or ids that the schema does not allow.
            KeyCollision: an id whose key another id has.
            ModelUnavailable, ModelLate, ModelWrong: the generation's encoder is a served one, and
                did not encode a new text, for as long as a write waits; nothing was written.
        """
        writer = self._writing()
        records = writer.pending(kind).conform(records)
        with writer.ahead(records) as waited_s, writer.lock:
            pending = writer.pending(kind)
            tally = pending.add(records)
            pending.drop_unchanged()
            epoch = writer.newest().epoch
            if len(pending):
                first = writer.take_seqs(len(pending))
                rows = writer.encode(writer.newest().generation, pending, first)
                epoch = writer.commit_live(pending, rows)
                self._seal_if_large(kind)
        return Write(
            epoch, tally.accepted, tally.replaced, tally.duplicate, waited_s=round(waited_s, 3)
        )

    def patch(self, kind: Kind, id: str, fields: Mapping[str, Any]) -> Write:  # noqa: A002
        """Changes some fields of a record; None makes a field unknown.

        Raises:
            NotFound: there is no such record.
            InvalidData: a field or value that the schema does not allow.
            FailedPrecondition: title or skills change, but the text beside them is not kept.
            ModelUnavailable, ModelLate, ModelWrong: as for ``upsert``.
        """
        writer = self._writing()
        record, text = patched(writer, kind, id, fields)
        with writer.ahead(record, text) as waited_s, writer.lock:
            write = patch_record(writer, kind, id, fields)
            self._seal_if_large(kind)
        return replace(write, waited_s=round(waited_s, 3))

    def delete(self, kind: Kind, ids: Sequence[str]) -> Write:
        """Deletes records; ids that are not there are counted as absent."""
        distinct = list(dict.fromkeys(ids))
        epoch, deleted = self._writing().commit_delete(kind, distinct)
        return Write(epoch, deleted=deleted, absent=len(distinct) - deleted)

    def bulk(self, kind: Kind) -> BulkWriter:
        """A sink for an import, to be used in a ``with`` block."""
        return BulkWriter(self._writing(), kind, self._chunk_rows)

    def seal(self) -> None:
        """Moves live rows into sealed, indexed segments now."""
        for kind in KINDS:
            self._writing().seal(kind)

    def compact(
        self, *, everything: bool = False, told: Callable[[Figures], None] | None = None
    ) -> Figures:
        """Merges segments until nothing is worth it; reads and writes go on.

        Content and generation stay what they are.

        Args:
            everything: leave no dead row, no two segments that would fit into one, and no
                embedding of a text that no record has any more.
            told: hears of every merge.

        Returns:
            What was done.

        Raises:
            StoreDamaged: a segment does not match its checksums; nothing is lost.
            StoreFull: no room for a copy; nothing is lost.
        """
        writer = self._writing()
        figures = Compactor(writer, self._chunk_rows).run(everything=everything, told=told)
        writer.collect()
        if everything:
            sweep(writer)
        vacuum(writer)
        return figures

    def due(self, *, retain_s: float = RETAIN_S) -> tend.Due:
        """What ``tend`` would find to do. Readers may ask; nothing is written, no lock is taken.

        Args:
            retain_s: how long an epoch without a lease stays.

        Raises:
            StoreError: the store cannot be read.
        """
        snapshot = self._loader.newest(now=True)
        if self.trouble is not None:
            raise self.trouble
        return tend.look(self.root, snapshot, self._catalog, self._chunk_rows, retain_s)

    def tend(
        self,
        *,
        retain_s: float = RETAIN_S,
        pace: float = PACE,
        stop: threading.Event | None = None,
    ) -> Figures:
        """One step of housekeeping for a process that reads: it writes as anybody else would.

        At most one merge; what no open epoch needs any more goes. The writer's lock is held for the
        step alone, so that who waits for it gets it afterwards.

        Args:
            retain_s: how long an epoch without a lease stays.
            pace: seconds of rest per second of work.
            stop: ends it after what is under way; a merge that is not committed leaves nothing.

        Returns:
            What was done.

        Raises:
            StoreLocked: a writer is at work; try again later.
            StoreFull, StoreReadOnly: so it is; nothing is lost.
            StoreDamaged, StoreFormat: a file that cannot be used; it stays as it is.
        """
        with Store.open(
            self.root,
            mode="w",
            neighbours=self._neighbours,
            seal_rows=self._seal_rows,
            chunk_rows=self._chunk_rows,
            retain_s=retain_s,
        ) as opened:
            compactor = Compactor(opened._writing(), self._chunk_rows, pace, stop)
            with suppress(Stopped):
                compactor.merge_one()
        self._loader.newest(now=True)
        return compactor.figures

    def refit(
        self,
        *,
        seed: int,
        sample: int,
        as_of: int,
        encoder: Literal["embedded", "served"] = "embedded",
        encoder_version: int | None = None,
        tell: Tell = silent,
    ) -> Any:
        """Fits a generation on a sample of each kind, encodes everything again, switches.

        Readers stay on their snapshots; killed in between, the old generation stays in force.

        Args:
            seed: of the sample and the fit.
            sample: records of each kind at most.
            as_of: days since 1970-01-01 UTC.
            encoder: "embedded" is fitted too; "served" is the one of the model repository that the
                store was opened with.
            encoder_version: of a served one; the newest by default.
            tell: told of records whose texts have an embedding, and of all.

        Raises:
            FailedPrecondition: the store does not keep texts.
            InvalidArgument, NotFound: the encoder's dimensions do not fit, or it is not there.
            ModelUnavailable, ModelLate, ModelWrong: a served encoder did not encode every text. The
                generation in force stays; what was encoded stays as well.
        """
        writer = self._writing()
        artefact = self._texts.artefact(encoder_version) if encoder == "served" else None
        with writer.structure:
            return refit.Refit(writer, self._chunk_rows).run(
                seed=seed, sample=sample, as_of=as_of, encoder=artefact, tell=tell
            )

    def erase(
        self,
        kind: Who,
        ids: Sequence[str],
        *,
        runs: Sequence[str | os.PathLike[str]] = (),
        quarantine: Sequence[str | os.PathLike[str]] = (),
        step: Callable[[str], None] = lambda what: None,
    ) -> Erasure:
        """Erases entities for good: here, in every kept epoch, in runs and quarantine files.

        Runs in DIR/runs and quarantine files that imports wrote are found. Killed at any moment,
        erasing the same ids again completes it. An erased id may come back by a new import, as
        somebody else. See docs/erasure.md.

        Args:
            kind: what they are. A client is no entity here: their jobs go, and the lists of
                freelancers get a stand-in for them.
            ids: those that are not there are erased from history all the same.
            runs: further paths and URLs that hold runs.
            quarantine: further quarantine files.
            step: told what is being erased.

        Returns:
            What was done, and what could not be reached.

        Raises:
            InvalidArgument: no ids, or a quarantine file that is not there.
            StoreDamaged: a segment or record that cannot be read; it is not complete then.
        """
        from matchwright.engine.erasure import erase_entities

        return erase_entities(
            self._writing(), kind, ids, runs=runs, quarantine=quarantine, step=step
        )

    def _writing(self) -> Writer:
        if self._writer is None:
            raise FailedPrecondition(f"{self.root}: the store is not open for writing")
        return self._writer

    def _seal_if_large(self, kind: Kind) -> None:
        if self._loader.live(kind).n >= self._seal_rows:
            self._writing().seal(kind)
