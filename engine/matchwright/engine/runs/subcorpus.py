"""Some rows of a corpus as a corpus of their own: one segment, however many they came from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from matchwright.kernels.index import build_index
from matchwright.kernels.types import Corpus, Int8, Int32, Int64, Segment, SetColumn, UInt64


def living_rows(corpus: Corpus) -> Int64:
    """Global rows that are alive, ascending, int64."""
    found = [
        base + (np.arange(segment.n) if alive is None else np.flatnonzero(alive))
        for (segment, alive), base in zip(corpus.parts, corpus.base[:-1].tolist(), strict=True)
    ]
    return np.concatenate(found).astype(np.int64) if found else np.zeros(0, dtype=np.int64)


def keys_at(corpus: Corpus, rows: Int64) -> UInt64:
    """uint64 keys of global rows, in their order."""
    key_m = np.zeros(rows.size, dtype=np.uint64)
    for segment, here, local in split_rows(corpus, rows):
        key_m[here] = segment.key_n[local]
    return key_m


def split_rows(corpus: Corpus, rows: Int64) -> list[tuple[Segment, Int64, Int64]]:
    """(segment, positions in ``rows``, rows within the segment) for each part that holds some.

    Raises:
        IndexError: a row that the corpus does not have.
    """
    if rows.size and (rows.min() < 0 or rows.max() >= corpus.n):
        raise IndexError(f"rows outside 0..{corpus.n - 1}")
    part_m = np.searchsorted(corpus.base, rows, side="right") - 1
    split = []
    for part in np.unique(part_m).tolist():
        here = np.flatnonzero(part_m == part)
        split.append((corpus.parts[part][0], here, rows[here] - corpus.base[part]))
    return split


def gather(corpus: Corpus, rows: Int64, *, index: bool = False) -> Segment:
    """Global rows as one segment, in their order; its row n is ``rows[n]``.

    Args:
        index: also build the indexes that make rules cheap.
    """
    first = corpus.parts[0][0]
    split = split_rows(corpus, rows)
    x_nd: Int8 = np.zeros((rows.size, first.x_nd.shape[1]), dtype=np.int8)
    key_n = np.zeros(rows.size, dtype=np.uint64)
    scalars: dict[str, Int32] = {
        name: np.zeros(rows.size, dtype=np.int32) for name in first.scalars
    }
    for segment, here, local in split:
        x_nd[here], key_n[here] = segment.x_nd[local], segment.key_n[local]
        for name, column in scalars.items():
            column[here] = segment.scalars[name][local]
    sets = {name: _gather_sets(name, split, rows.size) for name in first.sets}
    built = build_index(scalars, sets, x_nd, key_n) if index and rows.size else {}
    return Segment(x_nd, key_n, scalars, sets, built)


def as_corpus(segment: Segment) -> Corpus:
    """A corpus of one segment whose rows are all alive."""
    return Corpus(((segment, None),))


def _gather_sets(name: str, split: Sequence[tuple[Segment, Int64, Int64]], n: int) -> SetColumn:
    size_n, known_n = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.bool_)
    for segment, here, local in split:
        column = segment.sets[name]
        size_n[here] = column.start_n[local + 1] - column.start_n[local]
        known_n[here] = column.known_n[local]
    start_n = np.concatenate([[0], np.cumsum(size_n)]).astype(np.int64)
    value = np.zeros(int(start_n[-1]), dtype=np.uint64)
    for segment, here, local in split:
        column = segment.sets[name]
        value[spans(start_n[here], size_n[here])] = column.value[
            spans(column.start_n[local], size_n[here])
        ]
    return SetColumn(start_n, value, known_n)


def spans(start_m: Int64, size_m: Int64) -> Int64:
    """Positions of spans one after the other: ``start_m[i] .. start_m[i] + size_m[i]``."""
    total = int(size_m.sum())
    before = np.cumsum(size_m) - size_m
    positions: Int64 = np.arange(total, dtype=np.int64) + np.repeat(start_m - before, size_m)
    return positions
