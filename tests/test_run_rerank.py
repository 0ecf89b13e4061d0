"""Runs whose policy reranks: the answers of single requests, whoever does the work."""

from __future__ import annotations

import dataclasses
import hashlib
import struct
import threading

import numpy as np
import polars as pl
import pytest
import run_cases
import run_rerank_cases as cases
from rerank_cases import policy
from run_rerank_cases import AS_OF, KINDS, K, M

from matchwright.engine.errors import FailedPrecondition, InvalidArgument, StoreDamaged
from matchwright.engine.matcher import Matcher
from matchwright.engine.request import Request
from matchwright.engine.results import Shortfall
from matchwright.engine.runs import block, processes
from matchwright.engine.runs.execute import LocalExecutor, Questions
from matchwright.engine.runs.pinned import PinnedRanker
from matchwright.engine.runs.plan import Plan, asking, make_plan, run_id_of
from matchwright.engine.runs.processes import ProcessExecutor
from matchwright.engine.runs.shards import merge_found
from matchwright.engine.runs.worker import Shard
from matchwright.engine.store import Store


@pytest.fixture(scope="module")
def store_folder(tmp_path_factory):
    return cases.make_store(tmp_path_factory.mktemp("run-rerank") / "store", 250, 80)


@pytest.fixture(scope="module")
def snapshot(store_folder):
    with Store.open(store_folder) as opened:
        yield opened.snapshot()


@pytest.fixture(scope="module")
def trees(snapshot):
    return cases.trees_of(snapshot)


@pytest.fixture
def ranker(trees):
    return cases.ranker_of(trees)


@pytest.fixture(scope="module")
def expected(snapshot, trees, tmp_path_factory):
    """(folder, run.json) of a local run."""
    return cases.do(snapshot, tmp_path_factory.mktemp("expected"), cases.ranker_of(trees), block=40)


def rows(folder, what="part", kind=None):
    units = folder.plan().units if kind is None else folder.plan().units_of(kind)
    return pl.concat([folder.frame(unit, what) for unit in units])


def single(snapshot, ranker, kind, names, k=K):
    """name -> the answer to one request."""
    matcher = Matcher(snapshot, cases.OPS, cases.POLICY, ranker)
    return {name: matcher.match(Request(kind=kind, id=name, k=k, as_of=AS_OF)) for name in names}


# ── What is answered ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_those_of_single_requests(snapshot, ranker, expected, kind, count):
    folder, summary = expected
    part = rows(folder, kind=kind).partition_by("query_id", as_dict=True)
    names = rows(folder, "queries", kind)["query_id"].to_list()[:: count(reduced=6, full=1)]
    moved = 0
    for name, result in single(snapshot, ranker, kind, names).items():
        assert result.rerank.degraded is None
        mine = part.get((name,), rows(folder).clear())
        assert mine["id"].to_list() == list(result.ids)
        assert mine["points"].to_list() == result.points.tolist()
        assert mine["score"].to_list() == result.scores.tolist()
        assert mine["first_rank"].to_list() == result.rerank.first_ranks.tolist()
        assert mine["model_score"].to_list() == result.rerank.scores.tolist()
        moved += mine["first_rank"].to_list() != mine["rank"].to_list()
    assert moved
    assert summary["degraded"] == 0


def test_part_and_slack_hold_the_candidates_and_the_first_phase(snapshot, expected):
    """By first_rank they are the answer of the policy without its second phase, to M rows."""
    folder, _ = expected
    everything = pl.concat([rows(folder, what) for what in ("part", "slack")])
    assert everything["first_rank"].null_count() == everything["model_score"].null_count() == 0
    plain = run_cases.results(
        snapshot, "job", k=M, policy=cases.POLICY.without_rerank(), kinds=("job",)
    )
    first = everything.sort("query_key", "first_rank").partition_by("query_id", as_dict=True)
    for result in plain:
        mine = first.get((result.query_id,))
        assert list(result.ids) == ([] if mine is None else mine["id"].to_list())


