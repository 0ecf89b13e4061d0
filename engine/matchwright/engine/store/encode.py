"""What the store needs from its neighbours, gathered so that tests can replace any of it.

The store itself knows nothing of facets, rules or record fields: it is handed functions that turn
records into arrays, and keeps what they return.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from matchwright.engine.store.catalog import Kind
from matchwright.engine.store.rows import EncodedRows, concat_encoded
from matchwright.kernels.types import Int8, Int32, SetColumn, UInt64

if TYPE_CHECKING:
    import polars as pl

    from matchwright.engine.generation.folder import Served
    from matchwright.engine.prose import Prose
    from matchwright.engine.table import Records

ENCODE_ROWS = 8_192
"""Records encoded at once: bounds the memory that encoding takes beside its result."""


class GenerationLike(Protocol):
    """What the store uses of a generation."""

    @property
    def id(self) -> str: ...
    @property
    def d(self) -> int: ...
    def save(self, folder: Path) -> Any: ...


EncodeRows = Callable[[Any, Kind, Any, bytes], EncodedRows]
BuildIndex = Callable[
    [Mapping[str, Int32], Mapping[str, SetColumn], Int8, UInt64], Mapping[str, NDArray[Any]]
]


def _prose(records: Any) -> list[Prose]:
    from matchwright.engine.generation.text import SKILLS_MAX
    from matchwright.engine.table import as_table

    return as_table(records).keyed_prose(SKILLS_MAX)


@dataclass(frozen=True, slots=True)
class Neighbours:
    """The functions that a store calls.

    Attributes:
        schema: kind -> the columns of its records.
        to_frame: checks records given as dicts and makes a frame of them.
        hash_keys: (ids, salt) -> uint64 keys.
        encode_rows: (generation, kind, records, salt) -> EncodedRows.
        build_index: (scalars, sets, x_nd, key_n) -> arrays stored with a sealed segment.
        index_version: stored with the index; another version's index is not used.
        take: (records, seed, sample) -> at most ``sample`` of them, chosen by id alone.
        fit: (jobs, freelancers, seed=, sample=, as_of=) -> generation.
        starter: the generation of an empty store.
        load: folder -> generation.
        prose: (records, frame or rows) -> the texts of theirs that an encoder reads, with keys.
    """

    schema: Callable[[Kind], pl.Schema]
    to_frame: Callable[[Kind, list[dict[str, Any]]], pl.DataFrame]
    hash_keys: Callable[[Sequence[str], bytes], UInt64]
    encode_rows: EncodeRows
    build_index: BuildIndex
    index_version: int
    take: Callable[[pl.DataFrame, int, int], pl.DataFrame]
    fit: Callable[..., GenerationLike]
    starter: Callable[[], GenerationLike]
    load: Callable[[Path], GenerationLike]
    prose: Callable[[Any], list[Prose]] = _prose


def default_neighbours(served: Served | None = None) -> Neighbours:
    """The engine's own record schemas, generation, rule columns and indexes.

    Args:
        served: gives the encoder of a generation that a served one made.
    """
    from matchwright.engine import generation, records
    from matchwright.engine.generation import fitting
    from matchwright.kernels import index, order

    return Neighbours(
        schema=lambda kind: records.SCHEMAS[kind],
        to_frame=_to_frame,
        hash_keys=order.hash_keys,
        encode_rows=encode_rows,
        build_index=index.build_index,
        index_version=getattr(index, "VERSION", 1),
        take=fitting.take,
        fit=generation.fit,
        starter=generation.starter,
        load=lambda folder: generation.Generation.load(folder, served),
    )


def _to_frame(kind: Kind, rows: list[dict[str, Any]]) -> pl.DataFrame:
    from matchwright.engine.records import to_frame

    return to_frame(kind, rows)


def encode_rows(generation: Any, kind: Kind, records: Records, salt: bytes) -> EncodedRows:
    """Vectors from the generation, rule columns from the domain, keys from the ids.

    Args:
        generation: a ``matchwright.engine.generation.Generation``.
        kind: what the records are.
        records: a frame of that kind's schema, or rows of it.
        salt: the store's 16 bytes.
    """
    from matchwright.engine.columns import columns
    from matchwright.engine.table import as_table
    from matchwright.kernels.order import hash_keys

    scalars, sets = columns(kind, records, salt, generation)
    key_n = hash_keys(as_table(records).values("id"), salt)
    return EncodedRows(generation.encode(kind, records).x_nd, key_n, scalars, sets)


def encode_in_slices(
    encode: EncodeRows, generation: Any, kind: Kind, records: pl.DataFrame, salt: bytes
) -> EncodedRows:
    """``encode`` over slices of ``ENCODE_ROWS`` records; the same arrays as in one go."""
    slices = [
        encode(generation, kind, records.slice(low, ENCODE_ROWS), salt)
        for low in range(0, max(records.height, 1), ENCODE_ROWS)
    ]
    encoded = slices[0] if len(slices) == 1 else concat_encoded(slices)
    if encoded.x_nd.shape[0] != records.height or encoded.x_nd.dtype != np.int8:
        raise ValueError(f"encoding gave {encoded.x_nd.shape} of {encoded.x_nd.dtype}")
    return encoded
