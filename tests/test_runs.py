"""Runs: the digest does not depend on how the work is done; every column says what it should."""

# ruff: noqa: F401, F811 (fixtures come by import)
from __future__ import annotations

import dataclasses

import numpy as np
import polars as pl
import pytest
import run_cases as cases
from run_cases import AS_OF, KINDS, POLICY, do, heavier, options, results, snapshot, store, whole

from matchwright.engine import synthetic
from matchwright.engine.errors import StoreDamaged
from matchwright.engine.matcher import Matcher
from matchwright.engine.policy import Policy
from matchwright.engine.request import Request
from matchwright.engine.runs.block import answer_block, rows_with_keys
from matchwright.engine.runs.digest import run_digest
from matchwright.engine.runs.frames import part_frame, queries_frame, slack_frame
from matchwright.engine.runs.plan import asking
from matchwright.engine.runs.prepare_block import prepare_block
from matchwright.engine.store import Store
from matchwright.kernels.ops import Ops, get_ops
from matchwright.kernels.order import mix32


@pytest.fixture(scope="module")
def single(snapshot):
    """Single answers of K + slack matches, by kind."""
    return {kind: results(snapshot, kind, k=20, slack=7, count=True) for kind in KINDS}


# ── The digest ────────────────────────────────────────────────────────────────────────────────


def test_the_digest_is_that_of_single_answers(whole, single):
    folder, summary = whole
    assert summary["digest"] == run_digest(folder) == cases.digest_of(single, 20)


@pytest.mark.parametrize(
    "how",
    [
        {"block": 1_000},
        {"block": 37},
        {"block": 64, "prefetch": False},
        {"block": 64, "ops": Ops(threads=3)},
        {"block": 64, "ops": Ops(threads=2, memory_bytes=1 << 20)},
        {"block": 64, "ops": get_ops("cpu", threads=2)},
        {"block": 64, "executor": cases.Backwards},
        {"block": 64, "slack": 100, "count": True, "contributions": True},
    ],
)
def test_the_digest_does_not_depend_on_how(whole, snapshot, tmp_path, how):
    _, outcome = do(snapshot, tmp_path, **how)
    assert outcome.summary["digest"] == whole[1]["digest"]


@pytest.mark.parametrize("kinds", [("job",), ("freelancer",)])
def test_one_direction_is_its_own_run(single, snapshot, tmp_path, kinds):
    _, outcome = do(snapshot, tmp_path, kinds=kinds)
    assert outcome.summary["digest"] == cases.digest_of({kinds[0]: single[kinds[0]]}, 20)


def test_other_answers_give_another_digest(whole, snapshot, tmp_path):
    digests = {whole[1]["digest"]}
    for n, asked in enumerate(({"k": 19}, {"as_of": AS_OF + 40}, {"policy": heavier()})):
        _, outcome = do(snapshot, tmp_path / str(n), **asked)
        digests.add(outcome.summary["digest"])
    assert len(digests) == 4


# ── Columns ───────────────────────────────────────────────────────────────────────────────────


def test_every_column_of_matches(whole, single, snapshot):
    folder, _ = whole
    plan = folder.plan()
    for kind in KINDS:
        units = plan.units_of(kind)
        for what, ranks in (("part", range(1, 21)), ("slack", range(21, 28))):
            frame = pl.concat([folder.frame(unit, what) for unit in units])
            wanted = [
                {
                    "query_id": one.query_id,
                    "query_key": one.query_key,
                    "rank": match.rank,
                    "id": match.id,
                    "key": match.key,
                    "points": match.points,
                    "score": match.score,
                    **{f"points_{name}": n for name, n in match.contributions.items()},
                    "epoch": str(snapshot.epoch),
                    "generation": snapshot.generation.id,
                    "policy": POLICY.effective().id,
                    "moved": None,
                    "first_rank": None,
                }
                for one in single[kind]
                for match in one
                if match.rank in ranks
            ]
            assert frame.to_dicts() == wanted
    types = folder.part(plan.units[0]).schema
    assert types["rank"] == types["points"] == types["first_rank"] == pl.Int32
    assert types["query_key"] == types["key"] == pl.UInt64
    assert types["score"] == pl.Float64


