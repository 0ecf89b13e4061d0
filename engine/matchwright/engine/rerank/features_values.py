"""The features of pairs of one job and many freelancers, or one freelancer and many jobs.

Every function takes both sides, of 1 or M rows each, and gives int64 (M,) with ``UNKNOWN`` where a
value is not known. They are written once for both directions: sides broadcast.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from matchwright.engine.rerank.features import FEATURES, INDEX, UNKNOWN
from matchwright.engine.rerank.features_rows import Side
from matchwright.kernels.rules import overlap_minutes, window_minutes
from matchwright.kernels.types import NO_LIMIT, Bool, Int32, Int64
from matchwright.kernels.types import UNKNOWN as NOT_KNOWN

OCTAVE = 16
"""Steps of the log scale in a doubling."""


@dataclass(frozen=True, slots=True, eq=False)
class Pairs:
    """M pairs of one query.

    Attributes:
        job, freelancer: the sides, of 1 or M rows.
        m: how many pairs.
        as_of: the day.
        offsets: minutes east of UTC on that day, by zone number.
        plateau: days within which recency does not count.
    """

    job: Side
    freelancer: Side
    m: int
    as_of: int
    offsets: Int64
    plateau: int


def known_or(values: Any, known: Any) -> Any:
    """``values`` where ``known``, ``UNKNOWN`` elsewhere; int64."""
    return np.where(known, values, UNKNOWN).astype(np.int64, copy=False)


def clipped(name: str, values: Any) -> Any:
    """Values within a feature's stated range."""
    feature = FEATURES[INDEX[name]]
    return np.clip(values, feature.low, feature.high)


def log_scale(count: Any) -> Any:
    """16 * log2(1 + count), linear between powers of two; exact integers.

    For 1 + count = 2^e * (1 + f), 0 <= f < 1, it is 16 e + floor(16 f).
    """
    value = np.asarray(count, dtype=np.int64) + 1
    exponent = np.frexp(value.astype(np.float64))[1].astype(np.int64) - 1
    return OCTAVE * exponent + ((value * OCTAVE) >> exponent) - OCTAVE


# ── Skills ────────────────────────────────────────────────────────────────────────────────────


def skill_features(pairs: Pairs) -> dict[str, Int64]:
    """Coverage and levels of the asked skills."""
    job, freelancer = pairs.job.skills, pairs.freelancer.skills
    same_ahm = job.name_su[:, None] == freelancer.name_su
    there_am = same_ahm.any(axis=1)
    total = job.weight_su.sum(axis=0, dtype=np.int64)
    both = job.known_u & freelancer.known_u & (total > 0)
    share = np.where(there_am, job.weight_su, 0).sum(axis=0, dtype=np.int64) * 1_000
    level_am = np.where(same_ahm, freelancer.level_su, 0).max(axis=1, initial=0)
    told_am = there_am & (job.level_su > 0) & (level_am > 0)
    short = np.where(told_am, np.maximum(job.level_su - level_am, 0), 0).sum(axis=0)
    return {
        "skill_coverage": known_or(share // np.maximum(total, 1), both),
        "skill_level_shortfall": known_or(short, both & told_am.any(axis=0)),
    }


# ── Terms ─────────────────────────────────────────────────────────────────────────────────────


def number_features(pairs: Pairs) -> dict[str, Int64]:
    """Rate, hours, overlap and experience: what both sides say of the work, in numbers."""
    job, freelancer = pairs.job.numbers, pairs.freelancer.numbers
    return {
        "rate_gap": _rate_gap(job["budget_top"], freelancer["rate"]),
        "weekly_hours_gap": _gap(
            "weekly_hours_gap", freelancer["weekly_hours"], job["weekly_hours"]
        ),
        "overlap_minutes": _overlap(pairs),
        "experience_gap": _gap("experience_gap", freelancer["experience"], job["experience"]),
    }


def _rate_gap(top: Int32, rate: Int32) -> Int64:
    known = (top != NO_LIMIT) & (top != NOT_KNOWN) & (rate != NOT_KNOWN)
    budget = np.where(known, top, 1).astype(np.int64)
    gap = (np.where(known, rate, 1) - budget) * 1_000 // np.maximum(budget, 1)
    return np.asarray(known_or(clipped("rate_gap", gap), known))


def _gap(name: str, has: Int32, asked: Int32) -> Int64:
    known = (has != NOT_KNOWN) & (asked != NOT_KNOWN)
    gap = np.where(known, has.astype(np.int64) - asked, 0)
    return np.asarray(known_or(clipped(name, gap), known))


def _overlap(pairs: Pairs) -> Int64:
    begin_j, length_j, known_j = _window(pairs.job, pairs.offsets)
    begin_f, length_f, known_f = _window(pairs.freelancer, pairs.offsets)
    minutes = overlap_minutes(begin_f, length_f, begin_j, length_j)
    return np.asarray(known_or(minutes, known_j & known_f))


def _window(side: Side, offsets: Int64) -> tuple[Any, Any, Bool]:
    """(start in minutes of the UTC day, length, known) of daily working hours."""
    start, end, zone = (side.numbers[name] for name in ("hours_start", "hours_end", "zone"))
    known = (start != NOT_KNOWN) & (end != NOT_KNOWN) & (zone >= 0) & (zone < offsets.size)
    start, end = np.where(known, start, 0), np.where(known, end, 0)
    offset = offsets[np.where(known, zone, 0)] if offsets.size else np.zeros_like(start)
    return start - offset, window_minutes(start, end), known


# ── The two sides by themselves ───────────────────────────────────────────────────────────────


def person_features(pairs: Pairs) -> dict[str, Int64]:
    """Of the freelancer: track record, response, recency, state."""
    numbers = pairs.freelancer.numbers
    state = numbers["status"]
    return {
        "reviews": _log(numbers["reviews"]),
        "rating": _plain(numbers["rating"]),
        "success": _plain(numbers["success"]),
        "response": _plain(numbers["response_permille"]),
        "last_active_days": _days_ago(numbers["last_active"], pairs),
        "available": known_or(2 - state.astype(np.int64), state != NOT_KNOWN),
    }


def client_features(pairs: Pairs) -> dict[str, Int64]:
    """Of the job and its client."""
    numbers = pairs.job.numbers
    pay = numbers["pay_top"]
    return {
        "client_reviews": _log(numbers["client_reviews"]),
        "client_rating": _plain(numbers["client_rating_milli"]),
        "posted_days": _days_ago(numbers["posted"], pairs),
        "budget_known": np.where(pay == NOT_KNOWN, 0, np.where(pay == NO_LIMIT, 1, 2)),
        "job_text_known": numbers["text_known"].astype(np.int64),
    }


def _plain(column: Int32) -> Any:
    return known_or(column, column != NOT_KNOWN)


def _log(column: Int32) -> Any:
    known = column != NOT_KNOWN
    return known_or(log_scale(np.where(known, column, 0)), known)


def _days_ago(day: Int32, pairs: Pairs) -> Any:
    known = day != NOT_KNOWN
    ago = pairs.as_of - np.where(known, day, 0).astype(np.int64) - pairs.plateau
    return known_or(np.clip(ago, 0, FEATURES[INDEX["posted_days"]].high), known)
