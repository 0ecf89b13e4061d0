"""What the model of a run's second phase changed, and what it goes by."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl

from matchwright.engine.matcher import OTHER, Matcher
from matchwright.engine.prepare import Prepared, prepare
from matchwright.engine.records import Kind
from matchwright.engine.request import Request
from matchwright.engine.rerank.features import FEATURES, INDEX
from matchwright.engine.rerank.features_pairs import FeatureMaker
from matchwright.engine.rerank.rerank_block import TreesLike
from matchwright.engine.rerank.trees import METHOD
from matchwright.engine.runs.exposure import first_phase
from matchwright.engine.runs.plan import Plan


@dataclass(frozen=True)
class FeatureGave:
    """What one feature gave to the model's scores.

    Attributes:
        name, text: of the feature; the text is in words.
        size: mean of its contribution's magnitude.
        mean: of its contribution.
    """

    name: str
    text: str
    size: float
    mean: float


@dataclass(frozen=True)
class SecondPhase:
    """What a model did to the rows of a direction.

    Attributes:
        model, content_hash: who ordered them, such as "ranker:3".
        candidates: how many of each query it ordered, at most.
        queries: with matches, in the model's order; ``moved``: with a match at another rank than in
            the first phase; ``same_best``: whose best match is the first phase's.
        rows: their matches; ``lifted``: those that the first phase would not have shown.
        places: mean places between the two ranks of a match.
        classes: (least, most, rows): how many moved by so many places.
        degraded: reason -> queries whose model was not asked.
        features: by falling size; empty when trees or store are not at hand.
        features_rows, features_queries: how many matches, of how many drawn queries, these are
            about; ``method``: how contributions are made.
    """

    model: str
    content_hash: str
    candidates: int
    queries: int
    moved: int
    same_best: int
    rows: int
    lifted: int
    places: float
    classes: tuple[tuple[int, int, int], ...]
    degraded: Mapping[str, int]
    features: tuple[FeatureGave, ...] = ()
    features_rows: int = 0
    features_queries: int = 0
    method: str = METHOD


class SecondTally:
    """Counts a direction, unit by unit."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._degraded: Counter[str] = Counter()
        self._places: Counter[int] = Counter()
        self._queries = self._moved = self._same_best = self._lifted = 0

    def add(self, part: pl.DataFrame, queries: pl.DataFrame) -> None:
        """Count a unit."""
        if self._plan.ranker is None:
            return
        counted = queries["degraded"].drop_nulls().value_counts()
        self._degraded.update(dict(counted.iter_rows()))
        rows = part.filter(pl.col("model_score").is_not_null())
        far = (rows["rank"] - rows["first_rank"]).abs()
        self._places.update(dict(far.value_counts().iter_rows()))
        self._queries += rows["query_key"].n_unique()
        self._moved += rows.filter(far > 0)["query_key"].n_unique()
        best = rows.filter(pl.col("rank") == 1)
        self._same_best += int((best["first_rank"] == 1).sum())
        self._lifted += int((rows["first_rank"] > self._plan.options.k).sum())

    def done(self) -> SecondPhase | None:
        """All that was counted; None where the run has no second phase."""
        pinned, total = self._plan.ranker, self._places.total()
        if pinned is None:
            return None
        far = sum(places * rows for places, rows in self._places.items())
        return SecondPhase(
            model=str(pinned),
            content_hash=pinned.content_hash,
            candidates=self._plan.options.candidates,
            queries=self._queries,
            moved=self._moved,
            same_best=self._same_best,
            rows=total,
            lifted=self._lifted,
            places=far / total if total else 0.0,
            classes=self._classes(),
            degraded=dict(sorted(self._degraded.items())),
        )

    def _classes(self) -> tuple[tuple[int, int, int], ...]:
        """0, 1, 2..3, 4..7, ...: each twice as wide as the one before."""
        if not self._places:
            return ()
        edges = [(0, 0), (1, 1)]
        while edges[-1][1] < max(self._places):
            edges.append((edges[-1][1] + 1, 2 * edges[-1][1] + 1))
        counts = [sum(self._places[n] for n in range(low, high + 1)) for low, high in edges]
        return tuple((low, high, n) for (low, high), n in zip(edges, counts, strict=True))


def features_gave(
    matcher: Matcher, trees: TreesLike, kind: Kind, rows: pl.DataFrame, plan: Plan
) -> tuple[tuple[FeatureGave, ...], int, int]:
    """(features by falling size, matches, queries) of drawn queries' rows in the model's order.

    Args:
        matcher: of the run's generation, without a second phase.
        rows: as in part files.
    """
    snapshot, asked = matcher.snapshot(), getattr(trees, "asked", trees.features)
    if "model_score" not in rows.columns:
        return (), 0, 0
    rows = rows.filter(pl.col("model_score").is_not_null() & pl.col("id").is_not_null())
    ids = rows["query_id"].unique(maintain_order=True).to_list()
    policy, day = plan.options.policy.effective(), plan.options.as_of
    requests = [Request(kind=kind, id=name, as_of=day) for name in ids]
    made = prepare(snapshot, requests, matcher.policy.budgets, lambda request, limits: policy)
    queries, found = [], []
    for name, query in zip(ids, made, strict=True):
        if isinstance(query, Prepared):
            mine = rows.filter(pl.col("query_id") == name)["id"].to_list()
            at = snapshot.rows_of(OTHER[kind], mine)
            queries.append(query)
            found.append(at[at >= 0])
    if not queries:
        return (), 0, 0
    features = FeatureMaker().make(snapshot, queries, found, names=asked)
    columns = np.array([INDEX[name] for name in trees.features], dtype=np.int64)
    parts = np.ldexp(trees.contributions(features[:, columns]).astype(np.float64), -trees.grid_bits)
    gave = [
        FeatureGave(
            name, FEATURES[INDEX[name]].text, float(np.abs(parts[:, n]).mean()),
            float(parts[:, n].mean()),
        )
        for n, name in enumerate(trees.features)
        if name in asked
    ]  # fmt: skip
    gave.sort(key=lambda one: -one.size)
    return tuple(gave), len(parts), len(queries)


def before_pass(part: pl.DataFrame, slack: pl.DataFrame | None) -> pl.DataFrame:
    """A part of a run with both, with the rank before the exposure pass in place of the first
    phase's where the pass moved a row; nothing in its place elsewhere."""
    ranked = first_phase(part, slack).select("query_key", "key", pl.col("rank").alias("was"))
    joined = part.join(ranked, on=["query_key", "key"], how="left", maintain_order="left")
    was = pl.when(pl.col("moved").is_not_null()).then("was")
    return joined.with_columns(was.alias("first_rank")).drop("was")
