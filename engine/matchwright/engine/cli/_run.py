"""What the commands that do a run share: options, the store's epoch, how it ends."""

from __future__ import annotations

import contextlib
import enum
import shlex
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from matchwright.engine.cli import _run_models, _source
from matchwright.engine.cli._failures import Interrupted, describe, harmless
from matchwright.engine.cli._output import Format, View, Writer, facts, plainly
from matchwright.engine.cli._progress import say
from matchwright.engine.errors import (
    DependencyUnavailable,
    EpochGone,
    FailedPrecondition,
    InvalidArgument,
    MatchwrightError,
    Overloaded,
    StoreError,
)

if TYPE_CHECKING:
    from rich.console import Console

    from matchwright.engine.runs.deadline import Deadline
    from matchwright.engine.runs.execute import Event, Executor, Progress, Stop
    from matchwright.engine.runs.folder import RunFolder
    from matchwright.engine.runs.plan import Plan
    from matchwright.engine.store import Snapshot, Store
    from matchwright.engine.store.leases import Lease
    from matchwright.kernels.ops import Ops

Tell = Callable[[str], None]
LEASE_S = 72 * 3600.0
"""How long a run keeps its epoch after it was last heard of: a weekend to resume it."""
RENEW_S = 1800.0
"""How often it says that it is still there."""


class ExecutorOption(enum.StrEnum):
    """Who does the work."""

    LOCAL = "local"
    RAY = "ray"


class ForOption(enum.StrEnum):
    """Who asks."""

    JOBS = "jobs"
    FREELANCERS = "freelancers"
    BOTH = "both"


JobsOption = Annotated[
    list[Path] | None,
    typer.Option("--jobs", metavar="FILE", help="Jobs from files, in place of a store."),
]
FreelancersOption = Annotated[
    list[Path] | None,
    typer.Option("--freelancers", metavar="FILE", help="Freelancers, to go with --jobs."),
]
MapsOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--map",
        metavar="MAP.toml",
        help="What the files' columns mean; one for a kind, or one for each file.",
    ),
]
WorkOption = Annotated[
    Path | None,
    typer.Option(
        "--work", metavar="DIR", help="Where stores made of files are kept; a cache if none."
    ),
]
TargetOption = Annotated[
    str | None,
    typer.Option(
        "--output", "-o", metavar="URL", help="Where runs are: a folder, s3://...; STORE/runs."
    ),
]
KOption = Annotated[int, typer.Option("-k", help="How many matches of each, 1 to 1,000.")]
ExecutorOpt = Annotated[ExecutorOption, typer.Option("--executor", help="Who does the work.")]
WorkersOption = Annotated[
    int | None,
    typer.Option("--workers", help="Processes, here or of Ray; as many as cores."),
]
ShardsOption = Annotated[
    int | None,
    typer.Option("--shards", help="Ray processes that share the rows; 1: each has all. All."),
]
RayAddressOption = Annotated[
    str | None,
    typer.Option(
        "--ray-address", metavar="HOST:PORT", help="A Ray cluster, in place of this machine."
    ),
]
RayStoreOption = Annotated[
    str | None,
    typer.Option("--ray-store", metavar="DIR", help="The store's folder on the cluster's nodes."),
]
FinishByOption = Annotated[
    str | None,
    typer.Option(
        "--finish-by", metavar="TIME", help="Stop in good order by then: 06:30, ISO, or 2h."
    ),
]


