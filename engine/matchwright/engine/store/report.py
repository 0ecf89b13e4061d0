"""What is in a store, in figures: for ``store info``."""

from __future__ import annotations

from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from matchwright.engine.errors import ModelLate, ModelUnavailable
from matchwright.engine.store import catalog as catalogs
from matchwright.engine.store import embeddings, segment_file
from matchwright.engine.store.catalog import KINDS, Catalog, Kind, SegmentRow
from matchwright.engine.store.compact import Figures
from matchwright.engine.store.embeddings import EmbeddingFile
from matchwright.engine.store.encode import Neighbours
from matchwright.engine.store.epochs import kept_epochs
from matchwright.engine.store.leases import LeaseFolder
from matchwright.engine.store.snapshot import Snapshot, frame, stored_record

if TYPE_CHECKING:
    import polars as pl

DRIFT_SAMPLE = 2_000
"""Newest records of each kind that drift is measured on."""


def report(
    root: Path,
    catalog: Catalog,
    snapshot: Snapshot,
    neighbours: Neighbours,
    drift: bool,
    figures: Figures | None,
) -> dict[str, Any]:
    """The document of ``Store.info``."""
    with catalog.look() as connection:
        everything = catalog.all_segments(connection)
        keep_text, version = catalog.state(connection).keep_text, catalog.version(connection)
    manifest = [row for row in everything if row.gone is None]
    epochs = kept_epochs(catalog, LeaseFolder(root))
    kinds = {kind: _kind(snapshot, kind, manifest) for kind in KINDS}
    if drift and hasattr(snapshot.generation, "drift"):
        for kind in KINDS:
            newest = _newest(catalog, neighbours, kind)
            with suppress(ModelUnavailable, ModelLate):  # a text that is not stored, or not kept
                drifted = snapshot.generation.drift(kind, newest)
                kinds[kind]["drift"] = msgspec.to_builtins(drifted)
    return {
        "path": str(root),
        "uuid": snapshot.epoch.uuid,
        "format": {"catalog": version, "segments": segment_file.FORMAT},
        "epoch": {"number": snapshot.epoch.number, "digest": snapshot.epoch.digest},
        "generation": snapshot.generation.id,
        "dimensions": snapshot.generation.d,
        "encoder": _encoder(root, snapshot.generation),
        "keep_text": keep_text,
        "kinds": kinds,
        "epochs": {
            "open": len(epochs),
            "oldest": epochs[0].number,
            "oldest_since": epochs[0].since,
            "leases": {name: epoch.number for epoch in epochs for name in epoch.leases},
        },
        "compaction": _compaction(everything, snapshot, figures),
        "bytes": {
            "catalog": sum(_size(root / (catalogs.FILE + end)) for end in ("", "-wal")),
            "segments": sum(row.size for row in everything),
            "generations": _tree_size(root / "generations"),
            "embeddings": _tree_size(root / embeddings.FOLDER),
        },
    }


def _encoder(root: Path, generation: Any) -> dict[str, Any]:
    """Which encoder, and how many embeddings of a served one are stored."""
    text = getattr(getattr(generation, "manifest", None), "text", None)
    if text is None:
        return {}
    told: dict[str, Any] = {"kind": text.encoder, "content_hash": text.content_hash}
    if text.served:
        told |= msgspec.to_builtins(text.served)
        path = embeddings.path_of(root, text.content_hash)
        told["embeddings"] = 0
        if path.is_file():
            with closing(EmbeddingFile(path, text.width, write=False)) as file:
                told["embeddings"] = file.count()
    return told


def _kind(snapshot: Snapshot, kind: Kind, manifest: list[SegmentRow]) -> dict[str, Any]:
    sealed = [row for row in manifest if row.kind == kind]
    living = snapshot.count(kind)
    rows = sum(part.source.n for part in snapshot.parts[kind])
    return {
        "records": living,
        "dead_rows": rows - living,
        "dead_share": round((rows - living) / rows, 4) if rows else 0.0,
        "live_rows": rows - sum(row.n for row in sealed),
        "segments": len(sealed),
        "segment_bytes": sum(row.size for row in sealed),
    }


def _compaction(
    everything: list[SegmentRow], snapshot: Snapshot, figures: Figures | None
) -> dict[str, Any]:
    """What compaction would free, what kept epochs hold, and what the writer here has done.

    ``reclaimable_bytes``: dead rows' share of the segments in force (``store compact --all`` drops
    them). ``held_bytes``: segments that only earlier epochs need; they go when those have gone.
    """
    sizes = {row.segment: row.size for row in everything if row.gone is None}
    sealed = [
        part for kind in KINDS for part in snapshot.parts[kind] if part.source.number in sizes
    ]
    dead = sum(sizes[part.source.number] * (1 - part.living / part.source.n) for part in sealed)
    return {
        "reclaimable_bytes": round(dead),
        "held_bytes": sum(row.size for row in everything if row.gone is not None),
        **(figures.document() if figures is not None else {}),
    }


def _newest(catalog: Catalog, neighbours: Neighbours, kind: Kind) -> pl.DataFrame:
    with catalog.look() as connection:
        rows = connection.execute(
            f"SELECT id, hash, body FROM {kind} ORDER BY seq DESC LIMIT ?", (DRIFT_SAMPLE,)
        ).fetchall()
    where = str(catalog.path)
    records = [stored_record(name, content, body, where) for name, content, body in rows]
    return frame(neighbours, kind, records)


def _size(path: Path) -> int:
    with suppress(OSError):
        return path.stat().st_size
    return 0


def _tree_size(folder: Path) -> int:
    return sum(_size(path) for path in folder.rglob("*") if path.is_file())
