"""What rerank features cost: each group alone, candidates seen before or not, alone and in blocks.

    .venv/bin/python bench/bench_rerank.py --json                    20,000 of each kind
    .venv/bin/python bench/bench_rerank.py --rows 3000 --repeats 5   a quick look

Candidates are the first phase's own first M of each query, as the second phase gets them. "seen"
queries have all their candidates' facts and query vectors kept, "new" ones none. Repeats of the
groups are interleaved; figures are medians in milliseconds of one core.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from matchwright.engine import synthetic
from matchwright.engine.matcher import OTHER, Matcher
from matchwright.engine.policy import Policy
from matchwright.engine.prepare import Prepared
from matchwright.engine.records import KINDS, Kind
from matchwright.engine.request import Request
from matchwright.engine.rerank.features import FEATURES
from matchwright.engine.rerank.features_pairs import FeatureMaker
from matchwright.engine.store import Snapshot, Store
from matchwright.kernels.ops import get_ops

GROUPS = tuple(dict.fromkeys(feature.group for feature in FEATURES))


def queries_of(
    snapshot: Snapshot, matcher: Matcher, kind: Kind, n: int, m: int
) -> tuple[list[Prepared], list[Any]]:
    """(N queries with M candidates each, their rows)."""
    prepared, rows = [], []
    for name in snapshot.ids_of(kind, np.arange(snapshot.corpus(kind).n)):
        request = Request(kind=kind, id=name, k=m, as_of=synthetic.AS_OF, contributions=False)
        result = matcher.match(request)
        if result.returned == m:
            prepared.append(matcher.prepare_one(snapshot, request))
            rows.append(snapshot.rows_of(OTHER[kind], result.ids))
        if len(prepared) == n:
            break
    return prepared, rows


def milliseconds(work: Callable[[], object]) -> float:
    """How long it takes, once."""
    began = time.perf_counter()
    work()
    return 1e3 * (time.perf_counter() - began)


def measure(
    snapshot: Snapshot, prepared: list[Prepared], rows: list[Any], repeats: int
) -> dict[str, float]:
    """Medians in milliseconds, each for one query."""
    maker = FeatureMaker()
    maker.make(snapshot, prepared, rows)
    told: dict[str, list[float]] = {}

    def note(name: str, per: int, work: Callable[[], object]) -> None:
        told.setdefault(name, []).append(milliseconds(work) / per)

    for at in range(repeats):
        one, own = [prepared[at % len(prepared)]], [rows[at % len(rows)]]
        note("all, seen, alone", 1, partial(maker.make, snapshot, one, own))
        for group in GROUPS:
            names = [feature.name for feature in FEATURES if feature.group == group]
            note(group, 1, partial(maker.make, snapshot, one, own, names=names))
        note("all, new, alone", 1, partial(FeatureMaker().make, snapshot, one, own))
        note("all, seen, in a block", len(rows), partial(maker.make, snapshot, prepared, rows))
    return {name: round(statistics.median(times), 3) for name, times in told.items()}


def main() -> None:
    """Build a store, ask, print."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--rows", type=int, default=20_000, help="of each kind")
    arguments.add_argument("--candidates", type=int, default=200)
    arguments.add_argument("--block", type=int, default=64, help="queries of a block")
    arguments.add_argument("--repeats", type=int, default=40)
    arguments.add_argument("--json", action="store_true")
    given = arguments.parse_args()
    figures: dict[str, Any] = {"candidates": given.candidates, "block": given.block}
    with tempfile.TemporaryDirectory() as folder:
        with Store.open(Path(folder) / "store", mode="w", create=True) as store:
            for kind in KINDS:
                store.upsert(kind, synthetic.frame(kind, given.rows, seed=1))
            store.refit(seed=1, sample=given.rows, as_of=synthetic.AS_OF)
        with Store.open(Path(folder) / "store") as store:
            snapshot = store.snapshot()
            matcher = Matcher(snapshot, get_ops("cpu", threads=1), Policy.load())
            for kind in KINDS:
                asked = queries_of(snapshot, matcher, kind, given.block, given.candidates)
                if not asked[0]:
                    raise SystemExit(f"no {kind} has {given.candidates} eligible; give more --rows")
                figures[kind] = {"queries": len(asked[0])}
                figures[kind] |= measure(snapshot, *asked, given.repeats)
    if given.json:
        print(json.dumps(figures, indent=2))
        return
    for kind in KINDS:
        print(f"{kind} asks, {given.candidates} candidates, milliseconds a query")
        for name, value in figures[kind].items():
            print(f"  {name:24} {value:>10}")


if __name__ == "__main__":
    main()
