"""What a match returns, and its one canonical form.

A ``Result`` is a struct of arrays. It falls under the contract: given the same stored data, policy
and epoch it is the same on every backend, plan, batch, thread and shard count, and so are its
canonical bytes. ``Telemetry`` stands apart and is never part of a digest.
"""

from __future__ import annotations

import enum
import hashlib
import json
import math
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
        first_rank: rank in the first phase; None where the policy does not rerank.
        model_score: what the model said; None where it was not asked, or did not answer in time.
    """

    rank: int
    id: str
    key: int
    points: int
    score: float
    contributions: Mapping[str, int]
    first_rank: int | None = None
    model_score: float | None = None


class Degraded(enum.StrEnum):
    """Why an answer is in the order of the first phase, although its policy reranks."""

    LATE = "LATE"
    """The model gave no answer within the time that was left."""
    UNREACHABLE = "UNREACHABLE"
    """The server of the models cannot be reached."""
    BREAKER_OPEN = "BREAKER_OPEN"
    """It failed so often just now that it is not asked for a moment."""
    NOT_READY = "NOT_READY"
    """The server does not serve this version of the model."""
    WRONG_OUTPUT = "WRONG_OUTPUT"
    """The model answered what cannot be used: shape, NaN, or not what its trees say."""
    NO_FEATURES = "NO_FEATURES"
    """A served encoder that features need could not be asked."""
    FAILED = "FAILED"
    """A defect; the log says more."""


@dataclass(frozen=True, eq=False)
class Reranked:
    """The second phase of an answer.

    Attributes:
        model, version: who ordered it: "ranker" and a number.
        content_hash: of what determines the model's scores.
        grid_bits: model scores are ``scores * 2**-grid_bits``.
        candidates: how many of the first phase the model was to order: at most the policy's M.
        scores: int32 (returned,), exact; empty when degraded.
        first_ranks: int32 (returned,), ranks in the first phase, 1 for the best.
        last_key: order key of the last candidate when there were M, else None: nobody eligible
            beyond it was looked at.
        degraded: a ``Degraded``; None when the order is the model's.
    """

    model: str
    version: int
    content_hash: str
    grid_bits: int
    candidates: int
    scores: Int32
    first_ranks: Int32
    last_key: OrderKey | None
    degraded: str | None

    def score(self, index: int) -> float | None:
        """The model's score of one match; None when degraded."""
        return None if self.degraded else math.ldexp(int(self.scores[index]), -self.grid_bits)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, without those of single matches."""
        return {
            "model": self.model,
            "version": self.version,
            "content_hash": self.content_hash,
            "grid_bits": self.grid_bits,
            "candidates": self.candidates,
            "last_key": None if self.last_key is None else str(self.last_key),
            "degraded": self.degraded,
        }

    def canonical(self) -> dict[str, Any]:
        """All of it, as part of a result's canonical form."""
        return {
            **self.to_dict(),
            "scores": self.scores.tolist(),
            "first_ranks": self.first_ranks.tolist(),
        }


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
        rerank: the second phase; None where the policy has none. ``ids`` and what goes with them
            are then in the model's order, while ``kth_key`` stays the K-th's of the first phase.
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
    rerank: Reranked | None = None
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
            first_rank=None if self.rerank is None else int(self.rerank.first_ranks[index]),
            model_score=None if self.rerank is None else self.rerank.score(index),
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
            **({} if self.rerank is None else {"rerank": self.rerank.to_dict()}),
            "digest": self.digest(),
            "matches": [
                {
                    "rank": match.rank,
                    "id": match.id,
                    "score": match.score,
                    "points": match.points,
                    "contributions": dict(match.contributions),
                    **({} if self.rerank is None else _model_part(match)),
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
        while it is empty; ``rerank`` where there was none.
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
        if self.rerank is not None:
            value["rerank"] = self.rerank.canonical()
        return canonical_json(value)

    def digest(self) -> str:
        """SHA-256 of the canonical bytes, in hexadecimal."""
        return hashlib.sha256(self.canonical_bytes()).hexdigest()


def _model_part(match: Match) -> dict[str, Any]:
    return {"first_rank": match.first_rank, "model_score": match.model_score}


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
