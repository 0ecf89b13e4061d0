"""What the second phase costs: features, the call, the answers; in this process and over gRPC.

    .venv/bin/python bench/bench_rerank.py --json                              20,000 of each kind
    .venv/bin/python bench/bench_rerank.py --rows 3000 --trees 40 --repeats 3  a quick look

``features``: each group of features alone, candidates seen before or not, alone and in blocks.
``block``: 64 requests at once through a ``Matcher`` and a real Triton server, with and without the
second phase, in turns. What it adds stands beside the model's own compute time by the server's
statistics, and the rows that calls bring back in a second beside LightGBM's in this process, with
as many threads as the served model has. ``service``: the same requests, 64 callers at once over
gRPC, at two servers whose policies differ in the section ``rerank`` alone.

Candidates are the first phase's own first M of each query. "seen" queries have all their
candidates' facts and query vectors kept, as in a server that has answered for a while; "new" ones
none, and "a new candidate" is what one more of them costs. The model has as many trees and leaves
as training makes at most. Repeats are interleaved; figures are medians in milliseconds. Bounds are
judged on seen candidates.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
from bench_match import _address

from matchwright.clients import AsyncClient
from matchwright.engine import synthetic
from matchwright.engine.config import tritonserver_in
from matchwright.engine.matcher import OTHER, Matcher
from matchwright.engine.models.description import RANKER, RANKER_INPUT, RANKER_OUTPUT
from matchwright.engine.models.local_server import LocalServer, find_tritonserver
from matchwright.engine.models.refs import ModelRef
from matchwright.engine.models.repository import add_ranker
from matchwright.engine.models.triton import Triton, TritonConfig
from matchwright.engine.policy import Policy
from matchwright.engine.prepare import Prepared
from matchwright.engine.records import KINDS, Kind
from matchwright.engine.request import Request
from matchwright.engine.rerank.export import export_booster, write_ranker
from matchwright.engine.rerank.features import FEATURES, FEATURES_VERSION, INDEX
from matchwright.engine.rerank.features_pairs import FeatureMaker
from matchwright.engine.rerank.rerank import Candidates, Ranker
from matchwright.engine.rerank.train import Settings
from matchwright.engine.rerank.trees import Trees
from matchwright.engine.store import Snapshot, Store
from matchwright.kernels.ops import get_ops
from matchwright.kernels.types import Int32, Int64
from matchwright.kernels.workers import single_threaded_blas

GROUPS = tuple(dict.fromkeys(feature.group for feature in FEATURES))
NAMES = tuple(feature.name for feature in FEATURES if feature.name != "response")
"""What the shipped policy's input manifest allows."""
COLUMNS = [INDEX[name] for name in NAMES]
REF = ModelRef(RANKER, 1)
K = 10
ADDED_MAX = 2.0
RATE_MIN = 0.8
_SECTION = "[rerank]\nversion = 1\ncandidates = {candidates}\ntimeout_ms = 60000\n"


@dataclass(frozen=True, eq=False)
class Bench:
    """What sections need.

    Attributes:
        folder: of everything: ``store``, ``models``, policies.
        snapshot: of the store.
        server, client: with the ranker, on ``threads`` threads.
        asked: for each kind the queries that have M candidates, and their rows.
        repeats: how often each thing is timed.
    """

    folder: Path
    snapshot: Snapshot
    server: LocalServer
    client: Triton
    asked: dict[Kind, tuple[list[Prepared], list[Int64]]]
    candidates: int
    repeats: int

    @property
    def policy(self) -> Policy:
        return Policy.parse(_SECTION.format(candidates=self.candidates))

    def requests(self) -> list[Request]:
        """Jobs that ask, as often as needed to make up a whole block."""
        return [_request(str(query.request.id)) for query in self.asked["job"][0]]

    def ranker(self) -> Ranker:
        """With features of its own, that has seen nobody yet."""
        trees = Trees.load(self.folder / "models" / RANKER / "1")
        return Ranker(self.client, trees, REF, maker=FeatureMaker())

    def matcher(self, ranker: Ranker | None) -> Matcher:
        """With the second phase, or without."""
        policy = self.policy.without_rerank() if ranker is None else self.policy
        return Matcher(self.snapshot, get_ops("cpu", threads=1), policy, ranker)

    def model_ms(self) -> float:
        """What the model has computed since it was loaded; a batch counts once."""
        (told,) = [self.client.statistics(REF)]
        batches = told["batch_stats"]
        return sum(int(batch["compute_infer"]["ns"]) for batch in batches) / 1e6


def _request(name: str, k: int = K) -> Request:
    return Request(kind="job", id=name, k=k, as_of=synthetic.AS_OF, contributions=False)


