"""Every change of a store: one lock, one transaction each, then the new epoch is loaded.

A change is (1) worked out against the newest snapshot, (2) committed together with the state that
names the next epoch, (3) loaded. Segment files are durable before a manifest names them.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from matchwright.engine.errors import StoreError
from matchwright.engine.prose import TEXT_DIGEST
from matchwright.engine.store import blobs
from matchwright.engine.store.catalog import Catalog, Kind, SegmentRow, State
from matchwright.engine.store.collect import Collector, merge_dead
from matchwright.engine.store.embeddings_ahead import Embeddings, served
from matchwright.engine.store.encode import Neighbours, encode_in_slices
from matchwright.engine.store.loader import Loader
from matchwright.engine.store.pending import Pending
from matchwright.engine.store.rewrite import Rewrite, Rewritten
from matchwright.engine.store.rows import Rows, make_rows, take
from matchwright.engine.store.segment_file import Written, write_segment
from matchwright.engine.store.snapshot import Epoch, Snapshot, locate
from matchwright.engine.store.sources import LiveView, sort_keys
from matchwright.kernels.types import Int64, UInt64

if TYPE_CHECKING:
    import polars as pl

LIVE_FANOUT = 32


@dataclass(frozen=True, slots=True)
class Write:
    """What a change did. A snapshot at ``epoch`` or later shows it.

    Attributes:
        epoch: in force after the change.
        accepted, replaced, duplicate: records that were new, changed, equal to what was there.
        deleted, absent: ids that were deleted, or were not there to delete.
        waited_s: how long the write waited for a served encoder; 0.0 when it had no new text.
    """

    epoch: Epoch
    accepted: int = 0
    replaced: int = 0
    duplicate: int = 0
    deleted: int = 0
    absent: int = 0
    waited_s: float = 0.0


class Writer:
    """The changing side of a store. Methods take the lock; callers may hold it over several.

    Args:
        root: the store's folder.
        catalog, loader, neighbours: the store's.
        collector: removes what no epoch needs any more.
        texts: the served encoders of the store.

    Attributes:
        structure: held by whoever replaces sealed segments over longer than a commit (refit,
            compaction, ``rewrite``); taken before ``lock``, never while holding it.
    """

    def __init__(
        self,
        root: Path,
        catalog: Catalog,
        loader: Loader,
        neighbours: Neighbours,
        collector: Collector,
        texts: Embeddings,
    ) -> None:
        self.root = root
        self.catalog = catalog
        self.loader = loader
        self.neighbours = neighbours
        self._left: set[str] = set()
        self.lock = threading.RLock()
        self.structure = threading.Lock()
        self.collector = collector
        self.texts = texts
        loader.newest(now=True)
        self._next_seq = loader.state.next_seq
        self._next_segment = loader.state.next_segment

    @contextmanager
    def change(self) -> Iterator[sqlite3.Connection]:
        """A write transaction, in which what no epoch needs any more goes as well."""
        with self.collector.sweeping() as sweep, self.catalog.change() as connection:
            self.collector.run(connection, sweep)
            yield connection
        self._remove_left()

    def discard(self, names: Sequence[str]) -> None:
        """Removes segment files that were to be named by a commit that failed.

        Where it cannot be known that it has failed for good, they stay until the next commit.
        """
        with self.lock:
            self._left.update(names)
            with suppress(StoreError):  # the caller has an error of its own to tell
                self._remove_left()

    @contextmanager
    def _or_discard(self, made: tuple[int, Written] | None) -> Iterator[None]:
        """Around a commit that is to name a file."""
        try:
            yield
        except BaseException:
            if made is not None:
                self.discard([made[1].file])
            raise

    def _remove_left(self) -> None:
        if not self._left or self.catalog.doubtful:
            return
        with self.catalog.look() as connection:
            named = {row.file for row in self.catalog.all_segments(connection)}
        for name in self._left - named:
            with suppress(OSError):
                (self.root / "segments" / name).unlink()
        self._left.clear()

    def collect(self) -> None:
        """Removes all that no open epoch needs any more: rows, records, files, generations."""
        with self.lock:
            while True:
                with self.change() as connection:
                    merge_dead(connection, str(self.catalog.path))
                if not self.collector.more:
                    break
            with self.catalog.look() as connection:
                self.collector.remove_generations(connection)
            self.texts.tidy()

    def newest(self) -> Snapshot:
        """The newest snapshot: for a writer, what all its own commits made."""
        return self.loader.newest(now=True)

    def take_seqs(self, n: int) -> int:
        """The first of ``n`` record numbers that nothing else will use."""
        with self.lock:
            first = self._next_seq
            self._next_seq += n
            return first

    def take_segment(self) -> int:
        """A segment number that nothing else will use."""
        with self.lock:
            self._next_segment += 1
            return self._next_segment - 1

    def pending(self, kind: Kind) -> Pending:
        """An empty batch of changes."""
        state = self.loader.state
        return Pending(kind, state.salt, state.keep_text, self.neighbours, self.known)

    def known(self, kind: Kind, key_m: UInt64) -> list[tuple[str, bytes] | None]:
        """(id, hash) of the record under each key."""
        with self.lock:
            seq_m = self._seqs(self.newest(), kind, key_m)
            present = [seq for seq in seq_m.tolist() if seq >= 0]
            with self.catalog.look() as connection:
                found = self.catalog.identities(connection, kind, present)
            return [found.get(seq) for seq in seq_m.tolist()]

    @staticmethod
    def _seqs(snapshot: Snapshot, kind: Kind, key_m: UInt64) -> Int64:
        part_m, row_m = locate(snapshot.parts[kind], key_m)
        seq_m = np.full(len(key_m), -1, dtype=np.int64)
        for index, part in enumerate(snapshot.parts[kind]):
            here = part_m == index
            seq_m[here] = part.source.seqs(row_m[here])
        return seq_m

    # ── Encoding ──────────────────────────────────────────────────────────────────────────────

    @contextmanager
    def ahead(self, records: pl.DataFrame, text: bytes | None = None) -> Iterator[float]:
        """The texts of records are encoded before the block; the seconds that it waited.

        Must not be called while holding ``lock``. A refit that switches to another encoder
        meanwhile leaves texts that are encoded when their rows are.

        Args:
            text: the digest of a single record's text that is not kept.
        """
        generation = self.newest().generation
        rows: Any = records
        if text is not None:
            rows = [{**row, TEXT_DIGEST: text} for row in records.iter_rows(named=True)]
        with self.texts.ahead(generation, lambda: self.neighbours.prose(rows)) as sent:
            yield 0.0 if sent is None else sent.seconds

    def encode(
        self, generation: Any, pending: Pending, first_seq: int, text: bytes | None = None
    ) -> Rows:
        """Rows for the pending records; ``text`` is the digest of a single one's, not kept."""
        salt = self.loader.state.salt
        frame = pending.frame()
        if text is not None and served(generation) is not None:
            rows = [{**row, TEXT_DIGEST: text} for row in frame.iter_rows(named=True)]
            encoded = self.neighbours.encode_rows(generation, pending.kind, rows, salt)
        else:
            encoded = encode_in_slices(
                self.neighbours.encode_rows, generation, pending.kind, frame, salt
            )
        seq_n = np.arange(first_seq, first_seq + len(pending), dtype=np.int64)
        return make_rows(encoded, pending.ids, pending.key_n, seq_n)

    def write_file(self, kind: Kind, generation: str, rows: Rows) -> tuple[int, Written]:
        """A durable segment file of the rows, in no manifest yet."""
        segment = self.take_segment()
        encoded = rows.encoded
        index = self.neighbours.build_index(
            encoded.scalars, encoded.sets, encoded.x_nd, encoded.key_n
        )
        arrays = rows.flat()
        arrays.update({f"index/{name}": np.asarray(array) for name, array in index.items()})
        arrays.update(sort_keys(encoded.key_n))
        about = {
            "kind": kind,
            "generation": generation,
            "store": self.loader.state.uuid,
            "index_version": self.neighbours.index_version,
        }
        written = write_segment(self.root / "segments", segment, rows.n, about, arrays)
        return segment, written

    # ── Commits ───────────────────────────────────────────────────────────────────────────────

    def commit_live(self, pending: Pending, rows: Rows) -> Epoch:
        """Commits pending records whose rows join the live segment."""
        with self.lock:
            snapshot = self.newest()
            with self.change() as connection:
                state = self.catalog.state(connection)
                self._replace_records(connection, snapshot, state, pending, rows)
                live = self.loader.live(pending.kind)
                self._merge_batches(connection, live.number, live.view())
                connection.execute(
                    "INSERT INTO live VALUES (?, ?, ?, ?)",
                    (live.number, live.n, rows.n, blobs.pack_rows(rows)),
                )
                self._step(connection, state, "upsert", _content(pending))
            return self.newest().epoch

    def commit_sealed(
        self, pending: Pending, rows: Rows, generation: str, segment: int, written: Written
    ) -> Epoch | None:
        """Commits pending records whose rows are in a file; None if the generation has changed."""
        with self.lock:
            snapshot = self.newest()
            if snapshot.generation.id != generation:
                return None
            with self._or_discard((segment, written)), self.change() as connection:
                pending.check_collisions()
                state = self.catalog.state(connection)
                self._replace_records(connection, snapshot, state, pending, rows)
                row = manifest_row(pending.kind, generation, segment, written, state.number + 1)
                self.catalog.add_segment(connection, row)
                self._step(connection, state, "bulk", _content(pending))
            return self.newest().epoch

    def commit_delete(self, kind: Kind, ids: Sequence[str]) -> tuple[Epoch, int]:
        """Deletes the ids that are there; (epoch, how many)."""
        with self.lock:
            snapshot = self.newest()
            present = [
                name
                for name, row in zip(ids, snapshot.rows_of(kind, ids).tolist(), strict=True)
                if row >= 0
            ]
            if not present:
                return snapshot.epoch, 0
            key_n = snapshot.keys(present)
            with self.change() as connection:
                state = self.catalog.state(connection)
                self._retire(connection, snapshot, state, kind, key_n)
                self._step(connection, state, "delete", (kind.encode(), key_n.tobytes()))
            return self.newest().epoch, len(present)

    def seal(self, kind: Kind) -> None:
        """Moves the live rows of a kind into a sealed segment. Content does not change."""
        with self.lock:
            snapshot = self.newest()
            live = self.loader.live(kind)
            if not live.n:
                return
            part = snapshot.parts[kind][-1]
            assert isinstance(part.source, LiveView)
            rows = part.source.rows
            if part.alive is not None:
                rows = take(rows, np.flatnonzero(part.alive))
            generation = snapshot.generation.id
            sealed = self.write_file(kind, generation, rows) if rows.n else None
            with self._or_discard(sealed), self.change() as connection:
                state = self.catalog.state(connection)
                if sealed is not None:
                    row = manifest_row(kind, generation, *sealed, state.number + 1)
                    self.catalog.add_segment(connection, row)
                state = state.with_live(kind, self.take_segment())
                self._step(connection, state, "seal", (kind.encode(),))
            self.newest()
            self.collect()

    def rewrite(
        self,
        drop: Mapping[Kind, UInt64],
        change: Callable[[sqlite3.Connection, int], None] | None = None,
    ) -> Rewritten:
        """Takes rows out of history: every segment that has them is replaced, in every open epoch.

        For erasure. Sealed segments are copied without the rows, those that only kept epochs use
        as well, and so are live rows (the present ones are sealed first). Rows keep their order,
        epochs and tombstones their numbers; kept epochs just have fewer rows. All of it is one
        transaction, with whatever ``change`` does: killed in between, all of it happened or
        nothing. Files that were replaced are unlinked when the call returns (readers may still
        have them mapped). Writes go on while files are copied; rows of these keys that were
        written meanwhile are dropped too.

        Records are the caller's: ``change(connection, number)`` takes those of the keys out of
        ``KIND`` and ``KIND_old``; it runs first in the transaction that makes epoch ``number``.
        SQLite pages that held live rows are free afterwards, but overwritten only if the caller
        asks for that. A copy of the catalog that a migration left is not looked at.

        Must not be called while holding ``lock``: it takes ``structure``.

        Args:
            drop: kind -> uint64 (M,) keys of the rows to drop.
            change: what else belongs to the same transaction.

        Raises:
            StoreDamaged: a segment does not match its checksums; nothing is replaced.
            StoreFull: no room for the copies; nothing is replaced.
        """
        return Rewrite(self, drop, change).run()

    def _replace_records(
        self,
        connection: sqlite3.Connection,
        snapshot: Snapshot,
        state: State,
        pending: Pending,
        rows: Rows,
    ) -> None:
        self._retire(connection, snapshot, state, pending.kind, rows.encoded.key_n)
        connection.executemany(
            f"INSERT INTO {pending.kind} (seq, key, id, hash, body) VALUES (?, ?, ?, ?, ?)",
            pending.table_rows(int(rows.seq_n[0])),
        )

    def _retire(
        self,
        connection: sqlite3.Connection,
        snapshot: Snapshot,
        state: State,
        kind: Kind,
        key_n: UInt64,
    ) -> None:
        """Tombstones for the rows that the keys have now, and their records out of force."""
        part_m, row_m = locate(snapshot.parts[kind], key_n)
        for index, part in enumerate(snapshot.parts[kind]):
            rows = np.sort(row_m[part_m == index])
            if not len(rows):
                continue
            number = state.number + 1
            self.catalog.retire(connection, kind, part.source.seqs(rows).tolist(), number)
            self.catalog.add_dead(connection, part.source.number, number, rows)

    def _step(
        self,
        connection: sqlite3.Connection,
        state: State,
        what: str,
        content: Sequence[bytes],
    ) -> None:
        """Names the next epoch. ``content`` is what its digest covers beside the one before."""
        number = state.number + 1
        named = (state.digest, str(number).encode(), what.encode(), state.generation.encode())
        stepped = replace(
            state,
            number=number,
            digest=blobs.digest(*named, *content),
            next_seq=self._next_seq,
            next_segment=self._next_segment,
        )
        self.catalog.put_state(connection, stepped, what)

    def step(
        self, connection: sqlite3.Connection, state: State, what: str, content: Sequence[bytes]
    ) -> None:
        """As the commits above, for changes that are made elsewhere (refit)."""
        self._step(connection, state, what, content)

    def _merge_batches(
        self, connection: sqlite3.Connection, segment: int, view: LiveView | None
    ) -> None:
        """Joins the last batches when they are many and of like size, so that opening stays fast.

        Each row is packed again once per level, log32 of the live rows in all.
        """
        last = connection.execute(
            "SELECT first, n FROM live WHERE segment = ? ORDER BY first DESC LIMIT ?",
            (segment, LIVE_FANOUT),
        ).fetchall()
        if view is None or len(last) < LIVE_FANOUT or len({_level(n) for _, n in last}) > 1:
            return
        first = last[-1][0]
        rows = take(view.rows, np.arange(first, view.n))
        connection.execute("DELETE FROM live WHERE segment = ? AND first >= ?", (segment, first))
        connection.execute(
            "INSERT INTO live VALUES (?, ?, ?, ?)", (segment, first, rows.n, blobs.pack_rows(rows))
        )


def manifest_row(
    kind: Kind, generation: str, segment: int, written: Written, born: int
) -> SegmentRow:
    """The manifest's row for a file that the next epoch brings in."""
    return SegmentRow(
        segment, kind, generation, written.file, written.n, written.size, written.digest, born
    )


def _content(pending: Pending) -> tuple[bytes, ...]:
    return pending.kind.encode(), pending.key_n.tobytes(), pending.contents


def _level(n: int) -> int:
    level = 0
    while n >= LIVE_FANOUT:
        n //= LIVE_FANOUT
        level += 1
    return level
