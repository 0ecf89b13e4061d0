"""The rules of a block of entities that ask, rule by rule.

What a rule asks depends on a few of the columns of whoever asks, and most entities have the same
values there. So each rule is asked once for every *different* value in a block::

    columns that a rule reads ──> which_q, the different ones ── form.ask() ──> outcomes
                                     └─────────────── outcome of each query <──────┘

Queries whose outcomes are the same objects, for every rule, are one group.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from matchwright.engine.eligibility import KEY, Rule
from matchwright.engine.records import Kind
from matchwright.engine.rule_shapes import Day, Outcome, QueryRow, Setting, Verdict
from matchwright.kernels.rule_sets import RuleSets
from matchwright.kernels.types import Bool, Int32, Int64, KeyIn, Segment, SetColumn


@dataclass(frozen=True, slots=True, eq=False)
class CompiledBlock:
    """The rules of Q entities that ask.

    Attributes:
        groups: the rule sets; those of different groups differ.
        group_q: int32 (Q,), which of them each entity is under.
        never_q: bool (Q,), the entity fails some rule against every row.
        unsure_q: bool (Q,), every row passes some rule unverified.
    """

    groups: RuleSets
    group_q: Int32
    never_q: Bool
    unsure_q: Bool

    def among(self, at: Int64, q: int) -> CompiledBlock:
        """The same entities at some positions among q; nothing is asked for the others."""
        if np.array_equal(at, np.arange(q)):
            return self
        group_q = np.full(q, len(self.groups), dtype=np.int32)
        never_q, unsure_q = np.zeros((2, q), dtype=np.bool_)
        group_q[at], never_q[at], unsure_q[at] = self.group_q, self.never_q, self.unsure_q
        start_g = np.append(self.groups.start_g, self.groups.start_g[-1])
        groups = RuleSets(self.groups.predicates, self.groups.which_m, start_g)
        return CompiledBlock(groups, group_q, never_q, unsure_q)


def compile_block(
    kind: Kind, rows: Segment, asked: Iterable[tuple[Rule, Setting]], day: Day
) -> CompiledBlock:
    """``eligibility.compile_enabled`` for every row.

    Args:
        kind: what the rows are.
        rows: the Q entities that ask; of their arrays, keys and rule columns are read.
        asked: what ``eligibility.enabled`` gives.
        day: the day asked for.
    """
    alike, made = _Alike(rows), _Outcomes(rows.n)
    keys = rows.key_n.tolist()
    scalars = {name: column.tolist() for name, column in rows.scalars.items()}
    for rule, setting in asked if rows.n else ():
        which_q, row_u = alike.by(rule.reads(kind))
        queries = (QueryRow(kind, scalars, rows.sets, n, keys[n]) for n in row_u.tolist())
        ask, veto = rule.shape.ask, rule.veto
        made.add([tuple(ask(query, veto, setting, day)) for query in queries], which_q, veto)
    return made.block()


class _Alike:
    """Which rows have the same values in some columns.

    Args:
        rows: Q of them.
    """

    def __init__(self, rows: Segment) -> None:
        self._rows = rows
        self._known: dict[tuple[str, ...], tuple[Int64, Int64]] = {}

    def by(self, names: tuple[str, ...]) -> tuple[Int64, Int64]:
        """(int64 (Q,) number of each row's values, int64 (U,) a row that has each number)."""
        if names not in self._known:
            self._known[names] = self._several(names) if len(names) != 1 else self._one(names[0])
        return self._known[names]

    def _several(self, names: tuple[str, ...]) -> tuple[Int64, Int64]:
        which_q, row_u = np.zeros(self._rows.n, np.int64), np.zeros(1, np.int64)
        for name in names:
            other_q, other_u = self.by((name,))
            if other_u.size > 1:
                which_q, row_u = _numbered(which_q * other_u.size + other_q)
        return which_q, row_u[: self._rows.n]

    def _one(self, name: str) -> tuple[Int64, Int64]:
        if name == KEY:
            everybody = np.arange(self._rows.n)
            return everybody, everybody
        column = self._rows.scalars.get(name)
        return _numbered(_set_numbers(self._rows.sets[name]) if column is None else column)


def _numbered(value_q: Int32 | Int64) -> tuple[Int64, Int64]:
    different, which_q = np.unique(value_q, return_inverse=True)
    row_u = np.zeros(different.size, dtype=np.int64)
    row_u[which_q] = np.arange(which_q.size)
    return which_q, row_u


def _set_numbers(column: SetColumn) -> Int64:
    """int64 (Q,): equal numbers for equal sets, -1 for those that are not known."""
    number_q = np.where(column.known_n, 0, -1)
    some = np.flatnonzero(column.known_n & (np.diff(column.start_n) > 0))
    words, start_n = column.value.astype(np.uint64).tobytes(), column.start_n * 8
    spans = zip(start_n[some].tolist(), start_n[some + 1].tolist(), strict=True)
    sets = [words[low:high] for low, high in spans]
    numbers = dict(zip(dict.fromkeys(sets), itertools.count(1), strict=False))
    number_q[some] = [*map(numbers.__getitem__, sets)]
    return number_q


class _Outcomes:
    """Different outcomes of rules, by number, and which of them each of Q rows has.

    Args:
        q: rows.
    """

    def __init__(self, q: int) -> None:
        self._told: list[tuple[Outcome, ...]] = [()]  # number 0: nothing is asked
        self._outcome_rq = [np.zeros(q, dtype=np.int64)]
        self._verdict_q = {verdict: np.zeros(q, dtype=np.bool_) for verdict in Verdict}

    def add(self, outcomes: Sequence[tuple[Outcome, ...]], which_q: Int64, veto: str) -> None:
        """The outcomes of one rule, and which of them is each row's."""
        objects = [tuple(map(id, outcome)) for outcome in outcomes]
        different = dict(zip(objects, outcomes, strict=True))
        number = dict(zip(different, itertools.count(len(self._told)), strict=False))
        number_u = np.fromiter(map(number.__getitem__, objects), np.int64, len(objects))
        self._outcome_rq.append(number_u[which_q])
        for verdict, predicates in _VERDICTS.items():
            alone = (id(verdict),)
            if alone in different:
                different[alone] = tuple(form((), veto) for form in predicates)
                self._verdict_q[verdict] |= self._outcome_rq[-1] == number[alone]
        self._told += different.values()

    def block(self) -> CompiledBlock:
        """All rows, those with the same outcomes as one group."""
        outcome_qr = np.stack(self._outcome_rq, axis=1)
        written, width = outcome_qr.tobytes(), outcome_qr.itemsize * outcome_qr.shape[1]
        numbers: dict[bytes, int] = {}
        ends = range(width, len(written) + 1, width)
        rows = (numbers.setdefault(written[end - width : end], len(numbers)) for end in ends)
        group_q = np.fromiter(rows, np.int32, len(outcome_qr))
        outcome_gr = outcome_qr[np.unique(group_q, return_index=True)[1]]
        told: list[Any] = self._told  # predicates alone: verdicts have been replaced
        every = RuleSets.of(told).take(outcome_gr.ravel())
        return CompiledBlock(
            groups=RuleSets(every.predicates, every.which_m, every.start_g[:: outcome_gr.shape[1]]),
            group_q=group_q,
            never_q=self._verdict_q[Verdict.NEVER],
            unsure_q=self._verdict_q[Verdict.UNSURE],
        )


_VERDICTS: Mapping[Verdict, Sequence[type[KeyIn]]] = {Verdict.NEVER: (KeyIn,), Verdict.UNSURE: ()}
"""The predicates of a verdict: one that no row passes, or none."""
