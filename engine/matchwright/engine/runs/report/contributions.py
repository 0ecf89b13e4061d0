"""The points of each facet for some rows of a run that does not keep them."""

from __future__ import annotations

import polars as pl

from matchwright.engine.matcher import OTHER, Matcher, take_rows
from matchwright.engine.prepare import Prepared, SnapshotLike, prepare
from matchwright.engine.records import Kind
from matchwright.engine.request import Request


def with_contributions(
    matcher: Matcher, kind: Kind, rows: pl.DataFrame, as_of: int
) -> pl.DataFrame:
    """Rows with the points of each facet, worked out from the store where the run has none.

    Rows whose points the store does not give any more are left out.

    Args:
        rows: of some queries of ``kind``, as in part files.
    """
    snapshot = matcher.snapshot()
    names = [facet.name for facet in snapshot.generation.facets]
    if not rows.height or f"points_{names[0]}" in rows.columns:
        return rows
    ids = rows["query_id"].unique(maintain_order=True).to_list()
    requests = [Request(kind=kind, id=name, as_of=as_of) for name in ids]
    made = prepare(snapshot, requests, matcher.policy.budgets, matcher.effective)
    found = []
    for name, query in zip(ids, made, strict=True):
        if isinstance(query, Prepared):
            mine = rows.filter(pl.col("query_id") == name)
            found.append(_split(matcher, snapshot, kind, mine, query))
    return pl.concat(found) if found else rows.clear()


def _split(
    matcher: Matcher, snapshot: SnapshotLike, kind: Kind, rows: pl.DataFrame, query: Prepared
) -> pl.DataFrame:
    """One query's rows with the points of each facet."""
    corpus, generation = snapshot.corpus(OTHER[kind]), snapshot.generation
    at = snapshot.rows_of(OTHER[kind], rows["id"].fill_null("").to_list())
    rows, at = rows.filter(at >= 0), at[at >= 0]
    x_nd, _ = take_rows(corpus, at, generation.d)
    parts = matcher.ops.contributions(x_nd, query.q_d, generation.offsets)
    columns = {f"points_{facet.name}": parts[:, b] for b, facet in enumerate(generation.facets)}
    same = parts.sum(axis=1) == rows["points"].to_numpy()
    return rows.with_columns(**columns).filter(same)
