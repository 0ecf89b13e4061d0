"""The synchronous client."""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import grpc

from matchwright.clients import _calls
from matchwright.clients._calls import Query
from matchwright.clients._channel import SERVICE, Connection
from matchwright.clients._errors import of_rpc
from matchwright.clients._explanation import Explanation
from matchwright.clients._messages import Audience, FindOptions, FreelancerQuery, JobQuery
from matchwright.clients._results import (
    BatchMatches,
    EligibleCount,
    Kind,
    Matches,
    PairScores,
)

Answer = TypeVar("Answer")


class Client:
    """Asks a matchwright server. Thread-safe; use it as a context manager, or close it.

    Example::

        with Client("127.0.0.1:50051") as client:
            for match in client.find_freelancers("job-17", k=20):
                print(match.rank, match.id, match.score)

    Args:
        address: ``host:port``.
        marketplace: the one that calls ask unless they name another; "" is "default".
        connection: further ``Connection`` fields: timeout_s, tls, token, ...

    Every call takes ``timeout_s`` and raises a ``ClientError``.
    """

    def __init__(self, address: str, *, marketplace: str = "", **connection: Any) -> None:
        self._connection = Connection(address=address, **connection)
        self._marketplace = marketplace
        credentials = self._connection.credentials()
        options = self._connection.options
        if credentials is None:
            self._channel = grpc.insecure_channel(address, options=options)
        else:
            self._channel = grpc.secure_channel(address, credentials, options=options)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; running calls end as cancelled."""
        self._channel.close()

    def find_freelancers(
        self,
        job: JobQuery,
        *,
        marketplace: str | None = None,
        timeout_s: float | None = None,
        **options: Unpack[FindOptions],
    ) -> Matches:
        """The best freelancers for a job."""
        return self._call(_calls.find("job", job, self._at(marketplace), options), timeout_s)

    def find_jobs(
        self,
        freelancer: FreelancerQuery,
        *,
        marketplace: str | None = None,
        timeout_s: float | None = None,
        **options: Unpack[FindOptions],
    ) -> Matches:
        """The best jobs for a freelancer."""
        call = _calls.find("freelancer", freelancer, self._at(marketplace), options)
        return self._call(call, timeout_s)

    def batch_find(
        self,
        queries: Iterable[Query],
        *,
        marketplace: str | None = None,
        timeout_s: float | None = None,
        **options: Unpack[FindOptions],
    ) -> BatchMatches:
        """Many queries at once; one that fails has its error in its place."""
        return self._call(_calls.batch(queries, self._at(marketplace), options), timeout_s)

    def score_pairs(
        self,
        pairs: Iterable[tuple[str, str]],
        *,
        direction: Kind = "job",
        marketplace: str | None = None,
        timeout_s: float | None = None,
        **options: Unpack[FindOptions],
    ) -> PairScores:
        """Scores of (job id, freelancer id) pairs, eligible or not."""
        call = _calls.score_pairs(pairs, direction, self._at(marketplace), options)
        return self._call(call, timeout_s)

    def explain(
        self,
        job: JobQuery,
        freelancer: FreelancerQuery,
        *,
        audience: Audience,
        direction: Kind = "job",
        marketplace: str | None = None,
        timeout_s: float | None = None,
        **options: Unpack[FindOptions],
    ) -> Explanation:
        """Why a pair matches, or why not, as far as the audience may know."""
        place = self._at(marketplace)
        call = _calls.explain(job, freelancer, audience, direction, place, options)
        return self._call(call, timeout_s)

    def count_eligible(
        self,
        kind: Kind,
        query: JobQuery | FreelancerQuery,
        *,
        marketplace: str | None = None,
        timeout_s: float | None = None,
        **options: Unpack[FindOptions],
    ) -> EligibleCount:
        """How many pass every rule."""
        call = _calls.count_eligible(kind, query, self._at(marketplace), options)
        return self._call(call, timeout_s)

    def _at(self, marketplace: str | None) -> str:
        return self._marketplace if marketplace is None else marketplace

    def _call(self, call: _calls.Call[Answer], timeout_s: float | None) -> Answer:
        send = self._channel.unary_unary(
            f"/{SERVICE}/{call.method}",
            request_serializer=type(call.request).SerializeToString,
            response_deserializer=_calls.RESPONSES[call.method].FromString,
        )
        timeout = self._connection.timeout_s if timeout_s is None else timeout_s
        try:
            response = send(call.request, timeout=timeout, metadata=self._connection.metadata)
        except grpc.RpcError as error:
            raise of_rpc(error) from None
        return call.read(response)
