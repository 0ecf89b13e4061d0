"""Splitting a query so that its first limb's products are exact in float32 or int8.

For a shift s a query is ``q = 2**s first + rest`` with ``-2**(s-1) <= rest < 2**(s-1)``. Sums of
integers are exact in float32, in any order, while sum |first x| < 2**24. That holds for s = 7 up to
D = 1,040; most queries allow a smaller s, and then what the first limb leaves open is narrow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from matchwright.kernels.types import D_MAX, Int8, Int16, Int32, Int64, Segment

SHIFT_MAX = 7
EXACT_FLOAT32 = 1 << 24
X_MAX = 127


def limbs(q_qd: Int16) -> tuple[Int8, Int8]:
    """(high, low) int8 limbs with q = 128 high + low, |high| <= 127, -64 <= low <= 63.

    |q| <= 127 * 128 - 1 leaves room for 64 more in int16.
    """
    q_qd = q_qd.astype(np.int16, copy=False)
    high = (q_qd + 64) >> 7
    return high.astype(np.int8), (q_qd - (high << 7)).astype(np.int8)


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """Queries in two limbs.

    Attributes:
        first_qd: the first limb, float32 or int8 (Q, D), integers.
        rest_qd: int8 (Q, D).
        shift_q: int32 (Q,).
        slack_q: int64 (Q,), largest |rest . x| of any row.
    """

    first_qd: NDArray[Any]
    rest_qd: Int8
    shift_q: Int32
    slack_q: Int64


def norm2_max(d: int) -> int:
    """The largest squared norm that a row of D entries can have."""
    return X_MAX * X_MAX * d


def norm2_of(segment: Segment, d: int) -> int:
    """An upper bound of the squared norms of a segment's rows of D entries: its own, if stored."""
    stored = segment.index.get("x.norm2")
    return norm2_max(d) if stored is None else int(stored[0])


def split(q_qd: Int16, norm2: int, dtype: Any) -> Split:
    """Split queries at the smallest shift whose first limb is exact.

    Args:
        q_qd: int16 (Q, D).
        norm2: largest squared norm of a row of x.
        dtype: of the first limb: float32, or int8 (then the shift is 7).
    """
    q = q_qd.shape[0]
    if dtype == np.int8:
        high, low = limbs(q_qd)
        return Split(high, low, np.full(q, SHIFT_MAX, np.int32), _largest(low, norm2))
    shift_q = np.full(q, SHIFT_MAX, dtype=np.int32)
    for s in range(SHIFT_MAX - 1, -1, -1):
        shift_q[_largest(_first(q_qd, s), norm2) < EXACT_FLOAT32] = s
    first = _first(q_qd, shift_q[:, None])
    rest = q_qd - (first << shift_q[:, None])
    return Split(first.astype(dtype), rest.astype(np.int8), shift_q, _largest(rest, norm2))


def _first(q_qd: Int16, shift: Any) -> Int32:
    half = (1 << np.asarray(shift)) >> 1
    first: Int32 = (q_qd.astype(np.int32) + half) >> shift
    return first


def _largest(limb_qd: NDArray[Any], norm2: int) -> Int64:
    """int64 (Q,): an upper bound of sum |limb x| over rows (Hoelder, Cauchy and Schwarz)."""
    wide = np.abs(limb_qd.astype(np.float64))
    by_sum = X_MAX * wide.sum(axis=1)
    by_norm = np.floor(np.sqrt(np.square(wide).sum(axis=1) * norm2)) + 1
    largest: Int64 = np.minimum(by_sum, by_norm).astype(np.int64)
    return largest


def exact_halves(q_qd: Int16, dtype: Any) -> NDArray[Any]:
    """Both limbs at shift 7, one after the other: (2 Q, D) of ``dtype``."""
    return np.concatenate(limbs(q_qd)).astype(dtype)


assert X_MAX * X_MAX * D_MAX < EXACT_FLOAT32
