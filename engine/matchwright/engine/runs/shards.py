"""A corpus cut into shards, and what the shards found merged again.

Every row's order key is a function of the stored row and the query alone, so the best rows of all
are the best of the best of each shard: the same rows in the same order, whatever the shards are.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from matchwright.engine.runs.block import NOT_COUNTED, Found
from matchwright.kernels.index import build_index
from matchwright.kernels.order import tie64
from matchwright.kernels.types import Bool, Corpus, Int32, Int64, Segment, SetColumn, UInt64

_WORD = np.int64(32)
_POINTS_MAX = np.int64(2**31 - 1)


def bounds(rows: int, number: int, of: int) -> tuple[int, int]:
    """First row and end of shard ``number`` of ``of``; shards differ by one row at most."""
    return rows * number // of, rows * (number + 1) // of


def shard(corpus: Corpus, number: int, of: int) -> Corpus:
    """The contiguous share of a corpus's global rows that one shard holds.

    Segments that lie within it stay as they are, mapped files with their indexes. Of those that
    are cut, vectors and columns stay mapped; sets are copied and the index is built anew.
    """
    first, end = bounds(corpus.n, number, of)
    parts: list[tuple[Segment, Bool | None]] = []
    for (segment, alive), base in zip(corpus.parts, corpus.base[:-1].tolist(), strict=True):
        low, high = max(first - base, 0), min(end - base, segment.n)
        if low >= high:
            continue
        if (low, high) == (0, segment.n):
            parts.append((segment, alive))
        else:
            parts.append((_cut(segment, low, high), None if alive is None else alive[low:high]))
    return Corpus(tuple(parts))


def _cut(segment: Segment, low: int, high: int) -> Segment:
    x_nd, key_n = segment.x_nd[low:high], segment.key_n[low:high]
    scalars = {name: column[low:high] for name, column in segment.scalars.items()}
    sets = {name: _cut_set(column, low, high) for name, column in segment.sets.items()}
    return Segment(x_nd, key_n, scalars, sets, build_index(scalars, sets, x_nd, key_n))


def _cut_set(column: SetColumn, low: int, high: int) -> SetColumn:
    start_n = np.asarray(column.start_n[low : high + 1])
    value = np.array(column.value[int(start_n[0]) : int(start_n[-1])])
    return SetColumn(start_n - start_n[0], value, column.known_n[low:high])


def merge_found(key_q: UInt64, parts: Sequence[Found]) -> Found:
    """What disjoint shards found, as one corpus would have given it.

    Args:
        key_q: uint64 (Q,), keys of the queries.
        parts: one of each shard, of the same depth; any order.
    """
    depth = parts[0].depth
    query_m = np.concatenate([part.query_m for part in parts])
    key_m = np.concatenate([part.key_m for part in parts])
    points_m = np.concatenate([part.points_m for part in parts])
    order = _best_first(key_q, query_m, key_m, points_m)
    size_q = np.bincount(query_m, minlength=key_q.size)
    first_q = np.cumsum(size_q) - size_q
    nth_m = np.arange(query_m.size) - np.repeat(first_q, size_q)
    best = order[nth_m < depth]
    start_q = np.concatenate([[0], np.cumsum(np.minimum(size_q, depth))]).astype(np.int64)
    return Found(
        depth=depth,
        start_q=start_q,
        key_m=key_m[best],
        points_m=points_m[best],
        eligible_q=_added([part.eligible_q for part in parts]),
        unverified_q=_added([part.unverified_q for part in parts]),
        seconds=max(part.seconds for part in parts),
    )


def _best_first(key_q: UInt64, query_m: Int64, key_m: UInt64, points_m: Int32) -> Int64:
    """Positions by query, then by the 96-bit key.

    Each shard's rows are in that order already, and a stable sort merges runs; ties of points,
    which are few, are decided afterwards.
    """
    word = (query_m << _WORD) | (_POINTS_MAX - points_m.astype(np.int64))
    order: Int64 = np.argsort(word, kind="stable")
    word = word[order]
    same = np.flatnonzero(word[1:] == word[:-1])
    tied = np.union1d(same, same + 1)
    who = order[tied]
    tie = tie64(key_q[query_m[who]], key_m[who])
    order[tied] = who[np.lexsort((tie, word[tied]))]
    return order


def _added(counts: Sequence[Int64]) -> Int64:
    """Counts add up; what one shard has not counted nobody knows."""
    stacked = np.stack(counts)
    total: Int64 = stacked.sum(axis=0, dtype=np.int64)
    return np.where((stacked == NOT_COUNTED).any(axis=0), NOT_COUNTED, total)
