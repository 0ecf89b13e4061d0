"""The batcher: batches grow while the device is busy, every request ends, the queue is bounded."""

from __future__ import annotations

import asyncio
import random
import threading

import pytest

from matchwright.engine.batcher import QUERY_PAIRS_MIN, Batcher, Lane
from matchwright.engine.errors import (
    Cancelled,
    DeadlineExceeded,
    DependencyUnavailable,
    InvalidArgument,
    MatchwrightError,
    Overloaded,
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


def test_a_lone_request_leaves_at_once():
    device = Device()

    async def scenario(batcher):
        made = await batcher.submit(device.lane, ["a"], pairs=ROWS)
        assert made.items == [("done", "a")]
        assert made.batch_items == 1
        assert batcher.stats().queued_pairs == 0

    run(scenario)
    assert device.batches == [["a"]]


def test_an_empty_unit_has_no_outcomes():
    device = Device()

    async def scenario(batcher):
        assert (await batcher.submit(device.lane, [], pairs=ROWS)).items == []

    run(scenario)
    assert device.batches == []


def test_what_comes_while_the_device_is_busy_leaves_together():
    device = Device(held=True)

    async def scenario(batcher):
        first = await hold(batcher, device)
        rest = [
            asyncio.create_task(batcher.submit(device.lane, [n], pairs=ROWS)) for n in range(50)
        ]
        await waiting(batcher, 51)
        device.free.set()
        outcomes = await asyncio.gather(first, *rest)
        assert [made.items for made in outcomes[1:]] == [[("done", n)] for n in range(50)]
        assert all(made.batch_items == 50 for made in outcomes[1:])

    run(scenario)
    assert device.batches == [["first"], list(range(50))]
    assert len(device.threads) == 1


def test_a_batch_is_bounded_by_pairs_and_by_items():
    for batch, items in ((10 * ROWS, 1_000), (10**12, 10)):
        device = Device(held=True)

        async def scenario(batcher, device=device):
            tasks = [await hold(batcher, device)]
            tasks += [
                asyncio.create_task(batcher.submit(device.lane, [n], pairs=ROWS)) for n in range(25)
            ]
            await waiting(batcher, 26)
            device.free.set()
            await asyncio.gather(*tasks)

        run(scenario, batch=batch, items=items)
        assert [len(one) for one in device.batches] == [1, 10, 10, 5]
        assert [n for one in device.batches[1:] for n in one] == list(range(25))


def test_an_item_larger_than_a_batch_goes_alone():
    device = Device(held=True)

    async def scenario(batcher):
        tasks = [await hold(batcher, device)]
        tasks += [
            asyncio.create_task(batcher.submit(device.lane, [n], pairs=50 * ROWS)) for n in range(2)
        ]
        await waiting(batcher, 3)
        device.free.set()
        await asyncio.gather(*tasks)

    run(scenario, batch=10 * ROWS)
    assert device.batches == [["first"], [0], [1]]


def test_a_unit_that_fits_a_batch_is_never_split():
    device = Device(held=True)

    async def scenario(batcher):
        tasks = [await hold(batcher, device)]
        tasks += [
            asyncio.create_task(batcher.submit(device.lane, items, pairs=ROWS))
            for items in (["a"] * 6, ["b"] * 6, ["c"] * 3)
        ]
        await waiting(batcher, 4)
        device.free.set()
        await asyncio.gather(*tasks)

    run(scenario, batch=10 * ROWS)
    assert device.batches[1:] == [["a"] * 6 + ["c"] * 3, ["b"] * 6]


def test_a_long_unit_does_not_hold_up_short_ones():
    device = Device(held=True)
    ended = []

    async def scenario(batcher):
        async def ask(name, items):
            made = await batcher.submit(device.lane, items, pairs=ROWS)
            ended.append(name)
            assert made.items == [("done", item) for item in items]

        tasks = [await hold(batcher, device)]
        tasks.append(asyncio.create_task(ask("long", list(range(100)))))
        await waiting(batcher, 2)
        tasks += [asyncio.create_task(ask(f"short {n}", [f"s{n}"])) for n in range(3)]
        await waiting(batcher, 5)
        device.free.set()
        await asyncio.gather(*tasks)

    run(scenario, batch=10 * ROWS)
    assert ended[-1] == "long"
    assert device.batches[2][:3] == ["s0", "s1", "s2"]
    assert sum(len(one) for one in device.batches) == 104


def test_short_units_do_not_starve_long_ones():
    device = Device(held=True)

    async def scenario(batcher):
        tasks = [await hold(batcher, device)]
        tasks += [
            asyncio.create_task(batcher.submit(device.lane, [f"s{n}"], pairs=ROWS))
            for n in range(200)
        ]
        long = asyncio.create_task(batcher.submit(device.lane, list(range(30)), pairs=ROWS))
        await waiting(batcher, 202)
        device.free.set()
        await asyncio.gather(*tasks, long)

    run(scenario, batch=10 * ROWS)
    with_long = [n for n, one in enumerate(device.batches) if any(isinstance(i, int) for i in one)]
    assert with_long == [2, 4, 6]


def test_lanes_do_not_mix_and_none_starves():
    first, second = Device(held=True), Device()

    async def scenario(batcher):
        tasks = [await hold(batcher, first)]
        for n in range(6):
            lane = (first, second)[n % 2].lane
            tasks.append(asyncio.create_task(batcher.submit(lane, [n], pairs=ROWS)))
        await waiting(batcher, 7)
        first.free.set()
        await asyncio.gather(*tasks)

    run(scenario)
    assert first.batches == [["first"], [0, 2, 4]]
    assert second.batches == [[1, 3, 5]]
    assert first.threads == second.threads


def test_overload_is_refused_at_the_door_and_says_when_to_try_again():
    device = Device(held=True)

    async def scenario(batcher):
        tasks = [await hold(batcher, device)]
        tasks.append(asyncio.create_task(batcher.submit(device.lane, [1] * 5, pairs=ROWS)))
        await waiting(batcher, 2)
        with pytest.raises(Overloaded) as caught:
            await batcher.submit(device.lane, [2] * 6, pairs=ROWS)
        assert caught.value.details["limit"] == "queue_pairs_max"
        assert int(caught.value.details["retry_after_ms"]) >= 10
        tasks.append(asyncio.create_task(batcher.submit(device.lane, [3] * 5, pairs=ROWS)))
        await waiting(batcher, 3)
        device.free.set()
        await asyncio.gather(*tasks)
        assert batcher.stats().refused == 1
        assert batcher.stats().queued_pairs == 0

    run(scenario, queue=10 * ROWS)


def test_one_unit_larger_than_the_queue_is_let_in_when_nobody_waits():
    device = Device()

    async def scenario(batcher):
        made = await batcher.submit(device.lane, list(range(30)), pairs=ROWS)
        assert len(made.items) == 30

    run(scenario, queue=ROWS, batch=4 * ROWS)
    assert max(map(len, device.batches)) == 4


def test_a_failed_batch_answers_each_caller():
    device = Device(held=True)
    device.error = RuntimeError("the device is lost")

    async def scenario(batcher):
        tasks = [await hold(batcher, device)]
        tasks += [
            asyncio.create_task(batcher.submit(device.lane, [n, n], pairs=ROWS)) for n in range(9)
        ]
        await waiting(batcher, 10)
        device.free.set()
        for made in await asyncio.gather(*tasks):
            assert all(isinstance(item, MatchwrightError) for item in made.items)
            assert made.items[0].reason == "INTERNAL"
        device.error = None
        made = await batcher.submit(device.lane, ["after"], pairs=ROWS)
        assert made.items == [("done", "after")]
        assert batcher.stats().failed_batches == 2

    run(scenario)


@pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt(), MemoryError()])
def test_nothing_ends_the_device_thread(error):
    device = Device()
    device.error = error

    async def scenario(batcher):
        made = await batcher.submit(device.lane, [1], pairs=ROWS)
        assert isinstance(made.items[0], MatchwrightError)
        device.error = None
        assert (await batcher.submit(device.lane, [2], pairs=ROWS)).items == [("done", 2)]

    run(scenario)


