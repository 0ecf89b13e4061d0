"""Whom a command asks: the store in a folder, or a server. Both answer alike."""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer

from matchwright.engine.errors import DependencyUnavailable, InvalidArgument, MatchwrightError

if TYPE_CHECKING:
    from matchwright.engine.config import ModelsConfig
    from matchwright.engine.records import Kind
    from matchwright.engine.request import Request


class Device(enum.StrEnum):
    """Where the kernels run."""

    AUTO = "auto"
    CPU = "cpu"
    NUMPY = "numpy"
    GPU = "gpu"


DeviceOption = Annotated[
    Device, typer.Option("--device", help="Where kernels run; answers are the same.")
]


MEMORY_MB_MAX = 1 << 30
"""Of options: more than any machine has."""
DeviceMemoryOption = Annotated[
    int | None,
    typer.Option(
        "--device-memory-mb",
        min=1,
        max=MEMORY_MB_MAX,
        help="Most memory of a GPU, in MiB: rows and temporary memory; 4/5 of the free.",
    ),
]
StoreOrNone = Annotated[
    Path | None, typer.Option("--store", metavar="DIR", help="The folder of the marketplace.")
]
ServerOption = Annotated[
    str | None,
    typer.Option("--server", metavar="HOST:PORT", help="Ask this server instead of a folder."),
]
MarketplaceOption = Annotated[
    str, typer.Option("--marketplace", help="Which of the server's; its default when not given.")
]
TokenOption = Annotated[
    Path | None, typer.Option("--token-file", metavar="FILE", help="The token for the server.")
]
TlsOption = Annotated[
    Path | None, typer.Option("--tls-ca", metavar="FILE", help="Use TLS, and trust these (PEM).")
]
TimeoutOption = Annotated[
    float, typer.Option("--timeout", metavar="SECONDS", help="How long to wait for the server.")
]
TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Access:
    """How to speak to a server."""

    marketplace: str = ""
    token_file: Path | None = None
    tls_ca: Path | None = None
    timeout_s: float = TIMEOUT_S


class Answer(Protocol):
    """A result or an explanation."""

    def to_dict(self) -> dict[str, Any]: ...


class Source(Protocol):
    """Answers requests."""

    def match(self, request: Request) -> Answer: ...

    def match_many(self, requests: Sequence[Request]) -> Sequence[Answer | MatchwrightError]: ...

    def explain(self, job: str, freelancer: str, **options: Any) -> Answer: ...

    def ids(self, kind: Kind, batch: int) -> Iterator[list[str]]: ...

    def count(self, kind: Kind) -> int: ...


def request(kind: Kind, whom: str | Mapping[str, Any] | None, asked: Mapping[str, Any]) -> Request:
    """A request from the command line's options, for a stored id or an inline record."""
    from matchwright.engine.request import Request

    if isinstance(whom, str):
        return Request(kind=kind, id=whom, **asked)
    return Request(kind=kind, record=whom, **asked)


@dataclass(frozen=True)
class Second:
    """The second phase: whose models order answers, and whether they are asked at all."""

    models: ModelsConfig | None = None
    rerank: bool = True


NO_MODELS = Second()

RerankOption = Annotated[
    bool,
    typer.Option(
        "--rerank/--no-rerank",
        help="Without: the first phase's order, although the policy reranks.",
    ),
]


@contextlib.contextmanager
def open_source(
    store: Path | None,
    server: str | None,
    policy: Path | None,
    device: Device,
    access: Access,
    second: Second = NO_MODELS,
) -> Iterator[Source]:
    """The store in a folder, or a server.

    Raises:
        InvalidArgument: none or both are named, or an option that a server decides by itself.
    """
    if (store is None) == (server is None):
        raise InvalidArgument("say where to look with exactly one of --store DIR, --server ADDRESS")
    if server is not None:
        if policy is not None or device is not Device.AUTO:
            raise InvalidArgument("--policy and --device belong to the server; leave them out here")
        if second != NO_MODELS:
            raise InvalidArgument(
                "--models, --triton and --no-rerank belong to the server; leave them out here"
            )
        from matchwright.engine.cli._remote import remote

        with remote(server, access) as source:
            yield source
        return
    if access != Access():
        raise InvalidArgument(
            "--marketplace, --token-file, --tls-ca and --timeout go with --server ADDRESS"
        )
    assert store is not None
    from matchwright.engine.cli._local import local

    need_device(device)
    with local(store, policy, device, second) as source:
        yield source


def tell_device() -> None:
    """What is said of the device while a server starts and runs goes to stderr, too."""
    import logging

    from matchwright.engine.cli._progress import say

    class ToStderr(logging.Handler):
        """Whatever stderr is at the moment."""

        def emit(self, record: logging.LogRecord) -> None:
            say(record.getMessage())

    logger = logging.getLogger("matchwright.engine.device")
    if not logger.handlers:
        logger.addHandler(ToStderr())
        logger.setLevel(logging.INFO)


def need_device(device: Device) -> None:
    """Refuse what asks for a GPU where there is none.

    Raises:
        DependencyUnavailable: saying what is missing.
    """
    if device is Device.GPU:
        from matchwright.kernels.probe import Missing, probe

        found = probe()
        if isinstance(found, Missing):
            raise DependencyUnavailable(
                f"--device gpu: {found.text}; matchwright doctor tells more", why=found.why.value
            )
