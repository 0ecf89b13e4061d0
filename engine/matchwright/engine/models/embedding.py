"""Texts to embeddings through a served encoder: tokens, batches of like length, calls in flight.

A batch goes out as it is padded: to its longest text, so texts of like length go together. While
calls are in flight the next texts are cut into tokens. What comes back is checked and put on the
grid 2**-20 at length 1, once; whoever keeps it keeps these integers.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from matchwright.engine.errors import DependencyUnavailable, ModelWrong, StoreDamaged
from matchwright.engine.generation.fixed import unit
from matchwright.engine.models.description import (
    ATTENTION_MASK,
    EMBEDDING,
    ENCODER,
    ENCODER_BATCH_MAX,
    INPUT_IDS,
)
from matchwright.engine.models.refs import ModelRef
from matchwright.kernels.types import Int32, Int64

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from matchwright.engine.models.artefacts import EncoderArtefact

BATCH_TOKENS = 8_192
"""Tokens of one call, padding included: 64 texts of 128. More gains nothing on any device."""
ROWS_MAX = min(128, ENCODER_BATCH_MAX)
WINDOW = 1_024
"""Texts that are cut into tokens at once, and sorted by length among themselves."""
CALLS = 3
"""Calls in flight: one at work, one on its way there, one on its way back."""
CALL_S = 60.0
"""What one call of bulk encoding may take."""


class Client(Protocol):
    """What is used of the Triton client."""

    def infer_blocking(
        self,
        ref: ModelRef,
        inputs: Mapping[str, NDArray[Any]],
        outputs: Sequence[str],
        *,
        deadline: float,
    ) -> dict[str, NDArray[Any]]: ...


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """One call's texts.

    Attributes:
        at_n: int64 (n,), positions of the texts.
        ids_nt, mask_nt: int64 (n, T), padded with zeros.
    """

    at_n: Int64
    ids_nt: Int64
    mask_nt: Int64


class EncoderModel:
    """One version of the encoder, and who is asked for it. Thread-safe.

    Args:
        artefact: names the version and holds its tokenizer.
        client: gives the client; asked for each time, so that it can be made late.
        calls: calls in flight.
    """

    def __init__(
        self, artefact: EncoderArtefact, client: Callable[[], Client], *, calls: int = CALLS
    ) -> None:
        self.artefact = artefact
        self._client = client
        self._calls = calls

    def embed(self, texts: Sequence[str], deadline: float) -> Int32:
        """int32 (N, dimensions): unit vectors in units of 2**-20.

        Args:
            texts: none of them blank.
            deadline: moment of the monotonic clock.

        Raises:
            ModelUnavailable, ModelLate: no answer, or not in time.
            ModelWrong: another shape or type, NaN, infinity, or a row of zeros.
        """
        out = np.empty((len(texts), self.artefact.dimensions), dtype=np.int32)
        for at_n, rows in self.stream(texts, deadline):
            out[at_n] = rows
        return out

    def stream(
        self, texts: Sequence[str], deadline: float | None = None
    ) -> Iterator[tuple[Int64, Int32]]:
        """Positions and their vectors, as they come back; errors as ``embed``.

        Args:
            deadline: of all calls together; without it each call has ``CALL_S``.
        """
        if len(texts) <= ROWS_MAX and len(batches := self.batches(texts, 0)) == 1:
            yield batches[0].at_n, self._ask(batches[0], deadline)
            return
        waiting: deque[tuple[Int64, Future[Int32]]] = deque()
        with ThreadPoolExecutor(self._calls, thread_name_prefix="encode") as pool:
            try:
                for low in range(0, len(texts), WINDOW):
                    for batch in self.batches(texts[low : low + WINDOW], low):
                        waiting.append((batch.at_n, pool.submit(self._ask, batch, deadline)))
                        if len(waiting) > 2 * self._calls:
                            at_n, future = waiting.popleft()
                            yield at_n, future.result()
                while waiting:
                    at_n, future = waiting.popleft()
                    yield at_n, future.result()
            finally:
                for _, future in waiting:
                    future.cancel()

    def batches(self, texts: Sequence[str], base: int) -> list[Batch]:
        """Texts of like length together; positions count from ``base``."""
        tokens = self._tokens(texts)
        length_n = np.fromiter(map(len, tokens), dtype=np.int64, count=len(tokens))
        order = np.argsort(length_n, kind="stable")
        made = []
        low = 0
        while low < len(order):
            high = low + 1
            while high < len(order) and high - low < ROWS_MAX:
                if (high + 1 - low) * length_n[order[high]] > BATCH_TOKENS:
                    break
                high += 1
            made.append(_padded(tokens, order[low:high], base))
            low = high
        return made

    def _tokens(self, texts: Sequence[str]) -> list[list[int]]:
        tokenizer = self._tokenizer
        try:
            return [encoding.ids for encoding in tokenizer.encode_batch(list(texts))]
        except (KeyboardInterrupt, SystemExit, MemoryError):
            raise
        except BaseException as error:  # where the library's Rust panics, that is no Exception
            raise self._wrong(f"its tokenizer failed at a text: {error}") from None

    def _ask(self, batch: Batch, deadline: float | None) -> Int32:
        answer = self._client().infer_blocking(
            self._ref,
            {INPUT_IDS: batch.ids_nt, ATTENTION_MASK: batch.mask_nt},
            [EMBEDDING],
            deadline=time.monotonic() + CALL_S if deadline is None else deadline,
        )
        return self.on_grid(answer.get(EMBEDDING), len(batch.at_n))

    def on_grid(self, rows: Any, n: int) -> Int32:
        """int32 (n, dimensions): what a model answered, at length 1, in units of 2**-20.

        Raises:
            ModelWrong: it cannot be used.
        """
        wanted = (n, self.artefact.dimensions)
        if not isinstance(rows, np.ndarray) or rows.dtype != np.float32 or rows.shape != wanted:
            got = getattr(rows, "dtype", type(rows).__name__), getattr(rows, "shape", "")
            raise self._wrong(f"answered {got[0]} {got[1]}, expected float32 {wanted}")
        if not np.isfinite(rows).all():
            raise self._wrong("answered NaN or infinity")
        if not rows.any(axis=1).all():
            raise self._wrong("answered zeros for a text that is not blank")
        return unit(rows.astype(np.float64)).astype(np.int32)

    def _wrong(self, what: str) -> ModelWrong:
        return ModelWrong(
            f"{self._ref}: {what}; check the server's model with `matchwright models check`",
            model=self._ref,
        )

    @property
    def _ref(self) -> ModelRef:
        return ModelRef(ENCODER, self.artefact.version)

    @cached_property
    def _tokenizer(self) -> Any:
        path = self.artefact.path / "tokenizer.json"
        tokenizer = _tokenizer(path)
        tokenizer.no_padding()
        tokenizer.enable_truncation(self.artefact.max_tokens)
        return tokenizer


def _padded(tokens: Sequence[Sequence[int]], order: Int64, base: int) -> Batch:
    longest = max(1, len(tokens[order[-1]]))
    ids_nt = np.zeros((len(order), longest), dtype=np.int64)
    mask_nt = np.zeros((len(order), longest), dtype=np.int64)
    for row, n in enumerate(order.tolist()):
        ids_nt[row, : len(tokens[n])] = tokens[n]
        mask_nt[row, : len(tokens[n])] = 1
    return Batch(base + order, ids_nt, mask_nt)


def _tokenizer(path: Path) -> Any:
    try:
        from tokenizers import Tokenizer
    except ModuleNotFoundError:
        raise DependencyUnavailable(
            "a served encoder needs 'tokenizers'; pip install 'matchwright[triton]'"
        ) from None
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise StoreDamaged(f"{path}: cannot be read: {error}", file=path) from None
