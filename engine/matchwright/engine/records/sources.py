"""Files to chunks of raw rows, in bounded memory whatever the file's size or state.

A row is a CSV record or a JSON line; blank lines are none. Every row is numbered, and either
comes out in ``Chunk.rows`` or is refused with a reason. Nothing in a file's rows raises; what
concerns the file as a whole does (it is not there, has no header, is not Parquet).
"""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import msgspec
import polars as pl

from matchwright.engine.errors import InvalidArgument, InvalidData, NotFound
from matchwright.engine.records.maps import FORMATS, Source
from matchwright.engine.records.reasons import MEANING, Reason
from matchwright.engine.records.rows import (
    Chunk,
    ObjectRows,
    Refused,
    TableRows,
    refused,
)

CHUNK_ROWS = 4_096
CHUNK_BYTES = 16 << 20
ROW_BYTES_MAX = 16 << 20
ROW_LINES_MAX = 10_000
COLUMNS_MAX = 4_096
_ENDINGS = {
    ".csv": "csv", ".tsv": "tsv", ".tab": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl",
    ".parquet": "parquet", ".pq": "parquet",
}  # fmt: skip
_LF = 10


@dataclass(frozen=True, slots=True)
class OpenFile:
    """A file that is about to be read.

    Attributes:
        columns: its column names; None for JSON lines, where rows say it.
        chunks: of its rows, to be consumed once.
        close: to be called when done with it.
    """

    path: Path
    format: str
    bytes_total: int
    columns: tuple[str, ...] | None
    chunks: Iterator[Chunk]
    close: Callable[[], None]


def format_of(path: Path, source: Source) -> str:
    """csv, tsv, jsonl or parquet.

    Raises:
        InvalidArgument: neither the name nor the map says it.
    """
    if source.format:
        return source.format
    name = path.name.lower().removesuffix(".gz")
    for ending, known in _ENDINGS.items():
        if name.endswith(ending):
            return known
    raise InvalidArgument(
        f"{path}: cannot tell the format from the name; known endings: {', '.join(_ENDINGS)} "
        f"(.gz after them is fine), or set format in the map's [source] to one of "
        f"{', '.join(FORMATS)}",
        file=path,
    )


def open_file(path: Path, source: Source) -> OpenFile:
    """Opens a file and reads its header, not yet its rows.

    Raises:
        NotFound: there is no such file.
        InvalidArgument: it is a folder, or of an unknown format.
        InvalidData: it has no header, or is not of its format.
    """
    form = format_of(path, source)
    try:
        if not path.is_file():
            wrong = InvalidArgument if path.exists() else NotFound
            raise wrong(f"{path} is not a file", file=path)
        size = path.stat().st_size
    except (OSError, ValueError) as error:
        raise NotFound(f"cannot read {path}: {error}", file=path) from None
    if form == "parquet":
        columns, chunks = _parquet(path, size)
        return OpenFile(path, form, size, columns, chunks, lambda: None)
    stream = _Stream(path)
    if form == "jsonl":
        return OpenFile(path, form, size, None, _json_chunks(stream), stream.close)
    delimiter = source.delimiter or ("\t" if form == "tsv" else ",")
    reader = _Csv(stream, delimiter, source.quotes)
    try:
        header = reader.header(str(path))
    except InvalidData:
        stream.close()
        raise
    return OpenFile(path, form, size, header, reader.chunks(header), stream.close)


# ── Lines ─────────────────────────────────────────────────────────────────────────────────────


