"""Map files: how the columns of somebody's export become the fields of our records.

A map is a TOML file that is checked completely before the first row is read: unknown keys, wrong
types, options that a field cannot take, units that do not fit. It holds data only, never code.
``docs/ingest.md`` is its reference.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from matchwright.engine.errors import InvalidArgument, NotFound, unknown_key
from matchwright.engine.records import map_fields
from matchwright.engine.records.fields import FIELDS, KINDS, Field, Kind, Type
from matchwright.engine.records.map_fields import Context, FieldMap
from matchwright.engine.records.map_values import (
    choice,
    table,
    text,
    true_false,
)
from matchwright.engine.records.money import Currency
from matchwright.engine.records.numbers import number
from matchwright.engine.records.reasons import Bad
from matchwright.engine.records.skills import Skills, default_skills, skills_with
from matchwright.engine.records.values import Options

MAP_BYTES_MAX = 1 << 20
FORMATS = ("csv", "tsv", "jsonl", "parquet")
SECTIONS = ("about", "currency", "fields", "kind", "merge", "skills", "source")
_MERGES = {
    "list": ("union", "first", "last"),
    "text": ("join", "first", "last"),
    "number": ("first", "last", "min", "max"),
    "other": ("first", "last"),
}


@dataclass(frozen=True, slots=True)
class Source:
    """How a file is to be read; None: by its name's ending."""

    format: str | None = None
    delimiter: str | None = None
    quotes: bool = True


@dataclass(frozen=True, slots=True)
class RecordMap:
    """A checked map.

    Attributes:
        kind: of the records that it makes.
        fields: one entry for each field that it fills.
        merge: field -> how rows with the same id are joined into one record; None: they are not.
        native: made without a map file: columns are our own field names, others are refused.
        where: the file's name, for messages.
    """

    kind: Kind
    fields: tuple[FieldMap, ...]
    source: Source = field(default_factory=Source)
    merge: Mapping[str, str] | None = None
    native: bool = False
    where: str = "no map"

    @property
    def columns(self) -> tuple[str, ...]:
        """Every source column that is used, conditions included."""
        return tuple(dict.fromkeys(c for f in self.fields for c in f.used_columns))

    def with_skills(self, skills: Skills) -> RecordMap:
        """The same map with other alias tables."""
        fields = tuple(replace(f, options=replace(f.options, skills=skills)) for f in self.fields)
        return replace(self, fields=fields)

    def only(self, names: Iterable[str]) -> RecordMap:
        """The same map of those fields, in the order of ``names``; others are passed over."""
        known = {f.spec.name: f for f in self.fields}
        return replace(self, fields=tuple(known[name] for name in names if name in known))

    def check_columns(
        self, present: Iterable[str], where: str, *, nested: bool = False
    ) -> tuple[str, ...]:
        """Compares with the columns of a file; returns those that the map does not use.

        Args:
            nested: values can be objects, so that "a.b" may mean b within column a.

        Raises:
            UnknownKey: without a map, a column that is no field.
            InvalidArgument: the map uses a column that the file does not have.
        """
        present = list(present)
        if self.native:
            for column in present:
                if column not in FIELDS[self.kind]:
                    raise unknown_key(f"{self.kind} field", column, FIELDS[self.kind], where)
            if "id" not in present:
                raise InvalidArgument(
                    f"{where} has no column 'id'; name it so, or give a map (--map)", field="id"
                )
            return ()
        names = set(present)
        for mapped in self.fields:
            for column in () if mapped.optional else mapped.used_columns:
                if not (column in names or (nested and column.split(".")[0] in names)):
                    raise self._missing(column, mapped, present, where)
        used = set(self.columns)
        if nested:
            used |= {column.split(".")[0] for column in used}
        return tuple(column for column in present if column not in used)

    def _missing(
        self, column: str, mapped: FieldMap, present: list[str], where: str
    ) -> InvalidArgument:
        hint = unknown_key("column", column, present[:200], where)
        return InvalidArgument(
            f"{self.where}, fields.{mapped.spec.name}: {hint}; "
            "a column that only some files have is marked `optional = true`",
            field=mapped.spec.name,
            column=column,
        )


def native_map(kind: Kind) -> RecordMap:
    """The map of files and messages that use our own field names and units."""
    fields = tuple(map_fields.native(field) for field in FIELDS[kind].values())
    return RecordMap(kind=kind, fields=fields, native=True)


