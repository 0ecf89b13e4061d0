"""Which rules stand between short queries and more matches, counted over the whole corpus.

For each query of a seeded sample, three exact counts of eligible rows for each of its rules: how
many rows fail it, how many fail it alone, and how many matches there would be without it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from matchwright.engine.matcher import OTHER, Matcher
from matchwright.engine.policy import Policy
from matchwright.engine.prepare import Prepared, SnapshotLike, prepare
from matchwright.engine.records import Kind
from matchwright.engine.request import Request
from matchwright.kernels.ops import Ops
from matchwright.kernels.types import Corpus, Rules

PAIRS_MAX = 100_000_000
"""Sampled queries times rows of the corpus, at most; a smaller sample beyond."""
LEAST = 20


@dataclass(frozen=True)
class Cause:
    """What one rule did in the sample.

    Attributes:
        veto: the rule's reason.
        queries: sampled queries in which it vetoes somebody.
        pairs: pairs that it vetoes.
        alone: pairs that it vetoes and no other rule does.
        freed: sampled queries that would have K matches without it, all else equal.
        never: sampled queries that rule out every answer by themselves, for this reason.
    """

    veto: str
    queries: int
    pairs: int
    alone: int
    freed: int
    never: int


@dataclass(frozen=True)
class Causes:
    """What rules did to a sample of queries with fewer than K matches.

    Attributes:
        sampled: how many queries; ``of`` is how many have fewer than K.
        pairs: pairs of these queries with the corpus; ``eligible`` pass every rule.
        unfreed: sampled queries that no single rule keeps short.
        rules: by ``freed``, then by ``alone``, descending.
    """

    sampled: int
    of: int
    pairs: int
    eligible: int
    unfreed: int
    rules: tuple[Cause, ...]


@dataclass(frozen=True)
class Blocked:
    """What one rule did to one query: rows it vetoes, vetoes alone, matches without it."""

    veto: str
    pairs: int
    alone: int
    without: int


@dataclass(slots=True)
class _Sum:
    queries: int = 0
    pairs: int = 0
    alone: int = 0
    freed: int = 0
    never: int = 0


@dataclass(slots=True)
class _Sums:
    by_veto: dict[str, _Sum] = field(default_factory=dict)
    eligible: int = 0
    unfreed: int = 0

    def of(self, veto: str) -> _Sum:
        return self.by_veto.setdefault(veto, _Sum())


class Counter:
    """Counts eligible rows by rules; a rule set that comes again costs nothing."""

    def __init__(self, ops: Ops, corpus: Corpus) -> None:
        self._ops, self._corpus = ops, corpus
        self._known: dict[Rules, int] = {}
        self.living = self(())

    def __call__(self, rules: Rules) -> int:
        """Rows that pass all of them."""
        if rules not in self._known:
            self._known[rules] = self._ops.count(self._corpus, rules)[0]
        return self._known[rules]

    def blocked(self, rules: Rules) -> tuple[int, list[Blocked]]:
        """(eligible, what each veto does) for one query."""
        eligible = self(rules)
        found = []
        for veto in dict.fromkeys(rule.veto for rule in rules):
            mine = [tuple(rule for rule in rules if (rule.veto == veto) == side) for side in (1, 0)]
            vetoed = self.living - self(mine[0])
            if vetoed:
                without = self(mine[1])
                found.append(Blocked(veto, vetoed, without - eligible, without))
        return eligible, found


def causes(
    snapshot: SnapshotLike,
    ops: Ops,
    policy: Policy,
    kind: Kind,
    ids: Sequence[str],
    *,
    k: int,
    as_of: int,
    of: int,
    more: Sequence[str] = (),
) -> tuple[Causes, Mapping[str, list[Blocked]]]:
    """Figures of the sample, and for each query what blocks it, most in the way first.

    Args:
        ids: the sample, of the kind that asks; those that are not stored are left out.
        of: how many queries have fewer than K matches.
        more: queries that are looked at besides and do not count in the figures.
    """
    corpus = snapshot.corpus(OTHER[kind])
    living = max(_living(corpus), 1)
    most = max(LEAST, PAIRS_MAX // living)
    counter = Counter(ops, corpus)
    sums = _Sums()
    each: dict[str, list[Blocked]] = {}
    sample = set(ids[:most])
    asked = list(dict.fromkeys((*ids[:most], *more[:most])))
    sampled = 0
    for query in _prepared(snapshot, ops, policy, kind, asked, as_of):
        eligible, blocked = counter.blocked(query.rules)
        each[str(query.query_id)] = sorted(blocked, key=lambda one: (-one.without, -one.pairs))
        if query.query_id in sample:
            sampled += 1
            _add(sums, query, eligible, blocked, k)
    made = [
        Cause(veto, s.queries, s.pairs, s.alone, s.freed, s.never)
        for veto, s in sums.by_veto.items()
    ]
    made.sort(key=lambda one: (-one.freed, -one.alone, -one.pairs, one.veto))
    pairs = sampled * counter.living
    return Causes(sampled, of, pairs, sums.eligible, sums.unfreed, tuple(made)), each


def _add(sums: _Sums, query: Prepared, eligible: int, blocked: Sequence[Blocked], k: int) -> None:
    sums.eligible += eligible
    sums.unfreed += not any(one.without >= k for one in blocked)
    for one in blocked:
        row = sums.of(one.veto)
        row.queries += 1
        row.pairs += one.pairs
        row.alone += one.alone
        row.freed += one.without >= k
        row.never += one.veto in query.compiled.never


def _living(corpus: Corpus) -> int:
    alive = (segment.n if a is None else int(np.count_nonzero(a)) for segment, a in corpus.parts)
    return sum(alive)


def _prepared(
    snapshot: SnapshotLike,
    ops: Ops,
    policy: Policy,
    kind: Kind,
    ids: Sequence[str],
    as_of: int,
) -> list[Prepared]:
    """Queries of stored entities, ready; without those that are not there any more."""
    matcher = Matcher(snapshot, ops, policy)
    requests = [Request(kind=kind, id=name, as_of=as_of) for name in ids]
    made = prepare(snapshot, requests, policy.budgets, matcher.effective)
    return [query for query in made if isinstance(query, Prepared)]
