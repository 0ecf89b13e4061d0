"""Track record.

Form: rating, shrunk by the number of reviews, (n * rating + m * prior) / (n + m) with m = 8,
    blended 70 to 30 with the success rate shrunk in the same way. Jobs stand with their client's
    rating alone.
Basis: hats on 16 even knots over 0..1; the query's utility is the value itself.
Largest error: none by interpolation (the utility is linear); 2**-16 by rounding the value.
Width: 16.

Nobody knows anything of somebody without reviews, rating and success rate: unknown. With 0 reviews
the value is the prior. A rating without a number of reviews counts as one review.
"""

from __future__ import annotations

from typing import ClassVar

import msgspec
import numpy as np
import polars as pl

from matchwright.engine.generation.facets.base import Block, QueryBlock
from matchwright.engine.generation.fixed import hats, to_grid
from matchwright.engine.generation.params import FacetParams
from matchwright.engine.records import Kind
from matchwright.engine.table import FrameTable, Table
from matchwright.kernels.types import Bool, Float64, Int64

WIDTH = 16
SHRINK_REVIEWS = 8
"""m: with so many reviews, the rating and the prior count the same."""
SUCCESS_SHARE = 0.3
PEOPLE_MIN = 5
"""With fewer who have any, the standard priors stay."""
_SCALE = 15 * 2**12
"""Integer units of a value of 1: the 16 knots fall on whole units."""
_KNOTS = np.arange(WIDTH, dtype=np.int64) * 2**12
_VALUES = to_grid(_KNOTS / np.float64(_SCALE))


class Track(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Priors in thousandths: mean rating / 5 and mean success rate of those who have any."""

    freelancer_rating: int = 930
    freelancer_success: int = 900
    client_rating: int = 930

    name: ClassVar[str] = "track"
    width: ClassVar[int] = WIDTH

    def corpus(self, kind: Kind, records: Table) -> Block:
        """Hats at the shrunk value."""
        value, known = self._value(kind, records)
        return Block(hats(np.rint(value * _SCALE).astype(np.int64), _KNOTS), known)

    def query(self, kind: Kind, records: Table, params: FacetParams, as_of: int) -> QueryBlock:
        """The value at each knot, for whoever asks."""
        raw = np.tile(_VALUES, (records.height, 1))
        known = np.ones(records.height, dtype=np.bool_)
        return QueryBlock(raw, known, np.ones(records.height))

    def _value(self, kind: Kind, records: Table) -> tuple[Float64, Bool]:
        prefix = "client_" if kind == "job" else ""
        reviews, counted = records.integers(f"{prefix}reviews")
        rating, rated = records.integers(f"{prefix}rating_milli")
        n = np.where(counted, reviews, 1)
        if kind == "job":
            value = _shrunk(n, rating / 5_000.0, rated, self.client_rating)
            return value, counted | rated
        success, judged = records.integers("success_permille")
        value = _shrunk(n, rating / 5_000.0, rated, self.freelancer_rating)
        done = _shrunk(n, success / 1_000.0, judged, self.freelancer_success)
        blend = (1.0 - SUCCESS_SHARE) * value + SUCCESS_SHARE * done
        return blend, counted | rated | judged

    def reach(self, kind: Kind) -> float:
        return 1.0 / float(np.sqrt(np.float64(WIDTH)))

    def neutral(self, kind: Kind) -> Float64:
        prior = self.client_rating if kind == "job" else self.freelancer_rating
        value = np.array([np.rint(prior / 1_000.0 * _SCALE)], dtype=np.int64)
        return np.asarray(hats(value, _KNOTS)[0])


def _shrunk(n: Int64, value: Float64, known: Bool, prior_permille: int) -> Float64:
    weight = np.where(known, np.maximum(n, 0), 0).astype(np.float64)
    prior = prior_permille / 1_000.0
    return np.asarray((weight * value + SHRINK_REVIEWS * prior) / (weight + SHRINK_REVIEWS))


def fit(jobs: pl.DataFrame, freelancers: pl.DataFrame) -> Track:
    """Priors: means over those who have reviews, if they are enough to hide each of them."""
    standard = Track()
    people, asked = FrameTable(freelancers), FrameTable(jobs)
    return Track(
        _prior(people, "rating_milli", "reviews", 5_000, standard.freelancer_rating),
        _prior(people, "success_permille", "reviews", 1_000, standard.freelancer_success),
        _prior(asked, "client_rating_milli", "client_reviews", 5_000, standard.client_rating),
    )


def _prior(records: FrameTable, name: str, count: str, scale: int, standard: int) -> int:
    value, known = records.integers(name)
    reviews, counted = records.integers(count)
    seen = value[known & (~counted | (reviews > 0))]
    if len(seen) < PEOPLE_MIN:
        return standard
    return int(np.rint(seen.sum() * 1_000 / (len(seen) * scale)))
