"""match and explain with a second phase: options, tables, JSON, and what is said on stderr."""

from __future__ import annotations

import csv
import io
import json

import pytest
from rerank_cases import ALLOWED, FakeServer, ranker_folder

from matchwright.engine import synthetic
from matchwright.engine.cli import main
from matchwright.engine.models import opened
from matchwright.engine.models.repository import add_ranker
from matchwright.engine.rerank.trees import Trees
from matchwright.engine.store import Store

DAY = "2026-01-01"
SECTION = "[rerank]\nversion = {version}\ncandidates = {candidates}\ntimeout_ms = 60000\n"


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rerank-cli") / "shop"
    with Store.open(folder, mode="w", create=True) as store:
        store.upsert("freelancer", synthetic.frame("freelancer", 300, seed=2))
        store.upsert("job", synthetic.frame("job", 12, seed=2))
        store.refit(seed=0, sample=300, as_of=synthetic.AS_OF)
    return folder


@pytest.fixture(scope="module")
def repo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    source = ranker_folder(folder / "source", names=ALLOWED, seed=4)
    add_ranker(folder / "repo", source, backend="python")
    return folder / "repo"


@pytest.fixture
def policy_file(tmp_path):
    file = tmp_path / "policy.toml"
    file.write_text(SECTION.format(version=1, candidates=50), "utf-8")
    return file


@pytest.fixture
def server(monkeypatch, repo):
    """The served model, as a stand-in; ``server.mode`` makes it fail."""
    served = FakeServer(Trees.load(repo / "ranker" / "1"))
    served.close = lambda: None
    monkeypatch.setattr(opened, "_triton", lambda config, watch: served)
    return served


@pytest.fixture
def run(run, shop, repo):
    def call(*argv, models=True):
        server = ("--models", repo, "--triton", "127.0.0.1:1") if models else ()
        return run(*argv, *server, "--store", shop, "--device", "numpy", "--as-of", DAY)

    return call


def jobs(shop):
    return synthetic.frame("job", 12, seed=2)["id"].to_list()


def busy_job(run, shop):
    """A job for which several are eligible."""
    for name in jobs(shop):
        code, out, _ = run("match", "--job", name, "--format", "json", models=False)
        assert code == 0
        if json.loads(out)["returned"] >= 5:
            return name
    raise AssertionError("no such job")


def test_an_answer_says_who_ordered_it(run, shop, policy_file, server):
    name = busy_job(run, shop)
    asked = ("match", "--job", name, "--policy", policy_file)
    code, out, err = run(*asked, "--format", "json")
    told = json.loads(out)
    assert (code, "degraded" in err) == (0, False)
    assert (told["rerank"]["model"], told["rerank"]["version"]) == ("ranker", 1)
    assert told["rerank"]["degraded"] is None
    scores = [match["model_score"] for match in told["matches"]]
    assert scores == sorted(scores, reverse=True)
    code, out, _ = run(*asked, "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [int(row["first_rank"]) for row in rows] == [m["first_rank"] for m in told["matches"]]
    assert {row["ranker"] for row in rows} == {"ranker:1"}
    code, out, _ = run(*asked, "--format", "table")
    assert code == 0
    assert "ranker:1 ordered the first" in out
    assert "model" in out
    assert len(server.calls) == 3


def test_a_degraded_answer_is_told_on_stderr_and_in_the_document(run, shop, policy_file, server):
    server.mode = "unreachable"
    name = busy_job(run, shop)
    code, out, err = run("match", "--job", name, "--policy", policy_file, "--format", "json")
    assert code == 0
    assert json.loads(out)["rerank"]["degraded"] == "UNREACHABLE"
    assert "degraded: UNREACHABLE" in err
    plain = json.loads(run("match", "--job", name, "--format", "json", models=False)[1])
    ids = [match["id"] for match in json.loads(out)["matches"]]
    assert ids == [match["id"] for match in plain["matches"]]
    code, out, _ = run("match", "--job", name, "--policy", policy_file, "--format", "table")
    assert "degraded (UNREACHABLE)" in out


def test_every_job_in_one_command(run, shop, policy_file, server):
    asked = ("match", "--all-jobs", "--policy", policy_file, "--format", "jsonl")
    code, out, err = run(*asked)
    answers = [json.loads(line) for line in out.splitlines()]
    assert (code, len(answers), "degraded" in err) == (0, 12, False)
    assert all(answer["rerank"]["version"] == 1 for answer in answers)
    server.mode = "late"
    code, _, err = run(*asked)
    assert code == 0
    assert "degraded: LATE: 12 answers" in err


def test_an_explanation_covers_both_phases(run, shop, policy_file, server):
    name = busy_job(run, shop)
    _, out, _ = run("match", "--job", name, "--policy", policy_file, "--format", "json")
    best = json.loads(out)["matches"][0]
    asked = ("explain", "--job", name, "--freelancer", best["id"], "--policy", policy_file)
    code, out, _ = run(*asked, "--format", "json")
    second = json.loads(out)["rerank"]
    assert code == 0
    assert (second["rank"], second["first_rank"]) == (1, best["first_rank"])
    assert second["score"] == best["model_score"]
    code, out, _ = run(*asked, "--format", "table")
    assert "second phase (ranker:1)" in out
    assert "contributions by path" in out
    code, out, _ = run(*asked, "--audience", "client", "--format", "table")
    assert "second phase (ranker:1): among the first 10" in out
    assert "contributions by" not in out


def test_without_models_a_policy_that_reranks_is_an_error(run, policy_file, shop):
    name = jobs(shop)[0]
    for command in (("match", "--job", name), ("explain", "--job", name, "--freelancer", "x")):
        code, _, err = run(*command, "--policy", policy_file, models=False)
        assert code == 2
        assert "--models DIR --triton HOST:PORT" in err
        assert "--no-rerank" in err


def test_no_rerank_answers_from_the_first_phase(run, shop, policy_file):
    name = jobs(shop)[0]
    asked = ("match", "--job", name, "--format", "json")
    code, out, _ = run(*asked, "--policy", policy_file, "--no-rerank", models=False)
    assert code == 0
    plain = json.loads(run(*asked, models=False)[1])
    told = json.loads(out)
    assert "rerank" not in told
    assert told["digest"] == plain["digest"]


def test_a_version_that_is_not_there_is_named(run, shop, tmp_path, server):
    file = tmp_path / "other.toml"
    file.write_text(SECTION.format(version=7, candidates=50), "utf-8")
    code, _, err = run("match", "--job", jobs(shop)[0], "--policy", file)
    assert code == 2
    assert "7" in err


def test_a_server_decides_by_itself(run, capsys):
    code = main(["match", "--server", "127.0.0.1:1", "--job", "x", "--no-rerank"])
    assert code == 2
    assert "belong to the server" in capsys.readouterr().err


def test_a_policy_is_checked_and_shown(capsys, policy_file, tmp_path):
    assert main(["policy", "check", str(policy_file)]) == 0
    for text, message in (
        ("[rerank]\ncandidates = 5\n", "rerank.version is not given"),
        ("[rerank]\nversion = 1\ncandidates = 1001\n", "1..1,000"),
        ("[rerank]\nversion = 1\ntimeout_ms = 0\n", "rerank.timeout_ms"),
        ("[rerank]\nversion = true\n", "rerank.version"),
        ("[rerank]\nversion = 1\ncandidate = 5\n", "did you mean 'candidates'"),
        ("rerank = 3\n", "a table"),
    ):
        file = tmp_path / "wrong.toml"
        file.write_text(text, "utf-8")
        assert main(["policy", "check", str(file)]) == 2
        assert message in capsys.readouterr().err
