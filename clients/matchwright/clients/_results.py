"""Answers: frozen, struct of arrays where there are many."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, overload

from google.protobuf import json_format

from matchwright.clients._errors import ClientError, of_status
from matchwright.v1 import match_service_pb2 as wire

Kind = Literal["job", "freelancer"]
_KINDS: Mapping[int, Kind] = {
    wire.ENTITY_KIND_JOB: "job",
    wire.ENTITY_KIND_FREELANCER: "freelancer",
}


@dataclass(frozen=True, slots=True)
class Epoch:
    """One state of a marketplace's catalog: ``number`` counts its changes."""

    store_uuid: str
    number: int
    digest: str

    def __str__(self) -> str:
        return f"{self.store_uuid}:{self.number}:{self.digest}"


@dataclass(frozen=True, slots=True)
class OrderKey:
    """The order of matches: more points first, then smaller ``mix``, then smaller ``low``."""

    points: int
    mix: int
    low: int

    def __str__(self) -> str:
        return f"{self.points}:{self.mix:08x}:{self.low:08x}"


@dataclass(frozen=True, slots=True)
class Telemetry:
    """How an answer was computed; outside the contract of equal answers."""

    plan: str
    device: str
    batch_queries: int
    queue_ms: float
    run_ms: float
    model_ms: float

    def to_dict(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True, slots=True)
class Reranked:
    """The second phase of an answer: what a served model made of the first phase's best.

    Attributes:
        model, version, content_hash: who ordered it: "ranker", a number, a hash of its content.
        grid_bits: model scores are whole numbers of ``2**-grid_bits``.
        candidates: how many matches of the first phase it was to order.
        degraded: why the order is the first phase's all the same: "LATE", "UNREACHABLE",
            "BREAKER_OPEN", "NOT_READY", "WRONG_OUTPUT", "NO_FEATURES" or "FAILED"; None when the
            order is the model's.
        first_ranks: one for each match, 1 for the best.
        model_scores: one for each match, exact; empty when degraded.
        last_key: order key of the last candidate when there were as many as the policy allows.
    """

    model: str
    version: int
    content_hash: str
    grid_bits: int
    candidates: int
    degraded: str | None
    first_ranks: tuple[int, ...]
    model_scores: tuple[float, ...]
    last_key: OrderKey | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, without those of single matches."""
        told = ("model", "version", "content_hash", "grid_bits", "candidates", "degraded")
        last = None if self.last_key is None else str(self.last_key)
        return {name: getattr(self, name) for name in told} | {"last_key": last}


@dataclass(frozen=True, slots=True)
class Match:
    """One match.

    Attributes:
        contributions: facet -> points, empty when not asked for.
        first_rank: rank in the first phase; None where the policy does not rerank.
        model_score: what the model said; None where there is none, or it was not had in time.
    """

    rank: int
    id: str
    key: int
    points: int
    score: float
    contributions: Mapping[str, int]
    first_rank: int | None = None
    model_score: float | None = None


@dataclass(frozen=True, slots=True)
class Matches(Sequence[Match]):
    """One answer: a struct of arrays, best match first, and its certificate.

    Attributes:
        epoch, generation, policy, as_of: what answered (``as_of`` in days since 1970-01-01 UTC).
        kind, query_id, query_key: who asked; ``query_id`` is None for an inline entity without one.
        k: how many were asked for.
        ids, keys, points, scores: one element for each match. ``score = points * step``.
        facets: the columns of ``contributions``.
        contributions: row by row, ``len(facets)`` values for each match, or none at all.
        counted: "EXACT", "AT_LEAST" or "NOT_COUNTED".
        eligible: how many pass every rule; -1 when not counted.
        unverified: how many of those on an unknown value; -1 when not counted.
        kth_key: order key of the last match when k were returned, else None.
        shortfall: why fewer than k were returned, else None.
        resolution: levels of the query grid that the coarsest weighted facet keeps.
        attainable: score of the best conceivable match.
        digest: SHA-256 of the canonical form.
        degraded: what a served encoder did not give in time, so that the answer went without it;
            empty when all is well.
        rerank: the second phase; None where the policy has none.
        telemetry: None for an item of a batch, whose batch has it.
    """

    epoch: Epoch
    generation: str
    policy: str
    as_of: int
    kind: Kind
    query_id: str | None
    query_key: int
    k: int
    ids: tuple[str, ...]
    keys: tuple[int, ...]
    points: tuple[int, ...]
    scores: tuple[float, ...]
    facets: tuple[str, ...]
    contributions: tuple[int, ...]
    counted: str
    eligible: int
    unverified: int
    kth_key: OrderKey | None
    shortfall: str | None
    resolution: int
    attainable: float
    step: float
    digest: str
    degraded: tuple[str, ...] = ()
    rerank: Reranked | None = None
    telemetry: Telemetry | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, index: int) -> Match: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Match, ...]: ...

    def __getitem__(self, index: int | slice) -> Match | tuple[Match, ...]:
        if isinstance(index, slice):
            return tuple(self[at] for at in range(*index.indices(len(self.ids))))
        at = range(len(self.ids))[index]
        width = len(self.facets)
        row = self.contributions[at * width : (at + 1) * width]
        second = self.rerank
        return Match(
            rank=at + 1,
            id=self.ids[at],
            key=self.keys[at],
            points=self.points[at],
            score=self.scores[at],
            contributions=dict(zip(self.facets, row, strict=False)),
            first_rank=None if second is None else second.first_ranks[at],
            model_score=second.model_scores[at] if second and second.model_scores else None,
        )

    def __iter__(self) -> Iterator[Match]:
        return (self[at] for at in range(len(self.ids)))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, in the form that the engine's own results have."""
        told = {
            name: getattr(self, name)
            for name in ("generation", "policy", "as_of", "kind", "query_id", "k", "eligible",
                         "counted", "unverified", "shortfall", "resolution", "attainable", "digest")
        }  # fmt: skip
        if self.degraded:
            told["degraded"] = list(self.degraded)
        if self.rerank is not None:
            told["rerank"] = self.rerank.to_dict()
        return told | {
            "epoch": str(self.epoch),
            "returned": len(self.ids),
            "kth_key": None if self.kth_key is None else str(self.kth_key),
            "t": self.step,
            "matches": [self._match(match) for match in self],
            "telemetry": {} if self.telemetry is None else self.telemetry.to_dict(),
        }

    def _match(self, match: Match) -> dict[str, Any]:
        plain = {name: getattr(match, name) for name in ("rank", "id", "score", "points")}
        plain["contributions"] = dict(match.contributions)
        if self.rerank is not None:
            plain |= {"first_rank": match.first_rank, "model_score": match.model_score}
        return plain


