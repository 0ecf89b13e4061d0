"""The matcher: requests in, results out.

It works on one snapshot at a time. Requests of one direction and one class of K go to the kernels
together, each under its own rules; stored and inline entities mix freely. An error belongs to its
request and leaves the others alone.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from matchwright.engine.corpus_rows import order_key, take_rows
from matchwright.engine.errors import InvalidArgument, MatchwrightError
from matchwright.engine.limits import Limits
from matchwright.engine.policy import Policy
from matchwright.engine.prepare import Prepared, SnapshotLike, prepare
from matchwright.engine.records import Kind
from matchwright.engine.request import Request, check_id, check_request
from matchwright.engine.rerank.rerank import Candidates, RankerSource, ranker_of, refuse_k, settle
from matchwright.engine.results import Result, Shortfall
from matchwright.kernels.ops import Ops
from matchwright.kernels.types import (
    K_MAX,
    Corpus,
    Counted,
    Int8,
    Int32,
    Queries,
    Rules,
    TopK,
    UInt64,
)
from matchwright.kernels.workers import single_threaded_blas

if TYPE_CHECKING:
    from matchwright.engine.explain import Explanation

OTHER: Mapping[Kind, Kind] = {"job": "freelancer", "freelancer": "job"}
"""The kind that a query of a kind searches."""
K_CLASSES = (10, 100, K_MAX)
"""Batches are asked with one of these; each answer keeps its own first K."""
POLICIES_KEPT = 256

Audience = Literal["operator", "client", "freelancer"]
OnKernels = Callable[[float, float, int, str], None]
"""Takes when it began (``time.perf_counter``), seconds, queries and the device's name."""


class Source(Protocol):
    """Where snapshots come from: a store, say."""

    def snapshot(self, *, epoch: int | None = None, min_epoch: int | None = None) -> Any: ...


@dataclass(frozen=True, slots=True)
class Eligible:
    """How many pairs pass every rule, and how many of those on some unknown value. Exact."""

    epoch: str
    policy: str
    eligible: int
    unverified: int


@dataclass(frozen=True, slots=True)
class PairScore:
    """One pair's score, eligible or not.

    Attributes:
        vetoes: every reason why it is not eligible; empty when it is.
        unverified: rules that it passes on an unknown value.
    """

    id: str
    points: int
    score: float
    contributions: Mapping[str, int]
    vetoes: tuple[str, ...]
    unverified: tuple[str, ...]


