"""Days since 1970-01-01 UTC, and minutes of the day."""

from __future__ import annotations

import datetime as dt
import decimal
import re
from decimal import Decimal

from matchwright.engine.records.fields import DAY_MAX
from matchwright.engine.records.numbers import number, whole
from matchwright.engine.records.reasons import Bad, Reason

_EPOCH = dt.date(1970, 1, 1)
_CLOCK = re.compile(r"(\d{1,2})(?::(\d{2}))?(?::\d{2})?\s*([aApP]\.?[mM]\.?)?")
DATE_CHARS_MAX = 64


def day(value: object, formats: tuple[str, ...] = ()) -> int:
    """Days since 1970-01-01 UTC from a date, a datetime or text.

    Args:
        formats: strptime formats, tried in order, or "epoch_s", "epoch_ms", "days" for numbers.
            "native": a whole number of days, or ISO 8601. Without any: ISO 8601 dates and times,
            with or without an offset or " UTC".

    Raises:
        Bad: WRONG_TYPE, DATE_SYNTAX, OUT_OF_RANGE.
    """
    if "native" in formats:
        short = isinstance(value, str) and len(value) <= 5 and value.isdigit()
        if short or not isinstance(value, str | dt.date):
            return day(value, ("days",))
        return day(value)
    for form, seconds in (("days", 86_400), ("epoch_s", 1), ("epoch_ms", Decimal("0.001"))):
        if form in formats:
            got = number(value)
            if got < 0:
                raise Bad(Reason.NEGATIVE)
            days = (got * seconds / 86_400).to_integral_value(decimal.ROUND_FLOOR)
            return whole(days, 0, DAY_MAX, exact=False)
    if isinstance(value, dt.datetime | dt.date):
        return _days_since(value)
    if not isinstance(value, str):
        raise Bad(Reason.WRONG_TYPE, f"a date was expected, got {type(value).__name__}")
    text = value.strip()
    if len(text) > DATE_CHARS_MAX:
        raise Bad(Reason.DATE_SYNTAX)
    return _days_since(_date_of(text, formats))


def _date_of(text: str, formats: tuple[str, ...]) -> dt.date:
    for form in formats:
        try:
            return dt.datetime.strptime(text, form)  # noqa: DTZ007 - without an offset it is UTC
        except (ValueError, OverflowError):
            continue
    if formats:
        raise Bad(Reason.DATE_SYNTAX, f"none of the forms {', '.join(formats)}")
    try:
        return dt.datetime.fromisoformat(text.removesuffix("UTC").rstrip())
    except (ValueError, OverflowError):
        raise Bad(Reason.DATE_SYNTAX, "an ISO date such as 2024-05-13 was expected") from None


def _days_since(value: dt.date) -> int:
    try:
        if isinstance(value, dt.datetime):
            if value.tzinfo is not None:
                value = value.astimezone(dt.UTC)
            value = value.date()
    except (OverflowError, ValueError):
        raise Bad(Reason.OUT_OF_RANGE) from None
    days = (value - _EPOCH).days
    if not 0 <= days <= DAY_MAX:
        raise Bad(Reason.OUT_OF_RANGE, "1970-01-01 to 2100-12-31 expected")
    return days


def clock(value: object, high: int) -> int:
    """Minutes of the day from "09:30", "9 am", "17:00:00" or a time.

    Raises:
        Bad: WRONG_TYPE, DATE_SYNTAX, OUT_OF_RANGE.
    """
    if isinstance(value, dt.time):
        return value.hour * 60 + value.minute
    if not isinstance(value, str):
        raise Bad(Reason.WRONG_TYPE, f"a time of day was expected, got {type(value).__name__}")
    found = _CLOCK.fullmatch(value.strip()) if len(value) <= DATE_CHARS_MAX else None
    if not found:
        raise Bad(Reason.DATE_SYNTAX, 'a time of day such as "09:30" was expected')
    hours, minutes = int(found[1]), int(found[2] or 0)
    if found[3]:
        if not 1 <= hours <= 12:
            raise Bad(Reason.OUT_OF_RANGE)
        hours = hours % 12 + (12 if found[3][0] in "pP" else 0)
    total = hours * 60 + minutes
    if minutes > 59 or total > high:
        raise Bad(Reason.OUT_OF_RANGE)
    return total
