"""From rotated blocks to integers: stored rows, two-limb queries, and what the grids cost.

::

    corpus:  x = clip(rint(v / s_b), -127, 127)                int8
    query:   u = concat_b((w_b * s_b) * v_b);  t = max|u| / 16255;  q = rint(u / t)   int16
             q = 128 h + l,  h = (q + 64) >> 7,  |h| <= 127,  -64 <= l <= 63
             nothing known or all zero: q = 0, t = 1
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from matchwright.engine.errors import InvalidArgument, unknown_key
from matchwright.engine.generation.fixed import GRID
from matchwright.kernels.types import Q_ABS_MAX, Bool, Float64, Int8, Int16, Int32

X_ABS_MAX = 127
WEIGHT_MIN, WEIGHT_MAX = 1e-6, 1e6
"""Of a weight that is not 0: so that no query underflows."""


@dataclass(frozen=True, slots=True, eq=False)
class QueryVectors:
    """Queries before weights: they depend on the record, the policy's facet parameters and as_of.

    Attributes:
        v_qd: float64 (Q, D), rotated blocks in units of 1 (multiples of 2**-20); 0 where not known.
        known_qb: bool (Q, B).
        best_qb: float64 (Q, B), the most that each facet could give; 0 where not known.
    """

    v_qd: Float64
    known_qb: Bool
    best_qb: Float64


@dataclass(frozen=True, slots=True, eq=False)
class Quantised:
    """Queries as kernels take them.

    Attributes:
        q_qd: int16 (Q, D), |q| <= 16,255.
        t_q: float64 (Q,), score = points * t.
        resolution_q: int32 (Q,), the least number of grid levels that a weighted, known facet
            keeps: max|q| over its block, the minimum over facets; 16,255 where there is none.
        attainable_q: float64 (Q,), score of the best conceivable match.
    """

    q_qd: Int16
    t_q: Float64
    resolution_q: Int32
    attainable_q: Float64


def quantise_rows(v_nw: Float64, step: float) -> Int8:
    """x of one facet's rows, (N, W), from rotated grid integers."""
    scaled = np.rint(v_nw / (step * GRID))
    return np.clip(scaled, -X_ABS_MAX, X_ABS_MAX).astype(np.int8)


def check_weights(names: Sequence[str], weights: Mapping[str, float]) -> Float64:
    """float64 (B,) weights in the order of ``names``; a facet that is not named weighs 0.

    Raises:
        UnknownKey: a weight for a facet that does not exist.
        InvalidArgument: a weight is out of range or not finite, or all are zero.
    """
    for name, weight in weights.items():
        if name not in names:
            raise unknown_key("facet", name, names, "weights")
        if weight != 0 and not (math.isfinite(weight) and WEIGHT_MIN <= weight <= WEIGHT_MAX):
            raise InvalidArgument(
                f"weight of facet {name} is {weight!r}; expected 0 or a number in "
                f"{WEIGHT_MIN:g}..{WEIGHT_MAX:,.0f}",
                field=name,
            )
    found = np.array([weights.get(name, 0.0) for name in names], dtype=np.float64)
    if not found.any():
        raise InvalidArgument("all weights are zero; give at least one facet a weight")
    return found


def quantise_queries(
    queries: QueryVectors, steps_b: Sequence[float], weights_b: Float64, offsets: Sequence[int]
) -> Quantised:
    """q, t, resolution and attainable.

    Args:
        steps_b: steps of the corpus kind, one for each facet.
        weights_b: float64 (B,).
        offsets: B + 1 boundaries of the facets' blocks.
    """
    u_qd, t_q, q_qd = _on_grid(queries, steps_b, weights_b, offsets)
    # A running sum, so that the order of additions is that of the facets.
    attainable_q = np.cumsum(weights_b * queries.best_qb, axis=1)[:, -1]
    return Quantised(q_qd.astype(np.int16), t_q, _resolution(u_qd, q_qd, offsets), attainable_q)


def quantise_plainly(
    queries: QueryVectors, steps_b: Sequence[float], weights_b: Float64, offsets: Sequence[int]
) -> tuple[Int16, Float64]:
    """q and t of ``quantise_queries`` alone: half the time."""
    _, t_q, q_qd = _on_grid(queries, steps_b, weights_b, offsets)
    return q_qd.astype(np.int16), t_q


def _on_grid(
    queries: QueryVectors, steps_b: Sequence[float], weights_b: Float64, offsets: Sequence[int]
) -> tuple[Float64, Float64, Float64]:
    """u, t, and q as float64."""
    scale_b = weights_b * np.asarray(steps_b)
    u_qd = queries.v_qd * np.repeat(scale_b, np.diff(offsets))
    largest_q = np.maximum(u_qd.max(axis=1, initial=0.0), -u_qd.min(axis=1, initial=0.0))
    t_q = largest_q / Q_ABS_MAX
    t_q[t_q == 0.0] = 1.0
    q_qd = u_qd / t_q[:, None]
    return u_qd, t_q, np.rint(q_qd, out=q_qd)


def _resolution(u_qd: Float64, q_qd: Float64, offsets: Sequence[int]) -> Int32:
    starts = np.asarray(offsets[:-1])
    asked_qb = np.logical_or.reduceat(u_qd != 0.0, starts, axis=1)
    kept_qb = np.maximum.reduceat(np.abs(q_qd), starts, axis=1)
    levels_q: Int32 = np.where(asked_qb, kept_qb, float(Q_ABS_MAX)).min(axis=1).astype(np.int32)
    return levels_q


def decompose(q_qd: Int16) -> tuple[Int8, Int8]:
    """The limbs h and l of q = 128 h + l, both int8, of the shape of q."""
    wide = q_qd.astype(np.int32)
    high = (wide + 64) >> 7
    return high.astype(np.int8), (wide - 128 * high).astype(np.int8)
