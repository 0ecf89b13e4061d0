"""The sections of a policy file: checked, and turned into what the engine works with."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import msgspec

from matchwright.engine.eligibility import RULE, Option, Rule
from matchwright.engine.errors import InvalidArgument, unknown_key
from matchwright.engine.generation.params import FacetParams
from matchwright.engine.records import FIELDS
from matchwright.engine.rule_shapes import Setting
from matchwright.kernels.types import K_MAX

POLICY_FORMAT = 1
POLICY_BYTES_MAX = 1 << 20
"""Largest policy file, in bytes."""
NAME_CHARS_MAX = 128
WEIGHT_MAX = 1_000_000.0
"""Largest weight, as generations take it."""

FACET_FIELDS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "text": (
            "job.title", "job.text", "job.skills",
            "freelancer.title", "freelancer.text", "freelancer.skills",
        ),
        "skills": ("job.skills", "freelancer.skills"),
        "rate": ("job.rate_max_cents", "freelancer.rate_cents"),
        "experience": ("job.experience_level", "freelancer.experience_level"),
        "hours": (
            "job.zone", "job.hours_start", "job.hours_end",
            "freelancer.zone", "freelancer.hours_start", "freelancer.hours_end",
        ),
        "category": ("job.category", "freelancer.categories"),
        "track": (
            "job.client_reviews", "job.client_rating_milli",
            "freelancer.reviews", "freelancer.rating_milli", "freelancer.success_permille",
        ),
        "availability": ("job.weekly_hours", "freelancer.weekly_hours"),
        "recency": ("job.posted", "freelancer.last_active"),
    }
)  # fmt: skip
"""Facet -> the record fields that it reads, in the order of the generation's blocks."""

BUDGETS: Mapping[str, tuple[int, int]] = MappingProxyType(
    {
        "resolution_levels_min": (1, 16_255),
        "k_max": (1, K_MAX),
        "batch_max": (1, 100_000),
        "candidates_max": (1, 10_000_000),
        "exclude_max": (1, 10_000_000),
    }
)
"""Budget -> its range."""

SECTIONS = (
    "format", "name", "weights", "facets", "rules", "budgets", "audience", "exposure", "rerank",
    "fields",
)  # fmt: skip
_ON_UNKNOWN = ("fail", "pass")


