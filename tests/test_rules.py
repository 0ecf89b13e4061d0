"""Predicates: row by row beside plain Python, by index beside row by row."""

from __future__ import annotations

import kernel_cases as cases
import numpy as np
import pytest

from matchwright.kernels import eligible, rules
from matchwright.kernels.access import Layout
from matchwright.kernels.eligible import Eligibility
from matchwright.kernels.index import build_index
from matchwright.kernels.index_reader import Reader
from matchwright.kernels.ops import Ops
from matchwright.kernels.types import (
    UNKNOWN,
    Corpus,
    HasAll,
    HoursOverlap,
    InRange,
    KeyIn,
    OneOf,
    Segment,
    SetColumn,
    SubsetOf,
)


def a_segment(rng, n, **options):
    return cases.a_segment(rng, np.zeros((n, 1), np.int8), **options)


def flags(bits, n):
    return np.unpackbits(bits, count=n, bitorder="little").astype(bool)


@pytest.mark.parametrize("n", [0, 1, 7, 64, 199])
def test_row_by_row_beside_python(n, count):
    rng = np.random.default_rng(n)
    for _ in range(count(reduced=8, full=400)):
        segment = a_segment(rng, n, indexed=False)
        everything = rules.Rows(segment)
        for _ in range(6):
            rule = cases.some_rule(rng, segment.key_n)
            passed, unsure = rules.evaluate(rule, everything)
            expected = [cases.verdict(rule, cases.row_of(segment, i)) for i in range(n)]
            assert list(zip(passed.tolist(), unsure.tolist(), strict=True)) == expected, rule
            some = np.flatnonzero(rng.random(n) < 0.5)
            passed_some, unsure_some = rules.evaluate(rule, rules.Rows(segment, some))
            assert (passed_some == passed[some]).all()
            assert (unsure_some == unsure[some]).all()


@pytest.mark.parametrize("n", [1, 8, 63, 500, 5_000])
def test_by_index_beside_row_by_row(n, count):
    rng = np.random.default_rng(n)
    for _ in range(count(reduced=3, full=100)):
        segment = a_segment(rng, n)
        reader = Reader(segment)
        for _ in range(40):
            rule = cases.some_rule(rng, segment.key_n)
            passed, unsure = rules.evaluate(rule, rules.Rows(segment))
            bits, unsure_bits = reader.evaluate(rule)
            assert (flags(bits, n) == passed).all(), rule
            got = np.zeros(n, bool) if unsure_bits is None else flags(unsure_bits, n)
            assert (got == unsure).all(), rule
            assert not np.unpackbits(bits, bitorder="little")[n:].any()


@pytest.mark.parametrize("spread", [1, 3, 40, 100, 10**9])
def test_ranges_over_few_and_many_values(spread):
    rng = np.random.default_rng(spread)
    column = rng.integers(0, spread, 3_000).astype(np.int32)
    column[rng.random(3_000) < 0.4] = spread // 2  # one frequent value
    column[rng.random(3_000) < 0.1] = UNKNOWN
    segment = cases.with_index(
        Segment(np.zeros((3_000, 1), np.int8), cases.some_keys(rng, 3_000), {"c": column})
    )
    reader = Reader(segment)
    for _ in range(60):
        low, high = sorted(rng.integers(-2, spread + 2, 2).tolist())
        for rule in (InRange("c", low, high, "V"), OneOf("c", (low, high, low + 1), "V")):
            passed, _ = rules.evaluate(rule, rules.Rows(segment))
            assert (flags(reader.evaluate(rule)[0], 3_000) == passed).all(), rule


def test_ranges_end_at_the_ends_of_int32():
    column = np.array([UNKNOWN, UNKNOWN + 1, 0, 2**31 - 1], dtype=np.int32)
    keys = np.arange(4, dtype=np.uint64)
    segment = cases.with_index(Segment(np.zeros((4, 1), np.int8), keys, {"c": column}))
    rule = InRange("c", UNKNOWN, 2**31 - 1, "V")
    assert flags(Reader(segment).evaluate(rule)[0], 4).tolist() == [False, True, True, True]


