"""Fingerprints of corpus rows: 128 bits that say whether a row is what it was in another run.

A row's print is BLAKE2b with 16 bytes of digest over all that an answer can depend on: its key, its
vector, and every rule column. BLAKE2b is collision-resistant, so two rows with one print are the
same row, however the data was made: 2**64 tries would be needed for one collision. The hash is
keyed with the layout (format, width, names of columns), so that prints of two layouts never meet.

The row's bytes, little endian, columns in the order of their names::

    key u64 | x int8 (D) | scalars i32 ... | sets: (values u32, known u32) ... | values u64 ...
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from matchwright.engine.errors import StoreDamaged, StoreFormat
from matchwright.engine.results import canonical_json
from matchwright.engine.runs.subcorpus import gather, living_rows, spans
from matchwright.kernels.types import Corpus, Int64, Segment, UInt8, UInt64

PRINT_FORMAT = 1
PRINT_BYTES = 16
PRINT_PERSON = b"mw-rowprint-v1"
CHUNK_ROWS = 16_384
"""Rows that are gathered and hashed at a time: bounds the memory."""
COLUMNS = ("key", "print_low", "print_high")


@dataclass(frozen=True, slots=True, eq=False)
class Prints:
    """The living rows of one corpus, by ascending key.

    Attributes:
        key_n: uint64 (N,), ascending.
        print_n2: uint64 (N, 2), low word first.
        row_n: int64 (N,), global rows; empty when the prints were read from a file.
        layout: hex; prints of another layout do not compare.
    """

    key_n: UInt64
    print_n2: UInt64
    row_n: Int64
    layout: str

    def __len__(self) -> int:
        return int(self.key_n.size)

    def find(self, key_m: UInt64) -> Int64:
        """Position of each key; -1 where it is not here."""
        if not len(self):
            return np.full(key_m.size, -1, dtype=np.int64)
        at = np.minimum(np.searchsorted(self.key_n, key_m), len(self) - 1)
        return np.where(self.key_n[at] == key_m, at, -1).astype(np.int64)

    def agreeing(self, other: Prints) -> int:
        """How many of these rows are there in the other, with the same print."""
        if self.layout != other.layout:
            return 0
        at = other.find(self.key_n)
        there = at >= 0
        return int((self.print_n2[there] == other.print_n2[at[there]]).all(axis=1).sum())


@dataclass(frozen=True, slots=True, eq=False)
class Changes:
    """How one corpus differs from an earlier one.

    Attributes:
        new_keys, edited_keys, gone_keys: uint64, ascending.
        fresh_rows: int64, global rows of the new and the edited in the later corpus.
    """

    new_keys: UInt64
    edited_keys: UInt64
    gone_keys: UInt64
    fresh_rows: Int64

    @property
    def touched_keys(self) -> UInt64:
        """Keys whose earlier row no longer counts: edited and gone, ascending."""
        return np.union1d(self.edited_keys, self.gone_keys)

    def to_dict(self) -> dict[str, int]:
        return {
            "new": int(self.new_keys.size),
            "edited": int(self.edited_keys.size),
            "gone": int(self.gone_keys.size),
        }


def prints_of(corpus: Corpus) -> Prints:
    """Fingerprints of every living row of a corpus."""
    rows = living_rows(corpus)
    key_n = np.zeros(rows.size, dtype=np.uint64)
    print_n2 = np.zeros((rows.size, 2), dtype=np.uint64)
    layout = _layout(corpus)
    for start in range(0, rows.size, CHUNK_ROWS):
        span = slice(start, start + CHUNK_ROWS)
        segment = gather(corpus, rows[span])
        key_n[span] = segment.key_n
        print_n2[span] = _prints(segment, layout)
    order = np.argsort(key_n, kind="stable")
    return Prints(key_n[order], print_n2[order], rows[order], layout.hex())


def changes(before: Prints, after: Prints) -> Changes:
    """What is new, edited and gone; ``after`` has rows.

    Prints of two layouts have nothing in common: every row counts as edited.
    """
    at = before.find(after.key_n)
    there = at >= 0
    same = np.zeros(len(after), dtype=np.bool_)
    if before.layout == after.layout:
        same[there] = (before.print_n2[at[there]] == after.print_n2[there]).all(axis=1)
    return Changes(
        new_keys=after.key_n[~there],
        edited_keys=after.key_n[there & ~same],
        gone_keys=before.key_n[after.find(before.key_n) < 0],
        fresh_rows=np.sort(after.row_n[~same]),
    )


def to_parquet(prints: Prints) -> bytes:
    """The file ``corpus-KIND.parquet`` of a run."""
    frame = pl.DataFrame(
        {
            "key": prints.key_n,
            "print_low": prints.print_n2[:, 0],
            "print_high": prints.print_n2[:, 1],
        }
    )
    out = io.BytesIO()
    frame.write_parquet(
        out, metadata={"matchwright.prints": str(PRINT_FORMAT), "matchwright.layout": prints.layout}
    )
    return out.getvalue()


def from_parquet(data: bytes, where: str) -> Prints:
    """Prints out of a run's file; without rows.

    Raises:
        StoreFormat: the file is of another format; the message names it.
        StoreDamaged: it does not say what its prints were made of.
    """
    metadata = pl.read_parquet_metadata(io.BytesIO(data))
    if metadata.get("matchwright.prints") != str(PRINT_FORMAT):
        got = metadata.get("matchwright.prints")
        raise StoreFormat(
            f"{where}: fingerprints of format {got!r}, expected {PRINT_FORMAT}; make the run anew",
            file=where,
        )
    layout = metadata.get("matchwright.layout")
    if layout is None:
        raise StoreDamaged(f"{where}: is damaged; make the run anew", file=where)
    frame = pl.read_parquet(io.BytesIO(data))
    print_n2 = np.stack([frame[name].to_numpy() for name in COLUMNS[1:]], axis=1)
    nothing = np.zeros(0, dtype=np.int64)
    return Prints(frame["key"].to_numpy(), print_n2, nothing, layout)


def _layout(corpus: Corpus) -> bytes:
    """Hash of what the row bytes mean; all parts of a corpus agree on it."""
    told: list[Any] = [PRINT_FORMAT]
    if corpus.parts:
        segment = corpus.parts[0][0]
        told += [int(segment.x_nd.shape[1]), sorted(segment.scalars), sorted(segment.sets)]
    return hashlib.blake2b(canonical_json(told), digest_size=32).digest()


def _prints(segment: Segment, layout: bytes) -> UInt64:
    """uint64 (N, 2)."""
    keyed = hashlib.blake2b(digest_size=PRINT_BYTES, key=layout, person=PRINT_PERSON)
    digests = bytearray()
    for fixed, values in _row_bytes(segment):
        one = keyed.copy()
        one.update(fixed)
        one.update(values)
        digests += one.digest()
    return np.frombuffer(digests, dtype="<u8").reshape(-1, 2).astype(np.uint64)


def _row_bytes(segment: Segment) -> Iterator[tuple[memoryview, memoryview]]:
    """(fixed part, values of all sets) of each row."""
    n = segment.n
    names = sorted(segment.sets)
    size_sn = [np.diff(segment.sets[name].start_n) for name in names]
    columns: list[Any] = [
        segment.key_n.astype("<u8")[:, None].view(np.uint8),
        np.ascontiguousarray(segment.x_nd).view(np.uint8),
        *(_bytes_of(segment.scalars[name].astype("<i4")) for name in sorted(segment.scalars)),
    ]
    for name, size_n in zip(names, size_sn, strict=True):
        columns.append(_bytes_of(size_n.astype("<u4")))
        columns.append(_bytes_of(segment.sets[name].known_n.astype("<u4")))
    fixed = memoryview(np.concatenate(columns, axis=1).tobytes())
    width = len(fixed) // n if n else 0
    values, start = _values_by_row(segment, names, size_sn)
    for row in range(n):
        yield (
            fixed[row * width : (row + 1) * width],
            values[8 * int(start[row]) : 8 * int(start[row + 1])],
        )


def _bytes_of(column: Any) -> UInt8:
    """A column of numbers as bytes (N, itemsize)."""
    raw: UInt8 = np.ascontiguousarray(column)[:, None].view(np.uint8)
    return raw


def _values_by_row(
    segment: Segment, names: list[str], size_sn: list[Int64]
) -> tuple[memoryview, list[int]]:
    """The values of all sets, row by row, and where each row's begin."""
    total_n = np.sum(size_sn, axis=0) if size_sn else np.zeros(segment.n, dtype=np.int64)
    start_n = np.concatenate([[0], np.cumsum(total_n)]).astype(np.int64)
    out = np.zeros(int(start_n[-1]), dtype="<u8")
    cursor = start_n[:-1].copy()
    for name, size_n in zip(names, size_sn, strict=True):
        column = segment.sets[name]
        begin, end = int(column.start_n[0]), int(column.start_n[-1])
        out[spans(cursor, size_n)] = column.value[begin:end]
        cursor += size_n
    return memoryview(out.tobytes()), start_n.tolist()
