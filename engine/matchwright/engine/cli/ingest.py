"""``matchwright ingest`` and ``validate``: files into a store, every row accounted for."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

import typer

from matchwright.engine.cli._failures import Interrupted, harmless
from matchwright.engine.cli._models_options import (
    ModelsOption,
    TritonCaOption,
    TritonOption,
    models_of,
)
from matchwright.engine.cli._models_options import opened as opened_models
from matchwright.engine.cli._options import (
    WAIT_S,
    FormatOption,
    KindsArgument,
    OutputOption,
    StoreOption,
    WaitOption,
)
from matchwright.engine.cli._output import View, Writer
from matchwright.engine.cli._progress import bytes_progress, say
from matchwright.engine.errors import InvalidData, PartlyDone

if TYPE_CHECKING:
    import polars as pl
    from rich.console import Console

    from matchwright.engine.config import ModelsConfig
    from matchwright.engine.records import Kind
    from matchwright.engine.records.ingest import Progress, WriteCounts
    from matchwright.engine.records.maps import RecordMap
    from matchwright.engine.records.report import Report
    from matchwright.engine.store import BulkWriter

_SAMPLES_SHOWN = 5
_COUNTS = ("read", "accepted", "replaced", "duplicate", "quarantined")

KindArgument = Annotated[KindsArgument, typer.Argument(help="What the files hold.")]
FilesArgument = Annotated[
    list[Path], typer.Argument(metavar="FILE...", help="CSV, TSV, JSON lines or Parquet.")
]
MapOption = Annotated[
    Path | None,
    typer.Option("--map", metavar="MAP.toml", help="What the columns mean; our names if none."),
]
StrictOption = Annotated[
    bool, typer.Option("--strict", help="All or nothing: one bad row and nothing is written.")
]
AliasesOption = Annotated[
    Path | None,
    typer.Option("--aliases", metavar="FILE", help="More spellings of skills (TOML)."),
]
QuarantineOption = Annotated[
    Path | None,
    typer.Option("--quarantine", metavar="FILE", help="Where refused rows go (Parquet)."),
]


def ingest(
    kinds: KindArgument,
    files: FilesArgument,
    store: StoreOption,
    map_: MapOption = None,
    strict: StrictOption = False,
    aliases: AliasesOption = None,
    quarantine: QuarantineOption = None,
    models: ModelsOption = None,
    triton: TritonOption = None,
    triton_ca: TritonCaOption = None,
    wait: WaitOption = WAIT_S,
    format_: FormatOption = None,
    output: OutputOption = None,
) -> int:
    """Import files into a store.

    What cannot be taken goes to a quarantine file: read = accepted + replaced + duplicate +
    quarantined. With refused rows the exit code is 4, or 3 when nothing was taken.
    """
    kind = kind_of(kinds)
    checked = checked_map(kind, map_, aliases)
    target = quarantine if quarantine is not None else free_name(store / "quarantine", kinds.value)
    with Writer(format_, output) as writer:
        try:
            report = into_store(
                kind,
                files,
                store,
                checked,
                strict=strict,
                quarantine=target,
                show=True,
                wait_s=wait,
                models=models_of(models, triton, tls_ca=triton_ca, wait_s=wait),
            )
        except KeyboardInterrupt:
            raise Interrupted(
                "rows up to the last full chunk are in the store; run the same command again "
                "to go on, it takes those for duplicates"
            ) from None
        writer.add(report_view(report))
    return exit_code(report)


def validate(
    kinds: KindArgument,
    files: FilesArgument,
    map_: MapOption = None,
    strict: StrictOption = False,
    aliases: AliasesOption = None,
    quarantine: QuarantineOption = None,
    format_: FormatOption = None,
    output: OutputOption = None,
) -> int:
    """Do all that ingest does, without writing."""
    from matchwright.engine.records.ingest import read

    kind = kind_of(kinds)
    checked = checked_map(kind, map_, aliases)
    with Writer(format_, output) as writer:
        with bytes_progress("validating") as tell:
            report = read(kind, files, checked, strict=strict, quarantine=quarantine, progress=tell)
        writer.add(report_view(report))
    return exit_code(report)


def into_store(
    kind: Kind,
    files: Sequence[Path],
    store: Path,
    record_map: RecordMap | None = None,
    *,
    strict: bool = False,
    quarantine: Path | None = None,
    show: bool = False,
    wait_s: float = 0.0,
    models: ModelsConfig | None = None,
) -> Report:
    """Import ``files`` into the store at ``store``, which is made when there is none.

    Another writer is waited for, ``wait_s`` at most; stderr says so. ``models`` encode texts where
    the store's generation was made with a served encoder; what that took is said as well.

    Raises:
        MatchwrightError: what is wrong with files, map or store.
    """
    from matchwright.engine.records.ingest import read

    with contextlib.ExitStack() as stack:
        tell: Progress | None = stack.enter_context(bytes_progress("reading")) if show else None
        sink = stack.enter_context(_StoreSink(kind, store, wait_s, models))
        if quarantine is not None:
            stack.enter_context(_folder_for(quarantine))
            stack.enter_context(_known_to(store, quarantine))
        report = read(
            kind, files, record_map, sink=sink, strict=strict, quarantine=quarantine, progress=tell
        )
    report.waited_s = round(sink.waited_s, 3)
    return report


class _StoreSink:
    """The store's bulk writer. A store that is not there yet is made with its first record.

    So a wrong map or file name leaves nothing behind, and a store that another writer holds is
    refused before anything is read.
    """

    def __init__(self, kind: Kind, store: Path, wait_s: float, models: ModelsConfig | None) -> None:
        self._kind: Kind = kind
        self._store = store
        self._wait_s = wait_s
        self._models = models
        self._open = contextlib.ExitStack()
        self._sink: BulkWriter | None = None

    def __enter__(self) -> Self:
        from matchwright.engine.store.catalog import FILE

        if (self._store / FILE).exists():
            self._writer()
        return self

    def __exit__(self, *error: Any) -> None:
        self._open.__exit__(*error)

    @property
    def waited_s(self) -> float:
        """Seconds that it waited for a served encoder."""
        return 0.0 if self._sink is None else self._sink.waited_s

    def write(self, records: pl.DataFrame) -> WriteCounts:
        return self._writer().write(records)

    def _writer(self) -> BulkWriter:
        if self._sink is None:
            from matchwright.engine.store import Store

            models = self._open.enter_context(opened_models(self._models))
            opened = Store.open(
                self._store,
                mode="w",
                create=True,
                wait_s=self._wait_s,
                waiting=say,
                models=models,
            )
            store = self._open.enter_context(opened)
            self._sink = self._open.enter_context(store.bulk(self._kind))
        return self._sink


@contextlib.contextmanager
def _known_to(store: Path, quarantine: Path) -> Iterator[None]:
    """Where refused rows went, if it is elsewhere: erasing somebody goes there too."""
    from matchwright.engine.store import places

    try:
        yield
    finally:
        if store.is_dir() and quarantine.exists():
            places.note(store, "quarantine", quarantine)


@contextlib.contextmanager
def _folder_for(file: Path) -> Iterator[None]:
    """The folders that ``file`` needs; those made here go again when nothing came into them."""
    made = []
    for folder in (file.parent, *file.parent.parents):
        if folder.exists():
            break
        made.append(folder)
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        for folder in made:
            with contextlib.suppress(OSError):
                folder.rmdir()


def kind_of(kinds: KindsArgument) -> Kind:
    """The singular of jobs or freelancers."""
    return "job" if kinds is KindsArgument.JOBS else "freelancer"


def checked_map(kind: Kind, path: Path | None, aliases: Path | None) -> RecordMap | None:
    """The map, checked, with further aliases of skills; None when no map is given.

    Raises:
        NotFound, InvalidArgument, UnknownKey: a map or an alias file that cannot be used.
    """
    if path is None and aliases is None:
        return None
    from matchwright.engine.records.maps import load_map, native_map
    from matchwright.engine.records.skills import skills_with

    record_map = native_map(kind) if path is None else load_map(path, kind)
    return record_map if aliases is None else record_map.with_skills(skills_with(aliases))


def free_name(folder: Path, stem: str) -> Path:
    """The first of stem-1.parquet, stem-2.parquet, ... that is not there."""
    number = 1
    while (folder / f"{stem}-{number}.parquet").exists():
        number += 1
    return folder / f"{stem}-{number}.parquet"


def exit_code(report: Report) -> int:
    """0 when every row was taken, 3 when none was, 4 when some were refused."""
    if not report.quarantined:
        return 0
    taken = report.read > report.quarantined
    return PartlyDone.exit_code if taken else InvalidData.exit_code


def summary(report: Report) -> str:
    """One line: how many rows became what, and how fast."""
    counts = ", ".join(
        f"{getattr(report, name):,} {name}" for name in _COUNTS if getattr(report, name)
    )
    speed = f", {report.read / report.seconds:,.0f} rows/s" if report.seconds > 0 else ""
    return (counts or "no rows") + speed


def report_view(report: Report) -> View:
    """The report; rows are its files."""
    document = report.to_dict()
    rows = [
        {
            "file": file["path"],
            **{name: file[name] for name in _COUNTS},
            "records": file["records"],
            "reasons": file["reasons"],
            "unused_columns": file["unused_columns"],
            "seconds": file["seconds"],
        }
        for file in document["files"]
    ]
    return View(document, rows, lambda console: _draw(console, document, rows))


def _draw(console: Console, document: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("file", *_COUNTS):
        table.add_column(name, justify="left" if name == "file" else "right")
    for row in rows:
        counts = (f"{row[name]:,}" for name in _COUNTS)
        table.add_row(harmless(row["file"]), *counts)
    console.print(table)
    for line in _remarks(document):
        console.print(harmless(line), soft_wrap=True)


def _remarks(document: dict[str, Any]) -> Iterator[str]:
    for file in document["files"]:
        for reason, n in sorted(file["reasons"].items(), key=lambda item: -item[1]):
            yield f"{file['path']}: {n:,} rows refused: {reason}"
        if file["unused_columns"]:
            yield f"{file['path']}: columns not used: {', '.join(file['unused_columns'])}"
    for sample in document["samples"][:_SAMPLES_SHOWN]:
        field = f", field {sample['field']}" if sample["field"] else ""
        place = f"{sample['file']}, row {sample['row']}{field}"
        yield f"  {place}: {sample['detail']}, got {sample['value'][:80]!r}"
    if document["waited_s"]:
        yield f"waited {document['waited_s']:,.1f} s for the encoder"
    if document["quarantine"]:
        yield f"refused rows are in {document['quarantine']}"


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(ingest)
    app.command()(validate)
