"""What the commands share that look at runs which are there: finding them, and their epoch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from matchwright.engine.cli import _run
from matchwright.engine.cli._failures import harmless
from matchwright.engine.errors import (
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    StoreError,
)

if TYPE_CHECKING:
    from matchwright.engine.runs.folder import Output, RunFolder
    from matchwright.engine.runs.plan import Plan
    from matchwright.engine.store import Snapshot

RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="A run's folder, or its id.")]
SampleOption = Annotated[
    int, typer.Option("--sample", help="Queries that are recomputed by brute force; 0 for none.")
]
SeedOption = Annotated[
    int | None, typer.Option("--seed", help="Which queries; follows from the run id if none.")
]
SEED_MAX = 2**63 - 1


def output_of(store: Path | None, output: str | None) -> Output:
    """The folder of runs that is meant.

    Raises:
        InvalidArgument: nothing says where.
    """
    from matchwright.engine.runs.folder import Output

    if output is None and store is None:
        raise InvalidArgument("say where the runs are with --output URL or --store DIR")
    return Output(str(store / "runs") if output is None and store is not None else str(output))


def find(run: str, store: Path | None, output: str | None) -> RunFolder:
    """The run that is meant: a folder, or an id within --output or --store.

    Raises:
        NotFound, InvalidArgument: there is none, or several.
    """
    from matchwright.engine.runs.folder import find_run

    where = str(store / "runs") if output is None and store is not None else output
    return find_run(run, where)


def output_with(folder: RunFolder) -> Output:
    """The output that a run lies in."""
    from matchwright.engine.runs.folder import Output

    return Output(folder.url.rsplit("/", 1)[0])


@contextlib.contextmanager
def at_hand(plan: Plan, store: Path | None) -> Iterator[tuple[Snapshot | None, str]]:
    """(the epoch that a run was made from, ""), or (None, why it is not at hand).

    Args:
        store: the store's folder; where none is named, the one that the plan names.
    """
    path = store
    if path is None and plan.store:
        path = Path(plan.store)
    if path is None:
        yield None, "the plan names no store, and --store was not given"
        return
    with contextlib.ExitStack() as opened:
        try:
            _, snapshot = opened.enter_context(_run.epoch_of(path, plan))
        except (NotFound, FailedPrecondition, StoreError, OSError) as error:
            if store is not None and not isinstance(error, FailedPrecondition):
                raise
            yield None, harmless(error)
            return
        yield snapshot, ""


def seed_of(seed: int | None, run_id: str) -> int:
    """The seed of a sample; another one for each run, the same one for the same run.

    Raises:
        InvalidArgument: it is no seed.
    """
    if seed is None:
        return int(run_id, 16)
    if not 0 <= seed <= SEED_MAX:
        raise InvalidArgument(f"--seed takes 0 to 2^63 - 1, got {seed}")
    return seed


def check_sample(sample: int) -> None:
    """Refuse a negative sample.

    Raises:
        InvalidArgument: naming it.
    """
    if sample < 0:
        raise InvalidArgument(f"--sample takes 0 or more, got {sample}")
