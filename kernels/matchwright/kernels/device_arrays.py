"""What lies on a device: rows, columns, programs, queries, and which rows a kernel looks at."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from matchwright.kernels.compile import limit
from matchwright.kernels.rule_program import Program

Array = Any
"""An array on the device: NumPy's or CuPy's."""

WORD = 32
"""Eligibility bits in one word; tiles begin at multiples of it."""
POINTS, NMIX, NLOW, ROW = range(4)
"""The int32 columns of an entry; ``cuda/order.cuh`` says what they hold."""
NOTHING = (-(2**31), 0, 0, -1)
"""The entry below every real one."""


@dataclass(frozen=True, slots=True)
class DeviceSegment:
    """A segment's arrays on the device.

    Attributes:
        x_nd: int8 (N, width), padded with zeros to a multiple of ``limit("ALIGN")``.
        norm_n: int32 (N,), the rows' norms, rounded up.
        key_n: uint64 (N,).
    """

    x_nd: Array
    norm_n: Array
    key_n: Array

    @property
    def n(self) -> int:
        return int(self.x_nd.shape[0])

    @property
    def nbytes(self) -> int:
        return int(self.x_nd.nbytes + self.norm_n.nbytes + self.key_n.nbytes)

    def slice(self, begin: int, end: int) -> DeviceSegment:
        """Rows begin..end - 1, without a copy."""
        return DeviceSegment(self.x_nd[begin:end], self.norm_n[begin:end], self.key_n[begin:end])

    def take(self, rows: Array) -> DeviceSegment:
        """A copy of some rows, int64, in their order."""
        return DeviceSegment(self.x_nd[rows], self.norm_n[rows], self.key_n[rows])


@dataclass(frozen=True, slots=True, eq=False)
class DeviceColumns:
    """Rule columns of a whole segment on the device.

    Attributes:
        key_n: uint64 (N,), the segment's keys.
        scalars: name -> int32 (N,).
        sets: name -> (int64 (N + 1,) starts, uint64 values, uint8 (N,) known).
    """

    key_n: Array
    scalars: dict[str, Array] = field(default_factory=dict)
    sets: dict[str, tuple[Array, Array, Array]] = field(default_factory=dict)

    @property
    def n(self) -> int:
        return int(self.key_n.shape[0])


@dataclass(frozen=True, slots=True, eq=False)
class DeviceProgram:
    """A program on the device; see ``rule_program.Program``."""

    program: Program
    rule_m8: Array
    start_g: Array
    pool: Array


@dataclass(frozen=True, slots=True)
class QueryBlock:
    """A block of queries on the device, and what has been found for them.

    Attributes:
        high_qd: the first limb, (Q, width): int8 for the sieve, else what the product takes.
        low_qd: the second limb, int8 (Q, width).
        low_norm_q: int32 (Q,), norms of ``low_qd``, rounded up.
        key_q: uint64 (Q,).
        group_q: int32 (Q,), rows of the tile's eligibility bits.
        bound_q4, top_qk4, found_qc4: int32 entries (Q, 4), (Q, K, 4), (Q, C, 4).
        have_q: int32 (Q,), entries of ``top_qk4`` in use.
        count_q: uint32 (Q,), entries found since it was last set to zero.
    """

    high_qd: Array
    low_qd: Array
    low_norm_q: Array
    key_q: Array
    group_q: Array
    bound_q4: Array
    top_qk4: Array
    have_q: Array
    found_qc4: Array
    count_q: Array

    def counting(self, count_q: Array) -> QueryBlock:
        """The same block with other counters; ``replace`` takes three times as long."""
        return QueryBlock(
            *(self.high_qd, self.low_qd, self.low_norm_q, self.key_q, self.group_q),
            *(self.bound_q4, self.top_qk4, self.have_q, self.found_qc4, count_q),
        )

    @property
    def k(self) -> int:
        return int(self.top_qk4.shape[1])

    @property
    def capacity(self) -> int:
        return int(self.found_qc4.shape[1])


@dataclass(frozen=True, slots=True, eq=False)
class TileRules:
    """Rules that a scan tests for the rows that may reach a bound.

    Attributes:
        program, columns: the rules, and what they read: a whole segment's.
        table: of ``KernelDevice.column_table``.
        rule_q: int32 (Q,), each query's group of the program.
        row: the tile's first row within the segment.
    """

    program: DeviceProgram
    columns: DeviceColumns
    table: Array
    rule_q: Array
    row: int


@dataclass(frozen=True, slots=True)
class Tile:
    """First limbs of a query block and some rows of a segment.

    Attributes:
        first_qn: float32 (Q, N), exact integers; None where the sieve works them out.
        rows: the rows, a slice of a resident segment.
        row0: global row of the first column.
        bits_gw: uint32 (G, words), eligibility; bit 0 of word 0 is the first column.
        rules: what rows must pass besides; None: nothing.
    """

    first_qn: Array | None
    rows: DeviceSegment
    row0: int
    bits_gw: Array
    rules: TileRules | None = None


@dataclass(frozen=True, slots=True)
class RowRuns:
    """Rows of a segment: all of a stretch, or a sample, runs of words spread over it.

    Attributes:
        begin, end: of the stretch; begin is a multiple of 32.
        run: words that follow one another.
        step: words from the beginning of a run to that of the next.
    """

    begin: int
    end: int
    run: int
    step: int

    @classmethod
    def all(cls, begin: int, end: int) -> RowRuns:
        """Every row."""
        words = max(1, -(-(end - begin) // WORD))
        return cls(begin, end, words, words)

    @property
    def words(self) -> int:
        """Words of eligibility bits."""
        all_of_them = -(-(self.end - self.begin) // WORD)
        whole, left = divmod(all_of_them, self.step)
        return whole * self.run + min(left, self.run)

    @property
    def rows(self) -> NDArray[np.int64]:
        """int64: their numbers, ascending."""
        word = np.arange(self.words, dtype=np.int64)
        first = self.begin + (word // self.run * self.step + word % self.run) * WORD
        rows = (first[:, None] + np.arange(WORD)).reshape(-1)
        found: NDArray[np.int64] = rows[rows < self.end]
        return found


def padded(a_nd: NDArray[Any]) -> NDArray[Any]:
    """``a_nd`` with its rows filled up with zeros to a multiple of ``limit("ALIGN")`` entries."""
    missing = -a_nd.shape[1] % limit("ALIGN")
    if not missing:
        return np.ascontiguousarray(a_nd)
    return np.pad(a_nd, ((0, 0), (0, missing)))
