"""Programs of rule sets: many rules compiled column by column say what they say one by one."""

from __future__ import annotations

from dataclasses import replace

import kernel_cases as cases
import numpy as np
import pytest

from matchwright.kernels import rule_program
from matchwright.kernels.rule_program import FIELDS, HOURS, KINDS, compile_program
from matchwright.kernels.types import (
    NO_LIMIT,
    UNKNOWN,
    EmptyOrHasAny,
    HasAll,
    HasNone,
    HoursOverlap,
    InRange,
    KeyIn,
    OneOf,
    SubsetOf,
)

ODD = (
    InRange("v", -(2**40), 2**40, "V"),
    InRange("v", 2**40, 2**41, "V"),
    InRange("w", -(2**41), -(2**40), "V", unknown_passes=True),
    InRange("v", 5, 4, "V"),
    InRange("v", UNKNOWN, NO_LIMIT, "V", unknown_passes=True),
    OneOf("v", (), "V", negate=True),
    OneOf("v", (-1, UNKNOWN, 7), "V"),
    OneOf("v", (7, 7, 3), "V", unknown_passes=True),
    HasAll("s", (2**64 - 1, 5), "S"),
    HasNone("s", (5,), "S", unknown_passes=True),
    EmptyOrHasAny("s", (9, 8), "S"),
    SubsetOf("t", tuple(range(40)), "S"),
    HoursOverlap((0, -600, 345), 60, 600, None, "H"),
    HoursOverlap((0, -600, 345), None, 600, 2**40, "H", unknown_passes=False),
    HoursOverlap((0,), 60, 600, -(2**40), "H"),
    KeyIn((), "K"),
    KeyIn((3, 1, 2**63), "K", negate=True),
)


def told(program):
    """What each rule of each group says, wherever its columns and values lie."""
    sets = []
    for begin, end in zip(program.start_g[:-1], program.start_g[1:], strict=True):
        sets.append([line(program, rule) for rule in program.rule_m8[begin:end].tolist()])
    return sets


def line(program, rule):
    said = dict(zip(FIELDS, rule, strict=True))
    begin, many = said.pop("from"), said.pop("many")
    said["values"] = program.pool[begin : begin + many].tolist()
    assert len(said["values"]) == many
    column = said.pop("column")
    if said["kind"] == KINDS[HoursOverlap]:
        said["columns"] = program.slots[column : column + 4]
        assert said["columns"] == tuple(("scalar", name) for name in HOURS)
    elif said["kind"] != KINDS[KeyIn]:
        said["columns"] = program.slots[column]
    return said


def both(monkeypatch, groups):
    """The program of some groups, compiled one by one and column by column."""
    monkeypatch.setattr(rule_program, "MANY", 1 << 30)
    single = compile_program(groups)
    monkeypatch.setattr(rule_program, "MANY", 0)
    return single, compile_program(groups)


def assert_same(single, columnar):
    assert told(single) == told(columnar)
    assert single.needed == columnar.needed
    assert set(single.slots) == set(columnar.slots)
    assert [*single.groups] == [*columnar.groups]
    for name in ("rule_m8", "start_g", "pool"):
        one, other = getattr(single, name), getattr(columnar, name)
        assert (one.dtype, one.ndim) == (other.dtype, other.ndim)
        assert other.flags.c_contiguous


def test_columns_say_what_rules_say_one_by_one(monkeypatch, count):
    rng = np.random.default_rng(1)
    for _ in range(count(reduced=150, full=5_000)):
        keys = cases.some_keys(rng, 30)
        groups = [cases.some_rules(rng, keys, 4) for _ in range(int(rng.integers(0, 9)))]
        if rng.random() < 0.5:  # some of them the very same objects, or empty
            groups += [groups[i] for i in rng.integers(0, len(groups), 3)] if groups else [()]
            groups.append(())
        assert_same(*both(monkeypatch, groups))


@pytest.mark.parametrize("rule", ODD)
def test_odd_constants(monkeypatch, rule):
    """Alone, and among others of its kind that are not odd."""
    plain = (InRange("v", 1, 2, "V"), OneOf("v", (1, 2), "V"), HasAll("s", (1, 2), "S"))
    huge = replace(ODD[0], low=-(2**90), high=2**90)
    for groups in ([(rule,)], [plain, (rule,), plain], [(rule, huge), (), ODD]):
        assert_same(*both(monkeypatch, groups))


def test_nothing_to_compile(monkeypatch):
    for groups in ([], [()], [(), ()]):
        single, columnar = both(monkeypatch, groups)
        assert_same(single, columnar)
        assert columnar.pool.size == 1
        assert columnar.start_g.tolist() == [0] * (len(groups) + 1)


def test_many_rules_are_compiled_in_columns(monkeypatch):
    """Predicates that are one object are looked at once; equal lists share a place."""
    seen = []

    class Columns(rule_program._Columns):
        def __init__(self, distinct):
            seen.append(len(distinct))
            super().__init__(distinct)

    monkeypatch.setattr(rule_program, "_Columns", Columns)
    everybody = (OneOf("level", (1, 2), "LEVEL"), HasNone("s", (7, 9), "S"))
    groups = [(InRange("v", 0, top, "V"), *everybody) for top in range(200)]
    groups.append((HasAll("s", (9, 7), "S"), HasAll("s", (7, 9), "S")))
    program = compile_program(groups)
    assert seen == [200 + 2 + 2]
    assert program.rule_m8.shape == (602, 8)
    assert program.pool.tolist() == [1, 2, 7, 9] or program.pool.tolist() == [7, 9, 1, 2]
    compile_program(groups[:85])
    assert len(seen) == 1, "255 rules are few"


def test_some_of_the_groups(monkeypatch):
    rng = np.random.default_rng(2)
    groups = [(), *(cases.some_rules(rng, cases.some_keys(rng, 9), 4) for _ in range(6)), ODD]
    for program in both(monkeypatch, groups):
        for some in ([], [0], [7, 0, 3], [1, 2, 4, 5], list(range(8))):
            part = program.take(np.array(some, np.int32))
            assert told(part) == [told(program)[g] for g in some]
            assert [*part.groups] == [groups[g] for g in some]
            assert part.rule_m8.dtype == part.start_g.dtype == np.int32
            assert part.slots is program.slots
            assert part.pool is program.pool