def test_a_typed_error_of_a_whole_batch_keeps_its_type():
    device = Device()
    device.error = Cancelled("the device was taken away")

    async def scenario(batcher):
        made = await batcher.submit(device.lane, [1, 2], pairs=ROWS)
        assert [type(item) for item in made.items] == [Cancelled, Cancelled]

    run(scenario)


def test_too_few_outcomes_are_a_failure_of_the_batch():
    async def scenario(batcher):
        made = await batcher.submit(Lane("short", lambda items: []), [1, 2], pairs=ROWS)
        assert [item.reason for item in made.items] == ["INTERNAL", "INTERNAL"]

    run(scenario)


def test_a_poisonous_item_fails_alone():
    device = Device(held=True)

    async def scenario(batcher):
        tasks = [await hold(batcher, device)]
        tasks += [
            asyncio.create_task(batcher.submit(device.lane, [item], pairs=ROWS))
            for item in ("a", "poison", "b")
        ]
        await waiting(batcher, 4)
        device.free.set()
        made = [one.items[0] for one in await asyncio.gather(*tasks)]
        assert made[1] == ("done", "a")
        assert isinstance(made[2], InvalidArgument)
        assert made[3] == ("done", "b")

    run(scenario)


def test_a_caller_that_leaves_gives_its_place_back():
    device = Device(held=True)

    async def scenario(batcher):
        first = await hold(batcher, device)
        tasks = [
            asyncio.create_task(batcher.submit(device.lane, [n] * 3, pairs=ROWS)) for n in range(4)
        ]
        await waiting(batcher, 5)
        assert batcher.stats().queued_pairs == 12 * ROWS
        tasks[0].cancel()
        tasks[2].cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert batcher.stats().queued_pairs == 6 * ROWS
        assert batcher.stats().left == 2
        device.free.set()
        made = await asyncio.gather(first, *tasks, return_exceptions=True)
        assert isinstance(made[1], asyncio.CancelledError)
        assert made[2].items == [("done", 1)] * 3

    run(scenario, batch=4 * ROWS)
    assert device.batches == [["first"], [1] * 3, [3] * 3]


