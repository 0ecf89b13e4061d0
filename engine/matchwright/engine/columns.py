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
from functools import cache
from string import ascii_uppercase
from typing import Any

import numpy as np
import polars as pl

from matchwright.engine.records import Kind
from matchwright.engine.rule_shapes import LEVEL_UNSTATED, asks_column
from matchwright.engine.zones import as_zones, zone_numbers
from matchwright.kernels.order import hash_keys
from matchwright.kernels.types import NO_LIMIT, UNKNOWN, Bool, Int32, Int64, SetColumn, UInt64

JOB_STATES = ("OPEN", "PAUSED", "CLOSED")
FREELANCER_STATES = ("AVAILABLE", "BUSY", "GONE")
EXPERIENCE = ("ENTRY", "INTERMEDIATE", "EXPERT")
HASH_PERSON = b"mw-name-v1"
"""Personalisation of the BLAKE2b hash of names; names the version of the hash."""

ScalarMaker = Callable[[tuple[str, ...]], pl.Expr]
SetMaker = Callable[[pl.DataFrame, bytes], SetColumn]


def columns(
    kind: Kind, records: pl.DataFrame, salt: bytes, zones: Sequence[str] | object
) -> tuple[dict[str, Int32], dict[str, SetColumn]]:
    """The rule columns of records, row by row.

    Args:
        kind: what the records are.
        records: (N, ...) a frame of that kind's schema.
        salt: the store's 16 bytes, for the keys of ids.
        zones: IANA names, or a generation, whose ``zones`` are taken.

    Returns:
        name -> int32 (N,), and name -> SetColumn of N rows.
    """
    names = as_zones(zones)
    made = records.select(make(names).alias(name) for name, make in SCALARS[kind].items())
    scalars = {name: np.array(made[name].to_numpy(), dtype=np.int32) for name in made.columns}
    sets = {name: make(records, salt) for name, make in SETS[kind].items()}
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


def language_code(language: str, level: int) -> int:
    """8 * language + level; level 0 means "listed", 1..6 CEFR, 7 "at no stated level"."""
    return int.from_bytes(language.lower().encode()[:6], "big") << 3 | level


# ── Makers of scalar columns ──────────────────────────────────────────────────────────────────


def _int32(value: pl.Expr, missing: int) -> pl.Expr:
    """Values as int32, nulls as ``missing``; anything beyond the type stops just short of it."""
    return value.cast(pl.Int64).clip(-NO_LIMIT, NO_LIMIT - 1).fill_null(missing).cast(pl.Int32)


def _value(field: str, missing: int = UNKNOWN) -> ScalarMaker:
    return lambda zones: _int32(pl.col(field), missing)


def _code(field: str, names: tuple[str, ...], missing: int = UNKNOWN, base: int = 0) -> ScalarMaker:
    numbers = {name: number + base for number, name in enumerate(names)}
    return lambda zones: _numbered(field, numbers, missing)


def _numbered(field: str, numbers: Mapping[str, int], missing: int) -> pl.Expr:
    """Strings to numbers; nulls and names that are not there become ``missing``."""
    if not numbers:
        return pl.col(field).is_null().cast(pl.Int32) * 0 + missing
    coded = (
        pl.col(field)
        .cast(pl.String)
        .replace_strict(list(numbers), list(numbers.values()), default=None, return_dtype=pl.Int64)
    )
    return _int32(coded, missing)


def _country(zones: tuple[str, ...]) -> pl.Expr:
    return _numbered("country", _country_codes(), UNKNOWN)


@cache
def _country_codes() -> dict[str, int]:
    pairs = (first + second for first in ascii_uppercase for second in ascii_uppercase)
    return {name: country_code(name) for name in pairs}


def _zone(zones: tuple[str, ...]) -> pl.Expr:
    return _numbered("zone", zone_numbers(zones), UNKNOWN)


_HOURLY = pl.col("rate_max_cents").is_not_null() | pl.col("rate_min_cents").is_not_null()
_FIXED = pl.col("fixed_cents").is_not_null()


def _pay_top(zones: tuple[str, ...]) -> pl.Expr:
    """The most that a job says it pays by the hour.

    The top of the budget, else its bottom; ``NO_LIMIT`` (no hourly rule applies) for a job at a
    fixed price alone; else unknown. The client's private ceiling is left out: a freelancer who is
    told why a job does not fit must not learn it.
    """
    stated = _int32(pl.coalesce("rate_max_cents", "rate_min_cents"), UNKNOWN)
    return pl.when(_FIXED & ~_HOURLY).then(pl.lit(NO_LIMIT, dtype=pl.Int32)).otherwise(stated)


def _fixed_price(zones: tuple[str, ...]) -> pl.Expr:
    """A job's fixed price; ``NO_LIMIT`` (no such rule applies) for an hourly job; else unknown."""
    price = _int32(pl.col("fixed_cents"), UNKNOWN)
    return pl.when(_HOURLY & ~_FIXED).then(pl.lit(NO_LIMIT, dtype=pl.Int32)).otherwise(price)


# ── Makers of set columns ─────────────────────────────────────────────────────────────────────


