"""The models of a process: one repository, and one client that is made when it is first needed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from matchwright.engine.config import ModelsConfig
from matchwright.engine.errors import InvalidArgument, ModelUnavailable
from matchwright.engine.models.watch import QUIET, Watch

if TYPE_CHECKING:
    from matchwright.engine.models.repository import EncoderArtefact, RankerArtefact, Repository

CONFIGURE = "give the model repository (--models DIR) and the Triton server (--triton HOST:PORT)"
NOT_CONFIGURED = "NOT_CONFIGURED"
"""``why`` of a ``ModelUnavailable`` where nobody said which server to ask."""


class Models:
    """Which models there are, and who is asked. Thread-safe; use it as a context manager.

    Args:
        config: the repository's folder and the server's address; either may be missing.
        connect: makes the client; the one of ``models.triton`` by default.
        watch: is told of every call of that client, for metrics and traces.
    """

    def __init__(
        self,
        config: ModelsConfig,
        connect: Callable[[ModelsConfig], Any] | None = None,
        watch: Watch = QUIET,
    ) -> None:
        self.config = config
        self._connect = connect or (lambda config: _triton(config, watch))
        self._lock = threading.Lock()
        self._client: Any = None
        self._repository: Repository | None = None

    @property
    def repository(self) -> Repository:
        """The model repository, opened once.

        Raises:
            InvalidArgument: no folder was given.
            NotFound: there is none.
        """
        from matchwright.engine.models.repository import Repository

        with self._lock:
            if self._repository is None:
                self._repository = Repository.open(self._folder())
            return self._repository

    def _folder(self) -> Path:
        if self.config.repository is None:
            raise InvalidArgument(
                "which model repository is not said; give --models DIR", field="models"
            )
        return self.config.repository

    @property
    def has_server(self) -> bool:
        """Whether anything can be asked of a model."""
        return self.config.triton is not None

    @property
    def client(self) -> Any:
        """The ``Triton`` client, made when it is first asked for.

        Raises:
            ModelUnavailable: no server was named.
        """
        if self.config.triton is None:
            raise ModelUnavailable(
                f"no Triton server is configured; {CONFIGURE}", why=NOT_CONFIGURED
            )
        with self._lock:
            if self._client is None:
                self._client = self._connect(self.config)
            return self._client

    def encoder(self, version: int | None = None) -> EncoderArtefact:
        """One version of the encoder, the newest by default; see ``Repository.encoder``."""
        return self.repository.encoder(version)

    def ranker(self, version: int | None = None) -> RankerArtefact:
        """One version of the ranker, the newest by default; see ``Repository.ranker``."""
        return self.repository.ranker(version)

    def close(self) -> None:
        """Closes the client, if there is one; it is made anew when it is asked for again."""
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _triton(config: ModelsConfig, watch: Watch) -> Any:
    from matchwright.engine.models.triton import Triton, TritonConfig

    assert config.triton is not None
    return Triton(
        TritonConfig(
            url=config.triton,
            shared_memory=config.shared_memory,
            tls_ca=config.tls_ca,
            timeout_ms=config.timeout_ms,
        ),
        watch,
    )
