"""Policies: weights, facet parameters, rules, budgets and the input manifest.

A policy is a TOML file. Keys that are left out keep the shipped default's value; unknown ones are
refused. Once read it never changes, and its ``id`` is the SHA-256 of its canonical form, so that
two files that say the same have the same id.

``Policy.effective`` gives the policy that a request really runs under: with its overrides and the
version of the time zone database. Its id is the one that answers carry.
"""

from __future__ import annotations

import hashlib
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import msgspec

from matchwright.engine.eligibility import RULE, RULES, Option, Rule
from matchwright.engine.errors import InvalidArgument, NotFound, unknown_key
from matchwright.engine.generation.params import FacetParams
from matchwright.engine.limits import Limits, check_limits
from matchwright.engine.records import FIELDS
from matchwright.engine.results import canonical_json
from matchwright.engine.rule_shapes import Setting
from matchwright.engine.zones import tz_version
from matchwright.kernels.types import K_MAX

POLICY_FORMAT = 1
POLICY_BYTES_MAX = 1 << 20
"""Largest policy file, in bytes."""
NAME_CHARS_MAX = 128
WEIGHT_MAX = 1_000_000.0

FACET_FIELDS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "text": ("job.title", "job.text", "freelancer.title", "freelancer.text"),
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

_SECTIONS = ("format", "name", "weights", "facets", "rules", "budgets", "audience", "fields")
_ON_UNKNOWN = ("fail", "pass")


@dataclass(frozen=True, slots=True)
class Budgets:
    """Limits of one request.

    Attributes:
        resolution_levels_min: least levels of the query grid that a weighted facet may keep.
        k_max: most results of one answer.
        batch_max: most requests in one batch.
        candidates_max, exclude_max: most ids in one request's lists.
    """

    resolution_levels_min: int
    k_max: int
    batch_max: int
    candidates_max: int
    exclude_max: int


