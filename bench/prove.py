"""Full counts: every test and bench that a claim stands on, and one JSON record per claim.

    make prove                          everything; an hour or more on two cores
    .venv/bin/python bench/prove.py --only speed,quality
    .venv/bin/python bench/prove.py --list

Each claim of ``CLAIMS`` is a set of tests or one bench. Its record, ``proofs/<id>.json``, says what
was claimed, whether it held, the figures, and where, when and on which commit that was seen. A
record is written whether the claim held or not. A claim fails when a test fails, when a bench exits
with an error or says ``"passed": false``, and when anything that it requires was skipped.

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

ROOT = Path(__file__).resolve().parent.parent
PROOFS = ROOT / "proofs"
FORMAT = 1
_TAIL = 4_000


@dataclass(frozen=True)
class Claim:
    """Something that is said of the project, and what shows it.

    Attributes:
        id: the record's file name.
        text: the claim, in a sentence.
        tests: files under tests/ that show it, all of them with full counts.
        bench: a command that prints one JSON object on stdout, its words after the interpreter.
        may_skip: reasons (parts of them) for which a test may be skipped.
    """

    id: str
    text: str
    tests: tuple[str, ...] = ()
    bench: tuple[str, ...] = ()
    may_skip: tuple[str, ...] = ("no CUDA device",)


CLAIMS = (
    Claim(
        "suite",
        "Every test passes with full counts.",
        tests=(".",),
    ),
    Claim(
        "install",
        "The editable checkout, the wheel and the sdist each hold the whole namespace, and each "
        "layer imports its neighbour only.",
        tests=("test_packaging.py", "test_layers.py"),
    ),
    Claim(
        "real_data",
        "All files of real exports ingest, read = accepted + replaced + duplicate + quarantined; "
        "all posts matched against all profiles violate no rule, by a check of the raw files.",
        tests=("test_real_data.py",),
    ),
    Claim(
        "exactness",
        "Top-K equals a brute force in Python integers over plans, block sizes, budgets, threads "
        "and directions; contributions sum to points; batches of 1 and 10,000 give the same "
        "bytes; golden files hold.",
        tests=(
            "test_topk.py",
            "test_topk_property.py",
            "test_rank.py",
            "test_rules.py",
            "test_order.py",
            "test_kernels_golden.py",
            "test_scoring_golden.py",
            "test_generation.py",
            "test_results.py",
            "test_matcher.py",
            "test_matcher_requests.py",
        ),
    ),
    Claim(
        "bad_input",
        "100,000 generated bad rows, maps, policies and command lines: each a typed error or a "
        "quarantined row, no traceback, nothing lost.",
        tests=("test_bad_input.py", "test_fuzz_cli.py", "test_service_wire.py"),
    ),
    Claim(
        "adversary",
        "Each known trick gains at most what is stated; first names change no order.",
        tests=("test_adversary.py", "test_adversary_matcher.py"),
    ),
    Claim(
        "crash",
        "After kill -9 nothing that was acknowledged is lost; damage, full disks and read-only "
        "folders are named, and nothing is read half.",
        tests=("test_store_crash.py", "test_store_damage.py", "test_store_faults.py"),
    ),
    Claim(
        "store_lasts",
        "Epochs that are kept open unchanged; compaction, migration, publish, pull, backup and "
        "restore lose nothing when they are killed, and are never seen half done.",
        tests=(
            "test_store_epochs.py",
            "test_store_compaction.py",
            "test_store_migration.py",
            "test_store_model.py",
            "test_store_publish.py",
            "test_store_backup.py",
        ),
    ),
    Claim(
        "speed",
        "On two cores, exact filtered top-K keeps up with NumPy's bare sgemm and passes FAISS.",
        bench=("-m", "matchwright.engine.cli", "bench", "topk", "--json", "--full"),
    ),
    Claim(
        "store",
        "A million freelancers are opened in 3 s, and a change is visible within 1 s.",
        bench=("bench/bench_store.py", "--json"),
    ),
    Claim(
        "match",
        "A million freelancers are served in 4 GB, and one warm match costs at most 1.5 times "
        "what reading the corpus once costs.",
        bench=("bench/bench_match.py", "--json"),
    ),
    Claim(
        "runs",
        "However a run is done, and wherever it is killed, stopped or damaged, it ends with the "
        "digest of single answers.",
        tests=("test_runs.py", "test_runs_crash.py", "test_cli_run.py", "test_run_real.py"),
    ),
    Claim(
        "model_serving",
        "A served model that is killed, stopped, slow or wrong costs no call its deadline; it is "
        "asked again within 2 s of readiness, shared memory gives the same bits as the wire, and "
        "nothing grows over 100 restarts.",
        tests=(
            "test_breaker.py",
            "test_triton_calls.py",
            "test_triton_failures.py",
            "test_triton_memory.py",
            "test_triton_serve.py",
        ),
    ),
    Claim(
        "model_calls",
        "What a call of a model costs beside the server's own work, over the wire and through "
        "shared memory.",
        bench=("bench/bench_triton.py", "--json"),
    ),
    Claim(
        "encoder_served",
        "A served encoder agrees with ONNX Runtime in-process to 1e-5; unchanged text is never "
        "sent twice, and one generation never mixes two encoders.",
        tests=("test_encoder_triton.py", "test_served_encoder.py", "test_store_encoder.py"),
    ),
    Claim(
        "encoder_rate",
        "Bulk encoding through a served encoder reaches 90% of the rate of ONNX Runtime in this "
        "process; a second pass over an unchanged store sends nothing.",
        bench=("bench/bench_encoder.py", "--json"),
    ),
    Claim(
        "rerank_cost",
        "Reranking 200 candidates for each of 64 requests at once adds less than 2 times the "
        "model's own compute time, and rows come back at 80% of LightGBM's rate in this process.",
        bench=("bench/bench_rerank.py", "--json"),
    ),
    Claim(
        "reranked_pairs",
        "Contributions add up to the served score exactly for 100,000 reranked pairs; LightGBM and "
        "the served ranker agree to the bit in any batch size.",
        tests=("test_rerank_triton.py", "test_models_server.py", "test_trees.py"),
    ),
    Claim(
        "triton_faults",
        "Whatever happens to the model server, every request is answered before its deadline, "
        "degraded answers are marked, and the model is used again within 2 s of readiness.",
        tests=(
            "test_rerank.py",
            "test_rerank_triton.py",
            "test_service_models.py",
            "test_service_rerank.py",
            "test_service_texts.py",
            "test_together.py",
            "test_triton_failures.py",
        ),
    ),
    Claim(
        "model_switch",
        "Rankers and encoders are swapped and rolled back under load without a failed request; "
        "every answer names the version that made it, and generations never mix encoders.",
        tests=(
            "test_encoder_triton.py",
            "test_models_server.py",
            "test_service_models.py",
            "test_service_switch.py",
            "test_training_triton.py",
        ),
    ),
    Claim(
        "runs_reranked",
        "A run with a model has the answers of single requests whoever does its work, waits for "
        "its model, and never mixes reranked and other queries unless told so.",
        tests=(
            "test_run_rerank.py",
            "test_run_rerank_failures.py",
            "test_run_rerank_incremental.py",
            "test_run_rerank_verify.py",
        ),
    ),
    Claim(
        "training",
        "On simulated marketplaces with known truth and position bias, training with corrected "
        "positions recovers the true order better than training on raw clicks, and the gate "
        "refuses what is worse.",
        bench=("bench/bench_training.py", "--json"),
    ),
    Claim(
        "run_checks",
        "Every kind of damage to a run is found, a run is published whole or not at all, and two "
        "runs differ for the reasons that are told.",
        tests=("test_run_verify.py", "test_run_publish.py", "test_run_diff.py"),
    ),
    Claim(
        "incremental",
        "A run of what changed has the digest of a full run, over 50 random change sets, and its "
        "cost follows the change.",
        tests=("test_run_incremental.py",),
    ),
    Claim(
        "executors",
        "One process, several, and two and four processes of Ray give one digest, also when one of "
        "them is killed.",
        tests=("test_ray_executor.py", "test_run_processes.py"),
    ),
    Claim(
        "exposure",
        "The cap, the floor for newcomers and the groups of the exposure pass hold wherever they "
        "can, and its price is what it says.",
        tests=("test_exposure.py",),
    ),
    Claim(
        "erasure",
        "Of 100 erased people nothing can be decoded from any file of store, runs and quarantine.",
        tests=("test_erase.py",),
    ),
    Claim(
        "report",
        "The report opens without a network and without an error, is readable at 1280 and 390 "
        "pixels, and its numbers are those of the Parquet files.",
        tests=("test_run_report.py", "test_run_report_browser.py"),
    ),
    Claim(
        "nightly",
        "The examples of the nightly job are valid for their own tools, and the script does what "
        "each exit code asks for.",
        tests=("test_nightly.py",),
    ),
    Claim(
        "runs_scale",
        "A million freelancers for 10,000 jobs on two cores: within 4 GB, under 15 s outside the "
        "kernels per million result rows, and 1.8 times as fast as on one core.",
        bench=("bench/bench_run.py", "--json"),
    ),
    Claim(
        "quality",
        "How much of the float32 top 100 integer points keep, and how the ranking does on earlier "
        "views (which stand in for hires) and on titles, beside TF-IDF and popularity.",
        bench=("bench/quality.py", "--json"),
    ),
    Claim(
        "quality_models",
        "How a served encoder in the first phase and a trained ranker in the second do on views "
        "(which stand in for hires) of candidates that nothing learnt from, beside the embedded "
        "encoder, TF-IDF and popularity, with paired intervals.",
        bench=("bench/quality_models.py", "--json"),
    ),
    Claim(
        "demo",
        "The demo serves an encoder and a ranker where Triton can be started, goes on when that "
        "stops, gives the same bytes when it is back, and says why where it cannot be started.",
        tests=("test_demo.py",),
    ),
)
"""What ``make prove`` shows. The record ``gpu_check`` is written by ``make gpu-check``."""


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
