"""Is a repository's folder whole, and does its configuration say what the engine relies on?"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from matchwright.engine.errors import StoreDamaged
from matchwright.engine.models import conformance, description, encoder_source
from matchwright.engine.models.artefacts import BACKEND, EncoderArtefact, RankerArtefact
from matchwright.engine.models.description import ENCODER, RANKER, ModelSpec
from matchwright.engine.models.findings import Finding, Verdict, judged, skipped
from matchwright.engine.models.repository import CONFIG, Repository, backend_source


def check_repository(repository: Repository) -> Verdict:
    """Every version: files and digests, tensors, trees; and that one configuration fits them all.

    Nothing is run, and no server is asked.
    """
    findings: list[Finding] = []
    for name in (ENCODER, RANKER):
        versions = repository.versions(name)
        if not versions:
            findings.append(skipped(name, "versions", "the repository holds none"))
        for version in versions:
            findings += _check_version(repository, name, version)
    return Verdict(str(repository.folder), tuple(findings))


def _check_version(repository: Repository, name: str, version: int) -> Iterator[Finding]:
    model = f"{name}:{version}"
    specs: list[ModelSpec] = []

    def files() -> Finding:
        spec, told = (_encoder if name == ENCODER else _ranker)(repository, version)
        specs.append(spec)
        return judged(model, "files", [], told)

    yield conformance.attempt(model, "files", files)
    if not specs:
        yield skipped(model, "config", "the version's files cannot be used")
        return
    yield conformance.attempt(model, "config", lambda: _config(repository, model, specs[0]))


def _encoder(repository: Repository, version: int) -> tuple[ModelSpec, str]:
    artefact: EncoderArtefact = repository.encoder(version)
    dimensions = encoder_source.dimensions_of(artefact.path)
    if dimensions != artefact.dimensions:
        raise StoreDamaged(
            f"{artefact.path}: encoder.json says {artefact.dimensions} dimensions, the model has "
            f"{dimensions}; build the version again"
        )
    told = f"content {artefact.content_hash}, {dimensions} dimensions, {artefact.max_tokens} tokens"
    return description.encoder(dimensions), told


def _ranker(repository: Repository, version: int) -> tuple[ModelSpec, str]:
    from matchwright.engine.rerank.trees import Trees

    artefact: RankerArtefact = repository.ranker(version)
    trees = Trees.load(artefact.path)
    told = f"content {artefact.content_hash}, {trees.trees} trees, {len(trees.features)} features"
    return description.ranker(len(trees.features)), told


def _config(repository: Repository, model: str, spec: ModelSpec) -> Finding:
    path = repository.folder / spec.name / CONFIG
    variant = repository.variant(spec.name)
    wrong = description.differences(path.read_text("utf-8"), spec, variant, str(path))
    told = f"{variant} variant"
    if variant == "python":
        there = repository.folder / spec.name / model.partition(":")[2] / BACKEND
        wrong += _backend(there, spec.name)
    return judged(model, "config", wrong, told)


def _backend(path: Path, name: str) -> list[str]:
    if not path.is_file():
        return [f"{path} is missing; build the version again with --backend python"]
    if path.read_bytes() != backend_source(name):
        return [f"{path} is not what this matchwright brings; build the version again"]
    return []
