"""Stored entities as queries, a block at a time.

The same queries as ``prepare.prepare`` makes one by one, from what is stored::

    rule columns of the segments ── rule by rule ──> groups ──┐
    a few fields of the records ── facet by facet ──> vectors ─┴─> prints

One unreadable record is an error of its own query.
"""

from __future__ import annotations

import hashlib
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from matchwright.engine.block_rules import CompiledBlock, compile_block
from matchwright.engine.eligibility import enabled
from matchwright.engine.errors import MatchwrightError, NotFound
from matchwright.engine.policy import Policy
from matchwright.engine.policy_sections import FACET_FIELDS
from matchwright.engine.prepare import SnapshotLike
from matchwright.engine.records import KINDS, Kind
from matchwright.engine.rule_shapes import Day
from matchwright.engine.runs.subcorpus import gather
from matchwright.engine.table import ColumnTable
from matchwright.engine.zones import as_zones, offset_minutes
from matchwright.kernels.rule_sets import RuleSets
from matchwright.kernels.types import (
    Bool,
    Float64,
    Int16,
    Int32,
    Int64,
    Predicate,
    Queries,
    Segment,
    UInt8,
    UInt64,
)

T = TypeVar("T")

READ: Mapping[Kind, tuple[str, ...]] = {
    kind: tuple(
        field.removeprefix(f"{kind}.")
        for field in dict.fromkeys(itertools.chain(*FACET_FIELDS.values()))
        if field.startswith(f"{kind}.")
    )
    for kind in KINDS
}
"""Kind -> the fields of records that vectors are made of."""
NOBODY = Segment(np.zeros((0, 0), np.int8), np.zeros(0, np.uint64))
PRINT_BYTES = 16
PRINT_PERSON = b"mw-question-v1"
"""Personalisation of the hash of a question: names the version of its form."""


@dataclass(frozen=True, slots=True, eq=False)
class PreparedBlock:
    """Q queries of one kind, ready for the kernels.

    Attributes:
        kind: of the entities that ask.
        ids: their ids.
        key_q: uint64 (Q,).
        q_qd: int16 (Q, D); 0 where there is an error.
        t_q, resolution_q, attainable_q: float64, int32, float64 (Q,), as in a result.
        groups: the rule sets.
        group_q: int32 (Q,), which of them each query is under.
        never_q: bool (Q,), the entity rules out every answer by itself.
        unsure_q: bool (Q,), every eligible row is unverified.
        print_qb: uint8 (Q, 16): equal prints under one generation and policy are one question.
        errors: position -> the error of a query that cannot be asked.
        seconds: what preparing took.
        records: position -> record, where features will be made of them; else empty.
    """

    kind: Kind
    ids: list[str]
    key_q: UInt64
    q_qd: Int16
    t_q: Float64
    resolution_q: Int32
    attainable_q: Float64
    groups: RuleSets
    group_q: Int32
    never_q: Bool
    unsure_q: Bool
    print_qb: UInt8
    errors: dict[int, MatchwrightError]
    seconds: float
    records: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def q(self) -> int:
        return int(self.key_q.size)

    def queries(self, at: Int64) -> Queries:
        """Some of the queries as kernels take them; those that share their rules share a group."""
        some, group_q = np.unique(self.group_q[at], return_inverse=True)
        return Queries(
            q_qd=self.q_qd[at],
            key_q=self.key_q[at],
            groups=self.groups.take(some),
            group_q=group_q.astype(np.int32),
        )


