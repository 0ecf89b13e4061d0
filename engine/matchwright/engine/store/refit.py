"""Fits the next generation and moves a store to it, at once or not at all."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from matchwright.engine.errors import FailedPrecondition
from matchwright.engine.store import blobs, files
from matchwright.engine.store.catalog import KINDS, Kind, SegmentRow
from matchwright.engine.store.embeddings_ahead import Tell, embed_all, served
from matchwright.engine.store.encode import ENCODE_ROWS, encode_in_slices
from matchwright.engine.store.rows import Rows, make_rows
from matchwright.engine.store.snapshot import frame, stored_record
from matchwright.engine.store.writer import Writer, manifest_row
from matchwright.kernels.types import Int64

if TYPE_CHECKING:
    from pathlib import Path

    import polars as pl

    from matchwright.engine.models.artefacts import EncoderArtefact

_LATE_ROUNDS = 5


class Refit:
    """One refit: sample, fit, encode beside what is in force, switch.

    Writes go on meanwhile; what changed is encoded again under the lock, just before the switch.
    """

    def __init__(self, writer: Writer, chunk_rows: int) -> None:
        self._writer = writer
        self._chunk_rows = chunk_rows
        self._built: list[tuple[SegmentRow, Int64]] = []

    def run(
        self, *, seed: int, sample: int, as_of: int, encoder: EncoderArtefact | None, tell: Tell
    ) -> Any:
        """Returns the generation, in force.

        Raises:
            FailedPrecondition: the store does not keep texts, so there is nothing to fit to.
            InvalidArgument: the encoder's dimensions do not fit.
            ModelUnavailable, ModelLate, ModelWrong: it did not encode a text; the generation in
                force stays, and so do the embeddings that were made.
        """
        writer = self._writer
        if not writer.loader.state.keep_text and any(map(writer.newest().count, KINDS)):
            raise FailedPrecondition(
                "this store does not keep texts, so its records cannot be encoded again; "
                "import them into a new store"
            )
        generation = self._fit(seed, sample, as_of, encoder, tell)
        writer.collector.building.add(generation.id)
        try:
            save_generation(writer.root, generation)
            start = writer.take_seqs(0)
            for kind in KINDS:
                self._build(generation, kind, start)
            self._embed_late(generation)
            with writer.lock:
                self._switch(generation)
        except BaseException:
            writer.discard([row.file for row, _ in self._built])
            raise
        finally:
            writer.collector.building.discard(generation.id)
        if (used := served(generation)) is not None:
            writer.texts.file(used).set_ahead(ahead=False)
        writer.collect()
        return generation

    def _fit(
        self, seed: int, sample: int, as_of: int, artefact: EncoderArtefact | None, tell: Tell
    ) -> Any:
        """The generation; of a served encoder after every text has been encoded."""
        writer = self._writer
        given: dict[str, Any] = {}
        if artefact is not None:
            from matchwright.engine.generation.fitting import check_width

            check_width(artefact.dimensions)
            encoder = writer.texts.of(artefact)
            embed_all(writer.texts, encoder, writer.catalog, writer.neighbours, tell)
            given = {"encoder": encoder, "version": artefact.version}
        jobs, freelancers = (self._sample(kind, seed, sample) for kind in KINDS)
        return writer.neighbours.fit(
            jobs, freelancers, seed=seed, sample=sample, as_of=as_of, **given
        )

    def _embed_late(self, generation: Any) -> None:
        """Texts that were written while segments were built, before the lock is taken.

        Each round finds those that came during the one before; the few of the last are encoded
        under the lock.
        """
        encoder = served(generation)
        for _ in range(_LATE_ROUNDS if encoder is not None else 0):
            writer = self._writer
            late = [
                one
                for kind in KINDS
                for records in self._late_records(kind)
                for one in writer.neighbours.prose(records)
            ]
            assert encoder is not None
            if not encoder.ensure(late, wait_s=writer.texts.wait_s).texts:
                return

    def _sample(self, kind: Kind, seed: int, sample: int) -> pl.DataFrame:
        """The records that a fit on everything would choose; only they are read."""
        import polars as pl

        writer = self._writer
        with writer.catalog.look() as connection:
            found = connection.execute(f"SELECT id, seq FROM {kind}").fetchall()
            ids = pl.DataFrame(found, schema={"id": pl.String, "seq": pl.Int64}, orient="row")
            seqs = writer.neighbours.take(ids, seed, sample)["seq"].to_list()
            rows = writer.catalog.records_by(connection, kind, "seq", sorted(seqs))
            where = str(writer.catalog.path)
            records = {
                seq: stored_record(name, content, body, where) for seq, name, content, body in rows
            }
        return frame(writer.neighbours, kind, [records[seq] for seq in seqs])

    def _chunks(self, kind: Kind, high: int) -> Iterator[tuple[Int64, pl.DataFrame]]:
        """(seqs, records) with seq < high, a chunk at a time."""
        writer = self._writer
        where = str(writer.catalog.path)
        low = 0
        while True:
            with writer.catalog.look() as connection:
                rows = connection.execute(
                    f"SELECT seq, id, hash, body FROM {kind} WHERE seq >= ? AND seq < ? "
                    "ORDER BY seq LIMIT ?",
                    (low, high, self._chunk_rows),
                ).fetchall()
            if not rows:
                return
            records = [stored_record(name, content, body, where) for _, name, content, body in rows]
            low = rows[-1][0] + 1
            seq_n = np.array([row[0] for row in rows], dtype=np.int64)
            yield seq_n, frame(writer.neighbours, kind, records)

    def _encode(self, generation: Any, kind: Kind, seq_n: Int64, records: pl.DataFrame) -> Rows:
        neighbours, salt = self._writer.neighbours, self._writer.loader.state.salt
        encoded = encode_in_slices(neighbours.encode_rows, generation, kind, records, salt)
        ids = records["id"].to_list()
        return make_rows(encoded, ids, neighbours.hash_keys(ids, salt), seq_n)

    def _build(self, generation: Any, kind: Kind, stop: int) -> None:
        for seq_n, records in self._chunks(kind, stop):
            rows = self._encode(generation, kind, seq_n, records)
            segment, written = self._writer.write_file(kind, generation.id, rows)
            self._built.append((manifest_row(kind, generation.id, segment, written, 0), seq_n))

    def _switch(self, generation: Any) -> None:
        """Puts the new segments in force in one transaction; those before stay as history."""
        writer = self._writer
        catalog = writer.catalog
        late = {kind: self._late(generation, kind) for kind in KINDS}
        with writer.change() as connection:
            state = replace(catalog.state(connection), generation=generation.id)
            connection.execute(
                "UPDATE manifest SET gone = ? WHERE gone IS NULL", (state.number + 1,)
            )
            for kind in KINDS:
                state = state.with_live(kind, writer.take_segment())
                first = 0
                for rows in late[kind]:
                    packed = blobs.pack_rows(rows)
                    connection.execute(
                        "INSERT INTO live VALUES (?, ?, ?, ?)",
                        (state.live(kind), first, rows.n, packed),
                    )
                    first += rows.n
                self._adopt(connection, kind, state.number + 1)
            writer.step(connection, state, "refit", ())
        writer.loader.keep(generation)
        writer.newest()

    def _current(self, connection: sqlite3.Connection, kind: Kind) -> Int64:
        found = connection.execute(f"SELECT seq FROM {kind} ORDER BY seq").fetchall()
        return np.array(found, dtype=np.int64).reshape(-1)

    def _late(self, generation: Any, kind: Kind) -> list[Rows]:
        """Rows of the records that were committed after their chunk had been read."""
        return [
            self._encode(generation, kind, seq_n, records)
            for seq_n, records in self._late_chunks(kind)
        ]

    def _late_records(self, kind: Kind) -> Iterator[pl.DataFrame]:
        for _, records in self._late_chunks(kind):
            yield records

    def _late_chunks(self, kind: Kind) -> Iterator[tuple[Int64, pl.DataFrame]]:
        """(seqs, records) that are in force and were in no chunk."""
        writer = self._writer
        where = str(writer.catalog.path)
        built = [seq_n for row, seq_n in self._built if row.kind == kind]
        with writer.catalog.look() as connection:
            seqs = self._current(connection, kind)
            missing = np.setdiff1d(seqs, np.concatenate([np.zeros(0, np.int64), *built]))
            fetched = writer.catalog.records_by(connection, kind, "seq", missing.tolist())
            records = {
                seq: stored_record(name, content, body, where)
                for seq, name, content, body in fetched
            }
        for low in range(0, len(missing), ENCODE_ROWS):
            seq_n = missing[low : low + ENCODE_ROWS]
            chosen = [records[seq] for seq in seq_n.tolist()]
            yield seq_n, frame(writer.neighbours, kind, chosen)

    def _adopt(self, connection: sqlite3.Connection, kind: Kind, number: int) -> None:
        """Enters the new files; rows whose record went away meanwhile are dead from the start."""
        seqs = self._current(connection, kind)
        for row, seq_n in self._built:
            if row.kind != kind:
                continue
            catalog = self._writer.catalog
            catalog.add_segment(connection, replace(row, born=number))
            gone = np.flatnonzero(~np.isin(seq_n, seqs))
            if len(gone):
                catalog.add_dead(connection, row.segment, number, gone)


def save_generation(root: Path, generation: Any) -> None:
    """Saves a generation under its id, whole or not at all."""
    folder = root / "generations" / generation.id
    if folder.exists():
        return
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.parent.mkdir(parents=True, exist_ok=True)
        generation.save(temporary)
        files.sync_tree(temporary)
        temporary.rename(folder)
        files.sync_folder(folder.parent)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise files.failure(folder, error)
