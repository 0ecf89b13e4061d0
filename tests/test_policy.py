"""Policies: what they say, what they refuse, and what their ids name."""

from __future__ import annotations

import contextlib
import json
import math
import re
import tomllib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from matchwright.engine import synthetic
from matchwright.engine.eligibility import RULE, RULES
from matchwright.engine.errors import InvalidArgument, MatchwrightError, NotFound, UnknownKey
from matchwright.engine.generation import FacetParams, starter
from matchwright.engine.limits import check_limits
from matchwright.engine.policy import (
    BUDGETS,
    FACET_FIELDS,
    Policy,
    check_policy,
    default_policy_text,
)
from matchwright.engine.records import FIELDS
from matchwright.engine.zones import offset_minutes, tz_version


@pytest.fixture(scope="module")
def policy():
    return Policy.load()


# ── The shipped default ───────────────────────────────────────────────────────────────────────


def test_the_default_says_everything():
    document = tomllib.loads(default_policy_text())
    assert set(document["weights"]) == set(FACET_FIELDS)
    assert set(document["rules"]) == set(RULE)
    assert set(document["budgets"]) == set(BUDGETS)
    assert set(document["facets"]) == set(FacetParams.__struct_fields__)
    for rule in RULES:
        assert set(document["rules"][rule.name]) == {"enabled", "on_unknown", *rule.options}


def test_the_defaults_of_facets_are_those_of_the_code(policy):
    assert policy.facets == FacetParams()


def test_every_number_of_the_default_has_a_comment():
    """A number is explained where it stands: on its line, or in the comment above it."""
    above = ""
    for line in default_policy_text().splitlines():
        code, _, comment = line.partition("#")
        if not code.strip():
            above = "" if not line else above + " " + comment
            continue
        for number in re.findall(r"(?<![\w.])\d[\d_]*(?:\.\d+)?", code.partition("=")[2] or code):
            said = [float(n.replace(",", "")) for n in re.findall(r"\d[\d,]*(?:\.\d+)?", above)]
            assert comment.strip() or float(number.replace("_", "")) in said, line


def test_unknown_values_of_personal_and_legal_limits_fail(policy):
    for rule in RULES:
        assert policy.rules[rule.name].unknown_passes == (not rule.personal), rule.name


def test_the_default_weights_are_the_generations_facets(policy):
    assert tuple(policy.weights) == tuple(facet.name for facet in starter().facets)


# ── Reading ───────────────────────────────────────────────────────────────────────────────────


def test_an_empty_file_is_the_default(policy):
    assert Policy.parse("") == policy
    assert hash(Policy.parse("")) == hash(policy)


def test_a_file_is_read(tmp_path, policy):
    file = tmp_path / "mine.toml"
    file.write_text('name = "mine"\n[weights]\nskills = 3\n', "utf-8")
    mine = check_policy(file)
    assert mine.weights["skills"] == 3.0
    assert mine.weights["text"] == policy.weights["text"]
    assert mine.id != policy.id


def test_the_id_names_the_content_and_not_the_spelling(policy):
    same = Policy.parse("weights = {skills = 2}\nbudgets.k_max = 1000\n\n# a comment\n")
    assert same.id == policy.id
    changes = [
        "weights.skills = 2.0000000000000004",
        'name = "other"',
        "rules.languages.enabled = false",
        "rules.languages.unstated_level = 2",
        'rules.languages.on_unknown = "pass"',
        "facets.rate_tolerance = 0.9",
        "budgets.k_max = 999",
        "audience.count_floor = 11",
        'fields.forbidden = ["freelancer.joined"]',
    ]
    ids = {Policy.parse(change).id for change in changes}
    assert len(ids) == len(changes)
    assert policy.id not in ids


def test_the_id_is_frozen(policy):
    """Golden: decisions name policies by these ids. A change of the default changes this one."""
    assert policy.id == "9efcf3a4843b94e60a683f8f567321800c99910f8b263d8489b34693d6bcc287"
    canonical = json.loads(policy.canonical_bytes())
    assert canonical["format"] == 1
    assert canonical["weights"]["skills"] == "0x1.0000000000000p+1"
    assert Policy.parse("weights.text = -0.0").id == Policy.parse("weights.text = 0").id