@dataclass(frozen=True, eq=False)
class Policy:
    """One policy. Equal policies have equal ids.

    Attributes:
        name: for people.
        weights: facet -> weight, every facet, in the order of the generation's blocks.
        facets: query-side parameters of facets.
        rules: rule name -> setting, every rule.
        budgets: limits of one request.
        count_floor: smaller counts are not shown to people who are not operators.
        used, forbidden: the input manifest, ``kind.field``.
        limits: further limits of the side that asks; empty except in effective policies.
        base: the id of the policy that an effective one was made from, else "".
        tz: version of the time zone database; "" except in effective policies.
    """

    name: str
    weights: Mapping[str, float]
    facets: FacetParams
    rules: Mapping[str, Setting]
    budgets: Budgets
    count_floor: int
    used: frozenset[str]
    forbidden: frozenset[str]
    limits: Limits = ()
    base: str = ""
    tz: str = ""

    @classmethod
    def load(cls, path: Path | str | None = None) -> Self:
        """Read a policy, or the shipped default when no path is given.

        Raises:
            NotFound: there is no such file.
            InvalidArgument: it is not TOML, or a value is wrong; the message says which.
            UnknownKey: a key that does not exist; the message names the nearest that does.
        """
        if path is None:
            return cls.parse(default_policy_text(), "default policy")
        file = Path(path)
        if not file.is_file():
            raise NotFound(f"there is no policy file {str(file)!r}", file=file)
        if file.stat().st_size > POLICY_BYTES_MAX:
            raise InvalidArgument(
                f"{file}: more than {POLICY_BYTES_MAX:,} bytes, which no policy needs", file=file
            )
        try:
            text = file.read_bytes().decode("utf-8")
        except UnicodeDecodeError as error:
            raise InvalidArgument(f"{file}: not UTF-8 at byte {error.start}", file=file) from None
        return cls.parse(text, str(file))

    @classmethod
    def parse(cls, text: str, where: str = "policy") -> Self:
        """A policy from TOML text; keys that are left out keep the shipped default's value.

        Args:
            where: what error messages call the text.
        """
        try:
            given = tomllib.loads(text)
        except (tomllib.TOMLDecodeError, RecursionError, ValueError) as error:
            raise InvalidArgument(f"{where}: not TOML: {error}") from None
        return cls.from_dict(given, where)

    @classmethod
    def from_dict(cls, given: Mapping[str, Any], where: str = "policy") -> Self:
        """A policy from nested dictionaries, as TOML gives them."""
        for key in given:
            if key not in _SECTIONS:
                raise unknown_key("key", key, _SECTIONS, where)
        document = _default_document()
        if given.get("format", POLICY_FORMAT) != POLICY_FORMAT or isinstance(
            given.get("format"), bool
        ):
            raise _wrong(where, "format", given["format"], str(POLICY_FORMAT))
        budgets = _section(given, document, "budgets", where)
        audience = _section(given, document, "audience", where)
        used, forbidden = _manifest(given, document, where)
        policy = cls(
            name=_name(given.get("name", document["name"]), where),
            weights=_weights(given, document, where),
            facets=_facets(given, document, where),
            rules=_rules(given, document, where),
            budgets=Budgets(
                **{name: _int(budgets[name], where, name, *span) for name, span in BUDGETS.items()}
            ),
            count_floor=_int(audience["count_floor"], where, "count_floor", 1, 1_000_000),
            used=used,
            forbidden=forbidden,
        )
        policy.check_manifest(where)
        return policy

    def check_manifest(self, where: str) -> None:
        """Refuse a manifest that forbids what it uses, or leaves out what is read.

        Raises:
            InvalidArgument: naming the field and who reads it.
        """
        both = sorted(self.used & self.forbidden)
        if both:
            raise InvalidArgument(
                f"{where}: fields.used and fields.forbidden both hold {both[0]!r}; "
                "leave it in one of them",
                field=both[0],
            )
        for reader, fields in self._readers():
            for name in fields:
                if name not in self.used:
                    state = "forbidden" if name in self.forbidden else "not listed in fields.used"
                    raise InvalidArgument(
                        f"{where}: {reader} reads {name!r}, which is {state}; list it under "
                        f"fields.used, or switch the {reader.split()[0]} off",
                        field=name,
                    )

    def _readers(self) -> list[tuple[str, tuple[str, ...]]]:
        facets = [
            (f"facet {name!r}", FACET_FIELDS[name])
            for name, weight in self.weights.items()
            if weight > 0
        ]
        rules = [(f"rule {r.name!r}", r.fields) for r in RULES if self.rules[r.name].enabled]
        return [*facets, *rules]

    def effective(
        self,
        weights: Mapping[str, float] | None = None,
        rules: Mapping[str, Mapping[str, Any]] | None = None,
        limits: Limits = (),
    ) -> Policy:
        """The policy that one request runs under.

        Args:
            weights: facet -> weight, in place of this policy's.
            rules: rule name -> keys of its section, in place of this policy's. A request may only
                narrow: switch a rule on, let unknown values fail, demand more. A policy may widen.
            limits: further limits of the side that asks (see ``limits.check_limits``).

        Raises:
            InvalidArgument: a value that is wrong, or a rule made wider.
            UnknownKey: a facet, rule or key that does not exist.
        """
        where = "request"
        merged = dict(self.weights)
        for name, value in (weights or {}).items():
            if name not in FACET_FIELDS:
                raise unknown_key("facet", str(name), FACET_FIELDS, "request.weights")
            merged[name] = _number(value, where, f"weights.{name}")
        changed = Policy(
            name=self.name,
            weights=_checked_weights(merged, where),
            facets=self.facets,
            rules=_narrowed(self.rules, rules or {}),
            budgets=self.budgets,
            count_floor=self.count_floor,
            used=self.used,
            forbidden=self.forbidden,
            limits=limits,
            base=self.base or self.id,
            tz=tz_version(),
        )
        if weights or rules:
            changed.check_manifest(where)
        return changed

    @cached_property
    def id(self) -> str:
        """SHA-256 of the canonical form, in hexadecimal."""
        return hashlib.sha256(self.canonical_bytes()).hexdigest()

    def canonical_bytes(self) -> bytes:
        """The canonical form: compact JSON, keys sorted, floats by ``float.hex``."""
        return canonical_json({"format": POLICY_FORMAT, **_without_floats(self.to_dict())})

    def to_dict(self) -> dict[str, Any]:
        """The policy as nested dictionaries, in the form of the TOML file.

        An effective policy has three keys more: ``base``, ``tz`` and ``limits``.
        """
        value: dict[str, Any] = {
            "name": self.name,
            "weights": dict(self.weights),
            "facets": msgspec.to_builtins(self.facets),
            "rules": {name: _setting_dict(setting) for name, setting in self.rules.items()},
            "budgets": {name: getattr(self.budgets, name) for name in BUDGETS},
            "audience": {"count_floor": self.count_floor},
            "fields": {"used": sorted(self.used), "forbidden": sorted(self.forbidden)},
        }
        if self.tz:
            limits = {name: _plain(limit) for name, limit in self.limits}
            value |= {"base": self.base, "tz": self.tz, "limits": limits}
        return value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Policy) and self.id == other.id

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        return f"<Policy {self.name!r} {self.id[:12]}>"


