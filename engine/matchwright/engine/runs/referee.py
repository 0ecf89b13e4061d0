"""An independent referee: a run's answers against the store, without the kernels' scans.

Points are plain integer products, rules the row-wise predicates over plain columns (no index, no
bitmap), and the order is sorted here. Nothing of ``Ops.topk`` takes part.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from matchwright.engine.errors import MatchwrightError
from matchwright.engine.matcher import OTHER
from matchwright.engine.policy import Policy
from matchwright.engine.prepare import Prepared, SnapshotLike, prepare
from matchwright.engine.request import Request
from matchwright.engine.runs.checks import UnitArrays, UnitFrames
from matchwright.engine.runs.findings import Findings
from matchwright.engine.runs.merge import LOW, Hits, Horizons, reaches
from matchwright.engine.runs.plan import Plan
from matchwright.engine.runs.prepare_block import (
    PRINT_BYTES,
    PRINT_PERSON,
    canonical_predicate,
)
from matchwright.engine.runs.subcorpus import gather
from matchwright.kernels import rules as row_rules
from matchwright.kernels.order import mix32
from matchwright.kernels.types import (
    Bool,
    Corpus,
    Int16,
    Int32,
    Int64,
    Predicate,
    Segment,
    UInt64,
)

ROWS_AT_ONCE = 16_384
"""Rows that are gathered or multiplied at a time."""
SCAN_ROWS = 131_072
"""Rows of a segment that brute force looks at together."""


@dataclass(frozen=True, slots=True, eq=False)
class Ranked:
    """One query's whole answer by brute force, best first.

    Attributes:
        key_m: uint64, keys of the best rows.
        points_m: int32.
        eligible: how many pass every rule; unverified: how many of those on an unknown value.
        reached: how many eligible rows beat or equal the horizon that was asked about.
    """

    key_m: UInt64
    points_m: Int32
    eligible: int
    unverified: int
    reached: int


class Referee:
    """Checks units of one run against the epoch that it was made from.

    Args:
        snapshot: that epoch.
        plan: the run's.
    """

    def __init__(self, snapshot: SnapshotLike, plan: Plan) -> None:
        self.snapshot = snapshot
        self.plan = plan
        self._effective = plan.options.policy.effective()

    def corpus(self, data: UnitArrays) -> Corpus:
        """The side that the unit searched."""
        return self.snapshot.corpus(OTHER[data.unit.kind])

    def questions(self, frames: UnitFrames) -> list[Prepared | MatchwrightError]:
        """The unit's queries, made anew from the records."""
        options = self.plan.options
        requests = [
            Request(kind=frames.unit.kind, id=name, k=options.k, as_of=options.as_of)
            for name in frames.queries["query_id"].to_list()
        ]
        return prepare(self.snapshot, requests, options.policy.budgets, self._policy)

    def _policy(self, request: Request, limits: object) -> Policy:
        return self._effective

    def check_questions(
        self,
        findings: Findings,
        frames: UnitFrames,
        asked: Sequence[Prepared | MatchwrightError],
    ) -> None:
        """t, attainable, resolution and errors as the records give them."""
        where = frames.unit.file("queries")
        columns = ("query_id", "t", "attainable", "resolution", "error", "print")
        for row, query in zip(frames.queries.select(columns).iter_rows(), asked, strict=True):
            name, *facts, error, stored = row
            if isinstance(query, MatchwrightError):
                told, good = f"error {query.reason}, stored {error}", error == query.reason
            else:
                expected = [query.t, query.attainable, query.resolution]
                told = f"{expected}, stored {facts}, error {error}; or another print"
                good = facts == expected and error is None and stored == question_print(query)
            findings.expect("questions", good, where, f"{name!r}: made anew it gives {told}")

    def check_pairs(
        self,
        findings: Findings,
        frames: UnitFrames,
        data: UnitArrays,
        asked: Sequence[Prepared | MatchwrightError],
    ) -> None:
        """Points and rules of every row of a part and its slack."""
        for what, hits in (("part", data.part.hits), ("slack", data.slack.hits)):
            frame = frames.part if what == "part" else frames.slack
            if frame is None or frame.height != hits.query_m.size:
                continue  # rows of unknown queries were reported
            rows = self.snapshot.rows_of(OTHER[frames.unit.kind], frame["id"].to_list())
            where = frames.unit.file(what)
            findings.fail("points", where, "an id that is not in the corpus", int((rows < 0).sum()))
            there = rows >= 0
            self._check_hits(findings, where, hits.take(there), rows[there], data, asked)

    def _check_hits(
        self,
        findings: Findings,
        where: str,
        hits: Hits,
        rows: Int64,
        data: UnitArrays,
        asked: Sequence[Prepared | MatchwrightError],
    ) -> None:
        for begin in range(0, rows.size, ROWS_AT_ONCE):
            span = slice(begin, begin + ROWS_AT_ONCE)
            segment = gather(self.corpus(data), rows[span])
            self._check_rows(findings, where, segment, hits.take(np.arange(rows.size)[span]), asked)

    def _check_rows(
        self,
        findings: Findings,
        where: str,
        segment: Segment,
        hits: Hits,
        asked: Sequence[Prepared | MatchwrightError],
    ) -> None:
        """Points and rules of gathered rows; row n of the segment is the corpus side of hit n."""
        passed = np.ones(segment.n, dtype=np.bool_)
        points = hits.points_m.copy()
        members: dict[Predicate, list[Int64]] = {}
        for query in np.unique(hits.query_m).tolist():
            one = asked[query]
            if isinstance(one, MatchwrightError):
                continue  # rows beside an error are reported by the check "returned"
            here = np.flatnonzero(hits.query_m == query)
            points[here] = dots(segment.x_nd[here], one.q_d)
            for predicate in one.rules:
                members.setdefault(predicate, []).append(here)
        for predicate, places in members.items():
            some = np.concatenate(places)
            passed[some] &= row_rules.evaluate(predicate, row_rules.Rows(segment, some))[0]
        findings.looked("points", segment.n)
        findings.looked("rules", segment.n)
        self._report(findings, "points", where, points != hits.points_m, segment, hits, asked)
        self._report(findings, "rules", where, ~passed, segment, hits, asked)

    def _report(
        self,
        findings: Findings,
        name: str,
        where: str,
        bad: Bool,
        segment: Segment,
        hits: Hits,
        asked: Sequence[Prepared | MatchwrightError],
    ) -> None:
        """Failures of one check; the first is told by query, key, points and vetoes."""
        if not bad.any():
            return
        row = int(np.argmax(bad))
        query = asked[int(hits.query_m[row])]
        assert not isinstance(query, MatchwrightError), "rows of these are not looked at"
        pair = f"{query.query_id!r} and key {int(segment.key_n[row]):016x}"
        vetoes, _ = row_rules.vetoes(query.rules, segment, row)
        told = f"{int(hits.points_m[row])} points are not q . x" if name == "points" else vetoes
        findings.fail(name, where, f"{pair}: {told}", int(bad.sum()))

    def check_sampled(
        self,
        findings: Findings,
        frames: UnitFrames,
        data: UnitArrays,
        asked: Sequence[Prepared | MatchwrightError],
        sample: Sequence[int],
    ) -> None:
        """Whole answers of some queries of the unit, from all rows of the corpus."""
        where, options = frames.unit.file("part"), self.plan.options
        for position in (place for place in sample if place < len(asked)):  # others were erased
            query = asked[position]
            if isinstance(query, MatchwrightError):
                continue
            stored = _stored(data, position)
            ranked = brute_force(
                self.corpus(data), query, options.k + options.slack, horizon_of(data, position)
            )
            findings.looked("sample")
            for problem in self._differences(frames, data, position, query, stored, ranked):
                findings.fail("sample", where, f"{query.query_id!r}: {problem}")

    def _differences(
        self,
        frames: UnitFrames,
        data: UnitArrays,
        position: int,
        query: Prepared,
        stored: Hits,
        ranked: Ranked,
    ) -> list[str]:
        options, found = self.plan.options, []
        size = stored.key_m.size
        same = np.array_equal(ranked.key_m[:size], stored.key_m) and np.array_equal(
            ranked.points_m[:size], stored.points_m
        )
        if not same:
            found.append(f"its {size} stored rows are not the best {size} of the corpus")
        if data.redacted:
            return found
        reached = min(options.k, ranked.eligible)
        if int(data.returned_q[position]) != reached:
            found.append(f"{reached} are to be returned, {data.returned_q[position]} are")
        if ranked.reached > size:
            found.append(f"{ranked.reached} rows reach its horizon, {size} are stored")
        if options.count:
            unverified = ranked.eligible if query.compiled.unsure else ranked.unverified
            row = frames.queries.row(position, named=True)
            if (row["eligible"], row["unverified"]) != (ranked.eligible, unverified):
                found.append(
                    f"{ranked.eligible} eligible and {unverified} unverified, stored are "
                    f"{row['eligible']} and {row['unverified']}"
                )
        return found


