"""Kernel tests and benches on a machine with a GPU; one JSON record.

    make gpu-check        or        python bench/gpu_check.py [--budget-s 540] [--only named few]

It needs NumPy, CuPy, pytest, grpcio and protobuf, and no installed copy of this project: the four
source folders are put on the path. What more it would need is said where it is missing (torch for a
peer, polars and the other packages of the engine for the service, compute-sanitizer).

One call ends within ``--budget-s``: sizes follow from it and from the memory that is there, what
there is no time for is listed in ``left_out``, and the record, ``proofs/gpu_check.json``, is
written anew after every cell and part, as a whole or not at all. Exit codes: 0 done, 5 there is no
device (nothing is written), 6 a test failed, an answer was wrong, a part broke or the record could
not be written, 130 and 143 interrupted: what was measured so far is in the record.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import importlib.util
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("engine", "kernels", "protos", "clients")
sys.path[:0] = [str(ROOT / folder) for folder in FOLDERS]
sys.path.append(str(ROOT / "bench"))

import gpu_cells  # noqa: E402
import gpu_sections  # noqa: E402
import gpu_service  # noqa: E402
import numpy as np  # noqa: E402
from gpu_cells import Bench  # noqa: E402
from gpu_problem import (  # noqa: E402
    DEFAULT_D,
    NAMED_K,
    NAMED_QUERIES,
    NAMED_ROWS,
    Budget,
    host_memory,
    problem,
    rows_that_fit,
)
from gpu_record import Record, listen  # noqa: E402

from matchwright.kernels.compile import KERNELS, compiled  # noqa: E402
from matchwright.kernels.cuda_device import CudaDevice  # noqa: E402
from matchwright.kernels.cupy_ops import CupyOps, no_device_reason  # noqa: E402
from matchwright.kernels.types import D_MAX, K_MAX, Corpus, Queries  # noqa: E402

NO_DEVICE = 5
_IMPORTED_PER_S = 4_000.0


PARTS = (
    *("named", "few", "calibration", "sweep", "rules", "tests", "cells", "estimate"),
    *("service", "memory", "wide", "sanitizer"),
)
"""In the order in which they are done: what counts most comes first."""
_NEEDS_S = {"tests": 60.0, "service": 60.0, "sanitizer": 120.0}
"""Seconds below which a part is not begun; the other parts reckon by themselves."""
_GRACE_S = 20.0
"""So long tests may take to end when they are asked to."""
_LARGE_QUERIES, _SMALLER_ROWS = 65_536, 1_000_000


def main(argv: Sequence[str] | None = None) -> int:
    """Run everything; the exit code."""
    options = parse(argv)
    reason = no_device_reason()
    if reason is not None:
        print(f"gpu-check: {reason}; nothing was checked", file=sys.stderr)
        return NO_DEVICE
    listen()
    record = Record(options.out, asked(options), Budget(options.budget_s))
    try:
        ops = CupyOps(memory_bytes=options.memory_bytes)
        library = CupyOps(memory_bytes=options.memory_bytes, device=CudaDevice(tensor=False))
        facts = device_facts(ops)
    except KeyboardInterrupt as by:
        return record.interrupted(by, list(options.only))
    except Exception:  # a device that is there, and wrong or not well
        record.broke("start")
        return record.end()
    return check(ops, library, facts, options)


def check(ops: CupyOps, library: CupyOps, facts: dict[str, Any], options: Options) -> int:
    """Every part that is asked for and that there is time for; the exit code."""
    budget = Budget(options.budget_s)
    bench = Bench(ops, library, str(facts.get("device", "")), options.repeats, budget)
    record = Record(options.out, {**facts, **asked(options)}, budget)
    todo = [name for name in PARTS if name in options.only]
    try:
        work = parts(bench, options)
        while todo:
            name = todo.pop(0)
            if budget.allows(name, _NEEDS_S.get(name, 0.0)):
                record.do(name, work[name])
            record.write()
    except KeyboardInterrupt as by:
        return record.interrupted(by, todo)
    return record.end()


def asked(options: Options) -> dict[str, Any]:
    """Of what, when and how."""
    return {**where(), "options": {name: str(value) for name, value in vars(options).items()}}


def parts(bench: Bench, options: Options) -> dict[str, Callable[[], Any]]:
    """What each part does."""
    ops, budget = bench.ops, bench.budget
    n = rows_that_fit(
        options.rows,
        DEFAULT_D,
        device_bytes=ops.device.memory_free(),
        host_bytes=host_memory(),
        budget_s=options.budget_s,
    )
    q, k, repeats = options.queries, options.named_k, options.repeats

    @functools.lru_cache(1)
    def usual() -> tuple[Corpus, Queries]:
        return problem(0, n, q, DEFAULT_D)

    made: dict[str, Callable[[], Any]] = {
        name: partial(lambda section: section(ops, *usual(), k, repeats), section)
        for name, section in gpu_sections.SECTIONS.items()
    }

    def cells() -> Iterator[dict[str, Any]]:
        usual.cache_clear()
        yield from gpu_cells.cells(bench, n, [q], options.dimensions[0], options.k, 1)
        for d in options.dimensions[1:]:
            yield from gpu_cells.cells(bench, n, [q], d, options.k, d)
        smaller = min(n, _SMALLER_ROWS)
        many = [q, max(q, options.large_queries)]
        for d in options.dimensions:
            yield from gpu_cells.cells(bench, smaller, many, d, options.k, d + 7)

    made["named"] = lambda: gpu_cells.named(bench, n, q, DEFAULT_D, k)
    made["cells"] = cells
    made["tests"] = lambda: run_tests(options.full, budget.left / 3)
    made["service"] = lambda: end_to_end(options, budget.left / 2)
    made["sanitizer"] = lambda: gpu_sections.sanitizer(
        ROOT, environment(), timeout_s=max(60.0, budget.left / 2)
    )
    return made


def end_to_end(options: Options, seconds: float) -> dict[str, Any]:
    """Calls to a server on a store that is given, or made."""
    why = gpu_service.missing()
    if why is not None:
        return {"left_out": why}
    with tempfile.TemporaryDirectory() as made:
        folder = options.store or Path(made) / "store"
        rows = options.service_rows or int(seconds * 0.5 * _IMPORTED_PER_S)
        rows = max(2_000, min(rows, 1_000_000))
        start = time.monotonic()
        if not folder.exists():
            gpu_service.make_store(folder, rows)
        spent = time.monotonic() - start
        each = options.load_s or max(1.0, min(15.0, (seconds - spent) / 8))
        found = gpu_service.service(folder, options.service_device, environment(), each)
    return {"freelancers": rows, "store_seconds": spent, **found}


Options = argparse.Namespace


def parse(argv: Sequence[str] | None) -> Options:
    parser = argparse.ArgumentParser(description="Kernel tests and benches on a GPU.")
    wide, deep = partial(number, most=D_MAX), partial(number, most=K_MAX)
    parser.add_argument("--budget-s", type=amount, default=540.0, help="seconds in all, about")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts")
    parser.add_argument("--full", action="store_true", help="tests with full counts")
    parser.add_argument("--rows", type=number, default=NAMED_ROWS, help="N, if there is room")
    parser.add_argument("--queries", type=number, default=NAMED_QUERIES, help="Q")
    parser.add_argument("--large-queries", type=number, default=_LARGE_QUERIES, help="Q")
    parser.add_argument(
        "--dimensions",
        type=wide,
        nargs="+",
        default=[384, 256],
        help="D of cells",
    )
    parser.add_argument("-k", type=deep, nargs="+", default=[10, 100, 500], help="K of cells")
    parser.add_argument("--named-k", type=deep, default=NAMED_K, help="K of the other parts")
    parser.add_argument("--repeats", type=number, default=3, help="of each measurement")
    parser.add_argument("--memory-bytes", type=number, default=1 << 30, help="temporary memory")
    parser.add_argument("--store", type=Path, help="the service's store; made if it is not there")
    parser.add_argument("--service-rows", type=number, help="freelancers of a store that is made")
    parser.add_argument("--load-s", type=amount, help="seconds of each load of the service")
    parser.add_argument("--service-device", default="gpu", help="of the server")
    parser.add_argument("--out", type=Path, default=ROOT / "proofs" / "gpu_check.json")
    return parser.parse_args(argv)


def number(text: str, most: int = 2**62) -> int:
    """A whole number from 1 on."""
    found = int(text)
    if not 1 <= found <= most:
        raise argparse.ArgumentTypeError(f"{text} is not in 1..{most:,}")
    return found


def amount(text: str) -> float:
    """A number above 0."""
    found = float(text)
    if not 0.0 < found < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not above 0 and finite")
    return found


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


def run_tests(full: bool, timeout_s: float = 900.0) -> dict[str, Any]:
    """Run the kernel tests that this machine's packages allow; counts and names of failures."""
    files, left_out = kernel_tests()
    variables = environment()
    if full:
        variables["MATCHWRIGHT_PROVE"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", f"--junitxml={report}", *map(str, files)]
        done = ended(command, variables, timeout_s)
        cases = list(ET.parse(report).iter("testcase")) if report.exists() else []
        cases = [case for case in cases if case.get("name")]  # one that was cut off has none
    told = {**judge(cases), "files": [path.name for path in files], "left_out": left_out}
    return told if done else {**told, "why": f"not done after {timeout_s:.0f} s"}


def ended(command: Sequence[str], variables: Mapping[str, str], timeout_s: float) -> bool:
    """Whether tests ended by themselves; those that did not are asked for what they have."""
    with subprocess.Popen(command, cwd=ROOT, env=dict(variables), stdout=sys.stderr) as process:
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(_GRACE_S)
            except subprocess.TimeoutExpired:
                process.kill()
            return False
        except BaseException:
            process.kill()
            raise
    return True


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


if __name__ == "__main__":
    raise SystemExit(main())
