"""How requests end: overload, failures, callers that leave, deadlines, draining."""

from __future__ import annotations

import asyncio
import random

import pytest
from batcher_cases import LIMIT_S, ROWS, Device, hold, run, waiting

from matchwright.engine.batcher import Batcher, Lane
from matchwright.engine.errors import (
    Cancelled,
    DeadlineExceeded,
    DependencyUnavailable,
    InvalidArgument,
    MatchwrightError,
    Overloaded,
)


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
