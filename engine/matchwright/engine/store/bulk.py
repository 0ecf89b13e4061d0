"""Bulk import: chunks of records that become sealed segments at once."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Self

from matchwright.engine.store.catalog import Kind
from matchwright.engine.store.pending import Tally
from matchwright.engine.store.snapshot import Epoch
from matchwright.engine.store.writer import Writer

if TYPE_CHECKING:
    import polars as pl


class BulkWriter:
    """A sink for many records of one kind; one thread at a time.

    Records are committed a chunk at a time, each with its segment file: whatever happens, earlier
    chunks stay. What ``write`` returns compares with the store and with the rows written so far;
    it is durable after the next ``flush`` or a clean end of the ``with`` block. Leaving the block
    by an error drops the chunk that is not committed.
    """

    def __init__(self, writer: Writer, kind: Kind, chunk_rows: int) -> None:
        self._writer = writer
        self._kind: Kind = kind
        self._chunk_rows = chunk_rows
        self._pending = writer.pending(kind)
        self.epoch = writer.newest().epoch
        self.waited_s = 0.0
        """Seconds that the commits so far waited for a served encoder."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.flush()

    def write(self, records: pl.DataFrame) -> Tally:
        """Takes in records; commits when a chunk is full.

        Raises:
            InvalidData, KeyCollision: nothing of ``records`` was taken in.
        """
        tally = self._pending.add(records)
        if len(self._pending) >= self._chunk_rows:
            self.flush()
        return tally

    def flush(self) -> Epoch:
        """Commits what was taken in; the epoch that shows it.

        Raises:
            ModelUnavailable, ModelLate, ModelWrong: texts cannot be encoded; the chunk is kept, and
                the next flush tries again.
        """
        pending, writer = self._pending, self._writer
        pending.drop_unchanged()
        while len(pending):
            generation = writer.newest().generation
            with writer.ahead(pending.frame()) as waited_s:
                self.waited_s += waited_s
                rows = writer.encode(generation, pending, writer.take_seqs(len(pending)))
                segment, written = writer.write_file(self._kind, generation.id, rows)
                epoch = writer.commit_sealed(pending, rows, generation.id, segment, written)
            if epoch is not None:
                self.epoch = epoch
                break
            # A refit came in between: the file belongs to no generation in force.
            writer.discard([written.file])
        self._pending = writer.pending(self._kind)
        return self.epoch
