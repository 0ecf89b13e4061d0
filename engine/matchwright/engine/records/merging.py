"""Several rows of a file to one record, in bounded memory.

A map with a ``[merge]`` table joins all rows that give the same id: an export with one line per
(occupation, tool) becomes one record per occupation with its tools. Rows are validated one by one
first, put into a temporary SQLite file, and read back id by id.
"""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec
import polars as pl

from matchwright.engine.records.fields import LIST_ITEMS_MAX, TEXT_CHARS_MAX, Kind
from matchwright.engine.records.reasons import Reason
from matchwright.engine.records.rows import Refused, refused
from matchwright.engine.records.schema import SCHEMAS, series
from matchwright.engine.records.values import strengthened

RECORDS_PER_FRAME = 256


@dataclass(slots=True)
class Merged:
    """Records and the rows that each was made of.

    Attributes:
        frame: (N) records.
        rows: how many rows went into each.
        refused: rows that could not be taken in without breaking a limit.
    """

    frame: pl.DataFrame
    rows: list[int]
    refused: list[Refused] = field(default_factory=list)


class Merger:
    """Takes in validated rows of one file, gives merged records."""

    def __init__(self, kind: Kind, how: Mapping[str, str]) -> None:
        self._kind: Kind = kind
        self._how = how
        self._folder = tempfile.TemporaryDirectory(prefix="matchwright-merge-")
        self._db = sqlite3.connect(Path(self._folder.name) / "rows", isolation_level=None)
        self._db.execute("PRAGMA journal_mode = OFF")
        self._db.execute("PRAGMA synchronous = OFF")
        self._db.execute("CREATE TABLE rows (id TEXT, row INTEGER, record BLOB)")
        self._encode = msgspec.msgpack.Encoder().encode

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._db.close()
        self._folder.cleanup()

    def add(self, frame: pl.DataFrame, number: list[int]) -> None:
        """Takes in rows."""
        used = ["id", *self._how]
        records = frame.select(used).iter_rows(named=True)
        self._db.execute("BEGIN")
        self._db.executemany(
            "INSERT INTO rows VALUES (?, ?, ?)",
            ((r["id"], row, self._encode(r)) for r, row in zip(records, number, strict=True)),
        )
        self._db.execute("COMMIT")

    def frames(self) -> Iterator[Merged]:
        """The merged records, ids in order of their first row."""
        self._db.execute("CREATE INDEX by_id ON rows (id, row)")
        self._db.execute(
            "CREATE TABLE firsts AS SELECT id, min(row) AS first FROM rows GROUP BY id"
        )
        query = (
            "SELECT rows.id, rows.row, rows.record FROM firsts JOIN rows ON rows.id = firsts.id "
            "ORDER BY firsts.first, rows.row"
        )
        batch: list[tuple[dict[str, Any], int]] = []
        out: list[Refused] = []
        with closing(self._db.execute(query)) as cursor:
            for record, rows in self._records(cursor, out):
                batch.append((record, rows))
                if len(batch) >= RECORDS_PER_FRAME:
                    yield self._merged(batch, out)
                    batch, out[:] = [], []
        if batch or out:
            yield self._merged(batch, out)

    def _records(
        self, cursor: sqlite3.Cursor, out: list[Refused]
    ) -> Iterator[tuple[dict[str, Any], int]]:
        current: dict[str, Any] | None = None
        rows = 0
        decode = msgspec.msgpack.Decoder().decode
        for name, row, body in cursor:
            record = decode(body)
            if current is None or current["id"] != name:
                if current is not None:
                    yield current, rows
                current, rows = record, 1
                continue
            joined = _join(current, record, self._how)
            if isinstance(joined, str):
                out.append(
                    refused(
                        row, joined, name, Reason.TOO_MANY_ITEMS, "the merged record is full", name
                    )
                )
                continue
            current, rows = joined, rows + 1
        if current is not None:
            yield current, rows

    def _merged(self, batch: list[tuple[dict[str, Any], int]], out: list[Refused]) -> Merged:
        schema = SCHEMAS[self._kind]
        columns = {
            name: series(name, [record.get(name) for record, _ in batch], dtype)
            for name, dtype in schema.items()
        }
        return Merged(pl.DataFrame(columns), [rows for _, rows in batch], list(out))


def _join(
    one: dict[str, Any], more: dict[str, Any], how: Mapping[str, str]
) -> dict[str, Any] | str:
    """Both records as one, or the name of the field that would grow beyond its limit."""
    joined = dict(one)
    for name, way in how.items():
        left, right = one.get(name), more.get(name)
        if right is None:
            continue
        value = right if left is None else _WAYS[way](left, right)
        if isinstance(value, list) and len(value) > LIST_ITEMS_MAX:
            return name
        if isinstance(value, str) and len(value) > TEXT_CHARS_MAX:
            return name
        joined[name] = value
    return joined


def _union(left: list[Any], right: list[Any]) -> list[Any]:
    done = list(left)
    place = {_name(item): at for at, item in enumerate(done)}
    for item in right:
        at = place.get(_name(item))
        if at is None:
            place[_name(item)] = len(done)
            done.append(item)
        elif isinstance(item, dict) and "level" in item:
            done[at] = strengthened(done[at], item)
    return done


def _name(item: Any) -> Any:
    if not isinstance(item, dict):
        return item
    if "issuer" in item:
        return tuple(item.values())
    return item.get("name", item.get("code"))


def _lines(left: str, right: str) -> str:
    known = left.split("\n")
    new = [line for line in right.split("\n") if line not in known]
    return "\n".join([left, *new]) if new else left


_WAYS: dict[str, Any] = {
    "union": _union,
    "join": _lines,
    "first": lambda left, right: left,
    "last": lambda left, right: right,
    "min": min,
    "max": max,
}
