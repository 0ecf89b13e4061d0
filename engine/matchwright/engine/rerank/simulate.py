"""The simulated marketplace of ``docs/simulation.md``: logged decisions whose truth is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from matchwright.engine.rerank.decisions import FEATURE, OUTCOMES
from matchwright.kernels.types import Bool, Float64, Int32, Int64

FEATURES = (
    "score", "coverage", "must_missing", "rate_gap", "level_gap", "overlap", "rating", "reviews",
    "response", "noise",
)  # fmt: skip
FEATURES_VERSION = 1_000
"""Not a version of the engine's own features."""
LISTED = 30
DAYS, SPLIT = 100, 80
FIRST_DAY = 20_000
UNKNOWN = -(2**22)
ETA = 1.0
_SWAPPED = 0.1
_CATEGORIES = ("design", "software", "translation", "writing")
_COUNTRIES = ("BR", "DE", "IN", "PL", "US")
_MINUTE = 60_000_000
_DAY = 86_400_000_000


@dataclass(frozen=True, eq=False)
class Simulated:
    """Decisions and their truth; N = D * LISTED rows in order of (decision, position).

    Attributes:
        frame: as it would be logged.
        rho: float64 (N,), the probability that the pair is wanted.
        f_nf: int32 (N, F); first_rank: int32 (N,); day_d: int32 (D,).
    """

    frame: pl.DataFrame
    rho: Float64
    f_nf: Int32
    first_rank: Int32
    day_d: Int32