class _Stream:
    """Lines of a file, each at most ``ROW_BYTES_MAX`` long; ``.gz`` is unpacked on the way."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._raw: IO[bytes] = path.open("rb")
        except OSError as error:
            raise NotFound(f"cannot read {path}: {error.strerror}", file=path) from None
        packed = path.name.lower().endswith(".gz")
        unpacked: Any = gzip.GzipFile(fileobj=self._raw) if packed else self._raw
        self._lines: IO[bytes] = io.BufferedReader(unpacked, 1 << 20) if packed else unpacked
        self.bytes_read = 0
        self._first = True
        self._packed = packed

    def line(self) -> tuple[bytes, bool]:
        """The next line (b"" at the end), and whether it was too long (then only its head)."""
        try:
            line = self._lines.readline(ROW_BYTES_MAX + 1)
            too_long = len(line) > ROW_BYTES_MAX and line[-1] != _LF
            if too_long:
                self._skip_line()
        except (OSError, EOFError, zlib.error) as error:
            raise InvalidData(f"{self.path} cannot be read on: {error}", file=self.path) from None
        self.bytes_read = self._raw.tell() if self._packed else self.bytes_read + len(line)
        if self._first:
            self._first = False
            line = self._without_mark(line)
        return line, too_long

    def _skip_line(self) -> None:
        while True:
            rest = self._lines.readline(1 << 20)
            self.bytes_read += len(rest)
            if not rest or rest[-1] == _LF:
                return

    def _without_mark(self, line: bytes) -> bytes:
        if line.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise InvalidData(
                f"{self.path} is UTF-16; convert it to UTF-8 (iconv -f UTF-16 -t UTF-8)",
                file=self.path,
            )
        return line.removeprefix(b"\xef\xbb\xbf")

    def close(self) -> None:
        self._lines.close()
        self._raw.close()


# ── CSV ───────────────────────────────────────────────────────────────────────────────────────


class _RowTooLong(Exception):
    """A quoted record that goes on for too long: its quote is probably never closed."""


class _Csv:
    """Records of a CSV file. After a broken one, reading goes on with the next line."""

    def __init__(self, stream: _Stream, delimiter: str, quotes: bool) -> None:
        csv.field_size_limit(ROW_BYTES_MAX + 1)
        self._stream = stream
        self._taken: list[str] = []  # lines of the record that is being read
        self._taken_chars = 0
        self._again: list[tuple[str, bool]] = []  # lines to be read once more, last first
        self._too_long = False  # whether the last line taken is the head of one that is too long
        self._reader = csv.reader(
            self._lines(),
            delimiter=delimiter,
            strict=True,
            quoting=csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE,
        )

    def _lines(self) -> Iterator[str]:
        return iter(self._next_line, None)

    def _next_line(self) -> str | None:
        if self._again:
            text, self._too_long = self._again.pop()
        else:
            line, self._too_long = self._stream.line()
            if not line:
                return None
            line = line[:1_024] if self._too_long else line
            text = line.decode("utf-8", "surrogateescape")
        self._taken.append(text)
        self._taken_chars += len(text)
        too_much = self._taken_chars > ROW_BYTES_MAX or len(self._taken) > ROW_LINES_MAX
        if too_much or self._too_long:
            raise _RowTooLong
        return text

    def _record(self) -> list[str] | Reason | None:
        """The next record's values, why it could not be read, or None at the end."""
        self._taken.clear()
        self._taken_chars = 0
        try:
            return next(self._reader, None)
        except csv.Error:
            reason = Reason.CSV_QUOTING
        except _RowTooLong:
            reason = Reason.ROW_TOO_LONG
        # A quote that was never closed has swallowed good lines: give them back.
        if len(self._taken) > 1:
            reason = Reason.CSV_QUOTING
            last = len(self._taken) - 1
            rest = [(self._taken[at], self._too_long and at == last) for at in range(last, 0, -1)]
            self._again.extend(rest)
        self._restart()
        return reason

    def _restart(self) -> None:
        dialect = self._reader.dialect
        self._reader = csv.reader(self._lines(), dialect)

    def header(self, where: str) -> tuple[str, ...]:
        """The column names: the first record that is not blank.

        Raises:
            InvalidData.
        """
        record: list[str] | Reason | None = []
        while record == []:
            record = self._record()
        if record is None:
            raise InvalidData(f"{where} is empty; a header line was expected", file=where)
        if isinstance(record, Reason):
            raise InvalidData(f"{where}: the header cannot be read: {MEANING[record]}", file=where)
        names = tuple(name.strip() for name in record)
        if any("\udc80" <= char <= "\udcff" for name in names for char in name):
            raise InvalidData(f"{where}: the header is not UTF-8", file=where)
        if len(names) > COLUMNS_MAX:
            raise InvalidData(f"{where}: {len(names):,} columns, at most {COLUMNS_MAX:,}")
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise InvalidData(f"{where}: two columns are named {twice!r}", file=where)
        return names

    def chunks(self, header: tuple[str, ...]) -> Iterator[Chunk]:
        """Chunks of the rows after the header."""
        row = 0
        width = len(header)
        try:
            while True:
                gathered = _Gathered()
                while not gathered.full():
                    record = self._record()
                    if record is None:
                        break
                    if record == []:
                        continue
                    row += 1
                    problem = self._problem(record, width)
                    if problem is not None:
                        gathered.refuse(row, "".join(self._taken[:1]), problem)
                    else:
                        gathered.keep(row, record, self._taken_chars)
                else:
                    yield gathered.table(header, self._stream.bytes_read)
                    continue
                if gathered:
                    yield gathered.table(header, self._stream.bytes_read)
                return
        finally:
            self._stream.close()

    def _problem(self, record: list[str] | Reason, width: int) -> Reason | None:
        if isinstance(record, Reason):
            return record
        if len(record) != width:
            return Reason.COLUMN_COUNT
        for line in self._taken:
            if not line.isascii() and _has_surrogates(line):
                return Reason.NOT_UTF8
        return None


