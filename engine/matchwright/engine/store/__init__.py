"""The store: records, sealed segments, live rows and epochs of one marketplace."""

from __future__ import annotations

from matchwright.engine.store.bulk import BulkWriter
from matchwright.engine.store.encode import Neighbours
from matchwright.engine.store.rows import EncodedRows
from matchwright.engine.store.snapshot import Epoch, Snapshot
from matchwright.engine.store.store import Store
from matchwright.engine.store.writer import Write

__all__ = ["BulkWriter", "EncodedRows", "Epoch", "Neighbours", "Snapshot", "Store", "Write"]
