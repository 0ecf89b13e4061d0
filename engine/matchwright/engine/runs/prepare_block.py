"""Stored entities as queries, a block at a time.

The same queries as ``prepare.prepare`` makes one by one, from what is stored: rule columns are
taken from the segments, vectors are made from the records of the whole block. One unreadable
record is an error of its own query.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from matchwright.engine.eligibility import Compiled, compile_enabled, enabled
from matchwright.engine.errors import MatchwrightError, NotFound
from matchwright.engine.policy import Policy
from matchwright.engine.prepare import SnapshotLike
from matchwright.engine.records import Kind
from matchwright.engine.rule_shapes import Day, QueryRow
from matchwright.engine.zones import as_zones, offset_minutes
from matchwright.kernels.types import (
    Bool,
    Float64,
    Int16,
    Int32,
    Int64,
    Predicate,
    Queries,
    Rules,
    UInt8,
    UInt64,
)

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
        rules: predicates of each query.
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
    rules: list[Rules]
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
        groups: dict[Rules, int] = {}
        group_q = [groups.setdefault(self.rules[n], len(groups)) for n in at.tolist()]
        return Queries(
            q_qd=self.q_qd[at],
            key_q=self.key_q[at],
            groups=tuple(groups),
            group_q=np.array(group_q, dtype=np.int32),
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
    key_q = snapshot.keys(names)
    errors: dict[int, MatchwrightError] = {}
    row_q = snapshot.rows_of(kind, names)
    for n in np.flatnonzero(row_q < 0).tolist():
        errors[n] = NotFound(f"there is no {kind} with the id {names[n]!r}", id=names[n], kind=kind)
    records, at = _records(snapshot, kind, names, errors)
    vectors = snapshot.generation.query(kind, records, policy.facets, as_of)
    made = snapshot.generation.quantise(vectors, kind, policy.weights)
    compiled = _compiled(snapshot, kind, row_q, key_q, policy, as_of)
    block = PreparedBlock(
        kind=kind,
        ids=names,
        key_q=key_q,
        q_qd=_spread(made.q_qd, at, len(names)),
        t_q=_spread(made.t_q, at, len(names)),
        resolution_q=_spread(made.resolution_q, at, len(names)),
        attainable_q=_spread(made.attainable_q, at, len(names)),
        rules=[one.predicates for one in compiled],
        never_q=np.array([bool(one.never) for one in compiled], dtype=np.bool_),
        unsure_q=np.array([bool(one.unsure) for one in compiled], dtype=np.bool_),
        print_qb=np.zeros((len(names), PRINT_BYTES), dtype=np.uint8),
        errors=errors,
        seconds=0.0,
        records={} if policy.rerank is None else dict(zip(at.tolist(), records, strict=True)),
    )
    _print(block)
    object.__setattr__(block, "seconds", time.perf_counter() - began)
    return block


def _records(
    snapshot: SnapshotLike, kind: Kind, names: list[str], errors: dict[int, MatchwrightError]
) -> tuple[list[dict[str, Any]], Int64]:
    """(records of those that can be read, their positions); the others get an error."""
    at = [n for n in range(len(names)) if n not in errors]
    try:
        return snapshot.rows(kind, [names[n] for n in at]), np.array(at, dtype=np.int64)
    except MatchwrightError:
        good: list[int] = []
        for n in at:  # one of them is unreadable: find out which
            try:
                snapshot.rows(kind, [names[n]])
                good.append(n)
            except MatchwrightError as error:
                errors[n] = error
        return snapshot.rows(kind, [names[n] for n in good]), np.array(good, dtype=np.int64)


def _spread(values: Any, at: Int64, n: int) -> Any:
    """Values at their positions among n, 0 elsewhere."""
    if at.size == n:
        return values
    out = np.zeros((n, *values.shape[1:]), dtype=values.dtype)
    out[at] = values
    return out


def _compiled(
    snapshot: SnapshotLike,
    kind: Kind,
    row_q: Int64,
    key_q: UInt64,
    policy: Policy,
    as_of: int,
) -> list[Compiled]:
    """The rules of each row, from the rule columns that it is stored with."""
    corpus = snapshot.corpus(kind)
    day = Day(as_of, offset_minutes(as_zones(snapshot.generation), as_of))
    part_q = np.searchsorted(corpus.base, row_q, side="right") - 1
    local_q = row_q - corpus.base[np.maximum(part_q, 0)]
    asked = tuple(enabled(policy.rules))
    compiled = []
    same: dict[Predicate, Predicate] = {}
    for part, local, key in zip(part_q.tolist(), local_q.tolist(), key_q.tolist(), strict=True):
        if part < 0:
            compiled.append(Compiled(()))
            continue
        segment = corpus.parts[part][0]
        query = QueryRow(kind, segment.scalars, segment.sets, local, key)
        one = compile_enabled(query, asked, day)
        shared = tuple(same.setdefault(predicate, predicate) for predicate in one.predicates)
        compiled.append(Compiled(shared, one.never, one.unsure))
    return compiled


def _print(block: PreparedBlock) -> None:
    """Fill in the prints: q, t, the query's key, and the rules in their canonical form."""
    shown: dict[int, bytes] = {}
    for n in range(block.q):
        state = hashlib.blake2b(digest_size=PRINT_BYTES, person=PRINT_PERSON)
        state.update(block.key_q[n].astype("<u8").tobytes())
        state.update(block.t_q[n].astype("<f8").tobytes())
        state.update(block.q_qd[n].astype("<i2").tobytes())
        for predicate in block.rules[n]:
            text = shown.get(id(predicate))  # predicates of a block are shared, and kept by it
            if text is None:
                text = shown[id(predicate)] = canonical_predicate(predicate)
            state.update(text)
        block.print_qb[n] = np.frombuffer(state.digest(), dtype=np.uint8)


def canonical_predicate(predicate: Predicate) -> bytes:
    """One predicate as bytes: its name, its fields, its values, each fixed in form.

    Long ones (lists of keys, offsets of zones) by their hash, so that a print stays cheap.
    """
    text = f"{predicate!r};".encode()
    if len(text) <= 256:
        return text
    return hashlib.blake2b(text, digest_size=32, person=PRINT_PERSON).digest()