def test_every_column_of_queries(whole, single):
    folder, _ = whole
    plan = folder.plan()
    for kind in KINDS:
        frame = pl.concat([folder.queries(unit) for unit in plan.units_of(kind)])
        assert frame["query_key"].is_sorted()
        assert frame["print"].n_unique() == frame.height
        assert set(frame["print"].bin.size().to_list()) == {16}
        for row, one in zip(frame.drop("print").to_dicts(), single[kind], strict=True):
            last = one[26] if len(one) == 27 else None
            mix = None if last is None else int(mix32(one.query_key, np.uint64([last.key]))[0])
            assert row == {
                "query_id": one.query_id,
                "query_key": one.query_key,
                "returned": min(20, len(one)),
                "eligible": one.eligible,
                "unverified": one.unverified,
                "shortfall": None if len(one) >= 20 else str(one.shortfall),
                "error": None,
                "t": one.t,
                "attainable": one.attainable,
                "resolution": one.resolution,
                "horizon_points": None if last is None else last.points,
                "horizon_mix": mix,
                "horizon_low": None if last is None else last.key & 0xFFFFFFFF,
            }


def test_all_shortfalls_are_seen(whole):
    folder, summary = whole
    frames = [folder.queries(unit) for unit in folder.plan().units]
    seen = pl.concat(frames)["shortfall"].value_counts()
    assert {None, "FEW_ELIGIBLE", "QUERY_VETOED"} <= set(seen["shortfall"].to_list())
    for kind, counts in summary["counts"].items():
        assert counts["queries"] == summary["corpus"][kind]
        assert sum(counts[name] for name in ("full", "few", "none", "errors")) == counts["queries"]
    for name in ("full", "few", "none"):
        assert sum(counts[name] for counts in summary["counts"].values()) > 0


def test_without_counting_eligible_is_unknown(snapshot, tmp_path):
    folder, _ = do(snapshot, tmp_path, kinds=("job",), k=3)
    frame = folder.queries(folder.plan().units[0])
    assert set(frame["eligible"].to_list()) == set(frame["unverified"].to_list()) == {-1}
    assert "points_text" not in folder.part(folder.plan().units[0]).columns


def test_an_empty_other_side(tmp_path):
    with Store.open(tmp_path / "store", mode="w", create=True) as store:
        store.upsert("job", synthetic.frame("job", 5, block=5))
        folder, outcome = do(store.snapshot(), tmp_path / "runs", count=True)
    assert outcome.summary["counts"]["job"]["none"] == 5
    assert outcome.summary["counts"]["freelancer"]["queries"] == 0
    frame = folder.queries(folder.plan().units[0])
    assert frame["shortfall"].to_list() == ["EMPTY_CORPUS"] * 5
    assert frame["eligible"].to_list() == [0] * 5


def test_files_name_their_unit(whole):
    folder, summary = whole
    for unit in folder.plan().units:
        for what in ("part", "queries", "slack"):
            found = pl.read_parquet_metadata(f"{folder.url}/{unit.file(what)}")
            assert found["matchwright.unit"] == unit.key
            assert found["matchwright.run"] == folder.run_id == summary["run_id"]
    assert [(u["kind"], u["number"]) for u in summary["units"]] == [
        (u.kind, u.number) for u in folder.plan().units
    ]


def test_a_file_of_another_unit_is_refused(whole):
    folder, _ = whole
    first, second = folder.plan().units[:2]
    data = folder.read(first.file("part"))
    with pytest.raises(StoreDamaged, match="belongs to another"):
        folder.decoded(data, second, "part")
    with pytest.raises(StoreDamaged, match="belongs to another"):
        folder.decoded(data, first, "queries")
    with pytest.raises(StoreDamaged, match="is damaged"):
        folder.decoded(data[:-9], first, "part")


def test_rows_that_are_not_the_queries_have_no_digest(whole, tmp_path):
    folder, _ = whole
    unit = folder.plan().units[0]
    from matchwright.engine.runs.digest import unit_bytes

    with pytest.raises(StoreDamaged, match="not those of the unit's queries"):
        unit_bytes(folder.part(unit)[1:], folder.queries(unit))


# ── Errors of single queries ──────────────────────────────────────────────────────────────────


class Unreadable:
    """A snapshot of which some records cannot be read."""

    def __init__(self, inner, bad):
        self.inner, self.bad = inner, bad

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def rows(self, kind, ids):
        self.check(ids)
        return self.inner.rows(kind, ids)

    def table_of(self, kind, rows, fields):
        self.check(self.inner.ids_of(kind, rows))
        return self.inner.table_of(kind, rows, fields)

    def check(self, ids):
        if self.bad & set(ids):
            raise StoreDamaged("catalog.sqlite: a stored record does not match its hash")


def test_an_unreadable_record_is_an_error_of_its_query(snapshot, single, tmp_path):
    bad = {single["job"][3].query_id, single["job"][70].query_id}
    folder, outcome = do(Unreadable(snapshot, bad), tmp_path, kinds=("job",), block=50, count=True)
    assert outcome.summary["counts"]["job"]["errors"] == 2
    frame = pl.concat([folder.queries(unit) for unit in folder.plan().units])
    wrong = frame.filter(pl.col("error").is_not_null())
    assert set(wrong["query_id"].to_list()) == bad
    assert wrong["error"].to_list() == ["STORE_DAMAGED"] * 2
    assert wrong.select("returned", "eligible", "t").rows() == [(0, 0, 0.0)] * 2
    rows = pl.concat([folder.part(unit) for unit in folder.plan().units])
    wanted = [
        (one.query_id, match.id, match.points)
        for one in single["job"]
        if one.query_id not in bad
        for match in list(one)[:20]
    ]
    assert rows.select("query_id", "id", "points").rows() == wanted


