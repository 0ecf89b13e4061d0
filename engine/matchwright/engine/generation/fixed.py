"""Fixed point and rotation: the arithmetic that gives the same bytes everywhere.

A block is kept as float64 integers on the grid 2**-20. Only table look-ups, sums of integers,
``/``, ``sqrt`` and ``rint`` touch it. Integer sums below 2**53 do not depend on their order, so
BLAS may take any; the others are correctly rounded by IEEE 754, so no machine and no batch differs.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from matchwright.kernels.types import Float64, Int64

GRID = 2.0**20
"""Steps per unit."""

_UNIT_BITS = 22
"""Bits of an entry before normalisation: squares of 2**9 such entries sum below 2**53."""
_WIDE_UNIT_BITS = 21
"""The same for up to 2**11 entries."""
ODD_MAX = 7
"""Of a width's odd factor: beyond it the blocks of a rotation mix too little."""


def to_grid(value: NDArray[np.float64] | float) -> Float64:
    """The nearest grid integers of real values."""
    return np.asarray(np.rint(np.asarray(value, dtype=np.float64) * GRID))


def ratio(part: NDArray[np.float64], whole: NDArray[np.float64] | float) -> Float64:
    """``part / whole`` on the grid, for integers below 2**33 whose quotient is at most 1."""
    return np.asarray(np.rint(part * GRID / whole))


def hats(value_n: Int64, knots: Int64) -> Float64:
    """Linear interpolation weights on integer knots, on the grid.

    Args:
        value_n: int64 (N,); values beyond the outer knots count as these.
        knots: int64 (W,), strictly ascending, W >= 2, differences below 2**33.

    Returns:
        float64 (N, W), at most two entries of a row are not zero, and a row sums to exactly 1.
    """
    value = np.clip(value_n, knots[0], knots[-1])
    left = np.clip(np.searchsorted(knots, value, side="right") - 1, 0, len(knots) - 2)
    gap = (knots[left + 1] - knots[left]).astype(np.float64)
    right_share = ratio((value - knots[left]).astype(np.float64), gap)
    raw = np.zeros((len(value), len(knots)))
    row = np.arange(len(value))
    raw[row, left] = GRID - right_share
    raw[row, left + 1] = right_share
    return raw


def unit(y_nw: Float64) -> Float64:
    """Rows scaled to length 1, on the grid; rows of zeros stay zero.

    Args:
        y_nw: float64 (N, W), W at most 2**11: integers below 2**53, or any finite values, of which
            the bits below 2**-21 of a row's largest entry do not count.
    """
    bits = _UNIT_BITS if y_nw.shape[1] <= 1 << 9 else _WIDE_UNIT_BITS
    largest = np.abs(y_nw).max(axis=1, initial=0.0)
    _, exponent = np.frexp(largest)
    scaled = np.rint(np.ldexp(y_nw, (bits - exponent)[:, None]))
    length = np.sqrt(np.square(scaled).sum(axis=1))
    length[length == 0] = 1.0
    return np.asarray(np.rint(scaled / length[:, None] * GRID))


def sign_row(width: int, seed: int, name: str) -> Float64:
    """The +-1 diagonal of a facet's rotation: bits of SHAKE-256 over its name and seed."""
    digest = hashlib.shake_256(f"mw-rotation-v1:{name}:{seed}".encode()).digest((width + 7) // 8)
    bits = np.unpackbits(np.frombuffer(digest, dtype=np.uint8), bitorder="little")[:width]
    return np.asarray(1.0 - 2.0 * bits, dtype=np.float64)


@lru_cache(maxsize=8)
def hadamard(width: int) -> Float64:
    """The Sylvester-Hadamard matrix of +-1, (width, width); width is a power of two."""
    if width < 1 or width & (width - 1):
        raise ValueError(f"width {width} is not a power of two")
    matrix = np.ones((1, 1))
    while len(matrix) < width:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    matrix.flags.writeable = False
    return matrix


def blocks_of(width: int) -> tuple[int, int]:
    """(m, b): the odd factor of a width and its power of two, ``width = m * b``.

    Raises:
        ValueError: the odd factor is above ``ODD_MAX``, or the width is below 1.
    """
    block = width & -width
    if width < 1 or width // block > ODD_MAX:
        raise ValueError(
            f"width {width} is not a power of two, or such a one times an odd number up to "
            f"{ODD_MAX}"
        )
    return width // block, block


def _mixing(odd: int) -> Float64:
    """``m I - 2 J``, m times the reflection at the diagonal: integers, and orthogonal up to m."""
    if odd == 1:
        return np.ones((1, 1))
    return np.asarray(odd * np.eye(odd) - 2.0)


class Rotation:
    """``v = rint(M raw / sqrt(b) / m)``: spreads a block so that one grid serves it.

    M is ``H_b diag(sign)`` for a width b that is a power of two. For m times as much it is the
    Kronecker product of ``m I - 2 J`` (J all ones, m odd) with H_b, so every entry of a row
    reaches every one of the rotated row.

    An orthogonal map, up to half a grid step for each entry. The product is of integers below
    2**20 * width * m, so it is exact in float64.
    """

    def __init__(self, width: int, seed: int, name: str) -> None:
        odd, block = blocks_of(width)
        spread = hadamard(block) if odd == 1 else np.kron(_mixing(odd), hadamard(block))
        self._matrix = sign_row(width, seed, name)[:, None] * spread
        self._root = odd * np.sqrt(np.float64(block))

    def __call__(self, raw_nw: Float64) -> Float64:
        """Rotated grid integers, (N, W), of raw grid integers."""
        return np.asarray(np.rint(raw_nw @ self._matrix / self._root))
