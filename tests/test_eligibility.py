"""Rules: against an independent referee, in both directions, with every kind of unknown."""

from __future__ import annotations

import datetime
import unicodedata
import zoneinfo

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from matchwright.engine.columns import (
    DEMANDS,
    SCALARS,
    SETS,
    asks_column,
    columns,
    country_code,
    fold,
    language_code,
    name_hash,
)
from matchwright.engine.eligibility import (
    RULE,
    RULES,
    Veto,
    columns_needed,
    compile_rules,
    narrowed,
)
from matchwright.engine.limits import tightened
from matchwright.engine.policy import Policy
from matchwright.engine.records import FIELDS, SCHEMAS
from matchwright.engine.rule_shapes import Day, QueryRow, Setting
from matchwright.engine.zones import offset_minutes
from matchwright.kernels import rules as kernel_rules
from matchwright.kernels.order import hash_keys
from matchwright.kernels.types import NO_LIMIT, UNKNOWN, KeyIn, Segment

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
"""A setting of every rule."""


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


@given(
    SETTINGS,
    st.lists(JOBS, min_size=1, max_size=4),
    st.lists(FREELANCERS, min_size=1, max_size=3),
)
def test_both_directions_agree_with_the_referee(settings, jobs, people):
    jobs = [{**row, "id": f"j-{n}"} for n, row in enumerate(jobs)]
    people = [{**row, "id": PEOPLE[n]} for n, row in enumerate(people)]
    segments = {"job": segment_of("job", jobs), "freelancer": segment_of("freelancer", people)}
    for n, job in enumerate(jobs):
        for m, one in enumerate(people):
            expected = referee_says(job, one, settings)
            assert said("job", segments, n, m, settings) == expected
            assert said("freelancer", segments, m, n, settings) == expected


def settings_with(**changes):
    """All rules off but those that are named."""
    default = Policy.load().rules
    off = {name: Setting(False, s.unknown_passes, s.options) for name, s in default.items()}
    for name, unknown_passes in changes.items():
        off[name] = Setting(True, unknown_passes, default[name].options)
    return off


BLANK_JOB = dict.fromkeys(SCHEMAS["job"])
BLANK_FREELANCER = dict.fromkeys(SCHEMAS["freelancer"])
EXAMPLES = {
    "job_status": ({"status": "PAUSED"}, {}),
    "job_closing": ({"closes": AS_OF - 1}, {}),
    "freelancer_status": ({}, {"status": "BUSY"}),
    "required_skills": (
        {"skills": [{"name": "go", "level": None, "must": True}]},
        {"skills": [{"name": "rust", "level": 5}]},
    ),
    "excluded_freelancers": ({"excluded_freelancers": ["f"]}, {}),
    "excluded_clients": ({"client_id": "c"}, {"excluded_clients": ["c"]}),
    "rate_ceiling": ({"max_rate_cents": 4_000}, {"rate_cents": 4_001}),
    "rate_budget": ({"rate_max_cents": 4_000}, {"rate_cents": 4_001}),
    "rate_floor": ({"min_rate_cents": 4_000}, {"rate_cents": 3_999}),
    "pay_minimum": ({"rate_max_cents": 4_000}, {"min_rate_cents": 4_001}),
    "fixed_price_minimum": ({"fixed_cents": 4_000}, {"min_fixed_cents": 4_001}),
    "hours_minimum": ({"weekly_hours": 10}, {"min_weekly_hours": 11}),
    "hours_available": ({"weekly_hours": 11}, {"weekly_hours": 10}),
    "languages": (
        {"languages": [{"code": "en", "level": 5}]},
        {"languages": [{"code": "en", "level": 4}]},
    ),
    "countries_allowed": ({"countries_allowed": ["FR"]}, {"country": "NP"}),
    "countries_denied": ({"countries_denied": ["FR"]}, {"country": "FR"}),
    "client_countries_denied": ({"country": "FR"}, {"countries_denied": ["FR"]}),
    "hours_overlap": (
        {"min_overlap_minutes": 61, "zone": "UTC", "hours_start": 540, "hours_end": 1_020},
        {"zone": "UTC", "hours_start": 960, "hours_end": 1_200},
    ),
    "declined_categories": ({"category": "Web"}, {"declined_categories": ["web"]}),
    "same_category": ({"category": "Web"}, {"categories": ["Data"]}),
    "experience_minimum": ({"min_experience": "EXPERT"}, {"experience_level": "ENTRY"}),
    "rating_minimum": ({"min_rating_milli": 4_000}, {"rating_milli": 3_999}),
    "success_minimum": ({"min_success_permille": 900}, {"success_permille": 899}),
    "reviews_minimum": ({"min_reviews": 2}, {"reviews": 1}),
    "certifications": (
        {"certifications_required": ["PMP"]},
        {"certifications": [{"name": "PMP", "issuer": None, "issued": None, "verified": False}]},
    ),
}
"""rule -> a job and a freelancer that fail it, and no other."""


