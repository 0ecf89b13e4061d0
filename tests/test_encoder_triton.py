"""The encoder over a real Triton server: agreement, bulk, a server that is killed, a roll-over."""

from __future__ import annotations

import json
import shutil
import time

import encoder_cases as cases
import numpy as np
import pytest
from encoder_cases import REFIT
from patience import until
from triton_cases import need_server, served

from matchwright.engine.cli import main
from matchwright.engine.config import ModelsConfig
from matchwright.engine.errors import ModelUnavailable
from matchwright.engine.generation.fixed import GRID
from matchwright.engine.matcher import Matcher, Request
from matchwright.engine.models.embedding import EncoderModel
from matchwright.engine.models.opened import Models
from matchwright.engine.models.refs import ModelRef
from matchwright.engine.models.repository import add_encoder
from matchwright.engine.policy import Policy
from matchwright.engine.store import Store
from matchwright.engine.store import embeddings_ahead as ahead
from matchwright.kernels.ops import Ops

pytest.importorskip("tritonclient")
ort = pytest.importorskip("onnxruntime")
AS_OF = cases.AS_OF
OPS, POLICY = Ops(threads=1), Policy.load(None)
WORDS = ["sql", "rust", "design", "logo", "tax", "audit", "go", "video", "seo", "data"]


@pytest.fixture(scope="module")
def repo(tmp_path_factory):
    need_server()
    return cases.repository(tmp_path_factory.mktemp("repo"), dimensions=96, versions=2)


@pytest.fixture(scope="module")
def server(repo):
    with served(repo, ["encoder"]) as running:
        yield running


@pytest.fixture(scope="module")
def models(repo, server):
    with Models(ModelsConfig(repository=repo, triton=server.url, timeout_ms=10_000)) as made:
        yield made


@pytest.fixture
def store(tmp_path):
    with Store.open(tmp_path / "s", mode="w", create=True) as made:
        made.upsert("job", cases.records("job", 20))
        made.upsert("freelancer", cases.records("freelancer", 60))
    return tmp_path / "s"


def texts(n, seed=0):
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(1, 90)).tolist()) for _ in range(n)]


class InProcess:
    """ONNX Runtime in this process, with the client's interface."""

    def __init__(self, path):
        self._session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def infer_blocking(self, ref, inputs, outputs, *, deadline):
        return dict(zip(outputs, self._session.run(list(outputs), dict(inputs)), strict=True))


def agree(models, version, count):
    """The largest difference between what Triton and this process make of some texts."""
    artefact = models.encoder(version)
    some = texts(count)
    until = time.monotonic() + 300
    triton = EncoderModel(artefact, lambda: models.client).embed(some, until)
    here = InProcess(artefact.path / "model.onnx")
    one_by_one = EncoderModel(artefact, lambda: here)
    ours = np.concatenate([one_by_one.embed([text], until) for text in some])
    return float(np.abs(triton - ours).max() / GRID)


def agree_on_tokens(models, n, tokens):
    """The same of token ids with masks, as a caller might send them."""
    rng = np.random.default_rng(tokens)
    mask = (np.arange(tokens) < rng.integers(1, tokens + 1, (n, 1))).astype(np.int64)
    asked = {"input_ids": rng.integers(100, 20_000, (n, tokens)), "attention_mask": mask}
    artefact = models.encoder(1)
    ref, until = ModelRef("encoder", 1), time.monotonic() + 60
    here = InProcess(artefact.path / "model.onnx")
    both = [one.infer_blocking(ref, asked, ["embedding"], deadline=until)["embedding"]
            for one in (models.client, here)]  # fmt: skip
    return float(np.abs(both[0] - both[1]).max())


def test_it_agrees_with_onnx_runtime_in_process(models, count):
    assert agree(models, 1, count(reduced=200, full=5_000)) <= 1e-5


