"""One raw value to one stored value: a parser for every type of field.

A parser takes what a file or a message holds (never None or an empty text, which are unknown
whatever the field) and returns the stored value, or None for unknown, or raises ``Bad``. Each
accepts its own output and returns it unchanged.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import ftfy
from ftfy.badness import is_bad

from matchwright.engine.records import dates, places
from matchwright.engine.records.fields import (
    ID_BYTES_MAX,
    LABEL_CHARS_MAX,
    LIST_ITEMS_MAX,
    TEXT_CHARS_MAX,
    TITLE_CHARS_MAX,
    Field,
    Type,
    Unit,
)
from matchwright.engine.records.markup import strip_html
from matchwright.engine.records.money import Currency, MoneyRule
from matchwright.engine.records.numbers import NATIVE, UNITS, scaled
from matchwright.engine.records.reasons import Bad, Reason
from matchwright.engine.records.scrub import clean, scrub, tidy
from matchwright.engine.records.skills import Skills, default_skills

Parser = Callable[[Any], Any]

RAW_CHARS_PER_CHAR = 8
"""Markup may make a text this much longer than its limit before it is refused unread."""


@dataclass(frozen=True, slots=True)
class Options:
    """How a field's raw values are to be read; what a map can say about one field.

    Attributes:
        prefix: put before an id.
        html: strip markup and decode entities.
        fix: repair wrongly decoded text (mojibake).
        truncate: cut a text that is too long instead of refusing it.
        unit: what numbers are given in; None is the stored unit.
        decimal_comma: "1.234,56" instead of "1,234.56".
        values: raw text (case and outer blanks ignored) -> value, looked up first.
        split: separator of a list in one text.
        pair: separator of name and level within an item.
        drop: items (case ignored) to leave out.
        must: what ``must`` is for skills that do not say.
        formats: of dates.
        money: how amounts are read when the unit is "money".
    """

    prefix: str = ""
    html: bool = False
    fix: bool = True
    truncate: bool = False
    unit: str | None = None
    decimal_comma: bool = False
    values: Mapping[str, Any] = field(default_factory=dict)
    split: str | None = None
    pair: str | None = None
    drop: frozenset[str] = frozenset()
    must: bool = False
    formats: tuple[str, ...] = ()
    money: MoneyRule | None = None
    skills: Skills = field(default_factory=default_skills)


def parser_for(spec: Field, options: Options) -> Parser:
    """The parser of ``spec`` under ``options``."""
    return _MAKERS[spec.type](spec, options)


# ── Text ──────────────────────────────────────────────────────────────────────────────────────


def text_of(value: object) -> str:
    """Text from text or a whole number.

    Raises:
        Bad: WRONG_TYPE, NOT_UTF8.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() <= 128:
        return str(value)
    raise Bad(Reason.WRONG_TYPE, f"text was expected, got {type(value).__name__}")


def _prose(spec: Field, options: Options) -> Parser:
    limit = TITLE_CHARS_MAX if spec.type is Type.TITLE else TEXT_CHARS_MAX
    one_line = spec.type is Type.TITLE

    def parse(value: Any) -> str | None:
        text = text_of(value)
        if len(text) > limit * RAW_CHARS_PER_CHAR:
            if not options.truncate:
                raise Bad(Reason.TOO_LONG, f"{len(text):,} characters, at most {limit:,}")
            text = text[: limit * RAW_CHARS_PER_CHAR]
        if options.html:
            text = strip_html(text)
        if options.fix and not text.isascii() and is_bad(text):
            text = ftfy.fix_encoding(text)
        text = clean(text)
        text = tidy(" ".join(text.split()) if one_line else text)
        if len(text) > limit:
            if not options.truncate:
                raise Bad(Reason.TOO_LONG, f"{len(text):,} characters, at most {limit:,}")
            text = text[:limit]
        return scrub(text) or None

    return parse


