"""Worker threads, each with single-threaded BLAS.

Two workers with one BLAS thread each beat one worker with two, since the selection between two
products runs in parallel too. The limit on BLAS is the process's, so it is counted: the first who
needs it sets it, the last who leaves takes it back.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import Any


class Workers:
    """A pool that starts with its first use.

    Args:
        threads: how many run at once.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._pool: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()

    def run(self, tasks: Sequence[Callable[[], None]]) -> None:
        """Run all tasks; raises what the first failed one raised, after all have ended."""
        if len(tasks) == 1 or self.threads == 1:
            for task in tasks:
                task()
            return
        futures = [self._executor().submit(task) for task in tasks[1:]]
        try:
            tasks[0]()
        finally:
            errors = [future.exception() for future in futures]
        for error in errors:
            if error is not None:
                raise error

    def _executor(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self.threads, "matchwright-kernels")
            return self._pool


@cache
def _controller() -> Any:
    """threadpoolctl's controller of the BLAS that is loaded; None without threadpoolctl."""
    try:
        from threadpoolctl import ThreadpoolController
    except ImportError:
        return None
    return ThreadpoolController()


class _Limit:
    """How many need the limit now."""

    def __init__(self) -> None:
        self._users = 0
        self._set: Any = None
        self._lock = threading.Lock()

    def enter(self, controller: Any) -> None:
        with self._lock:
            if self._users == 0:
                self._set = controller.limit(limits=1, user_api="blas")
            self._users += 1

    def leave(self) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                self._set.restore_original_limits()


_LIMIT = _Limit()


@contextmanager
def single_threaded_blas() -> Iterator[None]:
    """Keep BLAS to one thread for each caller; does nothing without threadpoolctl."""
    controller = _controller()
    if controller is None:
        yield
        return
    _LIMIT.enter(controller)
    try:
        yield
    finally:
        _LIMIT.leave()
