"""The integer features of pairs that a ranker orders by.

A feature is an exact integer of magnitude below 2^24, made from stored data alone, so that the same
pair gives the same float32 on every machine. What is not known is ``UNKNOWN``, one integer that
lies below every value that can be known. One model serves both directions: features speak of the
job and the freelancer, and ``asking`` says which of them asks.

No feature reads a limit of either side: limits decide who is eligible, and what moves a rank
inside the eligible can be told without giving them away.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from matchwright.engine.errors import FailedPrecondition
from matchwright.engine.policy_sections import FACET_FIELDS
from matchwright.kernels.types import Bool, Int32, Int64

if TYPE_CHECKING:
    from matchwright.engine.policy import Policy
    from matchwright.engine.prepare import Prepared, SnapshotLike

FEATURES_VERSION = 1
"""Version of the table below: a change of a name, a unit or a definition needs the next one."""
UNKNOWN = -(2**22)
"""The feature value that stands for "not known"; below every value that is known. Half-integers
on both sides of it are exact in float32, so trees can ask whether something is known."""
SCORE_BITS = 12
"""Scores are counted in units of 2^-12."""
SCORE_MAX = 2**22 - 1
"""Scores beyond count as this: 1,024 in score, hundreds of times the default policy's."""
SKILLS_MAX = 30
"""Skills of a side that count, in the order listed: those that the facet counts."""


@dataclass(frozen=True, slots=True)
class Feature:
    """One column.

    Attributes:
        name: unique; a model names its columns by it.
        unit: of one step.
        low, high: of a known value; ``UNKNOWN`` lies below.
        reads: record fields, as ``kind.field``, beyond what the policy's weighted facets read.
        text: in words, of a pair.
        group: features that are computed together.
    """

    name: str
    unit: str
    low: int
    high: int
    reads: tuple[str, ...]
    text: str
    group: str


_SCORE = "score / 4,096"
_FACETS: Mapping[str, str] = MappingProxyType(
    {
        "text": "title and description",
        "skills": "skills, as the first phase weighs them",
        "rate": "rate against budget",
        "experience": "level of experience",
        "hours": "shared working hours",
        "category": "field of work",
        "track": "track record",
        "availability": "hours a week on offer",
        "recency": "how recent the activity is",
    }
)
_SKILLS = ("job.skills", "freelancer.skills")
_WINDOWS = FACET_FIELDS["hours"]
_BUDGET = ("job.rate_min_cents", "job.rate_max_cents", "job.fixed_cents")


def _feature(
    group: str, name: str, unit: str, low: int, high: int, reads: Sequence[str], text: str
) -> Feature:
    return Feature(name, unit, low, high, tuple(reads), text, group)


def _score(name: str, reads: Sequence[str], text: str, group: str = "points") -> Feature:
    return _feature(group, name, _SCORE, -SCORE_MAX, SCORE_MAX, reads, text)


