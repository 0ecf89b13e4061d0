"""One entry of a map's ``[fields]``: where a field comes from and how it is read."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

from matchwright.engine.errors import InvalidArgument, unknown_key
from matchwright.engine.records.conditions import Condition, condition
from matchwright.engine.records.fields import LIST_TYPES, Field, Type, Unit
from matchwright.engine.records.map_values import (
    choice,
    scalars,
    shown,
    text,
    texts,
    true_false,
)
from matchwright.engine.records.money import Currency, MoneyRule, Period, Take
from matchwright.engine.records.numbers import UNITS
from matchwright.engine.records.reasons import Bad
from matchwright.engine.records.skills import Skills, default_skills
from matchwright.engine.records.values import Options, parser_for, value_key

Pick = Literal["first", "last", "min", "max"]

COMMON = ("const", "from", "on_error", "optional", "unknown_if", "unknown_values", "when")
_PROSE = ("fix", "html", "join", "truncate")
_SPLIT = ("drop", "split")
BY_TYPE: Mapping[Type, tuple[str, ...]] = {
    Type.ID: ("join", "prefix"),
    Type.TITLE: (*_PROSE, "pick"),
    Type.TEXT: _PROSE,
    Type.LABEL: ("pick", "values"),
    Type.ENUM: ("pick", "values"),
    Type.COUNTRY: ("pick", "values"),
    Type.ZONE: ("pick", "values"),
    Type.INT: ("decimal", "pick", "unit", "values"),
    Type.SKILLS: (*_SPLIT, "pair", "values"),
    Type.ASKED_SKILLS: (*_SPLIT, "must", "pair", "values"),
    Type.CERTIFICATIONS: _SPLIT,
    Type.LANGUAGES: (*_SPLIT, "pair", "values"),
    Type.LABELS: (*_SPLIT, "values"),
    Type.IDS: (*_SPLIT, "prefix"),
    Type.COUNTRIES: (*_SPLIT, "values"),
}
"""The options of ``[fields]`` entries by the type of the field, beside ``COMMON``."""
MONEY = ("currency", "currency_from", "other_period", "take")
DATE = ("formats",)
_DIRECTIVE = re.compile(r"%(.)")
_YEARS = frozenset("YyGcx")
"""Directives of strptime that hold a year."""


@dataclass(frozen=True, slots=True)
class FieldMap:
    """How one field is filled.

    Attributes:
        columns: source columns; several are joined (text, id), concatenated (lists) or the first
            known one is taken (anything else).
        const: the value of every row, already parsed; used when there are no columns.
        join: between the parts of a text.
        pick: which of several values of a list is taken for a field that holds one.
        unknown_values: raw values that mean unknown.
        unknown_if: any of these makes the field unknown.
        when: unless this holds the field is unknown.
        on_error: what a bad value does: quarantine the row, or leave the field unknown (counted).
        currency_from: the column that names the currency of each row.
        optional: files without the columns are fine.
    """

    spec: Field
    columns: tuple[str, ...] = ()
    const: Any = None
    options: Options = field(default_factory=Options)
    join: str = "\n"
    pick: Pick | None = None
    unknown_values: frozenset[str] = frozenset()
    unknown_if: tuple[Condition, ...] = ()
    when: Condition | None = None
    on_error: Literal["quarantine", "unknown"] = "quarantine"
    currency_from: str | None = None
    optional: bool = False

    @property
    def used_columns(self) -> tuple[str, ...]:
        """Source columns, those of conditions and currencies included."""
        used = list(self.columns)
        for one in (*self.unknown_if, *((self.when,) if self.when else ())):
            used += one.columns
        if self.currency_from:
            used.append(self.currency_from)
        return tuple(dict.fromkeys(used))


@dataclass(frozen=True, slots=True)
class Context:
    """What the entries of one map share."""

    where: str
    currency: Currency
    skills: Skills


def native(spec: Field) -> FieldMap:
    """A field that is read from the column of its own name, in its own unit."""
    pair = ":" if spec.type is Type.LANGUAGES else None  # names of skills may hold colons
    split = "|" if spec.type in LIST_TYPES else None
    unit = "date" if spec.unit is Unit.DAY else None
    options = Options(
        split=split,
        pair=pair,
        unit=unit,
        formats=("native",) if unit == "date" else (),
        skills=default_skills(),
    )
    return FieldMap(spec, (spec.name,), options=options, optional=True)


def from_toml(spec: Field, entry: object, context: Context) -> FieldMap:
    """A checked entry; a plain string is short for ``{ from = "..." }``.

    Raises:
        InvalidArgument, UnknownKey: the message names the entry.
    """
    where = f"{context.where}, fields.{spec.name}"
    if isinstance(entry, str):
        entry = {"from": entry}
    if not isinstance(entry, dict):
        raise InvalidArgument(f"{where}: a column's name or a table expected, got {shown(entry)}")
    _check_keys(spec, entry, where)
    if ("from" in entry) == ("const" in entry):
        raise InvalidArgument(f"{where}: either `from` or `const` is needed, not both")
    options = _options(spec, entry, context, where)
    return FieldMap(
        spec=spec,
        columns=_columns(spec, entry, where),
        const=_const(spec, entry, options, where),
        options=options,
        join=text(entry.get("join", "-" if spec.type is Type.ID else "\n"), f"{where}: join"),
        pick=_pick(entry, where),
        unknown_values=frozenset(map(value_key, _scalars(entry, "unknown_values", where))),
        unknown_if=_unknown_if(entry, where),
        when=condition(entry["when"], f"{where}: when") if "when" in entry else None,
        on_error=_on_error(spec, entry, where),
        currency_from=text(entry["currency_from"], where) if "currency_from" in entry else None,
        optional=true_false(entry.get("optional", False), f"{where}: optional"),
    )


def known_keys(spec: Field) -> tuple[str, ...]:
    """Every option that an entry for ``spec`` can have."""
    more: tuple[str, ...] = ()
    if spec.unit is Unit.CENTS:
        more = MONEY
    elif spec.unit is Unit.DAY:
        more = DATE
    return (*COMMON, *BY_TYPE[spec.type], *more)


def _check_keys(spec: Field, entry: Mapping[str, object], where: str) -> None:
    known = known_keys(spec)
    everywhere = {*COMMON, *MONEY, *DATE}.union(*BY_TYPE.values())
    for key in entry:
        if key in known:
            continue
        if key in everywhere:
            raise InvalidArgument(f"{where}: {key} means nothing for a field of type {_type(spec)}")
        raise unknown_key("option", key, known, where)


def _type(spec: Field) -> str:
    return f"{spec.type.value} ({spec.unit.value})" if spec.unit.value else spec.type.value


def _columns(spec: Field, entry: Mapping[str, object], where: str) -> tuple[str, ...]:
    if "from" not in entry:
        return ()
    return texts(entry["from"], f"{where}: from")


def _const(spec: Field, entry: Mapping[str, object], options: Options, where: str) -> Any:
    if "const" not in entry:
        return None
    if spec.name == "id":
        raise InvalidArgument(f"{where}: every row needs an id of its own; `const` cannot give it")
    try:
        return parser_for(spec, options)(entry["const"])
    except Bad as bad:
        raise InvalidArgument(f"{where}: const {shown(entry['const'])}: {bad.detail}") from None


def _pick(entry: Mapping[str, object], where: str) -> Pick | None:
    if "pick" not in entry:
        return None
    return cast(Pick, choice(entry["pick"], ("first", "last", "min", "max"), f"{where}: pick"))


def _scalars(entry: Mapping[str, object], key: str, where: str) -> tuple[object, ...]:
    return scalars(entry[key], f"{where}: {key}") if key in entry else ()


def _unknown_if(entry: Mapping[str, object], where: str) -> tuple[Condition, ...]:
    if "unknown_if" not in entry:
        return ()
    given = entry["unknown_if"]
    tables = given if isinstance(given, list) else [given]
    if not tables:
        raise InvalidArgument(f"{where}: unknown_if is empty")
    return tuple(condition(one, f"{where}: unknown_if") for one in tables)


def _on_error(
    spec: Field, entry: Mapping[str, object], where: str
) -> Literal["quarantine", "unknown"]:
    got = choice(
        entry.get("on_error", "quarantine"), ("quarantine", "unknown"), f"{where}: on_error"
    )
    if got == "unknown" and spec.name == "id":
        raise InvalidArgument(f"{where}: an id cannot be unknown; leave on_error out")
    return "unknown" if got == "unknown" else "quarantine"


# ── Options ───────────────────────────────────────────────────────────────────────────────────


def _options(spec: Field, entry: Mapping[str, Any], context: Context, where: str) -> Options:
    unit = _unit(spec, entry, where)
    comma = choice(entry.get("decimal", "."), (".", ","), f"{where}: decimal") == ","
    plain = Options(
        prefix=text(entry.get("prefix", ""), f"{where}: prefix"),
        html=true_false(entry.get("html", False), f"{where}: html"),
        fix=true_false(entry.get("fix", True), f"{where}: fix"),
        truncate=true_false(entry.get("truncate", False), f"{where}: truncate"),
        unit=unit,
        decimal_comma=comma,
        split=_separator(entry, "split", where),
        pair=_separator(entry, "pair", where),
        drop=frozenset(map(value_key, _scalars(entry, "drop", where))),
        must=true_false(entry.get("must", False), f"{where}: must"),
        formats=_formats(entry, unit, where),
        money=_money(spec, entry, context, unit, comma, where),
        skills=context.skills,
    )
    return _with_values(spec, entry, plain, where)


def _separator(entry: Mapping[str, Any], key: str, where: str) -> str | None:
    if key not in entry:
        return None
    got = text(entry[key], f"{where}: {key}")
    if not 1 <= len(got) <= 8:
        raise InvalidArgument(f"{where}: {key} has 1 to 8 characters, got {shown(got)}")
    return got


def _unit(spec: Field, entry: Mapping[str, Any], where: str) -> str | None:
    """The unit that is given. It must be said where the field has more than one."""
    if spec.type is not Type.INT:
        return None
    known = tuple(UNITS[spec.unit])
    if "unit" in entry:
        return choice(entry["unit"], known, f"{where}: unit")
    if spec.unit is Unit.DAY:
        return "date"
    if len(known) > 1 and "from" in entry:
        raise InvalidArgument(
            f"{where}: say what the column is in: unit = one of {', '.join(map(repr, known))}"
        )
    return None


def _formats(entry: Mapping[str, Any], unit: str | None, where: str) -> tuple[str, ...]:
    if unit == "days":
        return ("days",)
    if "formats" not in entry:
        return ()
    formats = texts(entry["formats"], f"{where}: formats")
    for form in formats:
        if form not in ("epoch_s", "epoch_ms", "days") and "%" not in form:
            raise InvalidArgument(
                f"{where}: formats: {form!r} is neither a strptime format such as '%d/%m/%Y' "
                "nor one of 'epoch_s', 'epoch_ms', 'days'"
            )
        if "%" in form and not _YEARS & set(_DIRECTIVE.findall(form)):
            raise InvalidArgument(f"{where}: formats: {form!r} has no year, such as '%Y'")
    return formats


def _money(
    spec: Field,
    entry: Mapping[str, Any],
    context: Context,
    unit: str | None,
    comma: bool,
    where: str,
) -> MoneyRule | None:
    if unit != "money":
        extra = [key for key in MONEY if key in entry]
        if extra:
            raise InvalidArgument(f'{where}: {extra[0]} needs unit = "money"')
        return None
    currency = context.currency
    if "currency" in entry:
        assumed = text(entry["currency"], f"{where}: currency")
        if assumed != currency.base and assumed not in currency.rates:
            raise InvalidArgument(f"{where}: no rate for {assumed!r} in [currency.rates]")
        currency = Currency(currency.base, currency.rates, assumed)
    take = choice(entry.get("take", "only"), ("low", "high", "only"), f"{where}: take")
    other = choice(
        entry.get("other_period", "refuse"), ("refuse", "unknown"), f"{where}: other_period"
    )
    return MoneyRule(
        currency=currency,
        take=cast(Take, take),
        period=_period(spec),
        other_period="unknown" if other == "unknown" else "refuse",
        low=spec.low,
        high=spec.high,
        decimal_comma=comma,
    )


def _period(spec: Field) -> Period | None:
    if "rate" in spec.name:
        return "hour"
    return "fixed" if "fixed" in spec.name else None


def _with_values(spec: Field, entry: Mapping[str, Any], options: Options, where: str) -> Options:
    """``options`` with the ``values`` table, whose right sides are parsed as the field's own."""
    if "values" not in entry:
        return options
    given = entry["values"]
    if not isinstance(given, dict) or not given:
        raise InvalidArgument(f"{where}: values must be a table of raw = value")
    parse = _value_parser(spec)
    values = {}
    for raw, value in given.items():
        try:
            values[value_key(raw)] = parse(value)
        except Bad as bad:
            raise InvalidArgument(
                f"{where}: values, {shown(raw)} = {shown(value)}: {bad.detail}"
            ) from None
    return replace(options, values=values)


def _value_parser(spec: Field) -> Callable[[Any], Any]:
    single = {
        Type.SKILLS: Type.LABEL,
        Type.ASKED_SKILLS: Type.LABEL,
        Type.LABELS: Type.LABEL,
        Type.LANGUAGES: Type.LABEL,
        Type.COUNTRIES: Type.COUNTRY,
    }.get(spec.type, spec.type)
    if single is Type.INT:
        return parser_for(spec, Options())
    return parser_for(Field(spec.name, single, "", values=spec.values), Options())
