"""One side of pairs by column: rule columns from segments, the rest from records.

A segment holds most of what features need, as the integers that rules are decided on. What it does
not hold (levels of skills, days of activity, the client's reviews) comes from the record, once: the
numbers of the most recent rows are kept.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from matchwright.engine.columns import EXPERIENCE, SCALARS, SETS, Rows, name_hash
from matchwright.engine.generation.facets.skills import MUST_FACTOR
from matchwright.engine.policy_sections import FACET_FIELDS
from matchwright.engine.prepare import SnapshotLike
from matchwright.engine.records import KINDS, Kind
from matchwright.engine.rerank.features import FEATURES, SKILLS_MAX
from matchwright.engine.rerank.features_pool import Arrays, RowPool
from matchwright.engine.table import Records, RowTable, Table, as_table
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
SET_OF_GROUP: Mapping[Kind, Mapping[str, str]] = {
    "job": {"skills": "must_skills", "terms": "category"},
    "freelancer": {"skills": "skills", "terms": "categories"},
}
"""Kind -> group of features -> the set column that it compares."""
SET_COLUMNS: Mapping[Kind, tuple[str, ...]] = {
    kind: tuple(names.values()) for kind, names in SET_OF_GROUP.items()
}
FACTS: Mapping[Kind, tuple[str, ...]] = {
    "job": ("experience", "posted", "client_reviews", "client_rating_milli", "text_known"),
    "freelancer": ("last_active", "response_permille"),
}
"""Kind -> numbers that only records hold; int32, ``UNKNOWN`` (of rule columns) where not known."""
_FACTS_MAX = max(map(len, FACTS.values()))
_LISTS = ("name", "level", "weight")
_LEVELS = {name: n for n, name in enumerate(EXPERIENCE, start=1)}
_NO_SKILL = 0
"""Stands for a place in a list of skills that is not taken; no name hashes to it."""

_hash = lru_cache(maxsize=1 << 17)(name_hash)


@dataclass(frozen=True, slots=True, eq=False)
class Skills:
    """The first skills of U rows, each name once; S is the length of the longest list, at most 30.

    Rows lie side by side, so that sums over a list run over all rows at once.

    Attributes:
        known_u: bool (U,), whether the list is known.
        name_su: uint64 (S, U), hashes of names; 0 beyond the list.
        level_su: int32 (S, U), 1..5; 0 where none is stated.
        weight_su: int32 (S, U), of jobs: IDF in 1/1,024, twice that for a must-have; 0 beyond.
    """

    known_u: Bool
    name_su: UInt64
    level_su: Int32
    weight_su: Int32

    def take(self, at: Int64) -> Skills:
        """Of some rows, in the order of ``at``."""
        return Skills(
            self.known_u[at],
            self.name_su.take(at, axis=1),
            self.level_su.take(at, axis=1),
            self.weight_su.take(at, axis=1),
        )


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
        """The numbers of some of them, in the order of ``at``; all else stays as it is."""
        numbers = {name: column[at] for name, column in self.numbers.items()}
        return Side(self.kind, numbers, self.sets, self.skills)

    def skilled(self, at: Int64) -> Side:
        """The skills of some of them, in the order of ``at``; all else stays as it is."""
        return Side(self.kind, self.numbers, self.sets, self.skills.take(at))

    def sets_at(self, at: Int64, group: str) -> dict[str, SetColumn]:
        """The sets that a group of features compares, of some of them."""
        name = SET_OF_GROUP[self.kind][group]
        return {name: _take_sets(self.sets[name], at)}


RecordsOf = Callable[[Int64], Records]
"""Given positions among the rows asked for: their records."""
READ: Mapping[Kind, tuple[str, ...]] = {
    kind: tuple(
        sorted(
            field.removeprefix(f"{kind}.")
            for field in {*itertools.chain(*FACET_FIELDS.values(), *(f.reads for f in FEATURES))}
            if field.startswith(f"{kind}.")
        )
    )
    for kind in KINDS
}
"""Kind -> the fields of records that features and the other direction's queries are made of."""


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
    longest = int(np.count_nonzero(facts["name"], axis=1).max(initial=0))
    lists = (np.ascontiguousarray(facts[name][:, :longest].T) for name in _LISTS)
    return Side(kind, {**scalars, **numbers}, sets, Skills(facts["known"], *lists))


# ── Facts ─────────────────────────────────────────────────────────────────────────────────────


def facts_of(kind: Kind, records: Records, generation: Any) -> Arrays:
    """What only records hold, of N of them: ``facts``, ``known``, ``name``, ``level``, ``weight``
    as in ``FACTS`` and ``Skills``."""
    table = as_table(records)
    facts = np.full((table.height, _FACTS_MAX), UNKNOWN, dtype=np.int32)
    for n, name in enumerate(FACTS[kind]):
        facts[:, n] = _fact(name, table)
    known = np.array([listed is not None for listed in table.values("skills")], dtype=np.bool_)
    return {"facts": facts, "known": known, **_listed(kind, table, generation)}


def _fact(name: str, table: Table) -> Any:
    if name == "text_known":
        return [bool(text) for text in table.values("text")]
    if name == "experience":
        return [_LEVELS.get(level, UNKNOWN) for level in table.values("experience_level")]
    values, known = table.integers(name)
    return np.where(known, values, UNKNOWN)


def _listed(kind: Kind, table: Table, generation: Any) -> Arrays:
    """The first 30 skills; what is listed twice counts once, where it is listed first, with the
    larger of each."""
    items = table.skills(SKILLS_MAX)
    hashed = items.lookup(lambda name: _hash(name) or 1, np.uint64)
    weight = np.zeros(hashed.size, dtype=np.int64)
    if kind == "job":
        weight = items.lookup(generation.skill_weight) * np.where(items.must, MUST_FACTOR, 1)
    # Different names may be the same folded: what counts is the hash.
    _, code = np.unique(hashed, return_inverse=True)
    pair = items.row_m * max(hashed.size, 1) + code
    _, first, place = np.unique(pair, return_index=True, return_inverse=True)
    order = np.argsort(first)  # from the order of hashes to that in which they are listed
    rank = np.empty_like(order)
    rank[order] = np.arange(order.size)
    row, listed = items.row_m[first[order]], rank[place]
    start = np.searchsorted(row, np.arange(table.height))
    at = row, np.arange(row.size) - start[row]
    made: Arrays = {}
    columns = (hashed, np.uint64), (items.level_m, np.int32), (weight, np.int32)
    for name, (values, dtype) in zip(_LISTS, columns, strict=True):
        largest = np.zeros(row.size, dtype=dtype)
        np.maximum.at(largest, listed, values.astype(dtype))
        made[name] = np.full((table.height, SKILLS_MAX), _NO_SKILL, dtype=dtype)
        made[name][at] = largest
    return made


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
