"""The options of ``matchwright train ranker``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Decisions = Annotated[
    list[Path],
    typer.Option("--decisions", metavar="FILE", help="Logged decisions (Parquet); repeatable."),
]
More = Annotated[
    list[Path] | None,
    typer.Argument(
        metavar="FILE...",
        help="Further files of decisions, as `--decisions log-*.parquet` gives them.",
        show_default=False,
    ),
]
Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="DIR", help="New folder; ranker-VERSION else."),
]
Models = Annotated[
    Path | None,
    typer.Option("--models", metavar="REPO", help="Compare with the ranker in service there."),
]
Store = Annotated[
    Path | None,
    typer.Option(
        "--store",
        metavar="DIR",
        help="Join features from here where none were logged; the model says so.",
    ),
]
SplitAt = Annotated[
    str | None,
    typer.Option("--split-at", metavar="YYYY-MM-DD", help="First day that is judged."),
]
Label = Annotated[
    str, typer.Option("--label", help="graded, viewed, invited, replied, hired or success.")
]
PositionBias = Annotated[
    str, typer.Option("--position-bias", help="auto, randomised, harvested, em or none.")
]
WeightMax = Annotated[float, typer.Option("--weight-max", help="The most that one outcome counts.")]
Seed = Annotated[int, typer.Option("--seed", help="Of everything that is drawn.")]
Rounds = Annotated[int, typer.Option("--rounds", help="Trees, at most.")]
Leaves = Annotated[int, typer.Option("--leaves", help="Of a tree; up to 64 is quick.")]
LearningRate = Annotated[float, typer.Option("--learning-rate", help="LightGBM's.")]
RowsInLeaf = Annotated[int, typer.Option("--rows-in-leaf", help="At least, of a leaf.")]
K = Annotated[int, typer.Option("--k", help="Of NDCG and recall.")]
Threads = Annotated[int, typer.Option("--threads", help="LightGBM's.")]
RowsMax = Annotated[int, typer.Option("--rows-max", help="Rows in memory, at most.")]
Quarantine = Annotated[
    Path | None, typer.Option("--quarantine", metavar="FILE", help="Where refused rows go.")
]
