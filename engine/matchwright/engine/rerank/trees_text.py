"""The text form of a LightGBM model: reading it into arrays and writing it.

::

    tree                        header: key=value lines
    max_feature_idx=2
    ...
    Tree=0                      one block for each tree; a child >= 0 is a split, ~child a leaf
    split_feature=0 2
    threshold=20.5 -2.5
    ...
    end of trees                what follows (importances, parameters) is not read

Only what the engine's models are made of is taken: one output, numerical splits, constant leaves.
Anything else is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from matchwright.engine.errors import InvalidData
from matchwright.kernels.types import Float64, Int32, Int64

TEXT_BYTES_MAX = 256 << 20
LEAVES_MAX = 1 << 17
"""Leaves of one tree, as many as LightGBM makes; a walk down it has no more levels."""
DECISION = 2
"""``decision_type`` of an exported split: numerical, no missing values, default to the left."""
_CATEGORICAL, _MISSING = 1, 12
_MISSING_ZERO = 4
_END = "end of trees"


@dataclass(frozen=True, eq=False)
class TreeText:
    """One tree, as the text has it; I splits, L = I + 1 leaves.

    Attributes:
        feature, left, right: (I,) int32; a row goes left where its feature is <= the threshold.
        threshold: (I,) float64.
        value: (I,) float64, the value of a split: what the tree says of those that get there.
        leaf: (L,) float64.
        gain: (I,) float64.
        split_count, leaf_count: (I,) and (L,) int64, training rows that got there.
    """

    feature: Int32
    left: Int32
    right: Int32
    threshold: Float64
    value: Float64
    leaf: Float64
    gain: Float64
    split_count: Int64
    leaf_count: Int64


@dataclass(frozen=True, eq=False)
class ModelText:
    """A model: its header's lines, feature names in column order, and trees."""

    header: Mapping[str, str]
    features: tuple[str, ...]
    trees: tuple[TreeText, ...]


def read(text: str) -> ModelText:
    """The model in ``text``.

    Raises:
        InvalidData: it is no such text, is damaged, or holds what the engine does not take
            (several outputs, categorical or linear splits, zeros taken for missing, averaging).
    """
    if len(text) > TEXT_BYTES_MAX:
        raise InvalidData(f"a model of {len(text):,} characters; at most {TEXT_BYTES_MAX:,}")
    body, end, _ = text.partition(f"\n{_END}")
    if not end or not body.startswith("tree\n"):
        raise InvalidData("not the whole text of a LightGBM model: it begins with 'tree' and has a "
                          f"line {_END!r}")  # fmt: skip
    head, *blocks = body.split("\nTree=")
    if "average_output" in head.split("\n"):
        raise InvalidData("the model averages its trees; the engine adds them up")
    header = _pairs(head)
    features = _check_header(header)
    trees = tuple(_tree(_pairs(block), at, len(features)) for at, block in enumerate(blocks))
    return ModelText(header, features, trees)


def write(features: Sequence[str], infos: Sequence[str], trees: Sequence[TreeText]) -> str:
    """The text of a model; the same arrays give the same bytes.

    Args:
        features: names in column order.
        infos: what LightGBM says of each column's range, or ``none``.
        trees: as they are to be written; floats are written so that they read back equal.
    """
    blocks = [_block(at, tree) for at, tree in enumerate(trees)]
    header = [
        "tree", "version=v4", "num_class=1", "num_tree_per_iteration=1", "label_index=0",
        f"max_feature_idx={len(features) - 1}", "objective=lambdarank",
        f"feature_names={' '.join(features)}", f"feature_infos={' '.join(infos)}",
        f"tree_sizes={' '.join(str(len(block)) for block in blocks)}", "", "",
    ]  # fmt: skip
    ending = f"{_END}\n\nfeature_importances:\n\nparameters:\n\nend of parameters\n\n"
    return "\n".join(header) + "".join(blocks) + ending + "pandas_categorical:null\n"


def _pairs(block: str) -> dict[str, str]:
    lines = (line.partition("=") for line in block.splitlines())
    return {name: value for name, equals, value in lines if equals}


def _check_header(header: Mapping[str, str]) -> tuple[str, ...]:
    features = tuple(header.get("feature_names", "").split())
    for name, wanted in (
        ("num_class", "1"),
        ("num_tree_per_iteration", "1"),
        ("max_feature_idx", str(len(features) - 1)),
    ):
        if header.get(name) != wanted:
            raise InvalidData(f"the model's {name} is {header.get(name)!r}, not {wanted!r}")
    return features


