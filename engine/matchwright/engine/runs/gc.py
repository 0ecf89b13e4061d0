"""``run gc``: removes runs that nobody needs any more.

What goes: complete runs that are neither among the newest nor young, and runs that were abandoned,
that is, incomplete, unlocked and not written to for a while. What never goes: the published run,
the one that a rollback would publish, and the base of a run that is not complete yet.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from matchwright.engine.errors import StoreError, StoreLocked
from matchwright.engine.runs import lock
from matchwright.engine.runs.folder import PLAN, PUBLISHED, SUMMARY, Output, RunFolder
from matchwright.engine.runs.plan import RUN_ID_DIGITS
from matchwright.engine.runs.publish import publishing

KEEP = 7
OLDER_THAN_DAYS = 30
ABANDONED_DAYS = 2
"""An incomplete run that was not written to for so long is abandoned: a weekend to resume it."""

_RUN_ID = re.compile(rf"[0-9a-f]{{{RUN_ID_DIGITS}}}")


@dataclass(frozen=True, slots=True)
class Fate:
    """What becomes of one run.

    Attributes:
        run_id: of the run.
        state: "complete", "incomplete" or "damaged".
        since: when it ended, or was last written to; UTC, None when nobody knows.
        goes: whether it is removed.
        why: the reason, either way.
        bytes: of its files.
    """

    run_id: str
    state: str
    since: datetime | None
    goes: bool
    why: str
    bytes: int

    def to_dict(self) -> dict[str, Any]:
        return {
            "run": self.run_id,
            "state": self.state,
            "since": None if self.since is None else self.since.isoformat(timespec="seconds"),
            "goes": self.goes,
            "why": self.why,
            "bytes": self.bytes,
        }


@dataclass(frozen=True, slots=True)
class _Seen:
    """A run as it was found."""

    folder: RunFolder
    state: str
    since: datetime | None
    base: str | None
    bytes: int


def collect(
    output: Output,
    *,
    now: datetime,
    keep: int = KEEP,
    older_than_days: float = OLDER_THAN_DAYS,
    dry_run: bool = True,
) -> list[Fate]:
    """Remove what is not needed; newest runs first in the answer.

    Args:
        output: where the runs are.
        now: UTC, with its zone.
        keep: complete runs that stay, whatever their age: the newest ones.
        older_than_days: complete runs that are younger stay as well.
        dry_run: only say what would go.

    Raises:
        StoreLocked: another process is publishing or collecting here.
    """
    with publishing(output):
        seen = [_look(output.folder(run_id)) for run_id in output.runs()]
        seen.sort(key=lambda one: one.since or now, reverse=True)
        kept = _kept_by_name(output, seen)
        fates = []
        complete = 0
        for one in seen:
            complete += one.state == "complete"
            why = kept.get(one.folder.run_id)
            goes, told = _judge(one, complete, now, keep, older_than_days)
            if why is not None:
                goes, told = False, why
            if goes and not dry_run:
                goes, told = _remove(one.folder, told)
            fates.append(Fate(one.folder.run_id, one.state, one.since, goes, told, one.bytes))
        if not dry_run:
            _remove_leftovers(output)
        return fates


def _look(folder: RunFolder) -> _Seen:
    """A run's state, age and size, without reading its units."""
    newest, size = _newest_file(folder)
    try:
        base = folder.plan().options.base
        summary = folder.summary()
    except StoreError:
        return _Seen(folder, "damaged", newest, None, size)
    if summary is None:
        return _Seen(folder, "incomplete", newest, base, size)
    return _Seen(folder, "complete", _time(summary.get("ended")) or newest, base, size)


def _newest_file(folder: RunFolder) -> tuple[datetime | None, int]:
    """(when a file of the run was last written, bytes of all)."""
    newest: datetime | None = None
    size = 0
    folder.fs.invalidate_cache()
    for path, info in folder.fs.find(folder.root, detail=True).items():
        size += int(info.get("size") or 0)
        if path.rsplit("/", 1)[-1] == lock.FILE:
            continue
        with contextlib.suppress(NotImplementedError, FileNotFoundError):
            when = folder.fs.modified(path)
            when = when.astimezone() if when.tzinfo is None else when
            newest = when if newest is None else max(newest, when)
    return newest, size


def _time(told: object) -> datetime | None:
    """A time out of run.json, with its zone."""
    try:
        when = datetime.fromisoformat(str(told))
    except ValueError:
        return None
    return when if when.tzinfo is not None else None


def _kept_by_name(output: Output, seen: Sequence[_Seen]) -> dict[str, str]:
    """Runs that stay whatever their age, and why."""
    kept: dict[str, str] = {}
    for one in seen:
        if one.state == "incomplete" and one.base is not None:
            kept[one.base] = f"base of {one.folder.run_id}, which is not complete"
    published = output.published()
    if published is not None:
        for entry in list(published.get("history") or ())[:1]:
            kept[str(entry["run_id"])] = "published before: a rollback would publish it"
        kept[str(published["run_id"])] = "published"
    return kept


def _judge(
    one: _Seen, nth: int, now: datetime, keep: int, older_than_days: float
) -> tuple[bool, str]:
    """(goes, why) of a run that nothing keeps by name; ``nth`` counts complete ones, newest 1."""
    if one.since is None:
        return False, "nobody knows how old it is"
    age = (now - one.since) / timedelta(days=1)
    if one.state == "complete":
        if nth <= keep:
            return False, f"among the newest {keep}"
        if age < older_than_days:
            return False, f"younger than {older_than_days:g} days"
        return True, f"older than {older_than_days:g} days, and {nth - 1} newer ones are here"
    if age < ABANDONED_DAYS:
        return False, f"{one.state}, and written to within {ABANDONED_DAYS} days"
    return True, f"{one.state}, and not written to for {age:.0f} days"


def _remove(folder: RunFolder, why: str) -> tuple[bool, str]:
    """Remove a run, unless somebody is writing it.

    run.json goes first: killed halfway, it is an incomplete run and not a run with holes.
    plan.json goes last, so that the rest is found again.
    """
    try:
        with folder.lock():
            folder.remove(SUMMARY)
            for name in sorted(folder.list()):
                if name not in (PLAN, lock.FILE):
                    folder.remove(name)
            folder.remove(PLAN)
    except StoreLocked:
        return False, "somebody is writing it"
    _remove_empty(folder)
    return True, why


def _remove_empty(folder: RunFolder) -> None:
    """The folders of a run whose files are gone; what somebody has begun meanwhile stays."""
    if folder.local is None or folder.exists(PLAN):
        return
    folder.remove(lock.FILE)
    root = Path(folder.root)
    inner = [path for path in root.rglob("*") if path.is_dir()]
    for path in [*sorted(inner, reverse=True), root]:
        with contextlib.suppress(OSError):
            path.rmdir()


def _remove_leftovers(output: Output) -> None:
    """What killed publishers and collectors left: half-written files, folders without a plan."""
    runs = set(output.runs())
    for name in output.names():
        if name.startswith(PUBLISHED) and name.endswith(".part"):
            output.remove(name)
        elif _RUN_ID.fullmatch(name) and name not in runs:
            folder = output.folder(name)
            with contextlib.suppress(StoreLocked):  # somebody is beginning it
                with folder.lock():
                    empty = set(folder.list()) <= {lock.FILE}
                if empty:
                    _remove_empty(folder)