def asked_by(
    snapshot: Snapshot, kind: Kind, block: int, candidates: int
) -> tuple[list[Prepared], list[Int64]]:
    """(queries with M candidates, at most a block of them, and their rows)."""
    matcher = Matcher(snapshot, get_ops("cpu", threads=1), Policy.load())
    prepared: list[Prepared] = []
    rows: list[Int64] = []
    for name in snapshot.ids_of(kind, np.arange(snapshot.corpus(kind).n)):
        request = Request(
            kind=kind, id=name, k=candidates, as_of=synthetic.AS_OF, contributions=False
        )
        result = matcher.match(request)
        if result.returned == candidates:
            prepared.append(matcher.prepare_one(snapshot, request))
            rows.append(snapshot.rows_of(OTHER[kind], result.ids))
        if len(prepared) == block:
            break
    return prepared, rows


def train(f_nf: Int32, group: int, rounds: int) -> lightgbm.Booster:
    """A LambdaMART booster over real features; what is relevant is drawn, and of no meaning.

    Args:
        f_nf: int32 (N, F), ``group`` rows of each query.
    """
    rng = np.random.default_rng(0)
    z_nf = (f_nf - f_nf.mean(axis=0)) / (f_nf.std(axis=0) + 1e-9)
    wanted = z_nf @ rng.normal(size=f_nf.shape[1]) + rng.normal(size=len(f_nf))
    place = np.argsort(np.argsort(wanted.reshape(-1, group), axis=1), axis=1)
    label = (4 * place // group).reshape(-1)
    shipped = Settings()
    settings = {
        "objective": "lambdarank",
        "num_leaves": shipped.leaves,
        "min_data_in_leaf": min(shipped.rows_in_leaf_min, group // 4),
        "learning_rate": shipped.learning_rate,
        "verbose": -1,
        "num_threads": 1,
        "seed": 0,
    }
    data = lightgbm.Dataset(f_nf.astype(np.float64), label, group=[group] * (len(f_nf) // group))
    return lightgbm.train(settings, data, num_boost_round=rounds)


def add_model(bench_folder: Path, f_nf: Int32, group: int, rounds: int) -> None:
    """A repository with the ranker."""
    booster = train(f_nf[:, COLUMNS], group, rounds)
    text, grid_bits = export_booster(booster, NAMES)
    source = bench_folder / "ranker"
    write_ranker(
        source,
        text,
        features=NAMES,
        grid_bits=grid_bits,
        features_version=FEATURES_VERSION,
        version=1,
        training={},
    )
    add_ranker(bench_folder / "models", source, backend="python")


def milliseconds(work: Callable[[], object]) -> float:
    """How long it takes, once."""
    began = time.perf_counter()
    work()
    return 1e3 * (time.perf_counter() - began)


def medians(told: dict[str, list[float]]) -> dict[str, float]:
    """One figure of each."""
    return {name: round(statistics.median(values), 3) for name, values in told.items()}


# ── features ──────────────────────────────────────────────────────────────────────────────────


def features(bench: Bench) -> dict[str, Any]:
    """Milliseconds a query, on one core, of each kind that asks."""
    return {
        kind: {"queries": len(prepared), **_features(bench, prepared, rows)}
        for kind, (prepared, rows) in bench.asked.items()
        if prepared
    }


@single_threaded_blas()  # as in a matcher
def _features(bench: Bench, prepared: list[Prepared], rows: list[Int64]) -> dict[str, float]:
    snapshot, maker = bench.snapshot, FeatureMaker()
    maker.make(snapshot, prepared, rows)
    told: dict[str, list[float]] = {}

    def note(name: str, per: int, work: Callable[[], object]) -> None:
        told.setdefault(name, []).append(milliseconds(work) / per)

    for at in range(bench.repeats):
        one, own = [prepared[at % len(prepared)]], [rows[at % len(rows)]]
        note("all, seen, alone", 1, partial(maker.make, snapshot, one, own))
        for group in GROUPS:
            names = [feature.name for feature in FEATURES if feature.group == group]
            note(group, 1, partial(maker.make, snapshot, one, own, names=names))
        note("all, new, alone", 1, partial(FeatureMaker().make, snapshot, one, own))
        note("all, seen, in a block", len(rows), partial(maker.make, snapshot, prepared, rows))
        if at < max(1, bench.repeats // 4):
            cold = partial(FeatureMaker().make, snapshot, prepared, rows)
            note("all, new, in a block", len(rows), cold)
    found = medians(told)
    more = found["all, new, in a block"] - found["all, seen, in a block"]
    different = np.unique(np.concatenate(rows)).size
    return {**found, "a new candidate": round(more * len(rows) / different, 4)}


# ── block ─────────────────────────────────────────────────────────────────────────────────────


class Steps:
    """Times the steps of the second phase over one block of requests."""

    def __init__(self, bench: Bench, requests: Sequence[Request]) -> None:
        self.bench, self.requests = bench, requests
        self.told: dict[str, list[float]] = {}

    def note(self, **figures: float) -> None:
        for name, value in figures.items():
            self.told.setdefault(name, []).append(value)

    def take(self, matcher: Matcher, ranker: Ranker) -> list[Candidates]:
        """Answers once; notes gather, ask, finish, their sum, and the model's part."""
        before = self.bench.model_ms()
        times = [time.perf_counter()]
        found = matcher.gather_many(self.requests)
        candidates = [item for item in found if isinstance(item, Candidates)]
        times.append(time.perf_counter())
        scored = ranker.ask_blocking(candidates)
        times.append(time.perf_counter())
        results = ranker.finish(candidates, scored)
        times.append(time.perf_counter())
        why = {result.rerank.degraded for result in results if result.rerank is not None}
        if len(results) != len(self.requests) or why != {None}:
            raise SystemExit(f"{len(results)} of {len(self.requests)} answers, degraded: {why}")
        gather, ask, finish = (1e3 * (b - a) for a, b in itertools.pairwise(times))
        model = self.bench.model_ms() - before
        self.note(gather=gather, ask=ask, finish=finish, whole=gather + ask + finish, model=model)
        return candidates


def block(bench: Bench) -> dict[str, Any]:
    """A block of requests with and without the second phase; and each of its requests alone."""
    requests = bench.requests()
    booster = lightgbm.Booster(model_file=str(bench.folder / "models" / RANKER / "1" / "model.txt"))
    plain, ranker = bench.matcher(None), bench.ranker()
    matcher = bench.matcher(ranker)
    seen, new, alone = (Steps(bench, of) for of in (requests, requests, requests[:1]))
    warm = Steps(bench, requests).take(matcher, ranker)
    rows_nf = np.concatenate([one.features_mf for one in warm if one.features_mf is not None])
    inputs = rows_nf.astype(np.float32)

    def here() -> Any:
        return booster.predict(inputs, raw_score=True, num_threads=bench.server.threads)

    _same(bench.client, inputs, here())
    for turn in range(bench.repeats):
        for at in (turn % 2, 1 - turn % 2):
            if at:
                seen.take(matcher, ranker)
            else:
                seen.note(first_phase=milliseconds(partial(plain.match_many, requests)))
        seen.note(lightgbm_here=milliseconds(here))
        alone.requests = [requests[turn % len(requests)]]
        alone.note(first_phase=milliseconds(partial(plain.match_many, alone.requests)))
        alone.take(matcher, ranker)
        if turn < max(1, bench.repeats // 4):
            cold = bench.ranker()
            new.take(bench.matcher(cold), cold)
            new.note(first_phase=seen.told["first_phase"][-1])
    told = {"seen": added(seen), "new": added(new), "one request": added(alone)}
    ratio = told["seen"]["lightgbm_here"] / told["seen"]["ask"]
    return {
        "requests": len(requests),
        "rows": len(inputs),
        "trees": booster.num_trees(),
        "server_threads": bench.server.threads,
        **told,
        "rows_per_s": {
            "served": round(1e3 * len(inputs) / told["seen"]["ask"]),
            "lightgbm": round(1e3 * len(inputs) / told["seen"]["lightgbm_here"]),
            "ratio": round(ratio, 3),
            "wanted": RATE_MIN,
        },
        "passed": bool(told["seen"]["added_of_model"] < ADDED_MAX and ratio >= RATE_MIN),
    }


def added(steps: Steps) -> dict[str, float]:
    """Medians, and what the second phase adds in units of the model's own time."""
    told = medians(steps.told)
    told["added"] = round(told["whole"] - told["first_phase"], 3)
    told["added_of_model"] = round(told["added"] / told["model"], 3)
    return told


def _same(client: Triton, inputs: Any, here: Any) -> None:
    """The served scores are LightGBM's, to the bit."""
    deadline = time.monotonic() + 60
    served = client.infer_blocking(REF, {RANKER_INPUT: inputs}, [RANKER_OUTPUT], deadline=deadline)
    if not np.array_equal(served[RANKER_OUTPUT][:, 0].astype(np.float64), here):
        raise SystemExit("the served scores are not LightGBM's")


# ── service ───────────────────────────────────────────────────────────────────────────────────


@contextmanager
def serving(bench: Bench, rerank: bool) -> Iterator[str]:
    """A server's address."""
    section = _SECTION.format(candidates=bench.candidates) if rerank else ""
    policy = bench.folder / f"policy-{rerank}.toml"
    policy.write_text(section, "utf-8")
    command = [sys.executable, "-m", "matchwright.engine.cli", "serve", "--port", "0"]
    command += ["--store", str(bench.folder / "store"), "--policy", str(policy)]
    if rerank:
        command += ["--models", str(bench.folder / "models"), "--triton", bench.server.url]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        yield _address(server)
    finally:
        server.terminate()
        server.wait(30)


async def burst(client: AsyncClient, names: Sequence[str]) -> float:
    """Milliseconds until all of them were answered, asked at once; none degraded."""
    began = time.perf_counter()
    found = await asyncio.gather(
        *(client.find_freelancers(name, k=K, as_of=synthetic.AS_OF, timeout_s=60) for name in names)
    )
    spent = 1e3 * (time.perf_counter() - began)
    why = {one.rerank.degraded for one in found if one.rerank is not None}
    if why - {None}:
        raise SystemExit(f"answers are degraded: {why}")
    return spent


async def _bursts(bench: Bench, addresses: Sequence[str], names: list[str]) -> Steps:
    steps = Steps(bench, ())
    async with AsyncClient(addresses[0]) as plain, AsyncClient(addresses[1]) as second:
        for _ in range(2):
            await burst(plain, names)
            await burst(second, names)
        for turn in range(bench.repeats):
            for at in (turn % 2, 1 - turn % 2):
                if at:
                    before = bench.model_ms()
                    whole = await burst(second, names)
                    steps.note(whole=whole, model=bench.model_ms() - before)
                else:
                    steps.note(first_phase=await burst(plain, names))
    return steps


def service(bench: Bench) -> dict[str, Any]:
    """A block of callers at once over gRPC, at servers with and without the second phase."""
    names = [str(request.id) for request in bench.requests()]
    with ExitStack() as stack:
        addresses = [stack.enter_context(serving(bench, rerank)) for rerank in (False, True)]
        steps = asyncio.run(_bursts(bench, addresses, names))
    told = added(steps)
    return {"callers": len(names), **told, "passed": told["added_of_model"] < ADDED_MAX}


SECTIONS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "features": features,
    "block": block,
    "service": service,
}


def make_store(folder: Path, rows: int) -> None:
    """So many of each kind."""
    with Store.open(folder, mode="w", create=True) as store:
        for kind in KINDS:
            store.upsert(kind, synthetic.frame(kind, rows, seed=1))
        store.refit(seed=1, sample=rows, as_of=synthetic.AS_OF)


@contextmanager
def prepared(options: argparse.Namespace) -> Iterator[Bench]:
    """A store, a model, a server."""
    with ExitStack() as stack:
        made = stack.enter_context(tempfile.TemporaryDirectory(prefix="mw-bench-"))
        folder = options.folder or Path(made)
        if not (folder / "store").exists():
            make_store(folder / "store", options.rows)
        store = stack.enter_context(Store.open(folder / "store"))
        snapshot = store.snapshot()
        asked = {
            kind: asked_by(snapshot, kind, options.block, options.candidates) for kind in KINDS
        }
        if not asked["job"][0]:
            raise SystemExit(f"no job has {options.candidates} eligible; give more --rows")
        if not (folder / "models").exists():
            f_nf = FeatureMaker().make(snapshot, *asked["job"])
            add_model(folder, f_nf, options.candidates, options.trees)
        server = stack.enter_context(
            LocalServer(
                repository=folder / "models",
                models=[RANKER],
                found=find_tritonserver(None, tritonserver_in(os.environ)),
                threads=options.threads,
            )
        )
        client = stack.enter_context(Triton(TritonConfig(url=server.url)))
        yield Bench(folder, snapshot, server, client, asked, options.candidates, options.repeats)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=20_000, help="of each kind")
    parser.add_argument("--candidates", type=int, default=200)
    parser.add_argument("--block", type=int, default=64, help="requests at once")
    parser.add_argument("--trees", type=int, default=Settings().rounds, help="of the ranker")
    parser.add_argument("--threads", type=int, default=1, help="of the served ranker")
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--folder", type=Path, help="of store and model; made if not there")
    parser.add_argument("--only", help="sections, with commas between them")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args()
    wanted = options.only.split(",") if options.only else list(SECTIONS)
    report: dict[str, Any] = {"rows": options.rows, "candidates": options.candidates}
    with prepared(options) as bench:
        for name in wanted:
            report[name] = SECTIONS[name](bench)
    sections = [report[name] for name in wanted]
    report["passed"] = all(section.get("passed", True) for section in sections)
    print(json.dumps(report, indent=None if options.json else 2))
    return 0 if report["passed"] else 6


if __name__ == "__main__":
    sys.exit(main())
