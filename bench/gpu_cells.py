"""The big scans of ``gpu_check.py``: our time beside bare products, torch, CuPy and the simple
path, as ratios of medians of turns, and as a part of the chip's peak."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from gpu_peers import Run, bare_products, by_cupy, by_torch, peak_of
from gpu_problem import Budget, first, own_rules, problem, tops
from gpu_record import broken

from matchwright.kernels.cupy_ops import CupyOps
from matchwright.kernels.ops import Ops
from matchwright.kernels.types import Corpus, Queries, TopK

COMPARED = ("row_qk", "points_qk", "returned_q")
_SORTED_QUERIES = 64
"""Queries of CuPy's argpartition, which sorts; its time is scaled to all of them."""
_GUESSED_RATE = 2e14
"""Operations a second, before anything is measured."""


@dataclass(slots=True)
class Bench:
    """What all cells share.

    Attributes:
        ops, library: our backend, and the simple path: a library product and a threshold.
        device: what the device calls itself.
        repeats: of each measurement.
        rate: operations a second that were reached so far.
    """

    ops: CupyOps
    library: CupyOps
    device: str
    repeats: int
    budget: Budget
    rate: float = _GUESSED_RATE

    def needs(self, n: int, q: int, d: int, ways: float) -> float:
        """Seconds that a shape takes, about: its turns, and the reference's sampled answers."""
        turns = ways * (self.repeats + 1)
        return 5.0 + turns * 2.0 * n * q * d / self.rate + n * d / 2e8


def cells(
    bench: Bench, n: int, queries: Sequence[int], d: int, ks: Sequence[int], seed: int
) -> Iterator[dict[str, Any]]:
    """Every K and number of queries over one corpus, with and without rules; peers once a shape."""
    if not bench.budget.allows(f"cells of {n} rows, D = {d}", bench.needs(n, min(queries), d, 4)):
        return
    corpus, asked = problem(seed, n, max(queries), d)
    for q in queries:
        name = f"cells of {n} rows, {q} queries, D = {d}"
        if bench.budget.allows(name, bench.needs(n, q, d, 2 * len(ks) + 5)):
            try:
                yield from shape(bench, corpus, first(asked, q), ks)
            except Exception:  # too large for this device, say: the next one is not
                yield {"n": n, "q": q, "d": d, **broken()}


def shape(
    bench: Bench, corpus: Corpus, queries: Queries, ks: Sequence[int]
) -> list[dict[str, Any]]:
    """One cell per K and filter, beside the peers, all taking turns."""
    ops, (n, d), q = bench.ops, corpus.parts[0][0].x_nd.shape, queries.q
    ruled = own_rules(d, queries)
    ours: dict[tuple[int, bool], Run] = {
        (k, rules): partial(ops.topk, corpus, some, k, count=False)
        for k in ks
        for rules, some in ((False, queries), (True, ruled))
    }
    peers, missing = others(bench, corpus, ruled, ks[len(ks) // 2])
    took = interleaved({**peers, **{str(name): run for name, run in ours.items()}}, bench.repeats)
    fastest = min(took[str(name)] for name in ours)
    bench.rate = max(bench.rate, 2.0 * n * q * d / fastest)
    scaled = q / min(q, _SORTED_QUERIES)
    told = {name: took[name] * (scaled if name == "cupy" else 1.0) for name in peers}
    return [
        {
            "n": n,
            "q": q,
            "d": d,
            "k": k,
            "rules": "one set for each query" if rules else "none",
            **figures(bench, took[str((k, rules))], n, q, d),
            "of_least_k": took[str((k, rules))] / took[str((ks[0], rules))],
            "of_unfiltered": took[str((k, rules))] / took[str((k, False))],
            "peer_seconds": told,
            "peers_missing": missing,
            **{f"r_{name}": told[name] / took[str((k, rules))] for name in told},
            "cupy_queries": min(q, _SORTED_QUERIES),
            "telemetry": dict(run().telemetry),
            "exact": agrees(ops, corpus, ruled if rules else queries, k),
        }
        for (k, rules), run in ours.items()
    ]


def figures(bench: Bench, seconds: float, n: int, q: int, d: int) -> dict[str, Any]:
    """Bytes, operations, the bound that they imply, the time, and how near it is."""
    operations, peak = 2 * n * q * d, peak_of(bench.device)
    told: dict[str, Any] = {
        "seconds": seconds,
        "bytes": n * d,
        "operations": operations,
        "pairs_per_second": n * q / seconds,
        "operations_per_second": operations / seconds,
    }
    if peak is not None:
        bf16, int8, memory = peak
        told["bound_seconds"] = max(operations / int8, n * d / memory)
        told["percent_of_bf16_peak"] = 100.0 * operations / seconds / bf16
        told["percent_of_int8_peak"] = 100.0 * operations / seconds / int8
    return told


def others(
    bench: Bench, corpus: Corpus, ruled: Queries, k: int
) -> tuple[dict[str, Run], dict[str, str]]:
    """The peers that can run here, and why the others cannot."""
    peers, missing = bare_products(corpus, ruled)
    peers["simple"] = partial(bench.library.topk, corpus, ruled, k, count=False)
    makers: dict[str, Callable[[], Run | str]] = {
        "torch": lambda: by_torch(corpus, ruled, tops(ruled), k),
        "cupy": lambda: by_cupy(corpus, first(ruled, _SORTED_QUERIES), k),
    }
    for name, make in makers.items():
        try:
            run = make()
            if not isinstance(run, str):
                run()
        except Exception as error:  # out of memory, or whatever that package says
            run = f"{type(error).__name__}: {error}"
        if isinstance(run, str):
            missing[name] = run
        else:
            peers[name] = run
    return peers, missing


def named(bench: Bench, n: int, q: int, d: int, k: int) -> dict[str, Any]:
    """The cell that counts: a different rule set for each query, the default policy's D."""
    corpus, queries = problem(d + 1, n, q, d)
    start = time.perf_counter()
    bench.ops.resident.get([corpus.parts[0][0]])
    loaded = time.perf_counter() - start
    cell = next(one for one in shape(bench, corpus, queries, [k]) if one["rules"] != "none")
    goal = {name: cell[f"r_{name}"] for name in ("bf16", "int8") if f"r_{name}" in cell}
    return {**cell, "upload_seconds": loaded, "goal": goal}


def interleaved(ways: Mapping[str, Run], repeats: int) -> dict[str, float]:
    """Median seconds of each, after one warm-up, the ways taking turns."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats + 1):
        for name, run in ways.items():
            began = time.perf_counter()
            run()
            if turn:
                taken[name].append(time.perf_counter() - began)
    return {name: statistics.median(some) for name, some in taken.items()}


def seconds(work: Callable[[], object], repeats: int) -> float:
    """The median of some runs, after one to warm up."""
    return interleaved({"": work}, repeats)[""]


def agrees(ops: CupyOps, corpus: Corpus, queries: Queries, k: int, most: int = 2) -> bool:
    """Whether some queries get the reference's answer, in a scan of all of them."""
    got: TopK = ops.topk(corpus, queries, k, count=False)
    picked = np.unique(np.linspace(0, queries.q - 1, most).astype(int))
    group_q = queries.group_q
    some = Queries(
        queries.q_qd[picked],
        queries.key_q[picked],
        queries.groups,
        None if group_q is None else group_q[picked],
    )
    wanted = Ops().topk(corpus, some, k, count=False)
    return all(
        np.array_equal(getattr(got, name)[picked], getattr(wanted, name)) for name in COMPARED
    )
