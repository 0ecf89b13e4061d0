"""A LightGBM booster, made exact: thresholds on half-integers, leaves on a dyadic grid.

What changes, and what does not:

- ``x <= t`` becomes ``x <= floor(t) + 0.5``: the same decision on every integer.
- Leaves are rounded to multiples of ``2**-g``, g being the largest for which no sum of leaves, over
  any subset of trees in any order, reaches 2**24 units. Float32 adds such numbers exactly, so the
  score does not depend on who adds, in which order, in float32 or float64.
- The value of a split becomes the mean leaf of the training rows below it, on the same grid, so
  that contributions along a path add up (LightGBM keeps six digits of another quantity there).
- Trees without a split (an average that boosting began from) are added to the first tree's leaves.

LightGBM reads the exported text like any other model.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from matchwright.engine.errors import AlreadyExists, InvalidArgument, InvalidData
from matchwright.engine.rerank import trees_text
from matchwright.engine.rerank.trees import (
    DESCRIPTION,
    FORMAT,
    GRID_BITS_MAX,
    MODEL,
    SUM_LIMIT,
    THRESHOLD_LIMIT,
    Trees,
    file_digest,
)
from matchwright.engine.rerank.trees_text import TreeText
from matchwright.kernels.types import Float64

if TYPE_CHECKING:
    import lightgbm

NAME_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-")


def export_booster(booster: lightgbm.Booster, features: Sequence[str]) -> tuple[str, int]:
    """The exported text of a booster, and its ``grid_bits``.

    Args:
        booster: one output, numerical splits, constant leaves; its scores are taken before any
            transformation of its objective.
        features: names in column order, written into the text.

    Raises:
        InvalidData: the booster holds what cannot be exported; the message names it.
    """
    return export_text(booster.model_to_string(num_iteration=-1), features)


def export_text(text: str, features: Sequence[str]) -> tuple[str, int]:
    """Like ``export_booster``, from a model's text."""
    for name in features:
        if not name or not set(name) <= NAME_CHARACTERS:
            raise InvalidArgument(
                f"a feature is called {name!r}; letters, digits, _, . and - make a name"
            )
    if len(set(features)) != len(features):
        raise InvalidArgument("two features have the same name")
    model = trees_text.read(text)
    if len(model.features) != len(features):
        raise InvalidArgument(
            f"the booster has {len(model.features)} features, {len(features)} names were given"
        )
    trees = _without_constants(model.trees)
    grid_bits = finest_grid([tree.leaf for tree in trees])
    infos = model.header.get("feature_infos", "").split()
    if len(infos) != len(features):
        infos = ["none"] * len(features)
    exact = [_exact(tree, grid_bits, features) for tree in trees]
    return trees_text.write(features, infos, exact), grid_bits


def finest_grid(leaves: Sequence[Float64]) -> int:
    """The largest g for which the leaves, rounded to ``2**-g``, never sum up to 2**24 units.

    Args:
        leaves: of each tree.

    Raises:
        InvalidData: they are too large for any grid.
    """
    most = sum(float(np.abs(leaf).max()) for leaf in leaves)
    if most == 0.0:
        return 0
    # Rounding adds at most half a unit a tree: start one above what fits, and go down.
    start = 25 - math.frexp(most)[1]
    for bits in range(min(start, GRID_BITS_MAX), -GRID_BITS_MAX - 1, -1):
        if sum(int(_units(leaf, bits).max()) for leaf in leaves) < SUM_LIMIT:
            return bits
    raise InvalidData(f"leaves add up to {most:g}: no grid takes that; scale the labels down")


def _units(values: Float64, bits: int) -> Float64:
    units: Float64 = np.abs(np.rint(np.ldexp(values, bits)))
    return units


def _without_constants(trees: Sequence[TreeText]) -> list[TreeText]:
    """Trees that split; what the others say is added to the first one's leaves."""
    splitting = [tree for tree in trees if tree.feature.size]
    constant = sum(float(tree.leaf[0]) for tree in trees if not tree.feature.size)
    if not trees:
        raise InvalidData("the booster has no trees; train for at least one round")
    if not splitting:
        return [dataclasses.replace(trees[0], leaf=np.array([constant]))]
    if constant:
        splitting[0] = dataclasses.replace(splitting[0], leaf=splitting[0].leaf + constant)
    return splitting


def _exact(tree: TreeText, bits: int, features: Sequence[str]) -> TreeText:
    threshold = np.floor(tree.threshold) + 0.5
    beyond = np.flatnonzero(np.abs(threshold) >= THRESHOLD_LIMIT)
    if beyond.size:
        split = beyond[0]
        raise InvalidData(
            f"feature {features[tree.feature[split]]!r} has the threshold "
            f"{tree.threshold[split]:.17g}; half-integers are exact in float32 below 2**23 only: "
            "clip the feature before training, or give it a coarser unit"
        )
    leaf = np.ldexp(np.rint(np.ldexp(tree.leaf, bits)), -bits) + 0.0  # + 0.0: no negative zero
    mean = _means(tree, leaf)
    value = np.ldexp(np.rint(np.ldexp(mean, bits)), -bits) + 0.0
    return dataclasses.replace(tree, threshold=threshold, leaf=leaf, value=value)


def _means(tree: TreeText, leaf: Float64) -> Float64:
    """(I,): the mean leaf of the training rows below each split (of its leaves, if none was)."""
    splits = tree.feature.size
    total, weight = np.zeros(splits), np.zeros(splits)
    count = np.maximum(tree.leaf_count, 0).astype(np.float64)
    if splits and not count.all():
        count = np.ones(splits + 1)
    for split in reversed(range(splits)):  # children stand behind their parents
        for child in (int(tree.left[split]), int(tree.right[split])):
            if child >= 0:
                total[split] += total[child]
                weight[split] += weight[child]
            else:
                total[split] += leaf[~child] * count[~child]
                weight[split] += count[~child]
    return total / np.maximum(weight, 1.0)


def write_ranker(
    folder: Path,
    text: str,
    *,
    features: Sequence[str],
    grid_bits: int,
    features_version: int,
    version: int,
    training: Mapping[str, Any],
) -> Trees:
    """Write ``model.txt`` and ``ranker.json`` into a new folder, which appears complete.

    Args:
        folder: must not be there yet.
        text, grid_bits: from ``export_booster``.
        version: of the ranker; a repository that it is added to may give it another.
        training: the record of the training, plain values.

    Returns:
        The trees as loaded from what was written.

    Raises:
        AlreadyExists: the folder is there.
        InvalidData: the text is not an exported model.
    """
    trees = Trees.parse(
        text, features=features, grid_bits=grid_bits, features_version=features_version
    )
    told = {
        "format": FORMAT,
        "content_hash": trees.content_hash,
        "version": version,
        "features_version": features_version,
        "features": list(features),
        "grid_bits": grid_bits,
        "bias": trees.bias,
        "files": {MODEL: file_digest(text.encode())},
        "training": dict(training),
    }
    _write_folder(folder, {MODEL: text, DESCRIPTION: json.dumps(told, indent=2) + "\n"})
    return Trees.load(folder)


def _write_folder(folder: Path, files: Mapping[str, str]) -> None:
    if folder.exists():
        raise AlreadyExists(f"{folder} is there already; name another folder", path=folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = folder.with_name(f".{folder.name}.{os.getpid()}.new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    try:
        for name, text in files.items():
            with (new / name).open("w", encoding="utf-8", newline="\n") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        new.rename(folder)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
