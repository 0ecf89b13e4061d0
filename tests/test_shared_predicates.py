"""Predicates that recur are one object, whoever asks; those that only one asks are not kept."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest

from matchwright.engine import rule_shapes, synthetic
from matchwright.engine.eligibility import RULES, Veto, compile_rules
from matchwright.engine.matcher import as_queries
from matchwright.engine.policy import Policy
from matchwright.engine.prepare import _compiled, _Draft
from matchwright.engine.request import Request
from matchwright.engine.rule_shapes import Day, QueryRow
from matchwright.engine.shared_predicates import REMEMBERED, VALUES_MOST, shared, shared_list
from matchwright.kernels.types import NO_LIMIT, HasAll, HasNone, HoursOverlap, InRange, KeyIn

ENTITIES = 60
DEFAULT = Policy.load()
EFFECTIVE = DEFAULT.effective()


@cache
def records(kind):
    return synthetic.frame(kind, ENTITIES).to_dicts()


def compiled(kind, days=(synthetic.AS_OF,), policies=(EFFECTIVE,), only=None):
    """The rules of all entities of a kind, on these days and under these policies in turn."""
    rows, zones = records(kind), sorted({row["zone"] for row in records(kind) if row["zone"]})
    at = range(ENTITIES) if only is None else [only]
    drafts = []
    for n in at:
        request = Request(kind=kind, id=rows[n]["id"], k=5, as_of=days[n % len(days)])
        drafts.append(_Draft(n, request, policies[n % len(policies)], rows[n], False, request.id))
    snapshot = SimpleNamespace(generation=SimpleNamespace(zones=zones), salt=bytes(16))
    keys = [1_000 + n for n in at]
    return _compiled(snapshot, kind, drafts, [rows[n] for n in at], keys)


@pytest.mark.parametrize("kind", ["job", "freelancer"])
def test_what_recurs_is_one_object(kind):
    """But for keys, which are everybody's own, and for long lists."""
    rules = [rule for query in compiled(kind) for rule in query.predicates]
    kept = [
        rule
        for rule in rules
        if not isinstance(rule, KeyIn)
        and rule.veto != Veto.EXCLUDED_BY_CLIENT
        and len(getattr(rule, "values", ())) <= VALUES_MOST
    ]
    assert len({id(rule) for rule in kept}) == len(set(kept)) < 0.6 * len(kept)


@pytest.mark.parametrize("kind", ["job", "freelancer"])
def test_rules_are_those_of_each_query_alone(kind, monkeypatch):
    """A day of its own, a policy of its own: nothing is taken from a neighbour."""
    days = [synthetic.AS_OF + 90 * n for n in range(3)]
    policies = [EFFECTIVE, DEFAULT.effective(rules={"same_category": {"enabled": True}})]
    together = compiled(kind, days, policies)
    for name in ("shared", "shared_list"):
        monkeypatch.setattr(rule_shapes, name, lambda form, *rest: form(*rest))
    alone = [compiled(kind, days, policies, n)[0] for n in range(ENTITIES)]
    assert len({repr(one) for one in alone}) > ENTITIES / 2
    for one, other in zip(together, alone, strict=True):
        assert repr(one) == repr(other)


def test_equal_is_not_enough():
    """What is shared is what would have been made, down to the types of its fields."""
    shared.cache_clear()
    name, member = "JOB_OVER", Veto.JOB_OVER
    assert name == member
    first, second = shared(InRange, "v", 0, 1, name), shared(InRange, "v", 0, 1, member)
    assert first is not second
    assert type(first.veto) is str
    assert type(second.veto) is Veto
    assert shared(InRange, "v", 0, 1, member) is second


def test_what_is_kept_is_bounded():
    long = tuple(range(VALUES_MOST + 1))
    assert shared_list(HasAll, "s", long, "S") is not shared_list(HasAll, "s", long, "S")
    short = long[1:]
    assert shared_list(HasNone, "s", short, "S") is shared_list(HasNone, "s", short, "S")
    assert shared.cache_info().maxsize == REMEMBERED


def test_hours_of_a_day():
    """One object on a day; on another day, with other offsets, another one."""
    winter, summer = Day(1, (0, 60)), Day(2, (60, ENTITIES))
    asks = (60, 600, ENTITIES, "HOURS", True)
    assert winter.overlap(*asks) is winter.overlap(*asks)
    assert winter.overlap(*asks) == HoursOverlap((0, 60), *asks)
    assert winter.overlap(*asks) != summer.overlap(*asks)
    assert hash(winter.overlap(*asks)) == hash(summer.overlap(*asks))
    assert len({winter.overlap(*asks), summer.overlap(*asks)}) == 2
    assert winter == Day(1, (0, 60))
    assert hash(winter) == hash(Day(1, (0, 60)))


def test_groups_are_still_found_by_content():
    """Equal rule sets whose predicates are not the same objects are one group."""
    first = [one.predicates for one in compiled("freelancer")]
    shared.cache_clear()
    again = [one.predicates for one in compiled("freelancer")]
    assert not {id(rule) for rules in first for rule in rules} & {
        id(rule) for rules in again for rule in rules
    }
    query = SimpleNamespace(q_d=np.zeros(1, np.int16), key=1, floor=None)
    queries = as_queries([SimpleNamespace(**vars(query), rules=one) for one in (*first, *again)])
    assert len(queries.groups) == len(set(first)) > 1
    assert queries.group_q[:ENTITIES].tolist() == queries.group_q[ENTITIES:].tolist()


def test_one_query_and_all_of_a_table_ask_the_same():
    """Rule columns may be arrays or lists."""
    scalars = {name: [1] for rule in RULES for name in rule.columns("freelancer")}
    day, settings = Day(1, (0, 0)), Policy.load().effective().rules
    only = {"rate_ceiling": settings["rate_ceiling"]}
    row = QueryRow("freelancer", scalars, {}, 0, None)
    wanted = (InRange("rate_ceiling", 1, NO_LIMIT, Veto.RATE_ABOVE_CEILING),)
    assert compile_rules(row, only, day).predicates == wanted
