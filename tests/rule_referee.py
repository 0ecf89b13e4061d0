"""Records drawn at random, and a referee of the rules that knows neither columns nor predicates."""

from __future__ import annotations

import datetime
import unicodedata
import zoneinfo

import numpy as np
import polars as pl
from hypothesis import strategies as st

from matchwright.engine.columns import (
    columns,
)
from matchwright.engine.eligibility import (
    RULE,
    RULES,
    compile_rules,
)
from matchwright.engine.policy import Policy
from matchwright.engine.records import SCHEMAS
from matchwright.engine.rule_shapes import Day, QueryRow, Setting
from matchwright.engine.zones import offset_minutes
from matchwright.kernels import rules as kernel_rules
from matchwright.kernels.order import hash_keys
from matchwright.kernels.types import Segment

SALT = bytes(range(16))
ZONES = ("America/New_York", "Asia/Kathmandu", "Europe/Paris", "Pacific/Auckland", "UTC")
AS_OF = 20_454
SKILLS = ["python", "rust", "go", "sql"]
LABELS = ["Web", "Design", "Data"]
COUNTRIES = ["FR", "NP", "US"]
PEOPLE = ["f-0", "f-1", "f-2"]
CLIENTS = ["c-0", "c-1"]


# ── Records ───────────────────────────────────────────────────────────────────────────────────


def maybe(strategy):
    return st.none() | strategy


def some(values):
    return st.lists(st.sampled_from(values), max_size=3)


def rates():
    return st.integers(0, 6).map(lambda n: n * 1_000)


JOBS = st.fixed_dictionaries(
    {
        "client_id": maybe(st.sampled_from(CLIENTS)),
        "skills": maybe(
            st.lists(
                st.fixed_dictionaries(
                    {
                        "name": st.sampled_from(SKILLS),
                        "level": maybe(st.integers(1, 5)),
                        "must": maybe(st.booleans()),
                    }
                ),
                max_size=3,
            )
        ),
        "category": maybe(st.sampled_from(LABELS)),
        "rate_min_cents": maybe(rates()),
        "rate_max_cents": maybe(rates()),
        "fixed_cents": maybe(rates()),
        "languages": maybe(
            st.lists(
                st.fixed_dictionaries(
                    {
                        "code": st.sampled_from(["en", "fr"]),
                        "level": maybe(st.integers(1, 6)),
                    }
                ),
                max_size=2,
            )
        ),
        "country": maybe(st.sampled_from(COUNTRIES)),
        "zone": maybe(st.sampled_from([*ZONES, "Mars/Phobos"])),
        "hours_start": maybe(st.integers(0, 1_439)),
        "hours_end": maybe(st.integers(0, 1_440)),
        "weekly_hours": maybe(st.sampled_from([0, 10, 20, 40])),
        "closes": maybe(st.sampled_from([AS_OF - 1, AS_OF, AS_OF + 1])),
        "status": maybe(st.sampled_from(["OPEN", "PAUSED", "CLOSED"])),
        "max_rate_cents": maybe(rates()),
        "min_rate_cents": maybe(rates()),
        "countries_allowed": maybe(some(COUNTRIES)),
        "countries_denied": maybe(some(COUNTRIES)),
        "excluded_freelancers": maybe(some(PEOPLE)),
        "min_overlap_minutes": maybe(st.sampled_from([0, 1, 60, 480, 1_440])),
        "min_experience": maybe(st.sampled_from(["ENTRY", "INTERMEDIATE", "EXPERT"])),
        "min_rating_milli": maybe(st.sampled_from([0, 4_000, 5_000])),
        "min_success_permille": maybe(st.sampled_from([0, 500, 1_000])),
        "min_reviews": maybe(st.sampled_from([0, 1, 10])),
        "certifications_required": maybe(some(["AWS", "  aws ", "PMP"])),
    }
)

