"""A generation's folder: ``generation.json`` and the encoder's arrays, each with its checksum.

::

    generation.json   manifest (canonical JSON); its content id is kept in ``id``
    id                32 hex digits and a newline
    vocabulary.txt    learnt tokens, one a line                      (svd only)
    idf.npy           int32 (V,)
    projection.npy    int16 (V, width)

Of a served encoder nothing is here but its name: what it gave is kept by the store.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from matchwright.engine.errors import NotFound, StoreDamaged, StoreFormat
from matchwright.engine.generation.manifest import FORMAT_VERSION, Manifest, TextState
from matchwright.engine.generation.served import NotServed
from matchwright.engine.generation.text import HashedEncoder, SvdEncoder, TextEncoder

MANIFEST = "generation.json"
ID = "id"
VOCABULARY, IDF, PROJECTION = "vocabulary.txt", "idf.npy", "projection.npy"


def checksum(data: bytes) -> str:
    """BLAKE2b-256 in hex."""
    return hashlib.blake2b(data, digest_size=32).hexdigest()


def encoder_files(encoder: TextEncoder) -> dict[str, bytes]:
    """The files of an encoder: name -> content."""
    if not isinstance(encoder, SvdEncoder):
        return {}
    return {
        VOCABULARY: "\n".join(encoder.vocabulary).encode(),
        IDF: _npy(encoder.idf.astype("<i4")),
        PROJECTION: _npy(encoder.projection.astype("<i2")),
    }


def save(path: Path, manifest: Manifest, encoder: TextEncoder) -> None:
    """Write all files; the id last, so that a folder without it is known to be unfinished."""
    path.mkdir(parents=True, exist_ok=True)
    for name, content in encoder_files(encoder).items():
        (path / name).write_bytes(content)
    (path / MANIFEST).write_bytes(manifest.to_bytes())
    (path / ID).write_text(f"{manifest.content_id()}\n", "ascii")


Served = Callable[[TextState], TextEncoder]
"""Gives the encoder that a generation names, of those that are served."""


def load(path: Path, served: Served | None = None) -> tuple[Manifest, TextEncoder]:
    """Read and check all files; see ``Generation.load`` for the errors."""
    file = path / MANIFEST
    if not file.is_file():
        raise NotFound(f"{path}: holds no generation ({MANIFEST} is missing)", file=file)
    content = file.read_bytes()
    manifest = _manifest(file, content)
    if manifest.content_id() != _read(path / ID).decode("ascii", "replace").strip():
        raise _damaged(file, "its content id is another than the one in the file id")
    return manifest, _encoder(path, manifest, served or NotServed)


def parse(content: bytes, where: Path) -> Manifest:
    """A manifest from its bytes; ``where`` is for messages."""
    return _manifest(where, content)


class _Version(msgspec.Struct):
    format_version: int


def _manifest(file: Path, content: bytes) -> Manifest:
    try:
        version = msgspec.json.decode(content, type=_Version).format_version
        if version == FORMAT_VERSION:
            return msgspec.json.decode(content, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _damaged(file, str(error))
    raise StoreFormat(
        f"{file}: format version {version}, this engine reads {FORMAT_VERSION}; "
        "use the engine that wrote it, or import into a new store",
        file=file,
    )


def _encoder(path: Path, manifest: Manifest, served: Served) -> TextEncoder:
    state = manifest.text
    files = {name: _checked(path / name, digest) for name, digest in state.files.items()}
    encoder: TextEncoder
    if state.encoder == "hashed":
        encoder = HashedEncoder(state.width, state.tf_table)
    elif state.encoder == "svd":
        encoder = SvdEncoder(
            tuple(files[VOCABULARY].decode().split("\n")),
            _array(files[IDF]),
            _array(files[PROJECTION]),
            state.tf_table,
        )
    elif state.encoder == "served":
        encoder = served(state)
    else:
        raise StoreFormat(f"{path / MANIFEST}: unknown encoder {state.encoder!r}")
    if encoder.content_hash != state.content_hash:
        raise StoreFormat(
            f"{path / MANIFEST}: the encoder's tables are not those of this engine's version",
            file=path / MANIFEST,
        )
    return encoder


def _checked(file: Path, digest: str) -> bytes:
    content = _read(file)
    if checksum(content) != digest:
        raise _damaged(file, "its checksum does not match")
    return content


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        raise _damaged(file, "it is missing")


def _damaged(file: Path, why: str) -> StoreDamaged:
    return StoreDamaged(f"{file}: {why}; restore the file from a copy, or refit", file=file)


def _npy(array: NDArray[Any]) -> bytes:
    out = io.BytesIO()
    np.save(out, np.ascontiguousarray(array), allow_pickle=False)
    return out.getvalue()


def _array(content: bytes) -> NDArray[Any]:
    return np.asarray(np.load(io.BytesIO(content), allow_pickle=False))
