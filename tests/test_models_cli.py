"""``matchwright models``: what is built, listed and checked, in every format; exit codes."""

from __future__ import annotations

import csv
import io
import json
import shutil
from functools import partial

import pytest

pytest.importorskip("onnx", reason="needs the extra [triton]")
pytest.importorskip("tokenizers", reason="needs the extra [triton]")
pytest.importorskip("onnxruntime", reason="needs ONNX Runtime")

from models_cases import encoder_source, ranker_source

from matchwright.engine.models.repository import Repository


@pytest.fixture
def run(run):
    """``code, stdout, stderr = run("list", ...)`` of ``matchwright models``."""
    return partial(run, "models")


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    encoder_source(folder / "encoder")
    ranker_source(folder / "ranker")
    return folder


@pytest.fixture
def repo(run, tmp_path, sources):
    made = ["--encoder", sources / "encoder", "--ranker", sources / "ranker"]
    assert run("build", *made, "--backend", "python", "-o", tmp_path / "repo")[0] == 0
    return tmp_path / "repo"


def test_build_list_check(run, tmp_path, sources):
    repo = tmp_path / "repo"
    code, out, _ = run(
        *("build", "--encoder", sources / "encoder", "--ranker", sources / "ranker"),
        *("--max-tokens", "64", "--output", repo, "--format", "json"),
    )
    assert code == 0
    encoder, ranker = json.loads(out)["models"]
    assert (encoder["model"], encoder["version"], encoder["dimensions"]) == ("encoder", 1, 32)
    assert (ranker["model"], ranker["backend"], ranker["features"]) == ("ranker", "production", 6)
    assert Repository.open(repo).encoder().max_tokens == 64
    code, out, _ = run("list", repo)
    assert code == 0
    listed = json.loads(out)["models"]
    assert [one["content_hash"] for one in listed] == [
        encoder["content_hash"],
        ranker["content_hash"],
    ]
    code, out, err = run("check", repo)
    assert (code, err) == (0, "")
    told = json.loads(out)
    assert told["conforms"]
    assert {one["outcome"] for one in told["findings"]} == {"ok"}


def test_a_small_encoder_of_any_seed(run, tmp_path):
    for seed in (3, 4):
        options = ("--small-encoder", "--dimensions", "16", "--seed", seed)
        assert run("build", *options, "-o", tmp_path / "r")[0] == 0
    opened = Repository.open(tmp_path / "r")
    first, second = opened.encoder(1), opened.encoder(2)
    assert first.content_hash != second.content_hash
    assert first.dimensions == second.dimensions == 16


def test_building_again_with_a_version_is_idempotent(run, repo, sources):
    again = ("build", "--ranker", sources / "ranker", "--backend", "python", "-o", repo)
    assert run(*again, "--version", "1")[0] == 0
    assert Repository.open(repo).versions("ranker") == (1,)
    assert run(*again)[0] == 0
    assert Repository.open(repo).versions("ranker") == (1, 2)


def test_without_onnx_runtime_it_says_what_is_missing(run, repo, sources, monkeypatch):
    real = __import__("importlib.util").util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == "onnxruntime" else real(name)
    )
    code, _, err = run("build", "--encoder", sources / "encoder", "--backend", "python", "-o", repo)
    assert code == 0
    assert "no answers were recorded" in err
    made = Repository.open(repo).encoder(2)
    assert not (made.path / "probes.json").exists()
    assert made.content_hash == Repository.open(repo).encoder(1).content_hash


@pytest.mark.parametrize("fmt", ["table", "json", "jsonl", "csv"])
def test_every_format(run, repo, fmt):
    for command in ("list", "check"):
        code, out, _ = run(command, repo, "--format", fmt)
        assert code == 0
        if fmt == "csv":
            rows = list(csv.DictReader(io.StringIO(out)))
            assert {row["model"].partition(":")[0] for row in rows} == {"encoder", "ranker"}
        elif fmt == "table":
            assert "encoder" in out
        else:
            json.loads(out)


