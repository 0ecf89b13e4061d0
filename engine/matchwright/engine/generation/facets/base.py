"""What a facet is: two maps for each kind, one for its role as corpus and one as query."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import polars as pl

from matchwright.engine.generation.fixed import GRID
from matchwright.engine.generation.params import FacetParams
from matchwright.engine.records import Kind
from matchwright.kernels.types import Bool, Float64, Int64

OTHER: dict[Kind, Kind] = {"job": "freelancer", "freelancer": "job"}
"""The kind that a query of a kind searches."""


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """One facet of corpus rows.

    Attributes:
        raw_nw: float64 (N, W), grid integers before rotation; any value where not known.
        known_n: bool (N,).
    """

    raw_nw: Float64
    known_n: Bool


@dataclass(frozen=True, slots=True, eq=False)
class QueryBlock:
    """One facet of queries.

    Attributes:
        raw_qw: float64 (Q, W), grid integers before rotation.
        known_q: bool (Q,).
        best_q: float64 (Q,), the largest <raw_q, raw> that any corpus entity could have.
    """

    raw_qw: Float64
    known_q: Bool
    best_q: Float64


class Facet(Protocol):
    """One aspect of fit. Frozen; its fitted state is its fields."""

    @property
    def name(self) -> str: ...
    @property
    def width(self) -> int: ...

    def corpus(self, kind: Kind, records: pl.DataFrame) -> Block:
        """The rows of ``kind`` as they are stored."""
        ...

    def query(
        self, kind: Kind, records: pl.DataFrame, params: FacetParams, as_of: int
    ) -> QueryBlock:
        """The rows of ``kind`` as they ask."""
        ...

    def reach(self, kind: Kind) -> float:
        """Typical largest absolute entry of a rotated corpus block: the standard step's 127."""
        ...

    def neutral(self, kind: Kind) -> Float64:
        """Raw (W,): what stands for unknown where no population was seen."""
        ...


def column(records: pl.DataFrame, name: str) -> tuple[Int64, Bool]:
    """An integer column (of at most 53 bits) as int64, 0 where null, and where it is known."""
    values = records[name].to_numpy()
    if values.dtype.kind != "f":
        return values.astype(np.int64), np.ones(len(values), dtype=np.bool_)
    known = ~np.isnan(values)
    return np.where(known, values, 0.0).astype(np.int64), known


def exploded(records: pl.DataFrame, name: str, limit: int) -> pl.DataFrame:
    """The first ``limit`` items of a list column: ``row`` (uint32) and the column."""
    return _exploded(records, name, limit).collect()


def skill_items(records: pl.DataFrame, limit: int) -> pl.DataFrame:
    """The first ``limit`` skills: ``row`` (uint32), ``name``, ``level`` and, of jobs, ``must``."""
    return _exploded(records, "skills", limit).unnest("skills").drop_nulls("name").collect()


def _exploded(records: pl.DataFrame, name: str, limit: int) -> pl.LazyFrame:
    lists = records.lazy().select(pl.col(name).list.head(limit)).with_row_index("row")
    return lists.explode(name).drop_nulls()


def lookup(names: pl.Series, of: Callable[[str], int]) -> Int64:
    """``of`` for every name, int64 (N,), asked once for each different one. No nulls."""
    listed = names.to_list()
    numbers = {name: of(name) for name in set(listed)}
    return np.fromiter(map(numbers.__getitem__, listed), dtype=np.int64, count=len(listed))


def any_row(raw_nw: Float64) -> Bool:
    """bool (N,): rows that are not all zero."""
    return np.asarray(raw_nw.any(axis=1))


def even(width: int, total: float) -> Float64:
    """Raw (W,): ``total`` spread evenly."""
    return np.full(width, np.rint(total * GRID / width))


def convex_best(raw_qw: Float64) -> Float64:
    """Best match where corpus rows are weighted means of unit vectors: the largest entry."""
    return np.asarray(raw_qw.max(axis=1, initial=0.0) / GRID)
