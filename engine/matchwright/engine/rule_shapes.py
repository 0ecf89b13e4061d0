"""The forms that domain rules take: what each asks of the other side, in either direction.

A rule joins a field of jobs and a field of freelancers. Whoever asks, the same pairs must pass, so
both directions of a form are written side by side here, once, and every rule is an instance::

    entity that asks ── its column values ──> form.ask() ──> predicates over the corpus side

An entity that asks is described by its own rule columns (``QueryRow``), the very integers that it
would be stored with.

Outcomes that do not depend on the corpus row are a ``Verdict``.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from matchwright.engine.records import Kind
from matchwright.engine.shared_predicates import shared, shared_list
from matchwright.kernels.types import (
    NO_LIMIT,
    UNKNOWN,
    EmptyOrHasAny,
    HasAll,
    HasNone,
    HoursOverlap,
    InRange,
    Int32,
    KeyIn,
    OneOf,
    Predicate,
    SetColumn,
    SubsetOf,
)

PERMILLE = 1_000
DAY_MINUTES = 1_440
ASKS = "asks_"
LEVEL_UNSTATED = 7
"""Language level that stands for "listed, but at no stated level" in language codes."""


@dataclass(slots=True)
class QueryRow:
    """One row of rule columns: the entity that asks.

    Attributes:
        kind: what it is.
        scalars, sets: its kind's rule columns.
        row: which row.
        key: the salted key of its id, or None when it has no id.
    """

    kind: Kind
    scalars: Mapping[str, Int32 | Sequence[int]]
    sets: Mapping[str, SetColumn]
    row: int
    key: int | None

    def scalar(self, name: str) -> int:
        return int(self.scalars[name][self.row])

    def values(self, name: str) -> tuple[int, ...] | None:
        """The set, ascending; None when it is not known."""
        column = self.sets[name]
        if not column.known_n[self.row]:
            return None
        start, stop = column.start_n[self.row], column.start_n[self.row + 1]
        return tuple(column.value[start:stop].tolist())


@dataclass(frozen=True, slots=True)
class Day:
    """What a day gives: the day itself and each zone's offset on it.

    Attributes:
        as_of: days since 1970-01-01.
        offsets: minutes east of UTC, by zone number.
    """

    as_of: int
    offsets: tuple[int, ...]
    _asked: dict[Any, HoursOverlap] = field(default_factory=dict, compare=False, repr=False)

    def overlap(self, *asked: Any) -> HoursOverlap:
        """``HoursOverlap`` on this day: one object for all who ask the same."""
        if asked not in self._asked:
            self._asked[asked] = HoursOverlap(self.offsets, *asked)
        return self._asked[asked]


@dataclass(frozen=True, slots=True)
class Setting:
    """How a policy sets one rule.

    Attributes:
        enabled: whether the rule is asked at all.
        unknown_passes: what happens where the value that is asked for is not known.
        options: the rule's own options, as (name, value) pairs in the order of their names.
    """

    enabled: bool
    unknown_passes: bool
    options: tuple[tuple[str, Any], ...] = ()

    def option(self, name: str) -> Any:
        return dict(self.options)[name]


class Verdict(enum.Enum):
    """An outcome that does not depend on the corpus row: it comes alone."""

    NEVER = "never"
    """The entity that asks fails the rule against every row."""
    UNSURE = "unsure"
    """Every row passes the rule on a value that the entity that asks does not tell."""


Outcome = Predicate | Verdict


class Shape(Protocol):
    """A form. ``owner`` is the kind whose demand it is; the other kind holds the value."""

    @property
    def owner(self) -> Kind: ...

    def ask(self, query: QueryRow, veto: str, setting: Setting, day: Day) -> Iterator[Outcome]: ...

    def columns(self, kind: Kind) -> tuple[str, ...]: ...


def asks_column(demand: str) -> str:
    """Name of the column that is 0 where a row demands nothing and unknown where it does.

    A query whose own value is unknown is tested against it: rows that demand nothing pass, and
    rows that do fail or pass unverified, as the policy says.
    """
    return f"{ASKS}{demand}"


def _when_unknown(demand: str, veto: str, setting: Setting) -> Outcome:
    asked: Outcome = shared(InRange, asks_column(demand), 0, 0, veto, setting.unknown_passes)
    return asked


def _whole_query_unknown(setting: Setting) -> Outcome:
    return Verdict.UNSURE if setting.unknown_passes else Verdict.NEVER


def _with_value(owner: Kind, kind: Kind, demand: str, value: str) -> tuple[str, ...]:
    return (demand, asks_column(demand)) if kind == owner else (value,)


@dataclass(frozen=True, slots=True)
class Ceiling:
    """The owner's ``limit`` is the most that the other side's ``value`` may be.

    ``limit`` is ``NO_LIMIT`` where nothing is asked. With ``tolerance`` the limit is exceeded by up
    to so many thousandths of it: value * 1000 <= limit * (1000 + tolerance), in integers.
    """

    owner: Kind
    limit: str
    value: str
    tolerance: str | None = None

    def ask(self, query: QueryRow, veto: str, setting: Setting, day: Day) -> Iterator[Outcome]:
        whole = PERMILLE + (setting.option(self.tolerance) if self.tolerance else 0)
        if query.kind == self.owner:
            limit = query.scalar(self.limit)
            if limit != NO_LIMIT:
                top = min(limit * whole // PERMILLE, NO_LIMIT)
                yield shared(InRange, self.value, 0, top, veto, setting.unknown_passes)
            return
        value = query.scalar(self.value)
        if value == UNKNOWN:
            yield _when_unknown(self.limit, veto, setting)
        else:
            yield shared(InRange, self.limit, -(-value * PERMILLE // whole), NO_LIMIT, veto)

    def columns(self, kind: Kind) -> tuple[str, ...]:
        return _with_value(self.owner, kind, self.limit, self.value)


@dataclass(frozen=True, slots=True)
class Floor:
    """The owner's ``limit`` is the least that the other side's ``value`` may be.

    ``limit`` is 0 where nothing is asked; ``value`` is ``NO_LIMIT`` where the rule does not apply.
    """

    owner: Kind
    limit: str
    value: str

    def ask(self, query: QueryRow, veto: str, setting: Setting, day: Day) -> Iterator[Outcome]:
        if query.kind == self.owner:
            limit = query.scalar(self.limit)
            if limit > 0:
                yield shared(InRange, self.value, limit, NO_LIMIT, veto, setting.unknown_passes)
            return
        value = query.scalar(self.value)
        if value == UNKNOWN:
            yield _when_unknown(self.limit, veto, setting)
        elif value != NO_LIMIT:
            yield shared(InRange, self.limit, 0, value, veto)

    def columns(self, kind: Kind) -> tuple[str, ...]:
        return _with_value(self.owner, kind, self.limit, self.value)


@dataclass(frozen=True, slots=True)
class NotMoreThan:
    """The owner's ``small`` is at most the other side's ``large``; either may be unknown."""

    owner: Kind
    small: str
    large: str

    def ask(self, query: QueryRow, veto: str, setting: Setting, day: Day) -> Iterator[Outcome]:
        mine = query.scalar(self.small if query.kind == self.owner else self.large)
        if mine == UNKNOWN:
            yield _whole_query_unknown(setting)
        elif query.kind == self.owner:
            yield shared(InRange, self.large, mine, NO_LIMIT, veto, setting.unknown_passes)
        else:
            yield shared(InRange, self.small, 0, mine, veto, setting.unknown_passes)

    def columns(self, kind: Kind) -> tuple[str, ...]:
        return (self.small,) if kind == self.owner else (self.large,)


@dataclass(frozen=True, slots=True)
class State:
    """The owner's state is one of those that the policy accepts (option ``accept``).

    Attributes:
        codes: the states, in the order of their numbers.
    """

    owner: Kind
    column: str
    codes: tuple[str, ...]

    def ask(self, query: QueryRow, veto: str, setting: Setting, day: Day) -> Iterator[Outcome]:
        accepted = tuple(sorted(self.codes.index(name) for name in setting.option("accept")))
        if query.kind != self.owner:
            yield shared_list(OneOf, self.column, accepted, veto, setting.unknown_passes)
            return
        mine = query.scalar(self.column)
        if mine == UNKNOWN:
            yield _whole_query_unknown(setting)
        elif mine not in accepted:
            yield Verdict.NEVER

    def columns(self, kind: Kind) -> tuple[str, ...]:
        return (self.column,) if kind == self.owner else ()


@dataclass(frozen=True, slots=True)
class NotOver:
    """The owner's last day, ``NO_LIMIT`` where there is none, has not passed."""

    owner: Kind
    column: str

    def ask(self, query: QueryRow, veto: str, setting: Setting, day: Day) -> Iterator[Outcome]:
        if query.kind != self.owner:
            yield shared(InRange, self.column, day.as_of, NO_LIMIT, veto)
        elif query.scalar(self.column) < day.as_of:
            yield Verdict.NEVER

    def columns(self, kind: Kind) -> tuple[str, ...]:
        return (self.column,) if kind == self.owner else ()


