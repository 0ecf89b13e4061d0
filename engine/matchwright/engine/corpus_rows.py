"""Rows of a corpus by their global numbers, and the keys that order them."""

from __future__ import annotations

from typing import Any

import numpy as np

from matchwright.engine.results import OrderKey
from matchwright.kernels.order import mix32
from matchwright.kernels.types import Corpus, Int8, Int64, UInt64


def take_rows(corpus: Corpus, rows: Int64, d: int) -> tuple[Int8, UInt64]:
    """(x int8 (M, D), keys uint64 (M,)) of global rows, in their order; D is ``d``."""
    x_nd = np.zeros((rows.size, d), dtype=np.int8)
    key_n = np.zeros(rows.size, dtype=np.uint64)
    part_m = np.searchsorted(corpus.base, rows, side="right") - 1
    for part in np.unique(part_m).tolist():
        here = np.flatnonzero(part_m == part)
        segment, local = corpus.parts[part][0], rows[here] - corpus.base[part]
        x_nd[here], key_n[here] = segment.x_nd[local], segment.key_n[local]
    return x_nd, key_n


def order_key(query_key: int, points: Any, corpus_key: Any) -> OrderKey:
    """The 96-bit key by which a pair is ordered."""
    mix = int(mix32(query_key, np.array([corpus_key], dtype=np.uint64))[0])
    return OrderKey(int(points), mix, int(corpus_key) & 0xFFFFFFFF)
