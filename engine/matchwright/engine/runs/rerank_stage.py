"""The second phase as a stage of a run: one client asks the model about a unit's candidates.

::

    executor       first phase and features of unit n + 1
    this stage     asks about all candidates of unit n, checks, orders; then it is written

Whoever does the work computes features; this process alone talks to the server, so a run has one
place that waits for it. A unit is asked about as a whole: it is in the model's order, or it is not
written, or (``allow_degraded``) every query of it is marked.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from matchwright.engine.errors import (
    Cancelled,
    DeadlineExceeded,
    MatchwrightError,
    ModelLate,
    ModelUnavailable,
    ModelWrong,
)
from matchwright.engine.rerank.rerank import Ranker, reason_of
from matchwright.engine.rerank.rerank_order import on_grid
from matchwright.engine.runs import second
from matchwright.engine.runs.block import BlockAnswer
from matchwright.engine.runs.plan import Plan, Unit
from matchwright.kernels.types import Int32

WAIT_S = 300.0
"""How long a run waits for a model that does not answer, unless it is said."""
CALL_S = 20.0
"""Deadline of one call: the largest batch, with room; what a server that hangs costs each time."""
WRONG_MAX = 3
"""Answers in a row that cannot be used, after which waiting is given up: it is not down."""
REST_S, REST_MAX_S, TELL_S = 0.2, 2.0, 10.0
"""Between two questions, growing; between two lines that say that it waits."""

Why = Callable[[], str | None]
"""Why to stop now, or None to go on."""
Tell = Callable[[str, Mapping[str, Any]], None]
"""``tell(event, fields)``."""


def silent(event: str, fields: Mapping[str, Any]) -> None:
    """Nobody listens."""


class RerankStage:
    """Orders blocks by a served model. For one thread at a time.

    Args:
        plan: the run's; it pins the model.
        ranker: that model, with its client.
        wait_s: how long to wait, from its last answer on, for a model that does not answer.
        tell: told of waiting, and of its end.
        clock: seconds, as of the ranker's deadlines.

    Raises:
        FailedPrecondition: the ranker is not the one that was planned.
    """

    def __init__(
        self,
        plan: Plan,
        ranker: Ranker,
        *,
        wait_s: float = WAIT_S,
        tell: Tell = silent,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if plan.ranker is None:
            raise ValueError(f"run {plan.run_id} has no second phase")
        plan.ranker.refuse_other(ranker, plan.run_id)
        self.plan, self.ranker = plan, ranker
        self.tell = tell
        self._wait_s, self._clock = wait_s, clock
        self._ended = threading.Event()
        self._stop: Why = lambda: None
        self._since: float | None = None
        self._told = 0.0
        self._wrong = 0
        self._tries = 0

    def listen(self, tell: Tell, stop: Why) -> None:
        """Who is told of waiting, and who may end it."""
        self.tell, self._stop = tell, stop

    def end(self) -> None:
        """Ends a wait from another thread: it raises ``Cancelled``."""
        self._ended.set()

    def apply(self, unit: Unit, answer: BlockAnswer) -> BlockAnswer:
        """A unit in the model's order, or marked as degraded where the plan allows that.

        Raises:
            ModelUnavailable: the model did not answer for as long as was to be waited.
            ModelWrong: what it answers cannot be used.
            DeadlineExceeded, Cancelled: waiting was ended.
        """
        features = answer.features_cf
        if features is None:
            raise ValueError(f"{unit} has no features: its executor knows no ranker")
        began = self._clock()
        calls = -(-len(features) // self.ranker.rows_max)
        most = self.plan.options.candidates
        why, made = "", answer
        try:
            scores = self._scores(unit, answer, features)
            made = second.reordered(answer, scores, most, calls=calls)
        except _GaveUp as gave_up:
            if not self.plan.options.allow_degraded:
                raise gave_up.error from None
            why = gave_up.reason
            made = second.degraded(answer, why)
        made.seconds["model"] = self._clock() - began
        return made

    def _scores(self, unit: Unit, answer: BlockAnswer, features: Int32) -> Int32:
        """int32 (C,): scores of all candidates, waited for.

        Raises:
            _GaveUp: it was waited for long enough.
        """
        while True:
            try:
                scores = self._asked(answer, features)
            except (ModelUnavailable, ModelLate, ModelWrong, TimeoutError) as error:
                self._rest(unit, error)
                continue
            self._answered()
            return scores

    def _asked(self, answer: BlockAnswer, features: Int32) -> Int32:
        trees, most = self.ranker.trees, self.ranker.rows_max
        served = [np.zeros(0, dtype=np.float32)]
        for low in range(0, len(features), most):
            rows = features[low : low + most]
            served.append(self.ranker.served(rows, self._clock() + CALL_S))
        scores = on_grid(np.concatenate(served), trees.grid_bits)
        if scores is None:
            raise ModelWrong(
                f"{self.ranker} answered scores that are not on the grid of its trees "
                f"(2**-{trees.grid_bits})",
                model=self.ranker,
            )
        shown = second.returned_candidates(answer, scores, self.plan.options.candidates)
        exact = trees.score(features[shown])
        wrong = int(np.count_nonzero(exact != scores[shown]))
        if wrong:
            raise ModelWrong(
                f"{self.ranker} answered scores of which {wrong:,} of {shown.size:,} are not what "
                "its exported trees give; is the server's repository another one? check it with "
                "`matchwright models check --server`",
                model=self.ranker,
            )
        return scores

    def _answered(self) -> None:
        if self._since is not None:
            seconds = round(self._clock() - self._since, 1)
            told = {"text": f"{self.ranker} answers again, after {seconds:,.1f} s"}
            self.tell("answers", {**told, "model": str(self.ranker), "waited_s": seconds})
        self._since, self._wrong, self._tries = None, 0, 0

    def _rest(self, unit: Unit, error: Exception) -> None:
        """Waits a little, or gives up.

        Raises:
            _GaveUp: the model was waited for long enough.
            DeadlineExceeded, Cancelled: waiting was ended.
        """
        now = self._clock()
        if self._since is None:
            self._since, self._told = now, now - TELL_S
        self._wrong = self._wrong + 1 if isinstance(error, ModelWrong) else 0
        left = self._since + self._wait_s - now
        if left <= 0 or self._wrong >= WRONG_MAX:
            raise _GaveUp(self._final(error, now - self._since), str(reason_of(error)))
        if now >= self._told + TELL_S:
            self._told = now
            self._say_waiting(unit, error, left)
        self._look_whether_to_stop(unit)
        self._tries += 1
        if self._ended.wait(min(left, REST_MAX_S, REST_S * self._tries)):
            raise Cancelled(f"run {self.plan.run_id}: waiting for {self.ranker} was ended")

    def _say_waiting(self, unit: Unit, error: Exception, left: float) -> None:
        reason = str(reason_of(error))
        text = f"{self.ranker} does not answer ({reason}); waiting, {left:,.0f} s at most"
        if isinstance(error, ModelWrong):
            text = f"{self.ranker} gives a wrong answer; asking again: {error}"
        fields = {"model": str(self.ranker), "unit": str(unit), "why": reason, "text": text}
        self.tell("waiting", {**fields, "seconds_left": round(left, 1)})

    def _look_whether_to_stop(self, unit: Unit) -> None:
        why = self._stop()
        if why is not None:
            raise DeadlineExceeded(
                f"run {self.plan.run_id}: stopped while {unit} waited for {self.ranker}: {why}",
                run=self.plan.run_id,
            )

    def _final(self, error: Exception, waited: float) -> MatchwrightError:
        """What a run ends with: finished units are kept, this one is not written."""
        reason = str(reason_of(error))
        if isinstance(error, ModelWrong):
            return ModelWrong(f"{error}; finished units are kept", model=self.ranker)
        return ModelUnavailable(
            f"{self.ranker} did not answer for {waited:,.0f} s ({reason}: {error}); finished units "
            "are kept; see to the server, or raise --wait",
            model=self.ranker,
            why=reason,
        )


class _GaveUp(Exception):
    """It was waited for long enough."""

    def __init__(self, error: MatchwrightError, reason: str) -> None:
        super().__init__(str(error))
        self.error, self.reason = error, reason


# ── What run.json says ────────────────────────────────────────────────────────────────────────


def marked(answer: BlockAnswer) -> dict[str, Any]:
    """What a unit's record says of its second phase; nothing where there was none."""
    if answer.second is None:
        return {}
    reasons = Counter(answer.second.degraded.values())
    asked = int(np.count_nonzero(answer.second.score_m != second.NO_SCORE))
    return {
        "degraded": dict(sorted(reasons.items())),
        "model": {"rows": asked, "calls": answer.second.calls},
    }


