"""The report of a run: every number worked out again from the files and the records."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import itertools
import json
import math
import re
import statistics
from bisect import bisect_right
from collections import Counter, defaultdict
from html.parser import HTMLParser

import numpy as np
import polars as pl
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from run_cases import AS_OF, POLICY, do, make_store

from matchwright.engine.cli import main
from matchwright.engine.columns import fold
from matchwright.engine.eligibility import Veto
from matchwright.engine.errors import DeadlineExceeded
from matchwright.engine.matcher import OTHER, Matcher
from matchwright.engine.records import KINDS, ingest, to_frame
from matchwright.engine.request import Request
from matchwright.engine.results import Shortfall
from matchwright.engine.runs.exposure_choice import Moved
from matchwright.engine.runs.folder import Output
from matchwright.engine.runs.plan import Unit
from matchwright.engine.runs.report import causes, words
from matchwright.engine.runs.report.histogram import Histogram, Tally, gini
from matchwright.engine.runs.report.make import figures_of, report_of
from matchwright.engine.runs.report.market import RATE_EDGES
from matchwright.engine.runs.report.outcomes import read_direction
from matchwright.engine.runs.report.page import render
from matchwright.engine.runs.report.throughput import Timing, throughput
from matchwright.engine.store import Store
from matchwright.kernels.ops import Ops

K = 3
OPS = Ops(threads=1)
MEGABYTE = 1_000_000


@pytest.fixture(scope="module", params=["synthetic", "real"])
def market(request, tmp_path_factory, count, repo_root):
    """(snapshot, run's folder) of a small marketplace, matched both ways with everything kept."""
    folder = tmp_path_factory.mktemp("report")
    if request.param == "real":
        data = request.getfixturevalue("shared_data")
        most = count(reduced=400, full=20_000)
        real_store(folder / "store", data, repo_root / "examples" / "maps", most)
    else:
        make_store(folder / "store", 300, 120)
    with Store.open(folder / "store") as store:
        snapshot = store.snapshot()
        run, _ = do(snapshot, folder / "runs", k=K, contributions=True, count=True, block=50)
        yield snapshot, run


def real_store(folder, data, maps, most):
    """A store of the first real posts and people, at most so many of each."""
    with Store.open(folder, mode="w", create=True) as store:
        for kind, name in (
            ("job", "upwork_jobs.jsonl"),
            ("freelancer", "freelancers_resampled.csv"),
        ):
            file = folder / name
            with (data / name).open(encoding="utf-8", newline="") as lines:
                file.write_text("".join(itertools.islice(lines, most)), "utf-8", newline="")
            with store.bulk(kind) as sink:
                ingest.read(kind, [file], maps / f"{file.stem}.toml", sink=sink)


@pytest.fixture(scope="module")
def html(market):
    snapshot, run = market
    return report_of(run, snapshot, OPS).decode()


@pytest.fixture(scope="module")
def told(html):
    """The figures as the page holds them."""
    return embedded(html)


def embedded(html):
    return json.loads(Page(html).scripts["figures"])


def ways(told):
    return {way["kind"]: way for way in told["ways"]}


def parquet(run, kind, what):
    return pl.read_parquet(f"{run.url}/for={kind}/{what}-*.parquet", hive_partitioning=False)


def everybody(snapshot, kind):
    """All living records of a kind."""
    ids = []
    for (segment, alive), base in zip(
        snapshot.corpus(kind).parts, snapshot.corpus(kind).base.tolist(), strict=False
    ):
        rows = np.arange(segment.n) if alive is None else np.flatnonzero(alive)
        ids += snapshot.ids_of(kind, base + rows)
    return snapshot.records(kind, ids).to_dicts()


def available(snapshot, kind):
    """Records that take part: open or available (or not told), and not over."""
    good = {None, "OPEN" if kind == "job" else "AVAILABLE"}
    return [
        record
        for record in everybody(snapshot, kind)
        if record["status"] in good and (record.get("closes") is None or record["closes"] >= AS_OF)
    ]


class Page(HTMLParser):
    """What a parser sees: tags, attributes, and the text of scripts by id."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.attributes, self.scripts, self.styles = Counter(), [], {}, []
        self.text = []
        self._inside = None
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag in ("script", "style"):
            self._inside = (tag, dict(attrs).get("id", "code"))

    def handle_endtag(self, tag):
        if self._inside and self._inside[0] == tag:
            self._inside = None

    def handle_data(self, data):
        if self._inside is None:
            self.text.append(data)
        elif self._inside[0] == "script":
            self.scripts[self._inside[1]] = self.scripts.get(self._inside[1], "") + data
        else:
            self.styles.append(data)


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


def matches_bins(bins, values):
    """A histogram of the report holds exactly these values."""
    values = np.asarray(values, dtype=np.float64)
    assert bins["n"] == values.size == sum(bins["counts"])
    assert bins["mean"] == pytest.approx(values.mean(), rel=1e-7)
    assert bins["least"] == pytest.approx(values.min(), rel=1e-7, abs=1e-12)
    assert bins["most"] == pytest.approx(values.max(), rel=1e-7, abs=1e-12)
    edges = bins["low"] + bins["width"] * np.arange(len(bins["counts"]) + 1)
    pairs = itertools.pairwise(edges)
    expected = [int(((values >= low) & (values < high)).sum()) for low, high in pairs]
    assert bins["counts"] == expected
    exact = np.quantile(values, [0.05, 0.25, 0.5, 0.75, 0.95], method="inverted_cdf")
    assert np.abs(np.array(bins["quantiles"]) - exact).max() <= bins["width"] * 1.001


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


def class_of(cents):
    return min(max(bisect_right(RATE_EDGES, cents) - 1, 0), len(RATE_EDGES) - 2)


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


def rowwise(snapshot, kind, name):
    """(vetoes of every living row of the other side, query's own vetoes) by the row-wise rules."""
    matcher = Matcher(snapshot, OPS, POLICY)
    query = matcher.prepare_one(snapshot, Request(kind=kind, id=name, as_of=AS_OF))
    corpus = snapshot.corpus(OTHER[kind])
    rows = []
    for (segment, alive), base in zip(corpus.parts, corpus.base.tolist(), strict=False):
        here = range(segment.n) if alive is None else np.flatnonzero(alive).tolist()
        rows += [OPS.vetoes(corpus, query.rules, base + row)[0] for row in here]
    return rows, query.compiled.never


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


# ── Histograms and tallies ────────────────────────────────────────────────────────────────────


@given(
    st.lists(st.floats(-1e6, 1e6).map(lambda v: v + 0.0), min_size=1, max_size=60),
    st.integers(0, 60),
)
@example([255.0, -5e-324], 1)
def test_a_histogram_depends_on_the_values_alone(values, cut):
    whole, parts = Histogram(), Histogram()
    whole.add(np.array(values))
    for piece in (values[cut:], values[:cut][::-1]):
        parts.add(np.array(piece))
    a, b = whole.done(), parts.done()
    assert (a.low, a.width, a.counts, a.n, a.least, a.most) == (
        b.low, b.width, b.counts, b.n, b.least, b.most
    )  # fmt: skip
    assert sum(a.counts) == len(values)
    assert len(a.counts) <= 256
    for n, number in enumerate(a.counts):
        low = a.low + n * a.width
        assert number == sum(low <= value < low + a.width for value in values)
    fewer = a.coarser(7)
    assert len(fewer.counts) <= 7
    assert sum(fewer.counts) == len(values)


def test_a_histogram_refuses_what_is_not_finite():
    with pytest.raises(ValueError, match="finite"):
        Histogram().add(np.array([1.0, math.nan]))


@given(st.lists(st.integers(0, 50), min_size=1, max_size=40))
def test_gini_is_the_mean_difference(places):
    n, total = len(places), sum(places)
    expected = sum(abs(a - b) for a in places for b in places) / (2 * n * total) if total else 0.0
    assert gini(np.array(places)) == pytest.approx(expected, abs=1e-12)


@given(st.lists(st.lists(st.integers(0, 9), max_size=20), max_size=5))
def test_a_tally_counts_each_key(batches):
    tally = Tally()
    for batch in batches:
        tally.add(np.array(batch, dtype=np.uint64))
    keys, counts = tally.done()
    expected = Counter(key for batch in batches for key in batch)
    assert dict(zip(keys.tolist(), counts.tolist(), strict=True)) == expected
    assert keys.tolist() == sorted(expected)


# ── Words ─────────────────────────────────────────────────────────────────────────────────────


def test_every_reason_has_words():
    assert set(words.VETO) == set(Veto)
    assert set(words.SHORTFALL) == set(Shortfall)
    assert set(words.MOVED) == {one.name.lower() for one in Moved} - {"not"}


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (words.percent(0.5), "50%"),
        (words.percent(0.12345), "12.3%"),
        (words.percent(0.00001), "<0.1%"),
        (words.percent(0.99999), ">99.9%"),
        (words.percent(1.0), "100%"),
        (words.percent(0.0), "0%"),
        (words.percent(0.996, 0), ">99%"),
        (words.of(1, 0), "–"),
        (words.whole(1234567), "1,234,567"),
        (words.short(1234567), "1.2 M"),
        (words.short(34_000), "34 k"),
        (words.short(0.04), "0.04"),
        (words.ordinal(1), "1st"),
        (words.ordinal(12), "12th"),
        (words.ordinal(103), "103rd"),
        (words.money(1250), "12.50"),
        (words.money(120_000), "1,200"),
        (words.seconds(0.5), "0.50 s"),
        (words.seconds(250), "4 min 10 s"),
        (words.seconds(11_100), "3 h 05 min"),
        (words.day(20_454), "1 January 2026"),
        (words.moment("2026-01-02T03:04:05Z"), "2 Jan 2026, 03:04 UTC"),
        (words.moment("whenever"), "whenever"),
        (words.veto("NEW_ONE"), "New one"),
    ],
)
def test_numbers_in_words(made, expected):
    assert made == expected


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


