"""Kernel tests and the top-k bench on a machine with a GPU; one JSON record.

    make gpu-check        or        python bench/gpu_check.py [--full] [--rows 10000000] ...

It needs NumPy, CuPy, pytest, grpcio and protobuf, and no installed copy of this project: the four
source folders are put on the path. The record, ``proofs/gpu_check.json``, holds the device, the
date, the commit, what the tests said, what compute-sanitizer said where it is on the path, and the
bench's figures: big scans beside bare products, small batches beside one reading of the rows, a
sweep of the pass rate, a rule set for each query, uploads, the planner's calibration. Exit codes: 0
done, 5 there is no device (nothing is written), 6 a test failed or an answer was wrong.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("engine", "kernels", "protos", "clients")
sys.path[:0] = [str(ROOT / folder) for folder in FOLDERS]
sys.path.append(str(ROOT / "bench"))

import gpu_sections  # noqa: E402
import numpy as np  # noqa: E402

from matchwright.kernels.compile import KERNELS, compiled  # noqa: E402
from matchwright.kernels.cuda_device import CudaDevice  # noqa: E402
from matchwright.kernels.cupy_ops import CupyOps, no_device_reason  # noqa: E402
from matchwright.kernels.ops import Ops  # noqa: E402
from matchwright.kernels.types import Bitmap, Corpus, Queries, Segment, TopK  # noqa: E402

FORMAT = 1
NO_DEVICE, WRONG = 5, 6


def main(argv: Sequence[str] | None = None) -> int:
    """Run everything; the exit code."""
    options = parse(argv)
    reason = no_device_reason()
    if reason is not None:
        print(f"gpu-check: {reason}; nothing was checked", file=sys.stderr)
        return NO_DEVICE
    began = time.monotonic()
    ops = CupyOps(memory_bytes=options.memory_bytes)
    tests = run_tests(options.full)
    checked = {} if options.no_sanitizer else gpu_sections.sanitizer(ROOT, environment())
    library = CupyOps(memory_bytes=options.memory_bytes, device=CudaDevice(tensor=False))
    bench = {} if options.no_bench else run_bench(ops, library, options)
    held = tests["failed"] == 0 and tests["passed"] > 0 and bench.get("exact", True)
    held = held and checked.get("clean") is not False
    record = {
        "format": FORMAT,
        "id": "gpu_check",
        "held": held,
        **where(),
        **device_facts(ops),
        "tests": tests,
        "sanitizer": checked,
        "bench": bench,
        "seconds": round(time.monotonic() - began, 1),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(record, indent=2) + "\n", "utf-8")
    print(json.dumps(record, indent=2))
    return 0 if held else WRONG


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Kernel tests and the top-k bench on a GPU.")
    parser.add_argument("--full", action="store_true", help="tests with full counts")
    parser.add_argument("--no-bench", action="store_true", help="tests alone")
    parser.add_argument("--no-sanitizer", action="store_true", help="without compute-sanitizer")
    parser.add_argument("--rows", type=int, default=1_000_000, help="N")
    parser.add_argument("--queries", type=int, default=4_096, help="Q")
    parser.add_argument("--dimensions", type=int, nargs="+", default=[256, 384], help="D")
    parser.add_argument("-k", type=int, nargs="+", default=[10, 100, 500], help="K")
    parser.add_argument("--groups", type=int, default=64, help="rule sets")
    parser.add_argument("--repeats", type=int, default=5, help="of each measurement")
    parser.add_argument("--memory-bytes", type=int, default=1 << 30, help="temporary memory")
    parser.add_argument("--out", type=Path, default=ROOT / "proofs" / "gpu_check.json")
    return parser.parse_args(argv)


def where() -> dict[str, Any]:
    """Commit and date; the commit is "unknown" where there is no git."""
    return {
        "commit": git("rev-parse", "HEAD") or "unknown",
        "dirty": bool(git("status", "--porcelain")),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "python": sys.version.split()[0],
        "numpy": np.__version__,
    }


def git(*words: str) -> str:
    try:
        done = subprocess.run(
            ["git", *words], cwd=ROOT, capture_output=True, text=True, check=False
        )
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def device_facts(ops: CupyOps) -> dict[str, Any]:
    """The device, its software, and what the compiler says of each kernel on it."""
    import cupy

    runtime = cupy.cuda.runtime
    properties = runtime.getDeviceProperties(cupy.cuda.Device().id)
    reports = [
        {"kernel": report.name, "registers": report.registers, "shared_bytes": report.shared}
        for stem in sorted(set(KERNELS.values()))
        for report in compiled(stem, ops.device.arch).reports  # type: ignore[attr-defined]
    ]
    return {
        "device": properties["name"].decode(),
        "memory_bytes": int(properties["totalGlobalMem"]),
        "multiprocessors": int(properties["multiProcessorCount"]),
        "driver": runtime.driverGetVersion(),
        "runtime": runtime.runtimeGetVersion(),
        "cupy": cupy.__version__,
        "kernels": reports,
    }


# ── Tests ─────────────────────────────────────────────────────────────────────────────────────


def run_tests(full: bool) -> dict[str, Any]:
    """Run the kernel tests that this machine's packages allow; counts and names of failures."""
    files, left_out = kernel_tests()
    variables = environment()
    if full:
        variables["MATCHWRIGHT_PROVE"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", f"--junitxml={report}", *map(str, files)]
        subprocess.run(command, cwd=ROOT, env=variables, stdout=sys.stderr, check=False)
        cases = list(ET.parse(report).iter("testcase")) if report.exists() else []
    return {**judge(cases), "files": [path.name for path in files], "left_out": left_out}


def environment() -> dict[str, str]:
    """This process's, with the four folders on the path of Python."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(str(ROOT / name) for name in FOLDERS)}


def kernel_tests() -> tuple[list[Path], dict[str, str]]:
    """(test files of the kernels alone, file -> why it cannot run here)."""
    files, left_out = [], {}
    for path in sorted((ROOT / "tests").glob("test_*.py")):
        text, needs = _with_helpers(path)
        if "matchwright.kernels" not in text or re.search(r"matchwright\.(engine|clients)", text):
            continue
        missing = [name for name in sorted(needs) if importlib.util.find_spec(name) is None]
        if missing:
            left_out[path.name] = f"needs {', '.join(missing)}"
        else:
            files.append(path)
    return files, left_out


def _with_helpers(path: Path) -> tuple[str, set[str]]:
    """The text of a test file and of the helpers beside it, and what all of them import."""
    text = path.read_text("utf-8")
    needs = set(re.findall(r"^(?:import|from) (\w+)", text, re.MULTILINE))
    for name in sorted(needs):
        helper = path.with_name(f"{name}.py")
        if helper.exists():
            more, needed = _with_helpers(helper)
            text, needs = text + more, (needs - {name}) | needed
    return text, needs


def judge(cases: Sequence[ET.Element]) -> dict[str, Any]:
    """Counts of test cases, names of those that failed, reasons of those that were skipped."""
    failures, reasons, passed = [], {}, 0
    for case in cases:
        name = f"{case.get('classname')}::{case.get('name')}"
        skip = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            failures.append(name)
        elif skip is not None:
            reasons[name] = skip.get("message", "")
        else:
            passed += 1
    return {
        "passed": passed,
        "failed": len(failures),
        "skipped": len(reasons),
        "failures": failures,
        "skip_reasons": sorted(set(reasons.values())),
    }


# ── Bench ─────────────────────────────────────────────────────────────────────────────────────


def run_bench(ops: CupyOps, library: CupyOps, options: argparse.Namespace) -> dict[str, Any]:
    """Every shape and section; ``exact``: all sampled answers were the reference's."""
    cells = [
        cell
        for d in options.dimensions
        for cell in shape(ops, library, options.rows, options.queries, d, options)
    ]
    d, k = options.dimensions[0], options.k[len(options.k) // 2]
    corpus, queries = problem(np.random.default_rng(d), options.rows, options.queries, d)
    found = gpu_sections.sections(ops, corpus, queries, k, options.repeats)
    return {
        "note": "cells: rules are bitmaps from the host; r_bf16 and r_int8: bare product / ours",
        "cells": cells,
        "sections": found,
        "exact": all(cell["exact"] for cell in cells) and gpu_sections.exact(found),
    }


def shape(
    ops: CupyOps, library: CupyOps, n: int, q: int, d: int, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """One cell per k and filter, beside bare products, the simple path and CuPy's own."""
    rng = np.random.default_rng(d)
    corpus, queries = problem(rng, n, q, d)
    ruled = with_rules(rng, queries, n, options.groups)
    bare, refused = bare_products(corpus, queries)
    ways: dict[str, Callable[[], Any]] = {**bare}
    ways["matmul_argpartition"] = by_cupy(ops, corpus, queries, max(options.k))
    for k in options.k:
        ways[f"k={k}"] = partial(ops.topk, corpus, queries, k, count=False)
        ways[f"k={k} rules"] = partial(ops.topk, corpus, ruled, k, count=False)
        ways[f"k={k} library"] = partial(library.topk, corpus, queries, k, count=False)
    seconds = interleaved(ways, options.repeats)
    facts = {"n": n, "q": q, "d": d, "operations": 2 * n * q * d, "corpus_bytes": n * d}
    return [
        {
            **facts,
            "k": k,
            "rules": rules,
            "seconds": seconds[name],
            "pairs_per_second": n * q / seconds[name],
            "operations_per_second": 2 * n * q * d / seconds[name],
            "product_seconds": {of: seconds[of] for of in bare},
            "product_refused": refused,
            **{f"r_{of}": seconds[of] / seconds[name] for of in bare},
            "library_path_seconds": seconds[f"k={k} library"],
            "matmul_argpartition_seconds": seconds["matmul_argpartition"],
            "telemetry": telemetry(ways[name]()),
            "exact": agrees(ops, corpus, some, k),
        }
        for k in options.k
        for name, rules, some in ((f"k={k}", False, queries), (f"k={k} rules", True, ruled))
    ]


def problem(rng: np.random.Generator, n: int, q: int, d: int) -> tuple[Corpus, Queries]:
    """Gaussian vectors on the two grids, random keys."""
    x_nd = np.empty((n, d), np.int8)
    for at in range(0, n, 65_536):
        block = rng.standard_normal((min(65_536, n - at), d), np.float32)
        x_nd[at : at + 65_536] = np.clip(np.rint(block * 32), -127, 127)
    q_qd = np.clip(np.rint(rng.standard_normal((q, d)) * 4_000), -16_255, 16_255).astype(np.int16)
    key = rng.permutation(n + q).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return Corpus(((Segment(x_nd, key[:n]), None),)), Queries(q_qd, key[n:])


def with_rules(rng: np.random.Generator, queries: Queries, n: int, groups: int) -> Queries:
    """The same queries under bitmaps of half the rows."""
    bitmaps = [Bitmap(rng.random(n, np.float32) < 0.5) for _ in range(groups)]
    group_q = rng.integers(0, groups, queries.q).astype(np.int32)
    return Queries(queries.q_qd, queries.key_q, groups=bitmaps, group_q=group_q)


PRODUCTS = {
    "fp16": (np.float16, 2, np.float16, 2, np.float32, 68),
    "bf16": (np.uint16, 14, np.uint16, 14, np.float32, 68),
    "int8": (np.int8, 3, np.int32, 10, np.int32, 72),
}
"""Name -> input dtype and CUDA_R_*, output dtype and CUDA_R_*, scalar dtype, CUBLAS_COMPUTE_*."""


def bare_products(
    corpus: Corpus, queries: Queries
) -> tuple[dict[str, Callable[[], None]], dict[str, str]]:
    """cuBLAS products alone, in tiles of 32,768 rows; and which the library refused, and why."""
    bare: dict[str, Callable[[], None]] = {}
    refused: dict[str, str] = {}
    for name in PRODUCTS:
        run = bare_product(name, corpus.parts[0][0].x_nd, queries.q_qd >> 7)
        try:
            run()
        except Exception as error:  # whatever this library and this chip say
            refused[name] = str(error)
        else:
            bare[name] = run
    return bare, refused


def bare_product(name: str, x_nd: Any, high_qd: Any) -> Callable[[], None]:
    """One product; its values do not matter to the chip's speed, so bf16 takes int8's bits."""
    import cupy
    from cupy_backends.cuda.libs import cublas  # type: ignore[import-untyped]

    dtype, kind, out_dtype, out_kind, scalar, compute = PRODUCTS[name]
    x, high = cupy.asarray(x_nd).astype(dtype), cupy.asarray(high_qd).astype(dtype)
    (n, d), q, step = x.shape, high.shape[0], 32_768
    out = cupy.empty((q, min(step, n)), out_dtype)
    one, zero = np.ones(1, scalar), np.zeros(1, scalar)

    def run() -> None:
        for at in range(0, n, step):
            rows = x[at : at + step]
            cublas.gemmEx(
                cupy.cuda.device.get_cublas_handle(),
                *(cublas.CUBLAS_OP_T, cublas.CUBLAS_OP_N, rows.shape[0], q, d, one.ctypes.data),
                *(rows.data.ptr, kind, d, high.data.ptr, kind, d, zero.ctypes.data),
                *(out.data.ptr, out_kind, out.shape[1], compute, -1),
            )
        cupy.cuda.Device().synchronize()

    return run


def by_cupy(ops: CupyOps, corpus: Corpus, queries: Queries, k: int) -> Callable[[], None]:
    """CuPy's float32 product and argpartition, without rules, 64 queries at a time."""
    import cupy

    x = cupy.asarray(corpus.parts[0][0].x_nd).astype(cupy.float32)
    q = cupy.asarray(queries.q_qd).astype(cupy.float32)
    k = min(k, x.shape[0] - 1)

    def run() -> None:
        for at in range(0, q.shape[0], 64):
            cupy.argpartition(-(q[at : at + 64] @ x.T), k, axis=1)[:, :k]
        cupy.cuda.Device().synchronize()

    return run


def interleaved(ways: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median seconds of each, after one warm-up, the ways taking turns."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats + 1):
        for name, run in ways.items():
            began = time.perf_counter()
            run()
            if turn:
                taken[name].append(time.perf_counter() - began)
    return {name: statistics.median(some) for name, some in taken.items()}


def telemetry(result: TopK) -> dict[str, Any]:
    return dict(result.telemetry)


def agrees(ops: CupyOps, corpus: Corpus, queries: Queries, k: int) -> bool:
    """Whether the first few queries get what the reference says."""
    few = Queries(
        q_qd=queries.q_qd[:3],
        key_q=queries.key_q[:3],
        groups=queries.groups,
        group_q=None if queries.group_q is None else queries.group_q[:3],
    )
    got, expected = (one.topk(corpus, few, k) for one in (ops, Ops()))
    names = ("row_qk", "points_qk", "returned_q", "eligible_q")
    return all(np.array_equal(getattr(got, name), getattr(expected, name)) for name in names)


if __name__ == "__main__":
    raise SystemExit(main())
