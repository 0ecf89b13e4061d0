"""Exposure over a run: who is moved, what stays as it was, and what it costs."""

from __future__ import annotations

import errno
import itertools
import os
import tempfile
from functools import cache

import polars as pl
import pytest

from matchwright.engine import synthetic
from matchwright.engine.eligibility import RULE
from matchwright.engine.errors import InvalidArgument
from matchwright.engine.policy import Policy
from matchwright.engine.runs.execute import LocalExecutor, run
from matchwright.engine.runs.exposure import apply, first_phase
from matchwright.engine.runs.folder import Output, RunFolder
from matchwright.engine.runs.plan import RunOptions, make_plan
from matchwright.engine.runs.verify import verify
from matchwright.engine.store import Store
from matchwright.kernels.ops import Ops

K, SLACK = 10, 30
CAP = 9


@cache
def people_frame():
    """200 freelancers, one in fifteen of them new, and twelve who say what another one says."""
    reviews = pl.when(pl.int_range(pl.len()) % 15 == 7).then(0).otherwise(5)
    frame = synthetic.frame("freelancer", 200, seed=4).with_columns(
        reviews.cast(pl.Int32).alias("reviews")
    )
    twins = pl.concat([frame.head(4)] * 3).with_columns(
        pl.Series("id", [f"twin-{n}" for n in range(12)]),
        pl.col("rate_cents") + pl.Series(range(12), dtype=pl.Int32),
    )
    return pl.concat([frame, twins])


def make_store(folder, *, shuffled=False):
    frames = {"job": synthetic.frame("job", 150, seed=4), "freelancer": people_frame()}
    with Store.open(folder, mode="w", create=True, salt=bytes(range(16))) as store:
        for kind, frame in frames.items():
            store.upsert(
                kind, frame.sample(fraction=1, shuffle=True, seed=9) if shuffled else frame
            )
        store.refit(seed=0, sample=1_000, as_of=synthetic.AS_OF)
    return folder


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    with Store.open(make_store(tmp_path_factory.mktemp("exposure") / "store")) as opened:
        yield opened


def policy_of(**section):
    """The default without its demanding rules, so that most people are eligible, and a section."""
    document = {"rules": {name: {"enabled": False} for name in RULE}}
    if section:
        document["exposure"] = {"enabled": True, "slack_rows": SLACK, **section}
    return Policy.from_dict(document)


def run_with(snapshot, folder, policy, **options):
    """(folder, run.json) of a run."""
    plan = make_plan(
        snapshot, RunOptions(kinds=("job",), k=K, as_of=synthetic.AS_OF, policy=policy, **options)
    )
    there = Output(folder).folder(plan.run_id)
    executor = LocalExecutor(Ops(threads=1), snapshot, plan, prefetch=False)
    summary = run(plan, there, executor, snapshot=snapshot).summary
    return there, summary


def rows_of(folder, what="part"):
    return pl.concat([folder.frame(unit, what) for unit in folder.plan().units])


@pytest.fixture(scope="module")
def plain(store, tmp_path_factory):
    """The same rows, nothing moved."""
    folder, summary = run_with(
        store.snapshot(), tmp_path_factory.mktemp("plain"), policy_of(), slack=SLACK
    )
    assert summary["moved"] == {}
    return folder


ALL = {
    "shown_max": CAP,
    "newcomers_within": 5,
    "newcomer_reviews_max": 1,
    "newcomer_loss_permille": 150,
    "alike_within": 5,
}


@pytest.fixture(scope="module")
def moved(store, tmp_path_factory):
    return run_with(store.snapshot(), tmp_path_factory.mktemp("moved"), policy_of(**ALL))


def test_off_is_off_to_the_byte(store, plain, tmp_path):
    """A section that is off, and one that has nothing to move, change no row."""
    quiet = Policy.from_dict({**policy_of().to_dict(), "exposure": {"shown_max": 3}})
    again, _ = run_with(store.snapshot(), tmp_path, quiet, slack=SLACK)
    assert again.run_id == plain.run_id
    for name in sorted(plain.list()):
        if name.endswith(".parquet"):
            assert again.read(name) == plain.read(name)
    idle, summary = run_with(store.snapshot(), tmp_path, policy_of(shown_max=1_000), slack=SLACK)
    for what in ("part", "slack"):
        assert rows_of(idle, what).drop("policy").equals(rows_of(plain, what).drop("policy"))
    figures = summary["moved"]["kinds"]["job"]
    assert figures["queries_touched"] == figures["score_lost"] == 0
    assert figures["rows_moved"] == {}


