"""Parquet files on disks that may be full: Polars hides the system's errors in its own."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

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
