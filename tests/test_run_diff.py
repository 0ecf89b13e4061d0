"""``run diff``: what changed for each query, and why, against a comparison in plain Python."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter

import numpy as np
import polars as pl
import pytest
from run_market import market_of

from matchwright.engine import synthetic
from matchwright.engine.cli import main
from matchwright.engine.errors import InvalidArgument
from matchwright.engine.policy import Policy
from matchwright.engine.runs.diff import Diff, Status, Why, reasons
from matchwright.engine.runs.pairing import side, windows

JOBS, PEOPLE = 60, 240


@pytest.fixture
def market(tmp_path):
    with market_of(tmp_path, JOBS, PEOPLE) as made:
        yield made


def compare(first, second, *, unchanged=True):
    """(query id -> its diff, the summary)."""
    diff = Diff(side(first), side(second))
    found = {one.query_id: one for one in diff.queries(unchanged=unchanged)}
    return found, diff.summary


def answers(folder):
    """query id -> [(person, points)] by rank."""
    found = {}
    for unit in folder.plan().units:
        found |= {name: [] for name in folder.queries(unit)["query_id"]}
        for row in folder.part(unit).iter_rows(named=True):
            found[row["query_id"]].append((row["id"], row["points"]))
    return found


def run(market, **options):
    return market.run(**{"kinds": ("job",), "k": 6, "slack": 4, **options})[0]


def test_every_difference_is_told_with_its_reason(market):
    """People and queries come, change and go; everything else follows from that."""
    first = run(market)
    people, jobs = market.there["freelancer"], market.there["job"]
    shown = [name for rows in answers(first).values() for name, _ in rows]
    edited = [name for name, _ in Counter(shown).most_common(6)]
    gone = [name for name, _ in Counter(shown).most_common(14) if name not in edited]
    assert len(people) == PEOPLE
    market.edit("freelancer", edited, seed=11)
    market.remove("freelancer", gone)
    market.add("freelancer", 30, seed=12)
    new = set(market.there["freelancer"]) - set(people)
    other_jobs, gone_jobs = jobs[:4], jobs[4:7]
    market.edit("job", other_jobs, seed=13)
    market.remove("job", gone_jobs)
    market.add("job", 2, seed=14)
    second = run(market, block=17)

    found, summary = compare(first, second)
    before, after = answers(first), answers(second)
    assert set(found) == set(before) | set(after)
    for name, one in found.items():
        if name not in before or name not in after:
            assert one.status == (Status.NEW if name not in before else Status.GONE)
            continue
        mine, theirs = before[name], after[name]
        assert set(one.entered) == {i for i, _ in theirs} - {i for i, _ in mine}
        assert set(one.left) == {i for i, _ in mine} - {i for i, _ in theirs}
        moved = {
            person
            for person, _ in set(mine) | set(theirs)
            if place(mine, person)
            and place(theirs, person)
            and place(mine, person) != place(theirs, person)
        }
        assert set(one.moved) == moved
        assert (one.status == Status.SAME) == (mine == theirs)
        assert one.same_question == (name not in other_jobs)
        expected = Counter()
        for person in (*one.entered, *one.left, *one.moved):
            expected.update(expected_reasons(person, name in other_jobs, new, gone, edited))
        assert one.why == dict(expected)
    assert summary.people == {
        "freelancer": {"new": len(new), "gone": len(gone), "edited": len(edited)}
    }
    counts = summary.kinds["job"]
    assert counts["queries"][Status.NEW] == 2
    assert counts["queries"][Status.GONE] == 3
    for why in (Why.NEW_PERSON, Why.GONE_PERSON, Why.CHANGED_PERSON, Why.CHANGED_QUERY, Why.OTHERS):
        assert counts["why"][why] > 0, why
    assert sum(counts["queries"].values()) == len(found)


def place(rows, person):
    """(rank, points) of a person, or None."""
    return next(((n, p) for n, (name, p) in enumerate(rows, 1) if name == person), None)


def expected_reasons(person, other_question, new, gone, edited):
    if person in new:
        return [Why.NEW_PERSON]
    if person in gone:
        return [Why.GONE_PERSON]
    asked = [Why.CHANGED_QUERY] if other_question else []
    if person in edited:
        return [Why.CHANGED_PERSON, *asked]
    return asked or [Why.OTHERS]


def test_the_same_answers_are_the_same_however_they_were_made(market):
    first, second = run(market), run(market, slack=7, block=9)
    assert first.run_id != second.run_id
    found, summary = compare(first, second)
    assert summary.same
    assert {one.status for one in found.values()} == {Status.SAME}
    assert compare(first, second, unchanged=False)[0] == {}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ("policy", Why.CHANGED_POLICY),
        ("generation", Why.CHANGED_GENERATION),
        ("day", Why.CHANGED_DAY),
        ("k", Why.CHANGED_K),
    ],
)
def test_what_changed_for_the_run_as_a_whole_is_the_reason(market, change, why):
    first = run(market)
    options = {}
    if change == "policy":
        options = {"policy": Policy.from_dict({"weights": {"skills": 0.2}})}
    elif change == "day":
        options = {"as_of": synthetic.AS_OF + 200}
    elif change == "k":
        options = {"k": 4}
    else:
        market.store.refit(seed=1, sample=200, as_of=synthetic.AS_OF)
    found, summary = compare(first, run(market, **options))
    changed = [one for one in found.values() if one.status == Status.CHANGED]
    assert changed
    assert summary.settings
    for one in changed:
        assert set(one.why) == {why}


def test_without_fingerprints_nobody_can_tell_and_that_is_told(market):
    first = run(market, slack=0)
    market.change(np.random.default_rng(2), 0.3)
    found, summary = compare(first, run(market, slack=0))
    why = Counter()
    for one in found.values():
        why.update(one.why)
    assert set(why) <= {Why.UNKNOWN, Why.CHANGED_QUERY}
    assert why[Why.UNKNOWN]
    assert summary.people == {"freelancer": None}


def test_the_same_epoch_needs_no_fingerprints(market):
    found, summary = compare(run(market, slack=0), run(market, slack=0, k=3))
    assert summary.people == {"freelancer": {"new": 0, "edited": 0, "gone": 0}}
    assert {why for one in found.values() for why in one.why} == {Why.CHANGED_K}


def test_what_the_exposure_pass_moved_is_told(market):
    first, second = run(market), run(market, slack=5)
    unit = second.plan().units[0]
    part = second.part(unit)
    key = part.group_by("query_key").len().filter(pl.col("len") == 6)["query_key"][0]
    mine = pl.col("query_key") == key
    turned = part.with_columns(
        rank=pl.when(mine & (pl.col("rank") == 1)).then(2)
        .when(mine & (pl.col("rank") == 2)).then(1).otherwise("rank").cast(pl.Int32),
        moved=pl.when(mine & (pl.col("rank") <= 2)).then(pl.lit("shifted")),
    )  # fmt: skip
    second.write_frame(unit, "part", turned.sort("query_key", "rank"))
    found, _ = compare(first, second, unchanged=False)
    assert [dict(one.why) for one in found.values()] == [{Why.EXPOSURE: 2}]


def test_reasons_come_in_their_order():
    row = {"person": "CHANGED", "exposure": True}
    assert reasons(row, "entered", [Why.CHANGED_POLICY]) == [
        Why.CHANGED_PERSON,
        Why.CHANGED_POLICY,
    ]
    assert reasons({"person": "NEW", "exposure": True}, "entered", [Why.CHANGED_K]) == [
        Why.NEW_PERSON
    ]
    assert reasons({"person": "SAME", "exposure": True}, "moved", []) == [Why.EXPOSURE]


def test_runs_of_two_stores_do_not_compare(market, tmp_path):
    first = run(market)
    with market_of(tmp_path / "other", 20, 30) as other:
        second = run(other)
        with pytest.raises(InvalidArgument, match="only runs of one store"):
            Diff(side(first), side(second))


def test_both_directions(market):
    first, _ = market.run(k=3, slack=2)
    market.change(np.random.default_rng(4), 0.05)
    second, _ = market.run(k=3, slack=2)
    diff = Diff(side(first), side(second))
    kinds = {one.kind for one in diff.queries()}
    assert kinds == {"job", "freelancer"}
    assert set(diff.summary.people) == {"job", "freelancer"}


# ── Windows ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("blocks", [(7, 11), (60, 1), (1, 60), (13, 13)])
def test_two_runs_are_read_side_by_side_whatever_their_units(tmp_path, blocks):
    """Every query and row of both, once, in order; each window holds the same range of keys."""
    with market_of(tmp_path, 40, 90) as market:
        first, _ = market.run(kinds=("job",), block=blocks[0])
        market.change(np.random.default_rng(1), 0.3)
        second, _ = market.run(kinds=("job",), block=blocks[1])
    found = [[], []]
    highest = -1
    for window in windows(side(first), side(second), "job"):
        keys = [half.queries["query_key"].to_list() for half in (window.first, window.second)]
        assert min(keys[0] + keys[1]) > highest
        highest = max(keys[0] + keys[1])
        for half, some, mine in zip((window.first, window.second), keys, found, strict=True):
            assert set(half.rows["query_key"].to_list()) <= set(some)
            mine += [(key, half.rows.filter(pl.col("query_key") == key).height) for key in some]
    for folder, mine in zip((first, second), found, strict=True):
        queries = pl.concat([folder.queries(unit) for unit in folder.plan().units])
        expected = list(zip(queries["query_key"], queries["returned"], strict=True))
        assert mine == expected


# ── The command ───────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def two(market):
    first = run(market)
    market.change(np.random.default_rng(5), 0.1)
    return first, run(market)


def test_every_format_holds_the_same(two, tmp_path, capsys):
    first, second = two
    found, summary = compare(first, second, unchanged=False)
    command = ["run", "diff", first.url, second.url]
    assert main([*command, "-f", "jsonl"]) == 0
    *lines, last = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines == [one.to_dict() for one in found.values()]
    assert last == {"summary": json.loads(json.dumps(summary.to_dict()))}
    assert main([*command, "-f", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == [*lines, last]
    assert main([*command, "-f", "csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["query_id"] for row in rows] == list(found)
    to = tmp_path / "diff.parquet"
    assert main([*command, "--to", str(to), "-f", "parquet"]) == 0
    assert pl.read_parquet(to)["query_id"].to_list() == list(found)
    assert json.loads(capsys.readouterr().out) == last
    assert main([*command, "-f", "table"]) == 0
    told = capsys.readouterr().out
    assert all(name in told for name in found)
    assert "they differ" in told
    assert main([*command, "--summary", "-f", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == [last]
    assert main([*command, "-f", "parquet"]) == 2


def test_ids_within_an_output_name_runs(two, capsys):
    first, second = two
    where = ["--output", first.url.rsplit("/", 1)[0], "--summary", "-f", "json"]
    assert main(["run", "diff", first.run_id, second.run_id[:9], *where]) == 0
    assert json.loads(capsys.readouterr().out)[0]["summary"]["first"] == first.run_id
    assert main(["run", "diff", first.run_id, "0" * 16, *where]) == 2
