"""Incremental runs, the exposure pass and erasure, where a model orders the candidates."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import run_rerank_cases as cases
from rerank_cases import policy
from run_market import market_of
from run_rerank_cases import KINDS, in_market

from matchwright.engine.policy import Policy
from matchwright.engine.runs.diff import Diff, Why
from matchwright.engine.runs.pairing import side
from matchwright.engine.runs.verify import REDACTED, SOUND, verify

M = cases.M


@pytest.fixture
def market(tmp_path):
    with market_of(tmp_path, 70, 260) as made:
        yield made


@pytest.fixture
def ranker(market):
    return cases.ranker_of(cases.trees_of(market.store.snapshot()))


def frame(folder, *whats):
    return pl.concat([folder.frame(unit, what) for unit in folder.plan().units for what in whats])


def merged(summary):
    return sum(one["merged"] for one in summary["incremental"]["kinds"].values())


# ── Incremental ───────────────────────────────────────────────────────────────────────────────


def test_any_change_gives_the_digest_of_a_full_run(market, ranker, count):
    """A chain of incremental runs: the first phase is merged, the model is asked about all."""
    rng = np.random.default_rng(7)
    base, _ = in_market(market, ranker)
    reused = 0
    for _ in range(count(reduced=3, full=30)):
        share = float(np.exp(rng.uniform(np.log(0.001), np.log(0.2))))
        market.change(rng, share)
        base, summary = in_market(market, ranker, base)
        full, expected = in_market(market, ranker)
        assert summary["digest"] == expected["digest"], share
        assert summary["rerank"]["rows_asked"] == expected["rerank"]["rows_asked"]
        reused += merged(summary)
        names = ["query_key", "rank", "key", "first_rank", "model_score"]
        assert frame(base, "part").select(names).equals(frame(full, "part").select(names))
    assert reused


def test_all_candidates_must_be_known_not_only_k(market, ranker):
    """Without slack beyond the candidates, whoever lost one is asked in full."""
    base, _ = in_market(market, ranker, kinds=("job",), slack=0)
    shown = frame(base, "part", "slack").filter(pl.col("first_rank") > 5)["id"]
    market.remove("freelancer", shown.unique(maintain_order=True).to_list()[:10])
    _, summary = in_market(market, ranker, base, kinds=("job",), slack=0)
    _, full = in_market(market, ranker, kinds=("job",), slack=0)
    assert summary["digest"] == full["digest"]
    assert summary["incremental"]["kinds"]["job"]["because"]["slack_used_up"] > 0


@pytest.mark.parametrize("first", ["none", "another"])
def test_a_base_with_another_model_or_none_still_helps(market, ranker, first):
    """Stored rows are the first phase's: whoever ordered them then does not matter."""
    plain = cases.POLICY.without_rerank()
    other = policy(candidates=9, version=4)
    if first == "none":
        base, _ = in_market(market, ranker, policy=plain)
    else:
        trees = cases.trees_of(market.store.snapshot(), seed=2)
        base, _ = in_market(market, cases.ranker_of(trees, version=4), policy=other)
    market.change(np.random.default_rng(3), 0.02)
    _, summary = in_market(market, ranker, base)
    _, full = in_market(market, ranker)
    assert summary["digest"] == full["digest"]
    assert merged(summary) > 100


def test_a_base_of_another_first_phase_does_not_help(market, ranker):
    heavier = Policy.from_dict({**cases.POLICY.to_dict(), "weights": {"skills": 5.0}})
    base, _ = in_market(market, ranker, policy=heavier)
    _, summary = in_market(market, ranker, base)
    assert merged(summary) == 0
    assert set(summary["incremental"]["unusable"].values()) == {"another effective policy"}


# ── Diff ──────────────────────────────────────────────────────────────────────────────────────


def reasons(first, second):
    found = Diff(side(first), side(second))
    why = [one.why for one in found.queries()]
    return {name for one in why for name in one}, found.summary


def test_diff_tells_another_model_and_what_only_a_model_moved(market, ranker):
    first, _ = in_market(market, ranker)
    trees = cases.trees_of(market.store.snapshot(), seed=2)
    second, _ = in_market(market, cases.ranker_of(trees))
    why, summary = reasons(first, second)
    assert why == {Why.CHANGED_MODEL}
    told = {name: value for name, value in summary.settings.items() if name == "ranker"}
    assert told == {"ranker": tuple(f"ranker:3 {seed:032x}" for seed in (0, 2))}
    plain, _ = in_market(market, ranker, policy=cases.POLICY.without_rerank())
    why, _ = reasons(first, plain)
    assert why == {Why.CHANGED_POLICY, Why.CHANGED_MODEL}
    assert reasons(first, first)[0] == set()


