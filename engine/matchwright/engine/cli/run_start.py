"""``matchwright run plan|start|resume``."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from matchwright.engine.cli import _run, _run_models, _source, run_report
from matchwright.engine.cli._models_options import (
    ModelsOption,
    SharedMemory,
    SharedMemoryOption,
    TritonCaOption,
    TritonOption,
)
from matchwright.engine.cli._options import AsOfOption, FormatOption, PolicyOption, date_of, day_of
from matchwright.engine.cli._progress import say
from matchwright.engine.errors import FailedPrecondition, InvalidArgument, PartlyDone

if TYPE_CHECKING:
    from matchwright.engine.cli._output import View
    from matchwright.engine.runs.folder import Output, RunFolder
    from matchwright.engine.runs.plan import Plan, RunOptions
    from matchwright.engine.store import Snapshot, Store

ForWhom = Annotated[_run.ForOption, typer.Option("--for", help="Who asks.")]
SlackOption = Annotated[
    int, typer.Option("--slack", help="Further rows kept of each, for --changed-since later.")
]
ContributionsOption = Annotated[
    bool, typer.Option("--contributions", help="Also write the points of each facet.")
]
CountOption = Annotated[bool, typer.Option("--count", help="Also count the eligible.")]
BlockOption = Annotated[
    int | None, typer.Option("--block", help="Queries of a work unit; results do not depend on it.")
]
ChangedOption = Annotated[
    str | None,
    typer.Option(
        "--changed-since", metavar="RUN", help="Score only what changed since it; or: published."
    ),
]


@dataclass(frozen=True)
class _Asked:
    """The options that plan and start share."""

    store: Path | None
    jobs: list[Path] | None
    freelancers: list[Path] | None
    maps: list[Path] | None
    work: Path | None
    for_: _run.ForOption
    k: int
    policy: Path | None
    as_of: str | None
    output: str | None
    contributions: bool
    count: bool
    slack: int
    block: int | None
    changed_since: str | None
    rerank: bool = True
    allow_degraded: bool = False

    def find_store(self) -> Path:
        """The store's folder; files are imported into one first.

        Raises:
            InvalidArgument: neither or both are given.
        """
        files = self.jobs is not None or self.freelancers is not None
        if files == (self.store is not None) or (files and not (self.jobs and self.freelancers)):
            raise InvalidArgument(
                "say what to match with --store DIR, or with both --jobs FILE and "
                "--freelancers FILE"
            )
        if self.store is not None:
            if self.maps or self.work is not None:
                raise InvalidArgument("--map and --work go with --jobs and --freelancers")
            return self.store
        from matchwright.engine.cli._run_inputs import store_of

        given: dict[Any, list[Path]] = {
            "job": self.jobs or [],
            "freelancer": self.freelancers or [],
        }
        return store_of(given, self.maps or (), day_of(self.as_of), self.work)

    def options(self, output: Output) -> tuple[RunOptions, str]:
        """(what is asked of the run, URL of its base or "")."""
        from matchwright.engine.policy import Policy
        from matchwright.engine.runs.plan import RunOptions, kinds_of

        base, url = _base(self.changed_since, output)
        policy = Policy.load(self.policy)
        options = RunOptions(
            kinds=kinds_of(self.for_.value),
            k=self.k,
            as_of=day_of(self.as_of),
            policy=policy if self.rerank else policy.without_rerank(),
            slack=self.slack,
            contributions=self.contributions,
            count=self.count,
            base=base,
            block=self.block,
            allow_degraded=self.allow_degraded,
        )
        return options, url


def _base(reference: str | None, output: Output) -> tuple[str | None, str]:
    """(run id, URL) of the run that an incremental one starts from."""
    if reference is None:
        return None, ""
    from matchwright.engine.runs.folder import PUBLISHED_RUN, find_run

    if reference == PUBLISHED_RUN and output.published() is None:
        say(f"nothing is published in {output.url} yet: everything is scored")
        return None, ""
    folder = find_run(reference, output.url)
    if folder.summary() is None:
        raise FailedPrecondition(f"run {folder.run_id} is not complete; resume it first")
    return folder.run_id, folder.url


@dataclass(frozen=True)
class _Ready:
    """A plan, and what it needs."""

    store: Store
    path: Path
    snapshot: Snapshot
    plan: Plan
    folder: RunFolder


@contextlib.contextmanager
def _planned(asked: _Asked, served: _run_models.Served) -> Iterator[_Ready]:
    from matchwright.engine.runs.folder import Output
    from matchwright.engine.runs.plan import make_plan
    from matchwright.engine.runs.units import now

    path = asked.find_store()
    output = Output(path / "runs" if asked.output is None else asked.output)
    options, base = asked.options(output)
    options.check()
    ranker = _run_models.pinned(options.policy, served)
    with _run.epoch_of(path) as (store, snapshot):
        where = str(path.resolve())
        plan = make_plan(snapshot, options, store=where, base=base, created=now(), ranker=ranker)
        yield _Ready(store, path, snapshot, plan, output.folder(plan.run_id))


def plan(
    store: _source.StoreOrNone = None,
    jobs: _run.JobsOption = None,
    freelancers: _run.FreelancersOption = None,
    map_: _run.MapsOption = None,
    work: _run.WorkOption = None,
    for_: ForWhom = _run.ForOption.BOTH,
    k: _run.KOption = 100,
    policy: PolicyOption = None,
    as_of: AsOfOption = None,
    output: _run.TargetOption = None,
    contributions: ContributionsOption = False,
    count: CountOption = False,
    slack: SlackOption = 0,
    block: BlockOption = None,
    changed_since: ChangedOption = None,
    device: _source.DeviceOption = _source.Device.AUTO,
    device_memory_mb: _source.DeviceMemoryOption = None,
    executor: _run.ExecutorOpt = _run.ExecutorOption.LOCAL,
    workers: _run.WorkersOption = None,
    shards: _run.ShardsOption = None,
    models: ModelsOption = None,
    triton: TritonOption = None,
    triton_ca: TritonCaOption = None,
    rerank: _source.RerankOption = True,
    allow_degraded: _run_models.AllowDegradedOption = False,
    format_: FormatOption = None,
) -> int:
    """Say what a run would be and cost, and whether it is done already; begin nothing."""
    asked = _Asked(
        store, jobs, freelancers, map_, work, for_, k, policy, as_of, output,
        contributions, count, slack, block, changed_since, rerank, allow_degraded,
    )  # fmt: skip
    served = _run_models.Served(models, triton, triton_ca)
    how = _run.How(device, executor, workers, None, None, None, shards, served, device_memory_mb)
    how.check()
    with _planned(asked, served) as ready:
        _run.write(_plan_view(ready, how), format_)
    return 0


def start(
    store: _source.StoreOrNone = None,
    jobs: _run.JobsOption = None,
    freelancers: _run.FreelancersOption = None,
    map_: _run.MapsOption = None,
    work: _run.WorkOption = None,
    for_: ForWhom = _run.ForOption.BOTH,
    k: _run.KOption = 100,
    policy: PolicyOption = None,
    as_of: AsOfOption = None,
    output: _run.TargetOption = None,
    contributions: ContributionsOption = False,
    count: CountOption = False,
    slack: SlackOption = 0,
    block: BlockOption = None,
    changed_since: ChangedOption = None,
    device: _source.DeviceOption = _source.Device.AUTO,
    device_memory_mb: _source.DeviceMemoryOption = None,
    executor: _run.ExecutorOpt = _run.ExecutorOption.LOCAL,
    workers: _run.WorkersOption = None,
    finish_by: _run.FinishByOption = None,
    report: run_report.ReportOption = True,
    ray_address: _run.RayAddressOption = None,
    ray_store: _run.RayStoreOption = None,
    shards: _run.ShardsOption = None,
    models: ModelsOption = None,
    triton: TritonOption = None,
    triton_ca: TritonCaOption = None,
    shared_memory: SharedMemoryOption = SharedMemory.AUTO,
    wait: _run_models.WaitOption = _run_models.WAIT_S,
    rerank: _source.RerankOption = True,
    allow_degraded: _run_models.AllowDegradedOption = False,
    format_: FormatOption = None,
) -> int:
    """Match everybody who is stored, and write it; the same inputs do not run twice."""
    asked = _Asked(
        store, jobs, freelancers, map_, work, for_, k, policy, as_of, output,
        contributions, count, slack, block, changed_since, rerank, allow_degraded,
    )  # fmt: skip
    served = _run_models.Served(models, triton, triton_ca, shared_memory, wait)
    how = _run.How(
        device, executor, workers, finish_by, ray_address, ray_store, shards, served,
        device_memory_mb,
    )  # fmt: skip
    how.check()
    with _planned(asked, served) as ready:
        return _go(ready, how, format_, report)


def resume(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run's folder, or its id.")],
    store: _source.StoreOrNone = None,
    output: _run.TargetOption = None,
    device: _source.DeviceOption = _source.Device.AUTO,
    device_memory_mb: _source.DeviceMemoryOption = None,
    executor: _run.ExecutorOpt = _run.ExecutorOption.LOCAL,
    workers: _run.WorkersOption = None,
    finish_by: _run.FinishByOption = None,
    report: run_report.ReportOption = True,
    ray_address: _run.RayAddressOption = None,
    ray_store: _run.RayStoreOption = None,
    shards: _run.ShardsOption = None,
    models: ModelsOption = None,
    triton: TritonOption = None,
    triton_ca: TritonCaOption = None,
    shared_memory: SharedMemoryOption = SharedMemory.AUTO,
    wait: _run_models.WaitOption = _run_models.WAIT_S,
    format_: FormatOption = None,
) -> int:
    """Go on with a run that did not end, to the same digest."""
    from matchwright.engine.runs.folder import find_run

    served = _run_models.Served(models, triton, triton_ca, shared_memory, wait)
    how = _run.How(
        device, executor, workers, finish_by, ray_address, ray_store, shards, served,
        device_memory_mb,
    )  # fmt: skip
    how.check()
    where = str(store / "runs") if output is None and store is not None else output
    folder = find_run(run, where)
    planned = folder.plan()
    path = Path(planned.store) if store is None else store
    with _run.resumable(folder, _run.resume_command(folder, path, how)):
        opened = contextlib.ExitStack()
        held, snapshot = opened.enter_context(_run.epoch_of(path, planned))
    with opened:
        return _go(_Ready(held, path, snapshot, planned, folder), how, format_, report)


def _go(ready: _Ready, how: _run.How, format_: Any, report: bool) -> int:
    if ready.folder.summary() is None:
        _run_models.need_served(ready.plan, how.served)
        _run.note_output(ready.path, ready.folder)
    summary, fresh = _run.do(ready.plan, ready.folder, ready.store, ready.snapshot, how)
    if fresh and report:
        run_report.write_or_say(ready.folder, ready.snapshot, how.served.models)
    _run.write(_run.summary_view(ready.folder, summary), format_)
    failed = sum(int(one["errors"]) for one in summary["counts"].values())
    return PartlyDone.exit_code if failed and fresh else 0


def _plan_view(ready: _Ready, how: _run.How) -> View:
    from matchwright.engine.runs.folder import PLAN
    from matchwright.engine.runs.plan import PLAN_FORMAT
    from matchwright.engine.runs.predict import predict
    from matchwright.engine.runs.units import look
    from matchwright.kernels.ops import usable_cores

    made, folder = ready.plan, ready.folder
    state, left = "new", len(made.units)
    if folder.exists(PLAN):
        made = folder.plan()
        state, left = "started", len(made.units) - len(look(folder, made).done)
    if folder.summary() is not None:
        state, left = "complete", 0
    local = how.executor is _run.ExecutorOption.LOCAL
    here = how if local else dataclasses.replace(how, workers=None)
    ops, processes = _run.kernels_of(made, here)
    guess = predict(made, ready.snapshot, ops, processes)
    units = {kind: len(made.units_of(kind)) for kind in made.options.kinds}
    document = {
        "format": PLAN_FORMAT,
        "run_id": made.run_id,
        "state": state,
        "url": folder.url,
        "store": str(ready.path),
        "determinants": dict(made.determinants),
        "counts": dict(made.counts),
        "units": units,
        "units_left": left,
        "predicted": guess,
    }
    lines = [
        ("run", f"{made.run_id}, {state}"),
        ("in", folder.url),
        ("store", f"{ready.path}, epoch {made.epoch_number}"),
        ("day", date_of(made.options.as_of)),
        *(
            (f"{kind}s", f"{made.counts[kind]:,} ask in {n:,} unit{'s'[n == 1 :]}")
            for kind, n in units.items()
        ),
        ("left", f"{left:,} of {len(made.units):,} units"),
        ("pairs", f"{guess['pairs']:,}"),
        ("about", f"{guess['seconds']:,.0f} s on {guess['threads']} threads"),
        ("at most", f"{guess['bytes_at_most'] / 1e6:,.0f} MB written"),
        ("memory", f"{guess['memory_bytes'] / 1e6:,.0f} MB"),
    ]
    if made.ranker is not None:
        served = _run_models.readiness(made, how.served)
        document["ranker"] = {**made.ranker.determinants, "served": served}
        lines += [
            ("then", f"{made.ranker} orders up to {made.options.candidates:,} candidates of each"),
            ("", f"{guess['model_rows']:,} rows in {guess['model_calls']:,} calls, at most"),
            ("model", f"content {made.ranker.content_hash}, {served}"),
        ]
    if ops.health.on_device:
        from matchwright.engine.device import device_plan, plan_corpora

        memory = device_plan(ops, plan_corpora(ready.snapshot, made.options.kinds))
        document["device_memory"] = memory.to_dict()
        told = [*memory.lines(), *([memory.refusal()] if not memory.fits else [])]
        lines += [("device", str(line)) for line in told]
    if not local:
        from matchwright.engine.runs.ray_plan import lines_of, plan_figures

        d = ready.snapshot.generation.d
        figures = plan_figures(made, d, how.workers or usable_cores(), how.shards)
        document["ray"] = figures
        lines += lines_of(figures)
    return _run.facts_view(document, lines)


def register(group: typer.Typer) -> None:
    """Add the commands."""
    group.command()(plan)
    group.command()(start)
    group.command()(resume)
