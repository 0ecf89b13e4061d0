"""The rules: every verdict beside a referee, both ways round."""

from __future__ import annotations

import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rule_referee import (
    AS_OF,
    FREELANCERS,
    JOBS,
    PEOPLE,
    SETTINGS,
    ZONES,
    engine_says,
    referee_says,
    said,
    segment_of,
    settings_with,
)

from matchwright.engine.columns import (
    DEMANDS,
    SCALARS,
    SETS,
    asks_column,
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
from matchwright.engine.records import FIELDS, SCHEMAS
from matchwright.engine.rule_shapes import Day, QueryRow
from matchwright.engine.zones import offset_minutes
from matchwright.kernels import rules as kernel_rules
from matchwright.kernels.types import KeyIn

"""A setting of every rule."""


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
    read = set()
    for name, pair in EXAMPLES.items():
        for fields in (pair[0 if kind == "job" else 1], {}):
            mine = segment_of(kind, [{**fields, "id": "x"}])
            query = QueryRow(kind, mine.scalars, mine.sets, 0, None)
            settings = settings_with(**{name: True})
            for predicate in compile_rules(query, settings, Day(AS_OF, (0,) * 5)).predicates:
                column = getattr(predicate, "column", None)
                assert column is None or column in RULE[name].columns(other)
                read.add(column)
    assert len(read) > 10


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
