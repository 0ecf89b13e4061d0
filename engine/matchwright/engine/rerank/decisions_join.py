"""Features joined to decisions that were logged without them, from a store as it is now.

What a profile says today is not what it said when the decision was made: a hired freelancer has
one review more. A model that learns from such features knows the future. So everything made of
them carries ``FEATURES_NOT_POINT_IN_TIME``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl

from matchwright.engine.matcher import Matcher
from matchwright.engine.prepare import Prepared, prepare
from matchwright.engine.request import Request
from matchwright.engine.rerank.decisions import FEATURE, Wrong
from matchwright.engine.rerank.features import FEATURES, pair_features
from matchwright.kernels.types import Int32, Int64

_QUERIES_AT_ONCE = 256


def joiner(
    snapshot: Any, matcher: Matcher
) -> Callable[[pl.DataFrame], tuple[pl.DataFrame, pl.DataFrame]]:
    """A ``Join`` for ``decisions_read.read``.

    Args:
        snapshot: where both sides are looked up.
        matcher: prepares queries, under its policy; a query asks for the day of its decision.
    """

    def join(rows: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
        day = pl.col("decided_at").dt.epoch("d")
        marked = rows.with_columns(_day=day, _at=pl.int_range(pl.len()))
        f_nf = np.zeros((rows.height, len(FEATURES)), dtype=np.int32)
        found = np.zeros(rows.height, dtype=np.bool_)
        asked = list(marked.group_by("asking", "query_id", "_day", maintain_order=True))
        for low in range(0, len(asked), _QUERIES_AT_ONCE):
            _fill(snapshot, matcher, asked[low : low + _QUERIES_AT_ONCE], f_nf, found)
        columns = {FEATURE + one.name: f_nf[:, c].astype(np.int64) for c, one in
                   enumerate(FEATURES)}  # fmt: skip
        good = rows.with_columns(pl.Series(name, values) for name, values in columns.items())
        refused = rows.filter(~pl.Series(found)).select(
            "row",
            pl.col("decision_id").alias("id"),
            pl.lit("candidate_id").alias("field"),
            pl.col("candidate_id").alias("value"),
            pl.lit(str(Wrong.NOT_IN_STORE)).alias("reason"),
        )
        return good.filter(pl.Series(found)), refused

    return join


def _fill(snapshot: Any, matcher: Matcher, asked: list[Any], f_nf: Int32, found: Any) -> None:
    """Features of some queries' pairs; rows whose query or candidate is gone stay not found."""
    requests = [
        Request(kind=kind, id=query_id, as_of=int(day)) for (kind, query_id, day), _ in asked
    ]
    outcomes = prepare(snapshot, requests, matcher.policy.budgets, matcher.effective)
    queries: list[Prepared] = []
    rows_per_query: list[Int64] = []
    places: list[tuple[Int64, Int64]] = []
    for ((kind, _, _), rows), query in zip(asked, outcomes, strict=True):
        if not isinstance(query, Prepared):
            continue
        other = "freelancer" if kind == "job" else "job"
        row_m = snapshot.rows_of(other, rows["candidate_id"].to_list())
        at_m = rows["_at"].to_numpy()
        there = row_m >= 0
        distinct, place = np.unique(row_m[there], return_inverse=True)
        queries.append(query)
        rows_per_query.append(distinct)
        places.append((at_m[there], place))
    made = np.split(
        pair_features(snapshot, queries, rows_per_query),
        np.cumsum([rows.size for rows in rows_per_query])[:-1],
    )
    for (at_m, place), features in zip(places, made if queries else [], strict=True):
        f_nf[at_m] = features[place]
        found[at_m] = True
