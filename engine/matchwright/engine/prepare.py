"""From requests to queries: records, effective policies, integer vectors and predicates.

Everything is done for whole batches; what is wrong with one request becomes that request's error
and leaves its neighbours alone.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from matchwright.engine.columns import columns
from matchwright.engine.eligibility import Compiled, compile_enabled, enabled, narrowed
from matchwright.engine.errors import (
    EpochGone,
    EpochNotReached,
    LowResolution,
    MatchwrightError,
    NotFound,
)
from matchwright.engine.limits import Limits, check_limits, tightened
from matchwright.engine.policy import Budgets, Policy
from matchwright.engine.records import KINDS, Kind, to_rows
from matchwright.engine.request import Request, check_id, check_request
from matchwright.engine.results import canonical_json
from matchwright.engine.rule_shapes import Day, QueryRow
from matchwright.engine.table import ColumnTable
from matchwright.engine.zones import as_zones, offset_minutes
from matchwright.kernels.types import Corpus, Int16, Int64, Rules, UInt64

if TYPE_CHECKING:
    from matchwright.engine.generation.facets.text import AskedText

TEXT = "text"
INLINE_PERSON = b"mw-inline-v1"
"""Personalisation of the hash of an inline record; names the version of its canonical form."""
NO_ID = "-"
"""Stands for the id of an inline record that has none, where a frame needs one."""


class SnapshotLike(Protocol):
    """What the matcher uses of a snapshot."""

    @property
    def epoch(self) -> Any: ...
    @property
    def generation(self) -> Any: ...
    @property
    def salt(self) -> bytes: ...
    def corpus(self, kind: Kind) -> Corpus: ...
    def count(self, kind: Kind) -> int: ...
    def keys(self, ids: Sequence[str]) -> UInt64: ...
    def rows_of(self, kind: Kind, ids: Sequence[str]) -> Int64: ...
    def ids_of(self, kind: Kind, rows: Sequence[int] | Int64) -> list[str]: ...
    def rows(self, kind: Kind, ids: Sequence[str]) -> list[dict[str, Any]]: ...
    def table_of(
        self, kind: Kind, rows: Sequence[int] | Int64, fields: Sequence[str]
    ) -> ColumnTable: ...


@dataclass(frozen=True, eq=False)
class Prepared:
    """One query, ready for the kernels.

    Attributes:
        request: what was asked.
        policy: the effective policy.
        record: the record that asks, as stored or given (the request's limits not joined).
        query_id: None for an inline record without an id.
        key: 64-bit key of the query.
        compiled: the rules, without the request's own lists.
        rules: the predicates, with them.
        q_d: int16 (D,).
        t, resolution, attainable: as in a result.
        degraded: what the answer has to go without, as in a result.
        text: the text as a served encoder gave it; None where the encoder is embedded.
    """

    request: Request
    policy: Policy
    record: Mapping[str, Any]
    query_id: str | None
    key: int
    compiled: Compiled
    rules: Rules
    q_d: Int16
    t: float
    resolution: int
    attainable: float
    degraded: tuple[str, ...] = ()
    text: AskedText | None = None

    @property
    def floor(self) -> int | None:
        """Least points that reach ``min_score``; None for no floor."""
        least = self.request.min_score
        return None if least is None else points_floor(least, self.t)


Outcome = Prepared | MatchwrightError


@dataclass(slots=True)
class _Draft:
    """A request on its way: its policy and its record."""

    at: int
    request: Request
    policy: Policy
    row: dict[str, Any] | None = None
    inline: bool = False
    identity: str | None = None


EffectivePolicy = Callable[[Request, Limits], Policy]


def prepare(
    snapshot: SnapshotLike,
    requests: Sequence[Request],
    budgets: Budgets,
    effective: EffectivePolicy,
    deadline: float | None = None,
) -> list[Outcome]:
    """A query, or the reason why there is none, for every request, in their order.

    Args:
        snapshot: where stored entities and the generation come from.
        budgets: limits of one request.
        effective: the policy that a request runs under, given its checked limits.
        deadline: moment of the monotonic clock until which a served encoder may take for texts
            that are given inline; None for its own budget.
    """
    done: dict[int, Outcome] = {}
    drafts: list[_Draft] = []
    for at, request in enumerate(requests):
        try:
            check_request(request, budgets)
            drafts.append(_draft(snapshot, at, request, effective))
        except MatchwrightError as error:
            done[at] = error
    for kind in ("job", "freelancer"):
        same = [draft for draft in drafts if draft.request.kind == kind]
        _read_stored(snapshot, kind, same, done)
        ready = [(draft, draft.row) for draft in same if draft.row is not None]
        if ready:
            done |= _finish(snapshot, kind, deadline, *zip(*ready, strict=True))
    return [done[at] for at in range(len(requests))]


def encode_ahead(
    snapshot: SnapshotLike, requests: Sequence[Request], deadline: float | None = None
) -> None:
    """Has texts that are given inline encoded by a served encoder, so that ``prepare`` need not
    wait for it: it finds them, or that they failed a moment ago. For whoever must not wait for a
    model where the kernels are. Raises nothing of its own.

    Args:
        deadline: as for ``prepare``.
    """
    for kind in KINDS:
        rows = []
        for request in requests:
            if request.kind == kind and isinstance(request.record, Mapping):
                with suppress(MatchwrightError):  # ``prepare`` says what is wrong with it
                    rows.append(inline_row(kind, request.record)[0])
        if rows:
            snapshot.generation.asked_text(rows, deadline)


def _draft(snapshot: SnapshotLike, at: int, request: Request, effective: EffectivePolicy) -> _Draft:
    limits = check_limits(request.kind, request.limits)
    draft = _Draft(at, request, effective(request, limits))
    check_epoch(snapshot, request)
    if request.record is not None:
        draft.inline = True
        draft.row, draft.identity = inline_row(request.kind, request.record)
    else:
        draft.identity = request.id
    return draft


def check_epoch(snapshot: SnapshotLike, request: Request) -> None:
    """Refuse an epoch that this snapshot is not.

    Raises:
        EpochGone: the epoch asked for is not the newest one.
        EpochNotReached: the newest epoch is older than ``min_epoch``.
    """
    number = snapshot.epoch.number
    if request.epoch is not None and request.epoch != number:
        raise EpochGone(
            f"epoch {request.epoch} is not kept; the newest is {number}", epoch=request.epoch
        )
    if request.min_epoch is not None and number < request.min_epoch:
        raise EpochNotReached(
            f"the newest epoch is {number}, and at least {request.min_epoch} was asked for; "
            "ask again in a second, or check which store answered the write",
            epoch=number,
        )


def inline_row(kind: Kind, record: Mapping[str, Any]) -> tuple[dict[str, Any], str | None]:
    """(the record in the form of its schema, id or None) of a record given inline.

    Raises:
        InvalidData: a field that its schema refuses.
        InvalidArgument: an id that cannot be one.
    """
    fields = dict(record)
    identity = fields.pop("id", None)
    if identity is not None:
        check_id(identity, "record.id")
    row = to_rows(kind, [{"id": NO_ID if identity is None else identity, **fields}])[0]
    return row, None if identity is None else row["id"]


def inline_key(kind: Kind, row: Mapping[str, Any], has_id: bool, salt: bytes) -> int:
    """The key of an inline query: a salted hash of its canonical message.

    The canonical message is the validated record without its unknown fields, as canonical JSON.
    """
    known = {name: value for name, value in row.items() if value is not None}
    if not has_id:
        known.pop("id")
    message = canonical_json([kind, known])
    digest = hashlib.blake2b(message, digest_size=8, key=salt, person=INLINE_PERSON).digest()
    return int.from_bytes(digest, "little")


def _read_stored(
    snapshot: SnapshotLike, kind: Kind, drafts: Sequence[_Draft], done: dict[int, Outcome]
) -> None:
    """Fill in the records of stored entities; say which are not there."""
    stored = [draft for draft in drafts if not draft.inline]
    ids = [str(draft.request.id) for draft in stored]
    found: list[_Draft] = []
    for draft, row in zip(stored, snapshot.rows_of(kind, ids).tolist() if ids else (), strict=True):
        if row >= 0:
            found.append(draft)
        else:
            done[draft.at] = _absent(kind, str(draft.request.id))
    try:
        _fill(snapshot, kind, found)
    except MatchwrightError:
        for draft in found:  # one of them is unreadable: find out which
            try:
                _fill(snapshot, kind, [draft])
            except MatchwrightError as error:
                done[draft.at] = error


def _fill(snapshot: SnapshotLike, kind: Kind, drafts: Sequence[_Draft]) -> None:
    if not drafts:
        return
    rows = snapshot.rows(kind, [str(draft.request.id) for draft in drafts])
    for draft, row in zip(drafts, rows, strict=True):
        draft.row = row


def _absent(kind: Kind, name: str) -> NotFound:
    return NotFound(f"there is no {kind} with the id {name!r}", id=name, kind=kind)


def _finish(
    snapshot: SnapshotLike,
    kind: Kind,
    deadline: float | None,
    drafts: Sequence[_Draft],
    rows: Sequence[dict[str, Any]],
) -> dict[int, Outcome]:
    """Vectors and predicates of drafts of one kind, each with its record."""
    own = snapshot.keys([str(row["id"]) for row in rows]).tolist()
    keys = _keys(snapshot, kind, drafts, rows, own)
    compiled = _compiled(snapshot, kind, drafts, rows, own)
    done: dict[int, Outcome] = {}
    text = snapshot.generation.asked_text(rows, deadline)
    for group in _alike(drafts):
        said = None if text is None else text.take(group)
        vectors = _vectors(snapshot, kind, drafts[group[0]], [rows[n] for n in group], said)
        for n, vector in zip(group, vectors, strict=True):
            draft = drafts[n]
            try:
                done[draft.at] = _prepared(snapshot, draft, rows[n], keys[n], compiled[n], vector)
            except MatchwrightError as error:
                done[draft.at] = error
    return done


def _keys(
    snapshot: SnapshotLike,
    kind: Kind,
    drafts: Sequence[_Draft],
    rows: Sequence[dict[str, Any]],
    own: Sequence[int],
) -> list[int]:
    """Keys of the queries; ``own`` are those of the records' ids."""
    return [
        inline_key(kind, row, draft.identity is not None, snapshot.salt) if draft.inline else key
        for draft, row, key in zip(drafts, rows, own, strict=True)
    ]


def _compiled(
    snapshot: SnapshotLike,
    kind: Kind,
    drafts: Sequence[_Draft],
    rows: Sequence[dict[str, Any]],
    own: Sequence[int],
) -> list[Compiled]:
    """The rules of each draft, from the columns that it would be stored with."""
    zones = as_zones(snapshot.generation)
    joined = [tightened(row, draft.policy.limits) for draft, row in zip(drafts, rows, strict=True)]
    made, sets = columns(kind, joined, snapshot.salt, zones)
    scalars = {name: column.tolist() for name, column in made.items()}
    days = {day: Day(day, offset_minutes(zones, day)) for day in set(map(_day, drafts))}
    asked = {id(draft.policy): tuple(enabled(draft.policy.rules)) for draft in _policies(drafts)}
    compiled = []
    for n, draft in enumerate(drafts):
        query = QueryRow(kind, scalars, sets, n, own[n] if draft.identity is not None else None)
        compiled.append(compile_enabled(query, asked[id(draft.policy)], days[_day(draft)]))
    return compiled


def _policies(drafts: Sequence[_Draft]) -> list[_Draft]:
    """One draft for each policy."""
    return list({id(draft.policy): draft for draft in drafts}.values())


def _day(draft: _Draft) -> int:
    assert draft.request.as_of is not None, "checked by check_request"
    return draft.request.as_of


def _alike(drafts: Sequence[_Draft]) -> list[list[int]]:
    """Positions of drafts, grouped by day and weights: what a generation takes at once."""
    groups: dict[Any, list[int]] = {}
    for n, draft in enumerate(drafts):
        groups.setdefault((_day(draft), tuple(draft.policy.weights.items())), []).append(n)
    return list(groups.values())


@dataclass(frozen=True, slots=True, eq=False)
class Vector:
    """One query vector on its grid."""

    q_d: Int16
    t: float
    resolution: int
    attainable: float
    degraded: tuple[str, ...]
    text: AskedText | None


def _vectors(
    snapshot: SnapshotLike,
    kind: Kind,
    like: _Draft,
    rows: Sequence[dict[str, Any]],
    text: AskedText | None,
) -> list[Vector]:
    """Vectors of rows that are all asked under the day and the weights of one draft."""
    generation, policy = snapshot.generation, like.policy
    vectors = generation.query(kind, rows, policy.facets, _day(like), text)
    made = generation.quantise(vectors, kind, policy.weights)
    # A text that weighs nothing is not missed.
    missing = text.missing if text is not None and policy.weights.get(TEXT) else {}
    return [
        Vector(
            made.q_qd[n],
            float(made.t_q[n]),
            int(made.resolution_q[n]),
            float(made.attainable_q[n]),
            (missing[n],) if n in missing else (),
            None if text is None else text.take([n]),
        )
        for n in range(len(rows))
    ]


def _prepared(
    snapshot: SnapshotLike,
    draft: _Draft,
    row: Mapping[str, Any],
    key: int,
    compiled: Compiled,
    vector: Vector,
) -> Prepared:
    request, policy = draft.request, draft.policy
    least = policy.budgets.resolution_levels_min
    if request.weights and vector.q_d.any() and vector.resolution < least:
        raise LowResolution(
            f"with these weights a facet keeps {vector.resolution} levels of the query's grid, "
            f"and {least} are needed; bring the weights closer together, or set the small one to 0",
            resolution=vector.resolution,
            limit=least,
        )
    exclude = snapshot.keys(request.exclude_ids).tolist() if request.exclude_ids else []
    candidates = None
    if request.candidate_ids is not None:
        candidates = snapshot.keys(request.candidate_ids).tolist() if request.candidate_ids else []
    return Prepared(
        request=request,
        policy=policy,
        record=row,
        query_id=draft.identity,
        key=key,
        compiled=compiled,
        rules=narrowed(compiled.predicates, exclude, candidates),
        q_d=vector.q_d,
        t=vector.t,
        resolution=vector.resolution,
        attainable=vector.attainable,
        degraded=vector.degraded,
        text=vector.text,
    )


def points_floor(min_score: float, t: float) -> int:
    """The smallest integer p with p * t >= min_score, in float64; within ±2**31.

    Args:
        min_score: finite.
        t: the query's step, positive.
    """
    most = 1 << 31
    guess = min_score / t
    if guess >= most:
        return most
    if guess <= -most:
        return -most
    p = math.ceil(guess)
    while (p - 1) * t >= min_score:
        p -= 1
    while p * t < min_score:
        p += 1
    return p
