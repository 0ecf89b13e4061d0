"""The answers of a block of queries, as arrays.

::

    prepare_block ── PreparedBlock ──> search ── Found ──> answer ── BlockAnswer ──> frames

The three steps are apart so that an executor can do them on different threads, and so that a
part of the corpus can be searched alone (``corpus``): incremental runs, shards.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from matchwright.engine.matcher import OTHER, facet_names, take_rows
from matchwright.engine.prepare import SnapshotLike
from matchwright.engine.records import Kind
from matchwright.engine.results import Shortfall
from matchwright.engine.runs.pinned import PinnedRanker
from matchwright.engine.runs.plan import RunOptions
from matchwright.engine.runs.prepare_block import PreparedBlock, prepare_block
from matchwright.engine.runs.second import Second, features_of
from matchwright.kernels.order import mix32
from matchwright.kernels.types import (
    Bool,
    Corpus,
    Float64,
    Int8,
    Int32,
    Int64,
    UInt8,
    UInt32,
    UInt64,
)

if TYPE_CHECKING:
    from matchwright.engine.matcher import Matcher
    from matchwright.kernels.ops import Ops

NOT_COUNTED = -1
FULL, ERROR = 0, 255
"""Codes beside those of shortfalls: K were returned; the query could not be asked."""
SHORTFALL_CODE: dict[str, int] = {str(why): n + 1 for n, why in enumerate(Shortfall)}
"""Shortfall -> its code in digests; the order of the enumeration is part of the format."""
CODE_SHORTFALL: dict[int, str] = {code: why for why, code in SHORTFALL_CODE.items()}

_LOW = np.uint64(0xFFFFFFFF)
_CHUNK_ROWS = 8_192
"""Rows whose products are held at a time while contributions are summed."""


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """What the kernels found for Q queries: at most ``depth`` rows each, best first.

    Attributes:
        depth: how many were asked for.
        start_q: int64 (Q + 1,), query q owns ``[start_q[q], start_q[q + 1])`` of what follows.
        key_m: uint64 (M,), keys of corpus rows.
        points_m: int32 (M,).
        eligible_q, unverified_q: int64 (Q,), -1 when not counted.
        seconds: in the kernels.
        row_m: int64 (M,), global rows of the snapshot's own corpus; None where another one was
            searched.
    """

    depth: int
    start_q: Int64
    key_m: UInt64
    points_m: Int32
    eligible_q: Int64
    unverified_q: Int64
    seconds: float
    row_m: Int64 | None = None

    @property
    def query_m(self) -> Int64:
        """int64 (M,), whose row each one is."""
        return np.repeat(np.arange(self.start_q.size - 1), np.diff(self.start_q))


@dataclass(frozen=True, slots=True, eq=False)
class BlockAnswer:
    """The answers of Q queries of one kind, as a struct of arrays.

    Rows of query q are ``[start_q[q], start_q[q + 1])``, best first; the first ``returned_q[q]``
    of them are its matches, the rest is slack. Those of a sub-corpus are the best of that.

    Attributes:
        kind: the kind that asks.
        epoch, generation, policy: names; ``policy`` is the effective one.
        k, depth: matches of a query at most, and rows (k + slack) at most.
        facets: names, in the order of the columns of contributions.
        query_ids: ids of the queries.
        key_q: uint64 (Q,), their keys.
        start_q: int64 (Q + 1,).
        returned_q: int32 (Q,).
        key_m: uint64 (M,), keys of corpus rows.
        id_m: strings (M,).
        points_m, score_m: int32 and float64 (M,); score = points * t.
        contributions_mb: int32 (M, B); B is 0 when not asked for. Slack rows have them too.
        eligible_q, unverified_q: int64 (Q,), -1 when not counted.
        shortfall_q: uint8 (Q,), see ``SHORTFALL_CODE``; 0: full, 255: error.
        errors: position -> reason of a query that could not be asked.
        t_q, attainable_q, resolution_q: float64, float64, int32 (Q,).
        print_qb: uint8 (Q, 16), of the question.
        horizon_set_q: bool (Q,), False where every eligible row is stored.
        horizon_points_q, horizon_mix_q, horizon_low_q: int32, uint32, uint32 (Q,): the order key
            of the last row.
        seconds: prepare, kernel, output.
        notes: further counts of this block; a run adds them up over its units (incremental ones
            say here what they could take over).
        features_cf: int32 (C, F), of the first M rows of each query, where the run's model has not
            yet been asked about them; else None.
        second: what the model made of it; None where the policy does not rerank.
    """

    kind: Kind
    epoch: str
    generation: str
    policy: str
    k: int
    depth: int
    facets: tuple[str, ...]
    query_ids: list[str]
    key_q: UInt64
    start_q: Int64
    returned_q: Int32
    key_m: UInt64
    id_m: pl.Series
    points_m: Int32
    score_m: Float64
    contributions_mb: Int32
    eligible_q: Int64
    unverified_q: Int64
    shortfall_q: UInt8
    errors: dict[int, str]
    t_q: Float64
    attainable_q: Float64
    resolution_q: Int32
    print_qb: UInt8
    horizon_set_q: Bool
    horizon_points_q: Int32
    horizon_mix_q: UInt32
    horizon_low_q: UInt32
    seconds: dict[str, float] = field(default_factory=dict)
    notes: dict[str, int] = field(default_factory=dict)
    features_cf: Int32 | None = None
    second: Second | None = None

    @property
    def q(self) -> int:
        return int(self.key_q.size)

    @property
    def query_m(self) -> Int64:
        """int64 (M,), whose row each one is."""
        return np.repeat(np.arange(self.q), np.diff(self.start_q))

    @property
    def rank_m(self) -> Int32:
        """int32 (M,), 1 for the best of a query; above ``returned`` for slack."""
        first = np.repeat(self.start_q[:-1], np.diff(self.start_q))
        return (np.arange(self.key_m.size) - first + 1).astype(np.int32)


def answer_block(
    matcher: Matcher,
    snapshot: SnapshotLike,
    kind: Kind,
    ids: Sequence[str],
    options: RunOptions,
    corpus: Corpus | None = None,
) -> BlockAnswer:
    """Prepare, search and put together in one go.

    Args:
        matcher: whose kernels are used.
        snapshot: the epoch.
        kind: the kind that asks.
        ids: who asks; the answer is in their order.
        options: of the run.
        corpus: searched in place of all of the other kind: any of its rows.
    """
    policy = options.policy.effective()
    prepared = prepare_block(snapshot, kind, ids, policy, options.as_of)
    found = search(matcher.ops, snapshot, prepared, options, corpus)
    return answer(snapshot, prepared, found, options, policy.id)


def search(
    ops: Ops,
    snapshot: SnapshotLike,
    prepared: PreparedBlock,
    options: RunOptions,
    corpus: Corpus | None = None,
) -> Found:
    """One kernel call for all queries of a block that can be asked."""
    own = corpus is None
    corpus = snapshot.corpus(OTHER[prepared.kind]) if corpus is None else corpus
    depth = options.k + options.slack
    ok = np.ones(prepared.q, dtype=np.bool_)
    ok[list(prepared.errors)] = False
    at = np.flatnonzero(ok)
    returned_q = np.zeros(prepared.q, dtype=np.int64)
    eligible_q = np.where(ok, NOT_COUNTED, 0).astype(np.int64)
    unverified_q = eligible_q.copy()
    row_m, points_m = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int32)
    began = time.perf_counter()
    if at.size and corpus.parts:
        top = ops.topk(corpus, prepared.queries(at), depth, count=options.count)
        seconds = time.perf_counter() - began
        returned_q[at] = top.returned_q
        eligible_q[at] = top.eligible_q
        unverified_q[at] = np.where(prepared.unsure_q[at], top.eligible_q, top.unverified_q)
        there = np.arange(depth) < top.returned_q[:, None]
        row_m, points_m = top.row_qk[there], top.points_qk[there]
    else:
        seconds = time.perf_counter() - began
        if options.count:
            eligible_q[:] = unverified_q[:] = 0
    start_q = np.concatenate([[0], np.cumsum(returned_q)]).astype(np.int64)
    return Found(
        depth,
        start_q,
        keys_of(corpus, row_m),
        points_m,
        eligible_q,
        unverified_q,
        seconds,
        row_m if own else None,
    )


def answer(
    snapshot: SnapshotLike,
    prepared: PreparedBlock,
    found: Found,
    options: RunOptions,
    policy_id: str,
    ranker: PinnedRanker | None = None,
) -> BlockAnswer:
    """What was found, with ids, scores and contributions, and features where there is a ranker.

    Args:
        found: rows of any corpus that holds rows of the snapshot's.
    """
    corpus = snapshot.corpus(OTHER[prepared.kind])
    began = time.perf_counter()
    row_u, place_m = _distinct_rows(corpus, found)
    made = _first_phase(snapshot, prepared, found, options, policy_id, row_u, place_m)
    made.seconds["output"] = time.perf_counter() - began
    if ranker is None:
        return made
    began = time.perf_counter()
    policy, day = options.policy.effective(), options.as_of
    row_m = row_u[place_m]
    features = features_of(ranker, snapshot, prepared, policy, day, found.start_q, row_m)
    made.seconds["features"] = time.perf_counter() - began
    return replace(made, features_cf=features)


def _distinct_rows(corpus: Corpus, found: Found) -> tuple[Int64, Int64]:
    """(int64 (U,) global rows that were found, int64 (M,) which of them each one is)."""
    if found.row_m is not None:
        row_u, place_m = np.unique(found.row_m, return_inverse=True)
        return row_u, place_m
    unique, place_m = np.unique(found.key_m, return_inverse=True)
    return rows_with_keys(corpus, unique), place_m


def _first_phase(
    snapshot: SnapshotLike,
    prepared: PreparedBlock,
    found: Found,
    options: RunOptions,
    policy_id: str,
    row_u: Int64,
    place_m: Int64,
) -> BlockAnswer:
    corpus = snapshot.corpus(OTHER[prepared.kind])
    count_q = np.diff(found.start_q)
    query_m = found.query_m
    ids = pl.Series("id", snapshot.ids_of(OTHER[prepared.kind], row_u), dtype=pl.String)
    horizon = _horizon(prepared, found)
    facets = facet_names(snapshot)
    parts = np.zeros((found.key_m.size, 0), dtype=np.int32)
    if options.contributions:
        x_ud, _ = take_rows(corpus, row_u, prepared.q_qd.shape[1])
        parts = contributions(x_ud, place_m, prepared.q_qd, query_m, snapshot.generation.offsets)
    return BlockAnswer(
        kind=prepared.kind,
        epoch=str(snapshot.epoch),
        generation=snapshot.generation.id,
        policy=policy_id,
        k=options.k,
        depth=found.depth,
        facets=facets if options.contributions else (),
        query_ids=prepared.ids,
        key_q=prepared.key_q,
        start_q=found.start_q,
        returned_q=np.minimum(count_q, options.k).astype(np.int32),
        key_m=found.key_m,
        id_m=ids.gather(place_m),
        points_m=found.points_m,
        score_m=found.points_m.astype(np.float64) * prepared.t_q[query_m],
        contributions_mb=parts,
        eligible_q=found.eligible_q,
        unverified_q=found.unverified_q,
        shortfall_q=_shortfall(prepared, count_q, options.k, _any_living(corpus)),
        errors={n: error.reason for n, error in prepared.errors.items()},
        t_q=prepared.t_q,
        attainable_q=prepared.attainable_q,
        resolution_q=prepared.resolution_q,
        print_qb=prepared.print_qb,
        horizon_set_q=horizon[0],
        horizon_points_q=horizon[1],
        horizon_mix_q=horizon[2],
        horizon_low_q=horizon[3],
        seconds={"prepare": prepared.seconds, "kernel": found.seconds},
    )


def _horizon(prepared: PreparedBlock, found: Found) -> tuple[Bool, Int32, UInt32, UInt32]:
    """(set, points, mix, low) of the last row of each query that was filled to its depth."""
    full = np.diff(found.start_q) == found.depth
    last = found.start_q[1:][full] - 1
    points = np.zeros(full.size, dtype=np.int32)
    mix, low = (np.zeros(full.size, dtype=np.uint32) for _ in range(2))
    points[full] = found.points_m[last]
    mix[full] = mix32(prepared.key_q[full], found.key_m[last])
    low[full] = (found.key_m[last] & _LOW).astype(np.uint32)
    return full, points, mix, low


def _shortfall(prepared: PreparedBlock, count_q: Int64, k: int, living: bool) -> UInt8:
    codes = np.full(prepared.q, SHORTFALL_CODE[Shortfall.FEW_ELIGIBLE], dtype=np.uint8)
    codes[prepared.never_q] = SHORTFALL_CODE[Shortfall.QUERY_VETOED]
    if not living:
        codes[:] = SHORTFALL_CODE[Shortfall.EMPTY_CORPUS]
    codes[count_q >= k] = FULL
    codes[list(prepared.errors)] = ERROR
    return codes


def _any_living(corpus: Corpus) -> bool:
    return any(segment.n and (alive is None or alive.any()) for segment, alive in corpus.parts)


def keys_of(corpus: Corpus, rows: Int64) -> UInt64:
    """uint64 keys of global rows, in their order."""
    key_m = np.zeros(rows.size, dtype=np.uint64)
    part_m = np.searchsorted(corpus.base, rows, side="right") - 1
    for part in np.unique(part_m).tolist():
        here = np.flatnonzero(part_m == part)
        key_m[here] = corpus.parts[part][0].key_n[rows[here] - corpus.base[part]]
    return key_m


def rows_with_keys(corpus: Corpus, keys: UInt64) -> Int64:
    """int64 global rows of living keys, all of which are there.

    Raises:
        KeyError: a key that the corpus does not have.
    """
    rows = np.full(keys.size, -1, dtype=np.int64)
    order = np.argsort(keys, kind="stable")
    wanted = keys[order]
    for (segment, alive), base in zip(corpus.parts, corpus.base.tolist(), strict=False):
        if not segment.n or not wanted.size:
            continue
        place = np.minimum(np.searchsorted(wanted, segment.key_n), wanted.size - 1)
        hit = wanted[place] == segment.key_n
        if alive is not None:
            hit &= alive
        local = np.flatnonzero(hit)
        rows[order[place[local]]] = base + local
    if (rows < 0).any():
        raise KeyError(f"{int((rows < 0).sum())} keys are not in the corpus")
    return rows


def contributions(
    x_ud: Int8, place_m: Int64, q_qd: Any, query_m: Int64, offsets: Sequence[int]
) -> Int32:
    """Points by facet, int32 (M, B): row m is ``x_ud[place_m[m]]`` under ``q_qd[query_m[m]]``."""
    out = np.zeros((place_m.size, len(offsets) - 1), dtype=np.int32)
    wide = [b for b in range(len(offsets) - 1) if offsets[b + 1] > offsets[b]]
    if not wide:
        return out
    starts = [offsets[b] for b in wide]
    for low in range(0, place_m.size, _CHUNK_ROWS):
        rows = slice(low, low + _CHUNK_ROWS)
        product = x_ud[place_m[rows]].astype(np.int32)
        product *= q_qd[query_m[rows]]
        out[rows, wide] = np.add.reduceat(product, starts, axis=1, dtype=np.int32)
    return out
