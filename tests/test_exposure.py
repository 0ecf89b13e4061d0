"""Exposure: what a run does after scoring about who is shown."""

from __future__ import annotations

import errno
import itertools
import os
import tempfile
from dataclasses import replace
from functools import cache

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from matchwright.engine import synthetic
from matchwright.engine.eligibility import RULE
from matchwright.engine.errors import InvalidArgument, UnknownKey
from matchwright.engine.policy import Policy
from matchwright.engine.policy_exposure import Exposure
from matchwright.engine.runs import exposure_cap
from matchwright.engine.runs.execute import LocalExecutor, run
from matchwright.engine.runs.exposure import apply, first_phase
from matchwright.engine.runs.exposure_cap import Lists, admit
from matchwright.engine.runs.exposure_choice import Moved, People, choose, chosen
from matchwright.engine.runs.folder import Output, RunFolder
from matchwright.engine.runs.plan import RunOptions, make_plan
from matchwright.engine.runs.verify import verify
from matchwright.engine.store import Store
from matchwright.kernels.ops import Ops
from matchwright.kernels.order import mix32

OFF = Exposure(
    asking=("job",),
    slack_rows=10,
    shown_max=0,
    newcomers_within=0,
    newcomer_reviews_max=0,
    newcomer_days=0,
    newcomer_loss_permille=50,
    alike_within=0,
    alike_max=1,
)


def case(seed, q=40, n=30, w=12):
    """Random stored rows: some queries have fewer; a few people are in nearly all of them."""
    rng = np.random.default_rng(seed)
    person = np.full((q, w), -1, np.int32)
    points = np.zeros((q, w), np.int32)
    liked = rng.random(n) ** 3
    for line in range(q):
        size = int(rng.integers(0, w + 1)) if rng.random() < 0.4 else w
        size = min(size, n)
        order = np.argsort(-(liked + 0.3 * rng.random(n)))[:size]
        person[line, :size] = order
        points[line, :size] = np.sort(rng.integers(-50, 1_000, size))[::-1]
    keys = np.sort(rng.choice(2**40, q, replace=False).astype(np.uint64) << np.uint64(20))
    key_n = np.sort(rng.choice(2**40, n, replace=False).astype(np.uint64) << np.uint64(21))
    people = People(rng.random(n) < 0.2, rng.integers(-1, 8, n).astype(np.int32))
    return Lists(keys, person, points, key_n), people


# ── The order of one answer ───────────────────────────────────────────────────────────────────


def plainly(persons, points, admitted, people, k, ask):
    """The definition, one slot at a time: (slots, reasons) of one query's answer."""
    slots = [s for s, person in enumerate(persons) if person >= 0]
    there = len(slots)
    order = [s for s in slots if admitted[s]]
    put_back = set()
    if ask.alike_within:
        within, front, rest = min(ask.alike_within, k), [], []
        for s in order:
            group = people.group_n[persons[s]]
            same = [f for f in front if group >= 0 and people.group_n[persons[f]] == group]
            if len(front) < within and len(same) < ask.alike_max:
                front.append(s)
            else:
                if len(front) < within:
                    put_back.add(s)
                rest.append(s)
        order = front + rest
    lifted = None
    within = min(ask.newcomers_within, k)
    if within and not any(people.new_n[persons[s]] for s in order[:within]):
        for at in range(within, len(order)):
            s, victim = order[at], order[within - 1]
            loss = int(points[victim]) - int(points[s])
            if not people.new_n[persons[s]]:
                continue
            if loss > abs(int(points[victim])) * ask.newcomer_loss_permille // 1_000:
                continue
            tried = [*order[: within - 1], s, *order[within - 1 : at], *order[at + 1 :]]
            front = tried[: min(ask.alike_within, k)]
            group = people.group_n[persons[s]]
            same = sum(people.group_n[persons[f]] == group for f in front)
            if s in front and group >= 0 and same > ask.alike_max:
                continue
            order, lifted = tried, s
            break
    order = order[:k]
    spare = [s for s in slots if not admitted[s]]
    filled = spare[: min(k, there) - len(order)]
    reasons = []
    for place, s in enumerate([*order, *filled]):
        if s in filled:
            reasons.append(Moved.OVER_CAP)
        elif s == lifted:
            reasons.append(Moved.NEWCOMER)
        elif s in put_back and (s != place or s >= k):
            reasons.append(Moved.ALIKE)
        elif s >= k:
            reasons.append(Moved.ENTERED)
        else:
            reasons.append(Moved.SHIFTED if s != place else Moved.NOT)
    left = [s for s in slots if s not in {*order, *filled}]
    for place, s in enumerate(left, len(reasons)):
        if s < k:
            reason = Moved.ALIKE if s in put_back else Moved.DISPLACED
            reasons.append(reason if admitted[s] else Moved.CAPPED)
        elif s in put_back and s != place:
            reasons.append(Moved.ALIKE)
        else:
            reasons.append(Moved.SHIFTED if s != place else Moved.NOT)
    return [*order, *filled, *left], reasons, len(order) + len(filled)


