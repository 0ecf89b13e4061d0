"""What ``gpu_check.py`` measures beside the big scans: small batches, rules, memory, calibration,
and what a million jobs against a million freelancers would take.

Every function takes a backend and sizes and gives plain values, so that a test can run it on the
emulated device; ``exact`` says whether the sampled answers were the reference's.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from gpu_cells import agrees, interleaved, seconds
from gpu_problem import VALUES, first, of_rate, own_rules

from matchwright.kernels.compile import WARPGROUP_ARCH
from matchwright.kernels.cuda_search import device_costs
from matchwright.kernels.cupy_ops import CupyOps
from matchwright.kernels.device_planner import FORCED, DeviceLoad, measure, planned_seconds
from matchwright.kernels.memory_plan import plan_memory
from matchwright.kernels.ops import Ops
from matchwright.kernels.types import Corpus, Queries, Segment

FEW = (1, 8, 16, 32, 64)
"""Small batches; each of the last four has a kernel of its own."""
SANITIZED = (
    "test_cuda_rules.py",
    "test_cuda_wide.py::test_whole_searches",  # the others of that file are large
    "test_cupy_ops.py",
    "test_device_memory.py",
)
"""Tests that run under compute-sanitizer, their cases on a device alone."""
MILLION = 1_000_000
_DEMAND = 18
"""Freelancers for each job of the largest marketplace that is designed for."""


Section = Callable[[CupyOps, Corpus, Queries, int, int], Any]


# ── Small batches, beside one reading of the rows ─────────────────────────────────────────────


def few(
    ops: CupyOps, corpus: Corpus, queries: Queries, k: int, repeats: int
) -> Iterator[dict[str, Any]]:
    """1 to 64 queries on the kernel that reads each row once, and on the other one."""
    read = seconds(partial(read_once, ops, corpus), repeats)
    for many in FEW:
        some = first(queries, min(many, queries.q))
        took = {}
        try:
            for name, on in (("few", True), ("sieve", False)):
                ops.device.few = on
                took[name] = seconds(partial(ops.topk, corpus, some, k, count=False), repeats)
        finally:
            ops.device.few = True
        yield {
            "queries": some.q,
            "seconds": took["few"],
            "sieve_seconds": took["sieve"],
            "read_seconds": read,
            "times_reading": took["few"] / read,
            "exact": agrees(ops, corpus, some, k),
        }


def read_once(ops: CupyOps, corpus: Corpus) -> None:
    """Read every resident byte of the vectors, and wait."""
    device, last = ops.device, None
    for copy in ops.resident.get([segment for segment, _ in corpus.parts]):
        wide = copy.x_nd.reshape(-1).view(np.int64)
        last = wide.max()
    if last is not None:
        device.download(last)


def wide(
    ops: CupyOps, corpus: Corpus, queries: Queries, k: int, repeats: int
) -> Iterator[dict[str, Any]]:
    """The sieve on warpgroups beside the other one, without rules and with a set for each query.
    What is sampled for ``exact`` is what the one on warpgroups says."""
    arch = getattr(ops.device, "arch", WARPGROUP_ARCH)
    if arch != WARPGROUP_ARCH:
        yield {"left_out": f"needs {WARPGROUP_ARCH}, this is {arch}", "exact": True}
        return
    d = corpus.parts[0][0].x_nd.shape[1]
    for rules, asked in (("none", queries), ("one set for each query", own_rules(d, queries))):

        def scan(on: bool, asked: Queries = asked) -> None:
            ops.device.wide = on
            ops.topk(corpus, asked, k, count=False)

        try:
            took = interleaved(
                {"sieve": partial(scan, False), "wide": partial(scan, True)}, repeats
            )
            ops.device.wide = True
            same = agrees(ops, corpus, asked, k, most=16)
        finally:
            ops.device.wide = False
        yield {
            "rules": rules,
            "queries": asked.q,
            "seconds": took["wide"],
            "sieve_seconds": took["sieve"],
            "of_sieve": took["wide"] / took["sieve"],
            "operations_per_second": 2.0 * corpus.n * asked.q * d / took["wide"],
            "exact": same,
        }


# ── Rules ─────────────────────────────────────────────────────────────────────────────────────


def sweep(
    ops: CupyOps, corpus: Corpus, queries: Queries, k: int, repeats: int, groups: int = 64
) -> Iterator[dict[str, Any]]:
    """Pass rates 1, 1/2, ... for some rule sets, as planned and predicted, each beside the last."""
    ruled = corpus
    group_q = (np.arange(queries.q) % groups).astype(np.int32)
    d, before = queries.q_qd.shape[1], None
    plain = seconds(partial(ops.topk, corpus, queries, k, count=False), repeats)
    for power in range(21):
        rate = 2.0**-power
        sets = [of_rate(rate, low % (VALUES // 2)) for low in range(groups)]
        asked = Queries(queries.q_qd, queries.key_q, sets, group_q)
        took = seconds(partial(ops.topk, ruled, asked, k, count=False), repeats)
        loads = [DeviceLoad(queries.q // groups + 1, 1, rate)] * groups
        costs = device_costs(ops, d)
        yield {
            "rate": rate,
            "seconds": took,
            "predicted": planned_seconds(costs, loads, ruled.n, k, d, count=False),
            "step": 1.0 if before is None else took / before,
            "of_unfiltered": took / plain,
            "rules": str(ops.topk(ruled, first(asked, 64), k, count=False).telemetry["rules"]),
            "exact": agrees(ops, ruled, asked, k),
        }
        before = took


def rules_each(
    ops: CupyOps, corpus: Corpus, queries: Queries, k: int, repeats: int
) -> Iterator[dict[str, Any]]:
    """A different rule set for each query, asked in every way and as planned."""
    ruled, before = corpus, ops.device_costs
    for rate in (0.5, 0.05, 0.001):
        sets = [of_rate(rate, low) for low in range(queries.q)]
        asked = Queries(queries.q_qd, queries.key_q, sets, np.arange(queries.q, dtype=np.int32))
        cell: dict[str, Any] = {"rate": rate, "queries": queries.q}
        try:
            for way, costs in (("planned", before), *FORCED.items()):
                some = first(asked, 64) if way == "gather" else asked
                ops.device_costs = costs
                cell[way] = seconds(partial(ops.topk, ruled, some, k, count=False), repeats)
                cell[f"{way}_exact"] = agrees(ops, ruled, asked, k)
        finally:
            ops.device_costs = before
        cell["gather_queries"] = min(64, queries.q)
        cell["count_one"] = seconds(partial(ops.count, ruled, sets[0]), repeats)
        cell["exact"] = all(cell[f"{way}_exact"] for way in ("planned", *FORCED)) and (
            ops.count(ruled, sets[0]) == Ops().count(ruled, sets[0])
        )
        yield cell


# ── Memory and calibration ────────────────────────────────────────────────────────────────────


def memory(ops: CupyOps, corpus: Corpus, queries: Queries, k: int, repeats: int) -> dict[str, Any]:
    """What the plan says, what is taken, how fast rows are uploaded alone and beside a scan."""
    plan = plan_memory(
        {"rows": corpus},
        temporary_bytes=ops.memory_bytes,
        budget_bytes=ops.resident.budget_bytes,
    )
    free = ops.device.memory_free()
    fresh = Corpus(
        tuple((Segment(one.x_nd.copy(), one.key_n.copy()), a) for one, a in corpus.parts)
    )
    start = time.perf_counter()
    fits = plan.needed * 2 <= ops.resident.budget_bytes
    if fits:
        ops.load([fresh]).wait()
    took = time.perf_counter() - start
    left = ops.device.memory_free()
    size = sum(one.x_nd.nbytes + one.key_n.nbytes for one, _ in corpus.parts)
    return {
        "plan": {name: value for name, value in plan.to_dict().items() if name != "segments"},
        "uploaded_bytes": size if fits else 0,
        "upload_seconds": took,
        "taken_bytes": None if free is None or left is None else free - left,
        "repeats": repeats,
        "exact": True,
    }


def calibration(
    ops: CupyOps, corpus: Corpus, queries: Queries, k: int, repeats: int
) -> dict[str, Any]:
    """The planner's constants, and how long they took."""
    d = corpus.parts[0][0].x_nd.shape[1]
    start = time.perf_counter()
    costs = measure(ops.device, d, ops.memory_bytes, rows=1 << 17 if ops.device.timed else 1_024)
    return {"costs": asdict(costs), "seconds": time.perf_counter() - start, "exact": True}


