"""What a facet is: two maps for each kind, one for its role as corpus and one as query."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from matchwright.engine.generation.fixed import GRID
from matchwright.engine.generation.params import FacetParams
from matchwright.engine.records import Kind
from matchwright.engine.table import Table
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

    def corpus(self, kind: Kind, records: Table) -> Block:
        """The rows of ``kind`` as they are stored."""
        ...

    def query(self, kind: Kind, records: Table, params: FacetParams, as_of: int) -> QueryBlock:
        """The rows of ``kind`` as they ask."""
        ...

    def reach(self, kind: Kind) -> float:
        """Typical largest absolute entry of a rotated corpus block: the standard step's 127."""
        ...

    def neutral(self, kind: Kind) -> Float64:
        """Raw (W,): what stands for unknown where no population was seen."""
        ...


def lookup(names: Sequence[str], of: Callable[[str], int]) -> Int64:
    """``of`` for every name, int64 (N,), asked once for each different one. No nulls."""
    numbers = {name: of(name) for name in set(names)}
    return np.fromiter(map(numbers.__getitem__, names), dtype=np.int64, count=len(names))


def any_row(raw_nw: Float64) -> Bool:
    """bool (N,): rows that are not all zero."""
    return np.asarray(raw_nw.any(axis=1))


def even(width: int, total: float) -> Float64:
    """Raw (W,): ``total`` spread evenly."""
    return np.full(width, np.rint(total * GRID / width))


def convex_best(raw_qw: Float64) -> Float64:
    """Best match where corpus rows are weighted means of unit vectors: the largest entry."""
    return np.asarray(raw_qw.max(axis=1, initial=0.0) / GRID)
