"""A newer epoch on its way to the device, while the one in force answers."""

from __future__ import annotations

import gc
import threading
import weakref
from types import SimpleNamespace

import device_cases
from patience import until
from service_cases import AS_OF, job_id, person_id

from matchwright.engine import synthetic
from matchwright.engine.device import LoadedEpochs, loaded_epochs, make_ready, open_ops
from matchwright.engine.matcher import Matcher
from matchwright.engine.policy import Policy
from matchwright.engine.request import Request
from matchwright.engine.store import Store
from matchwright.kernels.numpy_device import NumpyDevice
from matchwright.kernels.ops import Ops

gpu = device_cases.gpu
small_checks = device_cases.small_checks


class Held:
    """An ``Ops`` whose uploads end when they are let."""

    def __init__(self):
        self.health = SimpleNamespace(on_device=True)
        self.go = threading.Event()
        self.loads = 0

    def load(self, corpora):
        self.loads += 1
        return SimpleNamespace(wait=lambda: self.go.wait(60))


def epochs(*numbers):
    """A store whose newest epoch is the last of ``numbers``."""
    made = SimpleNamespace(numbers=list(numbers), asked=[])

    def snapshot(*, epoch=None, min_epoch=None):
        made.asked.append((epoch, min_epoch))
        number = epoch or made.numbers[-1]
        return SimpleNamespace(epoch=number, corpus=lambda kind: (number, kind))

    made.snapshot = snapshot
    return made


def test_the_epoch_in_force_answers_while_the_next_is_on_its_way():
    source, ops, now = epochs(1), Held(), [0.0]
    loaded = LoadedEpochs(source, ops, clock=lambda: now[0])
    assert loaded.snapshot().epoch == 1
    assert ops.loads == 0
    source.numbers.append(2)
    assert loaded.snapshot().epoch == 1
    assert loaded.snapshot().epoch == 1
    ops.go.set()
    until(lambda: loaded.snapshot().epoch == 2, "the next epoch")
    assert ops.loads == 1


def test_a_change_is_seen_within_a_second_whatever_is_on_its_way():
    source, ops, now = epochs(1), Held(), [0.0]
    loaded = LoadedEpochs(source, ops, clock=lambda: now[0])
    loaded.snapshot()
    for number in range(2, 6):  # each change comes before the upload of the one before it ends
        source.numbers.append(number)
        now[0] = 0.2 * number
        assert loaded.snapshot().epoch == 1
    now[0] = 1.5
    assert loaded.snapshot().epoch == 5
    ops.go.set()


def test_who_names_an_epoch_gets_it():
    source, ops = epochs(1, 2), Held()
    loaded = LoadedEpochs(source, ops)
    loaded.snapshot()
    source.numbers.append(3)
    assert loaded.snapshot(min_epoch=3).epoch == 3
    assert loaded.snapshot(epoch=1).epoch == 1
    assert loaded.snapshot().epoch == 2
    ops.health.on_device = False  # the device was lost: nothing is waited for
    assert loaded.snapshot().epoch == 3
    ops.go.set()


def test_a_lost_device_keeps_no_old_epoch():
    """Its files could not be let go of: a server may run on for months after the loss."""
    source, ops = epochs(1), Held()
    made, kept = source.snapshot, weakref.WeakSet()

    class Snapshot(SimpleNamespace):
        __hash__ = object.__hash__

    def snapshot(**asked):
        one = Snapshot(**vars(made(**asked)))
        kept.add(one)
        return one

    source.snapshot = snapshot
    loaded = LoadedEpochs(source, ops)
    loaded.snapshot()
    source.numbers.append(2)
    loaded.snapshot()
    assert {one.epoch for one in kept} == {1, 2}
    ops.health.on_device = False
    ops.go.set()
    assert loaded.snapshot().epoch == 2
    loaded._pool.shutdown()
    gc.collect()
    assert not kept


def test_epochs_that_were_overtaken_are_not_loaded():
    source, ops, now = epochs(1), Held(), [0.0]
    loaded = LoadedEpochs(source, ops, clock=lambda: now[0])
    loaded.snapshot()
    for number in range(2, 6):
        source.numbers.append(number)
        assert loaded.snapshot().epoch == 1
    ops.go.set()
    loaded._pool.shutdown()
    assert ops.loads in (1, 2)  # that which had begun, if it had, and the newest
    assert loaded.snapshot().epoch == 5


def test_a_real_store_changes_while_the_device_answers(gpu, tmp_path):
    gpu(NumpyDevice(tensor=True))
    ops, policy = open_ops("gpu"), Policy.load()
    with Store.open(tmp_path / "s", mode="w", create=True, salt=bytes(16)) as store:
        store.upsert("job", synthetic.frame("job", 20))
        store.upsert("freelancer", synthetic.frame("freelancer", 60))
        store.refit(seed=0, sample=60, as_of=AS_OF)
        make_ready(ops, store.snapshot(), policy)
        source = loaded_epochs(store, ops)
        here, plain = Matcher(source, ops, policy), Matcher(store, Ops(threads=1), policy)
        for turn in range(3):
            store.delete("freelancer", [person_id(turn)])
            epoch = store.snapshot().epoch.number
            request = Request(kind="job", id=job_id(turn), k=9, as_of=AS_OF, min_epoch=epoch)
            assert here.match(request).canonical_bytes() == plain.match(request).canonical_bytes()
        newest = store.snapshot().epoch
        until(lambda: source.snapshot().epoch == newest, "the newest epoch")
