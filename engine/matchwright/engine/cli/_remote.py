"""Asks a server over gRPC, through the client that everybody uses."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from matchwright.clients import Client, ClientError, Explanation, Matches, Query, Tls, Unavailable
from matchwright.engine import errors
from matchwright.engine.cli._options import read_text
from matchwright.engine.cli._source import Access
from matchwright.engine.errors import InvalidArgument, MatchwrightError
from matchwright.engine.records import Kind
from matchwright.engine.request import Request

_TOKEN_BYTES_MAX = 4_096


class Remote:
    """A server, asked through a client; its errors become the engine's own."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def match(self, request: Request) -> Matches:
        find: Any = self._client.find_freelancers
        if request.kind == "freelancer":
            find = self._client.find_jobs
        with engine_errors():
            found: Matches = find(_whom(request), **_options(request))
        return found

    def match_many(self, requests: Sequence[Request]) -> Sequence[Matches | MatchwrightError]:
        queries = [Query(one.kind, _whom(one), _options(one)) for one in requests]
        with engine_errors():
            answers = self._client.batch_find(queries)
        return [_engine_error(one) if isinstance(one, ClientError) else one for one in answers]

    def explain(self, job: str, freelancer: str, **options: Any) -> Explanation:
        with engine_errors():
            return self._client.explain(job, freelancer, **options)

    def count(self, kind: Kind) -> int:
        raise _needs_a_store(kind)

    def ids(self, kind: Kind, batch: int) -> Iterator[list[str]]:
        raise _needs_a_store(kind)


@contextlib.contextmanager
def remote(address: str, access: Access) -> Iterator[Remote]:
    """A connection to the server at ``address``.

    Raises:
        DependencyUnavailable: when a call cannot reach it.
    """
    token = None
    if access.token_file is not None:
        token = read_text(str(access.token_file), limit=_TOKEN_BYTES_MAX).strip()
    tls = None if access.tls_ca is None else Tls(ca=access.tls_ca)
    with engine_errors():
        client = Client(
            address,
            marketplace=access.marketplace,
            token=token,
            tls=tls,
            timeout_s=access.timeout_s,
        )
    with client:
        yield Remote(client)


def _whom(request: Request) -> Any:
    return request.record if request.id is None else request.id


def _options(request: Request) -> Any:
    return {
        "k": request.k,
        "weights": request.weights,
        "exclude_ids": request.exclude_ids,
        "candidate_ids": request.candidate_ids,
        "min_score": request.min_score,
        "as_of": request.as_of,
        "contributions": True,
    }


def _needs_a_store(kind: Kind) -> InvalidArgument:
    return InvalidArgument(f"--all-{kind}s reads every id from a folder; give --store DIR")


@contextlib.contextmanager
def engine_errors() -> Iterator[None]:
    """What the client raises becomes the engine's own error, with its exit code."""
    try:
        yield
    except ClientError as error:
        raise _engine_error(error) from None


def _engine_error(error: ClientError) -> MatchwrightError:
    """The engine's error of the same reason, else of the same status."""
    if isinstance(error, Unavailable) and error.reason == error.status:
        hint = "is it running there? (matchwright serve)"
        return errors.DependencyUnavailable(f"no answer from the server: {error}; {hint}")
    kinds = _tree(MatchwrightError)
    same = [kind for kind in kinds if kind.reason == error.reason]
    same += [kind for kind in kinds if kind.grpc_status == error.status]
    return (same or [MatchwrightError])[0](str(error), **error.details)


def _tree(root: type[MatchwrightError]) -> list[type[MatchwrightError]]:
    """``root`` and all that is below it, the general before the particular."""
    found = [root]
    for kind in found:
        found += kind.__subclasses__()
    return found
