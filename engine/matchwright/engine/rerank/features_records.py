"""The records that features are made of, each read once for a block of queries."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from matchwright.engine.prepare import SnapshotLike
from matchwright.engine.records import Kind
from matchwright.engine.rerank.features_rows import READ
from matchwright.engine.table import ColumnTable, Records
from matchwright.kernels.types import Int64

RecordsOfRows = Callable[[Int64], Records]
"""Given distinct global rows: their records."""


def records_of(
    snapshot: SnapshotLike, kind: Kind, inline: Mapping[int, Mapping[str, Any]]
) -> RecordsOfRows:
    """What gives the records of a kind's rows, and reads none of them twice.

    Args:
        inline: global row -> record of those that are not stored.
    """
    if inline or not hasattr(snapshot, "table_of"):
        return _Rows(snapshot, kind, inline).of
    return _Columns(snapshot, kind).of


class _Columns:
    """By column, of a snapshot that reads so."""

    def __init__(self, snapshot: Any, kind: Kind) -> None:
        self._snapshot, self._kind = snapshot, kind
        self._rows = np.zeros(0, dtype=np.int64)
        self._table = ColumnTable(0, {})

    def of(self, rows: Int64) -> ColumnTable:
        missing = rows[~np.isin(rows, self._rows)]
        if missing.size:
            read = self._snapshot.table_of(self._kind, missing, READ[self._kind])
            self._table = self._table.joined(read) if self._rows.size else read
            self._rows = np.concatenate([self._rows, missing])
        order = np.argsort(self._rows)
        return self._table.take(order[np.searchsorted(self._rows, rows, sorter=order)])


class _Rows:
    """Row by row: the way of those that are given inline, and of any other snapshot."""

    def __init__(
        self, snapshot: SnapshotLike, kind: Kind, inline: Mapping[int, Mapping[str, Any]]
    ) -> None:
        self._snapshot, self._kind = snapshot, kind
        self._records = dict(inline)

    def of(self, rows: Int64) -> list[Mapping[str, Any]]:
        missing = np.array([row for row in rows.tolist() if row not in self._records], np.int64)
        if missing.size:
            ids = self._snapshot.ids_of(self._kind, missing)
            found = self._snapshot.rows(self._kind, ids)
            self._records.update(zip(missing.tolist(), found, strict=True))
        return [self._records[row] for row in rows.tolist()]