class Matcher:
    """Answers requests. Thread-safe.

    Args:
        source: a store (anything with ``snapshot()``), or one snapshot, to answer from that epoch.
        ops: the kernels.
        policy: weights, rules and budgets of every request.
        rankers: where the model comes from that a policy with a section ``rerank`` names.

    Raises:
        FailedPrecondition: the policy reranks, and there is no such model, or it does not fit.

    Attributes:
        ranker: the model of the second phase; None where the policy has none.
        on_kernels: told of each search of a block, on the thread that did it.
    """

    def __init__(
        self,
        source: Source | SnapshotLike,
        ops: Ops,
        policy: Policy,
        rankers: RankerSource | None = None,
    ) -> None:
        self.source = source
        self.ops = ops
        self.policy = policy
        self.rankers = rankers
        self.ranker = ranker_of(policy, rankers)
        self.on_kernels: OnKernels | None = None
        self._effective: dict[bytes, Policy] = {}
        self._lock = threading.Lock()

    def snapshot(self, request: Request | None = None) -> SnapshotLike:
        """The newest epoch of the source, or the one that a request asks for.

        Raises:
            EpochGone: the epoch asked for is no longer kept.
            FailedPrecondition: it has not come yet.
        """
        source: Any = self.source
        epoch = None if request is None else request.epoch
        min_epoch = None if request is None else request.min_epoch
        if not hasattr(source, "snapshot"):
            snapshot: SnapshotLike = source
        elif epoch is None and min_epoch is None:
            snapshot = source.snapshot()
        else:
            snapshot = source.snapshot(epoch=epoch, min_epoch=min_epoch)
        return snapshot

    def match(self, request: Request) -> Result:
        """The best matches of one entity.

        Raises:
            MatchwrightError: what is wrong with the request, or with the store.
        """
        answer = self.match_many([request])[0]
        if isinstance(answer, MatchwrightError):
            raise answer
        return answer

    def match_many(
        self, requests: Sequence[Request], deadline: float | None = None
    ) -> list[Result | MatchwrightError]:
        """An answer or an error for every request, in their order.

        All are answered from one epoch, the newest, but those that name another.

        Args:
            deadline: moment of the ranker's clock until which answers may wait for the model.

        Raises:
            InvalidArgument: more requests than the policy's ``batch_max``.
        """
        return settle(self.gather_many(requests, deadline), deadline)

    def gather_many(
        self, requests: Sequence[Request], deadline: float | None = None
    ) -> list[Result | Candidates | MatchwrightError]:
        """The first phase of ``match_many``: answers, or candidates where the policy reranks.

        Candidates become answers by their ranker: ``ask`` (awaited) or ``ask_blocking``, then
        ``finish``. Only this part needs the kernels.

        Args:
            deadline: moment of the monotonic clock until which a served encoder may take for texts
                that are given inline.

        Raises:
            InvalidArgument: more requests than the policy's ``batch_max``.
        """
        most = self.policy.budgets.batch_max
        if len(requests) > most:
            raise InvalidArgument(
                f"a batch of {len(requests):,} requests; at most {most:,} are allowed"
            )
        answers: dict[int, Result | Candidates | MatchwrightError] = {}
        for snapshot, places in self._by_epoch(requests, answers):
            asked = [requests[at] for at in places]
            answers |= zip(places, self._answers(snapshot, asked, deadline), strict=True)
        return [answers[at] for at in range(len(requests))]

    def _by_epoch(
        self,
        requests: Sequence[Request],
        answers: dict[int, Result | Candidates | MatchwrightError],
    ) -> list[tuple[SnapshotLike, list[int]]]:
        """Snapshots, and which requests each one answers; epochs that are not there are errors."""
        if not requests:
            return []
        snapshots: dict[Any, SnapshotLike] = {None: self.snapshot()}
        places: dict[Any, list[int]] = {}
        for at, request in enumerate(requests):
            wanted: Any = None
            try:
                if request.epoch is not None or request.min_epoch is not None:
                    check_request(request, self.policy.budgets)
                    wanted = _other_epoch(request, snapshots[None].epoch.number)
                if wanted not in snapshots:
                    snapshots[wanted] = self.snapshot(request)
                places.setdefault(wanted, []).append(at)
            except MatchwrightError as error:
                answers[at] = error
        return [(snapshots[wanted], found) for wanted, found in places.items()]

    @single_threaded_blas()  # small products: to wake its threads would take longer
    def _answers(
        self, snapshot: SnapshotLike, requests: Sequence[Request], deadline: float | None = None
    ) -> list[Result | Candidates | MatchwrightError]:
        """Answers from one epoch: one kernel call for each direction and class of K."""
        answers: dict[int, Result | Candidates | MatchwrightError] = {}
        groups: dict[Any, list[tuple[int, Prepared]]] = {}
        prepared = prepare(snapshot, requests, self.policy.budgets, self._asked, deadline)
        for at, query in enumerate(prepared):
            if isinstance(query, MatchwrightError):
                answers[at] = query
            else:
                groups.setdefault(_group(query, len(requests)), []).append((at, query))
        for (_, k, plan, count), members in groups.items():
            queries = [query for _, query in members]
            results: Sequence[Result | Candidates] = self._topk(
                snapshot, queries, k, deadline, plan=plan, count=count
            )
            for (at, _), result in zip(members, results, strict=True):
                answers[at] = result
        return [answers[at] for at in range(len(requests))]

    def effective(self, request: Request, limits: Limits) -> Policy:
        """The policy that a request runs under; the most recent ones are kept.

        Raises:
            InvalidArgument, UnknownKey: an override that is wrong.
        """
        if not (request.weights or request.rules or limits):
            return self._kept(b"", self.policy.effective)
        made = self.policy.effective(request.weights, request.rules, limits)
        return self._kept(bytes.fromhex(made.id), lambda: made)

    def _asked(self, request: Request, limits: Limits) -> Policy:
        refuse_k(self.policy, request.k)
        return self.effective(request, limits)

    def _kept(self, name: bytes, make: Any) -> Policy:
        with self._lock:
            policy = self._effective.get(name)
            if policy is None:
                if len(self._effective) >= POLICIES_KEPT:
                    self._effective.pop(next(iter(self._effective)))
                policy = self._effective[name] = make()
            return policy

    def prepare_one(self, snapshot: SnapshotLike, request: Request) -> Prepared:
        """One query, ready for the kernels.

        Raises:
            MatchwrightError: what is wrong with the request.
        """
        query = prepare(snapshot, [request], self.policy.budgets, self.effective)[0]
        if isinstance(query, MatchwrightError):
            raise query
        return query

    def count_eligible(self, request: Request) -> Eligible:
        """Exact counts of the pairs that pass every rule; ``k`` and ``min_score`` do not matter."""
        snapshot = self.snapshot(request)
        query = self.prepare_one(snapshot, request)
        corpus = snapshot.corpus(OTHER[request.kind])
        eligible, unverified = self.ops.count(corpus, query.rules)
        unverified = eligible if query.compiled.unsure else unverified
        return Eligible(str(snapshot.epoch), query.policy.id, eligible, unverified)

    def score_pairs(self, request: Request, ids: Sequence[str]) -> list[PairScore | None]:
        """The score of each pair with an entity of the other kind, eligible or not.

        Args:
            ids: of the other kind; the answer is None where there is no such entity.
        """
        for name in ids:
            check_id(name, "ids")
        snapshot = self.snapshot(request)
        query = self.prepare_one(snapshot, request)
        corpus = snapshot.corpus(OTHER[request.kind])
        rows = snapshot.rows_of(OTHER[request.kind], ids)
        return [
            None if row < 0 else self._pair(snapshot, query, corpus, row, name)
            for name, row in zip(ids, rows.tolist(), strict=True)
        ]

    def _pair(
        self, snapshot: SnapshotLike, query: Prepared, corpus: Corpus, row: int, name: str
    ) -> PairScore:
        x_nd, _ = take_rows(corpus, np.array([row], dtype=np.int64), query.q_d.size)
        parts = self.ops.contributions(x_nd, query.q_d, snapshot.generation.offsets)[0]
        vetoes, unverified = self.ops.vetoes(corpus, query.rules, row)
        points = int(parts.sum())
        return PairScore(
            id=name,
            points=points,
            score=points * query.t,
            contributions=dict(zip(facet_names(snapshot), parts.tolist(), strict=True)),
            vetoes=vetoes,
            unverified=tuple(dict.fromkeys((*query.compiled.unsure, *unverified))),
        )

    def explain(
        self,
        job: str | Mapping[str, Any],
        freelancer: str | Mapping[str, Any],
        *,
        direction: Kind = "job",
        audience: Audience = "operator",
        as_of: int | None = None,
        **options: Any,
    ) -> Explanation:
        """Why a pair matches and where it ranks, or every reason why it does not.

        Args:
            job, freelancer: ids of stored entities, or records.
            direction: the kind that asks; its ranking is explained.
            audience: who reads it.
            as_of: the day to decide for.
            options: further fields of a ``Request``.
        """
        from matchwright.engine.explain import explain

        return explain(
            self, job, freelancer, direction=direction, audience=audience, as_of=as_of, **options
        )

    def _topk(
        self,
        snapshot: SnapshotLike,
        prepared: Sequence[Prepared],
        k: int,
        deadline: float | None,
        *,
        plan: Any,
        count: bool,
    ) -> list[Result] | list[Candidates]:
        """One kernel call for queries of one direction."""
        kind = prepared[0].request.kind
        corpus = snapshot.corpus(OTHER[kind])
        began = time.perf_counter()
        top = self.ops.topk(corpus, as_queries(prepared), k, plan=plan, count=count)
        spent = time.perf_counter() - began
        if self.on_kernels is not None:
            self.on_kernels(began, spent, len(prepared), str(top.telemetry.get("device", "")))
        kept = [
            top.row_qk[q, : min(int(top.returned_q[q]), _depth(query))]
            for q, query in enumerate(prepared)
        ]
        rows = np.concatenate(kept)
        ids = snapshot.ids_of(OTHER[kind], rows)
        x_nd, key_n = take_rows(corpus, rows, prepared[0].q_d.size)
        telemetry = {**top.telemetry, "kernel_seconds": spent, "batch": len(prepared)}
        living = any(_living(alive, segment.n) for segment, alive in corpus.parts)
        results, start = [], 0
        for q, query in enumerate(prepared):
            span = slice(start, start + kept[q].size)
            start = span.stop
            hits = _Hits(
                tuple(ids[span]), key_n[span], x_nd[span], top.points_qk[q, : kept[q].size]
            )
            results.append(self._result(snapshot, query, top, q, hits, living, telemetry))
        if self.ranker is not None:
            return self.ranker.gather(snapshot, prepared, results, kept, deadline)
        return results

    def _result(
        self,
        snapshot: SnapshotLike,
        query: Prepared,
        top: TopK,
        q: int,
        hits: _Hits,
        living: bool,
        telemetry: Mapping[str, Any],
    ) -> Result:
        request, eligible = query.request, int(top.eligible_q[q])
        full = len(hits.ids) >= request.k
        kth = request.k - 1
        return Result(
            epoch=str(snapshot.epoch),
            generation=snapshot.generation.id,
            policy=query.policy.id,
            as_of=int(request.as_of or 0),
            kind=request.kind,
            query_id=query.query_id,
            query_key=query.key,
            k=request.k,
            facets=facet_names(snapshot),
            ids=hits.ids,
            keys=hits.keys,
            points=hits.points,
            contributions=self._contributions(snapshot, query, hits.x_nd),
            scores=hits.points.astype(np.float64) * query.t,
            eligible=eligible,
            counted=Counted(top.counted).name,
            unverified=eligible if query.compiled.unsure else int(top.unverified_q[q]),
            kth_key=order_key(query.key, hits.points[kth], hits.keys[kth]) if full else None,
            shortfall=None if full else _shortfall(query, living, eligible, len(hits.ids)),
            resolution=query.resolution,
            attainable=query.attainable,
            t=query.t,
            degraded=query.degraded,
            telemetry=telemetry,
        )

    def _contributions(self, snapshot: SnapshotLike, query: Prepared, x_nd: Int8) -> Int32:
        if not query.request.contributions:
            return np.zeros((x_nd.shape[0], 0), dtype=np.int32)
        return self.ops.contributions(x_nd, query.q_d, snapshot.generation.offsets)


