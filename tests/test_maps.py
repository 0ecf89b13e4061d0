"""Maps: what they can say, and that a wrong one is refused with a helpful message."""

from __future__ import annotations

import contextlib
import json

import pytest

from matchwright.engine.errors import InvalidArgument, NotFound, UnknownKey
from matchwright.engine.records import FIELDS, ingest
from matchwright.engine.records.convert import Converter
from matchwright.engine.records.map_fields import known_keys
from matchwright.engine.records.maps import SECTIONS, load_map, parse_map
from matchwright.engine.records.numbers import UNITS
from matchwright.engine.records.rows import ObjectRows


def converted(entry: str, *rows: dict, kind: str = "freelancer", more: str = ""):
    text = f'kind = "{kind}"\n{more}\n[fields]\nid = "n"\n{entry}\n'
    named = [{"n": f"r{place}", **row} for place, row in enumerate(rows)]
    return Converter(parse_map(text)).convert(ObjectRows(range(1, len(rows) + 1), named))


def values(entry: str, *rows: dict, kind: str = "freelancer", more: str = ""):
    done = converted(entry, *rows, kind=kind, more=more)
    assert not done.refused, done.refused
    name = entry.split("=", maxsplit=1)[0].strip()
    return done.frame[name].to_list()


def test_units():
    assert values('rating_milli = { from = "x", unit = "stars" }', {"x": 4.85}) == [4_850]
    assert values('rating_milli = { from = "x", unit = "ten" }', {"x": "9.7"}) == [4_850]
    assert values('success_permille = { from = "x", unit = "percent" }', {"x": "93%"}) == [930]
    assert values('success_permille = { from = "x", unit = "fraction" }', {"x": 0.931}) == [931]
    assert values('hours_start = { from = "x", unit = "clock" }\nhours_end = { const = 5 }',
                  {"x": "9:30"}) == [570]  # fmt: skip
    entry = 'duration_days = { from = "x", unit = "weeks" }'
    assert values(entry, {"x": 2}, kind="job") == [14]


def test_sentinels_become_unknown():
    entry = 'success_permille = { from = "x", unit = "percent", unknown_if = { x = 0, r = 0 } }'
    rows = ({"x": 0, "r": 0}, {"x": "0", "r": "0.0"}, {"x": 0, "r": 1}, {"x": 5, "r": 0})
    assert values(entry, *rows) == [None, None, 0, 50]
    either = 'reviews = { from = "x", unknown_if = [{ x = 0 }, { r = { above = 9 } }] }'
    assert values(either, {"x": 0, "r": 1}, {"x": 3, "r": 1}, {"x": 3, "r": "10"}) == [
        None,
        3,
        None,
    ]
    assert values('reviews = { from = "x", unknown_values = ["n/a", -1] }',
                  {"x": "N/A "}, {"x": -1}, {"x": 2}) == [None, None, 2]  # fmt: skip


def test_when():
    entry = 'fixed_cents = { from = "x", unit = "money", when = { t = ["fixed", "Flat"] } }'
    rows = ({"x": 5, "t": "FIXED"}, {"x": 5, "t": "flat"}, {"x": "junk", "t": "hourly"}, {"x": 5})
    assert values(entry, *rows, kind="job") == [500, 500, None, None]


def test_one_column_for_both_budgets():
    rows = ({"x": "$10-$20/hr"}, {"x": "$500 fixed"}, {"x": "$15"})
    low = 'rate_min_cents = { from = "x", unit = "money", take = "low", other_period = "unknown" }'
    assert values(low, *rows, kind="job") == [1_000, None, 1_500]
    fixed = 'fixed_cents = { from = "x", unit = "money", other_period = "unknown", take = "high" }'
    assert values(fixed, *rows, kind="job") == [None, 50_000, 1_500]


def test_currencies():
    more = '[currency]\nbase = "EUR"\nrates = { USD = 0.9, GBP = "1.2" }'
    entry = 'rate_cents = { from = "x", unit = "money", currency_from = "c" }'
    rows = ({"x": 10, "c": "usd"}, {"x": "£10", "c": "USD"}, {"x": 10}, {"x": "10 EUR", "c": ""})
    assert values(entry, *rows, more=more) == [900, 1_200, 1_000, 1_000]
    done = converted(entry, {"x": 10, "c": "JPY"}, {"x": 10, "c": "??"}, more=more)
    assert [str(one.reason) for one in done.refused] == ["currency_unknown"] * 2


