"""Where runs are: any target that fsspec writes to, files that appear complete or not at all.

::

    OUTPUT/PUBLISHED.json                  the published run
    OUTPUT/RUN_ID/plan.json                written first
                  LOCK                     see ``lock``
                  for=KIND/part-00000.parquet, slack-.., queries-.., unit-00000.json
                  run.json                 written last
                  metrics.prom
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from matchwright.engine.errors import (
    InvalidArgument,
    NotFound,
    StoreDamaged,
    StoreError,
    StoreFormat,
)
from matchwright.engine.runs import lock
from matchwright.engine.runs.plan import RUN_ID_DIGITS, Plan, Unit
from matchwright.engine.store.remote import Names, Target

PLAN, SUMMARY, METRICS, PUBLISHED = "plan.json", "run.json", "metrics.prom", "PUBLISHED.json"
PUBLISHED_RUN = "published"
"""What stands for the published run where a run is named."""
FILE_FORMAT = 1
"""Version of the Parquet files of a unit, of run.json and of PUBLISHED.json."""
WHATS = ("part", "slack", "queries")
"""The Parquet files of a unit, in the order in which they are written."""

_RUN_ID = re.compile(rf"[0-9a-f]{{{RUN_ID_DIGITS}}}")


def sha256(data: bytes) -> str:
    """In hexadecimal."""
    return hashlib.sha256(data).hexdigest()


class RunFolder(Target):
    """One run's files."""

    @property
    def run_id(self) -> str:
        return str(self.root).rsplit("/", 1)[-1]

    @property
    def lease(self) -> str:
        """Name of the lease by which this run keeps its store's epoch while it is not complete."""
        where = hashlib.blake2b(self.url.encode(), digest_size=4).hexdigest()
        return f"run-{self.run_id}-{where}"

    def plan(self) -> Plan:
        """What was planned.

        Raises:
            NotFound: there is no run here.
            StoreDamaged, StoreFormat: plan.json cannot be used.
        """
        return Plan.from_json(self.read(PLAN), self.url_of(PLAN))

    def summary(self) -> dict[str, Any] | None:
        """run.json, or None while the run is not complete.

        Raises:
            StoreDamaged, StoreFormat: it cannot be used.
        """
        if not self.exists(SUMMARY):
            return None
        where = self.url_of(SUMMARY)
        found = self.read_json(SUMMARY)
        if not isinstance(found, dict) or not isinstance(found.get("format"), int):
            raise StoreDamaged(f"{where}: is no summary of a run", file=where)
        if found["format"] > FILE_FORMAT:
            raise StoreFormat(f"{where}: has format {found['format']}, newer than this version")
        return found

    def part(self, unit: Unit) -> pl.DataFrame:
        """Matches of a unit's queries, in the order (query key, rank).

        Raises:
            NotFound: it is not there.
            StoreDamaged: it is not Parquet, or another unit's.
        """
        return self.frame(unit, "part")

    def queries(self, unit: Unit) -> pl.DataFrame:
        """One row for each query of a unit, in the order of their keys. Raises as ``part``."""
        return self.frame(unit, "queries")

    def slack(self, unit: Unit) -> pl.DataFrame:
        """Rows K + 1 .. K + S of a unit's queries. Raises as ``part``."""
        return self.frame(unit, "slack")

    def frame(self, unit: Unit, what: str) -> pl.DataFrame:
        """One of a unit's Parquet files: "part", "queries" or "slack". Raises as ``part``."""
        return self.decoded(self.read(unit.file(what)), unit, what)

    def decoded(self, data: bytes, unit: Unit, what: str) -> pl.DataFrame:
        """The frame of a unit's file that was read.

        Raises:
            StoreDamaged: it is not Parquet, or another unit's.
        """
        where = self.url_of(unit.file(what))
        try:
            found = pl.read_parquet_metadata(io.BytesIO(data))
            frame = pl.read_parquet(io.BytesIO(data), use_statistics=False)
        except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
            raise StoreDamaged(f"{where}: is damaged ({_brief(error)})", file=where) from None
        if found.get("matchwright.unit") != unit.key or found.get("matchwright.what") != what:
            raise StoreDamaged(f"{where}: belongs to another unit or run", file=where)
        return frame

    def write_frame(self, unit: Unit, what: str, frame: pl.DataFrame) -> bytes:
        """Write one of a unit's Parquet files; the bytes that were written."""
        data = encoded(frame, unit, what, self.run_id)
        self.write(unit.file(what), data)
        return data

    def lock(self) -> contextlib.AbstractContextManager[None]:
        """Be the only one who writes this run.

        Raises:
            StoreLocked: another process is.
            DependencyUnavailable: the target does not answer.
        """
        path, what = self.path(lock.FILE), f"run {self.run_id} in {self.url}"
        if self.local is not None:
            return lock.local_lock(Path(path), what)
        return lock.target_lock(self, lock.FILE, what)


