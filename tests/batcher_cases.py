"""A device under the test's control, and what waits for it."""

from __future__ import annotations

import asyncio
import threading

from matchwright.engine.batcher import QUERY_PAIRS_MIN, Batcher, Lane
from matchwright.engine.errors import (
    InvalidArgument,
)

ROWS = QUERY_PAIRS_MIN
LIMIT_S = 20.0


class Device:
    """A lane whose runs can be held up; it remembers every batch."""

    def __init__(self, *, held: bool = False) -> None:
        self.batches: list[list[object]] = []
        self.threads: set[int] = set()
        self.busy = threading.Event()
        self.free = threading.Event()
        self.error: BaseException | None = None
        if not held:
            self.free.set()
        self.lane = Lane("test", self.run)

    def run(self, items):
        self.batches.append(list(items))
        self.threads.add(threading.get_ident())
        self.busy.set()
        assert self.free.wait(LIMIT_S)
        if self.error is not None:
            raise self.error
        return [InvalidArgument("poison") if item == "poison" else ("done", item) for item in items]


def run(scenario, *, queue=10**12, batch=10**9, items=1_000, clock=None):
    """Run a scenario against a new batcher, within a bounded time, and close it."""
    more = {} if clock is None else {"clock": clock}
    batcher = Batcher(queue_pairs_max=queue, batch_pairs_max=batch, batch_items_max=items, **more)
    try:
        return asyncio.run(asyncio.wait_for(scenario(batcher), LIMIT_S))
    finally:
        batcher.close()


async def hold(batcher, device):
    """Occupy the device with one request; gives its task."""
    task = asyncio.create_task(batcher.submit(device.lane, ["first"], pairs=ROWS))
    await asyncio.to_thread(device.busy.wait, LIMIT_S)
    return task


async def waiting(batcher, units):
    """Let tasks run until so many units are known to the batcher."""
    for _ in range(10_000):
        if batcher.stats().queued_units >= units:
            return
        await asyncio.sleep(0)
    raise AssertionError(f"{batcher.stats()}")