def test_stored_rows_stay_the_first_phases(plain, moved):
    """Nobody comes in who was not stored, nothing that was stored is lost."""
    before = first_phase(rows_of(plain), rows_of(plain, "slack"))
    after = first_phase(rows_of(moved[0]), rows_of(moved[0], "slack"))
    assert after.drop("policy").equals(before.drop("policy"))
    shown = rows_of(moved[0])
    stays = shown["moved"].is_null()
    assert (shown["first_rank"].is_null() == stays).all()
    assert shown.group_by("query_key").len()["len"].max() == K
    ranks = shown.group_by("query_key", maintain_order=True).agg("rank")["rank"].to_list()
    assert all(one == list(range(1, len(one) + 1)) for one in ranks)


def test_the_cap_holds_over_a_run(plain, moved):
    folder, summary = moved
    figures = summary["moved"]["kinds"]["job"]
    counts = rows_of(folder)["id"].value_counts()["count"]
    over = rows_of(folder).filter(pl.col("moved") == "over_cap")
    kept = rows_of(folder).filter(pl.col("moved").ne_missing("over_cap"))["id"]
    assert rows_of(plain)["id"].value_counts()["count"].max() > 2 * CAP
    assert kept.value_counts()["count"].max() == CAP
    assert figures["most_shown_after"] == counts.max()
    assert figures["cap"]["rows_over_after"] == over.height
    assert figures["cap"]["queries_over_after"] == over["query_key"].n_unique()
    assert figures["cap"]["people_over_after"] == (counts > CAP).sum()
    assert figures["cap"]["holds"] == (counts.max() <= CAP)


def test_a_cap_that_cannot_hold_is_recorded(store, tmp_path):
    """150 jobs want 1,500 places, and 212 people may have one each."""
    folder, summary = run_with(store.snapshot(), tmp_path, policy_of(shown_max=1))
    figures = summary["moved"]["kinds"]["job"]
    shown = rows_of(folder)
    assert shown.height == summary["counts"]["job"]["rows"] == 1_500
    over = shown.filter(pl.col("moved") == "over_cap")
    assert figures["cap"]["holds"] is False
    assert figures["cap"]["rows_over_after"] == over.height >= 1_500 - 212
    assert figures["rows_moved"]["over_cap"] == over.height


def test_newcomers_have_their_place(store, moved):
    """In the first five where one is stored who may have a place there."""
    folder, summary = moved
    figures = summary["moved"]["kinds"]["job"]["newcomers"]
    frame = people_frame().filter(pl.col("reviews") <= 1)
    new = set(frame["id"])
    shown = rows_of(folder).with_columns(pl.col("id").is_in(list(new)).alias("new"))
    head = shown.filter(pl.col("rank") <= 5)
    having = head.group_by("query_key").agg(pl.col("new").any())["new"].sum()
    assert figures["queries_with_after"] == having > figures["queries_with_before"]
    lifted = shown.filter(pl.col("moved") == "newcomer")
    assert lifted.height
    assert lifted["new"].all()
    assert (lifted["rank"] == 5).all()
    passed_by = shown.filter(pl.col("rank") == 6).select("query_key", pl.col("points").alias("was"))
    both = lifted.join(passed_by, on="query_key")
    assert (both["points"] >= both["was"] * 0.85 - 1).all()


def test_one_of_those_who_say_the_same_is_in_front(store, plain, moved):
    folder, summary = moved
    figures = summary["moved"]["kinds"]["job"]["alike"]
    assert (figures["groups"], figures["people"]) == (4, 16)
    frame = people_frame()
    group = {row["id"]: (row["title"], row["text"]) for row in frame.to_dicts()}

    def crowded(rows):
        head = rows.filter(pl.col("rank") <= 5)
        lists = head.group_by("query_key").agg("id")["id"].to_list()
        return sum(len({group[name] for name in names}) < len(names) for names in lists)

    assert figures["queries_over_before"] == crowded(rows_of(plain)) > 0
    assert figures["queries_over_after"] == crowded(rows_of(folder))
    assert crowded(rows_of(folder)) < crowded(rows_of(plain)) / 4


def test_the_price_is_what_the_rows_say(plain, moved):
    """Recomputed from the Parquet files of a run with and one without."""
    folder, summary = moved
    figures = summary["moved"]["kinds"]["job"]
    before, after = rows_of(plain), rows_of(folder)
    lost = before["score"].sum() - after["score"].sum()
    assert figures["score_lost"] == pytest.approx(lost, rel=1e-9)
    assert figures["score_lost"] > 0
    assert figures["score_lost_per_row"] == pytest.approx(lost / after.height)
    assert figures["score_lost_share"] == pytest.approx(lost / before["score"].sum())
    counted = after["moved"].drop_nulls().value_counts()
    assert figures["rows_moved"] == dict(counted.iter_rows())
    left = rows_of(folder, "slack").filter(pl.col("first_rank") <= K)["moved"].value_counts()
    assert figures["rows_left"] == dict(left.iter_rows())
    touched = after.filter(pl.col("moved").is_not_null())["query_key"].n_unique()
    assert figures["queries_touched"] == touched
    sets = [frame.group_by("query_key").agg(pl.col("key").sort()) for frame in (before, after)]
    changed = sets[0].join(sets[1], on="query_key").filter(pl.col("key") != pl.col("key_right"))
    assert figures["queries_changed"] == changed.height
    for name, frame in (("before", before), ("after", after)):
        assert figures[f"people_shown_{name}"] == frame["key"].n_unique()
        assert figures[f"most_shown_{name}"] == frame["key"].value_counts()["count"].max()