def default_policy_text() -> str:
    """The shipped default policy's TOML, comments and all."""
    return resources.files("matchwright.engine").joinpath("default_policy.toml").read_text("utf-8")


def check_policy(path: Path | str) -> Policy:
    """Read a policy and check everything that can be checked without data.

    Raises:
        MatchwrightError: as ``Policy.load``.
    """
    return Policy.load(path)


@cache
def _default_document() -> dict[str, Any]:
    return tomllib.loads(default_policy_text())


# ── Sections ──────────────────────────────────────────────────────────────────────────────────


def _wrong(where: str, field: str, got: object, expected: str) -> InvalidArgument:
    shown = repr(got)
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    return InvalidArgument(f"{where}: {field} is {shown}; expected {expected}", field=field)


def _section(
    given: Mapping[str, Any], document: Mapping[str, Any], name: str, where: str
) -> dict[str, Any]:
    """One table, with the default's values for keys that are left out."""
    table = given.get(name, {})
    if not isinstance(table, Mapping):
        raise _wrong(where, name, table, "a table")
    for key in table:
        if key not in document[name]:
            raise unknown_key("key", str(key), document[name], f"{where}, section {name}")
    return {**document[name], **table}


def _name(value: Any, where: str) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= NAME_CHARS_MAX:
        raise _wrong(where, "name", value, f"a string of 1 to {NAME_CHARS_MAX} characters")
    if not value.isprintable():
        raise _wrong(where, "name", value, "printable characters")
    return value


