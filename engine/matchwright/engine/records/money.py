"""Money as people write it, to integer cents of the marketplace's one currency."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from types import MappingProxyType
from typing import Literal, NoReturn

from matchwright.engine.records.numbers import (
    MAGNITUDE_MAX,
    NUMBER_CHARS_MAX,
    number,
    number_of_text,
    whole,
)
from matchwright.engine.records.reasons import Bad, Reason

Period = Literal["hour", "fixed"]
Take = Literal["low", "high", "only"]

SYMBOLS: Mapping[str, str] = MappingProxyType(
    {
        "$": "USD", "US$": "USD", "€": "EUR", "£": "GBP", "₹": "INR", "¥": "JPY", "₽": "RUB",
        "₩": "KRW", "₴": "UAH", "₺": "TRY", "₪": "ILS", "₫": "VND", "₱": "PHP", "₦": "NGN",
        "A$": "AUD", "AU$": "AUD", "C$": "CAD", "CA$": "CAD", "NZ$": "NZD", "S$": "SGD",
        "HK$": "HKD", "R$": "BRL", "zł": "PLN", "Rs": "INR", "Rs.": "INR",
    }
)  # fmt: skip
_SCIENTIFIC = re.compile(r"\d+(?:\.\d*)?[eE][+-]?\d{1,4}")
_CODE = re.compile(r"[A-Z]{3}")
_HOUR_WORDS = ("hr", "hrs", "h", "hour", "hours", "hourly")
_FIXED_WORDS = ("fixed", "fixed-price", "fixed price", "project", "total", "flat")
_PERIODS: dict[str, Period] = {
    **dict.fromkeys(_HOUR_WORDS, "hour"),
    **dict.fromkeys(_FIXED_WORDS, "fixed"),
}
_CURRENCY = (
    r"(?:[A-Za-z]{0,3}[$€£₹¥₽₩₴₺₪₫₱₦]|(?!per|and|hrs|min|max|mil)[A-Z]{3}(?![A-Za-z])|zł|Rs\.?)"
)
_AMOUNT = (
    rf"(?P<cur1>{_CURRENCY})?\s*(?P<num1>(?>\d+(?:[,.' \u00a0\u202f]\d+)*))\s*+"
    rf"(?P<k1>[kKmMbB](?:n|il|illion)?(?![A-Za-z]))?(?P<more1>\+)?\s*(?P<after1>{_CURRENCY})?"
)
_MONEY = re.compile(
    r"(?P<bound><=?|>=?|less than|under|up to|max\.?|from|over|more than|at least|min\.?)?\s*"
    + _AMOUNT
    + r"(?:\s*(?:-|\u2013|\u2014|to|and)\s*"
    + _AMOUNT.replace("1>", "2>")
    + r")?"
    + r"\s*(?:(?:/|per|an|a)?\s*(?P<period>"
    + "|".join(sorted(map(re.escape, _PERIODS), key=len, reverse=True))
    + r"))?\.?",
    re.IGNORECASE,
)
_THOUSANDS = {"k": Decimal(1_000), "m": Decimal(10**6), "b": Decimal(10**9)}
_UPPER_BOUNDS = ("<", "less", "under", "up", "max")


@dataclass(frozen=True, slots=True)
class Currency:
    """Conversion to the marketplace's one currency.

    Attributes:
        base: its ISO 4217 code.
        rates: how much of the base one unit of a currency is.
        assumed: the currency of amounts that name none.
    """

    base: str = "USD"
    rates: Mapping[str, Decimal] = field(default_factory=dict)
    assumed: str = "USD"

    def rate(self, code: str | None) -> Decimal:
        """Units of the base for one unit of ``code``.

        Raises:
            Bad: CURRENCY_UNKNOWN.
        """
        code = code or self.assumed
        if code == self.base:
            return Decimal(1)
        if code not in self.rates:
            raise Bad(Reason.CURRENCY_UNKNOWN, f"no rate from {code} to {self.base} is given")
        return self.rates[code]


@dataclass(frozen=True, slots=True)
class Money:
    """What a text says: amounts in whole units of ``code``; None where an end is open."""

    low: Decimal | None
    high: Decimal | None
    code: str | None = None
    period: Period | None = None


def money(value: object, *, decimal_comma: bool = False) -> Money:
    """An amount or a range, from a number or text ("$1.4K", "$10-$20/hr", "up to 1,000,000 EUR").

    Raises:
        Bad: WRONG_TYPE, NOT_FINITE, NEGATIVE, MONEY_SYNTAX or MONEY_RANGE.
    """
    if not isinstance(value, str):
        amount = number(value)
        if amount < 0:
            raise Bad(Reason.NEGATIVE)
        return Money(amount, amount)
    text = value.strip()
    if len(text) > NUMBER_CHARS_MAX:
        raise Bad(Reason.MONEY_SYNTAX, f"more than {NUMBER_CHARS_MAX} characters")
    if _SCIENTIFIC.fullmatch(text):
        amount = number_of_text(text, False)
        return Money(amount, amount)
    found = _MONEY.fullmatch(text)
    if not found:
        _refuse_money(text)
    return _money_of(found, decimal_comma)


def _refuse_money(text: str) -> NoReturn:
    bare = text.lower().lstrip("+-$€£")
    if bare in ("nan", "inf", "infinity"):
        raise Bad(Reason.NOT_FINITE)
    if text.startswith(("-", "(", "\u2212")) and _MONEY.fullmatch(text.strip("-()\u2212 ")):
        raise Bad(Reason.NEGATIVE)
    raise Bad(Reason.MONEY_SYNTAX)


def _money_of(found: re.Match[str], decimal_comma: bool) -> Money:
    first = _amount(found, 1, decimal_comma)
    second = _amount(found, 2, decimal_comma) if found["num2"] else None
    if second is not None and found["k2"] and not found["k1"] and first < second / 1_000:
        first *= _THOUSANDS[found["k2"][0].lower()]  # "$1-2K"
    codes = {_code(found[group]) for group in ("cur1", "after1", "cur2", "after2")} - {None}
    if len(codes) > 1:
        raise Bad(Reason.CURRENCY_UNKNOWN, "two currencies in one amount")
    low, high = _ends(found, first, second)
    if low is not None and high is not None and low > high:
        raise Bad(Reason.MONEY_RANGE, "the range's ends are reversed")
    period = _PERIODS[found["period"].lower()] if found["period"] else None
    return Money(low, high, codes.pop() if codes else None, period)


def _ends(
    found: re.Match[str], first: Decimal, second: Decimal | None
) -> tuple[Decimal | None, Decimal | None]:
    if second is not None:
        return first, second
    bound = (found["bound"] or "").lower()
    if bound:
        return (None, first) if bound.startswith(_UPPER_BOUNDS) else (first, None)
    return (first, None) if found["more1"] else (first, first)


def _amount(found: re.Match[str], which: int, decimal_comma: bool) -> Decimal:
    try:
        amount = number_of_text(found[f"num{which}"].strip(), decimal_comma)
    except Bad:
        raise Bad(Reason.MONEY_SYNTAX) from None
    suffix = found[f"k{which}"]
    return amount * _THOUSANDS[suffix[0].lower()] if suffix else amount


def _code(mark: str | None) -> str | None:
    if not mark:
        return None
    known = SYMBOLS.get(mark) or SYMBOLS.get(mark.upper()) or SYMBOLS.get(mark.title())
    code = known or mark.upper()
    if not _CODE.fullmatch(code):
        raise Bad(Reason.CURRENCY_UNKNOWN, f"{mark!r} is not a currency that is known")
    return code


@dataclass(frozen=True, slots=True)
class MoneyRule:
    """How a field takes an amount out of what a text says.

    Attributes:
        take: which end of a range; "only" refuses ranges.
        period: the field's own: an amount that is marked with the other one does not belong to it.
        other_period: "refuse" such an amount, or leave the field "unknown".
    """

    currency: Currency
    take: Take
    period: Period | None
    other_period: Literal["refuse", "unknown"]
    low: int
    high: int
    decimal_comma: bool = False

    def cents(self, value: object, code: str | None = None) -> int | None:
        """Integer cents of the base currency, or None where the text says nothing about it.

        Raises:
            Bad: see ``money``; OUT_OF_RANGE, CURRENCY_UNKNOWN, MONEY_PERIOD.
        """
        said = money(value, decimal_comma=self.decimal_comma)
        if said.period is not None and self.period is not None and said.period != self.period:
            if self.other_period == "unknown":
                return None
            raise Bad(Reason.MONEY_PERIOD)
        amount = self._taken(said)
        if amount is None:
            return None
        rate = self.currency.rate(said.code or code)
        if amount.adjusted() > MAGNITUDE_MAX:
            raise Bad(Reason.OUT_OF_RANGE)
        return whole(amount * rate * 100, self.low, self.high, exact=False)

    def _taken(self, said: Money) -> Decimal | None:
        if self.take == "only":
            if said.low != said.high:
                raise Bad(Reason.MONEY_RANGE)
            return said.low
        return said.low if self.take == "low" else said.high
