"""``run start --changed-since RUN``: what changed against everything, all else from what is stored.

A query is *unchanged* when its print is the one of the earlier run, under one generation and one
effective policy: the same vector, scale, key and rules. Its stored rows that nobody touched still
have the same points and still pass the same rules. What may join them is the best of the *fresh*
rows, the new and the edited ones. Both are merged and cut at the stored horizon (``merge``): when K
are left, or when there was no horizon, that is the answer. Else the query is asked in full.

So a run scores (unchanged queries x fresh rows) + (other queries x all rows), and its digest is
that of a full run.
"""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from matchwright.engine.matcher import OTHER
from matchwright.engine.prepare import SnapshotLike
from matchwright.engine.records import Kind
from matchwright.engine.runs.base import Base
from matchwright.engine.runs.block import NOT_COUNTED, BlockAnswer, Found, answer, keys_of
from matchwright.engine.runs.execute import LocalExecutor
from matchwright.engine.runs.fingerprint import Changes, changes, prints_of
from matchwright.engine.runs.merge import NO_HITS, Hits, Horizons, Merged, merge, starts_of
from matchwright.engine.runs.plan import Plan
from matchwright.engine.runs.prepare_block import PreparedBlock
from matchwright.engine.runs.subcorpus import as_corpus, gather
from matchwright.engine.runs.tally import (
    CHANGED,
    ERRORS,
    MERGED,
    NEW,
    PAIRS,
    TALLIES,
    UNUSABLE,
    USED_UP,
)
from matchwright.kernels.ops import Ops
from matchwright.kernels.types import Bool, Corpus, Int64, Queries, Rules, TopK, UInt64

LOWEST = -(1 << 31)
RARE = 0.5
"""Fresh rows that reach a query's horizon, expected by their share: where they are rarer, a look at
points alone spares most queries the work on their rules."""
HORIZON = ("set_q", "points_q", "mix_q", "low_q")
ANOTHER_DAY = (
    "the base is of another day, and questions that depend on the day are asked anew; with the "
    "same --as-of, or a policy whose recency weighs 0, those that did not change are not"
)


@dataclass(frozen=True, slots=True, eq=False)
class Searched:
    """One kind's corpus, beside what it was.

    Attributes:
        corpus: all of it.
        fresh: its new and edited rows, a corpus of their own.
        same_keys: uint64, ascending: keys of rows that are what they were.
        changes: what changed.
    """

    corpus: Corpus
    fresh: Corpus
    same_keys: UInt64
    changes: Changes


