"""Corpora and queries of the device tests."""

from __future__ import annotations

import numpy as np

from matchwright.kernels.cupy_ops import no_device_reason
from matchwright.kernels.types import Bitmap, Corpus, InRange, Queries, Segment

NO_DEVICE = no_device_reason()


def a_corpus(rng, sizes, d, spread=127, dead=0.1):
    keys = np.unique(rng.integers(0, 2**63, sum(sizes) + 99, dtype=np.uint64))
    rng.shuffle(keys)
    parts, at = [], 0
    for i, n in enumerate(sizes):
        x_nd = rng.integers(-spread, spread + 1, (n, d)).astype(np.int8)
        scalars = {"rate": rng.integers(0, 100, n).astype(np.int32)}
        segment = Segment(x_nd, keys[at : at + n], scalars=scalars)
        parts.append((segment, None if i % 2 else rng.random(n) >= dead))
        at += n
    return Corpus(tuple(parts))


def some_queries(rng, corpus, q, d, *, groups=None, floor=False, most=16_255):
    groups = groups or [()]
    return Queries(
        q_qd=rng.integers(-most, most + 1, (q, d)).astype(np.int16),
        key_q=rng.integers(0, 2**63, q, dtype=np.uint64),
        groups=groups,
        group_q=rng.integers(0, len(groups), q).astype(np.int32),
        floor_q=rng.integers(-(2**24), 2**24, q) if floor else None,
    )


def some_groups(rng, corpus):
    return [
        (),
        (InRange("rate", 0, 9, "RATE"),),
        (InRange("rate", 101, 200, "RATE"),),
        Bitmap(rng.random(corpus.n) < 0.5),
        Bitmap(rng.random(corpus.n) < 0.01),
    ]