def test_to_dict_reads_back(policy):
    document = policy.to_dict()
    assert Policy.from_dict(json.loads(json.dumps(document))) == policy


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("wieghts = {}", "'weights'"),
        ("weights.skils = 1", "'skills'"),
        ("rules.langauges.enabled = true", "'languages'"),
        ("rules.languages.unstated_levels = 1", "'unstated_level'"),
        ("facets.rate_tolerence = 1", "'rate_tolerance'"),
        ("budgets.kmax = 1", "'k_max'"),
        ('fields.used = ["job.titel"]', "'job.title'"),
        ("audience.floor = 1", "'count_floor'"),
    ],
)
def test_unknown_keys_name_the_nearest(text, hint):
    with pytest.raises(UnknownKey, match=hint):
        Policy.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "weights.skills = nan",
        "weights.skills = inf",
        "weights.skills = -1",
        "weights.skills = 1e7",
        "weights.skills = true",
        'weights.skills = "2"',
        "weights = 3",
        "\n".join(f"weights.{name} = 0" for name in FACET_FIELDS),
        "format = 2",
        "format = true",
        "name = 1",
        'name = ""',
        'name = "a\\u0007b"',
        "rules.languages = 1",
        "rules = []",
        "rules.languages.enabled = 1",
        'rules.languages.on_unknown = "maybe"',
        "rules.languages.on_unknown = []",
        "rules.languages.unstated_level = 7",
        "rules.languages.unstated_level = 1.0",
        "rules.job_status.accept = []",
        'rules.job_status.accept = ["AJAR"]',
        'rules.job_status.accept = "OPEN"',
        "rules.rate_budget.tolerance_permille = -1",
        "rules.certifications.verified_only = 1",
        "facets.rate_tolerance = 0",
        "facets.rate_tolerance = nan",
        'facets.rate_tolerance = "1"',
        "facets.experience_utility = [[1, 1, 1]]",
        "facets.experience_utility = [[1, 1, 2], [1, 1, 1], [1, 1, 1]]",
        "budgets.k_max = 1001",
        "budgets.k_max = 0",
        "budgets.resolution_levels_min = 1.5",
        "audience.count_floor = 0",
        "fields.used = 1",
        "fields.used = [1]",
        "this is not TOML",
        "a = " + "[" * 5_000,
        "budgets.k_max = " + "9" * 5_000,
        "weights.skills = 1979-05-27",
    ],
)
def test_what_is_wrong_is_refused(text):
    with pytest.raises(InvalidArgument):
        Policy.parse(text)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(NotFound):
        Policy.load(tmp_path / "nothing.toml")
    with pytest.raises(NotFound):
        Policy.load(tmp_path)
    bad = tmp_path / "bad.toml"
    bad.write_bytes(b'name = "\xff"')
    with pytest.raises(InvalidArgument, match="UTF-8"):
        Policy.load(bad)
    bad.write_bytes(b"#" * ((1 << 20) + 1))
    with pytest.raises(InvalidArgument, match="bytes"):
        Policy.load(bad)


TOML_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from([10**400, -1, 0, "fail", "pass", "OPEN", math.nan]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3)
    ),
    max_leaves=6,
)
KEYS = st.sampled_from(
    [
        *("format", "name", "weights", "facets", "rules", "budgets", "audience", "fields"),
        *FACET_FIELDS,
        *RULE,
        *("enabled", "on_unknown", "accept", "used", "forbidden", "k_max", "count_floor"),
        *FacetParams.__struct_fields__,
    ]
)


@given(
    st.dictionaries(
        KEYS,
        TOML_VALUES
        | st.dictionaries(KEYS, TOML_VALUES | st.dictionaries(KEYS, TOML_VALUES, max_size=2)),
        max_size=3,
    )
)
def test_nonsense_is_a_typed_error_or_a_policy(document):
    try:
        policy = Policy.from_dict(document)
    except MatchwrightError:
        return
    assert re.fullmatch(r"[0-9a-f]{64}", policy.id)


@given(st.text(max_size=200))
def test_any_text_is_a_typed_error_or_a_policy(text):
    with contextlib.suppress(MatchwrightError):
        policy = Policy.parse(text)
        assert Policy.from_dict(policy.to_dict()).id == policy.id


# ── The input manifest ────────────────────────────────────────────────────────────────────────


def test_a_field_in_both_lists_is_refused():
    with pytest.raises(InvalidArgument, match=r"both hold 'job\.title'"):
        Policy.parse('fields.forbidden = ["job.title"]')


def test_what_is_read_must_be_listed(policy):
    used = sorted(policy.used - {"freelancer.country"})
    text = f"fields.used = {json.dumps(used)}\n"
    with pytest.raises(InvalidArgument, match=r"rule 'countries_allowed' reads"):
        Policy.parse(text)
    off = "".join(f"rules.countries_{name}.enabled = false\n" for name in ("allowed", "denied"))
    assert Policy.parse(text + off).used == frozenset(used)
    with pytest.raises(InvalidArgument, match="reads"):
        Policy.parse(text + off).effective(rules={"countries_denied": {"enabled": True}})


