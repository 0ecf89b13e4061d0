"""Small models for tests: encoders with a seed, and rankers trained on numbers of their own."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from matchwright.engine.models.repository import add_encoder, add_ranker
from matchwright.engine.models.small import make_small_encoder
from matchwright.engine.rerank.export import export_booster, write_ranker
from matchwright.engine.rerank.trees import Trees

DIMENSIONS = 32
FEATURES = tuple(f"feature_{at}" for at in range(6))


def encoder_source(folder: Path, *, seed: int = 0, dimensions: int = DIMENSIONS) -> Path:
    """A folder with a small encoder."""
    make_small_encoder(folder, dimensions=dimensions, seed=seed)
    return folder


def ranker_source(folder: Path, *, seed: int = 0, features: tuple[str, ...] = FEATURES) -> Path:
    """A folder with a small exported ranker, as a training leaves it."""
    text, grid_bits = exported(seed, features)
    write_ranker(
        folder,
        text,
        features=features,
        grid_bits=grid_bits,
        features_version=1,
        version=1,
        training={"seed": seed},
    )
    return folder


@functools.lru_cache(maxsize=8)
def exported(seed: int, features: tuple[str, ...] = FEATURES) -> tuple[str, int]:
    """Text and grid of a LambdaMART booster on random whole numbers."""
    lightgbm = pytest.importorskip("lightgbm")
    rng = np.random.default_rng(seed)
    rows = rng.integers(-50, 1_000, (2_000, len(features)))
    labels = (rows[:, 0] * 3 + rows[:, 1] * (rows[:, 2] > 400)) % 4_000 // 1_000
    booster = lightgbm.train(
        {
            "objective": "lambdarank",
            "num_leaves": 15,
            "verbose": -1,
            "num_threads": 1,
            "deterministic": True,
            "seed": seed,
        },
        lightgbm.Dataset(rows.astype(np.float64), labels, group=[20] * 100),
        num_boost_round=20,
    )
    return export_booster(booster, features)


def trees_of(folder: Path) -> Trees:
    """The exported trees in a version's folder."""
    return Trees.load(folder)


def changed_model(folder: Path, change) -> Path:
    """The encoder in ``folder`` with ``change`` applied to its graph."""
    path = folder / "model.onnx"
    model = onnx.load(path)
    change(model)
    path.write_bytes(model.SerializeToString())
    return folder


def changed_tokenizer(folder: Path, change) -> Path:
    """The encoder in a folder with another ``tokenizer.json``; ``change(its JSON)``."""
    path = folder / "tokenizer.json"
    told = json.loads(path.read_text())
    change(told)
    path.write_text(json.dumps(told))
    return folder


def no_tokens(told):
    """All of a text lies between two words."""
    told["post_processor"] = None
    told["pre_tokenizer"]["pattern"] = {"Regex": r"[\s\S]*"}
    told["pre_tokenizer"]["invert"] = False


def panics(told):
    """A pattern that the library gives up on, by a panic."""
    told["pre_tokenizer"]["pattern"] = {"Regex": "(([a-z ]+)+)+$"}


def no_unknown(told):
    """A word that is not known has no token."""
    told["model"]["unk_token"] = "[NOT THERE]"


def sources_of_both(folder: Path) -> Path:
    """``encoder_0``, ``encoder_1``, ``ranker_0`` and ``ranker_1``."""
    for seed in (0, 1):
        encoder_source(folder / f"encoder_{seed}", seed=seed)
        ranker_source(folder / f"ranker_{seed}", seed=seed)
    return folder


def build_both(folder: Path, sources: Path, versions: tuple[int, ...] = (0, 1)) -> Path:
    """A repository for the Python backend with a version of both models for each seed."""
    for seed in versions:
        add_encoder(folder, sources / f"encoder_{seed}", backend="python")
        add_ranker(folder, sources / f"ranker_{seed}", backend="python")
    return folder
