"""One side of pairs by column: rule columns from segments, the rest from records.

A segment holds most of what features need, as the integers that rules are decided on. What it does
not hold (levels of skills, days of activity, the client's reviews) comes from the record, once: the
numbers of the most recent rows are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from matchwright.engine.columns import EXPERIENCE, SCALARS, SETS, Rows, name_hash
from matchwright.engine.generation.facets.skills import MUST_FACTOR
from matchwright.engine.prepare import SnapshotLike
from matchwright.engine.records import Kind
from matchwright.engine.rerank.features import SKILLS_MAX
from matchwright.engine.rerank.features_pool import Arrays, RowPool
from matchwright.engine.table import RowTable
from matchwright.engine.zones import as_zones
from matchwright.kernels.rules import Rows as SegmentRows
from matchwright.kernels.types import UNKNOWN, Bool, Corpus, Int32, Int64, SetColumn, UInt64

_WINDOW = ("hours_start", "hours_end", "zone")
COLUMNS: Mapping[Kind, tuple[str, ...]] = {
    "job": ("budget_top", "pay_top", "weekly_hours", *_WINDOW),
    "freelancer": ("rate", "weekly_hours", "experience", "rating", "success", "reviews", "status",
                   *_WINDOW),
}  # fmt: skip
"""Kind -> the rule columns that features read."""
SET_COLUMNS: Mapping[Kind, tuple[str, ...]] = {
    "job": ("must_skills", "category"),
    "freelancer": ("skills", "categories"),
}
FACTS: Mapping[Kind, tuple[str, ...]] = {
    "job": ("experience", "posted", "client_reviews", "client_rating_milli", "text_known"),
    "freelancer": ("last_active", "response_permille"),
}
"""Kind -> numbers that only records hold; int32, ``UNKNOWN`` (of rule columns) where not known."""
_FACTS_MAX = max(map(len, FACTS.values()))
_FIELDS: Mapping[str, str] = {"experience": "experience_level"}
_LEVELS = {name: n for n, name in enumerate(EXPERIENCE, start=1)}
_NO_SKILL = 0
"""Stands for a place in a list of skills that is not taken; no name hashes to it."""

_hash = lru_cache(maxsize=1 << 17)(name_hash)


@dataclass(frozen=True, slots=True, eq=False)
class Skills:
    """The first 30 skills of U rows, each name once.

    Attributes:
        known_u: bool (U,), whether the list is known.
        name_us: uint64 (U, 30), hashes of names; 0 beyond the list.
        level_us: int32 (U, 30), 1..5; 0 where none is stated.
        weight_us: int32 (U, 30), of jobs: IDF in 1/1,024, twice that for a must-have; 0 beyond.
    """

    known_u: Bool
    name_us: UInt64
    level_us: Int32
    weight_us: Int32


@dataclass(frozen=True, slots=True, eq=False)
class Side:
    """U entities of one kind.

    Attributes:
        kind: what they are.
        numbers: name -> int32 (U,): rule columns and facts, ``UNKNOWN`` (of rule columns) where
            not known.
        sets: name -> SetColumn of U rows.
        skills: names and levels.
    """

    kind: Kind
    numbers: Mapping[str, Int32]
    sets: Mapping[str, SetColumn]
    skills: Skills

    @property
    def n(self) -> int:
        return int(self.skills.known_u.size)

    def numbered(self, at: Int64) -> Side:
        """The numbers of some of them, in the order of ``at``; skills and sets stay as they are."""
        numbers = {name: column[at] for name, column in self.numbers.items()}
        return Side(self.kind, numbers, self.sets, self.skills)

    def named(self, at: Int64) -> Side:
        """Skills and sets of some of them, in the order of ``at``; numbers stay as they are."""
        skills = self.skills
        return Side(
            self.kind,
            self.numbers,
            {name: _take_sets(column, at) for name, column in self.sets.items()},
            Skills(skills.known_u[at], skills.name_us[at], skills.level_us[at],
                   skills.weight_us[at]),
        )  # fmt: skip


RecordsOf = Callable[[Int64], Sequence[Mapping[str, Any]]]
"""Given positions among the rows asked for: their records."""


def side_of_records(kind: Kind, records: Sequence[Mapping[str, Any]], generation: Any) -> Side:
    """The side of entities that are described by their records, stored or not."""
    values = RowTable(records)
    needed = {*(field for name in COLUMNS[kind] for field in _READS.get(name, (name,))),
              "skills", "category" if kind == "job" else "categories"}  # fmt: skip
    rows: Rows = {name: values.values(name) for name in needed}
    zones = as_zones(generation)
    scalars = {name: np.array(SCALARS[kind][name](rows, zones), np.int32) for name in COLUMNS[kind]}
    sets = {name: SETS[kind][name](rows, b"") for name in SET_COLUMNS[kind]}
    return _side(kind, scalars, sets, facts_of(kind, records, generation))


_READS: Mapping[str, tuple[str, ...]] = {
    "budget_top": ("rate_max_cents",),
    "pay_top": ("rate_max_cents", "rate_min_cents", "fixed_cents"),
    "rate": ("rate_cents",),
    "experience": ("experience_level",),
    "rating": ("rating_milli",),
    "success": ("success_permille",),
}
"""Rule column -> the record fields that it is made of, where they have other names."""


def side_of_rows(
    snapshot: SnapshotLike,
    kind: Kind,
    corpus: Corpus,
    rows: Int64,
    records: RecordsOf,
    pool: RowPool,
    keys: Sequence[Any] | None,
) -> Side:
    """The side of rows of a corpus.

    Args:
        rows: int64 (U,), distinct global rows.
        records: gives the records of some of them.
        pool: of facts.
        keys: of the rows in ``pool``; None keeps nothing.
    """
    facts = pool.take(keys, rows.size, lambda at: facts_of(kind, records(at), snapshot.generation))
    part_u = np.searchsorted(corpus.base, rows, side="right") - 1
    order = np.argsort(part_u, kind="stable")
    pieces = []
    for part in np.unique(part_u).tolist():
        local = rows[order[part_u[order] == part]] - corpus.base[part]
        pieces.append(SegmentRows(corpus.parts[part][0], local))
    back = np.argsort(order, kind="stable")
    whole = order.size == 0 or bool((order == np.arange(order.size)).all())
    scalars = {
        name: _joined([piece.scalar(name) for piece in pieces], np.int32) for name in COLUMNS[kind]
    }
    sets = {
        name: _join_sets([piece.set_column(name) for piece in pieces]) for name in SET_COLUMNS[kind]
    }
    if not whole:
        scalars = {name: column[back] for name, column in scalars.items()}
        sets = {name: _take_sets(column, back) for name, column in sets.items()}
    return _side(kind, scalars, sets, facts)


def _side(
    kind: Kind, scalars: Mapping[str, Int32], sets: Mapping[str, SetColumn], facts: Arrays
) -> Side:
    numbers = {name: facts["facts"][:, n] for n, name in enumerate(FACTS[kind])}
    skills = Skills(facts["known"], facts["name"], facts["level"], facts["weight"])
    return Side(kind, {**scalars, **numbers}, sets, skills)


# ── Facts ─────────────────────────────────────────────────────────────────────────────────────


def facts_of(kind: Kind, records: Sequence[Mapping[str, Any]], generation: Any) -> Arrays:
    """What only records hold, of N of them: ``facts``, ``known``, ``name``, ``level``, ``weight``
    as in ``FACTS`` and ``Skills``."""
    n = len(records)
    made: Arrays = {
        "facts": np.full((n, _FACTS_MAX), UNKNOWN, dtype=np.int32),
        "known": np.array([record["skills"] is not None for record in records], dtype=np.bool_),
        "name": np.full((n, SKILLS_MAX), _NO_SKILL, dtype=np.uint64),
        "level": np.zeros((n, SKILLS_MAX), dtype=np.int32),
        "weight": np.zeros((n, SKILLS_MAX), dtype=np.int32),
    }  # fmt: skip
    for row, record in enumerate(records):
        made["facts"][row, : len(FACTS[kind])] = [_fact(name, record) for name in FACTS[kind]]
        listed = _listed(kind, record, generation)
        made["name"][row, : len(listed)] = [*listed]
        made["level"][row, : len(listed)] = [level for level, _ in listed.values()]
        made["weight"][row, : len(listed)] = [weight for _, weight in listed.values()]
    return made


def _fact(name: str, record: Mapping[str, Any]) -> int:
    if name == "text_known":
        return int(bool(record["text"]))
    value = record[_FIELDS.get(name, name)]
    if name == "experience":
        return _LEVELS.get(value, UNKNOWN)
    return UNKNOWN if value is None else int(value)


def _listed(kind: Kind, record: Mapping[str, Any], generation: Any) -> dict[int, tuple[int, int]]:
    """Hash -> (level, weight) of the first 30 skills; what is listed twice counts once, with the
    larger of each."""
    listed: dict[int, tuple[int, int]] = {}
    for one in (record["skills"] or ())[:SKILLS_MAX]:
        if one["name"] is None:
            continue
        weight = 0
        if kind == "job":
            weight = generation.skill_weight(one["name"]) * (MUST_FACTOR if one["must"] else 1)
        key = _hash(one["name"]) or 1
        level, more = listed.get(key, (0, 0))
        listed[key] = max(level, one["level"] or 0), max(more, weight)
    return listed


# ── Sets ──────────────────────────────────────────────────────────────────────────────────────


def _joined(pieces: Sequence[Any], dtype: Any) -> Any:
    if len(pieces) == 1:
        return pieces[0]
    return np.concatenate([np.zeros(0, dtype=dtype), *pieces])


def _join_sets(pieces: Sequence[SetColumn]) -> SetColumn:
    if len(pieces) == 1:
        return pieces[0]
    sizes = _joined([np.diff(piece.start_n) for piece in pieces], np.int64)
    return SetColumn(
        np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        _joined([piece.value for piece in pieces], np.uint64),
        _joined([piece.known_n for piece in pieces], np.bool_),
    )


def _take_sets(column: SetColumn, at: Int64) -> SetColumn:
    start = column.start_n[at]
    size = column.start_n[at + 1] - start
    starts = np.concatenate([[0], np.cumsum(size)]).astype(np.int64)
    place = np.arange(starts[-1]) - np.repeat(starts[:-1] - start, size)
    return SetColumn(starts, column.value[place], column.known_n[at])