@pytest.mark.parametrize("name", RULE)
def test_each_rule_vetoes_its_example_alone_and_both_ways(name):
    job = {**BLANK_JOB, **EXAMPLES[name][0], "id": "j"}
    one = {**BLANK_FREELANCER, **EXAMPLES[name][1], "id": "f"}
    settings = settings_with(**{name: False})
    expected = ({str(RULE[name].veto)}, set())
    assert engine_says("job", job, [one], settings) == [expected]
    assert engine_says("freelancer", one, [job], settings) == [expected]


def test_every_rule_is_described(repo_root):
    text = (repo_root / "docs" / "eligibility.md").read_text("utf-8")
    for rule in RULES:
        assert f"`{rule.name}`" in text
        assert f"`{rule.veto}`" in text


def test_columns_are_those_that_rules_need():
    for kind in ("job", "freelancer"):
        made = {*SCALARS[kind], *SETS[kind], *map(asks_column, DEMANDS[kind])}
        assert made == columns_needed(kind)


@pytest.mark.parametrize("kind", ["job", "freelancer"])
def test_predicates_read_the_columns_that_their_rule_names(kind):
    """Whatever the values, a rule's predicates read the columns that it names."""
    other = "freelancer" if kind == "job" else "job"
    for name, pair in EXAMPLES.items():
        for fields in (pair[0 if kind == "job" else 1], {}):
            mine = segment_of(kind, [{**fields, "id": "x"}])
            query = QueryRow(kind, mine.scalars, mine.sets, 0, None)
            settings = settings_with(**{name: True})
            for predicate in compile_rules(query, settings, Day(AS_OF, (0,) * 5)).predicates:
                column = getattr(predicate, "column", None)
                assert column is None or column in RULE[name].columns(other)


def test_fields_of_rules_exist():
    for rule in RULES:
        for name in rule.fields:
            kind, _, field = name.partition(".")
            assert field in FIELDS[kind]


@given(st.sampled_from(sorted(RULE)), st.booleans(), JOBS, FREELANCERS)
def test_a_rule_reads_no_field_that_it_does_not_name(name, unknown_passes, job, one):
    settings = settings_with(**{name: unknown_passes})
    job, one = {**BLANK_JOB, **job, "id": "j"}, {**BLANK_FREELANCER, **one, "id": "f-0"}
    full = engine_says("job", job, [one], settings)
    named = set(RULE[name].fields)
    for field in set(job) - {"id"}:
        if f"job.{field}" not in named:
            job[field] = None
    for field in set(one) - {"id"}:
        if f"freelancer.{field}" not in named:
            one[field] = None
    assert engine_says("job", job, [one], settings) == full


def test_encodings():
    job = {"id": "j", "fixed_cents": 5, "closes": None}
    scalars, sets = columns("job", frame_of("job", [job, {"id": "k"}]), SALT, ZONES)
    assert scalars["pay_top"].tolist() == [NO_LIMIT, UNKNOWN]
    assert scalars["fixed_price"].tolist() == [5, UNKNOWN]
    assert scalars["closes"].tolist() == [NO_LIMIT, NO_LIMIT]
    assert scalars["rate_floor"].tolist() == [0, 0]
    assert scalars["asks_rate_ceiling"].tolist() == [0, 0]
    assert not sets["client"].known_n.any()
    assert sets["must_skills"].known_n.all()
    for name, column in scalars.items():
        assert column.dtype == np.int32, name


@given(st.lists(JOBS, min_size=1, max_size=3), st.lists(FREELANCERS, min_size=1, max_size=3))
def test_plain_rows_have_the_columns_of_a_frame(jobs, people):
    for kind, rows in (("job", jobs), ("freelancer", people)):
        frame = frame_of(kind, [{**row, "id": f"e-{n}"} for n, row in enumerate(rows)])
        scalars, sets = columns(kind, frame, SALT, ZONES)
        for n, row in enumerate(frame.to_dicts()):
            plain_scalars, plain_sets = columns(kind, [row], SALT, ZONES)
            assert {name: one.tolist() for name, one in plain_scalars.items()} == {
                name: [many[n]] for name, many in scalars.items()
            }
            for name, one in plain_sets.items():
                low, high = sets[name].start_n[n : n + 2]
                assert one.start_n.tolist() == [0, high - low], name
                assert one.value.tolist() == sets[name].value[low:high].tolist(), name
                assert one.known_n.tolist() == [sets[name].known_n[n]], name
        assert plain_scalars.keys() == scalars.keys()
        assert plain_sets.keys() == sets.keys()


def test_columns_of_no_records():
    for kind in ("job", "freelancer"):
        scalars, sets = columns(kind, frame_of(kind, []), SALT, ZONES)
        assert all(column.shape == (0,) for column in scalars.values())
        assert all(column.start_n.tolist() == [0] for column in sets.values())


def test_without_a_table_of_zones_no_zone_is_known():
    frame = frame_of("job", [{"id": "j", "zone": "UTC"}, {"id": "k"}])
    for rows in (frame, frame.head(0)):
        scalars, _ = columns("job", rows, SALT, ())
        assert scalars["zone"].tolist() == [UNKNOWN] * rows.height


