"""Records on their way in: hashed, compared with what is there, latest form of each id kept."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from matchwright.engine.errors import InvalidData, KeyCollision
from matchwright.engine.store import blobs
from matchwright.engine.store.catalog import Kind
from matchwright.engine.store.encode import Neighbours
from matchwright.kernels.types import UInt64

if TYPE_CHECKING:
    import polars as pl

ID_BYTES_MAX = 128


class Known(Protocol):
    """Says what the store holds under keys."""

    def __call__(self, kind: Kind, key_m: UInt64) -> Sequence[tuple[str, bytes] | None]: ...


@dataclass(slots=True)
class Tally:
    """How records compared with what was there: new, changed, equal."""

    accepted: int = 0
    replaced: int = 0
    duplicate: int = 0


@dataclass(slots=True)
class _Entry:
    frame: int
    row: int
    key: int
    content: bytes
    body: bytes
    stored: bytes | None


class Pending:
    """Changed records of one kind that are not written yet.

    Args:
        kind: of all records.
        salt: the store's.
        keep_text: whether bodies hold texts.
        neighbours: schema and key function.
        known: what the store holds, by key.
    """

    def __init__(
        self, kind: Kind, salt: bytes, keep_text: bool, neighbours: Neighbours, known: Known
    ) -> None:
        self.kind = kind
        self._salt = salt
        self._keep_text = keep_text
        self._neighbours = neighbours
        self._known = known
        self._frames: list[pl.DataFrame] = []
        self._entries: dict[str, _Entry] = {}
        self._id_of_key: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, records: pl.DataFrame, *, text_digest: bytes | None = None) -> Tally:
        """Takes in a frame of the kind's schema; later rows of an id replace earlier ones.

        Args:
            records: the frame.
            text_digest: stands for the text of a single record whose text is not kept.

        Raises:
            InvalidData: columns or ids that the schema does not allow; nothing was taken in.
            KeyCollision: an id whose key another id has; nothing was taken in.
        """
        records = self.conform(records)
        ids: list[str] = records["id"].to_list()
        if not ids:
            return Tally()
        key_n = self._neighbours.hash_keys(ids, self._salt)
        stored = self._known(self.kind, key_n)
        keys = key_n.tolist()
        self._refuse_collisions(ids, keys, stored)
        tally = Tally()
        self._frames.append(records)
        for row, record in enumerate(records.iter_rows(named=True)):
            if text_digest is not None:
                record[blobs.TEXT_FIELD] = text_digest
            content, body = blobs.pack_record(record, keep_text=self._keep_text)
            was = stored[row]
            entry = _Entry(
                len(self._frames) - 1, row, keys[row], content, body, was[1] if was else None
            )
            self._place(ids[row], entry, tally)
        return tally

    def _place(self, name: str, entry: _Entry, tally: Tally) -> None:
        before = self._entries.get(name)
        current = before.content if before is not None else entry.stored
        if current == entry.content:
            tally.duplicate += 1
            return
        if current is None:
            tally.accepted += 1
        else:
            tally.replaced += 1
        self._entries[name] = entry
        self._id_of_key[entry.key] = name

    def conform(self, records: pl.DataFrame) -> pl.DataFrame:
        """The records with the schema's columns and types.

        Raises:
            InvalidData: columns or ids that the schema does not allow.
        """
        import polars as pl

        schema = self._neighbours.schema(self.kind)
        missing = [name for name in schema if name not in records.columns]
        extra = [name for name in records.columns if name not in schema]
        if missing or extra:
            raise InvalidData(
                f"{self.kind} records need the columns of the schema; "
                f"missing: {missing}, unknown: {extra}",
                field=(missing + extra)[0],
            )
        try:
            if records.schema != schema:
                records = records.select(pl.col(name).cast(schema[name]) for name in schema)
        except pl.exceptions.PolarsError as error:
            raise InvalidData(f"{self.kind} records do not fit the schema: {error}")
        for name in records["id"].to_list():
            if not name or len(name.encode()) > ID_BYTES_MAX or not _is_nfc(name):
                raise InvalidData(
                    f"got the id {name!r}, expected NFC text of 1 to {ID_BYTES_MAX} UTF-8 bytes",
                    field="id",
                )
        return records

    def _refuse_collisions(
        self, ids: list[str], keys: list[int], stored: Sequence[tuple[str, bytes] | None]
    ) -> None:
        batch: dict[int, str] = {}
        for name, key, was in zip(ids, keys, stored, strict=True):
            other = was[0] if was else self._id_of_key.get(key, batch.setdefault(key, name))
            if other != name:
                raise KeyCollision(
                    f"the {self.kind} ids {name!r} and {other!r} have the same 64-bit key; "
                    "rename one of them",
                    id=name,
                    other=other,
                )

    def check_collisions(self) -> None:
        """Compares with the store again, which others may have changed meanwhile.

        Raises:
            KeyCollision: an id whose key another id has.
        """
        stored = self._known(self.kind, self.key_n)
        self._refuse_collisions(self.ids, self.key_n.tolist(), stored)

    def drop_unchanged(self) -> None:
        """Forgets ids that came back to what the store holds."""
        same = [name for name, entry in self._entries.items() if entry.content == entry.stored]
        for name in same:
            del self._id_of_key[self._entries.pop(name).key]

    @property
    def ids(self) -> list[str]:
        return list(self._entries)

    @property
    def key_n(self) -> UInt64:
        return np.array([entry.key for entry in self._entries.values()], dtype=np.uint64)

    @property
    def contents(self) -> bytes:
        """All content hashes, one after the other."""
        return b"".join(entry.content for entry in self._entries.values())

    def frame(self) -> pl.DataFrame:
        """The latest records, in the order of ``ids``."""
        import polars as pl

        base = np.cumsum([0, *(frame.height for frame in self._frames)])
        rows = [int(base[entry.frame]) + entry.row for entry in self._entries.values()]
        return pl.concat(self._frames)[rows]

    def table_rows(self, first_seq: int) -> list[tuple[Any, ...]]:
        """(seq, key, id, hash, body) for the catalog, in the order of ``ids``."""
        return [
            (first_seq + n, _signed(entry.key), name, entry.content, entry.body)
            for n, (name, entry) in enumerate(self._entries.items())
        ]


def _signed(key: int) -> int:
    """A 64-bit key as SQLite keeps it."""
    return key - (1 << 64) if key >= 1 << 63 else key


def _is_nfc(name: str) -> bool:
    return unicodedata.is_normalized("NFC", name)
