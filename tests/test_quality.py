"""The bench of quality measures what it says: on rankings worked out by hand, and in small."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest


@pytest.fixture(scope="module")
def quality(repo_root: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("quality", repo_root / "bench" / "quality.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_rank_of_the_first_relevant_row(quality: ModuleType) -> None:
    score = np.array([5.0, 9.0, 7.0, 7.0, 1.0])
    assert quality.first_rank(score, np.array([1])) == 1
    assert quality.first_rank(score, np.array([0, 4])) == 4
    assert quality.first_rank(score, np.array([2])) == 2.5
    found = quality.measures(score, np.array([0, 2]))
    assert found["reciprocal_rank"] == 1 / 2.5
    assert found["found_in_10"] == 1.0
    assert found["precision_at_10"] == 2 / 5


def test_kept_counts_ties_as_kept(quality: ModuleType) -> None:
    floats = np.array([[3.0, 2.0, 2.0, 1.0]])
    good, same = quality.kept_shares(floats, np.array([[30, 10, 20, 0]]), 2)
    assert good[0] == 1.0
    good, same = quality.kept_shares(floats, np.array([[0, 10, 20, 30]]), 2)
    assert good[0] == 0.5
    assert same[0] <= 0.5


def test_paired_differences(quality: ModuleType) -> None:
    good, bad = np.array([2.0, 1.0, 0.0]), np.array([0.0, 1.0, 2.0])
    found = quality.compare({"engine": lambda n: good, "other": lambda n: bad}, [np.array([0])] * 8)
    difference = found["engine_minus"]["other"]["reciprocal_rank"]
    assert difference == {"mean": 0.6667, "low": 0.6667, "high": 0.6667}


def test_what_was_seen_is_left_out(quality: ModuleType) -> None:
    score = np.array([3.0, 2.0, 1.0])
    found = quality.compare({"engine": lambda n: score}, [np.array([1])], [np.array([0])])
    assert found["means"]["engine"]["reciprocal_rank"] == 1.0


def test_integers_keep_the_float32_top_in_small(quality: ModuleType) -> None:
    found = quality.grid_figures(600, 5)
    for table in found["directions"].values():
        assert set(table) >= {"default", "text x20", "recency x0.05"}
        assert min(row["kept"] for row in table.values()) >= 0.95


def test_popularity_is_counted_before_the_target_was_viewed(
    quality: ModuleType, shared_data: Path
) -> None:
    with (shared_data / "job_views" / "jobs.csv").open(newline="", encoding="utf-8") as file:
        place = {job["Job.ID"]: n for n, job in enumerate(quality.csv.DictReader(file))}
    seen, popular_before = quality._histories(shared_data, place)
    assert len(seen) == 1_050
    for earlier, last, when in list(seen.values())[:50]:
        assert last not in earlier
        assert popular_before(when).sum() == when
        assert all(popular_before(when)[n] >= 1 for n in earlier)


def test_it_prints_one_json_object(quality: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert quality.main(["--only", "titles", "--data", "nowhere", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["passed"] is False
    assert "skipped" in found["titles"]
