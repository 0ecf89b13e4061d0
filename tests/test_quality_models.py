"""The bench of served models measures what it says: nothing leaks, and its figures are right."""

from __future__ import annotations

import csv
import datetime
import importlib
import json
import sys

import numpy as np
import pytest

WORDS = ("nurse", "driver", "cook", "teacher", "welder", "clerk", "painter", "guard")
CITIES = ("Springfield", "Riverside", "Fairview", "Salem")
PEOPLE, VIEWS, JOBS = 60, 6, 120


@pytest.fixture(scope="module")
def bench(repo_root):
    """The bench's modules, as its script imports them."""
    sys.path.insert(0, str(repo_root / "bench"))
    try:
        return importlib.import_module("quality_models")
    finally:
        sys.path.remove(str(repo_root / "bench"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Views of people who look for one kind of work, most of the time in one city."""
    folder = tmp_path_factory.mktemp("data") / "job_views"
    folder.mkdir()
    rng = np.random.default_rng(0)
    jobs = [
        {
            "Job.ID": str(n), "Title": "", "Position": f"{WORDS[n % 8].title()} number {n % 5}",
            "Company": f"Company {n % 7}", "City": CITIES[n % 4], "State.Code": "OR",
            "Industry": WORDS[n % 8],
        }
        for n in range(JOBS)
    ]  # fmt: skip
    views, moment = [], datetime.datetime(2015, 1, 1, tzinfo=datetime.UTC)
    for _ in range(VIEWS):
        for person in range(PEOPLE):
            moment += datetime.timedelta(minutes=97)
            job = int(rng.choice([n for n in range(JOBS) if n % 8 == person % 8]))
            views.append(
                {
                    "Applicant.ID": str(person), "Job.ID": str(job),
                    "View.Start": f"{moment:%Y-%m-%d %H:%M:%S} UTC", "View.Duration": "1.0",
                }
            )  # fmt: skip
    for name, rows in (("jobs.csv", jobs), ("views_train.csv", views)):
        with (folder / name).open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    told = [{"candidate_id": n, "experience": [{"title": "Helper", "city": None}]} for n in (1, 2)]
    lines = "".join(json.dumps(one) + "\n" for one in told)
    (folder / "candidates.jsonl").write_text(lines, "utf-8")
    return folder.parent


def test_nobody_is_learnt_from_and_judged(bench, data):
    views = bench.read_views(data / "job_views")
    learnt, judged = ({case.person for case in part} for part in (views.training, views.judged))
    assert learnt
    assert judged
    assert not learnt & judged
    assert len(judged) == len(views.judged)
    assert {case.person for case in views.last} == learnt
    again = bench.read_views(data / "job_views")
    assert [case.id for case in again.judged] == [case.id for case in views.judged]
    other = bench.read_views(data / "job_views", seed=1)
    assert [case.id for case in other.judged] != [case.id for case in views.judged]


def test_who_asks_knows_nothing_of_what_is_to_be_found(bench, data):
    views = bench.read_views(data / "job_views")
    for case in (*views.training, *views.judged):
        assert case.target not in case.earlier
        assert case.earlier
    people = views.people(views.judged)
    for case, row in zip(views.judged, people.iter_rows(named=True), strict=True):
        newest = views.jobs[case.earlier[-1]]
        assert row["title"] == newest["Position"]
        assert row["text"].startswith(f"{newest['Position']} {newest['Company']}")
        lines = [line for line in row["text"].splitlines() if "Helper" not in line]
        assert len(lines) == len(case.earlier)


def test_popularity_is_of_training_candidates_before_that_moment(bench, data):
    views = bench.read_views(data / "job_views")
    assert views.popular_before(0).sum() == 0
    learnt = {case.person for case in views.training}
    assert views.popular_before(10**9).sum() == VIEWS * len(learnt)
    case = views.judged[0]
    assert views.popular_before(case.order).sum() < views.popular_before(10**9).sum()


def test_figures_worked_out_by_hand(bench):
    found = bench.figures_of(np.array([1.0, 3.0, 10.0, 11.0, 50.0, 51.0, np.inf]))
    assert np.allclose(found["mrr"], [1, 1 / 3, 1 / 10, 1 / 11, 1 / 50, 1 / 51, 0])
    assert np.allclose(found["ndcg@10"], [1, 0.5, 1 / np.log2(11), 0, 0, 0, 0])
    assert found["recall@50"].tolist() == [1, 1, 1, 1, 1, 0, 0]


def test_differences_are_paired(bench):
    easy = np.array([1.0, 1.0, 4.0, 4.0] * 20)
    told = bench.summary({"embedded": easy, "tfidf": 2 * easy, "popularity": np.full(80, np.inf)})
    assert told["queries"] == 80
    assert told["means"]["popularity"] == {"mrr": 0.0, "ndcg@10": 0.0, "recall@50": 0.0}
    difference = told["differences"]["embedded minus tfidf"]["mrr"]
    assert difference["mean"] == pytest.approx((0.5 + 0.125) / 2, abs=1e-4)
    assert difference["low"] < difference["mean"] < difference["high"]
    assert told["differences"]["embedded minus tfidf"]["recall@50"]["high"] == 0.0
    assert "served minus tfidf" not in told["differences"]


def test_without_data_it_says_so(bench, tmp_path, capsys):
    code = bench.main(["--json", "--data", str(tmp_path / "nowhere"), "--encoder", str(tmp_path)])
    told = json.loads(capsys.readouterr().out)
    assert (code, told["passed"]) == (6, False)
    assert "nowhere" in told["skipped"]


def test_all_of_it_in_small(bench, data, tmp_path, capsys, monkeypatch):
    triton_cases = pytest.importorskip("triton_cases", reason="needs the extra [triton]")
    pytest.importorskip("lightgbm", reason="needs LightGBM")
    triton_cases.need_server()
    from matchwright.engine.models.small import make_small_encoder
    from matchwright.engine.store import Store

    monkeypatch.setattr(bench, "SETTINGS", {"leaves": 4, "rows_in_leaf_min": 20, "rounds": 20})
    make_small_encoder(tmp_path / "encoder", dimensions=64)
    code = bench.main(
        ["--data", str(data), "--encoder", str(tmp_path / "encoder"), "--threads", "1",
         "--cache", str(tmp_path / "cache")]
    )  # fmt: skip
    told = json.loads(capsys.readouterr().out)
    assert code == 0, told
    methods = {"tfidf", "popularity", "embedded", "embedded+ranker", "served", "served+ranker"}
    assert set(told["means"]) == {*methods, "cosine"}
    assert told["means"]["embedded"]["mrr"] > told["means"]["popularity"]["mrr"]
    assert set(told["differences"]) == {f"{one} minus {other}" for one, other in bench.PAIRS}
    assert told["note"] == "views stand in for hires"
    for name in ("embedded", "served"):
        assert told["rankers"][name]["warnings"] == ["FEATURES_NOT_POINT_IN_TIME"]
    for folder in (tmp_path / "cache").iterdir():
        with Store.open(folder / "store") as store:
            manifest = store.generation.manifest
            assert manifest.fitted.freelancers == told["training_candidates"]
            assert store.snapshot().count("freelancer") > manifest.fitted.freelancers
