"""Stand-ins for the second phase: random trees, a served model that fails on demand, a clock."""

from __future__ import annotations

import asyncio
import itertools
from types import SimpleNamespace

import numpy as np
from market_cases import SALT, Market

from matchwright.engine.columns import columns
from matchwright.engine.errors import ModelLate, ModelUnavailable, ModelWrong
from matchwright.engine.policy import Policy, default_policy_text
from matchwright.engine.rerank import trees_text
from matchwright.engine.rerank.export import export_text, write_ranker
from matchwright.engine.rerank.features import FEATURES, FEATURES_VERSION, UNKNOWN
from matchwright.engine.rerank.features_pairs import FeatureMaker
from matchwright.engine.rerank.rerank import Ranker
from matchwright.engine.rerank.trees import Trees
from matchwright.engine.rerank.trees_text import TreeText
from matchwright.kernels.order import hash_keys
from matchwright.kernels.types import Corpus, Segment

GRID_BITS = 10
NAMES = tuple(feature.name for feature in FEATURES)
ALLOWED = tuple(name for name in NAMES if name != "response")
"""What the shipped policy's input manifest allows."""


class LightMarket(Market):
    """A market without indexes, which are most of the work of making one."""

    def _corpus(self, kind, cuts):
        frame = self.frames[kind]
        x_nd = self.generation.encode(kind, frame).x_nd
        keys = hash_keys(frame["id"].to_list(), SALT)
        edges = [0, *(cut for cut in cuts if cut < frame.height), frame.height]
        parts = []
        for low, high in itertools.pairwise(edges):
            rows = slice(low, high)
            scalars, sets = columns(kind, frame[rows], SALT, self.generation)
            parts.append((Segment(x_nd[rows], keys[rows], scalars, sets), None))
        return Corpus(tuple(parts))


class NumberedMarket(LightMarket):
    """A market whose records have numbers, as a store's have: what is made of them is kept."""

    def __init__(self, *given, **more):
        super().__init__(*given, **more)
        self.token = object()

    def record_numbers(self, kind, rows):
        return self.token, np.asarray(rows, dtype=np.int64) + (1_000_000 if kind == "job" else 0)


def policy(candidates=40, version=3, timeout_ms=100, **more):
    """The shipped policy with a second phase."""
    text = f"[rerank]\nversion = {version}\ncandidates = {candidates}\ntimeout_ms = {timeout_ms}\n"
    return Policy.parse(text + more.get("text", ""))


def wider_policy(field="freelancer.response_permille", **more):
    """The same, with one field more in the input manifest."""
    shipped = Policy.parse(default_policy_text())
    used = ", ".join(f'"{name}"' for name in sorted({*shipped.used, field}))
    return policy(**more, text=f"\n[fields]\nused = [{used}]\n")


def random_trees(seed=0, names=ALLOWED, trees=15, splits=7, spread=None):
    """Trees over the named features; ``spread``: int32 (N, F) values that thresholds come from."""
    random = np.random.default_rng(seed)
    made = [_tree(random, len(names), splits, spread) for _ in range(trees)]
    return Trees(made, names, GRID_BITS, FEATURES_VERSION)


def _tree(random, width, splits, spread):
    feature = random.integers(0, width, splits).astype(np.int32)
    if spread is None:
        threshold = random.integers(-50, 3_000, splits) + 0.5
    else:
        threshold = spread[random.integers(0, len(spread), splits), feature] - 0.5
    threshold = np.maximum(threshold, UNKNOWN - 0.5)
    left = np.array([n + 1 if n + 1 < splits else ~n for n in range(splits)], dtype=np.int32)
    right = np.array([~(splits if n == splits - 1 else n) for n in range(splits)], dtype=np.int32)
    unit = 2.0**-GRID_BITS
    return TreeText(
        feature=feature,
        left=left,
        right=right,
        threshold=threshold.astype(np.float64),
        value=random.integers(-400, 400, splits) * unit,
        leaf=random.integers(-900, 900, splits + 1) * unit,
        gain=np.ones(splits),
        split_count=np.full(splits, 10),
        leaf_count=np.full(splits + 1, 5),
    )


