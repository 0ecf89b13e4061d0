"""The arrays that kernels take and give.

Shapes are spelt in names: ``N`` corpus rows, ``D`` dimensions, ``Q`` queries, ``K`` results,
``B`` facets. ``x_nd`` is therefore an (N, D) array.

A corpus is a sequence of segments. A segment never changes; which of its rows are alive is said
by the corpus, so that a deletion costs one bit and no copy::

    Corpus ── parts ──> (Segment, alive_n)   (Segment, alive_n)   ...
                         rows 0 .. N0-1       rows N0 .. N0+N1-1

Global row numbers count through the parts in order.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Int8 = NDArray[np.int8]
Int16 = NDArray[np.int16]
Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]
UInt8 = NDArray[np.uint8]
UInt16 = NDArray[np.uint16]
UInt32 = NDArray[np.uint32]
UInt64 = NDArray[np.uint64]
Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Bool = NDArray[np.bool_]

UNKNOWN = -(2**31)
"""The int32 that stands for "not known" in every scalar rule column."""
NO_LIMIT = 2**31 - 1
"""The int32 that stands for "no upper limit" in a column that holds limits."""

D_MAX = 1_040
"""Widest vector: 127 * 127 * 1,040 < 2**24, so that float32 sums of the first limb are exact."""
K_MAX = 1_000
Q_ABS_MAX = 16_255
"""Largest |q|: 127 * 128 - 1, so that both limbs fit int8 (see docs/scoring.md)."""


@dataclass(frozen=True, slots=True)
class SetColumn:
    """A sorted set of uint64 values for every row, in compressed sparse row form.

    Attributes:
        start_n: int64 (N + 1,); row n owns ``value[start_n[n]:start_n[n + 1]]``.
        value: uint64, strictly ascending within a row.
        known_n: bool (N,); False where the set is not known (it is then empty).
    """

    start_n: Int64
    value: UInt64
    known_n: Bool


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """Rows of one kind of entity, ready to be scanned. Arrays may be memory-mapped, read-only.

    Attributes:
        x_nd: int8 (N, D), C order, entries in -127..127.
        key_n: uint64 (N,), the salted hash of each row's external id; unique in a corpus.
        scalars: name -> int32 (N,); ``UNKNOWN`` where not known.
        sets: name -> SetColumn.
        index: what ``matchwright.kernels.index`` has built for this segment and stored beside it
            (name -> array), or empty: then rules are evaluated row by row.
        memo: what kernels keep of the rules for later queries: bits of predicates, working hours.
    """

    x_nd: Int8
    key_n: UInt64
    scalars: Mapping[str, Int32] = field(default_factory=dict)
    sets: Mapping[str, SetColumn] = field(default_factory=dict)
    index: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    memo: dict[Any, Any] = field(default_factory=dict, repr=False)

    @property
    def n(self) -> int:
        return int(self.x_nd.shape[0])


@dataclass(frozen=True)
class Corpus:
    """Segments and which of their rows are alive: what a query is matched against.

    Attributes:
        parts: (segment, alive) pairs; alive is a bool (N,) array or None when every row lives.
    """

    parts: tuple[tuple[Segment, Bool | None], ...]

    @cached_property
    def base(self) -> Int64:
        """int64 (parts + 1,): the global row number at which each part begins."""
        return np.cumsum([0, *(segment.n for segment, _ in self.parts)], dtype=np.int64)

    @property
    def n(self) -> int:
        """Rows, dead ones included."""
        return int(self.base[-1])

    @cached_property
    def memo(self) -> dict[str, Any]:
        """What kernels keep with a corpus to have it at once the next time: a sample of rows."""
        return {}


# ── Predicates ────────────────────────────────────────────────────────────────────────────────
#
# A rule set is a tuple of predicates over the corpus side's columns; a row is eligible when it is
# alive and every predicate passes. Predicates are hashable, so queries that share a rule set are
# grouped by equality. `veto` names the reason when a row fails; `unknown_passes` says what happens
# where the column is not known: the row fails with the same veto, or passes and counts as
# unverified.


@dataclass(frozen=True, slots=True)
class InRange:
    """low <= column <= high."""

    column: str
    low: int
    high: int
    veto: str
    unknown_passes: bool = False


@dataclass(frozen=True, slots=True)
class OneOf:
    """The scalar is one of ``values`` (or none of them, when ``negate``)."""

    column: str
    values: tuple[int, ...]
    veto: str
    unknown_passes: bool = False
    negate: bool = False


@dataclass(frozen=True, slots=True)
class HasAll:
    """The row's set holds every one of ``values``."""

    column: str
    values: tuple[int, ...]
    veto: str
    unknown_passes: bool = False


