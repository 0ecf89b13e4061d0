"""A unit's files: written in an order that a kill cannot hurt, and looked at before they count.

part, slack and queries are written first, each atomically; ``unit-00000.json`` last. It holds the
hashes of the others, so a unit counts as done only when every file is there and whole.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np

from matchwright.engine.errors import MatchwrightError, NotFound, StoreDamaged
from matchwright.engine.records import Kind
from matchwright.engine.runs.block import ERROR, FULL, BlockAnswer
from matchwright.engine.runs.folder import FILE_FORMAT, WHATS, RunFolder, sha256
from matchwright.engine.runs.frames import part_frame, queries_frame, slack_frame
from matchwright.engine.runs.plan import Plan, Unit
from matchwright.engine.runs.rerank_stage import marked

COUNTS = ("queries", "full", "few", "none", "errors", "rows")
"""What is counted of a unit and of a run; full + few + none + errors = queries."""


def now() -> str:
    """UTC, ISO 8601, whole seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def write_unit(
    folder: RunFolder, unit: Unit, answer: BlockAnswer, *, slack: bool, wall: float = 0.0
) -> dict[str, Any]:
    """Write all of a unit's files.

    Args:
        slack: whether there is a slack file.
        wall: seconds from the unit before to this one.

    Returns:
        The unit's record, which is in its ``unit-00000.json`` too.
    """
    started = time.perf_counter()
    frames = {"part": part_frame(answer), "queries": queries_frame(answer)}
    if slack:
        frames["slack"] = slack_frame(answer)
    written = {
        what: folder.write_frame(unit, what, frames[what]) for what in WHATS if what in frames
    }
    seconds = {**answer.seconds, "write": time.perf_counter() - started, "total": wall}
    record = {
        "format": FILE_FORMAT,
        "kind": unit.kind,
        "number": unit.number,
        "key": unit.key,
        **counts_of(answer),
        **marked(answer),
        "eligible": _known_sum(answer.eligible_q),
        "sha256": {what: sha256(data) for what, data in written.items()},
        "bytes": {what: len(data) for what, data in written.items()},
        "seconds": {name: round(spent, 6) for name, spent in seconds.items()},
        "notes": dict(answer.notes),
        "ended": now(),
    }
    write_record(folder, unit, record)
    return record


def write_record(folder: RunFolder, unit: Unit, record: Mapping[str, Any]) -> None:
    """Write ``unit-00000.json``: from now on the unit is done."""
    folder.write(unit.file("unit"), json.dumps(record, indent=1).encode() + b"\n")


def counts_of(answer: BlockAnswer) -> dict[str, int]:
    """The ``COUNTS`` of a block."""
    codes, returned = answer.shortfall_q, answer.returned_q
    short = (codes != FULL) & (codes != ERROR)
    return {
        "queries": answer.q,
        "full": int(np.count_nonzero(codes == FULL)),
        "few": int(np.count_nonzero(short & (returned > 0))),
        "none": int(np.count_nonzero(short & (returned == 0))),
        "errors": int(np.count_nonzero(codes == ERROR)),
        "rows": int(returned.sum()),
    }


def _known_sum(eligible_q: Any) -> int | None:
    """Eligible pairs in all; None when they were not counted."""
    return None if (eligible_q < 0).any() else int(eligible_q.sum())


def sweep(folder: RunFolder, plan: Plan) -> None:
    """Remove what a killed writer was in the middle of; the caller holds the lock."""
    for where in ("", *(f"for={kind}" for kind in plan.options.kinds)):
        for name in folder.names(where):
            if name.endswith(".part"):
                folder.remove(f"{where}/{name}" if where else name)


@dataclass(frozen=True)
class Looked:
    """What a run's folder holds.

    Attributes:
        done: records of the units that are whole.
        damaged: why each unit that is there must be done again.
    """

    done: dict[Unit, dict[str, Any]] = field(default_factory=dict)
    damaged: dict[Unit, str] = field(default_factory=dict)


def look(folder: RunFolder, plan: Plan) -> Looked:
    """Read every file of every unit that says it is done, and compare the hashes."""
    found = Looked()
    there: dict[Kind, set[str]] = {
        kind: set(folder.names(f"for={kind}")) for kind in plan.options.kinds
    }
    for unit in plan.units:
        if unit.file("unit").rsplit("/", 1)[-1] not in there[unit.kind]:
            continue
        try:
            found.done[unit] = checked_record(folder, plan, unit)
        except MatchwrightError as error:
            found.damaged[unit] = str(error)
    return found


def checked_record(folder: RunFolder, plan: Plan, unit: Unit) -> dict[str, Any]:
    """A unit's record, after its files were read and compared.

    Raises:
        NotFound: a file is missing.
        StoreDamaged: a file is not what was written, or belongs to another unit.
    """
    where = folder.url_of(unit.file("unit"))
    record = folder.read_json(unit.file("unit"))
    if not isinstance(record, dict) or record.get("key") != unit.key:
        raise StoreDamaged(f"{where}: belongs to another unit or run", file=where)
    hashes = record.get("sha256")
    wanted = [what for what in WHATS if what != "slack" or plan.options.slack]
    if not isinstance(hashes, dict) or not set(wanted) <= hashes.keys():
        raise StoreDamaged(f"{where}: does not name its files", file=where)
    for what in wanted:
        name = unit.file(what)
        try:
            data = folder.read(name)
        except NotFound:
            raise NotFound(f"{folder.url_of(name)}: is missing", file=name) from None
        if sha256(data) != hashes[what]:
            raise StoreDamaged(
                f"{folder.url_of(name)}: is not what was written (its SHA-256 differs)", file=name
            )
    return record


def totals(records: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """The ``COUNTS`` of several units together."""
    sums = dict.fromkeys(COUNTS, 0)
    for record in records:
        for name in COUNTS:
            sums[name] += int(record[name])
    return sums


def seconds_of(moment: str) -> int:
    """Seconds since 1970 of what ``now`` gave."""
    return int(datetime.fromisoformat(moment).timestamp())
