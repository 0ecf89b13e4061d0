"""Does a server of models do what the engine relies on? Asked over gRPC, as the engine asks.

An operator runs this against the production container, whose backends (onnxruntime, FIL) are not
those that the tests run. Everything that the engine takes for granted is asked for: which versions
are ready, their tensors, an encoder's answers beside ONNX Runtime's, a ranker's scores beside its
exported trees to the bit, contributions that add up, and how long it takes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from matchwright.engine.errors import MatchwrightError, ModelWrong
from matchwright.engine.models import description
from matchwright.engine.models.description import ENCODER, RANKER, ModelSpec
from matchwright.engine.models.findings import Finding, Verdict, judged, skipped
from matchwright.engine.models.refs import ModelRef
from matchwright.engine.models.repository import Repository

Tensors = Mapping[str, NDArray[Any]]


class Server(Protocol):
    """What is asked of a server: ``models.triton.Triton``, or anything like it."""

    def infer_blocking(
        self, ref: ModelRef, inputs: Tensors, outputs: Sequence[str], *, deadline: float
    ) -> dict[str, NDArray[Any]]: ...
    def versions(self, name: str, *, deadline: float) -> tuple[int, ...]: ...
    def config_of(self, ref: ModelRef, *, deadline: float) -> dict[str, Any]: ...
    def statistics(self, ref: ModelRef, *, deadline: float) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Plan:
    """How much is asked.

    Attributes:
        rows: random feature rows that a ranker scores, beside those at the edges of its splits.
        batches: rows of a ranker's calls.
        texts: texts of an encoder's calls.
        repeats: calls that a latency is taken from.
        p99_ms: the most that the 99th percentile of any latency may be; None judges none.
        timeout_ms: of one call.
        seed: of the random rows.
    """

    rows: int = 10_000
    batches: tuple[int, ...] = (1, 7, 200, 1_000)
    texts: tuple[int, ...] = (1, 8, 32)
    repeats: int = 50
    p99_ms: float | None = None
    timeout_ms: int = 10_000
    seed: int = 0


class Asked:
    """One model version on one server: every call gets the plan's timeout."""

    def __init__(self, server: Server, ref: ModelRef, plan: Plan) -> None:
        self.server, self.ref, self.plan = server, ref, plan

    def __str__(self) -> str:
        return str(self.ref)

    @property
    def deadline(self) -> float:
        return time.monotonic() + self.plan.timeout_ms / 1000

    def infer(self, inputs: Tensors, output: str) -> NDArray[Any]:
        """One output of one call: (N, D) to inputs of N rows.

        Raises:
            ModelWrong: it has another shape.
        """
        (rows,) = {len(array) for array in inputs.values()}
        got = self.server.infer_blocking(self.ref, inputs, [output], deadline=self.deadline)[output]
        if got.ndim != 2 or len(got) != rows:
            raise ModelWrong(f"{self.ref} answered {got.shape} to {rows} rows", model=self.ref)
        return got

    def config(self) -> dict[str, Any]:
        """The version's configuration, as the server has it."""
        return self.server.config_of(self.ref, deadline=self.deadline)


def check_server(
    server: Server,
    repository: Repository | None,
    plan: Plan,
    *,
    subject: str,
    models: Sequence[str] = (ENCODER, RANKER),
) -> Verdict:
    """Asks a server about the versions that a repository holds.

    Args:
        repository: what answers are compared with. None: only what needs no reference is checked.
        subject: the server's address, for the verdict.
        models: those to ask about.

    Raises:
        ModelUnavailable, ModelLate: the server does not answer at all.
    """
    findings: list[Finding] = []
    for name in models:
        findings += _check_model(server, repository, plan, name)
    return Verdict(subject, tuple(findings))


def _check_model(
    server: Server, repository: Repository | None, plan: Plan, name: str
) -> Iterator[Finding]:
    deadline = time.monotonic() + plan.timeout_ms / 1000
    ready = server.versions(name, deadline=deadline)
    held = repository.versions(name) if repository is not None else ready
    if not (held or ready):
        yield skipped(name, "versions", "neither the repository nor the server has this model")
        return
    yield _versions(name, ready, held)
    for version in held:
        asked = Asked(server, ModelRef(name, version), plan)
        if version in ready:
            yield from _check_version(asked, repository)
        else:
            yield skipped(str(asked), "answers", "this version is not ready on the server")