@dataclass(frozen=True)
class How:
    """Who does the work, and by when. Results do not depend on it."""

    device: _source.Device
    executor: ExecutorOption
    workers: int | None
    finish_by: str | None
    ray_address: str | None = None
    ray_store: str | None = None
    shards: int | None = None
    served: _run_models.Served = _run_models.NOBODY
    device_memory_mb: int | None = None

    def check(self) -> None:
        """Refuse what cannot be.

        Raises:
            InvalidArgument, DependencyUnavailable: naming the option.
        """
        if self.workers is not None and not 1 <= self.workers <= 1024:
            raise InvalidArgument(f"--workers takes 1 to 1,024, got {self.workers}")
        if (self.ray_address or self.ray_store) and self.executor is not ExecutorOption.RAY:
            raise InvalidArgument("--ray-address and --ray-store go with --executor ray")
        if self.shards is not None and self.executor is not ExecutorOption.RAY:
            raise InvalidArgument("--shards goes with --executor ray")
        if self.shards is not None and not 1 <= self.shards <= 1024:
            raise InvalidArgument(f"--shards takes 1 to 1,024, got {self.shards}")
        if self.shards is not None and (self.workers or self.shards) % self.shards:
            raise InvalidArgument(f"{self.shards} shards do not divide {self.workers} workers")
        if self.ray_address is not None and self.workers is None:
            raise InvalidArgument("--ray-address needs --workers: how many shards there are")
        self.deadline(lambda line: None)
        if self.ray_address is None:  # else the devices are the nodes'
            _source.need_device(self.device)

    @property
    def device_memory_bytes(self) -> int | None:
        return None if self.device_memory_mb is None else self.device_memory_mb << 20

    def arguments(self) -> list[str]:
        """The options that a resume needs again."""
        auto, local = self.device is _source.Device.AUTO, self.executor is ExecutorOption.LOCAL
        given = {
            "--device": None if auto else self.device.value,
            "--device-memory-mb": self.device_memory_mb,
            "--executor": None if local else self.executor.value,
            "--workers": self.workers,
            "--shards": self.shards,
            "--ray-address": self.ray_address,
            "--ray-store": self.ray_store,
        }
        words = [w for name, v in given.items() if v is not None for w in (name, str(v))]
        return words + self.served.arguments()

    def deadline(self, warn: Callable[[str], None]) -> Deadline | None:
        """A ``Deadline``, or None when there is none."""
        if self.finish_by is None:
            return None
        from matchwright.engine.runs.deadline import Deadline, parse_finish_by

        return Deadline(parse_finish_by(self.finish_by, datetime.now().astimezone()), warn)


def executor_of(plan: Plan, snapshot: Snapshot, store: Path, how: How, tell: Tell) -> Executor:
    """Whoever does the work; ``tell`` is told of the device and of processes that are lost."""
    if how.executor is ExecutorOption.RAY:
        return _ray(plan, snapshot, store, how, tell)
    from matchwright.engine.device import make_ready
    from matchwright.engine.runs.execute import LocalExecutor

    ops, processes = kernels_of(plan, how, tell)
    make_ready(
        ops,
        snapshot,
        plan.options.policy.without_rerank(),
        kinds=plan.options.kinds,
        as_of=plan.options.as_of,
        say=tell,
    )
    if plan.options.base is None:
        if processes == 1:
            return LocalExecutor(ops, snapshot, plan)
        from matchwright.engine.runs.processes import ProcessExecutor

        return ProcessExecutor(ops, snapshot, plan, store, processes=processes, say=tell)
    from matchwright.engine.runs.base import Base
    from matchwright.engine.runs.folder import RunFolder
    from matchwright.engine.runs.incremental import IncrementalExecutor
    from matchwright.engine.runs.pairing import side

    return IncrementalExecutor(ops, snapshot, plan, Base(side(RunFolder(plan.base))))


