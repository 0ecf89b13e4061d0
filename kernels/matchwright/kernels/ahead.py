"""What the host works out while the device is busy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Ahead(Generic[T]):
    """Work that is done once: in a pause, or when its outcome is asked for.

    An error waits for the outcome too: whoever had the pause is not disturbed, and what it waits
    for ends first.

    Args:
        work: what is to be done.
    """

    def __init__(self, work: Callable[[], T]) -> None:
        self._work: Callable[[], T] | None = work
        self._done: list[T] = []
        self._error: Exception | None = None

    def start(self) -> None:
        """Use a pause."""
        work, self._work = self._work, None
        if work is None:
            return
        try:
            self._done.append(work())
        except Exception as error:
            self._error = error

    def outcome(self) -> T:
        """What came of it.

        Raises:
            Exception: what the work met.
        """
        self.start()
        if self._error is not None:
            raise self._error
        return self._done[0]