EVIL = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</script><svg onload=alert(1)>",
    "<!--<script>",
    "{{ 7 * 7 }}{% raw %}",
    "a&lt;b&amp;c",
    "' onfocus='alert(1)",
    "javascript:alert(1)",
    "]]><style>*{display:none}</style>",
]


@pytest.fixture
def hostile(tmp_path):
    """A marketplace in which every text is an attack."""
    jobs = [
        {
            "id": f"{evil} j{n}", "title": f"{evil} \u202egpj.exe", "text": evil,
            "skills": [{"name": evil, "must": False}], "status": "OPEN", "rate_max_cents": 9_000,
        }
        for n, evil in enumerate(EVIL)
    ]  # fmt: skip
    people = [
        {
            "id": f"{evil} f{n}", "title": evil, "text": evil, "skills": [{"name": evil}],
            "status": "AVAILABLE", "rate_cents": 1_000, "reviews": n,
        }
        for n, evil in enumerate(EVIL)
    ]  # fmt: skip
    with Store.open(tmp_path / "store", mode="w", create=True) as store:
        store.upsert("job", to_frame("job", jobs))
        store.upsert("freelancer", to_frame("freelancer", people))
        policy = dataclasses.replace(POLICY, name="<b onclick=alert(1)>&")
        snapshot = store.snapshot()
        run, _ = do(snapshot, tmp_path / "runs", k=5, policy=policy)
        yield report_of(run, snapshot, OPS).decode()


