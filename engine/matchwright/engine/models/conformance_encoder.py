"""What a served encoder is asked: its answers beside a reference, in any batch and with padding."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from functools import cached_property, partial

import numpy as np

from matchwright.engine.models import conformance, description, probes
from matchwright.engine.models.artefacts import PROBES, EncoderArtefact
from matchwright.engine.models.conformance import Asked
from matchwright.engine.models.description import ATTENTION_MASK, EMBEDDING, INPUT_IDS
from matchwright.engine.models.findings import Finding, judged, skipped
from matchwright.engine.models.probes import LENGTH_TOLERANCE
from matchwright.engine.models.repository import Repository
from matchwright.kernels.types import Float32, Int64

TOLERANCE = 1e-5
"""Largest difference of a component from ONNX Runtime's on a CPU; components are at most 1."""
_TOKENS = 32
_PADDING = 17


class Subject:
    """One version, what it is compared with, and its answers, asked for once."""

    def __init__(self, asked: Asked, artefact: EncoderArtefact | None) -> None:
        self.asked, self.artefact = asked, artefact

    def encode(self, ids: Int64, mask: Int64 | None = None) -> Float32:
        """float32 (B, D) of token ids int64 (B, T)."""
        mask = np.ones_like(ids) if mask is None else mask
        rows: Float32 = self.asked.infer({INPUT_IDS: ids, ATTENTION_MASK: mask}, EMBEDDING)
        return rows

    @cached_property
    def ids(self) -> tuple[Int64, ...]:
        """Token ids of the texts that are asked about."""
        if self.artefact is None:  # without a tokenizer: ids that every vocabulary has
            return tuple(np.arange(1, n + 1, dtype=np.int64) % 100 for n in (2, 9, 30, 64))
        return probes.tokens(self.artefact.path, probes.TEXTS, self.artefact.max_tokens)

    @cached_property
    def alone(self) -> Float32:
        """float32 (P, D): each text in a call of its own."""
        return probes.one_by_one(self.encode, self.ids)


def questions(
    asked: Asked, repository: Repository | None
) -> Iterator[tuple[str, Callable[[], Finding]]]:
    """Name and question, in the order in which they are asked."""
    artefact = repository.encoder(asked.ref.version) if repository is not None else None
    subject = Subject(asked, artefact)
    yield "config", partial(_config, subject)
    yield "answers", partial(_answers, subject)
    yield "length", partial(_length, subject)
    yield "batch", partial(_batch, subject)
    yield "padding", partial(_padding, subject)
    for texts in asked.plan.texts:
        check = f"latency of {texts} texts"
        ids = np.resize(subject.ids[0], (texts, _TOKENS)).astype(np.int64)
        yield check, partial(conformance.latency, asked, check, partial(subject.encode, ids))


def _config(subject: Subject) -> Finding:
    if subject.artefact is None:
        dims = subject.asked.config().get("output", [{}])[0].get("dims", [0])
        return conformance.check_config(subject.asked, description.encoder(int(dims[-1])))
    return conformance.check_config(subject.asked, description.encoder(subject.artefact.dimensions))


def _answers(subject: Subject) -> Finding:
    """Beside ONNX Runtime in this process, else beside what was recorded when it was built."""
    name = str(subject.asked)
    if subject.artefact is None:
        return skipped(name, "answers", "needs the repository; name its folder")
    folder = subject.artefact.path
    if importlib.util.find_spec("onnxruntime"):
        wanted = probes.one_by_one(probes.session(folder), subject.ids)
        return _near(subject, "answers", subject.alone, wanted, "ONNX Runtime in this process")
    if not (folder / PROBES).is_file():
        return skipped(
            name,
            "answers",
            "ONNX Runtime is not installed, and none was when the version was built; "
            "pip install onnxruntime",
        )
    recorded = probes.read(folder / PROBES)
    got = probes.one_by_one(subject.encode, recorded.ids)
    return _near(subject, "answers", got, recorded.embeddings, "what was recorded at its build")


def _near(subject: Subject, check: str, got: Float32, wanted: Float32, what: str) -> Finding:
    if got.shape != wanted.shape or not np.isfinite(got).all():
        wrong = [f"answers are {got.shape}, finite: {np.isfinite(got).all()}; "
                 f"expected {wanted.shape}"]  # fmt: skip
        return judged(str(subject.asked), check, wrong, "")
    worst = float(np.abs(got.astype(np.float64) - wanted).max())
    wrong = [f"differs by {worst:.2g} from {what}; at most {TOLERANCE:g}"]
    told = f"within {worst:.2g} of {what}, {len(got)} texts"
    return judged(
        str(subject.asked), check, wrong if worst > TOLERANCE else [], told, difference=worst
    )


def _length(subject: Subject) -> Finding:
    lengths = np.linalg.norm(subject.alone.astype(np.float64), axis=1)
    worst = float(np.abs(lengths - 1).max())
    bad = not worst <= LENGTH_TOLERANCE  # NaN is wrong too
    wrong = [f"a length is {worst:.2g} from 1; at most {LENGTH_TOLERANCE:g}"] if bad else []
    return judged(str(subject.asked), "length", wrong, f"1 within {worst:.2g}", difference=worst)


def _batch(subject: Subject) -> Finding:
    """A text's embedding does not depend on how many are asked with it, nor on its place."""
    rows = []
    for at, ids in enumerate(subject.ids):
        others = np.random.default_rng(at).permutation(np.resize(ids, 31 * len(ids)))
        batch = np.concatenate([others.reshape(31, -1)[: at % 31 + 1], ids[None]])
        rows.append(subject.encode(batch)[-1:])
    return _near(subject, "batch", np.concatenate(rows), subject.alone, "each text alone")


def _padding(subject: Subject) -> Finding:
    """What the mask leaves out changes nothing, whatever ids stand there."""
    most = subject.artefact.max_tokens if subject.artefact is not None else 64
    rows = [_padded(subject, ids, min(most, len(ids) + _PADDING)) for ids in subject.ids]
    return _near(subject, "padding", np.concatenate(rows), subject.alone, "each text unpadded")


def _padded(subject: Subject, ids: Int64, length: int) -> Float32:
    width = max(length, len(ids))
    mask = (np.arange(width) < len(ids)).astype(np.int64)
    return subject.encode(np.resize(ids, width)[None], mask[None])
