"""What the second phase made of a pair: its score by features, and what moved it from its rank.

Scores come from the exported trees, which say exactly what the served model says (every answer is
checked against them), so an explanation needs no server. Contributions add up to the score;
``trees.METHOD`` names how they are made. What moved a pair is told against those that it passed, or
that passed it: the mean difference of each feature's contribution, which adds up to the mean
difference of scores.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from matchwright.engine.models.description import RANKER
from matchwright.engine.prepare import Prepared, SnapshotLike
from matchwright.engine.rerank.features import FEATURES, INDEX, UNKNOWN
from matchwright.engine.rerank.features_pairs import Inline
from matchwright.engine.rerank.rerank import Ranker
from matchwright.engine.rerank.trees import METHOD
from matchwright.kernels.types import Bool, Int32, Int64

STRONG, SLIGHT = 0.2, 0.02
"""Shares of all that features gave, by magnitude, from which one is strong, or counts at all."""
MOVERS_MAX = 5
"""So many features are named that moved a pair."""
NOT_ELIGIBLE = "the model orders eligible candidates alone"


@dataclass(frozen=True, slots=True)
class FeatureShare:
    """What one feature gave.

    Attributes:
        name, text: of the feature; the text is in words.
        value, unit: what it is for this pair; None when unknown, or not shown.
        score: its contribution to the model's score; None when not shown.
        effect: "strongly for", "for", "neither", "against", "strongly against".
    """

    name: str
    text: str
    value: int | None
    unit: str | None
    score: float | None
    effect: str

    def to_dict(self) -> dict[str, Any]:
        return {
            "feature": self.name,
            "text": self.text,
            "value": self.value,
            "unit": self.unit,
            "score": self.score,
            "effect": self.effect,
        }


@dataclass(frozen=True, slots=True)
class SecondPhase:
    """The model's view of one pair.

    Attributes:
        model, version, content_hash: who orders: "ranker" and a number.
        method: how contributions are made.
        considered: the pair was among the first ``candidates`` of the first phase.
        candidates: how many the model orders at most.
        first_rank, rank: ranks before and after; None when not considered, or not shown.
        rank_within: 10, 100 or 1,000 when the rank lies within; None beyond, or not considered.
        moved: "up", "down" or "not"; None when not considered.
        compared_with: how many it passed (up), or passed it (down); None when not shown.
        score, bias: the model's; contributions and bias add up to the score. None when not shown.
        contributions: every feature that the model asks for.
        moved_by: the features that made most of the difference, the largest first.
        text: the outcome in words.
    """

    model: str
    version: int
    content_hash: str
    method: str
    considered: bool
    candidates: int
    first_rank: int | None
    rank: int | None
    rank_within: int | None
    moved: str | None
    compared_with: int | None
    score: float | None
    bias: float | None
    contributions: tuple[FeatureShare, ...]
    moved_by: tuple[FeatureShare, ...]
    text: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON and tables."""
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__}
        for name in ("contributions", "moved_by"):
            plain[name] = [share.to_dict() for share in getattr(self, name)]
        return plain

    def shown(self) -> SecondPhase:
        """What people who are not operators see: words and classes, no numbers, nothing in an order
        that would tell sizes."""
        by_name = sorted(self.moved_by, key=lambda share: INDEX[share.name])
        return replace(
            self,
            first_rank=None,
            rank=None,
            compared_with=None,
            score=None,
            bias=None,
            contributions=tuple(map(_closed, self.contributions)),
            moved_by=tuple(map(_closed, by_name)),
        )


def _closed(share: FeatureShare) -> FeatureShare:
    return replace(share, value=None, unit=None, score=None)


