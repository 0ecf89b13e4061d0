"""From what a caller passes to messages. What cannot be a message is refused before it is sent."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypeAlias, TypedDict

from google.protobuf.message import Message

from matchwright.clients._errors import wrong
from matchwright.v1 import match_service_pb2 as wire
from matchwright.v1 import records_pb2

Audience = Literal["client", "freelancer", "operator"]
JobQuery: TypeAlias = "str | Mapping[str, Any] | records_pb2.Job"
"""A stored job's id, or a job: a mapping of the record's fields (docs/records.md) or a message."""
FreelancerQuery: TypeAlias = "str | Mapping[str, Any] | records_pb2.Freelancer"
"""A stored freelancer's id, or a freelancer, as above."""


class FindOptions(TypedDict, total=False):
    """How to search; what is left out has its default.

    Keys:
        k: how many matches, 1 to 1,000; 10 by default.
        epoch, min_epoch: answer from exactly this epoch, or from this one or a later one.
        policy: id of the policy that has to be in force.
        weights: facet -> weight in place of the policy's.
        limits: further limits of whoever asks: limit fields of its record, and for jobs
            ``required_skills`` (names) and ``required_languages`` (tables of code and level).
        rules: rule -> stricter settings: ``enabled``, ``on_unknown`` ("fail"), and its options.
        exclude_ids: never these.
        candidate_ids: only these; None for everybody.
        min_score: leave out what scores below.
        as_of: the day to decide for, in days since 1970-01-01 UTC; the server's today by default.
        count: False to not count the eligible.
        contributions: True for the points of each facet.
    """

    k: int
    epoch: int | None
    min_epoch: int | None
    policy: str
    weights: Mapping[str, float]
    limits: Mapping[str, Any]
    rules: Mapping[str, Mapping[str, Any]]
    exclude_ids: Iterable[str]
    candidate_ids: Iterable[str] | None
    min_score: float | None
    as_of: int | None
    count: bool
    contributions: bool


_REQUIRED = {"required_skills": "skills_required", "required_languages": "languages_required"}
_LANGUAGE_LEVEL = "LanguageLevel"
_LIMITS = "limits"
_KNOWN_EMPTY = "known_empty"


def options_of(kind: str, options: Mapping[str, Any]) -> wire.FindOptions:
    """The message of options.

    Args:
        kind: of whoever asks: ``limits`` are theirs.

    Raises:
        InvalidRequest: naming the option.
    """
    for name in options:
        if name not in FindOptions.__annotations__:
            raise _unknown("option", name, FindOptions.__annotations__)
    message = wire.FindOptions()
    with _Fitting("options"):
        for name in ("k", "epoch", "min_epoch", "policy", "min_score", "contributions"):
            if options.get(name) is not None:
                setattr(message, name, options[name])
        if options.get("as_of") is not None:
            message.as_of_day = options["as_of"]
        message.weights.update(options.get("weights") or {})
        message.exclude_ids.extend(options.get("exclude_ids") or ())
        if options.get("candidate_ids") is not None:
            message.candidates.SetInParent()
            message.candidates.ids.extend(options["candidate_ids"])
        if options.get("count") is not None:
            exact, none = wire.COUNT_MODE_EXACT, wire.COUNT_MODE_NONE
            message.count = exact if options["count"] else none
        _set_limits(message, kind, options.get("limits") or {})
        for name, setting in (options.get("rules") or {}).items():
            _set_rule(message.rules.settings[name], setting)
    return message


def _set_limits(message: wire.FindOptions, kind: str, limits: Mapping[str, Any]) -> None:
    own = {name: value for name, value in limits.items() if name not in _REQUIRED}
    if own:
        target = getattr(message.rules, f"{kind}_limits")
        target.SetInParent()
        _fill(target, own, "limits")
    for name, field in _REQUIRED.items():
        if limits.get(name):
            descriptor = message.rules.DESCRIPTOR.fields_by_name[field]
            _set(message.rules, descriptor, limits[name], f"limits.{name}")


def _set_rule(message: wire.RuleSetting, setting: Mapping[str, Any]) -> None:
    told = dict(setting)
    if "on_unknown" in told:
        told["on_unknown"] = str(told["on_unknown"]).upper()
    _fill(message, told, "rules")


