"""Rule columns: the integers that eligibility is decided on, one row for each record.

Which columns a kind has follows from the rule table (``eligibility.RULES``): this module knows how
each is made, and a test checks that none is missing and none is idle.

Encodings. A value that is not known is ``UNKNOWN``. A ceiling that is not set, or a value that a
rule does not apply to, is ``NO_LIMIT``; a floor that is not set is 0; a list that is not set is an
empty set. ``asks_X`` is 0 where ``X`` demands nothing and ``UNKNOWN`` where it demands something.
Sets hold 64-bit values: salted keys for ids, unsalted hashes for names, small codes for countries
and languages.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from functools import cache, lru_cache
from string import ascii_uppercase
from typing import Any

import numpy as np

from matchwright.engine.erased import listed_keys
from matchwright.engine.records import SCHEMAS, Kind
from matchwright.engine.rule_shapes import LEVEL_UNSTATED, asks_column
from matchwright.engine.table import Records, as_table
from matchwright.engine.zones import as_zones, zone_numbers
from matchwright.kernels.order import hash_keys
from matchwright.kernels.types import NO_LIMIT, UNKNOWN, Bool, Int32, Int64, SetColumn, UInt64

JOB_STATES = ("OPEN", "PAUSED", "CLOSED")
FREELANCER_STATES = ("AVAILABLE", "BUSY", "GONE")
EXPERIENCE = ("ENTRY", "INTERMEDIATE", "EXPERT")
_PROSE = frozenset({"title", "text"})
HASH_PERSON = b"mw-name-v1"
"""Personalisation of the BLAKE2b hash of names; names the version of the hash."""

Rows = Mapping[str, Sequence[Any]]
"""Field -> its N values as Python has them, None where not known."""
ScalarMaker = Callable[[Rows, tuple[str, ...]], Sequence[int]]
SetMaker = Callable[[Rows, bytes], SetColumn]


def columns(
    kind: Kind, records: Records, salt: bytes, zones: Sequence[str] | object
) -> tuple[dict[str, Int32], dict[str, SetColumn]]:
    """The rule columns of records, row by row.

    Args:
        kind: what the records are.
        records: N of them, a frame of that kind's schema or rows of it.
        salt: the store's 16 bytes, for the keys of ids.
        zones: IANA names, or a generation, whose ``zones`` are taken.

    Returns:
        name -> int32 (N,), and name -> SetColumn of N rows.
    """
    names = as_zones(zones)
    table = as_table(records)
    rows = {name: table.values(name) for name in SCHEMAS[kind] if name not in _PROSE}
    scalars = {
        name: np.array(make(rows, names), dtype=np.int32) for name, make in SCALARS[kind].items()
    }
    sets = {name: make(rows, salt) for name, make in SETS[kind].items()}
    for demand in DEMANDS[kind]:
        none = _demands_nothing(demand, scalars, sets)
        scalars[asks_column(demand)] = np.where(none, 0, UNKNOWN).astype(np.int32)
    return scalars, sets


def _demands_nothing(
    demand: str, scalars: Mapping[str, Int32], sets: Mapping[str, SetColumn]
) -> Bool:
    if demand in sets:
        return np.equal(np.diff(sets[demand].start_n), 0)
    return np.equal(scalars[demand], NO_LIMIT if demand in CEILINGS else 0)


# ── Names to numbers ──────────────────────────────────────────────────────────────────────────


def fold(name: str) -> str:
    """A name as rules compare it: NFKC, case folded, runs of blanks as one blank."""
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())


def name_hash(name: str) -> int:
    """Unsalted 64-bit hash of a skill, category or certification: BLAKE2b of the folded name."""
    text = fold(name).encode("utf-8", "surrogatepass")
    digest = hashlib.blake2b(text, digest_size=8, person=HASH_PERSON).digest()
    return int.from_bytes(digest, "little")


def country_code(country: str) -> int:
    """A small number for an ISO 3166-1 alpha-2 code."""
    return int.from_bytes(country.upper().encode()[:3], "big")


@lru_cache(maxsize=4_096)
def language_code(language: str, level: int) -> int:
    """8 * language + level; level 0 means "listed", 1..6 CEFR, 7 "at no stated level"."""
    return int.from_bytes(language.lower().encode()[:6], "big") << 3 | level


# ── Makers of scalar columns ──────────────────────────────────────────────────────────────────


def _int32(value: int | None, missing: int) -> int:
    """A value as int32, ``missing`` for None; anything beyond the type stops just short of it."""
    return missing if value is None else min(max(value, -NO_LIMIT), NO_LIMIT - 1)


def _value(field: str, missing: int = UNKNOWN) -> ScalarMaker:
    return lambda rows, zones: [_int32(value, missing) for value in rows[field]]


def _code(field: str, names: tuple[str, ...], missing: int = UNKNOWN, base: int = 0) -> ScalarMaker:
    numbers = {name: number + base for number, name in enumerate(names)}
    return lambda rows, zones: [numbers.get(name, missing) for name in rows[field]]


def _country(rows: Rows, zones: tuple[str, ...]) -> list[int]:
    codes = _country_codes()
    return [codes.get(name, UNKNOWN) for name in rows["country"]]


@cache
def _country_codes() -> dict[str, int]:
    pairs = (first + second for first in ascii_uppercase for second in ascii_uppercase)
    return {name: country_code(name) for name in pairs}


def _zone(rows: Rows, zones: tuple[str, ...]) -> list[int]:
    numbers = zone_numbers(zones)
    return [numbers.get(name, UNKNOWN) for name in rows["zone"]]


def _pay_top(rows: Rows, zones: tuple[str, ...]) -> list[int]:
    """The most that a job says it pays by the hour.

    The top of the budget, else its bottom; ``NO_LIMIT`` (no hourly rule applies) for a job at a
    fixed price alone; else unknown. The client's private ceiling is left out: a freelancer who is
    told why a job does not fit must not learn it.
    """
    budgets = zip(rows["rate_max_cents"], rows["rate_min_cents"], rows["fixed_cents"], strict=True)
    return [
        _int32(bottom if top is None else top, UNKNOWN if fixed is None else NO_LIMIT)
        for top, bottom, fixed in budgets
    ]


def _fixed_price(rows: Rows, zones: tuple[str, ...]) -> list[int]:
    """A job's fixed price; ``NO_LIMIT`` (no such rule applies) for an hourly job; else unknown."""
    budgets = zip(rows["rate_max_cents"], rows["rate_min_cents"], rows["fixed_cents"], strict=True)
    return [
        _int32(fixed, UNKNOWN if top is None and bottom is None else NO_LIMIT)
        for top, bottom, fixed in budgets
    ]


