"""How the places of a run are shared out among the people (or jobs) that could be shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from matchwright.engine.runs.report.histogram import gini
from matchwright.kernels.types import Bool, Int64, UInt64

LORENZ_AT = (*range(100), 99.5, 99.9, 100)
"""Percentiles of people at which the Lorenz curve is given."""


@dataclass(frozen=True)
class Exposure:
    """Concentration of what is shown, over all that could be shown, those never shown included.

    Attributes:
        available: who could be shown.
        shown: of those, who was shown at least once.
        places: rows of the run in which one of them is shown.
        elsewhere: rows that show somebody else (unknown to the figures' epoch, say).
        gini: over ``available``.
        top_count, top_share: the most shown 1% (rounded up) and their share of the places.
        half_count: how many of the most shown together hold half of the places.
        most: places of the one most shown.
        lorenz: (percent of people, least shown first; percent of places) pairs.
        times: (least, most, people) of each class of "shown so many times".
    """

    available: int
    shown: int
    places: int
    elsewhere: int
    gini: float
    top_count: int
    top_share: float
    half_count: int
    most: int
    lorenz: tuple[tuple[float, float], ...]
    times: tuple[tuple[int, int, int], ...]


def places_of(key_n: UInt64, counted: tuple[UInt64, Int64]) -> Int64:
    """How often each of ``key_n`` was counted, int64 (N,)."""
    keys, counts = counted
    if not keys.size:
        return np.zeros(key_n.size, dtype=np.int64)
    at = np.minimum(np.searchsorted(keys, key_n), keys.size - 1)
    found: Int64 = np.where(keys[at] == key_n, counts[at], 0)
    return found


def exposure(place_n: Int64, rows: int) -> Exposure:
    """Figures of concentration.

    Args:
        place_n: int64 (N,), places of each one that could be shown, zeros included.
        rows: of the run's files; what ``place_n`` does not hold is elsewhere.
    """
    ranked = np.sort(place_n)
    total = int(ranked.sum())
    top = -(-ranked.size // 100)
    falling = np.cumsum(ranked[::-1])
    return Exposure(
        available=int(ranked.size),
        shown=int(np.count_nonzero(ranked)),
        places=total,
        elsewhere=rows - total,
        gini=gini(ranked),
        top_count=top,
        top_share=float(falling[top - 1] / total) if total else 0.0,
        half_count=int(np.searchsorted(falling, total / 2) + 1) if total else 0,
        most=int(ranked[-1]) if ranked.size else 0,
        lorenz=_lorenz(ranked),
        times=_times(ranked),
    )


def _lorenz(ranked: Int64) -> tuple[tuple[float, float], ...]:
    total = int(ranked.sum())
    if not total:
        return ()
    rising = np.concatenate([[0], np.cumsum(ranked)])
    people = np.array(LORENZ_AT, dtype=np.float64)
    share = np.interp(people / 100 * ranked.size, np.arange(ranked.size + 1), rising) / total
    return tuple(zip(people.tolist(), (share * 100).tolist(), strict=True))


def _times(ranked: Int64) -> tuple[tuple[int, int, int], ...]:
    """Classes 0, 1, 2..3, 4..7, ...: each twice as wide as the one before."""
    if not ranked.size:
        return ()
    classes = [(0, 0), (1, 1)]
    while classes[-1][1] < ranked[-1]:
        classes.append((classes[-1][1] + 1, 2 * classes[-1][1] + 1))
    edges = np.array([low for low, _ in classes] + [classes[-1][1] + 1])
    people = np.diff(np.searchsorted(ranked, edges)).tolist()
    return tuple((low, high, n) for (low, high), n in zip(classes, people, strict=True))


@dataclass(frozen=True)
class Group:
    """How one group of people fares.

    Attributes:
        people, shown, places: its size, how many were shown at all, and how often in all.
    """

    name: str
    people: int
    shown: int
    places: int


@dataclass(frozen=True)
class Newcomers:
    """How newcomers fare beside the others.

    Attributes:
        sampled: people that were looked at; ``of`` is how many are available.
        days: who joined within so many days of the run's day counts as new.
        joined_unknown, reviews_unknown: people who do not tell.
        groups: joined lately; no reviews; newcomers (either); established; not known.
    """

    sampled: int
    of: int
    days: int
    joined_unknown: int
    reviews_unknown: int
    groups: tuple[Group, ...]


def newcomers(
    joined: Sequence[int | None],
    reviews: Sequence[int | None],
    place_n: Int64,
    *,
    as_of: int,
    days: int,
    of: int,
) -> Newcomers:
    """Figures of newcomers.

    Args:
        joined: day of joining of each person looked at, None where not known.
        reviews: number of reviews, likewise.
        place_n: int64 (N,), places of each.
        as_of: the run's day.
        days: what counts as lately.
        of: how many people there are in all.
    """
    missing = -1
    day_n = np.array([missing if day is None else day for day in joined], dtype=np.int64)
    review_n = np.array([missing if n is None else n for n in reviews], dtype=np.int64)
    lately = (day_n != missing) & (day_n >= as_of - days)
    unrated = review_n == 0
    new = lately | unrated
    unknown = ~new & ((day_n == missing) | (review_n == missing))
    masks = {
        "joined lately": lately,
        "no reviews yet": unrated,
        "newcomers": new,
        "established": ~new & ~unknown,
        "not known": unknown,
    }
    return Newcomers(
        sampled=len(joined),
        of=of,
        days=days,
        joined_unknown=int(np.count_nonzero(day_n == missing)),
        reviews_unknown=int(np.count_nonzero(review_n == missing)),
        groups=tuple(_group(name, mask, place_n) for name, mask in masks.items()),
    )


def _group(name: str, mask: Bool, place_n: Int64) -> Group:
    places = place_n[mask]
    return Group(name, int(places.size), int(np.count_nonzero(places)), int(places.sum()))
