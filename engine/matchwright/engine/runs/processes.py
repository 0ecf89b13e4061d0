"""Processes of this machine do the work, this one among them.

    this process   a thread answers units | main: the answers, in the order of their end
    each other     a thread here asks it: one unit at a time over a socket pair

All take from one list of units. Selecting and the rules are thousands of short array calls, and
between them threads of one process wait for Python's lock; processes share nothing but the mapped
store. One that is lost gives its unit back to the others; so does one that hangs.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from matchwright.engine.errors import MatchwrightError
from matchwright.engine.matcher import OTHER
from matchwright.engine.prepare import SnapshotLike
from matchwright.engine.runs.block import BlockAnswer
from matchwright.engine.runs.execute import LocalExecutor
from matchwright.engine.runs.plan import Plan, Unit
from matchwright.engine.runs.worker import Shard
from matchwright.kernels.ops import Ops

Answered = tuple[Unit, BlockAnswer]
PAIRS_MIN = 2_000_000_000
"""Pairs of a run from which other processes pay for their start: some ten seconds of one core."""
HUNG_S, HUNG_TIMES = 120.0, 10
"""A process hangs when its unit takes so long, and so many times what the slowest took before."""
_LOOK_S = 0.2
"""How often a thread that waits looks whether the run has ended, or a process hangs."""


def processes_for(plan: Plan, cores: int) -> int:
    """How many processes a run is worth; 1 where threads do as well."""
    pairs = sum(unit.queries * plan.counts[OTHER[unit.kind]] for unit in plan.units)
    return min(cores, len(plan.units)) if pairs >= PAIRS_MIN else 1


class ProcessExecutor:
    """Answers units with processes of one store on one machine.

    Args:
        ops: the kernels of this process; the others compute with the same device and threads.
        snapshot: the plan's epoch.
        plan: the plan.
        store: the store's folder.
        processes: how many in all, this one among them.
        say: told when a process is lost.
    """

    def __init__(
        self,
        ops: Ops,
        snapshot: SnapshotLike,
        plan: Plan,
        store: Path,
        *,
        processes: int,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._own = LocalExecutor(ops, snapshot, plan)
        self._processes = processes
        self._say = say
        self._options = {
            "store": str(store.resolve()),
            "plan": plan.to_json(),
            "number": 0,
            "of": 1,
            "device": ops.name,
            "threads": ops.threads,
            "memory_bytes": ops.memory_bytes,
        }
        self.lost = 0

    @property
    def about(self) -> Mapping[str, Any]:
        return {**self._own.about, "processes": self._processes, "processes_lost": self.lost}

    def answers(self, todo: Sequence[Unit]) -> Iterator[Answered]:
        """Each unit with its answer, as they come. Closing the iterator ends every process.

        Raises:
            MatchwrightError: what a process says of the store.
        """
        work = _Work(todo, self._processes)
        others = min(self._processes, len(todo)) - 1
        helpers = [_Helper(self._options, self._own.ops.threads) for _ in range(others)]
        doers = [partial(self._here, helpers), *(helper.do for helper in helpers)]
        threads = [
            threading.Thread(target=self._guarded, args=(doer, work), name=f"run-process-{n}")
            for n, doer in enumerate(doers[: len(todo)])
        ]
        try:
            for thread in threads:
                thread.start()
            for _ in range(len(todo)):
                yield work.answer()
        finally:
            work.end()
            for helper in helpers:
                helper.close()
            for thread in threads:
                if thread.ident is not None:  # the system may have had no room for it
                    thread.join()

    def _here(self, helpers: Sequence[_Helper], work: _Work) -> None:
        def end_hung() -> None:
            for helper in helpers:
                if work.hangs(helper.unit):
                    helper.end("it gave no answer")

        while (unit := work.take(end_hung)) is not None:
            work.put((unit, self._own.answer(unit)))

    def _guarded(self, doer: Callable[[_Work], None], work: _Work) -> None:
        """Whatever ends a doer before its time reaches the one who reads the answers."""
        try:
            doer(work)
        except _Lost as lost:
            self.lost += 1
            self._say(f"a process of the run was lost ({lost}); the others do its work")
        except BaseException as error:
            work.put(error)


class _Work:
    """Units that are left, and answers on their way; shared by all threads."""

    def __init__(self, todo: Sequence[Unit], bound: int) -> None:
        self._left = deque(todo)
        self._open = len(todo)
        self._changed = threading.Condition()
        self._ended = False
        self._answers: queue.Queue[Answered | BaseException] = queue.Queue(bound)
        self._taken: dict[Unit, float] = {}
        self._slowest = 0.0

    def take(self, idle: Callable[[], None] = lambda: None) -> Unit | None:
        """The next unit; None when all are answered. Waits while others may give theirs back.

        Args:
            idle: called again and again while it waits.
        """
        with self._changed:
            while not self._left and self._open and not self._ended:
                self._changed.wait(_LOOK_S)
                idle()
            if self._ended or not self._left:
                return None
            unit = self._left.popleft()
            self._taken[unit] = time.monotonic()
            return unit

    def give_back(self, unit: Unit) -> None:
        """A unit that was taken and will not be answered."""
        with self._changed:
            self._taken.pop(unit, None)
            self._left.appendleft(unit)
            self._changed.notify_all()

    def hangs(self, unit: Unit | None) -> bool:
        """Whether whoever took a unit should have answered it long ago."""
        with self._changed:
            taken = None if unit is None else self._taken.get(unit)
            bound = max(HUNG_S, HUNG_TIMES * self._slowest)
            return taken is not None and time.monotonic() - taken > bound

    def put(self, answer: Answered | BaseException) -> None:
        """Hand over; waits while there are many that nobody has read."""
        with self._changed:
            if not isinstance(answer, BaseException):
                taken = self._taken.pop(answer[0], None)
                if taken is not None:
                    self._slowest = max(self._slowest, time.monotonic() - taken)
        while not self._ended:
            with contextlib.suppress(queue.Full):
                self._answers.put(answer, timeout=_LOOK_S)
                break
        with self._changed:
            self._open -= 1
            self._changed.notify_all()

    def answer(self) -> Answered:
        """The next answer; raises what a thread has raised."""
        found = self._answers.get()
        if isinstance(found, BaseException):
            raise found
        return found

    def end(self) -> None:
        """Nothing is taken any more, and nobody waits."""
        self._ended = True
        with self._changed:
            self._changed.notify_all()


class _Lost(Exception):
    """A process has gone."""


class _Helper:
    """One other process; it is started by ``do``, on the thread that asks it.

    Args:
        options: what it is made with, see ``Shard``.
        threads: that its libraries may use.

    Attributes:
        unit: that it was asked for last.
    """

    unit: Unit | None = None

    def __init__(self, options: Mapping[str, Any], threads: int) -> None:
        self._options, self._threads = options, threads
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._closed = False
        self._why = ""

    def do(self, work: _Work) -> None:
        """Ask for one unit after the other.

        Raises:
            _Lost: the process has gone; its unit was given back.
            MatchwrightError: what it says of the store.
        """
        try:
            with self._started() as line:
                line.send(self._options)
                _received(line)
                while (unit := work.take()) is not None:
                    self.unit = unit
                    line.send(unit)
                    answer = _received(line)
                    self.unit = None
                    work.put((unit, answer))
        except (EOFError, OSError) as error:
            given_back, self.unit = self.unit, None
            if given_back is not None:
                work.give_back(given_back)
            if not self._closed:
                raise _Lost(self._how_it_ended(error)) from None

    def _started(self) -> Connection:
        """The line to a new process.

        Raises:
            EOFError: the run has ended meanwhile.
            OSError: the system has no room for another process.
        """
        ours, theirs = socket.socketpair()
        with ours, theirs, self._lock:
            if self._closed:
                raise EOFError
            self._process = subprocess.Popen(
                # The modules of this process, not what lies in the folder that it happens to be in.
                [sys.executable, "-P", "-m", __spec__.name, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # ours is for results
                env={
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path)),
                    "POLARS_MAX_THREADS": str(self._threads),
                },
                process_group=0,  # Ctrl-C is for the process that asks, also while this one starts
            )
            return Connection(ours.detach())

    def _how_it_ended(self, error: Exception) -> str:
        if self._process is None or isinstance(error, _Failed):
            return str(error)
        if self._why:
            return self._why
        try:
            code = self._process.wait(5.0)
        except subprocess.TimeoutExpired:
            return str(error)
        return f"signal {-code}" if code < 0 else f"exit code {code}"

    def end(self, why: str) -> None:
        """End a process that is not needed any more before the others."""
        with self._lock:
            self._why = why
            if self._process is not None:
                self._process.kill()

    def close(self) -> None:
        """End the process, whatever it does; it has nothing to lose."""
        with self._lock:
            self._closed = True
            if self._process is not None:
                self._process.kill()
                self._process.wait()


class _Failed(EOFError):
    """A process can do no more; the message says why."""


def _received(line: Connection) -> Any:
    """What a process says.

    Raises:
        MatchwrightError: it says this of the store.
        EOFError, OSError: it has gone, or can do no more.
    """
    try:
        sound, value = line.recv()
    except (EOFError, OSError):
        raise
    except Exception as error:  # whatever cannot be unpickled
        raise _Failed(f"its answer cannot be read: {_named(error)}") from None
    if sound is None:
        raise _Failed(value)
    if not sound:
        raise value
    return value


def _serve(line: Connection) -> None:
    """What a process does: open the store, then answer units until nobody asks any more."""
    for number in (signal.SIGINT, signal.SIGTERM):  # the process that asks decides when it ends
        signal.signal(number, signal.SIG_IGN)
    with contextlib.suppress(EOFError, OSError):
        shard = Shard(**line.recv())
        _tell(line, shard.open)
        while True:
            unit = line.recv()
            _tell(line, shard.answer, unit)


def _tell(line: Connection, do: Callable[..., Any], *arguments: Any) -> None:
    """(True, what it gives), (False, what it says of the store) or (None, why it failed)."""
    told: tuple[bool | None, Any]
    try:
        told = True, do(*arguments)
    except MatchwrightError as error:
        told = False, error
    except BaseException as error:  # no memory is left, a panic inside Polars, a defect
        told = None, _named(error)
    try:
        line.send(told)
    except OSError:
        raise
    except Exception as error:  # it cannot be pickled; then nothing was sent
        line.send((None, _named(error)))


def _named(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    _serve(Connection(int(sys.argv[1])))