def _number(value: Any, where: str, field: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _wrong(where, field, value, "a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not 0 <= number <= WEIGHT_MAX:
        raise _wrong(where, field, value, f"a number in 0..{WEIGHT_MAX:,.0f}")
    return number + 0.0  # -0.0 becomes 0.0, which is the same weight and must have the same id


def _int(value: Any, where: str, field: str, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise _wrong(where, field, value, f"a whole number in {low:,}..{high:,}")
    return value


def _weights(
    given: Mapping[str, Any], document: Mapping[str, Any], where: str
) -> Mapping[str, float]:
    table = _section(given, document, "weights", where)
    numbers = {name: _number(table[name], where, f"weights.{name}") for name in FACET_FIELDS}
    return _checked_weights(numbers, where)


def _checked_weights(weights: Mapping[str, float], where: str) -> Mapping[str, float]:
    if not any(weights.values()):
        raise InvalidArgument(f"{where}: every weight is 0; give at least one facet some weight")
    return MappingProxyType(dict(weights))


def _facets(given: Mapping[str, Any], document: Mapping[str, Any], where: str) -> FacetParams:
    table = _section(given, document, "facets", where)
    try:
        return msgspec.convert(table, FacetParams)
    except msgspec.ValidationError as error:
        raise InvalidArgument(f"{where}, section facets: {error}", field="facets") from None


def _manifest(
    given: Mapping[str, Any], document: Mapping[str, Any], where: str
) -> tuple[frozenset[str], frozenset[str]]:
    table = _section(given, document, "fields", where)
    known = [f"{kind}.{name}" for kind, fields in FIELDS.items() for name in fields]
    lists = []
    for key in ("used", "forbidden"):
        names = table[key]
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise _wrong(where, f"fields.{key}", names, "a list of fields such as 'job.title'")
        for name in names:
            if name not in known:
                raise unknown_key("field", name, known, f"{where}, fields.{key}")
        lists.append(frozenset(names))
    return lists[0], lists[1]


def _rules(
    given: Mapping[str, Any], document: Mapping[str, Any], where: str
) -> Mapping[str, Setting]:
    tables = given.get("rules", {})
    if not isinstance(tables, Mapping):
        raise _wrong(where, "rules", tables, "a table")
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
        raise _wrong(where, place, table, "a table")
    known = ("enabled", "on_unknown", *rule.options)
    for key in table:
        if key not in known:
            raise unknown_key("key", str(key), known, f"{where}, section {place}")
    merged = {**default, **table}
    if not isinstance(merged["enabled"], bool):
        raise _wrong(where, f"{place}.enabled", merged["enabled"], "true or false")
    if merged["on_unknown"] not in _ON_UNKNOWN:
        raise _wrong(where, f"{place}.on_unknown", merged["on_unknown"], "'fail' or 'pass'")
    options = tuple(
        (name, _option(rule.options[name], merged[name], where, f"{place}.{name}"))
        for name in sorted(rule.options)
    )
    return Setting(merged["enabled"], merged["on_unknown"] == "pass", options)


def _option(option: Option, value: Any, where: str, field: str) -> Any:
    if option.kind == "bool":
        if not isinstance(value, bool):
            raise _wrong(where, field, value, "true or false")
        return value
    if option.kind == "int":
        return _int(value, where, field, option.low, option.high)
    if (
        not isinstance(value, list | tuple)
        or not value
        or not all(isinstance(name, str) and name in option.names for name in value)
    ):
        raise _wrong(where, field, value, f"a list of some of {', '.join(option.names)}")
    return tuple(sorted(set(value), key=option.names.index))


def _narrowed(
    settings: Mapping[str, Setting], overrides: Mapping[str, Mapping[str, Any]]
) -> Mapping[str, Setting]:
    """Settings with a request's changes, none of which may let more pairs pass."""
    if not isinstance(overrides, Mapping):
        raise _wrong("request", "rules", overrides, "a table of rules")
    merged = dict(settings)
    for name, table in overrides.items():
        if name not in RULE:
            raise unknown_key("rule", str(name), RULE, "request.rules")
        before = settings[name]
        after = _setting(RULE[name], _setting_dict(before), table, "request")
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


def _setting_dict(setting: Setting) -> dict[str, Any]:
    return {
        "enabled": setting.enabled,
        "on_unknown": "pass" if setting.unknown_passes else "fail",
        **{name: _plain(value) for name, value in setting.options},
    }


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _without_floats(value: Any) -> Any:
    if isinstance(value, float):
        return value.hex()
    if isinstance(value, Mapping):
        return {key: _without_floats(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_floats(item) for item in value]
    return value


__all__ = [
    "BUDGETS",
    "Budgets",
    "FACET_FIELDS",
    "POLICY_FORMAT",
    "Policy",
    "check_limits",
    "check_policy",
    "default_policy_text",
]