class Incremental:
    """Answers blocks of queries from an earlier run where that is exact. Thread-safe.

    Args:
        ops: the kernels.
        snapshot: the epoch of the new run.
        plan: of the new run.
        base: the earlier run.
    """

    def __init__(
        self,
        ops: Ops,
        snapshot: SnapshotLike,
        plan: Plan,
        base: Base,
    ) -> None:
        self.ops = ops
        self.snapshot = snapshot
        self.plan = plan
        self.base = base
        self.why: dict[Kind, str] = {}
        self._searched: dict[Kind, Searched] = {}
        for kind in plan.options.kinds:
            self.why[kind] = base.unusable(plan, kind)
            if not self.why[kind]:
                self._compare(kind)

    def _compare(self, kind: Kind) -> None:
        """What changed among those whom a kind searches."""
        other = OTHER[kind]
        corpus, before = self.snapshot.corpus(other), self.base.prints(other)
        assert before is not None, "base.unusable looked"
        after = prints_of(corpus)
        if before.layout != after.layout:
            self.why[kind] = f"the columns of {other}s are others"
            return
        found = changes(before, after)
        moved = np.concatenate([found.new_keys, found.edited_keys])
        rows = found.fresh_rows
        fresh = as_corpus(gather(corpus, rows, index=True)) if rows.size else Corpus(())
        same = np.setdiff1d(after.key_n, moved, assume_unique=True)
        self._searched[kind] = Searched(corpus, fresh, same, found)

    @property
    def about(self) -> dict[str, Any]:
        """What changed, and why the base does not help where it does not; for run.json."""
        document: dict[str, Any] = {
            "changes": {OTHER[kind]: one.changes.to_dict() for kind, one in self._searched.items()},
            "unusable": {kind: why for kind, why in self.why.items() if why},
        }
        if self.base.plan.options.as_of != self.plan.options.as_of:
            document["note"] = ANOTHER_DAY
        return document

    def answer(self, prepared: PreparedBlock) -> tuple[BlockAnswer, Counter[str]]:
        """The answers of a block, and what they took (``TALLIES``)."""
        tally: Counter[str] = Counter(dict.fromkeys(TALLIES, 0))
        began = time.perf_counter()
        found, horizons = self.search(prepared, tally)
        seconds = time.perf_counter() - began
        found = dataclasses.replace(found, seconds=seconds)
        plan = self.plan
        made = answer(self.snapshot, prepared, found, plan.options, plan.policy_id, plan.ranker)
        return _with_horizons(made, horizons), tally

    def search(self, prepared: PreparedBlock, tally: Counter[str]) -> tuple[Found, Horizons]:
        """The best rows of every query; horizons are set where merging found them."""
        options, depth = self.plan.options, self.plan.options.k + self.plan.options.slack
        asked = np.ones(prepared.q, dtype=np.bool_)
        asked[list(prepared.errors)] = False
        tally[ERRORS] += int((~asked).sum())
        eligible_q = np.where(asked, NOT_COUNTED, 0).astype(np.int64)
        unverified_q = eligible_q.copy()
        at, merged = self._from_base(prepared, asked, depth, tally)
        done, horizons = at[merged.exact_q], _no_horizons(prepared.q)
        _copy_horizons(merged, horizons, at)
        if options.count:
            self._count(prepared, done, eligible_q, unverified_q)
        asked[done] = False
        kept = merged.hits.take(merged.exact_q[merged.hits.query_m])
        merged_hits = Hits(at[kept.query_m], kept.key_m, kept.points_m)
        full = self._full(prepared, np.flatnonzero(asked), eligible_q, unverified_q, tally)
        hits = Hits.joined(merged_hits, full)
        hits = hits.take(np.argsort(hits.query_m, kind="stable"))
        start_q = starts_of(hits.query_m, prepared.q)
        found = Found(depth, start_q, hits.key_m, hits.points_m, eligible_q, unverified_q, 0.0)
        return found, horizons

    def _from_base(
        self, prepared: PreparedBlock, asked: Bool, depth: int, tally: Counter[str]
    ) -> tuple[Int64, Merged]:
        """(positions of unchanged queries, what stored and fresh rows give for them)."""
        searched = self._searched.get(prepared.kind)
        if searched is None:
            tally[UNUSABLE] += int(asked.sum())
            return np.zeros(0, dtype=np.int64), _nothing_merged(depth)
        stored = self.base.stored(prepared.kind, prepared.key_q)
        prints = [one.tobytes() for one in prepared.print_qb]
        equal = np.array(
            [mine == other for mine, other in zip(prints, stored.print_q, strict=True)],
            dtype=np.bool_,
        )
        unchanged = asked & stored.known_q & equal
        tally[NEW] += int((asked & ~stored.known_q).sum())
        tally[CHANGED] += int((asked & stored.known_q & ~equal).sum())
        at = np.flatnonzero(unchanged)
        place = np.full(prepared.q, -1, dtype=np.int64)
        place[at] = np.arange(at.size)
        mine = unchanged[stored.hits.query_m] & _among(searched.same_keys, stored.hits.key_m)
        kept = stored.hits.take(mine)
        kept = Hits(place[kept.query_m], kept.key_m, kept.points_m)
        horizons = stored.horizons.take(at)
        fresh = self._fresh(searched, prepared, at, horizons, depth, tally)
        needed = self._needed(prepared.kind, depth)
        merged = merge(prepared.key_q[at], kept, fresh, horizons, k=needed, keep=depth)
        tally[MERGED] += int(merged.exact_q.sum())
        tally[USED_UP] += int((~merged.exact_q).sum())
        return at, merged

    def _needed(self, kind: Kind, depth: int) -> int:
        """Rows that must be known of an answer: K, or all candidates of a model; all that are
        stored, where the exposure pass reads the slack."""
        options = self.plan.options
        ask = options.policy.exposure
        if ask is not None and kind in ask.asking:
            return depth
        return max(options.k, options.candidates)

    def _fresh(
        self,
        searched: Searched,
        prepared: PreparedBlock,
        at: Int64,
        horizons: Horizons,
        depth: int,
        tally: Counter[str],
    ) -> Hits:
        """The best new and edited rows of queries: those that reach the points of their horizon."""
        rows = searched.fresh.n
        if not at.size or not rows:
            return NO_HITS
        floor = np.where(horizons.set_q, horizons.points_q.astype(np.int64), LOWEST)
        here = np.arange(at.size)
        if rows * depth < RARE * searched.corpus.n:
            here = self._near(searched.fresh, prepared, at, floor)
            tally[PAIRS] += at.size * rows
        if not here.size:
            return NO_HITS
        queries = dataclasses.replace(prepared.queries(at[here]), floor_q=floor[here])
        tally[PAIRS] += here.size * rows
        top = self.ops.topk(searched.fresh, queries, depth, count=False)
        return _hits(searched.fresh, top, here)

    def _near(self, fresh: Corpus, prepared: PreparedBlock, at: Int64, floor: Int64) -> Int64:
        """Which queries have a fresh row, eligible or not, that reaches their floor."""
        anybody = Queries(q_qd=prepared.q_qd[at], key_q=prepared.key_q[at], floor_q=floor)
        best = self.ops.topk(fresh, anybody, 1, count=False)
        return np.flatnonzero(best.returned_q)

    def _full(
        self,
        prepared: PreparedBlock,
        at: Int64,
        eligible_q: Int64,
        unverified_q: Int64,
        tally: Counter[str],
    ) -> Hits:
        """The best of all rows, for queries that nothing stored can answer."""
        corpus = self.snapshot.corpus(OTHER[prepared.kind])
        options = self.plan.options
        if not at.size or not corpus.parts:
            return NO_HITS
        tally[PAIRS] += at.size * self.plan.counts[OTHER[prepared.kind]]
        depth = options.k + options.slack
        top = self.ops.topk(corpus, prepared.queries(at), depth, count=options.count)
        eligible_q[at] = top.eligible_q
        unverified_q[at] = np.where(prepared.unsure_q[at], top.eligible_q, top.unverified_q)
        return _hits(corpus, top, at)

    def _count(
        self, prepared: PreparedBlock, at: Int64, eligible_q: Int64, unverified_q: Int64
    ) -> None:
        """Counts are over all rows, so they are made anew, once for each set of rules."""
        corpus = self.snapshot.corpus(OTHER[prepared.kind])
        counted: dict[Rules, tuple[int, int]] = {}
        for n in at.tolist():
            rules = prepared.groups[prepared.group_q[n]]
            if rules not in counted:
                counted[rules] = self.ops.count(corpus, rules) if corpus.parts else (0, 0)
            eligible_q[n], unsure = counted[rules]
            unverified_q[n] = eligible_q[n] if prepared.unsure_q[n] else unsure


