"""Simulated clients who look at a store's own answers: for demos, where nobody ever hired anybody.

The lists are what the first phase answers for the store's jobs, and the features are the engine's
own, of the day of the decision. What clients want is made up: ``docs/simulation.md`` says how.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from matchwright.engine.matcher import Matcher
from matchwright.engine.prepare import Prepared, prepare
from matchwright.engine.request import Request
from matchwright.engine.rerank.decisions import FEATURE, OUTCOMES
from matchwright.engine.rerank.features import FEATURES, FEATURES_VERSION, INDEX, UNKNOWN
from matchwright.engine.rerank.simulate import LISTED, funnel, swap, times_where, timestamps
from matchwright.engine.results import Result
from matchwright.kernels.types import Float64, Int32

DAYS = 60
_AT_ONCE = 250
_MINUTE, _DAY = 60_000_000, 86_400_000_000
_RESPONSE = 700
ETA = 0.5


def simulate_clients(
    snapshot: Any, matcher: Matcher, jobs: Sequence[str], *, seed: int, last_day: int
) -> pl.DataFrame:
    """Logged decisions, evenly over the ``DAYS`` before ``last_day``.

    Args:
        snapshot: the epoch that answers.
        matcher: over that snapshot, under a policy that does not rerank.
        jobs: ids; those with fewer than ``LISTED`` eligible freelancers are left out.
        seed: of the clients.
        last_day: days since 1970-01-01; the last that anything happens on.

    Returns:
        One row for each freelancer that was shown, empty when no job has enough of them.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    day_j = last_day - DAYS + np.floor(np.linspace(0, DAYS, len(jobs), endpoint=False)).astype(int)
    parts = []
    for low in range(0, len(jobs), _AT_ONCE):
        requests = [
            Request(kind="job", id=name, k=LISTED, as_of=int(day), count=False)
            for name, day in zip(jobs[low : low + _AT_ONCE], day_j[low:], strict=False)
        ]
        answers = matcher.match_many(requests)
        asked = prepare(snapshot, requests, matcher.policy.budgets, matcher.effective)
        whole = [
            (query, answer)
            for query, answer in zip(asked, answers, strict=True)
            if isinstance(query, Prepared)
            and isinstance(answer, Result)
            and answer.returned == LISTED
        ]
        if whole:
            parts.append(_block(rng, snapshot, whole))
    return pl.concat(parts) if parts else pl.DataFrame()


def _block(
    rng: np.random.Generator, snapshot: Any, whole: Sequence[tuple[Prepared, Result]]
) -> pl.DataFrame:
    """Decisions of some jobs: what was shown, and what came of it."""
    from matchwright.engine.rerank.features_pairs import SHARED

    rows = [snapshot.rows_of("freelancer", answer.ids) for _, answer in whole]
    names = [one.name for one in FEATURES if one.name != "reciprocal"]
    f_nf = SHARED.make(snapshot, [query for query, _ in whole], rows, names=names)
    shape = len(whole), LISTED
    explored, order = swap(rng, np.tile(np.arange(LISTED), (len(whole), 1)))
    rho = np.take_along_axis(wanted(f_nf, rng).reshape(shape), order, axis=1)
    reached = funnel(rng, rho, np.full(shape, _RESPONSE), ETA)
    ids = np.array([answer.ids for _, answer in whole], dtype=object)
    shown = np.take_along_axis(np.arange(len(f_nf)).reshape(shape), order, axis=1).reshape(-1)
    day_d = np.array([query.request.as_of for query, _ in whole], dtype=np.int64)
    at = np.repeat(day_d * _DAY + 8 * 60 * _MINUTE, LISTED)
    query_id = np.repeat([str(query.request.id) for query, _ in whole], LISTED)
    reviews = f_nf[shown, INDEX["reviews"]]
    columns: dict[str, Any] = {
        "decision_id": query_id,
        "decided_at": timestamps(at),
        "asking": ["job"] * len(f_nf),
        "query_id": query_id,
        "candidate_id": ids.reshape(-1)[shown].tolist(),
        "position": np.tile(np.arange(1, LISTED + 1, dtype=np.int32), len(whole)),
        "first_rank": (order + 1).reshape(-1).astype(np.int32),
        "explored": times_where(pl.Series(["swap"] * len(f_nf)), explored.reshape(-1)),
        "propensity": pl.Series(np.where(explored, 0.5, np.nan).reshape(-1)).fill_nan(None),
        "newcomer": (reviews == 0) | (reviews == UNKNOWN),
        "features_version": np.full(len(f_nf), FEATURES_VERSION, dtype=np.int32),
    }
    for step, outcome in enumerate(OUTCOMES):
        if outcome in reached:
            moments = timestamps(at + (10 + 20 * step) * _MINUTE)
            columns[f"{outcome}_at"] = times_where(moments, reached[outcome])
    columns |= {FEATURE + one.name: f_nf[shown, c] for c, one in enumerate(FEATURES)}
    return pl.DataFrame(columns)


def wanted(f_nf: Int32, rng: np.random.Generator) -> Float64:
    """float64 (N,): the probability that a client who looks at a pair wants it."""

    def known(name: str, otherwise: float) -> Float64:
        values = f_nf[:, INDEX[name]].astype(np.float64)
        return np.where(values == UNKNOWN, otherwise, values)

    z = (
        -2.5 + 2.0 * known("skill_coverage", 500) / 1_000 - 1.0 * known("skill_must_missing", 0)
        - 0.6 * np.abs(known("experience_gap", 0)) + 3.0 * known("overlap_minutes", 0) / 480
        + 2.0 * (known("rating", 4_700) - 4_300) / 700 - 1.5 * known("last_active_days", 60) / 60
        + 0.5 * rng.standard_normal(len(f_nf))
    )  # fmt: skip
    rho: Float64 = 1.0 / (1.0 + np.exp(-z))
    return rho