@dataclass(frozen=True, slots=True)
class HoldsAll:
    """The other side's set ``held`` has every value of the owner's ``demand``.

    With ``choice`` the policy's switch of that name picks ``held`` when true, ``held_else`` when
    false.
    """

    owner: Kind
    demand: str
    held: str
    choice: str | None = None
    held_else: str = ""

    def _held(self, setting: Setting) -> str:
        return self.held if self.choice is None or setting.option(self.choice) else self.held_else

    def ask(self, query: QueryRow, veto: str, setting: Setting, day: Day) -> Iterator[Outcome]:
        held = self._held(setting)
        if query.kind == self.owner:
            demand = query.values(self.demand)
            if demand:
                yield shared_list(HasAll, held, demand, veto, setting.unknown_passes)
            return
        mine = query.values(held)
        if mine is None:
            yield _when_unknown(self.demand, veto, setting)
        else:
            yield shared_list(SubsetOf, self.demand, mine, veto)

    def columns(self, kind: Kind) -> tuple[str, ...]:
        if kind == self.owner:
            return (self.demand, asks_column(self.demand))
        return (self.held, self.held_else) if self.held_else else (self.held,)


@dataclass(frozen=True, slots=True)
class HoldsNone:
    """The other side's set ``held`` has no value of the owner's set ``refused``."""

    owner: Kind
    refused: str
    held: str

    def ask(self, query: QueryRow, veto: str, setting: Setting, day: Day) -> Iterator[Outcome]:
        if query.kind == self.owner:
            refused = query.values(self.refused)
            if refused:
                yield shared_list(HasNone, self.held, refused, veto, setting.unknown_passes)
            return
        mine = query.values(self.held)
        if mine is None:
            yield _when_unknown(self.refused, veto, setting)
        else:
            yield shared_list(HasNone, self.refused, mine, veto)

    def columns(self, kind: Kind) -> tuple[str, ...]:
        return _with_value(self.owner, kind, self.refused, self.held)


