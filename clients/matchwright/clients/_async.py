"""The asynchronous client, for asyncio. The same calls as the synchronous one."""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import grpc
import grpc.aio

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


class AsyncClient:
    """Asks a matchwright server. For one event loop; use it as a context manager, or close it.

    Example::

        async with AsyncClient("127.0.0.1:50051") as client:
            for match in await client.find_freelancers("job-17", k=20):
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
            self._channel = grpc.aio.insecure_channel(address, options=options)
        else:
            self._channel = grpc.aio.secure_channel(address, credentials, options=options)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; running calls end as cancelled."""
        await self._channel.close()

    async def find_freelancers(
        self,
        job: JobQuery,
        *,
        marketplace: str | None = None,
        timeout_s: float | None = None,
        **options: Unpack[FindOptions],
    ) -> Matches:
        """The best freelancers for a job."""
        return await self._call(_calls.find("job", job, self._at(marketplace), options), timeout_s)

    async def find_jobs(
        self,
        freelancer: FreelancerQuery,
        *,
        marketplace: str | None = None,
        timeout_s: float | None = None,
        **options: Unpack[FindOptions],
    ) -> Matches:
        """The best jobs for a freelancer."""
        call = _calls.find("freelancer", freelancer, self._at(marketplace), options)
        return await self._call(call, timeout_s)

    async def batch_find(
        self,
        queries: Iterable[Query],
        *,
        marketplace: str | None = None,
        timeout_s: float | None = None,
        **options: Unpack[FindOptions],
    ) -> BatchMatches:
        """Many queries at once; one that fails has its error in its place."""
        return await self._call(_calls.batch(queries, self._at(marketplace), options), timeout_s)

    async def score_pairs(
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
        return await self._call(call, timeout_s)

    async def explain(
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
        return await self._call(call, timeout_s)

    async def count_eligible(
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
        return await self._call(call, timeout_s)

    def _at(self, marketplace: str | None) -> str:
        return self._marketplace if marketplace is None else marketplace

    async def _call(self, call: _calls.Call[Answer], timeout_s: float | None) -> Answer:
        send = self._channel.unary_unary(
            f"/{SERVICE}/{call.method}",
            request_serializer=type(call.request).SerializeToString,
            response_deserializer=_calls.RESPONSES[call.method].FromString,
        )
        timeout = self._connection.timeout_s if timeout_s is None else timeout_s
        try:
            response = await send(call.request, timeout=timeout, metadata=self._connection.metadata)
        except grpc.RpcError as error:
            raise of_rpc(error) from None
        return call.read(response)
