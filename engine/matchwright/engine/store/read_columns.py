"""Stored records by column: some fields of many, without the rest being built.

A record's hash covers all of it, and is compared all the same.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import msgspec

from matchwright.engine.errors import StoreDamaged
from matchwright.engine.store import blobs
from matchwright.engine.store.catalog import Kind
from matchwright.engine.store.encode import Neighbours

if TYPE_CHECKING:
    import polars as pl

    from matchwright.engine.table import ColumnTable

_ALWAYS = ("id", blobs.TEXT_FIELD)
"""What a record is checked by."""


class Reader:
    """Reads some fields of the records of one schema. Thread-safe.

    Args:
        schema: fields and their types; those of lists of structs become attributes.
    """

    def __init__(self, schema: Sequence[tuple[str, pl.DataType]]) -> None:
        self.names = tuple(name for name, _ in schema)
        self._type = msgspec.defstruct(
            "Record", [(name, _type_of(dtype), None) for name, dtype in schema], gc=False
        )
        self._decode: Callable[[bytes], Any] = msgspec.msgpack.Decoder(self._type).decode

    def read(self, name: str, content: bytes, body: bytes, where: str) -> Any:
        """One record out of its table row.

        Raises:
            StoreDamaged: as ``stored_record``.
        """
        try:
            packed = blobs.inflate(body)
            record = self._decode(packed)
            if record.id == name and blobs.has_hash(packed, record.text, content):
                return record
        except (msgspec.MsgspecError, zlib.error, TypeError, UnicodeError):
            pass
        try:  # damaged, or packed in another way: the slow way decides
            return msgspec.convert(stored_record(name, content, body, where), self._type)
        except msgspec.ValidationError as error:
            raise StoreDamaged(f"{where}: the record of {name!r}: {error}", file=where) from None

    def table(self, records: Sequence[Any]) -> ColumnTable:
        """What was read, by column."""
        from matchwright.engine.table import ColumnTable

        columns = {name: list(map(attrgetter(name), records)) for name in self.names}
        return ColumnTable(len(records), columns)


def reader_of(neighbours: Neighbours, kind: Kind, fields: Sequence[str]) -> Reader:
    """The reader of some fields of a kind's records; of others nothing is known."""
    wanted = {*_ALWAYS, *fields}
    schema = neighbours.schema(kind)
    return _reader(tuple((name, dtype) for name, dtype in schema.items() if name in wanted))


@lru_cache(maxsize=32)
def _reader(schema: tuple[tuple[str, pl.DataType], ...]) -> Reader:
    return Reader(schema)


def _type_of(dtype: pl.DataType) -> Any:
    """The type that a field is decoded to: what a schema of structs says, anything elsewhere."""
    import polars as pl

    inner = dtype.inner if isinstance(dtype, pl.List) else None
    if not isinstance(inner, pl.Struct):
        return Any
    item = msgspec.defstruct("Item", [(f.name, Any, None) for f in inner.fields], gc=False)
    return list[item | None] | None  # type: ignore[valid-type]


def stored_record(name: str, content: bytes, body: bytes, where: str) -> dict[str, Any]:
    """A record out of its table row.

    Raises:
        StoreDamaged: it does not match its hash, or belongs to another id.
    """
    record = blobs.unpack_record(body, content, where)
    if record.get("id") != name:
        raise StoreDamaged(f"{where}: the record of {name!r} is another's", file=where)
    return record