# ── Makers of set columns ─────────────────────────────────────────────────────────────────────


def _set_column(row_m: Int64, value_m: UInt64, known_n: Bool) -> SetColumn:
    """Rows and values in any order, repeated or not, as sorted sets."""
    if len(known_n) == 1:
        values = np.array(sorted(set(value_m.tolist())), dtype=np.uint64)
        return SetColumn(np.array([0, values.size], dtype=np.int64), values, known_n)
    order = np.lexsort((value_m, row_m))
    row_m, value_m = row_m[order], value_m[order]
    if row_m.size:
        keep = np.ones(row_m.size, dtype=np.bool_)
        keep[1:] = (row_m[1:] != row_m[:-1]) | (value_m[1:] != value_m[:-1])
        row_m, value_m = row_m[keep], value_m[keep]
    n = len(known_n)
    size = np.bincount(row_m, minlength=n)
    start = np.concatenate([[0], np.cumsum(size)]).astype(np.int64)
    return SetColumn(start, value_m.astype(np.uint64), np.asarray(known_n, dtype=np.bool_))


def _items(lists: Sequence[Sequence[Any] | None]) -> tuple[Int64, list[Any]]:
    """(row of each item, items) of lists; nulls, in the place of lists or in them, give none."""
    found = [
        (row, item) for row, items in enumerate(lists) for item in items or () if item is not None
    ]
    return np.array([row for row, _ in found], dtype=np.int64), [item for _, item in found]


def _known(values: Sequence[Any]) -> Bool:
    return np.array([value is not None for value in values], dtype=np.bool_)


_cached_hash = lru_cache(maxsize=1 << 17)(name_hash)


def _hash_names(names: Sequence[str]) -> UInt64:
    return np.array([_cached_hash(name) for name in names], dtype=np.uint64)


def _names(field: str, *, limit: bool = False) -> SetMaker:
    """A list of names; a limit that is null asks for nothing, anything else is then unknown."""

    def make(rows: Rows, salt: bytes) -> SetColumn:
        row_m, names = _items(rows[field])
        known = np.ones(len(rows[field]), np.bool_) if limit else _known(rows[field])
        return _set_column(row_m, _hash_names(names), known)

    return make


def _one_name(field: str) -> SetMaker:
    def make(rows: Rows, salt: bytes) -> SetColumn:
        known = _known(rows[field])
        names = [name for name in rows[field] if name is not None]
        return _set_column(np.flatnonzero(known), _hash_names(names), known)

    return make


def _ids(field: str) -> SetMaker:
    """A limit that lists ids, or stand-ins of ids that were erased."""

    def make(rows: Rows, salt: bytes) -> SetColumn:
        row_m, ids = _items(rows[field])
        return _set_column(row_m, listed_keys(ids, salt), np.ones(len(rows[field]), np.bool_))

    return make


def _client(rows: Rows, salt: bytes) -> SetColumn:
    known = _known(rows["client_id"])
    ids = [name for name in rows["client_id"] if name is not None]
    return _set_column(np.flatnonzero(known), hash_keys(ids, salt), known)


def _countries(field: str) -> SetMaker:
    def make(rows: Rows, salt: bytes) -> SetColumn:
        row_m, names = _items(rows[field])
        codes = np.array([country_code(name) for name in names], dtype=np.uint64)
        return _set_column(row_m, codes, np.ones(len(rows[field]), np.bool_))

    return make


