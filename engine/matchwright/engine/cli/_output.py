"""Answers on stdout or in a file, in the format that was asked for."""

from __future__ import annotations

import csv
import enum
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TextIO

from matchwright.engine.cli._failures import harmless
from matchwright.engine.errors import InvalidArgument

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_BY_SUFFIX = {
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".parquet": "parquet",
    ".txt": "table",
}
_WIDTH_OF_A_PIPE = 120


class Format(enum.StrEnum):
    """How an answer is written."""

    TABLE = "table"
    JSON = "json"
    JSONL = "jsonl"
    CSV = "csv"
    PARQUET = "parquet"


@dataclass(frozen=True)
class View:
    """One answer, ready for every format.

    Attributes:
        document: what JSON and JSON lines show.
        rows: what CSV and Parquet hold; every row has the same keys and plain values.
        draw: puts it on a terminal.
    """

    document: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    draw: Callable[[Console], None]


def console(**options: Any) -> Console:
    """A terminal, or a file that looks like one. A reader who left is a ``BrokenPipeError``, as for
    every other format; Rich would end the process by itself, with a defect's exit code."""
    from rich.console import Console

    class Piped(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    return Piped(markup=False, highlight=False, emoji=False, **options)


def facts(lines: Iterable[tuple[str, Any]]) -> Table:
    """Names and values side by side, thousands parted. What does not fit is folded, so that a path
    or a digest is whole in any width."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    for name, value in lines:
        number = isinstance(value, int) and not isinstance(value, bool)
        table.add_row(name, f"{value:,}" if number else harmless(value))
    return table


def choose_format(asked: Format | None, output: Path | None) -> Format:
    """The format asked for, or the file's suffix, or a table on a terminal and JSON lines else."""
    if asked is None and output is not None:
        if output.suffix.lower() not in _BY_SUFFIX:
            known = ", ".join(_BY_SUFFIX)
            raise InvalidArgument(
                f"{output.name!r} tells no format; give --format, or a name that ends in {known}"
            )
        asked = Format(_BY_SUFFIX[output.suffix.lower()])
    if asked is None:
        asked = Format.TABLE if sys.stdout.isatty() else Format.JSONL
    if asked is Format.PARQUET and output is None:
        raise InvalidArgument("Parquet is binary; name a file with --output FILE")
    return asked


class Writer:
    """Writes views one after another; a file appears under its name only when it is complete.

    Until then it is ``FILE.part``, and after an interruption that is what was kept.

    Args:
        asked: the format, or None to choose one.
        output: the file, or None for stdout.
        many: whether JSON is a list of documents (else the one document itself).
    """

    def __init__(self, asked: Format | None, output: Path | None, *, many: bool = False) -> None:
        if output is not None and (not output.name or output.is_dir()):
            raise InvalidArgument(f"--output takes the name of a file, got {str(output)!r}")
        self.format = choose_format(asked, output)
        self.output = output
        self.added = 0
        self._many = many
        self._frames: list[Any] = []
        self._csv: csv.DictWriter[str] | None = None
        self._console: Console | None = None
        self._stream: TextIO = sys.stdout

    @property
    def part(self) -> Path | None:
        """The file while it is incomplete."""
        return None if self.output is None else self.output.with_name(f"{self.output.name}.part")

    def __enter__(self) -> Self:
        if self.part is not None and self.format is not Format.PARQUET:
            self._stream = self.part.open(
                "w", encoding="utf-8", errors="backslashreplace", newline=""
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None or self.format is Format.PARQUET:
                self._finish()
        finally:
            if self._stream is not sys.stdout:
                self._stream.close()
        if kind is None and self.part is not None and self.output is not None:
            self.part.replace(self.output)

    def add(self, view: View) -> None:
        """Write one more answer."""
        match self.format:
            case Format.TABLE:
                view.draw(self._terminal())
            case Format.JSON:
                opening = ("[\n" if self.added == 0 else ",\n") if self._many else ""
                self._stream.write(opening + _json(view.document, indent=2))
            case Format.JSONL:
                self._stream.write(_json(view.document) + "\n")
            case Format.CSV:
                self._add_csv(view.rows)
            case Format.PARQUET:
                self._add_frame(view.rows)
        self.added += 1

    def _terminal(self) -> Console:
        if self._console is None:
            on_terminal = self._stream is sys.stdout and sys.stdout.isatty()
            width = None if on_terminal else _WIDTH_OF_A_PIPE
            self._console = console(file=self._stream, width=width)
        return self._console

    def _add_csv(self, rows: Sequence[Mapping[str, Any]]) -> None:
        for row in rows:
            if self._csv is None:
                self._csv = csv.DictWriter(self._stream, list(row), lineterminator="\n")
                self._csv.writeheader()
            self._csv.writerow({key: _cell(value) for key, value in row.items()})

    def _add_frame(self, rows: Sequence[Mapping[str, Any]]) -> None:
        import polars as pl

        if rows:
            plain = [{key: plainly(value) for key, value in row.items()} for row in rows]
            self._frames.append(pl.DataFrame(plain, infer_schema_length=None))

    def _finish(self) -> None:
        if self.format is Format.JSON:
            ending = ("\n]\n" if self.added else "[]\n") if self._many else "\n"
            self._stream.write(ending)
        if self.format is Format.PARQUET and self.part is not None:
            import polars as pl

            from matchwright.engine.parquet import writing

            whole = pl.concat(self._frames, how="vertical_relaxed") if self._frames else None
            with writing(self.part):
                (pl.DataFrame() if whole is None else whole).write_parquet(self.part)
        self._stream.flush()


def plainly(value: Any) -> Any:
    """``value`` as JSON knows it: NumPy scalars and arrays, sets, paths and enums are unwrapped."""
    if isinstance(value, enum.Enum):
        return value.name
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(key): plainly(item) for key, item in value.items()}
    if isinstance(value, bytes):
        return value.hex()
    if hasattr(value, "tolist"):
        return plainly(value.tolist())
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plainly(item) for item in value]
    return str(value)


def _json(document: Mapping[str, Any], indent: int | None = None) -> str:
    return json.dumps(plainly(document), ensure_ascii=False, indent=indent, allow_nan=False)


def _cell(value: Any) -> Any:
    value = plainly(value)
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (dict, list)) else value
