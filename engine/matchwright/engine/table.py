"""Records by column, as vectors and rule columns are made of them.

One interface over three forms: a frame, for many records at once; plain rows, for a query or a
few, where the fixed cost of every operation on a frame would be most of the time; and columns, for
hundreds of stored records that are read for a few of their fields. All give the same values for
the same records, so whoever computes with them does not know which it is.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any, Protocol, Self, TypeAlias

import numpy as np
import polars as pl

from matchwright.engine.prose import TEXT_DIGEST, Prose, joined, prose
from matchwright.kernels.types import Bool, Int64

TEXT = "text"
"""The field whose place a digest takes where texts are not kept."""
Row: TypeAlias = Mapping[str, Any]
"""A record in the form of its kind's schema: every field by name, None where not known."""


@dataclass(frozen=True, eq=False)
class SkillItems:
    """Skills of all records, one after the other.

    Attributes:
        row_m: int64 (M,), the record of each.
        names: M of them.
        level_m, stated_m: int64 and bool (M,); 0 where no level is stated.
        must: M flags, of jobs.
    """

    row_m: Int64
    names: Sequence[str]
    level_m: Int64
    stated_m: Bool
    must: Sequence[bool]

    @cached_property
    def different(self) -> list[str]:
        """The names, each once."""
        return list(dict.fromkeys(self.names))

    @cached_property
    def code_m(self) -> Int64:
        """int64 (M,): the place of each name among the different ones."""
        codes = dict(zip(self.different, range(len(self.different)), strict=True))
        found = map(codes.__getitem__, self.names)
        return np.fromiter(found, dtype=np.int64, count=len(self.names))

    def lookup(self, of: Callable[[str], int], dtype: Any = np.int64) -> Any:
        """``of`` for every name, (M,), asked once for each different one."""
        return np.array([of(name) for name in self.different], dtype=dtype)[self.code_m]


class Table(Protocol):
    """Records of one kind by column."""

    @property
    def height(self) -> int:
        """How many records."""
        ...

    def slice(self, low: int, n: int) -> Self:
        """At most ``n`` records from the one at ``low``."""
        ...

    def values(self, name: str) -> list[Any]:
        """A column as Python has it, None where not known."""
        ...

    def integers(self, name: str) -> tuple[Int64, Bool]:
        """A column of integers (of at most 53 bits), 0 where not known, and where it is known."""
        ...

    def items(self, name: str, limit: int) -> tuple[Int64, list[Any]]:
        """The first ``limit`` items of a list column: int64 (M,) rows, and the items; no nulls."""
        ...

    def skills(self, limit: int) -> SkillItems:
        """The first ``limit`` skills of each record."""
        ...

    def prose(self, skills: int) -> pl.Series | list[str]:
        """Title, title, text and the names of the first ``skills`` skills, a line each; "" for
        what is not known."""
        ...

    def keyed_prose(self, skills: int) -> list[Prose]:
        """The same, each with its key."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class FrameTable:
    """Over a frame of a kind's schema."""

    frame: pl.DataFrame

    @property
    def height(self) -> int:
        return self.frame.height

    def slice(self, low: int, n: int) -> FrameTable:
        return FrameTable(self.frame.slice(low, n))

    def values(self, name: str) -> list[Any]:
        return self.frame[name].to_list()

    def integers(self, name: str) -> tuple[Int64, Bool]:
        return _integers(self.frame[name])

    def items(self, name: str, limit: int) -> tuple[Int64, list[Any]]:
        found = _exploded(self.frame, name, limit).collect()
        return found["row"].to_numpy().astype(np.int64), found[name].to_list()

    def skills(self, limit: int) -> SkillItems:
        found = skill_frame(self.frame, limit)
        must = found["must"].to_list() if "must" in found.columns else ()
        return SkillItems(
            found["row"].to_numpy().astype(np.int64),
            found["name"].to_list(),
            *_integers(found["level"]),
            [asked is True for asked in must],
        )

    def prose(self, skills: int) -> pl.Series:
        names = pl.col("skills").list.head(skills).list.eval(pl.element().struct.field("name"))
        title, text = pl.col("title").fill_null(""), pl.col("text").fill_null("")
        joined = names.list.join(" ").fill_null("")
        return self.frame.select(text=pl.concat_str(title, title, text, joined, separator="\n"))[
            "text"
        ]

    def keyed_prose(self, skills: int) -> list[Prose]:
        names = pl.col("skills").list.head(skills).list.eval(pl.element().struct.field("name"))
        columns = self.frame.select("title", "text", skills=names.list.join(" ").fill_null(""))
        return [prose(*row) for row in columns.iter_rows()]


@dataclass(frozen=True, slots=True, eq=False)
class RowTable:
    """Over rows."""

    rows: Sequence[Row]

    @property
    def height(self) -> int:
        return len(self.rows)

    def slice(self, low: int, n: int) -> RowTable:
        return RowTable(self.rows[low : low + n])

    def values(self, name: str) -> list[Any]:
        return [row[name] for row in self.rows]

    def integers(self, name: str) -> tuple[Int64, Bool]:
        return _plain_integers(self.values(name))

    def items(self, name: str, limit: int) -> tuple[Int64, list[Any]]:
        found = [
            (n, item)
            for n, row in enumerate(self.rows)
            for item in islice(row[name] or (), limit)
            if item is not None
        ]
        return np.array([n for n, _ in found], dtype=np.int64), [item for _, item in found]

    def skills(self, limit: int) -> SkillItems:
        row_m, items = self.items("skills", limit)
        named = [n for n, item in enumerate(items) if item["name"] is not None]
        if len(named) < len(items):
            row_m, items = row_m[named], [items[n] for n in named]
        return SkillItems(
            row_m,
            [item["name"] for item in items],
            *_plain_integers([item["level"] for item in items]),
            [item.get("must") is True for item in items],
        )

    def prose(self, skills: int) -> list[str]:
        return [_prose(row, skills) for row in self.rows]

    def keyed_prose(self, skills: int) -> list[Prose]:
        return [
            prose(row["title"], row["text"] or row.get(TEXT_DIGEST), _names(row, skills))
            for row in self.rows
        ]


