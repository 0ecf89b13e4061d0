"""The rules of a block, rule by rule: those of its entities one by one."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rule_referee import FREELANCERS, JOBS, SETTINGS, ZONES, segment_of

from matchwright.engine import synthetic
from matchwright.engine.block_rules import compile_block
from matchwright.engine.eligibility import KEY, RULES, compile_enabled, enabled
from matchwright.engine.policy import Policy
from matchwright.engine.rule_shapes import ASKS, Day, QueryRow
from matchwright.engine.zones import offset_minutes

DAY = Day(synthetic.AS_OF, offset_minutes(ZONES, synthetic.AS_OF))
RECORDS = {"job": JOBS, "freelancer": FREELANCERS}
KINDS = sorted(RECORDS)


@cache
def synthetic_rows(kind):
    return segment_of(kind, synthetic.frame(kind, 60, block=60).to_dicts())


def one_by_one(kind, rows, rules):
    asked = tuple(enabled(rules))
    return [
        compile_enabled(QueryRow(kind, rows.scalars, rows.sets, n, int(rows.key_n[n])), asked, DAY)
        for n in range(rows.n)
    ]


def check(kind, rows, rules):
    """The block's rules, compared with those of each row."""
    alone = one_by_one(kind, rows, rules)
    block = compile_block(kind, rows, enabled(rules), DAY)
    made = [block.groups[group] for group in block.group_q.tolist()]
    assert repr(made) == repr([one.predicates for one in alone])
    assert block.never_q.tolist() == [bool(one.never) for one in alone]
    assert block.unsure_q.tolist() == [bool(one.unsure) for one in alone]
    assert set(block.group_q.tolist()) == set(range(len(block.groups)))
    return block


@pytest.mark.parametrize("kind", KINDS)
def test_a_block_is_its_entities_one_by_one(kind):
    @settings(max_examples=25)
    @given(SETTINGS, st.lists(RECORDS[kind], max_size=6))
    def agree(asked, records):
        named = [{**row, "id": f"{kind}-{n // 2}"} for n, row in enumerate(records)]
        check(kind, segment_of(kind, named), asked)

    agree()


@pytest.mark.parametrize("kind", KINDS)
def test_queries_with_the_same_rules_are_one_group(kind):
    """What recurs is one object, so groups are told by which objects they have."""
    rows = synthetic_rows(kind)
    rules = Policy.load().effective().rules
    block = check(kind, rows, rules)
    assert len(block.groups.predicates) == len({id(one) for one in block.groups.predicates})
    # Their last days differ, and have not passed: nothing that anybody would ask differs.
    some = np.arange(rows.n) % 5
    scalars = {name: column[some] for name, column in rows.scalars.items()}
    if kind == "job":
        scalars["closes"] = DAY.as_of + np.arange(rows.n, dtype=np.int32)
    few = {name: rules[name] for name in ("job_closing", "pay_minimum", "rate_budget")}
    assert len(check(kind, replace(rows, scalars=scalars), few).groups) <= 5


def test_entities_that_nothing_is_asked_for():
    rows = segment_of("job", [{"id": "a"}, {"id": "b"}])
    asked = Policy.load().effective().rules
    block = compile_block("job", rows, enabled(asked), DAY)
    assert block.among(np.arange(2), 2) is block
    among = block.among(np.array([3, 1]), 5)
    rules = [among.groups[group] for group in among.group_q.tolist()]
    own = [block.groups[group] for group in block.group_q.tolist()]
    assert rules == [(), own[1], (), own[0], ()]
    assert list(among.groups)[-1] == ()
    nobody = compile_block("job", segment_of("job", []), enabled(asked), DAY)
    assert len(nobody.groups) == 0
    assert nobody.among(np.zeros(0, np.int64), 2).group_q.tolist() == [0, 0]
    assert [*compile_block("job", rows, (), DAY).groups] == [()]


class Watched(dict):
    """Columns that remember which of them were read."""

    def __init__(self, columns):
        super().__init__(columns)
        self.read = set()

    def __getitem__(self, name):
        self.read.add(name)
        return super().__getitem__(name)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_a_rule_reads_what_it_says(kind, rule):
    """Nothing else may decide what it asks: rows that are alike in that are asked once."""
    setting = Policy.load().effective().rules[rule.name]
    rows = synthetic_rows(kind)
    read, keyed = set(), False
    for n in range(60):
        scalars, sets = Watched(rows.scalars), Watched(rows.sets)
        own = list(rule.shape.ask(QueryRow(kind, scalars, sets, n, 1), rule.veto, setting, DAY))
        other = list(rule.shape.ask(QueryRow(kind, scalars, sets, n, 2), rule.veto, setting, DAY))
        read |= scalars.read | sets.read
        keyed |= own != other
    told = set(rule.reads(kind))
    assert read <= told - {KEY}
    assert keyed == (KEY in told)
    assert not any(name.startswith(ASKS) for name in told)
