"""Rate against budget.

Form: 1 up to the budget's top, then falling linearly to 0 at (1 + rate_tolerance) times it. Nothing
    is earned by being cheaper. A job without an hourly budget, or a freelancer without a rate, is
    unknown.
Basis: the corpus side is linear interpolation (hats) on 16 knots in cents; the query side is the
    utility at each knot. For a job that asks, the knot at or above its top still counts as within
    the budget; for a freelancer who asks, the knot at or below their rate does. So no rate within
    the budget gets less than a lower one.
Largest error: a rate between the top and the next knot gets up to (r - 1) / rate_tolerance too
    much, r being the ratio of the two knots (1.2 to 1.5 between the standard knots from $5 to
    $150); beyond, up to (r - 1) / (4 * rate_tolerance) by interpolation.
Width: 16.
"""

from __future__ import annotations

import itertools
from typing import ClassVar

import msgspec
import numpy as np
import polars as pl

from matchwright.engine.generation.facets.base import (
    Block,
    QueryBlock,
    convex_best,
    even,
)
from matchwright.engine.generation.fixed import hats, to_grid
from matchwright.engine.generation.params import FacetParams
from matchwright.engine.records import Kind
from matchwright.engine.table import FrameTable, Table
from matchwright.kernels.types import Bool, Float64, Int64

WIDTH = 16
STANDARD = (
    300, 500, 750, 1_000, 1_500, 2_000, 2_500, 3_000, 3_500, 4_000, 5_000, 6_000, 7_500, 10_000,
    15_000, 25_000,
)  # fmt: skip
_SHARES = np.linspace(0.005, 0.995, WIDTH)
_CENTS_MAX = 2**31
DF_MIN = 5
"""A sum that fewer entities name is not learnt as it stands."""


class Rate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Knots in cents per hour, ascending, the first above 0."""

    knots: tuple[int, ...] = STANDARD

    name: ClassVar[str] = "rate"
    width: ClassVar[int] = WIDTH

    def corpus(self, kind: Kind, records: Table) -> Block:
        """Hats at a freelancer's rate, or at the top of a job's budget."""
        cents, known = _cents(kind, records)
        return Block(hats(cents, np.array(self.knots)), known)

    def query(self, kind: Kind, records: Table, params: FacetParams, as_of: int) -> QueryBlock:
        """Utility at each knot."""
        cents, known = _cents(kind, records)
        knots = np.array(self.knots)
        own = cents[:, None]
        if kind == "job":
            within = knots <= knots[np.minimum(np.searchsorted(knots, cents), WIDTH - 1)][:, None]
            top, rate = np.maximum(own, 1), knots
        else:
            below = np.maximum(np.searchsorted(knots, cents, side="right") - 1, 0)
            within = knots >= knots[below][:, None]
            top, rate = knots[None, :], own
        over = (rate - top) / (top * np.float64(params.rate_tolerance))
        raw = to_grid(np.where(within, 1.0, np.clip(1.0 - over, 0.0, 1.0)))
        return QueryBlock(raw, known, convex_best(raw))

    def reach(self, kind: Kind) -> float:
        return 1.0 / float(np.sqrt(np.float64(WIDTH)))

    def neutral(self, kind: Kind) -> Float64:
        return even(WIDTH, 1.0)


def _cents(kind: Kind, records: Table) -> tuple[Int64, Bool]:
    cents, known = records.integers("rate_max_cents" if kind == "job" else "rate_cents")
    return np.clip(cents, 0, _CENTS_MAX), known & (cents > 0 if kind == "job" else cents >= 0)


def fit(jobs: pl.DataFrame, freelancers: pl.DataFrame) -> Rate:
    """Knots at quantiles of rates and tops, so that they lie on the sums that people name.

    A sum that fewer than five entities name is rounded: a generation outlives who it was fitted on.
    """
    sides: tuple[tuple[Kind, pl.DataFrame], ...] = (("job", jobs), ("freelancer", freelancers))
    found = []
    for kind, records in sides:
        cents, known = _cents(kind, FrameTable(records))
        found.append(cents[known & (cents > 0)])
    pooled = np.concatenate(found)
    if len(np.unique(pooled)) < 2:
        return Rate()
    quantiles = np.quantile(pooled, _SHARES, method="inverted_cdf").astype(np.int64)
    named, count = np.unique(pooled, return_counts=True)
    shared = np.isin(quantiles, named[count >= DF_MIN])
    return Rate(tuple(_filled(np.unique(np.where(shared, quantiles, _round(quantiles))).tolist())))


def _round(cents: Int64) -> Int64:
    """To two significant digits, and to ten cents at least."""
    digits = np.floor(np.log10(np.maximum(cents, 1).astype(np.float64)))
    unit = np.maximum(10.0 ** (digits - 1), 10.0)
    return np.asarray(np.maximum(np.rint(cents / unit) * unit, 1), dtype=np.int64)


def _filled(knots: list[int]) -> list[int]:
    """Adds geometric midpoints, and ends further out, until there are enough knots."""
    while len(knots) < WIDTH:
        ratios = [b / a if b - a > 1 else 0.0 for a, b in itertools.pairwise(knots)]
        widest = int(np.argmax(ratios)) if ratios else 0
        if ratios and ratios[widest] > 1.2:
            middle = int(np.rint(np.sqrt(np.float64(knots[widest]) * knots[widest + 1])))
            middle = min(max(middle, knots[widest] + 1), knots[widest + 1] - 1)
            knots.insert(widest + 1, middle)
        else:
            knots.append(knots[-1] + max(knots[-1] // 4, 1))
    return knots