def test_a_file_appears_when_it_is_complete(run, repo, tmp_path):
    assert run("check", repo, "--output", tmp_path / "verdict.json")[0] == 0
    assert json.loads((tmp_path / "verdict.json").read_text())["conforms"]


def test_a_damaged_repository_is_listed_and_does_not_conform(run, repo):
    (repo / "ranker" / "1" / "model.txt").write_text("tree\n")
    code, out, _ = run("list", repo)
    assert code == 0
    (damaged,) = (one for one in json.loads(out)["models"] if one["model"] == "ranker")
    assert damaged["about"].startswith("STORE_DAMAGED")
    code, out, err = run("check", repo, "--format", "json")
    assert code == 6
    told = json.loads(err)["error"]
    assert (told["reason"], told["details"]["checks"]) == ("VERIFICATION_FAILED", "ranker:1 files")
    assert "model.txt" in told["message"]
    assert not json.loads(out)["conforms"]


@pytest.mark.parametrize(
    ("argv", "code", "told"),
    [
        (["build", "-o", "{tmp}/r"], 2, "nothing to build"),
        (
            ["build", "--small-encoder", "--encoder", "{src}/encoder", "-o", "{tmp}/r"],
            2,
            "not both",
        ),
        (["build", "--encoder", "{tmp}", "-o", "{tmp}/r"], 2, "model.onnx is not there"),
        (["build", "--ranker", "{tmp}", "-o", "{tmp}/r"], 2, "ranker.json is not there"),
        (["build", "--small-encoder", "--dimensions", "4", "-o", "{tmp}/r"], 2, "8 to 4096"),
        (["build", "--small-encoder", "--max-tokens", "4", "-o", "{tmp}/r"], 2, "8 to 8,192"),
        (["build", "--small-encoder", "--version", "0", "-o", "{tmp}/r"], 2, "--version"),
        (["build", "--small-encoder", "--backend", "tpu", "-o", "{tmp}/r"], 2, "production"),
        (["build", "--small-encoder"], 2, "--output"),
        (["list"], 2, "give REPO"),
        (["list", "{tmp}/absent"], 2, "no model repository"),
        (["check"], 2, "give REPO"),
        (["check", "{tmp}"], 2, "no model repository"),
        (["check", "{tmp}", "--batches", "1,x"], 2, "--batches takes numbers"),
        (["check", "{tmp}", "--texts", "0"], 2, "--texts takes numbers"),
        (["load", "encoder"], 2, "--server"),
        (["load", "reader", "--server", "127.0.0.1:1"], 2, "'MODEL': 'reader' is not one of"),
        (["unload", "encoder", "--server", "http://x/y"], 2, "host:port"),
    ],
)
def test_what_cannot_be_done(run, tmp_path, sources, argv, code, told):
    got, out, err = run(*(one.format(tmp=tmp_path, src=sources) for one in argv))
    assert (got, out) == (code, "")
    assert told in err
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    "argv", [["list"], ["check"], ["load", "ranker"], ["unload", "ranker", "--force"]]
)
def test_a_server_that_is_not_there(run, argv):
    pytest.importorskip("tritonclient.grpc", reason="needs the extra [triton]")
    code, out, err = run(*argv, "--server", "127.0.0.1:1", "--timeout", "0.5")
    assert (code, out) == (5, "")
    assert "127.0.0.1:1" in err
    assert ":0:" not in err  # the server has no version


def test_a_version_with_other_content_is_refused(run, repo, tmp_path):
    other = ranker_source(tmp_path / "other", seed=1)
    code, _, err = run(
        "build", "--ranker", other, "--backend", "python", "--version", "1", "-o", repo
    )
    assert code == 2
    assert "a version never changes" in err
    shutil.rmtree(repo / "ranker" / "1")
    code, _, err = run("build", "--ranker", other, "--version", "1", "-o", repo)
    assert code == 2
    assert "for the python backend" in err