def test_units_and_the_order_of_import_change_nothing(store, moved, tmp_path):
    _, summary = moved
    parts, cut = run_with(store.snapshot(), tmp_path, policy_of(**ALL), block=17)
    assert len(parts.plan().units) == 9
    assert cut["digest"] == summary["digest"]
    assert cut["moved"] == summary["moved"]
    with Store.open(make_store(tmp_path / "store", shuffled=True)) as other:
        _, mixed = run_with(other.snapshot(), tmp_path / "runs", policy_of(**ALL))
    assert mixed["determinants"]["epoch"] != summary["determinants"]["epoch"]
    assert mixed["digest"] == summary["digest"]
    assert mixed["moved"] == summary["moved"]


def test_a_pass_that_was_killed_begins_anew(store, moved, tmp_path, monkeypatch):
    """After any write of it: the same files in the end."""
    snapshot, policy = store.snapshot(), policy_of(**ALL)
    expected = moved[1]
    write = RunFolder.write
    whole, _ = run_with(snapshot, tmp_path / "whole", policy, block=40)

    class Killed(BaseException):
        pass

    def dying_after(n):
        turn = itertools.count()

        def write_some(self, name, data):
            if next(turn) == n:
                raise Killed
            write(self, name, data)

        return write_some

    # plan.json, four units of four files, then the pass: three files a unit.
    for n in (17, 18, 19, 25, 28):
        output = tmp_path / f"after-{n}"
        with monkeypatch.context() as patched:
            patched.setattr(RunFolder, "write", dying_after(n))
            with pytest.raises(Killed):
                run_with(snapshot, output, policy, block=40)
        folder, summary = run_with(snapshot, output, policy, block=40)
        assert summary["digest"] == expected["digest"]
        assert summary["moved"] == expected["moved"]
        for name in sorted(whole.list()):
            if "/part-" in name or "/slack-" in name:
                assert folder.read(name) == whole.read(name), (n, name)


def test_when_somebody_joined_is_read_from_records(store, tmp_path):
    """The default policy forbids that field; one that uses it says so."""
    frame = people_frame()
    days = 400
    new = set(frame.filter(pl.col("joined") >= synthetic.AS_OF - days)["id"])
    assert 5 < len(new) < 120
    section = {"newcomers_within": 3, "newcomer_reviews_max": -1, "newcomer_days": days}
    document = policy_of(**section | {"newcomer_days": 0, "newcomer_reviews_max": 0}).to_dict()
    document["fields"] = {
        "used": [*document["fields"]["used"], "freelancer.joined"],
        "forbidden": [],
    }
    document["exposure"] |= section | {"newcomer_loss_permille": 1_000}
    folder, summary = run_with(store.snapshot(), tmp_path, Policy.from_dict(document))
    lifted = rows_of(folder).filter(pl.col("moved") == "newcomer")
    assert set(lifted["id"]) <= new
    assert lifted.height
    figures = summary["moved"]["kinds"]["job"]["newcomers"]
    assert figures["queries_with_after"] > figures["queries_with_before"]
    stored = set(rows_of(folder)["id"]) | set(rows_of(folder, "slack")["id"])
    assert figures["people"] == len(new & stored)


def test_verify_finds_nothing_wrong_with_moved_rows(store, moved):
    verdict = verify(moved[0], store.snapshot(), sample=20)
    assert verdict.sound, verdict.figures()


def test_no_room_for_the_temporary_file_is_an_error_that_names_the_folder(
    store, moved, tmp_path, monkeypatch
):
    def full(*whatever):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space") as caught:
        run_with(store.snapshot(), tmp_path, policy_of(**ALL))
    assert caught.value.filename == tempfile.gettempdir()
    monkeypatch.undo()
    _, summary = run_with(store.snapshot(), tmp_path, policy_of(**ALL))
    assert summary["digest"] == moved[1]["digest"]


def test_less_slack_than_the_policy_asks_for_is_refused(store, moved, tmp_path):
    folder = moved[0]
    plan = folder.plan()
    with pytest.raises(InvalidArgument, match="needs 50 rows of slack"):
        apply(folder, plan, policy_of(shown_max=1, slack_rows=50), store.snapshot())
    assert apply(folder, plan, policy_of(), store.snapshot()) == {}