def second_phase(
    ranker: Ranker,
    snapshot: SnapshotLike,
    query: Prepared,
    rows: Int64,
    row: int,
    inline: Inline | None,
    steps: Sequence[int],
) -> SecondPhase:
    """Where the model puts one row among candidates.

    Args:
        rows: int64 (M,), the first phase's candidates, best first.
        row: the pair's; it need not be among them.
        inline: rows that are not stored.
        steps: ranks that people who are not operators are told.
    """
    assert query.policy.rerank is not None
    most = query.policy.rerank.candidates
    at = np.flatnonzero(rows == row)
    if not at.size:
        return _not_considered(ranker, most)
    place = int(at[0])
    f_mf = ranker.features(snapshot, [query], [rows], inline)
    score_m = ranker.trees.score(f_mf)
    parts_mf = ranker.trees.contributions(f_mf)
    order = np.argsort(-score_m, kind="stable")
    rank = int(np.flatnonzero(order == place)[0]) + 1
    moved, others = _movement(order, place, rank)
    bits = ranker.trees.grid_bits
    return SecondPhase(
        model=RANKER,
        version=ranker.version,
        content_hash=ranker.trees.content_hash,
        method=METHOD,
        considered=True,
        candidates=most,
        first_rank=place + 1,
        rank=rank,
        rank_within=next((step for step in steps if rank <= step), None),
        moved=moved,
        compared_with=int(others.sum()),
        score=math.ldexp(int(score_m[place]), -bits),
        bias=math.ldexp(int(parts_mf[place, -1]), -bits),
        contributions=_shares(ranker, f_mf[place], parts_mf[place, :-1].astype(np.float64)),
        moved_by=_movers(ranker, f_mf[place], parts_mf[:, :-1], place, others, moved),
        text=_sentence(moved, int(others.sum())),
    )


def _not_considered(ranker: Ranker, most: int) -> SecondPhase:
    return SecondPhase(
        model=RANKER,
        version=ranker.version,
        content_hash=ranker.trees.content_hash,
        method=METHOD,
        considered=False,
        candidates=most,
        first_rank=None,
        rank=None,
        rank_within=None,
        moved=None,
        compared_with=None,
        score=None,
        bias=None,
        contributions=(),
        moved_by=(),
        text=f"not among the first {most:,} candidates, which alone the model orders",
    )


def not_eligible(ranker: Ranker, most: int) -> SecondPhase:
    """Of a pair that some rule vetoes: the model never sees it."""
    return replace(_not_considered(ranker, most), text=NOT_ELIGIBLE)


def _movement(order: Int64, place: int, rank: int) -> tuple[str, Bool]:
    """(which way, bool (M,) whom it is compared with): those that it passed, or that passed it."""
    after = np.empty_like(order)
    after[order] = np.arange(order.size)
    before = np.arange(order.size)
    passed = (before < place) & (after > after[place])
    passed_by = (before > place) & (after < after[place])
    if rank == place + 1:
        return "not", np.zeros(order.size, dtype=np.bool_)
    return ("up", passed) if rank < place + 1 else ("down", passed_by)


def _shares(ranker: Ranker, f_f: Int32, units_f: Any) -> tuple[FeatureShare, ...]:
    """A share for each feature that the model asks for, in the order of the table."""
    total = float(np.abs(units_f).sum())
    asked = set(ranker.asked)
    made = []
    for n, name in enumerate(ranker.trees.features):
        if name not in asked:
            continue
        feature, value, units = FEATURES[INDEX[name]], int(f_f[n]), float(units_f[n])
        known = value != UNKNOWN
        made.append(
            FeatureShare(
                name=name,
                text=feature.text,
                value=value if known else None,
                unit=feature.unit if known else None,
                score=math.ldexp(units, -ranker.trees.grid_bits),
                effect=effect_of(units, total),
            )
        )
    return tuple(sorted(made, key=lambda share: INDEX[share.name]))


def _movers(
    ranker: Ranker, f_f: Int32, parts_mf: Int32, place: int, others: Bool, moved: str
) -> tuple[FeatureShare, ...]:
    """The features that made most of the difference to the others, in the direction of the move."""
    if moved == "not":
        return ()
    sign = 1.0 if moved == "up" else -1.0
    difference = parts_mf[place].astype(np.float64) - parts_mf[others].mean(axis=0)
    shares = _shares(ranker, f_f, difference)
    pushed = [one for one in shares if one.score is not None and sign * one.score > 0]
    pushed.sort(key=lambda one: -abs(one.score or 0.0))
    return tuple(pushed[:MOVERS_MAX])


def effect_of(units: float, total: float) -> str:
    """In words, what a contribution did among all of them."""
    if abs(units) < SLIGHT * total or units == 0:
        return "neither"
    word = "for" if units > 0 else "against"
    return f"strongly {word}" if abs(units) >= STRONG * total else word


def _sentence(moved: str, others: int) -> str:
    whom = "one candidate" if others == 1 else "candidates"
    told: Mapping[str, str] = {
        "up": f"the model put it before {whom} that the first phase had ahead of it",
        "down": f"the model put {whom} before it that the first phase had behind it",
        "not": "the model left it where the first phase had it",
    }
    return told[moved]
