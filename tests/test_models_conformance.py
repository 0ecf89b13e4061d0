"""``models check --server``: what conforms, and that each thing that does not is found."""

# ruff: noqa: F401, F811 (fixtures come by import)
from __future__ import annotations

import json
import time

import pytest

pytest.importorskip("tritonclient.grpc", reason="needs the extra [triton]")
pytest.importorskip("onnxruntime", reason="needs ONNX Runtime")
pytest.importorskip("lightgbm", reason="needs LightGBM")

import numpy as np
from models_cases import build_both
from models_server_cases import client, repo, run, server, sources
from triton_cases import client_of

from matchwright.engine.errors import ModelLate, ModelUnavailable
from matchwright.engine.models import conformance
from matchwright.engine.models.conformance import Plan
from matchwright.engine.models.repository import Repository

QUICK = ("--rows", "500", "--repeats", "3", "--batches", "1,200", "--texts", "1,8")
PLAN = Plan(rows=500, batches=(1, 200), texts=(8,), repeats=3)


def test_a_server_that_conforms(run, server, repo):
    code, out, err = run("check", repo, "--server", server.url, *QUICK, "-f", "json")
    assert (code, err) == (0, "")
    offline, online = json.loads(out)
    assert offline["conforms"]
    assert online["conforms"]
    asked = {(one["model"], one["check"]) for one in online["findings"]}
    assert {outcome["outcome"] for outcome in online["findings"]} == {"ok"}
    for version in (1, 2):
        for check in ("config", "answers", "length", "batch", "padding", "latency of 8 texts"):
            assert (f"encoder:{version}", check) in asked
        for check in ("config", "scores in batches of 200", "contributions", "latency of 1 rows"):
            assert (f"ranker:{version}", check) in asked
    latencies = [one["figures"] for one in online["findings"] if "latency" in one["check"]]
    assert all(0 < one["p50_ms"] <= one["p99_ms"] for one in latencies)


def test_without_a_repository_what_needs_none_is_checked(run, server):
    code, out, _ = run("check", "--server", server.url, *QUICK)
    assert code == 0
    told = {(one["model"], one["check"]): one for one in json.loads(out)["findings"]}
    assert told["encoder:1", "padding"]["outcome"] == "ok"
    for key in (("encoder:1", "answers"), ("ranker:1", "scores in batches of 200")):
        assert told[key]["outcome"] == "skipped"
        assert "needs the repository" in told[key]["told"]


def test_recorded_answers_stand_in_for_onnx_runtime(run, server, repo, monkeypatch):
    real = __import__("importlib.util").util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == "onnxruntime" else real(name)
    )
    check = ("check", repo, "--server", server.url, "--model", "encoder", *QUICK)
    code, out, _ = run(*check)
    assert code == 0
    online = json.loads(out.splitlines()[1])
    (answers,) = (
        one
        for one in online["findings"]
        if (one["model"], one["check"]) == ("encoder:2", "answers")
    )
    assert answers["outcome"] == "ok"
    assert "recorded at its build" in answers["told"]


def test_a_latency_is_judged_when_asked(run, server, repo):
    slow = ("check", repo, "--server", server.url, "--model", "ranker", *QUICK)
    code, _, err = run(*slow, "--p99-ms", "0.001")
    assert code == 6
    assert "0.001 asked for" in err


# ── what does not conform ─────────────────────────────────────────────────────────────────────


class Spoiled:
    """The real server, with one thing wrong about it."""

    def __init__(self, client, infer=None, config=None):
        self._client, self._infer, self._config = client, infer, config

    def __getattr__(self, name):
        return getattr(self._client, name)

    def infer_blocking(self, ref, inputs, outputs, *, deadline):
        def ask(asked):
            return self._client.infer_blocking(ref, asked, outputs, deadline=deadline)

        if self._infer is None:
            return ask(inputs)
        (name,) = outputs
        return {name: self._infer(inputs, lambda asked: ask(asked)[name])}

    def config_of(self, ref, *, deadline):
        told = self._client.config_of(ref, deadline=deadline)
        return told if self._config is None else self._config(told)


def _failed(verdict):
    return {one.check for one in verdict.findings if one.outcome == "failed"}


def _half(inputs, ask):
    return ask(inputs).astype(np.float16).astype(np.float32)


def _too_long(inputs, ask):
    return ask(inputs) * np.float32(1.01)


def _slightly_off(inputs, ask):
    rows = ask(inputs)
    return rows + np.float32(2e-5)


def _batch_matters(inputs, ask):
    rows = ask(inputs)
    return rows if len(rows) == 1 else np.roll(rows, 1, axis=1)


def _padding_matters(inputs, ask):
    return ask(inputs | {"attention_mask": np.ones_like(inputs["attention_mask"])})


def _one_row_short(inputs, ask):
    return ask(inputs)[:-1]


def _two_scores(inputs, ask):
    return np.repeat(ask(inputs), 2, axis=1)


def _scores_of_another_row(inputs, ask):
    return np.roll(ask(inputs), 1, axis=0)


def _errors(inputs, ask):
    return ask({name: array * np.float32("nan") for name, array in inputs.items()})


