"""Ray actors do the work: processes of this machine, or of a cluster's nodes.

W workers are R teams of S shards. A unit goes to one team, each of whose actors searches its own
share of the rows; teams work on different units::

    S = W   one team: every actor has 1/W of the rows, and the driver merges
    S = 1   W teams: every actor has all rows and answers whole units, prepares them too

    driver   prepare unit n + 2 | merge and put together n | write n - 1 (a thread)
    actors   search unit n + 1

An actor that is lost is started again and asked again; the answer does not depend on it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import os
import secrets
import shutil
import signal
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matchwright.engine.errors import DependencyUnavailable, InvalidArgument
from matchwright.engine.prepare import SnapshotLike
from matchwright.engine.runs import block
from matchwright.engine.runs.block import BlockAnswer
from matchwright.engine.runs.execute import Questions
from matchwright.engine.runs.plan import Plan, Unit
from matchwright.engine.runs.prepare_block import PreparedBlock
from matchwright.engine.runs.shards import merge_found
from matchwright.engine.runs.worker import Shard
from matchwright.kernels.ops import usable_cores

IN_FLIGHT = 2
"""Units that are asked of a team at once: one is searched while the next one waits."""
LOSSES_MAX = 3
"""Losses of one shard without an answer in between, after which the run gives up."""
OBJECT_STORE_BYTES = 256 << 20
"""Ray's shared memory here: units in flight fit in many times over."""
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
}
_PRIVATE = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
}
"""For actors of this machine: Ray's servers listen on 127.0.0.1 alone and want a token that only
this process and its actors have; Ray would else write one into the home folder."""


