"""What ``run verify`` sees of a second phase: each damage by its own check; features by a referee
that shares no arithmetic with the engine."""

from __future__ import annotations

import hashlib
import json
import shutil

import polars as pl
import pytest
import run_rerank_cases as cases
from rerank_referee import features_of_pair
from run_rerank_cases import AS_OF, K, M

from matchwright.engine.matcher import OTHER, Matcher
from matchwright.engine.runs.digest import run_digest
from matchwright.engine.runs.findings import CHECKS, SECOND_CHECKS
from matchwright.engine.runs.folder import SUMMARY, RunFolder
from matchwright.engine.runs.verify import FAILED, SOUND, verify
from matchwright.engine.store import Store


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory):
    folder = cases.make_store(tmp_path_factory.mktemp("run-rerank-verify") / "store", 220, 60)
    with Store.open(folder) as opened:
        yield opened.snapshot()


@pytest.fixture(scope="module")
def trees(snapshot):
    return cases.trees_of(snapshot)


@pytest.fixture(scope="module")
def whole(snapshot, trees, tmp_path_factory):
    model = cases.ranker_of(trees)
    place = tmp_path_factory.mktemp("whole")
    return cases.do(snapshot, place, model, slack=M - K + 2, contributions=True)[0]


@pytest.fixture
def broken(whole, tmp_path, snapshot, trees):
    """A copy of the run, to be damaged."""
    shutil.copytree(whole.url, tmp_path / whole.run_id)
    return Broken(RunFolder(tmp_path / whole.run_id), snapshot, trees)


class Broken:
    def __init__(self, folder, snapshot, trees):
        self.folder, self.snapshot, self.trees = folder, snapshot, trees
        self.unit = folder.plan().units[0]

    def put(self, what, edited):
        """Other rows in a file, with all hashes and the digest that belong to them."""
        schema = self.folder.frame(self.unit, what).schema
        frame = pl.DataFrame(edited, schema=schema)
        data = self.folder.write_frame(self.unit, what, frame)
        record = self.folder.read_json(self.unit.file("unit"))
        record["sha256"][what] = hashlib.sha256(data).hexdigest()
        self.folder.write(self.unit.file("unit"), json.dumps(record).encode())
        summary = self.folder.summary()
        summary["units"][0]["sha256"] = record["sha256"]
        self.folder.write(SUMMARY, json.dumps(summary).encode())
        summary["digest"] = run_digest(self.folder)
        self.folder.write(SUMMARY, json.dumps(summary).encode())

    def rows(self, what):
        return self.folder.frame(self.unit, what).to_dicts()

    def full(self):
        """(rows of the part, where those of a query with K matches begin)."""
        part = self.rows("part")
        for n in range(len(part) - K):
            mine = part[n : n + K]
            same = len({row["query_key"] for row in mine}) == 1
            apart = mine[0]["model_score"] != mine[1]["model_score"]
            if same and apart and mine[0]["rank"] == 1:
                return part, n
        raise AssertionError("no such query")

    def failed(self, sample=0):
        verdict = verify(self.folder, self.snapshot, sample=sample, trees=self.trees)
        return {check["check"] for check in verdict.checks if check["failed"]}


def test_a_sound_run_is_checked_in_every_way(whole, snapshot, trees):
    verdict = verify(whole, snapshot, sample=40, trees=trees)
    assert verdict.verdict == SOUND, verdict.figures()
    assert [check["check"] for check in verdict.checks] == [*CHECKS, *SECOND_CHECKS]
    for check in verdict.checks:
        assert check["checked"] > 0, check
        assert (check["failed"], check["skipped"]) == (0, None)


def test_without_trees_or_store_it_says_what_was_not_checked(whole, snapshot):
    for there, why in ((snapshot, "the model repository was not given"), (None, "no store")):
        verdict = verify(whole, there, sample=10, absent="no store", no_trees="")
        skipped = {c["check"]: c["skipped"] for c in verdict.checks if c["skipped"]}
        assert verdict.verdict == SOUND
        assert ("points" in skipped) == (there is None)
        assert why in skipped["model_sample"] or there is None


# ── Each damage ───────────────────────────────────────────────────────────────────────────────


def swap(one, other, *names):
    for name in names:
        one[name], other[name] = other[name], one[name]


def swapped_scores(broken):
    """Two people of one answer have each other's score."""
    part, n = broken.full()
    swap(part[n], part[n + 1], "model_score")
    broken.put("part", part)


def swapped_ranks(broken):
    part, n = broken.full()
    swap(part[n], part[n + 1], *(name for name in part[n] if name not in ("rank", "query_key")))
    broken.put("part", part)


def wrong_scores_in_order(broken):
    """Everybody's score a little higher: the order holds, the trees say otherwise."""
    for what in ("part", "slack"):
        rows = broken.rows(what)
        for row in rows:
            row["model_score"] = None if row["model_score"] is None else row["model_score"] + 1
        broken.put(what, rows)


