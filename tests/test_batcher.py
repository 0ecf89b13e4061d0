"""The batcher: batches grow while the device is busy, in bounds, and lanes do not mix."""

from __future__ import annotations

import asyncio

from batcher_cases import ROWS, Device, hold, run, waiting


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