def shown(value: object) -> str:
    """A value in ASCII for an error message, cut to 80 characters."""
    try:
        text = ascii(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits, a bottomless list
        text = f"a huge {type(value).__name__}"
    return text if len(text) <= 80 else text[:77] + "..."


def wrong(where: str, field: str, got: object, expected: str) -> InvalidArgument:
    """The error of a value that a field cannot hold."""
    return InvalidArgument(f"{where}: {field} is {shown(got)}; expected {expected}", field=field)


def section(
    given: Mapping[str, Any], document: Mapping[str, Any], name: str, where: str
) -> dict[str, Any]:
    """One table, with the default's values for keys that are left out."""
    table = given.get(name, {})
    if not isinstance(table, Mapping):
        raise wrong(where, name, table, "a table")
    for key in table:
        if key not in document[name]:
            raise unknown_key("key", str(key), document[name], f"{where}, section {name}")
    return {**document[name], **table}


def name_of(value: Any, where: str) -> str:
    """A policy's name: printable, 1 to 128 characters."""
    if not isinstance(value, str) or not 1 <= len(value) <= NAME_CHARS_MAX:
        raise wrong(where, "name", value, f"a string of 1 to {NAME_CHARS_MAX} characters")
    if not value.isprintable():
        raise wrong(where, "name", value, "printable characters")
    return value


def number_of(value: Any, where: str, field: str) -> float:
    """A number in 0..1,000,000, as float."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise wrong(where, field, value, "a number")
    try:
        number = float(value)
    except OverflowError:
        number = -1.0
    if not 0 <= number <= WEIGHT_MAX:
        raise wrong(where, field, value, f"a number in 0..{WEIGHT_MAX:,.0f}")
    return number + 0.0  # -0.0 becomes 0.0, which is the same weight and must have the same id


def int_of(value: Any, where: str, field: str, low: int, high: int) -> int:
    """A whole number in low..high."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise wrong(where, field, value, f"a whole number in {low:,}..{high:,}")
    return value


def weights_of(
    given: Mapping[str, Any], document: Mapping[str, Any], where: str
) -> Mapping[str, float]:
    """The section ``weights``: every facet, in the order of the generation's blocks."""
    table = section(given, document, "weights", where)
    numbers = {name: number_of(table[name], where, f"weights.{name}") for name in FACET_FIELDS}
    return checked_weights(numbers, where)


def checked_weights(weights: Mapping[str, float], where: str) -> Mapping[str, float]:
    """The weights, of which at least one must not be 0."""
    if not any(weights.values()):
        raise InvalidArgument(f"{where}: every weight is 0; give at least one facet some weight")
    return MappingProxyType(dict(weights))


def facets_of(given: Mapping[str, Any], document: Mapping[str, Any], where: str) -> FacetParams:
    """The section ``facets``."""
    table = section(given, document, "facets", where)
    try:
        return msgspec.convert(table, FacetParams)
    except msgspec.ValidationError as error:
        raise InvalidArgument(f"{where}, section facets: {error}", field="facets") from None


def manifest_of(
    given: Mapping[str, Any], document: Mapping[str, Any], where: str
) -> tuple[frozenset[str], frozenset[str]]:
    """(used, forbidden): the section ``fields``, whose names must be those of record fields."""
    table = section(given, document, "fields", where)
    known = [f"{kind}.{name}" for kind, fields in FIELDS.items() for name in fields]
    lists = []
    for key in ("used", "forbidden"):
        names = table[key]
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise wrong(where, f"fields.{key}", names, "a list of fields such as 'job.title'")
        for name in names:
            if name not in known:
                raise unknown_key("field", name, known, f"{where}, fields.{key}")
        lists.append(frozenset(names))
    return lists[0], lists[1]


def rules_of(
    given: Mapping[str, Any], document: Mapping[str, Any], where: str
) -> Mapping[str, Setting]:
    """The section ``rules``: every rule, in the table's order."""
    tables = given.get("rules", {})
    if not isinstance(tables, Mapping):
        raise wrong(where, "rules", tables, "a table")
    for name in tables:
        if name not in RULE:
            raise unknown_key("rule", str(name), RULE, f"{where}, section rules")
    settings = {}
    for name, rule in RULE.items():
        settings[name] = _setting(rule, document["rules"][name], tables.get(name, {}), where)
    return MappingProxyType(settings)


def _setting(rule: Rule, default: Mapping[str, Any], table: Any, where: str) -> Setting:
    place = f"rules.{rule.name}"
    if not isinstance(table, Mapping):
        raise wrong(where, place, table, "a table")
    known = ("enabled", "on_unknown", *rule.options)
    for key in table:
        if key not in known:
            raise unknown_key("key", str(key), known, f"{where}, section {place}")
    merged = {**default, **table}
    if not isinstance(merged["enabled"], bool):
        raise wrong(where, f"{place}.enabled", merged["enabled"], "true or false")
    if merged["on_unknown"] not in _ON_UNKNOWN:
        raise wrong(where, f"{place}.on_unknown", merged["on_unknown"], "'fail' or 'pass'")
    options = tuple(
        (name, _option(rule.options[name], merged[name], where, f"{place}.{name}"))
        for name in sorted(rule.options)
    )
    return Setting(merged["enabled"], merged["on_unknown"] == "pass", options)


def _option(option: Option, value: Any, where: str, field: str) -> Any:
    if option.kind == "bool":
        if not isinstance(value, bool):
            raise wrong(where, field, value, "true or false")
        return value
    if option.kind == "int":
        return int_of(value, where, field, option.low, option.high)
    if (
        not isinstance(value, list | tuple)
        or not value
        or not all(isinstance(name, str) and name in option.names for name in value)
    ):
        raise wrong(where, field, value, f"a list of some of {', '.join(option.names)}")
    return tuple(sorted(set(value), key=option.names.index))


def narrowed_rules(
    settings: Mapping[str, Setting], overrides: Mapping[str, Mapping[str, Any]]
) -> Mapping[str, Setting]:
    """Settings with a request's changes, none of which may let more pairs pass."""
    if not isinstance(overrides, Mapping):
        raise wrong("request", "rules", overrides, "a table of rules")
    merged = dict(settings)
    for name, table in overrides.items():
        if name not in RULE:
            raise unknown_key("rule", str(name), RULE, "request.rules")
        before = settings[name]
        after = _setting(RULE[name], setting_dict(before), table, "request")
        if not _is_narrower(before, after):
            raise InvalidArgument(
                f"request.rules.{name} would let more pairs pass; a request may only narrow a "
                "rule, use another policy to widen it",
                field=f"rules.{name}",
            )
        merged[name] = after
    return MappingProxyType(merged)


def _is_narrower(before: Setting, after: Setting) -> bool:
    if not before.enabled:
        return True
    if not after.enabled or (after.unknown_passes and not before.unknown_passes):
        return False
    return all(
        _option_is_narrower(was, now)
        for (_, was), (_, now) in zip(before.options, after.options, strict=True)
    )


def _option_is_narrower(was: Any, now: Any) -> bool:
    """Switches narrow when set, numbers when lowered, lists when shortened."""
    if isinstance(was, bool):
        return bool(now) >= was
    if isinstance(was, int):
        return bool(now <= was)
    return set(now) <= set(was)


def setting_dict(setting: Setting) -> dict[str, Any]:
    """A setting in the form of the TOML file."""
    return {
        "enabled": setting.enabled,
        "on_unknown": "pass" if setting.unknown_passes else "fail",
        **{name: plain(value) for name, value in setting.options},
    }


def plain(value: Any) -> Any:
    """Tuples as lists, however deep."""
    return [plain(item) for item in value] if isinstance(value, tuple) else value


def without_floats(value: Any) -> Any:
    """Floats by ``float.hex``, tuples as lists, however deep."""
    if isinstance(value, float):
        return value.hex()
    if isinstance(value, Mapping):
        return {key: without_floats(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_floats(item) for item in value]
    return value
