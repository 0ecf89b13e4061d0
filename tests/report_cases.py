"""Reports of small runs, and how tests read them."""

from __future__ import annotations

import itertools
import json
from bisect import bisect_right
from collections import Counter
from html.parser import HTMLParser

import numpy as np
import polars as pl
import pytest
from run_cases import AS_OF, POLICY, do, make_store

from matchwright.engine.matcher import OTHER, Matcher
from matchwright.engine.records import ingest
from matchwright.engine.request import Request
from matchwright.engine.runs.report.make import report_of
from matchwright.engine.runs.report.market import RATE_EDGES
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


def class_of(cents):
    return min(max(bisect_right(RATE_EDGES, cents) - 1, 0), len(RATE_EDGES) - 2)


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
