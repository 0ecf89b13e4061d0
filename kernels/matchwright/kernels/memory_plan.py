"""What rows take on a device, array by array, before anything is loaded."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from matchwright.kernels.compile import limit
from matchwright.kernels.cuda_scan import Sizes, fit
from matchwright.kernels.probe import gib
from matchwright.kernels.resident import column_bytes
from matchwright.kernels.rule_program import Slot
from matchwright.kernels.types import Bool, Corpus, Segment

QUERIES, RESULTS = 4_096, 100
"""Of the block whose temporary memory a plan tells."""


@dataclass(frozen=True, slots=True)
class SegmentPlan:
    """Bytes of a part's arrays on the device.

    Attributes:
        corpus: which corpus it belongs to.
        rows: of the part.
        x, norms, keys: what every row takes.
        alive: bits of the living rows; 0 where all live.
        columns: rule columns by name, if all are asked for. Indexes stay on the host.
    """

    corpus: str
    rows: int
    x: int
    norms: int
    keys: int
    alive: int
    columns: Mapping[str, int]

    @property
    def needed(self) -> int:
        """What must fit."""
        return self.x + self.norms + self.keys + self.alive

    @property
    def column_bytes(self) -> int:
        """What may fit beside it; where it does not, rules are evaluated on the host."""
        return sum(self.columns.values())


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """What some corpora take on a device.

    Attributes:
        segments: of all of them.
        temporary: bytes of temporary arrays by name, for a block of ``QUERIES`` queries and
            ``RESULTS`` results.
        temporary_bytes: the budget that they keep to.
        budget_bytes: for rows and columns; None where there is no device.
    """

    segments: tuple[SegmentPlan, ...]
    temporary: Mapping[str, int]
    temporary_bytes: int
    budget_bytes: int | None

    @property
    def rows(self) -> int:
        return sum(segment.rows for segment in self.segments)

    @property
    def needed(self) -> int:
        """Bytes that must fit."""
        return sum(segment.needed for segment in self.segments)

    @property
    def column_bytes(self) -> int:
        """Bytes of all rule columns."""
        return sum(segment.column_bytes for segment in self.segments)

    @property
    def fits(self) -> bool:
        return self.budget_bytes is None or self.needed <= self.budget_bytes

    def shard(self) -> tuple[int, int]:
        """(rows of a shard that fits, shards that the rows make); (0, 0) if not even a row fits."""
        if self.budget_bytes is None or self.fits or not self.rows:
            return self.rows, 1
        most = int(self.budget_bytes // math.ceil(self.needed / self.rows))
        return (most, -(-self.rows // most)) if most else (0, 0)

    def refusal(self) -> str | None:
        """Why the rows cannot be loaded, and what would fit; None when they can."""
        if self.fits:
            return None
        assert self.budget_bytes is not None
        rows, shards = self.shard()
        told = (
            f"{self.rows:,} rows take {gib(self.needed)} of device memory, and "
            f"{gib(self.budget_bytes)} are there for rows"
        )
        if not rows:
            return f"{told}; not even one row fits"
        return (
            f"{told}; a shard of {rows:,} rows fits, so {shards} devices would do: matchwright run "
            f"start --executor ray --device gpu --workers {shards} --shards {shards}"
        )

    def lines(self) -> list[str]:
        """The plan for a log or a terminal."""
        found = []
        for name in dict.fromkeys(segment.corpus for segment in self.segments):
            some = [segment for segment in self.segments if segment.corpus == name]
            parts = {
                what: sum(getattr(segment, what) for segment in some)
                for what in ("x", "norms", "keys", "alive", "column_bytes")
            }
            found.append(
                f"{name}: {sum(one.rows for one in some):,} rows in {len(some)} segments: vectors "
                f"{gib(parts['x'])}, norms {gib(parts['norms'])}, keys {gib(parts['keys'])}, alive "
                f"{gib(parts['alive'])}; rule columns up to {gib(parts['column_bytes'])}"
            )
        there = "" if self.budget_bytes is None else f" of {gib(self.budget_bytes)}"
        found.append(
            f"device memory: {gib(self.needed)}{there} for rows, up to {gib(self.column_bytes)} "
            f"for rule columns, {gib(self.temporary_bytes)} for temporary arrays"
        )
        return found

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain values."""
        rows, shards = self.shard()
        return {
            "segments": [asdict(segment) for segment in self.segments],
            "needed_bytes": self.needed,
            "column_bytes": self.column_bytes,
            "temporary": dict(self.temporary),
            "temporary_bytes": self.temporary_bytes,
            "budget_bytes": self.budget_bytes,
            "fits": self.fits,
            "shard_rows": rows,
            "shards": shards,
        }


def plan_memory(
    corpora: Mapping[str, Corpus], *, temporary_bytes: int, budget_bytes: int | None = None
) -> MemoryPlan:
    """What corpora take on a device; nothing is read but sizes.

    Args:
        corpora: name -> corpus.
        temporary_bytes: budget of temporary memory.
        budget_bytes: for rows and columns.
    """
    found = [
        _segment(name, segment, alive)
        for name, corpus in corpora.items()
        for segment, alive in corpus.parts
    ]
    width = max((_width(segment) for c in corpora.values() for segment, _ in c.parts), default=0)
    rows = max((corpus.n for corpus in corpora.values()), default=0)
    sizes = fit(QUERIES, max(rows, 1), width, RESULTS, temporary_bytes, tensor=True)
    return MemoryPlan(
        segments=tuple(found),
        temporary={} if sizes is None else temporary_parts(sizes, width, RESULTS),
        temporary_bytes=temporary_bytes,
        budget_bytes=budget_bytes,
    )


def temporary_parts(sizes: Sizes, width: int, k: int) -> dict[str, int]:
    """Bytes of a block's temporary arrays, by name."""
    entry = 16
    return {
        "queries": sizes.queries,
        "limbs": sizes.queries * 3 * 4 * width,
        "bits": sizes.queries * sizes.columns // 8,
        "found": sizes.queries * sizes.capacity * entry,
        "best": sizes.queries * (k + 1) * entry,
    }


def _width(segment: Segment) -> int:
    d = int(segment.x_nd.shape[1])
    return d + -d % limit("ALIGN")


def _segment(corpus: str, segment: Segment, alive: Bool | None) -> SegmentPlan:
    slots: list[Slot] = [("scalar", name) for name in segment.scalars]
    slots += [("set", name) for name in segment.sets]
    return SegmentPlan(
        corpus=corpus,
        rows=segment.n,
        x=segment.n * _width(segment),
        norms=4 * segment.n,
        keys=8 * segment.n,
        alive=0 if alive is None else -(-segment.n // 32) * 4,
        columns={name: column_bytes(segment, (kind, name)) for kind, name in slots},
    )
