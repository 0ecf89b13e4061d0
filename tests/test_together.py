"""Callers who ask a model together: what goes in one call, who waits how long, and every end."""

from __future__ import annotations

import asyncio
import contextvars
import time

import pytest
from patience import PATIENCE

from matchwright.engine.service.together import Together


class Model:
    """Answers a share with its square, once its gate is open."""

    def __init__(self):
        self.calls, self.untils = [], []
        self.gate = asyncio.Event()
        self.fail = None
        self.cancelled = 0

    async def __call__(self, shares, until):
        self.calls.append(list(shares))
        self.untils.append(until)
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.fail is not None:
            raise self.fail
        return [share * share for share in shares]


def asked(work, **settings):
    """What ``work(model, together)`` gives, in an event loop of its own."""

    async def run():
        model = Model()
        given = {"size_max": 10, "waiting_max": 100, "calls_max": 1, **settings}
        return await work(model, Together(model, **given))

    return asyncio.run(run())


def ask(together, share, size=1, alike="same", seconds=5.0):
    until = time.monotonic() + seconds
    return asyncio.ensure_future(together.ask(share, size=size, alike=alike, until=until))


async def turns(n=5):
    for _ in range(n):
        await asyncio.sleep(0)


def test_one_call_leaves_at_once_and_the_rest_gather():
    async def work(model, together):
        tasks = [ask(together, n) for n in range(8)]
        await turns()
        assert model.calls == [[0]]
        assert together.waiting == 7
        model.gate.set()
        assert await asyncio.gather(*tasks) == [n * n for n in range(8)]
        return model.calls, together.waiting

    assert asked(work) == ([[0], [1, 2, 3, 4, 5, 6, 7]], 0)


def test_two_calls_may_be_on_their_way():
    async def work(model, together):
        tasks = [ask(together, n) for n in range(6)]
        await turns()
        assert model.calls == [[0], [1]]
        model.gate.set()
        await asyncio.gather(*tasks)
        return model.calls

    assert asked(work, calls_max=2) == [[0], [1], [2, 3, 4, 5]]


def test_a_call_holds_no_more_than_it_may_and_a_large_share_goes_alone():
    async def work(model, together):
        tasks = [ask(together, 0)]
        await turns()
        tasks += [ask(together, 1, size=6), ask(together, 2, size=6), ask(together, 3, size=4)]
        tasks += [ask(together, 4, size=50)]
        await turns()
        model.gate.set()
        await asyncio.gather(*tasks)
        return model.calls

    assert asked(work) == [[0], [1, 3], [2], [4]]


def test_only_what_is_alike_goes_together():
    async def work(model, together):
        tasks = [ask(together, 0)]
        await turns()
        tasks += [ask(together, n, alike=n % 2) for n in range(1, 7)]
        await turns()
        model.gate.set()
        await asyncio.gather(*tasks)
        return model.calls

    assert asked(work) == [[0], [1, 3, 5], [2, 4, 6]]


def test_each_waits_until_its_own_moment_and_the_call_goes_on_for_the_others():
    async def work(model, together):
        first = ask(together, 1, seconds=0.05)
        await turns()
        short, long = ask(together, 2, seconds=0.1), ask(together, 3, seconds=5.0)
        began = time.monotonic()
        assert await first is None
        assert await short is None
        assert 0.05 < time.monotonic() - began < PATIENCE
        assert not long.done()
        assert together.waiting == 1, "who left makes room"
        model.gate.set()
        assert await long == 9
        return model.calls

    assert asked(work) == [[1], [3]]


def test_a_call_lasts_as_long_as_the_latest_of_its_callers():
    async def work(model, together):
        first = ask(together, 0)
        await turns()
        now = time.monotonic()
        rest = [ask(together, n, seconds=float(n)) for n in (3, 9, 6)]
        await turns()
        model.gate.set()
        await asyncio.gather(first, *rest)
        return model.untils[1] - now

    assert asked(work) == pytest.approx(9.0, abs=0.5)


def test_who_comes_too_late_or_finds_too_many_is_told_at_once():
    async def work(model, together):
        assert await ask(together, 1, seconds=-1.0) is None
        assert model.calls == []
        running = ask(together, 1)
        await turns()
        waiting = [ask(together, n, size=40) for n in (2, 3)]
        await turns()
        assert await ask(together, 4, size=40) is None, "120 of 100"
        model.gate.set()
        return await asyncio.gather(running, *waiting)

    assert asked(work) == [1, 4, 9]


def test_somebody_large_is_let_in_when_nobody_waits():
    async def work(model, together):
        model.gate.set()
        return await ask(together, 5, size=10_000)

    assert asked(work) == 25


def test_a_caller_that_leaves_is_forgotten():
    async def work(model, together):
        running = ask(together, 1)
        await turns()
        leaving, staying = ask(together, 2), ask(together, 3)
        await turns()
        leaving.cancel()
        await turns()
        running.cancel()
        await turns()
        assert model.cancelled == 0, "a call may have others; it ends by its own moment"
        model.gate.set()
        assert await staying == 9
        return model.calls

    assert asked(work) == [[1], [3]]


def test_a_call_that_breaks_ends_for_all_and_the_next_one_goes(caplog):
    async def work(model, together):
        model.fail = RuntimeError("broken")
        first = ask(together, 1)
        await turns()
        second = ask(together, 2)
        model.gate.set()
        assert await first is None
        model.fail = None
        return await second, await ask(together, 3)

    assert asked(work)[1] == 9
    assert "a call for 1 callers failed" in caplog.text


def test_whoever_waits_is_told_when_it_closes():
    async def work(model, together):
        tasks = [ask(together, n) for n in range(3)]
        await turns()
        together.close()
        assert await asyncio.gather(*tasks) == [None] * 3
        assert await ask(together, 4) is None
        await turns()
        return model.cancelled

    assert asked(work) == 1


def test_a_call_runs_in_the_context_of_its_first_caller():
    """So its span is a child of that caller's."""
    who = contextvars.ContextVar("who")
    seen = []

    async def work(model, together):
        async def named(n):
            who.set(n)
            return await ask(together, n)

        sound = model.__call__

        async def call(shares, until):
            seen.append(who.get())
            return await sound(shares, until)

        together._call = call
        tasks = [asyncio.ensure_future(named(n)) for n in range(5)]
        await turns()
        model.gate.set()
        return await asyncio.gather(*tasks)

    assert asked(work) == [n * n for n in range(5)]
    assert seen == [0, 1]
