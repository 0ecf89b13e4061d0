"""How likely a client looks at a position: the examination curve, estimated from what was logged.

A match at position 20 that nobody opened was mostly not seen. Under the position-based model,
P(viewed) = examined(position) * relevant(pair), an outcome counts 1 / examined(position), and sums
over many decisions are what they would be had everything been seen (Joachims et al., WSDM 2017).
The curve comes, in this order of trust, from

- ``randomised``: places that were drawn by chance (swaps, shuffles), with their propensities;
- ``harvested``: the same pair shown at different places in different decisions (Agarwal et al.,
  WSDM 2019), which takes its relevance for constant;
- ``em``: expectation-maximisation with a model of relevance over features (Wang et al., WSDM
  2018), which takes for granted that features and positions can be told apart.

The first two compare positions in pairs: with A views at j and B at k from the same pairs, A out of
A + B is a draw with chance p_j / (p_j + p_k), a Bradley-Terry model, fitted by its MM iterations.
Where few views compare a position, the power law that fits all of them best speaks for it, with
the voice of ``PRIOR_VIEWS`` views.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from matchwright.engine.errors import InvalidData
from matchwright.engine.rerank.decisions_read import Logged
from matchwright.kernels.types import Bool, Float64, Int64, UInt64

WEIGHT_MAX = 20.0
EVENTS_MIN = 100
"""Fewer views than this, in what a way rests on, and the way is not taken."""
PRIOR_VIEWS = 30.0
EM_ROUNDS_MAX = 30
_EM_SETTLED = 0.005
_OWN = 10
_GROWTH = 1.25
_MM_ROUNDS = 500

Regress = Callable[[Any, Float64], Float64]
"""(features, targets in 0..1) -> fitted probabilities."""


class Method(enum.StrEnum):
    """Where a curve comes from."""

    AUTO = "auto"
    RANDOMISED = "randomised"
    HARVESTED = "harvested"
    EM = "em"
    NONE = "none"


@dataclass(frozen=True, eq=False)
class Curve:
    """P(examined) by position, relative to the first.

    Attributes:
        method: where it comes from; ``NONE`` weighs all positions alike.
        first: int64 (B,), the first position of each bucket, ascending from 1.
        examined: float64 (B,), not rising, 1 at the first.
        weight_max: weights are clipped here.
        events: views that it rests on.
        note: what was not possible, for the record.
    """

    method: Method
    first: Int64
    examined: Float64
    weight_max: float
    events: int
    note: str = ""

    def weight(self, position: Any) -> Float64:
        """float64 (N,): what an outcome at each position counts."""
        bucket = np.searchsorted(self.first, position, side="right") - 1
        weight: Float64 = np.minimum(1.0 / np.maximum(self.examined, 1e-12), self.weight_max)[
            bucket
        ]
        return weight

    def record(self) -> dict[str, Any]:
        """Plain values, for the training record."""
        return {
            "method": str(self.method),
            "positions_from": self.first.tolist(),
            "examined": [round(float(p), 6) for p in self.examined],
            "weight_max": self.weight_max,
            "views": self.events,
            "note": self.note,
        }


def from_record(told: Mapping[str, Any]) -> Curve:
    """The curve that ``Curve.record`` told of."""
    first, examined = np.array(told["positions_from"]), np.array(told["examined"], np.float64)
    return Curve(Method(told["method"]), first.astype(np.int64), examined,
                 float(told["weight_max"]), int(told["views"]), str(told["note"]))  # fmt: skip


def flat(note: str = "") -> Curve:
    """No correction."""
    return Curve(Method.NONE, np.array([1]), np.array([1.0]), 1.0, 0, note)


def estimate(
    logged: Logged,
    method: Method,
    regress: Regress,
    *,
    known_until: int,
    weight_max: float = WEIGHT_MAX,
) -> Curve:
    """The curve by a named way, or by the most trustworthy one that has enough to go on.

    Args:
        logged: training decisions.
        regress: fits relevance to features, for ``em``.
        known_until: outcomes of this day and later do not count.

    Raises:
        InvalidData: the way that was asked for has too little to go on.
    """
    if method is Method.NONE:
        return flat("asked for")
    rows = logged.shown
    viewed = logged.grade(known_until)[rows] > 0
    position = logged.position[rows]
    first = buckets(int(position.max(initial=1)))
    bucket = np.searchsorted(first, position, side="right") - 1
    tried: list[str] = []
    ways = (Method.RANDOMISED, Method.HARVESTED, Method.EM)
    for way in ways if method is Method.AUTO else (method,):
        if way is Method.EM:
            events = int(viewed.sum())
            curve = _em(bucket, viewed, logged.f_nf[rows], first.size, regress, events)
        else:
            curve, events = _compared(logged, rows, bucket, viewed, first, way)
        if events >= EVENTS_MIN:
            falling = _not_rising(curve, np.bincount(bucket, minlength=first.size))
            return Curve(way, first, falling / falling[0], weight_max, events, "; ".join(tried))
        tried.append(f"{way}: {events} views, {EVENTS_MIN} are needed")
    if method is not Method.AUTO:
        raise InvalidData(
            f"positions cannot be corrected by {tried[0]}; give more decisions, or let "
            "--position-bias auto choose"
        )
    return flat("; ".join(tried))


def buckets(position_max: int) -> Int64:
    """First positions of buckets: ten of one position, then ever wider ones."""
    first = list(range(1, min(position_max, _OWN) + 1))
    width = 1.0
    while first[-1] + int(width) <= position_max and len(first) >= _OWN:
        width *= _GROWTH
        first.append(first[-1] + max(1, int(width)))
    return np.array([at for at in first if at <= position_max], dtype=np.int64)


def _compared(
    logged: Logged, rows: Bool, bucket: Int64, viewed: Bool, first: Int64, way: Method
) -> tuple[Float64, int]:
    """A curve from pairs of positions that had the same pairs, and the views in them."""
    chance = logged.propensity[rows]
    if way is Method.RANDOMISED:
        taken = ~np.isnan(chance)
        unit = logged.decision[rows].astype(np.uint64)
        weight = 1.0 / np.where(taken, chance, 1.0)
    else:
        # Randomised rows are not left out: their places vary for the best of reasons.
        taken = np.ones(bucket.size, dtype=np.bool_)
        unit = logged.pair[rows]
        weight = np.ones(bucket.size)
    return compared(unit[taken], bucket[taken], viewed[taken], weight[taken], first)


def compared(
    unit: UInt64 | Int64, bucket: Int64, viewed: Bool, weight: Float64, first: Int64
) -> tuple[Float64, int]:
    """(curve (B,), views in units that were at two buckets or more).

    A unit's rows could each have been at any of its buckets.
    """
    size = first.size
    _, number = np.unique(unit, return_inverse=True)
    cell, at = np.unique(number.astype(np.int64) * size + bucket, return_inverse=True)
    rate = np.bincount(at, weight * viewed) / np.maximum(np.bincount(at, weight), 1e-300)
    of_unit, of_bucket = cell // size, cell % size
    several = np.bincount(of_unit)[of_unit] > 1
    events = int(np.bincount(at, viewed)[several].sum()) if several.any() else 0
    wins = _wins(of_unit[several], of_bucket[several], rate[several], size)
    law = first.astype(np.float64) ** -power(wins, first)
    # Each bucket meets the first one in games that came out as the law says.
    prior = np.zeros_like(wins)
    prior[0] = PRIOR_VIEWS * law[0] / (law[0] + law)
    prior[:, 0] = PRIOR_VIEWS * law / (law[0] + law)
    np.fill_diagonal(prior, 0.0)
    return bradley_terry(wins + prior), events


def bradley_terry(wins: Float64) -> Float64:
    """float64 (B,): strengths, the largest 1, of the maximum likelihood (Hunter 2004)."""
    games = wins + wins.T
    p = np.full(len(wins), 0.5)
    for _ in range(_MM_ROUNDS):
        below = (games / (p[:, None] + p[None, :])).sum(axis=1)
        new = np.where(below > 0, wins.sum(axis=1) / np.maximum(below, 1e-300), p)
        new = np.maximum(new / max(float(new.max()), 1e-300), 1e-9)
        if np.abs(new - p).max() < 1e-10:
            break
        p = new
    return p


def power(wins: Float64, first: Int64) -> float:
    """The exponent of the law k^-e that fits best, from 0 to 3 in steps of 0.02."""
    steps = np.arange(0.0, 3.01, 0.02)
    log_k = np.log(first)[None, :]
    log_p = -steps[:, None] * log_k
    share = log_p[:, :, None] - np.logaddexp(log_p[:, :, None], log_p[:, None, :])
    return float(steps[int(np.argmax((wins[None] * share).sum(axis=(1, 2))))])


def _wins(unit: Int64, bucket: Int64, rate: Float64, size: int) -> Float64:
    """float64 (size, size): views at j in units that were also at k."""
    wins = np.zeros((size, size))
    starts: Int64 = np.flatnonzero(np.diff(unit, prepend=-1))
    length = np.diff(np.append(starts, unit.size)).astype(np.int64)
    for width in np.unique(length):
        rows = starts[length == width][:, None] + np.arange(width)
        for j in range(int(width)):
            for k in range(int(width)):
                if j != k:
                    np.add.at(wins, (bucket[rows[:, j]], bucket[rows[:, k]]), rate[rows[:, j]])
    return wins


def _em(
    bucket: Int64, viewed: Bool, f_nf: Any, size: int, regress: Regress, events: int
) -> Float64:
    """Regression-EM of the position-based model."""
    examined = 1.0 / np.arange(1, size + 1)
    if events < EVENTS_MIN:
        return examined
    relevant = np.full(bucket.size, max(float(viewed.mean()), 1e-3))
    rows = np.maximum(np.bincount(bucket, minlength=size), 1)
    for _ in range(EM_ROUNDS_MAX):
        seen = examined[bucket]
        unviewed = np.maximum(1.0 - seen * relevant, 1e-9)
        was_seen = np.where(viewed, 1.0, seen * (1.0 - relevant) / unviewed)
        was_relevant = np.where(viewed, 1.0, relevant * (1.0 - seen) / unviewed)
        before, examined = examined, np.bincount(bucket, was_seen, minlength=size) / rows
        examined = np.clip(examined / max(float(examined.max()), 1e-9), 1e-6, 1.0)
        if np.abs(np.log(examined / before)).max() < _EM_SETTLED:
            break
        relevant = np.clip(regress(f_nf, was_relevant), 1e-4, 1.0 - 1e-4)
    return examined


def _not_rising(curve: Float64, rows: Int64) -> Float64:
    """The nearest curve that does not rise (pool adjacent violators), weighed by rows."""
    values: list[float] = []
    weights: list[float] = []
    sizes: list[int] = []
    for value, weight in zip(curve.tolist(), np.maximum(rows, 1).tolist(), strict=True):
        values.append(value)
        weights.append(float(weight))
        sizes.append(1)
        while len(values) > 1 and values[-2] < values[-1]:
            total = weights[-2] + weights[-1]
            values[-2:] = [(values[-2] * weights[-2] + values[-1] * weights[-1]) / total]
            weights[-2:] = [total]
            sizes[-2:] = [sizes[-2] + sizes[-1]]
    return np.repeat(values, sizes)
