"""Runs at scale: what a run costs beside its kernels, what a second core gives, and memory.

    .venv/bin/python bench/bench_run.py --json                    a million freelancers, 10,000 jobs
    .venv/bin/python bench/bench_run.py --rows 50000 --jobs 2000  a quick look
    .venv/bin/python bench/bench_run.py --store DIR --json        an existing store with jobs

Every run is a process of its own over all jobs of the store, from opening it to run.json, K = 100:

- *alone*: one process on one core, which is all that it may use. All of its seconds but those in
  the kernels are outside: opening, planning, preparing, output, writing, the digest.
- *threads*: one process whose kernels use two cores.
- *shared*: as ``run start`` does it, two processes of one thread each.

All must give one digest. The figures are seconds outside per million result rows (of *alone*),
*alone* by *shared* and by *threads* (what the second core gives), and the peak of resident memory,
mapped pages included; of *shared* the sum over its processes, though they map the same pages.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench_store import RESIDENT_GB_MAX, _folder, build

from matchwright.engine import synthetic
from matchwright.engine.policy import Policy
from matchwright.engine.runs.execute import Executor, LocalExecutor, run
from matchwright.engine.runs.folder import Output
from matchwright.engine.runs.plan import RunOptions, make_plan
from matchwright.engine.runs.processes import ProcessExecutor
from matchwright.engine.store import Store
from matchwright.kernels.ops import get_ops, usable_cores

OUTSIDE_S_MAX = 15.0
SPEED_UP_MIN = 1.8
K = 100
WAYS = ("alone", "threads", "shared")


class _Peaks:
    """Largest sum of the resident peaks of this process and of those that it has started."""

    def __init__(self) -> None:
        self.bytes = 0

    def look(self, event: Any = None) -> None:
        own = os.getpid()
        threads = Path(f"/proc/{own}/task").iterdir()  # a child belongs to the thread that made it
        started = [int(pid) for one in threads for pid in _text(one / "children").split()]
        found = sum(map(_peak_of, [own, *started]))
        self.bytes = max(self.bytes, found)


def _text(file: Path) -> str:
    """What a file of a process or thread says, "" when that has ended."""
    try:
        return file.read_text("ascii")
    except OSError:
        return ""


def _peak_of(pid: int) -> int:
    peak = re.search(r"VmHWM:\s+(\d+) kB", _text(Path(f"/proc/{pid}/status")))
    return int(peak[1]) * 1024 if peak else 0


def child(folder: Path, output: Path, way: str) -> dict[str, Any]:
    """One whole run in this process."""
    if way == "alone":
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    began = time.perf_counter()
    with Store.open(folder) as store:
        snapshot = store.snapshot()
        asked = RunOptions(kinds=("job",), k=K, as_of=synthetic.AS_OF, policy=Policy.load())
        plan = make_plan(snapshot, asked)
        ops = get_ops("cpu", threads=2 if way == "threads" else 1)
        executor: Executor = LocalExecutor(ops, snapshot, plan)
        if way == "shared":
            executor = ProcessExecutor(ops, snapshot, plan, folder, processes=2)
        peaks = _Peaks()
        outcome = run(
            plan, Output(output).folder(plan.run_id), executor, peaks.look, snapshot=snapshot
        )
        peaks.look()
    wall = time.perf_counter() - began
    counts = outcome.summary["counts"]["job"]
    return {
        "wall_s": wall,
        "cpu_s": time.process_time(),
        "kernel_s": outcome.summary["seconds"]["kernel"],
        "seconds": outcome.summary["seconds"],
        "queries": counts["queries"],
        "rows": counts["rows"],
        "errors": counts["errors"],
        "peak_gb": peaks.bytes / 1e9,
        "digest": outcome.summary["digest"],
    }


def once(folder: Path, way: str) -> dict[str, Any]:
    """A run in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="mw-bench-run-") as output:
        words = [sys.executable, __file__, "--store", str(folder), "--child", way, output]
        done = subprocess.run(words, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def measure(folder: Path, repeats: int) -> dict[str, Any]:
    """Interleaved repeats of every way; medians."""
    seen: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for _ in range(repeats):
        for way in WAYS:
            seen[way].append(once(folder, way))
    first = seen["shared"][0]
    walls = {way: statistics.median(one["wall_s"] for one in seen[way]) for way in WAYS}
    outside = statistics.median(
        (one["wall_s"] - one["kernel_s"]) / one["rows"] * 1e6 for one in seen["alone"]
    )
    return {
        "queries": first["queries"],
        "result_rows": first["rows"],
        "errors": first["errors"],
        "repeats": repeats,
        **{f"{way}_s": round(wall, 2) for way, wall in walls.items()},
        "kernel_s": round(statistics.median(one["kernel_s"] for one in seen["alone"]), 2),
        "outside_s_per_million_rows": round(outside, 2),
        "two_cores_to_one": round(walls["alone"] / walls["shared"], 3),
        "two_threads_to_one": round(walls["alone"] / walls["threads"], 3),
        "peak_gb": round(max(one["peak_gb"] for way in WAYS for one in seen[way]), 2),
        "stages_alone": seen["alone"][0]["seconds"],
        "one_digest": len({one["digest"] for way in WAYS for one in seen[way]}) == 1,
        "cores": usable_cores(),
    }


def add_jobs(folder: Path, jobs: int) -> None:
    """Synthetic jobs beside the freelancers."""
    with Store.open(folder, mode="w") as store:
        with store.bulk("job") as sink:
            for frame in synthetic.blocks("job", jobs):
                sink.write(frame)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000, help="freelancers")
    parser.add_argument("--jobs", type=int, default=10_000, help="queries")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--store", type=Path, help="use this store; made if it is not there")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(child(options.store, Path(options.child[1]), options.child[0])))
        return 0
    report: dict[str, Any] = {"rows": options.rows, "k": K}
    with _folder(options.store) as folder:
        if not folder.exists():
            build(folder, options.rows, random=False)
            add_jobs(folder, options.jobs)
        report.update(measure(folder, options.repeats))
    report["passed"] = bool(
        report["one_digest"]
        and not report["errors"]
        and report["outside_s_per_million_rows"] < OUTSIDE_S_MAX
        and report["two_cores_to_one"] >= SPEED_UP_MIN
        and report["peak_gb"] <= RESIDENT_GB_MAX
    )
    if options.json:
        print(json.dumps(report))
    else:
        for name, value in report.items():
            print(f"{name:28} {value}")
    return 0 if report["passed"] else 6


if __name__ == "__main__":
    sys.exit(main())
