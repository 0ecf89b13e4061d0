"""The exposure pass: who is shown, decided over all answers of one direction of a run.

It runs when every unit is scored and before the digest is taken. A unit's part and slack files
together keep the rows that they had, each with the rank that it has now, and where that is another
one, with ``moved`` (why) and ``first_rank``: ordered by ``first_rank``, or ``rank`` where there is
none, they are the first phase's rows again. So a pass that was killed begins anew from what is
there. While a unit's two files are replaced its record (``unit-00000.json``) is away: a run that is
resumed then scores that unit again.

docs/runs.md defines what is done and what the figures are.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from matchwright.engine.errors import InvalidArgument, StoreDamaged
from matchwright.engine.matcher import OTHER
from matchwright.engine.policy import Policy
from matchwright.engine.policy_exposure import Exposure
from matchwright.engine.prepare import SnapshotLike
from matchwright.engine.records import Kind
from matchwright.engine.runs.exposure_cap import QUERIES_AT_ONCE, Lists, admit
from matchwright.engine.runs.exposure_choice import Choice, Moved, choose
from matchwright.engine.runs.exposure_figures import Figures
from matchwright.engine.runs.exposure_people import people_of
from matchwright.engine.runs.folder import RunFolder, sha256
from matchwright.engine.runs.plan import Asking, Plan, Unit, asking
from matchwright.engine.runs.units import write_record
from matchwright.kernels.types import K_MAX, Bool, Float64, Int32, Int64, UInt64

EXPOSURE_FORMAT = 1
"""Version of what the pass does; a change of any outcome needs the next one."""

Progress = Callable[[str], None]


def slack_needed(policy: Policy, k: int) -> int:
    """Rows beyond K that a run under this policy must keep of each query; 0 when it is off."""
    return 0 if policy.exposure is None else min(policy.exposure.slack_rows, K_MAX - k)


def apply(
    folder: RunFolder,
    plan: Plan,
    policy: Policy,
    snapshot: SnapshotLike,
    progress: Progress | None = None,
    records: dict[Unit, dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Do what the policy asks; every unit must be scored.

    Args:
        folder: the run, locked by the caller.
        plan: its plan.
        policy: whose exposure section counts.
        snapshot: the epoch of the run.
        progress: told what is being done.
        records: of units; those of units that are rewritten are replaced.

    Returns:
        The figures of run.json's ``moved``; empty when exposure is off.

    Raises:
        InvalidArgument: the run keeps less slack than the policy asks for.
        StoreDamaged: a unit whose stored rows have gaps.
    """
    ask = policy.exposure
    if ask is None:
        return {}
    asked = [kind for kind in plan.options.kinds if kind in ask.asking]
    needed = slack_needed(policy, plan.options.k) if asked else 0
    if plan.options.slack < needed:
        raise InvalidArgument(
            f"the policy's exposure needs {needed} rows of slack, and this run keeps "
            f"{plan.options.slack}; plan it with --slack {needed}",
            field="slack",
        )
    kinds: dict[str, Any] = {}
    for kind in asked:
        one = _Pass(folder, plan, ask, snapshot, kind, progress)
        kinds[kind] = one.run()
        if records is not None:
            records.update(one.records)
    return {"format": EXPOSURE_FORMAT, "settings": ask.to_dict(), "kinds": kinds}


def first_phase(part: pl.DataFrame, slack: pl.DataFrame | None) -> pl.DataFrame:
    """Stored rows of a unit as the pass finds them: by (query key, rank), none moved.

    They are in the order of the first phase; where a model ordered the candidates, in its order,
    and ``first_rank`` stays.
    """
    rows = part if slack is None else pl.concat([part, slack], how="vertical_relaxed")
    if "model_score" in rows.columns:
        by = ("query_key", "model_score", "first_rank")
        rows = rows.sort(by, descending=[False, True, False], nulls_last=True)
        return rows.with_columns(
            (pl.int_range(pl.len()).over("query_key") + 1).cast(pl.Int32).alias("rank"),
            pl.lit(None, dtype=pl.String).alias("moved"),
        )
    return rows.with_columns(
        pl.coalesce("first_rank", "rank").alias("rank"),
        pl.lit(None, dtype=pl.String).alias("moved"),
        pl.lit(None, dtype=pl.Int32).alias("first_rank"),
    ).sort("query_key", "rank")


