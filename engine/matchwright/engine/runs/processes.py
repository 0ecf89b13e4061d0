"""Processes of this machine do the work, this one among them.

    this process   a thread answers units | main: the answers, in the order of their end
    each other     a thread here asks it: one unit at a time over a socket pair

All take from one list of units. Selecting and the rules are thousands of short array calls, and
between them threads of one process wait for Python's lock; processes share nothing but the mapped
store. One that is lost gives its unit back to the others.
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
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
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
_LOOK_S = 0.2
"""How often a thread that cannot hand over its answer looks whether the run has ended."""


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
        doers = [self._here, *(helper.do for helper in helpers)]
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
                thread.join()

    def _here(self, work: _Work) -> None:
        while (unit := work.take()) is not None:
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

    def take(self) -> Unit | None:
        """The next unit; None when all are answered. Waits while others may give theirs back."""
        with self._changed:
            while not self._left and self._open and not self._ended:
                self._changed.wait()
            return None if self._ended or not self._left else self._left.popleft()

    def give_back(self, unit: Unit) -> None:
        """A unit that was taken and will not be answered."""
        with self._changed:
            self._left.appendleft(unit)
            self._changed.notify()

    def put(self, answer: Answered | BaseException) -> None:
        """Hand over; waits while there are many that nobody has read."""
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
    """

    def __init__(self, options: Mapping[str, Any], threads: int) -> None:
        self._options, self._threads = options, threads
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._closed = False

    def do(self, work: _Work) -> None:
        """Ask for one unit after the other.

        Raises:
            _Lost: the process has gone; its unit was given back.
            MatchwrightError: what it says of the store.
        """
        unit: Unit | None = None
        try:
            with self._started() as line:
                line.send(self._options)
                _received(line)
                while (unit := work.take()) is not None:
                    line.send(unit)
                    work.put((unit, _received(line)))
        except (EOFError, OSError) as error:
            if unit is not None:
                work.give_back(unit)
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
                [sys.executable, "-m", __spec__.name, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env={**os.environ, "POLARS_MAX_THREADS": str(self._threads)},
            )
            return Connection(ours.detach())

    def _how_it_ended(self, error: Exception) -> str:
        if self._process is None:
            return str(error)
        try:
            code = self._process.wait(5.0)
        except subprocess.TimeoutExpired:
            return str(error)
        return f"signal {-code}" if code < 0 else f"exit code {code}"

    def close(self) -> None:
        """End the process, whatever it does; it has nothing to lose."""
        with self._lock:
            self._closed = True
            if self._process is not None:
                self._process.kill()
                self._process.wait()


def _received(line: Connection) -> Any:
    sound, value = line.recv()
    if not sound:
        raise value
    return value


def _serve(line: Connection) -> None:
    """What a process does: open the store, then answer units until nobody asks any more."""
    for number in (signal.SIGINT, signal.SIGTERM):  # the process that asks decides when it ends
        signal.signal(number, signal.SIG_IGN)
    with contextlib.suppress(EOFError, OSError):
        shard = Shard(**line.recv())
        line.send(_outcome(shard.open))
        while True:
            unit = line.recv()
            line.send(_outcome(shard.answer, unit))


def _outcome(do: Callable[..., Any], *arguments: Any) -> tuple[bool, Any]:
    """(True, what it gives) or (False, the error)."""
    try:
        return True, do(*arguments)
    except MatchwrightError as error:
        return False, error


if __name__ == "__main__":
    _serve(Connection(int(sys.argv[1])))
