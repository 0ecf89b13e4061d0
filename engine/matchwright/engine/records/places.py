"""Countries, time zones and languages by any of their usual names."""

from __future__ import annotations

import zoneinfo
from functools import cache

import pycountry

from matchwright.engine.records.fields import CEFR
from matchwright.engine.records.reasons import Bad, Reason
from matchwright.engine.records.scrub import fold

NAME_CHARS_MAX = 100

# What pycountry does not know under the name that exports use.
_COUNTRIES = {
    "turkey": "TR", "macedonia": "MK", "kosovo": "XK", "palestinian territory": "PS",
    "palestinian territories": "PS", "palestine": "PS", "cote d'ivoire": "CI",
    "ivory coast": "CI", "uk": "GB", "england": "GB", "scotland": "GB", "wales": "GB",
    "northern ireland": "GB", "great britain": "GB", "usa": "US", "u.s.a.": "US", "u.s.": "US",
    "america": "US", "united states of america": "US", "russia": "RU", "south korea": "KR",
    "korea": "KR", "north korea": "KP", "vietnam": "VN", "laos": "LA", "syria": "SY",
    "iran": "IR", "bolivia": "BO", "venezuela": "VE", "tanzania": "TZ", "moldova": "MD",
    "taiwan": "TW", "czech republic": "CZ", "swaziland": "SZ", "burma": "MM", "cape verde": "CV",
    "brunei": "BN", "macau": "MO", "macao": "MO", "holland": "NL", "the netherlands": "NL",
    "uae": "AE", "emirates": "AE", "dr congo": "CD", "drc": "CD",
    "democratic republic of the congo": "CD", "congo, the democratic republic of the": "CD",
    "republic of the congo": "CG", "vatican": "VA", "vatican city": "VA", "the gambia": "GM",
    "the bahamas": "BS", "east timor": "TL", "micronesia": "FM", "st. lucia": "LC",
    "st. kitts and nevis": "KN", "st. vincent and the grenadines": "VC", "reunion": "RE",
    "curacao": "CW", "xk": "XK", "xkx": "XK", "el": "GR",
}  # fmt: skip
# In use though ISO 3166-1 has not assigned it.
_EXTRA_CODES = frozenset({"XK"})

_LANGUAGES = {
    "mandarin": "zh", "mandarin chinese": "zh", "cantonese": "zh", "chinese": "zh",
    "farsi": "fa", "greek": "el", "punjabi": "pa", "tagalog": "tl", "filipino": "tl",
    "norwegian": "no", "malay": "ms", "swahili": "sw", "castilian": "es", "hebrew": "he",
    "nepali": "ne", "pashto": "ps", "flemish": "nl", "serbo-croatian": "sh", "bengali": "bn",
    "bangla": "bn", "deutsch": "de", "francais": "fr", "espanol": "es", "portugues": "pt",
    "brazilian portuguese": "pt", "simplified chinese": "zh", "traditional chinese": "zh",
}  # fmt: skip

_LEVELS = {
    "basic": 2, "beginner": 1, "elementary": 2, "conversational": 3, "intermediate": 3,
    "upper intermediate": 4, "advanced": 5, "professional": 5, "fluent": 5, "proficient": 6,
    "native": 6, "native or bilingual": 6, "bilingual": 6, "mother tongue": 6,
} | {name.lower(): level for level, name in enumerate(CEFR, 1)}  # fmt: skip


def _key(text: str) -> str:
    return " ".join(fold(text.replace("\u2019", "'")).split())


@cache
def _countries() -> dict[str, str]:
    table: dict[str, str] = {}
    for country in pycountry.countries:
        for attribute in ("alpha_2", "alpha_3", "name", "common_name", "official_name"):
            name = getattr(country, attribute, None)
            if name:
                table.setdefault(_key(name), country.alpha_2)
    return table | _COUNTRIES


@cache
def country_codes() -> frozenset[str]:
    """Every country code that a record can hold."""
    return frozenset(_countries().values())


def country(text: str) -> str:
    """ISO 3166-1 alpha-2 from a name or code in any case ("USA", "United States", "ARE").

    Raises:
        Bad: COUNTRY_UNKNOWN.
    """
    code = _countries().get(_key(text)) if len(text) <= NAME_CHARS_MAX else None
    if code is None:
        raise Bad(Reason.COUNTRY_UNKNOWN)
    return code


@cache
def _zones() -> dict[str, str]:
    return {name.lower(): name for name in zoneinfo.available_timezones()}


def zone(text: str) -> str:
    """The IANA name, in its right case.

    Raises:
        Bad: ZONE_UNKNOWN.
    """
    name = _zones().get(text.strip().replace(" ", "_").lower()) if len(text) < 64 else None
    if name is None or name.startswith(("posix/", "right/")) or name == "localtime":
        raise Bad(Reason.ZONE_UNKNOWN)
    return name


@cache
def _languages() -> dict[str, str]:
    table: dict[str, str] = {}
    for language in pycountry.languages:
        code = getattr(language, "alpha_2", None)
        if not code:
            continue
        for attribute in ("alpha_2", "alpha_3", "bibliographic", "name", "common_name"):
            name = getattr(language, attribute, None)
            if name:
                table.setdefault(_key(name), code)
                table.setdefault(_key(name.split(" (")[0]), code)
    return table | _LANGUAGES


def language(text: str) -> str:
    """ISO 639-1 code from a name or code; a region ("en-GB") is left off.

    Raises:
        Bad: LANGUAGE_UNKNOWN.
    """
    if len(text) > NAME_CHARS_MAX:
        raise Bad(Reason.LANGUAGE_UNKNOWN)
    key = _key(text)
    code = _languages().get(key) or _languages().get(key.replace("_", "-").split("-")[0])
    if code is None:
        raise Bad(Reason.LANGUAGE_UNKNOWN)
    return code


def language_level(value: object) -> int | None:
    """1 to 6 from a number, a CEFR level or a word such as "fluent"; None from None or "".

    Raises:
        Bad: LEVEL_UNKNOWN.
    """
    return _level(value, _LEVELS, 6)


_SKILL_LEVELS = {
    "beginner": 1, "basic": 1, "novice": 1, "entry": 1, "elementary": 2, "intermediate": 3,
    "advanced": 4, "expert": 5, "master": 5,
}  # fmt: skip


def skill_level(value: object) -> int | None:
    """1 to 5 from a number or a word; None from None or "".

    Raises:
        Bad: LEVEL_UNKNOWN.
    """
    return _level(value, _SKILL_LEVELS, 5)


def _level(value: object, names: dict[str, int], high: int) -> int | None:
    if value is None:
        return None
    if isinstance(value, str) and len(value) <= NAME_CHARS_MAX:
        key = _key(value)
        if not key:
            return None
        if key in names:
            return names[key]
        value = int(key) if key.isascii() and key.isdigit() else None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= high:
        raise Bad(Reason.LEVEL_UNKNOWN)
    return value