def test_row_by_row_in_steps(monkeypatch):
    rng = np.random.default_rng(4)
    segment = a_segment(rng, 1_000, indexed=False)
    for _ in range(20):
        rule = cases.some_rule(rng, segment.key_n)
        passed, _ = rules.evaluate(rule, rules.Rows(segment))
        assert (flags(Reader(segment, row_step=100).evaluate(rule)[0], 1_000) == passed).all()


def test_groups_over_parts_and_dead_rows(count):
    rng = np.random.default_rng(5)
    for _ in range(count(reduced=10, full=200)):
        sizes = rng.integers(0, 150, 3)
        parts = tuple(
            (a_segment(rng, int(n), indexed=bool(rng.random() < 0.5)), alive)
            for n in sizes
            for alive in [None if rng.random() < 0.5 else rng.random(n) < 0.8]
        )
        corpus = Corpus(parts)
        keys = np.concatenate([segment.key_n for segment, _ in parts])
        shared = [cases.some_rule(rng, keys) for _ in range(3)]
        groups = [tuple(rng.choice(len(shared), 2)) for _ in range(4)]
        groups = [tuple(shared[i] for i in group) for group in groups]
        layout = Layout(corpus)
        eligibility = Eligibility(layout, groups, 1 << 20)
        for group in groups:
            rows, unverified = cases.eligible_rows(corpus, group)
            words = np.empty(layout.words, np.uint64)
            assert eligibility.fill(group, words) == unverified
            assert layout.rows(words).tolist() == rows
            assert Ops().count(corpus, group) == (len(rows), unverified)
            passed, unsure = Ops().eligible(corpus, group)
            assert np.flatnonzero(passed).tolist() == rows
            assert int(unsure.sum()) == unverified


def test_windows_overlap_as_sets_of_minutes():
    rng = np.random.default_rng(6)
    for a, b, c, d in (rng.integers(0, 96, (300, 4)) * 15).tolist():
        expected = len(cases.minutes(a, b) & cases.minutes(c, d))
        lengths = rules.window_minutes(a, b), rules.window_minutes(c, d)
        assert rules.overlap_minutes(a, lengths[0], c, lengths[1]) == expected


def test_the_windows_of_a_slice_are_those_of_its_rows():
    """Also where hours, zones or both are unknown, and for a day with other offsets."""
    rng = np.random.default_rng(7)
    n = 1_000
    some = {name: rng.integers(0, 1_441, n) for name in ("hours_start", "hours_end")}
    some |= {"zone": rng.integers(-1, 5, n), "overlap_minutes": rng.integers(0, 600, n)}
    scalars = {
        name: np.where(rng.random(n) < 0.2, UNKNOWN, column).astype(np.int32)
        for name, column in some.items()
    }
    segment = Segment(np.zeros((n, 1), np.int8), np.arange(n, dtype=np.uint64), scalars)
    for offsets in ((0, 60, -720, 840), (60, 120, -660, 780)):
        for required in (None, 0, 240):
            p = HoursOverlap(offsets, 1_380, 300, required, "HOURS", True)
            for rows in (slice(0, n), slice(64, 700), slice(990, 1_000)):
                chosen = np.arange(n)[rows]
                of_slice = rules.verdict(p, rules.Rows(segment, rows))
                of_rows = rules.verdict(p, rules.Rows(segment, chosen))
                one_by_one = [rules.verdict(p, rules.Rows(segment, chosen[[i]])) for i in range(9)]
                for got, wanted, single in zip(
                    of_slice, of_rows, zip(*one_by_one, strict=True), strict=True
                ):
                    assert (got == wanted).all()
                    assert [bool(flag[0]) for flag in single] == wanted[:9].tolist()
    assert len(segment.memo) == 2


def test_vetoes_lists_all_that_fail_and_all_that_are_unsure():
    scalars = {"rate": np.array([50, UNKNOWN], np.int32), "level": np.array([2, 2], np.int32)}
    segment = Segment(np.zeros((2, 1), np.int8), np.array([7, 8], np.uint64), scalars)
    corpus = Corpus(((segment, None),))
    group = (
        InRange("rate", 0, 40, "RATE"),
        OneOf("level", (1,), "LEVEL"),
        InRange("rate", 0, 99, "SOFT", unknown_passes=True),
        KeyIn((7,), "EXCLUDED", negate=True),
    )
    assert Ops().vetoes(corpus, group, 0) == (("RATE", "LEVEL", "EXCLUDED"), ())
    assert Ops().vetoes(corpus, group, 1) == (("RATE", "LEVEL"), ("SOFT",))