@dataclass(frozen=True, slots=True)
class Places:
    """The other side's scalar ``place`` is in the owner's set (or not in it, when ``negate``)."""

    owner: Kind
    listed: str
    place: str
    negate: bool = False

    def ask(self, query: QueryRow, veto: str, setting: Setting, day: Day) -> Iterator[Outcome]:
        if query.kind == self.owner:
            listed = query.values(self.listed)
            if listed:
                yield shared_list(
                    OneOf, self.place, listed, veto, setting.unknown_passes, self.negate
                )
            return
        mine = query.scalar(self.place)
        if mine == UNKNOWN:
            yield _when_unknown(self.listed, veto, setting)
        elif self.negate:
            yield shared_list(HasNone, self.listed, (mine,), veto)
        else:
            yield shared_list(EmptyOrHasAny, self.listed, (mine,), veto)

    def columns(self, kind: Kind) -> tuple[str, ...]:
        return _with_value(self.owner, kind, self.listed, self.place)


@dataclass(frozen=True, slots=True)
class ExcludesKey:
    """The other side is not among the keys of the owner's set ``excluded``."""

    owner: Kind
    excluded: str

    def ask(self, query: QueryRow, veto: str, setting: Setting, day: Day) -> Iterator[Outcome]:
        if query.kind == self.owner:
            excluded = query.values(self.excluded)
            if excluded:
                yield KeyIn(excluded, veto, negate=True)
        elif query.key is None:
            yield _when_unknown(self.excluded, veto, setting)
        else:
            yield HasNone(self.excluded, (query.key,), veto)  # nobody else asks it

    def columns(self, kind: Kind) -> tuple[str, ...]:
        return (self.excluded, asks_column(self.excluded)) if kind == self.owner else ()


