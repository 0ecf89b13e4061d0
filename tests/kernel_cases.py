"""Small corpora, queries and a brute force in Python integers, for tests of kernels.

The brute force shares no code with what it judges: it has its own order key, its own rules and
its own sums.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from matchwright.kernels.index import build_index
from matchwright.kernels.types import (
    NO_LIMIT,
    UNKNOWN,
    Bitmap,
    Corpus,
    EmptyOrHasAny,
    HasAll,
    HasNone,
    HoursOverlap,
    InRange,
    KeyIn,
    OneOf,
    Queries,
    Segment,
    SetColumn,
    SubsetOf,
)

WORD32 = 0xFFFFFFFF


# ── The referee ───────────────────────────────────────────────────────────────────────────────


def tie_of(key_q: int, key_n: int) -> int:
    """The tie of docs/scoring.md in Python integers."""
    high, low = key_n >> 32, key_n & WORD32
    z = low ^ (key_q & WORD32)
    z = ((z ^ z >> 16) * 0x85EBCA6B) & WORD32
    z = ((z ^ z >> 13) + (key_q >> 32)) & WORD32
    z = ((z ^ z >> 13) * 0xC2B2AE35) & WORD32
    return ((high ^ z ^ z >> 16) << 32) | low


def key_with_mix(key_q: int, mix: int, low: int) -> int:
    """The corpus key that has this mix for this query: the Feistel round the other way."""
    return ((mix ^ (tie_of(key_q, low) >> 32)) << 32) | low


def minutes(start: int, end: int) -> set[int]:
    """Minutes of the day that a window covers."""
    length = end - start if end > start else end - start + 1_440
    return {(start + i) % 1_440 for i in range(length)}


def verdict(rule: Any, row: dict[str, Any]) -> tuple[bool, bool]:
    """(passes, unverified) of one predicate for one row."""
    known, good = _judge(rule, row)
    if known:
        return good, False
    passes = getattr(rule, "unknown_passes", False)
    return passes, passes


def _judge(rule: Any, row: dict[str, Any]) -> tuple[bool, bool]:
    if isinstance(rule, KeyIn):
        return True, (row["key"] in rule.keys) != rule.negate
    if isinstance(rule, HoursOverlap):
        return _judge_hours(rule, row)
    value = row[rule.column]
    if isinstance(rule, InRange):
        return value != UNKNOWN, rule.low <= value <= rule.high
    if isinstance(rule, OneOf):
        return value != UNKNOWN, (value in rule.values) != rule.negate
    if value is None:
        return False, False
    asked = set(rule.values)
    good = {
        HasAll: asked <= value,
        HasNone: not asked & value,
        EmptyOrHasAny: not value or bool(asked & value),
        SubsetOf: value <= asked,
    }
    return True, good[type(rule)]


def _judge_hours(rule: HoursOverlap, row: dict[str, Any]) -> tuple[bool, bool]:
    required = rule.required_minutes
    if required is None:
        required = row["overlap_minutes"]
    if required != UNKNOWN and required <= 0:
        return True, True
    start, end, zone = row["hours_start"], row["hours_end"], row["zone"]
    unknown = required == UNKNOWN or UNKNOWN in (start, end) or rule.start_utc is None
    if unknown or rule.end_utc is None or not 0 <= zone < len(rule.offset_minutes):
        return False, False
    east = rule.offset_minutes[zone]
    length = end - start if end > start else end - start + 1_440
    theirs = {(start - east + i) % 1_440 for i in range(length)}
    return True, len(theirs & minutes(rule.start_utc, rule.end_utc)) >= required


def row_of(segment: Segment, n: int) -> dict[str, Any]:
    """One row's columns as Python values; an unknown set is None."""
    row: dict[str, Any] = {name: int(column[n]) for name, column in segment.scalars.items()}
    for name, column in segment.sets.items():
        values = column.value[column.start_n[n] : column.start_n[n + 1]].tolist()
        row[name] = set(values) if column.known_n[n] else None
    return row | {"key": int(segment.key_n[n])}


