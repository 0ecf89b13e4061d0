"""A small marketplace that changes, and runs over it, full and incremental; for tests of runs."""

from __future__ import annotations

import contextlib

import polars as pl

from matchwright.engine import synthetic
from matchwright.engine.policy import Policy
from matchwright.engine.runs.base import Base
from matchwright.engine.runs.execute import LocalExecutor, go_on, run
from matchwright.engine.runs.folder import Output
from matchwright.engine.runs.incremental import IncrementalExecutor
from matchwright.engine.runs.pairing import side
from matchwright.engine.runs.plan import RunOptions, make_plan
from matchwright.engine.store import Store
from matchwright.kernels.ops import Ops

AS_OF = synthetic.AS_OF
KINDS = ("job", "freelancer")
OPS = Ops(threads=1)
POLICY = Policy.load()


@contextlib.contextmanager
def market_of(folder, jobs, people):
    """A marketplace in ``folder/store``, its runs in ``folder/runs``."""
    with Store.open(folder / "store", mode="w", create=True, salt=bytes(range(16))) as store:
        yield Market(store, folder / "runs", jobs, people)


class Market:
    def __init__(self, store, output, jobs, people):
        self.store, self.output = store, Output(str(output))
        self.there = {}
        self.made = {"job": 0, "freelancer": 0}
        for kind, n in (("job", jobs), ("freelancer", people)):
            self.there[kind] = []
            self.add(kind, n)
        store.seal()

    def add(self, kind, n, seed=1):
        """n records that were not there."""
        start = self.made[kind]
        self.made[kind] += n
        frame = records(kind, n, seed + start).with_columns(
            pl.Series("id", [f"{kind}-{start + i}" for i in range(n)])
        )
        self.store.upsert(kind, frame)
        self.there[kind] += frame["id"].to_list()

    def edit(self, kind, ids, seed):
        """Other records under the same ids."""
        if ids:
            frame = records(kind, len(ids), seed).with_columns(pl.Series("id", ids))
            self.store.upsert(kind, frame)

    def remove(self, kind, ids):
        self.store.delete(kind, ids)
        gone = set(ids)
        self.there[kind] = [name for name in self.there[kind] if name not in gone]

    def change(self, rng, share):
        """Additions, edits and removals of about ``share`` of both sides."""
        for kind in KINDS:
            most = max(1, round(share * len(self.there[kind])))
            size = rng.multinomial(most, [0.3, 0.4, 0.3])
            chosen = rng.choice(self.there[kind], size=int(size[1] + size[2]), replace=False)
            self.edit(kind, chosen[: size[1]].tolist(), int(rng.integers(1 << 30)))
            self.remove(kind, chosen[size[1] :].tolist())
            if size[0]:
                self.add(kind, int(size[0]), int(rng.integers(1 << 30)))
        if rng.random() < 0.3:
            self.store.seal()

    def run(self, base=None, stop=go_on, **options):
        """(folder, run.json) of a run, incremental when there is a base."""
        asked = RunOptions(
            **{
                "kinds": KINDS,
                "k": 8,
                "slack": 8,
                "as_of": AS_OF,
                "policy": POLICY,
                "block": 100,
                **options,
            },
            base=None if base is None else base.run_id,
        )
        snapshot = self.store.snapshot()
        plan = make_plan(snapshot, asked)
        if base is None:
            executor = LocalExecutor(OPS, snapshot, plan, prefetch=False)
        else:
            earlier = Base(side(base))
            executor = IncrementalExecutor(OPS, snapshot, plan, earlier, prefetch=False)
        folder = self.output.folder(plan.run_id)
        summary = run(plan, folder, executor, stop=stop, snapshot=snapshot).summary
        return folder, summary


def records(kind, n, seed):
    """n records of a kind, as synthetic marketplaces have them."""
    return synthetic.frame(kind, n, seed=seed, texts=False, block=n)
