"""Matching at scale: one warm `match` against reading the corpus once, and a server's memory.

    .venv/bin/python bench/bench_match.py --json                 a million freelancers
    .venv/bin/python bench/bench_match.py --rows 50000           a quick look
    .venv/bin/python bench/bench_match.py --store DIR --json     an existing store

Jobs are synthetic. With their own limits every query runs under rules of its own and few rows
pass; without them nearly all pass, and every vector has to be looked at. Answers hold
contributions and exact counts, as they do by default. Each repeat reads every vector of the
corpus once with as many threads as the kernels use (a maximum over 64-bit words: nothing that
looks at each vector can do less), then answers one job; the ratio of the medians is the figure.
The server is a process of its own, asked over gRPC; its memory is what the kernel calls resident,
mapped pages included. Beside each answer: the time of preparing its query alone, and of the exact
rank of some row together with the 100th.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from bench_store import RESIDENT_GB_MAX, _folder, build

from matchwright.clients import Client
from matchwright.engine import synthetic
from matchwright.engine.matcher import Matcher, as_queries
from matchwright.engine.policy import Policy
from matchwright.engine.request import Request
from matchwright.engine.store import Store
from matchwright.kernels.ops import get_ops
from matchwright.kernels.types import Corpus

RATIO_MAX = 1.5
_REPEATS = 60
_SERVED = 100
_NO_LIMITS = ("title", "text", "skills", "category", "weekly_hours", "experience_level")


def reader(corpus: Corpus, threads: int) -> Callable[[ThreadPoolExecutor], int]:
    """Something that reads every vector of the corpus once; returns the bytes read."""
    words = [segment.x_nd.reshape(-1) for segment, _ in corpus.parts]
    slices = [
        piece[: piece.size // 8 * 8].view(np.uint64)
        for flat in words
        for piece in np.array_split(flat, threads)
    ]

    def read(pool: ThreadPoolExecutor) -> int:
        list(pool.map(np.max, slices))
        return sum(piece.nbytes for piece in slices)

    return read


def requests(count: int, as_of: int, limits: bool) -> list[Request]:
    """Inline open jobs, under limits of their own or under none (few rows fail, all are read)."""
    asked = []
    for record in synthetic.frame("job", count, seed=11).to_dicts():
        kept = record if limits else {name: record[name] for name in _NO_LIMITS}
        if not limits:
            kept["skills"] = [{**skill, "must": False} for skill in kept["skills"] or ()]
        record = {**kept, "status": "OPEN", "closes": None}
        asked.append(Request(kind="job", record=record, k=100, as_of=as_of))
    return asked


def measure(store: Store, limits: bool) -> dict[str, Any]:
    """Single queries in this process, interleaved with plain reading."""
    snapshot, ops = store.snapshot(), get_ops("cpu")
    matcher = Matcher(store, ops, Policy.load())
    corpus = snapshot.corpus("freelancer")
    read = reader(corpus, ops.threads)
    asked = requests(_REPEATS, snapshot.generation.as_of, limits)
    spent: dict[str, list[float]] = {
        name: [] for name in ("read_ms", "match_ms", "kernel_ms", "prepare_ms", "rank_ms")
    }
    eligible = []
    with ThreadPoolExecutor(ops.threads) as pool:
        for request in (*asked[:5], *asked):
            start = time.perf_counter()
            read(pool)
            middle = time.perf_counter()
            result = matcher.match(request)
            end = time.perf_counter()
            spent["read_ms"].append((middle - start) * 1e3)
            spent["match_ms"].append((end - middle) * 1e3)
            spent["kernel_ms"].append(result.telemetry["kernel_seconds"] * 1e3)
            eligible.append(result.eligible / max(1, corpus.n))
            start = time.perf_counter()
            query = matcher.prepare_one(snapshot, request)
            middle = time.perf_counter()
            ops.rank(corpus, as_queries([query]), len(eligible) * 7_919 % corpus.n, k=100)
            end = time.perf_counter()
            spent["prepare_ms"].append((middle - start) * 1e3)
            spent["rank_ms"].append((end - middle) * 1e3)
    warm = {name: statistics.median(values[5:]) for name, values in spent.items()}
    return {
        "backend": ops.name,
        "threads": ops.threads,
        "corpus_bytes": sum(segment.x_nd.nbytes for segment, _ in corpus.parts),
        **{name: round(value, 2) for name, value in warm.items()},
        "match_p99_ms": round(float(np.percentile(spent["match_ms"][5:], 99)), 2),
        "match_of_read": round(warm["match_ms"] / warm["read_ms"], 2),
        "kernel_of_read": round(warm["kernel_ms"] / warm["read_ms"], 2),
        "pass_rate_median": round(statistics.median(eligible), 4),
    }


def served(folder: Path) -> dict[str, Any]:
    """A server on the store: time until it answers, memory, latency of one caller."""
    command = [sys.executable, "-m", "matchwright.engine.cli", "serve"]
    command += ["--store", str(folder), "--port", "0"]
    start = time.perf_counter()
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        address = _address(server)
        asked = synthetic.frame("job", _SERVED, seed=12).to_dicts()
        spent = []
        with Client(address) as client:
            for record in asked:
                began = time.perf_counter()
                client.find_freelancers(record, k=100, timeout_s=60)
                spent.append((time.perf_counter() - began) * 1e3)
                if len(spent) == 1:
                    first_s = time.perf_counter() - start
        status = Path(f"/proc/{server.pid}/status").read_text(encoding="ascii")
    finally:
        server.terminate()
        server.wait(30)
    resident = {
        name: int(kb) * 1024 / 1e9 for name, kb in re.findall(r"(Vm\w+):\s+(\d+) kB", status)
    }
    return {
        "serve_first_answer_s": round(first_s, 2),
        "serve_p50_ms": round(statistics.median(spent), 2),
        "serve_resident_gb": round(resident["VmRSS"], 2),
        "serve_peak_gb": round(resident["VmHWM"], 2),
    }


def _address(server: subprocess.Popen[str]) -> str:
    assert server.stdout is not None
    seen = []
    for line in server.stdout:
        seen.append(line)
        found = re.search(r"(127\.0\.0\.1:\d+)", line)
        if found:
            return found[1]
    raise RuntimeError(f"the server did not start: {''.join(seen)}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000, help="freelancers")
    parser.add_argument("--store", type=Path, help="use this store; made if it is not there")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args()
    report: dict[str, Any] = {"rows": options.rows}
    with _folder(options.store) as folder:
        if not folder.exists():
            report.update(build(folder, options.rows, random=False))
        with Store.open(folder) as store:
            report["with_limits"] = measure(store, limits=True)
            report["without_limits"] = measure(store, limits=False)
        report.update(served(folder))
    report["passed"] = bool(
        max(report[of]["match_of_read"] for of in ("with_limits", "without_limits")) <= RATIO_MAX
        and report["serve_peak_gb"] <= RESIDENT_GB_MAX
    )
    if options.json:
        print(json.dumps(report))
    else:
        for name, value in report.items():
            print(f"{name:24} {value}")
    return 0 if report["passed"] else 6


if __name__ == "__main__":
    sys.exit(main())