class IncrementalExecutor(LocalExecutor):
    """Answers units from an earlier run, in this process.

    Args:
        ops: the kernels.
        snapshot: the plan's epoch.
        plan: the plan.
        base: the earlier run.
        prefetch: as of ``LocalExecutor``.
    """

    def __init__(
        self,
        ops: Ops,
        snapshot: SnapshotLike,
        plan: Plan,
        base: Base,
        *,
        prefetch: bool | None = None,
    ) -> None:
        super().__init__(ops, snapshot, plan, prefetch=prefetch)
        self.incremental = Incremental(ops, snapshot, plan, base)

    @property
    def about(self) -> Mapping[str, Any]:
        return {**super().about, "incremental": self.incremental.about}

    def _answer(self, prepared: PreparedBlock) -> BlockAnswer:
        made, tally = self.incremental.answer(prepared)
        return dataclasses.replace(made, notes=dict(tally))


def _hits(corpus: Corpus, top: TopK, at: Int64) -> Hits:
    """What the kernels found, with the positions of the queries."""
    there = np.arange(top.row_qk.shape[1]) < top.returned_q[:, None]
    query_m = np.repeat(at, top.returned_q)
    return Hits(query_m, keys_of(corpus, top.row_qk[there]), top.points_qk[there])


def _among(keys: UInt64, key_m: UInt64) -> Bool:
    """Which of ``key_m`` are in ``keys``, which ascend."""
    if not keys.size:
        return np.zeros(key_m.size, dtype=np.bool_)
    found: Bool = keys[np.minimum(np.searchsorted(keys, key_m), keys.size - 1)] == key_m
    return found


def _copy_horizons(merged: Merged, into: Horizons, at: Int64) -> None:
    """Horizons of exact queries, at their positions in the block."""
    exact = merged.exact_q
    for name in HORIZON:
        getattr(into, name)[at[exact]] = getattr(merged.horizons, name)[exact]


def _with_horizons(made: BlockAnswer, merged: Horizons) -> BlockAnswer:
    """The answer, with the horizons of merged queries in place of none."""
    here = merged.set_q
    return dataclasses.replace(
        made,
        horizon_set_q=made.horizon_set_q | here,
        horizon_points_q=np.where(here, merged.points_q, made.horizon_points_q),
        horizon_mix_q=np.where(here, merged.mix_q, made.horizon_mix_q),
        horizon_low_q=np.where(here, merged.low_q, made.horizon_low_q),
    )


def _nothing_merged(depth: int) -> Merged:
    return merge(
        np.zeros(0, dtype=np.uint64), NO_HITS, NO_HITS, _no_horizons(0), k=1, keep=max(depth, 1)
    )


def _no_horizons(n: int) -> Horizons:
    return Horizons(
        np.zeros(n, dtype=np.bool_),
        np.zeros(n, dtype=np.int32),
        np.zeros(n, dtype=np.uint32),
        np.zeros(n, dtype=np.uint32),
    )
