"""From served scores to answers: ordered, checked against the exported trees, or degraded. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from matchwright.engine.corpus_rows import order_key
from matchwright.engine.models.description import RANKER
from matchwright.engine.rerank.rerank_block import Candidates, Scored, TreesLike
from matchwright.engine.results import Degraded, OrderKey, Reranked, Result
from matchwright.kernels.types import Float32, Float64, Int32, Int64

SCORE_LIMIT = 1 << 24
"""Model scores stay below this in units of the grid: exact in float32."""


@dataclass(frozen=True, slots=True, eq=False)
class Order:
    """Which candidates are returned, best first, and their scores in units of the grid."""

    rows: Int64
    scores: Int32
    degraded: Degraded | None


def answers(
    trees: TreesLike, version: int, block: Sequence[Candidates], scored: Sequence[Scored]
) -> list[Result]:
    """Answers, each in the model's order, or in the first phase's and degraded.

    What a query gets depends on its own rows alone, never on its block. The scores of all that
    are returned are compared with those that the exported trees give.
    """
    orders = [order_of(one, told, trees) for one, told in zip(block, scored, strict=True)]
    wanted = [
        one.features_mf[order.rows]
        for one, order in zip(block, orders, strict=True)
        if one.features_mf is not None and order.degraded is None
    ]
    exact = trees.score(np.concatenate(wanted)) if wanted else np.zeros(0, np.int32)
    results, start = [], 0
    for one, told, order in zip(block, scored, orders, strict=True):
        if order.degraded is None:
            stop = start + order.rows.size
            if not np.array_equal(exact[start:stop], order.scores):
                order = _first_phase(one, Degraded.WRONG_OUTPUT)
            start = stop
        results.append(_result(trees, version, one, told, order))
    return results


def order_of(one: Candidates, told: Scored, trees: TreesLike) -> Order:
    """The first K by (score, first-phase key), or the first phase's where there are no scores."""
    if told.degraded is not None or told.scores_m is None:
        return _first_phase(one, told.degraded or Degraded.FAILED)
    scores = on_grid(told.scores_m, trees.grid_bits)
    if scores is None:
        return _first_phase(one, Degraded.WRONG_OUTPUT)
    # Candidates stand in the order of their first-phase keys: a stable sort breaks ties so.
    rows = np.argsort(-scores, kind="stable")[: one.wide.k]
    return Order(rows, scores[rows], None)


def _first_phase(one: Candidates, why: Degraded) -> Order:
    rows = np.arange(min(one.wide.k, len(one.wide.ids)))
    return Order(rows, np.zeros(0, dtype=np.int32), why)


def _result(trees: TreesLike, version: int, one: Candidates, told: Scored, order: Order) -> Result:
    wide, rows = one.wide, order.rows
    considered = len(wide.ids)
    full = considered == one.settings.candidates
    part = Reranked(
        model=RANKER,
        version=version,
        content_hash=trees.content_hash,
        grid_bits=trees.grid_bits,
        candidates=considered,
        scores=order.scores,
        first_ranks=(rows + 1).astype(np.int32),
        last_key=_last_key(wide) if full else None,
        degraded=None if order.degraded is None else str(order.degraded),
    )
    said = {"seconds": told.seconds, **({"why": told.why} if told.why else {})}
    return replace(
        wide,
        ids=tuple(wide.ids[row] for row in rows.tolist()),
        keys=wide.keys[rows],
        points=wide.points[rows],
        contributions=wide.contributions[rows],
        scores=wide.scores[rows],
        rerank=part,
        telemetry={**wide.telemetry, "model": said},
    )


def _last_key(wide: Result) -> OrderKey:
    return order_key(wide.query_key, wide.points[-1], wide.keys[-1])


def on_grid(scores_m: Float32, grid_bits: int) -> Int32 | None:
    """Served scores in units of the grid; None when one of them is NaN, infinite or off it."""
    units: Float64 = np.ldexp(scores_m.astype(np.float64), grid_bits)
    right = np.isfinite(units) & (np.abs(units) < SCORE_LIMIT)
    if not right.all() or (units != np.rint(units)).any():
        return None
    return units.astype(np.int32)
