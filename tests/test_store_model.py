"""The store against a dictionary: any sequence of changes, seals, refits and reopenings."""

from __future__ import annotations

import importlib.util
import shutil
import sys
import tempfile
from pathlib import Path

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from matchwright.engine.store import Store


def _load(name):
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


fakes = _load("store_fakes")
record, frame, contents = fakes.record, fakes.frame, fakes.contents

kinds = st.sampled_from(["job", "freelancer"])
names = st.sampled_from([f"é{n}" for n in range(12)])
versions = st.integers(0, 3)
batches = st.lists(st.tuples(names, versions), min_size=1, max_size=8)
OPTIONS = {"seal_rows": 12, "chunk_rows": 5}


def counted(model, batch):
    """(accepted, replaced, duplicate), the model after."""
    model, counts = dict(model), [0, 0, 0]
    for name, version in batch:
        new = record(name, version)
        counts[0 if name not in model else 2 if model[name] == new else 1] += 1
        model[name] = new
    return counts, model


class StoreMachine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="mw-store-"))
        self.model = {"job": {}, "freelancer": {}}
        self.held = []

    @initialize(keep_text=st.just(True))
    def create(self, keep_text):
        self.open(create=True)
        self.reader = Store.open(self.folder, neighbours=fakes.neighbours())

    def open(self, create=False):
        self.store = Store.open(
            self.folder, mode="w", create=create, neighbours=fakes.neighbours(), **OPTIONS
        )

    @rule(kind=kinds, batch=batches)
    def upsert(self, kind, batch):
        counts, self.model[kind] = counted(self.model[kind], batch)
        write = self.store.upsert(kind, frame(*(record(*pair) for pair in batch)))
        assert [write.accepted, write.replaced, write.duplicate] == counts
        assert self.reader.snapshot(min_epoch=write.epoch.number).epoch.number >= write.epoch.number

    @rule(kind=kinds, writes=st.lists(batches, max_size=3))
    def bulk(self, kind, writes):
        with self.store.bulk(kind) as sink:
            for batch in writes:
                counts, self.model[kind] = counted(self.model[kind], batch)
                tally = sink.write(frame(*(record(*pair) for pair in batch)))
                assert [tally.accepted, tally.replaced, tally.duplicate] == counts

    @rule(kind=kinds, gone=st.lists(names, max_size=4))
    def delete(self, kind, gone):
        present = set(gone) & self.model[kind].keys()
        write = self.store.delete(kind, gone)
        assert write.deleted == len(present)
        assert write.absent == len(set(gone) - present)
        self.model[kind] = {k: v for k, v in self.model[kind].items() if k not in present}

    @precondition(lambda self: self.model["job"])
    @rule(data=st.data(), rate=st.integers(0, 3))
    def patch(self, data, rate):
        name = data.draw(st.sampled_from(sorted(self.model["job"])))
        before = self.model["job"][name]
        write = self.store.patch("job", name, {"rate_cents": rate})
        self.model["job"] = {**self.model["job"], name: {**before, "rate_cents": rate}}
        assert write.duplicate == (before["rate_cents"] == rate)

    @rule()
    def seal(self):
        self.store.seal()

    @rule(seed=st.integers(0, 5))
    def refit(self, seed):
        self.store.refit(seed=seed, sample=7, as_of=1)
        assert self.store.generation.seed == seed

    @rule()
    def reopen(self):
        epoch = self.store.snapshot().epoch
        self.store.close()
        self.open()
        assert self.store.snapshot().epoch.number >= epoch.number
        assert self.store.verify() == []

    @rule()
    def hold(self):
        self.held = [*self.held[-2:], (self.store.snapshot(), dict(self.model))]

    @invariant()
    def shows_the_model(self):
        number = self.store.snapshot().epoch.number
        for snapshot in (self.store.snapshot(), self.reader.snapshot(min_epoch=number)):
            for kind in ("job", "freelancer"):
                assert contents(snapshot, kind) == self.model[kind]
        for snapshot, model in self.held:
            assert snapshot.count("job") == len(model["job"])
            rows = snapshot.rows_of("job", sorted(model["job"]))
            assert snapshot.ids_of("job", rows) == sorted(model["job"])

    def teardown(self):
        self.reader.close()
        self.store.close()
        shutil.rmtree(self.folder)


StoreMachine.TestCase.settings = settings(stateful_step_count=25)
TestStoreAgainstADictionary = StoreMachine.TestCase
