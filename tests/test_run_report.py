"""The report of a run: every number worked out again from the files and the records."""

# ruff: noqa: F401, F811 (fixtures come by import)
from __future__ import annotations

import base64
import dataclasses
import hashlib
import math
import re
import statistics
from collections import Counter, defaultdict

import numpy as np
import polars as pl
import pytest
from report_cases import (
    OPS,
    K,
    Many,
    Page,
    available,
    class_of,
    everybody,
    html,
    market,
    matches_bins,
    parquet,
    rowwise,
    told,
    ways,
)
from run_cases import AS_OF, POLICY, do

from matchwright.engine.columns import fold
from matchwright.engine.errors import DeadlineExceeded
from matchwright.engine.matcher import OTHER
from matchwright.engine.records import KINDS
from matchwright.engine.runs.folder import Output
from matchwright.engine.runs.plan import Unit
from matchwright.engine.runs.report import causes
from matchwright.engine.runs.report.make import figures_of, report_of
from matchwright.engine.runs.report.market import RATE_EDGES
from matchwright.engine.runs.report.outcomes import read_direction
from matchwright.engine.runs.report.page import render
from matchwright.engine.runs.report.throughput import Timing, throughput

# ── Numbers ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", KINDS)
def test_outcomes_are_those_of_the_files(market, told, kind):
    _, run = market
    queries = parquet(run, kind, "queries").to_dicts()
    found = ways(told)[kind]["outcome"]
    returned = [query["returned"] for query in queries]
    assert found["queries"] == len(queries) > 0
    assert found["full"] == sum(n == K for n in returned)
    assert found["few"] == sum(0 < n < K for n in returned)
    assert found["none"] == sum(n == 0 for n in returned)
    assert found["errors"] == 0
    assert found["rows"] == sum(returned) == parquet(run, kind, "part").height
    assert found["shortfalls"] == Counter(q["shortfall"] for q in queries if q["shortfall"])
    assert dict(map(tuple, found["few_counts"])) == Counter(n for n in returned if 0 < n < K)
    counted = np.log2([1 + query["eligible"] for query in queries])
    matches_bins(found["eligible"], counted)


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_those_of_the_files(market, told, kind):
    _, run = market
    best = {q["query_key"]: q["attainable"] for q in parquet(run, kind, "queries").to_dicts()}
    rows = parquet(run, kind, "part").to_dicts()
    way = ways(told)[kind]
    for rank, score, share in ((1, "first", "first_share"), (K, "last", "last_share")):
        chosen = [row for row in rows if row["rank"] == rank]
        assert chosen
        matches_bins(way[score], [row["score"] for row in chosen])
        matches_bins(way[share], [row["score"] / best[row["query_key"]] for row in chosen])


@pytest.mark.parametrize("kind", KINDS)
def test_facets_add_up_to_the_scores(market, told, kind):
    _, run = market
    step = {q["query_key"]: q["t"] for q in parquet(run, kind, "queries").to_dicts()}
    rows = parquet(run, kind, "part").to_dicts()
    way = ways(told)[kind]
    assert way["facets_rows"] == len(rows)
    assert way["facets_sampled"] is None
    assert [facet["name"] for facet in way["facets"]] == list(POLICY.weights)
    for facet in way["facets"]:
        column = f"points_{facet['name']}"
        gave = [row[column] * step[row["query_key"]] for row in rows]
        matches_bins(facet["spread"], gave)
        for name, rank in (("first", 1), ("last", K)):
            chosen = [g for g, row in zip(gave, rows, strict=True) if row["rank"] == rank]
            assert facet[name] == pytest.approx(statistics.fmean(chosen), rel=1e-6, abs=1e-9)
        assert facet["weight"] == POLICY.weights[facet["name"]]
    whole = statistics.fmean(row["score"] for row in rows if row["rank"] == 1)
    assert sum(facet["first"] for facet in way["facets"]) == pytest.approx(whole, rel=1e-6)