def label(value: object) -> str:
    """A short name: one line, NFKC, at most 128 characters; "" if nothing visible is in it.

    Raises:
        Bad: WRONG_TYPE, TOO_LONG.
    """
    text = text_of(value)
    if len(text) > LABEL_CHARS_MAX * RAW_CHARS_PER_CHAR:
        raise Bad(Reason.TOO_LONG, f"at most {LABEL_CHARS_MAX} characters")
    text = " ".join(clean(text).split())
    if len(text) > LABEL_CHARS_MAX:
        raise Bad(Reason.TOO_LONG, f"at most {LABEL_CHARS_MAX} characters")
    return text


def identifier(value: object) -> str:
    """An external id: NFC, 1 to 128 bytes, nothing invisible.

    Raises:
        Bad: WRONG_TYPE, MISSING, ID_TOO_LONG, CONTROL_CHARACTERS, NOT_UTF8.
    """
    text = text_of(value).strip()
    if not text:
        raise Bad(Reason.MISSING)
    if len(text) > ID_BYTES_MAX:
        raise Bad(Reason.ID_TOO_LONG)
    text = unicodedata.normalize("NFC", text)
    if not text.isascii() or not text.isprintable():
        _check_visible(text)
    if len(text.encode()) > ID_BYTES_MAX:
        raise Bad(Reason.ID_TOO_LONG)
    return text


def _check_visible(text: str) -> None:
    groups = {unicodedata.category(char) for char in text}
    if "Cs" in groups:
        raise Bad(Reason.NOT_UTF8)
    if groups & {"Cc", "Cf", "Zl", "Zp"}:
        raise Bad(Reason.CONTROL_CHARACTERS)


def _id(spec: Field, options: Options) -> Parser:
    prefix = options.prefix

    def parse(value: Any) -> str | None:
        if isinstance(value, str) and not value.strip():
            return None
        return identifier(f"{prefix}{text_of(value).strip()}" if prefix else value)

    return parse


def _label(spec: Field, options: Options) -> Parser:
    return _with_values(options, lambda value: label(value) or None)


def _with_values(options: Options, parse: Parser) -> Parser:
    values = options.values
    if not values:
        return parse

    def look_up(value: Any) -> Any:
        if not isinstance(value, list | dict):
            known = values.get(value_key(value))
            if known is not None:
                return known
        return parse(value)

    return look_up


