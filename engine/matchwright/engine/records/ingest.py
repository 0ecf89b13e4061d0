"""Files into a sink: every row read is accepted, replaced, duplicate or quarantined.

::

    file ──> chunk of raw rows ──> validated frame ──> sink (the store, or ``DryRun``)
                    └── refused ──────────┴──> quarantine.parquet

Reading the same file again gives duplicates only, so an interrupted import is simply run again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import polars as pl

from matchwright.engine.errors import InvalidArgument, InvalidData, MatchwrightError
from matchwright.engine.records.convert import Converted, Converter
from matchwright.engine.records.dry_run import DryRun
from matchwright.engine.records.fields import FIELDS, Kind
from matchwright.engine.records.maps import RecordMap, load_map, native_map
from matchwright.engine.records.merging import Merger
from matchwright.engine.records.quarantine import Quarantine
from matchwright.engine.records.reasons import MEANING, Reason
from matchwright.engine.records.report import FileReport, Report, name_of
from matchwright.engine.records.rows import Chunk, ObjectRows, Refused, refused
from matchwright.engine.records.sources import OpenFile, open_file

UNKNOWN_FIELD = MEANING[Reason.UNKNOWN_FIELD]
Progress = Callable[[int, int, int], None]
"""Called after every chunk with rows read, bytes read and bytes in all, over all files."""


class WriteCounts(Protocol):
    """How many records of a frame were new, changed, or equal to what was there."""

    @property
    def accepted(self) -> int: ...
    @property
    def replaced(self) -> int: ...
    @property
    def duplicate(self) -> int: ...


class Sink(Protocol):
    """Where validated records go. The ids within one frame are distinct."""

    def write(self, records: pl.DataFrame) -> WriteCounts: ...


@dataclass(slots=True)
class _Run:
    """What the pieces of one import share."""

    record_map: RecordMap
    sink: Sink
    report: Report
    quarantine: Quarantine
    progress: Progress | None
    bytes_total: int
    bytes_before: int = 0
    rows_before: int = 0

    def tell(self, file: FileReport) -> None:
        if self.progress is not None:
            self.progress(
                self.rows_before + file.read, self.bytes_before + file.bytes, self.bytes_total
            )

    def refuse(self, file: FileReport, rows: list[Refused]) -> None:
        if rows:
            file.count_refused(rows)
            self.quarantine.add(file.path, rows)
            self.report.sample(file.path, rows)


def read(
    kind: Kind,
    paths: Sequence[Path | str],
    record_map: RecordMap | Path | str | None = None,
    *,
    sink: Sink | None = None,
    strict: bool = False,
    quarantine: Path | str | None = None,
    progress: Progress | None = None,
) -> Report:
    """Imports files.

    Maps and the headers of all files are checked before the first row is read.

    Args:
        kind: "job" or "freelancer".
        paths: CSV, TSV, JSON lines (these also as .gz) or Parquet.
        record_map: a map or its file; None: columns are our own field names.
        sink: takes the records; None: nothing is written (as ``matchwright validate``).
        strict: all or nothing: the files are read once without writing, and only when no row is
            refused read again and written.
        quarantine: the Parquet file for refused rows; None: they are counted and sampled only.
        progress: told after every chunk.

    Raises:
        NotFound, InvalidArgument, UnknownKey: a file or map that cannot be used; nothing was read.
        InvalidData: a file that is damaged as a whole; or, when strict, refused rows (nothing was
            written; ``details`` hold their number and the quarantine's path).
        Whatever the sink raises.
    """
    target = Path(quarantine) if quarantine is not None else None
    files = [Path(path) for path in paths]
    if not files:
        raise InvalidArgument("no file to read was given")
    checked = _map_of(kind, record_map)
    if sink is not None and not strict:
        return _read(kind, files, checked, sink, target, progress, strict=False)
    with closing(DryRun()) as dry:
        report = _read(kind, files, checked, dry, target, progress, strict=strict)
    if not strict:
        return report
    if report.quarantined:
        raise _strict_error(report)
    if sink is None:
        return report
    return _read(kind, files, checked, sink, target, progress, strict=True)


def _strict_error(report: Report) -> InvalidData:
    first = report.samples[0]
    place = f"{first.file}, row {first.row}" + (f", field {first.field}" if first.field else "")
    more = f"; all of them are in {report.quarantine}" if report.quarantine else ""
    return InvalidData(
        f"{report.quarantined:,} of {report.read:,} rows were refused, and --strict allows none; "
        f"nothing was written. The first: {place}: {first.detail}, got {first.value!r}{more}",
        quarantined=report.quarantined,
        read=report.read,
        file=first.file,
        row=first.row,
        field=first.field,
        reason=first.reason,
        quarantine=report.quarantine or "",
    )


def _map_of(kind: Kind, record_map: RecordMap | Path | str | None) -> RecordMap:
    if record_map is None:
        return native_map(kind)
    if not isinstance(record_map, RecordMap):
        return load_map(record_map, kind)
    if record_map.kind != kind:
        raise InvalidArgument(
            f"{record_map.where} is a map for {record_map.kind}s, and {kind}s are being read"
        )
    return record_map


def _read(
    kind: Kind,
    paths: list[Path],
    record_map: RecordMap,
    sink: Sink,
    target: Path | None,
    progress: Progress | None,
    *,
    strict: bool,
) -> Report:
    started = time.perf_counter()
    report = Report(kind, strict)
    sizes = [_check(path, record_map) for path in paths]
    with Quarantine(target) as quarantine:
        run = _Run(record_map, sink, report, quarantine, progress, sum(sizes))
        for path in paths:
            _read_file(path, run)
    if target is not None and quarantine.rows:
        report.quarantine = name_of(target)
    report.seconds = time.perf_counter() - started
    return report


def _check(path: Path, record_map: RecordMap) -> int:
    """Opens a file to compare its columns with the map; its size in bytes."""
    file = open_file(path, record_map.source)
    try:
        columns = file.columns
        if columns is None:
            first = next(file.chunks, None)
            columns = _columns(file, first, record_map) if first is not None else None
        if columns is not None:
            record_map.check_columns(columns, str(path), nested=_nested(file))
    finally:
        file.close()
    return file.bytes_total


def _read_file(path: Path, run: _Run) -> None:
    started = time.perf_counter()
    opened = open_file(path, run.record_map.source)
    file = FileReport(name_of(path), opened.format)
    run.report.files.append(file)
    try:
        if run.record_map.merge is None:
            for done in _converted(opened, run, file):
                _write(done, run.sink, file)
                run.tell(file)
        else:
            _read_merged(opened, run, file)
    finally:
        opened.close()
    file.bytes = opened.bytes_total
    file.seconds = time.perf_counter() - started
    run.tell(file)
    run.bytes_before += file.bytes
    run.rows_before += file.read


def _converted(opened: OpenFile, run: _Run, file: FileReport) -> Iterator[Converted]:
    """The file's chunks, validated; what is refused is counted on the way."""
    record_map = run.record_map
    converter: Converter | None = None
    for chunk in opened.chunks:
        if converter is None:
            columns = _columns(opened, chunk, record_map)
            if record_map.native and opened.columns is not None:
                record_map = record_map.only(columns)
            converter = Converter(record_map)
            used = record_map.check_columns(columns, str(opened.path), nested=_nested(opened))
            file.unused_columns = [name[:100] for name in used[:100]]
        file.bytes = chunk.bytes_read
        chunk = _without_unknown_fields(chunk, run.record_map)
        done = converter.convert(chunk.rows)
        file.read += len(chunk.refused) + len(chunk.rows.number)
        refused_rows = sorted([*chunk.refused, *done.refused], key=lambda one: one.row)
        run.refuse(file, refused_rows)
        file.count_fields(done.known, done.unknown, done.changed)
        yield done


def _nested(opened: OpenFile) -> bool:
    return opened.format in ("jsonl", "parquet")


def _columns(opened: OpenFile, chunk: Chunk, record_map: RecordMap) -> tuple[str, ...]:
    """The file's columns; for JSON lines, the keys of the first chunk.

    Without a map, the first row must hold our own fields only: what is unknown in later rows is
    refused row by row, but a file that begins with it is another file.
    """
    if opened.columns is not None:
        return opened.columns
    objects = chunk.rows.objects if isinstance(chunk.rows, ObjectRows) else []
    if record_map.native:
        return tuple(dict.fromkeys((*(objects[0] if objects else ()), "id")))
    if not objects:
        return record_map.columns
    return tuple(dict.fromkeys(key for row in objects for key in row))


def _without_unknown_fields(chunk: Chunk, record_map: RecordMap) -> Chunk:
    """Without a map, rows with keys that no record has are refused."""
    if not record_map.native or not isinstance(chunk.rows, ObjectRows):
        return chunk
    known = FIELDS[record_map.kind].keys()
    kept: list[int] = []
    out = list(chunk.refused)
    for place, row in enumerate(chunk.rows.objects):
        if row.keys() <= known:
            kept.append(place)
            continue
        key = next(key for key in row if key not in known)
        detail, number = "no record has this key", chunk.rows.number[place]
        out.append(
            refused(number, key[:100], row[key], Reason.UNKNOWN_FIELD, detail, row.get("id"))
        )
    if len(kept) == len(chunk.rows.objects):
        return chunk
    rows = ObjectRows(
        [chunk.rows.number[place] for place in kept], [chunk.rows.objects[place] for place in kept]
    )
    return Chunk(rows, out, chunk.bytes_read)


def _write(done: Converted, sink: Sink, file: FileReport) -> None:
    for frame in _distinct(done.frame):
        counts = sink.write(frame)
        _balance(counts, frame.height)
        file.accepted += counts.accepted
        file.replaced += counts.replaced
        file.duplicate += counts.duplicate
        file.records += frame.height


def _balance(counts: WriteCounts, height: int) -> None:
    if counts.accepted + counts.replaced + counts.duplicate != height:
        raise MatchwrightError(
            f"the sink accounts for {counts.accepted + counts.replaced + counts.duplicate} of "
            f"{height} records; this is a defect"
        )


def _distinct(frame: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """The frame in parts within which every id is distinct; the order of an id's rows is kept."""
    if frame.is_empty():
        return
    if frame["id"].n_unique() == frame.height:
        yield frame
        return
    turn = frame.select(pl.int_range(pl.len()).over("id").alias("turn"))["turn"]
    for number in range(int(turn.max()) + 1):  # type: ignore[arg-type]
        yield frame.filter(turn == number)


def _read_merged(opened: OpenFile, run: _Run, file: FileReport) -> None:
    how = run.record_map.merge
    assert how is not None
    with Merger(run.record_map.kind, how) as merger:
        for done in _converted(opened, run, file):
            if done.frame.height:
                merger.add(done.frame, done.number)
            run.tell(file)
        for merged in merger.frames():
            run.refuse(file, merged.refused)
            # A row counts as what became of its record, so records are written one by one.
            for place, rows in enumerate(merged.rows):
                frame = merged.frame.slice(place, 1)
                counts = run.sink.write(frame)
                _balance(counts, 1)
                file.accepted += rows * counts.accepted
                file.replaced += rows * counts.replaced
                file.duplicate += rows * counts.duplicate
                file.records += 1


__all__ = ["DryRun", "Progress", "Report", "Sink", "WriteCounts", "read"]
