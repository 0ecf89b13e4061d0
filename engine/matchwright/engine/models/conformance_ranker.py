"""What a served ranker is asked: scores equal to its exported trees, to the bit, in any batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property, partial

import numpy as np

from matchwright.engine.errors import ModelWrong
from matchwright.engine.models import conformance, description
from matchwright.engine.models.artefacts import RankerArtefact
from matchwright.engine.models.conformance import Asked
from matchwright.engine.models.description import RANKER_INPUT, RANKER_OUTPUT
from matchwright.engine.models.findings import Finding, judged, skipped
from matchwright.engine.models.repository import Repository
from matchwright.engine.rerank import trees_text
from matchwright.engine.rerank.trees import MODEL, Trees
from matchwright.kernels.types import Float32, Int32

FEATURE_LIMIT = 1 << 24
"""Features lie below this in magnitude: integers that float32 holds."""
_NEEDS = "needs the repository; name its folder"


class Subject:
    """One version, its exported trees, and the rows that it is asked to score."""

    def __init__(self, asked: Asked, artefact: RankerArtefact | None) -> None:
        self.asked, self.artefact = asked, artefact

    def scores(self, f_nf: Int32) -> Float32:
        """float32 (N,), as served."""
        rows: Float32 = self.asked.infer({RANKER_INPUT: f_nf.astype(np.float32)}, RANKER_OUTPUT)
        if rows.shape[1] != 1:
            raise ModelWrong(f"{self.asked} gave {rows.shape[1]} scores for each row, expected 1")
        return rows[:, 0]

    @cached_property
    def features(self) -> int:
        """How many columns."""
        if self.artefact is not None:
            return len(self.artefact.features)
        return int(self.asked.config().get("input", [{}])[0].get("dims", [0])[-1])

    @cached_property
    def trees(self) -> Trees:
        """The exported trees."""
        assert self.artefact is not None
        return Trees.load(self.artefact.path)

    @cached_property
    def rows(self) -> Int32:
        """int32 (N, F): random rows, rows on both sides of every split, and the limits."""
        rng = np.random.default_rng(self.asked.plan.seed)
        count = self.asked.plan.rows
        near = rng.integers(-4, 1_000, (count - count // 2, self.features))
        far = rng.integers(1 - FEATURE_LIMIT, FEATURE_LIMIT, (count // 2, self.features))
        limits = np.repeat([[-FEATURE_LIMIT + 1], [-1], [0], [1], [FEATURE_LIMIT - 1]],
                           self.features, axis=1)  # fmt: skip
        blocks = [near, far, limits]
        if self.artefact is not None:
            blocks.append(_at_splits(self.artefact, rng))
        return np.concatenate(blocks).astype(np.int32)


def _at_splits(artefact: RankerArtefact, rng: np.random.Generator) -> Int32:
    """(2 S, F): for each split, the last integer on its left and the first on its right."""
    trees = trees_text.read((artefact.path / MODEL).read_text("utf-8")).trees
    column = np.concatenate([tree.feature for tree in trees]).astype(np.int64)
    left = np.floor(np.concatenate([tree.threshold for tree in trees])).astype(np.int64)
    rows = rng.integers(-4, 1_000, (2 * column.size, len(artefact.features)))
    rows[np.arange(column.size), column] = left
    rows[np.arange(column.size, 2 * column.size), column] = left + 1
    return rows.astype(np.int32)


def questions(
    asked: Asked, repository: Repository | None
) -> Iterator[tuple[str, Callable[[], Finding]]]:
    """Name and question, in the order in which they are asked."""
    artefact = repository.ranker(asked.ref.version) if repository is not None else None
    subject = Subject(asked, artefact)
    yield "config", partial(_config, subject)
    for batch in asked.plan.batches:
        check = f"scores in batches of {batch}"
        yield check, partial(_scores, subject, check, batch)
    yield "contributions", partial(_contributions, subject)
    for batch in asked.plan.batches:
        check = f"latency of {batch} rows"
        yield check, partial(_latency, subject, check, batch)


def _config(subject: Subject) -> Finding:
    return conformance.check_config(subject.asked, description.ranker(subject.features))


def _scores(subject: Subject, check: str, batch: int) -> Finding:
    """To the bit; small batches are asked about fewer rows, so that no check takes minutes."""
    if subject.artefact is None:
        return skipped(str(subject.asked), check, _NEEDS)
    rows = subject.rows[:: max(1, len(subject.rows) // (batch * subject.asked.plan.repeats))]
    wanted = np.ldexp(subject.trees.score(rows).astype(np.float64), -subject.trees.grid_bits)
    parts = [subject.scores(rows[at : at + batch]) for at in range(0, len(rows), batch)]
    got = np.concatenate(parts)
    off = np.flatnonzero(got.astype(np.float64) != wanted)
    wrong = []
    if off.size:
        at = off[0]
        wrong = [
            f"{off.size:,} of {len(rows):,} scores differ from the exported trees, the first is "
            f"{got[at]!r}, expected {wanted[at]!r}, for {rows[at].tolist()}"
        ]
    told = f"{len(rows):,} rows equal the exported trees to the bit"
    return judged(str(subject.asked), check, wrong, told, rows=len(rows), different=int(off.size))


def _contributions(subject: Subject) -> Finding:
    """What the engine explains a served score by adds up to it exactly."""
    check = "contributions"
    if subject.artefact is None:
        return skipped(str(subject.asked), check, _NEEDS)
    rows = subject.rows[:: max(1, len(subject.rows) // 2_000)]
    got = np.ldexp(subject.scores(rows).astype(np.float64), subject.trees.grid_bits)
    added = subject.trees.contributions(rows).sum(axis=1, dtype=np.int64)
    off = int(np.count_nonzero(got != added))
    wrong = [f"{off:,} of {len(rows):,} scores are not what contributions add up to"]
    told = f"add up to the served score, {len(rows):,} rows"
    return judged(str(subject.asked), check, wrong if off else [], told, rows=len(rows))


def _latency(subject: Subject, check: str, batch: int) -> Finding:
    rows = np.zeros((batch, subject.features), dtype=np.int32)
    if subject.artefact is not None:
        rows = np.resize(subject.rows, (batch, subject.features)).astype(np.int32)
    return conformance.latency(subject.asked, check, partial(subject.scores, rows))
