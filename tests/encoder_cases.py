"""A served encoder without a server: a repository with a small encoder, and a client that counts.

Not a test module. The client computes what a model would: each token has a fixed vector, a text is
their sum. Rows do not depend on their batch; ``noise`` makes them, as a float model's do.
"""

from __future__ import annotations

import functools
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from matchwright.engine import synthetic
from matchwright.engine.config import ModelsConfig
from matchwright.engine.errors import ModelUnavailable
from matchwright.engine.models.embedding import EncoderModel
from matchwright.engine.models.opened import Models
from matchwright.engine.models.repository import add_encoder
from matchwright.engine.models.small import make_small_encoder
from matchwright.engine.records import to_frame
from matchwright.engine.store import Store

AS_OF = synthetic.AS_OF
SALT = bytes(range(16))


class FakeTriton:
    """The client's interface. ``sent`` lists the token rows that were asked for."""

    def __init__(self, dimensions=128, noise=0.0):
        self.dimensions, self.noise = dimensions, noise
        self.sent = []
        self.calls = []
        self.away = False
        self.answer = None
        self.before = lambda: None
        self.closed = False
        self._lock = threading.Lock()

    def infer_blocking(self, ref, inputs, outputs, *, deadline):
        self.before()
        if self.away:
            raise ModelUnavailable(f"{ref}: nobody there", model=ref, why="UNREACHABLE")
        assert deadline > time.monotonic()
        ids_nt, mask_nt = inputs["input_ids"], inputs["attention_mask"]
        assert ids_nt.dtype == mask_nt.dtype == np.int64
        assert ids_nt.shape == mask_nt.shape
        with self._lock:
            self.calls.append((str(ref), ids_nt.shape))
            self.sent += [tuple(i[m > 0].tolist()) for i, m in zip(ids_nt, mask_nt, strict=True)]
            number = len(self.calls)
        if self.answer is not None:
            return {"embedding": self.answer(ids_nt, mask_nt)}
        rows = np.stack([self._row(ref, i[m > 0]) for i, m in zip(ids_nt, mask_nt, strict=True)])
        rows = rows + self.noise * np.random.default_rng(number).normal(size=rows.shape)
        return {"embedding": rows.astype(np.float32)}

    def _row(self, ref, ids):
        total = np.zeros(self.dimensions)
        for n in ids.tolist():
            total += np.random.default_rng((ref.version, n)).normal(size=self.dimensions)
        return total / np.linalg.norm(total)

    def close(self):
        self.closed = True


def repository(folder, *, dimensions=128, versions=1):
    """A model repository with so many versions of an encoder, each of another seed."""
    for seed in range(versions):
        source = folder / f"source-{seed}"
        make_small_encoder(source, dimensions=dimensions, seed=seed)
        add_encoder(folder / "models", source, backend="python")
    return folder / "models"


def models(folder, client=None, *, wait_ms=0, timeout_ms=1_000):
    """Models of a repository; without a client, of nobody who serves them."""
    config = ModelsConfig(
        repository=folder,
        triton=None if client is None else "127.0.0.1:1",
        write_wait_ms=wait_ms,
        timeout_ms=timeout_ms,
    )
    return Models(config, connect=lambda _config: client)


def model(folder, client, version=None):
    """An encoder of a repository, asked through a client."""
    return EncoderModel(models(folder, client).encoder(version), lambda: client)


@functools.cache
def _block(kind):
    return to_frame(kind, list(synthetic.frame(kind, 500).iter_rows(named=True)))


def records(kind, n, seed=0):
    """Synthetic records, spelled as an import would; of another seed, others."""
    return _block(kind).slice(37 * seed % 300, n)


def real_encoder():
    """The folder of the real encoder beside the checkout; skips the test where it is not."""
    folder = Path(__file__).parent.parent.parent / "shared" / "models" / "all-MiniLM-L6-v2"
    if not (folder / "model.onnx").is_file():
        pytest.skip("needs the real encoder in ../shared/models (beside the checkout)")
    return folder


# ── A store of a served encoder ───────────────────────────────────────────────────────────────

REFIT = {"seed": 1, "sample": 500, "as_of": AS_OF, "encoder": "served"}


@pytest.fixture(scope="module")
def repo(tmp_path_factory):
    return repository(tmp_path_factory.mktemp("repo"), dimensions=96, versions=2)


@pytest.fixture(scope="module")
def made(tmp_path_factory, repo):
    """A store of a served encoder's first version."""
    folder = tmp_path_factory.mktemp("made") / "s"
    with Store.open(
        folder,
        mode="w",
        create=True,
        salt=SALT,
        models=models(repo, FakeTriton(96, noise=1e-3)),
    ) as store:
        store.upsert("job", records("job", 30))
        store.upsert("freelancer", records("freelancer", 150))
        store.refit(**REFIT, encoder_version=1)
    return folder


@pytest.fixture
def shop(made, tmp_path):
    return shutil.copytree(made, tmp_path / "shop")


@pytest.fixture
def client():
    return FakeTriton(96)
