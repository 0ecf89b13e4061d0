"""One epoch of a store, as readers hold it.

A snapshot keeps what it was made of: mapped files stay readable after they were replaced, live
rows after more were added. It costs nothing to take and nothing to drop.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from matchwright.engine.errors import EpochGone, MatchwrightError, NotFound, StoreDamaged
from matchwright.engine.prose import TEXT_DIGEST
from matchwright.engine.store import blobs
from matchwright.engine.store.catalog import KINDS, Catalog, Kind
from matchwright.engine.store.encode import Neighbours
from matchwright.engine.store.read_columns import reader_of
from matchwright.engine.store.read_columns import stored_record as stored_record  # noqa: PLC0414
from matchwright.engine.store.sources import RowSource
from matchwright.kernels.types import Bool, Corpus, Int64, UInt64

if TYPE_CHECKING:
    import polars as pl

    from matchwright.engine.table import ColumnTable

T = TypeVar("T")


@dataclass(frozen=True, slots=True, order=True)
class Epoch:
    """The name of one state of the catalog.

    Attributes:
        uuid: the store's.
        number: counts the changes of this store.
        digest: hex; chains over every change up to this one.
    """

    uuid: str
    number: int
    digest: str

    def __str__(self) -> str:
        return f"{self.uuid}:{self.number}:{self.digest}"


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """A row source and which of its rows are alive (None: all)."""

    source: RowSource
    alive: Bool | None

    @property
    def living(self) -> int:
        return self.source.n if self.alive is None else int(np.count_nonzero(self.alive))


def locate(parts: Sequence[Part], key_m: UInt64) -> tuple[Int64, Int64]:
    """(part, row within it) of the living row with each key; -1, -1 where there is none."""
    part_m = np.full(len(key_m), -1, dtype=np.int64)
    row_m = np.full(len(key_m), -1, dtype=np.int64)
    for index, part in enumerate(parts):
        row = part.source.find(key_m)
        found = row >= 0
        if part.alive is not None:
            found &= part.alive[np.maximum(row, 0)]
        part_m[found], row_m[found] = index, row[found]
    return part_m, row_m


class Snapshot:
    """A consistent view of both corpora at one epoch. Thread-safe; needs no closing."""

    def __init__(
        self,
        epoch: Epoch,
        generation: Any,
        salt: bytes,
        parts: Mapping[Kind, tuple[Part, ...]],
        catalog: Catalog,
        neighbours: Neighbours,
    ) -> None:
        self.epoch = epoch
        self.generation = generation
        self.salt = salt
        self.parts = parts
        self._catalog = catalog
        self._neighbours = neighbours

    def __repr__(self) -> str:
        counts = ", ".join(f"{self.count(kind)} {kind}s" for kind in KINDS)
        return f"<Snapshot {self.epoch.number} of {self.epoch.uuid}: {counts}>"

    def corpus(self, kind: Kind) -> Corpus:
        """The rows of one kind, for kernels. The first call checks the blocks that hold them.

        Raises:
            StoreDamaged: a block does not match its checksum; the message names the file.
        """
        return self._jobs if kind == "job" else self._freelancers

    @cached_property
    def _jobs(self) -> Corpus:
        return Corpus(tuple((part.source.segment, part.alive) for part in self.parts["job"]))

    @cached_property
    def _freelancers(self) -> Corpus:
        return Corpus(tuple((part.source.segment, part.alive) for part in self.parts["freelancer"]))

    def count(self, kind: Kind) -> int:
        """Living rows."""
        return self._counts[kind]

    @cached_property
    def _counts(self) -> dict[Kind, int]:
        return {kind: sum(part.living for part in self.parts[kind]) for kind in KINDS}

    @cached_property
    def _bases(self) -> dict[Kind, Int64]:
        return {
            kind: np.cumsum([0, *(part.source.n for part in self.parts[kind])], dtype=np.int64)
            for kind in KINDS
        }

    def keys(self, ids: Sequence[str]) -> UInt64:
        """uint64 keys of ids, there or not."""
        if not ids:
            return np.zeros(0, dtype=np.uint64)
        return self._neighbours.hash_keys(ids, self.salt)

    def rows_of(self, kind: Kind, ids: Sequence[str]) -> Int64:
        """int64 global rows of ids; -1 where an id is not there."""
        names = [unicodedata.normalize("NFC", name) for name in ids]
        part_m, row_m = locate(self.parts[kind], self.keys(names))
        rows = np.where(part_m >= 0, self._bases[kind][part_m] + row_m, -1)
        for index, part in enumerate(self.parts[kind]):
            here = np.flatnonzero(part_m == index)
            actual = part.source.ids(row_m[here])
            other = [n for n, name in zip(here, actual, strict=True) if names[n] != name]
            rows[other] = -1
        return rows

    def ids_of(self, kind: Kind, rows: Sequence[int] | Int64) -> list[str]:
        """The ids of global rows, dead ones included.

        Raises:
            IndexError: a row that the corpus does not have.
        """
        rows_m = np.asarray(rows, dtype=np.int64)
        ids = [""] * len(rows_m)
        for part, here, local in self._split(kind, rows_m):
            for n, name in zip(here.tolist(), part.source.ids(local), strict=True):
                ids[n] = name
        return ids

    def keys_of(self, kind: Kind, rows: Sequence[int] | Int64) -> UInt64:
        """uint64 keys of global rows."""
        rows_m = np.asarray(rows, dtype=np.int64)
        keys = np.zeros(len(rows_m), dtype=np.uint64)
        for part, here, local in self._split(kind, rows_m):
            keys[here] = part.source.segment.key_n[local]
        return keys

    def record_numbers(self, kind: Kind, rows: Sequence[int] | Int64) -> tuple[object, Int64]:
        """(whose numbers they are, int64 numbers) of the records of global rows.

        Equal pairs mean equal records: one catalog gives no number twice, and changes no record
        that has one, but for the ids of the erased in lists of exclusions. A catalog that was
        pulled or restored is another one.
        """
        rows_m = np.asarray(rows, dtype=np.int64)
        seqs = np.zeros(len(rows_m), dtype=np.int64)
        for part, here, local in self._split(kind, rows_m):
            seqs[here] = part.source.seqs(local)
        return self._catalog.token, seqs

    def _split(self, kind: Kind, rows_m: Int64) -> list[tuple[Part, Int64, Int64]]:
        base = self._bases[kind]
        if len(rows_m) and (rows_m.min() < 0 or rows_m.max() >= base[-1]):
            raise IndexError(f"rows outside 0..{base[-1] - 1} of the {kind} corpus")
        part_m = np.searchsorted(base, rows_m, side="right") - 1
        split = []
        for index in np.unique(part_m).tolist():
            here = np.flatnonzero(part_m == index)
            split.append((self.parts[kind][index], here, rows_m[here] - base[index]))
        return split

    def records(self, kind: Kind, ids: Sequence[str]) -> pl.DataFrame:
        """The records of ids, as they were at this epoch, in the order given.

        Raises:
            NotFound: an id that is not there.
            EpochGone: a record has changed since, and its old form is no longer kept.
        """
        return frame(self._neighbours, kind, self._stored(kind, ids))

    def rows(self, kind: Kind, ids: Sequence[str]) -> list[dict[str, Any]]:
        """``records`` as dictionaries of every field of the schema, for a few of them.

        Where texts are not kept, the digest of a record's text is under ``prose.TEXT_DIGEST``.
        """
        return rows_of_schema(self._neighbours, kind, self._stored(kind, ids))

    def table_of(
        self, kind: Kind, rows: Sequence[int] | Int64, fields: Sequence[str]
    ) -> ColumnTable:
        """Some fields of the records of global rows, by column, for hundreds of them.

        Raises:
            EpochGone: as ``records``.
        """
        _, seq_m = self.record_numbers(kind, rows)
        reader = reader_of(self._neighbours, kind, fields)
        return reader.table(self._found(kind, seq_m.tolist(), reader.read))

    def _stored(self, kind: Kind, ids: Sequence[str]) -> list[dict[str, Any]]:
        rows = self.rows_of(kind, ids)
        if len(rows) and rows.min() < 0:
            missing = ids[int(np.argmin(rows))]
            raise NotFound(f"there is no {kind} with the id {missing!r}", id=missing, kind=kind)
        _, seqs = self.record_numbers(kind, rows)
        return self._found(kind, seqs.tolist(), stored_record)

    def _found(self, kind: Kind, seqs: list[int], read: Callable[..., T]) -> list[T]:
        """What ``read`` makes of the records with some numbers."""
        found, number = self._fetch(kind, seqs, read)
        if len(found) < len(set(seqs)):
            raise self._missing(kind, number)
        return [found[seq] for seq in seqs]

    def _missing(self, kind: Kind, number: int) -> MatchwrightError:
        if number == self.epoch.number:
            where = self._catalog.path
            return StoreDamaged(f"{where}: lacks the record of a living {kind}", file=where)
        return EpochGone(
            f"epoch {self.epoch.number}: a {kind} has changed since and its earlier record "
            "is no longer kept; take a new snapshot",
            epoch=self.epoch.number,
        )

    def _fetch(
        self, kind: Kind, seqs: list[int], read: Callable[..., T]
    ) -> tuple[dict[int, T], int]:
        """seq -> record for those that are kept, and the newest epoch's number."""
        where = str(self._catalog.path)
        found: dict[int, T] = {}
        with self._catalog.look() as connection:
            number = self._catalog.state(connection).number
            for table in (kind, f"{kind}_old"):
                left = [seq for seq in dict.fromkeys(seqs) if seq not in found]
                rows = self._catalog.records_by(connection, table, "seq", left)
                for seq, name, content, body in rows:
                    found[seq] = read(name, content, body, where)
        return found, number


def frame(neighbours: Neighbours, kind: Kind, records: list[dict[str, Any]]) -> pl.DataFrame:
    """Stored records as a frame of the kind's schema; fields unknown to it are left out."""
    import polars as pl

    schema = neighbours.schema(kind)
    rows = [blobs.without_digest(record) for record in records]
    return pl.DataFrame(
        {name: [row.get(name) for row in rows] for name in schema}, schema=schema, strict=True
    )


def rows_of_schema(
    neighbours: Neighbours, kind: Kind, records: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Stored records as rows of the kind's schema, with digests of texts that are not kept."""
    schema = neighbours.schema(kind)
    rows = []
    for record in map(blobs.without_digest, records):
        row = {name: record.get(name) for name in schema}
        if TEXT_DIGEST in record:
            row[TEXT_DIGEST] = record[TEXT_DIGEST]
        rows.append(row)
    return rows


SnapshotSource = Callable[[], Snapshot]