def lost_score(broken):
    part, n = broken.full()
    part[n + K - 1]["model_score"] = None
    broken.put("part", part)


def score_beyond_the_candidates(broken):
    slack = broken.rows("slack")
    at = next(n for n, row in enumerate(slack) if row["first_rank"] > M)
    slack[at]["model_score"] = -(2**20)
    broken.put("slack", slack)


def huge_score(broken):
    part, n = broken.full()
    part[n]["model_score"] = 2**24
    broken.put("part", part)


def degraded_mark(broken):
    queries = broken.rows("queries")
    at = next(n for n, row in enumerate(queries) if row["returned"])
    queries[at]["degraded"] = "LATE"
    broken.put("queries", queries)


def unknown_reason(broken):
    queries = broken.rows("queries")
    queries[0]["degraded"] = "TIRED"
    broken.put("queries", queries)


def first_ranks(broken):
    """The first phase's ranks of two rows with other points."""
    part, n = broken.full()
    swap(part[n], part[n + 1], "first_rank")
    broken.put("part", part)


def lost_column(broken):
    frame = broken.folder.frame(broken.unit, "part").drop("model_score")
    data = broken.folder.write_frame(broken.unit, "part", frame)
    record = broken.folder.read_json(broken.unit.file("unit"))
    record["sha256"]["part"] = hashlib.sha256(data).hexdigest()
    broken.folder.write(broken.unit.file("unit"), json.dumps(record).encode())
    summary = broken.folder.summary()
    summary["units"][0]["sha256"] = record["sha256"]
    broken.folder.write(SUMMARY, json.dumps(summary).encode())


def told_degraded(broken):
    summary = broken.folder.summary()
    broken.folder.write(SUMMARY, json.dumps({**summary, "degraded": 2}).encode())


DAMAGES = [
    (swapped_scores, {"model"}),
    (swapped_ranks, {"model"}),
    (wrong_scores_in_order, set()),
    (lost_score, {"model"}),
    (score_beyond_the_candidates, {"model"}),
    (huge_score, {"model"}),
    (degraded_mark, {"model", "counts"}),
    (unknown_reason, {"model", "counts"}),
    (first_ranks, {"order", "model"}),
    (lost_column, {"schema", "digest", "counts"}),
    (told_degraded, {"counts"}),
]


@pytest.mark.parametrize(
    ("spoil", "expected"), DAMAGES, ids=lambda one: getattr(one, "__name__", "")
)
def test_each_damage_is_seen_by_its_check(broken, spoil, expected):
    spoil(broken)
    assert broken.failed() == expected


def test_wrong_scores_in_the_right_order_are_seen_by_the_trees_alone(broken):
    wrong_scores_in_order(broken)
    assert broken.failed(sample=25) == {"model_sample"}


def test_a_run_that_was_ordered_by_other_trees_is_seen(broken, snapshot):
    """As a server would that serves another model under the pinned name: scores of other trees."""
    other = cases.trees_of(snapshot, seed=9)
    other.content_hash = broken.trees.content_hash
    verdict = verify(broken.folder, snapshot, sample=25, trees=other)
    assert verdict.verdict == FAILED
    assert {c["check"] for c in verdict.checks if c["failed"]} == {"model_sample"}
    other.content_hash = "f" * 32
    verdict = verify(broken.folder, snapshot, sample=0, trees=other)
    assert {c["check"] for c in verdict.checks if c["failed"]} == {"run"}


# ── The independent referee ───────────────────────────────────────────────────────────────────


class Recorded:
    """A snapshot as the referee reads it: with single records."""

    def __init__(self, snapshot):
        self._snapshot = snapshot

    def __getattr__(self, name):
        return getattr(self._snapshot, name)

    def record(self, kind, name):
        return self._snapshot.rows(kind, [name])[0]


def test_scores_are_what_the_trees_give_the_referees_features(whole, snapshot, trees, count):
    """From two records, slowly: no line of the engine's features takes part."""
    market = Recorded(snapshot)
    matcher = Matcher(market, cases.OPS, cases.POLICY.without_rerank())
    looked = 0
    for unit in whole.plan().units:
        part = whole.part(unit)
        for row in part.sample(min(count(reduced=12, full=150), part.height), seed=1).iter_rows(
            named=True
        ):
            found = features_of_pair(market, matcher, unit.kind, row["query_id"], row["id"], AS_OF)
            values = pl.DataFrame({name: [found[name]] for name in trees.features})
            score = trees.score(values.cast(pl.Int32).to_numpy())
            assert score.tolist() == [row["model_score"]], (unit.kind, OTHER[unit.kind], row)
            looked += 1
    assert looked > 20
