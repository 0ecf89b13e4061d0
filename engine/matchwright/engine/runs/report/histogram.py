"""Histograms and tallies that are filled unit by unit and do not depend on the order."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from matchwright.kernels.types import Float64, Int64, UInt64

BINS_MAX = 256
FINEST = -20
"""Exponent of the smallest width of a bin."""
_PENDING_MAX = 4_000_000
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class Bins:
    """A filled histogram: bin i counts values v with low + i * width <= v < low + (i + 1) * width.

    Attributes:
        low, width: both exact in binary; ``width`` is a power of two.
        counts: of each bin.
        n, mean, least, most: of the values themselves; 0 when there are none.
        quantiles: at 5, 25, 50, 75 and 95%, from the bins, so right to one ``width``.
    """

    low: float
    width: float
    counts: tuple[int, ...]
    n: int
    mean: float
    least: float
    most: float
    quantiles: tuple[float, ...]

    def coarser(self, bins_max: int) -> Bins:
        """The same values in at most ``bins_max`` bins of a width that is a power of two."""
        bins = self
        while len(bins.counts) > bins_max:
            bins = bins.at_width(2 * bins.width)
        return bins

    def at_width(self, width: float) -> Bins:
        """The same values in bins of that width; finer ones than these there are not."""
        first, counts, own = round(self.low / self.width), list(self.counts), self.width
        while counts and own < width:
            first, counts = _halved(first, counts)
            own *= 2
        return replace(self, low=first * own, width=own, counts=tuple(counts))


def _halved(first: int, counts: list[int]) -> tuple[int, list[int]]:
    """Pairs of neighbouring bins joined; a pair begins at an even number."""
    counts = [0] * (first & 1) + counts
    counts += [0] * (len(counts) & 1)
    return first >> 1, [a + b for a, b in zip(counts[::2], counts[1::2], strict=True)]


class Histogram:
    """Counts values in at most 256 bins whose width is the smallest power of two that suffices.

    The width depends on the smallest and largest value alone, so any order and any split into
    parts gives the same bins.
    """

    def __init__(self) -> None:
        self._exponent, self._first = FINEST, 0
        self._counts: list[int] = []
        self._n, self._sum = 0, 0.0
        self._least, self._most = math.inf, -math.inf

    def add(self, values: NDArray[Any]) -> None:
        """Count some values; what is not finite is an error.

        Raises:
            ValueError: NaN or an infinity.
        """
        if not values.size:
            return
        v_n = np.asarray(values, dtype=np.float64)
        if not np.isfinite(v_n).all():
            raise ValueError("a histogram takes finite values")
        self._least = min(self._least, float(v_n.min()))
        self._most = max(self._most, float(v_n.max()))
        self._n += v_n.size
        self._sum += math.fsum((float(v_n.sum()),))
        self._widen()
        scaled = np.floor(np.ldexp(v_n, -self._exponent))
        scaled -= np.ldexp(scaled, self._exponent) > v_n  # tiny negative values underflow to 0
        bin_n = scaled.astype(np.int64)
        first, last = int(bin_n.min()), int(bin_n.max())
        self._cover(first, last)
        for offset, count in enumerate(np.bincount(bin_n - first).tolist()):
            self._counts[first - self._first + offset] += count

    def _widen(self) -> None:
        while self._place(self._most) - self._place(self._least) >= BINS_MAX:
            self._exponent += 1
            if self._counts:
                self._first, self._counts = _halved(self._first, self._counts)

    def _place(self, value: float) -> int:
        place = math.floor(math.ldexp(value, -self._exponent))
        return place - (math.ldexp(place, self._exponent) > value)

    def _cover(self, first: int, last: int) -> None:
        if not self._counts:
            self._first = first
        self._counts = [0] * max(self._first - first, 0) + self._counts
        self._first = min(self._first, first)
        self._counts += [0] * max(last - self._first + 1 - len(self._counts), 0)

    def done(self) -> Bins:
        """What has been counted."""
        if not self._n:
            return Bins(0.0, 1.0, (), 0, 0.0, 0.0, 0.0, (0.0,) * len(QUANTILES))
        first, counts = self._first, self._counts
        skip = next(n for n, count in enumerate(counts) if count)
        keep = len(counts) - next(n for n, count in enumerate(reversed(counts)) if count)
        width = math.ldexp(1.0, self._exponent)
        low, kept = (first + skip) * width, counts[skip:keep]
        quantiles = tuple(self._quantile(low, width, kept, share) for share in QUANTILES)
        mean = self._sum / self._n
        return Bins(low, width, tuple(kept), self._n, mean, self._least, self._most, quantiles)

    def _quantile(self, low: float, width: float, counts: list[int], share: float) -> float:
        """Linear within the bin, never outside of what was seen."""
        wanted, before = share * self._n, 0
        for n, count in enumerate(counts):
            if count and before + count >= wanted:
                value = low + (n + (wanted - before) / count) * width
                return min(max(value, self._least), self._most)
            before += count
        return self._most


class Tally:
    """How often each key has been seen."""

    def __init__(self) -> None:
        self._keys: list[UInt64] = []
        self._counts: list[Int64] = []
        self._pending = 0

    def add(self, keys: UInt64) -> None:
        """Count each of these once."""
        found, counts = np.unique(keys, return_counts=True)
        self._keys.append(found)
        self._counts.append(counts.astype(np.int64))
        self._pending += found.size
        if self._pending > _PENDING_MAX:
            self._join()

    def _join(self) -> None:
        if not self._keys:
            return
        keys, counts = np.concatenate(self._keys), np.concatenate(self._counts)
        found, place = np.unique(keys, return_inverse=True)
        total = np.bincount(place, weights=counts, minlength=found.size).astype(np.int64)
        self._keys, self._counts, self._pending = [found], [total], 0

    def done(self) -> tuple[UInt64, Int64]:
        """(keys in ascending order, how often each was seen)."""
        self._join()
        if not self._keys:
            return np.zeros(0, dtype=np.uint64), np.zeros(0, dtype=np.int64)
        return self._keys[0], self._counts[0]


def gini(count_n: Int64) -> float:
    """0 when all have the same, close to 1 when one has everything; 0 when there is nothing."""
    n, total = count_n.size, int(count_n.sum())
    if not total:
        return 0.0
    ranked: Float64 = np.sort(count_n).astype(np.float64)
    place = np.arange(1, n + 1, dtype=np.float64)
    return float(2.0 * (place @ ranked) / (n * total) - (n + 1) / n)
