"""One version of a model in its folder: what its description says, and whether its files are whole.

A description (``encoder.json``, ``ranker.json``) holds a digest of every other file of its version.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from matchwright.engine.errors import StoreDamaged, StoreFormat
from matchwright.engine.models.description import ENCODER, RANKER

FORMAT = 1
DESCRIPTIONS = {ENCODER: "encoder.json", RANKER: "ranker.json"}
WEIGHTS = {ENCODER: "model.onnx", RANKER: "model.txt"}
TOKENIZER, PROBES, BACKEND = "tokenizer.json", "probes.json", "model.py"
BOUNDS = {"dimensions": (1, 8_192), "max_tokens": (8, 8_192)}
"""Of an encoder's description."""
_DESCRIPTION_BYTES_MAX = 16 << 20


@dataclass(frozen=True)
class EncoderArtefact:
    """One version of the encoder.

    Attributes:
        path: the version's folder.
        content_hash: names what determines its embeddings: model, tokenizer, ``max_tokens``.
        dimensions: of an embedding.
        max_tokens: texts are cut to so many tokens.
    """

    path: Path
    version: int
    content_hash: str
    dimensions: int
    max_tokens: int


@dataclass(frozen=True)
class RankerArtefact:
    """One version of the ranker.

    Attributes:
        path: the version's folder; ``Trees.load`` takes it.
        content_hash: names what determines its scores: features and trees.
        features: names in column order.
        grid_bits: a score is an integer times ``2**-grid_bits``.
        bias: what the trees say before anything is asked, in these units.
    """

    path: Path
    version: int
    content_hash: str
    features_version: int
    features: tuple[str, ...]
    grid_bits: int
    bias: int


def checked(name: str, folder: Path) -> dict[str, Any]:
    """The description in a version's folder, after its files were compared with their digests.

    Raises:
        StoreDamaged, StoreFormat: as ``Repository.encoder`` says.
    """
    path = folder / DESCRIPTIONS[name]
    told = _read(path)
    if told.get("format") != FORMAT:
        raise StoreFormat(
            f"{path} is of format {told.get('format')!r}, this matchwright reads {FORMAT}; "
            "use the one that wrote it, or a newer one",
            file=path,
        )
    _check_fields(path, told, _FIELDS[name])
    wanted = {WEIGHTS[name]} | ({TOKENIZER} if name == ENCODER else set())
    if not wanted <= set(told["files"]):
        raise StoreDamaged(f"{path} holds no digest of {', '.join(sorted(wanted))}", file=path)
    for file, digest in told["files"].items():
        _compare(folder / Path(file).name, digest)
    if hash_of(name, told) != told["content_hash"]:
        raise StoreDamaged(
            f"{path} names the content {told['content_hash']}, its own fields make "
            f"{hash_of(name, told)}; it was edited: build the version again",
            file=path,
        )
    return told


_FIELDS: dict[str, dict[str, type]] = {
    ENCODER: {"content_hash": str, "dimensions": int, "max_tokens": int, "files": dict},
    RANKER: {
        "content_hash": str,
        "features_version": int,
        "features": list,
        "grid_bits": int,
        "bias": int,
        "files": dict,
    },
}


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            raw = file.read(_DESCRIPTION_BYTES_MAX + 1)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise missing(path) from None
    try:
        told = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise StoreDamaged(f"{path}: not JSON: {error}", file=path) from None
    if not isinstance(told, dict) or len(raw) > _DESCRIPTION_BYTES_MAX:
        raise StoreDamaged(f"{path}: not the description of a model", file=path)
    return cast(dict[str, Any], told)


def _check_fields(path: Path, told: dict[str, Any], fields: dict[str, type]) -> None:
    for name, kind in fields.items():
        value = told.get(name)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise StoreDamaged(f"{path}: {name!r} is missing or no {kind.__name__}", file=path)
        if name in BOUNDS:
            _check_bounds(path, name, told[name])


def _check_bounds(path: Path, name: str, value: int) -> None:
    least, most = BOUNDS[name]
    if not least <= value <= most:
        raise StoreDamaged(
            f"{path}: {name!r} is {value}; expected {least:,} to {most:,}", file=path
        )


def _compare(path: Path, digest: str) -> None:
    try:
        got = file_digest(path)
    except (FileNotFoundError, IsADirectoryError):
        raise missing(path) from None
    if got != digest:
        raise StoreDamaged(
            f"{path} is not what it was when the version was built (BLAKE2b-256 {got}, expected "
            f"{digest}); copy it again, or build the version again",
            file=path,
        )


def missing(path: Path) -> StoreDamaged:
    return StoreDamaged(
        f"{path} is missing; copy the repository again, or build the version again", file=path
    )


def file_digest(path: Path) -> str:
    """BLAKE2b-256 (hex) of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=32)).hexdigest()


def hash_of(name: str, told: dict[str, Any]) -> str:
    """BLAKE2b-128 (hex) over what determines a model's answers.

    Of an encoder: the names and digests of model and tokenizer, and ``max_tokens``. Of a ranker:
    the features' version and names, the grid, and the digest of its trees.
    """
    if name == RANKER:
        from matchwright.engine.rerank.trees import content_hash

        digest = str(told["files"][WEIGHTS[RANKER]])
        return content_hash(told["features_version"], told["features"], told["grid_bits"], digest)
    files = [[file, told["files"][file]] for file in (WEIGHTS[ENCODER], TOKENIZER)]
    raw = json.dumps([*files, told["max_tokens"]], separators=(",", ":")).encode()
    return hashlib.blake2b(raw, digest_size=16).hexdigest()
