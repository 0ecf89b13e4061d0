"""Full counts: every test and bench that a claim stands on, and one JSON record per claim.

    make prove                          everything; an hour or more on two cores
    .venv/bin/python bench/prove.py --only speed,quality
    .venv/bin/python bench/prove.py --list

Each claim of ``bench/claims.py`` is a set of tests or one bench. Its record, ``proofs/<id>.json``,
says what was claimed, whether it held, the figures, and where, when and on which commit that was
seen. A record is written whether the claim held or not. A claim fails when a test fails, when a
bench exits with an error or says ``"passed": false``, and when anything that it requires was
skipped.

The suite runs once; the claims that rest on tests are judged by their files' part of it.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from claims import CLAIMS, Claim

ROOT = Path(__file__).resolve().parent.parent
PROOFS = ROOT / "proofs"
FORMAT = 1
_TAIL = 4_000


def main(argv: Sequence[str] | None = None) -> int:
    """Run the claims asked for; 0 when all hold, 6 when one does not, 2 for a wrong name."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--only", help="claim ids, separated by commas", default="")
    parser.add_argument("--list", action="store_true", help="list the claims and stop")
    parser.add_argument("--table", action="store_true", help="the records as a Markdown table")
    options = parser.parse_args(argv)
    wanted = set(filter(None, options.only.split(",")))
    known = {claim.id for claim in CLAIMS}
    if wanted - known:
        print(f"unknown claims {sorted(wanted - known)}; known: {sorted(known)}", file=sys.stderr)
        return 2
    if options.list:
        for claim in CLAIMS:
            print(f"{claim.id:10} {claim.text}")
        return 0
    if options.table:
        print(table(PROOFS))
        return 0
    if dirty():
        print("the tree has changes that are not committed; records will say so", file=sys.stderr)
    claims = [claim for claim in CLAIMS if not wanted or claim.id in wanted]
    tested = [claim for claim in claims if claim.tests]
    held = []
    if tested:
        began = time.monotonic()
        run = run_tests(sorted({name for claim in tested for name in claim.tests}))
        seconds = time.monotonic() - began
        held += [write(claim, judge_tests(claim, run), seconds) for claim in tested]
    for claim in claims:
        if claim.bench:
            began = time.monotonic()
            outcome = run_bench(claim)
            held.append(write(claim, outcome, time.monotonic() - began))
    return 0 if all(held) else 6


def write(claim: Claim, outcome: Mapping[str, Any], seconds: float) -> bool:
    """Write the claim's record, print one line; whether it held."""
    record = {
        "format": FORMAT,
        "id": claim.id,
        "claim": claim.text,
        **outcome,
        "seconds": round(seconds, 1),
        "command": shown_command(claim),
        **where(),
    }
    PROOFS.mkdir(exist_ok=True)
    text = json.dumps(record, indent=2, ensure_ascii=False, sort_keys=False) + "\n"
    part = PROOFS / f"{claim.id}.json.part"
    part.write_text(text, "utf-8")
    part.replace(PROOFS / f"{claim.id}.json")
    word = "held" if outcome["held"] else "DID NOT HOLD"
    print(f"{claim.id}: {word} ({record['seconds']} s)", file=sys.stderr, flush=True)
    return bool(outcome["held"])


@dataclass(frozen=True)
class Run:
    """What pytest did: its exit code and its test cases."""

    code: int
    cases: tuple[ET.Element, ...]


def run_tests(files: Sequence[str]) -> Run:
    """Run test files (``.`` is all of them) with full counts."""
    wanted = ["."] if "." in files else files
    missing = [name for name in wanted if not (ROOT / "tests" / name).exists()]
    present = [str(ROOT / "tests" / name) for name in wanted if name not in missing]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", f"--junitxml={report}", *present]
        done = subprocess.run(command, cwd=ROOT, env=full_counts(), stdout=sys.stderr, check=False)
        cases = tuple(ET.parse(report).iter("testcase")) if report.exists() else ()
    return Run(done.returncode, cases)


