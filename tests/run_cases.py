"""A small store for tests of runs, and the runs over it."""

from __future__ import annotations

import dataclasses
import hashlib
import struct

import pytest

from matchwright.engine import synthetic
from matchwright.engine.matcher import Matcher
from matchwright.engine.policy import Policy
from matchwright.engine.request import Request
from matchwright.engine.results import Shortfall
from matchwright.engine.runs.execute import LocalExecutor, go_on, quiet, run
from matchwright.engine.runs.folder import Output
from matchwright.engine.runs.plan import RunOptions, asking, make_plan
from matchwright.engine.store import Store
from matchwright.kernels.ops import Ops

AS_OF = synthetic.AS_OF
FREELANCERS, JOBS = 400, 130
POLICY = Policy.load()
KINDS = ("job", "freelancer")


def make_store(folder, freelancers=FREELANCERS, jobs=JOBS):
    """A store of synthetic people with a fixed salt: two sealed segments of each kind, live rows
    that replace some of theirs, and dead ones."""
    with Store.open(folder, mode="w", create=True, salt=bytes(16)) as store:
        for kind, n in (("freelancer", freelancers), ("job", jobs)):
            records = synthetic.frame(kind, n, block=n)  # a block is drawn whole
            for half in (records[: n // 2], records[n // 2 :]):
                with store.bulk(kind) as sink:
                    sink.write(half)
            store.upsert(kind, synthetic.frame(kind, 15, seed=5, block=15))
        store.delete("freelancer", [f"f-{n:07d}" for n in range(0, freelancers, 37)])
    return folder


def options(**asked):
    return RunOptions(**{"kinds": KINDS, "k": 20, "as_of": AS_OF, "policy": POLICY, **asked})


def do(snapshot, output, *, ops=None, prefetch=True, executor=None, stop=go_on, progress=quiet,
       **asked):  # fmt: skip
    """(folder, outcome) of a whole run."""
    plan = make_plan(snapshot, options(**asked))
    folder = Output(output).folder(plan.run_id)
    worker = LocalExecutor(ops or Ops(threads=1), snapshot, plan, prefetch=prefetch)
    if executor is not None:
        worker = executor(worker)
    return folder, run(plan, folder, worker, progress, stop, snapshot=snapshot)


@dataclasses.dataclass
class Backwards:
    """Answers units, the last one first."""

    inner: LocalExecutor

    @property
    def about(self):
        return self.inner.about

    def answers(self, todo):
        return self.inner.answers(list(reversed(todo)))


def check_same(summary, folder, expected):
    """A run has the digest and the very files of another one, ``(folder, summary)``."""
    there, wanted = expected
    assert summary["digest"] == wanted["digest"]
    assert summary["counts"] == wanted["counts"]
    for name in sorted(there.list()):
        if name.endswith(".parquet"):
            assert folder.read(name) == there.read(name), name


def results(snapshot, kind, **asked):
    """The answers of ``Matcher.match``, one query at a time, in the order of query keys."""
    made = options(**asked)
    matcher = Matcher(snapshot, Ops(threads=1), made.policy)
    who = asking(snapshot, kind)
    return [
        matcher.match(
            Request(kind=kind, id=name, k=made.k + made.slack, as_of=made.as_of, count=made.count)
        )
        for name in snapshot.ids_of(kind, who.row_n)
    ]


def digest_of(answers_by_kind, k):
    """The run's digest, from single answers, as docs/runs.md defines it."""
    codes = {None: 0, **{why: n + 1 for n, why in enumerate(Shortfall)}}
    state = hashlib.sha256()
    for kind in KINDS:
        for one in answers_by_kind.get(kind, ()):
            returned = min(len(one), k)
            why = None if returned == k else one.shortfall
            state.update(struct.pack("<QiBd", one.query_key, returned, codes[why], one.t))
            for match in list(one)[:k]:
                state.update(struct.pack("<iQid", match.rank, match.key, match.points, match.score))
    return state.hexdigest()


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    with Store.open(make_store(tmp_path_factory.mktemp("runs") / "store")) as opened:
        yield opened


@pytest.fixture(scope="module")
def snapshot(store):
    return store.snapshot()


@pytest.fixture(scope="module")
def whole(snapshot, tmp_path_factory):
    """(folder, run.json) of a run with everything switched on."""
    folder, outcome = do(
        snapshot, tmp_path_factory.mktemp("whole"), slack=7, contributions=True, count=True,
        block=50,
    )  # fmt: skip
    return folder, outcome.summary


def heavier():
    return Policy.parse('name = "heavier"\n[weights]\nrate = 3.0\n')
