"""What the exposure pass did to one direction of a run, and what it cost, as numbers.

Sums of scores are made from exact integer sums of points, query by query, and added up by
``math.fsum``, which does not depend on the order: the figures do not depend on the units.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from matchwright.engine.policy_exposure import Exposure
from matchwright.engine.runs.exposure_choice import Block, Choice, Moved, People, groups_over
from matchwright.kernels.types import Bool, Float64, Int64


class Figures:
    """Adds up blocks of queries.

    Args:
        q: queries of the direction.
        people: everybody who could be shown.
        k: matches of a query at most.
        ask: the settings.
    """

    def __init__(self, q: int, people: People, k: int, ask: Exposure) -> None:
        self.people, self.k, self.ask = people, k, ask
        self.before_n, self.after_n = (np.zeros(people.new_n.size, dtype=np.int64) for _ in "ab")
        self.first_q, self.lost_q = (np.zeros(q, dtype=np.float64) for _ in "ab")
        self.shown_moved, self.left_moved = (np.zeros(len(Moved), dtype=np.int64) for _ in "ab")
        self.count = dict.fromkeys(
            (
                "queries", "queries_touched", "queries_changed", "queries_over_cap", "rows",
                "newcomer_before", "newcomer_after", "alike_before", "alike_after",
            ),
            0,
        )  # fmt: skip

    def add(self, places: slice, block: Block, choice: Choice, t_q: Float64) -> None:
        """One block, whose queries have these places."""
        there, count = block.there_qw, self.count
        slot = np.arange(there.shape[1])
        first = there & (slot < self.k)
        shown = slot < choice.shown_q[:, None]
        after = _slots(shown, choice)
        self.first_q[places] = _points(block, first) * t_q
        self.lost_q[places] = (_points(block, first) - _points(block, after)) * t_q
        self.before_n += np.bincount(block.person_qw[first], minlength=self.before_n.size)
        self.after_n += np.bincount(block.person_qw[after], minlength=self.after_n.size)
        self.shown_moved += np.bincount(choice.moved_qw[shown], minlength=len(Moved))
        left = (choice.slot_qw >= 0) & (choice.slot_qw < self.k) & ~shown
        self.left_moved += np.bincount(choice.moved_qw[left], minlength=len(Moved))
        count["queries"] += there.shape[0]
        count["rows"] += int(shown.sum())
        count["queries_touched"] += _lines(shown & (choice.moved_qw != Moved.NOT))
        count["queries_changed"] += _lines(first & ~after)
        count["queries_over_cap"] += _lines(shown & (choice.moved_qw == Moved.OVER_CAP))
        as_was = np.where(there, slot, -1).astype(np.int16)
        for name, order, size_q in (
            ("before", as_was, first.sum(axis=1)),
            ("after", choice.slot_qw, choice.shown_q),
        ):
            order = np.where(slot < size_q[:, None], order, -1)
            self._look(name, block, order)

    def _look(self, name: str, block: Block, order: Any) -> None:
        within = min(self.ask.newcomers_within, self.k)
        if within:
            head = order[:, :within]
            person = np.take_along_axis(block.person_qw, np.maximum(head, 0).astype(np.int64), 1)
            new = (head >= 0) & self.people.new_n[np.maximum(person, 0)]
            self.count[f"newcomer_{name}"] += _lines(new)
        within = min(self.ask.alike_within, self.k)
        if within:
            over = groups_over(block, order[:, :within], self.people, self.ask.alike_max)
            self.count[f"alike_{name}"] += int(over.sum())

    def to_dict(self, rounds: int) -> dict[str, Any]:
        """The figures of run.json; docs/runs.md says what each is."""
        count, lost = self.count, math.fsum(self.lost_q.tolist())
        first, rows = math.fsum(self.first_q.tolist()), max(count["rows"], 1)
        cap = self.ask.shown_max
        grouped = self.people.group_n[self.people.group_n >= 0]
        return {
            "queries": count["queries"],
            "queries_touched": count["queries_touched"],
            "queries_changed": count["queries_changed"],
            "rows": count["rows"],
            "rows_moved": _named(self.shown_moved),
            "rows_left": _named(self.left_moved),
            "score_lost": lost,
            "score_lost_per_row": lost / rows,
            "score_lost_per_query_changed": lost / max(count["queries_changed"], 1),
            "score_lost_share": lost / first if first else 0.0,
            "people_shown_before": int(np.count_nonzero(self.before_n)),
            "people_shown_after": int(np.count_nonzero(self.after_n)),
            "most_shown_before": int(self.before_n.max(initial=0)),
            "most_shown_after": int(self.after_n.max(initial=0)),
            "cap": {
                "shown_max": cap,
                "people_over_before": int((self.before_n > cap).sum()) if cap else 0,
                "people_over_after": int((self.after_n > cap).sum()) if cap else 0,
                "rows_over_after": int(self.shown_moved[Moved.OVER_CAP]),
                "queries_over_after": count["queries_over_cap"],
                "holds": not cap or bool((self.after_n <= cap).all()),
                "rounds": rounds,
            },
            "newcomers": {
                "within": min(self.ask.newcomers_within, self.k),
                "people": int(self.people.new_n.sum()),
                "queries_with_before": count["newcomer_before"],
                "queries_with_after": count["newcomer_after"],
                "rows_before": int(self.before_n[self.people.new_n].sum()),
                "rows_after": int(self.after_n[self.people.new_n].sum()),
            },
            "alike": {
                "within": min(self.ask.alike_within, self.k),
                "groups": int(np.unique(grouped).size),
                "people": int(grouped.size),
                "queries_over_before": count["alike_before"],
                "queries_over_after": count["alike_after"],
            },
        }


def _named(counts: Int64) -> dict[str, int]:
    return {why.name.lower(): int(counts[why]) for why in Moved if why != Moved.NOT and counts[why]}


def _slots(shown: Bool, choice: Choice) -> Bool:
    """bool (Q, W) over slots: which are shown."""
    flags = np.zeros(shown.shape, dtype=np.bool_)
    line, place = np.nonzero(shown)
    flags[line, choice.slot_qw[line, place]] = True
    return flags


def _points(block: Block, flags: Bool) -> Int64:
    """int64 (Q,): sums of points."""
    sums: Int64 = np.where(flags, block.points_qw, 0).sum(axis=1, dtype=np.int64)
    return sums


def _lines(flags: Bool) -> int:
    return int(flags.any(axis=1).sum())
