"""Refused rows to one Parquet file: file, row, id, field, value, reason, detail."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Collection, Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

import polars as pl

from matchwright.engine.errors import NotFound, StoreDamaged
from matchwright.engine.parquet import join, replacing, writing
from matchwright.engine.records.rows import Refused

QUARANTINE_SCHEMA = pl.Schema(
    {
        "file": pl.String,
        "row": pl.Int64,
        "id": pl.String,
        "field": pl.String,
        "value": pl.String,
        "reason": pl.String,
        "detail": pl.String,
    }
)
PART_ROWS = 1 << 16


class Quarantine:
    """Collects refused rows; what is in memory stays below ``PART_ROWS`` rows.

    The file appears when the block ends without an error, at once and complete, or, when nothing
    was refused, not at all (one from an earlier run is removed). Without a path nothing is written.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.rows = 0
        self._pending: list[tuple[str, Refused]] = []
        self._parts: list[Path] = []
        self._folder: Path | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self.finish()
        finally:
            if self._folder is not None:
                shutil.rmtree(self._folder, ignore_errors=True)

    def add(self, file: str, refused: Iterable[Refused]) -> None:
        """Takes in refused rows of a file."""
        added = [(file, one) for one in refused]
        self.rows += len(added)
        if self.path is None:
            return
        self._pending += added
        if len(self._pending) >= PART_ROWS:
            self._write_part()

    def finish(self) -> None:
        """Writes the file, replacing one that is there.

        Raises:
            NotFound: it cannot be written there.
        """
        if self.path is None:
            return
        try:
            if not self.rows:
                self.path.unlink(missing_ok=True)
                return
            if self._pending:
                self._write_part()
            join(self._parts, self.path)
        except OSError as error:
            raise NotFound(f"cannot write the quarantine {self.path}: {error}") from None

    def _write_part(self) -> None:
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="matchwright-quarantine-"))
        part = self._folder / f"{len(self._parts):06}.parquet"
        with writing(part):
            _frame(self._pending).write_parquet(part)
        self._parts.append(part)
        self._pending = []


def _frame(rows: list[tuple[str, Refused]]) -> pl.DataFrame:
    columns = {
        "file": [_utf8(file) for file, _ in rows],
        "row": [one.row for _, one in rows],
        "id": [_utf8(one.id) for _, one in rows],
        "field": [_utf8(one.field) for _, one in rows],
        "value": [_utf8(one.value) for _, one in rows],
        "reason": [str(one.reason) for _, one in rows],
        "detail": [_utf8(one.detail) for _, one in rows],
    }
    return pl.DataFrame(columns, schema=QUARANTINE_SCHEMA)


def _utf8(text: str) -> str:
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


# ── Erasing ───────────────────────────────────────────────────────────────────────────────────


def erase(path: Path, ids: Collection[str]) -> int:
    """Takes the rows of ids out of a quarantine file; the file goes when nothing is left in it.

    A row is somebody's when its id is theirs, or, where its id could not be read, when the value
    or detail names theirs. Where the row of somebody else names an erased id, the value or detail
    is blanked.

    Returns:
        Rows that were taken out or blanked.

    Raises:
        StoreDamaged: the file is no quarantine.
    """
    try:
        frame = pl.read_parquet(path, glob=False)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise StoreDamaged(f"{path}: is no quarantine file: {error}", file=path) from None
    known = list(QUARANTINE_SCHEMA)
    if not set(frame.columns) <= set(known):
        raise StoreDamaged(f"{path}: is no quarantine file: it has {frame.columns}", file=path)
    if "id" not in frame.columns:  # written before rows named their records
        frame = frame.with_columns(id=pl.lit("")).select(known)
    named = {name: _names(frame[name], ids) for name in ("value", "detail", "id")}
    theirs = frame["id"].is_in(list(ids)) | named["id"]
    theirs |= (frame["id"] == "") & (named["value"] | named["detail"])
    blanked = (named["value"] | named["detail"]) & ~theirs
    if not (theirs | blanked).any():
        return 0
    left = frame.with_columns(
        pl.when(named[name]).then(pl.lit("")).otherwise(pl.col(name)).alias(name)
        for name in ("value", "detail")
    ).filter(~theirs)
    if left.is_empty():
        path.unlink()
    else:
        _replace(path, left)
    return int((theirs | blanked).sum())


def _names(texts: pl.Series, ids: Collection[str]) -> pl.Series:
    """Whether a text names one of the ids, as a word of its own."""
    near = pl.DataFrame({"text": texts}).select(pl.col("text").str.contains_any(list(ids)))
    hits = near.to_series().fill_null(False).to_list()
    if not any(hits):
        return pl.Series(hits, dtype=pl.Boolean)
    longest_first = sorted(ids, key=len, reverse=True)
    pattern = re.compile(r"(?<!\w)(?:" + "|".join(map(re.escape, longest_first)) + r")(?!\w)")
    return pl.Series(
        [hit and pattern.search(text) is not None for hit, text in zip(hits, texts, strict=True)],
        dtype=pl.Boolean,
    )


def _replace(path: Path, frame: pl.DataFrame) -> None:
    with replacing(path) as new:
        with writing(new):
            frame.write_parquet(new)
        with new.open("rb") as file:
            os.fsync(file.fileno())