def encoded(frame: pl.DataFrame, unit: Unit, what: str, run_id: str) -> bytes:
    """A unit's Parquet file; the same bytes for the same frame."""
    out = io.BytesIO()
    about: dict[str, str] = {
        "matchwright.format": str(FILE_FORMAT),
        "matchwright.run": run_id,
        "matchwright.unit": unit.key,
        "matchwright.what": what,
    }
    frame.write_parquet(out, compression="zstd", compression_level=1, metadata=about)
    return out.getvalue()


def _brief(error: BaseException) -> str:
    return str(error).split("\n", 1)[0][:200]


class Output(Target):
    """A folder that holds runs."""

    def runs(self) -> Names:
        """Ids of the runs that are here, complete or not."""
        names = [name for name in self.names() if _RUN_ID.fullmatch(name)]
        return [name for name in names if self.folder(name).exists(PLAN)]

    def folder(self, run_id: str) -> RunFolder:
        """A run's folder, there or not."""
        return RunFolder(f"{self.url}/{run_id}")

    def published(self) -> dict[str, Any] | None:
        """PUBLISHED.json: at least "run_id"; None when nothing was published."""
        if not self.exists(PUBLISHED):
            return None
        found = self.read_json(PUBLISHED)
        if not isinstance(found, dict) or not isinstance(found.get("run_id"), str):
            where = self.url_of(PUBLISHED)
            raise StoreDamaged(f"{where}: names no run", file=where)
        return found

    def publish(self, run_id: str, more: Mapping[str, Any] | None = None) -> None:
        """Switch PUBLISHED.json to a run, atomically."""
        document = {**(more or {}), "format": FILE_FORMAT, "run_id": run_id}
        self.write(PUBLISHED, json.dumps(document, indent=1).encode() + b"\n")


def find_run(reference: str, output: str | os.PathLike[str] | None = None) -> RunFolder:
    """The run that is meant: an id (or the beginning of one) in an output, or a run's folder.

    "published" in an output is the run that is published there.

    Raises:
        NotFound: there is no such run.
        InvalidArgument: the beginning of an id that several have.
    """
    if output is not None:
        if reference == PUBLISHED_RUN:
            document = Output(output).published()
            if document is None:
                raise NotFound(f"nothing is published in {Output(output).url}", run=reference)
            return Output(output).folder(document["run_id"])
        found = [name for name in Output(output).runs() if name.startswith(reference)]
        if len(found) == 1:
            return Output(output).folder(found[0])
        if found:
            raise InvalidArgument(f"{reference!r} begins {len(found)} run ids: {', '.join(found)}")
    folder = RunFolder(reference)
    if not ("/" in reference or output is None) or not folder.exists(PLAN):
        where = "" if output is None else f" in {Output(output).url}"
        raise NotFound(
            f"there is no run {reference!r}{where}; name its folder, or say --output URL or "
            "--store DIR",
            run=reference,
        )
    return folder


def units_there(folder: RunFolder, plan: Plan) -> Iterator[tuple[Unit, dict[str, Any]]]:
    """The units that are done, each with its record (``unit-00000.json``), unchecked."""
    for unit in plan.units:
        try:
            yield unit, folder.read_json(unit.file("unit"))
        except (NotFound, StoreError):
            continue