def test_the_digest_is_the_documented_one(snapshot, trees, expected):
    """Made from the answers of single requests by struct, as docs/runs.md says."""
    state = hashlib.sha256()
    codes = {None: 0, **{why: n + 1 for n, why in enumerate(Shortfall)}}
    for kind in KINDS:
        names = snapshot.ids_of(kind, asking(snapshot, kind).row_n)
        for one in single(snapshot, cases.ranker_of(trees), kind, names).values():
            code = 0 if len(one) == K else codes[one.shortfall]
            state.update(struct.pack("<QiBdB", one.query_key, len(one), code, one.t, 0))
            told = zip(one, one.rerank.first_ranks, one.rerank.scores, strict=True)
            for match, first, score in told:
                facts = match.rank, match.key, match.points, match.score, first, score
                state.update(struct.pack("<iQidii", *facts))
    assert expected[1]["digest"] == state.hexdigest()


def test_run_json_names_the_model_and_counts_what_it_was_asked(expected, trees):
    folder, summary = expected
    told = summary["rerank"]
    asked = sum(rows(folder, what)["model_score"].count() for what in ("part", "slack"))
    assert told["rows_asked"] == asked > 0
    assert told["calls"] == len(folder.plan().units)
    assert (told["model"], told["version"], told["candidates"]) == ("ranker", 3, M)
    assert (told["content_hash"], told["grid_bits"]) == (trees.content_hash, trees.grid_bits)
    assert told["degraded"] == {"job": {}, "freelancer": {}}
    assert summary["determinants"]["ranker"]["content_hash"] == trees.content_hash
    assert {"features", "model"} <= summary["seconds"].keys()
    assert "matchwright_run_degraded" in folder.read("metrics.prom").decode()


# ── Who does the work, and how ────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("block", [7, 300])
def test_units_and_batches_do_not_show(snapshot, trees, expected, tmp_path, block):
    """Nor does the number of rows that go to the model in one call."""
    ranker = cases.ranker_of(trees)
    ranker._rows_max = 64
    _, summary = cases.do(snapshot, tmp_path, ranker, block=block, slack=M - K + 3)
    assert summary["digest"] == expected[1]["digest"]
    assert summary["rerank"]["calls"] > summary["rerank"]["rows_asked"] // 64


def test_processes_give_the_files_of_a_local_run(
    snapshot, store_folder, ranker, expected, tmp_path, monkeypatch
):
    answer, received = LocalExecutor.answer, processes._received
    own, helped = [], threading.Event()

    def hears(line):
        value = received(line)
        if isinstance(value, block.BlockAnswer):
            helped.set()
        return value

    def slow(self, unit):
        """The first unit of this process, once another one has answered one."""
        assert helped.wait(60)
        own.append(unit)
        return answer(self, unit)

    monkeypatch.setattr(processes, "_received", hears)
    monkeypatch.setattr(LocalExecutor, "answer", slow)
    folder, summary = cases.do(
        snapshot, tmp_path, ranker, block=40,
        executor=lambda plan: ProcessExecutor(
            cases.OPS, snapshot, plan, store_folder, processes=2
        ),
    )  # fmt: skip
    assert 0 < len(own) < len(folder.plan().units)
    there, wanted = expected
    assert summary["digest"] == wanted["digest"]
    for name in there.list():
        if name.endswith(".parquet"):
            assert folder.read(name) == there.read(name), name


def test_actors_give_features_whether_they_have_all_rows_or_a_share(snapshot, store_folder, ranker):
    """What Ray's actors do, without Ray: answer whole units, or search, and the driver merges."""
    plan = cases.plan_of(snapshot, ranker, block=40)
    unit = plan.units[1]
    there = LocalExecutor(cases.OPS, snapshot, plan).answer(unit)
    whole = Shard(str(store_folder), plan.to_json(), 0, 1, "numpy", 1, 1 << 26)
    whole.open()
    actor = whole.answer(unit)
    prepared = Questions(snapshot, plan).prepare(unit)
    parts = []
    for number in range(2):
        share = Shard(str(store_folder), plan.to_json(), number, 2, "numpy", 1, 1 << 26)
        share.open()
        parts.append(share.search(dataclasses.replace(prepared, ids=[], records={})))
    found = merge_found(prepared.key_q, parts)
    merged = block.answer(snapshot, prepared, found, plan.options, plan.policy_id, plan.ranker)
    for answer in (actor, merged):
        assert np.array_equal(answer.features_cf, there.features_cf)
        assert np.array_equal(answer.key_m, there.key_m)
    assert len(there.features_cf) > 100