def told(plan: Plan, records: list[Mapping[str, Any]]) -> dict[str, Any]:
    """What run.json says of the second phase: "rerank", and "degraded", queries in all.

    Args:
        records: of the plan's units.
    """
    if plan.ranker is None:
        return {}
    reasons: dict[str, Counter[str]] = {kind: Counter() for kind in plan.options.kinds}
    rows = calls = 0
    for record in records:
        reasons[record["kind"]].update(record["degraded"])
        rows += record["model"]["rows"]
        calls += record["model"]["calls"]
    return {
        "degraded": sum(sum(some.values()) for some in reasons.values()),
        "rerank": {
            **plan.ranker.determinants,
            "candidates": plan.options.candidates,
            "rows_asked": rows,
            "calls": calls,
            "degraded": {kind: dict(sorted(some.items())) for kind, some in reasons.items()},
        },
    }


def lines(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(label, text) for a terminal; nothing where the run has no second phase."""
    one = summary.get("rerank")
    if one is None:
        return []
    name = f"{one['model']}:{one['version']}"
    found = [("ordered", f"by {name}, {one['rows_asked']:,} candidates in {one['calls']:,} calls")]
    if summary.get("degraded"):
        reasons: Counter[str] = Counter()
        for some in one["degraded"].values():
            reasons.update(some)
        words = ", ".join(f"{n:,} {why}" for why, n in sorted(reasons.items()))
        found.append(("", f"{summary['degraded']:,} queries in the first phase's order: {words}"))
    return found


__all__ = ["CALL_S", "WAIT_S", "RerankStage", "lines", "marked", "silent", "told"]
