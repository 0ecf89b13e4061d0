"""CPU time of the exposure pass and of merging shards, on made-up rows; one core, no files.

    python bench/bench_exposure.py [--queries 20000]

Prints seconds for each million stored rows (exposure), and rows a second (merge).
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from matchwright.engine.policy_exposure import Exposure
from matchwright.engine.runs.block import Found
from matchwright.engine.runs.exposure_cap import QUERIES_AT_ONCE, Lists, admit
from matchwright.engine.runs.exposure_choice import People, choose
from matchwright.engine.runs.exposure_figures import Figures
from matchwright.engine.runs.shards import merge_found

K, SLACK, CAP = 100, 50, 80


def market(queries: int, people: int) -> tuple[Lists, People]:
    """Every query stores K + SLACK people; a tenth of them is five times as popular."""
    rng = np.random.default_rng(0)
    width = K + SLACK
    person = np.empty((queries, width), dtype=np.int32)
    for line in range(queries):
        drawn = rng.integers(0, people, 2 * width) // rng.choice([1, 10], 2 * width, p=[0.6, 0.4])
        person[line] = rng.permutation(np.unique(drawn))[:width]
    points = -np.sort(-rng.integers(0, 10**6, (queries, width)).astype(np.int32), axis=1)
    key_q = np.sort(rng.integers(0, 2**63, queries).astype(np.uint64))
    key_n = np.sort(rng.integers(0, 2**63, people).astype(np.uint64))
    group = np.where(rng.random(people) < 0.05, rng.integers(0, people // 50, people), -1)
    return Lists(key_q, person, points, key_n), People(
        rng.random(people) < 0.1, group.astype(np.int32)
    )


def exposure(lists: Lists, people: People, ask: Exposure, name: str) -> None:
    """Print what one setting takes."""
    begin = time.process_time()
    admission = admit(lists, people, K, ask)
    settled = time.process_time()
    figures = Figures(lists.q, people, K, ask)
    for low in range(0, lists.q, QUERIES_AT_ONCE):
        places = slice(low, min(low + QUERIES_AT_ONCE, lists.q))
        block = lists.block(places)
        at = np.arange(places.start, places.stop)
        choice = choose(block, admission.admitted(lists, at, block.person_qw), people, K, ask)
        figures.add(places, block, choice, np.ones(at.size))
    ended = time.process_time()
    cap = figures.to_dict(admission.rounds)["cap"]
    millions = lists.person_qw.size / 1e6
    print(
        f"{name}: cap {(settled - begin) / millions:.2f} s, choice and figures "
        f"{(ended - settled) / millions:.2f} s for a million stored rows; {cap['rounds']} rounds, "
        f"{cap['people_over_before']:,} people over the cap before, {cap['people_over_after']:,} "
        "after"
    )


def merging(shards: int, queries: int = 1_024) -> None:
    """Print what merging takes."""
    rng = np.random.default_rng(1)
    key_q = np.sort(rng.integers(0, 2**63, queries).astype(np.uint64))
    start, counts = np.arange(queries + 1) * K, np.zeros(queries, dtype=np.int64)
    parts = []
    for _ in range(shards):
        points = -np.sort(-rng.integers(0, 10**6, (queries, K)).astype(np.int32), axis=1)
        keys = rng.integers(0, 2**63, queries * K).astype(np.uint64)
        parts.append(Found(K, start, keys, points.reshape(-1), counts, counts, 0.0))
    begin = time.process_time()
    merge_found(key_q, parts)
    spent = time.process_time() - begin
    print(f"merge of {shards} shards: {queries * K * shards / spent / 1e6:.0f} M rows/s")


def main() -> None:
    """Run all."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else "")
    parser.add_argument("--queries", type=int, default=20_000)
    queries = parser.parse_args().queries
    lists, people = market(queries, queries * 4)
    settings = {
        "asking": ("job",), "slack_rows": SLACK, "newcomer_reviews_max": 0, "newcomer_days": 0,
        "newcomer_loss_permille": 50, "alike_max": 1,
    }  # fmt: skip
    cap = Exposure(shown_max=CAP, newcomers_within=0, alike_within=0, **settings)  # type: ignore[arg-type]
    everything = Exposure(shown_max=CAP, newcomers_within=10, alike_within=10, **settings)  # type: ignore[arg-type]
    exposure(lists, people, cap, "cap alone")
    exposure(lists, people, everything, "cap, newcomers and alike")
    for shards in (2, 4, 16):
        merging(shards)


if __name__ == "__main__":
    main()
