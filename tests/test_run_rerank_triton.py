"""Runs over a real Triton server: one process and two, killed and resumed, the server killed,
stopped and started again meanwhile."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time

import pytest
from patience import until

pytest.importorskip("tritonclient.grpc", reason="needs the extra [triton]")
pytest.importorskip("lightgbm", reason="needs LightGBM")

import run_rerank_cases as cases
from rerank_cases import policy, ranker_folder
from run_rerank_cases import KINDS, K, M
from triton_cases import need_server, served

from matchwright.engine.config import ModelsConfig
from matchwright.engine.models.opened import Models
from matchwright.engine.models.repository import add_ranker
from matchwright.engine.rerank.rerank_models import Rankers
from matchwright.engine.runs.folder import Output
from matchwright.engine.runs.processes import ProcessExecutor
from matchwright.engine.runs.verify import SOUND, verify
from matchwright.engine.store import Store

POLICY = policy(candidates=M, version=1)
BLOCK = 20
PATIENCE_S = 120.0


@pytest.fixture(scope="module")
def store_folder(tmp_path_factory):
    need_server()
    return cases.make_store(tmp_path_factory.mktemp("run-rerank-triton") / "store", 200, 90)


@pytest.fixture(scope="module")
def snapshot(store_folder):
    with Store.open(store_folder) as opened:
        yield opened.snapshot()


@pytest.fixture(scope="module")
def repo(tmp_path_factory, snapshot):
    folder = tmp_path_factory.mktemp("ranker")
    source = ranker_folder(folder / "source", seed=3, spread=cases.spread_of(snapshot))
    add_ranker(folder / "repo", source, backend="python")
    return folder / "repo"


@pytest.fixture(scope="module")
def server(repo):
    with served(repo, ["ranker"]) as running:
        yield running


@pytest.fixture
def ranker(repo, server):
    """The served one; the server is there and ready when a test begins."""
    if not server.running:
        server.start()
    with Models(ModelsConfig(repository=repo, triton=server.url)) as models:
        yield Rankers(models).ranker(1)


def do(snapshot, output, ranker, **more):
    settings = {"kinds": KINDS, "k": K, "policy": POLICY, "block": BLOCK, "wait_s": 60.0}
    return cases.do(snapshot, output, ranker, **{**settings, **more})


@pytest.fixture(scope="module")
def wanted(snapshot, repo, server, tmp_path_factory):
    """The digest of a run in one process, verified: features and scores of a sample too."""
    with Models(ModelsConfig(repository=repo, triton=server.url)) as models:
        ranker = Rankers(models).ranker(1)
        folder, summary = do(snapshot, tmp_path_factory.mktemp("wanted"), ranker)
        verdict = verify(folder, snapshot, sample=40, trees=ranker.trees)
    assert verdict.verdict == SOUND, verdict.figures()
    part = folder.part(folder.plan().units[0])
    assert not part["rank"].equals(part["first_rank"].rename("rank"))
    return summary["digest"]


def test_two_processes_give_the_same_run(snapshot, store_folder, ranker, wanted, tmp_path):
    _, summary = do(
        snapshot, tmp_path, ranker,
        executor=lambda plan: ProcessExecutor(
            cases.OPS, snapshot, plan, store_folder, processes=2
        ),
    )  # fmt: skip
    assert (summary["digest"], summary["degraded"]) == (wanted, 0)


@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_a_server_that_goes_away_for_a_while_is_waited_for(
    snapshot, ranker, server, wanted, tmp_path, how, monkeypatch
):
    from matchwright.engine.runs import rerank_stage

    monkeypatch.setattr(rerank_stage, "CALL_S", 2.0)
    events, back = [], []

    def told(event):
        events.append(event.name)
        if event.name == "unit" and "away" not in events:
            events.append("away")
            server.kill() if how == "killed" else server.pause()
        if event.name == "waiting" and not back:
            back.append(threading.Thread(target=come_back))
            back[0].start()

    def come_back():
        server.start() if how == "killed" else server.resume()

    try:
        _, summary = do(snapshot, tmp_path, ranker, progress=told, wait_s=PATIENCE_S)
    finally:
        for thread in back:
            thread.join()
    assert (summary["digest"], summary["degraded"]) == (wanted, 0)
    assert {"waiting", "answers"} <= set(events)


# ── On the command line ───────────────────────────────────────────────────────────────────────


def words(store_folder, repo, server, output, policy_file, *more):
    asked = ["--store", store_folder, "--output", output, "--as-of", "2026-01-01", "-k", K]
    asked += ["--policy", policy_file, "--models", repo, "--triton", server.url, *more]
    program = [sys.executable, "-m", "matchwright.engine.cli", "run", "start"]
    return [*program, *map(str, asked), "--block", str(BLOCK), "--no-report", "-f", "json"]


def launched(argv):
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def policy_file(tmp_path):
    file = tmp_path / "policy.toml"
    section = f"[rerank]\nversion = 1\ncandidates = {M}\ntimeout_ms = 100\n"
    file.write_text(section, "utf-8")
    return file


def done_units(output):
    return len(list(output.glob("*/for=*/unit-*.json")))


@pytest.mark.usefixtures("ranker")
def test_killed_it_ends_with_5_while_nobody_serves_and_goes_on_when_somebody_does(
    store_folder, repo, server, wanted, tmp_path, policy_file
):
    """kill -9 of the run, then of Triton; a start that waits in vain; Triton again, and resume."""
    output = tmp_path / "runs"
    argv = words(store_folder, repo, server, output, policy_file)
    process = launched(argv)
    until(
        lambda: done_units(output) >= 2 or process.poll() is not None,
        "two units",
        within=PATIENCE_S,
    )
    process.kill()
    _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == -signal.SIGKILL, err
    there = done_units(output)
    server.kill()
    began = time.monotonic()
    failed = subprocess.run(
        [*argv, "--wait", "1"], capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert failed.returncode == 5, failed.stderr
    assert time.monotonic() - began < PATIENCE_S
    lines = [json.loads(line) for line in failed.stderr.splitlines() if line.startswith("{")]
    assert "waiting" in [line.get("event") for line in lines]
    error = lines[-1]["error"]
    assert (error["reason"], error["details"]["model"]) == ("MODEL_UNAVAILABLE", "ranker:1")
    resume = error["details"]["resume"]
    assert f"--models {repo}" in resume
    assert f"--triton {server.url}" in resume
    assert done_units(output) == there
    server.start()
    code = subprocess.run(
        [sys.executable, "-m", "matchwright.engine.cli", *resume.split()[1:], "--no-report"],
        capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert code.returncode == 0, code.stderr
    (name,) = Output(output).runs()
    summary = Output(output).folder(name).summary()
    assert summary["digest"] == wanted
