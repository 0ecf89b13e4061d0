"""Which leaf a row comes to, for many rows and trees at once. NumPy only.

Two ways, the same answer. ``BitWalk`` (QuickScorer: Lucchese et al., SIGIR 2015) keeps a word of 64
bits for each tree, one bit for each leaf from left to right. A split that a row fails (its feature
is above the threshold) cannot lead to its left leaves, so it clears their bits; the lowest bit left
is the leaf. The masks of all splits on one feature are and-ed together beforehand for each interval
between thresholds: a row costs one look-up and one AND of T words for each feature, however deep
the trees are. ``StepWalk`` goes down all trees one level at a time; it takes trees of any size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from matchwright.kernels.types import Int32, Int64, UInt64

BITS_LEAVES_MAX = 64
BITS_BYTES_MAX = 64 << 20
_ALL = np.uint64(0xFFFF_FFFF_FFFF_FFFF)
_EXPONENT_BIAS = 1_023


@dataclass(frozen=True, eq=False)
class Splits:
    """The splits of one tree: (I,) int32 each. A row goes left where f <= threshold, integers.

    Children as in LightGBM: >= 0 a split of this tree, ~child a leaf of it.
    """

    feature: Int32
    threshold: Int32
    left: Int32
    right: Int32


class Walk(Protocol):
    """Finds leaves."""

    def leaves(self, f_nf: Int32) -> Int64:
        """int64 (N, T): the leaf of each row in each tree, counted within the tree."""
        ...


def walk_of(trees: Sequence[Splits], features: int) -> Walk:
    """The quick way where it fits: trees of up to 64 leaves, and a table within its budget."""
    small = all(tree.feature.size < BITS_LEAVES_MAX for tree in trees)
    return BitWalk(trees, features) if small and _bytes(trees, features) else StepWalk(trees)


def _bytes(trees: Sequence[Splits], features: int) -> bool:
    intervals = sum(thresholds.size + 1 for thresholds in _thresholds(trees, features))
    return 8 * len(trees) * intervals <= BITS_BYTES_MAX


def _thresholds(trees: Sequence[Splits], features: int) -> list[Int32]:
    """Of each feature, ascending, each once."""
    feature = np.concatenate([tree.feature for tree in trees])
    threshold = np.concatenate([tree.threshold for tree in trees])
    return [np.unique(threshold[feature == f]) for f in range(features)]


def leaf_ranges(tree: Splits) -> tuple[Int32, Int64]:
    """Leaves from left to right (L,), and the place of the first leaf and the one beyond the last
    of each split's left side: (I, 2)."""
    order: list[int] = []
    ranges = np.zeros((tree.feature.size, 2), dtype=np.int64)
    stack: list[tuple[int, bool]] = [(0 if tree.feature.size else -1, False)]
    while stack:
        node, left_done = stack.pop()
        if node < 0:
            order.append(~node)
        elif left_done:
            ranges[node, 1] = len(order)
            stack.append((int(tree.right[node]), False))
        else:
            ranges[node, 0] = len(order)
            stack.append((node, True))
            stack.append((int(tree.left[node]), False))
    return np.array(order, dtype=np.int32), ranges


class BitWalk:
    """QuickScorer's bit masks, with one table for each feature that any tree asks about."""

    def __init__(self, trees: Sequence[Splits], features: int) -> None:
        self._leaf_tb = np.zeros((len(trees), BITS_LEAVES_MAX), dtype=np.int32)
        self._start_t = np.full(len(trees), _ALL, dtype=np.uint64)
        thresholds = _thresholds(trees, features)
        tables = [np.full((t.size + 1, len(trees)), _ALL, dtype=np.uint64) for t in thresholds]
        for at, tree in enumerate(trees):
            order, ranges = leaf_ranges(tree)
            self._leaf_tb[at, : order.size] = order
            for split, (low, beyond) in enumerate(ranges.tolist()):
                f = int(tree.feature[split])
                # Rows in the intervals above this threshold fail the split.
                above = int(np.searchsorted(thresholds[f], tree.threshold[split])) + 1
                cleared = ((1 << beyond) - 1) ^ ((1 << low) - 1)
                tables[f][above, at] &= np.uint64(cleared ^ int(_ALL))
        self._asked = [f for f in range(features) if thresholds[f].size]
        self._thresholds = [thresholds[f] for f in self._asked]
        self._tables = [np.bitwise_and.accumulate(tables[f], axis=0) for f in self._asked]

    def leaves(self, f_nf: Int32) -> Int64:
        """int64 (N, T)."""
        left_nt: UInt64 = np.repeat(self._start_t[None, :], len(f_nf), axis=0)
        for f, thresholds, table in zip(self._asked, self._thresholds, self._tables, strict=True):
            # side="left": a value that equals the threshold passes the split.
            left_nt &= table[np.searchsorted(thresholds, f_nf[:, f], side="left")]
        lowest = left_nt & (~left_nt + np.uint64(1))
        # A power of two is exact in float64: its exponent is the bit's number.
        bit: Int64 = (lowest.astype(np.float64).view(np.int64) >> 52) - _EXPONENT_BIAS
        leaf_nt: Int64 = self._leaf_tb[np.arange(bit.shape[1]), bit].astype(np.int64)
        return leaf_nt


class StepWalk:
    """All trees' nodes in flat arrays, leaves being nodes that lead to themselves."""

    def __init__(self, trees: Sequence[Splits]) -> None:
        splits = [tree.feature.size for tree in trees]
        nodes = np.concatenate([[0], np.cumsum([2 * count + 1 for count in splits])])
        self._root_t = nodes[:-1].astype(np.int64)
        self._leaf = np.zeros(nodes[-1], dtype=np.int64)
        self._feature = np.zeros(nodes[-1], dtype=np.int64)
        self._threshold = np.zeros(nodes[-1], dtype=np.int32)
        self._next = np.repeat(np.arange(nodes[-1], dtype=np.int64)[:, None], 2, axis=1)
        for tree, count, root in zip(trees, splits, self._root_t.tolist(), strict=True):
            own = slice(root, root + count)
            self._feature[own], self._threshold[own] = tree.feature, tree.threshold
            for side, child in enumerate((tree.left, tree.right)):
                self._next[own, side] = root + np.where(child >= 0, child, count + ~child)
            self._leaf[root + count : root + 2 * count + 1] = np.arange(count + 1)
        self._levels = max((_depth(tree) for tree in trees), default=0)

    def leaves(self, f_nf: Int32) -> Int64:
        """int64 (N, T)."""
        at_nt = np.repeat(self._root_t[None, :], len(f_nf), axis=0)
        rows = np.arange(len(f_nf))[:, None]
        for _ in range(self._levels):
            above = f_nf[rows, self._feature[at_nt]] > self._threshold[at_nt]
            at_nt = self._next[at_nt, above.astype(np.int64)]
        return self._leaf[at_nt]


def _depth(tree: Splits) -> int:
    """Splits on the longest way down; parents stand before their children."""
    depth = np.zeros(tree.feature.size + 1, dtype=np.int64)
    for split in range(tree.feature.size):
        for child in (int(tree.left[split]), int(tree.right[split])):
            if child >= 0:
                depth[child] = depth[split] + 1
    return int(depth.max()) + 1 if tree.feature.size else 0
