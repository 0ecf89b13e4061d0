"""The commands of runs under a policy that reranks; the server is a stand-in."""

from __future__ import annotations

import json

import pytest
import run_rerank_cases as cases
from rerank_cases import FakeServer, ranker_folder
from run_rerank_cases import K, M

from matchwright.engine.cli import main
from matchwright.engine.models import opened
from matchwright.engine.models.repository import add_ranker
from matchwright.engine.rerank.trees import Trees
from matchwright.engine.runs.folder import Output
from matchwright.engine.store import Store


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    return cases.make_store(tmp_path_factory.mktemp("run-rerank-cli") / "shop", 200, 60)


@pytest.fixture(scope="module")
def repo(tmp_path_factory, shop):
    folder = tmp_path_factory.mktemp("models")
    with Store.open(shop) as store:
        spread = cases.spread_of(store.snapshot())
    for seed in (1, 2):
        source = ranker_folder(folder / f"source-{seed}", seed=seed, spread=spread)
        add_ranker(folder / "repo", source, backend="python")
    return folder / "repo"


@pytest.fixture
def server(monkeypatch, repo):
    served = FakeServer(Trees.load(repo / "ranker" / "1"))
    served.close = lambda: None
    served.ready = lambda ref, deadline: served.mode == "right"
    monkeypatch.setattr(opened, "_triton", lambda *given: served)
    return served


@pytest.fixture
def policy_file(tmp_path):
    file = tmp_path / "policy.toml"
    file.write_text(f"[rerank]\nversion = 1\ncandidates = {M}\n", "utf-8")
    return file


@pytest.fixture
def call(capsys, shop, repo, tmp_path, policy_file, server):
    """``call(words, ...)`` -> (exit code, the answer, what was said on stderr)."""

    def do(*words, asks=True, models=True):
        argv = ["run", *map(str, words), "-f", "json"]
        if asks:
            argv += ["--store", str(shop), "--output", str(tmp_path / "runs"), "--for", "jobs"]
            argv += ["-k", str(K), "--as-of", "2026-01-01", "--policy", str(policy_file)]
        if models:
            argv += ["--models", str(repo), "--triton", "127.0.0.1:1"]
        code = main(argv)
        told = capsys.readouterr()
        assert "Traceback" not in told.err
        assert code != 1, told.err
        return code, json.loads(told.out) if told.out else None, told.err

    return do


def error_of(err):
    return json.loads(err.splitlines()[-1])["error"]


def test_plan_says_what_the_model_will_cost_and_whether_it_is_there(call, server):
    code, told, _ = call("plan")
    assert code == 0
    assert told["predicted"]["model_rows"] == 60 * M
    assert told["predicted"]["model_calls"] == told["units"]["job"]
    assert told["ranker"]["served"] == "ready"
    assert told["determinants"]["ranker"]["version"] == 1
    server.mode = "unreachable"
    assert "not ready" in call("plan")[1]["ranker"]["served"]
    assert server.calls == []


def test_without_models_it_is_refused_and_says_what_to_give(call):
    for words in (["plan"], ["start"]):
        code, told, err = call(*words, models=False)
        assert (code, told) == (2, None)
        assert "--models DIR --triton HOST:PORT" in error_of(err)["message"]
        assert "--no-rerank" in error_of(err)["message"]


def test_a_server_that_was_not_named_is_asked_for_before_anything_is_begun(
    call, repo, tmp_path, server
):
    code, told, err = call("start", "--models", str(repo), models=False)
    assert (code, told) == (2, None)
    assert "--triton HOST:PORT" in error_of(err)["message"]
    assert "resume" not in err  # there is nothing to go on with
    assert not list((tmp_path / "runs").glob("*"))
    assert server.calls == []


def test_no_rerank_runs_the_first_phase_alone(call, server):
    code, told, _ = call("start", "--no-rerank", "--no-report", models=False)
    assert code == 0
    assert "rerank" not in told
    assert "ranker" not in told["determinants"]
    assert server.calls == []


def test_a_version_that_the_repository_lacks_is_not_planned(call, policy_file):
    policy_file.write_text("[rerank]\nversion = 9\n", "utf-8")
    code, _, err = call("plan")
    assert code == 2
    assert "9" in error_of(err)["message"]


