"""The synthetic marketplace: seeded, in its schema, and shaped as it says."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest

from matchwright.engine import synthetic
from matchwright.engine.records import FIELDS, SCHEMAS


@pytest.fixture(scope="module")
def people():
    return synthetic.frame("freelancer", 6_000, seed=3, block=4_096)


@pytest.fixture(scope="module")
def jobs():
    return synthetic.frame("job", 4_000, seed=3, block=4_096)


@pytest.mark.parametrize("kind", ["job", "freelancer"])
def test_the_schema_is_met(kind, people, jobs):
    frame = people if kind == "freelancer" else jobs
    assert frame.schema == SCHEMAS[kind]
    assert frame["id"].n_unique() == frame.height
    for field in FIELDS[kind].values():
        column = frame[field.name].drop_nulls()
        if field.values:
            assert set(column) <= set(field.values)
        elif field.high and column.dtype.is_integer():
            assert field.low <= column.min() <= column.max() <= field.high, field.name


@pytest.mark.parametrize("kind", ["job", "freelancer"])
def test_the_same_seed_gives_the_same_records(kind):
    block = 512
    whole = synthetic.frame(kind, 1_100, seed=7, block=block)
    again = synthetic.frame(kind, 1_100, seed=7, block=block)
    assert whole.equals(again)
    assert synthetic.frame(kind, 600, seed=7, block=block).equals(whole.head(600))
    assert not synthetic.frame(kind, 1_100, seed=8, block=block).equals(whole)


def test_without_texts_only_texts_differ():
    with_texts = synthetic.frame("freelancer", 300, block=512)
    without = synthetic.frame("freelancer", 300, block=512, texts=False)
    assert without["text"].null_count() == 300
    assert without["title"].null_count() == 0
    assert without.drop("text", "title").equals(with_texts.drop("text", "title"))


def _names(frame: pl.DataFrame) -> pl.Series:
    return frame["skills"].list.eval(pl.element().struct.field("name"))


def test_no_skill_is_named_twice(people, jobs):
    for frame in (people, jobs):
        assert (_names(frame).list.n_unique() == frame["skills"].list.len()).all()


def test_skills_come_in_stacks(people):
    """Among people with React, JavaScript is many times as common as among all."""
    names = _names(people)
    react = names.list.contains("React")
    script = names.list.contains("JavaScript")
    assert react.sum() > 50
    assert (react & script).sum() / react.sum() > 4 * script.mean()


def test_rates_and_reviews_are_skewed(people):
    rate = people["rate_cents"].drop_nulls()
    assert rate.mean() > 1.15 * rate.median()
    reviews = people["reviews"]
    assert reviews.median() == 0
    top = reviews.sort(descending=True).head(people.height // 100)
    assert top.sum() > 0.3 * reviews.sum()
    unrated = people.filter(pl.col("reviews") == 0)
    assert unrated["rating_milli"].null_count() == unrated.height


def test_zones_belong_to_countries(people):
    known = people.drop_nulls(["country", "zone"])
    india = known.filter(pl.col("country") == "IN")["zone"].unique().to_list()
    assert india == ["Asia/Kolkata"]
    america = known.filter(pl.col("country") == "US")["zone"].n_unique()
    assert america == 4


def test_fields_are_missing_and_both_sides_have_limits(people, jobs):
    for frame, kind in ((people, "freelancer"), (jobs, "job")):
        limits = [f.name for f in FIELDS[kind].values() if f.limit]
        used = [name for name in limits if frame[name].null_count() < frame.height]
        assert len(used) >= 5, kind
    share = people["weekly_hours"].null_count() / people.height
    assert 0.05 < share < 0.3


def test_clients_come_back(jobs):
    assert jobs["client_id"].n_unique() < 0.7 * jobs.height


def test_exports_hold_the_same(tmp_path):
    paths = synthetic.write_jsonl(tmp_path, freelancers=40, jobs=20, seed=1)
    with paths["job"].open() as lines:
        rows = [json.loads(line) for line in lines]
    frame = synthetic.frame("job", 20, seed=1)
    assert [row["id"] for row in rows] == frame["id"].to_list()
    assert rows[0]["skills"] == frame["skills"][0].to_list()
    assert paths["freelancer"].read_text().count("\n") == 40


def test_days_are_in_the_past(people, jobs):
    assert people["joined"].max() <= synthetic.AS_OF
    assert people["last_active"].max() <= synthetic.AS_OF
    assert (people["last_active"] >= people["joined"]).all()
    assert jobs["posted"].max() <= synthetic.AS_OF
    assert np.all(jobs["closes"].drop_nulls().to_numpy() > synthetic.AS_OF - 300)