def test_vetoes_agree_with_eligibility():
    rng = np.random.default_rng(8)
    parts = tuple((a_segment(rng, n), None) for n in (40, 30))
    corpus = Corpus(parts)
    for _ in range(10):
        group = cases.some_rules(rng, parts[0][0].key_n)
        rows, _ = cases.eligible_rows(corpus, group)
        for row in range(corpus.n):
            assert (not Ops().vetoes(corpus, group, row)[0]) == (row in rows)


@pytest.mark.parametrize(
    "rule", [InRange("nope", 0, 1, "V"), HasAll("nope", (1,), "V"), SubsetOf("nope", (1,), "V")]
)
@pytest.mark.parametrize("indexed", [False, True])
def test_an_unknown_column_is_named(rule, indexed):
    segment = a_segment(np.random.default_rng(9), 10, indexed=indexed)
    with pytest.raises(KeyError, match="nope"):
        Ops().count(Corpus(((segment, None),)), (rule,))


def test_hours_with_too_many_windows_are_evaluated_by_row():
    n = 300_000
    rng = np.random.default_rng(10)
    scalars = {
        name: rng.integers(0, 1_440, n).astype(np.int32)
        for name in ("hours_start", "hours_end", "overlap_minutes")
    }
    scalars["zone"] = np.zeros(n, np.int32)
    segment = cases.with_index(
        Segment(np.zeros((n, 1), np.int8), np.arange(n, dtype=np.uint64), scalars)
    )
    assert "hours.code" not in segment.index
    rule = HoursOverlap((60,), 0, 600, None, "HOURS")
    passed, _ = rules.evaluate(rule, rules.Rows(segment))
    assert (flags(Reader(segment).evaluate(rule)[0], n) == passed).all()


def test_an_index_is_made_of_arrays_that_can_be_stored():
    rng = np.random.default_rng(11)
    for n in (0, 1, 1_000):
        segment = a_segment(rng, n, indexed=False)
        index = build_index(segment.scalars, segment.sets, segment.x_nd, segment.key_n)
        assert all(isinstance(array, np.ndarray) for array in index.values())
        assert not any(array.dtype.hasobject for array in index.values())
        assert len(index) == len(set(index))


def test_an_empty_set_column():
    empty = SetColumn(np.zeros(4, np.int64), np.empty(0, np.uint64), np.ones(3, bool))
    segment = cases.with_index(
        Segment(np.zeros((3, 1), np.int8), np.arange(3, dtype=np.uint64), {}, {"s": empty})
    )
    corpus = Corpus(((segment, None),))
    assert Ops().count(corpus, (SubsetOf("s", (), "V"),)) == (3, 0)
    assert Ops().count(corpus, (HasAll("s", (1,), "V"),)) == (0, 0)


# ── Bits that stay for later queries ──────────────────────────────────────────────────────────


def test_remembered_bits_are_right_bounded_and_hold_no_list_of_keys():
    rng = np.random.default_rng(17)
    segment = a_segment(rng, 300)
    corpus, ops = Corpus(((segment, rng.random(300) < 0.8),)), Ops(threads=1)
    asked = [cases.some_rules(rng, segment.key_n) for _ in range(60)]
    asked += [(InRange("rate", low, low + 20, "RATE"),) for low in range(eligible.REMEMBERED)]
    asked.append((KeyIn(tuple(segment.key_n[:5].tolist()), "KEY"),))
    for group in [*asked, *asked[::-1]]:
        rows, unverified = cases.eligible_rows(corpus, group)
        assert ops.count(corpus, group) == (len(rows), unverified)
        assert len(segment.memo) <= eligible.REMEMBERED
    assert segment.memo
    assert not any(isinstance(predicate, KeyIn) for predicate in segment.memo)