asks = st.builds(
    lambda n, loss, a, most: replace(
        OFF, newcomers_within=n, newcomer_loss_permille=loss, alike_within=a, alike_max=most
    ),
    st.sampled_from([0, 1, 3, 5, 20]),
    st.sampled_from([0, 50, 400, 1_000]),
    st.sampled_from([0, 1, 4, 5, 30]),
    st.sampled_from([1, 2]),
)


@given(st.integers(0, 2**32), st.integers(1, 12), asks)
def test_the_order_is_the_defined_one(seed, k, ask):
    lists, people = case(seed, q=12)
    rng = np.random.default_rng(seed + 1)
    block = lists.block(slice(0, lists.q))
    admitted = block.there_qw & (rng.random(block.person_qw.shape) < rng.random())
    choice = choose(block, admitted, people, k, ask)
    shown = chosen(block, admitted, people, k, ask)
    for line in range(lists.q):
        expected, reasons, visible = plainly(
            block.person_qw[line], block.points_qw[line], admitted[line], people, k, ask
        )
        size = len(expected)
        assert choice.shown_q[line] == visible
        assert choice.slot_qw[line, :size].tolist() == expected
        assert (choice.slot_qw[line, size:] == -1).all()
        assert choice.moved_qw[line, :size].tolist() == reasons
        assert not choice.moved_qw[line, size:].any()
        among = {s for s in expected[:visible] if admitted[line, s]}
        assert set(np.flatnonzero(shown[line]).tolist()) == among


# ── The cap ───────────────────────────────────────────────────────────────────────────────────


def gale_shapley(lists, k, cap):
    """One proposal at a time, in any order: person -> queries that it stays with."""
    q, w = lists.person_qw.shape
    stays = {}
    waiting = [(line, 0, 0) for line in reversed(range(q))]  # query, next slot, places filled
    held = dict.fromkeys(range(q), 0)
    following = dict.fromkeys(range(q), 0)
    while waiting:
        line = waiting.pop()[0]
        while held[line] < k and following[line] < w:
            slot = following[line]
            following[line] += 1
            person = int(lists.person_qw[line, slot])
            if person < 0:
                break
            mix = int(mix32(int(lists.key_q[line]), lists.key_n[person : person + 1])[0]) >> 6
            stays.setdefault(person, []).append((slot, mix, line))
            held[line] += 1
            if len(stays[person]) > cap:
                out = max(stays[person])
                stays[person].remove(out)
                held[out[2]] -= 1
                if out[2] != line:
                    waiting.append((out[2], 0, 0))
    return stays


@given(st.integers(0, 2**32), st.integers(1, 8), st.integers(1, 20))
def test_a_cap_alone_is_the_stable_assignment(seed, k, cap):
    lists, people = case(seed)
    admission = admit(lists, people, k, replace(OFF, shown_max=cap))
    places = np.arange(lists.q)
    admitted = admission.admitted(lists, places, lists.person_qw)
    shown = chosen(lists.block(slice(0, lists.q)), admitted, people, k, OFF)
    found = {}
    for line, slot in zip(*np.nonzero(shown), strict=True):
        found.setdefault(int(lists.person_qw[line, slot]), set()).add(int(line))
    expected = {p: {line for _, _, line in at} for p, at in gale_shapley(lists, k, cap).items()}
    assert found == expected