def question_print(query: Prepared) -> bytes:
    """The print of a question, from the query as a single request would ask it."""
    state = hashlib.blake2b(digest_size=PRINT_BYTES, person=PRINT_PERSON)
    state.update(np.uint64(query.key).astype("<u8").tobytes())
    state.update(np.float64(query.t).astype("<f8").tobytes())
    state.update(query.q_d.astype("<i2").tobytes())
    for predicate in query.rules:
        state.update(canonical_predicate(predicate))
    return state.digest()


def _stored(data: UnitArrays, position: int) -> Hits:
    """Part and slack of one query, in the order they had before the exposure pass."""
    hits = Hits.joined(data.part.hits, data.slack.hits)
    first = np.concatenate([data.part.first_m, data.slack.first_m])
    here = np.flatnonzero(hits.query_m == position)
    return hits.take(here[np.argsort(first[here], kind="stable")])


def horizon_of(data: UnitArrays, position: int) -> Horizons:
    """The horizon of one query, as a block of one."""
    return data.horizons.take(np.array([position], dtype=np.int64))


def dots(x_nd: np.ndarray, q_d: Int16) -> Int32:
    """q . x of rows, in plain integers; they fit int32 by the width of the vectors."""
    points: Int32 = np.vecdot(x_nd.astype(np.int32), q_d.astype(np.int32))
    return points


