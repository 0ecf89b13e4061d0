"""Experience level.

Form: the policy's 3 x 3 matrix: worth of a freelancer's level for a job's level.
Basis: one-hot level on the corpus side; the matrix's row (a job asks) or column (a freelancer asks)
    on the query side.
Largest error: none before quantisation.
Width: 8 (five dimensions are spare; widths are powers of two).
"""

from __future__ import annotations

from typing import ClassVar

import msgspec
import numpy as np

from matchwright.engine.generation.facets.base import Block, QueryBlock, convex_best
from matchwright.engine.generation.fixed import GRID, to_grid
from matchwright.engine.generation.params import EXPERIENCE_LEVELS, FacetParams
from matchwright.engine.records import Kind
from matchwright.engine.table import Table
from matchwright.kernels.types import Bool, Float64, Int64

WIDTH = 8
_CODE = {name: code for code, name in enumerate(EXPERIENCE_LEVELS)}


class Experience(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Nothing is fitted."""

    name: ClassVar[str] = "experience"
    width: ClassVar[int] = WIDTH

    def corpus(self, kind: Kind, records: Table) -> Block:
        """One-hot level."""
        level, known = _level(records)
        raw = np.zeros((len(level), WIDTH))
        raw[np.arange(len(level)), level] = GRID
        return Block(raw, known)

    def query(self, kind: Kind, records: Table, params: FacetParams, as_of: int) -> QueryBlock:
        """A row or a column of the utility matrix."""
        level, known = _level(records)
        asked_by_own = to_grid(np.array(params.experience_utility))
        raw = np.zeros((len(level), WIDTH))
        raw[:, : len(_CODE)] = (asked_by_own if kind == "job" else asked_by_own.T)[level]
        return QueryBlock(raw, known, convex_best(raw))

    def reach(self, kind: Kind) -> float:
        return 1.0 / float(np.sqrt(np.float64(WIDTH)))

    def neutral(self, kind: Kind) -> Float64:
        raw = np.zeros(WIDTH)
        raw[: len(_CODE)] = to_grid(np.array([0.25, 0.5, 0.25]))
        return raw


def _level(records: Table) -> tuple[Int64, Bool]:
    codes = [_CODE.get(name, -1) for name in records.values("experience_level")]
    level = np.array(codes, dtype=np.int64)
    return np.maximum(level, 0), level >= 0
