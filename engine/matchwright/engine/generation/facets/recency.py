"""Recency: a freelancer's last activity, the day a job was posted.

Form: with age = as_of - day: 1 up to the plateau P (7 days), then h / (h + age - P), h being the
    policy's half-life. Days after as_of count as today.
Basis: hats on 16 knots of absolute days on the corpus side, set when the generation is fitted. The
    query side holds the decay at each knot for its own as_of, so that nothing is encoded again as
    days pass. Everything since the knot at or before as_of - P counts as 1: the plateau ends on a
    knot, so that neither touching a profile daily nor a date in the future earns anything.
Largest error (always too much): G / (h + G) in the two knot gaps around the plateau's edge, G days
    being the wider one: 7 until two weeks after the fit, 14 until a month after, then 28 and 56, so
    refit monthly. Elsewhere 0.03.
Width: 16.
"""

from __future__ import annotations

from functools import lru_cache
from typing import ClassVar

import msgspec
import numpy as np

from matchwright.engine.generation.facets.base import (
    OTHER,
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

WIDTH = 16
OFFSETS = (-730, -365, -180, -90, -60, -42, -28, -21, -14, -7, 0, 7, 14, 28, 56, 112)
"""Knots relative to the day of the fit."""
_FIELD: dict[Kind, str] = {"freelancer": "last_active", "job": "posted"}


class Recency(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Knots in days since 1970-01-01, ascending."""

    knots: tuple[int, ...]

    name: ClassVar[str] = "recency"
    width: ClassVar[int] = WIDTH

    def corpus(self, kind: Kind, records: Table) -> Block:
        """Hats at the day."""
        day, known = records.integers(_FIELD[kind])
        return Block(hats(day, np.array(self.knots)), known)

    def query(self, kind: Kind, records: Table, params: FacetParams, as_of: int) -> QueryBlock:
        """The decay at each knot; the same for whoever asks on a day."""
        posted = OTHER[kind] == "job"
        half = params.posted_half_life_days if posted else params.last_active_half_life_days
        decay = _decay(self.knots, half, as_of - params.recency_plateau_days)
        raw = np.tile(decay, (records.height, 1))
        return QueryBlock(raw, np.ones(records.height, dtype=np.bool_), convex_best(raw))

    def reach(self, kind: Kind) -> float:
        return 1.0 / float(np.sqrt(np.float64(WIDTH)))

    def neutral(self, kind: Kind) -> Float64:
        return even(WIDTH, 1.0)


@lru_cache(maxsize=256)
def _decay(days: tuple[int, ...], half_life: float, edge: int) -> Float64:
    """Raw (W,): worth of each day when all since the knot at or before ``edge`` are worth 1."""
    knots, half = np.array(days), np.float64(half_life)
    plateau = knots[max(int(np.searchsorted(knots, edge, side="right")) - 1, 0)]
    past = np.maximum(edge - knots, 0).astype(np.float64)
    return to_grid(np.where(knots >= plateau, 1.0, half / (half + past)))


def fit(as_of: int) -> Recency:
    """Knots around the day of the fit."""
    return Recency(tuple(as_of + offset for offset in OFFSETS))
