"""``matchwright train ranker``: a ranker from logged decisions, judged before it is written."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from matchwright.engine.cli import _train_options as options
from matchwright.engine.cli._failures import Interrupted, harmless
from matchwright.engine.cli._options import FormatOption, PolicyOption, day_of
from matchwright.engine.cli._output import View, Writer
from matchwright.engine.cli._progress import Advance, progress, say
from matchwright.engine.errors import AlreadyExists, InvalidData

if TYPE_CHECKING:
    from rich.console import Console

    from matchwright.engine.policy import Policy
    from matchwright.engine.rerank.decisions_read import Logged
    from matchwright.engine.rerank.train import Trained
    from matchwright.engine.rerank.trees import Trees

group = typer.Typer(help="Train models.", rich_markup_mode=None)


@group.callback()
def train() -> None:
    """Train models from logged decisions."""


@group.command()
def ranker(
    decisions: options.Decisions,
    more: options.More = None,
    output: options.Output = None,
    models: options.Models = None,
    store: options.Store = None,
    policy: PolicyOption = None,
    split_at: options.SplitAt = None,
    label: options.Label = "graded",
    position_bias: options.PositionBias = "auto",
    weight_max: options.WeightMax = 20.0,
    seed: options.Seed = 0,
    rounds: options.Rounds = 300,
    leaves: options.Leaves = 31,
    learning_rate: options.LearningRate = 0.05,
    rows_in_leaf: options.RowsInLeaf = 50,
    k: options.K = 10,
    threads: options.Threads = 1,
    rows_max: options.RowsMax = 50_000_000,
    quarantine: options.Quarantine = None,
    format_: FormatOption = None,
) -> None:
    """Train on the days before the split, judge the exported model on those after, write it.

    Nothing is put into service: `matchwright models promote` does that, if its gate lets it.
    """
    from matchwright.engine.policy import Policy
    from matchwright.engine.rerank.train import Settings, excluded_by, method_of
    from matchwright.engine.rerank.train import train as fit

    loaded = Policy.load(policy)
    settings = Settings(
        label=label, seed=seed, rounds=rounds, leaves=leaves, learning_rate=learning_rate,
        rows_in_leaf_min=rows_in_leaf, threads=threads, k=k,
        correction=method_of(position_bias), weight_max=weight_max,
        excluded=excluded_by(loaded),
    )  # fmt: skip
    day = None if split_at is None else day_of(split_at, "--split-at")
    version, in_service = _in_service(models)
    folder = output if output is not None else Path(f"ranker-{version}")
    if folder.exists():
        raise AlreadyExists(f"{folder} is there already; name another --output", path=folder)
    try:
        logged = _read([*decisions, *(more or ())], store, loaded, quarantine, rows_max)
        with _telling() as tell:
            made = fit(logged, settings, split_at=day, in_service=in_service, tell=tell)
        _write(folder, made, version)
    except KeyboardInterrupt:
        raise Interrupted(f"no {folder} was written") from None
    with Writer(format_, None) as writer:
        writer.add(view(folder, version, made))


def _in_service(models: Path | None) -> tuple[int, Trees | None]:
    """(the next version, the trees that order matches now)."""
    if models is None:
        return 1, None
    from matchwright.engine.models.repository import Repository
    from matchwright.engine.rerank.promotion import in_service
    from matchwright.engine.rerank.trees import Trees

    artefact = in_service(models)
    versions = Repository.open(models).versions("ranker")
    trees = None if artefact is None else Trees.load(artefact.path)
    return max(versions, default=0) + 1, trees


def _read(
    files: list[Path], store: Path | None, policy: Policy, quarantine: Path | None, rows_max: int
) -> Logged:
    """All decisions with the engine's own features, in its order of columns."""
    from matchwright.engine.rerank.decisions_read import read
    from matchwright.engine.rerank.features import FEATURES, FEATURES_VERSION

    names = tuple(one.name for one in FEATURES)
    with progress("reading decisions") as advance:
        if store is None:
            logged = read(
                files, quarantine=quarantine, features_version=FEATURES_VERSION,
                advance=advance, rows_max=rows_max,
            )  # fmt: skip
        else:
            with _joining(store, policy) as join:
                logged = read(
                    files, quarantine=quarantine, join=join, joined=(names, FEATURES_VERSION),
                    advance=advance, rows_max=rows_max,
                )  # fmt: skip
    odd = [name for name in logged.features if name not in names]
    if odd:
        raise InvalidData(
            f"the decisions have features that this engine does not compute: {', '.join(odd[:5])}; "
            f"its features have version {FEATURES_VERSION}"
        )
    if logged.refused:
        told = ", ".join(f"{reason} {n:,}" for reason, n in sorted(logged.refused.items()))
        say(f"refused {sum(logged.refused.values()):,} of {logged.rows_read:,} rows: {told}")
    for warning in logged.warnings:
        say(f"{warning}: features are those of today, not of the moment of the decision")
    return logged.ordered(names)


