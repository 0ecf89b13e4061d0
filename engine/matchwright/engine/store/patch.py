"""Changing some fields of one record."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from matchwright.engine.errors import FailedPrecondition, InvalidData, NotFound, unknown_key
from matchwright.engine.prose import TEXT_DIGEST
from matchwright.engine.store.blobs import TEXT_FIELD, without_digest
from matchwright.engine.store.catalog import Kind
from matchwright.engine.store.embeddings_ahead import served
from matchwright.engine.store.rows import EncodedRows, Rows
from matchwright.engine.store.snapshot import Snapshot, locate, rows_of_schema, stored_record
from matchwright.engine.store.writer import Write, Writer

if TYPE_CHECKING:
    import polars as pl

TEXT_FACET = "text"
TEXT_FACET_FIELDS = frozenset({"title", "skills", TEXT_FIELD})
"""What the text facet is made from."""


def patched(
    writer: Writer, kind: Kind, name: str, fields: Mapping[str, Any]
) -> tuple[pl.DataFrame, bytes | None]:
    """A record with some fields changed, and the digest of its text where that is not kept.

    Raises:
        NotFound, InvalidData, FailedPrecondition: see ``Store.patch``.
    """
    record = _stored(writer, writer.newest(), kind, name)
    schema = writer.neighbours.schema(kind)
    for field in fields:
        if field not in schema:
            raise unknown_key("field", field, schema, f"a {kind}")
    if fields.get("id", name) != name:
        raise InvalidData(f"got id {fields['id']!r}; the id of {name!r} cannot change", field="id")
    kept = record.get(TEXT_FIELD)
    carried = kept if isinstance(kept, bytes) and TEXT_FIELD not in fields else None
    if carried is not None and TEXT_FACET_FIELDS & fields.keys():
        raise FailedPrecondition(
            f"this store does not keep texts; give {TEXT_FIELD!r} together with title and skills",
            field=TEXT_FIELD,
        )
    merged = {**without_digest(record), **fields}
    merged.pop(TEXT_DIGEST, None)
    changed = writer.neighbours.to_frame(kind, [merged])
    if carried is not None:
        _carry(writer, kind, record, changed, carried)
    return changed, carried


def _carry(
    writer: Writer, kind: Kind, record: dict[str, Any], changed: pl.DataFrame, text: bytes
) -> None:
    """The embedding of a text that is not kept goes along with it."""
    encoder = served(writer.newest().generation)
    if encoder is not None:
        prose = writer.neighbours.prose
        (before,) = prose(rows_of_schema(writer.neighbours, kind, [record]))
        (after,) = prose([{**row, TEXT_DIGEST: text} for row in changed.iter_rows(named=True)])
        encoder.carry(before, after)


def patch_record(writer: Writer, kind: Kind, name: str, fields: Mapping[str, Any]) -> Write:
    """Merges fields into a stored record and writes it back. The caller holds the lock.

    Where texts are not kept, the text's part of the vector is carried over from the stored row.
    """
    snapshot = writer.newest()
    record, carried = patched(writer, kind, name, fields)
    pending = writer.pending(kind)
    tally = pending.add(record, text_digest=carried)
    pending.drop_unchanged()
    epoch = snapshot.epoch
    if len(pending):
        rows = writer.encode(snapshot.generation, pending, writer.take_seqs(1), carried)
        if carried is not None:
            rows = _with_text_of(snapshot, kind, rows)
        epoch = writer.commit_live(pending, rows)
    return Write(epoch, replaced=tally.replaced, duplicate=tally.duplicate)


def _stored(writer: Writer, snapshot: Snapshot, kind: Kind, name: str) -> dict[str, Any]:
    part_m, row_m = locate(snapshot.parts[kind], snapshot.keys([name]))
    if snapshot.rows_of(kind, [name])[0] < 0:
        raise NotFound(f"there is no {kind} with the id {name!r}", id=name, kind=kind)
    seqs = snapshot.parts[kind][int(part_m[0])].source.seqs(row_m)
    with writer.catalog.look() as connection:
        ((_, stored, content, body),) = writer.catalog.records_by(
            connection, kind, "seq", seqs.tolist()
        )
    return stored_record(stored, content, body, str(writer.catalog.path))


def _with_text_of(snapshot: Snapshot, kind: Kind, rows: Rows) -> Rows:
    """The row with the text facet of the row that it replaces."""
    part_m, row_m = locate(snapshot.parts[kind], rows.encoded.key_n)
    before = snapshot.parts[kind][int(part_m[0])].source.segment.x_nd[row_m]
    x_nd = np.array(rows.encoded.x_nd)
    for facet in snapshot.generation.facets:
        if facet.name == TEXT_FACET:
            stop = facet.start + facet.width
            x_nd[:, facet.start : stop] = before[:, facet.start : stop]
    encoded = EncodedRows(x_nd, rows.encoded.key_n, rows.encoded.scalars, rows.encoded.sets)
    return Rows(encoded, rows.id_start, rows.id_bytes, rows.seq_n)
