"""Features of one pair, slowly, from its two records: the referee of ``rerank/features_pairs.py``.

It shares no arithmetic with the engine but the score of a pair, which has referees of its own.
"""

from __future__ import annotations

import datetime
import math
from fractions import Fraction
from importlib import resources
from zoneinfo import ZoneInfo

from matchwright.engine.columns import fold
from matchwright.engine.request import Request
from matchwright.engine.rerank.features import SCORE_MAX, UNKNOWN

LEVELS = {"ENTRY": 1, "INTERMEDIATE": 2, "EXPERT": 3}
STATES = {"AVAILABLE": 2, "BUSY": 1, "GONE": 0}


def features_of_pair(market, matcher, kind, query, candidate, as_of):
    """Name -> value, for the stored ``query`` of ``kind`` and one stored candidate (ids)."""
    other = "freelancer" if kind == "job" else "job"
    records = {kind: market.record(kind, query), other: market.record(other, candidate)}
    job, person = records["job"], records["freelancer"]
    request = Request(kind=kind, id=query, as_of=as_of)
    plateau = matcher.policy.facets.recency_plateau_days
    return {
        "asking": 0 if kind == "job" else 1,
        **_points(market, matcher, request, candidate),
        **_skills(job, person, market.generation),
        "rate_gap": _rate_gap(job["rate_max_cents"], person["rate_cents"]),
        "weekly_hours_gap": _gap(person["weekly_hours"], job["weekly_hours"]),
        "overlap_minutes": _overlap(job, person, as_of),
        "experience_gap": _gap(
            LEVELS.get(person["experience_level"]), LEVELS.get(job["experience_level"])
        ),
        "category_match": _category(job, person),
        "reviews": _log(person["reviews"]),
        "rating": _or_unknown(person["rating_milli"]),
        "success": _or_unknown(person["success_permille"]),
        "response": _or_unknown(person["response_permille"]),
        "last_active_days": _ago(person["last_active"], as_of, plateau),
        "available": _or_unknown(STATES.get(person["status"])),
        "client_reviews": _log(job["client_reviews"]),
        "client_rating": _or_unknown(job["client_rating_milli"]),
        "posted_days": _ago(job["posted"], as_of, plateau),
        "budget_known": _budget(job),
        "job_text_known": 1 if job["text"] else 0,
        "reciprocal": _reciprocal(matcher, other, query, candidate, as_of),
    }


def _or_unknown(value):
    return UNKNOWN if value is None else value


def units(score):
    """floor(score * 4,096), exactly, within the stated range."""
    return min(max(math.floor(Fraction(score) * 4_096), -SCORE_MAX), SCORE_MAX)


def _points(market, matcher, request, candidate):
    (pair,) = matcher.score_pairs(request, [candidate])
    query = matcher.prepare_one(market, request)
    found = {"score": units(pair.score), "score_share": UNKNOWN}
    if query.attainable > 0:
        share = math.floor(Fraction(pair.score / query.attainable * 1_000))
        found["score_share"] = min(max(share, -2_000), 2_000)
    for facet in market.generation.facets:
        block = query.q_d[facet.start : facet.start + facet.width].tolist()
        points = pair.contributions[facet.name]
        asked = any(entry != 0 for entry in block)
        found[f"facet_{facet.name}"] = units(points * query.t) if asked else UNKNOWN
    return found


def _reciprocal(matcher, other, query, candidate, as_of):
    asked = Request(kind=other, id=candidate, as_of=as_of)
    prepared = matcher.prepare_one(matcher.snapshot(), asked)
    if not any(prepared.q_d.tolist()):
        return UNKNOWN
    (pair,) = matcher.score_pairs(asked, [query])
    return units(pair.score)


def _skills(job, person, generation):
    asked, has = {}, {}
    for one in (job["skills"] or ())[:30]:
        weight = generation.skill_weight(one["name"]) * (2 if one["must"] else 1)
        level, more = asked.get(fold(one["name"]), (0, 0))
        asked[fold(one["name"])] = max(level, one["level"] or 0), max(more, weight)
    for one in (person["skills"] or ())[:30]:
        has[fold(one["name"])] = max(has.get(fold(one["name"]), 0), one["level"] or 0)
    told = person["skills"] is not None and bool(asked)
    there = sum(weight for name, (_, weight) in asked.items() if name in has)
    short = [
        max(0, level - has[name])
        for name, (level, _) in asked.items()
        if has.get(name, 0) > 0 and level > 0
    ]
    musts = {fold(one["name"]) for one in job["skills"] or () if one["must"]}
    everything = {fold(one["name"]) for one in person["skills"] or ()}
    missing = len(musts - everything) if person["skills"] is not None or not musts else UNKNOWN
    total = sum(weight for _, weight in asked.values())
    return {
        "skill_coverage": there * 1_000 // total if told else UNKNOWN,
        "skill_must_missing": missing,
        "skill_level_shortfall": sum(short) if short else UNKNOWN,
    }


def _rate_gap(top, rate):
    if top is None or rate is None:
        return UNKNOWN
    return min(max((rate - top) * 1_000 // max(top, 1), -1_000), 1_000_000)


def _gap(has, asked):
    return UNKNOWN if has is None or asked is None else has - asked


def _minutes(record, as_of):
    """The minutes of the UTC day that somebody works on; None when not known."""
    start, end, zone = record["hours_start"], record["hours_end"], record["zone"]
    if start is None or end is None or zone is None:
        return None
    path = resources.files("tzdata").joinpath("zoneinfo", *zone.split("/"))
    with path.open("rb") as data:
        place = ZoneInfo.from_file(data)
    day = datetime.datetime(1970, 1, 1, 12, tzinfo=datetime.UTC) + datetime.timedelta(days=as_of)
    east = int(day.astimezone(place).utcoffset().total_seconds() // 60)
    length = end - start if end > start else end - start + 1_440
    return {(start - east + minute) % 1_440 for minute in range(length)}


def _overlap(job, person, as_of):
    wanted, works = _minutes(job, as_of), _minutes(person, as_of)
    return UNKNOWN if wanted is None or works is None else len(wanted & works)


def _category(job, person):
    if job["category"] is None or person["categories"] is None:
        return UNKNOWN
    return int(fold(job["category"]) in {fold(name) for name in person["categories"]})


def _log(count):
    if count is None:
        return UNKNOWN
    octave = (count + 1).bit_length() - 1
    return 16 * octave + math.floor(Fraction(count + 1, 2**octave) * 16) - 16


def _ago(day, as_of, plateau):
    return UNKNOWN if day is None else min(max(as_of - day - plateau, 0), 36_500)


def _budget(job):
    if job["rate_max_cents"] is not None or job["rate_min_cents"] is not None:
        return 2
    return 1 if job["fixed_cents"] is not None else 0