@contextlib.contextmanager
def _joining(folder: Path, policy: Policy) -> Iterator[Any]:
    from matchwright.engine.matcher import Matcher
    from matchwright.engine.rerank.decisions_join import joiner
    from matchwright.engine.store import Store
    from matchwright.kernels.ops import get_ops

    with Store.open(folder) as store:
        snapshot = store.snapshot()
        yield joiner(snapshot, Matcher(snapshot, get_ops("cpu"), policy))


@contextlib.contextmanager
def _telling() -> Iterator[Any]:
    """Progress of each step of a training in turn."""
    with contextlib.ExitStack() as stack:
        step, told = "", 0
        advance: Advance | None = None

        def tell(what: str, done: int, of: int) -> None:
            nonlocal advance, step, told
            if what != step or advance is None:
                stack.close()
                advance = stack.enter_context(progress(what, of or None))
                step, told = what, 0
            advance(done - told)
            told = done

        yield tell


def _write(folder: Path, made: Trained, version: int) -> None:
    from matchwright.engine.rerank.export import write_ranker

    at = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    write_ranker(
        folder,
        made.text,
        features=made.trees.features,
        grid_bits=made.grid_bits,
        features_version=made.trees.features_version,
        version=version,
        training={"at": at, **made.record},
    )


def view(folder: Path, version: int, made: Trained) -> View:
    """What was trained, in every format."""
    found, record = made.evaluation, made.record
    rows = list(figures(found))
    document = {
        "folder": str(folder), "version": version, "content_hash": made.trees.content_hash,
        "warnings": record["warnings"], "data": record["data"],
        "correction": record["correction"], "trees": record["trees"], "evaluation": found,
        "excluded": record["excluded"],
    }  # fmt: skip
    rows = [{**row, "warnings": " ".join(record["warnings"])} for row in rows]
    return View(document, rows, lambda console: _draw(console, document, rows))


def figures(evaluation: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """One row for each figure and segment."""
    for name, told in evaluation["metrics"].items():
        yield _row("", name, told)
    name = f"ndcg@{evaluation['k']}"
    for column, values in evaluation["segments"].items():
        for value, told in values.items():
            if "too_few" not in told:
                yield _row(f"{column} {value}", name, told)


def _row(segment: str, figure: str, told: dict[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {"segment": segment, "figure": figure, "decisions": told["decisions"]}
    row["model"] = told["model"]
    for other in ("first_phase", "in_service"):
        change = told.get(f"vs_{other}", {})
        row[other] = told.get(other)
        row |= {f"{part}_vs_{other}": change.get(part) for part in ("difference", "low", "high")}
    return row


def _draw(console: Console, document: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    from rich.table import Table

    data, curve = document["data"], document["correction"]
    console.print(
        f"ranker {document['version']} in {harmless(document['folder'])}: {document['trees']} "
        f"trees from {data['decisions_trained']:,} decisions, judged on "
        f"{data['decisions_judged']:,} from {data['split_at']} on"
    )
    for warning in document["warnings"]:
        console.print(f"{warning}: features were joined after the decisions")
    note = f" ({curve['note']})" if curve["note"] else ""
    console.print(f"positions corrected by: {curve['method']}, {curve['views']:,} views{note}")
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("", "figure", "decisions", "model", "first phase", "difference", "in service",
                 "difference"):  # fmt: skip
        table.add_column(name, justify="left" if name in ("", "figure") else "right")
    for row in rows:
        table.add_row(
            harmless(row["segment"]), row["figure"], f"{row['decisions']:,}",
            _number(row["model"]), _number(row["first_phase"]), _change(row, "first_phase"),
            _number(row["in_service"]), _change(row, "in_service"),
        )  # fmt: skip
    console.print(table)
    lost = sorted(document["evaluation"]["importance"].items(), key=lambda item: -item[1])
    console.print("importance: " + ", ".join(f"{name} {value:.4f}" for name, value in lost[:10]))


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _change(row: dict[str, Any], other: str) -> str:
    if row[f"difference_vs_{other}"] is None:
        return ""
    return (
        f"{row[f'difference_vs_{other}']:+.4f} "
        f"[{row[f'low_vs_{other}']:+.4f}, {row[f'high_vs_{other}']:+.4f}]"
    )


def register(app: typer.Typer) -> None:
    """Add the group."""
    app.add_typer(group, name="train")