def _tree(pairs: Mapping[str, str], at: int, features: int) -> TreeText:
    what = f"tree {at}"
    if pairs.get("num_cat") != "0":
        raise InvalidData(f"{what} has categorical splits; features are numbers here")
    if pairs.get("is_linear", "0") != "0":
        raise InvalidData(f"{what} has linear leaves; train with linear_tree=false")
    try:
        splits = int(pairs["num_leaves"]) - 1
        numbers = {name: _floats(pairs, name) for name in ("threshold", "internal_value")}
        whole = {name: _ints(pairs, name) for name in ("split_feature", "left_child")}
        whole |= {name: _ints(pairs, name) for name in ("right_child", "decision_type")}
        if splits >= LEAVES_MAX:
            raise ValueError(f"num_leaves is {splits + 1:,}; at most {LEAVES_MAX:,}")
        tree = TreeText(
            feature=_small(whole["split_feature"]),
            left=_small(whole["left_child"]),
            right=_small(whole["right_child"]),
            threshold=numbers["threshold"],
            value=numbers["internal_value"],
            leaf=_floats(pairs, "leaf_value"),
            gain=_floats(pairs, "split_gain"),
            split_count=_ints(pairs, "internal_count"),
            leaf_count=_ints(pairs, "leaf_count"),
        )
    except (KeyError, ValueError, OverflowError) as error:
        raise InvalidData(f"{what} cannot be read: {error}") from None
    _check_decisions(whole["decision_type"], what)
    _check_shape(tree, splits, features, what)
    return tree


def _floats(pairs: Mapping[str, str], name: str) -> Float64:
    values = np.array(pairs[name].split(), dtype=np.float64)
    if not np.isfinite(values).all():
        raise ValueError(f"{name} holds what is not finite")
    return values


def _ints(pairs: Mapping[str, str], name: str) -> Int64:
    return np.array(pairs[name].split(), dtype=np.int64)


def _small(values: Int64) -> Int32:
    """The same numbers; none of them becomes another one."""
    if ((values > LEAVES_MAX) | (values < -LEAVES_MAX)).any():
        raise ValueError(f"it names a feature or a child beyond {LEAVES_MAX:,}")
    return values.astype(np.int32)


def _check_decisions(decision_type: Int64, what: str) -> None:
    """Features are never missing, so NaN's own way is never gone; a zero's would be."""
    if (decision_type & _CATEGORICAL).any():
        raise InvalidData(f"{what} has categorical splits; features are numbers here")
    if ((decision_type & _MISSING) == _MISSING_ZERO).any():
        raise InvalidData(f"{what} takes zeros for missing; train with zero_as_missing=false")


def _check_shape(tree: TreeText, splits: int, features: int, what: str) -> None:
    lengths = (tree.feature, tree.left, tree.right, tree.threshold, tree.value, tree.gain,
               tree.split_count)  # fmt: skip
    if splits < 0 or tree.leaf.size != splits + 1 or any(a.size != splits for a in lengths):
        raise InvalidData(f"{what}: its lists do not have the lengths that num_leaves asks for")
    if splits and tree.leaf_count.size != splits + 1:
        raise InvalidData(f"{what}: leaf_count has {tree.leaf_count.size} values")
    if splits and not (tree.feature.min() >= 0 and tree.feature.max() < features):
        raise InvalidData(f"{what} splits on a feature that the model does not have")
    children = np.concatenate([tree.left, tree.right])
    # Each split but the root, and each leaf, hangs in one place, below a split with a smaller
    # number: that is a tree, and a walk down it ends.
    wanted = np.concatenate([np.arange(-splits - 1, 0), np.arange(1, splits)])
    parents = np.tile(np.arange(splits), 2)
    if splits and not np.array_equal(np.sort(children), np.sort(wanted)):
        raise InvalidData(f"{what}: its children do not make a tree")
    if (parents[children > 0] >= children[children > 0]).any():
        raise InvalidData(f"{what}: a split stands above its parent")


def _block(at: int, tree: TreeText) -> str:
    splits = tree.feature.size
    # Weights are not used by any reader of ours; counts stand in, so that no rounding shows.
    lines = [
        f"Tree={at}", f"num_leaves={splits + 1}", "num_cat=0",
        f"split_feature={_spaced(tree.feature)}", f"split_gain={_spaced(tree.gain)}",
        f"threshold={_spaced(tree.threshold)}",
        f"decision_type={' '.join([str(DECISION)] * splits)}",
        f"left_child={_spaced(tree.left)}", f"right_child={_spaced(tree.right)}",
        f"leaf_value={_spaced(tree.leaf)}", f"leaf_weight={_spaced(tree.leaf_count)}",
        f"leaf_count={_spaced(tree.leaf_count)}", f"internal_value={_spaced(tree.value)}",
        f"internal_weight={_spaced(tree.split_count)}",
        f"internal_count={_spaced(tree.split_count)}", "is_linear=0", "shrinkage=1", "", "", "",
    ]  # fmt: skip
    return "\n".join(lines)


def _spaced(values: Float64 | Int64 | Int32) -> str:
    return " ".join(map(repr, values.tolist()))
