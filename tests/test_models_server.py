"""A real Triton server with the Python backends: what it answers is what the models say."""

# ruff: noqa: F401, F811 (fixtures come by import)
from __future__ import annotations

import contextlib
import json
import shutil
import threading
import time

import pytest

pytest.importorskip("tritonclient.grpc", reason="needs the extra [triton]")
pytest.importorskip("onnxruntime", reason="needs ONNX Runtime")
pytest.importorskip("lightgbm", reason="needs LightGBM")

import lightgbm
import numpy as np
from models_cases import FEATURES, build_both, trees_of
from models_server_cases import client, repo, run, server, sources
from triton_cases import client_of, served

from matchwright.engine.errors import MatchwrightError, ModelUnavailable, ModelWrong
from matchwright.engine.models import probes, rolling
from matchwright.engine.models.refs import ModelRef
from matchwright.engine.models.repository import add_ranker

ENCODER, RANKER = ModelRef("encoder", 1), ModelRef("ranker", 1)
QUICK = ("--rows", "500", "--repeats", "3", "--batches", "1,200")


def _encode(client, ids, mask=None, ref=ENCODER):
    mask = np.ones_like(ids) if mask is None else mask
    asked = {"input_ids": ids, "attention_mask": mask}
    deadline = time.monotonic() + 20
    return client.infer_blocking(ref, asked, ["embedding"], deadline=deadline)["embedding"]


def _score(client, rows, ref=RANKER):
    asked = {"input__0": rows.astype(np.float32)}
    deadline = time.monotonic() + 20
    return client.infer_blocking(ref, asked, ["output__0"], deadline=deadline)["output__0"]


def _rows(count, seed=0, low=-(2**24) + 1, high=2**24):
    return np.random.default_rng(seed).integers(low, high, (count, len(FEATURES))).astype(np.int32)


# ── the encoder ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("version", [1, 2])
def test_the_served_encoder_agrees_with_onnx_runtime(client, repo, version):
    folder = repo / "encoder" / str(version)
    ids = probes.tokens(folder, probes.TEXTS, 256)
    wanted = probes.one_by_one(probes.session(folder), ids)
    got = np.concatenate(
        [_encode(client, one[None], ref=ModelRef("encoder", version)) for one in ids]
    )
    assert np.abs(got - wanted).max() <= 1e-5


def test_a_bad_request_answers_its_own_error_only(client):
    """Good requests are asked all the while; each is answered, and right."""
    good, far = np.arange(1, 9)[None], np.array([[1, 2, 3, 4, 5, 6, 7, 10**9]])
    wanted, stop, wrong = _encode(client, good), threading.Event(), []

    def ask():
        while not stop.is_set():
            if not np.array_equal(_encode(client, good), wanted):
                wrong.append("another answer")

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(20):
            with pytest.raises(MatchwrightError, match="out of data bounds"):
                _encode(client, far)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_what_is_no_batch_of_tokens_is_refused(client):
    with pytest.raises(MatchwrightError):
        _encode(client, np.zeros((1, 0), dtype=np.int64))
    with pytest.raises(MatchwrightError, match="attention_mask"):
        _encode(client, np.ones((2, 5), np.int64), np.ones((2, 6), np.int64))


# ── the ranker ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("batch", [1, 3, 200, 5_000])
def test_the_served_ranker_is_lightgbm_to_the_bit(client, repo, batch):
    rows = np.concatenate([_rows(batch), _rows(batch, 1, -60, 1_010)])
    booster = lightgbm.Booster(model_file=str(repo / "ranker" / "1" / "model.txt"))
    wanted = booster.predict(rows.astype(np.float64), raw_score=True, num_threads=1)
    got = np.concatenate([_score(client, rows[at : at + batch]) for at in (0, batch)])
    assert got.dtype == np.float32
    assert (got[:, 0].astype(np.float64) == wanted).all()
    trees = trees_of(repo / "ranker" / "1")
    units = np.ldexp(wanted, trees.grid_bits)
    assert (units == trees.score(rows)).all()
    assert (trees.contributions(rows).sum(axis=1) == units).all()


