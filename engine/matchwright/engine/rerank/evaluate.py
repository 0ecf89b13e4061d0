"""How well an order finds what came of logged decisions: NDCG, MAP, recall, with paired intervals.

An outcome at position p counts gain * weight(p), the weight being the examination curve's (see
``rerank/bias.py``); without a correction it is 1. Every figure is a ratio of sums over decisions,

    NDCG@k    sum of DCG@k           / sum of the best possible DCG@k
    MAP       sum of weight * precision at the outcome's rank / sum of weights
    recall@k  sum of weights within k / sum of weights

so a decision counts as much as it can tell, and the denominators are the same for all orders.
Intervals are 95% of a paired bootstrap over decisions. A segment's NDCG counts the gains of its own
rows only: it falls when the segment's good matches sink.

Only what was shown can be judged: an order that would have brought up others gets no credit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from matchwright.engine.rerank.decisions_read import Logged
from matchwright.engine.rerank.trees import Trees
from matchwright.kernels.types import Bool, Float64, Int32, Int64

MODEL, FIRST_PHASE, IN_SERVICE = "model", "first_phase", "in_service"
BOOTSTRAPS = 1_000
SEGMENT_DECISIONS_MIN = 50
SEGMENT_VALUES_MAX = 20
IMPORTANCE_ROWS_MAX = 100_000


@dataclass(frozen=True, eq=False)
class Judged:
    """Rows that are judged, in decisions.

    Attributes:
        decision: int64 (N,), ascending.
        first_rank: int32 (N,).
        gain: float64 (N,), corrected; 0 for nothing.
        weight: float64 (N,), corrected, of rows with an outcome; 0 else.
    """

    decision: Int64
    first_rank: Int32
    gain: Float64
    weight: Float64

    @property
    def decisions(self) -> int:
        """How many."""
        return int(self.decision[-1]) + 1 if self.decision.size else 0

    def only(self, rows: Bool) -> Judged:
        """The same rows, with outcomes of some of them only."""
        return Judged(self.decision, self.first_rank, self.gain * rows, self.weight * rows)


def ranks(decision: Int64, score: Any, first_rank: Int32) -> Int64:
    """int64 (N,): rank from 0 within the decision; by score, ties by the first phase's rank."""
    order = np.lexsort((first_rank, -np.asarray(score, dtype=np.float64), decision))
    start = np.flatnonzero(np.concatenate([[True], decision[1:] != decision[:-1]]))
    length = np.diff(np.append(start, decision.size))
    out = np.empty(decision.size, dtype=np.int64)
    out[order] = np.arange(decision.size) - np.repeat(start, length)
    return out


def dcg(judged: Judged, rank: Int64, k: int) -> Float64:
    """float64 (D,)."""
    kept = np.where(rank < k, judged.gain / np.log2(rank + 2.0), 0.0)
    return _summed(judged, kept)


def _summed(judged: Judged, values: Float64) -> Float64:
    """float64 (D,): sums over the rows of each decision."""
    sums = np.bincount(judged.decision, values, minlength=judged.decisions)
    return sums.astype(np.float64)


def ideal_dcg(judged: Judged, k: int) -> Float64:
    """float64 (D,): of the order by gain."""
    return dcg(judged, ranks(judged.decision, judged.gain, judged.first_rank), k)


def tables(judged: Judged, rank: Int64, k: int) -> dict[str, Float64]:
    """Numerators of each figure: float64 (D,)."""
    hit = judged.weight > 0
    order = np.lexsort((rank, judged.decision))
    hits = np.cumsum(hit[order])
    start = np.flatnonzero(np.concatenate([[True], judged.decision[1:] != judged.decision[:-1]]))
    before: Int64 = np.repeat(hits[start] - hit[order][start], np.diff(np.append(start, hits.size)))
    precision = np.empty(hits.size)
    precision[order] = (hits - before) / (rank[order] + 1.0)
    return {
        f"ndcg@{k}": dcg(judged, rank, k),
        "map": _summed(judged, judged.weight * precision),
        f"recall@{k}": _summed(judged, judged.weight * (rank < k)),
    }


def evaluate(
    logged: Logged,
    gain: Float64,
    weight: Float64,
    trees: Trees,
    in_service: Trees | None = None,
    *,
    k: int = 10,
    seed: int = 0,
    bootstraps: int = BOOTSTRAPS,
    importance: bool = True,
    advance: Callable[[int], None] = lambda steps: None,
) -> dict[str, Any]:
    """The whole evaluation of an exported model, as plain values for the training record.

    Args:
        logged: decisions that the model was not trained on.
        gain, weight: corrected, float64 (N,).
        in_service: the trees that order matches now; None when there are none.
        k: of NDCG and recall.
        advance: told of each permuted feature.
    """
    judged = Judged(logged.decision, logged.first_rank, gain, weight)
    orders = {
        MODEL: _ranks_by(trees, logged),
        FIRST_PHASE: ranks(judged.decision, -logged.first_rank.astype(np.float64),
                           logged.first_rank),
    }  # fmt: skip
    if in_service is not None:
        orders[IN_SERVICE] = _ranks_by(in_service, logged)
    found: dict[str, Any] = {
        "decisions": judged.decisions,
        "decisions_with_outcomes": int(np.count_nonzero(ideal_dcg(judged, k))),
        "rows": int(judged.decision.size),
        "k": k,
        "bootstraps": bootstraps,
        "in_service": None if in_service is None else in_service.content_hash,
        "metrics": compare(judged, orders, k, seed, bootstraps),
        "segments": _segments(logged, judged, orders, k, seed, bootstraps),
    }
    if importance:
        found["importance"] = permutation(trees, logged, judged, k, seed, advance)
    return found