class FakeClock:
    """Seconds that only tests move."""

    def __init__(self):
        self.now = 1_000.0

    def __call__(self):
        return self.now


def unavailable(why):
    return ModelUnavailable(f"the model is {why}", model="ranker:3", why=why)


class FakeServer:
    """Answers what trees say, unless it is told to fail."""

    def __init__(self, trees, clock=None, mode="right", takes_s=0.0):
        self.trees, self.clock, self.mode, self.takes_s = trees, clock, mode, takes_s
        self.calls = []

    async def infer(self, ref, inputs, outputs, *, deadline):
        await asyncio.sleep(0)
        return self.infer_blocking(ref, inputs, outputs, deadline=deadline)

    def infer_blocking(self, ref, inputs, outputs, *, deadline):
        (rows,) = inputs.values()
        assert list(inputs) == ["input__0"]
        assert list(outputs) == ["output__0"]
        assert rows.dtype == np.float32
        assert rows.flags.c_contiguous
        assert np.array_equal(rows, np.rint(rows))
        self.calls.append(SimpleNamespace(ref=ref, rows=rows, deadline=deadline))
        if self.clock is not None:
            self.clock.now += self.takes_s
        scores = np.ldexp(
            self.trees.score(rows.astype(np.int32)).astype(np.float32), -self.trees.grid_bits
        ).astype(np.float32)[:, None]
        return {"output__0": self._spoilt(scores)}

    def _spoilt(self, scores):
        raised = {
            "late": ModelLate("no answer"),
            "timeout": TimeoutError(),
            "unreachable": unavailable("UNREACHABLE"),
            "breaker": unavailable("BREAKER_OPEN"),
            "not ready": unavailable("NOT_READY"),
            "wrong": ModelWrong("it broke"),
            "defect": RuntimeError("a defect"),
        }
        if self.mode in raised:
            raise raised[self.mode]
        if self.mode == "nan":
            scores[0] = np.nan
        elif self.mode == "infinite":
            scores[-1] = np.inf
        elif self.mode == "off the grid":
            scores[0] += 2.0 ** -(GRID_BITS + 2)
        elif self.mode == "another model":
            scores += 2.0**-GRID_BITS
        elif self.mode == "huge":
            scores[0] = 2.0**24
        elif self.mode == "flat":
            scores = scores[:, 0]
        elif self.mode == "short":
            scores = scores[:-1]
        elif self.mode == "float64":
            scores = scores.astype(np.float64)
        return scores


FAILURES = {
    "late": "LATE",
    "timeout": "LATE",
    "unreachable": "UNREACHABLE",
    "breaker": "BREAKER_OPEN",
    "not ready": "NOT_READY",
    "wrong": "WRONG_OUTPUT",
    "nan": "WRONG_OUTPUT",
    "infinite": "WRONG_OUTPUT",
    "off the grid": "WRONG_OUTPUT",
    "another model": "WRONG_OUTPUT",
    "huge": "WRONG_OUTPUT",
    "flat": "WRONG_OUTPUT",
    "short": "WRONG_OUTPUT",
    "float64": "WRONG_OUTPUT",
    "defect": "FAILED",
}
"""What a server does -> what the answer says."""


def ranker(trees, client=None, clock=None, version=3, **more):
    """A ranker over a stand-in for the server."""
    clock = clock or FakeClock()
    return Ranker(
        client or FakeServer(trees, clock),
        trees,
        SimpleNamespace(name="ranker", version=version),
        clock=clock,
        maker=more.pop("maker", None) or FeatureMaker(),
        **more,
    )


def ranker_folder(folder, names=ALLOWED, seed=0, spread=None):
    """A folder with ``model.txt`` and ``ranker.json``, as a training leaves it."""
    random = np.random.default_rng(seed)
    made = [_tree(random, len(names), 7, spread) for _ in range(15)]
    text = trees_text.write(names, ["none"] * len(names), made)
    exact, grid_bits = export_text(text, names)
    write_ranker(
        folder,
        exact,
        features=names,
        grid_bits=grid_bits,
        features_version=FEATURES_VERSION,
        version=1,
        training={},
    )
    return folder
