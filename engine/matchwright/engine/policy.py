"""Policies: weights, facet parameters, rules, budgets and the input manifest.

A policy is a TOML file. Keys that are left out keep the shipped default's value; unknown ones are
refused. Once read it never changes, and its ``id`` is the SHA-256 of its canonical form, so that
two files that say the same have the same id.

``Policy.effective`` gives the policy that a request really runs under: with its overrides and the
version of the time zone database. Its id is the one that answers carry.
"""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property
from importlib import resources
from pathlib import Path
from typing import Any, Self

import msgspec

from matchwright.engine.eligibility import RULES
from matchwright.engine.errors import InvalidArgument, NotFound, unknown_key
from matchwright.engine.generation.params import FacetParams
from matchwright.engine.limits import Limits
from matchwright.engine.policy_exposure import Exposure, exposure_of
from matchwright.engine.policy_rerank import Rerank, rerank_of
from matchwright.engine.policy_sections import (
    BUDGETS,
    FACET_FIELDS,
    POLICY_BYTES_MAX,
    POLICY_FORMAT,
    SECTIONS,
    checked_weights,
    facets_of,
    int_of,
    manifest_of,
    name_of,
    narrowed_rules,
    number_of,
    plain,
    rules_of,
    section,
    setting_dict,
    weights_of,
    without_floats,
    wrong,
)
from matchwright.engine.results import canonical_json
from matchwright.engine.rule_shapes import Setting
from matchwright.engine.zones import tz_version


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
        exposure: what runs do about who is shown; None for nothing.
        rerank: the model that orders the best candidates; None for none.
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
    exposure: Exposure | None = None
    rerank: Rerank | None = None
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
            if key not in SECTIONS:
                raise unknown_key("key", key, SECTIONS, where)
        document = _default_document()
        if given.get("format", POLICY_FORMAT) != POLICY_FORMAT or isinstance(
            given.get("format"), bool
        ):
            raise wrong(where, "format", given["format"], str(POLICY_FORMAT))
        budgets = section(given, document, "budgets", where)
        audience = section(given, document, "audience", where)
        used, forbidden = manifest_of(given, document, where)
        policy = cls(
            name=name_of(given.get("name", document["name"]), where),
            weights=weights_of(given, document, where),
            facets=facets_of(given, document, where),
            rules=rules_of(given, document, where),
            budgets=Budgets(
                **{
                    name: int_of(budgets[name], where, name, *span)
                    for name, span in BUDGETS.items()
                }
            ),
            count_floor=int_of(audience["count_floor"], where, "count_floor", 1, 1_000_000),
            used=used,
            forbidden=forbidden,
            exposure=exposure_of(given, document, where),
            rerank=rerank_of(given, where),
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
        exposure = [] if self.exposure is None else self.exposure.readers()
        return [*facets, *rules, *exposure]

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
            merged[name] = number_of(value, where, f"weights.{name}")
        changed = Policy(
            name=self.name,
            weights=checked_weights(merged, where),
            facets=self.facets,
            rules=narrowed_rules(self.rules, rules or {}),
            budgets=self.budgets,
            count_floor=self.count_floor,
            used=self.used,
            forbidden=self.forbidden,
            exposure=self.exposure,
            rerank=self.rerank,
            limits=limits,
            base=self.base or self.id,
            tz=tz_version(),
        )
        if weights or rules:
            changed.check_manifest(where)
        return changed

    def without_rerank(self) -> Policy:
        """The same policy without its second phase, which is another policy with another id."""
        return self if self.rerank is None else replace(self, rerank=None)

    @cached_property
    def id(self) -> str:
        """SHA-256 of the canonical form, in hexadecimal."""
        return hashlib.sha256(self.canonical_bytes()).hexdigest()

    def canonical_bytes(self) -> bytes:
        """The canonical form: compact JSON, keys sorted, floats by ``float.hex``."""
        return canonical_json({"format": POLICY_FORMAT, **without_floats(self.to_dict())})

    def to_dict(self) -> dict[str, Any]:
        """The policy as nested dictionaries, in the form of the TOML file.

        An effective policy has three keys more: ``base``, ``tz`` and ``limits``.
        """
        value: dict[str, Any] = {
            "name": self.name,
            "weights": dict(self.weights),
            "facets": msgspec.to_builtins(self.facets),
            "rules": {name: setting_dict(setting) for name, setting in self.rules.items()},
            "budgets": {name: getattr(self.budgets, name) for name in BUDGETS},
            "audience": {"count_floor": self.count_floor},
            "fields": {"used": sorted(self.used), "forbidden": sorted(self.forbidden)},
        }
        if self.exposure is not None:  # left out when off: ids from before it stay
            value["exposure"] = self.exposure.to_dict()
        if self.rerank is not None:
            value["rerank"] = self.rerank.to_dict()
        if self.tz:
            limits = {name: plain(limit) for name, limit in self.limits}
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


__all__ = [
    "BUDGETS",
    "Budgets",
    "FACET_FIELDS",
    "POLICY_FORMAT",
    "Policy",
    "check_policy",
    "default_policy_text",
]