class RayExecutor:
    """Answers units with Ray actors.

    Args:
        plan: the plan.
        snapshot: its epoch, here.
        store: the store's folder; actors open it under the same path.
        workers: actors; None for one on each core here.
        shards: actors that share a corpus; it divides the workers. None: all of them.
        device: what each actor computes with; with "gpu" Ray gives each one a GPU of its own.
        address: of a Ray cluster; None starts actors on this machine, and ends them afterwards.
        store_on_nodes: the store's folder on the nodes, where that is another path: a pulled copy.
        memory_bytes: budget of temporary memory of each actor.
        device_memory_bytes: most memory of a GPU of each actor; None takes what is free.
        say: told when an actor is lost.

    Raises:
        DependencyUnavailable: Ray is not installed.
        InvalidArgument: shards do not divide the workers.
    """

    def __init__(
        self,
        plan: Plan,
        snapshot: SnapshotLike,
        store: Path,
        *,
        workers: int | None = None,
        shards: int | None = None,
        device: str = "auto",
        address: str | None = None,
        store_on_nodes: str | None = None,
        memory_bytes: int = 256 << 20,
        device_memory_bytes: int | None = None,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        if importlib.util.find_spec("ray") is None:
            raise DependencyUnavailable(
                "--executor ray: Ray is not installed; pip install 'matchwright[ray]'"
            )
        self.plan, self.snapshot, self.address = plan, snapshot, address
        self.workers = workers or usable_cores()
        self.shards = shards or self.workers
        if self.workers % self.shards:
            raise InvalidArgument(
                f"{self.shards} shards do not divide {self.workers} workers: each team needs one "
                "worker for each shard",
                field="shards",
            )
        self.questions = Questions(snapshot, plan)
        threads = max(1, usable_cores() // self.workers) if address is None else 0
        self.actors = _Actors(
            store=store_on_nodes or str(store.resolve()),
            plan=plan,
            shards=self.shards,
            teams=self.workers // self.shards,
            device=device,
            threads=threads,
            memory_bytes=memory_bytes,
            device_memory_bytes=device_memory_bytes,
            remote=address is not None,
            say=say,
        )

    @property
    def about(self) -> Mapping[str, Any]:
        return {
            "executor": "ray",
            "device": "+".join(sorted({str(one["device"]) for one in self.actors.facts})),
            "workers": self.workers,
            "teams": self.actors.teams,
            "shards": [one["rows"] for one in self.actors.facts[: self.shards]],
            "actors_lost": self.actors.lost,
        }

    def answers(self, todo: Sequence[Unit]) -> Iterator[tuple[Unit, BlockAnswer]]:
        """Each unit with its answer, in their order. Closing the iterator ends every actor.

        Raises:
            DependencyUnavailable: no cluster answers, or a shard was lost again and again.
            MatchwrightError: what an actor says of the store on its node.
        """
        if not todo:
            return
        with _cluster(self.address, self.workers) as ray, self.actors.running(ray):
            waiting: deque[_Asked] = deque()
            left = deque(enumerate(todo))
            while left or waiting:
                while left and len(waiting) < IN_FLIGHT * self.actors.teams:
                    turn, unit = left.popleft()
                    waiting.append(self._ask(unit, turn % self.actors.teams))
                yield self._answer(waiting)

    def _ask(self, unit: Unit, team: int) -> _Asked:
        if self.shards == 1:
            return self.actors.ask(_Asked(unit, team, None, unit))
        prepared = self.questions.prepare(unit)
        message = dataclasses.replace(prepared, ids=[], records={})
        return self.actors.ask(_Asked(unit, team, prepared, message))

    def _answer(self, waiting: deque[_Asked]) -> tuple[Unit, BlockAnswer]:
        asked = waiting[0]
        parts = [self.actors.answer(asked, shard) for shard in range(self.shards)]
        waiting.popleft()
        if asked.prepared is None:
            made: BlockAnswer = parts[0]
            return asked.unit, made
        found = merge_found(asked.prepared.key_q, parts)
        plan = self.plan
        made = block.answer(
            self.snapshot, asked.prepared, found, plan.options, plan.policy_id, plan.ranker
        )
        return asked.unit, made


@dataclass(slots=True)
class _Asked:
    """A unit that a team works on.

    Attributes:
        prepared: its queries; None where the actor prepares them.
        message: what the actors are sent; once asked, where it is in Ray's memory.
        answers: shard -> (which start of its actor, the answer to come).
    """

    unit: Unit
    team: int
    prepared: PreparedBlock | None
    message: Any
    answers: dict[int, tuple[int, Any]] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class _Actors:
    """The actors, team by team, started again when they are lost.

    Attributes:
        store, plan, shards, device, threads, memory_bytes, device_memory_bytes: what an actor is
            made with.
        remote: the actors are on a cluster, whose resources they claim.
        say: told of losses.
        facts: what each one said when it was ready.
        lost: how many were lost in all.
    """

    store: str
    plan: Plan
    shards: int
    teams: int
    device: str
    threads: int
    memory_bytes: int
    device_memory_bytes: int | None
    remote: bool
    say: Callable[[str], None]
    facts: list[dict[str, Any]] = field(default_factory=list)
    lost: int = 0
    _ray: Any = None
    _handles: list[Any] = field(default_factory=list)
    _starts: list[int] = field(default_factory=list)
    _losses: list[int] = field(default_factory=list)

    @property
    def count(self) -> int:
        return self.shards * self.teams

    @contextlib.contextmanager
    def running(self, ray: Any) -> Iterator[None]:
        """All actors, ready; none afterwards."""
        self._ray = ray
        self._handles = [None] * self.count
        self._starts, self._losses = [0] * self.count, [0] * self.count
        try:
            for number in range(self.count):
                self._start(number)
            ready = [handle.open.remote() for handle in self._handles]
            self.facts = [self._opened(number, one) for number, one in enumerate(ready)]
            yield
        finally:
            for handle in self._handles:
                if handle is not None:
                    with contextlib.suppress(Exception):  # it is gone already
                        ray.kill(handle)
            self._handles = []

    def ask(self, asked: _Asked) -> _Asked:
        """Ask every shard of a team for a unit."""
        asked.message = self._ray.put(asked.message)
        for shard in range(self.shards):
            self._ask_again(asked, shard)
        return asked

    def _ask_again(self, asked: _Asked, shard: int) -> None:
        number = asked.team * self.shards + shard
        handle = self._handles[number]
        method = handle.search if asked.prepared is not None else handle.answer
        asked.answers[shard] = (self._starts[number], method.remote(asked.message))

    def answer(self, asked: _Asked, shard: int) -> Any:
        """What an actor found for a unit; waits for it.

        Raises:
            DependencyUnavailable: the actor was lost too often.
        """
        number = asked.team * self.shards + shard
        while True:
            start, answer = asked.answers[shard]
            try:
                found = self._get(answer)
            except _Lost as lost:
                if start == self._starts[number]:
                    self._revive(number, lost)
                self._ask_again(asked, shard)
                continue
            self._losses[number] = 0
            return found

    def _get(self, answer: Any) -> Any:
        """A result.

        Raises:
            _Lost: the actor, its node or the result has gone.
            MatchwrightError: what the actor says.
        """
        errors = self._ray.exceptions
        try:
            return self._ray.get(answer)
        except errors.RayTaskError as error:
            cause = error.cause if isinstance(error.cause, Exception) else error
            raise cause from None
        except (errors.RayError, ConnectionError) as error:
            raise _Lost(_brief(error)) from None

    def _start(self, number: int) -> None:
        resources: dict[str, Any] = {
            "num_cpus": 1,
            "max_restarts": 0,
            "max_concurrency": IN_FLIGHT,
        }
        if self.device == "gpu":
            resources["num_gpus"] = 1
        if self.remote:
            resources["scheduling_strategy"] = "SPREAD"
        made = self._ray.remote(Shard).options(**resources)
        threads = self.threads or None
        self._handles[number] = made.remote(
            self.store, self.plan.to_json(), number % self.shards, self.shards, self.device,
            threads, self.memory_bytes, self.device_memory_bytes,
        )  # fmt: skip
        self._starts[number] += 1

    def _opened(self, number: int, ready: Any) -> dict[str, Any]:
        while True:
            try:
                facts: dict[str, Any] = self._get(ready)
            except _Lost as lost:
                self._count_loss(number, lost)
                self._start(number)
                ready = self._handles[number].open.remote()
                continue
            return facts

    def _revive(self, number: int, lost: _Lost) -> None:
        self._count_loss(number, lost)
        self._start(number)
        self.facts[number] = self._opened(number, self._handles[number].open.remote())

    def _count_loss(self, number: int, lost: _Lost) -> None:
        self.lost += 1
        self._losses[number] += 1
        self.say(f"actor {number + 1} of {self.count} was lost ({lost})")
        with contextlib.suppress(Exception):  # what is left of it
            self._ray.kill(self._handles[number])
        if self._losses[number] > LOSSES_MAX:
            raise DependencyUnavailable(
                f"actor {number + 1} of {self.count} was lost "
                f"{self._losses[number]} times in a row ({lost}); what is written is kept: see to "
                "its node (often it is short of memory)",
                run=self.plan.run_id,
                actor=number,
            )


class _Lost(Exception):
    """An actor, its node or its answer has gone."""


def _brief(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]


@contextlib.contextmanager
def _cluster(address: str | None, workers: int) -> Iterator[Any]:
    """Ray, connected; one that was started here is ended and its files are removed.

    A process that has connected to Ray already keeps its connection.
    """
    if "ray" in sys.modules and sys.modules["ray"].is_initialized():
        yield sys.modules["ray"]
        return
    before = (dict(os.environ), sys.excepthook, _sigterm())
    os.environ.update(_QUIET if address is not None else _QUIET | _PRIVATE)
    folder = None
    try:
        import ray

        if address is None:
            folder = _own_folder()
        try:
            ray.init(**_settings(address, workers, folder))
        except (ray.exceptions.RayError, ConnectionError, TimeoutError, RuntimeError) as error:
            raise DependencyUnavailable(f"Ray does not start: {_brief(error)}") from None
        _restore(before)
        _hush(ray)
        yield ray
    finally:
        if "ray" in sys.modules:
            sys.modules["ray"].shutdown()
        _restore(before)
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _hush(ray: Any) -> None:
    """Ray prints what its raylet says of lost workers to stdout, where a run's answer belongs."""
    worker: Any = getattr(ray._private, "worker", None)
    if hasattr(worker, "print_to_stdstream"):
        worker.print_to_stdstream = lambda *what, **how: None


def _settings(address: str | None, workers: int, folder: str | None) -> dict[str, Any]:
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    if address is not None:
        return {"address": address, **quiet}
    return {
        "address": "local",
        "num_cpus": workers,
        "include_dashboard": False,
        "object_store_memory": OBJECT_STORE_BYTES,
        "_temp_dir": folder,
        **quiet,
    }


def _own_folder() -> str:
    """A folder for Ray's sockets and logs; those of drivers that were killed are removed."""
    usual = Path(tempfile.gettempdir())
    # The path of a socket holds some 107 characters, most of which Ray needs itself.
    parent = Path("/tmp") if len(str(usual)) > 30 and Path("/tmp").is_dir() else usual
    for left in parent.glob("mw-ray-*-*"):
        pid = left.name.split("-")[2]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists() and Path("/proc/self").exists():
            shutil.rmtree(left, ignore_errors=True)
    return tempfile.mkdtemp(prefix=f"mw-ray-{os.getpid()}-", dir=parent)


def _sigterm() -> Any:
    if threading.current_thread() is not threading.main_thread():
        return None
    return signal.getsignal(signal.SIGTERM)


def _restore(before: tuple[dict[str, str], Any, Any]) -> None:
    """Ray puts its own handlers of SIGTERM and of exceptions, and variables; put ours back."""
    environment, hook, handler = before
    for name in (*_QUIET, *_PRIVATE):
        if name in environment:
            os.environ[name] = environment[name]
        else:
            os.environ.pop(name, None)
    sys.excepthook = hook
    if handler is not None:
        signal.signal(signal.SIGTERM, handler)


__all__ = ["IN_FLIGHT", "LOSSES_MAX", "RayExecutor"]