def test_hostile_names_stay_text(hostile):
    page = Page(hostile)
    assert page.tags["script"] == 2
    assert page.tags["style"] == 1
    assert page.tags["img"] == 0
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert all(
        value.startswith("#") or value == "data:,"
        for _, name, value in page.attributes
        if name in ("src", "href")
    )
    figures = embedded(hostile)
    ids = {query["id"] for query in figures["sample"] if query["kind"] == "job"}
    assert ids == {f"{evil} j{n}" for n, evil in enumerate(EVIL)}
    text = "".join(page.text)
    for n, evil in enumerate(EVIL):
        assert f"{evil} j{n}" in text
    assert "49" not in [piece.strip() for piece in page.text]
    assert "<b onclick=alert(1)>&" in text
    assert "\u202e" not in hostile


def test_a_report_stays_a_few_megabytes(tmp_path, count):
    """Titles, ids and skills as long as they may be, on both sides."""
    n = count(reduced=120, full=600)
    skills = [{"name": f"skill number {s} {'of a very long name ' * 4}"[:80]} for s in range(20)]
    job = {"title": "w " * 500, "skills": [{**s, "must": False} for s in skills], "status": "OPEN"}
    person = {"title": "w " * 500, "skills": skills, "status": "AVAILABLE", "rate_cents": 1_000}
    with Store.open(tmp_path / "store", mode="w", create=True) as store:
        rows = [{**job, "id": f"{i}{'j' * 120}"} for i in range(n)]
        store.upsert("job", to_frame("job", rows))
        rows = [{**person, "id": f"{i}{'f' * 120}"} for i in range(n)]
        store.upsert("freelancer", to_frame("freelancer", rows))
        snapshot = store.snapshot()
        run, _ = do(snapshot, tmp_path / "runs", k=K)
        assert len(report_of(run, snapshot, OPS)) < 5 * MEGABYTE