def simulate(
    seed: int, decisions: int, *, days: tuple[int, int] = (0, DAYS), name: str = "d"
) -> Simulated:
    """Decisions of one marketplace.

    Args:
        seed: names it.
        decisions: how many, evenly over the days.
        days: the first, and the one after the last.
        name: begins every id.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    shape = (decisions, LISTED)
    values = _features(rng, shape)
    newcomer = values["reviews"] == 0
    rho = _rho(rng, values, newcomer)
    score = _first_phase(rng, values)
    values["score"] = np.rint(4_096 * score).astype(np.int64)
    country = rng.integers(0, len(_COUNTRIES), shape)
    order = np.argsort(-score, axis=1, kind="stable")
    explored, order = swap(rng, order)

    def shown(values_dm: Any) -> Any:
        return np.take_along_axis(values_dm, order, axis=1)

    rank_dm = np.argsort(np.argsort(-score, axis=1, kind="stable"), axis=1) + 1
    reached = funnel(rng, shown(rho), shown(values["response"]))
    day_d = np.floor(np.linspace(*days, decisions, endpoint=False)).astype(np.int32) + FIRST_DAY
    f_nf = np.stack([shown(values[f]).reshape(-1) for f in FEATURES], axis=1).astype(np.int32)
    segments = {
        "newcomer": shown(newcomer).reshape(-1),
        "category": np.repeat(np.take(_CATEGORIES, np.arange(decisions) % 4), LISTED),
        "country": np.take(_COUNTRIES, shown(country).reshape(-1)),
    }
    first_rank = shown(rank_dm).reshape(-1).astype(np.int32)
    candidate = shown(np.arange(decisions * LISTED).reshape(shape)).reshape(-1)
    frame = _frame(name, day_d, f_nf, first_rank, candidate, explored.reshape(-1), reached,
                   segments)  # fmt: skip
    return Simulated(frame, shown(rho).reshape(-1), f_nf, first_rank, day_d)


def _features(rng: np.random.Generator, shape: tuple[int, int]) -> dict[str, Int64]:
    newcomer = rng.random(shape) < 0.2
    return {
        "coverage": rng.integers(0, 1_001, shape),
        "must_missing": np.searchsorted([0.7, 0.9], rng.random(shape), side="right"),
        "rate_gap": rng.integers(-500, 501, shape),
        "level_gap": rng.integers(-2, 3, shape),
        "overlap": rng.integers(0, 481, shape),
        "rating": np.where(newcomer, UNKNOWN, rng.integers(3_000, 5_001, shape)),
        "reviews": np.where(newcomer, 0, rng.integers(1, 201, shape)),
        "response": rng.integers(0, 1_001, shape),
        "noise": rng.integers(0, 1_001, shape),
    }


def _rho(rng: np.random.Generator, f: dict[str, Int64], newcomer: Bool) -> Float64:
    coverage = f["coverage"] / 1_000
    rating = np.where(newcomer, 0.0, (f["rating"] - 4_000) / 1_000)
    z = (
        -2.2 + 2.4 * coverage + 1.2 * coverage * (f["level_gap"] == 0) - 1.3 * f["must_missing"]
        - 2.0 * np.maximum(0.0, f["rate_gap"] / 500) - 0.5 * np.abs(f["level_gap"])
        + 0.8 * np.minimum(f["overlap"], 240) / 240 + 0.8 * rating
        + 0.6 * (f["response"] - 500) / 500 + 0.5 * rng.standard_normal(coverage.shape)
    )  # fmt: skip
    rho: Float64 = 1.0 / (1.0 + np.exp(-z))
    return rho


def _first_phase(rng: np.random.Generator, f: dict[str, Int64]) -> Float64:
    score: Float64 = (
        0.9 * f["coverage"] / 1_000 + 0.5 * np.minimum(f["overlap"], 240) / 240
        + 0.6 * f["reviews"] / 200 - 0.2 * np.abs(f["level_gap"]) - 0.2 * f["rate_gap"] / 500
        + 0.35 * rng.standard_normal(f["coverage"].shape)
    )  # fmt: skip
    return score


def swap(rng: np.random.Generator, order: Int64) -> tuple[Bool, Int64]:
    """(who took part by place, the order that is shown): a tenth of the decisions plays."""
    order = order.copy()
    decisions = len(order)
    plays = rng.random(decisions) < _SWAPPED
    other = rng.integers(1, LISTED, decisions)
    changes = plays & (rng.random(decisions) < 0.5)
    rows = np.flatnonzero(changes)
    order[rows, 0], order[rows, other[rows]] = order[rows, other[rows]], order[rows, 0]
    explored = np.zeros(order.shape, dtype=np.bool_)
    explored[plays, 0] = True
    explored[np.flatnonzero(plays), other[plays]] = True
    return explored, order


def funnel(
    rng: np.random.Generator, rho: Float64, response: Int64, eta: float = ETA
) -> dict[str, Bool]:
    """What came of each place: (N,) each.

    Args:
        rho: (D, LISTED) by place, the probability that the pair is wanted.
        response: (D, LISTED), thousandths.
        eta: clients look at place k with the chance ``k ** -eta``.
    """
    place = np.arange(1, LISTED + 1)

    def chance(probability: Any) -> Bool:
        return np.asarray(rng.random(rho.shape) < probability)

    wanted = chance(rho)
    examined = chance(1.0 / place**eta)
    viewed = examined & chance(np.where(wanted, 0.95, 0.05 + 0.15 / place))
    invited = viewed & chance(np.where(wanted, 0.6, 0.03))
    replied = invited & chance(0.4 + 0.6 * response / 1_000)
    hired = replied & chance(np.where(wanted, 0.5, 0.05))
    named = {"viewed": viewed, "invited": invited, "replied": replied, "hired": hired}
    return {name: happened.reshape(-1) for name, happened in named.items()}


def _frame(
    name: str, day_d: Int32, f_nf: Int32, first_rank: Int32, candidate: Int64, explored: Bool,
    reached: dict[str, Bool], segments: dict[str, Any],
) -> pl.DataFrame:  # fmt: skip
    decisions = np.repeat(np.arange(day_d.size), LISTED)
    at = day_d.astype(np.int64) * _DAY + 8 * 60 * _MINUTE
    text = pl.Series(decisions).cast(pl.String)
    columns: dict[str, Any] = {
        "decision_id": name + text,
        "decided_at": timestamps(np.repeat(at, LISTED)),
        "asking": ["job"] * decisions.size,
        "query_id": f"{name}j" + text,
        "candidate_id": f"{name}f" + pl.Series(candidate).cast(pl.String),
        "position": np.tile(np.arange(1, LISTED + 1, dtype=np.int32), day_d.size),
        "first_rank": first_rank,
        "explored": pl.Series(explored).replace_strict({True: "swap", False: None},
                                                       return_dtype=pl.String),
        "propensity": pl.Series(np.where(explored, 0.5, np.nan)).fill_nan(None),
        **segments,
        "features_version": np.full(decisions.size, FEATURES_VERSION, dtype=np.int32),
    }  # fmt: skip
    for step, outcome in enumerate(OUTCOMES):
        if outcome in reached:
            times = timestamps(np.repeat(at, LISTED) + (10 + 20 * step) * _MINUTE)
            columns[f"{outcome}_at"] = times_where(times, reached[outcome])
    columns |= {FEATURE + f: f_nf[:, column] for column, f in enumerate(FEATURES)}
    return pl.DataFrame(columns)


def timestamps(microseconds: Int64) -> pl.Series:
    """Microseconds since 1970 as moments in UTC."""
    return pl.Series(microseconds).cast(pl.Datetime("us", "UTC"))


def times_where(times: pl.Series, happened: Bool) -> pl.Series:
    """The moments of what happened, null for the rest."""
    return pl.select(pl.when(pl.Series(happened)).then(times)).to_series()


def without_outcomes(frame: pl.DataFrame, rows: pl.Expr) -> pl.DataFrame:
    """The frame, some of whose rows never came to anything."""
    return frame.with_columns(
        pl.when(~rows).then(pl.col(f"{name}_at")).alias(f"{name}_at")
        for name in OUTCOMES if f"{name}_at" in frame.columns
    )  # fmt: skip


def shuffled_outcomes(frame: pl.DataFrame, seed: int) -> pl.DataFrame:
    """The frame, outcomes having changed places within their decision."""
    names = [f"{name}_at" for name in OUTCOMES if f"{name}_at" in frame.columns]
    rng = np.random.default_rng(seed)
    keyed = frame.select("decision_id").with_columns(
        key=pl.Series(rng.random(frame.height)), row=pl.int_range(frame.height)
    )
    moved = keyed.sort(pl.col("row").min().over("decision_id"), "key")["row"]
    return frame.with_columns(frame.select(names)[moved])


def true_ndcg(rho: Float64, rank: Int64, k: int = 10) -> Float64:
    """float64 (D,): NDCG@k of an order, gains being the truth.

    Args:
        rho: (N,), rank: (N,) from 0, LISTED rows a decision.
    """
    shape = (-1, LISTED)
    gain = np.where(rank < k, rho / np.log2(rank + 2.0), 0.0).reshape(shape).sum(axis=1)
    best = -np.sort(-rho.reshape(shape), axis=1)[:, :k] / np.log2(np.arange(k) + 2.0)
    ndcg: Float64 = gain / best.sum(axis=1)
    return ndcg


def true_tau(rho: Float64, rank: Int64) -> Float64:
    """float64 (D,): Kendall's tau of an order (no ties) with the true one."""
    a, b = rho.reshape(-1, LISTED), -rank.reshape(-1, LISTED).astype(np.float64)
    i, j = np.triu_indices(LISTED, 1)
    agree: Float64 = (np.sign(a[:, i] - a[:, j]) * np.sign(b[:, i] - b[:, j])).mean(axis=1)
    return agree


def interval(
    differences: Sequence[Float64], seed: int = 0, draws: int = 2_000
) -> tuple[float, float, float]:
    """(mean, low, high): 95% of a bootstrap that draws seeds, then decisions within each."""
    rng = np.random.default_rng(seed)
    means = np.empty(draws)
    for draw in range(draws):
        drawn = rng.integers(0, len(differences), len(differences))
        parts = [differences[s][rng.integers(0, differences[s].size, differences[s].size)]
                 for s in drawn]  # fmt: skip
        means[draw] = np.mean([part.mean() for part in parts])
    low, high = np.percentile(means, [2.5, 97.5])
    return float(np.mean([d.mean() for d in differences])), float(low), float(high)