def _named(field: str, keep: str | None = None, *, demand: bool = False) -> SetMaker:
    """The names of a list of structs, of those whose flag ``keep`` is set."""

    def make(rows: Rows, salt: bytes) -> SetColumn:
        row_m, items = _items(rows[field])
        kept = [
            n
            for n, item in enumerate(items)
            if item["name"] is not None and (keep is None or item[keep])
        ]
        names = [items[n]["name"] for n in kept]
        known = np.ones(len(rows[field]), np.bool_) if demand else _known(rows[field])
        return _set_column(row_m[kept], _hash_names(names), known)

    return make


def _spoken(rows: Rows, salt: bytes) -> SetColumn:
    codes: list[tuple[int, int]] = []
    for row, language, level in _listed_languages(rows):
        levels = range(level + 1) if level is not None else (0, LEVEL_UNSTATED)
        codes.extend((row, language_code(language, one)) for one in levels)
    return _of_pairs(codes, _known(rows["languages"]))


def _required_languages(rows: Rows, salt: bytes) -> SetColumn:
    listed = _listed_languages(rows)
    codes = [(row, language_code(language, level or 0)) for row, language, level in listed]
    return _of_pairs(codes, np.ones(len(rows["languages"]), np.bool_))


def _listed_languages(rows: Rows) -> list[tuple[int, str, int | None]]:
    row_m, items = _items(rows["languages"])
    return [
        (row, item["code"], item["level"])
        for row, item in zip(row_m.tolist(), items, strict=True)
        if item["code"] is not None
    ]


def _of_pairs(pairs: Sequence[tuple[int, int]], known: Bool) -> SetColumn:
    row_m = np.array([row for row, _ in pairs], dtype=np.int64)
    return _set_column(row_m, np.array([value for _, value in pairs], dtype=np.uint64), known)


# ── The tables ────────────────────────────────────────────────────────────────────────────────

_WINDOW: Mapping[str, ScalarMaker] = {
    "hours_start": _value("hours_start"),
    "hours_end": _value("hours_end"),
    "zone": _zone,
}

SCALARS: Mapping[Kind, Mapping[str, ScalarMaker]] = {
    "job": {
        "status": _code("status", JOB_STATES),
        "closes": _value("closes", NO_LIMIT),
        "rate_ceiling": _value("max_rate_cents", NO_LIMIT),
        "budget_top": _value("rate_max_cents", NO_LIMIT),
        "rate_floor": _value("min_rate_cents", 0),
        "pay_top": _pay_top,
        "fixed_price": _fixed_price,
        "weekly_hours": _value("weekly_hours"),
        "country": _country,
        "experience_floor": _code("min_experience", EXPERIENCE, 0, base=1),
        "rating_floor": _value("min_rating_milli", 0),
        "success_floor": _value("min_success_permille", 0),
        "reviews_floor": _value("min_reviews", 0),
        "overlap_minutes": _value("min_overlap_minutes", 0),
        **_WINDOW,
    },
    "freelancer": {
        "status": _code("status", FREELANCER_STATES),
        "rate": _value("rate_cents"),
        "pay_floor": _value("min_rate_cents", 0),
        "fixed_floor": _value("min_fixed_cents", 0),
        "hours_floor": _value("min_weekly_hours", 0),
        "weekly_hours": _value("weekly_hours"),
        "country": _country,
        "experience": _code("experience_level", EXPERIENCE, base=1),
        "rating": _value("rating_milli"),
        "success": _value("success_permille"),
        "reviews": _value("reviews"),
        **_WINDOW,
    },
}
"""Kind -> column -> how it is made."""

SETS: Mapping[Kind, Mapping[str, SetMaker]] = {
    "job": {
        "must_skills": _named("skills", "must", demand=True),
        "excluded_freelancers": _ids("excluded_freelancers"),
        "client": _client,
        "languages_required": _required_languages,
        "countries_allowed": _countries("countries_allowed"),
        "countries_denied": _countries("countries_denied"),
        "category": _one_name("category"),
        "certifications_required": _names("certifications_required", limit=True),
    },
    "freelancer": {
        "skills": _named("skills"),
        "languages": _spoken,
        "excluded_clients": _ids("excluded_clients"),
        "countries_denied": _countries("countries_denied"),
        "declined_categories": _names("declined_categories", limit=True),
        "categories": _names("categories"),
        "certifications": _named("certifications"),
        "certifications_verified": _named("certifications", "verified"),
    },
}
"""Kind -> set column -> how it is made."""

CEILINGS = frozenset({"rate_ceiling", "budget_top"})
"""Demands for which 0 is a demand (nothing may be asked for) and ``NO_LIMIT`` is none."""

DEMANDS: Mapping[Kind, tuple[str, ...]] = {
    "job": (
        "rate_ceiling", "budget_top", "rate_floor", "experience_floor", "rating_floor",
        "success_floor", "reviews_floor", "must_skills", "excluded_freelancers",
        "languages_required", "countries_allowed", "countries_denied", "certifications_required",
    ),
    "freelancer": (
        "pay_floor", "fixed_floor", "hours_floor", "excluded_clients", "countries_denied",
        "declined_categories",
    ),
}  # fmt: skip
"""Kind -> demands that the other side's value may be unknown for; each has its ``asks_`` column."""
