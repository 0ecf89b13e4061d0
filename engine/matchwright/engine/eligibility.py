"""The rules of eligibility: one table, both directions.

Every row of ``RULES`` names a rule, its typed veto, whose demand it is, the record fields that it
reads, what happens on unknown values unless the policy says otherwise, and its form
(``rule_shapes``), which holds the predicates for both directions side by side. A pair of a job and
a freelancer is eligible when no enabled rule vetoes it, whichever of the two asks.

docs/eligibility.md describes each rule in words.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from matchwright.engine.columns import FREELANCER_STATES, JOB_STATES
from matchwright.engine.records import Kind
from matchwright.engine.rule_shapes import (
    ASKS,
    Ceiling,
    Day,
    ExcludesKey,
    Floor,
    HoldsAll,
    HoldsNone,
    Languages,
    NotMoreThan,
    NotOver,
    Overlap,
    Places,
    QueryRow,
    SameValue,
    Setting,
    Shape,
    State,
    Verdict,
)
from matchwright.kernels.types import KeyIn, Predicate, Rules

KEY = "key"
"""Stands for the key of the entity that asks, among the columns that a rule reads of it."""


class VetoClass(enum.StrEnum):
    """What kind of reason a veto is."""

    STATUS = "STATUS"
    """One side does not take part at present."""
    REQUIREMENT = "REQUIREMENT"
    """Something that the job asks for openly is not there."""
    PRIVATE_LIMIT = "PRIVATE_LIMIT"
    """A limit that one side has set for itself and does not publish."""
    EXCLUSION = "EXCLUSION"
    """One side has excluded the other by name."""
    REQUEST = "REQUEST"
    """The request itself narrowed the search."""


class Veto(enum.StrEnum):
    """Every reason why a pair is not eligible; names never change once published."""

    JOB_NOT_OPEN = "JOB_NOT_OPEN"
    JOB_OVER = "JOB_OVER"
    FREELANCER_NOT_AVAILABLE = "FREELANCER_NOT_AVAILABLE"
    SKILL_MISSING = "SKILL_MISSING"
    EXCLUDED_BY_CLIENT = "EXCLUDED_BY_CLIENT"
    EXCLUDED_BY_FREELANCER = "EXCLUDED_BY_FREELANCER"
    RATE_ABOVE_CEILING = "RATE_ABOVE_CEILING"
    RATE_ABOVE_BUDGET = "RATE_ABOVE_BUDGET"
    RATE_BELOW_FLOOR = "RATE_BELOW_FLOOR"
    PAY_BELOW_MINIMUM = "PAY_BELOW_MINIMUM"
    FIXED_PRICE_BELOW_MINIMUM = "FIXED_PRICE_BELOW_MINIMUM"
    HOURS_BELOW_MINIMUM = "HOURS_BELOW_MINIMUM"
    HOURS_ABOVE_AVAILABLE = "HOURS_ABOVE_AVAILABLE"
    LANGUAGE_MISSING = "LANGUAGE_MISSING"
    COUNTRY_NOT_ALLOWED = "COUNTRY_NOT_ALLOWED"
    COUNTRY_DENIED = "COUNTRY_DENIED"
    CLIENT_COUNTRY_DENIED = "CLIENT_COUNTRY_DENIED"
    OVERLAP_TOO_SHORT = "OVERLAP_TOO_SHORT"
    CATEGORY_DECLINED = "CATEGORY_DECLINED"
    CATEGORY_DIFFERS = "CATEGORY_DIFFERS"
    EXPERIENCE_BELOW_MINIMUM = "EXPERIENCE_BELOW_MINIMUM"
    RATING_BELOW_MINIMUM = "RATING_BELOW_MINIMUM"
    SUCCESS_BELOW_MINIMUM = "SUCCESS_BELOW_MINIMUM"
    TOO_FEW_REVIEWS = "TOO_FEW_REVIEWS"
    CERTIFICATION_MISSING = "CERTIFICATION_MISSING"
    EXCLUDED_BY_REQUEST = "EXCLUDED_BY_REQUEST"
    NOT_A_CANDIDATE = "NOT_A_CANDIDATE"


@dataclass(frozen=True, slots=True)
class Option:
    """An option of one rule, as a policy may set it.

    Attributes:
        kind: "bool", "int" (low..high) or "names" (some of ``names``, at least one).
    """

    kind: str
    low: int = 0
    high: int = 0
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule of the domain.

    Attributes:
        name: as policies and requests spell it.
        veto: the reason when it fails.
        veto_class: the kind of reason.
        private_to: the kind whose private limit or choice it is: the other side is told neither
            the reason nor the values. None where both sides may know.
        fields: the record fields that decide, as ``kind.field``: the demand first.
        shape: its predicates, both directions.
        personal: a personal or legal limit: unknown fails unless the policy says otherwise.
        options: what else a policy may set.
    """

    name: str
    veto: Veto
    veto_class: VetoClass
    private_to: Kind | None
    fields: tuple[str, ...]
    shape: Shape
    personal: bool = False
    options: Mapping[str, Option] = field(default_factory=lambda: MappingProxyType({}))

    def columns(self, kind: Kind) -> tuple[str, ...]:
        """The rule columns of a kind that it needs, whichever side asks."""
        return self.shape.columns(kind)

    def reads(self, kind: Kind) -> tuple[str, ...]:
        """What decides what it asks for an entity of a kind: columns of that entity, or ``KEY``."""
        if isinstance(self.shape, ExcludesKey) and kind != self.shape.owner:
            return (KEY,)
        return tuple(name for name in self.columns(kind) if not name.startswith(ASKS))


