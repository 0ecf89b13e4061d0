"""What the first phase says of pairs: score, share of the best, and each facet's part."""

from __future__ import annotations

from typing import Any

import numpy as np

from matchwright.engine.prepare import Prepared, SnapshotLike
from matchwright.engine.rerank.features import INDEX, SCORE_BITS, SCORE_MAX
from matchwright.kernels.types import Int8, Int32, Int64


def scaled(points: Any, t: Any) -> Int64:
    """floor(points * t * 2^12), points * t rounded once as a result's score is; within ±SCORE_MAX.

    The product with a power of two is exact, so these are the same integers everywhere.
    """
    score = np.asarray(points, dtype=np.float64) * t
    limit = float(SCORE_MAX)
    floor = np.clip(np.floor(score * (1 << SCORE_BITS)), -limit, limit)
    return np.asarray(floor.astype(np.int64))


def write_points(snapshot: SnapshotLike, query: Prepared, x_md: Int8, part: Int32) -> None:
    """Score and facets of one query's rows; a facet that is not asked stays ``UNKNOWN``.

    Args:
        x_md: int8 (M, D), the rows.
        part: int32 (M, F), written into.
    """
    facets = snapshot.generation.facets
    product = x_md.astype(np.int32)
    product *= query.q_d
    # Facets lie one after the other and fill all dimensions, so their sums are sums of runs.
    points_mb = np.add.reduceat(product, [facet.start for facet in facets], axis=1)
    points = points_mb.sum(axis=1, dtype=np.int64)
    asked = np.logical_or.reduceat(query.q_d != 0, [facet.start for facet in facets])
    part[:, INDEX["asking"]] = 0 if query.request.kind == "job" else 1
    part[:, INDEX["score"]] = scaled(points, query.t)
    columns = np.array([INDEX[f"facet_{facet.name}"] for facet in facets])[asked]
    part[:, columns] = scaled(points_mb[:, asked], query.t)
    if query.attainable > 0:
        share = np.floor(points * query.t / query.attainable * 1_000)
        part[:, INDEX["score_share"]] = np.clip(share, -2_000, 2_000)
