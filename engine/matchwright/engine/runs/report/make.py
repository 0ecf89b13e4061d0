"""From a run's folder to its report."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from matchwright.engine.prepare import SnapshotLike
from matchwright.engine.rerank.rerank_block import TreesLike
from matchwright.engine.runs.folder import Output, RunFolder, units_there
from matchwright.engine.runs.plan import Plan
from matchwright.engine.runs.report.figures import Figures, Run, compute
from matchwright.engine.runs.report.page import render
from matchwright.engine.runs.report.throughput import Timing, timing_of
from matchwright.engine.runs.verify import FAILED
from matchwright.kernels.ops import Ops

REPORT, VERDICT = "report.html", "verify.json"
"""Files of a run: its report, and what its last verification said."""
VERIFIED = "SOUND"
"""What publishing takes for granted: no run is published that does not verify."""


def figures_of(
    folder: RunFolder, snapshot: SnapshotLike | None, ops: Ops, trees: TreesLike | None = None
) -> Figures:
    """The figures of a run, complete or not.

    Args:
        folder: of the run.
        snapshot: the run's epoch of its store, or a later one, or None.
        ops: to count with.
        trees: of the run's model, where it has one and they are at hand.

    Raises:
        NotFound, StoreDamaged, StoreFormat: files of the run that cannot be read.
    """
    return compute(_read(folder), snapshot, ops, trees)


def report_of(
    folder: RunFolder, snapshot: SnapshotLike | None, ops: Ops, trees: TreesLike | None = None
) -> bytes:
    """The report of a run, complete or not: one HTML file. Arguments as ``figures_of``."""
    return render(figures_of(folder, snapshot, ops, trees)).encode()


def _read(folder: RunFolder) -> Run:
    plan, summary = folder.plan(), folder.summary()
    if summary is None:
        plan, timings = _so_far(folder, plan)
    else:
        timings = [_timing(told) for told in summary["units"]]
    published = Output(folder.url.rsplit("/", 1)[0]).published() or {}
    is_it = published.get("run_id") == plan.run_id
    verdict = _verdict(folder, summary or {}) or (VERIFIED if is_it else "")
    return Run(plan, folder, summary, timings, verdict, is_it)


def _verdict(folder: RunFolder, summary: Mapping[str, Any]) -> str:
    """What was said of the run as it is now; "" when nothing was."""
    if not folder.exists(VERDICT):
        return ""
    told = folder.read_json(VERDICT)
    digests = {summary.get("digest"), summary.get("digest_redacted")}
    return str(told["verdict"]) if told["verdict"] == FAILED or told["digest"] in digests else ""


def _so_far(folder: RunFolder, plan: Plan) -> tuple[Plan, list[Timing]]:
    """The plan without the units that are not done, and what the others took."""
    there = dict(units_there(folder, plan))
    done = dataclasses.replace(plan, units=tuple(there))
    return done, [_timing(told) for told in there.values()]


def _timing(told: Mapping[str, Any]) -> Timing:
    return timing_of("job" if told["kind"] == "job" else "freelancer", int(told["number"]), told)