class Many:
    """A run of many units that is made up as it is read; keeps count of what is alive."""

    def __init__(self, plan, size):
        self.plan, self.size, self.read = plan, size, Counter()

    def queries(self, unit):
        self.read[unit] += 1
        key = np.arange(unit.start, unit.stop, dtype=np.uint64) << np.uint64(20)
        returned = np.where(np.arange(unit.start, unit.stop) % 7 == 0, K - 1, K).astype(np.int32)
        names = [f"q{n}" for n in range(unit.start, unit.stop)]
        known = pl.DataFrame({"query_id": names, "query_key": key, "returned": returned})
        return known.with_columns(
            eligible=pl.lit(-1, dtype=pl.Int64), unverified=pl.lit(-1, dtype=pl.Int64),
            shortfall=pl.when(pl.col("returned") < K).then(pl.lit("FEW_ELIGIBLE")),
            error=pl.lit(None, dtype=pl.String), t=pl.lit(0.001), attainable=pl.lit(4.0),
        )  # fmt: skip

    def part(self, unit):
        queries = self.queries(unit)
        at = np.repeat(np.arange(queries.height), queries["returned"].to_numpy())
        rank = np.concatenate([np.arange(1, n + 1) for n in queries["returned"]]).astype(np.int32)
        key = (
            queries["query_key"].to_numpy()[at] * np.uint64(31) + rank.astype(np.uint64)
        ) % np.uint64(997)
        points = (3_000 - rank * 10).astype(np.int32)
        frame = queries[at].select("query_id", "query_key")
        return frame.with_columns(
            rank=rank, id=pl.Series([f"p{k}" for k in key.tolist()]), key=key, points=points,
            score=points * 0.001,
            moved=pl.when(pl.Series(rank) == 2).then(pl.lit("shifted")).when(pl.Series(rank) == 3)
            .then(pl.lit("entered")),
            first_rank=pl.when(pl.Series(rank) == 2).then(pl.lit(1, dtype=pl.Int32)),
        )  # fmt: skip


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


# ── Runs of every kind ────────────────────────────────────────────────────────────────────────


def small(folder, jobs, people, **asked):
    """(figures, html) of a run over these records."""
    with Store.open(folder / "store", mode="w", create=True) as store:
        for kind, rows in (("job", jobs), ("freelancer", people)):
            if rows:
                store.upsert(kind, to_frame(kind, rows))
        snapshot = store.snapshot()
        run, _ = do(snapshot, folder / "runs", **{"k": K, **asked})
        figures = figures_of(run, snapshot, OPS)
        return figures, render(figures)