def test_an_id_that_is_not_there_is_an_error(snapshot):
    made = options(kinds=("job",))
    matcher = Matcher(snapshot, Ops(threads=1), POLICY)
    answer = answer_block(matcher, snapshot, "job", ["nobody", "j-0000001"], made)
    assert answer.errors == {0: "NOT_FOUND"}
    right = matcher.match(Request(kind="job", id="j-0000001", k=20, as_of=AS_OF))
    assert part_frame(answer)["id"].to_list() == list(right.ids)
    assert queries_frame(answer)["error"].to_list() == ["NOT_FOUND", None]
    assert slack_frame(answer).height == 0


# ── Blocks ────────────────────────────────────────────────────────────────────────────────────


def test_the_horizon_covers_all_that_beats_it(whole, snapshot):
    """Every eligible row that beats or equals the horizon is stored: by brute force."""
    folder, _ = whole
    corpus = snapshot.corpus("freelancer")
    ops = Ops(threads=1)
    unit = folder.plan().units_of("job")[0]
    queries = folder.queries(unit)
    stored = pl.concat([folder.part(unit), folder.slack(unit)])
    block = prepare_block(snapshot, "job", queries["query_id"].to_list(), POLICY.effective(), AS_OF)
    key_n = np.concatenate([segment.key_n for segment, _ in corpus.parts])
    x_nd = np.concatenate([segment.x_nd for segment, _ in corpus.parts])
    for n, row in enumerate(queries.to_dicts()):
        eligible, _ = ops.eligible(corpus, block.groups[block.group_q[n]])
        points = x_nd.astype(np.int64) @ block.q_qd[n].astype(np.int64)
        mine = stored.filter(pl.col("query_key") == row["query_key"])["key"].to_numpy()
        horizon = row["horizon_points"]
        if horizon is None:
            assert set(mine.tolist()) == set(key_n[eligible].tolist())
            continue
        mix = mix32(row["query_key"], key_n)
        low = key_n & np.uint64(0xFFFFFFFF)
        keys = zip((-points).tolist(), mix.tolist(), low.tolist(), strict=True)
        limit = (-horizon, row["horizon_mix"], row["horizon_low"])
        reach = np.array([key <= limit for key in keys]) & eligible
        assert set(key_n[reach].tolist()) == set(mine.tolist())


def test_a_part_of_the_corpus_can_be_searched(snapshot, single):
    """The parts of the corpus hold the matches of the whole between them."""
    made = options(kinds=("job",))
    matcher = Matcher(snapshot, Ops(threads=1), POLICY)
    corpus = snapshot.corpus("freelancer")
    parts = [dataclasses.replace(corpus, parts=(part,)) for part in corpus.parts]
    assert len(parts) == 3
    ids = [one.query_id for one in single["job"]]
    found = [part_frame(answer_block(matcher, snapshot, "job", ids, made, part)) for part in parts]
    together = pl.concat(found)
    for one in single["job"]:
        mine = together.filter(pl.col("query_id") == one.query_id)
        assert set(list(one.ids)[:20]) <= set(mine["id"].to_list())


def test_equal_prints_are_equal_questions(snapshot, single):
    ids = [one.query_id for one in single["job"]]
    policy = POLICY.effective()

    def prints(day, rules=policy):
        return prepare_block(snapshot, "job", ids, rules, day).print_qb.tobytes()

    assert prints(AS_OF) == prints(AS_OF)
    assert prints(AS_OF) != prints(AS_OF + 30)
    stricter = Policy.parse("[rules.same_category]\nenabled = true\n").effective()
    other = prints(AS_OF, stricter)
    assert other != prints(AS_OF)


def test_keys_find_their_rows(snapshot):
    corpus = snapshot.corpus("freelancer")
    who = asking(snapshot, "freelancer")
    shuffled = np.random.default_rng(0).permutation(who.key_n.size)
    assert (rows_with_keys(corpus, who.key_n[shuffled]) == who.row_n[shuffled]).all()
    with pytest.raises(KeyError, match="1 keys are not"):
        rows_with_keys(corpus, np.array([1], dtype=np.uint64))
    dead = snapshot.keys(["f-0000000"])
    with pytest.raises(KeyError):
        rows_with_keys(corpus, dead)
