"""The model repository: one folder that Triton serves from and that the engine reads.

::

    REPO/encoder/config.pbtxt     what Triton is told (models/description.py)
    REPO/encoder/<version>/       model.onnx, tokenizer.json, encoder.json [, probes.json, model.py]
    REPO/ranker/config.pbtxt
    REPO/ranker/<version>/        model.txt, ranker.json [, model.py]

A version never changes: it is written beside its name, and renamed when it is whole and durable.
"""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import shutil
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from matchwright.engine.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    InvalidData,
    NotFound,
)
from matchwright.engine.models import artefacts, description, pbtxt
from matchwright.engine.models.artefacts import (
    BACKEND,
    DESCRIPTIONS,
    PROBES,
    TOKENIZER,
    WEIGHTS,
    EncoderArtefact,
    RankerArtefact,
    file_digest,
)
from matchwright.engine.models.description import ENCODER, RANKER, ModelSpec, Variant

__all__ = ["EncoderArtefact", "RankerArtefact", "Repository", "add_encoder", "add_ranker", "sync"]

CONFIG = "config.pbtxt"
MAX_TOKENS = 256
MAX_TOKENS_LEAST, MAX_TOKENS_MOST = artefacts.BOUNDS["max_tokens"]
VERSION_MAX = 2**31 - 1
_BUILD = "make one with `matchwright models build`"


class Repository:
    """A repository's versions, checked when they are first asked for. Thread-safe."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._checked: dict[tuple[str, int], dict[str, Any]] = {}

    @classmethod
    def open(cls, folder: Path) -> Repository:
        """The repository in a folder.

        Raises:
            NotFound: the folder is not there, or holds neither encoder nor ranker.
        """
        if not any((folder / name).is_dir() for name in DESCRIPTIONS):
            raise NotFound(
                f"{folder} is no model repository: it holds neither {ENCODER}/ nor {RANKER}/; "
                f"{_BUILD}",
                folder=folder,
            )
        return cls(folder)

    def versions(self, name: str) -> tuple[int, ...]:
        """Versions of a model that lie in the folder, in ascending order; maybe none."""
        return versions_in(self.folder / name)

    def encoder(self, version: int | None = None) -> EncoderArtefact:
        """A version of the encoder, the newest when None; its files are compared with digests once.

        Raises:
            NotFound: there is no such version; the message says which there are.
            StoreDamaged: a file is missing or not what it was; the message names it.
            StoreFormat: a newer matchwright wrote it.
        """
        at = self._pick(ENCODER, version)
        told = self._description(ENCODER, at)
        return EncoderArtefact(
            path=self.folder / ENCODER / str(at),
            version=at,
            content_hash=told["content_hash"],
            dimensions=told["dimensions"],
            max_tokens=told["max_tokens"],
        )

    def ranker(self, version: int | None = None) -> RankerArtefact:
        """A version of the ranker, the newest when None; raises as ``encoder`` does."""
        at = self._pick(RANKER, version)
        told = self._description(RANKER, at)
        return RankerArtefact(
            path=self.folder / RANKER / str(at),
            version=at,
            content_hash=told["content_hash"],
            features_version=told["features_version"],
            features=tuple(told["features"]),
            grid_bits=told["grid_bits"],
            bias=told["bias"],
        )

    def variant(self, name: str) -> Variant:
        """Whether a model's ``config.pbtxt`` is for production or for the Python backend.

        Raises:
            StoreDamaged: there is no such file.
            InvalidData: it cannot be read.
        """
        return variant_of(self.folder / name / CONFIG)

    def _pick(self, name: str, version: int | None) -> int:
        there = self.versions(name)
        if version is None and there:
            return there[-1]
        if version is not None and version in there:
            return version
        what = "a version" if version is None else f"version {version}"
        has = f"it has {', '.join(map(str, there))}" if there else f"it has none; {_BUILD}"
        raise NotFound(f"{self.folder / name} has not {what}; {has}", model=name)

    def _description(self, name: str, version: int) -> dict[str, Any]:
        key = (name, version)
        if key not in self._checked:
            self._checked[key] = artefacts.checked(name, self.folder / name / str(version))
        return self._checked[key]


def versions_in(folder: Path) -> tuple[int, ...]:
    """The subfolders whose names are versions, as Triton sees them: whole numbers above 0."""
    if not folder.is_dir():
        return ()
    names = (entry.name for entry in folder.iterdir() if entry.is_dir())
    return tuple(sorted(int(n) for n in names if n.isascii() and n.isdigit() and n[0] != "0"))


def variant_of(config: Path) -> Variant:
    """The variant that a ``config.pbtxt`` was made for; raises as ``Repository.variant`` does."""
    try:
        text = config.read_text("utf-8")
    except FileNotFoundError:
        raise artefacts.missing(config) from None
    except UnicodeDecodeError as error:
        raise InvalidData(f"{config}: not UTF-8 at byte {error.start}", file=config) from None
    said = pbtxt.parse(text, str(config)).get("backend", [""])[-1]
    return "python" if said == "python" else "production"


def add_encoder(
    repo: Path,
    source: Path,
    *,
    backend: Variant,
    version: int | None = None,
    max_tokens: int = MAX_TOKENS,
) -> EncoderArtefact:
    """Adds a version of the encoder to a repository, which may be new.

    Args:
        repo: the repository's folder.
        source: a folder with ``model.onnx`` and ``tokenizer.json``.
        backend: who will run it.
        version: the next one when None. One that is there with the same content stays as it is.
        max_tokens: texts are cut to so many tokens; the model must take that many.

    Raises:
        NotFound, InvalidData: the source cannot be used.
        AlreadyExists: the version is there with other content.
        FailedPrecondition: other versions are for another backend, or of other dimensions.
    """
    from matchwright.engine.models import encoder_source

    if not MAX_TOKENS_LEAST <= max_tokens <= MAX_TOKENS_MOST:
        raise InvalidArgument(
            f"an encoder takes {MAX_TOKENS_LEAST} to {MAX_TOKENS_MOST:,} tokens, got {max_tokens}",
            field="max_tokens",
        )
    dimensions = encoder_source.dimensions_of(source)
    spec = description.encoder(dimensions)
    files: dict[str, Path | bytes] = {name: source / name for name in (WEIGHTS[ENCODER], TOKENIZER)}
    told = {
        "format": artefacts.FORMAT,
        "content_hash": "",
        "dimensions": dimensions,
        "max_tokens": max_tokens,
        "files": {name: file_digest(source / name) for name in files},
    }
    told["content_hash"] = artefacts.hash_of(ENCODER, told)
    if importlib.util.find_spec("onnxruntime"):
        from matchwright.engine.models import probes

        files[PROBES] = probes.record(source, max_tokens, dimensions)
    at = _add(repo, spec, backend, version, told, files)
    return Repository.open(repo).encoder(at)


def add_ranker(
    repo: Path, source: Path, *, backend: Variant, version: int | None = None
) -> RankerArtefact:
    """Adds a version of the ranker; arguments and errors as ``add_encoder`` has them.

    Args:
        source: a folder with ``model.txt`` and ``ranker.json``, as a training leaves it.
    """
    from matchwright.engine.rerank.trees import Trees, read_description

    trees = Trees.load(source)
    told = read_description(source)
    spec = description.ranker(len(trees.features))
    files: dict[str, Path | bytes] = {WEIGHTS[RANKER]: source / WEIGHTS[RANKER]}
    told["files"] = {name: file_digest(source / name) for name in files}
    at = _add(repo, spec, backend, version, told, files)
    return Repository.open(repo).ranker(at)


def _add(
    repo: Path,
    spec: ModelSpec,
    backend: Variant,
    version: int | None,
    told: dict[str, Any],
    files: dict[str, Path | bytes],
) -> int:
    """Writes configuration and version; returns the version that holds the content."""
    folder = repo / spec.name
    at = _version(folder, version)
    if version is not None and at in versions_in(folder):
        return _same(folder, at, spec.name, told)
    _check_config(folder / CONFIG, spec, backend)
    if backend == "python":
        files[BACKEND] = backend_source(spec.name)
    if spec.name == RANKER:
        told["version"] = at
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / CONFIG).exists():
        _write_config(folder / CONFIG, spec, backend)
    _place(folder, at, spec.name, told, files)
    return at


def _version(folder: Path, asked: int | None) -> int:
    if asked is None:
        return max(versions_in(folder), default=0) + 1
    if not 1 <= asked <= VERSION_MAX:
        raise InvalidArgument(f"a version is 1 to {VERSION_MAX}, got {asked}", field="version")
    return asked


def _same(folder: Path, at: int, name: str, told: Mapping[str, Any]) -> int:
    """The version that is there, when it holds the same content."""
    there = artefacts.checked(name, folder / str(at))
    if there["content_hash"] != told["content_hash"]:
        raise AlreadyExists(
            f"{folder / str(at)} is there with other content ({there['content_hash']}, not "
            f"{told['content_hash']}); a version never changes: give another --version, or none",
            model=name,
            version=at,
        )
    return at


def _check_config(path: Path, spec: ModelSpec, backend: Variant) -> None:
    """A configuration that is there already, maybe tuned, must serve the new version too."""
    if not path.exists():
        return
    there = variant_of(path)
    if there != backend:
        raise FailedPrecondition(
            f"{path} is for the {there} backend, asked for was {backend}; a repository is for one: "
            f"build into another folder, or give --backend {there}",
            file=path,
        )
    wrong = description.differences(path.read_text("utf-8"), spec, backend, str(path))
    if wrong:
        raise FailedPrecondition(
            f"{path} does not fit this {spec.name}: {'; '.join(wrong)}. All versions in a "
            "repository have one configuration: build into another folder",
            file=path,
        )


def backend_source(name: str) -> bytes:
    """``model.py`` of a model, for Triton's Python backend."""
    return resources.files(f"{__package__}.backends").joinpath(f"{name}.py").read_bytes()


