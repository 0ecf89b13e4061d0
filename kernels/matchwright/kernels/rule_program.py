"""Rule sets as programs of integers that ``cuda/rules.cuh`` reads.

A program holds the rules of several groups one after the other, the values that they look for in
one pool, and the columns that they read by slot. It is the same for every segment; where a
segment's columns lie is said by a table of addresses.

Predicates that are one object are compiled once: a few one after the other, many column by column,
all of a kind at a time, whatever their constants.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from operator import attrgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from matchwright.kernels import rules
from matchwright.kernels.rule_sets import RuleSets
from matchwright.kernels.types import (
    EmptyOrHasAny,
    HasAll,
    HasNone,
    HoursOverlap,
    InRange,
    Int32,
    Int64,
    KeyIn,
    OneOf,
    Predicate,
    Rules,
    Segment,
    SubsetOf,
    UInt64,
)

Slot = tuple[str, str]
"""("scalar" or "set", a column's name)."""
HOURS = ("hours_start", "hours_end", "zone", "overlap_minutes")
_WINDOW_SLOTS = frozenset(("scalar", name) for name in HOURS[:3])
_ASKS_SLOT = ("scalar", HOURS[3])
FIELDS = ("kind", "flags", "column", "low", "high", "from", "many", "asked")
"""The int32 fields of a rule, as ``struct Rule`` has them."""
_KIND, _FLAGS, _COLUMN, _LOW, _HIGH, _FROM, _MANY, _ASKED = range(len(FIELDS))
KINDS: dict[type, int] = {
    InRange: 0,
    OneOf: 1,
    HasAll: 2,
    HasNone: 3,
    EmptyOrHasAny: 4,
    SubsetOf: 5,
    HoursOverlap: 6,
    KeyIn: 7,
}
_UNKNOWN_PASSES, _NEGATE, _NO_WINDOW, _ROW_ASKS = 1, 2, 4, 8
_LEAST, _MOST = -(2**31), 2**31 - 1
_WORDS = 2**64
MANY = 256
"""Rules from which they are compiled column by column."""


@dataclass(frozen=True, slots=True, eq=False)
class Program:
    """The rules of some groups.

    Attributes:
        groups: the rule sets themselves.
        rule_m8: int32 (M, 8), ``FIELDS`` of every rule.
        start_g: int32 (G + 1,): group g owns rules start_g[g]..start_g[g + 1] - 1.
        pool: uint64, the values that rules look for; at least one.
        slots: the columns, by slot.
        needed: those that must be there; the others are not read.
    """

    groups: RuleSets
    rule_m8: Int32
    start_g: Int32
    pool: UInt64
    slots: tuple[Slot, ...]
    needed: frozenset[Slot]

    @property
    def nbytes(self) -> int:
        """Bytes of its arrays, the table of addresses included."""
        arrays = (self.rule_m8, self.start_g, self.pool)
        return sum(array.nbytes for array in arrays) + 24 * max(1, len(self.slots))

    def take(self, some: Int32 | Int64) -> Program:
        """Some of the groups, in the order given, over the same pool and slots."""
        first, many = self.start_g[some], np.diff(self.start_g)[some]
        start_g = np.concatenate([[0], np.cumsum(many)]).astype(np.int32)
        rows = np.repeat(first - start_g[:-1], many) + np.arange(start_g[-1])
        return Program(
            groups=self.groups.take(some),
            rule_m8=self.rule_m8[rows],
            start_g=start_g,
            pool=self.pool,
            slots=self.slots,
            needed=self.needed,
        )

    def check(self, segment: Segment) -> None:
        """Refuse a segment that lacks a column.

        Raises:
            KeyError: naming the column and those that are there.
        """
        for kind, name in sorted(self.needed):
            there: Any = segment.scalars if kind == "scalar" else segment.sets
            if name not in there:
                raise rules.unknown_column(name, there)


def compile_program(groups: Sequence[Rules]) -> Program:
    """The program of some rule sets."""
    sets = RuleSets.of(groups)
    few = sets.which_m.size < MANY
    lines = _one_by_one(sets.predicates) if few else _columnar(sets.predicates)
    return Program(
        groups=sets,
        rule_m8=lines.rule_m8.take(sets.which_m, axis=0),
        start_g=sets.start_g.astype(np.int32),
        pool=lines.pool if lines.pool.size else np.zeros(1, np.uint64),
        slots=lines.slots,
        needed=lines.needed,
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Lines:
    """Rules, and what they refer to; see ``Program``."""

    rule_m8: Int32
    pool: UInt64
    slots: tuple[Slot, ...]
    needed: frozenset[Slot]


# ── One by one ────────────────────────────────────────────────────────────────────────────────


def _one_by_one(written: Sequence[Predicate]) -> _Lines:
    writer = _Writer()
    for predicate in written:
        writer.write(predicate)
    return _Lines(
        np.array(writer.rule, np.int32).reshape(-1, len(FIELDS)),
        np.array(writer.pool, np.uint64),
        tuple(writer.slots),
        frozenset(writer.needed),
    )


@dataclass(slots=True)
class _Writer:
    rule: array[int] = field(default_factory=lambda: array("i"))
    pool: list[int] = field(default_factory=list)
    slots: list[Slot] = field(default_factory=list)
    needed: set[Slot] = field(default_factory=set)
    at: dict[Slot, int] = field(default_factory=dict)
    places: dict[tuple[int, ...], int] = field(default_factory=dict)
    zones: dict[int, tuple[int, int]] = field(default_factory=dict)
    four: int = -1
    base: int = 0
    """Words of the pool before this writer's own."""

    def write(self, p: Predicate) -> None:
        kind = KINDS[type(p)]
        flags = _UNKNOWN_PASSES if getattr(p, "unknown_passes", False) else 0
        if isinstance(p, InRange):  # most rules are: nothing is done that they do not need
            low, high = _within(p.low, p.high)
            self.rule.extend((kind, flags, self._column("scalar", p.column), low, high, 0, 0, 0))
            return
        if getattr(p, "negate", False):
            flags |= _NEGATE
        if isinstance(p, HoursOverlap):
            self._hours(p, kind, flags)
            return
        if isinstance(p, KeyIn):
            at, many = self._values(p.keys)
            self.rule.extend((kind, flags, 0, 0, 0, at, many, 0))
            return
        column = self._column("scalar" if isinstance(p, OneOf) else "set", p.column)
        at, many = self._values(p.values)
        self.rule.extend((kind, flags, column, 0, 0, at, many, 0))

    def _column(self, kind: str, name: str) -> int:
        slot = (kind, name)
        if slot not in self.at:
            self.needed.add(slot)
            self.at[slot] = self._slot(slot)
        return self.at[slot]

    def _slot(self, slot: Slot) -> int:
        if slot not in self.slots:
            self.slots.append(slot)
        return self.slots.index(slot)

    def _hours(self, p: HoursOverlap, kind: int, flags: int) -> None:
        asked, low, high, at, many = 0, 0, 0, 0, 0
        if p.required_minutes is None:
            flags |= _ROW_ASKS
            self.needed.add(_ASKS_SLOT)
        else:
            asked = min(max(p.required_minutes, _LEAST), _MOST)
        if p.start_utc is None or p.end_utc is None:
            flags |= _NO_WINDOW
        else:
            self.needed |= _WINDOW_SLOTS
            low, high = p.start_utc, p.end_utc
            at, many = self._zones(p.offset_minutes)
        self.rule.extend((kind, flags, self._four(), low, high, at, many, asked))

    def _zones(self, offset_minutes: tuple[int, ...]) -> tuple[int, int]:
        """(from, many) of the zones' offsets: hundreds, and all of a day have the same."""
        found = self.zones.get(id(offset_minutes))
        if found is None:
            found = self._place([minutes % _WORDS for minutes in offset_minutes])
            self.zones[id(offset_minutes)] = found
        return found

    def _four(self) -> int:
        """The first of the four slots of working hours, which follow one another."""
        if self.four < 0:
            self.four = len(self.slots)
            self.slots += [("scalar", name) for name in HOURS]
        return self.four

    def _values(self, values: Iterable[int]) -> tuple[int, int]:
        return self._place(sorted({int(value) % _WORDS for value in values}))

    def _place(self, words: list[int]) -> tuple[int, int]:
        """(from, many) of words in the pool; equal lists share a place."""
        key = tuple(words)
        if key not in self.places:
            self.places[key] = self.base + len(self.pool)
            self.pool += words
        return self.places[key], len(words)


def _within(low: int, high: int) -> tuple[int, int]:
    """Limits as int32 that let the same int32 values pass."""
    if low > high or low > _MOST or high < _LEAST:
        return 1, 0
    return max(low, _LEAST), min(high, _MOST)


# ── Column by column ──────────────────────────────────────────────────────────────────────────


def _columnar(predicates: Sequence[Predicate]) -> _Lines:
    columns = _Columns(predicates)
    return _Lines(columns.rule_m8, columns.pool, tuple(columns.slots), frozenset(columns.needed))


class _Columns:
    """The lines of some predicates, all of a kind at a time.

    Args:
        distinct: the predicates.
    """

    def __init__(self, distinct: Sequence[Predicate]) -> None:
        self.slots: list[Slot] = []
        self.needed: set[Slot] = set()
        self.rule_m8 = np.zeros((len(distinct), len(FIELDS)), np.int32)
        self._lists: dict[tuple[int, ...], int] = {}
        kind_m = np.fromiter(map(KINDS.__getitem__, map(type, distinct)), np.int32, len(distinct))
        valued: list[NDArray[np.intp]] = []
        hours: list[tuple[int, HoursOverlap]] = []
        for form, kind in KINDS.items():
            at = np.flatnonzero(kind_m == kind)
            some: list[Any] = list(map(distinct.__getitem__, at.tolist()))
            if not some:
                continue
            if form is HoursOverlap:
                hours = list(zip(at.tolist(), some, strict=True))
                continue
            fields_m8 = np.zeros((at.size, len(FIELDS)), np.int32)
            fields_m8[:, _KIND] = kind
            if form is InRange:
                self._ranges(some, fields_m8)
            else:
                valued.append(at)
                self._valued(form, some, fields_m8)
            self.rule_m8[at] = fields_m8
        self.pool = self._pool(np.concatenate(valued) if valued else np.zeros(0, np.intp))
        self._hours(hours)

    def _ranges(self, some: Sequence[Any], fields_m8: Int32) -> None:
        fields_m8[:, _COLUMN] = self._numbers("scalar", some)
        fields_m8[:, _FLAGS] = _flag(some, "unknown_passes", _UNKNOWN_PASSES)
        fields_m8[:, _LOW : _HIGH + 1] = _within_all(some)

    def _valued(self, form: type, some: Sequence[Any], fields_m8: Int32) -> None:
        """``_FROM`` is the list's number until the pool is made."""
        values = list(map(_KEYS if form is KeyIn else _VALUES, some))
        if form is not KeyIn:
            fields_m8[:, _COLUMN] = self._numbers("scalar" if form is OneOf else "set", some)
            fields_m8[:, _FLAGS] = _flag(some, "unknown_passes", _UNKNOWN_PASSES)
        if form in (KeyIn, OneOf):
            fields_m8[:, _FLAGS] |= _flag(some, "negate", _NEGATE)
        for one in dict.fromkeys(values):
            self._lists.setdefault(one, len(self._lists))
        fields_m8[:, _FROM] = np.fromiter(map(self._lists.__getitem__, values), np.int32)

    def _numbers(self, kind: str, some: Sequence[Any]) -> Int32:
        """The slots of their columns."""
        column = list(map(_COLUMN_OF, some))
        own = dict.fromkeys(column, 0)
        for name in own:
            slot = (kind, name)
            if slot not in self.needed:
                self.needed.add(slot)
                self.slots.append(slot)
            own[name] = self.slots.index(slot)
        return np.fromiter(map(own.__getitem__, column), np.int32, len(column))

    def _pool(self, valued: NDArray[np.intp]) -> UInt64:
        """All lists one after the other; says in the lines where they are."""
        lists = list(self._lists)
        pool = _ascending(lists)
        number_l = np.arange(len(lists))
        if pool is None:  # some list is not as kernels want it
            places: dict[tuple[int, ...], int] = {}
            number_l = np.array([places.setdefault(_tidy(one), len(places)) for one in lists])
            lists = list(places)
            pool = np.fromiter(chain.from_iterable(lists), np.uint64)
        many_l = np.fromiter(map(len, lists), np.int32, len(lists))
        number_m = number_l[self.rule_m8[valued, _FROM]]
        self.rule_m8[valued, _FROM] = (np.cumsum(many_l) - many_l)[number_m]
        self.rule_m8[valued, _MANY] = many_l[number_m]
        return pool

    def _hours(self, hours: Sequence[tuple[int, HoursOverlap]]) -> None:
        """Working hours, by the writer: few differ, and zones, long as they are, hardly do."""
        writer = _Writer(slots=self.slots, needed=self.needed, base=self.pool.size)
        for at, predicate in hours:
            writer.write(predicate)
            self.rule_m8[at] = writer.rule[-len(FIELDS) :]
        self.pool = np.concatenate([self.pool, np.array(writer.pool, np.uint64)])


_COLUMN_OF, _KEYS, _VALUES = attrgetter("column"), attrgetter("keys"), attrgetter("values")


def _flag(some: Sequence[Any], name: str, bit: int) -> Int32:
    return np.fromiter(map(attrgetter(name), some), np.bool_, len(some)) * np.int32(bit)


def _tidy(values: Iterable[int]) -> tuple[int, ...]:
    return tuple(sorted({int(value) % _WORDS for value in values}))


def _ascending(lists: Sequence[tuple[int, ...]]) -> UInt64 | None:
    """Their values one after the other; None where some are not words, or a list not ascending."""
    try:
        pool = np.fromiter(chain.from_iterable(lists), np.uint64)
    except (OverflowError, TypeError, ValueError):
        return None
    begins = np.zeros(pool.size + 1, np.bool_)
    begins[np.cumsum([0, *map(len, lists)])] = True
    rises = pool[1:] > pool[:-1]
    return pool if bool((rises | begins[1:-1]).all()) else None


def _within_all(some: Sequence[InRange]) -> Int32:
    """``_within`` of many."""
    try:
        low_m = np.fromiter(map(attrgetter("low"), some), np.int64, len(some))
        high_m = np.fromiter(map(attrgetter("high"), some), np.int64, len(some))
    except OverflowError:
        return np.array([_within(one.low, one.high) for one in some], np.int32)
    closed = (low_m > high_m) | (low_m > _MOST) | (high_m < _LEAST)
    limits = np.stack([low_m.clip(_LEAST, _MOST), high_m.clip(_LEAST, _MOST)], axis=1)
    limits[closed] = 1, 0
    return limits.astype(np.int32)