def test_facets_of_a_run_without_contributions_are_worked_out_for_the_sample(market, tmp_path):
    snapshot, run = market
    bare, _ = do(snapshot, tmp_path, k=K)
    assert "points_text" not in parquet(bare, "job", "part").columns
    figures = figures_of(bare, snapshot, OPS)
    for way in figures.ways:
        rows = parquet(run, way.kind, "part")
        drawn = [query.id for query in figures.sample if query.kind == way.kind and query.matches]
        chosen = rows.filter(pl.col("query_id").is_in(drawn))
        assert way.facets_sampled == len(drawn) > 0
        assert way.facets_rows == chosen.height
        firsts = chosen.filter(pl.col("rank") == 1)
        for facet in way.facets:
            gave = firsts[f"points_{facet.name}"] * (firsts["score"] / firsts["points"])
            assert facet.first == pytest.approx(gave.mean(), rel=1e-9, abs=1e-12)
    assert any(match.shares for query in figures.sample for match in query.matches)


@pytest.mark.parametrize("kind", KINDS)
def test_exposure_is_that_of_the_files(market, told, kind):
    snapshot, run = market
    times = Counter(parquet(run, kind, "part")["id"].to_list())
    people = [record["id"] for record in available(snapshot, OTHER[kind])]
    places = sorted(times[name] for name in people)
    n, total = len(places), sum(places)
    found = ways(told)[kind]["exposure"]
    assert found["available"] == n
    assert found["shown"] == sum(p > 0 for p in places)
    assert found["places"] == total
    assert found["elsewhere"] == times.total() - total == 0
    assert found["most"] == places[-1]
    apart = sum(int(np.abs(np.array(places) - one).sum()) for one in places)
    assert found["gini"] == pytest.approx(apart / (2 * n * total), rel=1e-9)
    top = math.ceil(n / 100)
    assert (found["top_count"], found["top_share"]) == (
        top, pytest.approx(sum(places[-top:]) / total)
    )  # fmt: skip
    half = next(m for m in range(1, n + 1) if 2 * sum(places[-m:]) >= total)
    assert found["half_count"] == half
    for percent, share in found["lorenz"]:
        at = percent / 100 * n
        whole, part = int(at), at - int(at)
        held = sum(places[:whole]) + (part * places[whole] if part else 0)
        assert share == pytest.approx(100 * held / total, abs=1e-6)
    for low, high, people in found["times"]:
        assert people == sum(low <= p <= high for p in places)
    assert sum(people for _, _, people in found["times"]) == n


def test_newcomers_are_those_of_the_records(market, told):
    snapshot, run = market
    times = Counter(parquet(run, "job", "part")["id"].to_list())
    people = available(snapshot, "freelancer")
    groups = defaultdict(list)
    for person in people:
        joined, reviews = person["joined"], person["reviews"]
        lately = joined is not None and joined >= AS_OF - 90
        unrated = reviews == 0
        if lately:
            groups["joined lately"].append(person)
        if unrated:
            groups["no reviews yet"].append(person)
        if lately or unrated:
            groups["newcomers"].append(person)
        elif joined is None or reviews is None:
            groups["not known"].append(person)
        else:
            groups["established"].append(person)
    found = ways(told)["job"]["newcomers"]
    assert ways(told)["freelancer"]["newcomers"] is None
    assert (found["sampled"], found["of"], found["days"]) == (len(people), len(people), 90)
    assert found["joined_unknown"] == sum(person["joined"] is None for person in people)
    assert found["reviews_unknown"] == sum(person["reviews"] is None for person in people)
    assert len(found["groups"]) == 5
    for group in found["groups"]:
        ids = [person["id"] for person in groups[group["name"]]]
        assert group["people"] == len(ids)
        assert group["shown"] == sum(times[name] > 0 for name in ids)
        assert group["places"] == sum(times[name] for name in ids)
    assert sum(g["people"] for g in found["groups"][2:]) == len(people)


