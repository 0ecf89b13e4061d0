"""Features that compare a set of one side with a set of the other, for a block of queries."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from matchwright.engine.records import Kind
from matchwright.engine.rerank.features_values import clipped, known_or
from matchwright.kernels.types import Bool, Int64, SetColumn

Sets = Mapping[str, SetColumn]


@dataclass(frozen=True, slots=True, eq=False)
class SetPairs:
    """Pairs of Q queries, one query after the other.

    Attributes:
        kind: of the queries.
        mine: name -> sets of the Q queries; ``theirs``: of their candidates, M for each.
        size_q: how many pairs each query has.
    """

    kind: Kind
    mine: Sets
    theirs: Sets
    size_q: Sequence[int]

    def common(self, job: str, freelancer: str) -> Int64:
        """int64 (sum M,): how many values the two sets of each pair have in common."""
        if self.kind == "job":
            return _common(self.mine[job], self.theirs[freelancer], self.size_q)
        return _common(self.mine[freelancer], self.theirs[job], self.size_q)

    def size(self, kind: Kind, name: str) -> Int64:
        """int64 (sum M,): sizes of a side's sets."""
        return np.asarray(self._of_pairs(kind, np.diff(self._side(kind)[name].start_n)))

    def known(self, kind: Kind, name: str) -> Bool:
        """bool (sum M,): whether a side's sets are known."""
        return np.asarray(self._of_pairs(kind, self._side(kind)[name].known_n))

    def _side(self, kind: Kind) -> Sets:
        return self.mine if kind == self.kind else self.theirs

    def _of_pairs(self, kind: Kind, values: Any) -> Any:
        return np.repeat(values, self.size_q) if kind == self.kind else values


def must_missing(pairs: SetPairs) -> dict[str, Int64]:
    """Must-haves of the job that the freelancer does not list, of all names of both."""
    asked = pairs.size("job", "must_skills")
    missing = asked - pairs.common("must_skills", "skills")
    known = pairs.known("freelancer", "skills") | (asked == 0)
    name = "skill_must_missing"
    return {name: np.asarray(known_or(clipped(name, missing), known))}


def category_features(pairs: SetPairs) -> dict[str, Int64]:
    """Whether the field of work is the same."""
    same = pairs.common("category", "categories") > 0
    known = pairs.known("job", "category") & pairs.known("freelancer", "categories")
    return {"category_match": known_or(same, known)}


def _common(mine: SetColumn, theirs: SetColumn, size_q: Sequence[int]) -> Int64:
    """int64 (sum M,): how many values of their own query's set each of the M sets holds."""
    edge_q = theirs.start_n[np.cumsum([0, *size_q])]
    inside = np.zeros(theirs.value.size, dtype=np.bool_)
    owns, theirs_edges = itertools.pairwise(mine.start_n.tolist()), edge_q.tolist()
    for own, (low, high) in zip(owns, itertools.pairwise(theirs_edges), strict=True):
        values, here = mine.value[slice(*own)], theirs.value[low:high]
        if values.size:
            place = np.searchsorted(values, here)
            inside[low:high] = values.take(place, mode="clip") == here
    total = np.concatenate([[0], np.cumsum(inside)]).astype(np.int64)
    return np.asarray(total[theirs.start_n[1:]] - total[theirs.start_n[:-1]])
