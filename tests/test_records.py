"""Schemas, their page, and records that come as dictionaries."""

from __future__ import annotations

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from matchwright.engine.errors import InvalidData, UnknownKey
from matchwright.engine.records import (
    FIELDS,
    FREELANCER_SCHEMA,
    JOB_SCHEMA,
    SCHEMAS,
    to_frame,
    to_rows,
)
from matchwright.engine.records.document import records_md
from matchwright.engine.records.fields import Type
from matchwright.engine.records.schema import series

WHOLE = {
    "id": "a",
    "title": "Need a developer",
    "skills": ["ReactJS", {"name": "HTML/CSS", "must": True, "level": "expert"}, "react.js"],
    "rate_max_cents": 3_000,
    "country": "USA",
    "languages": ["en:C1", "German"],
    "posted": "2024-01-02",
    "status": "open",
    "zone": "europe/paris",
    "countries_denied": ["FRA", "Germany", "DE"],
}


def test_the_page_is_up_to_date(repo_root):
    assert (repo_root / "docs" / "records.md").read_text("utf-8") == records_md()


@pytest.mark.parametrize("kind", ["job", "freelancer"])
def test_every_field_says_what_it_is(kind):
    for field in FIELDS[kind].values():
        assert field.doc.endswith(".")
        assert field.unknown
        assert (field.type is Type.INT) == (field.high > 0)
        assert (field.type is Type.ENUM) == bool(field.values)
        assert field.type is not Type.INT or field.high < 2 ** (field.bits - 1)
        assert f"| `{field.name}` |" in records_md()
    assert list(FIELDS[kind]) == list(SCHEMAS[kind])


def test_a_whole_record():
    frame = to_frame("job", [WHOLE])
    assert frame.schema == JOB_SCHEMA
    (job,) = frame.to_dicts()
    assert job["skills"] == [
        {"name": "React", "level": None, "must": False},
        {"name": "HTML", "level": 5, "must": True},
        {"name": "CSS", "level": 5, "must": True},
    ]
    assert job["languages"] == [{"code": "en", "level": 5}, {"code": "de", "level": None}]
    assert (job["country"], job["zone"], job["status"]) == ("US", "Europe/Paris", "OPEN")
    assert (job["posted"], job["countries_denied"]) == (19_724, ["FR", "DE"])
    assert to_frame("job", frame.to_dicts()).equals(frame)


@pytest.mark.parametrize("rows", [1, 70])
def test_rows_are_what_a_frame_holds(rows):
    records = [{**WHOLE, "id": str(n)} for n in range(rows - 1)] + [{"id": "last", "skills": []}]
    assert to_rows("job", records) == to_frame("job", records).to_dicts()
    assert list(to_rows("job", records)[-1]) == list(JOB_SCHEMA)
    assert to_rows("job", [{"title": "x"}], id_required=False)[0]["id"] is None
    with pytest.raises(InvalidData, match="without id"):
        to_rows("job", [*records, {"title": "x"}])


def test_unknown_and_empty_lists_stay_apart():
    frame = to_frame("freelancer", [{"id": "a", "skills": []}, {"id": "b"}])
    assert frame["skills"].to_list() == [[], None]
    assert frame.schema == FREELANCER_SCHEMA


def test_without_rows_and_without_ids():
    assert to_frame("job", []).schema == JOB_SCHEMA
    assert to_frame("job", [{"title": "x"}], id_required=False)["id"].to_list() == [None]


@pytest.mark.parametrize(
    ("more", "field", "reason"),
    [
        ({"id": ""}, "id", "missing"),
        ({"id": "x" * 129}, "id", "id_too_long"),
        ({"id": "a\u202eb"}, "id", "control_characters"),
        ({"rate_max_cents": "abc"}, "rate_max_cents", "not_a_number"),
        ({"rate_max_cents": -1}, "rate_max_cents", "negative"),
        ({"rate_max_cents": True}, "rate_max_cents", "wrong_type"),
        ({"fixed_cents": 2**40}, "fixed_cents", "out_of_range"),
        ({"fixed_cents": float("nan")}, "fixed_cents", "not_finite"),
        ({"client_reviews": 1.5}, "client_reviews", "not_whole"),
        ({"rate_min_cents": 4_000}, "rate_max_cents", "range_reversed"),
        ({"closes": "2023-01-01"}, "closes", "range_reversed"),
        ({"hours_start": 540}, "hours_end", "half_known"),
        ({"country": "Atlantis"}, "country", "country_unknown"),
        ({"zone": "Mars/Olympus"}, "zone", "zone_unknown"),
        ({"status": "MAYBE"}, "status", "value_unknown"),
        ({"languages": ["Klingonese"]}, "languages", "language_unknown"),
        ({"languages": ["en:C9"]}, "languages", "level_unknown"),
        ({"skills": [{"nam": "x"}]}, "skills", "item_invalid"),
        ({"skills": ["x"] * 1_001}, "skills", "too_many_items"),
        ({"skills": 7}, "skills", "wrong_type"),
        ({"text": "x" * 100_001}, "text", "too_long"),
        ({"text": ["x"]}, "text", ""),
    ],
)
def test_errors_name_the_field(more, field, reason):
    if not reason:
        assert to_frame("job", [WHOLE | more])["text"][0] == "x"
        return
    with pytest.raises(InvalidData) as error:
        to_frame("job", [{"id": "fine"}, WHOLE | more])
    assert error.value.details["field"] == field
    assert error.value.details["reason"] == reason
    assert error.value.details["row"] == "1"


def test_unknown_keys_name_the_nearest():
    with pytest.raises(UnknownKey, match="did you mean 'title'"):
        to_frame("job", [{"id": "a", "titel": "x"}])
    with pytest.raises(InvalidData, match="dictionary"):
        to_frame("job", ["x"])


def test_swapping_first_names_changes_nothing():
    names = ("Emily", "Jamal", "Priya", "José", "Wojciech", "Lakisha", "Mehmet", "Yuki")
    text = "{0} is looking for help. Hi, I'm {0}! Ask {0}'s team.\nRegards, {0}"
    frames = [to_frame("job", [{"id": "a", "text": text.format(name)}]) for name in names]
    assert all(frame.equals(frames[0]) for frame in frames)


@given(
    st.lists(
        st.none()
        | st.lists(
            st.fixed_dictionaries(
                {"name": st.text(max_size=3), "level": st.none() | st.integers(1, 5)}
            ),
            max_size=3,
        ),
        max_size=80,
    )
)
def test_series_is_what_polars_makes(values):
    dtype = FREELANCER_SCHEMA["skills"]
    for column in (values, values * 5):
        assert series("skills", column, dtype).equals(pl.Series("skills", column, dtype=dtype))