PERSON = {"id": "f", "status": "AVAILABLE", "rate_cents": 1_000, "skills": [{"name": "Go"}]}
JOB = {"id": "j", "status": "OPEN", "skills": [{"name": "Go", "must": False}]}


def test_an_empty_run(tmp_path):
    figures, html = small(tmp_path, [], [])
    assert [way.outcome.queries for way in figures.ways] == [0, 0]
    assert figures.sample == ()
    assert "There were no jobs to match." in html
    assert figures.throughput is None


@pytest.mark.parametrize("kind", KINDS)
def test_one_query(tmp_path, kind):
    figures, html = small(tmp_path, [JOB], [PERSON], kinds=(kind,), k=1)
    (way,) = figures.ways
    assert (way.outcome.queries, way.outcome.full, way.outcome.rows) == (1, 1, 1)
    assert way.exposure is not None
    assert (way.exposure.available, way.exposure.shown, way.exposure.gini) == (1, 1, 0.0)
    assert way.first == way.last
    assert way.first.counts == (1,)
    assert "found 1 match" in html
    assert [query.id for query in figures.sample] == ["j" if kind == "job" else "f"]


def test_nobody_finds_anybody(tmp_path):
    gone = [{**PERSON, "id": f"f{n}", "status": "GONE"} for n in range(3)]
    figures, html = small(tmp_path, [{**JOB, "id": f"j{n}"} for n in range(4)], gone)
    jobs, people = figures.ways
    assert (jobs.outcome.none, people.outcome.none) == (4, 3)
    assert jobs.causes is not None
    assert [(one.veto, one.queries, one.pairs, one.alone) for one in jobs.causes.rules] == [
        ("FREELANCER_NOT_AVAILABLE", 4, 12, 12)
    ]
    assert people.causes is not None
    assert people.causes.rules[0].never == 3
    assert people.outcome.shortfalls == {"QUERY_VETOED": 3}
    assert jobs.exposure is not None
    assert (jobs.exposure.available, jobs.exposure.places) == (0, 0)
    assert jobs.first.n == 0
    assert "No query found a match." in html
    assert "4 of 4 jobs (100%) found no match" in html


def test_nobody_on_the_other_side(tmp_path):
    figures, html = small(tmp_path, [JOB], [], kinds=("job",))
    (way,) = figures.ways
    assert way.outcome.shortfalls == {"EMPTY_CORPUS": 1}
    assert "Nobody is on the other side" in html


def test_without_a_store_the_report_says_what_it_leaves_out(market):
    _, run = market
    figures = figures_of(run, None, OPS)
    html = render(figures)
    assert (figures.rates, figures.skills, figures.head.seen) == (None, None, None)
    assert all(way.exposure is None and way.causes is None for way in figures.ways)
    assert figures.ways[0].facets
    assert "There was no store" in html
    assert all(query.title is None for query in figures.sample)


def test_a_store_that_moved_on_is_named(tmp_path):
    with Store.open(make_store(tmp_path / "store", 80, 20), mode="w") as store:
        run, _ = do(store.snapshot(), tmp_path / "runs", k=3, kinds=("job",))
        shown = parquet(run, "job", "part")["id"].to_list()
        gone = Counter(shown).most_common(1)[0][0]
        store.delete("freelancer", [gone])
        figures = figures_of(run, store.snapshot(), OPS)
    assert figures.head.seen != figures.head.epoch
    assert "The store has moved on" in render(figures)
    exposure = figures.ways[0].exposure
    assert exposure is not None
    assert exposure.elsewhere == shown.count(gone)
    assert exposure.places + exposure.elsewhere == len(shown)


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


# ── The command ───────────────────────────────────────────────────────────────────────────────


