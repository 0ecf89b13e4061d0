"""Does a plan's units one after another, in good order whatever happens.

::

    prepare n + 1   (a thread)  ─┐
    kernels on n    (all cores)  ├─ one unit each, at the same time
    write n - 1     (a thread)  ─┘   after its model was asked, where the policy reranks

A kill loses the units that are in work, nothing else: what is written is looked at when the run
goes on.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from matchwright.engine.errors import DeadlineExceeded, FailedPrecondition
from matchwright.engine.prepare import SnapshotLike
from matchwright.engine.records import Kind
from matchwright.engine.runs import block, exposure, units
from matchwright.engine.runs.block import BlockAnswer
from matchwright.engine.runs.folder import PLAN, RunFolder
from matchwright.engine.runs.plan import Asking, Plan, Unit, asking, check_units
from matchwright.engine.runs.prepare_block import PreparedBlock, prepare_block
from matchwright.engine.runs.rerank_stage import RerankStage
from matchwright.engine.runs.summary import finish

if TYPE_CHECKING:
    from matchwright.kernels.ops import Ops

Stop = Callable[[int, int], str | None]
"""``stop(queries done, queries in all)`` -> why to stop now, or None to go on."""


class Executor(Protocol):
    """Answers units, in any order, one at a time."""

    @property
    def about(self) -> Mapping[str, Any]:
        """What does the work, for run.json: at least "device" and "executor"."""
        ...

    def answers(self, todo: Sequence[Unit]) -> Iterator[tuple[Unit, BlockAnswer]]:
        """Each unit with its answer. Closing the iterator ends the work."""
        ...


@dataclass(frozen=True)
class Event:
    """Something that whoever watches may want to know.

    Attributes:
        name: "start", "redo", "unit", "waiting", "answers" (of the model), "note", "end".
        fields: plain values.
    """

    name: str
    fields: Mapping[str, Any] = field(default_factory=dict)


Progress = Callable[[Event], None]


def quiet(event: Event) -> None:
    """A progress that nobody watches."""


def go_on(done: int, total: int) -> str | None:
    """A stop that never stops."""
    return None


class Questions:
    """Who asks what in a plan's units; prepares them. Thread-safe.

    Args:
        snapshot: the plan's epoch.
        plan: its units are compared with what the snapshot holds.

    Raises:
        StoreDamaged: the snapshot holds other queries than the plan.
        FailedPrecondition: the time zone database is another one than the plan's.
    """

    def __init__(self, snapshot: SnapshotLike, plan: Plan) -> None:
        self.snapshot, self.plan = snapshot, plan
        self.policy = plan.options.policy.effective()
        if self.policy.id != plan.policy_id:
            raise FailedPrecondition(
                f"run {plan.run_id} was planned under the effective policy {plan.policy_id}, and "
                f"with time zones of {self.policy.tz} it is {self.policy.id}: start a new run, or "
                "go on with the tzdata that it was planned with"
            )
        self.asking: dict[Kind, Asking] = {}
        for kind in plan.options.kinds:
            self.asking[kind] = asking(snapshot, kind)
            check_units(plan, kind, self.asking[kind].key_n)

    def ids(self, unit: Unit) -> list[str]:
        """The ids of a unit's queries, in the order of their keys."""
        rows = self.asking[unit.kind].row_n[unit.start : unit.stop]
        return self.snapshot.ids_of(unit.kind, rows)

    def prepare(self, unit: Unit) -> PreparedBlock:
        """A unit's queries, ready for the kernels."""
        return prepare_block(
            self.snapshot, unit.kind, self.ids(unit), self.policy, self.plan.options.as_of
        )


