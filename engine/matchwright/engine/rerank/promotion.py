"""Promoting a ranker: the gate, the next version in the repository, and a line in its record.

``REPO/promotions.jsonl`` holds one JSON object a line, the oldest first, and is only ever appended
to. What it last promoted or rolled back to is the version *in service*: the one that the next
ranker is compared with. Which version orders an answer is decided by the policy alone, so neither
promotion nor rollback changes an answer by itself.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from matchwright.engine.errors import (
    FailedPrecondition,
    InvalidArgument,
    InvalidData,
    NotFound,
    StoreDamaged,
)
from matchwright.engine.models.repository import RankerArtefact, Repository, add_ranker, sync
from matchwright.engine.rerank import gate
from matchwright.engine.rerank.trees import Trees, read_description

RECORD = "promotions.jsonl"
Backend = Literal["production", "python"]
_MODEL = "ranker"
REASON_MAX = 2_000


def in_service(repo: Path) -> RankerArtefact | None:
    """The ranker in service: last promoted or rolled back to, or else the newest; None for none.

    Raises:
        StoreDamaged: the record cannot be read, or its version is damaged.
    """
    if not (repo / _MODEL).is_dir():
        return None
    repository = Repository.open(repo)
    versions = repository.versions(_MODEL)
    lines = [line for line in record(repo) if line["version"] in versions]
    if lines:
        return repository.ranker(int(lines[-1]["version"]))
    return repository.ranker() if versions else None


def record(repo: Path) -> list[dict[str, Any]]:
    """All promotions and rollbacks, the oldest first.

    Raises:
        StoreDamaged: a line is not what was written.
    """
    try:
        raw = (repo / RECORD).read_bytes()
    except FileNotFoundError:
        return []
    lines = []
    # Reasons may hold what str.splitlines takes for the end of a line.
    for number, line in enumerate(raw.removesuffix(b"\n").split(b"\n") if raw else (), 1):
        try:
            told = json.loads(line)
            if not isinstance(told["version"], int) or told["action"] not in (
                "promote",
                "rollback",
            ):
                raise ValueError
        except (ValueError, KeyError, TypeError, RecursionError):
            raise StoreDamaged(
                f"{repo / RECORD}, line {number}: is no record of a promotion; put back the line, "
                "or take it out when it was cut off",
                file=repo / RECORD,
            ) from None
        lines.append(told)
    return lines


def promote(
    repo: Path,
    candidate: Path,
    *,
    now: str,
    backend: Backend | None = None,
    force: bool = False,
    reason: str = "",
    segment_loss_max: float = gate.SEGMENT_LOSS_MAX,
    evaluation: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Put a ranker through the gate and add it to the repository.

    Args:
        candidate: a folder that ``train ranker`` wrote.
        now: the moment, as it is to be recorded (ISO 8601).
        backend: for a repository that has no ranker yet; its own when None.
        force, reason: promote although the gate refuses; the reason is recorded.
        evaluation: a newer one than that in the candidate's training record.

    Returns:
        The line of the record.

    Raises:
        GateRefused: with the figures.
        InvalidArgument: ``force`` without a reason, or a reason without ``force``.
        InvalidData: the candidate has no evaluation, or one against another model.
    """
    reason = reason.strip()
    if force != bool(reason) or len(reason) > REASON_MAX:
        raise InvalidArgument(
            f"--force and --reason TEXT (up to {REASON_MAX:,} characters) go together; the reason "
            "is recorded",
            field="reason",
        )
    trees = Trees.load(candidate)
    training = read_description(candidate).get("training", {})
    evaluation = evaluation or training.get("evaluation")
    if not (force or repo.exists()):  # a refusal leaves no folder behind
        gate.refuse(_verdict(evaluation, None, segment_loss_max, force))
    with _locked(repo):
        before = in_service(repo)
        if before is not None and _left_by_the_first(repo, before, trees):
            before = None
        if before is not None and before.content_hash == trees.content_hash:
            raise FailedPrecondition(
                f"{candidate} is the ranker in service already (version {before.version})"
            )
        verdict = _verdict(evaluation, before, segment_loss_max, force)
        if not force:
            gate.refuse(verdict)
        version = _added(repo, candidate, trees, backend)
        line = {
            "action": "promote", "at": now, "version": version,
            "content_hash": trees.content_hash,
            "before": None if before is None else before.version,
            "forced": force and not verdict.passed, "reason": reason,
            "warnings": training.get("warnings", []),
            "segment_loss_max": segment_loss_max, "verdict": verdict.record(),
        }  # fmt: skip
        _append(repo, line)
    return line


