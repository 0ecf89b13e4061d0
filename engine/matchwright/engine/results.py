"""What a match returns, and its one canonical form.

A ``Result`` is a struct of arrays. It falls under the contract: given the same stored data, policy
and epoch it is the same on every backend, plan, batch, thread and shard count, and so are its
canonical bytes. ``Telemetry`` stands apart and is never part of a digest.
"""

from __future__ import annotations

import enum
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from matchwright.engine.records import Kind
from matchwright.kernels.types import Float64, Int32, UInt64

RESULT_FORMAT = 1
"""Version of the canonical form; a change of any byte needs the next one."""


class Shortfall(enum.StrEnum):
    """Why fewer than K are returned."""

    EMPTY_CORPUS = "EMPTY_CORPUS"
    """There is nobody on the other side."""
    QUERY_VETOED = "QUERY_VETOED"
    """The entity that asks rules out every answer by itself: a closed job, say."""
    FEW_ELIGIBLE = "FEW_ELIGIBLE"
    """All that are eligible are returned."""
    MIN_SCORE = "MIN_SCORE"
    """More are eligible, but they score below ``min_score``."""


@dataclass(frozen=True, slots=True)
class OrderKey:
    """The 96-bit key by which answers are ordered, best first by (points, ~mix, ~low).

    Attributes:
        points: the integer score.
        mix: 32-bit mix of query key and corpus key; smaller comes first.
        low: low word of the corpus key; smaller comes first.
    """

    points: int
    mix: int
    low: int

    def __str__(self) -> str:
        return f"{self.points}:{self.mix:08x}:{self.low:08x}"

    @property
    def rank_order(self) -> tuple[int, int, int]:
        """Ascending order of this tuple is the order of answers."""
        return -self.points, self.mix, self.low


@dataclass(frozen=True, slots=True)
class Match:
    """One returned pair.

    Attributes:
        rank: 1 for the best.
        id, key: of the entity on the corpus side.
        points, score: ``score = points * t``.
        contributions: facet -> points; they add up to ``points``.
    """

    rank: int
    id: str
    key: int
    points: int
    score: float
    contributions: Mapping[str, int]


