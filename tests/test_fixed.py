"""Fixed point and rotation against Python integers and fractions."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from matchwright.engine.generation.fixed import GRID, Rotation, hadamard, hats, sign_row, unit


@pytest.mark.parametrize("width", [1, 2, 8, 16, 32, 128])
def test_rotation_is_orthogonal_up_to_half_a_grid_step(width: int) -> None:
    rotate = Rotation(width, 7, "text")
    rng = np.random.default_rng(width)
    raw = unit(rng.integers(-1_000, 1_000, (50, width)).astype(np.float64))
    v = rotate(raw)
    exact = (raw @ raw.T) / GRID**2
    assert np.abs((v @ v.T) / GRID**2 - exact).max() <= (np.sqrt(width) + 1) / GRID


def test_rotation_is_the_documented_matrix() -> None:
    raw = np.array([[3.0, -5.0, 7.0, 11.0]])
    sign = sign_row(4, 1, "rate")
    expected = [
        round(sum(raw[0, k] * sign[k] * (-1) ** (k & j).bit_count() for k in range(4)) / 2)
        for j in range(4)
    ]
    assert Rotation(4, 1, "rate")(raw)[0].tolist() == expected


def test_signs_are_frozen() -> None:
    assert sign_row(8, 1, "rate").tolist() == [-1.0, -1.0, -1.0, -1.0, -1.0, 1.0, -1.0, -1.0]


def test_widths_are_powers_of_two() -> None:
    with pytest.raises(ValueError, match="power of two"):
        hadamard(12)


@given(
    st.lists(st.integers(0, 2**31), min_size=2, max_size=16, unique=True).map(sorted),
    st.lists(st.integers(-(2**33), 2**33), min_size=1, max_size=20),
)
def test_hats_interpolate(knots: list[int], values: list[int]) -> None:
    raw = hats(np.array(values), np.array(knots))
    assert (raw.sum(axis=1) == GRID).all()
    assert (raw >= 0).all()
    assert ((raw > 0).sum(axis=1) <= 2).all()
    for value, row in zip(values, raw, strict=True):
        inside = min(max(value, knots[0]), knots[-1])
        middle = sum(Fraction(int(w), 2**20) * k for w, k in zip(row, knots, strict=True))
        assert abs(middle - inside) <= Fraction(knots[-1] - knots[0], 2**21)


@given(
    st.lists(st.lists(st.integers(-(2**52), 2**52), min_size=8, max_size=8), min_size=1, max_size=6)
)
def test_unit_rows_have_length_one(rows: list[list[int]]) -> None:
    scaled = unit(np.array(rows, dtype=np.float64))
    for row, given_row in zip(scaled, rows, strict=True):
        if any(given_row):
            assert abs(float(np.sqrt((row**2).sum())) / GRID - 1) < 2**-17
        else:
            assert not row.any()


def test_unit_is_the_same_in_any_batch() -> None:
    rows = np.random.default_rng(3).integers(-(2**40), 2**40, (200, 128)).astype(np.float64)
    whole = unit(rows)
    assert all((unit(rows[n : n + 1])[0] == whole[n]).all() for n in range(200))
