"""Takes people out of runs that are written: their rows go, what is left stays byte for byte.

A row of an erased freelancer disappears from the matches of every job, and so does their own
query. Ranks, ``returned`` and the other facts of a query stay what they were, so a gap shows that
somebody was there; ``run.json`` says in which units (``redacted``), keeps the digest that the run
had (``digest``) and adds the one that it has now (``digest_redacted``).

Killed at any moment, doing it again completes it: run.json names the units before a file of theirs
is touched, and says ``done`` when all of them are.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl

from matchwright.engine.errors import NotFound, StoreError, StoreLocked
from matchwright.engine.matcher import OTHER
from matchwright.engine.records import KINDS, Kind
from matchwright.engine.runs.digest import unit_bytes
from matchwright.engine.runs.folder import (
    PLAN,
    PUBLISHED,
    SUMMARY,
    WHATS,
    Output,
    RunFolder,
    encoded,
    sha256,
)
from matchwright.engine.runs.plan import RUN_ID_DIGITS, Plan, Unit
from matchwright.kernels.types import UInt64

REPORT = "report.html"
_OURS = re.compile(
    r"(plan\.json|run\.json|report\.html|metrics\.prom|LOCK|corpus-(job|freelancer)\.parquet"
    r"|for=(job|freelancer)/(part|slack|queries|unit)-\d+\.(parquet|json))(\.[0-9a-f]+\.part)?"
)
"""Names of a run's files, parts that a killed writer left included."""
_RUN_ID = re.compile(rf"[0-9a-f]{{{RUN_ID_DIGITS}}}")


@dataclass(frozen=True, slots=True, eq=False)
class Gone:
    """Who was erased from a store, and when.

    Attributes:
        store: its uuid; runs of other stores are left alone, since keys are salted by store.
        keys: kind -> uint64 (N,).
        epochs: kind -> int64 (N,): the epoch from which on each key is somebody else.
    """

    store: str
    keys: Mapping[Kind, UInt64]
    epochs: Mapping[Kind, Any]

    def before(self, epoch: int) -> Mapping[Kind, UInt64]:
        """The keys that an earlier epoch's files must not hold."""
        return {kind: self.keys[kind][self.epochs[kind] > epoch] for kind in KINDS}


@dataclass(frozen=True, slots=True)
class Redaction:
    """What became of one run.

    Attributes:
        run: its URL.
        outcome: "redacted", "untouched", "removed" (it was not complete, and cannot become so) or
            "not reached".
        rows, queries: how many were taken out.
        why: for what was not reached, or removed.
        strange: files in the run's folder that are no run's, and were left as they are.
    """

    run: str
    outcome: str
    rows: int = 0
    queries: int = 0
    why: str = ""
    strange: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {name: getattr(self, name) for name in self.__slots__}


def redact_output(url: str, gone: Gone, when: str, run: str | None = None) -> list[Redaction]:
    """Take people out of every run of an output, or of one.

    Args:
        url: a path or URL that holds runs.
        gone: who.
        when: now, UTC, ISO 8601, for run.json.
        run: the id of the only run to look at.
    """
    output = Output(url)
    names = [name for name in _run_folders(output) if run in (None, name)]
    done = [_guarded(output.folder(name), gone, when) for name in names]
    for name in output.names():
        if re.fullmatch(rf"{re.escape(PUBLISHED)}\.[0-9a-f]+\.part", name):
            output.remove(name)
    return done


def _run_folders(output: Output) -> list[str]:
    """Runs, and what is left of runs whose plan is gone."""
    names = {name.split("/", 1)[0] for name in sorted(output.list()) if "/" in name}
    return sorted(set(output.runs()) | {name for name in names if _RUN_ID.fullmatch(name)})


def _guarded(folder: RunFolder, gone: Gone, when: str) -> Redaction:
    try:
        with folder.lock():
            return redact(folder, gone, when)
    except StoreLocked as error:
        return Redaction(folder.url, "not reached", why=f"{error}; erase again when it has ended")
    except (StoreError, NotFound) as error:
        return Redaction(folder.url, "not reached", why=str(error))


def redact(folder: RunFolder, gone: Gone, when: str) -> Redaction:
    """Take people out of one run, whose lock the caller holds.

    Raises:
        StoreDamaged, StoreFormat: a file that cannot be read; nothing says then that it is done.
    """
    names = sorted(folder.list())
    strange = tuple(name for name in names if not _OURS.fullmatch(name))
    if PLAN not in names:
        if strange:
            return Redaction(folder.url, "untouched", why="it is no run")
        folder.remove_all()
        return Redaction(folder.url, "removed", why="it has no plan")
    plan = folder.plan()
    if plan.determinants["store"] != gone.store:
        return Redaction(folder.url, "untouched", why="it is of another store")
    keys = gone.before(plan.epoch_number)
    if not any(keys[kind].size for kind in KINDS):
        return Redaction(folder.url, "untouched")
    for name in names:
        if name.endswith(".part") and name not in strange:
            folder.remove(name)
    summary = folder.summary()
    if summary is None:
        # Its epoch no longer holds what its plan names, so nobody can go on with it.
        folder.remove_all()
        return Redaction(folder.url, "removed", why="it was not complete; start it again")
    return replace(_Redactor(folder, plan, dict(summary), keys, when).run(), strange=strange)


def digest_of_rest(folder: RunFolder) -> str:
    """The digest of what is left: each query's ``returned`` is the rows that it still has."""
    state = hashlib.sha256()
    for unit in folder.plan().units:
        part, queries = folder.part(unit), folder.queries(unit)
        rows = part.group_by("query_key").agg(left=pl.len().cast(pl.Int32))
        counted = queries.join(rows, on="query_key", how="left", maintain_order="left")
        counted = counted.with_columns(returned=pl.col("left").fill_null(0))
        state.update(unit_bytes(part, counted, folder.url_of(unit.file("part"))))
    return state.hexdigest()