def put_query(message: Any, kind: str, query: Any, prefix: str = "") -> None:
    """Set whoever asks: an id, a mapping or a message, in the fields ``kind`` and ``kind_id``.

    Raises:
        InvalidRequest: what cannot be one.
    """
    with _Fitting(kind):
        if isinstance(query, str):
            setattr(message, f"{kind}_id", query)
        elif isinstance(query, Message):
            getattr(message, kind).CopyFrom(query)
        elif isinstance(query, Mapping):
            record = getattr(message, kind)
            record.SetInParent()
            _fill(record, query, kind)
        else:
            got = type(query).__name__
            raise wrong(f"{kind} is of type {got}; expected an id, a mapping or a message", kind)


def pairs_of(pairs: Iterable[tuple[str, str]]) -> list[wire.Pair]:
    """Messages of (job id, freelancer id) pairs."""
    with _Fitting("pairs"):
        return [wire.Pair(job_id=job, freelancer_id=freelancer) for job, freelancer in pairs]


# ── Records ───────────────────────────────────────────────────────────────────────────────────


def _fill(message: Any, record: Mapping[str, Any], where: str) -> None:
    """Set fields by name; limits may stand among a record's own fields, as in its schema."""
    own = message.DESCRIPTOR.fields_by_name
    limits = own[_LIMITS].message_type.fields_by_name if _LIMITS in own else {}
    for name, value in record.items():
        if value is None:
            continue
        if name in own and name not in (_LIMITS, _KNOWN_EMPTY):
            if own[name].is_repeated and not value and _KNOWN_EMPTY in own:
                message.known_empty.append(name)
            _set(message, own[name], value, f"{where}.{name}")
        elif name in limits:
            _set(message.limits, limits[name], value, f"{where}.{name}")
        else:
            known = [*own, *limits]
            raise _unknown("field", name, [n for n in known if n not in (_LIMITS, _KNOWN_EMPTY)])


def _set(message: Any, field: Any, value: Any, where: str) -> None:
    with _Fitting(where):
        if field.message_type is not None:
            _set_items(getattr(message, field.name), value, where)
        elif field.is_repeated:
            if isinstance(value, str | Mapping) or not isinstance(value, Iterable):
                raise wrong(f"{where} is {_shown(value)}; expected a list", where)
            getattr(message, field.name).extend(value)
        elif field.enum_type is not None:
            setattr(message, field.name, _enum(field, value, where))
        else:
            setattr(message, field.name, value)


def _set_items(target: Any, items: Any, where: str) -> None:
    if isinstance(items, str | Mapping) or not isinstance(items, Iterable):
        raise wrong(f"{where} is {_shown(items)}; expected a list of tables", where)
    for item in items:
        if not isinstance(item, Mapping):
            raise wrong(f"{where} holds {_shown(item)}; expected a table", where)
        _fill(target.add(), item, where)


def _enum(field: Any, value: Any, where: str) -> int:
    enum = field.enum_type
    if enum.name == _LANGUAGE_LEVEL and isinstance(value, int) and not isinstance(value, bool):
        return value
    prefix = enum.values_by_number[0].name.removesuffix("UNSPECIFIED")
    known = enum.values_by_name.get(f"{prefix}{value}")
    if known is None or not known.number:
        names = [name.removeprefix(prefix) for name in enum.values_by_name][1:]
        raise wrong(f"{where} is {_shown(value)}; expected one of {', '.join(names)}", where)
    return int(known.number)


class _Fitting:
    """Turns what protobuf says of a value that does not fit into an ``InvalidRequest``."""

    def __init__(self, where: str) -> None:
        self._where = where

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, TypeError | ValueError | AttributeError):
            raise wrong(f"{self._where}: {error}", self._where) from None


def _unknown(what: str, name: object, known: Sequence[str] | Mapping[str, Any]) -> Exception:
    near = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(known))}"
    return wrong(f"unknown {what} {_shown(name)}; {hint}", str(name)[:80], "UNKNOWN_KEY")


def _shown(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= 80 else text[:77] + "..."
