"""Further limits that one request sets for the side that asks: "nobody above 50 an hour, today".

A request's limits join the record's own and can only narrow: the lower of two ceilings, the higher
of two floors, the union of two lists of exclusions, the intersection of two lists of what is
allowed. They are limit fields of the record, and for jobs also skills and languages required.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matchwright.engine.errors import InvalidArgument, InvalidData, unknown_key
from matchwright.engine.records import FIELDS, Kind

Limits = tuple[tuple[str, Any], ...]
"""(field, value) pairs in the order of their names; lists are tuples."""

REQUIRED_SKILLS = "required_skills"
REQUIRED_LANGUAGES = "required_languages"
NOWHERE = ""
"""The country of a list of allowed countries that allows none."""

_EXPERIENCE = ("ENTRY", "INTERMEDIATE", "EXPERT")


def limit_names(kind: Kind) -> tuple[str, ...]:
    """What a request may limit for an entity of this kind."""
    own = tuple(name for name, field in FIELDS[kind].items() if field.limit)
    return (*own, REQUIRED_SKILLS, REQUIRED_LANGUAGES) if kind == "job" else own


def check_limits(kind: Kind, limits: Mapping[str, Any]) -> Limits:
    """A request's limits, checked and normalised as a record's own would be.

    Args:
        kind: kind of the entity that asks.
        limits: field -> value: limit fields of the record; for jobs also ``required_skills``
            (names) and ``required_languages`` (``{"code": ..., "level": ...}``).

    Raises:
        UnknownKey: a field that is no limit.
        InvalidArgument: a value that the field cannot hold.
    """
    if not isinstance(limits, Mapping):
        raise InvalidArgument(f"request.limits is {type(limits).__name__}; expected a table")
    for name in limits:
        if name not in limit_names(kind):
            raise unknown_key("limit", str(name), limit_names(kind), "request.limits")
    if not limits:
        return ()
    from matchwright.engine.records import to_rows

    try:
        row = to_rows(kind, [{"id": "limits", **_as_fields(limits)}])[0]
    except InvalidData as error:
        raise InvalidArgument(f"request.limits: {error}", **error.details) from None
    return tuple((name, _frozen(_from_fields(name, row))) for name in sorted(limits))


def _as_fields(limits: Mapping[str, Any]) -> dict[str, Any]:
    fields = dict(limits)
    if REQUIRED_SKILLS in fields:
        names = fields.pop(REQUIRED_SKILLS)
        if not isinstance(names, list | tuple):
            raise InvalidArgument("request.limits.required_skills: expected a list of names")
        fields["skills"] = [{"name": name, "must": True} for name in names]
    if REQUIRED_LANGUAGES in fields:
        fields["languages"] = fields.pop(REQUIRED_LANGUAGES)
    return fields


def _from_fields(name: str, row: Mapping[str, Any]) -> Any:
    if name == REQUIRED_SKILLS:
        return [skill["name"] for skill in row["skills"] or ()]
    if name == REQUIRED_LANGUAGES:
        return [(one["code"], one["level"]) for one in row["languages"] or ()]
    return row[name]


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def tightened(record: Mapping[str, Any], limits: Limits) -> dict[str, Any]:
    """A record with a request's limits joined to its own.

    Args:
        record: a record in the form of the schema.
        limits: from ``check_limits``; a value of None changes nothing.
    """
    joined = dict(record)
    for name, value in limits:
        if value is None:
            continue
        if name == REQUIRED_SKILLS:
            joined["skills"] = _with_must(record.get("skills"), value)
        elif name == REQUIRED_LANGUAGES:
            asked = [{"code": code, "level": level} for code, level in value]
            joined["languages"] = [*(record.get("languages") or ()), *asked]
        else:
            joined[name] = _tighter(name, record.get(name), value)
    return joined


def _with_must(skills: Any, names: tuple[str, ...]) -> list[dict[str, Any]]:
    asked = [{"name": name, "level": None, "must": True} for name in names]
    return [*(skills or ()), *asked]


def _tighter(name: str, own: Any, further: Any) -> Any:
    if name == "countries_allowed":
        return _allowed(own or (), further)
    if isinstance(further, tuple):
        return sorted({*(own or ()), *further})
    if own is None:
        return further
    if name == "min_experience":
        return max(own, further, key=_EXPERIENCE.index)
    return min(own, further) if name.startswith("max_") else max(own, further)


def _allowed(own: Any, further: tuple[str, ...]) -> list[str]:
    if not own or not further:
        return sorted({*own, *further})
    return sorted(set(own) & set(further)) or [NOWHERE]