def _write_config(path: Path, spec: ModelSpec, backend: Variant) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    _write(part, description.config_text(spec, backend).encode())
    part.rename(path)


def _place(
    folder: Path, at: int, name: str, told: dict[str, Any], files: Mapping[str, Path | bytes]
) -> None:
    """Writes a version under a name that Triton does not look at, then gives it its own."""
    part = folder / f".{at}.{os.getpid()}.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    try:
        for file, content in files.items():
            _write(part / file, content)
        # Digests of what was written, not of what was read: the source may have changed meanwhile.
        written = {file: file_digest(part / file) for file in files}
        if any(written[file] != digest for file, digest in told["files"].items()):
            raise InvalidData("the source changed while it was read; build again")
        told["files"] = written
        _write(part / DESCRIPTIONS[name], json.dumps(told, indent=2).encode() + b"\n")
        sync(part)
        part.rename(folder / str(at))
        sync(folder)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
            raise _taken(folder / str(at))
        raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _taken(path: Path) -> AlreadyExists:
    return AlreadyExists(f"{path} was made by somebody else at the same time; build again")


def _write(path: Path, content: Path | bytes) -> None:
    with path.open("wb") as file:
        if isinstance(content, bytes):
            file.write(content)
        else:
            with content.open("rb") as source:
                shutil.copyfileobj(source, file, 1 << 20)
        file.flush()
        os.fsync(file.fileno())


def sync(folder: Path) -> None:
    """Makes names that were created or renamed in a folder durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
