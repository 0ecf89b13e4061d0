"""What each call sends and how its answer is read: shared by both clients."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from google.protobuf.message import Message

from matchwright.clients import _explanation, _messages, _results
from matchwright.clients._errors import wrong
from matchwright.v1 import match_service_pb2 as wire

Answer = TypeVar("Answer")
_KINDS = {"job": wire.ENTITY_KIND_JOB, "freelancer": wire.ENTITY_KIND_FREELANCER}
_READERS = {
    "client": wire.AUDIENCE_CLIENT,
    "freelancer": wire.AUDIENCE_FREELANCER,
    "operator": wire.AUDIENCE_OPERATOR,
}

RESPONSES: Mapping[str, type[Message]] = {
    "FindFreelancers": wire.FindFreelancersResponse,
    "FindJobs": wire.FindJobsResponse,
    "BatchFind": wire.BatchFindResponse,
    "ScorePairs": wire.ScorePairsResponse,
    "Explain": wire.ExplainResponse,
    "CountEligible": wire.CountEligibleResponse,
}


@dataclass(frozen=True, slots=True)
class Query:
    """One query of a batch.

    Attributes:
        kind: of whoever asks.
        query: an id, a mapping of the record's fields, or a message.
        options: in addition to those of the batch.
    """

    kind: _results.Kind
    query: _messages.JobQuery | _messages.FreelancerQuery
    options: _messages.FindOptions = field(default_factory=_messages.FindOptions)


@dataclass(frozen=True, slots=True)
class Call(Generic[Answer]):
    """One call: the method's name, what it sends, and how its answer is read."""

    method: str
    request: Message
    read: Callable[[Any], Answer]


def find(
    kind: str, query: Any, marketplace: str, options: Mapping[str, Any]
) -> Call[_results.Matches]:
    """FindFreelancers for a job, FindJobs for a freelancer."""
    request: Any
    if kind == "job":
        method, request = "FindFreelancers", wire.FindFreelancersRequest(marketplace=marketplace)
    else:
        method, request = "FindJobs", wire.FindJobsRequest(marketplace=marketplace)
    _messages.put_query(request, kind, query)
    request.options.CopyFrom(_messages.options_of(kind, options))
    return Call(method, request, _results.found)


def batch(
    queries: Iterable[Query], marketplace: str, shared: Mapping[str, Any]
) -> Call[_results.BatchMatches]:
    """BatchFind; every item is sent with its options in full."""
    request = wire.BatchFindRequest(marketplace=marketplace)
    for query in queries:
        item = request.items.add()
        _messages.put_query(item, query.kind, query.query)
        options = {**shared, **query.options}
        item.options.CopyFrom(_messages.options_of(query.kind, options))
    return Call("BatchFind", request, _results.batch)


def score_pairs(
    pairs: Iterable[tuple[str, str]], kind: str, marketplace: str, options: Mapping[str, Any]
) -> Call[_results.PairScores]:
    """ScorePairs."""
    request = wire.ScorePairsRequest(
        marketplace=marketplace, pairs=_messages.pairs_of(pairs), query_kind=_kind(kind)
    )
    request.options.CopyFrom(_messages.options_of(kind, options))
    return Call("ScorePairs", request, _results.pair_scores)


def explain(
    job: Any,
    freelancer: Any,
    audience: str,
    direction: str,
    marketplace: str,
    options: Mapping[str, Any],
) -> Call[_explanation.Explanation]:
    """Explain."""
    if audience not in _READERS:
        raise wrong(f"audience is {audience!r}; expected one of {', '.join(_READERS)}", "audience")
    request = wire.ExplainRequest(
        marketplace=marketplace, query_kind=_kind(direction), audience=_READERS[audience]
    )
    _messages.put_query(request, "job", job)
    _messages.put_query(request, "freelancer", freelancer)
    request.options.CopyFrom(_messages.options_of(direction, options))
    return Call("Explain", request, _explanation.explanation)


def count_eligible(
    kind: str, query: Any, marketplace: str, options: Mapping[str, Any]
) -> Call[_results.EligibleCount]:
    """CountEligible."""
    request = wire.CountEligibleRequest(marketplace=marketplace)
    _messages.put_query(request, kind, query)
    request.options.CopyFrom(_messages.options_of(kind, options))
    return Call("CountEligible", request, _results.eligible_count)


def _kind(kind: str) -> wire.EntityKind:
    if kind not in _KINDS:
        raise wrong(f"kind is {kind!r}; expected 'job' or 'freelancer'", "kind")
    return _KINDS[kind]
