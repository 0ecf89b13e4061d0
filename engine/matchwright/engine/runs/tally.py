"""What an incremental run counts, and how run.json tells it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from matchwright.engine.matcher import OTHER
from matchwright.engine.runs.plan import Plan

MERGED = "merged"
NEW, CHANGED, USED_UP, UNUSABLE = "new", "changed", "slack_used_up", "base_unusable"
ERRORS, PAIRS = "errors", "pairs"
TALLIES = (MERGED, NEW, CHANGED, USED_UP, UNUSABLE, ERRORS, PAIRS)
"""The notes of a unit: queries that were merged, queries that were asked in full by reason, queries
that could not be asked, and pairs that were scored."""


def told(
    plan: Plan, records: Iterable[Mapping[str, Any]], about: Mapping[str, Any]
) -> dict[str, Any]:
    """What run.json says under "incremental".

    Args:
        records: of the plan's units; their notes are added up.
        about: ``Incremental.about``, of the process that finished the run.
    """
    tallies: dict[str, Counter[str]] = {kind: Counter() for kind in plan.options.kinds}
    for record in records:
        tallies[record["kind"]].update(record["notes"])
    kinds = {}
    for kind in plan.options.kinds:
        tally = tallies[kind]
        again = {name: tally[name] for name in (NEW, CHANGED, USED_UP, UNUSABLE)}
        kinds[kind] = {
            "merged": tally[MERGED],
            "recomputed": sum(again.values()),
            "because": again,
            "errors": tally[ERRORS],
            "pairs_scored": tally[PAIRS],
            "pairs_full": plan.counts[kind] * plan.counts[OTHER[kind]],
        }
    return {"base": plan.options.base, "kinds": kinds, **about}


def lines(incremental: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """(label, text) for a terminal: how much of the base was used, and why not all of it."""
    if incremental is None:
        return []
    found = [("since", f"run {incremental['base']}")]
    for kind, one in incremental["kinds"].items():
        because = ", ".join(f"{n:,} {name}" for name, n in one["because"].items() if n)
        text = f"{one['merged']:,} merged, {one['recomputed']:,} recomputed"
        found.append((f"{kind}s", f"{text} ({because})" if because else text))
        share = one["pairs_scored"] / one["pairs_full"] if one["pairs_full"] else 0.0
        found.append(("", f"{one['pairs_scored']:,} pairs scored, {share:.1%} of a full run's"))
    for kind, why in incremental.get("unusable", {}).items():
        found.append(("", f"{kind}s: {why}: everything is recomputed"))
    if "note" in incremental:
        found.append(("note", incremental["note"]))
    return found