def brute_force(corpus: Corpus, query: Prepared, most: int, horizon: Horizons) -> Ranked:
    """The ``most`` best rows of one query, from every row of the corpus."""
    keys: list[UInt64] = [np.zeros(0, dtype=np.uint64)]
    points: list[Int32] = [np.zeros(0, dtype=np.int32)]
    unverified = 0
    for segment, alive in corpus.parts:
        for begin in range(0, segment.n, SCAN_ROWS):
            rows = np.arange(begin, min(begin + SCAN_ROWS, segment.n))
            if alive is not None:
                rows = rows[alive[rows]]
            passed, unsure = row_rules.eligible(query.rules, row_rules.Rows(segment, rows))
            unverified += int(unsure.sum())
            rows = rows[passed]
            keys.append(segment.key_n[rows])
            points += [
                dots(segment.x_nd[rows[at : at + ROWS_AT_ONCE]], query.q_d)
                for at in range(0, rows.size, ROWS_AT_ONCE)
            ]
    key_m, points_m = np.concatenate(keys), np.concatenate(points)
    mix, low = mix32(query.key, key_m), (key_m & LOW).astype(np.uint32)
    near = reaches(points_m, mix, low, horizon, np.zeros(key_m.size, dtype=np.int64))
    order = np.lexsort((low, mix, -points_m.astype(np.int64)))[:most]
    return Ranked(
        key_m=key_m[order],
        points_m=points_m[order],
        eligible=int(key_m.size),
        unverified=unverified,
        reached=int(near.sum()),
    )
