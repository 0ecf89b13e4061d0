"""The life of a run over real exports: planned, done, found done, verified, published, reported."""

from __future__ import annotations

import json

import pytest

from matchwright.engine.cli import main
from matchwright.engine.runs.folder import Output

POSTS, PEOPLE = 9_344, 11_397


@pytest.fixture(scope="module")
def exports(shared_data, tmp_path_factory):
    """The heads of the two real files, or all of them: (folder, posts, people)."""
    folder = tmp_path_factory.mktemp("real")

    def head(name, lines):
        with (shared_data / name).open("rb") as file:
            kept = file.readlines()[: lines or None]
        (folder / name).write_bytes(b"".join(kept))
        return len(kept)

    def make(posts, people):
        head("upwork_jobs.jsonl", posts)
        head("freelancers_resampled.csv", people + 1 if people else 0)
        return folder

    return make


def test_the_life_of_a_real_run(exports, repo_root, tmp_path, capsys, count):
    posts, people = count(reduced=500, full=POSTS), count(reduced=600, full=PEOPLE)
    folder = exports(posts, people)
    maps = repo_root / "examples" / "maps"
    words = [
        *("--jobs", folder / "upwork_jobs.jsonl", "--map", maps / "upwork_jobs.toml"),
        *("--freelancers", folder / "freelancers_resampled.csv"),
        *("--map", maps / "freelancers_resampled.toml"),
        *("--work", tmp_path, "--as-of", "2026-01-01", "--count", "--slack", 20),
    ]

    def call(*more):
        code = main(["run", *map(str, more), "-f", "json"])
        told = capsys.readouterr()
        assert "Traceback" not in told.err
        return code, json.loads(told.out), told.err

    code, plan, _ = call("plan", *words)
    assert (code, plan["counts"]) == (0, {"job": posts, "freelancer": people})
    code, summary, _ = call("start", *words)
    assert (code, summary["run_id"]) == (0, plan["run_id"])
    for kind, n in (("job", posts), ("freelancer", people)):
        counts = summary["counts"][kind]
        assert (counts["queries"], counts["errors"]) == (n, 0)
        assert counts["rows"] > 0
    code, again, err = call("start", *words)
    assert (code, again) == (0, summary)
    assert "nothing to do" in err
    code, verdict, _ = call("verify", summary["url"], "--sample", count(reduced=10, full=200))
    assert code == 0, verdict
    code, _, _ = call("publish", summary["url"], "--sample", 10)
    assert code == 0
    output = Output(summary["url"].rsplit("/", 1)[0])
    assert output.published()["run_id"] == summary["run_id"]
    assert output.folder(summary["run_id"]).size("report.html") < 5_000_000
