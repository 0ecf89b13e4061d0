"""Runs over a store whose texts were encoded by a served encoder: what is stored suffices."""

from __future__ import annotations

import json

import encoder_cases
import pytest
import run_rerank_cases as cases
from encoder_cases import FakeTriton

from matchwright.engine.cli import main
from matchwright.engine.models import opened
from matchwright.engine.runs.processes import ProcessExecutor
from matchwright.engine.store import Store, embeddings

made = encoder_cases.made
repo = encoder_cases.repo
shop = encoder_cases.shop


def start(capsys, shop, output, *more):
    """(exit code, the answer, what was said) of ``run start``."""
    words = ["run", "start", "--store", shop, "--output", output, "--as-of", "2026-01-01", "-k", 5]
    code = main([*map(str, [*words, *more]), "--no-report", "-f", "json"])
    told = capsys.readouterr()
    assert "Traceback" not in told.err
    return code, json.loads(told.out) if told.out else None, told.err


@pytest.fixture
def client(monkeypatch):
    served = FakeTriton(96)
    monkeypatch.setattr(opened, "_triton", lambda *given: served)
    return served


def lose_embeddings(shop):
    """What a store is left with whose file of embeddings was lost."""
    (path,) = embeddings.paths(shop)
    for end in ("", "-wal", "-shm"):
        path.with_name(path.name + end).unlink(missing_ok=True)


def test_what_is_stored_needs_no_server(capsys, shop, client, tmp_path):
    code, told, err = start(capsys, shop, tmp_path / "runs")
    assert code == 0, err
    assert (told["counts"]["job"]["errors"], client.calls) == (0, [])


def test_nor_do_features_and_other_processes(shop, tmp_path):
    """The reciprocal fit asks with candidates' texts: they are stored as well."""
    with Store.open(shop) as store:
        snapshot = store.snapshot()
        trees = cases.trees_of(snapshot)
        digests = []
        for n, executor in enumerate(
            (None, lambda plan: ProcessExecutor(cases.OPS, snapshot, plan, shop, processes=2))
        ):
            model = cases.ranker_of(trees)
            _, summary = cases.do(snapshot, tmp_path / str(n), model, block=30, executor=executor)
            digests.append(summary["digest"])
    assert len(set(digests)) == 1


def test_what_is_missing_is_encoded_first(capsys, shop, repo, client, tmp_path):
    _, before, _ = start(capsys, shop, tmp_path / "before")
    lose_embeddings(shop)
    more = ("--models", repo, "--triton", "127.0.0.1:1", "--wait", "5")
    code, told, err = start(capsys, shop, tmp_path / "after", *more)
    assert code == 0, err
    assert "texts were encoded by encoder:1" in err
    assert len(client.sent) > 100
    assert told["counts"] == before["counts"]
    sent = len(client.sent)
    code, again, err = start(capsys, shop, tmp_path / "again", *more)
    assert (code, again["digest"], len(client.sent)) == (0, told["digest"], sent)


@pytest.mark.parametrize("given", ["nobody", "away"])
def test_what_is_missing_ends_a_run_with_5_when_nobody_encodes_it(
    capsys, shop, repo, client, tmp_path, given
):
    lose_embeddings(shop)
    client.away = True
    more = () if given == "nobody" else (
        "--models", repo, "--triton", "127.0.0.1:1", "--wait", "0.2",
    )  # fmt: skip
    code, told, err = start(capsys, shop, tmp_path / "runs", *more)
    error = json.loads(err.splitlines()[-1])["error"]
    assert (code, told) == (5, None)
    assert error["reason"] == "MODEL_UNAVAILABLE"
    assert "run resume" in error["details"]["resume"]
    if given == "nobody":
        assert "--models DIR" in error["message"]