_STATUS, _REQUIREMENT = VetoClass.STATUS, VetoClass.REQUIREMENT
_PRIVATE, _EXCLUSION = VetoClass.PRIVATE_LIMIT, VetoClass.EXCLUSION
_PAY = ("job.rate_max_cents", "job.rate_min_cents", "job.fixed_cents")

RULES: tuple[Rule, ...] = (
    Rule(
        "job_status", Veto.JOB_NOT_OPEN, _STATUS, None, ("job.status",),
        State("job", "status", JOB_STATES),
        options={"accept": Option("names", names=JOB_STATES)},
    ),
    Rule(
        "job_closing", Veto.JOB_OVER, _STATUS, None, ("job.closes",),
        NotOver("job", "closes"),
    ),
    Rule(
        "freelancer_status", Veto.FREELANCER_NOT_AVAILABLE, _STATUS, "freelancer",
        ("freelancer.status",), State("freelancer", "status", FREELANCER_STATES),
        options={"accept": Option("names", names=FREELANCER_STATES)},
    ),
    Rule(
        "required_skills", Veto.SKILL_MISSING, _REQUIREMENT, None,
        ("job.skills", "freelancer.skills"), HoldsAll("job", "must_skills", "skills"),
    ),
    Rule(
        "excluded_freelancers", Veto.EXCLUDED_BY_CLIENT, _EXCLUSION, "job",
        ("job.excluded_freelancers", "freelancer.id"),
        ExcludesKey("job", "excluded_freelancers"), personal=True,
    ),
    Rule(
        "excluded_clients", Veto.EXCLUDED_BY_FREELANCER, _EXCLUSION, "freelancer",
        ("freelancer.excluded_clients", "job.client_id"),
        HoldsNone("freelancer", "excluded_clients", "client"), personal=True,
    ),
    Rule(
        "rate_ceiling", Veto.RATE_ABOVE_CEILING, _PRIVATE, "job",
        ("job.max_rate_cents", "freelancer.rate_cents"),
        Ceiling("job", "rate_ceiling", "rate"), personal=True,
    ),
    Rule(
        "rate_budget", Veto.RATE_ABOVE_BUDGET, _REQUIREMENT, None,
        ("job.rate_max_cents", "freelancer.rate_cents"),
        Ceiling("job", "budget_top", "rate", tolerance="tolerance_permille"), personal=True,
        options={"tolerance_permille": Option("int", 0, 1_000)},
    ),
    Rule(
        "rate_floor", Veto.RATE_BELOW_FLOOR, _PRIVATE, "job",
        ("job.min_rate_cents", "freelancer.rate_cents"),
        Floor("job", "rate_floor", "rate"), personal=True,
    ),
    Rule(
        "pay_minimum", Veto.PAY_BELOW_MINIMUM, _PRIVATE, "freelancer",
        ("freelancer.min_rate_cents", *_PAY),
        Floor("freelancer", "pay_floor", "pay_top"), personal=True,
    ),
    Rule(
        "fixed_price_minimum", Veto.FIXED_PRICE_BELOW_MINIMUM, _PRIVATE, "freelancer",
        ("freelancer.min_fixed_cents", "job.fixed_cents", *_PAY[:2]),
        Floor("freelancer", "fixed_floor", "fixed_price"), personal=True,
    ),
    Rule(
        "hours_minimum", Veto.HOURS_BELOW_MINIMUM, _PRIVATE, "freelancer",
        ("freelancer.min_weekly_hours", "job.weekly_hours"),
        Floor("freelancer", "hours_floor", "weekly_hours"),
    ),
    Rule(
        "hours_available", Veto.HOURS_ABOVE_AVAILABLE, _REQUIREMENT, None,
        ("job.weekly_hours", "freelancer.weekly_hours"),
        NotMoreThan("job", "weekly_hours", "weekly_hours"),
    ),
    Rule(
        "languages", Veto.LANGUAGE_MISSING, _REQUIREMENT, None,
        ("job.languages", "freelancer.languages"),
        Languages("job", "languages_required", "languages"), personal=True,
        options={"unstated_level": Option("int", 0, 6)},
    ),
    Rule(
        "countries_allowed", Veto.COUNTRY_NOT_ALLOWED, _PRIVATE, "job",
        ("job.countries_allowed", "freelancer.country"),
        Places("job", "countries_allowed", "country"), personal=True,
    ),
    Rule(
        "countries_denied", Veto.COUNTRY_DENIED, _PRIVATE, "job",
        ("job.countries_denied", "freelancer.country"),
        Places("job", "countries_denied", "country", negate=True), personal=True,
    ),
    Rule(
        "client_countries_denied", Veto.CLIENT_COUNTRY_DENIED, _PRIVATE, "freelancer",
        ("freelancer.countries_denied", "job.country"),
        Places("freelancer", "countries_denied", "country", negate=True), personal=True,
    ),
    Rule(
        "hours_overlap", Veto.OVERLAP_TOO_SHORT, _REQUIREMENT, None,
        ("job.min_overlap_minutes", "job.hours_start", "job.hours_end", "job.zone",
         "freelancer.hours_start", "freelancer.hours_end", "freelancer.zone"),
        Overlap("job"),
    ),
    Rule(
        "declined_categories", Veto.CATEGORY_DECLINED, _PRIVATE, "freelancer",
        ("freelancer.declined_categories", "job.category"),
        HoldsNone("freelancer", "declined_categories", "category"),
    ),
    Rule(
        "same_category", Veto.CATEGORY_DIFFERS, _REQUIREMENT, None,
        ("job.category", "freelancer.categories"), SameValue("job", "category", "categories"),
    ),
    Rule(
        "experience_minimum", Veto.EXPERIENCE_BELOW_MINIMUM, _REQUIREMENT, None,
        ("job.min_experience", "freelancer.experience_level"),
        Floor("job", "experience_floor", "experience"),
    ),
    Rule(
        "rating_minimum", Veto.RATING_BELOW_MINIMUM, _PRIVATE, "job",
        ("job.min_rating_milli", "freelancer.rating_milli"),
        Floor("job", "rating_floor", "rating"),
    ),
    Rule(
        "success_minimum", Veto.SUCCESS_BELOW_MINIMUM, _PRIVATE, "job",
        ("job.min_success_permille", "freelancer.success_permille"),
        Floor("job", "success_floor", "success"),
    ),
    Rule(
        "reviews_minimum", Veto.TOO_FEW_REVIEWS, _PRIVATE, "job",
        ("job.min_reviews", "freelancer.reviews"), Floor("job", "reviews_floor", "reviews"),
    ),
    Rule(
        "certifications", Veto.CERTIFICATION_MISSING, _REQUIREMENT, None,
        ("job.certifications_required", "freelancer.certifications"),
        HoldsAll("job", "certifications_required", "certifications_verified",
                 choice="verified_only", held_else="certifications"),
        options={"verified_only": Option("bool")},
    ),
)  # fmt: skip
"""Every rule, in the order in which vetoes are reported."""