def test_lists():
    entry = 'skills = { from = "x", split = "|", drop = ["Other(s):"], pair = ":" }'
    (skills,) = values(entry, {"x": "React.js:5|other(s):| |reactjs:2|R"})
    assert skills == [{"name": "React", "level": 5}, {"name": "R", "level": None}]
    entry = 'languages = { from = ["x", "y"], split = "," }'
    (languages,) = values(entry, {"x": "en, de", "y": ["fr"]})
    assert [item["code"] for item in languages] == ["en", "de", "fr"]
    entry = 'excluded_clients = { from = "x", split = ";", prefix = "c-" }'
    assert values(entry, {"x": "1;2;1"}, {"x": [3, "4"]}) == [["c-1", "c-2"], ["c-3", "c-4"]]


def test_paths_and_picks():
    row = {"jobs": [{"title": "Cook", "to": "2020-01-01"}, {"to": "2021-01-01"}, {"title": "Chef"}]}
    assert values('text = "jobs.title"', row) == ["Cook\nChef"]
    assert values('title = { from = "jobs.title", pick = "last" }', row) == ["Chef"]
    assert values('last_active = { from = "jobs.to", pick = "max" }', row) == [18_628]
    assert values('text = { from = ["a.b.c", "x"], join = " " }', {"a": {"b": {"c": "x"}}, "x": 1},
                  {"a": None}) == ["x 1", None]  # fmt: skip
    assert values('country = { from = ["a", "b"] }', {"b": "UK"}, {"a": "US"}) == ["GB", "US"]


def test_enumerations():
    entry = (
        'experience_level = { from = "x", values = { "Entry Level" = "ENTRY", pro = "EXPERT" } }'
    )
    rows = ({"x": "entry  level"}, {"x": "PRO"}, {"x": "Intermediate"}, {"x": ""})
    assert values(entry, *rows) == ["ENTRY", "EXPERT", "INTERMEDIATE", None]


def test_bad_optional_values():
    strict = converted('reviews = "x"', {"x": "many"}, {"x": 1})
    assert [one.row for one in strict.refused] == [1]
    lax = converted('reviews = { from = "x", on_error = "unknown" }', {"x": "many"}, {"x": 1})
    assert (lax.frame["reviews"].to_list(), lax.unknown["reviews"]) == ([None, 1], 1)


def test_composite_ids():
    done = Converter(
        parse_map('kind = "job"\n[fields]\nid = { from = ["a", "b"], prefix = "p", join = "/" }')
    ).convert(ObjectRows([1, 2], [{"a": "x", "b": 2}, {"a": "x"}]))
    assert done.frame["id"].to_list() == ["px/2"]
    assert [str(one.reason) for one in done.refused] == ["missing"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "kind is missing"),
        ('kind = "jobs"\n[fields]\nid = "a"', "did you mean 'job'"),
        ('kind = "job"', "id is missing"),
        ('kind = "job"\n[field]\nid = "a"', "did you mean 'fields'"),
        ('kind = "job"\n[fields]\nid = "a"\ntitel = "b"', "did you mean 'title'"),
        ('kind = "job"\n[fields]\nid = { form = "a" }', "did you mean 'from'"),
        ('kind = "job"\n[fields]\nid = { from = 1 }', "text expected, got 1"),
        ('kind = "job"\n[fields]\nid = { const = "a" }', "every row needs an id"),
        ('kind = "job"\n[fields]\nid = { from = "a", html = true }', "means nothing"),
        ('kind = "job"\n[fields]\nid = "a"\nfixed_cents = "b"', "unit = one of 'cents', 'money'"),
        ('kind = "job"\n[fields]\nid = "a"\nfixed_cents = { from = "b", unit = "mony" }', "money"),
        ('kind = "job"\n[fields]\nid = "a"\nposted = { from = "b", formats = "dmy" }', "strptime"),
        ('kind = "job"\n[fields]\nid = "a"\nposted = { from = "b", formats = "%d %b" }', "year"),
        ('kind = "job"\n[fields]\nid = "a"\nposted = { from = "b", formats = "%%Y %d" }', "year"),
        ('kind = "job"\n[fields]\nid = "a"\nposted = { from = "b", when = {} }', "a table such as"),
        ('kind = "job"\n[fields]\nid = "a"\ntext = { from = "b", when = { c = { abve = 1 } } }',
         "did you mean 'above'"),
        ('kind = "job"\n[fields]\nid = "a"\nstatus = { const = "MAYBE" }', "one of OPEN"),
        ('kind = "job"\n[fields]\nid = "a"\nstatus = { from = "b", values = { x = "y" } }', "OPEN"),
        ('kind = "job"\n[fields]\nid = "a"\n[merge]\ntitle = "first"', "title"),
        ('kind = "job"\n[fields]\nid = "a"\ntext = "b"\n[merge]\ntext = "joined"', "'join'"),
        ('kind = "job"\n[fields]\nid = "a"\n[currency]\nbase = "usd"', "ISO 4217"),
        ('kind = "job"\n[fields]\nid = "a"\n[currency]\nrates = { EUR = 0 }', "above 0"),
        ('kind = "job"\n[fields]\nid = "a"\n[currency]\nrates = { EUR = nan }', "NaN"),
        ('kind = "job"\n[fields]\nid = "a"\n[source]\ndelimiter = "ab"', "one character"),
        ('kind = "job"\n[fields]\nid = "a"\nfixed_cents = { from = "b", unit = "cents", take = 1 }',
         'needs unit = "money"'),
        ("kind = ", "not TOML"),
    ],
)  # fmt: skip
def test_wrong_maps(text, said):
    with pytest.raises(InvalidArgument) as error:
        parse_map(text, "m.toml")
    assert said in str(error.value)
    assert "m.toml" in str(error.value)