def kernels_of(plan: Plan, how: How, tell: Tell = say) -> tuple[Ops, int]:
    """(kernels of each process, how many processes) of a run on this machine."""
    from matchwright.engine.device import open_ops
    from matchwright.engine.runs.processes import processes_for
    from matchwright.kernels.ops import get_ops

    memory = how.device_memory_bytes
    ops = open_ops(how.device.value, threads=how.workers, device_memory_bytes=memory, say=tell)
    if plan.options.base is not None or ops.name == "cupy":  # one process owns the device
        return ops, 1
    processes = processes_for(plan, ops.threads)
    if processes == 1:
        return ops, 1
    return get_ops(ops.name, threads=ops.threads // processes), processes


def _ray(plan: Plan, snapshot: Snapshot, store: Path, how: How, tell: Tell) -> Executor:
    if plan.options.base is not None:
        raise InvalidArgument("--changed-since goes with --executor local; it has little to do")
    import importlib

    try:  # Ray itself is an extra
        module = importlib.import_module("matchwright.engine.runs.ray_executor")
    except ModuleNotFoundError as error:
        raise DependencyUnavailable(
            f"--executor ray: {error.name!r} is not installed; pip install 'matchwright[ray]'"
        ) from None
    made: Executor = module.RayExecutor(
        plan,
        snapshot,
        store,
        workers=how.workers,
        shards=how.shards,
        device=how.device.value,
        device_memory_bytes=how.device_memory_bytes,
        address=how.ray_address,
        store_on_nodes=how.ray_store,
        say=tell,
    )
    return made


def do(
    plan: Plan, folder: RunFolder, store: Store, snapshot: Snapshot, how: How
) -> tuple[dict[str, Any], bool]:
    """(run.json, whether there was something to do) of a run, of which what is left is done.

    Raises:
        MatchwrightError: why it did not end; the message says how to go on.
        Interrupted: Ctrl-C.
    """
    from matchwright.engine.cli._run_progress import run_progress

    with resumable(folder, resume_command(folder, store.root, how)), run_progress() as progress:
        there = folder.summary()
        if there is None:
            with folder.lock():
                there = folder.summary()  # somebody else may just have ended it
                if there is None:
                    return _do_locked(plan, folder, store, snapshot, how, progress), True
    say(f"run {folder.run_id} is complete in {folder.url}: nothing to do")
    return there, False


def _do_locked(
    plan: Plan,
    folder: RunFolder,
    store: Store,
    snapshot: Snapshot,
    how: How,
    progress: Progress,
) -> dict[str, Any]:
    from matchwright.engine.runs.execute import Event, run_locked

    def warn(line: str) -> None:
        progress(Event("late", {"text": line}))

    def tell(line: str) -> None:
        progress(Event("note", {"run": plan.run_id, "text": line}))

    lease = lease_of(store, plan, folder)
    with (
        terminable(how.deadline(warn)) as stop,
        _run_models.stage_of(plan, how.served) as stage,
    ):
        _run_models.encode_missing(store.root, snapshot, how.served)
        executor = executor_of(plan, snapshot, store.root, how, tell)
        watched = _renewing(progress, lease)
        outcome = run_locked(plan, folder, executor, watched, stop, snapshot=snapshot, stage=stage)
    if lease is not None:
        lease.release()
    return outcome.summary


def _renewing(progress: Progress, lease: Lease | None) -> Progress:
    """A progress that keeps the epoch's lease young."""
    due = [time.monotonic() + RENEW_S]

    def tell(event: Event) -> None:
        if lease is not None and time.monotonic() >= due[0]:
            due[0] = time.monotonic() + RENEW_S
            try:
                lease.renew(LEASE_S)
            except EpochGone:
                raise
            except (StoreError, OSError) as error:
                say(f"the lease on the epoch could not be renewed ({harmless(error)})")
        progress(event)

    return tell


@contextlib.contextmanager
def terminable(deadline: Deadline | None) -> Iterator[Stop]:
    """A ``stop`` that says so at the deadline, and after SIGTERM."""
    asked: list[int] = []

    def stop(done: int, total: int) -> str | None:
        if asked:
            return "SIGTERM"
        return None if deadline is None else deadline.stop(done, total)

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: asked.append(number))
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def resumable(folder: RunFolder, command: str) -> Iterator[None]:
    """Whatever ends the block before its time says how to go on, once there is a plan."""
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(f"what is written is kept; go on with: {command}") from None
    except MatchwrightError as error:
        error.details.setdefault("resume", command)
        error.args = (f"{error}; go on with: {command}",)
        raise
    except OSError as error:
        raise _refused(error, folder, command) from error
    except BaseException:
        say(f"go on with: {command}")
        raise


def _refused(error: OSError, folder: RunFolder, command: str) -> MatchwrightError:
    """What a target refused, with the exit code that it has everywhere."""
    told = describe(error)
    kinds: dict[int, type[MatchwrightError]] = {
        InvalidArgument.exit_code: InvalidArgument,
        DependencyUnavailable.exit_code: DependencyUnavailable,
    }
    kind = kinds.get(int(told["exit_code"]), Overloaded)
    message = f"{folder.url}: {told['message']}; go on with: {command}"
    return kind(message, resume=command, target=folder.url)


def resume_command(folder: RunFolder, store: Path, how: How) -> str:
    """The command that goes on with a run, quoted for a shell."""
    where = ["--store", str(store.resolve())]
    return shlex.join(["matchwright", "run", "resume", folder.url, *where, *how.arguments()])