def prepare_block(
    snapshot: SnapshotLike, kind: Kind, ids: Sequence[str], policy: Policy, as_of: int
) -> PreparedBlock:
    """Queries for stored entities.

    Args:
        snapshot: the epoch.
        kind: of the entities that ask.
        ids: who asks.
        policy: the effective policy.
        as_of: the day, days since 1970-01-01.
    """
    began = time.perf_counter()
    names = list(ids)
    errors: dict[int, MatchwrightError] = {}
    row_q = snapshot.rows_of(kind, names)
    there = np.flatnonzero(row_q >= 0)
    rows = gather(snapshot.corpus(kind), row_q[there]) if there.size else NOBODY
    key_q = rows.key_n if rows.n == len(names) else snapshot.keys(names)
    for n in np.flatnonzero(row_q < 0).tolist():
        errors[n] = NotFound(f"there is no {kind} with the id {names[n]!r}", id=names[n], kind=kind)
    whole = policy.rerank is not None  # features are made of whole records

    def read(at: Int64) -> ColumnTable | list[dict[str, Any]]:
        if whole:
            return snapshot.rows(kind, [names[n] for n in at.tolist()])
        return snapshot.table_of(kind, row_q[at], READ[kind])

    records, at = _readable(read, there, errors)
    vectors = snapshot.generation.query(kind, records, policy.facets, as_of)
    made = snapshot.generation.quantise(vectors, kind, policy.weights)
    day = Day(as_of, offset_minutes(as_zones(snapshot.generation), as_of))
    compiled = compile_block(kind, rows, enabled(policy.rules), day).among(there, len(names))
    q_qd = _spread(made.q_qd, at, len(names))
    t_q = _spread(made.t_q, at, len(names))
    return PreparedBlock(
        kind=kind,
        ids=names,
        key_q=key_q,
        q_qd=q_qd,
        t_q=t_q,
        resolution_q=_spread(made.resolution_q, at, len(names)),
        attainable_q=_spread(made.attainable_q, at, len(names)),
        groups=compiled.groups,
        group_q=compiled.group_q,
        never_q=compiled.never_q,
        unsure_q=compiled.unsure_q,
        print_qb=_prints(key_q, t_q, q_qd, compiled),
        errors=errors,
        records=dict(zip(at.tolist(), records, strict=True)) if isinstance(records, list) else {},
        seconds=time.perf_counter() - began,
    )


def _readable(
    read: Callable[[Int64], T], at: Int64, errors: dict[int, MatchwrightError]
) -> tuple[T, Int64]:
    """(what is read at the positions that can be, those positions); the others get an error."""
    try:
        return read(at), at
    except MatchwrightError:
        for n in at.tolist():  # one of them is unreadable: find out which
            try:
                read(np.array([n]))
            except MatchwrightError as error:
                errors[n] = error
        good = at[[n not in errors for n in at.tolist()]]
        return read(good), good


def _spread(values: Any, at: Int64, n: int) -> Any:
    """Values at their positions among n, 0 elsewhere."""
    if at.size == n:
        return values
    out = np.zeros((n, *values.shape[1:]), dtype=values.dtype)
    out[at] = values
    return out


def _prints(key_q: UInt64, t_q: Float64, q_qd: Int16, compiled: CompiledBlock) -> UInt8:
    """uint8 (Q, 16): the query's key, t, q, and the rules in their canonical form."""
    groups = compiled.groups
    shown = list(map(canonical_predicate, groups.predicates))
    said = list(map(shown.__getitem__, groups.which_m.tolist()))
    start = groups.start_g.tolist()
    rules = [b"".join(said[low:high]) for low, high in itertools.pairwise(start)]
    form = np.dtype([("key", "<u8"), ("t", "<f8"), ("q", "<i2", q_qd.shape[1:])])
    asked = np.empty(key_q.size, dtype=form)
    asked["key"], asked["t"], asked["q"] = key_q, t_q, q_qd
    written, size = asked.tobytes(), form.itemsize
    begun = hashlib.blake2b(digest_size=PRINT_BYTES, person=PRINT_PERSON)
    prints = bytearray()
    for n, group in enumerate(compiled.group_q.tolist()):
        state = begun.copy()
        state.update(written[n * size : (n + 1) * size])
        state.update(rules[group])
        prints += state.digest()
    return np.frombuffer(prints, np.uint8).reshape(-1, PRINT_BYTES)


def canonical_predicate(predicate: Predicate) -> bytes:
    """One predicate as bytes: its name, its fields, its values, each fixed in form.

    Long ones (lists of keys, offsets of zones) by their hash, so that a print stays cheap.
    """
    text = f"{predicate!r};".encode()
    if len(text) <= 256:
        return text
    return hashlib.blake2b(text, digest_size=32, person=PRINT_PERSON).digest()