EVERY_ANSWER = {"answers", "length", "batch", "padding", "latency of 8 texts"}
SCORES = {"scores in batches of 1", "scores in batches of 200", "contributions"}


@pytest.mark.parametrize(
    ("model", "infer", "failing"),
    [
        ("encoder", _half, {"answers"}),
        ("encoder", _too_long, {"answers", "length"}),
        ("encoder", _slightly_off, {"answers"}),
        ("encoder", _batch_matters, {"batch"}),
        ("encoder", _padding_matters, {"padding"}),
        ("encoder", _one_row_short, EVERY_ANSWER),
        ("ranker", _half, SCORES),
        ("ranker", _one_row_short, {*SCORES, "latency of 1 rows", "latency of 200 rows"}),
        ("ranker", _two_scores, {*SCORES, "latency of 1 rows", "latency of 200 rows"}),
        ("ranker", _scores_of_another_row, SCORES - {"scores in batches of 1"}),
        ("ranker", _errors, {*SCORES, "latency of 1 rows", "latency of 200 rows"}),
    ],
)
def test_wrong_answers_are_found(client, repo, model, infer, failing):
    verdict = conformance.check_server(
        Spoiled(client, infer), Repository.open(repo), PLAN, subject="s", models=(model,)
    )
    assert _failed(verdict) == failing
    assert not verdict.conforms


def _tensor(side, which, **change):
    def changed(told):
        for one in told[side]:
            if one["name"] == which:
                one.update(change)
        return told

    return changed


@pytest.mark.parametrize(
    ("model", "change", "told"),
    [
        ("ranker", lambda told: told | {"max_batch_size": 64}, "max_batch_size is 64"),
        ("ranker", lambda told: told | {"backend": "pytorch"}, "expected fil or python"),
        ("ranker", _tensor("input", "input__0", dims=[9]), "TYPE_FP32 [9], expected TYPE_FP32 [6]"),
        ("ranker", _tensor("output", "output__0", name="y"), "output__0 is missing"),
        ("encoder", _tensor("input", "input_ids", data_type="TYPE_INT32"), "TYPE_INT32 [-1]"),
        (
            "encoder",
            lambda told: told | {"input": [*told["input"], {"name": "token_type_ids"}]},
            "input token_type_ids is not expected",
        ),
    ],
)
def test_wrong_configurations_are_found(client, repo, model, change, told):
    verdict = conformance.check_server(
        Spoiled(client, config=change), Repository.open(repo), PLAN, subject="s", models=(model,)
    )
    assert _failed(verdict) == {"config"}
    assert all(told in one.told for one in verdict.failed)


def test_files_that_were_swapped_are_found(run, server, sources, tmp_path):
    """The repository at hand holds under each version what the server has under the other."""
    swapped = build_both(tmp_path / "repo", sources, versions=(1, 0))
    code, out, err = run("check", swapped, "--server", server.url, *QUICK, "-f", "json")
    assert code == 6
    offline, online = json.loads(out)
    assert offline["conforms"]
    failed = {(one["model"], one["check"]) for one in online["findings"]
              if one["outcome"] == "failed"}  # fmt: skip
    assert failed == {
        *((f"encoder:{version}", "answers") for version in (1, 2)),
        *((f"ranker:{version}", check) for version in (1, 2) for check in SCORES),
    }
    told = json.loads(err)["error"]
    assert told["reason"] == "VERIFICATION_FAILED"
    assert "differs by" in told["message"]


def test_versions_that_only_one_side_has_are_found(run, server, sources, tmp_path):
    fewer = build_both(tmp_path / "fewer", sources, versions=(0,))
    code, out, _ = run("check", fewer, "--server", server.url, "--model", "ranker", *QUICK)
    assert code == 6
    assert "version 2 is served, the repository does not hold it" in out
    more = build_both(tmp_path / "more", sources, versions=(0, 1, 0))
    code, out, _ = run("check", more, "--server", server.url, "--model", "ranker", *QUICK)
    assert code == 6
    assert "version 3 is the newest in the repository and is not ready" in out


def test_a_damaged_repository_ends_no_check(run, server, sources, tmp_path):
    damaged = build_both(tmp_path / "repo", sources)
    (damaged / "ranker" / "1" / "model.txt").write_bytes(b"tree")
    code, out, _ = run("check", damaged, "--server", server.url, "--model", "ranker", *QUICK)
    assert code == 6
    online = json.loads(out.splitlines()[1])
    outcomes = {(one["model"], one["check"]): one["outcome"] for one in online["findings"]}
    assert outcomes["ranker:1", "files"] == "failed"
    assert outcomes["ranker:2", "contributions"] == "ok"


def test_the_suite_waits_no_longer_than_it_is_told(server, repo):
    """A server that hangs ends it, after the time of one call."""
    with client_of(server) as client:
        server.pause()
        try:
            began = time.monotonic()
            with pytest.raises((ModelUnavailable, ModelLate)):
                conformance.check_server(
                    client, Repository.open(repo), Plan(timeout_ms=300), subject=server.url
                )
            assert time.monotonic() - began < 5
        finally:
            server.resume()
