"""Facet parameters of a policy: what the query side of a facet may be told at match time.

Everything here shapes query vectors only. What shapes stored corpus vectors (knots, steps,
shrinkage, vocabularies) belongs to the generation, because changing it means encoding every row
again.
"""

from __future__ import annotations

import math

import msgspec

from matchwright.engine.errors import InvalidArgument

EXPERIENCE_LEVELS = ("ENTRY", "INTERMEDIATE", "EXPERT")
"""Order of rows and columns in ``FacetParams.experience_utility``."""

Row = tuple[float, float, float]


class FacetParams(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Query-side parameters of the facets, with the shipped defaults.

    Attributes:
        last_active_half_life_days: a freelancer's recency is worth one half this many days after
            the plateau. Choose about the time in which half of your freelancers stop answering.
        posted_half_life_days: the same for the day a job was posted.
        recency_plateau_days: nothing is lost for this many days, so that touching a profile daily
            earns nothing.
        rate_tolerance: a rate is worth 1 up to the budget's top and falls linearly to 0 at
            (1 + rate_tolerance) times it. 1.0 means at twice the top.
        experience_utility: worth of a freelancer's level (column) for a job's level (row), both in
            the order ENTRY, INTERMEDIATE, EXPERT; each in 0..1.
    """

    last_active_half_life_days: float = 60.0
    posted_half_life_days: float = 14.0
    recency_plateau_days: int = 7
    rate_tolerance: float = 1.0
    experience_utility: tuple[Row, Row, Row] = (
        (1.0, 0.9, 0.7),
        (0.4, 1.0, 0.9),
        (0.1, 0.5, 1.0),
    )

    def __post_init__(self) -> None:
        _within("last_active_half_life_days", self.last_active_half_life_days, 0.5, 36_500.0)
        _within("posted_half_life_days", self.posted_half_life_days, 0.5, 36_500.0)
        _within("recency_plateau_days", self.recency_plateau_days, 0, 3_650)
        _within("rate_tolerance", self.rate_tolerance, 0.01, 100.0)
        for row in self.experience_utility:
            for value in row:
                _within("experience_utility", value, 0.0, 1.0)


def _within(field: str, value: float, low: float, high: float) -> None:
    """Refuse a parameter that is not a finite number in low..high."""
    if not (math.isfinite(value) and low <= value <= high):
        raise InvalidArgument(
            f"facet parameter {field} is {value!r}; expected a number in {low:g}..{high:g}",
            field=field,
        )
