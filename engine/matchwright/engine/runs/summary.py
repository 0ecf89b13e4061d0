"""The end of a run: fingerprints, digest, metrics, and run.json as the last file."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import numpy as np
import polars as pl

from matchwright.engine.matcher import OTHER
from matchwright.engine.prepare import SnapshotLike
from matchwright.engine.records import Kind
from matchwright.engine.runs import rerank_stage, tally, units
from matchwright.engine.runs.digest import run_digest
from matchwright.engine.runs.fingerprint import prints_of, to_parquet
from matchwright.engine.runs.folder import FILE_FORMAT, METRICS, SUMMARY, RunFolder
from matchwright.engine.runs.plan import Plan, Unit

STAGES = ("prepare", "kernel", "output", "write", "total")
"""Where the seconds of a run go; stages overlap, so they add up to more than the total."""
SECOND_STAGES = ("features", "model")
"""Those of a run with a second phase, besides."""

Records = Mapping[Unit, Mapping[str, Any]]


def finish(
    plan: Plan,
    folder: RunFolder,
    records: Records,
    about: Mapping[str, Any],
    snapshot: SnapshotLike | None,
    *,
    moved: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write what belongs to a whole run; run.json last.

    Args:
        records: of every unit.
        about: what did the work.
        snapshot: the epoch, for fingerprints of its rows where there is slack.
        moved: figures of the exposure pass.
    """
    began = time.perf_counter()
    if plan.options.slack and snapshot is not None:
        for kind in plan.options.kinds:
            write_prints(folder, OTHER[kind], snapshot)
    digest = run_digest(folder)
    spent = time.perf_counter() - began
    summary = summarise(plan, records, about, digest, spent, moved or {})
    folder.write(METRICS, metrics(summary).encode())
    folder.write(SUMMARY, json.dumps(summary, indent=1).encode() + b"\n")
    return summary


def write_prints(folder: RunFolder, kind: Kind, snapshot: SnapshotLike) -> None:
    """Fingerprints of every row that a run's queries could see."""
    name = f"corpus-{kind}.parquet"
    if not folder.exists(name):
        folder.write(name, to_parquet(prints_of(snapshot.corpus(kind))))


def summarise(
    plan: Plan,
    records: Records,
    about: Mapping[str, Any],
    digest: str,
    finishing: float,
    moved: Mapping[str, Any],
) -> dict[str, Any]:
    """What run.json holds."""
    ordered = [records[unit] for unit in plan.units]
    counts = {
        kind: units.totals(record for record in ordered if record["kind"] == kind)
        for kind in plan.options.kinds
    }
    seconds = {
        stage: round(sum(float(record["seconds"].get(stage, 0.0)) for record in ordered), 3)
        for stage in (*STAGES, *(SECOND_STAGES if plan.ranker is not None else ()))
    }
    seconds["finish"] = round(finishing, 3)
    seconds["total"] = round(seconds["total"] + finishing, 3)
    ended = units.now()
    limits = {name: value for name, value in about.items() if name != "incremental"}
    return {
        "format": FILE_FORMAT,
        "run_id": plan.run_id,
        "state": "complete",
        "determinants": dict(plan.determinants),
        "started": plan.created or ended,
        "ended": ended,
        "counts": counts,
        "corpus": {OTHER[kind]: plan.counts[OTHER[kind]] for kind in plan.options.kinds},
        "seconds": seconds,
        "rates": rates(plan, counts, seconds),
        "limits": {"k": plan.options.k, "depth": plan.options.k + plan.options.slack, **limits},
        "versions": versions(),
        "device": about.get("device", ""),
        "digest": digest,
        "units": [{key: record[key] for key in _KEPT if key in record} for record in ordered],
        "redacted": [],
        "moved": dict(moved),
        **rerank_stage.told(plan, ordered),
        "incremental": _incremental(plan, ordered, about),
    }


_KEPT = (
    *units.COUNTS, "degraded", "kind", "number", "key", "eligible", "sha256", "bytes", "seconds",
    "ended",
)  # fmt: skip


def _incremental(
    plan: Plan, ordered: list[Mapping[str, Any]], about: Mapping[str, Any]
) -> dict[str, Any] | None:
    """What the base was good for, by kind and reason (``tally``); None for a full run."""
    if plan.options.base is None:
        return None
    return tally.told(plan, ordered, about.get("incremental") or {})


def rates(
    plan: Plan, counts: Mapping[Kind, Mapping[str, int]], seconds: Mapping[str, float]
) -> dict[str, float]:
    """Per second of the total; pairs per second in the kernels."""
    queries = sum(one["queries"] for one in counts.values())
    rows = sum(one["rows"] for one in counts.values())
    pairs = sum(one["queries"] * plan.counts[OTHER[kind]] for kind, one in counts.items())
    total, kernel = max(seconds["total"], 1e-9), max(seconds["kernel"], 1e-9)
    return {
        "queries_per_s": round(queries / total, 3),
        "rows_per_s": round(rows / total, 3),
        "pairs_per_s": round(pairs / kernel, 3),
    }


def versions() -> dict[str, str]:
    """What a run was made with."""
    return {
        "matchwright": metadata.version("matchwright"),
        "numpy": np.__version__,
        "polars": pl.__version__,
        "python": platform.python_version(),
    }


def metrics(summary: Mapping[str, Any]) -> str:
    """The figures of a run as a node exporter's text file collector reads them."""
    lines: list[str] = []

    def family(name: str, what: str, samples: list[tuple[dict[str, str], Any]]) -> None:
        lines.append(f"# HELP matchwright_run_{name} {what}")
        lines.append(f"# TYPE matchwright_run_{name} gauge")
        for labels, value in samples:
            shown = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
            lines.append(f"matchwright_run_{name}{{{shown}}} {value}")

    run = {"run": summary["run_id"]}
    names = {key: str(summary["determinants"][key]) for key in ("epoch", "generation", "policy")}
    family("info", "The last complete run.", [({**run, **names, "digest": summary["digest"]}, 1)])
    ended = units.seconds_of(summary["ended"])
    family("ended_timestamp_seconds", "When it ended.", [(run, ended)])
    family(
        "queries",
        "Queries by outcome.",
        [
            ({**run, "for": kind, "outcome": outcome}, counts[outcome])
            for kind, counts in summary["counts"].items()
            for outcome in ("full", "few", "none", "errors")
        ],
    )
    if "degraded" in summary:
        family("degraded", "Queries whose model was not asked.", [(run, summary["degraded"])])
    rows = [({**run, "for": kind}, one["rows"]) for kind, one in summary["counts"].items()]
    family("rows", "Result rows.", rows)
    spent = [({**run, "stage": stage}, value) for stage, value in summary["seconds"].items()]
    family("seconds", "Seconds by stage; stages overlap.", spent)
    rate = [({**run, "of": name}, value) for name, value in summary["rates"].items()]
    family("rate", "Rates per second.", rate)
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
