"""The small conditions of a map: ``{ reviews = 0, on_time = 0 }``, all of which must hold.

A column is compared with a value, a list of values (any of them), or a table of tests::

    reviews = 0                     equal; numbers compare as numbers, text without case
    type = ["hourly", "Hourly job"]  one of
    pay = { above = 200 }           also below, not, empty = true|false
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matchwright.engine.errors import InvalidArgument, unknown_key
from matchwright.engine.records.map_values import shown
from matchwright.engine.records.numbers import NUMBER_CHARS_MAX
from matchwright.engine.records.values import value_key

TESTS = ("above", "below", "empty", "not")

Test = Callable[[Any], bool]


@dataclass(frozen=True, slots=True)
class Condition:
    """Tests by column, all of which must hold."""

    tests: tuple[tuple[str, Test], ...]

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(column for column, _ in self.tests)

    def holds(self, column: Callable[[str], Sequence[Any]], n: int) -> list[bool]:
        """For each of ``n`` rows, given the raw columns."""
        result = [True] * n
        for name, test in self.tests:
            memo: dict[Any, bool] = {}
            for row, value in enumerate(column(name)):
                if result[row]:
                    result[row] = _remembered(memo, test, value)
        return result


def _remembered(memo: dict[Any, bool], test: Test, value: Any) -> bool:
    if type(value) is not str or len(value) > 64:
        return test(value)
    known = memo.get(value)
    if known is None:
        known = memo[value] = test(value)
    return known


def condition(table: object, where: str) -> Condition:
    """A condition from its TOML table.

    Raises:
        InvalidArgument, UnknownKey: ``where`` is named.
    """
    if not isinstance(table, dict) or not table:
        raise InvalidArgument(
            f"{where}: a table such as {{ reviews = 0 }} expected, got {shown(table)}"
        )
    return Condition(
        tuple((column, _test(value, f"{where}, {column!r}")) for column, value in table.items())
    )


def _test(value: object, where: str) -> Test:
    if isinstance(value, dict):
        return _all(_named(name, wanted, where) for name, wanted in _checked(value, where).items())
    wanted = value if isinstance(value, list) else [value]
    return _equal(wanted, where)


def _checked(table: Mapping[str, object], where: str) -> Mapping[str, object]:
    for name in table:
        if name not in TESTS:
            raise unknown_key("test", name, TESTS, where)
    if not table:
        raise InvalidArgument(f"{where}: no test; known: {', '.join(TESTS)}")
    return table


def _named(name: str, wanted: object, where: str) -> Test:
    if name == "empty":
        if not isinstance(wanted, bool):
            raise InvalidArgument(f"{where}: empty must be true or false, got {shown(wanted)}")
        return lambda value: is_empty(value) is wanted
    if name == "not":
        equal = _equal(wanted if isinstance(wanted, list) else [wanted], where)
        return lambda value: not equal(value)
    bound = None if isinstance(wanted, str) else _number(wanted)
    if bound is None or math.isnan(bound):
        raise InvalidArgument(f"{where}: {name} must be a number, got {shown(wanted)}")
    if name == "above":
        return lambda value: (got := _number(value)) is not None and got > bound
    return lambda value: (got := _number(value)) is not None and got < bound


def _equal(wanted: Sequence[object], where: str) -> Test:
    if not wanted or not all(isinstance(w, str | int | float) for w in wanted):
        raise InvalidArgument(f"{where}: text, numbers or true/false expected, got {shown(wanted)}")
    texts = frozenset(value_key(w) for w in wanted)
    numbers = frozenset(_number(w) for w in wanted if not isinstance(w, str)) - {None}

    def equal(value: Any) -> bool:
        if is_empty(value):
            return "" in texts
        if isinstance(value, list | dict):
            return False
        return value_key(value) in texts or (bool(numbers) and _number(value) in numbers)

    return equal


def _all(tests: Any) -> Test:
    each = tuple(tests)
    return lambda value: all(test(value) for test in each)


def is_empty(value: object) -> bool:
    """Whether a raw value says nothing: null, blank text, an empty list."""
    return value is None or (isinstance(value, str) and not value.strip()) or value in ([], {})


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if isinstance(value, str) and len(value) > NUMBER_CHARS_MAX:
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None