def test_started_verified_and_published(call, repo, shop, tmp_path, capsys):
    code, told, err = call("start")
    assert code == 0, err
    assert told["rerank"]["rows_asked"] > 100
    folder = Output(tmp_path / "runs").folder(told["run_id"])
    page = folder.read("report.html").decode()
    assert "ranker:1" in page
    code, again, err = call("start")
    assert (code, again["digest"]) == (0, told["digest"])
    assert "nothing to do" in err
    here = ["--store", shop, "--models", repo]
    code, verdict, _ = call("verify", folder.url, "--sample", "20", *here, asks=False, models=False)
    assert (code, verdict["verdict"]) == (0, "SOUND")
    assert not [check["skipped"] for check in verdict["checks"] if check["skipped"]]
    code, done, err = call("publish", folder.url, *here, asks=False, models=False)
    assert (code, done["published"]) == (0, True), err
    assert main(["run", "start", "--store", str(shop), "--output", str(tmp_path / "runs"),
                 "--for", "jobs", "-k", str(K), "--as-of", "2026-01-01", "--models", str(repo),
                 "--triton", "127.0.0.1:1", "--policy", str(tmp_path / "policy.toml"),
                 "-f", "table"]) == 0  # fmt: skip
    assert "ranker:1" in capsys.readouterr().out


def test_verify_without_models_says_what_it_did_not_check(call, shop):
    _, told, _ = call("start", "--no-report")
    words = ("verify", told["url"], "--store", shop)
    _, verdict, _ = call(*words, asks=False, models=False)
    skipped = {c["check"]: c["skipped"] for c in verdict["checks"] if c["skipped"]}
    assert skipped == {"model_sample": "the model repository was not given (--models DIR)"}
    code, _, err = call("publish", told["url"], "--store", shop, asks=False, models=False)
    assert code == 0
    assert "features and model scores are not checked" in err


def test_a_model_that_is_away_ends_with_5_and_the_command_that_goes_on(call, server, repo, shop):
    server.mode = "unreachable"
    code, told, err = call("start", "--no-report", "--wait", "0.2")
    error = error_of(err)
    assert (code, told) == (5, None)
    assert error["details"]["why"] == "UNREACHABLE"
    for part in ("run resume", f"--models {repo}", "--triton 127.0.0.1:1", "--wait 0.2"):
        assert part in error["details"]["resume"]
    server.mode = "right"
    words = error["details"]["resume"].split()[2:]
    code, told, err = call(*words, "--no-report", asks=False, models=False)
    assert (code, told["degraded"]) == (0, 0), err


def test_degraded_runs_are_marked_said_and_not_published(call, server, shop, repo):
    server.mode = "unreachable"
    code, told, _ = call("start", "--allow-degraded", "--wait", "0", "--no-report")
    assert code == 0
    assert told["degraded"] == told["rerank"]["degraded"]["job"]["UNREACHABLE"] > 0
    here = ["publish", told["url"], "--store", shop, "--models", repo]
    code, done, err = call(*here, asks=False, models=False)
    assert (code, done["published"]) == (6, False)
    assert f"degraded is {told['degraded']}" in err
    code, done, _ = call(*here, "--max-degraded", told["degraded"], asks=False, models=False)
    assert (code, done["published"]) == (0, True)
    server.mode = "right"
    code, clean, _ = call("start", "--no-report")
    assert (code, clean["degraded"]) == (0, 0)
    assert clean["run_id"] != told["run_id"]


def test_resuming_with_another_model_is_refused(call, server, repo, tmp_path, shop):
    server.mode = "unreachable"
    _, _, err = call("start", "--no-report", "--wait", "0")
    run = error_of(err)["details"]["resume"].split()[3]
    other = tmp_path / "other"
    source = ranker_folder(tmp_path / "source", seed=7)
    add_ranker(other, source, backend="python")
    server.mode = "right"
    words = ["resume", run, "--store", shop, "--models", other, "--triton", "127.0.0.1:1"]
    code, _, err = call(*words, asks=False, models=False)
    assert code == 2
    assert "was planned with ranker:1 of content" in error_of(err)["message"]