def eligible_rows(corpus: Corpus, group: Any) -> tuple[list[int], int]:
    """Eligible global rows, and how many of them are unverified."""
    found, unverified, at = [], 0, 0
    for segment, alive in corpus.parts:
        for n in range(segment.n):
            if alive is not None and not alive[n]:
                continue
            if isinstance(group, Bitmap):
                verdicts = [(bool(group.eligible_n[at + n]), False)]
            else:
                row = row_of(segment, n)
                verdicts = [verdict(rule, row) for rule in group]
            if all(passes for passes, _ in verdicts):
                found.append(at + n)
                unverified += any(unsure for _, unsure in verdicts)
        at += segment.n
    return found, unverified


def points_of(corpus: Corpus, q_d: Any) -> list[int]:
    """Points of every row, by Python's own sums."""
    q = [int(v) for v in q_d]
    return [
        sum(a * b for a, b in zip(q, row, strict=True) if b)
        for segment, _ in corpus.parts
        for row in segment.x_nd.tolist()
    ]


def keys_of(corpus: Corpus) -> list[int]:
    return [int(key) for segment, _ in corpus.parts for key in segment.key_n]


def brute_topk(corpus: Corpus, queries: Queries, k: int) -> list[dict[str, Any]]:
    """For every query: rows and points best first, eligible and unverified counts."""
    eligible = [eligible_rows(corpus, group) for group in queries.groups]
    keys, answers = keys_of(corpus), []
    for i in range(queries.q):
        rows, unverified = eligible[0 if queries.group_q is None else int(queries.group_q[i])]
        points = points_of(corpus, queries.q_qd[i])
        floor = None if queries.floor_q is None else int(queries.floor_q[i])
        enough = [row for row in rows if floor is None or points[row] >= floor]
        key_q = int(queries.key_q[i])
        enough.sort(key=lambda row: (-points[row], tie_of(key_q, keys[row])))
        answers.append(
            {
                "rows": enough[:k],
                "points": [points[row] for row in enough[:k]],
                "eligible": len(rows),
                "unverified": unverified,
            }
        )
    return answers


def assert_answers(got: Any, expected: list[dict[str, Any]]) -> None:
    """A TopK says exactly what the brute force says, and is empty beyond."""
    for i, answer in enumerate(expected):
        n = int(got.returned_q[i])
        assert got.row_qk[i, :n].tolist() == answer["rows"], f"rows of query {i}"
        assert got.points_qk[i, :n].tolist() == answer["points"], f"points of query {i}"
        assert (got.row_qk[i, n:] == -1).all()
        assert (got.points_qk[i, n:] == 0).all()
        if got.counted:
            assert int(got.eligible_q[i]) == answer["eligible"]
            assert int(got.unverified_q[i]) == answer["unverified"]


# ── Things to judge ───────────────────────────────────────────────────────────────────────────


def some_keys(rng: np.random.Generator, n: int) -> Any:
    keys = np.unique(rng.integers(0, 2**64, n + 8, dtype=np.uint64))
    rng.shuffle(keys)
    return keys[:n]


def some_sets(rng: np.random.Generator, n: int, values: int = 9) -> SetColumn:
    """Sets of 0..3 of a few values, some of them not known."""
    known = rng.random(n) < 0.85
    size = np.where(known, rng.integers(0, 4, n), 0)
    rows = [np.sort(rng.choice(values, s, replace=False)) for s in size]
    value = np.concatenate([*rows, np.empty(0, np.int64)]).astype(np.uint64)
    return SetColumn(np.concatenate([[0], np.cumsum(size)]).astype(np.int64), value, known)


