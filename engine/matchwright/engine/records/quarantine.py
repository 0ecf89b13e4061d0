"""Refused rows to one Parquet file: file, row, id, field, value, reason, detail."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

import polars as pl

from matchwright.engine.errors import NotFound
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
            self._join_parts(self.path)
        except OSError as error:
            raise NotFound(f"cannot write the quarantine {self.path}: {error}") from None

    def _join_parts(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(f".{path.name}.{os.getpid()}.new")
        try:
            if len(self._parts) == 1:
                shutil.copyfile(self._parts[0], new)
            else:
                pl.scan_parquet(self._parts, glob=False).sink_parquet(new)
            new.replace(path)
        finally:
            with contextlib.suppress(OSError):
                new.unlink(missing_ok=True)

    def _write_part(self) -> None:
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="matchwright-quarantine-"))
        part = self._folder / f"{len(self._parts):06}.parquet"
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
