"""Numbers as people write them, to exact integers in the unit that a field is stored in."""

from __future__ import annotations

import decimal
import math
import re
from collections.abc import Callable, Mapping
from decimal import Decimal

from matchwright.engine.records.fields import Unit
from matchwright.engine.records.reasons import Bad, Reason

NUMBER_CHARS_MAX = 64
MAGNITUDE_MAX = 30  # decimal digits before the point; keeps 1e999999999 from becoming an integer

# What a value may be given in, by the unit that it is stored in: factor to the stored unit.
UNITS: Mapping[Unit, Mapping[str, Decimal]] = {
    Unit.CENTS: {"cents": Decimal(1), "money": Decimal(100)},
    Unit.PERMILLE: {"permille": Decimal(1), "percent": Decimal(10), "fraction": Decimal(1_000)},
    Unit.MILLI: {
        "milli": Decimal(1),
        "stars": Decimal(1_000),
        "ten": Decimal(500),
        "percent": Decimal(50),
    },
    Unit.DAYS: {
        "days": Decimal(1),
        "hours": Decimal(1) / 24,
        "weeks": Decimal(7),
        "months": Decimal(30),
        "years": Decimal(365),
    },
    Unit.MINUTE: {"minutes": Decimal(1), "hours": Decimal(60), "clock": Decimal(1)},
    Unit.MINUTES: {"minutes": Decimal(1), "hours": Decimal(60)},
    Unit.HOURS: {"hours": Decimal(1)},
    Unit.DAY: {"date": Decimal(1), "days": Decimal(1)},
    Unit.NONE: {"count": Decimal(1)},
}
NATIVE: Mapping[Unit, str] = {
    Unit.CENTS: "cents", Unit.PERMILLE: "permille", Unit.MILLI: "milli", Unit.DAYS: "days",
    Unit.MINUTE: "minutes", Unit.MINUTES: "minutes", Unit.HOURS: "hours", Unit.DAY: "days",
    Unit.NONE: "count",
}  # fmt: skip

_PLAIN = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d{1,4})?")
_GROUPED = re.compile(r"[+-]?\d{1,3}(?:([,' \u00a0\u202f])\d{3})(?:\1\d{3})*(?:\.\d+)?")
_GROUPED_COMMA = re.compile(r"[+-]?\d{1,3}(?:([.' \u00a0\u202f])\d{3})(?:\1\d{3})*(?:,\d+)?")
_COMMA = re.compile(r"[+-]?\d+,\d*")


def number(value: object, *, decimal_comma: bool = False) -> Decimal:
    """An exact number from an int, a float or text such as "1,000.5", "93%", " 7 ".

    Raises:
        Bad: WRONG_TYPE, NOT_A_NUMBER, NOT_FINITE or OUT_OF_RANGE.
    """
    if isinstance(value, str):
        got = number_of_text(value.strip(), decimal_comma)
    elif isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        raise Bad(Reason.WRONG_TYPE, f"a number was expected, got {type(value).__name__}")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise Bad(Reason.NOT_FINITE)
        got = Decimal(repr(value))
    elif isinstance(value, int) and value.bit_length() > 128:
        raise Bad(Reason.OUT_OF_RANGE, "more than 128 bits")
    else:
        got = Decimal(value)
    if not got.is_finite():
        raise Bad(Reason.NOT_FINITE)
    if got.adjusted() > MAGNITUDE_MAX:
        raise Bad(Reason.OUT_OF_RANGE, f"more than {MAGNITUDE_MAX} digits")
    return got


def number_of_text(text: str, decimal_comma: bool) -> Decimal:
    if len(text) > NUMBER_CHARS_MAX:
        raise Bad(Reason.NOT_A_NUMBER, f"more than {NUMBER_CHARS_MAX} characters")
    if text.lower().lstrip("+-") in ("nan", "inf", "infinity"):
        raise Bad(Reason.NOT_FINITE)
    text = text.removesuffix("%").rstrip()
    if decimal_comma:
        text = _comma_to_point(text)
    elif _GROUPED.fullmatch(text):
        text = re.sub(r"[,' \u00a0\u202f]", "", text)
    if not (text.isascii() and _PLAIN.fullmatch(text)):
        raise Bad(Reason.NOT_A_NUMBER)
    try:
        return Decimal(text)
    except decimal.InvalidOperation:
        raise Bad(Reason.NOT_A_NUMBER) from None


def _comma_to_point(text: str) -> str:
    if _GROUPED_COMMA.fullmatch(text):
        text = re.sub(r"[.' \u00a0\u202f]", "", text)
    elif not _COMMA.fullmatch(text):
        return text if "." not in text else ""
    return text.replace(",", ".")


def whole(value: Decimal, low: int, high: int, *, exact: bool) -> int:
    """``value`` rounded to the nearest integer (halves to even), checked against the range.

    Raises:
        Bad: NOT_WHOLE when ``exact`` and there is a fraction; NEGATIVE; OUT_OF_RANGE.
    """
    rounded = int(value.to_integral_value(decimal.ROUND_HALF_EVEN))
    if exact and rounded != value:
        raise Bad(Reason.NOT_WHOLE)
    if rounded < low:
        reason = Reason.NEGATIVE if rounded < 0 else Reason.OUT_OF_RANGE
        raise Bad(reason, f"{low:,} to {high:,} expected")
    if rounded > high:
        raise Bad(Reason.OUT_OF_RANGE, f"{low:,} to {high:,} expected")
    return rounded


def scaled(
    factor: Decimal, low: int, high: int, *, exact: bool, decimal_comma: bool
) -> Callable[[object], int]:
    """A parser of numbers that are given in a unit ``factor`` times the stored one."""

    def parse(value: object) -> int:
        if type(value) is int and factor == 1 and low <= value <= high:
            return value
        got = number(value, decimal_comma=decimal_comma)
        if got < 0:
            raise Bad(Reason.NEGATIVE)
        return whole(got * factor, low, high, exact=exact)

    return parse
