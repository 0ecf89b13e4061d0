"""Incremental runs: the digest of a full run, whatever changed; the cost follows the change."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import polars as pl
import pytest
from run_market import market_of

from matchwright.engine import synthetic
from matchwright.engine.cli import main
from matchwright.engine.errors import DeadlineExceeded, StoreDamaged, StoreFormat
from matchwright.engine.policy import Policy
from matchwright.engine.runs.fingerprint import (
    changes,
    from_parquet,
    prints_of,
    to_parquet,
)
from matchwright.engine.runs.merge import Hits, Horizons, merge
from matchwright.engine.runs.verify import REDACTED, verify
from matchwright.kernels.order import mix32
from matchwright.kernels.types import Corpus

AS_OF = synthetic.AS_OF
PEOPLE, JOBS = 450, 120
KINDS = ("job", "freelancer")


@pytest.fixture
def market(tmp_path):
    """A store, and what is in it."""
    with market_of(tmp_path, JOBS, PEOPLE) as made:
        yield made


def column(folder, what, names):
    """Columns of all units of a run."""
    return pl.concat([folder.frame(unit, what).select(names) for unit in folder.plan().units])


def stored(folder):
    """Matches and slack of all units of a run."""
    frames = [
        folder.frame(unit, what) for unit in folder.plan().units for what in ("part", "slack")
    ]
    return pl.concat(frames)


def kinds_of(summary):
    return summary["incremental"]["kinds"]


# ── Equal to a full run ───────────────────────────────────────────────────────────────────────


def test_any_change_gives_the_digest_of_a_full_run(tmp_path, count):
    """A chain of incremental runs, each from the one before; most of it is merged, not redone."""
    jobs, people = count(reduced=80, full=700), count(reduced=300, full=3_000)
    with market_of(tmp_path, jobs, people) as market:
        rng = np.random.default_rng(7)
        base, _ = market.run()
        merged = 0
        for _ in range(count(reduced=5, full=50)):
            share = float(np.exp(rng.uniform(np.log(0.001), np.log(0.2))))
            market.change(rng, share)
            base, summary = market.run(base)
            _, full = market.run()
            assert summary["digest"] == full["digest"], share
            merged += sum(kinds_of(summary)[kind]["merged"] for kind in KINDS)
    assert merged


def test_stored_rows_and_horizons_are_those_of_a_full_run_where_both_keep_as_many(market):
    """What the next run starts from is right too: rows by rank, and a horizon that they reach."""
    rng = np.random.default_rng(1)
    base, _ = market.run()
    market.change(rng, 0.05)
    changed, _ = market.run(base)
    full, _ = market.run()
    names = ["query_key", "rank", "key", "points"]
    mine, everything = (stored(folder).select(names) for folder in (changed, full))
    assert mine.height > 8 * JOBS
    assert everything.join(mine, on=names, how="semi").height == mine.height
    queries = column(changed, "queries", ["query_key", "horizon_points"])
    sizes = queries.join(mine.group_by("query_key").len(), on="query_key", how="left")
    assert (sizes.filter(pl.col("horizon_points").is_null())["len"].fill_null(0) < 16).all()


def test_counts_are_those_of_a_full_run(market):
    base, _ = market.run(count=True)
    market.change(np.random.default_rng(3), 0.03)
    mine, summary = market.run(base, count=True)
    full, expected = market.run(count=True)
    assert summary["digest"] == expected["digest"]
    columns = ["query_key", "eligible", "unverified", "shortfall", "returned"]
    assert column(mine, "queries", columns).equals(column(full, "queries", columns))


def test_contributions_are_those_of_a_full_run(market):
    base, _ = market.run()
    market.change(np.random.default_rng(4), 0.03)
    mine, _ = market.run(base, contributions=True)
    full, _ = market.run(contributions=True)
    columns = ["query_id", "rank", "id", *(f"points_{name}" for name in full.plan().facets)]
    assert column(mine, "part", columns).equals(column(full, "part", columns))


def test_nothing_changed_scores_nothing(market):
    base, before = market.run()
    market.store.seal()  # rows move to other places; nobody changes
    _, summary = market.run(base)
    assert summary["digest"] == before["digest"]
    for kind in KINDS:
        told = kinds_of(summary)[kind]
        assert (told["recomputed"], told["pairs_scored"]) == (0, 0)
        assert told["merged"] == before["counts"][kind]["queries"]


def test_with_exposure_the_digest_is_that_of_a_full_run_too(market):
    """The pass reads the slack as well, so an answer holds only if all of it is known."""
    exposure = {"enabled": True, "slack_rows": 6, "shown_max": 1, "newcomers_within": 2}
    policy = Policy.from_dict({"exposure": exposure})
    options = {"kinds": ("job",), "policy": policy, "k": 2, "slack": 6}
    base, before = market.run(**options)
    assert before["moved"]["kinds"]["job"]["rows_moved"]
    rng = np.random.default_rng(6)
    merged = 0
    for share in (0.01, 0.05, 0.2):
        market.change(rng, share)
        base, summary = market.run(base, **options)
        _, full = market.run(**options)
        assert summary["digest"] == full["digest"]
        assert summary["moved"] == full["moved"]
        merged += kinds_of(summary)["job"]["merged"]
    assert merged


# ── The cost follows the change ───────────────────────────────────────────────────────────────


def test_pairs_scored_follow_the_change(market):
    """Fresh rows against every query, new and changed queries against all; nothing else."""
    base, _ = market.run(kinds=("job",), k=4, slack=40)
    jobs, people = len(market.there["job"]), len(market.there["freelancer"])
    market.edit("freelancer", market.there["freelancer"][:9], seed=99)
    market.edit("job", market.there["job"][:5], seed=98)
    market.add("job", 2, seed=97)
    _, summary = market.run(base, kinds=("job",), k=4, slack=40)
    told = kinds_of(summary)["job"]
    changed, new = told["because"]["changed"], told["because"]["new"]
    assert (changed, new) == (5, 2)
    assert told["because"]["slack_used_up"] == 0
    assert told["pairs_scored"] == (jobs - 5) * 9 + 7 * people
    assert told["pairs_scored"] < told["pairs_full"] / 10
    assert summary["incremental"]["changes"] == {"freelancer": {"new": 0, "edited": 9, "gone": 0}}


def test_slack_that_is_used_up_is_recomputed_and_told(market):
    """Everybody who is stored for a query leaves: only a full search can say who follows."""
    base, _ = market.run(kinds=("job",), k=3, slack=1)
    people = stored(base)["id"].unique(maintain_order=True).to_list()
    market.remove("freelancer", people[: len(people) * 2 // 3])
    _, summary = market.run(base, kinds=("job",), k=3, slack=1)
    _, full = market.run(kinds=("job",), k=3, slack=1)
    assert summary["digest"] == full["digest"]
    told = kinds_of(summary)["job"]
    assert told["because"]["slack_used_up"] > 0
    assert told["merged"] + told["recomputed"] == full["counts"]["job"]["queries"]


def test_stopped_and_resumed_it_is_the_same_run(market):
    """What the units that were done before took is told as well."""
    base, _ = market.run(kinds=("job",), block=25)
    market.change(np.random.default_rng(8), 0.05)
    with pytest.raises(DeadlineExceeded):
        market.run(base, kinds=("job",), block=25, stop=lambda done, total: "time is up")
    _, summary = market.run(base, kinds=("job",), block=25)
    _, full = market.run(kinds=("job",))
    assert summary["digest"] == full["digest"]
    told = kinds_of(summary)["job"]
    assert told["merged"] + told["recomputed"] == full["counts"]["job"]["queries"]


def test_the_command_starts_from_a_run_and_says_what_it_took(market, capsys):
    where = ["--store", str(market.store.root), "--output", market.output.url, "--for", "jobs"]
    start = ["run", "start", *where, "-k", "6", "--as-of", "2026-01-01", "-f", "json"]
    base = json.loads(command(capsys, [*start, "--slack", "4"]))
    market.change(np.random.default_rng(9), 0.03)
    mine = json.loads(command(capsys, [*start, "--slack", "4", "--changed-since", base["run_id"]]))
    full = json.loads(command(capsys, start))
    assert mine["digest"] == full["digest"]
    assert mine["incremental"]["base"] == base["run_id"]
    assert kinds_of(mine)["job"]["merged"] > 0
    again = [*start[:-1], "table", "--slack", "4", "--changed-since", base["run_id"]]
    assert "merged" in command(capsys, again)


def command(capsys, words):
    """What a command that succeeds writes to stdout."""
    assert main(words) == 0
    return capsys.readouterr().out


# ── Bases that help little, or not at all ─────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("first", "second", "why"),
    [
        ({"slack": 0}, {}, "kept no fingerprints"),
        ({"kinds": ("freelancer",)}, {"kinds": ("job",)}, "no answers for jobs"),
        ({}, {"policy": "heavier"}, "another effective policy"),
    ],
)
def test_a_base_that_cannot_help_is_told_and_everything_is_recomputed(market, first, second, why):
    if second.get("policy"):
        second = {"policy": Policy.from_dict({"weights": {"skills": 3.0}})}
    base, _ = market.run(**{"kinds": ("job",), **first})
    _, summary = market.run(base, **{"kinds": ("job",), **second})
    _, full = market.run(**{"kinds": ("job",), **second})
    told = kinds_of(summary)["job"]
    assert summary["digest"] == full["digest"]
    assert told["merged"] == 0
    assert told["because"]["base_unusable"] == told["recomputed"] == JOBS
    assert why in summary["incremental"]["unusable"]["job"]


def test_another_generation_recomputes_everything(market):
    base, _ = market.run(kinds=("job",))
    market.store.refit(seed=1, sample=500, as_of=AS_OF)
    _, summary = market.run(base, kinds=("job",))
    _, full = market.run(kinds=("job",))
    assert summary["digest"] == full["digest"]
    assert kinds_of(summary)["job"]["merged"] == 0
    assert "generation" in summary["incremental"]["unusable"]["job"]


def test_another_day_asks_anew_and_says_how_to_avoid_that(market):
    base, _ = market.run(kinds=("job",))
    _, summary = market.run(base, kinds=("job",), as_of=AS_OF + 40)
    _, full = market.run(kinds=("job",), as_of=AS_OF + 40)
    assert summary["digest"] == full["digest"]
    assert kinds_of(summary)["job"]["because"]["changed"] > 0
    assert "recency" in summary["incremental"]["note"]


def test_another_day_changes_nothing_where_recency_weighs_nothing(market):
    policy = Policy.from_dict({"weights": {"recency": 0.0}})
    base, _ = market.run(kinds=("job",), policy=policy)
    _, summary = market.run(base, kinds=("job",), policy=policy, as_of=AS_OF + 1)
    _, full = market.run(kinds=("job",), policy=policy, as_of=AS_OF + 1)
    assert summary["digest"] == full["digest"]
    assert kinds_of(summary)["job"]["merged"] > JOBS / 2


@pytest.mark.parametrize("k", [5, 12, 20])
def test_another_k_uses_what_is_stored(market, k):
    """8 + 8 rows are stored: they answer any K that they suffice for."""
    base, _ = market.run(kinds=("job",))
    market.change(np.random.default_rng(k), 0.02)
    _, summary = market.run(base, kinds=("job",), k=k, slack=4)
    _, full = market.run(kinds=("job",), k=k, slack=4)
    assert summary["digest"] == full["digest"]
    assert (kinds_of(summary)["job"]["because"]["slack_used_up"] > 8) == (k > 16)


def test_an_emptied_corpus_gives_empty_answers(market):
    base, _ = market.run(kinds=("job",))
    market.remove("freelancer", list(market.there["freelancer"]))
    _, summary = market.run(base, kinds=("job",))
    _, full = market.run(kinds=("job",))
    assert summary["digest"] == full["digest"]
    assert full["counts"]["job"]["none"] == JOBS


def test_a_base_from_which_people_were_erased_holds_for_all_others(market):
    """Also when one of them comes back under the same id, as the same person."""
    options = {"k": 5, "slack": 4}
    base, _ = market.run(**options)
    shown = stored(base)["id"].value_counts(sort=True)["id"].to_list()
    erased = [name for name in shown if name.startswith("freelancer")][:4]
    before = market.store.snapshot().records("freelancer", erased[:1])
    lease = market.store.keep("verify")
    told = market.store.erase("freelancer", erased, runs=[market.output.url])
    assert [one.outcome for one in told.runs] == ["redacted"]
    snapshot = market.store.snapshot(epoch=base.plan().epoch_number)
    verdict = verify(base, snapshot, sample=500)
    assert verdict.verdict == REDACTED, verdict.figures()
    lease.release()
    market.store.upsert("freelancer", before)
    _, summary = market.run(base, **options)
    _, full = market.run(**options)
    assert summary["digest"] == full["digest"]
    assert summary["incremental"]["changes"]["freelancer"]["new"] == 1
    assert kinds_of(summary)["job"]["because"]["changed"] == 0


# ── Merging ───────────────────────────────────────────────────────────────────────────────────


def by_hand(key, stored, fresh, horizon, k, keep):
    """(rows, exact) of one query, in Python integers."""

    def order(row):
        corpus_key, points = row
        mix = int(mix32(key, np.array([corpus_key], np.uint64))[0])
        return -points, mix, corpus_key & 0xFFFFFFFF

    found = sorted({*stored, *fresh}, key=order)
    if horizon is not None:
        found = [row for row in found if order(row) <= horizon]
    return found[:keep], horizon is None or len(found) >= k


def test_merging_is_what_it_is_by_hand(count):
    rng = np.random.default_rng(5)
    for _ in range(count(reduced=30, full=1_000)):
        queries = int(rng.integers(1, 6))
        keys = np.sort(rng.integers(1, 2**63, queries).astype(np.uint64))
        k, keep = 3, int(rng.integers(3, 7))
        sides, horizons, expected = [[], []], [], []
        for q in range(queries):
            rows = [
                [
                    (int(c), int(p))
                    for c, p in zip(
                        rng.integers(0, 2**64, n, dtype=np.uint64),
                        rng.integers(-2, 3, n),
                        strict=True,
                    )
                ]
                for n in rng.integers(0, 8, 2)
            ]
            horizon = None
            if rng.random() < 0.6:
                horizon = (
                    int(rng.integers(-2, 3)),
                    int(rng.integers(2**32)),
                    int(rng.integers(2**32)),
                )
            horizons.append(horizon)
            for side_, some in zip(sides, rows, strict=True):
                side_ += [(q, *row) for row in some]
            expected.append(by_hand(int(keys[q]), *rows, horizon, k, keep))
        far = Horizons(
            np.array([h is not None for h in horizons]),
            np.array([-h[0] if h else 0 for h in horizons], np.int32),
            np.array([h[1] if h else 0 for h in horizons], np.uint32),
            np.array([h[2] if h else 0 for h in horizons], np.uint32),
        )
        merged = merge(keys, *(as_hits(one) for one in sides), far, k=k, keep=keep)
        for q, (rows, exact) in enumerate(expected):
            span = slice(merged.start_q[q], merged.start_q[q + 1])
            got = list(
                zip(
                    merged.hits.key_m[span].tolist(),
                    merged.hits.points_m[span].tolist(),
                    strict=True,
                )
            )
            assert got == rows
            assert merged.exact_q[q] == exact


def as_hits(rows):
    query, key, points = zip(*rows, strict=True) if rows else ((), (), ())
    return Hits(np.array(query, np.int64), np.array(key, np.uint64), np.array(points, np.int32))


# ── Fingerprints ──────────────────────────────────────────────────────────────────────────────


def test_a_print_follows_every_stored_value_and_nothing_else(market):
    """Each column, the vector and the key move it; where a row is stored does not."""
    corpus = market.store.snapshot().corpus("freelancer")
    before = prints_of(corpus)
    assert np.unique(before.print_n2, axis=0).shape[0] == PEOPLE
    segment, alive = corpus.parts[0]
    assert alive is None
    row = 3
    for other in others(segment, row):
        found = changes(before, prints_of(Corpus(((other, None), *corpus.parts[1:]))))
        touched = found.new_keys.size + found.edited_keys.size
        assert touched == 1
    data = to_parquet(before)
    back = from_parquet(data, "x")
    assert changes(back, before).to_dict() == {"new": 0, "edited": 0, "gone": 0}
    with pytest.raises(StoreDamaged, match="x: is damaged"):
        from_parquet(data.replace(b"matchwright.layout", b"matchwright.lay0ut"), "x")
    with pytest.raises(StoreFormat, match="x: fingerprints of format None"):
        from_parquet(data.replace(b"matchwright.prints", b"matchwright.pr1nts"), "x")


def others(segment, row):
    """The segment with one thing of one row changed, for each thing there is."""
    x = segment.x_nd.copy()
    x[row, 5] += 1
    yield dataclasses.replace(segment, x_nd=x)
    key = segment.key_n.copy()
    key[row] += np.uint64(1)
    yield dataclasses.replace(segment, key_n=key)
    for name, column in segment.scalars.items():
        column = column.copy()
        column[row] += 1
        yield dataclasses.replace(segment, scalars={**segment.scalars, name: column})
    for name, column in segment.sets.items():
        known = column.known_n.copy()
        known[row] = ~known[row]
        changed = dataclasses.replace(column, known_n=known)
        yield dataclasses.replace(segment, sets={**segment.sets, name: changed})
        if column.start_n[row + 1] > column.start_n[row]:
            value = column.value.copy()
            value[column.start_n[row + 1] - 1] += np.uint64(1)
            changed = dataclasses.replace(column, value=value)
            yield dataclasses.replace(segment, sets={**segment.sets, name: changed})


def test_values_do_not_move_between_sets_unnoticed(market):
    """The same values in two neighbouring sets, split otherwise, are another row."""
    (segment, _), *_ = market.store.snapshot().corpus("freelancer").parts
    names = sorted(segment.sets)
    assert len(names) > 1
    first, second = (segment.sets[name] for name in names[:2])
    everything = np.diff(first.start_n) + np.diff(second.start_n)
    row = int(np.argmax(everything))
    assert everything[row]
    prints = []
    for left in range(int(everything[row]) + 1):
        sets = dict(segment.sets)
        for name, n in zip(names[:2], (left, int(everything[row]) - left), strict=True):
            start = np.where(np.arange(segment.n + 1) > row, n, 0)
            value = np.full(n, 7, np.uint64)
            sets[name] = dataclasses.replace(segment.sets[name], start_n=start, value=value)
        one = prints_of(Corpus(((dataclasses.replace(segment, sets=sets), None),)))
        prints.append(tuple(one.print_n2[one.find(segment.key_n[[row]])[0]].tolist()))
    assert len(set(prints)) == len(prints)