def test_the_real_encoder_agrees_with_onnx_runtime_in_process(tmp_path, count):
    source = cases.real_encoder()
    add_encoder(tmp_path / "models", source, backend="python")
    with served(tmp_path / "models", ["encoder"]) as running:
        config = ModelsConfig(repository=tmp_path / "models", triton=running.url)
        with Models(config) as models:
            assert agree(models, 1, count(reduced=24, full=1_000)) <= 1e-5
            for n, tokens in [(1, 1), (1, 256), (3, 17), (count(reduced=8, full=64), 40)]:
                assert agree_on_tokens(models, n, tokens) <= 1e-5


def inferences(models, version):
    """Texts that the server has encoded, by its own count."""
    told = models.client.statistics(ModelRef("encoder", version), deadline=time.monotonic() + 5)
    return int(told["inference_count"])


def test_a_second_pass_over_an_unchanged_store_sends_nothing(store, models):
    before = inferences(models, 1)
    done = ahead.embed(store, models, 1)
    assert done.sent > 0
    assert inferences(models, 1) == before + done.sent
    assert ahead.embed(store, models, 1).sent == 0
    with Store.open(store, mode="w", models=models) as opened:
        opened.refit(**REFIT, encoder_version=1)
        opened.upsert("freelancer", cases.records("freelancer", 60))
        assert opened.verify() == []
    assert inferences(models, 1) == before + done.sent


def test_from_one_version_to_the_next_and_back(store, models):
    with Store.open(store, mode="w", models=models) as opened:
        for version in (1, 2, 1):
            opened.refit(**REFIT, encoder_version=version)
            snapshot = opened.snapshot()
            assert snapshot.generation.manifest.text.served.version == version
            request = Request(kind="job", id="j-0000003", as_of=AS_OF)
            result = Matcher(snapshot, OPS, POLICY).match(request)
            assert result.generation == snapshot.generation.id
            assert result.degraded == ()


def test_the_command_line(store, repo, server, capsys, tmp_path):
    def cli(*argv):
        code = main([str(word) for word in argv])
        said = capsys.readouterr()
        assert code == 0, said.err
        return json.loads(said.out)

    argv = ("--store", store, "--models", repo, "--triton", server.url, "--format", "json")
    assert cli("embed", *argv, "--encoder-version", "1")["sent"] > 0
    assert cli("embed", *argv, "--encoder-version", "1")["sent"] == 0
    told = cli("store", "refit", "--encoder", "served", "--encoder-version", "1", *argv)
    assert told["dimensions"] == 256 + 96
    people = tmp_path / "people.jsonl"
    people.write_text('{"id": "p-1", "title": "A tailor", "text": "suits"}\n')
    assert cli("ingest", "freelancers", people, *argv)["waited_s"] > 0
    assert cli("store", "info", "--store", store, "--format", "json")["encoder"]["kind"] == "served"


def test_a_server_that_is_killed_and_comes_back(store, repo, tmp_path):
    """A write is refused whole, an inline request degraded in time; both recover."""
    folder = shutil.copytree(repo, tmp_path / "models")
    asked = {"kind": "job", "as_of": AS_OF, "k": 5}
    with served(folder, ["encoder"]) as running:
        config = ModelsConfig(
            repository=folder, triton=running.url, timeout_ms=500, write_wait_ms=300
        )
        with (
            Models(config) as models,
            Store.open(store, mode="w", models=models) as opened,
        ):
            opened.refit(**REFIT, encoder_version=1)
            epoch = opened.snapshot().epoch
            matcher = Matcher(opened, OPS, POLICY)
            running.kill()
            with pytest.raises(ModelUnavailable):
                opened.upsert("freelancer", cases.records("freelancer", 61))
            assert opened.snapshot().epoch == epoch
            record = {"title": "Somebody who tailors", "text": "suits and more"}
            began = time.monotonic()
            result = matcher.match(Request(record=record, **asked))
            assert time.monotonic() - began < 5
            assert result.degraded
            assert result.degraded[0].startswith("ENCODER_")
            assert matcher.match(Request(id="j-0000003", **asked)).degraded == ()
            running.start()
            until(
                lambda: not matcher.match(Request(record=record, **asked)).degraded,
                "the encoder's return",
                within=30,
            )
            assert opened.upsert("freelancer", cases.records("freelancer", 61)).accepted == 1
            assert opened.verify() == []