def judge_tests(claim: Claim, run: Run) -> dict[str, Any]:
    """What a run of tests says of one claim; what was skipped counts as not shown."""
    whole = "." in claim.tests
    stems = {Path(name).stem for name in claim.tests if name != "."}
    counts = {"passed": 0, "failed": 0, "skipped": 0}
    failed: list[str] = []
    skipped: dict[str, str] = {}
    seen: set[str] = set()
    for case in run.cases:
        name = f"{case.get('classname')}::{case.get('name')}"
        of = stems & set(name.replace("::", ".").split("."))
        if not (whole or of):
            continue
        seen |= of
        if case.find("failure") is not None or case.find("error") is not None:
            counts["failed"] += 1
            failed.append(name)
        elif (skip := case.find("skipped")) is not None and skip.get("type") != "pytest.xfail":
            counts["skipped"] += 1
            skipped[name] = skip.get("message", "")
        else:
            counts["passed"] += 1
    required = [
        name for name, why in skipped.items() if not any(reason in why for reason in claim.may_skip)
    ]
    failed += [f"tests/{stem}.py ran nothing" for stem in sorted(stems - seen)]
    if whole and run.code:
        failed.append(f"pytest ended with exit code {run.code}")
    return {
        "held": counts["passed"] > 0 and not failed and not required,
        "figures": counts,
        "failed": failed,
        "skipped": skipped,
        "required_but_skipped": required,
    }


def table(folder: Path) -> str:
    """The records in ``folder`` as a Markdown table, for docs/measured.md."""
    lines = ["| record | claim | held | commit | machine | date |", "|---|---|---|---|---|---|"]
    for path in sorted(folder.glob("*.json")):
        told = json.loads(path.read_text("utf-8"))
        machine = told.get("machine", {})
        cores = f"{machine.get('cpu', '')}, {machine.get('cores', '?')} cores"
        held = {True: "yes", False: "**no**"}.get(told.get("held"), "")
        cells = (
            f"[`{path.stem}`](../proofs/{path.name})",
            told.get("claim", ""),
            held,
            str(told.get("commit", ""))[:10],
            cores,
            str(told.get("date", "")),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def run_bench(claim: Claim) -> dict[str, Any]:
    """Run the claim's bench; its stdout is one JSON object, the figures."""
    script = claim.bench[0]
    if script.endswith(".py") and not (ROOT / script).exists():
        return {"held": False, "figures": {}, "failed": [f"{script} is not there"]}
    done = subprocess.run(
        [sys.executable, *claim.bench],
        cwd=ROOT,
        env=full_counts(),
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    return judge_bench(done.returncode, done.stdout)


def judge_bench(code: int, stdout: str) -> dict[str, Any]:
    """The outcome of a bench from its exit code and what it printed."""
    failed = [] if code == 0 else [f"exit code {code}"]
    try:
        figures = json.loads(stdout)
    except ValueError:
        return {"held": False, "figures": {"printed": stdout[-_TAIL:]}, "failed": ["no JSON"]}
    if not isinstance(figures, dict):
        figures = {"items": figures}
    if figures.get("passed") is False:
        failed.append("the bench says that a bound was missed")
    return {"held": not failed, "figures": figures, "failed": failed}


def shown_command(claim: Claim) -> str:
    """The command that shows the claim again."""
    if claim.bench:
        return " ".join((".venv/bin/python", *claim.bench))
    files = " ".join(f"tests/{name}" for name in claim.tests)
    return f"MATCHWRIGHT_PROVE=1 .venv/bin/python -m pytest {files}"


def full_counts() -> Mapping[str, str]:
    """The environment in which tests and benches use their full counts."""
    return {**os.environ, "MATCHWRIGHT_PROVE": "1"}


def where() -> dict[str, Any]:
    """Commit, machine class, versions and date."""
    names = ("numpy", "polars", "scikit-learn", "grpcio", "numkong", "tritonclient", "lightgbm",
             "onnxruntime")  # fmt: skip
    return {
        "commit": _git("rev-parse", "HEAD"),
        "dirty": dirty(),
        "machine": machine_class(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in names},
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def machine_class() -> dict[str, Any]:
    """What a figure depends on: processor, cores to use, wide units, memory. No host name."""
    cpu: dict[str, str] = {}
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            name, _, value = line.partition(":")
            cpu.setdefault(name.strip(), value.strip())
    flags = set(cpu.get("flags", "").split())
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": cpu.get("model name", platform.machine()),
        "cores": cores,
        "wide_units": sorted(flags & {"avx2", "avx512f", "avx512_vnni", "amx_bf16", "amx_int8"}),
        "memory_gib": round(memory / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
    }


def dirty() -> bool:
    """Whether tracked files differ from the commit, proofs aside."""
    return bool(_git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!proofs"))


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    sys.exit(main())