@dataclass(frozen=True, slots=True, eq=False)
class _Rows:
    """A unit's stored rows, in the order of the first phase, and where each is in its block."""

    frame: pl.DataFrame
    line_m: Int64
    slot_m: Int64
    start_q: Int64


class _Pass:
    def __init__(
        self,
        folder: RunFolder,
        plan: Plan,
        ask: Exposure,
        snapshot: SnapshotLike,
        kind: Kind,
        progress: Progress | None,
    ) -> None:
        self.folder, self.plan, self.ask, self.kind = folder, plan, ask, kind
        self.snapshot, self.progress = snapshot, progress
        self.units = plan.units_of(kind)
        self.records: dict[Unit, dict[str, Any]] = {}
        self.k = plan.options.k
        self.width = plan.options.k + plan.options.slack
        self.everybody: Asking = asking(snapshot, OTHER[kind])

    def run(self) -> dict[str, Any]:
        q = sum(unit.queries for unit in self.units)
        with _on_disk((q, self.width)) as person_qw, _on_disk((q, self.width)) as points_qw:
            key_q, t_q, stored = self._read(person_qw, points_qw)
            lists = Lists(key_q, person_qw, points_qw, self.everybody.key_n)
            return self._settle(lists, t_q, stored)

    def _settle(self, lists: Lists, t_q: Float64, stored: Bool) -> dict[str, Any]:
        people = people_of(
            self.snapshot,
            OTHER[self.kind],
            self.everybody,
            stored,
            self.ask,
            self.plan.options.as_of,
        )
        admission = admit(lists, people, self.k, self.ask, self.progress)
        figures = Figures(lists.q, people, self.k, self.ask)
        done = 0
        for unit in self.units:
            choices = []
            for begin in range(unit.start, unit.stop, QUERIES_AT_ONCE):
                places = slice(begin, min(begin + QUERIES_AT_ONCE, unit.stop))
                block = lists.block(places)
                at = np.arange(places.start, places.stop, dtype=np.int64)
                admitted = admission.admitted(lists, at, block.person_qw)
                choice = choose(block, admitted, people, self.k, self.ask)
                figures.add(places, block, choice, t_q[places])
                choices.append(choice)
            self._write(unit, choices)
            done += unit.queries
            self._say(f"exposure: {done:,} of {lists.q:,} {self.kind} queries written")
        return figures.to_dict(admission.rounds)

    def _say(self, text: str) -> None:
        if self.progress is not None:
            self.progress(text)

    def _read(self, person_qw: Int32, points_qw: Int32) -> tuple[UInt64, Float64, Bool]:
        """(query keys, their steps, who is stored anywhere); fills in the two arrays."""
        q = person_qw.shape[0]
        key_q, t_q = np.zeros(q, dtype=np.uint64), np.zeros(q, dtype=np.float64)
        stored = np.zeros(self.everybody.key_n.size, dtype=np.bool_)
        for unit in self.units:
            queries = self.folder.queries(unit)
            span = slice(unit.start, unit.stop)
            key_q[span] = queries["query_key"].to_numpy()
            t_q[span] = queries["t"].to_numpy()
            rows = self._rows(unit, key_q[span])
            person_m = self._people_at(unit, rows.frame["key"].to_numpy())
            person_qw[span] = -1
            person_qw[unit.start + rows.line_m, rows.slot_m] = person_m
            points_qw[unit.start + rows.line_m, rows.slot_m] = rows.frame["points"].to_numpy()
            stored[person_m] = True
        return key_q, t_q, stored

    def _people_at(self, unit: Unit, key_m: UInt64) -> Int64:
        key_n = self.everybody.key_n
        at = np.minimum(np.searchsorted(key_n, key_m), max(key_n.size - 1, 0))
        if key_m.size and (not key_n.size or not np.array_equal(key_n[at], key_m)):
            raise self._damaged(unit, "holds somebody whom the epoch does not have")
        return at.astype(np.int64)

    def _rows(self, unit: Unit, key_q: UInt64) -> _Rows:
        frame = first_phase(self.folder.part(unit), self._slack(unit))
        line_m = np.searchsorted(key_q, frame["query_key"].to_numpy()).astype(np.int64)
        size_q = np.bincount(line_m, minlength=key_q.size)[: key_q.size]
        start_q = np.concatenate([[0], np.cumsum(size_q)]).astype(np.int64)
        slot_m = frame["rank"].to_numpy().astype(np.int64) - 1
        nth_m = np.arange(line_m.size) - np.repeat(start_q[:-1], size_q)
        reranked = "model_score" in frame.columns
        first_m = frame["first_rank"].to_numpy() - 1 if reranked else slot_m
        whole = np.array_equal(nth_m, first_m[np.lexsort((first_m, line_m))])
        if not whole or size_q.max(initial=0) > self.width:
            raise self._damaged(unit, "its part and slack have gaps in their ranks")
        return _Rows(frame, line_m, slot_m, start_q)

    def _slack(self, unit: Unit) -> pl.DataFrame | None:
        return self.folder.slack(unit) if self.plan.options.slack else None

    def _damaged(self, unit: Unit, what: str) -> StoreDamaged:
        where = self.folder.url_of(unit.file("part"))
        return StoreDamaged(
            f"{where}: {what}; remove {unit.file('unit')} and resume the run, which scores this "
            "unit again",
            file=where,
        )

    def _write(self, unit: Unit, choices: list[Choice]) -> None:
        """Replace a unit's part and slack; nothing is written when they are right already."""
        queries = self.folder.queries(unit)
        rows = self._rows(unit, queries["query_key"].to_numpy())
        frame, shown_m = _moved_rows(rows, choices)
        frames = {"part": frame.filter(shown_m), "slack": frame.filter(~shown_m)}
        if frames["part"].equals(self.folder.part(unit)):
            slack = self._slack(unit)
            if slack is None or frames["slack"].equals(slack):
                return
        record = self.folder.read_json(unit.file("unit"))
        self.folder.remove(unit.file("unit"))
        for what, one in frames.items():
            if what == "part" or self.plan.options.slack:
                data = self.folder.write_frame(unit, what, one)
                record["sha256"][what], record["bytes"][what] = sha256(data), len(data)
        write_record(self.folder, unit, record)
        self.records[unit] = record