def test_rates_are_those_of_the_records(market, told):
    snapshot, run = market
    top = {job["id"]: job["rate_max_cents"] for job in everybody(snapshot, "job")}
    rate = {person["id"]: person["rate_cents"] for person in everybody(snapshot, "freelancer")}
    found = told["rates"]
    rates = [r["rate_cents"] for r in available(snapshot, "freelancer")]
    tops = [r["rate_max_cents"] for r in available(snapshot, "job")]
    known = [[cents for cents in side if cents is not None] for side in (rates, tops)]
    assert (found["people"], found["jobs"]) == (len(rates), len(tops))
    assert (found["people_known"], found["jobs_known"]) == (len(known[0]), len(known[1]))
    assert found["rate_median"] == statistics.median(known[0])
    assert found["budget_median"] == statistics.median(known[1])
    for name, side in zip(("rate_counts", "budget_counts"), known, strict=True):
        counts = Counter(map(class_of, side))
        assert found[name] == [counts[n] for n in range(len(RATE_EDGES) - 1)]
    rows = parquet(run, "job", "part").to_dicts()
    pairs = [(top[row["query_id"]], rate[row["id"]]) for row in rows]
    both = [(budget, asked) for budget, asked in pairs if None not in (budget, asked)]
    assert (found["matches"], found["matches_known"]) == (len(rows), len(both))
    assert found["within"] == sum(asked <= budget for budget, asked in both) == len(both) > 0
    grid = Counter((class_of(budget), class_of(asked)) for budget, asked in both)
    assert {(b, r): n for b, r, n in found["pairs"]} == grid
    matches_bins(found["ratio"], [asked / budget for budget, asked in both])


def test_skills_are_those_of_the_records(market, told):
    snapshot, _ = market

    def names(record):
        return {fold(skill["name"]) for skill in record["skills"] or ()}

    jobs, people = available(snapshot, "job"), available(snapshot, "freelancer")
    asked = Counter(name for job in jobs for name in names(job))
    must = Counter(
        name
        for job in jobs
        for name in {fold(skill["name"]) for skill in job["skills"] or () if skill["must"]}
    )
    offered = Counter(name for person in people for name in names(person))
    naming = [sum(bool(names(one)) for one in side) for side in (jobs, people)]
    found = told["skills"]
    assert (found["jobs"], found["people"]) == tuple(naming)
    assert (found["jobs_read"], found["jobs_of"]) == (len(jobs), len(jobs))
    assert found["names"] == len(asked)
    assert found["rare"] == sum(n < 5 for n in asked.values())
    absent = {name for name in asked if not offered[name]}
    assert found["unserved"] == len(absent)
    assert found["unserved_jobs"] == sum(not absent.isdisjoint(names(job)) for job in jobs)
    gap = {name: n / naming[0] - offered[name] / naming[1] for name, n in asked.items() if n >= 5}
    for ranked, sign in ((found["short"], 1), (found["ample"], -1)):
        listed = [fold(one["name"]) for one in ranked]
        expected = sorted((sign * value for value in gap.values()), reverse=True)
        assert [sign * gap[name] for name in listed] == pytest.approx(
            [value for value in expected if value > 0][:40]
        )
        for one, name in zip(ranked, listed, strict=True):
            assert (one["jobs"], one["must"], one["people"]) == (
                asked[name], must[name], offered[name]
            )  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_causes_are_those_of_the_row_wise_rules(market, kind, count):
    snapshot, run = market
    queries = parquet(run, kind, "queries").filter(pl.col("returned") < K)
    ids = queries["query_id"].to_list()[: count(reduced=8, full=60)]
    made, each = causes.causes(snapshot, OPS, POLICY, kind, ids, k=K, as_of=AS_OF, of=99)
    sums = defaultdict(Counter)
    eligible = unfreed = pairs = 0
    for name in ids:
        rows, never = rowwise(snapshot, kind, name)
        pairs += len(rows)
        passing = sum(not vetoes for vetoes in rows)
        eligible += passing
        counts = Counter(veto for vetoes in rows for veto in set(vetoes))
        alone = Counter(vetoes[0] for vetoes in rows if len(set(vetoes)) == 1)
        assert {one.veto: (one.pairs, one.alone, one.without) for one in each[name]} == {
            veto: (n, alone[veto], passing + alone[veto]) for veto, n in counts.items()
        }
        unfreed += all(passing + alone[veto] < K for veto in counts)
        for veto, n in counts.items():
            sums[veto].update(
                queries=1, pairs=n, alone=alone[veto], freed=passing + alone[veto] >= K,
                never=veto in never,
            )  # fmt: skip
    assert (made.sampled, made.of, made.pairs) == (len(ids), 99, pairs)
    assert (made.eligible, made.unfreed) == (eligible, unfreed)
    assert {one.veto: dataclasses.asdict(one) for one in made.rules} == {
        veto: {"veto": veto, **{name: one[name] for name in
                                ("queries", "pairs", "alone", "freed", "never")}}
        for veto, one in sums.items()
    }  # fmt: skip
    freed = [one.freed for one in made.rules]
    assert freed == sorted(freed, reverse=True)


