"""Options that several commands share, and the small parsers behind them."""

from __future__ import annotations

import datetime
import enum
import math
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from matchwright.engine.cli._output import Format
from matchwright.engine.errors import InvalidArgument

STDIN = "-"
LIST_BYTES_MAX = 256 << 20
INLINE_BYTES_MAX = 16 << 20
_EPOCH = datetime.date(1970, 1, 1)


class KindOption(enum.StrEnum):
    """A kind on the command line, singular."""

    JOB = "job"
    FREELANCER = "freelancer"


class KindsArgument(enum.StrEnum):
    """A kind on the command line, plural, as in ``ingest jobs``."""

    JOBS = "jobs"
    FREELANCERS = "freelancers"


FormatOption = Annotated[
    Format | None,
    typer.Option(
        "--format",
        "-f",
        help="How to write the answer; a table on a terminal, JSON lines in a pipe.",
        show_default=False,
    ),
]
OutputOption = Annotated[
    Path | None,
    typer.Option(
        "--output", "-o", metavar="FILE", help="Write to FILE, which appears when complete."
    ),
]
StoreOption = Annotated[
    Path, typer.Option("--store", metavar="DIR", help="The folder of the marketplace.")
]
WAIT_S = 60.0
"""How long commands that write wait for another writer, unless they are told."""
WaitOption = Annotated[
    float,
    typer.Option(
        "--wait",
        metavar="SECONDS",
        min=0,
        help="How long to wait for another writer of the store, and for a model server that does "
        "not answer; 0 fails at once.",
    ),
]
PolicyOption = Annotated[
    Path | None,
    typer.Option(
        "--policy", metavar="FILE", help="A policy (TOML); the shipped default when not given."
    ),
]
AsOfOption = Annotated[
    str | None,
    typer.Option("--as-of", metavar="YYYY-MM-DD", help="The day to decide for; today in UTC."),
]


def day_of(as_of: str | None, option: str = "--as-of") -> int:
    """Days since 1970-01-01 of a date, or of today in UTC: the only place that reads the clock.

    Args:
        option: which one it is, for the error.

    Raises:
        InvalidArgument: when it is not a date.
    """
    if as_of is None:
        today = datetime.datetime.now(datetime.UTC).date()
        return (today - _EPOCH).days
    try:
        return (datetime.date.fromisoformat(as_of) - _EPOCH).days
    except ValueError:
        raise InvalidArgument(
            f"{option} takes a date such as 2026-01-31, got {as_of!r}",
            field=option.lstrip("-").replace("-", "_"),
        ) from None


def date_of(day: int) -> str:
    """The date of a day number, as YYYY-MM-DD."""
    return (_EPOCH + datetime.timedelta(days=day)).isoformat()


def weights_of(given: Iterable[str]) -> dict[str, float]:
    """``["skills=2", "rate=0.5"]`` as a dict; names are checked by the policy.

    Raises:
        InvalidArgument: when one is not ``facet=value``, or not finite and at least 0.
    """
    weights: dict[str, float] = {}
    for item in given:
        name, equals, value = item.partition("=")
        try:
            weight = float(value) if equals and name else math.nan
        except ValueError:
            weight = math.nan
        if not (math.isfinite(weight) and weight >= 0):
            raise InvalidArgument(
                f"--weight takes facet=value with a finite value of at least 0, got {item!r}",
                field="weight",
            )
        weights[name.strip()] = weight
    return weights


def ids_of(given: Iterable[str]) -> tuple[str, ...]:
    """Ids as given; ``@FILE`` stands for the ids in a file, one in a line, ``@-`` for stdin's.

    Raises:
        InvalidArgument: when a file is not UTF-8 or too large.
    """
    ids: list[str] = []
    for item in given:
        if item.startswith("@"):
            text = read_text(item[1:], limit=LIST_BYTES_MAX)
            ids.extend(line for line in text.splitlines() if line.strip())
        else:
            ids.append(item)
    return tuple(dict.fromkeys(ids))


def read_text(path: str, *, limit: int) -> str:
    """A small UTF-8 file (``-`` is stdin).

    Raises:
        InvalidArgument: when it is larger than ``limit`` bytes, or not UTF-8.
    """
    if path == STDIN:
        raw = sys.stdin.buffer.read(limit + 1)
    else:
        with Path(path).open("rb") as file:
            raw = file.read(limit + 1)
    if len(raw) > limit:
        raise InvalidArgument(f"{path}: more than {limit:,} bytes; give a smaller file")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidArgument(f"{path}: not UTF-8 at byte {error.start}") from None
