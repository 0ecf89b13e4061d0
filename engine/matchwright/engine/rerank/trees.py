"""Exported trees: exact scores, and the contributions that add up to them. NumPy only.

An exported model (``rerank/export.py``) splits integer features at half-integers, and its leaves
and the values of its splits are multiples of ``2**-grid_bits``. Here they are integers, so a score
is an integer sum: the same in any order, and the same that LightGBM and Triton's backends return in
floating point, where no partial sum leaves the integers below 2**24.

Contributions go along the path (Saabas): where a row goes from a split to a child, the feature that
the split asks about is given value(child) - value(split). A split's value is the mean leaf of the
training rows below it, rounded to the grid; the sum telescopes to leaf - value(root), and the
roots' values together are the bias. So they add up to the score to the last bit.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from matchwright.engine.errors import InvalidArgument, InvalidData, NotFound, StoreDamaged
from matchwright.engine.rerank import trees_text
from matchwright.engine.rerank.trees_text import TreeText
from matchwright.engine.rerank.trees_walk import Splits, walk_of
from matchwright.kernels.types import Float64, Int32, Int64

METHOD = "path"
"""How contributions are made: Saabas, along the decision path. Named in every explanation."""
MODEL, DESCRIPTION = "model.txt", "ranker.json"
FORMAT = 1
SUM_LIMIT = 1 << 24
"""Sums of leaves stay below this in magnitude, in units of the grid: exact in float32."""
THRESHOLD_LIMIT = 1 << 23
"""Half-integers are exact in float32 below this; every int32 feature then falls on the right side
also when it is rounded to float32."""
GRID_BITS_MAX = 60
_CHUNK_BYTES = 8 << 20
_INT32_MAX = 2**31 - 1


class Trees:
    """The trees of one version of the ranker. Frozen; safe to use from many threads.

    Attributes:
        features: names in column order.
        features_version: of the definition of these features.
        grid_bits: scores are in units of ``2**-grid_bits``.
        bias: what the model says before it has asked anything, in these units.
        asked: names of the features that some split asks about, in column order.
        content_hash: names what determines scores (``content_hash``).
        training: the record of the training, from ``ranker.json``; empty after ``parse``.
    """

    def __init__(
        self, trees: Sequence[TreeText], features: Sequence[str], grid_bits: int, version: int
    ) -> None:
        self.features: tuple[str, ...] = tuple(features)
        self.features_version = version
        self.grid_bits = grid_bits
        self.content_hash = ""
        self.training: dict[str, Any] = {}
        splits = [_splits(tree, at) for at, tree in enumerate(trees)]
        leaves = [_on_grid(tree.leaf, grid_bits, f"leaves of tree {t}")
                  for t, tree in enumerate(trees)]  # fmt: skip
        values = [_on_grid(tree.value, grid_bits, f"splits of tree {t}")
                  for t, tree in enumerate(trees)]  # fmt: skip
        _check_sums(leaves)
        asked = {int(f) for tree in trees for f in np.unique(tree.feature)}
        self.asked = tuple(name for f, name in enumerate(self.features) if f in asked)
        self.bias = int(sum(v[0] if v.size else leaf[0]
                            for v, leaf in zip(values, leaves, strict=True)))  # fmt: skip
        sizes = [leaf.size for leaf in leaves]
        self._start_t = np.concatenate([[0], np.cumsum(sizes)])[:-1].astype(np.int64)
        self._leaf = np.concatenate(leaves).astype(np.int32)
        self._given = _given(splits, values, leaves, len(self.features))
        self._walk = walk_of(splits, len(self.features))

    @classmethod
    def parse(
        cls, text: str, *, features: Sequence[str], grid_bits: int, features_version: int
    ) -> Trees:
        """The trees of an exported model's text.

        Raises:
            InvalidData: the text is damaged, not exported to this grid, or has other features.
        """
        model = trees_text.read(text)
        if model.features != tuple(features):
            raise InvalidData(
                f"the model's features are {', '.join(model.features)}; "
                f"{DESCRIPTION} says {', '.join(features)}"
            )
        if abs(grid_bits) > GRID_BITS_MAX:
            raise InvalidData(f"grid_bits is {grid_bits}; at most {GRID_BITS_MAX} in magnitude")
        if not model.trees:
            raise InvalidData("the model has no trees")
        trees = cls(model.trees, features, grid_bits, features_version)
        digest = file_digest(text.encode())
        trees.content_hash = content_hash(features_version, features, grid_bits, digest)
        return trees

    @classmethod
    def load(cls, folder: Path) -> Trees:
        """The trees in a folder with ``model.txt`` and ``ranker.json``.

        Raises:
            NotFound: a file is not there.
            StoreDamaged: a file is not what its digest says.
            InvalidData: a file cannot be taken; the message says why.
        """
        told = read_description(folder)
        raw = _read(folder / MODEL)
        digest = file_digest(raw)
        if told["files"].get(MODEL) != digest:
            raise StoreDamaged(
                f"{folder / MODEL} is not what {DESCRIPTION} says: its digest is {digest}; "
                "export or copy the model again",
                file=folder / MODEL,
            )
        trees = cls.parse(
            raw.decode("utf-8", errors="replace"),
            features=told["features"],
            grid_bits=told["grid_bits"],
            features_version=told["features_version"],
        )
        if (trees.content_hash, trees.bias) != (told["content_hash"], told["bias"]):
            raise StoreDamaged(
                f"{folder / DESCRIPTION} names content {told['content_hash']} and bias "
                f"{told['bias']}, the model's are {trees.content_hash} and {trees.bias}",
                file=folder / DESCRIPTION,
            )
        trees.training = told.get("training", {})
        return trees

    @property
    def trees(self) -> int:
        """How many trees."""
        return self._start_t.size

    def score(self, f_nf: Int32) -> Int32:
        """int32 (N,): the exact score of each row, in units of ``2**-grid_bits``.

        Args:
            f_nf: int32 (N, F), a column for each name in ``features``.
        """
        out = np.zeros(len(self._checked(f_nf)), dtype=np.int32)
        for rows in self._chunks(len(f_nf), 8):
            leaf_nt = self._walk.leaves(f_nf[rows]) + self._start_t
            out[rows] = self._leaf[leaf_nt].sum(axis=1, dtype=np.int32)
        return out

    def contributions(self, f_nf: Int32) -> Int32:
        """int32 (N, F + 1): what each feature gave, the last column the bias.

        Rows add up to ``score`` exactly, in the same units.
        """
        out = np.zeros((len(self._checked(f_nf)), len(self.features) + 1), dtype=np.int32)
        for rows in self._chunks(len(f_nf), 4 * out.shape[1]):
            leaf_nt = self._walk.leaves(f_nf[rows]) + self._start_t
            out[rows, :-1] = self._given[leaf_nt].sum(axis=1, dtype=np.int32)
        out[:, -1] = self.bias
        return out

    def _checked(self, f_nf: Int32) -> Int32:
        if f_nf.ndim != 2 or f_nf.shape[1] != len(self.features) or f_nf.dtype != np.int32:
            raise InvalidArgument(
                f"got features {f_nf.dtype} {f_nf.shape}; "
                f"expected int32 (N, {len(self.features)}): {', '.join(self.features)}"
            )
        return f_nf

    def _chunks(self, rows: int, bytes_each: int) -> list[slice]:
        """Slices of rows whose temporary arrays stay near ``_CHUNK_BYTES``."""
        step = max(1, _CHUNK_BYTES // (max(8, bytes_each) * self.trees))
        return [slice(low, low + step) for low in range(0, rows, step)]


def content_hash(
    features_version: int, features: Sequence[str], grid_bits: int, model_digest: str
) -> str:
    """BLAKE2b-128 (hex) over what determines a ranker's scores; not over its training record."""
    told = json.dumps(
        [features_version, list(features), grid_bits, model_digest],
        ensure_ascii=False,
        separators=(",", ":"),
    )
    return hashlib.blake2b(told.encode(), digest_size=16).hexdigest()


