"""Rule sets by number: the sets that they were made of, however they are asked for."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from matchwright.kernels.rule_sets import RuleSets, bitmaps_among, rules_among
from matchwright.kernels.types import Bitmap, HasAll, InRange

RANGES = tuple(InRange("v", 0, top, "V") for top in range(4))
EQUAL = InRange("v", 0, 1, "V")
LIST = HasAll("s", (1, 2), "S")
SETS = [
    (RANGES[2], LIST), (), (LIST,), (RANGES[0], RANGES[2], LIST, RANGES[0]), (EQUAL, RANGES[1]), (),
]  # fmt: skip


def same(made, sets):
    assert [*made] == sets
    assert [made[g] for g in range(len(made))] == sets
    assert made[:] == sets
    assert made[1:3] == sets[1:3]
    assert len(made) == len(sets)
    for one, other in zip(made, sets, strict=True):
        assert [*map(id, one)] == [*map(id, other)]


def test_sets_are_what_they_were_made_of():
    made = RuleSets.of(SETS)
    same(made, SETS)
    told = [RANGES[2], LIST, RANGES[0], EQUAL, RANGES[1]]
    assert [*map(id, made.predicates)] == [*map(id, told)], "each object once, in the order met"
    assert RuleSets.of(made) is made
    assert made[-2] == SETS[-2]
    with pytest.raises(IndexError):
        made[len(SETS)]
    apart = [(RANGES[0],), (LIST, RANGES[1])]
    same(RuleSets.of(apart), apart)
    sent = pickle.loads(pickle.dumps(made))
    assert [*sent] == SETS
    assert len(set(map(id, sent.predicates))) == len(made.predicates)
    for none in ([], [()], [(), ()]):
        same(RuleSets.of(none), none)


@pytest.mark.parametrize("some", [[], [0], [1], [4, 0, 2], [3, 3, 1], [5, 4, 3, 2, 1, 0]])
def test_some_of_the_sets(some):
    taken = RuleSets.of(SETS).take(np.array(some, dtype=np.int64))
    same(taken, [SETS[g] for g in some])
    assert set(map(id, taken.predicates)) == {id(one) for g in some for one in SETS[g]}


def test_bitmaps_among_rules():
    bitmap = Bitmap(np.ones(3, dtype=np.bool_))
    mixed = [SETS[0], bitmap, SETS[3]]
    at = np.array([2, 1, 0])
    assert bitmaps_among(mixed).tolist() == [False, True, False]
    assert [*rules_among(mixed, at)] == [SETS[3], SETS[0]]
    made = RuleSets.of(SETS)
    assert bitmaps_among(made).tolist() == [False] * len(SETS)
    assert [*rules_among(made, at)] == [SETS[2], SETS[1], SETS[0]]
