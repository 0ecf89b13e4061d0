"""One call of ``topk``: blocks of queries, their eligibility, their plans, their answers."""

from __future__ import annotations

import itertools
import math
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from matchwright.kernels import sizes
from matchwright.kernels.access import Layout, Scratch, count_bits, take_keys, take_x
from matchwright.kernels.best import ANY_TIE, POINTS_MAX, POINTS_MIN, Best, Bound, Found
from matchwright.kernels.checks import empty_topk
from matchwright.kernels.eligible import Eligibility
from matchwright.kernels.gather import Few, Gather
from matchwright.kernels.limbs import norm2_of
from matchwright.kernels.planner import Load, Plan, gathered
from matchwright.kernels.topk import CROWDED, Mask, Scan, unpack_lines
from matchwright.kernels.types import (
    Corpus,
    Counted,
    Int64,
    Queries,
    Segment,
    TopK,
    UInt64,
)

if TYPE_CHECKING:
    from matchwright.kernels.ops import Ops

COPY_QUERIES = 8
"""A gathered group of at least so many queries scans a copy of its rows."""

ROWS_SMALL = 4_096
"""A corpus below this is scanned: whichever plan were better, it is not worth a calibration."""


STEP_LEAST = 8
"""A sample of more than one row in so many is not worth its while."""
GUESS_BLOCKS = 8
"""After a quarter of at least four times so many blocks the bound is guessed anew."""
PAIRS_MOST = 8_192
"""Pairs whose second limbs are multiplied at once."""
GUESS_QUERIES, GUESS_BYTES = 64, 10
"""Queries whose tile of the sample is made at once, and its bytes for a pair."""
NEVER = -(1 << 25)
"""Below every first limb's sum."""
SAMPLE_LEAST, SAMPLE_MOST, SAMPLE_EACH = 4_096, 16_384, 24
"""Rows of the sample that the first bound is guessed from, and how many more for each result."""


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Queries of a block that share a rule set.

    Attributes:
        line: its line of bits.
        query: positions of its queries in the caller's order.
        eligible: number of eligible rows.
        everything: every row of the corpus is eligible.
    """

    line: int
    query: NDArray[np.intp]
    eligible: int
    everything: bool


class Search:
    """Finds the k best rows of any number of queries.

    Args:
        ops: the backend.
        corpus, queries, k, plan, count: as ``Ops.topk`` takes them, checked.
    """

    def __init__(
        self, ops: Ops, corpus: Corpus, queries: Queries, k: int, plan: Plan, count: bool
    ) -> None:
        self.ops, self.corpus, self.queries, self.k, self.plan = ops, corpus, queries, k, plan
        self.count = count
        self.layout = Layout(corpus)
        self.d = queries.q_qd.shape[1]
        self.eligibility = Eligibility(self.layout, queries.groups, ops.memory_bytes // 8)
        self.result = empty_topk(queries.q, k, Counted.EXACT if count else Counted.NOT_COUNTED)
        self.tally: Counter[str] = Counter()
        self.norm2 = max((norm2_of(segment, self.d) for segment, _ in corpus.parts), default=0)

    def run(self) -> TopK:
        """The answer."""
        start = time.perf_counter()
        for query, group in self._blocks():
            self._block(query, group)
        plans = [name for name in ("scan", "gather") if self.tally[name]]
        telemetry: dict[str, Any] = {
            "plan": "+".join(plans) or "none",
            "device": self.ops.name,
            **{name: self.tally[name] for name in ("pairs", "survivors", "again")},
            "scanned_queries": self.tally["scan"],
            "gathered_queries": self.tally["gather"],
            "seconds": time.perf_counter() - start,
        }
        return replace(self.result, telemetry=telemetry)

    def _blocks(self) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
        """(queries, group of each), ordered by group, within the budget."""
        q = self.queries.q
        group_q = self.queries.group_q
        group = np.zeros(q, np.intp) if group_q is None else group_q.astype(np.intp)
        ordered = np.argsort(group, kind="stable")
        group = group[ordered]
        most = sizes.queries_at_once(self.d, self.k, self.ops.memory_bytes)
        groups_most = sizes.groups_at_once(self.corpus.n, self.ops.memory_bytes)
        change = np.concatenate([[0], np.cumsum(np.diff(group) != 0)])
        begin = 0
        while begin < q:
            end = int(np.searchsorted(change, change[begin] + groups_most))
            end = min(begin + most, end, q)
            yield ordered[begin:end], group[begin:end]
            begin = end

    def _block(self, query: NDArray[np.intp], group_q: NDArray[np.intp]) -> None:
        groups, words = self._eligible(query, group_q)
        groups = [g for g in groups if g.eligible]
        choice = self._choose(groups)
        few = [g for g, gather in zip(groups, choice, strict=True) if gather]
        scanned = [g for g, gather in zip(groups, choice, strict=True) if not gather]
        copied = [g for g in few if self._worth_a_copy(g)]
        self._gather([g for g in few if not self._worth_a_copy(g)], words)
        for group in copied:
            self._scan_copy(group, words[group.line])
        self._scan(scanned, words)

    def _eligible(
        self, query: NDArray[np.intp], group_q: NDArray[np.intp]
    ) -> tuple[list[Group], UInt64]:
        numbers, first = np.unique(group_q, return_index=True)
        members = np.split(query, first[1:])
        words = np.empty((numbers.size, self.layout.words), dtype=np.uint64)
        eligible, unverified = (np.zeros(numbers.size, dtype=np.int64) for _ in range(2))
        turn = itertools.count()

        def work() -> None:
            while (i := next(turn)) < numbers.size:
                group = self.queries.groups[numbers[i]]
                unverified[i] = self.eligibility.fill(group, words[i])
                eligible[i] = count_bits(words[i])

        self.ops.together([work] * min(self.ops.threads, numbers.size))
        groups = []
        for i, number in enumerate(numbers):
            if self.count:
                self.result.eligible_q[members[i]] = eligible[i]
                self.result.unverified_q[members[i]] = unverified[i]
            everything = self.eligibility.everything(self.queries.groups[number])
            groups.append(Group(i, members[i], int(eligible[i]), everything))
        return groups, words

    def _choose(self, groups: list[Group]) -> list[bool]:
        if self.plan != "auto":
            return [self.plan == "gather"] * len(groups)
        if self.corpus.n < ROWS_SMALL and self.ops.costs is None:
            return [False] * len(groups)
        loads = [Load(g.query.size, g.eligible) for g in groups]
        return gathered(self.ops.costs_for(self.d), loads, self.corpus.n, self.d)

    def _worth_a_copy(self, group: Group) -> bool:
        room = group.eligible * (self.d + 16) * 4 <= self.ops.memory_bytes
        return group.query.size >= COPY_QUERIES and room

    def _put(self, query: NDArray[np.intp], found: Found) -> None:
        row_qk, points_qk, returned = found
        self.result.row_qk[query] = row_qk
        self.result.points_qk[query] = points_qk
        self.result.returned_q[query] = returned

    def _best(
        self,
        corpus: Corpus,
        query: NDArray[np.intp],
        slack_q: Int64,
        rest: Any,
        k: int,
        guess: Bound | None,
    ) -> Best:
        floor_q = self.queries.floor_q
        return Best(
            self.queries.key_q[query],
            k,
            slack_q,
            None if floor_q is None else floor_q[query],
            second=_second(self.ops, corpus, rest),
            keys=lambda rows: take_keys(corpus, rows),
            guess=guess,
        )

    def _gather(self, groups: list[Group], words: UInt64) -> None:
        if not groups:
            return
        query = np.concatenate([g.query for g in groups])
        q_qd, key_q = self.queries.q_qd[query], self.queries.key_q[query]
        best = self._best(self.corpus, query, np.zeros(query.size, np.int64), q_qd, self.k, None)
        largest = max(g.query.size for g in groups)
        threads, budget = self.ops.threads, self.ops.memory_bytes
        fitted = sizes.fit_gather(largest, self.corpus.n, self.d, budget, threads)
        pending = sizes.fit_pending(query.size, self.k, budget, threads)
        ends = np.cumsum([g.query.size for g in groups])
        work = [
            Few(g.line, np.arange(end - g.query.size, end), g.eligible)
            for end, g in zip(ends, groups, strict=True)
        ]
        gather = Gather(self.ops, self.layout, q_qd, key_q, words, best, fitted, pending)
        gather.run(work)
        self._put(query, best.finish(self.ops.together))
        self.tally["gather"] += query.size
        self.tally["pairs"] += sum(g.query.size * g.eligible for g in groups)

    def _scan_copy(self, group: Group, words: UInt64) -> None:
        """Scan a copy of the group's rows, which keeps all that the scan is good at."""
        rows = self.layout.rows(words)
        segment = Segment(take_x(self.corpus, rows), take_keys(self.corpus, rows))
        copy = Corpus(((segment, None),))
        everything = np.full(group.query.size, group.eligible)
        row_qk, points_qk, returned = self._scan_rows(copy, group.query, None, everything)
        row_qk = np.where(row_qk >= 0, np.append(rows, -1)[row_qk], -1)
        self._put(group.query, (row_qk, points_qk, returned))
        self.tally["gather"] += group.query.size

    def _scan(self, groups: list[Group], words: UInt64) -> None:
        if not groups:
            return
        width = [g.query.size for g in groups]
        query = np.concatenate([g.query for g in groups])
        line_q = np.repeat([g.line for g in groups], width)
        eligible_q = np.repeat([g.eligible for g in groups], width)
        everything = all(g.everything for g in groups)
        blank = ~self.queries.q_qd[query].any(axis=1)
        for some in (np.flatnonzero(~blank), np.flatnonzero(blank)):
            if some.size:
                mask = None if everything else Mask(words, line_q[some])
                found = self._scan_rows(self.corpus, query[some], mask, eligible_q[some])
                self._put(query[some], found)
        self.tally["scan"] += query.size

    def _scan_rows(
        self,
        corpus: Corpus,
        query: NDArray[np.intp],
        mask: Mask | None,
        eligible_q: Int64,
    ) -> Found:
        """Scan with a guessed bound first; queries for which it was too high scan again."""
        layout = self.layout if corpus is self.corpus else Layout(corpus)
        guess = self._guess(layout, query, mask)
        best = self._scan_once(layout, query, mask, self.k, guess)
        found = best.finish(self.ops.together)
        short = np.flatnonzero(best.guessed_q & (found[2] < np.minimum(self.k, eligible_q)))
        if short.size:
            self.tally["again"] += short.size
            mask = None if mask is None else Mask(mask.words_gw, mask.line_q[short])
            again = self._scan_once(layout, query[short], mask, self.k, None)
            row_qk, points_qk, returned_q = again.finish(self.ops.together)
            found[0][short], found[1][short], found[2][short] = row_qk, points_qk, returned_q
        return found

    def _guess(self, layout: Layout, query: NDArray[np.intp], mask: Mask | None) -> Bound | None:
        """A bound that about K rows reach, from the best rows of a sample; None if not worth it."""
        n = layout.corpus.n
        rows = min(n // 32, SAMPLE_MOST // 3 + SAMPLE_EACH * self.k)
        step = max(1, n // min(SAMPLE_MOST, max(SAMPLE_LEAST, rows)))
        rank = likely_rank(self.k / step)
        if step < STEP_LEAST or rank * step > 8 * self.k or self.plan == "gather":
            return None
        sample, words = self._sample(layout, step)
        lines = None if mask is None else Mask(mask.words_gw[:, words], mask.line_q)
        found = self._likely(sample, query, lines, rank)
        if found is None:  # so many tie that the key has to decide
            return self._scan_once(Layout(sample), query, lines, rank, None).likely(rank)
        return found

    def _likely(
        self, sample: Corpus, query: NDArray[np.intp], lines: Mask | None, rank: int
    ) -> Bound | None:
        """Where the first limbs put the row of this rank; None if many rows tie there.

        Also None if rows or memory are too few.
        """
        ops, x_nd = self.ops, sample.parts[0][0].x_nd
        n = x_nd.shape[0]
        if n < rank:
            return None
        each = ops.memory_bytes // (2 * ops.threads) - n * ops.row_bytes(query.size, self.d)
        step = min(query.size, each // (GUESS_BYTES * n), GUESS_QUERIES)
        if step < 1:
            return None
        parts = ops.split(self.queries.q_qd[query], self.norm2)
        kth_q = np.empty(query.size, dtype=np.int64)
        tied = [0]
        spans = [(begin, min(begin + step, query.size)) for begin in range(0, query.size, step)]

        def work(mine: list[tuple[int, int]]) -> None:
            tiles = ops.tiles(parts.first_qd, x_nd, mine, Scratch())
            for (begin, end), tile in zip(mine, tiles, strict=True):
                if lines is not None:
                    words = np.ascontiguousarray(lines.of(begin, end, slice(None)))
                    np.copyto(tile, NEVER, where=~unpack_lines(words, n))
                kth = np.partition(tile, n - rank, axis=1)[:, n - rank]
                level = np.count_nonzero(tile == kth[:, None], axis=1)
                tied.append(int(level[kth > NEVER].max(initial=0)))
                kth_q[begin:end] = kth

        shares = [spans[i :: ops.threads] for i in range(min(ops.threads, len(spans)))]
        ops.together([partial(work, mine) for mine in shares])
        if max(tied) > rank + n // CROWDED:
            return None
        floor_q = self.queries.floor_q
        least = POINTS_MIN if floor_q is None else floor_q[query].clip(POINTS_MIN, POINTS_MAX)
        points = np.where(kth_q > NEVER, kth_q << parts.shift_q, POINTS_MIN)
        return Bound(np.maximum(points, least).clip(max=POINTS_MAX), np.full(query.size, ANY_TIE))

    @staticmethod
    def _sample(layout: Layout, step: int) -> tuple[Corpus, NDArray[np.intp]]:
        """``layout.sample``; the last one is kept with the corpus."""
        kept = layout.corpus.memo.get("sample")
        if kept is None or kept[0] != step:
            kept = layout.corpus.memo["sample"] = (step, layout.sample(step))
        sample: tuple[Corpus, NDArray[np.intp]] = kept[1]
        return sample

    def _scan_once(
        self,
        layout: Layout,
        query: NDArray[np.intp],
        mask: Mask | None,
        k: int,
        guess: Bound | None,
    ) -> Best:
        ops, corpus = self.ops, layout.corpus
        q_qd, key_q = self.queries.q_qd[query], self.queries.key_q[query]
        parts = ops.split(q_qd, self.norm2)
        best = self._best(corpus, query, parts.slack_q, parts.rest_qd, k, guess)
        fitted = ops.sizes(query.size, self.d, k, corpus.n)
        skip = self.plan != "scan"
        blank = not q_qd.any()
        scan = Scan(ops, layout, q_qd, key_q, parts, mask, best, fitted, skip=skip, blank=blank)
        blocks = layout.blocks(fitted.rows)
        part = len(blocks) // 4 if guess is not None else 0
        if part >= GUESS_BLOCKS:
            scan.run(blocks[:part])
            share = sum(block.n for block in blocks[:part]) / corpus.n
            best.guess(best.likely(min(likely_rank(k * share), best.cap)))
            blocks = blocks[part:]
        scan.run(blocks)
        self.tally["pairs"] += scan.pairs
        self.tally["survivors"] += scan.survivors
        return best


def likely_rank(expected: float) -> int:
    """A rank in a sample below which few of the K best rows are.

    So many of them are ``expected`` there, give or take the root of that; the odds that there are
    more than this is about 1 in 4,000, and then the query scans again.
    """
    return math.ceil(expected + 3.5 * math.sqrt(expected) + 2)


def _second(ops: Ops, corpus: Corpus, rest_qd: Any) -> Any:
    """The second limb's share of some pairs, a handful at a time."""

    d = rest_qd.shape[1]
    step = min(max(ops.memory_bytes // (16 * ops.threads * max(d, 1)), 64), PAIRS_MOST)

    def share(q: NDArray[np.intp], rows: Int64) -> Int64:
        out = np.empty(rows.size, dtype=np.int64)
        for begin in range(0, rows.size, step):
            some = slice(begin, begin + step)
            out[some] = ops.pair_dots(rest_qd.take(q[some], axis=0), take_x(corpus, rows[some]))
        return out

    return share