def test_any_cut_into_batches_gives_lightgbm_s_scores(client, repo, count):
    """The same rows, in batches of sizes that are drawn."""
    rows = _rows(count(reduced=4_000, full=100_000), 7, -60, 1_010)
    booster = lightgbm.Booster(model_file=str(repo / "ranker" / "1" / "model.txt"))
    wanted = booster.predict(rows.astype(np.float64), raw_score=True, num_threads=1)
    rng = np.random.default_rng(8)
    start = 0
    while start < len(rows):
        stop = start + int(2 ** rng.uniform(0, 11))
        got = _score(client, rows[start:stop])[:, 0]
        assert (got.astype(np.float64) == wanted[start:stop]).all()
        start = stop


def test_contributions_add_up_to_every_served_score(client, repo, count):
    trees = trees_of(repo / "ranker" / "1")
    rows = _rows(count(reduced=5_000, full=100_000), 6, -60, 1_010)
    got = np.concatenate(
        [_score(client, rows[at : at + 5_000]) for at in range(0, len(rows), 5_000)]
    )
    units = np.ldexp(got[:, 0].astype(np.float64), trees.grid_bits)
    assert (trees.contributions(rows).sum(axis=1, dtype=np.int64) == units).all()


def test_requests_that_are_joined_get_their_own_rows(client):
    """Many small requests at once, which Triton joins into batches."""
    rows = _rows(512, 2, -60, 1_010)
    alone = _score(client, rows)
    got = np.zeros_like(alone)

    def ask(first):
        for at in range(first, 512, 16):
            got[at] = _score(client, rows[at : at + 1])

    threads = [threading.Thread(target=ask, args=(first,)) for first in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (got == alone).all()


def test_versions_have_their_own_answers(client, repo):
    rows = _rows(100, 3, -60, 1_010)
    first, second = (_score(client, rows, ModelRef("ranker", v))[:, 0] for v in (1, 2))
    assert (first != second).any()
    for version, got in ((1, first), (2, second)):
        trees = trees_of(repo / "ranker" / str(version))
        assert (np.ldexp(got.astype(np.float64), trees.grid_bits) == trees.score(rows)).all()


# ── versions come and go ──────────────────────────────────────────────────────────────────────


@contextlib.contextmanager
def _asked_all_the_while(client, ref, rows):
    """Asks a version from four threads, without a pause; yields what went wrong."""
    wanted, stop, wrong = _score(client, rows, ref), threading.Event(), []

    def ask():
        while not stop.is_set():
            try:
                if not np.array_equal(_score(client, rows, ref), wanted):
                    wrong.append("another answer")
            except MatchwrightError as error:
                wrong.append(repr(error))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        yield wrong
    finally:
        stop.set()
        for thread in threads:
            thread.join()


@pytest.fixture(scope="module")
def other(tmp_path_factory, sources):
    """(repository, server, client): a server of its own, which loads what a test asks for."""
    folder = tmp_path_factory.mktemp("other") / "repo"
    build_both(folder, sources, versions=(0,))
    with served(folder) as server, client_of(server) as client:
        yield folder, server, client
        assert server.running, server.log_tail()


def _start_with(other, model, sources, versions):
    """The repository made anew with these versions, and version 1 of a model loaded from it."""
    folder, _, client = other
    deadline = time.monotonic() + 60
    for name in ("encoder", "ranker"):
        if client.versions(name, deadline=deadline):
            rolling.unload(client, name, None, force=True, deadline=deadline)
    shutil.rmtree(folder)
    build_both(folder, sources, versions=(0,))
    rolling.load(client, model, 1, deadline=deadline)
    build_both(folder, sources, versions=versions)
    return other


def test_rolling_a_version_over(other, sources, run, count):
    """A new version comes, an old one goes, and no request to the one that stays fails."""
    repo, server, client = _start_with(other, "ranker", sources, ())
    rows = _rows(50, 4, -60, 1_010)
    add_ranker(repo, sources / "ranker_1", backend="python")
    assert client.versions("ranker", deadline=time.monotonic() + 5) == (1,)
    with _asked_all_the_while(client, RANKER, rows) as wrong:
        for _ in range(count(reduced=1, full=20)):
            code, out, _ = run("load", "ranker", "--version", 2, "--server", server.url)
            assert (code, json.loads(out)["ready"]) == (0, [1, 2])
            code, out, _ = run("unload", "ranker", "--version", 2, "--server", server.url)
            assert (code, json.loads(out)["ready"]) == (0, [1])
        assert run("load", "ranker", "--server", server.url)[0] == 0
    assert wrong == []
    assert client.versions("ranker", deadline=time.monotonic() + 5) == (1, 2)
    with _asked_all_the_while(client, ModelRef("ranker", 2), rows) as wrong:
        assert run("unload", "ranker", "--version", 1, "--server", server.url)[0] == 0
    assert wrong == []
    with pytest.raises(ModelUnavailable):
        _score(client, rows, RANKER)
    listed = json.loads(run("list", repo, "--server", server.url)[1])["models"]
    states = {(one["model"], one["version"]): one["server"] for one in listed}
    assert states["ranker", 2] == "READY"
    assert states["ranker", 1] != "READY"
    assert states["encoder", 1] is None


def test_the_only_version_stays_unless_forced(other, sources, run):
    _, server, _ = _start_with(other, "encoder", sources, (1,))
    ask = ("--server", server.url)
    assert json.loads(run("load", "encoder", "--version", 2, *ask)[1])["ready"] == [1, 2]
    assert json.loads(run("unload", "encoder", "--version", 1, *ask)[1])["ready"] == [2]
    for argv in (["--version", "2"], []):
        code, _, err = run("unload", "encoder", *argv, *ask)
        assert code == 2
        assert "no version left" in err
    code, _, err = run("unload", "encoder", "--version", 1, *ask)
    assert code == 2
    assert "encoder:1 is not ready on the server: ready are 2" in err
    assert json.loads(run("unload", "encoder", "--force", *ask)[1])["ready"] == []
    code, _, err = run("unload", "encoder", "--force", *ask)
    assert code == 2
    assert "no version of it is ready" in err


def test_a_version_that_does_not_load_leaves_the_others(other, sources, run):
    repo, server, client = _start_with(other, "ranker", sources, ())
    rows = _rows(20, 5, -60, 1_010)
    shutil.copytree(repo / "ranker" / "1", repo / "ranker" / "2")
    (repo / "ranker" / "2" / "model.txt").write_text("no trees")
    with _asked_all_the_while(client, RANKER, rows) as wrong:
        for version in (2, 3):
            code, _, err = run("load", "ranker", "--version", version, "--server", server.url)
            assert code == 5
            assert f"ranker:{version} was not loaded" in err
    assert wrong == []
    code, out, _ = run("check", repo, "--server", server.url, "--model", "ranker", *QUICK)
    assert code == 6
    versions = json.loads(out.splitlines()[1])["findings"][0]
    assert "version 2 is the newest in the repository and is not ready" in versions["told"]
    shutil.rmtree(repo / "ranker" / "2")
    assert run("check", repo, "--server", server.url, "--model", "ranker", *QUICK)[0] == 0


def test_features_that_are_no_numbers_are_refused(client):
    rows = np.full((3, len(FEATURES)), np.nan, dtype=np.float32)
    with pytest.raises((ModelWrong, MatchwrightError)):
        client.infer_blocking(
            RANKER, {"input__0": rows}, ["output__0"], deadline=time.monotonic() + 5
        )