def _has_surrogates(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


@dataclass(slots=True)
class _Gathered:
    """Rows on their way into a chunk."""

    number: list[int] = field(default_factory=list)
    rows: list[Any] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    size: int = 0

    def __bool__(self) -> bool:
        return bool(self.rows or self.refused)

    def full(self) -> bool:
        return len(self.rows) + len(self.refused) >= CHUNK_ROWS or self.size >= CHUNK_BYTES

    def keep(self, row: int, value: Any, size: int) -> None:
        self.number.append(row)
        self.rows.append(value)
        self.size += size

    def refuse(self, row: int, raw: str, reason: Reason) -> None:
        raw = raw[:1_024].encode("utf-8", "replace").decode()
        self.refused.append(refused(row, "", raw.rstrip("\r\n"), reason, MEANING[reason]))

    def table(self, header: tuple[str, ...], bytes_read: int) -> Chunk:
        columns: Sequence[Sequence[Any]] = list(zip(*self.rows, strict=True)) or [[]] * len(header)
        named = dict(zip(header, columns, strict=True))
        return Chunk(TableRows(self.number, named), self.refused, bytes_read)


# ── JSON lines ────────────────────────────────────────────────────────────────────────────────


def _json_chunks(stream: _Stream) -> Iterator[Chunk]:
    decode = msgspec.json.Decoder().decode
    row = 0
    try:
        while True:
            gathered = _Gathered()
            at_end = False
            while not gathered.full():
                line, too_long = stream.line()
                if not line:
                    at_end = True
                    break
                if line.isspace():
                    continue
                row += 1
                value = Reason.ROW_TOO_LONG if too_long else _object(line, decode)
                if isinstance(value, Reason):
                    gathered.refuse(row, line[:1_024].decode("utf-8", "replace"), value)
                else:
                    gathered.keep(row, value, len(line))
            if gathered:
                rows = ObjectRows(gathered.number, gathered.rows)
                yield Chunk(rows, gathered.refused, stream.bytes_read)
            if at_end:
                return
    finally:
        stream.close()


def _object(line: bytes, decode: Callable[[bytes], Any]) -> dict[str, Any] | Reason:
    try:
        value = decode(line)
    except (ValueError, RecursionError, OverflowError, MemoryError):
        try:
            line.decode("utf-8")
        except UnicodeDecodeError:
            return Reason.NOT_UTF8
        return Reason.JSON_SYNTAX
    return value if isinstance(value, dict) else Reason.NOT_AN_OBJECT


# ── Parquet ───────────────────────────────────────────────────────────────────────────────────


def _parquet(path: Path, size: int) -> tuple[tuple[str, ...], Iterator[Chunk]]:
    try:
        scan = pl.scan_parquet(path, glob=False)
        columns = tuple(scan.collect_schema().names())
        height = int(scan.select(pl.len()).collect().item())
    except Exception as error:  # Polars raises many kinds, its panics among them
        raise _not_parquet(path, error) from None
    return columns, _parquet_chunks(path, scan, columns, height, size)


def _not_parquet(path: Path, error: BaseException) -> InvalidData:
    said = str(error).strip().splitlines() or [type(error).__name__]
    return InvalidData(f"{path} cannot be read as Parquet: {said[0][:200]}", file=path)


def _parquet_chunks(
    path: Path, scan: pl.LazyFrame, columns: tuple[str, ...], height: int, size: int
) -> Iterator[Chunk]:
    row = 0
    batches = iter(scan.collect_batches(chunk_size=CHUNK_ROWS, maintain_order=True))
    while row < height:
        try:
            batch = next(batches, None)
        except Exception as error:  # a damaged page shows only when it is reached
            raise _not_parquet(path, error) from None
        if batch is None:
            raise InvalidData(f"{path}: {height:,} rows were announced, {row:,} are there")
        for part in batch.iter_slices(CHUNK_ROWS):
            numbers = range(row + 1, row + 1 + part.height)
            named: dict[str, Sequence[Any]] = {name: part[name].to_list() for name in columns}
            row += part.height
            yield Chunk(TableRows(numbers, named), [], size * row // max(height, 1))


__all__ = ["OpenFile", "format_of", "open_file"]
