"""Rule sets as programs of integers that ``cuda/rules.cuh`` reads.

A program holds the rules of several groups one after the other, the values that they look for in
one pool, and the columns that they read by slot. It is the same for every segment; where a
segment's columns lie is said by a table of addresses.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from matchwright.kernels import rules
from matchwright.kernels.types import (
    EmptyOrHasAny,
    HasAll,
    HasNone,
    HoursOverlap,
    InRange,
    Int32,
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
FIELDS = ("kind", "flags", "column", "low", "high", "from", "many", "asked")
"""The int32 fields of a rule, as ``struct Rule`` has them."""
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

    groups: tuple[Rules, ...]
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
    writer = _Writer()
    start = [0]
    for group in groups:
        for predicate in group:
            writer.write(predicate)
        start.append(len(writer.rule) // len(FIELDS))
    return Program(
        groups=tuple(groups),
        rule_m8=np.array(writer.rule, np.int32).reshape(-1, len(FIELDS)),
        start_g=np.array(start, np.int32),
        pool=np.array(writer.pool or [0], np.uint64),
        slots=tuple(writer.slots),
        needed=frozenset(writer.needed),
    )


@dataclass(slots=True)
class _Writer:
    rule: array[int] = field(default_factory=lambda: array("i"))
    pool: list[int] = field(default_factory=list)
    slots: list[Slot] = field(default_factory=list)
    needed: set[Slot] = field(default_factory=set)
    at: dict[Slot, int] = field(default_factory=dict)
    places: dict[tuple[int, ...], int] = field(default_factory=dict)

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
            fields = {**dict.fromkeys(FIELDS, 0), "kind": kind, "flags": flags}
            self._hours(p, fields)
            self.rule.extend([fields[name] for name in FIELDS])
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

    def _hours(self, p: HoursOverlap, fields: dict[str, int]) -> None:
        fields["column"] = self._four()
        if p.required_minutes is None:
            fields["flags"] |= _ROW_ASKS
            self.needed.add(("scalar", HOURS[3]))
        else:
            fields["asked"] = min(max(p.required_minutes, _LEAST), _MOST)
        if p.start_utc is None or p.end_utc is None:
            fields["flags"] |= _NO_WINDOW
            return
        self.needed.update(("scalar", name) for name in HOURS[:3])
        fields["low"], fields["high"] = p.start_utc, p.end_utc
        fields["from"], fields["many"] = self._place([v % _WORDS for v in p.offset_minutes])

    def _four(self) -> int:
        """The first of the four slots of working hours, which follow one another."""
        wanted = [("scalar", name) for name in HOURS]
        for at in range(len(self.slots) - 3):
            if self.slots[at : at + 4] == wanted:
                return at
        self.slots += wanted
        return len(self.slots) - 4

    def _values(self, values: Iterable[int]) -> tuple[int, int]:
        return self._place(sorted({int(value) % _WORDS for value in values}))

    def _place(self, words: list[int]) -> tuple[int, int]:
        """(from, many) of words in the pool; equal lists share a place."""
        key = tuple(words)
        if key not in self.places:
            self.places[key] = len(self.pool)
            self.pool += words
        return self.places[key], len(words)


def _within(low: int, high: int) -> tuple[int, int]:
    """Limits as int32 that let the same int32 values pass."""
    if low > high or low > _MOST or high < _LEAST:
        return 1, 0
    return max(low, _LEAST), min(high, _MOST)