def test_a_map_for_the_other_kind(tmp_path):
    path = tmp_path / "m.toml"
    path.write_text('kind = "job"\n[fields]\nid = "a"')
    with pytest.raises(InvalidArgument, match="map for jobs"):
        load_map(path, "freelancer")
    with pytest.raises(NotFound):
        load_map(tmp_path / "absent.toml")


def test_columns_are_checked_before_rows(tmp_path):
    record_map = parse_map('kind = "job"\n[fields]\nid = "number"\ntitle = "headline"')
    table = tmp_path / "t.csv"
    table.write_text("number,headlines\n1,x\n")
    lines = tmp_path / "t.jsonl"
    lines.write_text(json.dumps({"number": 1, "headlines": "x"}))
    seen = []
    for path in (table, lines):
        with pytest.raises(InvalidArgument, match="did you mean 'headlines'"):
            ingest.read("job", [path], record_map, progress=lambda *at: seen.append(at))
    assert not seen
    table.write_text("id,titel\n1,x\n")
    with pytest.raises(UnknownKey, match="did you mean 'title'"):
        ingest.read("job", [table])


def test_the_reference_names_everything(repo_root):
    page = (repo_root / "docs" / "ingest.md").read_text("utf-8")
    for section in SECTIONS:
        assert section in page
    for fields in FIELDS.values():
        for field in fields.values():
            for key in known_keys(field):
                assert f"`{key}`" in page, key
    for units in UNITS.values():
        for unit in units:
            assert unit == "count" or f"`{unit}`" in page, unit


def test_the_example_of_the_page_works(repo_root, tmp_path):
    page = (repo_root / "docs" / "ingest.md").read_text("utf-8")
    table = "\n".join(
        line.strip() for line in page.splitlines() if line.startswith("    u") and "," in line
    )
    (tmp_path / "people.csv").write_text(table)
    (tmp_path / "people.toml").write_text(page.split("```toml\n")[1].split("```")[0])
    rows = []

    class Sink(ingest.DryRun):
        def write(self, records):
            rows.extend(records.to_dicts())
            return super().write(records)

    files = [tmp_path / "people.csv"]
    with contextlib.closing(Sink()) as sink:
        report = ingest.read("freelancer", files, tmp_path / "people.toml", sink=sink)
    assert (report.accepted, report.quarantined) == (2, 0)
    assert [row["rate_cents"] for row in rows] == [3_500, 140_000]
    assert [row["joined"] for row in rows] == [18_720, 18_720]
    assert [row["rating_milli"] for row in rows] == [4_900, None]
    assert [row["success_permille"] for row in rows] == [960, None]