@dataclass(frozen=True, slots=True)
class BatchMatches(Sequence["Matches | ClientError"]):
    """The answers of a batch, in the order of its queries; a query that failed has its error."""

    items: tuple[Matches | ClientError, ...]
    telemetry: Telemetry

    def __len__(self) -> int:
        return len(self.items)

    @overload
    def __getitem__(self, index: int) -> Matches | ClientError: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Matches | ClientError, ...]: ...

    def __getitem__(
        self, index: int | slice
    ) -> Matches | ClientError | tuple[Matches | ClientError, ...]:
        return self.items[index]


@dataclass(frozen=True, slots=True)
class PairScores:
    """Scores of pairs, in the order of the request. ``contributions`` is row by row, as above."""

    epoch: Epoch
    generation: str
    policy: str
    as_of: int
    points: tuple[int, ...]
    scores: tuple[float, ...]
    eligible: tuple[bool, ...]
    facets: tuple[str, ...]
    contributions: tuple[int, ...]
    telemetry: Telemetry


@dataclass(frozen=True, slots=True)
class EligibleCount:
    """How many pass every rule, exactly, and how many of those on an unknown value."""

    epoch: Epoch
    policy: str
    as_of: int
    eligible: int
    unverified: int
    telemetry: Telemetry


# ── From messages ─────────────────────────────────────────────────────────────────────────────


def epoch(message: wire.Epoch) -> Epoch:
    return Epoch(message.store_uuid, message.number, message.digest)


def order_key(message: wire.OrderKey) -> OrderKey:
    return OrderKey(message.points, message.mix, message.low)


def telemetry(message: wire.Telemetry) -> Telemetry:
    return Telemetry(**{field.name: getattr(message, field.name) for field in fields(Telemetry)})