def value_key(value: object) -> str:
    """The form in which ``values``, ``unknown_values`` and ``drop`` are compared."""
    if isinstance(value, str):
        return _text_key(value) if len(value) <= LABEL_CHARS_MAX else _text_key.__wrapped__(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        value = int(value)
    if isinstance(value, int) and value.bit_length() > 1_024:
        return "\0"  # longer than any number that can be meant, or even written
    return str(value)


@lru_cache(maxsize=1 << 15)
def _text_key(text: str) -> str:
    return " ".join(text.casefold().split())


def _enum(spec: Field, options: Options) -> Parser:
    own = {name.casefold(): name for name in spec.values}

    def parse(value: Any) -> str | None:
        key = label(value).casefold().replace(" ", "_").replace("-", "_")
        if not key:
            return None
        if key not in own:
            raise Bad(Reason.VALUE_UNKNOWN, f"one of {', '.join(spec.values)} was expected")
        return own[key]

    return _with_values(options, parse)


def _country(spec: Field, options: Options) -> Parser:
    return _with_values(options, _country_of)


def _country_of(value: Any) -> str | None:
    text = label(value)
    return places.country(text) if text else None


def _zone(spec: Field, options: Options) -> Parser:
    return _with_values(options, _zone_of)


def _zone_of(value: Any) -> str | None:
    text = label(value)
    return places.zone(text) if text else None


# ── Numbers ───────────────────────────────────────────────────────────────────────────────────


def _int(spec: Field, options: Options) -> Parser:
    unit = options.unit or NATIVE[spec.unit]
    parse: Parser
    if unit == "money":
        rule = options.money or MoneyRule(Currency(), "only", None, "refuse", spec.low, spec.high)
        parse = rule.cents
    elif unit == "date":
        parse = lambda value: dates.day(value, options.formats)  # noqa: E731
    elif unit == "clock":
        parse = lambda value: dates.clock(value, spec.high)  # noqa: E731
    else:
        exact = UNITS[spec.unit][unit] == 1
        parse = scaled(
            UNITS[spec.unit][unit],
            spec.low,
            spec.high,
            exact=exact and spec.unit in (Unit.NONE, Unit.CENTS, Unit.DAY),
            decimal_comma=options.decimal_comma,
        )
    return _with_values(options, _blank_is_unknown(parse))


def _blank_is_unknown(parse: Parser) -> Parser:
    def parse_or_none(value: Any) -> Any:
        if isinstance(value, str) and value.isspace():
            return None
        return parse(value)

    return parse_or_none


# ── Lists ─────────────────────────────────────────────────────────────────────────────────────


def _items(value: Any, options: Options, *, one_number: bool = False) -> list[Any]:
    """The raw items of a list, or of a text that holds one.

    Raises:
        Bad: WRONG_TYPE, TOO_LONG, TOO_MANY_ITEMS.
    """
    if isinstance(value, str):
        if len(value) > LIST_ITEMS_MAX * LABEL_CHARS_MAX:
            raise Bad(Reason.TOO_LONG, f"a list of {len(value):,} characters")
        items: list[Any] = value.split(options.split) if options.split else [value]
    elif isinstance(value, list | tuple):
        items = list(value)
    elif one_number and type(value) is int:
        items = [value]
    else:
        raise Bad(Reason.WRONG_TYPE, f"a list was expected, got {type(value).__name__}")
    if len(items) > LIST_ITEMS_MAX:
        raise Bad(Reason.TOO_MANY_ITEMS, f"{len(items):,} items, at most {LIST_ITEMS_MAX:,}")
    kept = [
        item for item in items if not (item is None or (isinstance(item, str) and not item.strip()))
    ]
    if options.drop:
        kept = [item for item in kept if value_key(item) not in options.drop]
    return kept


def _is_blank(item: object) -> bool:
    return item is None or (isinstance(item, str) and not item.strip())


def _each(items: Iterable[Any], parse: Callable[[Any], Any]) -> list[Any]:
    """Parsed items; the first bad one is named."""
    done = []
    for item in items:
        try:
            done.append(parse(item))
        except Bad as bad:
            raise Bad(bad.reason, bad.detail, item) from None
    return done


def _unique(values: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(value for value in values if value))


def _strings(parse_one: Callable[[Any], Any]) -> Callable[[Field, Options], Parser]:
    def make(spec: Field, options: Options) -> Parser:
        one = _with_values(options, parse_one)
        prefix = options.prefix

        def parse(value: Any) -> list[str]:
            items = _items(value, options, one_number=parse_one is identifier)
            if prefix:
                items = [f"{prefix}{text_of(item).strip()}" for item in items]
            return _unique(_each(items, one))

        return parse

    return make


def _named(item: Any, keys: tuple[str, ...], pair: str | None) -> dict[str, Any]:
    """An item as a dictionary: {"name": ..., ...}, "name", or "name:level"."""
    if isinstance(item, dict):
        unknown = [key for key in item if key not in keys]
        if unknown:
            raise Bad(Reason.ITEM_INVALID, f"key {unknown[0]!r}; known: {', '.join(keys)}")
        return item
    text = text_of(item)
    if pair and pair in text:
        name, _, rest = text.rpartition(pair)
        return {keys[0]: name, keys[1]: rest.strip()}
    return {keys[0]: text}


def _skills(spec: Field, options: Options) -> Parser:
    asked = spec.type is Type.ASKED_SKILLS
    keys = ("name", "level", "must") if asked else ("name", "level")
    normalise, values, must = options.skills.normalise, options.values, options.must
    bare: dict[str, Any] = {"level": None, "must": must} if asked else {"level": None}
    cache: dict[str, tuple[dict[str, Any], ...]] = {}

    def plain(spelling: object) -> tuple[dict[str, Any], ...]:
        """The skills that a spelling without a level stands for; shared, never changed."""
        if isinstance(spelling, str) and spelling in cache:
            return cache[spelling]
        text = label(spelling)
        text = values.get(value_key(text), text) if values else text
        found = tuple({"name": name, **bare} for name in normalise(text))
        short = isinstance(spelling, str) and len(spelling) <= LABEL_CHARS_MAX
        if short and len(cache) < 1 << 15:
            cache[str(spelling)] = found
        return found

    def skills_of(item: Any) -> Iterable[dict[str, Any]]:
        if type(item) is str and not options.pair:
            return plain(item)
        raw = _named(item, keys, options.pair)
        more: dict[str, Any] = {"level": places.skill_level(raw.get("level"))}
        if asked:
            more["must"] = _flag(raw.get("must"), must)
        return [{**skill, **more} for skill in plain(raw.get("name", ""))]

    def parse(value: Any) -> list[dict[str, Any]]:
        into: dict[str, dict[str, Any]] = {}
        for skills in _each(_items(value, options), skills_of):
            for skill in skills:
                name = skill["name"]
                into[name] = strengthened(into[name], skill) if name in into else skill
        return list(into.values())

    return parse


def strengthened(skill: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Two mentions of a skill or a language as one: the higher level, and must if either says."""
    levels = [level for level in (skill["level"], other["level"]) if level is not None]
    joined = {**skill, "level": max(levels, default=None)}
    if "must" in skill:
        joined["must"] = skill["must"] or other["must"]
    return joined


def _flag(value: object, default: bool) -> bool:
    if value is None:
        return default
    if isinstance(value, bool):
        return value
    known = {"true": True, "yes": True, "y": True, "1": True}
    known |= {"false": False, "no": False, "n": False, "0": False}
    key = value_key(value)
    if key not in known:
        raise Bad(Reason.ITEM_INVALID, "true or false was expected")
    return known[key]


def _languages(spec: Field, options: Options) -> Parser:
    values = options.values

    def one(item: Any) -> tuple[str, int | None]:
        raw = _named(item, ("code", "level"), options.pair)
        text = label(raw.get("code", ""))
        code = values.get(value_key(text)) or places.language(text)
        return code, places.language_level(raw.get("level"))

    def parse(value: Any) -> list[dict[str, Any]]:
        best: dict[str, int | None] = {}
        for code, level in _each(_items(value, options), one):
            known = [known for known in (best.get(code), level) if known is not None]
            best[code] = max(known, default=None)
        return [{"code": code, "level": level} for code, level in best.items()]

    return parse


def _certifications(spec: Field, options: Options) -> Parser:
    keys = ("name", "issuer", "issued", "verified")

    def one(item: Any) -> dict[str, Any] | None:
        raw = _named(item, keys, None)
        name = label(raw.get("name", ""))
        if not name:
            return None
        issuer, issued = raw.get("issuer"), raw.get("issued")
        form = ("days",) if isinstance(issued, int) and not isinstance(issued, bool) else ()
        return {
            "name": name,
            "issuer": label(issuer) or None if issuer is not None else None,
            "issued": dates.day(issued, form) if issued not in (None, "") else None,
            "verified": _flag(raw.get("verified"), False),
        }

    def parse(value: Any) -> list[dict[str, Any]]:
        found = _each(_items(value, options), one)
        return list({tuple(c.items()): c for c in found if c}.values())

    return parse


_MAKERS: Mapping[Type, Callable[[Field, Options], Parser]] = {
    Type.ID: _id,
    Type.TITLE: _prose,
    Type.TEXT: _prose,
    Type.LABEL: _label,
    Type.ENUM: _enum,
    Type.COUNTRY: _country,
    Type.ZONE: _zone,
    Type.INT: _int,
    Type.SKILLS: _skills,
    Type.ASKED_SKILLS: _skills,
    Type.CERTIFICATIONS: _certifications,
    Type.LANGUAGES: _languages,
    Type.LABELS: _strings(label),
    Type.IDS: _strings(identifier),
    Type.COUNTRIES: _strings(_country_of),
}
