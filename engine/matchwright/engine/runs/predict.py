"""What a plan will cost: pairs, seconds, bytes on the disk and in memory. Estimates, said to be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from matchwright.engine.matcher import OTHER
from matchwright.engine.models.description import RANKER_ROWS_MAX
from matchwright.engine.prepare import SnapshotLike
from matchwright.engine.records import Kind
from matchwright.engine.runs.plan import Plan

if TYPE_CHECKING:
    from matchwright.kernels.ops import Ops
    from matchwright.kernels.types import Corpus

ROW_BYTES, CONTRIBUTION_BYTES, QUERY_BYTES = 26, 4, 90
"""Of one result row, of one facet of it, and of one query, in Parquet."""
QUERY_SECONDS = 0.5e-3
"""Of one thread, to prepare a query and to write its answer."""
CANDIDATE_SECONDS, ENTITY_SECONDS = 4e-6, 0.15e-3
"""Of one thread, to make the features of one pair, and what it needs of each different candidate
(docs/measured.md); what the model takes is not in it."""
PROCESS_BYTES = 350 << 20
"""Of the interpreter with its libraries, and of units on their way."""


def predict(plan: Plan, snapshot: SnapshotLike, ops: Ops, processes: int = 1) -> dict[str, Any]:
    """Upper estimates: nobody knows before how many are eligible.

    Args:
        ops: the kernels of each process.
        processes: how many processes of this machine share the work.
    """
    d = snapshot.generation.d
    threads = ops.threads * processes
    options = plan.options
    queries = pairs = rows = 0
    seconds = 0.0
    for kind in options.kinds:
        corpus = plan.counts[OTHER[kind]]
        for unit in plan.units_of(kind):
            seconds += ops.scan_seconds(corpus, unit.queries, d) / processes
            queries += unit.queries
            pairs += unit.queries * corpus
            rows += unit.queries * min(options.k + options.slack, corpus)
    facets = len(plan.facets) if options.contributions else 0
    model_rows, model_calls, making = _second_phase(plan)
    return {
        "queries": queries,
        "pairs": pairs,
        "rows_at_most": rows,
        "bytes_at_most": rows * (ROW_BYTES + CONTRIBUTION_BYTES * facets) + queries * QUERY_BYTES,
        "seconds": round(seconds + (queries * QUERY_SECONDS + making) / threads, 1),
        **({} if plan.ranker is None else {"model_rows": model_rows, "model_calls": model_calls}),
        "memory_bytes": processes * (PROCESS_BYTES + ops.memory_bytes)
        + max(corpus_bytes(snapshot.corpus(OTHER[kind])) for kind in options.kinds),
        "device": ops.name,
        "threads": threads,
    }


def _second_phase(plan: Plan) -> tuple[int, int, float]:
    """(rows that the model is asked about, calls, seconds of one thread to make their features)."""
    rows = calls = 0
    shown: dict[Kind, int] = {}
    for unit in plan.units if plan.ranker is not None else ():
        some = unit.queries * min(plan.options.candidates, plan.counts[OTHER[unit.kind]])
        rows += some
        shown[unit.kind] = shown.get(unit.kind, 0) + some
        calls += -(-some // RANKER_ROWS_MAX)
    entities = sum(min(some, plan.counts[OTHER[kind]]) for kind, some in shown.items())
    return rows, calls, rows * CANDIDATE_SECONDS + entities * ENTITY_SECONDS


def corpus_bytes(corpus: Corpus) -> int:
    """Bytes of the arrays that are scanned; mapped, so that they can go when memory is short."""
    size = 0
    for segment, _ in corpus.parts:
        size += segment.x_nd.nbytes + segment.key_n.nbytes
        size += sum(array.nbytes for array in segment.scalars.values())
        size += sum(array.nbytes for array in segment.index.values())
        size += sum(column.start_n.nbytes + column.value.nbytes for column in segment.sets.values())
    return size
