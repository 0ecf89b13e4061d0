"""A block's answers as the frames that are written: part, slack and queries."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from matchwright.engine.runs.block import CODE_SHORTFALL, BlockAnswer
from matchwright.engine.runs.second import NO_SCORE
from matchwright.kernels.types import Bool, Int64


def part_frame(answer: BlockAnswer) -> pl.DataFrame:
    """The matches, in the order (query key, rank)."""
    return _rows(answer, _is_match(answer))


def slack_frame(answer: BlockAnswer) -> pl.DataFrame:
    """The rows beyond K, in the same order and with the same columns."""
    return _rows(answer, ~_is_match(answer))


def _is_match(answer: BlockAnswer) -> Bool:
    chosen: Bool = answer.rank_m <= answer.k
    return chosen


def _rows(answer: BlockAnswer, chosen: Bool) -> pl.DataFrame:
    at: Int64 = np.flatnonzero(chosen)
    query = answer.query_m[at]
    ids = pl.Series("query_id", answer.query_ids, dtype=pl.String)
    parts = answer.contributions_mb
    constant = {"epoch": answer.epoch, "generation": answer.generation, "policy": answer.policy}
    columns: dict[str, Any] = {
        "query_id": ids.gather(query),
        "query_key": answer.key_q[query],
        "rank": answer.rank_m[at],
        "id": answer.id_m.gather(at),
        "key": answer.key_m[at],
        "points": answer.points_m[at],
        "score": answer.score_m[at],
        **{f"points_{name}": parts[at, b] for b, name in enumerate(answer.facets)},
    }
    return pl.DataFrame(columns).with_columns(
        *(pl.lit(value, dtype=pl.String).alias(name) for name, value in constant.items()),
        pl.lit(None, dtype=pl.String).alias("moved"),
        *_second(answer, at),
    )


def _second(answer: BlockAnswer, at: Int64) -> list[pl.Series | pl.Expr]:
    """first_rank, and model_score where the run has a second phase."""
    second = answer.second
    if second is None:
        return [pl.lit(None, dtype=pl.Int32).alias("first_rank")]
    scores = second.score_m[at]
    known = _where(scores != NO_SCORE, scores).alias("model_score")
    return [pl.Series("first_rank", second.first_rank_m[at]), known]


def queries_frame(answer: BlockAnswer) -> pl.DataFrame:
    """One row for each query, in the order of the block."""
    errors = [answer.errors.get(n) for n in range(answer.q)]
    shortfall = [CODE_SHORTFALL.get(code) for code in answer.shortfall_q.tolist()]
    known = answer.horizon_set_q
    more: dict[str, pl.Series] = {}
    if answer.second is not None:
        why = [answer.second.degraded.get(n) for n in range(answer.q)]
        more["degraded"] = pl.Series(why, dtype=pl.String)
    return pl.DataFrame(
        {
            "query_id": pl.Series(answer.query_ids, dtype=pl.String),
            "query_key": answer.key_q,
            "returned": answer.returned_q,
            "eligible": answer.eligible_q,
            "unverified": answer.unverified_q,
            "shortfall": pl.Series(shortfall, dtype=pl.String),
            "error": pl.Series(errors, dtype=pl.String),
            "t": answer.t_q,
            "attainable": answer.attainable_q,
            "resolution": answer.resolution_q,
            "print": pl.Series([one.tobytes() for one in answer.print_qb], dtype=pl.Binary),
            "horizon_points": _where(known, answer.horizon_points_q),
            "horizon_mix": _where(known, answer.horizon_mix_q),
            "horizon_low": _where(known, answer.horizon_low_q),
            **more,
        }
    )


def _where(known: Bool, values: Any) -> pl.Series:
    """A column that is null where not known."""
    frame = pl.DataFrame({"known": known, "value": values})
    return frame.select(pl.when("known").then("value")).to_series()
