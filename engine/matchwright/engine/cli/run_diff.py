"""``matchwright run diff``: what changed for each query from one run to another, and why."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from matchwright.engine.cli import _run, _runs, _source
from matchwright.engine.cli._failures import harmless
from matchwright.engine.cli._options import FormatOption
from matchwright.engine.cli._output import Format, View, Writer, choose_format
from matchwright.engine.errors import InvalidArgument

if TYPE_CHECKING:
    from rich.console import Console

    from matchwright.engine.runs.diff import Diff, QueryDiff

_BUFFER = 4_096
"""Queries that go to the writer together: Parquet is written in frames of so many rows."""

FirstArgument = Annotated[str, typer.Argument(metavar="A", help="The earlier run.")]
SecondArgument = Annotated[str, typer.Argument(metavar="B", help="The later run.")]
ToOption = Annotated[
    Path | None,
    typer.Option("--to", metavar="FILE", help="Write one row for each query to FILE."),
]
UnchangedOption = Annotated[
    bool, typer.Option("--unchanged", help="Also list queries that stayed the same.")
]
SummaryOption = Annotated[bool, typer.Option("--summary", help="Leave out the single queries.")]


def diff(
    a: FirstArgument,
    b: SecondArgument,
    store: _source.StoreOrNone = None,
    output: _run.TargetOption = None,
    to: ToOption = None,
    unchanged: UnchangedOption = False,
    summary: SummaryOption = False,
    format_: FormatOption = None,
) -> int:
    """Say what changed for each query, and why; then both runs as wholes.

    With --to FILE the queries go to FILE, and the summary alone to stdout.
    """
    from matchwright.engine.runs.diff import Diff
    from matchwright.engine.runs.pairing import side

    if to is None and format_ is Format.PARQUET:
        raise InvalidArgument("Parquet is binary; name a file with --to FILE")
    compared = Diff(side(_runs.find(a, store, output)), side(_runs.find(b, store, output)))
    told = Format.JSONL if format_ is Format.PARQUET else format_
    if to is not None:
        with Writer(choose_format(format_, to), to, many=True) as writer:
            _write_queries(writer, compared, unchanged=unchanged)
        with Writer(told, None) as writer:
            writer.add(_summary(compared))
        return 0
    with Writer(told, None, many=True) as writer:
        if summary:
            for _ in compared.queries():
                pass  # the summary fills while they pass
        else:
            _write_queries(writer, compared, unchanged=unchanged)
        if summary or writer.format is not Format.CSV:  # one CSV has one header
            writer.add(_summary(compared))
    return 0


def _write_queries(writer: Writer, compared: Diff, *, unchanged: bool) -> None:
    """Every query as a document of its own, or as rows, some thousands at a time."""
    found = compared.queries(unchanged=unchanged)
    if writer.format in (Format.CSV, Format.PARQUET):
        while rows := [_row(one) for one in itertools.islice(found, _BUFFER)]:
            writer.add(View({}, rows, lambda console: None))
        return
    for one in found:
        writer.add(View(one.to_dict(), [], functools.partial(_draw, one=one)))


def _row(one: QueryDiff) -> dict[str, Any]:
    """A flat row; lists as text, so that every format can hold it."""
    document = one.to_dict()
    for name in ("entered", "left", "moved"):
        document[f"{name}_count"] = len(document[name])
        document[name] = " ".join(document[name])
    document["why"] = " ".join(f"{name}:{n}" for name, n in sorted(one.why.items()))
    return document


def _draw(console: Console, one: QueryDiff) -> None:
    counts = f"+{len(one.entered)} -{len(one.left)} ~{len(one.moved)}"
    why = ", ".join(f"{name} {n}" for name, n in sorted(one.why.items()))
    console.print(harmless(f"{one.kind} {one.query_id}: {one.status} {counts}  {why}".rstrip()))


def _summary(compared: Diff) -> View:
    document = {"summary": compared.summary.to_dict()}
    flat = [_flat(compared.summary.to_dict())]
    return View(document, flat, lambda console: _draw_summary(console, compared))


def _flat(document: Mapping[str, Any]) -> dict[str, Any]:
    row = {"first": document["first"], "second": document["second"], "same": document["same"]}
    for kind, counts in document["kinds"].items():
        for name, values in counts.items():
            row |= {f"{kind}.{name}.{key}": value for key, value in values.items()}
    return row


def _draw_summary(console: Console, compared: Diff) -> None:
    told = compared.summary
    console.print(f"{told.first} -> {told.second}: {'the same' if told.same else 'they differ'}")
    for name, (before, after) in told.settings.items():
        console.print(harmless(f"  {name}: {before} -> {after}"), soft_wrap=True)
    for kind, people in told.people.items():
        words = "nobody can tell (no fingerprints)"
        if people is not None:
            words = ", ".join(f"{n:,} {name}" for name, n in people.items())
        console.print(f"  {kind}s who are searched: {words}")
    for kind, counts in told.kinds.items():
        for name, values in counts.items():
            words = ", ".join(f"{n:,} {key}" for key, n in sorted(values.items()))
            console.print(f"  {kind} {name}: {words or 'none'}")


def register(group: typer.Typer) -> None:
    """Add the command."""
    group.command()(diff)