def _versions(name: str, ready: Sequence[int], held: Sequence[int]) -> Finding:
    """The newest that the repository holds is ready, and nothing that it does not hold."""
    wrong = [f"version {one} is served, the repository does not hold it"
             for one in ready if one not in held]  # fmt: skip
    if held and held[-1] not in ready:
        wrong.append(f"version {held[-1]} is the newest in the repository and is not ready")
    told = f"ready: {', '.join(map(str, ready))}"
    return judged(name, "versions", wrong, told, ready=len(ready), held=len(held))


def _check_version(asked: Asked, repository: Repository | None) -> Iterator[Finding]:
    from matchwright.engine.models import conformance_encoder, conformance_ranker

    asker = conformance_encoder if asked.ref.name == ENCODER else conformance_ranker
    try:
        questions = list(asker.questions(asked, repository))
    except MatchwrightError as error:  # the version in the repository is damaged
        yield Finding(str(asked), "files", "failed", f"{error.reason}: {error}")
        return
    for check, question in questions:
        yield attempt(str(asked), check, question)


def attempt(model: str, check: str, question: Callable[[], Finding]) -> Finding:
    """Asks; an error of the server or of the repository is a finding, not the end of the check."""
    try:
        return question()
    except MatchwrightError as error:
        return Finding(model, check, "failed", f"{error.reason}: {error}")


def check_config(asked: Asked, spec: ModelSpec) -> Finding:
    """Tensors, batch size and queue of the configuration that the server works by."""
    got = asked.config()
    wrong = [
        f"{side} {one.name} is {_tensor_of(got, side, one.name)}, expected {_told(one)}"
        for side, tensors in (("input", spec.inputs), ("output", spec.outputs))
        for one in tensors
        if _tensor_of(got, side, one.name) != _told(one)
    ]
    for side, tensors in (("input", spec.inputs), ("output", spec.outputs)):
        known = {one.name for one in tensors}
        more = [str(one.get("name")) for one in got.get(side, []) if one.get("name") not in known]
        wrong += [f"{side} {name} is not expected" for name in more]
    batch = int(got.get("max_batch_size", 0))
    if batch < spec.batch_max:
        wrong.append(f"max_batch_size is {batch}, expected at least {spec.batch_max}")
    backend = str(got.get("backend") or got.get("platform") or "unknown")
    known_backends = sorted({one.name for one in spec.backends.values()})
    if backend not in known_backends:
        wrong.append(f"backend is {backend}, expected {' or '.join(known_backends)}")
    return judged(str(asked), "config", wrong, f"backend {backend}", max_batch_size=batch)


def _told(tensor: description.Tensor) -> str:
    return f"{tensor.data_type} {list(tensor.dims)}"


def _tensor_of(config: Mapping[str, Any], side: str, name: str) -> str:
    for one in config.get(side, []):
        if one.get("name") == name:
            return f"{one.get('data_type')} {[int(dim) for dim in one.get('dims', [])]}"
    return "missing"


def latency(asked: Asked, check: str, call: Callable[[], object]) -> Finding:
    """Round trips of one caller, one after another: p50 and p99 in milliseconds.

    Beside them what the server itself says that the model took, on average over its calls.
    """
    call()
    before = _compute(asked)
    times = np.empty(asked.plan.repeats)
    for at in range(asked.plan.repeats):
        began = time.perf_counter()
        call()
        times[at] = (time.perf_counter() - began) * 1000
    p50, p99 = (float(np.percentile(times, q)) for q in (50, 99))
    nanoseconds, calls = (after - then for after, then in zip(_compute(asked), before, strict=True))
    model = nanoseconds / 1e6 / max(1, calls)
    most = asked.plan.p99_ms
    wrong = [f"p99 is {p99:.2f} ms, at most {most:g} asked for"] if most and p99 > most else []
    told = (
        f"p50 {p50:.2f} ms, p99 {p99:.2f} ms over {asked.plan.repeats} calls, "
        f"{model:.2f} ms of it in the model"
    )
    return judged(str(asked), check, wrong, told, p50_ms=p50, p99_ms=p99, model_ms=model)


def _compute(asked: Asked) -> tuple[float, float]:
    """Nanoseconds that the model computed so far, and in how many calls."""
    told = asked.server.statistics(asked.ref, deadline=asked.deadline)
    infer = told.get("inference_stats", {}).get("compute_infer", {})
    return float(infer.get("ns", 0)), float(infer.get("count", 0))


__all__ = ["ENCODER", "RANKER", "Asked", "Plan", "Server", "check_server"]