@contextlib.contextmanager
def epoch_of(store: Path, plan: Plan | None = None) -> Iterator[tuple[Store, Snapshot]]:
    """The store and one epoch of it: the newest, or the one that a plan names.

    Raises:
        FailedPrecondition: the plan was made from another store.
        EpochGone: its epoch is no longer kept.
    """
    from matchwright.engine.store import Store

    with Store.open(store) as opened:
        snapshot = opened.snapshot()
        if plan is not None and str(snapshot.epoch) != plan.epoch:
            snapshot = _earlier(opened, plan)
        yield opened, snapshot


def _earlier(store: Store, plan: Plan) -> Snapshot:
    if store.uuid != plan.determinants["store"]:
        raise FailedPrecondition(
            f"run {plan.run_id} was planned from the store {plan.determinants['store']}, and "
            f"{store.root} is {store.uuid}; name the right one with --store DIR"
        )
    try:
        snapshot = store.snapshot(epoch=plan.epoch_number)
    except (EpochGone, FailedPrecondition) as error:
        raise EpochGone(
            f"run {plan.run_id} needs epoch {plan.epoch_number}: {error}; start a new run",
            epoch=plan.epoch_number,
        ) from None
    if str(snapshot.epoch) != plan.epoch:
        raise FailedPrecondition(
            f"run {plan.run_id} needs {plan.epoch}, and {store.root} holds {snapshot.epoch}: "
            "was it restored from a backup? start a new run"
        )
    return snapshot


def lease_of(store: Store, plan: Plan, folder: RunFolder) -> Lease | None:
    """A lease on the plan's epoch; None, and a line that says so, where none can be written."""
    try:
        return store.keep(folder.lease, epoch=plan.epoch_number, seconds=LEASE_S)
    except EpochGone:
        raise
    except (StoreError, OSError) as error:
        say(
            f"the epoch is not kept for a resume ({harmless(error)}): if the store moves on "
            "before this run is complete, it must be started anew"
        )
        return None


def note_output(store: Path, folder: RunFolder) -> None:
    """Lets the store know of runs elsewhere, so that erasing somebody goes there too."""
    from matchwright.engine.store import places

    try:
        places.note(store, "runs", folder.url.rsplit("/", 1)[0])
    except StoreError as error:
        say(
            f"the store cannot remember where this run is ({harmless(error)}): name it with "
            "--runs when somebody is erased"
        )


def write(view: View, format_: Format | None) -> None:
    """The answer on stdout."""
    if format_ is Format.PARQUET:
        raise InvalidArgument("--format takes table, json, jsonl or csv here; runs are Parquet")
    with Writer(format_, None) as writer:
        writer.add(view)


def summary_view(folder: RunFolder, summary: Mapping[str, Any]) -> View:
    """run.json without its units, and where it is."""
    document = {"url": folder.url, **{k: v for k, v in summary.items() if k != "units"}}
    counts = summary["counts"]
    row = {
        "run_id": summary["run_id"],
        "url": folder.url,
        "digest": summary["digest"],
        **{f"{kind}_{name}": n for kind, one in counts.items() for name, n in one.items()},
        "seconds": summary["seconds"]["total"],
    }
    return View(document, [row], lambda console: _draw(console, _lines(folder, summary)))


def _lines(folder: RunFolder, summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    from matchwright.engine.runs import rerank_stage, tally

    lines = [("run", summary["run_id"]), ("in", folder.url)]
    for kind, one in summary["counts"].items():
        words = [f"{one[name]:,} {name}" for name in ("full", "few", "none", "errors")]
        lines.append((f"{kind}s", f"{one['queries']:,} asked: {', '.join(words)}"))
        lines.append(("", f"{one['rows']:,} result rows"))
    lines += rerank_stage.lines(summary)
    lines += tally.lines(summary.get("incremental"))
    seconds, rates = summary["seconds"], summary["rates"]
    lines.append(("took", f"{seconds['total']:,.1f} s, of which kernels {seconds['kernel']:,.1f}"))
    lines.append(("rate", f"{rates['queries_per_s']:,.0f} queries/s"))
    lines.append(("digest", summary["digest"]))
    return lines


def _draw(console: Console, lines: Sequence[tuple[str, str]]) -> None:
    console.print(facts(lines))


def facts_view(document: Mapping[str, Any], lines: Sequence[tuple[str, str]]) -> View:
    """Any document with lines for a terminal."""
    flat = {key: value for key, value in plainly(document).items() if not isinstance(value, list)}
    return View(document, [flat], lambda console: _draw(console, lines))
