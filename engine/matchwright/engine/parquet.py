"""Parquet files on disks that may be full: Polars hides the system's errors in its own."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import polars as pl

_SAID = re.compile(r"\(os error (\d+)\)")


@contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[None]:
    """Around what Polars writes to a path.

    Raises:
        OSError: what the operating system refused, as Python would have raised it.
    """
    try:
        yield
    except pl.exceptions.PolarsError as error:
        said = _SAID.search(str(error))
        if said is None:
            raise
        number = int(said[1])
        raise OSError(number, os.strerror(number), os.fspath(path)) from None


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name for a file that takes a path's place when the block ends well, at once and complete.

    After an error nothing of it is left.
    """
    new = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        yield new
        new.replace(path)
    finally:
        with suppress(OSError):
            new.unlink(missing_ok=True)


def join(parts: Sequence[Path], path: Path) -> None:
    """Makes one file of several of the same columns, and its folder; it replaces one that is there.

    Raises:
        OSError: what the operating system refused; a file that was there still is.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as new:
        if len(parts) == 1:
            shutil.copyfile(parts[0], new)
        else:
            with writing(new):
                pl.scan_parquet(list(parts), glob=False).sink_parquet(new)