@dataclass(frozen=True, eq=False)
class ColumnTable:
    """Over columns, of some of a schema's fields.

    Attributes:
        height: how many records.
        columns: name -> a value for each record, None where not known; a text that is not kept is
            its digest. Items of lists of structs have their fields as attributes.
    """

    height: int
    columns: Mapping[str, Sequence[Any]]

    def slice(self, low: int, n: int) -> ColumnTable:
        high = min(low + n, self.height)
        return ColumnTable(max(high - low, 0), {k: v[low:high] for k, v in self.columns.items()})

    def take(self, at: Int64) -> ColumnTable:
        """The records at some positions, in their order."""
        places = at.tolist()
        if places == list(range(self.height)):
            return self
        columns = {name: [column[n] for n in places] for name, column in self.columns.items()}
        return ColumnTable(len(places), columns)

    def joined(self, other: ColumnTable) -> ColumnTable:
        """The records of both, which have the same fields."""
        columns = {name: [*column, *other.columns[name]] for name, column in self.columns.items()}
        return ColumnTable(self.height + other.height, columns)

    def values(self, name: str) -> list[Any]:
        if name == TEXT:
            return [None if isinstance(text, bytes) else text for text in self.columns[name]]
        return list(self.columns[name])

    def integers(self, name: str) -> tuple[Int64, Bool]:
        values = np.array(self.columns[name], dtype=np.float64)  # None becomes NaN
        known = ~np.isnan(values)
        return np.where(known, values, 0.0).astype(np.int64), known

    def items(self, name: str, limit: int) -> tuple[Int64, list[Any]]:
        lists = [(items or ())[:limit] for items in self.columns[name]]
        row_m = np.repeat(np.arange(self.height), list(map(len, lists)))
        found = [item for items in lists for item in items]
        if None in found:
            kept = [m for m, item in enumerate(found) if item is not None]
            row_m, found = row_m[kept], [found[m] for m in kept]
        return row_m, found

    def skills(self, limit: int) -> SkillItems:
        found = self._skills.get(limit)
        if found is None:
            found = self._skills[limit] = self._skills_of(limit)
        return found

    def _skills_of(self, limit: int) -> SkillItems:
        row_m, items = self.items("skills", limit)
        names = [item.name for item in items]
        if None in names:
            kept = [m for m, name in enumerate(names) if name is not None]
            row_m, items = row_m[kept], [items[m] for m in kept]
            names = [item.name for item in items]
        levels = _plain_integers([item.level for item in items])
        must = [getattr(item, "must", None) is True for item in items]
        return SkillItems(row_m, names, *levels, must)

    @cached_property
    def _skills(self) -> dict[int, SkillItems]:
        return {}

    def prose(self, skills: int) -> list[str]:
        titles = [title or "" for title in self.columns["title"]]
        texts = [text or "" for text in self.values(TEXT)]
        return list(map(joined, titles, texts, self._names(skills)))

    def keyed_prose(self, skills: int) -> list[Prose]:
        return list(map(prose, self.columns["title"], self.columns[TEXT], self._names(skills)))

    def _names(self, skills: int) -> list[str]:
        """The names of the first skills of each record, with blanks between them."""
        items = self.skills(skills)
        start = np.searchsorted(items.row_m, np.arange(self.height + 1)).tolist()
        return [" ".join(items.names[low:high]) for low, high in itertools.pairwise(start)]


Records: TypeAlias = pl.DataFrame | Sequence[Row] | FrameTable | RowTable | ColumnTable
"""What can be seen as a table."""


def as_table(records: Records) -> FrameTable | RowTable | ColumnTable:
    """A frame or rows as a table; a table as itself."""
    if isinstance(records, FrameTable | RowTable | ColumnTable):
        return records
    return FrameTable(records) if isinstance(records, pl.DataFrame) else RowTable(records)


def skill_frame(records: pl.DataFrame, limit: int) -> pl.DataFrame:
    """The first ``limit`` skills: ``row`` (uint32), ``name``, ``level`` and, of jobs, ``must``."""
    return _exploded(records, "skills", limit).unnest("skills").drop_nulls("name").collect()


def _exploded(records: pl.DataFrame, name: str, limit: int) -> pl.LazyFrame:
    lists = records.lazy().select(pl.col(name).list.head(limit)).with_row_index("row")
    return lists.explode(name).drop_nulls()


def _integers(column: pl.Series) -> tuple[Int64, Bool]:
    values = column.to_numpy()
    if values.dtype.kind != "f":
        return values.astype(np.int64), np.ones(len(values), dtype=np.bool_)
    known = ~np.isnan(values)
    return np.where(known, values, 0.0).astype(np.int64), known


def _plain_integers(values: Sequence[int | None]) -> tuple[Int64, Bool]:
    known = np.array([value is not None for value in values], dtype=np.bool_)
    return np.array([value or 0 for value in values], dtype=np.int64), known


def _prose(row: Row, skills: int) -> str:
    return joined(row["title"] or "", row["text"] or "", _names(row, skills))


def _names(row: Row, skills: int) -> str:
    listed = islice(row["skills"] or (), skills)
    return " ".join(
        item["name"] for item in listed if item is not None and item["name"] is not None
    )