def file_digest(raw: bytes) -> str:
    """BLAKE2b-256 (hex) of a file's bytes."""
    return hashlib.blake2b(raw, digest_size=32).hexdigest()


def read_description(folder: Path) -> dict[str, Any]:
    """``ranker.json`` of a folder, its fields checked.

    Raises:
        NotFound: it is not there.
        InvalidData: it is not such a description; the message names the field.
    """
    path = folder / DESCRIPTION
    try:
        told = json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        raise InvalidData(f"{path}: not JSON: {error}", file=path) from None
    if not isinstance(told, dict) or told.get("format") != FORMAT:
        raise InvalidData(f"{path}: not a ranker's description of format {FORMAT}", file=path)
    kinds: dict[str, type] = {
        "content_hash": str, "version": int, "features_version": int, "features": list,
        "grid_bits": int, "bias": int, "files": dict,
    }  # fmt: skip
    for name, kind in kinds.items():
        if not isinstance(told.get(name), kind) or isinstance(told[name], bool):
            raise InvalidData(f"{path}: {name!r} is missing or no {kind.__name__}", file=path)
    if not isinstance(told.get("training", {}), dict):
        raise InvalidData(f"{path}: 'training' is no dict", file=path)
    if not all(isinstance(name, str) for name in told["features"]):
        raise InvalidData(f"{path}: 'features' holds what is no name", file=path)
    return told


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            raw = file.read(trees_text.TEXT_BYTES_MAX + 1)
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound(
            f"{path} is not there; a ranker is a folder with {MODEL} and {DESCRIPTION}", file=path
        ) from None
    if len(raw) > trees_text.TEXT_BYTES_MAX:
        raise InvalidData(f"{path}: more than {trees_text.TEXT_BYTES_MAX:,} bytes", file=path)
    return raw


