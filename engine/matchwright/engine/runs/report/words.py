"""Numbers and names as people read them, and the sentences at the top of a report."""

from __future__ import annotations

import datetime
from collections.abc import Mapping

from matchwright.engine.eligibility import Veto
from matchwright.engine.records import Kind
from matchwright.engine.results import Shortfall

ASKING: Mapping[Kind, str] = {
    "job": "Jobs looking for freelancers",
    "freelancer": "Freelancers looking for jobs",
}
PLURAL: Mapping[Kind, str] = {"job": "jobs", "freelancer": "freelancers"}

VETO: Mapping[str, str] = {
    Veto.JOB_NOT_OPEN: "The job is not open",
    Veto.JOB_OVER: "The job is over",
    Veto.FREELANCER_NOT_AVAILABLE: "The freelancer is not available",
    Veto.SKILL_MISSING: "A must-have skill is missing",
    Veto.EXCLUDED_BY_CLIENT: "The client has excluded the freelancer",
    Veto.EXCLUDED_BY_FREELANCER: "The freelancer has excluded the client",
    Veto.RATE_ABOVE_CEILING: "The rate is above the job's private ceiling",
    Veto.RATE_ABOVE_BUDGET: "The rate is above the budget",
    Veto.RATE_BELOW_FLOOR: "The rate is below the job's floor",
    Veto.PAY_BELOW_MINIMUM: "The pay is below the freelancer's minimum",
    Veto.FIXED_PRICE_BELOW_MINIMUM: "The fixed price is below the freelancer's minimum",
    Veto.HOURS_BELOW_MINIMUM: "Fewer weekly hours than the freelancer takes",
    Veto.HOURS_ABOVE_AVAILABLE: "More weekly hours than the freelancer has",
    Veto.LANGUAGE_MISSING: "A language is missing, or its level",
    Veto.COUNTRY_NOT_ALLOWED: "The country is not among those allowed",
    Veto.COUNTRY_DENIED: "The job declines the country",
    Veto.CLIENT_COUNTRY_DENIED: "The freelancer declines the client's country",
    Veto.OVERLAP_TOO_SHORT: "Working hours overlap too little",
    Veto.CATEGORY_DECLINED: "The freelancer declines the category",
    Veto.CATEGORY_DIFFERS: "The category differs",
    Veto.EXPERIENCE_BELOW_MINIMUM: "Too little experience",
    Veto.RATING_BELOW_MINIMUM: "The rating is too low",
    Veto.SUCCESS_BELOW_MINIMUM: "The share of successes is too low",
    Veto.TOO_FEW_REVIEWS: "Too few reviews",
    Veto.CERTIFICATION_MISSING: "A certification is missing",
    Veto.EXCLUDED_BY_REQUEST: "The request left this one out",
    Veto.NOT_A_CANDIDATE: "Not among the request's candidates",
}
SHORTFALL: Mapping[str, str] = {
    Shortfall.EMPTY_CORPUS: "nobody is on the other side",
    Shortfall.QUERY_VETOED: "they rule out every answer by themselves",
    Shortfall.FEW_ELIGIBLE: "all that are eligible are returned",
    Shortfall.MIN_SCORE: "the others score too little",
}
MOVED: Mapping[str, str] = {
    "entered": "came in from beyond K",
    "shifted": "shifted because others moved",
    "newcomer": "lifted as a newcomer",
    "alike": "put back: too many of its kind before it",
    "over_cap": "beyond the cap: nobody else was there",
    "capped": "no longer shown: at the cap",
    "displaced": "no longer shown: a newcomer took the place",
}
_EPOCH = datetime.date(1970, 1, 1)


def whole(n: float) -> str:
    """1,234,567."""
    return f"{n:,.0f}"


def number(n: int, kind: Kind) -> str:
    """1 job, 2 jobs."""
    return f"{n:,} {kind if n == 1 else PLURAL[kind]}"


def short(n: float) -> str:
    """About three digits: 1.2 M, 34 k, 12, 0.04."""
    for size, unit in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e4, " k")):
        if abs(n) >= size:
            scaled = n / (1e3 if unit == " k" else size)
            return f"{scaled:,.{1 if scaled < 100 else 0}f}".removesuffix(".0") + unit
    if n == int(n):
        return f"{n:,.0f}"
    return f"{n:,.3g}" if abs(n) < 100 else f"{n:,.0f}"


def ordinal(n: int) -> str:
    """1st, 2nd, 3rd, 4th, 11th, 20th."""
    ending = "th" if n % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(n % 10, "th")
    return f"{n:,}{ending}"


def percent(share: float, digits: int = 1) -> str:
    """A share of 1 as a percentage; never 0% or 100% for what is not quite."""
    value = 100 * share
    if 0 < value < 10**-digits / 2:
        return f"<{10**-digits:g}%"
    if 100 - 10**-digits / 2 < value < 100:
        return f">{100 - 10**-digits:g}%"
    return f"{value:.{digits}f}%".replace(".0%", "%")


def of(part: float, all_: float, digits: int = 1) -> str:
    """``percent`` of a part, or a dash where there is nothing to be a part of."""
    return percent(part / all_, digits) if all_ else "–"


def money(cents: float) -> str:
    """Cents as whole units: 12.50, 1,200."""
    units = cents / 100
    return f"{units:,.0f}" if units >= 100 or units == int(units) else f"{units:,.2f}"


def seconds(value: float) -> str:
    """A duration: 0.42 s, 12.3 s, 4 min 10 s, 3 h 05 min."""
    if value < 60:
        return f"{value:.2f} s" if value < 10 else f"{value:.1f} s"
    whole_s = round(value)
    if whole_s < 3_600:
        return f"{whole_s // 60} min {whole_s % 60:02d} s"
    return f"{whole_s // 3_600:,} h {whole_s % 3_600 // 60:02d} min"


def day(number: int) -> str:
    """A day number as 1 January 2026."""
    date = _EPOCH + datetime.timedelta(days=number)
    return f"{date.day} {date:%B %Y}"


def moment(text: str) -> str:
    """ISO 8601 in UTC as 22 Nov 2026, 07:11 UTC; other text as it is."""
    try:
        when = datetime.datetime.fromisoformat(text).astimezone(datetime.UTC)
    except ValueError:
        return text
    return f"{when.day} {when:%b %Y, %H:%M} UTC"


def first_up(text: str) -> str:
    """A text that begins with a capital."""
    return text[:1].upper() + text[1:]


def veto(name: str) -> str:
    """A veto in words."""
    return VETO.get(name, name.replace("_", " ").capitalize())


def times(low: int, high: int) -> str:
    """A class of "shown so many times"."""
    return whole(low) if low == high else f"{whole(low)}–{whole(high)}"