@given(st.integers(0, 2**32), st.integers(1, 8), st.integers(1, 12), asks)
def test_nobody_is_over_the_cap_but_who_is_recorded_so(seed, k, cap, ask):
    ask = replace(ask, shown_max=cap)
    lists, people = case(seed)
    admission = admit(lists, people, k, ask)
    block = lists.block(slice(0, lists.q))
    admitted = admission.admitted(lists, np.arange(lists.q), block.person_qw)
    choice = choose(block, admitted, people, k, ask)
    who = np.take_along_axis(block.person_qw, np.maximum(choice.slot_qw, 0).astype(int), axis=1)
    shown = np.arange(who.shape[1]) < choice.shown_q[:, None]
    kept = shown & (choice.moved_qw != Moved.OVER_CAP)
    assert np.bincount(who[kept], minlength=lists.key_n.size).max(initial=0) <= cap
    assert (choice.shown_q == np.minimum((block.person_qw >= 0).sum(axis=1), k)).all()
    for line, place in zip(*np.nonzero(choice.moved_qw == Moved.OVER_CAP), strict=True):
        there = choice.slot_qw[line, : choice.shown_q[line]].tolist()
        left = set(np.flatnonzero(admitted[line])) - set(there)
        assert not left, f"query {line} keeps somebody over the cap at {place} with others stored"


def test_portions_and_blocks_change_nothing(monkeypatch):
    lists, people = case(7, q=300, n=60, w=20)
    ask = replace(OFF, shown_max=9, newcomers_within=5, alike_within=5)
    whole = admit(lists, people, 8, ask)
    monkeypatch.setattr(exposure_cap, "PAIRS_AT_ONCE", 13)
    monkeypatch.setattr(exposure_cap, "QUERIES_AT_ONCE", 7)
    pieces = admit(lists, people, 8, ask)
    assert (whole.bar_n == pieces.bar_n).all()
    assert whole.rounds == pieces.rounds > 2
    assert (whole.bar_n != exposure_cap.OPEN).any()


def test_without_a_cap_everybody_is_admitted():
    lists, people = case(3)
    admission = admit(lists, people, 5, OFF)
    assert admission.rounds == 0
    admitted = admission.admitted(lists, np.arange(lists.q), lists.person_qw)
    assert (admitted == (lists.person_qw >= 0)).all()


# ── The policy's section ──────────────────────────────────────────────────────────────────────


def test_the_section_is_off_and_no_part_of_the_id_while_it_is():
    policy = Policy.load()
    assert policy.exposure is None
    assert "exposure" not in policy.to_dict()
    off = Policy.parse("exposure = {enabled = false, shown_max = 7}")
    assert (off.exposure, off.id) == (None, policy.id)


def test_every_setting_is_part_of_the_id():
    base = "exposure = {enabled = true, shown_max = 5, newcomers_within = 3, alike_within = 3%s}"
    extra = [
        "", ', asking = ["job", "freelancer"]', ", slack_rows = 7", ", newcomer_reviews_max = 2",
        ", newcomer_loss_permille = 9", ", alike_max = 2",
    ]  # fmt: skip
    policies = [Policy.parse(base % text) for text in extra]
    assert len({policy.id for policy in policies}) == len(extra)
    assert len({policy.effective().id for policy in policies}) == len(extra)
    for policy in policies:
        again = Policy.from_dict(policy.to_dict())
        assert (again.exposure, again.id) == (policy.exposure, policy.id)
        assert policy.effective().exposure == policy.exposure


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("enabled = 1", InvalidArgument, "true or false"),
        ("enabled = true", InvalidArgument, "asks for nothing"),
        ("shown_max = -1", InvalidArgument, "0..1,000,000,000"),
        ("shown_most = 1", UnknownKey, "did you mean 'shown_max'"),
        ('asking = ["jobs"]', InvalidArgument, "'job', 'freelancer'"),
        ("asking = []", InvalidArgument, "a list of some"),
        (
            "enabled = true\nnewcomers_within = 3\nnewcomer_reviews_max = -1",
            InvalidArgument,
            "who is new",
        ),
        ("enabled = true\nnewcomers_within = 3\nnewcomer_days = 30", InvalidArgument, "joined"),
    ],
)
def test_what_the_section_refuses(text, error, said):
    with pytest.raises(error, match=said):
        Policy.parse("[exposure]\n" + text)


# ── Over a run ────────────────────────────────────────────────────────────────────────────────

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
