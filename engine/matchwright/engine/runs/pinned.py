"""The ranker of a run whose policy reranks: one version, named by its content."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

from matchwright.engine.errors import FailedPrecondition
from matchwright.engine.models.description import RANKER
from matchwright.engine.policy import Policy

NEEDED = (
    "name the model repository and the server of its models (--models DIR --triton HOST:PORT), "
    "or run without the second phase (--no-rerank)"
)


class RankerLike(Protocol):
    """What is pinned of a ``rerank.rerank.Ranker``."""

    @property
    def version(self) -> int: ...
    @property
    def asked(self) -> tuple[str, ...]: ...
    @property
    def trees(self) -> Any: ...


@dataclass(frozen=True, slots=True)
class PinnedRanker:
    """What a plan says of its model.

    Attributes:
        version, content_hash, grid_bits: as in a result.
        features: names, in the order of the model's columns.
        asked: those that some split asks about; the others are not computed.
    """

    version: int
    content_hash: str
    grid_bits: int
    features: tuple[str, ...]
    asked: tuple[str, ...]

    def __str__(self) -> str:
        return f"{RANKER}:{self.version}"

    @classmethod
    def of(cls, ranker: RankerLike) -> Self:
        """The pin of an opened version."""
        trees = ranker.trees
        return cls(
            int(ranker.version), trees.content_hash, trees.grid_bits, tuple(trees.features),
            tuple(ranker.asked),
        )  # fmt: skip

    @property
    def determinants(self) -> dict[str, Any]:
        """What goes into a run id: the content hash covers features and trees."""
        return {
            "model": RANKER,
            "version": self.version,
            "content_hash": self.content_hash,
            "grid_bits": self.grid_bits,
        }

    def to_dict(self) -> dict[str, Any]:
        """What ``plan.json`` holds beside the determinants."""
        return {**self.determinants, "features": list(self.features), "asked": list(self.asked)}

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> Self:
        """The inverse of ``to_dict``.

        Raises:
            KeyError, TypeError, ValueError: it is none.
        """
        names: Sequence[Sequence[str]] = given["features"], given["asked"]
        features, asked = (tuple(map(str, some)) for some in names)
        return cls(
            int(given["version"]), str(given["content_hash"]), int(given["grid_bits"]), features,
            asked,
        )  # fmt: skip

    def refuse_other(self, ranker: RankerLike, run_id: str) -> None:
        """Refuse a model that is not the one that was planned.

        Raises:
            FailedPrecondition: naming both contents.
        """
        other = PinnedRanker.of(ranker)
        if other != self:
            raise FailedPrecondition(
                f"run {run_id} was planned with {self} of content {self.content_hash}, and the "
                f"repository's {other} is {other.content_hash}: name the repository that it was "
                "planned with (--models DIR), or start a new run",
                run=run_id,
            )


def check_pinned(policy: Policy, ranker: PinnedRanker | None) -> None:
    """Refuse a plan whose policy reranks and that has no model, or another version.

    Raises:
        FailedPrecondition: saying what is missing.
    """
    section = policy.rerank
    if section is None:
        return
    if ranker is None:
        raise FailedPrecondition(
            f"the policy {policy.name!r} reranks with {RANKER}:{section.version}; {NEEDED}",
            field="rerank",
        )
    if ranker.version != section.version:
        raise FailedPrecondition(
            f"the policy {policy.name!r} reranks with {RANKER}:{section.version}, and {ranker} was "
            "opened",
            field="rerank",
        )
