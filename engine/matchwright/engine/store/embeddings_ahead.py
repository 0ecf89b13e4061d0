"""The store's side of served encoders: which there are, and texts encoded before they are needed.

A text of a write is encoded before the writer's lock is taken, so nobody waits for a model but the
write itself. Under the lock its vector is read from the cache.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from matchwright.engine.errors import (
    FailedPrecondition,
    InvalidArgument,
    MatchwrightError,
    NotFound,
)
from matchwright.engine.store import embeddings
from matchwright.engine.store.catalog import FILE, KINDS, Catalog, Kind
from matchwright.engine.store.embeddings import EmbeddingCache, EmbeddingFile, encoders_of
from matchwright.engine.store.encode import Neighbours, default_neighbours
from matchwright.engine.store.snapshot import rows_of_schema, stored_record

if TYPE_CHECKING:
    from matchwright.engine.generation.manifest import TextState
    from matchwright.engine.models.artefacts import EncoderArtefact
    from matchwright.engine.models.encoder import Sent, ServedEncoder
    from matchwright.engine.models.opened import Models
    from matchwright.engine.prose import Prose

Tell = Callable[[int, int], None]
WRITE_WAIT_S = 10.0
ROWS_AT_ONCE = 4_096


def silent(done: int, total: int) -> None:
    """Progress that nobody watches."""


def served(generation: Any) -> ServedEncoder | None:
    """The served encoder of a generation; None where it has an embedded one."""
    encoder = getattr(generation, "encoder", None)
    return encoder if hasattr(encoder, "ensure") else None


class Embeddings:
    """The served encoders of one open store, each with its file.

    Args:
        root: the store's folder.
        models: which models there are and who serves them; None for what is stored alone.
        write: whether new embeddings are stored.
    """

    def __init__(self, root: Path, models: Models | None, *, write: bool) -> None:
        self.root = root
        self.models = models
        self._write = write
        self._lock = threading.Lock()
        self._known: dict[str, tuple[ServedEncoder, EmbeddingCache]] = {}
        self._in_flight: dict[int, frozenset[bytes]] = {}
        self._numbers = itertools.count()

    @property
    def wait_s(self) -> float:
        """How long a write waits for a server that does not answer."""
        return WRITE_WAIT_S if self.models is None else self.models.config.write_wait_ms / 1000

    def encoder(self, state: TextState) -> ServedEncoder:
        """The encoder that a generation names. It is asked for new texts only."""
        version = state.served.version if state.served else 0
        return self.made(state.content_hash, state.width, version)

    def made(self, content_hash: str, width: int, version: int) -> ServedEncoder:
        """The encoder of a content hash, one for all generations that name it."""
        from matchwright.engine.models.encoder import ModelSource, ServedEncoder

        with self._lock:
            if content_hash not in self._known:
                path = embeddings.path_of(self.root, content_hash)
                cache = EmbeddingCache(path, width, writable=self._write)
                timeout_s = 1.0 if self.models is None else self.models.config.timeout_ms / 1000
                source = ModelSource(self.models, content_hash, version)
                encoder = ServedEncoder(content_hash, width, cache, source, timeout_s)
                self._known[content_hash] = encoder, cache
            return self._known[content_hash][0]

    def artefact(self, version: int | None = None) -> EncoderArtefact:
        """A version of the encoder in the repository, the newest by default.

        Raises:
            InvalidArgument, NotFound: no repository was given, or it has no such version.
            StoreDamaged, StoreFormat: a file of it cannot be used.
        """
        if self.models is None:
            raise InvalidArgument(
                "a served encoder comes from a model repository; give --models DIR and "
                "--triton HOST:PORT",
                field="models",
            )
        return self.models.encoder(version)

    def of(self, artefact: EncoderArtefact) -> ServedEncoder:
        """The encoder of a version in the repository."""
        return self.made(artefact.content_hash, artefact.dimensions, artefact.version)

    def file(self, encoder: ServedEncoder) -> EmbeddingFile:
        """The file of an encoder of this store, made if it is not there."""
        return self._known[encoder.content_hash][1].file()

    def close(self) -> None:
        """Lets all files go."""
        with self._lock:
            for _, cache in self._known.values():
                cache.close()

    @contextmanager
    def ahead(self, generation: Any, prose: Callable[[], Sequence[Prose]]) -> Iterator[Sent | None]:
        """Texts of a write are stored before its block, and stay until it ends.

        Args:
            generation: in force; nothing is done where its encoder is embedded.
            prose: gives the texts.

        Raises:
            ModelUnavailable, ModelLate, ModelWrong: a text cannot be encoded.
        """
        encoder = served(generation)
        if encoder is None:
            yield None
            return
        texts = prose()
        with self.in_flight(texts):
            yield encoder.ensure(texts, wait_s=self.wait_s)

    @contextmanager
    def in_flight(self, texts: Sequence[Prose]) -> Iterator[None]:
        """What is taken out of the files because no record has it leaves these alone."""
        number = next(self._numbers)
        with self._lock:
            self._in_flight[number] = frozenset(one.key for one in texts)
        try:
            yield
        finally:
            with self._lock:
                del self._in_flight[number]

    def keys_in_flight(self) -> set[bytes]:
        """Keys of texts of writes that are under way."""
        with self._lock:
            return set().union(*self._in_flight.values())

    def tidy(self) -> None:
        """Removes files of encoders that no generation has and no build counts on."""
        there = embeddings.paths(self.root)
        needed = encoders_of(self.root) if there else set()
        for path in there:
            if embeddings.content_hash_of(path) not in needed and not _counted_on(path):
                with embeddings.held(self.root, alone=True):
                    if not _counted_on(path):  # since a moment ago
                        self._drop(path)

    def _drop(self, path: Path) -> None:
        with self._lock:
            known = self._known.get(embeddings.content_hash_of(path))
        if known is not None:
            known[1].close()
        for end in ("", "-wal", "-shm"):
            with suppress(OSError):
                path.with_name(path.name + end).unlink(missing_ok=True)


def _counted_on(path: Path) -> bool:
    """Whether a file that no generation needs is ahead of one, or cannot be read to tell."""
    file = EmbeddingFile(path, 0, write=False)
    try:
        return file.is_ahead()
    except (MatchwrightError, TypeError):  # `store verify` says what is wrong with it
        return True
    finally:
        file.close()


@dataclass(frozen=True, slots=True)
class Embedded:
    """What encoding a whole store ahead of time did.

    Attributes:
        encoder: content hash.
        version: of the model.
        records: whose texts were looked at.
        sent: texts that had no embedding yet; equal ones once, blank ones left out.
        seconds: it took.
    """

    encoder: str
    version: int
    records: int
    sent: int
    seconds: float


def embed_all(
    texts: Embeddings,
    encoder: ServedEncoder,
    catalog: Catalog,
    neighbours: Neighbours,
    tell: Tell = silent,
) -> tuple[int, int]:
    """Stores the embeddings of all records that a store has now; (records, texts sent).

    Other processes may write to the store meanwhile. Killed at any moment, what was stored stays.

    Args:
        tell: told of records that are done, and of all.

    Raises:
        ModelUnavailable, ModelLate: no answer for as long as a write waits.
        ModelWrong: an answer that cannot be used.
    """
    with embeddings.held(texts.root, alone=False):  # else it might go before it is counted on
        texts.file(encoder).set_ahead(ahead=True)
    with catalog.look() as connection:
        counted = [connection.execute(f"SELECT count(*) FROM {kind}").fetchone() for kind in KINDS]
    total, done, sent = sum(int(n) for (n,) in counted), 0, 0
    tell(done, total)
    for kind in KINDS:
        blocks = stored_rows(catalog, neighbours, kind, ROWS_AT_ONCE)
        while True:
            # Who is erased meanwhile goes when their texts are stored, or before they are read.
            with embeddings.held(texts.root, alone=False):
                rows = next(blocks, None)
                if rows is None:
                    break
                part = partial(_part, tell, done, len(rows), total)
                said = encoder.ensure(neighbours.prose(rows), wait_s=texts.wait_s, tell=part)
            done, sent = done + len(rows), sent + said.texts
            tell(min(done, total), total)
    return done, sent


def _part(tell: Tell, done: int, rows: int, total: int, some: int, of: int) -> None:
    """Tells of ``some`` of the ``of`` texts that some rows have to send."""
    tell(min(done + rows * some // of, total), total)


def embed(root: Path, models: Models, version: int | None = None, tell: Tell = silent) -> Embedded:
    """Encodes the texts of a store ahead of time; readers and a writer of it may be at work.

    Args:
        root: the store's folder.
        models: the repository, and who serves its models.
        version: of the encoder, the newest by default.
        tell: told of records that are done, and of all.

    Raises:
        NotFound: there is no store, or no such version.
        FailedPrecondition: the store is a replica, or does not keep texts.
        ModelUnavailable, ModelLate, ModelWrong: not every text was encoded; what was stays.
    """
    from matchwright.engine.generation.fitting import check_width
    from matchwright.engine.store import replica  # what it needs, needs this module

    if not (root / FILE).is_file():
        raise NotFound(f"{root}: holds no store; import into it to make one", file=root)
    replica.refuse_writer(root)
    began = time.monotonic()
    texts = Embeddings(root, models, write=True)
    artefact = texts.artefact(version)
    check_width(artefact.dimensions)
    encoder = texts.of(artefact)
    with closing(Catalog(root / FILE, write=False)) as catalog, closing(texts):
        catalog.check()
        with catalog.look() as connection:
            keep_text = catalog.state(connection).keep_text
        if not keep_text:
            raise FailedPrecondition(
                f"{root}: does not keep texts, so there is nothing to encode; its records are "
                "encoded as they are imported"
            )
        records, sent = embed_all(texts, encoder, catalog, default_neighbours(), tell)
        if artefact.content_hash in encoders_of(root):
            texts.file(encoder).set_ahead(ahead=False)
    seconds = round(time.monotonic() - began, 3)
    return Embedded(artefact.content_hash, artefact.version, records, sent, seconds)


def stored_rows(
    catalog: Catalog, neighbours: Neighbours, table: str, at_once: int, low: int = 0
) -> Iterator[list[dict[str, Any]]]:
    """Records of a table of the catalog from number ``low`` on, as rows, some at a time."""
    kind, where, last = cast(Kind, table.removesuffix("_old")), str(catalog.path), low - 1
    while True:
        with catalog.look() as connection:
            found = connection.execute(
                f"SELECT seq, id, hash, body FROM {table} WHERE seq > ? ORDER BY seq LIMIT ?",
                (last, at_once),
            ).fetchall()
        if not found:
            return
        last = found[-1][0]
        records = [stored_record(name, content, body, where) for _, name, content, body in found]
        yield rows_of_schema(neighbours, kind, records)
