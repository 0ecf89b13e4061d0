"""The section ``rerank`` of a policy: whether a learnt model orders the best candidates.

A policy without the section does not rerank, and has the id that it had before there was one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

from matchwright.engine.errors import InvalidArgument, unknown_key
from matchwright.engine.policy_sections import int_of, wrong
from matchwright.kernels.types import K_MAX

SPANS: Mapping[str, tuple[int, int]] = MappingProxyType(
    {"version": (1, 2**31 - 1), "candidates": (1, K_MAX), "timeout_ms": (1, 60_000)}
)
"""Setting -> its range."""
DEFAULTS: Mapping[str, int] = MappingProxyType({"candidates": 200, "timeout_ms": 100})
"""What a section that leaves a key out says; the version must be given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rerank:
    """The second phase.

    Attributes:
        version: of the model "ranker"; the newest is never taken by itself.
        candidates: how many of the first phase the model orders; an answer's K is at most this.
        timeout_ms: the most that one answer waits for the model.
    """

    version: int
    candidates: int
    timeout_ms: int

    def to_dict(self) -> dict[str, int]:
        """The section in the form of the TOML file."""
        return asdict(self)


def rerank_of(given: Mapping[str, Any], where: str) -> Rerank | None:
    """The section ``rerank``; None where there is none.

    Raises:
        InvalidArgument, UnknownKey: a value or a key that cannot be.
    """
    if "rerank" not in given:
        return None
    table = given["rerank"]
    if not isinstance(table, Mapping):
        raise wrong(where, "rerank", table, "a table")
    for key in table:
        if key not in SPANS:
            raise unknown_key("key", str(key), SPANS, f"{where}, section rerank")
    if "version" not in table:
        raise InvalidArgument(
            f"{where}: rerank.version is not given; name the version of the model 'ranker', as "
            "`matchwright models list` shows it",
            field="rerank.version",
        )
    merged = {**DEFAULTS, **table}
    return Rerank(
        **{name: int_of(merged[name], where, f"rerank.{name}", *span)
           for name, span in SPANS.items()}
    )  # fmt: skip


__all__ = ["DEFAULTS", "Rerank", "SPANS", "rerank_of"]