def _set_column(row_m: Int64, value_m: UInt64, known_n: Any) -> SetColumn:
    """Rows and values in any order, repeated or not, as sorted sets."""
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


def _hashed(strings: pl.Series, number: Callable[[Sequence[str]], Sequence[int]]) -> UInt64:
    """A number for each string (no nulls), each distinct one worked out once."""
    if not len(strings):
        return np.zeros(0, dtype=np.uint64)
    distinct = strings.unique()
    table = np.array(list(number(distinct.to_list())), dtype=np.uint64)
    return strings.replace_strict(distinct, pl.Series(table), return_dtype=pl.UInt64).to_numpy()


def _exploded(lists: pl.Series) -> tuple[Int64, pl.Series]:
    """(row of each item, items) of a list column; nulls and empty lists give none."""
    size = lists.list.len().fill_null(0).to_numpy().astype(np.int64)
    items = lists.filter(pl.Series(size > 0, dtype=pl.Boolean)).explode()
    return np.repeat(np.arange(len(lists), dtype=np.int64), size), items


def _of_strings(
    lists: pl.Series, known: Any, number: Callable[[Sequence[str]], Sequence[int]]
) -> SetColumn:
    row_m, items = _exploded(lists)
    there = items.is_not_null().to_numpy()
    return _set_column(row_m[there], _hashed(items.drop_nulls(), number), known)


def _hash_names(names: Sequence[str]) -> list[int]:
    return [name_hash(name) for name in names]


def _names(field: str, *, limit: bool = False) -> SetMaker:
    """A list of names; a limit that is null asks for nothing, anything else is then unknown."""

    def make(records: pl.DataFrame, salt: bytes) -> SetColumn:
        lists = records[field]
        known = np.ones(len(lists), np.bool_) if limit else lists.is_not_null().to_numpy()
        return _of_strings(lists, known, _hash_names)

    return make


def _one_name(field: str) -> SetMaker:
    def make(records: pl.DataFrame, salt: bytes) -> SetColumn:
        known = records[field].is_not_null().to_numpy()
        rows = np.flatnonzero(known).astype(np.int64)
        return _set_column(rows, _hashed(records[field].drop_nulls(), _hash_names), known)

    return make


def _ids(field: str) -> SetMaker:
    """A limit that lists ids."""

    def make(records: pl.DataFrame, salt: bytes) -> SetColumn:
        everywhere = np.ones(records.height, np.bool_)
        return _of_strings(records[field], everywhere, lambda ids: hash_keys(ids, salt).tolist())

    return make


def _client(records: pl.DataFrame, salt: bytes) -> SetColumn:
    ids = records["client_id"]
    known = ids.is_not_null().to_numpy()
    keys = _hashed(ids.drop_nulls(), lambda names: hash_keys(names, salt).tolist())
    return _set_column(np.flatnonzero(known).astype(np.int64), keys, known)


def _countries(field: str) -> SetMaker:
    def make(records: pl.DataFrame, salt: bytes) -> SetColumn:
        everywhere = np.ones(records.height, np.bool_)
        return _of_strings(
            records[field], everywhere, lambda names: [country_code(name) for name in names]
        )

    return make


def _named(field: str, keep: pl.Expr | None = None, *, demand: bool = False) -> SetMaker:
    """The names of a list of structs, of those that ``keep`` keeps."""

    def make(records: pl.DataFrame, salt: bytes) -> SetColumn:
        lists = records[field]
        known = np.ones(len(lists), np.bool_) if demand else lists.is_not_null().to_numpy()
        row_m, items = _exploded(lists)
        if not len(items):
            return _set_column(row_m, np.zeros(0, np.uint64), known)
        frame = items.struct.unnest().with_columns(pl.Series("row", row_m))
        frame = frame.filter(pl.col("name").is_not_null())
        if keep is not None:
            frame = frame.filter(keep)
        return _set_column(frame["row"].to_numpy(), _hashed(frame["name"], _hash_names), known)

    return make


def _listed_languages(lists: pl.Series) -> list[tuple[int, str, int | None]]:
    row_m, items = _exploded(lists)
    if not len(items):
        return []
    frame = items.struct.unnest().select("code", "level")
    pairs = zip(row_m.tolist(), frame.iter_rows(), strict=True)
    return [(row, code, level) for row, (code, level) in pairs if code is not None]


def _spoken(records: pl.DataFrame, salt: bytes) -> SetColumn:
    codes: list[tuple[int, int]] = []
    for row, language, level in _listed_languages(records["languages"]):
        levels = range(level + 1) if level is not None else (0, LEVEL_UNSTATED)
        codes.extend((row, language_code(language, one)) for one in levels)
    return _of_pairs(codes, records["languages"].is_not_null().to_numpy())


def _required_languages(records: pl.DataFrame, salt: bytes) -> SetColumn:
    listed = _listed_languages(records["languages"])
    codes = [(row, language_code(language, level or 0)) for row, language, level in listed]
    return _of_pairs(codes, np.ones(records.height, np.bool_))


def _of_pairs(pairs: Sequence[tuple[int, int]], known: Any) -> SetColumn:
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
        "must_skills": _named("skills", pl.col("must"), demand=True),
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
        "certifications_verified": _named("certifications", pl.col("verified")),
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
