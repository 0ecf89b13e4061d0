"""Indexes that make rules and the scan cheap; stored with a segment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from matchwright.kernels.types import Int8, Int32, SetColumn, UInt64


def build_index(
    scalars: Mapping[str, Int32],
    sets: Mapping[str, SetColumn],
    x_nd: Int8,
    key_n: UInt64,
) -> dict[str, NDArray[Any]]:
    """name -> array, to be stored beside the segment and given back as ``Segment.index``."""
    return {}
