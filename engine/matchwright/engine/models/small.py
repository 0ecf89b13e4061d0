"""A small encoder for tests and demos: made in a second, the same bytes every time, no training.

A text is cut into pieces of one to three characters by WordPiece; each piece has a fixed random
vector; a text is the sum of its pieces' vectors, at length 1. So texts with words in common, or
with words that begin alike, are near each other, and others are nearly orthogonal. It knows
nothing of meaning, and no more than Latin letters, digits, + and #: other words are one unknown.

Vectors are small integers, whose sums float32 holds exactly: padding, batch and order change
nothing before the last division.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import string
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from matchwright.engine.errors import AlreadyExists, InvalidArgument
from matchwright.kernels.types import Int8

if TYPE_CHECKING:
    import onnx

DIMENSIONS_MAX = 4_096
MODEL, TOKENIZER = "model.onnx", "tokenizer.json"
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]")
_PAD, _UNK, _CLS = range(3)
_OPSET, _IR = 17, 8
_LETTERS = string.ascii_lowercase
_VOWELS = frozenset("aeiouy")
_CHARACTERS = _LETTERS + string.digits + "+#"


def make_small_encoder(folder: Path, *, dimensions: int = 128, seed: int = 0) -> None:
    """Writes ``model.onnx`` and ``tokenizer.json`` into a folder, which may be new.

    Args:
        dimensions: of the embeddings, 8 to 4,096.
        seed: another seed is another encoder, with the same tokenizer.

    Raises:
        InvalidArgument: dimensions or seed out of range.
        AlreadyExists: one of the two files is there and holds something else.
    """
    if not 8 <= dimensions <= DIMENSIONS_MAX or not 0 <= seed < 2**63:
        raise InvalidArgument(
            f"a small encoder has 8 to {DIMENSIONS_MAX} dimensions and a seed below 2^63, "
            f"got {dimensions} and {seed}"
        )
    pieces = list(_pieces())
    model = _model(_vectors(len(pieces), dimensions, seed))
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / MODEL, model.SerializeToString(deterministic=True))
    _write(folder / TOKENIZER, _tokenizer(pieces))


def _write(path: Path, data: bytes) -> None:
    if path.exists():
        if path.read_bytes() == data:
            return
        raise AlreadyExists(f"{path} is there already; name another folder", file=path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_bytes(data)
    part.rename(path)


def _pieces() -> Iterator[str]:
    """Pieces in order of their ids; ``##`` marks those that continue a word.

    Three letters make a piece when one of them is a vowel: others are rare and come in parts.
    """
    yield from _SPECIAL
    for mark in ("", "##"):
        for char in _CHARACTERS:
            yield mark + char
        for letters in itertools.product(_LETTERS, repeat=2):
            yield mark + "".join(letters)
        for letters in itertools.product(_LETTERS, repeat=3):
            if not _VOWELS.isdisjoint(letters):
                yield mark + "".join(letters)


def _vectors(rows: int, dimensions: int, seed: int) -> Int8:
    """int8 (rows, dimensions): bytes of SHAKE-256, which no library's release changes."""
    raw = hashlib.shake_256(f"matchwright small encoder {seed}".encode()).digest(rows * dimensions)
    table = np.frombuffer(raw, dtype=np.int8).reshape(rows, dimensions).copy()
    table[_PAD] = 0
    # Every text begins with [CLS], so that an empty one has a direction; others it hardly moves.
    table[[_UNK, _CLS]] = np.where(table[[_UNK, _CLS]] < 0, -1, 1)
    return table


def _tokenizer(pieces: list[str]) -> bytes:
    """``tokenizer.json``, made here so that its bytes depend on no release of ``tokenizers``."""
    special = [
        {
            "id": at,
            "content": name,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for at, name in enumerate(_SPECIAL)
    ]
    told: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": True,
            "lowercase": True,
        },
        # Words, and the signs of C++ and C#; what lies between is dropped.
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"Regex": r"[\p{L}\p{M}\p{N}]+|[+#]"},
            "behavior": "Removed",
            "invert": True,
        },
        "post_processor": _begins_with_cls(),
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 64,
            "vocab": {piece: at for at, piece in enumerate(pieces)},
        },
    }
    return json.dumps(told, ensure_ascii=False, separators=(",", ":")).encode()


def _begins_with_cls() -> dict[str, Any]:
    cls = {"SpecialToken": {"id": "[CLS]", "type_id": 0}}
    first, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    return {
        "type": "TemplateProcessing",
        "single": [cls, first],
        "pair": [cls, first, second],
        "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": [_CLS], "tokens": ["[CLS]"]}},
    }


def _model(table: Int8) -> onnx.ModelProto:
    """sum over tokens of mask * table[ids], at length 1."""
    from onnx import TensorProto, helper, numpy_helper

    def constant(name: str, value: Any) -> onnx.TensorProto:
        return numpy_helper.from_array(np.asarray(value), name)

    ids, mask = (
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "tokens"])
        for name in ("input_ids", "attention_mask")
    )
    embedding = helper.make_tensor_value_info(
        "embedding", TensorProto.FLOAT, ["batch", table.shape[1]]
    )
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "input_ids"], ["pieces"]),
            helper.make_node("Cast", ["pieces"], ["vectors"], to=TensorProto.FLOAT),
            helper.make_node("Cast", ["attention_mask"], ["weights"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["weights", "last"], ["weights_of_vectors"]),
            helper.make_node("Mul", ["vectors", "weights_of_vectors"], ["masked"]),
            helper.make_node("ReduceSum", ["masked", "tokens_axis"], ["sum"], keepdims=0),
            helper.make_node("ReduceL2", ["sum"], ["length"], axes=[1], keepdims=1),
            helper.make_node("Max", ["length", "tiny"], ["divisor"]),
            helper.make_node("Div", ["sum", "divisor"], ["embedding"]),
        ],
        "small_encoder",
        [ids, mask],
        [embedding],
        [
            constant("table", table),
            constant("last", np.array([-1], dtype=np.int64)),
            constant("tokens_axis", np.array([1], dtype=np.int64)),
            constant("tiny", np.array([1e-6], dtype=np.float32)),
        ],
    )
    return helper.make_model(
        graph,
        producer_name="matchwright",
        ir_version=_IR,
        opset_imports=[helper.make_opsetid("", _OPSET)],
    )
