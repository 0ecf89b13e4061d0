"""``run publish``: verify a run, weigh it against the last published one, switch one file.

``OUTPUT/PUBLISHED.json`` names the run that services read. It is replaced as a whole, so a reader
sees the earlier or the later one and nothing in between, whenever the process is killed. It also
holds what was published before, newest first; ``rollback`` goes back along that list.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from matchwright.engine.errors import FailedPrecondition, NotFound, StoreError
from matchwright.engine.records import Kind
from matchwright.engine.runs import lock
from matchwright.engine.runs.folder import PLAN, Output, RunFolder
from matchwright.engine.runs.pairing import Half, Side, side, windows
from matchwright.engine.runs.verify import Verdict
from matchwright.kernels.types import Float64

HISTORY_MAX = 50
LOCK_FILE = "PUBLISH.LOCK"
FIRST_NONE_SHARE = 0.9
"""With nothing to compare with: largest share of queries that may have no match at all."""

Verify = Callable[[RunFolder], Verdict]


@dataclass(frozen=True, kw_only=True, slots=True)
class Thresholds:
    """What a run may look like beside the last published one. Shares are 0..1.

    Attributes:
        under_k_share: most queries with fewer than K matches; None: as before + ``under_k_rise``.
        under_k_rise: by how much their share may rise.
        none_share: most queries with no match; None: as before + ``none_rise``.
        none_rise: by how much their share may rise.
        churn: most of a top K that may be other people, mean over queries in both runs.
        score_drift: how far the median top score may move, relative to the earlier one.
        query_drop: how many queries may be gone, relative to the earlier number.
        degraded: how many queries may be in the first phase's order, although the policy reranks.
    """

    under_k_share: float | None = None
    under_k_rise: float = 0.05
    none_share: float | None = None
    none_rise: float = 0.02
    churn: float = 0.5
    score_drift: float = 0.1
    query_drop: float = 0.2
    degraded: int = 0


@dataclass(frozen=True, slots=True)
class Gate:
    """One condition of publishing.

    Attributes:
        name: what is looked at, such as "job.churn".
        value: the run's figure; None when there is nothing to compare it with.
        limit: the most that is allowed; None when there is no limit.
        note: why it was not compared, or what the limit comes from.
    """

    name: str
    value: float | None
    limit: float | None
    note: str = ""

    @property
    def passed(self) -> bool:
        return self.value is None or self.limit is None or self.value <= self.limit

    def to_dict(self) -> dict[str, Any]:
        return {
            "gate": self.name,
            "value": None if self.value is None else round(self.value, 6),
            "limit": None if self.limit is None else round(self.limit, 6),
            "passed": self.passed,
            "note": self.note or None,
        }

    def __str__(self) -> str:
        note = f" ({self.note})" if self.note else ""
        return f"{self.name} is {_short(self.value)}, at most {_short(self.limit)}{note}"


@dataclass(frozen=True, slots=True)
class Publication:
    """What publishing did.

    Attributes:
        run_id: of the run.
        published: whether it is the published one now.
        changed: whether the file was replaced.
        before: the run that was published; None for the first.
        gates: every condition.
        forced: conditions that failed and were overruled.
        verdict: of the verification; None when none was made (the run was published already).
        figures: per kind, as they are kept for the next comparison.
    """

    run_id: str
    published: bool
    changed: bool
    before: str | None
    gates: Sequence[Gate]
    forced: Sequence[str]
    verdict: Verdict | None
    figures: Mapping[str, Mapping[str, float]]

    @property
    def refused(self) -> list[str]:
        """The figures that made it refuse, one line each."""
        if self.published:
            return []
        failed = [] if self.verdict is None else self.verdict.figures()
        return failed + [str(gate) for gate in self.gates if not gate.passed]

    def to_dict(self) -> dict[str, Any]:
        return {
            "run": self.run_id,
            "published": self.published,
            "changed": self.changed,
            "before": self.before,
            "verified": None if self.verdict is None else self.verdict.verdict,
            "refused": self.refused,
            "forced": list(self.forced),
            "gates": [gate.to_dict() for gate in self.gates],
            "figures": {kind: dict(figures) for kind, figures in self.figures.items()},
        }


def publish(
    output: Output,
    run_id: str,
    *,
    verify: Verify,
    thresholds: Thresholds,
    now: str,
    force: bool = False,
) -> Publication:
    """Publish a complete run, or say why not.

    Args:
        output: where the run is.
        verify: how a run is verified.
        thresholds: what it may look like beside the last published one.
        now: UTC, ISO 8601.
        force: publish although a threshold is passed; a failed verification always refuses.

    Raises:
        NotFound, FailedPrecondition: there is no such run, or it is not complete.
        StoreLocked: another process is publishing here.
    """
    with publishing(output):
        before = output.published()
        if before is not None and before["run_id"] == run_id:
            return Publication(
                run_id, True, False, run_id, (), (), None, before.get("figures") or {}
            )
        new = side(output.folder(run_id))
        verdict = verify(new.folder)
        name = None if before is None else str(before["run_id"])
        if not verdict.sound:
            return Publication(run_id, False, False, name, (), (), verdict, {})
        figures, gates = _weighed(output, new, before, thresholds)
        broken = [gate for gate in gates if not gate.passed]
        good = force or not broken
        forced = [str(gate) for gate in broken] if good else []
        if good:
            _switch(output, new, before, figures, forced, now)
        return Publication(run_id, good, good, name, gates, forced, verdict, figures)


def rollback(output: Output, *, now: str) -> tuple[str, str]:
    """Publish what was published before; (the run that was, the one that is now).

    Raises:
        FailedPrecondition: nothing was published before, or it is no longer there.
    """
    with publishing(output):
        current = output.published()
        history = list((current or {}).get("history") or ())
        if current is None or not history:
            raise FailedPrecondition(
                f"{output.url}: nothing was published before; there is nothing to go back to"
            )
        earlier = history.pop(0)
        folder = output.folder(str(earlier["run_id"]))
        summary = folder.summary() if folder.exists(PLAN) else None
        if summary is None or summary.get("digest") != earlier.get("digest"):
            raise FailedPrecondition(
                f"run {earlier['run_id']}, published before, is no longer there as it was; "
                "publish another run",
                run=earlier["run_id"],
            )
        withdrawn = [
            {**_entry(current), "withdrawn": now},
            *(current.get("withdrawn") or ()),
        ]
        document = {**earlier, "published": now, "history": history}
        output.publish(folder.run_id, {**document, "withdrawn": withdrawn[:HISTORY_MAX]})
        return str(current["run_id"]), folder.run_id


def publishing(output: Output) -> contextlib.AbstractContextManager[None]:
    """Be the only one who publishes or collects here.

    Raises:
        StoreLocked: another process is.
    """
    path, what = output.path(LOCK_FILE), f"publishing in {output.url}"
    if output.local is not None:
        return lock.local_lock(Path(path), what)
    return lock.target_lock(output, LOCK_FILE, what)


def _weighed(
    output: Output, new: Side, before: Mapping[str, Any] | None, thresholds: Thresholds
) -> tuple[dict[str, dict[str, float]], list[Gate]]:
    """(figures, gates); where the published run cannot be read, a gate that fails says so."""
    if before is None:
        return compare(new, None, thresholds)
    try:
        return compare(new, side(output.folder(str(before["run_id"]))), thresholds)
    except (NotFound, StoreError, FailedPrecondition) as error:
        figures, gates = compare(new, None, thresholds)
        told = f"the published run cannot be compared with: {error}"
        return figures, [*gates, Gate("published_unreadable", 1, 0, told)]


def _switch(
    output: Output,
    new: Side,
    before: Mapping[str, Any] | None,
    figures: Mapping[str, Mapping[str, float]],
    forced: Sequence[str],
    now: str,
) -> None:
    history = [] if before is None else [_entry(before), *(before.get("history") or ())]
    withdrawn = (before or {}).get("withdrawn") or []
    plan = new.plan
    output.publish(
        plan.run_id,
        {
            "published": now,
            "digest": new.summary.get("digest"),
            "epoch": plan.epoch,
            "generation": plan.generation,
            "policy": plan.policy_id,
            "as_of": plan.options.as_of,
            "figures": figures,
            "forced": list(forced),
            "history": history[:HISTORY_MAX],
            "withdrawn": withdrawn,
        },
    )


def _entry(published: Mapping[str, Any]) -> dict[str, Any]:
    """A publication as it is kept in the history."""
    return {
        name: value
        for name, value in published.items()
        if name not in ("history", "withdrawn", "format")
    }


# ── Figures ───────────────────────────────────────────────────────────────────────────────────


def compare(
    new: Side, last: Side | None, thresholds: Thresholds
) -> tuple[dict[str, dict[str, float]], list[Gate]]:
    """(figures per kind, gates) of a run beside the last published one."""
    figures: dict[str, dict[str, float]] = {}
    gates: list[Gate] = []
    for kind in new.plan.options.kinds:
        mine, theirs, churn = _figures(new, last, kind)
        figures[kind] = mine
        gates += _own_gates(kind, mine, theirs, thresholds)
        if theirs is None or last is None:
            gates.append(Gate(f"{kind}.churn", None, None, "nothing was published before"))
        else:
            gates += _gates_between(kind, mine, theirs, churn, thresholds, new, last)
    gates.append(_degraded(new, figures, thresholds))
    return figures, gates


def _figures(
    new: Side, last: Side | None, kind: Kind
) -> tuple[dict[str, float], dict[str, float] | None, float | None]:
    """(figures of the run, of the last one, churn) of a kind; None without a last one."""
    mine, theirs, churn = _Tally(new), _Tally(new if last is None else last), _Churn()
    there = last is not None and kind in last.plan.options.kinds
    for window in windows(new, last if last is not None and there else new, kind):
        mine.add(window.first)
        theirs.add(window.second)
        if there:
            churn.add(window.first, window.second)
    if not there:
        return mine.figures(), None, None
    return mine.figures(), theirs.figures(), churn.mean


class _Tally:
    """Counts queries and top scores of one run."""

    def __init__(self, one: Side) -> None:
        self._k = one.plan.options.k
        self._queries = self._few = self._none = self._errors = self._degraded = 0
        self._tops: list[Float64] = []

    def add(self, half: Half) -> None:
        returned = half.queries["returned"]
        self._queries += returned.len()
        self._few += int((returned < self._k).sum())
        self._none += int((returned == 0).sum())
        self._errors += half.queries["error"].len() - half.queries["error"].null_count()
        self._degraded += half.queries["degraded"].len() - half.queries["degraded"].null_count()
        self._tops.append(half.rows.filter(pl.col("rank") == 1)["score"].to_numpy())

    def figures(self) -> dict[str, float]:
        tops = np.concatenate(self._tops) if self._tops else np.zeros(0)
        return {
            "queries": self._queries,
            "errors": self._errors,
            "degraded": self._degraded,
            "under_k_share": _share(self._few, self._queries),
            "none_share": _share(self._none, self._queries),
            "top_score_median": float(np.median(tops)) if tops.size else 0.0,
        }


class _Churn:
    """Mean share of a top K that is other people, over queries that are in both runs."""

    def __init__(self) -> None:
        self._sum = 0.0
        self._queries = 0

    def add(self, first: Half, second: Half) -> None:
        pairs = ["query_key", "key"]
        same = first.rows.select(pairs).join(second.rows.select(pairs), on=pairs, how="inner")
        kept = same.group_by("query_key").len("kept")
        both = (
            first.queries.select("query_key", pl.col("returned").alias("a"))
            .join(second.queries.select("query_key", pl.col("returned").alias("b")), on="query_key")
            .join(kept, on="query_key", how="left")
            .with_columns(pl.col("kept").fill_null(0), most=pl.max_horizontal("a", "b"))
            .filter(pl.col("most") > 0)
        )
        self._sum += float((1 - both["kept"] / both["most"]).sum())
        self._queries += both.height

    @property
    def mean(self) -> float | None:
        """None when no query is in both."""
        return self._sum / self._queries if self._queries else None


def _own_gates(
    kind: Kind,
    mine: Mapping[str, float],
    theirs: Mapping[str, float] | None,
    thresholds: Thresholds,
) -> list[Gate]:
    """Errors and shares; limits that were not given follow from the last run."""
    gates = [Gate(f"{kind}.errors", mine["errors"], 0)]
    for name, given, rise, first in (
        ("under_k_share", thresholds.under_k_share, thresholds.under_k_rise, None),
        ("none_share", thresholds.none_share, thresholds.none_rise, FIRST_NONE_SHARE),
    ):
        limit, note = given, "as given"
        if given is None and theirs is not None:
            limit, note = theirs[name] + rise, f"the last run's {theirs[name]:.4f} + {rise:g}"
        elif given is None:
            limit, note = first, "nothing was published before"
        gates.append(Gate(f"{kind}.{name}", mine[name], limit, note))
    return gates


def _gates_between(
    kind: Kind,
    mine: Mapping[str, float],
    theirs: Mapping[str, float],
    churn: float | None,
    thresholds: Thresholds,
    new: Side,
    last: Side,
) -> list[Gate]:
    drop = max(0.0, 1 - mine["queries"] / theirs["queries"]) if theirs["queries"] else 0.0
    no_pair = "" if churn is not None else "no query is in both runs"
    gates = [
        Gate(f"{kind}.query_drop", drop, thresholds.query_drop),
        Gate(f"{kind}.churn", churn, thresholds.churn, no_pair),
    ]
    drift: float | None = None
    note = ""
    if (new.plan.generation, new.plan.policy_id) != (last.plan.generation, last.plan.policy_id):
        note = "another generation or policy: scores do not compare"
    elif new.plan.ranker != last.plan.ranker:
        note = "another model orders: first places do not compare"
    elif theirs["top_score_median"]:
        earlier = theirs["top_score_median"]
        drift = abs(mine["top_score_median"] - earlier) / abs(earlier)
    else:
        note = "the last run has no scores"
    gates.append(Gate(f"{kind}.score_drift", drift, thresholds.score_drift, note))
    return gates


def _degraded(
    new: Side, figures: Mapping[str, Mapping[str, float]], thresholds: Thresholds
) -> Gate:
    """What the files hold, or what run.json says, whichever is more."""
    told = new.summary.get("degraded", 0)
    held = sum(one["degraded"] for one in figures.values())
    return Gate(
        "degraded", max(held, float(told) if isinstance(told, int) else 0.0), thresholds.degraded
    )


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _short(value: float | None) -> str:
    return "not limited" if value is None else f"{value:.4g}"