def rollback(repo: Path, *, now: str, to: int | None = None, reason: str = "") -> dict[str, Any]:
    """Name the version that was in service before; nothing is removed.

    Args:
        to: another version of the repository.

    Returns:
        The line of the record.

    Raises:
        FailedPrecondition: there is no version to go back to.
        NotFound: the repository has no such version.
    """
    if not (repo / _MODEL).is_dir():
        raise NotFound(f"{repo} holds no ranker", folder=repo)
    with _locked(repo):
        current = in_service(repo)
        target = to if to is not None else _previous(repo, current)
        if current is None or target is None:
            raise FailedPrecondition(
                f"{repo} has no ranker that was in service before; the policy can go without one: "
                "leave out its [rerank] section"
            )
        artefact = Repository.open(repo).ranker(target)
        line = {
            "action": "rollback", "at": now, "version": artefact.version,
            "content_hash": artefact.content_hash, "before": current.version,
            "reason": reason.strip()[:REASON_MAX],
        }  # fmt: skip
        _append(repo, line)
    return line


def _previous(repo: Path, current: RankerArtefact | None) -> int | None:
    """The version that the current one replaced, or the next older one in the repository."""
    if current is None:
        return None
    for line in reversed(record(repo)):
        if line["action"] == "promote" and line["version"] == current.version:
            before = line.get("before")
            return None if before is None else int(before)
    older = [v for v in Repository.open(repo).versions(_MODEL) if v < current.version]
    return older[-1] if older else None


def _left_by_the_first(repo: Path, serving: RankerArtefact, trees: Trees) -> bool:
    """Whether a first promotion of these trees died before it was recorded."""
    alone = Repository.open(repo).versions(_MODEL) == (serving.version,)
    return alone and serving.content_hash == trees.content_hash and not record(repo)


def _verdict(
    evaluation: Any, before: RankerArtefact | None, bound: float, force: bool
) -> gate.Verdict:
    compared = None if before is None else before.content_hash
    try:
        return gate.judge(evaluation, compared, bound)
    except InvalidData as error:
        if not force:
            raise
        return gate.Verdict((), (f"not judged: {error}",), (), ())


def _added(repo: Path, candidate: Path, trees: Trees, backend: Backend | None) -> int:
    """The version with this content: the newest, left there by an attempt that died, or a new."""
    if (repo / _MODEL).is_dir():
        repository = Repository.open(repo)
        versions = repository.versions(_MODEL)
        if versions and repository.ranker().content_hash == trees.content_hash:
            return versions[-1]
        backend = backend or (repository.variant(_MODEL) if versions else None)
    return add_ranker(repo, candidate, backend=backend or "production").version


@contextlib.contextmanager
def _locked(repo: Path) -> Iterator[None]:
    """One promotion at a time."""
    repo.mkdir(parents=True, exist_ok=True)
    with (repo / f".{RECORD}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _append(repo: Path, line: Mapping[str, Any]) -> None:
    """Adds a line, durable when this returns; the record is as before when it cannot be.

    Raises:
        OSError: naming the file.
    """
    # Half a surrogate, of an argument that is no UTF-8, stays as JSON's escape.
    raw = json.dumps(line, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
    path = repo / RECORD
    with path.open("a+b", buffering=0) as file:
        before = file.seek(0, os.SEEK_END)
        try:
            if before:
                file.seek(-1, os.SEEK_END)
                raw = raw if file.read(1) == b"\n" else b"\n" + raw
            while raw:  # a disk that gets full takes a part
                raw = raw[file.write(raw) or 0 :]
            os.fsync(file.fileno())
            if not before:
                sync(repo)
        except OSError as error:
            file.truncate(before)
            raise OSError(error.errno, error.strerror, str(path)) from None
