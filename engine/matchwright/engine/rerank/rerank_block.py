"""What goes through the second phase: candidates, what was said of them, and who is asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from numpy.typing import NDArray

from matchwright.engine.policy_rerank import Rerank
from matchwright.engine.results import Degraded, Result
from matchwright.kernels.types import Float32, Int32

if TYPE_CHECKING:
    from matchwright.engine.rerank.rerank import Ranker


class Infers(Protocol):
    """Whom a model is asked through: ``models.triton.Triton``, or a test's stand-in."""

    async def infer(
        self,
        ref: Any,
        inputs: Mapping[str, NDArray[Any]],
        outputs: Sequence[str],
        *,
        deadline: float,
    ) -> Mapping[str, NDArray[Any]]: ...

    def infer_blocking(
        self,
        ref: Any,
        inputs: Mapping[str, NDArray[Any]],
        outputs: Sequence[str],
        *,
        deadline: float,
    ) -> Mapping[str, NDArray[Any]]: ...


class TreesLike(Protocol):
    """The exported trees of a version: ``rerank.trees.Trees``."""

    features: tuple[str, ...]
    features_version: int
    grid_bits: int
    bias: int
    content_hash: str

    def score(self, f_nf: Int32) -> Int32: ...

    def contributions(self, f_nf: Int32) -> Int32: ...


class RankerSource(Protocol):
    """Where a version of the ranker comes from."""

    def ranker(self, version: int) -> Ranker: ...


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """What the first phase found for one query, and the features of each.

    Attributes:
        wide: the first phase's answer with its first M in the place of its first K.
        features_mf: int32 (M, F), columns as the model's; None when they could not be made.
        ranker: who orders them.
        settings: the policy's section.
        why: the reason where ``features_mf`` is None, in words.
    """

    wide: Result
    features_mf: Int32 | None
    ranker: Ranker
    settings: Rerank
    why: str = ""

    @property
    def rows(self) -> int:
        return 0 if self.features_mf is None else len(self.features_mf)


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """What came of asking for one query.

    Attributes:
        scores_m: float32 (M,) as served; None when degraded.
        degraded: the reason, else None.
        why: in words, for telemetry.
        seconds: of the block's call.
    """

    scores_m: Float32 | None
    degraded: Degraded | None = None
    why: str = ""
    seconds: float = 0.0


def late() -> Scored:
    """What a caller finishes with that could not wait any longer."""
    return Scored(None, Degraded.LATE, "the request's deadline came before the model's answer")
