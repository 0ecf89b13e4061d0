"""Availability.

Form: min(1, hours offered / hours asked), per week. Asking for less than 5 hours counts as 5.
Basis: hats on 8 knots in hours on the corpus side; the utility at each knot on the query side.
Largest error: by interpolation 0.18 (7 hours asked and offered), at most 0.11 where 20 or more are
    asked, none when both the hours asked and offered are knots (10, 20, 30, 40, ...).
Width: 8.
"""

from __future__ import annotations

from typing import ClassVar

import msgspec
import numpy as np

from matchwright.engine.generation.facets.base import (
    Block,
    QueryBlock,
    convex_best,
    even,
)
from matchwright.engine.generation.fixed import hats, to_grid
from matchwright.engine.generation.params import FacetParams
from matchwright.engine.records import Kind
from matchwright.engine.table import Table
from matchwright.kernels.types import Float64

WIDTH = 8
_KNOTS = np.array([0, 5, 10, 15, 20, 30, 40, 60], dtype=np.int64)
_ASKED_MIN = 5


class Availability(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Nothing is fitted."""

    name: ClassVar[str] = "availability"
    width: ClassVar[int] = WIDTH

    def corpus(self, kind: Kind, records: Table) -> Block:
        """Hats at the hours offered (freelancer) or asked (job)."""
        hours, known = records.integers("weekly_hours")
        if kind == "job":
            hours = np.maximum(hours, _ASKED_MIN)
        return Block(hats(hours, _KNOTS), known)

    def query(self, kind: Kind, records: Table, params: FacetParams, as_of: int) -> QueryBlock:
        """Utility at each knot."""
        hours, known = records.integers("weekly_hours")
        own = hours[:, None].astype(np.float64)
        if kind == "job":
            share = _KNOTS / np.maximum(own, _ASKED_MIN)
        else:
            share = own / np.maximum(_KNOTS, _ASKED_MIN)
        raw = to_grid(np.minimum(share, 1.0))
        return QueryBlock(raw, known, convex_best(raw))

    def reach(self, kind: Kind) -> float:
        return 1.0 / float(np.sqrt(np.float64(WIDTH)))

    def neutral(self, kind: Kind) -> Float64:
        return even(WIDTH, 1.0)