@dataclass(frozen=True, slots=True, eq=False)
class _Hits:
    """What was found for one query, best first."""

    ids: tuple[str, ...]
    keys: UInt64
    x_nd: Int8
    points: Int32


def _other_epoch(request: Request, newest: int) -> tuple[int | None, int | None] | None:
    """What a request asks of its epoch; None when the newest one will do."""
    if request.epoch in (None, newest) and (request.min_epoch or 0) <= newest:
        return None
    return request.epoch, request.min_epoch


def _group(query: Prepared, batch: int) -> tuple[Kind, int, str, bool]:
    """Queries with the same value go to the kernels together."""
    request, k = query.request, _depth(query)
    if batch > 1 and query.policy.rerank is None:
        k = next(size for size in K_CLASSES if size >= k)
    return request.kind, k, request.plan, request.count


def _depth(query: Prepared) -> int:
    """How many rows the first phase finds: K, or as many as the policy has reranked."""
    rerank = query.policy.rerank
    return query.request.k if rerank is None else rerank.candidates


def as_queries(prepared: Sequence[Prepared]) -> Queries:
    """Kernel queries; queries that share their rules share a group."""
    groups: dict[Rules, int] = {}
    group_q = [groups.setdefault(query.rules, len(groups)) for query in prepared]
    floors = [query.floor for query in prepared]
    floor_q = None
    if any(floor is not None for floor in floors):
        lowest = -(1 << 31)
        floor_q = np.array([lowest if f is None else f for f in floors], dtype=np.int64)
    return Queries(
        q_qd=np.stack([query.q_d for query in prepared]).astype(np.int16, copy=False),
        key_q=np.array([query.key for query in prepared], dtype=np.uint64),
        groups=tuple(groups),
        group_q=np.array(group_q, dtype=np.int32),
        floor_q=floor_q,
    )


def facet_names(snapshot: SnapshotLike) -> tuple[str, ...]:
    """The facets in the order of the generation's blocks."""
    return tuple(facet.name for facet in snapshot.generation.facets)


def _living(alive: Any, n: int) -> bool:
    return n > 0 if alive is None else bool(alive.any())


def _shortfall(query: Prepared, living: bool, eligible: int, returned: int) -> Shortfall:
    if not living:
        return Shortfall.EMPTY_CORPUS
    if query.compiled.never:
        return Shortfall.QUERY_VETOED
    if query.floor is not None and (eligible < 0 or eligible > returned):
        return Shortfall.MIN_SCORE
    return Shortfall.FEW_ELIGIBLE


__all__ = [
    "Audience",
    "Eligible",
    "Matcher",
    "OTHER",
    "PairScore",
    "Request",
    "order_key",
    "take_rows",
]
