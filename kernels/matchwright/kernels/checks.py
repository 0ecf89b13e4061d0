"""What a search refuses, and the empty result that it fills."""

from __future__ import annotations

import numpy as np

from matchwright.kernels.best import ROWS_MAX
from matchwright.kernels.rule_sets import RuleSets
from matchwright.kernels.types import (
    D_MAX,
    K_MAX,
    Q_ABS_MAX,
    Bitmap,
    Corpus,
    Counted,
    Queries,
    TopK,
)


def check(corpus: Corpus, queries: Queries, k: int) -> None:
    """Raise ValueError unless the sizes, dtypes and ranges fit the contract."""
    q, d = queries.q_qd.shape
    if queries.q_qd.dtype != np.int16 or queries.key_q.dtype != np.uint64:
        raise ValueError("queries need int16 q_qd and uint64 key_q")
    if queries.key_q.shape != (q,):
        raise ValueError(f"key_q has shape {queries.key_q.shape}, expected {(q,)}")
    if not 1 <= k <= K_MAX:
        raise ValueError(f"k is {k}, expected 1..{K_MAX}")
    if d > D_MAX:
        raise ValueError(f"D is {d}, expected at most {D_MAX}")
    if q and d and (queries.q_qd.max() > Q_ABS_MAX or queries.q_qd.min() < -Q_ABS_MAX):
        raise ValueError(f"q_qd has entries beyond ±{Q_ABS_MAX}")
    if corpus.n >= ROWS_MAX:
        raise ValueError(f"the corpus has {corpus.n:,} rows, expected fewer than {ROWS_MAX:,}")
    for segment, alive in corpus.parts:
        if segment.x_nd.dtype != np.int8 or segment.x_nd.shape[1] != d:
            raise ValueError(
                f"x_nd is {segment.x_nd.dtype} {segment.x_nd.shape}, expected int8 (N, {d})"
            )
        if alive is not None and alive.shape != (segment.n,):
            raise ValueError(f"alive has shape {alive.shape}, expected {(segment.n,)}")
    for group in () if isinstance(queries.groups, RuleSets) else queries.groups:
        if isinstance(group, Bitmap):
            _check_bitmap(group, corpus.n)
    _check_groups(queries)


def _check_bitmap(bitmap: Bitmap, n: int) -> None:
    bits, octets = bitmap.eligible_n, -(-n // 8)
    if bits.shape != ((n,) if bits.dtype == np.bool_ else (octets,)):
        raise ValueError(f"a bitmap has shape {bits.shape}, expected {(n,)}, packed {(octets,)}")
    if bits.dtype != np.bool_ and bits.dtype != np.uint8:
        raise ValueError(f"a bitmap is {bits.dtype}, expected bool or uint8")


def _check_groups(queries: Queries) -> None:
    q = queries.q
    if queries.group_q is None:
        if len(queries.groups) != 1:
            raise ValueError(f"{len(queries.groups)} groups need group_q")
    elif queries.group_q.shape != (q,):
        raise ValueError(f"group_q has shape {queries.group_q.shape}, expected {(q,)}")
    elif q and not 0 <= queries.group_q.min() <= queries.group_q.max() < len(queries.groups):
        raise ValueError(f"group_q points outside the {len(queries.groups)} groups")
    if queries.floor_q is not None and queries.floor_q.shape != (q,):
        raise ValueError(f"floor_q has shape {queries.floor_q.shape}, expected {(q,)}")


def empty_topk(q: int, k: int, counted: Counted) -> TopK:
    """A result without rows, to be filled in."""
    return TopK(
        row_qk=np.full((q, k), -1, dtype=np.int64),
        points_qk=np.zeros((q, k), dtype=np.int32),
        returned_q=np.zeros(q, dtype=np.int32),
        eligible_q=np.full(q, -1, dtype=np.int64),
        unverified_q=np.full(q, -1, dtype=np.int64),
        counted=counted,
    )