class _Redactor:
    def __init__(
        self,
        folder: RunFolder,
        plan: Plan,
        summary: dict[str, Any],
        keys: Mapping[Kind, UInt64],
        when: str,
    ) -> None:
        self._folder = folder
        self._plan = plan
        self._summary = summary
        self._keys = keys
        self._when = when

    def run(self) -> Redaction:
        log: list[dict[str, Any]] = list(self._summary.get("redacted", ()))
        open_ = [entry for entry in log if not entry["done"]]
        found = [entry for unit in self._plan.units if (entry := self._look(unit))]
        corpora = [kind for kind in KINDS if self._corpus(kind, write=False)]
        if not (open_ or found or corpora):
            return Redaction(self._folder.url, "untouched")
        log += found
        self._put({"redacted": log})
        self._folder.remove(REPORT)
        for kind in corpora:
            self._corpus(kind, write=True)
        touched = {_named(entry["unit"]) for entry in open_ + found}
        now = {_unit(unit): self._rewrite(unit) for unit in self._units(touched)}
        units = [_updated(told, now.get(_named(told), {})) for told in self._summary["units"]]
        for entry in log:
            entry["done"] = True
        self._put(
            {"redacted": log, "units": units, "digest_redacted": digest_of_rest(self._folder)}
        )
        return Redaction(
            self._folder.url,
            "redacted",
            sum(entry["rows"] for entry in found),
            sum(entry["queries"] for entry in found),
        )

    def _units(self, touched: set[tuple[str, int]]) -> list[Unit]:
        return [unit for unit in self._plan.units if _unit(unit) in touched]

    def _put(self, more: Mapping[str, Any]) -> None:
        self._summary.update(more)
        data = json.dumps(self._summary, ensure_ascii=False, indent=1).encode() + b"\n"
        self._folder.write(SUMMARY, data)

    def _files(self, unit: Unit) -> Sequence[str]:
        return [what for what in WHATS if self._folder.exists(unit.file(what))]

    def _look(self, unit: Unit) -> dict[str, Any] | None:
        """The entry of run.json for a unit that holds somebody; None for the others."""
        out = {
            what: int((~self._stays(unit, self._keys_of(unit, what))).sum())
            for what in self._files(unit)
        }
        if not any(out.values()):
            return None
        return {
            "unit": {"kind": unit.kind, "number": unit.number},
            "when": self._when,
            "rows": out.get("part", 0) + out.get("slack", 0),
            "queries": out.get("queries", 0),
            "done": False,
        }

    def _keys_of(self, unit: Unit, what: str) -> pl.DataFrame:
        """The key columns alone, so that units that hold nobody cost little."""
        data = self._folder.read(unit.file(what))
        names = ["query_key"] if what == "queries" else ["query_key", "key"]
        try:
            return pl.read_parquet(io.BytesIO(data), columns=names)
        except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError):
            return self._folder.decoded(data, unit, what).select(names)

    def _stays(self, unit: Unit, frame: pl.DataFrame) -> Any:
        stays = ~np.isin(frame["query_key"].to_numpy(), self._keys[unit.kind])
        if "key" in frame.columns:
            stays &= ~np.isin(frame["key"].to_numpy(), self._keys[OTHER[unit.kind]])
        return stays

    def _rewrite(self, unit: Unit) -> dict[str, dict[str, Any]]:
        """The unit's files without the erased; "sha256" and "bytes" of each, as they are now."""
        now: dict[str, dict[str, Any]] = {"sha256": {}, "bytes": {}}
        for what in self._files(unit):
            data = self._folder.read(unit.file(what))
            frame = self._folder.decoded(data, unit, what)
            stays = self._stays(unit, frame)
            if not stays.all():
                left = frame.filter(pl.Series(stays))
                data = encoded(left, unit, what, self._plan.run_id)
                self._folder.write(unit.file(what), data)
            now["sha256"][what], now["bytes"][what] = sha256(data), len(data)
        name = unit.file("unit")
        if self._folder.exists(name):
            about = _updated(self._folder.read_json(name), now)
            self._folder.write(name, json.dumps(about, indent=1).encode() + b"\n")
        return now

    def _corpus(self, kind: Kind, *, write: bool) -> bool:
        """Fingerprints of rows of the erased; whether there were any."""
        name = f"corpus-{kind}.parquet"
        if not self._keys[kind].size or not self._folder.exists(name):
            return False
        data = io.BytesIO(self._folder.read(name))
        frame = pl.read_parquet(data)
        stays = ~np.isin(frame["key"].to_numpy(), self._keys[kind])
        if write and not stays.all():
            out = io.BytesIO()
            metadata = {
                name: value
                for name, value in pl.read_parquet_metadata(data).items()
                if name.startswith("matchwright.")
            }
            frame.filter(pl.Series(stays)).write_parquet(
                out, compression="zstd", compression_level=1, metadata=metadata
            )
            self._folder.write(name, out.getvalue())
        return not bool(stays.all())


def _updated(told: Mapping[str, Any], now: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What is told of a unit, with other facts about its files."""
    return {**told, **{name: {**told.get(name, {}), **facts} for name, facts in now.items()}}


def _named(about: Mapping[str, Any]) -> tuple[str, int]:
    return str(about["kind"]), int(about["number"])


def _unit(unit: Unit) -> tuple[str, int]:
    return unit.kind, unit.number
