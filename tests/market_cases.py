"""A marketplace in memory: a snapshot over frames, whose rows tests can look at."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import pytest

from matchwright.engine import synthetic
from matchwright.engine.columns import columns
from matchwright.engine.errors import (
    MatchwrightError,
)
from matchwright.engine.generation import fit
from matchwright.engine.matcher import Matcher, Request
from matchwright.engine.policy import Policy
from matchwright.engine.records import FIELDS, to_frame
from matchwright.kernels.index import build_index
from matchwright.kernels.ops import Ops
from matchwright.kernels.order import hash_keys
from matchwright.kernels.types import Corpus, Segment

SALT = bytes(range(16))
AS_OF = synthetic.AS_OF
KINDS = ("job", "freelancer")
PEOPLE, JOBS = 400, 150
DEAD = "f-0000015"


# ── A marketplace in memory ───────────────────────────────────────────────────────────────────


class Market:
    """A snapshot over frames: one segment for each slice, some rows of them dead."""

    def __init__(self, frames, generation, cuts=(), dead=()):
        self.epoch = SimpleNamespace(uuid="u", number=7, digest="d")
        self.generation, self.salt = generation, SALT
        self.frames = frames
        self._ids = {kind: frame["id"].to_list() for kind, frame in frames.items()}
        self._dead = {kind: set(dead) & set(self._ids[kind]) for kind in KINDS}
        self._corpora = {kind: self._corpus(kind, cuts) for kind in KINDS}

    def _corpus(self, kind, cuts):
        frame = self.frames[kind]
        edges = [0, *(cut for cut in cuts if cut < frame.height), frame.height]
        parts = []
        for low, high in itertools.pairwise(edges):
            rows = frame.slice(low, high - low)
            scalars, sets = columns(kind, rows, SALT, self.generation)
            keys = hash_keys(rows["id"].to_list(), SALT)
            x_nd = self.generation.encode(kind, rows).x_nd
            index = build_index(scalars, sets, x_nd, keys)
            alive = np.array([name not in self._dead[kind] for name in rows["id"].to_list()])
            segment = Segment(x_nd, keys, scalars, sets, index)
            parts.append((segment, None if alive.all() else alive))
        return Corpus(tuple(parts))

    def corpus(self, kind):
        return self._corpora[kind]

    def count(self, kind):
        return len(self._ids[kind]) - len(self._dead[kind])

    def keys(self, ids):
        return hash_keys(ids, SALT)

    def rows_of(self, kind, ids):
        place = {name: n for n, name in enumerate(self._ids[kind])}
        dead = self._dead[kind]
        return np.array([-1 if n in dead else place.get(n, -1) for n in ids], dtype=np.int64)

    def ids_of(self, kind, rows):
        return [self._ids[kind][row] for row in np.asarray(rows).tolist()]

    def rows(self, kind, ids):
        return self.frames[kind][self.rows_of(kind, ids).tolist()].to_dicts()

    def record(self, kind, name):
        return self.rows(kind, [name])[0]


def open_minded(kind, row):
    """Take its limits away, so that many on the other side are eligible."""
    row.update({name: None for name, field in FIELDS[kind].items() if field.limit})
    if kind == "job":
        row.update(status="OPEN", closes=None, languages=None, rate_max_cents=20_000)
        for skill in row["skills"] or ():
            skill["must"] = False
    else:
        row.update(status="AVAILABLE", rate_cents=2_000)


@pytest.fixture(scope="module")
def frames():
    made = {
        "job": synthetic.frame("job", JOBS, seed=3),
        "freelancer": synthetic.frame("freelancer", PEOPLE, seed=3),
    }
    for kind in KINDS:
        rows = made[kind].to_dicts()
        for row in rows[:10]:
            open_minded(kind, row)
        made[kind] = to_frame(kind, rows)
    # Twins: the same record under other ids ties in points.
    twins = made["freelancer"].head(20)
    twins = twins.with_columns(id="twin-" + twins["id"])
    made["freelancer"] = made["freelancer"].vstack(twins)
    return made


@pytest.fixture(scope="module")
def generation(frames):
    return fit(frames["job"], frames["freelancer"], seed=1, sample=1_000, as_of=AS_OF)


@pytest.fixture(scope="module")
def market(frames, generation):
    return Market(frames, generation, cuts=(100, 101, 260), dead=(DEAD,))


@pytest.fixture(scope="module")
def matcher(market):
    return Matcher(market, Ops(threads=1), Policy.load())


def some_id(market, kind, n=0):
    return market.frames[kind]["id"][n]


def ask(market, kind, n=0, **more):
    return Request(kind=kind, id=some_id(market, kind, n), **{"as_of": AS_OF, **more})


# ── Congruence ────────────────────────────────────────────────────────────────────────────────


def requests_of_a_scenario(market):
    """Both directions, every kind of option, some of them wrong."""
    made = []
    for kind in KINDS:
        made += [ask(market, kind, n, k=k) for n, k in enumerate((1, 10, 37, 1_000, 100))]
        made.append(ask(market, kind, 5, weights={"skills": 7.0}))
        made.append(ask(market, kind, 6, min_score=1.5, k=50))
        made.append(ask(market, kind, 7, rules={"same_category": {"enabled": True}}))
        made.append(Request(kind=kind, id="nobody", as_of=AS_OF))
        made.append(ask(market, kind, 8, count=False))
        made.append(ask(market, kind, 9, as_of=AS_OF + 200))
    return made


def bytes_of(answers):
    return [
        str(answer).encode() if isinstance(answer, MatchwrightError) else answer.canonical_bytes()
        for answer in answers
    ]
