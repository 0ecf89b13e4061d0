"""The served encoder as a generation uses it: what is kept first, Triton for the rest.

A text's embedding is made once. Whoever asks for it later, in whatever batch, gets the integers
that were stored; so rows and queries of one text agree to the bit, which no float model promises.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import polars as pl

from matchwright.engine.errors import (
    MatchwrightError,
    ModelLate,
    ModelUnavailable,
    ModelWrong,
)
from matchwright.engine.generation.text import Texts
from matchwright.engine.models.artefacts import EncoderArtefact
from matchwright.engine.models.embedding import EncoderModel
from matchwright.engine.models.opened import CONFIGURE, NOT_CONFIGURED, Models
from matchwright.engine.prose import Prose, plain
from matchwright.kernels.types import Float64, Int32

REMEMBERED = 4_096
"""Embeddings of texts that were asked inline, kept in memory alone: nobody stored them."""
FAILED_S = 1.0
"""How long a text that asks is not sent again after it failed."""
STORED_AT_ONCE = 1_024
"""Embeddings of one transaction: what a kill loses at most, beside the calls in flight."""
_FAILED = (ModelUnavailable, ModelLate, ModelWrong)
_REST_S, _REST_MAX_S = 0.1, 2.0

Tell = Callable[[int, int], None]
"""``tell(done, total)``: texts."""


class Cache(Protocol):
    """Where embeddings are kept, by key."""

    @property
    def writable(self) -> bool: ...
    def get(self, keys: Sequence[bytes]) -> dict[bytes, Int32]:
        """Those that are there."""
        ...

    def missing(self, keys: Sequence[bytes]) -> set[bytes]:
        """Those that are not."""
        ...

    def put(self, keys: Sequence[bytes], rows: Int32) -> None:
        """Stores what is not there yet; what is there stays."""
        ...


@dataclass(frozen=True, slots=True)
class Sent:
    """What making sure of texts took.

    Attributes:
        texts: that were sent to the model.
        seconds: until they were stored, waiting for the server included; 0.0 when none were sent.
    """

    texts: int = 0
    seconds: float = 0.0


class ServedEncoder:
    """A ``ProseEncoder``. Thread-safe.

    Args:
        content_hash: names what its output depends on.
        width: of its output.
        cache: what it gave before.
        model: who is asked for the rest. It may raise ``ModelUnavailable``.
        timeout_s: budget of what comes without a deadline.
    """

    def __init__(
        self,
        content_hash: str,
        width: int,
        cache: Cache,
        model: Callable[[], EncoderModel],
        timeout_s: float = 1.0,
    ) -> None:
        self._content_hash = content_hash
        self._width = width
        self._cache = cache
        self._model = model
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._remembered: OrderedDict[bytes, Int32] = OrderedDict()
        self._failed: OrderedDict[bytes, tuple[str, float]] = OrderedDict()

    @property
    def content_hash(self) -> str:
        return self._content_hash

    @property
    def width(self) -> int:
        return self._width

    def encode(self, texts: Texts) -> Float64:
        """As ``encode_prose``, of texts by themselves."""
        listed = texts.to_list() if isinstance(texts, pl.Series) else texts
        return self.encode_prose([plain(text) for text in listed])

    def encode_prose(self, prose: Sequence[Prose]) -> Float64:
        """float64 (N, width), grid integers of length 1; zeros for blank texts.

        Raises:
            ModelUnavailable: a text that is not stored, and nobody to ask, or no text any more, or
                it failed a moment ago.
            ModelLate, ModelWrong: the model's answer came late, or cannot be used.
        """
        found = self._stored(prose)
        new = {one.key: one for one in prose if not one.blank and one.key not in found}
        if new:
            self._refuse_unkept(new.values())
            self._refuse_failed(new)
            found |= self._embedded(new, time.monotonic() + max(self._timeout_s, len(new)))
        return self._rows(prose, found)

    def look(
        self, prose: Sequence[Prose], deadline: float | None
    ) -> tuple[Float64, Mapping[int, str]]:
        """As ``encode_prose`` for texts that ask: rows that cannot be had are zeros, with a reason.

        A text that failed is not sent again for a moment, so that whoever had it encoded ahead
        does not wait twice.

        Args:
            deadline: moment of the monotonic clock by which the answer is needed.
        """
        found = self._stored(prose)
        why: dict[bytes, str] = {}
        new: dict[bytes, Prose] = {}
        for one in prose:
            if one.key in found or one.blank:
                continue
            failed = self._failed_just_now(one.key)
            if one.text is None:
                why[one.key] = "ENCODER_TEXT_NOT_KEPT"
            elif failed is not None:
                why[one.key] = failed
            else:
                new[one.key] = one
        if new:
            began = time.monotonic()
            until = began + self._timeout_s if deadline is None else deadline
            try:
                found |= self._embedded(new, until)
            except _FAILED as error:
                why |= dict.fromkeys(new, reason_of(error))
                if began < until:  # else it was not asked, and may be, by who has the time
                    self._note_failure(new, reason_of(error))
        missing = {n: why[one.key] for n, one in enumerate(prose) if one.key in why}
        return self._rows(prose, found), missing

    def ensure(
        self, prose: Sequence[Prose], *, wait_s: float = 0.0, tell: Tell | None = None
    ) -> Sent:
        """Stores what is not stored yet; killed in between, what was stored stays.

        Args:
            prose: texts; those that are not kept are passed over.
            wait_s: how long to wait for a server that does not answer, each time.
            tell: told of texts that were stored.

        Raises:
            ModelUnavailable, ModelLate: no answer within ``wait_s``.
            ModelWrong: the model's answer cannot be used.
        """
        texts = {one.key: one.text for one in prose if one.text is not None and not one.blank}
        keys = self._cache.missing(list(texts))
        if not keys:
            return Sent()
        began = time.monotonic()
        left = {key: text for key, text in texts.items() if key in keys and text is not None}
        patience = _Patience(wait_s)
        while left:
            before = len(left)
            try:
                self._store(left, len(keys), tell)
            except (ModelUnavailable, ModelLate) as error:
                if len(left) < before:
                    patience = _Patience(wait_s)
                patience.rest(error)
        return Sent(len(keys), time.monotonic() - began)

    def carry(self, before: Prose, after: Prose) -> None:
        """What is stored for one text, if anything is, stands for another as well.

        For a text that is not kept: a patch may spell the skills beside it in another way.
        """
        found = self._cache.get([before.key])
        if before.key in found and before.key != after.key:
            self._cache.put([after.key], found[before.key][None, :])

    def _store(self, left: dict[bytes, str], total: int, tell: Tell | None) -> None:
        """Sends all that is left, and takes out of it what was stored."""
        keys = list(left)
        batch: list[bytes] = []
        rows: list[Int32] = []

        def flush() -> None:
            if not batch:
                return
            self._cache.put(batch, np.concatenate(rows))
            for key in batch:
                del left[key]
            batch.clear()
            rows.clear()
            if tell is not None:
                tell(total - len(left), total)

        try:
            for at_n, vectors in self._model().stream(list(left.values())):
                batch += [keys[n] for n in at_n.tolist()]
                rows.append(vectors)
                if len(batch) >= STORED_AT_ONCE:
                    flush()
        finally:
            flush()

    def _embedded(self, new: Mapping[bytes, Prose], deadline: float) -> dict[bytes, Int32]:
        """Vectors of new texts; stored where that is allowed, else remembered."""
        keys, texts = list(new), [one.text or "" for one in new.values()]
        rows = self._model().embed(texts, deadline)
        if self._cache.writable:
            self._cache.put(keys, rows)
            return self._cache.get(keys)
        with self._lock:
            for key, row in zip(keys, rows, strict=True):
                self._remembered.setdefault(key, row)
            made = {key: self._remembered[key] for key in keys}
            while len(self._remembered) > REMEMBERED:
                self._remembered.popitem(last=False)
        return made

    def _note_failure(self, keys: Iterable[bytes], reason: str) -> None:
        with self._lock:
            for key in keys:
                self._failed[key] = reason, time.monotonic()
                self._failed.move_to_end(key)
            while len(self._failed) > REMEMBERED:
                self._failed.popitem(last=False)

    def _failed_just_now(self, key: bytes) -> str | None:
        with self._lock:
            reason, at = self._failed.get(key, ("", 0.0))
        return reason if reason and time.monotonic() - at < FAILED_S else None

    def _stored(self, prose: Sequence[Prose]) -> dict[bytes, Int32]:
        keys = list({one.key for one in prose if not one.blank})
        found = self._cache.get(keys) if keys else {}
        if len(found) < len(keys):
            with self._lock:
                for key in keys:
                    if key not in found and key in self._remembered:
                        self._remembered.move_to_end(key)
                        found[key] = self._remembered[key]
        return found

    def _rows(self, prose: Sequence[Prose], found: Mapping[bytes, Int32]) -> Float64:
        out = np.zeros((len(prose), self._width))
        for n, one in enumerate(prose):
            row = found.get(one.key)
            if row is not None:
                out[n] = row
        return out

    def _refuse_unkept(self, prose: Iterable[Prose]) -> None:
        if any(one.text is None for one in prose):
            raise ModelUnavailable(
                "a record's text is not kept and its embedding is not stored; import the record "
                "again, with its text",
                model="encoder",
                why="TEXT_NOT_KEPT",
            )

    def _refuse_failed(self, keys: Iterable[bytes]) -> None:
        """Who had a text encoded ahead does not wait twice, see ``look``."""
        why = next(filter(None, map(self._failed_just_now, keys)), None)
        if why is not None:
            raise ModelUnavailable(
                f"a text could not be encoded a moment ago ({why}); ask again in a second",
                model="encoder",
                why=why.removeprefix("ENCODER_"),
            )


class _Patience:
    """Rests longer and longer, until there was no answer for ``wait_s``."""

    def __init__(self, wait_s: float) -> None:
        self._until = time.monotonic() + wait_s
        self._wait_s = wait_s
        self._rest_s = _REST_S

    def rest(self, error: MatchwrightError) -> None:
        """Sleeps, or raises ``error`` when it has been long enough."""
        left = self._until - time.monotonic()
        # Nobody is there to be waited for.
        if left <= 0 or error.details.get("why") == NOT_CONFIGURED:
            raise error
        time.sleep(min(self._rest_s, left))
        self._rest_s = min(2 * self._rest_s, _REST_MAX_S)


def reason_of(error: MatchwrightError) -> str:
    """What an answer says that had to go without the encoder."""
    if isinstance(error, ModelLate):
        return "ENCODER_LATE"
    if isinstance(error, ModelWrong):
        return "ENCODER_WRONG_OUTPUT"
    return f"ENCODER_{error.details.get('why', 'UNREACHABLE')}"


def artefact_of(models: Models | None, content_hash: str, version: int) -> EncoderArtefact:
    """The encoder of this content in the repository: the version named, or another of the same.

    Raises:
        ModelUnavailable: there is none, or no repository.
        StoreDamaged, StoreFormat: it cannot be used.
    """
    if models is None or models.config.repository is None:
        raise ModelUnavailable(
            "a new text needs the served encoder that the store's generation was made with, and "
            f"no model repository is configured; {CONFIGURE}",
            model="encoder",
            why=NOT_CONFIGURED,
        )
    there = models.repository.versions("encoder")
    ordered = [n for n in (version,) if n in there] + [n for n in there[::-1] if n != version]
    for n in ordered:
        artefact = models.encoder(n)
        if artefact.content_hash == content_hash:
            return artefact
    raise ModelUnavailable(
        f"{models.config.repository} holds no encoder {content_hash}, with which the store's "
        f"generation was made (version {version} then); put it back, or refit the store with "
        "another one",
        model=f"encoder:{version}",
        why=NOT_CONFIGURED,
    )


class ModelSource:
    """``()`` gives the ``EncoderModel``; asked again after it could not be given."""

    def __init__(self, models: Models | None, content_hash: str, version: int) -> None:
        self._models, self._content_hash, self._version = models, content_hash, version
        self._lock = threading.Lock()
        self._found: EncoderModel | None = None

    def __call__(self) -> EncoderModel:
        """See ``artefact_of`` for the errors."""
        with self._lock:
            if self._found is None:
                artefact = artefact_of(self._models, self._content_hash, self._version)
                models = self._models
                assert models is not None, "artefact_of refuses None"
                self._found = EncoderModel(artefact, lambda: models.client)
            return self._found