def test_columns_do_not_depend_on_the_batch():
    rows = [
        {"id": f"f-{n}", "skills": [{"name": s, "level": n % 6 or None} for s in SKILLS[: n % 5]]}
        for n in range(23)
    ]
    together = segment_of("freelancer", rows)
    for n, row in enumerate(rows):
        alone = segment_of("freelancer", [row])
        for name, column in alone.scalars.items():
            assert column[0] == together.scalars[name][n]
        for name, column in alone.sets.items():
            start, stop = together.sets[name].start_n[n : n + 2]
            assert together.sets[name].value[start:stop].tolist() == column.value.tolist()
            assert together.sets[name].known_n[n] == column.known_n[0]


def test_set_values_ascend_without_repeats():
    rows = [{"id": "f", "skills": [{"name": n, "level": None} for n in ("b", "a", "B", "a")]}]
    column = segment_of("freelancer", rows).sets["skills"]
    assert column.value.tolist() == sorted({name_hash("a"), name_hash("b")})


def test_names_to_numbers():
    assert fold("  Web\u00a0  DESIGN ") == "web design"
    assert name_hash("Web") == name_hash(" web ")
    assert country_code("fr") == country_code("FR") != country_code("GB")
    codes = {language_code(code, level) for code in ("en", "fr", "de") for level in range(8)}
    assert len(codes) == 24
    # Frozen: stored columns hold these numbers.
    assert name_hash("python") == 5542960130538481579
    assert country_code("FR") == 18002
    assert language_code("en", 5) == 207733


def test_daylight_saving_moves_the_window():
    """New York works 9 to 17; Paris 14 to 22: eight hours together, but seven while only one side
    has changed its clocks."""
    job = {
        "id": "j", "zone": "America/New_York", "hours_start": 540, "hours_end": 1_020,
        "min_overlap_minutes": 421,
    }  # fmt: skip
    one = {"id": "f", "zone": "Europe/Paris", "hours_start": 900, "hours_end": 1_380}
    settings = settings_with(hours_overlap=False)
    said = {}
    for date in ("2026-01-15", "2026-03-15", "2026-07-15"):
        day = (datetime.date.fromisoformat(date) - datetime.date(1970, 1, 1)).days
        mine = segment_of("job", [job])
        query = QueryRow("job", mine.scalars, mine.sets, 0, None)
        compiled = compile_rules(query, settings, Day(day, offset_minutes(ZONES, day)))
        corpus = segment_of("freelancer", [one])
        said[date] = kernel_rules.vetoes(compiled.predicates, corpus, 0)[0]
    assert said == {
        "2026-01-15": (),
        "2026-03-15": ("OVERLAP_TOO_SHORT",),
        "2026-07-15": (),
    }


def test_requests_narrow_by_keys():
    rules = narrowed((), exclude=[3, 1, 3], candidates=[2])
    assert rules == (
        KeyIn((2,), Veto.NOT_A_CANDIDATE),
        KeyIn((1, 3), Veto.EXCLUDED_BY_REQUEST, negate=True),
    )
    assert narrowed((), candidates=[]) == (KeyIn((), Veto.NOT_A_CANDIDATE),)


def test_a_query_without_an_id_fails_where_somebody_is_excluded_by_name():
    settings = settings_with(excluded_freelancers=False)
    mine = segment_of("freelancer", [{"id": "-"}])
    query = QueryRow("freelancer", mine.scalars, mine.sets, 0, None)
    compiled = compile_rules(query, settings, Day(AS_OF, (0,) * 5))
    corpus = segment_of("job", [{"id": "j", "excluded_freelancers": ["f"]}, {"id": "k"}])
    assert kernel_rules.vetoes(compiled.predicates, corpus, 0)[0] == ("EXCLUDED_BY_CLIENT",)
    assert kernel_rules.vetoes(compiled.predicates, corpus, 1)[0] == ()


@given(JOBS, JOBS, st.lists(FREELANCERS, min_size=1, max_size=4))
def test_limits_of_a_request_only_narrow(job, other, people):
    """Whatever passes with a request's limits passed without them, and meets them by itself."""
    names = [name for name, field in FIELDS["job"].items() if field.limit]
    limits = tuple(
        (name, tuple(other[name]) if isinstance(other[name], list) else other[name])
        for name in names
    )
    settings = settings_with(**{rule.name: False for rule in RULES if rule.name != "same_category"})
    people = [{**row, "id": f"f-{n}"} for n, row in enumerate(people)]
    asked = {**BLANK_JOB, **job, "id": "j"}
    only = {**asked, **{name: other[name] for name in names}}
    without = engine_says("job", asked, people, settings)
    alone = engine_says("job", only, people, settings)
    both = engine_says("job", tightened(asked, limits), people, settings)
    for before, further, joined in zip(without, alone, both, strict=True):
        assert (not joined[0]) == (not before[0] and not further[0])
