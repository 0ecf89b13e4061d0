"""Who could be shown: who of them is new, and who says the same as somebody else."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from matchwright.engine.policy_exposure import NEWCOMER_FIELDS, Exposure
from matchwright.engine.prepare import NO_ID, SnapshotLike
from matchwright.engine.records import Kind
from matchwright.engine.runs.exposure_choice import People
from matchwright.engine.runs.plan import Asking
from matchwright.engine.runs.subcorpus import split_rows
from matchwright.kernels.types import UNKNOWN, Bool, Corpus, Int8, Int32, Int64

ROWS_AT_ONCE = 16_384
ALIKE_FACETS = ("text", "skills")


def people_of(
    snapshot: SnapshotLike,
    kind: Kind,
    everybody: Asking,
    stored: Bool,
    ask: Exposure,
    as_of: int,
) -> People:
    """What ``exposure_choice`` needs to know of everybody of a kind.

    Args:
        kind: the kind that is shown.
        everybody: its living rows, by key; N of them.
        stored: bool (N,), who is among the stored rows of some query; nobody else is looked at.
        ask: the settings.
        as_of: the run's day.
    """
    n = everybody.key_n.size
    new_n = np.zeros(n, dtype=np.bool_)
    group_n: Int32 = np.full(n, -1, dtype=np.int32)
    there = np.flatnonzero(stored)
    if ask.newcomers_within:
        new_n[there] = newcomers(snapshot, kind, everybody.row_n[there], ask, as_of)
    if ask.alike_within:
        group_n[there] = groups(snapshot, kind, everybody.row_n[there])
    return People(new_n, group_n)


def newcomers(snapshot: SnapshotLike, kind: Kind, rows: Int64, ask: Exposure, as_of: int) -> Bool:
    """bool (M,): which rows are new by every criterion that is set. Unknown is not new."""
    new: Bool = np.ones(rows.size, dtype=np.bool_)
    reviews, day = (name.split(".")[1] for name in NEWCOMER_FIELDS[kind])
    if ask.newcomer_reviews_max >= 0:
        known, count = _numbers(snapshot, kind, rows, reviews)
        new &= known & (count <= ask.newcomer_reviews_max)
    if ask.newcomer_days:
        left = np.flatnonzero(new)
        known, since = _numbers(snapshot, kind, rows[left], day)
        new[left] = known & (as_of - since <= ask.newcomer_days)
    return new


def _numbers(snapshot: SnapshotLike, kind: Kind, rows: Int64, field: str) -> tuple[Bool, Int64]:
    """(known, values) of a field of whole numbers: from its rule column, else from the records."""
    corpus = snapshot.corpus(kind)
    values: Int64 = np.full(rows.size, UNKNOWN, dtype=np.int64)
    if corpus.parts and field in corpus.parts[0][0].scalars:
        for segment, here, local in split_rows(corpus, rows):
            values[here] = segment.scalars[field][local]
        return values != UNKNOWN, values
    for begin in range(0, rows.size, ROWS_AT_ONCE):
        some = slice(begin, begin + ROWS_AT_ONCE)
        records = snapshot.rows(kind, snapshot.ids_of(kind, rows[some]))
        found = [record.get(field) for record in records]
        values[some] = [UNKNOWN if value is None else value for value in found]
    return values != UNKNOWN, values


def groups(snapshot: SnapshotLike, kind: Kind, rows: Int64) -> Int32:
    """int32 (M,): the same number for rows whose blocks of text and skills are the same bytes.

    The encoder is fixed-point, so the same text and skills give the same bytes. -1 for rows that
    are like no other, and for those of which neither text nor skills are known.
    """
    spans = [(f.start, f.start + f.width) for f in snapshot.generation.facets
             if f.name in ALIKE_FACETS]  # fmt: skip
    corpus = snapshot.corpus(kind)
    digests: list[bytes] = []
    for begin in range(0, rows.size, ROWS_AT_ONCE):
        digests += _digests(_blocks(corpus, rows[begin : begin + ROWS_AT_ONCE], spans))
    often = Counter(digests)
    often[_digests(_nothing(snapshot, kind, spans))[0]] = 0
    numbers: dict[bytes, int] = {}
    return np.array(
        [
            numbers.setdefault(digest, len(numbers)) if often[digest] > 1 else -1
            for digest in digests
        ],
        dtype=np.int32,
    )


def _blocks(corpus: Corpus, rows: Int64, spans: Sequence[tuple[int, int]]) -> Int8:
    out: Int8 = np.zeros((rows.size, sum(end - start for start, end in spans)), dtype=np.int8)
    for segment, here, local in split_rows(corpus, rows):
        x_nd = segment.x_nd[local]
        out[here] = np.concatenate([x_nd[:, start:end] for start, end in spans], axis=1)
    return out


def _digests(block_nd: Int8) -> list[bytes]:
    rows = np.ascontiguousarray(block_nd)
    return [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in rows]


def _nothing(snapshot: SnapshotLike, kind: Kind, spans: Sequence[tuple[int, int]]) -> Int8:
    """The blocks of a record that says nothing."""
    from matchwright.engine.records import to_frame

    encoded: Any = snapshot.generation.encode(kind, to_frame(kind, [{"id": NO_ID}]))
    x_nd: Int8 = encoded.x_nd
    return np.concatenate([x_nd[:, start:end] for start, end in spans], axis=1)