RULE: Mapping[str, Rule] = MappingProxyType({rule.name: rule for rule in RULES})
"""Rules by name."""

RULE_OF_VETO: Mapping[str, Rule] = MappingProxyType({str(rule.veto): rule for rule in RULES})


@dataclass(frozen=True, slots=True)
class Compiled:
    """The rules for one entity that asks.

    Attributes:
        predicates: over the corpus side's columns. A rule that the entity fails against every row
            is here as a predicate that no row passes.
        never: vetoes of those rules.
        unsure: vetoes of rules that every row passes unverified, because the entity that asks does
            not tell its own value.
    """

    predicates: Rules
    never: tuple[str, ...] = ()
    unsure: tuple[str, ...] = ()


def compile_rules(query: QueryRow, settings: Mapping[str, Setting], day: Day) -> Compiled:
    """The enabled rules for one query, as predicates over the other kind's columns.

    Args:
        query: the rule columns of the entity that asks.
        settings: rule name -> setting; rules that are not there are not asked.
        day: the day asked for.
    """
    return compile_enabled(query, tuple(enabled(settings)), day)


def compile_enabled(query: QueryRow, asked: Sequence[tuple[Rule, Setting]], day: Day) -> Compiled:
    """As ``compile_rules``, for what ``enabled`` gives: the same for many queries."""
    predicates: list[Predicate] = []
    never: list[str] = []
    unsure: list[str] = []
    for rule, setting in asked:
        for outcome in rule.shape.ask(query, rule.veto, setting, day):
            if outcome is Verdict.NEVER:
                never.append(rule.veto)
                predicates.append(KeyIn((), rule.veto))
            elif outcome is Verdict.UNSURE:
                unsure.append(rule.veto)
            else:
                predicates.append(outcome)
    return Compiled(tuple(predicates), tuple(never), tuple(unsure))