def kind(value: int) -> Kind:
    return _KINDS.get(value, "job")


def enum_name(message: Any, field: str) -> str:
    """The name of an enum field's value without its prefix; "UNSPECIFIED" included."""
    enum = message.DESCRIPTOR.fields_by_name[field].enum_type
    number = getattr(message, field)
    value = enum.values_by_number.get(number)
    prefix = enum.values_by_number[0].name.removesuffix("UNSPECIFIED")
    return str(number) if value is None else value.name.removeprefix(prefix)


def set_or_none(message: Any, field: str) -> Any:
    return getattr(message, field) if message.HasField(field) else None


def matches(message: wire.Ranking, told: wire.Telemetry | None = None) -> Matches:
    """An answer out of its wire form."""
    certificate = message.certificate
    shortfall = enum_name(certificate, "shortfall")
    eligible = set_or_none(certificate, "eligible")
    unverified = set_or_none(certificate, "unverified")
    has_key = certificate.HasField("kth_key")
    return Matches(
        epoch=epoch(message.epoch),
        generation=message.generation,
        policy=message.policy,
        as_of=message.as_of_day,
        kind=kind(message.query_kind),
        query_id=set_or_none(message, "query_id"),
        query_key=message.query_key,
        k=message.k,
        ids=tuple(message.ids),
        keys=tuple(message.keys),
        points=tuple(message.points),
        scores=tuple(message.scores),
        facets=tuple(message.facets),
        contributions=tuple(message.contributions),
        counted=enum_name(certificate, "count_kind"),
        eligible=-1 if eligible is None else eligible,
        unverified=-1 if unverified is None else unverified,
        kth_key=order_key(certificate.kth_key) if has_key else None,
        shortfall=None if shortfall == "UNSPECIFIED" else shortfall,
        resolution=message.resolution,
        attainable=message.attainable,
        step=message.step,
        digest=message.digest,
        degraded=tuple(message.degraded),
        rerank=_reranked(message.rerank) if message.HasField("rerank") else None,
        telemetry=None if told is None else telemetry(told),
    )


def _reranked(message: wire.Rerank) -> Reranked:
    degraded = enum_name(message, "degraded")
    return Reranked(
        model=message.model,
        version=message.version,
        content_hash=message.content_hash,
        grid_bits=message.grid_bits,
        candidates=message.candidates,
        degraded=None if degraded == "UNSPECIFIED" else degraded,
        first_ranks=tuple(message.first_ranks),
        model_scores=tuple(message.model_scores),
        last_key=order_key(message.last_key) if message.HasField("last_key") else None,
    )


def found(message: Any) -> Matches:
    """The answer of FindFreelancers or FindJobs."""
    return matches(message.ranking, message.telemetry)


def batch(message: wire.BatchFindResponse) -> BatchMatches:
    """The answers of BatchFind."""
    items = tuple(
        of_status(one.error) if one.WhichOneof("outcome") == "error" else matches(one.ranking)
        for one in message.results
    )
    return BatchMatches(items, telemetry(message.telemetry))


def pair_scores(message: wire.ScorePairsResponse) -> PairScores:
    """The answer of ScorePairs."""
    return PairScores(
        epoch=epoch(message.epoch),
        generation=message.generation,
        policy=message.policy,
        as_of=message.as_of_day,
        points=tuple(message.points),
        scores=tuple(message.scores),
        eligible=tuple(message.eligible),
        facets=tuple(message.facets),
        contributions=tuple(message.contributions),
        telemetry=telemetry(message.telemetry),
    )


def eligible_count(message: wire.CountEligibleResponse) -> EligibleCount:
    """The answer of CountEligible."""
    return EligibleCount(
        epoch=epoch(message.epoch),
        policy=message.policy,
        as_of=message.as_of_day,
        eligible=message.eligible,
        unverified=message.unverified,
        telemetry=telemetry(message.telemetry),
    )


def plain(value: Any) -> Any:
    """A ``google.protobuf.Value`` as plain Python; whole numbers as integers."""
    return _whole(json_format.MessageToDict(value))


def _whole(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [_whole(item) for item in value]
    if isinstance(value, dict):
        return {name: _whole(item) for name, item in value.items()}
    return value