def test_a_facet_without_weight_reads_nothing(policy):
    used = json.dumps(sorted(policy.used - {"job.text", "freelancer.text"}))
    with pytest.raises(InvalidArgument, match="facet 'text' reads"):
        Policy.parse(f"fields.used = {used}")
    quiet = Policy.parse(f"fields.used = {used}\nweights.text = 0")
    with pytest.raises(InvalidArgument, match="facet 'text' reads"):
        quiet.effective({"text": 1.0})


def test_the_default_lists_no_more_than_it_reads(policy):
    read = {name for fields in FACET_FIELDS.values() for name in fields}
    read |= {name for rule in RULES for name in rule.fields}
    assert policy.used == read
    known = {f"{kind}.{name}" for kind, fields in FIELDS.items() for name in fields}
    assert policy.used | policy.forbidden <= known


@pytest.mark.parametrize("kind", ["job", "freelancer"])
def test_facets_read_what_the_manifest_says_and_nothing_else(kind):
    """Blanking all fields that a facet does not name leaves its block as it is, on both sides;
    blanking those that it names changes it."""
    generation = starter()
    frame = synthetic.frame(kind, 300, seed=8)
    as_of = synthetic.AS_OF
    params = FacetParams()
    full = generation.encode(kind, frame).x_nd, generation.query(kind, frame, params, as_of).v_qd
    for facet in generation.facets:
        span = slice(facet.start, facet.start + facet.width)
        named = [n.partition(".")[2] for n in FACET_FIELDS[facet.name] if n.startswith(kind)]
        others = [n for n in frame.columns if n not in named and n != "id"]
        alone = _blanked(frame, others)
        x_nd = generation.encode(kind, alone).x_nd
        v_qd = generation.query(kind, alone, params, as_of).v_qd
        assert np.array_equal(x_nd[:, span], full[0][:, span]), facet.name
        assert np.array_equal(v_qd[:, span], full[1][:, span]), facet.name
        without = generation.encode(kind, _blanked(frame, named)).x_nd
        assert not np.array_equal(without[:, span], full[0][:, span]), facet.name


def _blanked(frame, names):
    import polars as pl

    return frame.with_columns(pl.lit(None, dtype=frame.schema[name]).alias(name) for name in names)


# ── Effective policies ────────────────────────────────────────────────────────────────────────


def test_an_effective_policy_has_its_own_id(policy):
    plain = policy.effective()
    assert plain.id != policy.id
    assert plain.id == policy.effective({}, {}).id
    assert plain.base == policy.id
    assert plain.tz == tz_version()
    assert policy.effective({"skills": 2.0}).id == plain.id
    ids = {
        plain.id,
        policy.effective({"skills": 3}).id,
        policy.effective(rules={"same_category": {"enabled": True}}).id,
        policy.effective(limits=check_limits("job", {"max_rate_cents": 5_000})).id,
        policy.effective(limits=check_limits("job", {"max_rate_cents": 5_001})).id,
    }
    assert len(ids) == 5


def test_a_request_only_narrows(policy):
    lenient = Policy.parse(
        'rules.languages.on_unknown = "pass"\nrules.languages.unstated_level = 3\n'
        'rules.job_status.accept = ["OPEN", "PAUSED"]\nrules.certifications.verified_only = false'
    )
    for rules in (
        {"languages": {"on_unknown": "fail"}},
        {"languages": {"unstated_level": 2}},
        {"job_status": {"accept": ["OPEN"]}},
        {"certifications": {"verified_only": True}},
        {"same_category": {"enabled": True, "on_unknown": "fail"}},
    ):
        assert lenient.effective(rules=rules).id != lenient.effective().id
    for rules in (
        {"rate_budget": {"tolerance_permille": 1}},
        {"required_skills": {"enabled": False}},
        {"job_status": {"accept": ["OPEN", "CLOSED"]}},
        {"countries_denied": {"on_unknown": "pass"}},
        {"certifications": {"verified_only": False}},
    ):
        with pytest.raises(InvalidArgument, match="only narrow"):
            policy.effective(rules=rules)


# ── Zones ─────────────────────────────────────────────────────────────────────────────────────


def test_offsets_at_noon():
    zones = ("America/New_York", "Asia/Kathmandu", "Nowhere/Land", "UTC", "../etc/passwd", "")
    assert offset_minutes(zones, 20_468) == (-300, 345, 0, 0, 0, 0)  # 2026-01-15
    assert offset_minutes(zones, 20_649)[0] == -240  # 2026-07-15
    assert len(offset_minutes(zones, -(10**9))) == len(offset_minutes(zones, 10**9)) == 6