FREELANCERS = st.fixed_dictionaries(
    {
        "skills": maybe(
            st.lists(
                st.fixed_dictionaries(
                    {"name": st.sampled_from(SKILLS), "level": maybe(st.integers(1, 5))}
                ),
                max_size=4,
            )
        ),
        "categories": maybe(some(LABELS)),
        "certifications": maybe(
            st.lists(
                st.fixed_dictionaries(
                    {
                        "name": st.sampled_from(["AWS", "PMP"]),
                        "issuer": st.none(),
                        "issued": st.none(),
                        "verified": maybe(st.booleans()),
                    }
                ),
                max_size=2,
            )
        ),
        "rate_cents": maybe(rates()),
        "experience_level": maybe(st.sampled_from(["ENTRY", "INTERMEDIATE", "EXPERT"])),
        "languages": maybe(
            st.lists(
                st.fixed_dictionaries(
                    {
                        "code": st.sampled_from(["en", "fr"]),
                        "level": maybe(st.integers(1, 6)),
                    }
                ),
                max_size=2,
                unique_by=lambda one: one["code"],
            )
        ),
        "country": maybe(st.sampled_from(COUNTRIES)),
        "zone": maybe(st.sampled_from([*ZONES, "Mars/Phobos"])),
        "hours_start": maybe(st.integers(0, 1_439)),
        "hours_end": maybe(st.integers(0, 1_440)),
        "weekly_hours": maybe(st.sampled_from([0, 10, 20, 40])),
        "reviews": maybe(st.sampled_from([0, 1, 10, 11])),
        "rating_milli": maybe(st.sampled_from([0, 3_999, 4_000, 5_000])),
        "success_permille": maybe(st.sampled_from([0, 499, 500, 1_000])),
        "status": maybe(st.sampled_from(["AVAILABLE", "BUSY", "GONE"])),
        "min_rate_cents": maybe(rates()),
        "min_fixed_cents": maybe(rates()),
        "min_weekly_hours": maybe(st.sampled_from([0, 10, 30])),
        "declined_categories": maybe(some([*LABELS, " web "])),
        "excluded_clients": maybe(some(CLIENTS)),
        "countries_denied": maybe(some(COUNTRIES)),
    }
)


def _setting(rule):
    options = {
        "accept": st.sampled_from(
            [("OPEN",), ("OPEN", "PAUSED")]
            if rule.name == "job_status"
            else [("AVAILABLE",), ("AVAILABLE", "BUSY")]
        ),
        "tolerance_permille": st.sampled_from([0, 1, 100, 333, 1_000]),
        "unstated_level": st.integers(0, 6),
        "verified_only": st.booleans(),
    }
    pairs = [st.tuples(st.just(name), options[name]) for name in sorted(rule.options)]
    mostly = st.sampled_from([True, True, True, False])
    return st.builds(Setting, mostly, st.booleans(), st.tuples(*pairs))


SETTINGS = st.fixed_dictionaries({rule.name: _setting(rule) for rule in RULES})


# ── The referee: from records to verdicts, without the engine's columns or predicates ─────────


def referee(job, freelancer, settings):
    """rule name -> True (passes), False (fails) or None (not known), for enabled rules."""
    verdicts = {}
    for name, check in CHECKS.items():
        if settings[name].enabled:
            verdicts[name] = check(job, freelancer, dict(settings[name].options))
    return verdicts


def limited(limit, value, holds):
    """A limit against a value: no limit passes, no value is not known."""
    if not limit and limit != 0:
        return True
    return None if value is None else holds(limit, value)


def plain(name):
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())


def at_least(limit, value):
    return True if not limit else limited(limit, value, lambda low, got: got >= low)


def hourly(job):
    return job["rate_max_cents"] is not None or job["rate_min_cents"] is not None


def pay_minimum(job, freelancer, _):
    if not freelancer["min_rate_cents"]:
        return True
    if job["fixed_cents"] is not None and not hourly(job):
        return True
    top = job["rate_max_cents"] if job["rate_max_cents"] is not None else job["rate_min_cents"]
    return at_least(freelancer["min_rate_cents"], top)


