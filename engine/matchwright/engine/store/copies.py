"""Copies of sealed rows: some rows of some segments, one after the other, in a new file.

Rows are copied as they are (vectors, columns, ids, keys, record numbers) and indexed anew; nothing
is encoded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from matchwright.engine.store.catalog import Kind
from matchwright.engine.store.rows import Rows, concat, from_flat, take
from matchwright.engine.store.segment_file import SegmentFile, Written
from matchwright.kernels.types import Bool, Int64

if TYPE_CHECKING:
    from matchwright.engine.store.writer import Writer

_DERIVED = ("index/", "lookup/")


def copy_rows(file: SegmentFile, kept_n: Bool | None) -> Rows:
    """The rows of a segment that a mask keeps (None: all), in their order.

    Raises:
        StoreDamaged: a block does not match its checksum.
    """
    names = [name for name in file.names if not name.startswith(_DERIVED)]
    rows = from_flat({name: file.array(name) for name in names})
    return rows if kept_n is None else take(rows, np.flatnonzero(kept_n))


def write_copy(
    writer: Writer, kind: Kind, generation: str, parts: Sequence[Rows]
) -> tuple[int, Written] | None:
    """A durable file of rows, in no manifest yet; None when there are no rows."""
    some = [rows for rows in parts if rows.n]
    if not some:
        return None
    return writer.write_file(kind, generation, some[0] if len(some) == 1 else concat(some))


def moved(dead: Int64, kept_n: Bool) -> Int64:
    """Where rows of a segment are among those that a mask kept; rows that it dropped are left out.

    Args:
        dead: int64 rows of the segment.
        kept_n: bool (N,), the rows that were copied.
    """
    place_n = np.cumsum(kept_n) - 1
    return place_n[dead[kept_n[dead]]].astype(np.int64)
