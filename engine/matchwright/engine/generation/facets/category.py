"""Category.

Form: 1 when the job's category is among the freelancer's first five, else 0.
Basis: indicator vectors. The 24 most frequent categories have a dimension each, the others share 8
    by hash. Names are compared after trimming and case folding.
Largest error: 1, when two rare categories share a dimension.
Width: 32.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import ClassVar

import msgspec
import numpy as np
import polars as pl

from matchwright.engine.generation.facets.base import (
    Block,
    QueryBlock,
    any_row,
    convex_best,
    even,
    lookup,
)
from matchwright.engine.generation.fixed import GRID
from matchwright.engine.generation.hashing import bucket
from matchwright.engine.generation.params import FacetParams
from matchwright.engine.records import Kind
from matchwright.engine.table import FrameTable, Table
from matchwright.kernels.types import Float64, Int64

WIDTH = 32
OWN_MAX = 24
ITEMS_MAX = 5
"""Categories of a freelancer that count."""
DF_MIN = 5
"""A name that fewer entities use is not learnt."""


class Category(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``own``: case-folded names with a dimension of their own, in its order."""

    own: tuple[str, ...] = ()

    name: ClassVar[str] = "category"
    width: ClassVar[int] = WIDTH

    def corpus(self, kind: Kind, records: Table) -> Block:
        """Indicator of own categories."""
        row, names = _items(kind, records)
        raw = np.zeros((records.height, WIDTH))
        raw[row, self._dims(names)] = GRID
        return Block(raw, any_row(raw))

    def query(self, kind: Kind, records: Table, params: FacetParams, as_of: int) -> QueryBlock:
        """The same indicator."""
        block = self.corpus(kind, records)
        return QueryBlock(block.raw_nw, block.known_n, convex_best(block.raw_nw))

    def _dims(self, names: Sequence[str]) -> Int64:
        return lookup(names, lambda name: self._dim(fold(name)))

    def _dim(self, name: str) -> int:
        tail = len(self.own)
        return self.own.index(name) if name in self.own else tail + bucket(name, WIDTH - tail)

    def reach(self, kind: Kind) -> float:
        return (1.0 if kind == "job" else 3.0) / float(np.sqrt(np.float64(WIDTH)))

    def neutral(self, kind: Kind) -> Float64:
        return even(WIDTH, 1.0)


def fold(name: str) -> str:
    """The form in which category names are compared."""
    return " ".join(name.casefold().split())


def _items(kind: Kind, records: Table) -> tuple[Int64, list[str]]:
    """int64 (M,) rows and names; names that are blank are left out."""
    if kind == "job":
        row = np.arange(records.height)
        names = [name or "" for name in records.values("category")]
    else:
        row, names = records.items("categories", ITEMS_MAX)
    told = [n for n, name in enumerate(names) if name.strip()]
    return row[told], [names[n] for n in told]


def fit(jobs: pl.DataFrame, freelancers: pl.DataFrame) -> Category:
    """The most frequent names that at least five entities use."""
    used: Counter[str] = Counter()
    sides: tuple[tuple[Kind, pl.DataFrame], ...] = (("job", jobs), ("freelancer", freelancers))
    for kind, records in sides:
        row, names = _items(kind, FrameTable(records))
        pairs = {(n, fold(name)) for n, name in zip(row.tolist(), names, strict=True)}
        used.update(name for _, name in pairs)
    ranked = sorted((-n, name) for name, n in used.items() if n >= DF_MIN)
    return Category(tuple(name for _, name in ranked[:OWN_MAX]))