@pytest.mark.parametrize("kind", KINDS)
def test_the_report_counts_the_causes_of_a_seeded_sample(market, told, kind):
    _, run = market
    short = parquet(run, kind, "queries").filter(pl.col("returned") < K).height
    found = ways(told)[kind]["causes"]
    if not short:
        assert found is None
        return
    assert found["of"] == short
    assert found["sampled"] == min(short, 200) > 0
    assert found["rules"]


def test_the_sample_shows_what_the_files_hold(market, told):
    _, run = market
    assert len(told["sample"]) > 50
    seen = Counter()
    for kind in KINDS:
        queries = {q["query_id"]: q for q in parquet(run, kind, "queries").to_dicts()}
        rows = defaultdict(list)
        for row in parquet(run, kind, "part").to_dicts():
            rows[row["query_id"]].append(row)
        for query in told["sample"]:
            if query["kind"] != kind:
                continue
            file = queries[query["id"]]
            seen[query["outcome"]] += 1
            assert query["returned"] == file["returned"]
            assert query["eligible"] == file["eligible"]
            assert query["shortfall"] == file["shortfall"]
            assert query["outcome"] == (
                "none" if not file["returned"] else "few" if file["returned"] < K else "full"
            )
            assert [(m["rank"], m["id"], m["points"]) for m in query["matches"]] == [
                (row["rank"], row["id"], row["points"]) for row in rows[query["id"]][:5]
            ]
            for match in query["matches"]:
                parts = [share["score"] for share in match["shares"]]
                assert sum(parts) == pytest.approx(match["score"], rel=1e-6)
            assert bool(query["blocked"]) == (query["outcome"] != "full")
    outcomes = [way["outcome"] for way in told["ways"]]
    assert set(seen) == {
        name for name in ("none", "few", "full") if any(one[name] for one in outcomes)
    }


def test_the_sample_tells_skills_as_records_have_them(market, told):
    snapshot, _ = market
    records = {kind: {r["id"]: r for r in everybody(snapshot, kind)} for kind in KINDS}
    checked = 0
    for query in told["sample"]:
        for match in query["matches"]:
            both = {
                query["kind"]: records[query["kind"]][query["id"]],
                OTHER[query["kind"]]: records[OTHER[query["kind"]]][match["id"]],
            }
            job, person = both["job"], both["freelancer"]
            if job["skills"] is None or person["skills"] is None:
                assert match["skills_asked"] == -1
                continue
            asked = {fold(skill["name"]) for skill in job["skills"]}
            has = {fold(skill["name"]) for skill in person["skills"]}
            assert match["skills_asked"] == len(asked)
            assert match["skills_held"] == len(asked & has)
            assert {fold(name) for name in match["skills_missing"]} <= asked - has
            checked += 1
    assert checked > 50


def test_the_head_says_what_was_run(market, told):
    snapshot, run = market
    head, plan, summary = told["head"], run.plan(), run.summary()
    assert (head["run_id"], head["epoch"], head["seen"]) == (
        plan.run_id, str(snapshot.epoch), str(snapshot.epoch)
    )  # fmt: skip
    assert head["summary"]["digest"] == summary["digest"]
    assert (head["state"], head["published"], head["verdict"]) == ("complete", False, "")
    assert head["living"] == {kind: len(everybody(snapshot, kind)) for kind in KINDS}


def test_throughput_adds_up(market, told):
    _, run = market
    seconds = [unit["seconds"] for unit in run.summary()["units"]]
    found = told["throughput"]
    assert found["units"] == len(seconds) >= len(found["steps"])  # many units share a step
    assert sum(step["queries"] for step in found["steps"]) == found["queries"]
    assert found["working_s"] == pytest.approx(sum(one["total"] for one in seconds), rel=1e-6)
    assert found["kernel_s"] == pytest.approx(sum(one["kernel"] for one in seconds), rel=1e-6)
    assert found["queries"] == sum(way["outcome"]["queries"] for way in told["ways"])
    assert found["steps"][-1]["end_s"] == pytest.approx(found["working_s"], rel=1e-6)