@dataclass(frozen=True, slots=True)
class SameValue:
    """The owner's one ``value`` is among the other side's ``values``; either may be unknown."""

    owner: Kind
    value: str
    values: str

    def ask(self, query: QueryRow, veto: str, setting: Setting, day: Day) -> Iterator[Outcome]:
        mine = query.values(self.value if query.kind == self.owner else self.values)
        if mine is None:
            yield _whole_query_unknown(setting)
        elif query.kind == self.owner:
            yield shared_list(HasAll, self.values, mine, veto, setting.unknown_passes)
        else:
            yield shared_list(SubsetOf, self.value, mine, veto, setting.unknown_passes)

    def columns(self, kind: Kind) -> tuple[str, ...]:
        return (self.value,) if kind == self.owner else (self.values,)


@dataclass(frozen=True, slots=True)
class Languages:
    """The other side speaks each required language at the level asked for.

    Codes are ``8 * language + level`` (see ``columns.language_code``). Somebody who speaks a
    language at level n holds the codes 0 (listed at all), 1 .. n; at no stated level, the codes 0
    and 7. The policy's option ``unstated_level`` says what an unstated level counts as.
    """

    owner: Kind
    required: str
    spoken: str

    def ask(self, query: QueryRow, veto: str, setting: Setting, day: Day) -> Iterator[Outcome]:
        unstated = setting.option("unstated_level")
        if query.kind == self.owner:
            yield from self._of_speakers(query.values(self.required) or (), veto, setting, unstated)
            return
        mine = query.values(self.spoken)
        if mine is None:
            yield _when_unknown(self.required, veto, setting)
        else:
            yield shared_list(
                SubsetOf, self.required, tuple(sorted(_widened(mine, unstated))), veto
            )

    def _of_speakers(
        self, required: Sequence[int], veto: str, setting: Setting, unstated: int
    ) -> Iterator[Outcome]:
        firm = tuple(code for code in required if not 1 <= code % 8 <= unstated)
        if firm:
            yield shared_list(HasAll, self.spoken, firm, veto, setting.unknown_passes)
        for code in required:
            if code not in firm:
                # Somebody who lists no language at all holds no code; `EmptyOrHasAny` alone would
                # let them pass, so the language must be listed as well.
                base = code - code % 8
                either = (code, base + LEVEL_UNSTATED)
                yield shared_list(HasAll, self.spoken, (base,), veto, setting.unknown_passes)
                yield shared_list(EmptyOrHasAny, self.spoken, either, veto, setting.unknown_passes)

    def columns(self, kind: Kind) -> tuple[str, ...]:
        return _with_value(self.owner, kind, self.required, self.spoken)


def _widened(codes: Iterable[int], unstated: int) -> set[int]:
    """Codes held, with each unstated level counted as ``unstated``."""
    held = set(codes)
    for code in codes:
        if code % 8 == LEVEL_UNSTATED:
            base = code - LEVEL_UNSTATED
            held |= {base + level for level in range(1, unstated + 1)}
    return held


@dataclass(frozen=True, slots=True)
class Overlap:
    """Daily working hours overlap by at least what the owner asks for (``demand``, minutes).

    Both sides' columns ``hours_start``, ``hours_end`` and ``zone`` count; zones are resolved on the
    day asked for.
    """

    owner: Kind
    demand: str = "overlap_minutes"

    def ask(self, query: QueryRow, veto: str, setting: Setting, day: Day) -> Iterator[Outcome]:
        required = query.scalar(self.demand) if query.kind == self.owner else None
        if required == 0:
            return
        start, end = _window_utc(query, day)
        yield day.overlap(start, end, required, veto, setting.unknown_passes)

    def columns(self, kind: Kind) -> tuple[str, ...]:
        window = ("hours_start", "hours_end", "zone")
        return (self.demand, *window) if kind == self.owner else window


def _window_utc(query: QueryRow, day: Day) -> tuple[int, int] | tuple[None, None]:
    """The query's working hours in minutes of the UTC day; (None, None) when not known."""
    start, end, zone = (query.scalar(name) for name in ("hours_start", "hours_end", "zone"))
    if UNKNOWN in (start, end, zone):
        return None, None
    length = end - start if end > start else end - start + DAY_MINUTES
    begin = (start - day.offsets[zone]) % DAY_MINUTES
    stop = (begin + length) % DAY_MINUTES
    # A window of the whole day starts and ends on the same minute, which reads as a whole day.
    return begin, stop
