"""Category.

Form: 1 when the job's category is among the freelancer's first five, else 0.
Basis: indicator vectors. The 24 most frequent categories have a dimension each, the others share 8
    by hash. Names are compared after trimming and case folding.
Largest error: 1, when two rare categories share a dimension.
Width: 32.
"""

from __future__ import annotations

from collections import Counter
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
    exploded,
    lookup,
)
from matchwright.engine.generation.fixed import GRID
from matchwright.engine.generation.hashing import bucket
from matchwright.engine.generation.params import FacetParams
from matchwright.engine.records import Kind
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

    def corpus(self, kind: Kind, records: pl.DataFrame) -> Block:
        """Indicator of own categories."""
        items = _items(kind, records)
        raw = np.zeros((records.height, WIDTH))
        row = items["row"].to_numpy()
        raw[row, self._dims(items["category"])] = GRID
        return Block(raw, any_row(raw))

    def query(
        self, kind: Kind, records: pl.DataFrame, params: FacetParams, as_of: int
    ) -> QueryBlock:
        """The same indicator."""
        block = self.corpus(kind, records)
        return QueryBlock(block.raw_nw, block.known_n, convex_best(block.raw_nw))

    def _dims(self, names: pl.Series) -> Int64:
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


def _items(kind: Kind, records: pl.DataFrame) -> pl.DataFrame:
    """``row`` and ``category``; names that are blank are left out."""
    if kind == "job":
        items = records.lazy().select("category").with_row_index("row").drop_nulls()
    else:
        lists = exploded(records, "categories", ITEMS_MAX)
        items = lists.lazy().rename({"categories": "category"})
    return items.filter(pl.col("category").str.strip_chars() != "").collect()


def fit(jobs: pl.DataFrame, freelancers: pl.DataFrame) -> Category:
    """The most frequent names that at least five entities use."""
    used: Counter[str] = Counter()
    sides: tuple[tuple[Kind, pl.DataFrame], ...] = (("job", jobs), ("freelancer", freelancers))
    for kind, records in sides:
        items = _items(kind, records)
        pairs = {(row, fold(name)) for row, name in items.iter_rows()}
        used.update(name for _, name in pairs)
    ranked = sorted((-n, name) for name, n in used.items() if n >= DF_MIN)
    return Category(tuple(name for _, name in ranked[:OWN_MAX]))
