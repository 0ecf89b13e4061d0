"""Rule sets that are written over the same predicates, by number.

::

    group g ── start_g[g] : start_g[g + 1] ──> which_m ──> predicates

Whoever makes thousands of rule sets knows which predicates recur; kernels that take them as they
are need not find it out again.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np

from matchwright.kernels.types import Bitmap, Bool, Int32, Int64, Predicate, Rules


@dataclass(frozen=True, slots=True, eq=False)
class RuleSets(Sequence[Rules]):
    """G rule sets; each is made a tuple where it is asked for.

    Attributes:
        predicates: P of them, each one in some set.
        which_m: int64 (M,), the predicates of all sets, one set after the other.
        start_g: int64 (G + 1,), set g owns ``which_m[start_g[g]:start_g[g + 1]]``.
    """

    predicates: Sequence[Predicate]
    which_m: Int64
    start_g: Int64

    @classmethod
    def of(cls, sets: Sequence[Rules]) -> RuleSets:
        """Any rule sets; predicates that are one object have one number, in the order met."""
        if isinstance(sets, RuleSets):
            return sets
        written = list(itertools.chain.from_iterable(sets))
        objects = list(map(id, written))
        distinct = dict(zip(objects, written, strict=True))
        start_g = np.cumsum([0, *map(len, sets)], dtype=np.int64)
        if len(distinct) == len(written):  # none recurs
            return cls(written, np.arange(len(written)), start_g)
        numbers = dict(zip(distinct, range(len(distinct)), strict=True))
        which_m = np.fromiter(map(numbers.__getitem__, objects), np.int64, len(objects))
        return cls([*distinct.values()], which_m, start_g)

    def __len__(self) -> int:
        return int(self.start_g.size) - 1

    @overload
    def __getitem__(self, at: int) -> Rules: ...
    @overload
    def __getitem__(self, at: slice) -> list[Rules]: ...
    def __getitem__(self, at: int | slice) -> Rules | list[Rules]:
        if isinstance(at, slice):
            return [self[g] for g in range(*at.indices(len(self)))]
        g = range(len(self))[at]
        which = self.which_m[self.start_g[g] : self.start_g[g + 1]]
        return tuple(map(self.predicates.__getitem__, which.tolist()))

    def __iter__(self) -> Iterator[Rules]:
        written = list(map(self.predicates.__getitem__, self.which_m.tolist()))
        start = self.start_g.tolist()
        for low, high in itertools.pairwise(start):
            yield tuple(written[low:high])

    def take(self, some: Int32 | Int64) -> RuleSets:
        """Some of the sets, in the order given, over the predicates that they have."""
        size_g = np.diff(self.start_g)[some]
        start_g = np.zeros(some.size + 1, dtype=np.int64)
        np.cumsum(size_g, out=start_g[1:])
        at_m = np.repeat(self.start_g[some] - start_g[:-1], size_g) + np.arange(start_g[-1])
        which_m = self.which_m[at_m]
        used_p = np.zeros(len(self.predicates), dtype=np.bool_)
        used_p[which_m] = True
        kept = np.flatnonzero(used_p).tolist()
        number_p = np.cumsum(used_p) - 1
        predicates = [self.predicates[p] for p in kept]
        return RuleSets(predicates, number_p[which_m], start_g)


def bitmaps_among(groups: Sequence[Rules | Bitmap]) -> Bool:
    """bool (G,): which groups are bitmaps."""
    if isinstance(groups, RuleSets):
        return np.zeros(len(groups), dtype=np.bool_)
    return np.array([isinstance(group, Bitmap) for group in groups], dtype=np.bool_)


def rules_among(groups: Sequence[Rules | Bitmap], some: Int32 | Int64) -> Sequence[Rules]:
    """Some groups, but for bitmaps, in the order given."""
    if isinstance(groups, RuleSets):
        return groups.take(some)
    chosen = (groups[g] for g in some.tolist())
    return [group for group in chosen if not isinstance(group, Bitmap)]