def enabled(settings: Mapping[str, Setting]) -> Iterator[tuple[Rule, Setting]]:
    """The rules that are asked, in the table's order."""
    for rule in RULES:
        setting = settings.get(rule.name)
        if setting is not None and setting.enabled:
            yield rule, setting


def narrowed(
    predicates: Rules, exclude: Sequence[int] = (), candidates: Sequence[int] | None = None
) -> Rules:
    """Predicates together with a request's own lists of keys."""
    more: list[Predicate] = []
    if candidates is not None:
        more.append(KeyIn(tuple(sorted(set(candidates))), Veto.NOT_A_CANDIDATE))
    if exclude:
        more.append(KeyIn(tuple(sorted(set(exclude))), Veto.EXCLUDED_BY_REQUEST, negate=True))
    return (*predicates, *more)


def columns_needed(kind: Kind) -> frozenset[str]:
    """Every rule column of a kind that some rule needs."""
    return frozenset(name for rule in RULES for name in rule.columns(kind))


def values_shown(rule: Rule, records: Mapping[Kind, Mapping[str, Any]]) -> dict[str, Any]:
    """Both sides' record values that a rule looks at, as ``kind.field`` -> value."""
    shown: dict[str, Any] = {}
    for name in rule.fields:
        kind, _, field_name = name.partition(".")
        shown[name] = records["job" if kind == "job" else "freelancer"].get(field_name)
    return shown
