"""Recorded answers of an encoder, so that a served one can be judged where ONNX Runtime is missing.

Whoever builds a repository with ONNX Runtime at hand leaves ``probes.json`` in the version: token
ids of a few texts, and what the model made of them on a CPU.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from matchwright.engine.errors import InvalidData
from matchwright.engine.models.description import ATTENTION_MASK, EMBEDDING, INPUT_IDS
from matchwright.kernels.types import Float32, Int64

FORMAT = 1
LENGTH_TOLERANCE = 1e-3
MODEL, TOKENIZER = "model.onnx", "tokenizer.json"
_LONG = "Build and maintain data pipelines, dashboards and reports for a growing team. "
TEXTS = (
    "Python",
    "Senior backend developer",
    "Logo and brand identity for a small bakery, vector files included",
    "Übersetzung Deutsch–English, 3.000 Wörter, technical manual",
    "移动应用程序开发",
    "We need a React Native developer for two months, 20 hours a week, overlap with Berlin",
    "c++ / rust embedded firmware engineer (STM32), remote",
    _LONG * 2,
    _LONG * 40,
)
"""Short and long ones, scripts that a tokenizer may not know, one that ``max_tokens`` cuts."""


class Runs(Protocol):
    """Anything that turns token ids and mask, int64 (B, T), into float32 (B, D)."""

    def __call__(self, ids: Int64, mask: Int64) -> Float32: ...


@dataclass(frozen=True)
class Probes:
    """Token ids of each text, int64 (T,), and its embedding, float32 (P, D)."""

    ids: tuple[Int64, ...]
    embeddings: Float32


def tokens(folder: Path, texts: Sequence[str], max_tokens: int) -> tuple[Int64, ...]:
    """Token ids of each text that has any, int64 (T,), cut to ``max_tokens``, never padded."""
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(str(folder / TOKENIZER))
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_tokens)
    encoded = (tokenizer.encode(one).ids for one in texts)
    return tuple(np.array(one, dtype=np.int64) for one in encoded if one)


def session(folder: Path, threads: int = 0) -> Runs:
    """The model in a folder, on ONNX Runtime in this process; ``threads`` 0 is every core.

    Raises:
        ModuleNotFoundError: ONNX Runtime is not installed.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    opened = onnxruntime.InferenceSession(
        str(folder / MODEL), options, providers=["CPUExecutionProvider"]
    )

    def run(ids: Int64, mask: Int64) -> Float32:
        (rows,) = opened.run([EMBEDDING], {INPUT_IDS: ids, ATTENTION_MASK: mask})
        return np.asarray(rows, dtype=np.float32)

    return run


def one_by_one(run: Runs, ids: Sequence[Int64]) -> Float32:
    """float32 (P, D): each text in a call of its own, so that nothing is padded."""
    return np.concatenate([run(one[None], np.ones_like(one)[None]) for one in ids])


def record(folder: Path, max_tokens: int, dimensions: int) -> bytes:
    """``probes.json`` of the model in a folder.

    Raises:
        InvalidData: a text cannot be cut into tokens, or none has any; the model cannot be run on a
            text of ``max_tokens``, or answers what is no embedding of these dimensions and length 1
            for each text.
    """
    ids = _some_tokens(folder, max_tokens)
    try:
        run = session(folder)
        rows = one_by_one(run, ids)
        two = run(np.stack([ids[0]] * 2), np.ones((2, len(ids[0])), dtype=np.int64))
    except Exception as error:  # whatever ONNX Runtime's C++ says
        raise InvalidData(
            f"{folder / MODEL} cannot be run on texts of up to {max(map(len, ids))} tokens: "
            f"{error}; give a smaller --max-tokens, or another model",
            file=folder / MODEL,
        ) from None
    for got, wanted in ((rows, len(ids)), (two, 2)):
        if got.shape != (wanted, dimensions):
            raise InvalidData(
                f"{folder / MODEL}: answers {got.shape} for {wanted} texts; expected "
                f"{(wanted, dimensions)}: one embedding of its dimensions for each",
                file=folder / MODEL,
            )
    lengths = np.linalg.norm(rows.astype(np.float64), axis=1)
    if not np.allclose(lengths, 1.0, atol=LENGTH_TOLERANCE):
        worst = lengths[np.argmax(abs(lengths - 1))]
        raise InvalidData(
            f"{folder / MODEL}: an embedding has length {worst:.4g}; "
            "expected 1: export it with its normalisation",
            file=folder / MODEL,
        )
    told = {
        "format": FORMAT,
        "dimensions": rows.shape[1],
        "ids": [one.tolist() for one in ids],
        "embeddings": base64.b64encode(rows.astype("<f4").tobytes()).decode("ascii"),
    }
    return json.dumps(told).encode() + b"\n"


def _some_tokens(folder: Path, max_tokens: int) -> tuple[Int64, ...]:
    path = folder / TOKENIZER
    try:
        ids = tokens(folder, TEXTS, max_tokens)
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # where the library's Rust panics, that is no Exception
        raise InvalidData(f"{path}: fails at a text: {error}", file=path) from None
    if not ids:
        raise InvalidData(f"{path}: makes no token of any text", file=path)
    return ids


def read(path: Path) -> Probes:
    """The probes in a file.

    Raises:
        InvalidData: it is not such a file.
    """
    try:
        told: Any = json.loads(path.read_bytes())
        raw = base64.b64decode(told["embeddings"], validate=True)
        rows = np.frombuffer(raw, dtype="<f4").reshape(-1, told["dimensions"])
        ids = tuple(np.array(one, dtype=np.int64) for one in told["ids"])
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InvalidData(f"{path}: no probes: {error}; build the version again", file=path)
    if told.get("format") != FORMAT or len(ids) != len(rows):
        raise InvalidData(f"{path}: no probes of format {FORMAT}", file=path)
    return Probes(ids, rows.astype(np.float32))
