"""How well the other direction fits: the candidate asks, the entity that asked is the row.

The score is the exact one: what ``match`` would give that pair, asked the other way round under the
same policy and on the same day. A candidate's query vector is dear (its text is encoded and
every facet asked), so the most recent ones are kept, by everything that determines them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from matchwright.engine.corpus_rows import take_rows
from matchwright.engine.errors import ModelUnavailable
from matchwright.engine.policy import Policy
from matchwright.engine.prepare import Prepared, SnapshotLike
from matchwright.engine.records import Kind
from matchwright.engine.rerank.features_pool import KEEP, Arrays, RowPool
from matchwright.engine.table import Records
from matchwright.kernels.types import Float64, Int8, Int16, Int64

TEXT_NOT_KEPT = "ENCODER_TEXT_NOT_KEPT"
"""Why a text has no vector that no server could give: the record holds only its digest."""


def direction(policy: Policy, as_of: int) -> tuple[Any, ...]:
    """What of a policy and a day determines a query's vector."""
    return tuple(policy.weights.items()), repr(policy.facets), as_of


def query_vectors(
    snapshot: SnapshotLike,
    kind: Kind,
    policy: Policy,
    as_of: int,
    n: int,
    records: Callable[[Int64], Records],
    pool: RowPool,
    keys: Sequence[Any] | None,
    deadline: float | None = None,
) -> tuple[Int16, Float64]:
    """(int16 (N, D) vectors, float64 (N,) steps) of entities of ``kind`` as queries.

    Args:
        records: gives the records of some of the N.
        pool, keys: as ``RowPool.take``.
        deadline: moment of the monotonic clock until which a served encoder may take.

    Raises:
        ModelUnavailable: a served encoder would have to be asked for a text, and gave nothing.
    """

    def make(at: Int64) -> Arrays:
        generation, rows = snapshot.generation, records(at)
        text = generation.asked_text(rows, deadline)
        vectors = generation.query(kind, rows, policy.facets, as_of, text)
        q_nd, t_n = generation.quantise_plainly(vectors, kind, policy.weights)
        final = np.ones(at.size, dtype=np.bool_)
        if text is not None and policy.weights.get("text"):
            final[_unkept(text.missing)] = False
        return {"q": q_nd, "t": t_n, KEEP: final}

    rows = pool.take(keys, n, make)
    return rows["q"], rows["t"]


def _unkept(missing: Mapping[int, str]) -> list[int]:
    """Who asks without its text because nobody has it any more, as in a request of its own.

    Its vector may come later, with another record of the same text, so it is not kept.

    Raises:
        ModelUnavailable: the encoder should have been asked for another, and was not.
    """
    for why in missing.values():
        if why != TEXT_NOT_KEPT:
            raise ModelUnavailable(f"the reciprocal fit needs the encoder: {why}", model="encoder")
    return list(missing)


def rows_of_queries(snapshot: SnapshotLike, prepared: Sequence[Prepared]) -> Int8:
    """int8 (Q, D): queries of one kind as rows of their own corpus; stored ones as stored."""
    kind = prepared[0].request.kind
    x_qd = np.zeros((len(prepared), prepared[0].q_d.size), dtype=np.int8)
    stored = [n for n, query in enumerate(prepared) if query.request.record is None]
    inline = [n for n, query in enumerate(prepared) if query.request.record is not None]
    if stored:
        rows = snapshot.rows_of(kind, [str(prepared[n].request.id) for n in stored])
        x_qd[stored], _ = take_rows(snapshot.corpus(kind), rows, x_qd.shape[1])
    if inline:
        records = [dict(prepared[n].record) for n in inline]
        x_qd[inline] = snapshot.generation.encode(kind, records).x_nd
    return x_qd


def reciprocal_points(q_md: Int16, x_d: Int8) -> Int64:
    """int64 (M,): points of one row under M queries.

    Float64 sums of these integers stay below 2^53, so they are exact in any order.
    """
    return np.asarray((q_md.astype(np.float64) @ x_d.astype(np.float64)).astype(np.int64))