def _moved_rows(rows: _Rows, choices: list[Choice]) -> tuple[pl.DataFrame, pl.Series]:
    """The rows in their new order, and which of them are shown."""
    slot_qw = np.concatenate([choice.slot_qw for choice in choices])
    moved_qw = np.concatenate([choice.moved_qw for choice in choices])
    shown_q = np.concatenate([choice.shown_q for choice in choices])
    line, place = np.nonzero(slot_qw >= 0)
    slot = slot_qw[line, place].astype(np.int64)
    moved = moved_qw[line, place]
    names = pl.Series([None, *(why.name.lower() for why in Moved if why != Moved.NOT)])
    frame = rows.frame[rows.start_q[line] + slot].with_columns(
        pl.Series("rank", place + 1, dtype=pl.Int32), names.gather(moved).alias("moved")
    )
    if "model_score" not in frame.columns:
        was = pl.Series("first_rank", np.where(moved > 0, slot + 1, 0), dtype=pl.Int32)
        frame = frame.with_columns(was.replace(0, None))
    return frame, pl.Series(place < shown_q[line])


@contextmanager
def _on_disk(shape: tuple[int, int]) -> Iterator[Int32]:
    """An int32 array of zeros in a file of the temporary folder that is gone afterwards.

    Raises:
        OSError: there is no room for it; the error names the folder.
    """
    with tempfile.TemporaryFile(prefix="matchwright-exposure-") as file:
        size = shape[0] * shape[1] * 4
        if not size:
            yield np.zeros(shape, dtype=np.int32)
            return
        try:
            os.posix_fallocate(file.fileno(), 0, size)  # a mapped page that finds no room kills
        except OSError as error:
            error.filename = tempfile.gettempdir()
            raise
        yield np.memmap(file, dtype=np.int32, mode="r+", shape=shape)
