"""Two runs side by side: the same queries of both, a window at a time.

Units of two runs need not hold the same queries, but both are in the order of query keys. A window
holds what both say of one range of keys, so that memory is that of a few units.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import polars as pl

from matchwright.engine.errors import FailedPrecondition
from matchwright.engine.records import Kind
from matchwright.engine.runs.folder import RunFolder
from matchwright.engine.runs.plan import Plan

KEY_MAX = 2**64 - 1
ROW_COLUMNS = ("query_key", "rank", "id", "key", "points", "score")
QUERY_COLUMNS = ("query_id", "query_key", "returned", "error", "print")
SECOND_COLUMNS: tuple[tuple[str, Any], ...] = (
    ("moved", pl.String),
    ("first_rank", pl.Int32),
    ("model_score", pl.Int32),
)
"""Columns of rows that runs without the pass or the phase that fills them leave out, or empty."""


@dataclass(frozen=True, slots=True)
class Side:
    """A complete run.

    Attributes:
        folder, plan: of the run.
        summary: its run.json.
    """

    folder: RunFolder
    plan: Plan
    summary: dict[str, object]

    @property
    def run_id(self) -> str:
        return self.plan.run_id


@dataclass(frozen=True, slots=True)
class Half:
    """What one run says of a range of query keys: rows of its queries and part files."""

    queries: pl.DataFrame
    rows: pl.DataFrame


@dataclass(frozen=True, slots=True)
class Window:
    """A range of query keys in both runs."""

    first: Half
    second: Half


def side(folder: RunFolder) -> Side:
    """A complete run, ready to be compared.

    Raises:
        FailedPrecondition: it is not complete.
    """
    plan, summary = folder.plan(), folder.summary()
    if summary is None:
        raise FailedPrecondition(
            f"run {folder.run_id} in {folder.url} is not complete; go on with: "
            f"matchwright run resume {folder.url}",
            run=folder.run_id,
        )
    return Side(folder, plan, summary)


def windows(first: Side, second: Side, kind: Kind) -> Iterator[Window]:
    """Both runs' answers to the queries of a kind, in ascending order of their keys."""
    left, right = _Stream(first, kind), _Stream(second, kind)
    while (upto := left.next_key()) is not None or right.next_key() is not None:
        limit = KEY_MAX if upto is None or left.is_last() else upto
        yield Window(left.take(limit), right.take(limit))


class _Stream:
    """A run's units of one kind, read as they are needed."""

    def __init__(self, one: Side, kind: Kind) -> None:
        self._side = one
        self._units = list(one.plan.units_of(kind)) if kind in one.plan.options.kinds else []
        self._read = 0
        self._held: list[Half] = []

    def next_key(self) -> int | None:
        """The last query key of the next unit that is not used up; None at the end."""
        while not self._held and self._read < len(self._units):
            self._load()
        return _last(self._held[0]) if self._held else None

    def is_last(self) -> bool:
        """Whether only one unit is left."""
        return len(self._held) == 1 and self._read == len(self._units)

    def take(self, upto: int) -> Half:
        """All that is left of queries with keys of at most ``upto``."""
        taken: list[Half] = []
        while (last := self.next_key()) is not None:
            half = self._held.pop(0)
            if last <= upto:
                taken.append(half)
                continue
            below = pl.col("query_key") <= upto
            taken.append(Half(half.queries.filter(below), half.rows.filter(below)))
            self._held.insert(0, Half(half.queries.filter(~below), half.rows.filter(~below)))
            break
        if not taken:
            return _nothing()
        return Half(
            pl.concat([half.queries for half in taken]), pl.concat([half.rows for half in taken])
        )

    def _load(self) -> None:
        unit = self._units[self._read]
        self._read += 1
        queries = self._side.folder.queries(unit)
        queries = queries.select(*QUERY_COLUMNS, _or_null(queries, "degraded", pl.String))
        rows = self._side.folder.part(unit)
        more = [_or_null(rows, name, dtype) for name, dtype in SECOND_COLUMNS]
        rows = rows.select(*ROW_COLUMNS, *more)
        if queries.height:
            self._held.append(Half(queries, rows))


def _or_null(frame: pl.DataFrame, name: str, dtype: Any) -> pl.Expr:
    """A column that need not be there."""
    there = pl.col(name) if name in frame.columns else pl.lit(None)
    return there.cast(dtype).alias(name)


def _last(half: Half) -> int:
    return int(half.queries["query_key"][-1])


def _nothing() -> Half:
    queries = {
        "query_id": pl.String,
        "query_key": pl.UInt64,
        "returned": pl.Int32,
        "error": pl.String,
        "print": pl.Binary,
        "degraded": pl.String,
    }
    rows = {
        "query_key": pl.UInt64,
        "rank": pl.Int32,
        "id": pl.String,
        "key": pl.UInt64,
        "points": pl.Int32,
        "score": pl.Float64,
        **dict(SECOND_COLUMNS),
    }
    return Half(pl.DataFrame(schema=queries), pl.DataFrame(schema=rows))
