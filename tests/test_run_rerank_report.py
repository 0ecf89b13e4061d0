"""What a report says of a second phase, worked out again from the Parquet files and the trees."""

from __future__ import annotations

import json
import re

import numpy as np
import polars as pl
import pytest
import run_rerank_cases as cases
from rerank_cases import FakeServer
from run_rerank_cases import AS_OF, K

from matchwright.engine.matcher import OTHER, Matcher
from matchwright.engine.request import Request
from matchwright.engine.rerank.features import INDEX
from matchwright.engine.rerank.features_pairs import FeatureMaker
from matchwright.engine.runs.report.make import figures_of, report_of
from matchwright.engine.store import Store


class Away(FakeServer):
    """Away for one call of many."""

    def infer_blocking(self, *given, **more):
        self.mode = "unreachable" if len(self.calls) == 1 else "right"
        return super().infer_blocking(*given, **more)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(snapshot, trees, folder) of a run with a degraded unit."""
    place = tmp_path_factory.mktemp("run-rerank-report")
    with Store.open(cases.make_store(place / "store", 200, 70)) as store:
        snapshot = store.snapshot()
        trees = cases.trees_of(snapshot)
        model = cases.ranker_of(trees, Away(trees))
        folder, _ = cases.do(snapshot, place / "runs", model, block=30, allow_degraded=True)
        yield snapshot, trees, folder


def rows(folder, what, kind):
    return pl.concat([folder.frame(unit, what) for unit in folder.plan().units_of(kind)])


@pytest.mark.parametrize("kind", cases.KINDS)
def test_figures_are_those_of_the_files(made, kind):
    snapshot, trees, folder = made
    figures = figures_of(folder, snapshot, cases.OPS, trees)
    second = next(way.second for way in figures.ways if way.kind == kind)
    part = rows(folder, "part", kind).filter(pl.col("model_score").is_not_null()).to_dicts()
    by_query = {}
    for row in part:
        by_query.setdefault(row["query_id"], []).append(row)
    far = [abs(row["rank"] - row["first_rank"]) for row in part]
    assert (second.queries, second.rows) == (len(by_query), len(part))
    moved = [any(r["rank"] != r["first_rank"] for r in some) for some in by_query.values()]
    assert second.moved == sum(moved) > 0
    assert second.same_best == sum(some[0]["first_rank"] == 1 for some in by_query.values())
    assert second.lifted == sum(row["first_rank"] > K for row in part)
    assert second.places == pytest.approx(sum(far) / len(far))
    for low, high, n in second.classes:
        assert n == sum(low <= one <= high for one in far)
    told = rows(folder, "queries", kind)["degraded"].drop_nulls().to_list()
    assert second.degraded == {why: told.count(why) for why in set(told)}
    assert bool(told) == (kind == "job")


def test_contributions_are_those_of_the_trees(made):
    """Of the drawn queries; they add up to the scores."""
    snapshot, trees, folder = made
    figures = figures_of(folder, snapshot, cases.OPS, trees)
    way = next(one for one in figures.ways if one.kind == "job")
    drawn = [one.id for one in figures.sample if one.kind == "job"]
    part = rows(folder, "part", "job").filter(
        pl.col("query_id").is_in(drawn) & pl.col("model_score").is_not_null()
    )
    matcher = Matcher(snapshot, cases.OPS, cases.POLICY.without_rerank())
    parts = []
    for (name,), mine in part.group_by("query_id", maintain_order=True):
        query = matcher.prepare_one(snapshot, Request(kind="job", id=name, as_of=AS_OF))
        at = snapshot.rows_of(OTHER["job"], mine["id"].to_list())
        made_now = FeatureMaker().make(snapshot, [query], [at])
        gave = trees.contributions(made_now[:, [INDEX[one] for one in trees.features]])
        assert gave.sum(axis=1).tolist() == mine["model_score"].to_list()
        parts.append(gave)
    size = np.abs(np.concatenate(parts)).mean(axis=0) * 2.0**-trees.grid_bits
    assert (way.second.features_rows, way.second.features_queries) == (part.height, len(parts))
    assert [one.size for one in way.second.features] == sorted(
        (one.size for one in way.second.features), reverse=True
    )
    for one in way.second.features:
        assert one.size == pytest.approx(size[trees.features.index(one.name)])


def test_the_page_tells_it_and_says_what_it_cannot(made):
    snapshot, trees, folder = made
    page = report_of(folder, snapshot, cases.OPS, trees).decode()
    assert 'id="model"' in page
    assert "ranker:3 orders the first 15" in page
    assert "because their model could not be asked" in page
    assert re.search(r"Model score -?[\d,]+; the first phase had it at \d", page)
    data = re.search(r'id="figures">(.*?)</script>', page, re.DOTALL).group(1)
    second = json.loads(data)["ways"][0]["second"]
    assert (second["model"], second["content_hash"]) == ("ranker:3", trees.content_hash)
    for there, known in ((snapshot, None), (None, trees)):
        page = report_of(folder, there, cases.OPS, known).decode()
        assert "Not known: that needs the model repository" in page
