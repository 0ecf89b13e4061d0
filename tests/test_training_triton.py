"""Promotion and rollback beside a Triton server that answers: no request fails meanwhile."""

from __future__ import annotations

import json
import threading
import time

import pytest

pytest.importorskip("tritonclient.grpc", reason="needs the extra [triton]")
pytest.importorskip("lightgbm", reason="needs LightGBM")

import numpy as np
from test_gate import evaluation
from tree_cases import FEATURES, booster_of, rows_of
from triton_cases import client_of, need_server, served

from matchwright.engine.cli import main
from matchwright.engine.models.refs import ModelRef
from matchwright.engine.rerank import promotion
from matchwright.engine.rerank.export import export_booster, write_ranker
from matchwright.engine.rerank.trees import Trees


def candidate(folder, seed, found):
    text, grid_bits = export_booster(booster_of(seed, rounds=10), FEATURES)
    return write_ranker(folder, text, features=FEATURES, grid_bits=grid_bits, features_version=1,
                        version=1, training={"evaluation": found})  # fmt: skip


def score(client, version, f_nf):
    """Units of the grid, as served."""
    asked = {"input__0": f_nf.astype(np.float32)}
    told = client.infer_blocking(
        ModelRef("ranker", version), asked, ["output__0"], deadline=time.monotonic() + 20
    )
    return told["output__0"][:, 0].astype(np.float64)


def test_both_versions_answer_while_one_is_promoted_and_rolled_back(tmp_path, capsys):
    need_server()
    repo = tmp_path / "repo"
    trees = {1: candidate(tmp_path / "a", 1, evaluation())}
    promotion.promote(repo, tmp_path / "a", now="2026-03-01", backend="python")
    trees[2] = candidate(tmp_path / "b", 2, evaluation(trees[1].content_hash))
    f_nf = rows_of(np.random.default_rng(0), 200)
    wanted = {v: np.ldexp(t.score(f_nf).astype(float), -t.grid_bits) for v, t in trees.items()}
    failures, answers, stop = [], [0], threading.Event()

    with served(repo, ["ranker"]) as server, client_of(server) as client:

        def go_on_asking():
            while not stop.is_set():
                try:
                    np.testing.assert_array_equal(score(client, 1, f_nf), wanted[1])
                    answers[0] += 1
                except BaseException as error:
                    failures.append(error)

        asking = threading.Thread(target=go_on_asking)
        asking.start()
        try:
            words = ("models", "promote", repo, "--candidate", tmp_path / "b", "--triton",
                     server.url, "-f", "json")  # fmt: skip
            assert main([str(word) for word in words]) == 0
            assert json.loads(capsys.readouterr().out)["ready"] == [1, 2]
            np.testing.assert_array_equal(score(client, 2, f_nf), wanted[2])
            words = ("models", "rollback", repo, "--triton", server.url, "-f", "json")
            assert main([str(word) for word in words]) == 0
            told = json.loads(capsys.readouterr().out)
            assert (told["version"], told["ready"]) == (1, [1, 2])
        finally:
            stop.set()
            asking.join()
    assert failures == []
    assert answers[0] > 0
    assert Trees.load(repo / "ranker" / "2").content_hash == trees[2].content_hash
