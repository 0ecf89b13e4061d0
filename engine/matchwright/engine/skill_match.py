"""Matched, missing and further skills of a pair, by name.

The skills facet has a dimension of its own for each frequent skill; the others share some by hash.
Where a skill that the job asks for shares a dimension with a different one that the freelancer
has, the facet counts it as there although it is not: such collisions are itemised.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from matchwright.engine.columns import fold
from matchwright.engine.generation.facets.skills import ITEMS_MAX


@dataclass(frozen=True, slots=True)
class AskedSkill:
    """A skill that the job asks for.

    Attributes:
        asked_level: the level asked for, None for any.
        level: the freelancer's level, None where not stated or not there.
    """

    name: str
    must: bool
    asked_level: int | None
    level: int | None = None


@dataclass(frozen=True, slots=True)
class Collision:
    """Two names on one dimension of the skills facet.

    Attributes:
        asked: what the job asks for and the freelancer does not have.
        counted: what the freelancer has and the facet counts for it.
    """

    asked: str
    counted: str
    dimension: int


@dataclass(frozen=True, slots=True)
class SkillMatch:
    """The skills of a pair.

    Attributes:
        matched, missing: of those that the job asks for, in its order.
        extra: what the freelancer has besides.
        collisions: see ``Collision``.
        uncounted: names beyond the first 30 of a side, which the facet does not count.
        known: False where one side does not tell its skills.
    """

    matched: tuple[AskedSkill, ...]
    missing: tuple[AskedSkill, ...]
    extra: tuple[str, ...]
    collisions: tuple[Collision, ...]
    uncounted: tuple[str, ...]
    known: bool

    def without_collisions(self) -> SkillMatch:
        """The same for people who need not know how skills are stored."""
        return replace(self, collisions=())

    def to_dict(self) -> dict[str, Any]:
        return {
            "known": self.known,
            "matched": [_asked_dict(skill) for skill in self.matched],
            "missing": [_asked_dict(skill) for skill in self.missing],
            "extra": list(self.extra),
            "collisions": [
                {"asked": one.asked, "counted": one.counted, "dimension": one.dimension}
                for one in self.collisions
            ],
            "uncounted": list(self.uncounted),
        }


def _asked_dict(skill: AskedSkill) -> dict[str, Any]:
    return {
        "name": skill.name,
        "must": skill.must,
        "asked_level": skill.asked_level,
        "level": skill.level,
    }


def match_skills(
    job: Mapping[str, Any], freelancer: Mapping[str, Any], generation: Any
) -> SkillMatch:
    """The skills of a pair.

    Args:
        job, freelancer: records in the form of the schema.
        generation: for ``skill_dim``, a skill's dimension.
    """
    listed = freelancer.get("skills")
    asked = {fold(one["name"]): one for one in job.get("skills") or ()}
    has = {fold(one["name"]): one for one in listed or ()}
    matched = tuple(_asked(one, has[name]) for name, one in asked.items() if name in has)
    missing = tuple(_asked(one, None) for name, one in asked.items() if name not in has)
    return SkillMatch(
        matched=matched,
        missing=missing,
        extra=tuple(one["name"] for name, one in has.items() if name not in asked),
        collisions=_collisions(job, freelancer, generation),
        uncounted=(*_uncounted(job), *_uncounted(freelancer)),
        known=listed is not None and job.get("skills") is not None,
    )


def _asked(asked: Mapping[str, Any], has: Mapping[str, Any] | None) -> AskedSkill:
    level = None if has is None else has.get("level")
    return AskedSkill(asked["name"], bool(asked.get("must")), asked.get("level"), level)


def _uncounted(record: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(one["name"] for one in (record.get("skills") or ())[ITEMS_MAX:])


def _counted(record: Mapping[str, Any]) -> list[str]:
    return [one["name"] for one in (record.get("skills") or ())[:ITEMS_MAX]]


def _collisions(
    job: Mapping[str, Any], freelancer: Mapping[str, Any], generation: Any
) -> tuple[Collision, ...]:
    has = _counted(freelancer)
    there = {fold(name) for name in has}
    by_dim: dict[int, list[str]] = {}
    for name in has:
        by_dim.setdefault(generation.skill_dim(name), []).append(name)
    return tuple(
        Collision(name, other, generation.skill_dim(name))
        for name in _counted(job)
        if fold(name) not in there
        for other in by_dim.get(generation.skill_dim(name), ())
    )
