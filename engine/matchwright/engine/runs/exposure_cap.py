"""The cap on how often one person is shown: who is admitted to which query.

Everybody over the cap stays with the queries that rank it highest: pairs are ordered by their
*claim*, 64 bits, smallest first::

    rank in the query's own first-phase order, 10 bits
    | first 26 bits of the order key's mix of query key and corpus key | the query's place, 28 bits

A query whose pair is refused shows the next of its stored rows, which may put somebody else over
the cap, and so on, round after round, until nobody is. Claims above a person's *bar* are refused,
and a bar only falls. All of a round is decided from the bars before it, so the outcome depends on
no order of work. With the cap alone it is the stable assignment of Gale and Shapley (1962) that is
best for the queries, which is unique.

Memory: 12 bytes for each person, one bit for each stored row of a query, and at most
``PAIRS_AT_ONCE`` pairs of those over the cap; stored rows stay in a file (``Lists``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from matchwright.engine.policy_exposure import Exposure
from matchwright.engine.runs.exposure_choice import Block, People, chosen
from matchwright.kernels.order import mix32
from matchwright.kernels.types import Bool, Int32, Int64, UInt8, UInt64

QUERIES_MAX = 1 << 28
QUERIES_AT_ONCE = 2_048
PAIRS_AT_ONCE = 1 << 24
"""Pairs of people over the cap that are weighed at once: bounds the memory, changes nothing."""
OPEN = np.uint64(2**64 - 1)
"""The bar of somebody who refuses nobody."""
_PLACE_BITS, _MIX_BITS = np.uint64(28), np.uint64(26)
_MIX_DROPPED = np.uint32(6)


@dataclass(frozen=True, slots=True, eq=False)
class Lists:
    """Stored rows of every query of one direction, in ascending order of query keys.

    Attributes:
        key_q: uint64 (Q,), ascending.
        person_qw, points_qw: int32 (Q, W), memory or a mapped file; -1 and 0 where nobody is.
        key_n: uint64 (N,), keys of people.
    """

    key_q: UInt64
    person_qw: Int32
    points_qw: Int32
    key_n: UInt64

    @property
    def q(self) -> int:
        return int(self.key_q.size)

    def block(self, places: Int64 | slice) -> Block:
        """The stored rows of some queries."""
        return Block(np.asarray(self.person_qw[places]), np.asarray(self.points_qw[places]))

    def claims(self, places: Int64, person_qw: Int32) -> UInt64:
        """uint64 (Q, W): claims of stored rows; those of nobody are ``OPEN``."""
        key = self.key_n[np.maximum(person_qw, 0)]
        mix = mix32(self.key_q[places][:, None], key) >> _MIX_DROPPED
        rank = np.arange(person_qw.shape[1], dtype=np.uint64)[None, :]
        claim = (rank << _MIX_BITS) | mix.astype(np.uint64)
        claim = (claim << _PLACE_BITS) | places.astype(np.uint64)[:, None]
        return np.where(person_qw >= 0, claim, OPEN)


@dataclass(frozen=True, slots=True, eq=False)
class Admission:
    """Who is admitted where.

    Attributes:
        bar_n: uint64 (N,), the largest claim that each person admits.
        rounds: how many it took.
    """

    bar_n: UInt64
    rounds: int

    def admitted(self, lists: Lists, places: Int64, person_qw: Int32) -> Bool:
        """bool (Q, W)."""
        there: Bool = person_qw >= 0
        if (self.bar_n == OPEN).all():
            return there
        bar = self.bar_n[np.maximum(person_qw, 0)]
        return there & (lists.claims(places, person_qw) <= bar)


def admit(
    lists: Lists,
    people: People,
    k: int,
    ask: Exposure,
    progress: Callable[[str], None] | None = None,
) -> Admission:
    """Bars under which nobody is shown more than ``ask.shown_max`` times (0: no cap)."""
    assert lists.q <= QUERIES_MAX, f"{lists.q:,} queries; claims hold {QUERIES_MAX:,}"
    bar_n = np.full(lists.key_n.size, OPEN, dtype=np.uint64)
    if not ask.shown_max:
        return Admission(bar_n, 0)
    state = _State(lists, people, k, ask, bar_n)
    stale, rounds = np.arange(lists.q, dtype=np.int64), 0
    while stale.size:
        state.choose_again(stale)
        stale = state.lower_bars()
        rounds += 1
        if progress is not None:
            progress(f"round {rounds} of the cap: {stale.size:,} queries to fill up")
    return Admission(state.bar_n, rounds)


class _State:
    """Bars, and what every query shows under them.

    Attributes:
        shown_qb: uint8 (Q, bytes), a bit for each stored row that is shown.
        count_n: int64 (N,), how often each person is shown.
    """

    def __init__(self, lists: Lists, people: People, k: int, ask: Exposure, bar_n: UInt64) -> None:
        self.lists, self.people, self.k, self.ask, self.bar_n = lists, people, k, ask, bar_n
        self.w = int(lists.person_qw.shape[1])
        self.shown_qb: UInt8 = np.zeros((lists.q, -(-self.w // 8)), dtype=np.uint8)
        self.count_n: Int64 = np.zeros(lists.key_n.size, dtype=np.int64)

    def choose_again(self, stale: Int64) -> None:
        """Decide anew what some queries show."""
        now = Admission(self.bar_n, 0)
        for begin in range(0, stale.size, QUERIES_AT_ONCE):
            places = stale[begin : begin + QUERIES_AT_ONCE]
            block = self.lists.block(places)
            admitted = now.admitted(self.lists, places, block.person_qw)
            before = self._shown(places)
            after = chosen(block, admitted, self.people, self.k, self.ask)
            for flags, sign in ((before, -1), (after, 1)):
                self._count(block.person_qw[flags], sign)
            self.shown_qb[places] = np.packbits(after, axis=1)

    def _count(self, person_m: Int32, sign: int) -> None:
        who, times = np.unique(person_m, return_counts=True)
        self.count_n[who] += sign * times

    def _shown(self, places: Int64 | slice) -> Bool:
        flags = np.unpackbits(self.shown_qb[places], axis=1, count=self.w)
        return flags.view(np.bool_)

    def lower_bars(self) -> Int64:
        """Refuse what is beyond the cap; the queries that lost somebody, ascending."""
        over = np.flatnonzero(self.count_n > self.ask.shown_max)
        lost: list[Int64] = [np.zeros(0, dtype=np.int64)]
        bars: list[tuple[Int64, UInt64]] = []
        for some in _portions(over, self.count_n[over]):
            person, claim = self._pairs(some)
            lost.append(self._beyond(person, claim, bars))
        for who, bar in bars:  # only now: a round is decided from the bars before it
            self.bar_n[who] = bar
        return np.unique(np.concatenate(lost))

    def _beyond(self, person_m: Int32, claim_m: UInt64, bars: list[tuple[Int64, UInt64]]) -> Int64:
        """Places of the queries beyond the cap of these people, whose new bars are noted."""
        order = np.lexsort((claim_m, person_m))
        person_m, claim_m = person_m[order], claim_m[order]
        first = np.flatnonzero(np.diff(person_m, prepend=-1))
        size = np.diff(np.append(first, person_m.size))
        nth = np.arange(person_m.size) - np.repeat(first, size)
        last = nth == self.ask.shown_max - 1
        bars.append((person_m[last].astype(np.int64), claim_m[last]))
        beyond = claim_m[nth >= self.ask.shown_max]
        places: Int64 = (beyond & ((np.uint64(1) << _PLACE_BITS) - np.uint64(1))).astype(np.int64)
        return places

    def _pairs(self, some: Int64) -> tuple[Int32, UInt64]:
        """(person, claim) of every pair in which one of these people is shown."""
        wanted = np.zeros(self.count_n.size, dtype=np.bool_)
        wanted[some] = True
        people: list[Int32] = []
        claims: list[UInt64] = []
        for places in _blocks(self.lists.q):
            person = self.lists.block(places).person_qw
            flags = self._shown(places) & wanted[np.maximum(person, 0)]
            line, slot = np.nonzero(flags)
            if line.size:
                mine = person[line, slot]
                at = places.start + line
                people.append(mine)
                claims.append(self._claims_at(at, slot, mine))
        return np.concatenate(people), np.concatenate(claims)

    def _claims_at(self, at: Int64, slot: Int64, person_m: Int32) -> UInt64:
        mix = mix32(self.lists.key_q[at], self.lists.key_n[person_m]) >> _MIX_DROPPED
        claim = (slot.astype(np.uint64) << _MIX_BITS) | mix.astype(np.uint64)
        return (claim << _PLACE_BITS) | at.astype(np.uint64)


def _blocks(q: int) -> Iterator[slice]:
    for begin in range(0, q, QUERIES_AT_ONCE):
        yield slice(begin, min(begin + QUERIES_AT_ONCE, q))


def _portions(over: Int64, count_m: Int64) -> Iterator[Int64]:
    """People over the cap, in portions of about ``PAIRS_AT_ONCE`` pairs."""
    if not over.size:
        return
    number = (np.cumsum(count_m) - count_m) // PAIRS_AT_ONCE
    starts = np.flatnonzero(np.diff(number, prepend=-1))
    yield from np.split(over, starts[1:])