@pytest.mark.parametrize("shards", [1, 2])
def test_ray_gives_the_same_digest(
    snapshot, store_folder, ranker, expected, tmp_path, shards, count
):
    pytest.importorskip("ray", reason="needs the extra [ray]")
    if not count(reduced=0, full=1):
        pytest.skip("a cluster takes its time to start: with full counts")
    from matchwright.engine.runs.ray_executor import RayExecutor

    _, summary = cases.do(
        snapshot, tmp_path, ranker, block=60,
        executor=lambda plan: RayExecutor(
            plan, snapshot, store_folder, workers=2, shards=shards, device="cpu"
        ),
    )  # fmt: skip
    assert summary["digest"] == expected[1]["digest"]


# ── Plans ─────────────────────────────────────────────────────────────────────────────────────


GOLDEN = {
    "format": 1, "store": "s", "epoch": "s:1:d", "generation": "g", "policy": "p", "as_of": 20_454,
    "kinds": ["job", "freelancer"], "k": 20, "slack": 5, "contributions": False, "count": False,
    "base": None,
}  # fmt: skip


def test_plans_of_policies_without_a_second_phase_are_what_they_were(snapshot):
    plan = make_plan(snapshot, run_cases.options(slack=5))
    assert plan.determinants.keys() == GOLDEN.keys()
    named = ("store", "epoch", "generation", "policy")
    told = {**plan.determinants, **{name: GOLDEN[name] for name in named}, "as_of": 20_454}
    assert run_id_of(told) == run_id_of(GOLDEN) == "965bf6ecd15345ba"
    assert "ranker" not in plan.to_json().decode()


def test_the_model_is_pinned_by_its_content(snapshot, ranker):
    plan = cases.plan_of(snapshot, ranker)
    assert plan.determinants["ranker"] == PinnedRanker.of(ranker).determinants
    assert plan.determinants["slack"] == M - K
    assert Plan.from_json(plan.to_json()) == plan
    other = PinnedRanker.of(cases.ranker_of(cases.trees_of(snapshot, seed=1)))
    assert make_plan(snapshot, cases.options(), ranker=other).run_id != plan.run_id
    told = cases.plan_of(snapshot, ranker, allow_degraded=True)
    assert told.run_id != plan.run_id
    assert Plan.from_json(told.to_json()).options.allow_degraded


def test_what_no_plan_can_be_is_refused(snapshot, ranker):
    pin = PinnedRanker.of(ranker)
    with pytest.raises(FailedPrecondition, match="--models DIR --triton HOST:PORT"):
        make_plan(snapshot, cases.options())
    with pytest.raises(FailedPrecondition, match="ranker:4, and ranker:3"):
        make_plan(snapshot, cases.options(policy=policy(candidates=M, version=4)), ranker=pin)
    with pytest.raises(InvalidArgument, match="candidates is 15"):
        make_plan(snapshot, cases.options(k=M + 1), ranker=pin)
    with pytest.raises(InvalidArgument, match="does not rerank"):
        make_plan(snapshot, run_cases.options(allow_degraded=True))
    plan = make_plan(snapshot, cases.options(), ranker=pin)
    edited = plan.to_json().replace(b'"grid_bits": 10', b'"grid_bits": 11', 1)
    with pytest.raises(StoreDamaged):
        Plan.from_json(edited)
    with pytest.raises(FailedPrecondition, match="of content"):
        dataclasses.replace(pin, content_hash="other").refuse_other(ranker, plan.run_id)