@dataclass(frozen=True, eq=False)
class Result:
    """The answer to one request.

    Attributes:
        epoch: the state of the catalog, ``uuid:number:digest``.
        generation: id of the fitted artefacts.
        policy: id of the effective policy.
        as_of: days since 1970-01-01.
        kind: kind of the entity that asked.
        query_id: its id; None when it was given inline without one.
        query_key: its 64-bit key.
        k: how many were asked for.
        facets: names, in the order of the columns of ``contributions``.
        ids: (returned,) ids of the corpus side, best first.
        keys: uint64 (returned,).
        points: int32 (returned,).
        contributions: int32 (returned, B); rows add up to ``points``. B is 0 when not asked for.
        scores: float64 (returned,), ``points * t``.
        eligible: pairs that pass every rule; -1 when not counted.
        counted: EXACT, AT_LEAST or NOT_COUNTED: what ``eligible`` and ``unverified`` mean.
        unverified: eligible pairs that passed some rule on an unknown value; -1 when not counted.
        kth_key: order key of the last one returned when K are returned, else None.
        shortfall: why fewer than K are returned, else None.
        resolution: levels of the query grid that the coarsest weighted facet keeps.
        attainable: score of the best conceivable match.
        t: the query's step, float64.
        degraded: what a served model did not give in time, so that the answer went without it:
            ENCODER_UNREACHABLE, say, when the text facet counts as unknown. Empty when all is well.
        telemetry: plan, device, seconds; outside the contract.
    """

    epoch: str
    generation: str
    policy: str
    as_of: int
    kind: Kind
    query_id: str | None
    query_key: int
    k: int
    facets: tuple[str, ...]
    ids: tuple[str, ...]
    keys: UInt64
    points: Int32
    contributions: Int32
    scores: Float64
    eligible: int
    counted: str
    unverified: int
    kth_key: OrderKey | None
    shortfall: Shortfall | None
    resolution: int
    attainable: float
    t: float
    degraded: tuple[str, ...] = ()
    telemetry: Mapping[str, Any] = field(default_factory=dict)

    @property
    def returned(self) -> int:
        return len(self.ids)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Match:
        index = range(len(self.ids))[index]
        row = self.contributions[index].tolist() if self.contributions.size else []
        return Match(
            rank=index + 1,
            id=self.ids[index],
            key=int(self.keys[index]),
            points=int(self.points[index]),
            score=float(self.scores[index]),
            contributions=dict(zip(self.facets, row, strict=False)),
        )

    def __iter__(self) -> Iterator[Match]:
        return (self[index] for index in range(len(self.ids)))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON and tables, numbers as numbers; telemetry included."""
        return {
            "epoch": self.epoch,
            "generation": self.generation,
            "policy": self.policy,
            "as_of": self.as_of,
            "kind": self.kind,
            "query_id": self.query_id,
            "k": self.k,
            "returned": self.returned,
            "eligible": self.eligible,
            "counted": self.counted,
            "unverified": self.unverified,
            "kth_key": None if self.kth_key is None else str(self.kth_key),
            "shortfall": None if self.shortfall is None else str(self.shortfall),
            "resolution": self.resolution,
            "attainable": self.attainable,
            "t": self.t,
            **({"degraded": list(self.degraded)} if self.degraded else {}),
            "digest": self.digest(),
            "matches": [
                {
                    "rank": match.rank,
                    "id": match.id,
                    "score": match.score,
                    "points": match.points,
                    "contributions": dict(match.contributions),
                }
                for match in self
            ],
            "telemetry": dict(self.telemetry),
        }

    def canonical_bytes(self) -> bytes:
        """The canonical serialisation: equal results give equal bytes, everywhere.

        One JSON object in UTF-8: keys sorted, no blanks, non-ASCII written as itself, values only
        strings, integers, lists and null. ``t`` and ``attainable`` are written by ``float.hex``;
        keys are 16 hexadecimal digits. Scores are left out, being ``points * t``; ``degraded``
        while it is empty.
        """
        value: dict[str, Any] = {
            "format": RESULT_FORMAT,
            "epoch": self.epoch,
            "generation": self.generation,
            "policy": self.policy,
            "as_of": self.as_of,
            "kind": self.kind,
            "query_id": self.query_id,
            "query_key": f"{self.query_key:016x}",
            "k": self.k,
            "facets": list(self.facets),
            "ids": list(self.ids),
            "keys": [f"{key:016x}" for key in self.keys.tolist()],
            "points": self.points.tolist(),
            "contributions": self.contributions.tolist(),
            "eligible": self.eligible,
            "counted": self.counted,
            "unverified": self.unverified,
            "returned": self.returned,
            "kth_key": None if self.kth_key is None else str(self.kth_key),
            "shortfall": None if self.shortfall is None else str(self.shortfall),
            "resolution": self.resolution,
            "attainable": float(self.attainable).hex(),
            "t": float(self.t).hex(),
        }
        if self.degraded:
            value["degraded"] = list(self.degraded)
        return canonical_json(value)

    def digest(self) -> str:
        """SHA-256 of the canonical bytes, in hexadecimal."""
        return hashlib.sha256(self.canonical_bytes()).hexdigest()


def canonical_json(value: Any) -> bytes:
    """Compact JSON with sorted keys. Floats are refused: write them by ``float.hex`` first.

    Raises:
        TypeError: a float, or something that JSON does not have.
    """
    _refuse_floats(value)
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode("utf-8", "surrogatepass")


_EXACT = (str, int, bool, type(None))


def _refuse_floats(value: Any) -> None:
    if isinstance(value, float | np.floating):
        raise TypeError(f"{value!r} in a canonical form; write floats by float.hex")
    if isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            if type(item) not in _EXACT:
                _refuse_floats(item)
