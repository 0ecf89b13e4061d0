"""Simulated decisions on disk, and the engine's own features made of them."""

from __future__ import annotations

import numpy as np
import polars as pl

from matchwright.engine.rerank import simulate
from matchwright.engine.rerank.bias import Method
from matchwright.engine.rerank.decisions import FEATURE
from matchwright.engine.rerank.decisions_read import read
from matchwright.engine.rerank.features import FEATURES, FEATURES_VERSION
from matchwright.engine.rerank.train import Settings

SPLIT = simulate.FIRST_DAY + simulate.SPLIT
QUICK = Settings(rounds=60, bootstraps=200, leaves=15, rows_in_leaf_min=20, correction=Method.NONE)
OWN = {
    "score": "score",
    "coverage": "skill_coverage",
    "must_missing": "skill_must_missing",
    "rate_gap": "rate_gap",
    "level_gap": "experience_gap",
    "overlap": "overlap_minutes",
    "rating": "rating",
    "reviews": "reviews",
    "response": "response",
    "noise": "posted_days",
}
"""The simulation's features by names of the engine's, whose meaning is near."""


def market_frame(seed=1, decisions=1_000, judged=300):
    """Training and judged decisions of one seed, as they would be logged."""
    before = simulate.simulate(seed, decisions, days=(0, simulate.SPLIT))
    after = simulate.simulate(1_000 + seed, judged, days=(simulate.SPLIT, simulate.DAYS), name="t")
    return pl.concat([before.frame, after.frame], how="diagonal")


def logged_of(frame, folder, name="log.parquet"):
    """``frame`` written and read."""
    frame.write_parquet(folder / name)
    return read([folder / name])


def with_own_features(frame):
    """Every feature of the engine: those of the simulation, the others noise in their range."""
    rng = np.random.default_rng(0)
    columns = {}
    for one in FEATURES:
        simulated = next((name for name, own in OWN.items() if own == one.name), None)
        columns[FEATURE + one.name] = (
            frame[FEATURE + simulated] if simulated else
            pl.Series(rng.integers(one.low, one.high + 1, frame.height).astype(np.int32))
        )  # fmt: skip
    kept = [name for name in frame.columns if not name.startswith(FEATURE)]
    version = pl.lit(FEATURES_VERSION, pl.Int32).alias("features_version")
    return frame.select(kept).with_columns(version, **columns)
