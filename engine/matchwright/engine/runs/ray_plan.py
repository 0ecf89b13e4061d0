"""What a run on several devices takes: bytes, operations, seconds. Predictions, not measurements.

``docs/scale-out.md`` explains the figures and works a large case through with them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from matchwright.engine.matcher import OTHER
from matchwright.engine.runs.plan import Plan, block_size
from matchwright.kernels.compile import limit
from matchwright.kernels.resident import ROW_EXTRA_BYTES

INT8_OPS_PER_S = 1.2e15
"""One H100, int8 tensor cores, assumed: 60% of the peak. A pair takes 2 D operations."""
SCORES_PER_S = 0.36e12
"""One H100, the plain path that writes float32 scores and reads them once, assumed."""
NETWORK_BYTES_PER_S = 3.1e9
"""25 Gbit/s, assumed."""
RULE_ROWS_PER_S = 1.1e9
"""One core: rows of an indexed segment under one rule set, from 0.45 ms for 500,000."""
MERGE_ROWS_PER_S = 8e6
"""One core of the driver: rows of all shards that are merged; with 16 of them, the slowest."""
QUERY_SECONDS = 0.5e-3
"""One core (an actor, or the driver, uses one): to prepare a query, to put its answer together."""
ROW_BACK_BYTES, ROW_ANSWER_BYTES = 12, 60
"""One row of a shard's answer (key, points), and of a whole answer with its id."""
QUERY_RULE_BYTES = 500
"""One query's rules on the way to an actor, about."""
HOST_COLUMN_BYTES = 500
"""One row's columns, sets and indexes in host memory beside its vector, about."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """One direction of a run.

    Attributes:
        queries, rows: who asks, and who is searched.
        d: dimensions.
        depth: rows that are kept of each query.
        unit: queries of a unit.
        rule_sets: distinct sets of rules among the queries; at most as many as queries.
    """

    queries: int
    rows: int
    d: int
    depth: int
    unit: int
    rule_sets: int


def shard_plan(load: Load, workers: int, shards: int, cores: int = 16) -> dict[str, Any]:
    """Figures of one direction on ``workers`` devices that form teams of ``shards``.

    Args:
        load: the direction.
        workers: actors, one device each.
        shards: actors that share the rows; it divides the workers.
        cores: of each actor's host, for rules.
    """
    teams = workers // shards
    rows, queries = -(-load.rows // shards), -(-load.queries // teams)
    width = load.d + -load.d % limit("ALIGN")
    pairs = rows * queries
    sent = load.d * 2 + 8 + QUERY_RULE_BYTES if shards > 1 else 0
    back = load.depth * (ROW_BACK_BYTES * shards if shards > 1 else ROW_ANSWER_BYTES)
    traffic = load.queries * (sent * shards + back)
    rule_sets = min(load.rule_sets, queries)
    prepared = load.queries * QUERY_SECONDS
    return {
        "workers": workers,
        "shards": shards,
        "teams": teams,
        "rows_per_device": rows,
        "queries_per_device": queries,
        "device_bytes": rows * (width + ROW_EXTRA_BYTES),
        "host_bytes": rows * (load.d + 8 + HOST_COLUMN_BYTES),
        "int8_operations": 2 * pairs * load.d,
        "bytes_per_unit_out": load.unit * sent * shards,
        "bytes_per_unit_back": load.unit * back,
        "network_bytes": traffic,
        "seconds": {
            "product_sieve": 2 * pairs * load.d / INT8_OPS_PER_S,
            "product_scores": pairs / SCORES_PER_S,
            "rules": rule_sets * rows / RULE_ROWS_PER_S / cores,
            "network": traffic / NETWORK_BYTES_PER_S,
            "merge": load.queries * load.depth * shards / MERGE_ROWS_PER_S if shards > 1 else 0.0,
            "prepare_and_answer": prepared if shards > 1 else prepared / teams,
        },
    }


def plan_figures(plan: Plan, d: int, workers: int, shards: int | None) -> dict[str, Any]:
    """``shard_plan`` of each direction of a plan; every query has rules of its own at worst."""
    depth = plan.options.k + plan.options.slack
    found: dict[str, Any] = {}
    for kind in plan.options.kinds:
        rows = plan.counts[OTHER[kind]]
        units = plan.units_of(kind)
        load = Load(
            queries=plan.counts[kind],
            rows=rows,
            d=d,
            depth=min(depth, rows),
            unit=units[0].queries if units else block_size(rows),
            rule_sets=plan.counts[kind],
        )
        found[kind] = shard_plan(load, workers, shards or workers)
    return found


def lines_of(figures: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The figures for a terminal."""
    lines = []
    for kind, one in figures.items():
        spent = one["seconds"]
        lines += [
            (
                f"{kind}s on Ray",
                f"{one['teams']} x {one['shards']} actors, each {one['rows_per_device']:,} rows "
                f"and {one['queries_per_device']:,} queries",
            ),
            (
                "each actor",
                f"{one['device_bytes'] / 1e6:,.1f} MB on a device, {one['host_bytes'] / 1e6:,.1f} "
                f"MB mapped by its host, {one['int8_operations']:.3g} operations",
            ),
            (
                "network",
                f"{one['network_bytes'] / 1e6:,.1f} MB; of a unit "
                f"{one['bytes_per_unit_out'] / 1e6:,.2f} MB out, "
                f"{one['bytes_per_unit_back'] / 1e6:,.2f} MB back",
            ),
            (
                "on H100s",
                f"predicted: product {spent['product_sieve']:.3g} s, rules {spent['rules']:.3g} s, "
                f"merge {spent['merge']:.3g} s, network {spent['network']:.3g} s, prepare "
                f"{spent['prepare_and_answer']:.3g} s",
            ),
        ]
    return lines


__all__ = ["Load", "lines_of", "plan_figures", "shard_plan"]