def _splits(tree: TreeText, at: int) -> Splits:
    """With integer thresholds: f <= t + 0.5 says the same of integers as f <= t."""
    floor = np.floor(tree.threshold)
    if (np.abs(floor) >= THRESHOLD_LIMIT).any() or (tree.threshold - floor != 0.5).any():
        raise InvalidData(
            f"tree {at} has thresholds that are no half-integers below 2**23; "
            "export the model first (rerank/export.py)"
        )
    return Splits(tree.feature, floor.astype(np.int32), tree.left, tree.right)


def _on_grid(values: Float64, grid_bits: int, what: str) -> Int64:
    scaled = np.ldexp(values, grid_bits)
    if (np.abs(scaled) >= SUM_LIMIT).any() or (scaled != np.rint(scaled)).any():
        raise InvalidData(f"{what} are not on the grid of 2**-{grid_bits}; export the model first")
    return scaled.astype(np.int64)


def _check_sums(leaves: Sequence[Int64]) -> None:
    most = sum(int(np.abs(leaf).max()) for leaf in leaves)
    if most >= SUM_LIMIT:
        raise InvalidData(
            f"leaves could add up to {most} units of the grid; below 2**24 they would be exact in "
            "float32; export the model first"
        )


def _given(
    splits: Sequence[Splits], values: Sequence[Int64], leaves: Sequence[Int64], features: int
) -> Int32:
    """int32 (all leaves, F): what each feature gave on the way to each leaf."""
    tables = [_given_by(*tree, features) for tree in zip(splits, values, leaves, strict=True)]
    most = sum((np.abs(table).max(axis=0) for table in tables), start=np.zeros(features))
    if (most > _INT32_MAX).any():
        raise InvalidData("contributions of this model could leave int32; use fewer levels")
    return np.concatenate(tables).astype(np.int32)


def _given_by(tree: Splits, value: Int64, leaf: Int64, features: int) -> Int64:
    table = np.zeros((leaf.size, features), dtype=np.int64)
    above = np.zeros((tree.feature.size, features), dtype=np.int64)
    for split in range(tree.feature.size):
        for child in (int(tree.left[split]), int(tree.right[split])):
            # Parents stand before their children, so what led to this split is known.
            row = above[split].copy()
            row[tree.feature[split]] += value[child] if child >= 0 else leaf[~child]
            row[tree.feature[split]] -= value[split]
            if child >= 0:
                above[child] = row
            else:
                table[~child] = row
    return table
