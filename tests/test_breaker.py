"""The circuit breaker beside a model of it, on a clock that the test turns."""

from __future__ import annotations

import threading

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from matchwright.engine.models.breaker import Breaker

FAILURES, OPEN_S, PATIENCE_S = 3, 10.0, 2.0


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def make(failures=FAILURES, patience_s=PATIENCE_S):
    clock, told = Clock(), []
    breaker = Breaker(
        failures=failures,
        open_s=OPEN_S,
        patience_s=patience_s,
        clock=clock,
        changed=told.append,
    )
    return breaker, clock, told


def opened():
    breaker, clock, told = make()
    for _ in range(FAILURES):
        breaker.failed(breaker.admit())
    return breaker, clock, told


def test_failures_in_a_row_open_it():
    breaker, _, told = make()
    for _ in range(2 * FAILURES):  # never three in a row
        breaker.failed(breaker.admit())
        breaker.failed(breaker.admit())
        breaker.answered(breaker.admit())
    assert (breaker.state, told) == ("closed", [])
    for _ in range(FAILURES):
        assert breaker.state == "closed"
        breaker.failed(breaker.admit())
    assert (breaker.state, told) == ("open", ["open"])
    assert breaker.admit() is None


def test_late_calls_open_it_only_after_a_silence():
    breaker, clock, _ = make()
    for _ in range(10 * FAILURES):  # callers with hardly any time say nothing about the server
        breaker.failed(breaker.admit(), late=True)
    assert breaker.state == "closed"
    permit = breaker.admit()
    clock.now += PATIENCE_S
    breaker.failed(permit, late=True)
    assert breaker.state == "open"


def test_the_silence_is_counted_from_the_first_call_that_was_not_answered():
    breaker, clock, _ = make()
    early = breaker.admit()
    breaker.failed(breaker.admit(), late=True)
    clock.now += PATIENCE_S
    breaker.failed(early, late=True)  # began before the one that failed first
    assert breaker.state == "closed"
    breaker.failed(breaker.admit(), late=True)
    assert breaker.state == "open"


def test_only_the_probe_s_answer_lets_a_call_through():
    breaker, clock, told = opened()
    assert breaker.probe_in_s() == OPEN_S
    assert not breaker.probe()
    clock.now += OPEN_S
    assert breaker.admit() is None  # time alone lets nobody through
    assert breaker.probe()
    assert not breaker.probe()  # one at a time
    breaker.probed(there=False)
    assert breaker.probe_in_s() == OPEN_S
    clock.now += OPEN_S
    assert breaker.probe()
    breaker.probed(there=True)
    trial = breaker.admit()
    assert trial.trial
    assert breaker.admit() is None
    breaker.answered(trial)
    assert told == ["open", "half_open", "closed"]


@pytest.mark.parametrize("late", [True, False])
def test_a_failed_trial_opens_it_again(late):
    breaker, clock, _ = opened()
    clock.now += OPEN_S
    breaker.probe()
    breaker.probed(there=True)
    trial = breaker.admit()
    clock.now += PATIENCE_S
    breaker.failed(trial, late=late)
    assert breaker.state == "open"
    assert breaker.probe_in_s() == OPEN_S


def test_a_trial_that_had_no_time_or_left_is_followed_by_another():
    breaker, clock, _ = opened()
    clock.now += OPEN_S
    breaker.probe()
    breaker.probed(there=True)
    breaker.failed(breaker.admit(), late=True)
    assert breaker.state == "half_open"
    breaker.abandoned(breaker.admit())
    breaker.answered(breaker.admit())
    assert breaker.state == "closed"


def test_calls_from_before_say_nothing_any_more():
    breaker, clock, _ = make()
    old = [breaker.admit() for _ in range(4)]
    for permit in old[:FAILURES]:
        breaker.failed(permit)
    breaker.answered(old[FAILURES])
    assert breaker.state == "open"
    clock.now += OPEN_S
    breaker.probe()
    breaker.probed(there=True)
    breaker.failed(old[0])
    breaker.abandoned(old[1])
    assert breaker.state == "half_open"


def test_one_trial_however_many_threads_ask():
    breaker, clock, _ = opened()
    clock.now += OPEN_S
    breaker.probe()
    breaker.probed(there=True)
    start, permits = threading.Barrier(16), []

    def ask():
        start.wait()
        permits.append(breaker.admit())

    threads = [threading.Thread(target=ask) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(permit is not None for permit in permits) == 1


class Machine(RuleBasedStateMachine):
    """Any order of events; the model is a few plain variables."""

    def __init__(self):
        super().__init__()
        self.breaker, self.clock, self.told = make()
        self.state, self.row, self.since, self.probing = "closed", 0, None, False
        self.probe_at = 0.0
        self.out = []  # (permit, whether it still counts)

    def _open(self):
        self.state, self.row = "open", 0
        self.probe_at = self.clock.now + OPEN_S
        self.out = [(permit, False) for permit, _ in self.out]

    @rule(seconds=st.sampled_from([0.1, 1.0, PATIENCE_S, OPEN_S]))
    def time_passes(self, seconds):
        self.clock.now += seconds

    @rule()
    def admit(self):
        permit = self.breaker.admit()
        trying = any(permit.trial and counts for permit, counts in self.out)
        wanted = self.state == "closed" or (self.state == "half_open" and not trying)
        assert (permit is not None) == wanted
        if permit is not None:
            assert permit.trial == (self.state == "half_open")
            self.out.append((permit, True))

    @precondition(lambda self: self.out)
    @rule(data=st.data(), end=st.sampled_from(["answered", "failed", "late", "abandoned"]))
    def end(self, data, end):
        at = data.draw(st.integers(0, len(self.out) - 1))
        permit, counts = self.out.pop(at)
        if end == "late":
            self.breaker.failed(permit, late=True)
        else:
            getattr(self.breaker, end)(permit)
        if not counts:
            return
        if end == "answered":
            self.row = 0
            if permit.trial:
                self.state = "closed"
        elif end != "abandoned":
            self._failed(permit, end == "late")

    def _failed(self, permit, late):
        if permit.trial:
            if not late or self.clock.now - permit.started >= PATIENCE_S:
                self._open()
            return
        self.since = permit.started if self.row == 0 else min(self.since, permit.started)
        self.row += 1
        silent = self.clock.now - self.since >= PATIENCE_S
        if self.row >= FAILURES and (silent or not late):
            self._open()

    @rule()
    def probe(self):
        due = self.state == "open" and not self.probing and self.clock.now >= self.probe_at
        assert self.breaker.probe() == due
        self.probing = self.probing or due

    @precondition(lambda self: self.probing)
    @rule(there=st.booleans())
    def probed(self, there):
        self.breaker.probed(there=there)
        self.probing = False
        if there:
            self.state = "half_open"
        else:
            self.probe_at = self.clock.now + OPEN_S

    @invariant()
    def agrees(self):
        assert self.breaker.state == self.state
        assert (self.breaker.probe_in_s() is None) == (self.state != "open")
        assert self.told == [] or self.told[-1] == self.state


TestMachine = Machine.TestCase
