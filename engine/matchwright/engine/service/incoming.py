"""From messages to requests: everything is checked here that needs no data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message

from matchwright.engine.config import Limits
from matchwright.engine.errors import InvalidArgument, unknown_key
from matchwright.engine.matcher import Audience
from matchwright.engine.records import FIELDS, Kind
from matchwright.engine.request import Request
from matchwright.v1 import match_service_pb2 as wire

DEFAULT_MARKETPLACE = "default"
K_DEFAULT = 10

KINDS: Mapping[int, Kind] = {
    wire.ENTITY_KIND_JOB: "job",
    wire.ENTITY_KIND_FREELANCER: "freelancer",
}
AUDIENCES: Mapping[int, Audience] = {
    wire.AUDIENCE_CLIENT: "client",
    wire.AUDIENCE_FREELANCER: "freelancer",
    wire.AUDIENCE_OPERATOR: "operator",
}
_ON_UNKNOWN: Mapping[int, str] = {
    wire.UNKNOWN_HANDLING_FAIL: "fail",
    wire.UNKNOWN_HANDLING_PASS: "pass",
}
_COUNTED: Mapping[int, bool] = {
    wire.COUNT_MODE_UNSPECIFIED: True,
    wire.COUNT_MODE_EXACT: True,
    wire.COUNT_MODE_NONE: False,
}
_LEVEL = "LanguageLevel"


def marketplace_of(name: str, limits: Limits) -> str:
    """The marketplace that a request names.

    Raises:
        InvalidArgument: longer than an id may be.
    """
    within("marketplace", len(name.encode()), "id_bytes_max", limits.id_bytes_max, "bytes")
    return name or DEFAULT_MARKETPLACE


def within(field: str, size: int, limit: str, most: int, unit: str, least: int = 0) -> None:
    """Refuse a size beyond a limit, by the limit's one name.

    Raises:
        InvalidArgument: naming field, limit, what was got and what is allowed.
    """
    if size > most or size < least:
        raise InvalidArgument(
            f"{field} has {size:,} {unit}; expected {least:,} to {most:,} ({limit})",
            field=field,
            limit=limit,
        )


def id_of(value: str, field: str, limits: Limits) -> str:
    """An external id of a request.

    Raises:
        InvalidArgument: empty or too long.
    """
    within(field, len(value.encode()), "id_bytes_max", limits.id_bytes_max, "bytes", least=1)
    return value


def query_of(
    message: Any, oneof: str, limits: Limits
) -> tuple[Kind, str | None, dict[str, Any] | None]:
    """(kind, id, record) of the entity that a oneof names; one of id and record is None.

    Raises:
        InvalidArgument: neither is set, or the value cannot be one.
    """
    name = message.WhichOneof(oneof)
    if name is None:
        names = [field.name for field in message.DESCRIPTOR.oneofs_by_name[oneof].fields]
        raise InvalidArgument(f"set one of {', '.join(names)}", field=names[0])
    kind: Kind = "job" if name.startswith("job") else "freelancer"
    value = getattr(message, name)
    if isinstance(value, str):
        return kind, id_of(value, name, limits), None
    return kind, None, record_of(value, name)


def request_of(
    message: Any, options: wire.FindOptions, limits: Limits, today: int, oneof: str = "query"
) -> Request:
    """The matcher's request.

    Args:
        message: holds the oneof that says who asks.
        options: how to search.
        today: the day of requests that name none.

    Raises:
        InvalidArgument, UnknownKey: naming the field.
    """
    kind, identity, record = query_of(message, oneof, limits)
    return Request(
        kind=kind, id=identity, record=record, **options_of(options, kind, limits, today)
    )


def options_of(options: wire.FindOptions, kind: Kind, limits: Limits, today: int) -> dict[str, Any]:
    """The fields of a request that say how to search.

    Raises:
        InvalidArgument, UnknownKey: naming the field.
    """
    k = options.k if options.HasField("k") else K_DEFAULT
    if not 1 <= k <= limits.k_max:
        raise InvalidArgument(
            f"options.k is {k}; expected 1 to {limits.k_max:,} (k_max)",
            field="options.k",
            limit="k_max",
        )
    within("options.weights", len(options.weights), "weights_max", limits.weights_max, "entries")
    candidates = None
    if options.HasField("candidates"):
        candidates = _ids("candidates.ids", options.candidates.ids, "candidate_ids_max", limits)
    choice = options.WhichOneof("epoch_choice")
    return {
        "k": k,
        "weights": dict(options.weights),
        "limits": _limits_of(options.rules, kind),
        "rules": _settings_of(options.rules, limits),
        "exclude_ids": _ids("exclude_ids", options.exclude_ids, "exclude_ids_max", limits),
        "candidate_ids": candidates,
        "min_score": options.min_score if options.HasField("min_score") else None,
        "as_of": options.as_of_day if options.HasField("as_of_day") else today,
        "epoch": _epoch(options.epoch, "epoch") if choice == "epoch" else None,
        "min_epoch": _epoch(options.min_epoch, "min_epoch") if choice == "min_epoch" else None,
        "count": _known(_COUNTED, options.count, "options.count"),
        "contributions": options.contributions,
    }


def _epoch(number: int, name: str) -> int:
    if number < 0:
        raise InvalidArgument(
            f"options.{name} is {number}; expected the number of an epoch", field=f"options.{name}"
        )
    return number


def _ids(name: str, ids: Iterable[str], limit: str, limits: Limits) -> tuple[str, ...]:
    values, field = tuple(ids), f"options.{name}"
    within(field, len(values), limit, getattr(limits, limit), "ids")
    for value in values:
        id_of(value, field, limits)
    return values


def _known(table: Mapping[int, Any], value: int, field: str) -> Any:
    if value not in table:
        raise InvalidArgument(f"{field} is {value}; expected one of its enum's values", field=field)
    return table[value]


def kind_of(value: int, field: str, default: Kind | None = None) -> Kind:
    """The kind that an EntityKind names.

    Raises:
        InvalidArgument: none, and there is no default; or a number that is none.
    """
    if value == wire.ENTITY_KIND_UNSPECIFIED and default is not None:
        return default
    return cast(Kind, _known(KINDS, value, field))


def audience_of(value: int) -> Audience:
    """Who reads an explanation; it has to be said.

    Raises:
        InvalidArgument: it is not.
    """
    if value == wire.AUDIENCE_UNSPECIFIED:
        raise InvalidArgument(
            "audience has to be said: CLIENT, FREELANCER or OPERATOR", field="audience"
        )
    return cast(Audience, _known(AUDIENCES, value, "audience"))


# ── Extra rules ───────────────────────────────────────────────────────────────────────────────


def _limits_of(rules: wire.ExtraRules, kind: Kind) -> dict[str, Any]:
    """The further limits of whoever asks; what belongs to the other kind is refused."""
    own, other = ("job_limits", "freelancer_limits")[:: 1 if kind == "job" else -1]
    misplaced = [other] if rules.HasField(other) else []
    if kind == "freelancer":
        lists = ("skills_required", "languages_required")
        misplaced += [name for name in lists if len(getattr(rules, name))]
    if misplaced:
        raise InvalidArgument(
            f"options.rules.{misplaced[0]} does not apply where a {kind} asks",
            field=f"options.rules.{misplaced[0]}",
        )
    field = f"options.rules.{own}"
    limits = _fields(getattr(rules, own), field) if rules.HasField(own) else {}
    if rules.skills_required:
        limits["required_skills"] = list(rules.skills_required)
    if rules.languages_required:
        where = "options.rules.languages_required"
        limits["required_languages"] = [_item(one, where) for one in rules.languages_required]
    return limits


def _settings_of(rules: wire.ExtraRules, limits: Limits) -> dict[str, dict[str, Any]]:
    within("options.rules.settings", len(rules.settings), "rules_max", limits.rules_max, "entries")
    return {name: _setting_of(name, setting) for name, setting in rules.settings.items()}


def _setting_of(name: str, setting: wire.RuleSetting) -> dict[str, Any]:
    told: dict[str, Any] = {}
    for option in ("enabled", "tolerance_permille", "unstated_level", "verified_only"):
        if setting.HasField(option):
            told[option] = getattr(setting, option)
    if setting.accept:
        told["accept"] = list(setting.accept)
    if setting.on_unknown != wire.UNKNOWN_HANDLING_UNSPECIFIED:
        field = f"options.rules.settings.{name}.on_unknown"
        told["on_unknown"] = _known(_ON_UNKNOWN, setting.on_unknown, field)
    return told


# ── Records ───────────────────────────────────────────────────────────────────────────────────


def record_of(message: Message, where: str) -> dict[str, Any]:
    """A ``Job`` or ``Freelancer`` message as a record: set fields only, limits among them.

    Raises:
        InvalidArgument, UnknownKey: an enum's number that is none, or a wrong ``known_empty``.
    """
    kind: Kind = "job" if message.DESCRIPTOR.name == "Job" else "freelancer"
    record = _fields(message, where)
    record |= record.pop("limits", {})
    lists = [name for name, field in FIELDS[kind].items() if field.is_list and not field.limit]
    for name in record.pop("known_empty", ()):
        if name not in lists:
            raise unknown_key("list field", name, lists, f"{where}.known_empty")
        if record.setdefault(name, []):
            raise InvalidArgument(
                f"{where}.{name} holds values and stands in known_empty",
                field=f"{where}.known_empty",
            )
    return record


def _fields(message: Message, where: str) -> dict[str, Any]:
    return {
        field.name: _value(field, value, f"{where}.{field.name}")
        for field, value in message.ListFields()
    }


def _value(field: FieldDescriptor, value: Any, where: str) -> Any:
    if field.enum_type is not None:
        return _enum(field.enum_type, value, where)
    if field.message_type is None:
        return value if isinstance(value, str | int | float | bool) else list(value)
    if isinstance(value, Message):
        return _fields(value, where)
    return [_item(item, where) for item in value]


def _item(message: Message, where: str) -> dict[str, Any]:
    """One element of a list: every field, None where not set."""
    item = {
        field.name: getattr(message, field.name) if not field.has_presence else None
        for field in message.DESCRIPTOR.fields
        if field.enum_type is None
    }
    item |= {field.name: None for field in message.DESCRIPTOR.fields if field.enum_type is not None}
    return item | _fields(message, where)


def _enum(enum: EnumDescriptor, number: int, where: str) -> str | int:
    """The value's name without its prefix; language levels as numbers."""
    value = enum.values_by_number.get(number)
    if value is None:
        raise InvalidArgument(f"{where} is {number}; {enum.name} has no such value", field=where)
    if enum.name == _LEVEL:
        return number
    prefix = enum.values_by_number[0].name.removesuffix("UNSPECIFIED")
    return value.name.removeprefix(prefix)
