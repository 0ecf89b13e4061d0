"""The store against dictionaries: any sequence of changes, seals, refits, compactions, leases and
reopenings; the newest epoch and every kept one.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import hypothesis.strategies as st
import pytest
import store_fakes as fakes
from hypothesis import settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)
from store_fakes import contents, frame, record

from matchwright.engine.errors import AlreadyExists, EpochGone
from matchwright.engine.store import Store
from matchwright.engine.store.sources import LiveView

kinds = st.sampled_from(["job", "freelancer"])
names = st.sampled_from([f"é{n}" for n in range(12)])
versions = st.integers(0, 3)
batches = st.lists(st.tuples(names, versions), min_size=1, max_size=8)
OPTIONS = {"seal_rows": 12, "chunk_rows": 5, "retain_s": 0.0}
leases = st.sampled_from(["one", "two", "three"])


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
        self.kept = {}
        self.gone = []

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

    @rule(everything=st.booleans())
    def compact(self, everything):
        generation = self.store.generation
        self.store.compact(everything=everything)
        assert self.store.generation == generation
        if everything:
            for part in self.store.snapshot().parts["job"]:
                assert part.living == part.source.n or isinstance(part.source, LiveView)

    @rule(name=leases, by_reader=st.booleans())
    def keep(self, name, by_reader):
        number = self.store.snapshot().epoch.number
        before = self.kept.get(name)
        self.reader.snapshot(min_epoch=number)
        keeper = self.reader if by_reader else self.store
        if before is not None and before[0] != number:
            with pytest.raises(AlreadyExists, match=f"keeps epoch {before[0]}"):
                keeper.keep(name)
            return
        assert keeper.keep(name, seconds=None if by_reader else 1e6).epoch == number
        self.kept[name] = number, dict(self.model)

    @precondition(lambda self: self.kept)
    @rule(data=st.data())
    def release(self, data):
        name = data.draw(st.sampled_from(sorted(self.kept)))
        number, _ = self.kept.pop(name)
        assert self.store.release(name) == number
        if all(number != kept for kept, _ in self.kept.values()):
            self.gone.append(number)

    @rule(data=st.data())
    def look_back(self, data):
        """Every kept epoch shows what it showed; the others are gone after the next change."""
        changed = record("changed", data.draw(st.integers(5, 9)))
        self.store.upsert("job", frame(changed))
        self.model["job"] = self.model["job"] | {"changed": changed}
        self.store.seal()
        kept = {number for number, _ in self.kept.values()}
        newest = self.store.snapshot().epoch.number
        assert {epoch.number for epoch in self.store.epochs()} - {newest} <= kept | {newest - 1}
        for number, model in self.kept.values():
            for kind in ("job", "freelancer"):
                assert contents(self.reader.snapshot(epoch=number), kind) == model[kind]
        self.held = []
        for number in self.gone:
            if number not in kept and number < newest - 1:
                with pytest.raises(EpochGone):
                    self.reader._loader.at(number)

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
