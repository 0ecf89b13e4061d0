"""Features of what both sides say of themselves, for a block of queries of one kind.

What one side alone decides is worked out once for each entity, what is elementwise once for the
block, and only comparisons of skills query by query.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from matchwright.engine.prepare import Prepared, SnapshotLike
from matchwright.engine.records import Kind
from matchwright.engine.rerank import features_values as values
from matchwright.engine.rerank.features import INDEX
from matchwright.engine.rerank.features_rows import Side, side_of_records
from matchwright.engine.rerank.features_sets import SetPairs, category_features, must_missing
from matchwright.engine.rerank.features_values import Pairs
from matchwright.engine.zones import as_zones, offset_minutes
from matchwright.kernels.types import Int32, Int64

PAIRS_MAX = 1 << 15
"""Pairs that are worked on together: some 10 MB."""
SKILLS = "skills"
"""The group whose lists of skills are compared query by query."""
SETS = {SKILLS: must_missing, "terms": category_features}
NUMBERS = {"terms": values.number_features}
ONE_SIDED: Mapping[str, Kind] = {"person": "freelancer", "client": "job"}
"""Group -> the side that alone decides it."""
_ALONE = {"person": values.person_features, "client": values.client_features}
GROUPS = frozenset({SKILLS, *SETS, *NUMBERS, *ONE_SIDED})


@dataclass(frozen=True, slots=True, eq=False)
class Sides:
    """A block.

    Attributes:
        kind: of the queries.
        mine: the Q queries; ``theirs``: the U candidates of all of them.
        at_q: for each query int64 (M,), its candidates among the U; None for all of one query.
        parts: for each query int32 (M, F), written into.
        groups: what is wanted.
    """

    kind: Kind
    mine: Side
    theirs: Side
    at_q: Sequence[Int64] | None
    parts: Sequence[Int32]
    groups: frozenset[str]

    def at(self, n: int) -> Int64:
        """Query n's candidates among the U."""
        return np.arange(self.theirs.n) if self.at_q is None else self.at_q[n]

    def fill(self, members: Sequence[int], day: int, offsets: Int64, plateau: int) -> None:
        """Write the features of queries that share a day and a plateau."""

        def pairs(mine: Side, theirs: Side, m: int) -> Pairs:
            job, freelancer = (mine, theirs) if self.kind == "job" else (theirs, mine)
            return Pairs(job, freelancer, m, day, offsets, plateau)

        for group in sorted(self.groups & ONE_SIDED.keys()):
            everybody = pairs(self.mine, self.theirs, 0)
            self._write_alone(members, group, _ALONE[group](everybody))
        for some in self._chunks(members) if self.groups & (NUMBERS.keys() | SETS.keys()) else ():
            size = [len(self.parts[n]) for n in some]
            at = np.concatenate([self.at(n) for n in some])
            for group in sorted(self.groups & NUMBERS.keys()):
                mine = self.mine.numbered(np.repeat(some, size))
                self._write(some, NUMBERS[group](pairs(mine, self.theirs.numbered(at), at.size)))
            for group in sorted(self.groups & SETS.keys()):
                own = self.mine.sets_at(np.array(some), group)
                both = SetPairs(self.kind, own, self.theirs.sets_at(at, group), size)
                self._write(some, SETS[group](both))
        for n in members if SKILLS in self.groups else ():
            at = self.at(n)
            one = pairs(self.mine.skilled(np.array([n])), self.theirs.skilled(at), at.size)
            self._write([n], values.skill_features(one))

    def _write_alone(self, members: Sequence[int], group: str, found: Mapping[str, Int64]) -> None:
        """Features of entities by themselves, given to each of their pairs."""
        columns = [INDEX[name] for name in found]
        table = np.stack(list(found.values()), axis=1)
        for n in members:
            own = ONE_SIDED[group] == self.kind
            self.parts[n][:, columns] = table[n] if own else table[self.at(n)]

    def _write(self, members: Sequence[int], found: Mapping[str, Int64]) -> None:
        """Features of pairs, query after query."""
        columns = [INDEX[name] for name in found]
        table = np.stack(list(found.values()), axis=1)
        start = 0
        for n in members:
            stop = start + len(self.parts[n])
            self.parts[n][:, columns] = table[start:stop]
            start = stop

    def _chunks(self, members: Sequence[int]) -> Iterator[list[int]]:
        some: list[int] = []
        pairs = 0
        for n in members:
            if some and pairs + len(self.parts[n]) > PAIRS_MAX:
                yield some
                some, pairs = [], 0
            some.append(n)
            pairs += len(self.parts[n])
        if some:
            yield some


def write_sides(
    snapshot: SnapshotLike,
    queries: Sequence[Prepared],
    theirs: Side,
    at_q: Sequence[Int64] | None,
    parts: Sequence[Int32],
    groups: frozenset[str],
) -> None:
    """Write the features of a block of queries of one kind; see ``Sides``."""
    generation, kind = snapshot.generation, queries[0].request.kind
    mine = side_of_records(kind, [query.record for query in queries], generation)
    sides = Sides(kind, mine, theirs, at_q, parts, groups)
    alike: dict[tuple[int, int], list[int]] = {}
    for n, query in enumerate(queries):
        what = int(query.request.as_of or 0), query.policy.facets.recency_plateau_days
        alike.setdefault(what, []).append(n)
    for (day, plateau), members in alike.items():
        offsets = np.array(offset_minutes(as_zones(generation), day), dtype=np.int64)
        sides.fill(members, day, offsets, plateau)