def _ranks_by(trees: Trees, logged: Logged) -> Int64:
    score = trees.score(logged.ordered(trees.features).f_nf)
    return ranks(logged.decision, score, logged.first_rank)


def compare(
    judged: Judged, orders: Mapping[str, Int64], k: int, seed: int, bootstraps: int
) -> dict[str, Any]:
    """Figures of every order, and the model's differences with their intervals."""
    by_order = {name: tables(judged, rank, k) for name, rank in orders.items()}
    total = _summed(judged, judged.weight)
    below = {f"ndcg@{k}": ideal_dcg(judged, k), "map": total, f"recall@{k}": total}
    return {
        figure: _figure(
            {name: table[figure] for name, table in by_order.items()},
            below[figure],
            seed,
            bootstraps,
        )
        for figure in below
    }


def _figure(
    above: Mapping[str, Float64], below: Float64, seed: int, bootstraps: int
) -> dict[str, Any]:
    telling = below > 0
    parts = np.stack([*(values[telling] for values in above.values()), below[telling]], axis=1)
    sums = parts.sum(axis=0)
    told: dict[str, Any] = {
        name: _rounded(sums[at] / sums[-1]) if sums[-1] else None for at, name in enumerate(above)
    }
    told["decisions"] = int(telling.sum())
    if not sums[-1]:
        return told
    drawn = _bootstrap(parts, seed, bootstraps)
    shares = drawn[:, :-1] / drawn[:, -1:]
    for at, name in enumerate(above):
        if name != MODEL:
            low, high = np.percentile(shares[:, 0] - shares[:, at], [2.5, 97.5])
            told[f"vs_{name}"] = {
                "difference": _rounded((sums[0] - sums[at]) / sums[-1]),
                "low": _rounded(low),
                "high": _rounded(high),
            }
    return told


def _bootstrap(parts: Float64, seed: int, bootstraps: int) -> Float64:
    """float64 (draws, columns): sums over decisions drawn with replacement."""
    rng = np.random.default_rng(seed)
    n = len(parts)
    out = np.empty((bootstraps, parts.shape[1]))
    for draw in range(bootstraps):
        out[draw] = np.bincount(rng.integers(0, n, n), minlength=n) @ parts
    return out


def _segments(
    logged: Logged,
    judged: Judged,
    orders: Mapping[str, Int64],
    k: int,
    seed: int,
    bootstraps: int,
) -> dict[str, Any]:
    """NDCG of each value of each segment column; of the most frequent values where many."""
    found: dict[str, Any] = {}
    for column, (codes, names) in logged.segments.items():
        count = np.bincount(codes[codes >= 0], minlength=len(names))
        frequent = np.argsort(-count, kind="stable")[:SEGMENT_VALUES_MAX]
        found[column] = {}
        for code in sorted(frequent.tolist()):
            part = judged.only(codes == code)
            figure = compare(part, orders, k, seed, bootstraps)[f"ndcg@{k}"]
            if figure["decisions"] < SEGMENT_DECISIONS_MIN:
                figure = {"decisions": figure["decisions"], "too_few": SEGMENT_DECISIONS_MIN}
            found[column][names[code]] = figure
    return found


def permutation(
    trees: Trees,
    logged: Logged,
    judged: Judged,
    k: int,
    seed: int,
    advance: Callable[[int], None],
) -> dict[str, float]:
    """What NDCG@k loses when a feature's values change places among all rows."""
    ends = logged.start_d[1:]
    decisions = max(1, int(np.searchsorted(ends, IMPORTANCE_ROWS_MAX, side="right")))
    rows = slice(0, int(ends[decisions - 1]) if ends.size else 0)
    part = Judged(
        judged.decision[rows], judged.first_rank[rows], judged.gain[rows], judged.weight[rows]
    )
    f_nf = logged.ordered(trees.features).f_nf[rows].copy()
    best = float(ideal_dcg(part, k).sum()) or 1.0

    def share() -> float:
        rank = ranks(part.decision, trees.score(f_nf), part.first_rank)
        return float(dcg(part, rank, k).sum()) / best

    whole, lost = share(), {}
    rng = np.random.default_rng(seed)
    for at, name in enumerate(trees.features):
        kept = f_nf[:, at].copy()
        f_nf[:, at] = rng.permutation(kept)
        lost[name] = _rounded(whole - share()) if name in trees.asked else 0.0
        f_nf[:, at] = kept
        advance(1)
    return lost


def _rounded(value: Any) -> float:
    return round(float(value), 6)