def some_scalars(rng: np.random.Generator, n: int) -> dict[str, Any]:
    def column(low: int, high: int, unknown: float = 0.1) -> Any:
        value = rng.integers(low, high, n).astype(np.int32)
        return np.where(rng.random(n) < unknown, np.int32(UNKNOWN), value).astype(np.int32)

    limit = column(0, 1_000)
    return {
        "rate": column(-500, 100_000),
        "level": column(0, 3),
        "sure": column(0, 200, unknown=0),
        "limit": np.where(rng.random(n) < 0.6, np.int32(NO_LIMIT), limit).astype(np.int32),
        "hours_start": column(0, 24) * np.int32(60) if n == 0 else _hours(column(0, 24)),
        "hours_end": _hours(column(0, 25)),
        "zone": column(0, 5),
        "overlap_minutes": np.where(rng.random(n) < 0.5, np.int32(0), _hours(column(0, 9))),
    }


def _hours(column: Any) -> Any:
    return np.where(column == UNKNOWN, column, column * 60).astype(np.int32)


def a_segment(
    rng: np.random.Generator,
    x_nd: Any,
    key_n: Any | None = None,
    *,
    indexed: bool = True,
    columns: bool = True,
) -> Segment:
    n = x_nd.shape[0]
    segment = Segment(
        np.ascontiguousarray(x_nd, dtype=np.int8),
        some_keys(rng, n) if key_n is None else key_n,
        some_scalars(rng, n) if columns else {},
        {"skills": some_sets(rng, n), "asks": some_sets(rng, n, 5)} if columns else {},
    )
    return with_index(segment) if indexed else segment


def with_index(segment: Segment) -> Segment:
    index = build_index(segment.scalars, segment.sets, segment.x_nd, segment.key_n)
    return replace(segment, index=index)


def some_rule(rng: np.random.Generator, keys: Any) -> Any:
    """A random predicate over the columns of ``some_scalars`` and ``some_sets``."""
    veto, unknown = f"V{rng.integers(9)}", bool(rng.random() < 0.5)
    values = tuple(int(v) for v in rng.integers(0, 11, int(rng.integers(0, 5))))
    column = str(rng.choice(["rate", "level", "sure", "limit"]))
    sets = str(rng.choice(["skills", "asks"]))
    low, high = sorted(int(v) for v in rng.integers(-600, 100_500, 2))
    kind = int(rng.integers(9))
    if kind <= 1:
        low = int(rng.choice([low, -(2**31) + 1, 0]))
        return InRange(column, low, int(rng.choice([high, NO_LIMIT, 150])), veto, unknown)
    if kind == 2:
        return OneOf(column, values, veto, unknown, bool(rng.random() < 0.5))
    if kind == 3:
        return HasAll(sets, values[:2], veto, unknown)
    if kind == 4:
        return HasNone(sets, values, veto, unknown)
    if kind == 5:
        return EmptyOrHasAny(sets, values, veto, unknown)
    if kind == 6:
        return SubsetOf(sets, (*values, 1, 2, 3), veto, unknown)
    if kind == 7:
        some = rng.choice(keys, min(len(keys), int(rng.integers(0, 9))), replace=False)
        own = tuple(int(key) for key in some)
        return KeyIn((*own, 12_345), veto, bool(rng.random() < 0.7))
    start, end = (int(v) * 30 for v in rng.integers(0, 48, 2))
    open_ = rng.random() < 0.2
    return HoursOverlap(
        offset_minutes=(0, 60, -300, 330)[: int(rng.integers(1, 5))],
        start_utc=None if open_ else start,
        end_utc=None if open_ else end,
        required_minutes=None if rng.random() < 0.5 else int(rng.integers(0, 600)),
        veto=veto,
        unknown_passes=unknown,
    )


def some_rules(rng: np.random.Generator, keys: Any, most: int = 3) -> tuple[Any, ...]:
    return tuple(some_rule(rng, keys) for _ in range(int(rng.integers(0, most + 1))))