def load_map(path: Path | str, kind: Kind | None = None) -> RecordMap:
    """Reads and checks a map file.

    Args:
        kind: what the caller is about to import; a map for the other kind is refused.

    Raises:
        NotFound: the file cannot be read.
        UnknownKey, InvalidArgument: the map cannot be used; the message says where and why.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        if size > MAP_BYTES_MAX:
            raise InvalidArgument(f"{path}: {size:,} bytes; a map has at most {MAP_BYTES_MAX:,}")
        content = path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidArgument(f"{path} is not UTF-8: {error}") from None
    except (OSError, ValueError) as error:
        raise NotFound(f"cannot read the map {path}: {error}") from None
    return parse_map(content, str(path), kind, path.parent)


def parse_map(
    content: str, where: str = "map", kind: Kind | None = None, folder: Path | None = None
) -> RecordMap:
    """Checks the text of a map; see ``load_map``. Alias files are looked for in ``folder``."""
    try:
        document = tomllib.loads(content)
    except (tomllib.TOMLDecodeError, ValueError, RecursionError, OverflowError) as error:
        raise InvalidArgument(f"{where} is not TOML: {error}") from None
    for key in document:
        if key not in SECTIONS:
            raise unknown_key("section", key, SECTIONS, where)
    if "about" in document:
        text(document["about"], f"{where}: about")
    mapped_kind = _kind(document, where, kind)
    context = Context(where, _currency(document, where), _skills(document, where, folder))
    fields = _fields(document, mapped_kind, context)
    return RecordMap(
        kind=mapped_kind,
        fields=fields,
        source=_source(document, where),
        merge=_merge(document, fields, where),
        where=where,
    )


def _kind(document: Mapping[str, Any], where: str, wanted: Kind | None) -> Kind:
    if "kind" not in document:
        raise InvalidArgument(f'{where}: kind is missing; write kind = "job" or "freelancer"')
    got = choice(document["kind"], KINDS, f"{where}: kind")
    if wanted is not None and got != wanted:
        raise InvalidArgument(f"{where} is a map for {got}s, and {wanted}s are being read")
    return "job" if got == "job" else "freelancer"


def _source(document: Mapping[str, Any], where: str) -> Source:
    got = table(document.get("source", {}), ("format", "delimiter", "quotes"), f"{where}, [source]")
    source = Source()
    if "format" in got:
        source = replace(source, format=choice(got["format"], FORMATS, f"{where}: format"))
    if "delimiter" in got:
        delimiter = text(got["delimiter"], f"{where}: delimiter")
        if len(delimiter) != 1 or delimiter in '"\r\n\0' or not delimiter.isascii():
            raise InvalidArgument(f"{where}: delimiter must be one character, got {delimiter!r}")
        source = replace(source, delimiter=delimiter)
    if "quotes" in got:
        source = replace(source, quotes=true_false(got["quotes"], f"{where}: quotes"))
    return source


def _currency(document: Mapping[str, Any], where: str) -> Currency:
    here = f"{where}, [currency]"
    got = table(document.get("currency", {}), ("base", "assumed", "rates"), here)
    base = _code(got.get("base", "USD"), f"{here}: base")
    rates = got.get("rates", {})
    if not isinstance(rates, dict):
        raise InvalidArgument(f"{here}: rates must be a table of CODE = units of {base}")
    known = {}
    for code, value in rates.items():
        try:
            rate = number(value)
        except Bad as bad:
            raise InvalidArgument(f"{here}, rates: {code} = {value!r}: {bad.detail}") from None
        if not 0 < rate < 10**9:
            raise InvalidArgument(f"{here}, rates: {code} must be above 0 and below 1e9")
        known[_code(code, f"{here}, rates")] = rate
    assumed = _code(got.get("assumed", base), f"{here}: assumed")
    if assumed != base and assumed not in known:
        raise InvalidArgument(f"{here}: no rate for {assumed}; add it to [currency.rates]")
    return Currency(base, known, assumed)


def _code(value: object, where: str) -> str:
    code = text(value, where)
    if not (len(code) == 3 and code.isascii() and code.isalpha() and code.isupper()):
        raise InvalidArgument(f"{where}: an ISO 4217 code such as EUR expected, got {code!r}")
    return code


def _skills(document: Mapping[str, Any], where: str, folder: Path | None) -> Skills:
    got = table(document.get("skills", {}), ("aliases",), f"{where}, [skills]")
    if "aliases" not in got:
        return default_skills()
    name = text(got["aliases"], f"{where}, [skills]: aliases")
    if "\0" in name:
        raise InvalidArgument(f"{where}, [skills]: aliases is not a file name")
    return skills_with((folder or Path()) / name)


def _fields(document: Mapping[str, Any], kind: Kind, context: Context) -> tuple[FieldMap, ...]:
    known = FIELDS[kind]
    entries = document.get("fields", {})
    if not isinstance(entries, dict):
        raise InvalidArgument(f"{context.where}: [fields] must be a table of field = column")
    for name in entries:
        if name not in known:
            raise unknown_key(f"{kind} field", name, known, f"{context.where}, [fields]")
    if "id" not in entries:
        raise InvalidArgument(f"{context.where}, [fields]: id is missing", field="id")
    return tuple(
        map_fields.from_toml(known[name], entry, context) for name, entry in entries.items()
    )


def _merge(
    document: Mapping[str, Any], fields: tuple[FieldMap, ...], where: str
) -> Mapping[str, str] | None:
    if "merge" not in document:
        return None
    specs = {f.spec.name: f.spec for f in fields if f.spec.name != "id"}
    got = table(document["merge"], tuple(specs), f"{where}, [merge]")
    chosen = {}
    for name, spec in specs.items():
        options = _MERGES[_merge_group(spec)]
        chosen[name] = choice(got.get(name, options[0]), options, f"{where}, [merge]: {name}")
    return chosen


def _merge_group(spec: Field) -> str:
    if spec.is_list:
        return "list"
    if spec.type is Type.TEXT:
        return "text"
    return "number" if spec.type is Type.INT else "other"


__all__ = ["FieldMap", "Options", "RecordMap", "Source", "load_map", "native_map", "parse_map"]