# ── A million jobs, a million freelancers ─────────────────────────────────────────────────────


def estimate(
    ops: CupyOps, corpus: Corpus, queries: Queries, k: int, repeats: int
) -> dict[str, Any]:
    """Seconds of the device for a million jobs against a million freelancers, and against 18.

    One block of jobs is measured against as many of the rows as there are, up to a million, a rule
    set for each; blocks follow one another and rows are read once by each, so that the rest is a
    product. It leaves out the store and Parquet: ``bench/bench_run.py`` measures those.
    """
    segment, alive = corpus.parts[0]
    n = min(segment.n, MILLION)
    scalars = {name: column[:n] for name, column in segment.scalars.items()}
    rows = Corpus(((Segment(segment.x_nd[:n], segment.key_n[:n], scalars), alive),))
    ruled = own_rules(3, queries)
    took = seconds(partial(ops.topk, rows, ruled, k, count=False), repeats)
    whole = took * (MILLION / queries.q) * (MILLION / n)
    return {
        "measured": {"n": n, "q": queries.q, "seconds": took},
        "million_by_million_seconds": whole,
        "million_by_18_million_seconds": whole * _DEMAND,
        "exact": agrees(ops, rows, ruled, k),
    }


SECTIONS: Mapping[str, Section] = {
    "few": few,
    "wide": wide,
    "sweep": sweep,
    "rules": rules_each,
    "memory": memory,
    "calibration": calibration,
    "estimate": estimate,
}