FEATURES: tuple[Feature, ...] = (
    _feature("points", "asking", "0 job, 1 freelancer", 0, 1, (), "which side asks"),
    _score("score", (), "score of the first phase"),
    _feature("points", "score_share", "thousandths", -2_000, 2_000, (),
             "share of the best conceivable score"),
    *(_score(f"facet_{name}", FACET_FIELDS[name], text) for name, text in _FACETS.items()),
    _feature("skills", "skill_coverage", "thousandths", 0, 1_000, _SKILLS,
             "share of the asked skills that are there"),
    _feature("skills", "skill_must_missing", "skills", 0, 1_000, _SKILLS,
             "must-have skills that are missing"),
    _feature("skills", "skill_level_shortfall", "levels", 0, 4 * SKILLS_MAX, _SKILLS,
             "levels that are missing in skills that are there"),
    _feature("terms", "rate_gap", "thousandths of the budget's top", -1_000, 1_000_000,
             ("job.rate_max_cents", "freelancer.rate_cents"), "rate above or below the budget"),
    _feature("terms", "weekly_hours_gap", "hours a week", -168, 168,
             ("job.weekly_hours", "freelancer.weekly_hours"),
             "hours a week on offer beyond what is asked"),
    _feature("terms", "overlap_minutes", "minutes a day", 0, 1_440, _WINDOWS,
             "working hours that both share"),
    _feature("terms", "experience_gap", "levels", -2, 2,
             ("job.experience_level", "freelancer.experience_level"),
             "level of experience above or below what is asked"),
    _feature("terms", "category_match", "0 no, 1 yes", 0, 1,
             ("job.category", "freelancer.categories"), "the same field of work"),
    _feature("person", "reviews", "1/16 of a doubling", 0, 431, ("freelancer.reviews",),
             "number of the freelancer's reviews"),
    _feature("person", "rating", "thousandths of a star", 0, 5_000, ("freelancer.rating_milli",),
             "the freelancer's rating"),
    _feature("person", "success", "thousandths", 0, 1_000, ("freelancer.success_permille",),
             "share of the freelancer's jobs that ended well"),
    _feature("person", "response", "thousandths", 0, 1_000, ("freelancer.response_permille",),
             "share of invitations that the freelancer answers"),
    _feature("person", "last_active_days", "days", 0, 36_500, ("freelancer.last_active",),
             "time since the freelancer was last active"),
    _feature("person", "available", "0 gone, 1 busy, 2 available", 0, 2, ("freelancer.status",),
             "whether the freelancer takes new work"),
    _feature("client", "client_reviews", "1/16 of a doubling", 0, 431, ("job.client_reviews",),
             "number of the client's reviews"),
    _feature("client", "client_rating", "thousandths of a star", 0, 5_000,
             ("job.client_rating_milli",), "the client's rating"),
    _feature("client", "posted_days", "days", 0, 36_500, ("job.posted",),
             "time since the job was posted"),
    _feature("client", "budget_known", "0 no, 1 fixed price, 2 hourly", 0, 2, _BUDGET,
             "whether the job says what it pays"),
    _feature("client", "job_text_known", "0 no, 1 yes", 0, 1, ("job.text",),
             "whether the job has a description"),
    _score("reciprocal", (), "how well the other direction fits", "reciprocal"),
)  # fmt: skip
"""Every feature, in the order of the columns."""

INDEX: Mapping[str, int] = MappingProxyType({feature.name: n for n, feature in enumerate(FEATURES)})
"""Name -> column."""


def allowed(policy: Policy) -> Bool:
    """bool (F,): features all of whose fields the policy's input manifest lists as used."""
    return np.array([not _missing(feature, policy) for feature in FEATURES], dtype=np.bool_)


def _missing(feature: Feature, policy: Policy) -> list[str]:
    return [name for name in feature.reads if name not in policy.used]


def check_manifest(policy: Policy, names: Sequence[str], model: str) -> None:
    """Refuse a model that asks for features which the policy's input manifest does not allow.

    Args:
        names: the features that the model's trees ask for.
        model: what the message calls it.

    Raises:
        FailedPrecondition: naming the feature and the field.
    """
    for name in names:
        if name not in INDEX:
            raise FailedPrecondition(
                f"{model} asks for the feature {name!r}, which this engine does not compute "
                f"(its features have version {FEATURES_VERSION}); train it anew, or update",
                feature=name,
            )
        missing = _missing(FEATURES[INDEX[name]], policy)
        if missing:
            state = "forbids" if missing[0] in policy.forbidden else "does not list as used"
            raise FailedPrecondition(
                f"{model} was trained with the feature {name!r}, which reads {missing[0]!r}; the "
                f"policy {policy.name!r} {state} that field: list it under fields.used, or train "
                "the ranker without the feature",
                feature=name,
                field=missing[0],
            )


def pair_features(
    snapshot: SnapshotLike, prepared: Sequence[Prepared], rows_per_query: Sequence[Int64]
) -> Int32:
    """Features of pairs, query after query.

    Args:
        snapshot: the epoch.
        prepared: Q queries, of either kind.
        rows_per_query: for each the global rows of the other kind's corpus.

    Returns:
        int32 (sum M, F). A feature that the query's policy does not allow is ``UNKNOWN``.
    """
    from matchwright.engine.rerank.features_pairs import SHARED

    return SHARED.make(snapshot, prepared, rows_per_query)


__all__ = [
    "FEATURES",
    "FEATURES_VERSION",
    "Feature",
    "INDEX",
    "SCORE_BITS",
    "SCORE_MAX",
    "SKILLS_MAX",
    "UNKNOWN",
    "allowed",
    "check_manifest",
    "pair_features",
]
