"""The second phase of a block: features of its candidates, and the order that their scores give.

A query's *candidates* are its first M stored rows. Ordered by (model score, first-phase key),
descending, they come before the rows behind them, which keep their order; the first K are matches.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from matchwright.engine.eligibility import Compiled
from matchwright.engine.policy import Policy
from matchwright.engine.prepare import Prepared, SnapshotLike
from matchwright.engine.request import Request
from matchwright.engine.rerank.features import INDEX
from matchwright.engine.rerank.features_pairs import SHARED, FeatureMaker
from matchwright.engine.runs.pinned import PinnedRanker
from matchwright.engine.runs.prepare_block import PreparedBlock
from matchwright.kernels.types import Bool, Int32, Int64

if TYPE_CHECKING:
    from matchwright.engine.runs.block import BlockAnswer

NO_SCORE = -(1 << 31)
"""Stands for the score of a row that the model was not asked about; scores stay below 2^24."""
QUERIES_AT_ONCE = 256
"""Queries whose features are made together: what is shared by more is in the maker's pools."""


@dataclass(frozen=True, slots=True, eq=False)
class Second:
    """What the second phase made of a block with M rows.

    Attributes:
        first_rank_m: int32 (M,), rank in the first phase.
        score_m: int32 (M,), the model's, in units of its grid; ``NO_SCORE`` where it was not asked.
        degraded: position of a query -> why it is in the first phase's order.
        calls, seconds: of the model, for this block.
    """

    first_rank_m: Int32
    score_m: Int32
    degraded: Mapping[int, str] = field(default_factory=dict)
    calls: int = 0
    seconds: float = 0.0


def candidates_of(start_q: Int64, most: int) -> Bool:
    """bool (M,): which rows are among the first ``most`` of their query."""
    count_q = np.diff(start_q)
    place_m = np.arange(start_q[-1]) - np.repeat(start_q[:-1], count_q)
    return np.asarray(place_m < most)


def features_of(
    ranker: PinnedRanker,
    snapshot: SnapshotLike,
    prepared: PreparedBlock,
    policy: Policy,
    as_of: int,
    start_q: Int64,
    row_m: Int64,
    maker: FeatureMaker = SHARED,
) -> Int32:
    """int32 (C, F): features of all candidates of a block, query after query, as the model takes
    them.

    Args:
        policy: the effective one, whose section ``rerank`` says how many candidates there are.
        row_m: int64 (M,), global rows of everything that was found, best first.

    Raises:
        ModelUnavailable, ModelLate, ModelWrong: a text that a served encoder has not encoded.
    """
    assert policy.rerank is not None
    stop_q = np.minimum(start_q[1:], start_q[:-1] + policy.rerank.candidates)
    columns = np.array([INDEX[name] for name in ranker.features], dtype=np.int64)
    made = [np.zeros((0, columns.size), dtype=np.int32)]
    asking = np.flatnonzero(stop_q > start_q[:-1])
    for low in range(0, asking.size, QUERIES_AT_ONCE):
        at = asking[low : low + QUERIES_AT_ONCE].tolist()
        queries = [_query(prepared, n, policy, as_of) for n in at]
        rows = [row_m[start_q[n] : stop_q[n]] for n in at]
        part = maker.make(snapshot, queries, rows, names=ranker.asked)
        made.append(part[:, columns])
    return np.concatenate(made)


def _query(prepared: PreparedBlock, n: int, policy: Policy, as_of: int) -> Prepared:
    """One query of a block, as far as features read it; its rules have done their work."""
    return Prepared(
        request=Request(kind=prepared.kind, id=prepared.ids[n], as_of=as_of),
        policy=policy,
        record=prepared.records[n],
        query_id=prepared.ids[n],
        key=int(prepared.key_q[n]),
        compiled=Compiled(()),
        rules=(),
        q_d=prepared.q_qd[n],
        t=float(prepared.t_q[n]),
        resolution=int(prepared.resolution_q[n]),
        attainable=float(prepared.attainable_q[n]),
    )


def second_order(start_q: Int64, candidate_m: Bool, score_m: Int32) -> Int64:
    """int64 (M,): rows of a block in the order of the second phase, query after query."""
    query_m = np.repeat(np.arange(start_q.size - 1), np.diff(start_q))
    score = np.where(candidate_m, -score_m.astype(np.int64), 0)
    # Rows stand in the order of their first-phase keys: a stable sort breaks ties so.
    return np.lexsort((score, ~candidate_m, query_m))


def reordered(answer: BlockAnswer, scores_c: Int32, most: int, **more: Any) -> BlockAnswer:
    """A block in the order of its model.

    Args:
        answer: of the first phase.
        scores_c: int32 (C,), of all candidates, query after query.
        most: how many candidates a query has at most.
        more: further fields of ``Second``.
    """
    candidate_m = candidates_of(answer.start_q, most)
    score_m = np.full(candidate_m.size, NO_SCORE, dtype=np.int32)
    score_m[candidate_m] = scores_c
    order = second_order(answer.start_q, candidate_m, score_m)
    second = Second(answer.rank_m[order], score_m[order], **more)
    return replace(
        answer,
        key_m=answer.key_m[order],
        id_m=answer.id_m.gather(order),
        points_m=answer.points_m[order],
        score_m=answer.score_m[order],
        contributions_mb=answer.contributions_mb[order],
        features_cf=None,
        second=second,
    )


def returned_candidates(answer: BlockAnswer, scores_c: Int32, most: int) -> Int64:
    """int64, ascending: which candidates, of all of a block, are among its matches."""
    candidate_m = candidates_of(answer.start_q, most)
    score_m = np.full(candidate_m.size, NO_SCORE, dtype=np.int32)
    score_m[candidate_m] = scores_c
    order = second_order(answer.start_q, candidate_m, score_m)
    place_m = np.arange(order.size) - np.repeat(answer.start_q[:-1], np.diff(answer.start_q))
    shown = np.zeros(order.size, dtype=np.bool_)
    shown[order[place_m < answer.k]] = True
    return np.flatnonzero(shown[candidate_m])


def degraded(answer: BlockAnswer, why: str, **more: Any) -> BlockAnswer:
    """A block in the order of the first phase, every query that has candidates marked."""
    marked = dict.fromkeys(np.flatnonzero(np.diff(answer.start_q)).tolist(), why)
    scores = np.full(answer.key_m.size, NO_SCORE, dtype=np.int32)
    second = Second(answer.rank_m, scores, marked, **more)
    return replace(answer, features_cf=None, second=second)