def exact(found: Any) -> bool:
    """Whether every sampled answer in a section was the reference's."""
    return all(cell["exact"] for cell in (found if isinstance(found, list) else [found]))


# ── compute-sanitizer ─────────────────────────────────────────────────────────────────────────


def sanitizer(
    root: Path,
    environment: Mapping[str, str],
    *,
    tool: str | None = None,
    tests: Sequence[str] = SANITIZED,
    timeout_s: float = 900.0,
) -> dict[str, Any]:
    """memcheck and racecheck over the tests' cases on a device; says so where there is no tool."""
    tool = tool or shutil.which("compute-sanitizer")
    if tool is None:
        return {"found": False, "clean": None, "why": "compute-sanitizer is not on the path"}
    found: dict[str, Any] = {"found": True}
    for check in ("memcheck", "racecheck"):
        command = [
            *(tool, "--tool", check, "--error-exitcode", "9", "--target-processes", "all"),
            *(sys.executable, "-m", "pytest", "-q", "-x", "-m", "gpu"),
            *(str(root / "tests" / name) for name in tests),
        ]
        code, said = alone(command, root, environment, timeout_s)
        late = "" if code is not None else f"\nnot done after {timeout_s:.0f} s"
        found[check] = {"exit": code, "tail": said[-2_000:] + late}
    found["clean"] = all(found[check]["exit"] == 0 for check in ("memcheck", "racecheck"))
    return found


def alone(
    command: Sequence[str], root: Path, environment: Mapping[str, str], timeout_s: float
) -> tuple[int | None, str]:
    """(exit code, None where there was no time for it; what it said). Nothing of it stays: what it
    had started holds the device as it does."""
    with tempfile.TemporaryFile("w+", errors="replace") as said:
        process = subprocess.Popen(
            command, cwd=root, env=dict(environment), stdout=said, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        code: int | None = None
        try:
            code = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            pass
        finally:
            with contextlib.suppress(ProcessLookupError):  # all have ended
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        said.seek(0)
        return code, said.read()
