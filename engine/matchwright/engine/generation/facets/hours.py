"""Overlap of working hours.

Form: the share of the job's wanted window that the freelancer works.
Basis: 32 bins of 45 minutes of the UTC day; how much of each bin a window covers. The freelancer's
    side is the covered share of every bin, the job's side the bin's share of its own window, so
    their inner product is the covered share of the window.
Largest error: 22.5 minutes / the window's length, from bins that both cover in part; and the zone's
    offset is the mean of mid January's and mid July's, so with daylight saving time windows are off
    by 30 minutes at most. Rules use exact minutes; this facet is for ranking alone.
Width: 32.
"""

from __future__ import annotations

from typing import ClassVar

import msgspec
import numpy as np

from matchwright.engine.generation.facets.base import (
    OTHER,
    Block,
    QueryBlock,
    convex_best,
    even,
)
from matchwright.engine.generation.fixed import GRID, ratio
from matchwright.engine.generation.params import FacetParams
from matchwright.engine.generation.zones import Zones
from matchwright.engine.records import Kind
from matchwright.engine.table import Table
from matchwright.kernels.types import Bool, Float64

WIDTH = 32
DAY = 1_440
_BIN = DAY // WIDTH
_EDGES = np.arange(WIDTH) * _BIN


class Hours(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``zones`` is the table of mean offsets."""

    zones: Zones

    name: ClassVar[str] = "hours"
    width: ClassVar[int] = WIDTH

    def corpus(self, kind: Kind, records: Table) -> Block:
        """Shares of bins (freelancer) or of the window (job)."""
        cover, length, known = self._cover(records)
        return Block(_shares(kind, cover, length), known)

    def query(self, kind: Kind, records: Table, params: FacetParams, as_of: int) -> QueryBlock:
        """The same shares; the form is the same in both directions."""
        cover, length, known = self._cover(records)
        raw = _shares(kind, cover, length)
        if OTHER[kind] == "job":
            return QueryBlock(raw, known, convex_best(raw))
        return QueryBlock(raw, known, raw.sum(axis=1) / GRID)

    def _cover(self, records: Table) -> tuple[Float64, Float64, Bool]:
        """Minutes covered in each bin (N, 32), length of the window (N,), and where known."""
        start, start_known = records.integers("hours_start")
        end, end_known = records.integers("hours_end")
        offset, zone_known = self.zones.means(records.values("zone"))
        length = (end - start) % DAY
        length[length == 0] = DAY
        first = ((start - offset) % DAY)[:, None]
        last = first + length[:, None]
        cover = np.zeros((len(start), WIDTH))
        for shift in (0, DAY):
            low = np.maximum(first - shift, _EDGES)
            cover += np.clip(np.minimum(last - shift, _EDGES + _BIN) - low, 0, _BIN)
        return cover, length.astype(np.float64), start_known & end_known & zone_known

    def reach(self, kind: Kind) -> float:
        return (1.0 if kind == "job" else 11.0) / float(np.sqrt(np.float64(WIDTH)))

    def neutral(self, kind: Kind) -> Float64:
        return even(WIDTH, 1.0 if kind == "job" else WIDTH / 3)


def _shares(kind: Kind, cover: Float64, length: Float64) -> Float64:
    return ratio(cover, length[:, None] if kind == "job" else float(_BIN))