def test_many_units_become_few_steps_of_one_kind_each():
    timings = [
        Timing("job" if n < 700 else "freelancer", n, 10, 50, 0.5, 1.0, f"2026-01-01T0{n // 400}")
        for n in range(1_000)
    ]
    found = throughput(timings, {"job": 7, "freelancer": 5}, "", "")
    assert found is not None
    assert 200 <= len(found.steps) <= 210
    assert sum(step.queries for step in found.steps) == 10_000
    assert found.pairs == 7_000 * 7 + 3_000 * 5
    assert found.wall_s is None
    assert all(step.per_s == pytest.approx(10) for step in found.steps)
    assert throughput([], {}, "", "") is None


def test_the_same_run_gives_the_same_report(market, html):
    snapshot, run = market
    assert report_of(run, snapshot, OPS).decode() == html


# ── The page ──────────────────────────────────────────────────────────────────────────────────


def test_nothing_leaves_the_page_and_nothing_else_runs(html):
    page = Page(html)
    assert page.tags["script"] == 2
    assert page.tags["style"] == 1
    assert not {"img", "iframe", "object", "embed", "base", "video", "audio"} & set(page.tags)
    urls = [value for _, name, value in page.attributes if name in ("src", "href", "action")]
    assert all(url.startswith("#") or url == "data:," for url in urls)
    assert not [name for _, name, _ in page.attributes if name.startswith("on") or name == "style"]
    assert not re.search(r"https?://", html)
    policy = next(v for _, n, v in page.attributes if n == "content" and "default-src" in v)
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for text, directive in ((page.styles[0], "style-src"), (page.scripts["code"], "script-src")):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{directive} 'sha256-{digest}'" in policy
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))


def test_large_runs_are_read_unit_by_unit_and_stay_small(market, count):
    _, run = market
    size, units = 500, count(reduced=8, full=400)
    made = tuple(Unit("job", n, n * size, (n + 1) * size, "") for n in range(units))
    plan = dataclasses.replace(run.plan(), units=made)
    files = Many(plan, size)
    seen = Counter()

    def watch(kind, query_m, key_m):
        seen["rows"] += key_m.size

    read = read_direction(files, plan, "job", seed=1, watch=watch)
    total = size * units
    few = sum(n % 7 == 0 for n in range(total))
    assert (read.outcome.queries, read.outcome.few, read.outcome.none) == (total, few, 0)
    assert seen["rows"] == read.outcome.rows == K * total - few
    assert read.shown[1].sum() == seen["rows"]
    assert read.sampled.rows.height <= 120 * K
    assert len(read.sampled.queries) == 120
    assert len(read.sampled.short) == 200
    moves = read.moves
    assert moves is not None
    assert moves.reasons == {"shifted": total, "entered": total - few}
    assert (moves.queries, moves.down, moves.entered) == (total, total, total - few)
    assert set(files.read.values()) == {3}  # queries twice, and once more to make the rows up


def test_without_a_store_the_report_says_what_it_leaves_out(market):
    _, run = market
    figures = figures_of(run, None, OPS)
    html = render(figures)
    assert (figures.rates, figures.skills, figures.head.seen) == (None, None, None)
    assert all(way.exposure is None and way.causes is None for way in figures.ways)
    assert figures.ways[0].facets
    assert "There was no store" in html
    assert all(query.title is None for query in figures.sample)


def test_a_run_that_is_not_complete(market, tmp_path):
    snapshot, _ = market
    with pytest.raises(DeadlineExceeded, match="stopped after"):
        do(snapshot, tmp_path, k=3, block=30, stop=lambda done, total: "enough" if done else None)
    (name,) = Output(tmp_path).runs()
    run = Output(tmp_path).folder(name)
    figures = figures_of(run, snapshot, OPS)
    assert figures.head.state == "incomplete"
    assert 0 < figures.ways[0].outcome.queries < run.plan().counts["job"]
    assert "This run is not complete" in render(figures)


def test_a_run_with_errors_says_so(market):
    _, run = market

    class Failing:
        def part(self, unit):
            return run.part(unit)

        def queries(self, unit):
            wrong = pl.when(pl.int_range(pl.len()) == 0).then(pl.lit("STORE_DAMAGED"))
            return run.queries(unit).with_columns(error=wrong)

    plan = run.plan()
    read = read_direction(Failing(), plan, "job", seed=1, watch=lambda *_: None)
    assert read.outcome.errors == len(plan.units_of("job"))
    assert read.outcome.queries == plan.counts["job"]
