"""What it costs to evaluate a different realistic rule set for every query, by index and by row."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from matchwright.kernels.access import Layout
from matchwright.kernels.eligible import Eligibility
from matchwright.kernels.index import build_index
from matchwright.kernels.ops import Ops
from matchwright.kernels.types import (
    NO_LIMIT,
    UNKNOWN,
    Corpus,
    HasAll,
    HasNone,
    HoursOverlap,
    InRange,
    Int8,
    Int16,
    Int32,
    OneOf,
    Queries,
    Rules,
    Segment,
    SetColumn,
    SubsetOf,
    UInt64,
)

OFFSETS = tuple(60 * hours for hours in range(-10, 13))


def rule_figures(x_nd: Int8, q_qd: Int16, key_q: UInt64, ops: Ops, k: int) -> list[dict[str, Any]]:
    """Seconds to build the index, to evaluate all rule sets, and of the whole search."""
    n, q = x_nd.shape[0], q_qd.shape[0]
    scalars, sets = columns(n)
    key_n = np.arange(n, dtype=np.uint64)
    start = time.perf_counter()
    index = build_index(scalars, sets, x_nd, key_n)
    built = time.perf_counter() - start
    groups = rule_sets(q)
    indexed = Corpus(((Segment(x_nd, key_n, scalars, sets, index), None),))
    plain = Corpus(((Segment(x_nd, key_n, scalars, sets), None),))
    seconds, rate = _evaluate(ops, indexed, groups)
    few = groups[: max(1, q // 64)]
    by_row, _ = _evaluate(ops, plain, few)
    queries = Queries(q_qd, key_q, groups, np.arange(q, dtype=np.int32))
    ops.topk(indexed, queries, k)
    whole = ops.topk(indexed, queries, k).telemetry
    return [
        {
            "d": x_nd.shape[1],
            "rule sets": q,
            "mean pass rate": rate,
            "by index, us each": seconds / q * 1e6,
            "by row, us each": by_row / len(few) * 1e6,
            "whole search, s": whole["seconds"],
            "plan": whole["plan"],
            "index build, s": built,
            "index bytes per row": sum(array.nbytes for array in index.values()) / n,
        }
    ]


def _evaluate(ops: Ops, corpus: Corpus, groups: Sequence[Rules]) -> tuple[float, float]:
    layout = Layout(corpus)
    eligibility = Eligibility(layout, groups, ops.memory_bytes // 8)
    counts, turn = np.zeros(len(groups)), itertools.count()

    def work() -> None:
        words = np.empty(layout.words, dtype=np.uint64)
        while (i := next(turn)) < len(groups):
            eligibility.fill(groups[i], words)
            counts[i] = np.bitwise_count(words).sum(dtype=np.int64)

    start = time.perf_counter()
    ops.together([work] * ops.threads)
    return time.perf_counter() - start, float(counts.mean() / max(corpus.n, 1))


def columns(n: int) -> tuple[dict[str, Int32], dict[str, SetColumn]]:
    """Columns of freelancers: skewed rates, countries, hours, languages, certifications."""
    generator = np.random.default_rng(0)

    def some(values: Any, unknown: float = 0.05) -> Int32:
        blank = generator.random(n) < unknown
        return np.where(blank, UNKNOWN, values).astype(np.int32)

    start = generator.integers(6, 12, n) * 60
    country = np.minimum(generator.geometric(0.08, n), 180)
    scalars = {
        "rate": some(np.exp(generator.normal(8, 0.6, n)).astype(np.int64)),
        "weekly_hours": some(generator.integers(1, 9, n) * 5, 0.3),
        "country": some(country),
        "level": some(generator.integers(0, 3, n)),
        "min_rate": np.where(generator.random(n) < 0.7, 0, generator.integers(500, 9_000, n)),
        "max_hours": np.where(generator.random(n) < 0.8, NO_LIMIT, 40),
        "hours_start": some(start, 0.4),
        "hours_end": some(start + 480, 0.4),
        "zone": some(generator.integers(0, len(OFFSETS), n), 0.1),
        "overlap_minutes": np.zeros(n, np.int32),
    }
    scalars = {name: np.ascontiguousarray(column, np.int32) for name, column in scalars.items()}
    sets = {"skills": _sets(generator, n, 8, 3_000), "languages": _sets(generator, n, 2, 40)}
    return scalars, sets


def _sets(generator: np.random.Generator, n: int, most: int, values: int) -> SetColumn:
    width = generator.integers(0, most + 1, n)
    owner = np.repeat(np.arange(n), width)
    value = np.minimum(generator.zipf(1.3, owner.size), values).astype(np.int64)
    pairs = np.unique(owner * (values + 1) + value)
    owner, value = np.divmod(pairs, values + 1)
    start = np.concatenate([[0], np.cumsum(np.bincount(owner, minlength=n))]).astype(np.int64)
    return SetColumn(start, value.astype(np.uint64), np.ones(n, dtype=np.bool_))


def rule_sets(q: int) -> list[Rules]:
    """A job's limits each: rate, hours, countries, level, overlap, skills, languages, theirs."""
    generator = np.random.default_rng(1)
    return [_rules(generator) for _ in range(q)]


def _rules(generator: np.random.Generator) -> Rules:
    budget = int(np.exp(generator.normal(8.3, 0.5)))
    denied = tuple(sorted({int(v) for v in np.minimum(generator.geometric(0.08, 3), 180)}))
    start = int(generator.integers(0, 24)) * 60
    rules: list[Any] = [
        InRange("rate", 0, budget, "RATE"),
        InRange("min_rate", 0, budget, "THEIR_RATE"),
        InRange("weekly_hours", int(generator.integers(0, 6)) * 5, NO_LIMIT, "HOURS", True),
        OneOf("country", denied, "COUNTRY", negate=True),
        OneOf("level", (0, 1, 2)[int(generator.integers(0, 2)) :], "LEVEL", True),
        HoursOverlap(OFFSETS, start, (start + 540) % 1_440, 120, "OVERLAP"),
        SubsetOf("languages", tuple(range(1, int(generator.integers(2, 30)))), "LANGUAGE"),
        HasNone("skills", (int(generator.integers(20, 3_000)),), "EXCLUDED"),
    ]
    if generator.random() < 0.5:
        rules.append(HasAll("skills", (int(generator.zipf(1.5)),), "SKILL"))
    return tuple(rules)