def fixed_price_minimum(job, freelancer, _):
    if not freelancer["min_fixed_cents"]:
        return True
    if job["fixed_cents"] is None and hourly(job):
        return True
    return at_least(freelancer["min_fixed_cents"], job["fixed_cents"])


def required_skills(job, freelancer, _):
    must = {skill["name"] for skill in job["skills"] or () if skill["must"]}
    if not must:
        return True
    if freelancer["skills"] is None:
        return None
    return must <= {skill["name"] for skill in freelancer["skills"]}


def languages(job, freelancer, options):
    if not job["languages"]:
        return True
    if freelancer["languages"] is None:
        return None
    spoken = {}
    for one in freelancer["languages"]:
        level = options["unstated_level"] if one["level"] is None else one["level"]
        spoken[one["code"]] = max(level, spoken.get(one["code"], -1))
    return all(spoken.get(one["code"], -1) >= (one["level"] or 0) for one in job["languages"])


def window(record):
    """Minutes of the UTC day on which somebody works; None when not known."""
    if None in (record["zone"], record["hours_start"], record["hours_end"]):
        return None
    if record["zone"] not in ZONES:
        return None
    day = datetime.datetime(1970, 1, 1, 12, tzinfo=datetime.UTC) + datetime.timedelta(AS_OF)
    offset = day.astimezone(zoneinfo.ZoneInfo(record["zone"])).utcoffset()
    minute, end, works = record["hours_start"], record["hours_end"], set()
    while True:
        works.add((minute - int(offset.total_seconds()) // 60) % 1_440)
        minute += 1
        if minute % 1_440 == end % 1_440:
            return works


def hours_overlap(job, freelancer, _):
    if not job["min_overlap_minutes"]:
        return True
    ours, theirs = window(job), window(freelancer)
    if ours is None or theirs is None:
        return None
    return len(ours & theirs) >= job["min_overlap_minutes"]


def declined_categories(job, freelancer, _):
    declined = {plain(name) for name in freelancer["declined_categories"] or ()}
    return limited(declined, job["category"], lambda no, got: plain(got) not in no)


def same_category(job, freelancer, _):
    if job["category"] is None or freelancer["categories"] is None:
        return None
    return plain(job["category"]) in {plain(name) for name in freelancer["categories"]}


def certifications(job, freelancer, options):
    required = {plain(name) for name in job["certifications_required"] or ()}
    if not required:
        return True
    if freelancer["certifications"] is None:
        return None
    return required <= {
        plain(one["name"])
        for one in freelancer["certifications"]
        if one["verified"] or not options["verified_only"]
    }


def hours_available(job, freelancer, _):
    if job["weekly_hours"] is None or freelancer["weekly_hours"] is None:
        return None
    return job["weekly_hours"] <= freelancer["weekly_hours"]


def rate_budget(job, freelancer, options):
    whole = 1_000 + options["tolerance_permille"]
    return limited(
        job["rate_max_cents"], freelancer["rate_cents"], lambda top, r: r * 1_000 <= top * whole
    )


def experience_minimum(job, freelancer, _):
    order = {"ENTRY": 1, "INTERMEDIATE": 2, "EXPERT": 3, None: None}
    return at_least(order[job["min_experience"]], order[freelancer["experience_level"]])


CHECKS = {
    "job_status": lambda j, f, o: None if j["status"] is None else j["status"] in o["accept"],
    "job_closing": lambda j, f, o: j["closes"] is None or j["closes"] >= AS_OF,
    "freelancer_status": lambda j, f, o: (
        None if f["status"] is None else f["status"] in o["accept"]
    ),
    "required_skills": required_skills,
    "excluded_freelancers": lambda j, f, o: f["id"] not in (j["excluded_freelancers"] or ()),
    "excluded_clients": lambda j, f, o: limited(
        f["excluded_clients"], j["client_id"], lambda no, got: got not in no
    ),
    "rate_ceiling": lambda j, f, o: limited(
        j["max_rate_cents"], f["rate_cents"], lambda top, got: got <= top
    ),
    "rate_budget": rate_budget,
    "rate_floor": lambda j, f, o: at_least(j["min_rate_cents"], f["rate_cents"]),
    "pay_minimum": pay_minimum,
    "fixed_price_minimum": fixed_price_minimum,
    "hours_minimum": lambda j, f, o: at_least(f["min_weekly_hours"], j["weekly_hours"]),
    "hours_available": hours_available,
    "languages": languages,
    "countries_allowed": lambda j, f, o: limited(
        j["countries_allowed"], f["country"], lambda yes, got: got in yes
    ),
    "countries_denied": lambda j, f, o: limited(
        j["countries_denied"], f["country"], lambda no, got: got not in no
    ),
    "client_countries_denied": lambda j, f, o: limited(
        f["countries_denied"], j["country"], lambda no, got: got not in no
    ),
    "hours_overlap": hours_overlap,
    "declined_categories": declined_categories,
    "same_category": same_category,
    "experience_minimum": experience_minimum,
    "rating_minimum": lambda j, f, o: at_least(j["min_rating_milli"], f["rating_milli"]),
    "success_minimum": lambda j, f, o: at_least(j["min_success_permille"], f["success_permille"]),
    "reviews_minimum": lambda j, f, o: at_least(j["min_reviews"], f["reviews"]),
    "certifications": certifications,
}


# ── The engine under test ─────────────────────────────────────────────────────────────────────


def frame_of(kind, rows):
    blank = dict.fromkeys(SCHEMAS[kind])
    return pl.DataFrame([{**blank, **row} for row in rows], schema=SCHEMAS[kind])


def segment_of(kind, rows):
    scalars, sets = columns(kind, frame_of(kind, rows), SALT, ZONES)
    keys = hash_keys([row["id"] for row in rows], SALT)
    return Segment(np.zeros((len(rows), 1), np.int8), keys, scalars, sets)


def said(kind, segments, asking, row, settings):
    """(vetoes, unverified) of one pair by the engine, row ``asking`` of ``kind`` asking."""
    mine, corpus = segments[kind], segments["freelancer" if kind == "job" else "job"]
    query = QueryRow(kind, mine.scalars, mine.sets, asking, int(mine.key_n[asking]))
    compiled = compile_rules(query, settings, Day(AS_OF, offset_minutes(ZONES, AS_OF)))
    vetoes, unverified = kernel_rules.vetoes(compiled.predicates, corpus, row)
    return set(vetoes), {*unverified, *compiled.unsure}


def engine_says(kind, asking, others, settings):
    """For every record of ``others``: (vetoes, unverified) by the engine, ``kind`` asking."""
    other = "freelancer" if kind == "job" else "job"
    segments = {kind: segment_of(kind, [asking]), other: segment_of(other, others)}
    return [said(kind, segments, 0, row, settings) for row in range(len(others))]


def referee_says(job, freelancer, settings):
    verdicts = referee(job, freelancer, settings)
    passes = {name: settings[name].unknown_passes for name in verdicts}
    vetoes = {
        str(RULE[name].veto)
        for name, verdict in verdicts.items()
        if verdict is False or (verdict is None and not passes[name])
    }
    unverified = {
        str(RULE[name].veto)
        for name, verdict in verdicts.items()
        if verdict is None and passes[name]
    }
    return vetoes, unverified


def settings_with(**changes):
    """All rules off but those that are named."""
    default = Policy.load().rules
    off = {name: Setting(False, s.unknown_passes, s.options) for name, s in default.items()}
    for name, unknown_passes in changes.items():
        off[name] = Setting(True, unknown_passes, default[name].options)
    return off