def test_diff_tells_what_the_second_phase_moved(market, ranker):
    """Somebody else's edit moves people by the model alone: they stay where the first phase was."""
    first, _ = in_market(market, ranker, kinds=("job",))
    market.change(np.random.default_rng(1), 0.05)
    second, _ = in_market(market, ranker, kinds=("job",))
    why, _ = reasons(first, second)
    assert Why.SECOND_PHASE in why
    one = frame(first, "part").join(frame(second, "part"), on=("query_key", "key"))
    stayed = one.filter(pl.col("first_rank") == pl.col("first_rank_right"))
    assert (stayed["rank"] != stayed["rank_right"]).any()


# ── Exposure ──────────────────────────────────────────────────────────────────────────────────

EXPOSURE = {"enabled": True, "slack_rows": 14, "shown_max": 3, "newcomers_within": 2}


def exposed(**more):
    return Policy.from_dict({**cases.POLICY.to_dict(), "exposure": {**EXPOSURE, **more}})


def test_the_exposure_pass_works_on_the_models_order(market, ranker):
    settings = {"kinds": ("job",), "k": 3, "slack": 14}
    plain, _ = in_market(market, ranker, **settings)
    moved, summary = in_market(market, ranker, policy=exposed(), **settings)
    assert summary["moved"]["kinds"]["job"]["rows_moved"]
    columns = ["query_key", "key", "points", "first_rank", "model_score"]
    by = ["query_key", "first_rank"]
    before, after = (
        frame(folder, "part", "slack").select(columns).sort(by) for folder in (plain, moved)
    )
    assert after.equals(before)
    shown = frame(moved, "part")
    kept = shown.filter(pl.col("moved").ne_missing("over_cap"))
    assert kept["id"].value_counts()["count"].max() == 3
    stays = shown.filter(pl.col("moved").is_null()).join(
        frame(plain, "part"), on=["query_key", "key", "rank"], how="anti"
    )
    assert not stays.height
    snapshot = market.store.snapshot()
    verdict = verify(moved, snapshot, sample=30, trees=ranker.trees)
    assert verdict.verdict == SOUND, verdict.figures()


def test_with_exposure_incremental_is_full_too(market, ranker):
    settings = {"kinds": ("job",), "k": 3, "slack": 16, "policy": exposed()}
    base, _ = in_market(market, ranker, **settings)
    for seed, share in enumerate((0.01, 0.05)):
        market.change(np.random.default_rng(seed), share)
        base, summary = in_market(market, ranker, base, **settings)
        _, full = in_market(market, ranker, **settings)
        assert summary["digest"] == full["digest"]
        assert summary["moved"] == full["moved"]


# ── Erasure ───────────────────────────────────────────────────────────────────────────────────


def test_erased_people_leave_no_row_and_the_rest_is_verified(market, ranker):
    base, before = in_market(market, ranker)
    shown = frame(base, "part")["id"].value_counts(sort=True)["id"].to_list()
    erased = [name for name in shown if name.startswith("freelancer")][:5]
    keys = market.store.snapshot().keys(erased)
    lease = market.store.keep("verify")
    told = market.store.erase("freelancer", erased, runs=[market.output.url])
    assert [one.outcome for one in told.runs] == ["redacted"]
    everything = frame(base, "part", "slack")
    asked = frame(base, "queries")
    assert not everything["id"].is_in(erased).any()
    assert not everything["key"].is_in(keys.tolist()).any()
    assert not asked["query_id"].is_in(erased).any()
    snapshot = market.store.snapshot(epoch=base.plan().epoch_number)
    verdict = verify(base, snapshot, sample=500, trees=ranker.trees)
    assert verdict.verdict == REDACTED, verdict.figures()
    assert base.summary()["digest"] == before["digest"]
    assert verdict.digest == base.summary()["digest_redacted"] != before["digest"]
    lease.release()
    _, summary = in_market(market, ranker, base)
    _, full = in_market(market, ranker)
    assert summary["digest"] == full["digest"]
    assert set(KINDS) == set(summary["counts"])