def test_the_command_writes_the_report(tmp_path, capsys):
    store = make_store(tmp_path / "store", 60, 12)
    asked = ["--store", str(store), "-k", "4", "--as-of", "2026-01-01", "--format", "json"]
    assert main(["run", "start", *asked, "--no-report"]) == 0
    (run,) = (store / "runs").glob("*/run.json")
    capsys.readouterr()
    copy = tmp_path / "copy.html"
    assert main(["run", "report", run.parent.name, "--store", str(store), "--to", str(copy)]) == 0
    assert capsys.readouterr().out.strip() == str(run.parent / "report.html")
    assert copy.read_bytes() == (run.parent / "report.html").read_bytes()
    figures = embedded(copy.read_text("utf-8"))
    assert figures["head"]["k"] == 4
    assert figures["skills"]["jobs"] > 0


def test_a_run_that_ends_has_its_report(tmp_path, capsys):
    store = make_store(tmp_path / "store", 40, 8)
    assert main(["run", "start", "--store", str(store), "-k", "2", "--as-of", "2026-01-01"]) == 0
    (report,) = (store / "runs").glob("*/report.html")
    asked = ["run", "publish", report.parent.name, "--store", str(store)]
    assert main([*asked, "--max-none-share", "1"]) == 0
    assert main(["run", "report", report.parent.name, "--store", str(store)]) == 0
    head = embedded(report.read_text("utf-8"))["head"]
    assert (head["published"], head["verdict"]) == (True, "SOUND")
    capsys.readouterr()


@pytest.mark.parametrize("damage", [False, True])
def test_the_report_knows_the_last_verdict(tmp_path, capsys, damage):
    store = make_store(tmp_path / "store", 40, 8)
    asked = ["run", "start", "--store", str(store), "-k", "2", "--as-of", "2026-01-01"]
    assert main([*asked, "--no-report"]) == 0
    (summary,) = (store / "runs").glob("*/run.json")
    if damage:
        told = json.loads(summary.read_text("utf-8"))
        told["counts"]["job"]["rows"] += 1
        summary.write_text(json.dumps(told), "utf-8")
    run = [summary.parent.name, "--store", str(store)]
    assert main(["run", "verify", *run]) == (6 if damage else 0)
    assert main(["run", "report", *run]) == 0
    html = (summary.parent / "report.html").read_text("utf-8")
    assert embedded(html)["head"]["verdict"] == ("FAILED" if damage else "SOUND")
    assert ("verification failed" in html) == damage
    capsys.readouterr()


def test_the_erased_are_not_in_a_new_report(tmp_path, capsys):
    store = make_store(tmp_path / "store", 60, 20)
    asked = ["run", "start", "--store", str(store), "-k", "3", "--as-of", "2026-01-01"]
    assert main(asked) == 0
    (report,) = (store / "runs").glob("*/report.html")
    run = Output(str(store / "runs")).folder(report.parent.name)
    before = parquet(run, "job", "part")
    gone = before["id"].mode().sort()[0]
    assert gone in report.read_text("utf-8")
    assert (
        main(["store", "erase", gone, "--kind", "freelancer", "--store", str(store), "--yes"]) == 0
    )
    assert not report.exists()
    assert main(["run", "report", str(report.parent), "--store", str(store)]) == 0
    html = report.read_text("utf-8")
    assert gone not in html
    assert "People were erased since" in html
    told = embedded(html)
    assert told["head"]["redacted_rows"] > 0
    assert told["head"]["redacted_queries"] == 1
    left = before.filter(pl.col("id") != gone).height
    assert ways(told)["job"]["exposure"]["places"] == left
    capsys.readouterr()


def test_the_command_without_the_store(tmp_path, capsys, monkeypatch):
    store = make_store(tmp_path / "store", 40, 8)
    asked = ["--store", str(store), "--output", str(tmp_path / "runs"), "-k", "2"]
    assert main(["run", "start", *asked, "--as-of", "2026-01-01", "--no-report"]) == 0
    (run,) = (tmp_path / "runs").glob("*/run.json")
    store.rename(tmp_path / "elsewhere")
    assert main(["run", "report", str(run.parent)]) == 0
    assert "no figures that need the store" in capsys.readouterr().err
    assert main(["run", "report", str(tmp_path)]) == 2
    assert "there is no run" in capsys.readouterr().err