def test_a_caller_that_leaves_while_its_batch_runs_harms_nobody():
    device = Device(held=True)

    async def scenario(batcher):
        first = await hold(batcher, device)
        first.cancel()
        await asyncio.sleep(0)
        device.free.set()
        assert (await batcher.submit(device.lane, ["b"], pairs=ROWS)).items == [("done", "b")]
        assert batcher.stats().queued_units == 0

    run(scenario)


def test_a_deadline_that_passes_in_the_queue_is_never_run():
    device = Device(held=True)
    now = [100.0]

    async def scenario(batcher):
        first = await hold(batcher, device)
        late = asyncio.create_task(
            batcher.submit(device.lane, ["late"], pairs=ROWS, deadline=101.0)
        )
        soon = asyncio.create_task(
            batcher.submit(device.lane, ["soon"], pairs=ROWS, deadline=200.0)
        )
        await waiting(batcher, 3)
        now[0] = 150.0
        device.free.set()
        with pytest.raises(DeadlineExceeded):
            await late
        assert (await soon).items == [("done", "soon")]
        await first
        assert batcher.stats().expired == 1
        assert batcher.stats().queued_pairs == 0

    run(scenario, clock=lambda: now[0])
    assert device.batches == [["first"], ["soon"]]


def test_draining_finishes_what_waits_and_refuses_the_rest():
    device = Device(held=True)

    async def scenario(batcher):
        first = await hold(batcher, device)
        second = asyncio.create_task(batcher.submit(device.lane, ["b"], pairs=ROWS))
        await waiting(batcher, 2)
        drained = asyncio.create_task(batcher.drain(LIMIT_S))
        await asyncio.sleep(0.01)
        with pytest.raises(DependencyUnavailable):
            await batcher.submit(device.lane, ["late"], pairs=ROWS)
        device.free.set()
        await drained
        assert (await first).items == [("done", "first")]
        assert (await second).items == [("done", "b")]

    run(scenario)


def test_draining_without_time_answers_those_who_wait():
    device = Device(held=True)

    async def scenario(batcher):
        first = await hold(batcher, device)
        second = asyncio.create_task(batcher.submit(device.lane, ["b"], pairs=ROWS))
        await waiting(batcher, 2)
        await batcher.drain(0.0)
        with pytest.raises(DependencyUnavailable):
            await second
        device.free.set()
        assert (await first).items == [("done", "first")]

    run(scenario)


def test_a_caller_whose_loop_has_gone_harms_nobody():
    device = Device(held=True)
    batcher = Batcher(queue_pairs_max=10**12, batch_pairs_max=10**9)

    async def leave():
        await hold(batcher, device)

    loop = asyncio.new_event_loop()
    loop.run_until_complete(leave())
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
    loop.close()
    device.free.set()
    try:

        async def ask():
            return await batcher.submit(device.lane, ["b"], pairs=ROWS)

        assert asyncio.run(ask()).items == [("done", "b")]
    finally:
        batcher.close()


def test_every_request_ends_whatever_happens(count):
    """Random units, cancellations, deadlines, failures and overload: each ends exactly once."""
    for seed in range(count(reduced=10, full=300)):
        rng = random.Random(seed)

        def work(items, rng=rng):
            if rng.random() < 0.1:
                raise RuntimeError("injected")
            return [InvalidArgument("poison") if item < 0 else item for item in items]

        lanes = [Lane(str(n), work) for n in range(3)]

        async def scenario(batcher, rng=rng, lanes=lanes):
            async def ask():
                items = [rng.choice((-1, 1, 2)) for _ in range(rng.randrange(1, 40))]
                deadline = batcher.clock() + rng.choice((-1.0, 0.001, 60.0))
                try:
                    made = await batcher.submit(
                        rng.choice(lanes), items, pairs=ROWS, deadline=deadline
                    )
                except (Overloaded, DeadlineExceeded, DependencyUnavailable) as error:
                    return type(error).__name__
                assert len(made.items) == len(items)
                for item, outcome in zip(items, made.items, strict=True):
                    assert outcome == item or isinstance(outcome, MatchwrightError)
                return "done"

            tasks = [asyncio.create_task(ask()) for _ in range(60)]
            await asyncio.sleep(0.001)
            for task in rng.sample(tasks, 10):
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
            known = {"done", "Overloaded", "DeadlineExceeded"}
            strange = [
                one
                for one in ended
                if one not in known and not isinstance(one, asyncio.CancelledError)
            ]
            assert strange == []
            await batcher.drain(LIMIT_S)
            assert batcher.stats().queued_pairs == 0
            assert batcher.stats().queued_units == 0

        run(scenario, queue=800 * ROWS, batch=30 * ROWS, items=20)