@dataclass(frozen=True, slots=True)
class HasNone:
    """The row's set holds none of ``values``. An empty set passes."""

    column: str
    values: tuple[int, ...]
    veto: str
    unknown_passes: bool = False


@dataclass(frozen=True, slots=True)
class EmptyOrHasAny:
    """The row's set is empty (it asks for nothing) or holds at least one of ``values``."""

    column: str
    values: tuple[int, ...]
    veto: str
    unknown_passes: bool = False


@dataclass(frozen=True, slots=True)
class SubsetOf:
    """Every value of the row's set is among ``values``. An empty set passes."""

    column: str
    values: tuple[int, ...]
    veto: str
    unknown_passes: bool = False


@dataclass(frozen=True, slots=True)
class HoursOverlap:
    """Daily working hours overlap by at least the minutes asked for.

    Both windows are [start, end) in local minutes of the day, 0..1,440; an end not after its start
    crosses midnight. A row's window comes from the columns ``hours_start``, ``hours_end`` and
    ``zone`` (an index into ``offset_minutes``); the query's is given in UTC.

    Attributes:
        offset_minutes: per zone index, minutes east of UTC on the day asked for.
        start_utc, end_utc: the query's window, minutes of the UTC day; None when it is not known.
        required_minutes: what the query asks for, or None: then the row's column
            ``overlap_minutes`` says what the row asks for (0 asks for nothing and passes).
    """

    offset_minutes: tuple[int, ...]
    start_utc: int | None
    end_utc: int | None
    required_minutes: int | None
    veto: str
    unknown_passes: bool = True

    def __hash__(self) -> int:
        """Without the offsets: hundreds of them, and all who ask on one day have the same."""
        return hash((self.start_utc, self.end_utc, self.required_minutes, self.veto))


@dataclass(frozen=True, slots=True)
class KeyIn:
    """The row's key is one of ``keys`` (or none of them, when ``negate``). Never unknown."""

    keys: tuple[int, ...]
    veto: str
    negate: bool = False


Predicate = InRange | OneOf | HasAll | HasNone | EmptyOrHasAny | SubsetOf | HoursOverlap | KeyIn
Rules = tuple[Predicate, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Bitmap:
    """Eligibility that was worked out beforehand, over the whole corpus.

    Attributes:
        eligible_n: bool (N,), or packed: uint8 (ceil(N / 8),), little-endian bits.
    """

    eligible_n: Bool | UInt8


# ── Queries and answers ───────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True, eq=False)
class Queries:
    """A block of queries.

    Attributes:
        q_qd: int16 (Q, D), entries in -16,255..16,255.
        key_q: uint64 (Q,), the salted hash of each query's id or canonical message.
        groups: the distinct rule sets (or bitmaps) of this block.
        group_q: int32 (Q,), which of ``groups`` each query is under.
        floor_q: int64 (Q,), least points to be returned; None for no floor.
    """

    q_qd: Int16
    key_q: UInt64
    groups: Sequence[Rules | Bitmap] = ((),)
    group_q: Int32 | None = None
    floor_q: Int64 | None = None

    @property
    def q(self) -> int:
        return int(self.q_qd.shape[0])


class Counted(enum.IntEnum):
    """What an eligible count means."""

    NOT_COUNTED = 0
    AT_LEAST = 1
    EXACT = 2


@dataclass(frozen=True, slots=True, eq=False)
class TopK:
    """Struct of arrays: the best eligible rows of every query, best first.

    Attributes:
        row_qk: int64 (Q, K), global rows; -1 beyond ``returned_q``.
        points_qk: int32 (Q, K); 0 beyond ``returned_q``.
        returned_q: int32 (Q,).
        eligible_q, unverified_q: int64 (Q,), counts of eligible rows (before ``floor_q``), and of
            those among them that passed some rule on an unknown value; -1 when not counted.
        counted: what the two counts mean.
        telemetry: outside the contract: plan, device, pairs scored, survivors, seconds.
    """

    row_qk: Int64
    points_qk: Int32
    returned_q: Int32
    eligible_q: Int64
    unverified_q: Int64
    counted: Counted
    telemetry: Mapping[str, Any] = field(default_factory=dict)