class LocalExecutor:
    """In this process: the kernels use all cores, the next unit is prepared meanwhile.

    Args:
        ops: the kernels.
        snapshot: the plan's epoch.
        plan: the plan.
        prefetch: prepare the next unit on a thread of its own. None: where a device computes;
            kernels on the processor would wait for Python's lock more often than it saves.
    """

    def __init__(
        self, ops: Ops, snapshot: SnapshotLike, plan: Plan, *, prefetch: bool | None = None
    ) -> None:
        self.ops, self.snapshot, self.plan = ops, snapshot, plan
        self.questions = Questions(snapshot, plan)
        self.prefetch = ops.name == "cupy" if prefetch is None else prefetch

    @property
    def about(self) -> Mapping[str, Any]:
        return {
            "executor": "local",
            "device": self.ops.health.told,
            "threads": self.ops.threads,
            "memory_bytes": self.ops.memory_bytes,
        }

    def answers(self, todo: Sequence[Unit]) -> Iterator[tuple[Unit, BlockAnswer]]:
        if not self.prefetch:
            for unit in todo:
                yield unit, self.answer(unit)
            return
        with ThreadPoolExecutor(1, thread_name_prefix="run-prepare") as ahead:
            waiting: Future[PreparedBlock] | None = None
            for n, unit in enumerate(todo):
                prepared = self.questions.prepare(unit) if waiting is None else waiting.result()
                last = n + 1 == len(todo)
                waiting = None if last else ahead.submit(self.questions.prepare, todo[n + 1])
                yield unit, self._answer(prepared)

    def answer(self, unit: Unit) -> BlockAnswer:
        """One unit."""
        return self._answer(self.questions.prepare(unit))

    def _answer(self, prepared: PreparedBlock) -> BlockAnswer:
        options = self.plan.options
        found = block.search(self.ops, self.snapshot, prepared, options)
        plan = self.plan
        return block.answer(self.snapshot, prepared, found, options, plan.policy_id, plan.ranker)


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        summary: what run.json holds.
        done_now: units that were done by this call; 0 when there was nothing to do.
    """

    summary: dict[str, Any]
    done_now: int


def run(
    plan: Plan,
    folder: RunFolder,
    executor: Executor,
    progress: Progress = quiet,
    stop: Stop = go_on,
    *,
    snapshot: SnapshotLike | None = None,
    stage: RerankStage | None = None,
) -> Outcome:
    """Do what is left of a plan, and finish it.

    Args:
        plan: the plan; where the folder holds one of the same run, that one's units are done.
        folder: of this run.
        executor: answers units.
        progress: is told of events.
        stop: asked after each unit.
        snapshot: the plan's epoch: fingerprints of its rows are kept where there is slack, and
            the exposure pass reads it.
        stage: asks the model, of a plan that pins one.

    Raises:
        StoreLocked: another process is writing this run.
        DeadlineExceeded: ``stop`` said so; what is done is kept.
        ModelUnavailable, ModelWrong: the stage waited long enough; what is done is kept.
        OSError: the target refused a file; what is done is kept.
    """
    with folder.lock():
        there = folder.summary()
        if there is not None:
            return Outcome(there, 0)
        return run_locked(plan, folder, executor, progress, stop, snapshot=snapshot, stage=stage)


def run_locked(
    plan: Plan,
    folder: RunFolder,
    executor: Executor,
    progress: Progress = quiet,
    stop: Stop = go_on,
    *,
    snapshot: SnapshotLike | None = None,
    stage: RerankStage | None = None,
) -> Outcome:
    """``run`` for a caller who holds the lock, of a run that is not complete."""
    if folder.exists(PLAN):
        plan = folder.plan()
    else:
        folder.write(PLAN, plan.to_json())
    units.sweep(folder, plan)
    looked = units.look(folder, plan)
    for unit, why in looked.damaged.items():
        progress(Event("redo", {"unit": str(unit), "why": why}))
    todo = [unit for unit in plan.units if unit not in looked.done]
    records = dict(looked.done)
    if todo and plan.ranker is not None and stage is None:
        raise ValueError(f"run {plan.run_id} needs {plan.ranker} for {len(todo)} units")
    _do(_Work(plan, folder, executor, stage), todo, records, progress, stop)
    moved = _expose(plan, folder, snapshot, records, progress)
    summary = finish(plan, folder, records, executor.about, snapshot, moved=moved)
    end = {"run": plan.run_id, "digest": summary["digest"], "seconds": summary["seconds"]["total"]}
    progress(Event("end", end))
    return Outcome(summary, max(len(todo), 1))


@dataclass(frozen=True, slots=True)
class _Work:
    """What a run is done with."""

    plan: Plan
    folder: RunFolder
    executor: Executor
    stage: RerankStage | None


def _do(
    work: _Work,
    todo: Sequence[Unit],
    records: dict[Unit, dict[str, Any]],
    progress: Progress,
    stop: Stop,
) -> None:
    """All units of ``todo``; their records go into ``records`` as they are written."""
    plan = work.plan
    total = sum(unit.queries for unit in plan.units)
    done = total - sum(unit.queries for unit in todo)
    progress(Event("start", _start(plan, work.folder, done, total, len(todo))))
    why = stop(done, total) if todo else None
    began = time.perf_counter()
    written = _Written(work, records, progress, done, stop)
    with (
        ThreadPoolExecutor(1, thread_name_prefix="run-write") as writer,
        closing(_iterator(work.executor.answers(todo if why is None else ()))) as answers,
        written.ending(),
    ):
        for unit, answer in answers:
            wall, began = time.perf_counter() - began, time.perf_counter()
            written.settle()
            written.put(writer, unit, answer, wall)
            done += unit.queries
            why = stop(done, total)
            if why is not None and done < total:
                break
        written.settle()
    if why is not None and done < total:
        raise DeadlineExceeded(
            f"run {plan.run_id}: stopped after {done:,} of {total:,} queries: {why}",
            run=plan.run_id,
            done=done,
            of=total,
        )


def _start(plan: Plan, folder: RunFolder, done: int, total: int, units_left: int) -> dict[str, Any]:
    """What there is to say of a plan when work on it begins."""
    return {
        "run": plan.run_id,
        "url": folder.url,
        "epoch": plan.epoch_number,
        "as_of": plan.options.as_of,
        "k": plan.options.k,
        "done": done,
        "of": total,
        "units": units_left,
        "asking": {kind: plan.counts[kind] for kind in plan.options.kinds},
        **({} if plan.ranker is None else {"ranker": str(plan.ranker)}),
    }


class _Written:
    """Has one unit at a time ordered by its model and written, on another thread; its record counts
    when the files are there."""

    def __init__(
        self,
        work: _Work,
        records: dict[Unit, dict[str, Any]],
        progress: Progress,
        done: int,
        stop: Stop,
    ) -> None:
        self.plan, self.folder, self.records, self.progress = (
            work.plan, work.folder, records, progress,
        )  # fmt: skip
        self.stage, self.done = work.stage, done
        self._waiting: tuple[Unit, Future[dict[str, Any]]] | None = None
        if self.stage is not None:
            total = sum(unit.queries for unit in self.plan.units)
            self.stage.listen(self._tell, lambda: stop(self.done, total))

    def _tell(self, name: str, fields: Mapping[str, Any]) -> None:
        self.progress(Event(name, {"run": self.plan.run_id, **fields}))

    @contextlib.contextmanager
    def ending(self) -> Iterator[None]:
        """Whatever ends the block, ends the stage's waiting too."""
        try:
            yield
        finally:
            if self.stage is not None:
                self.stage.end()

    def put(self, writer: ThreadPoolExecutor, unit: Unit, answer: BlockAnswer, wall: float) -> None:
        self._waiting = unit, writer.submit(self._write, unit, answer, wall)

    def _write(self, unit: Unit, answer: BlockAnswer, wall: float) -> dict[str, Any]:
        if self.stage is not None:
            answer = self.stage.apply(unit, answer)
        slack = self.plan.options.slack > 0
        return units.write_unit(self.folder, unit, answer, slack=slack, wall=wall)

    def settle(self) -> None:
        """Wait for what is being written.

        Raises:
            OSError: the target refused it.
        """
        if self._waiting is None:
            return
        unit, future = self._waiting
        self._waiting = None
        record = self.records[unit] = future.result()
        self.done += unit.queries
        names = ("queries", "rows", "errors", "seconds", "degraded")
        news = {name: record[name] for name in names if name in record}
        fields = {"run": self.plan.run_id, "unit": str(unit), "done": self.done, **news}
        self.progress(Event("unit", fields))


def _expose(
    plan: Plan,
    folder: RunFolder,
    snapshot: SnapshotLike | None,
    records: dict[Unit, dict[str, Any]],
    progress: Progress,
) -> dict[str, Any]:
    """The exposure pass over a scored run; its figures, none when the policy has it off."""
    if plan.options.policy.exposure is None:
        return {}
    if snapshot is None:
        raise ValueError("a run whose policy has an exposure section needs its snapshot")

    def say(text: str) -> None:
        progress(Event("note", {"run": plan.run_id, "text": text}))

    return exposure.apply(folder, plan, plan.options.policy, snapshot, say, records)


def _iterator(
    answers: Iterable[tuple[Unit, BlockAnswer]],
) -> Any:
    """A generator over any iterable, so that it can be closed."""
    yield from answers
