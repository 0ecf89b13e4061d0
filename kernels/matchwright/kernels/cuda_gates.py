"""Who is eligible, as a scan on a device asks for it, range by range.

Three ways to know, with one outcome::

    HostBits        bits worked out on the host, uploaded for each range
    RuleBits        rules evaluated on the device for every row of a range: bits, and exact counts
    RuleSurvivors   bits of the living rows alone; the scan tests rules for rows near the bound

Nothing here waits for the device, but for ``RuleBits.counts``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from matchwright.kernels.device import (
    WORD,
    Array,
    DeviceColumns,
    DeviceProgram,
    KernelDevice,
    RowRuns,
    TileRules,
)
from matchwright.kernels.types import Bool, Int32, Int64, UInt32


class Gate(Protocol):
    """Eligibility of one block of queries."""

    @property
    def row_q(self) -> Int32:
        """int32 (Q,): each query's row of a range's bits."""
        ...

    def tile(self, part: int, begin: int, end: int) -> tuple[Array, Int32 | None]:
        """(bits uint32 (G, words) on the device, the queries that may find something here).

        Args:
            part: which segment.
            begin, end: its rows; begin is a multiple of 32.

        Returns:
            None in the second place: all of them.
        """
        ...

    def again(self, part: int, begin: int, end: int) -> Array:
        """The bits of rows that have been asked for before."""
        ...

    def rules(self, part: int, begin: int) -> TileRules | None:
        """What the scan has to test by itself in rows from ``begin`` on."""
        ...


class HostBits:
    """Bits from the host.

    Args:
        device: where they go.
        bits: per segment, uint32 (G, words): eligibility, dead rows excluded.
        row_q: int32 (Q,), each query's row of them.
    """

    def __init__(self, device: KernelDevice, bits: Sequence[UInt32], row_q: Int32) -> None:
        self.device, self.bits, self.row_q = device, bits, row_q

    def tile(self, part: int, begin: int, end: int) -> tuple[Array, Int32 | None]:
        words = self._words(part, begin, end)
        busy_g: Bool = np.any(words, axis=1)
        if busy_g.all():
            return self.device.upload(words), None
        active = np.flatnonzero(busy_g[self.row_q]).astype(np.int32)
        return (self.device.upload(words) if active.size else words), active

    def again(self, part: int, begin: int, end: int) -> Array:
        return self.device.upload(self._words(part, begin, end))

    def rules(self, part: int, begin: int) -> TileRules | None:
        return None

    def _words(self, part: int, begin: int, end: int) -> UInt32:
        words: UInt32 = self.bits[part][:, begin // WORD : -(-end // WORD)]
        return words


class RuleBits:
    """Bits from rules, on the device.

    Args:
        device: where the columns are.
        program: the groups' rules.
        columns: of each segment.
        alive: per segment, uint32 words on the device, or None when all rows live.
        row_q: int32 (Q,), each query's group.
    """

    def __init__(
        self,
        device: KernelDevice,
        program: DeviceProgram,
        columns: Sequence[DeviceColumns],
        alive: Sequence[Array | None],
        row_q: Int32,
    ) -> None:
        self.device, self.program, self.columns = device, program, columns
        self.alive, self.row_q = alive, row_q
        self._tables: dict[int, Array] = {}
        self._counts_2g = self._zeros()

    def asked_by(self, row_q: Int32) -> RuleBits:
        """The same rules for other queries, counting anew."""
        gate = RuleBits(self.device, self.program, self.columns, self.alive, row_q)
        gate._tables = self._tables
        return gate

    def narrowed(self, some: Int32 | Int64, row_q: Int32) -> RuleBits:
        """Some of the groups alone, ``row_q`` counting among them; counted anew."""
        program = self.device.some_groups(self.program, some)
        gate = RuleBits(self.device, program, self.columns, self.alive, row_q)
        gate._tables = self._tables
        return gate

    def tile(self, part: int, begin: int, end: int) -> tuple[Array, Int32 | None]:
        return self._bits(part, RowRuns.all(begin, end), self._counts_2g), None

    def again(self, part: int, begin: int, end: int) -> Array:
        return self._bits(part, RowRuns.all(begin, end), self._zeros())

    def rules(self, part: int, begin: int) -> TileRules | None:
        return None

    def sample(self, part: int, run: int, step: int) -> None:
        """Count runs of ``run`` words every ``step`` words of a segment."""
        n = self.columns[part].n
        self._bits(part, RowRuns(0, n, run, step), self._counts_2g)

    def counts(self) -> tuple[Int64, Int64]:
        """int64 (G,) each: eligible and unverified rows of what was asked for, each once."""
        counts = self.device.download(self._counts_2g).astype(np.int64)
        return counts[0], counts[1]

    def table(self, part: int) -> Array:
        """Where the columns of a segment lie."""
        if part not in self._tables:
            columns = self.columns[part]
            self._tables[part] = self.device.column_table(self.program.program, columns)
        return self._tables[part]

    def _bits(self, part: int, rows: RowRuns, counts_2g: Array) -> Array:
        where = self.columns[part], self.table(part), self.alive[part]
        return self.device.rule_bits(self.program, *where, rows, *counts_2g)

    def _zeros(self) -> Array:
        zeros = self.device.empty((2, len(self.program.program.groups)), np.uint64)
        zeros.fill(0)
        return zeros


class RuleSurvivors:
    """Rules for rows near the bound, in the scan.

    Args:
        bits: the rules, their columns, and which group each query asks for.
    """

    def __init__(self, bits: RuleBits) -> None:
        self.device, self._bits = bits.device, bits
        self.row_q: Int32 = np.zeros(bits.row_q.size, np.int32)
        self._rule_q = bits.device.upload(bits.row_q.astype(np.int32))
        self._living: dict[int, Array] = {}

    def tile(self, part: int, begin: int, end: int) -> tuple[Array, Int32 | None]:
        return self.again(part, begin, end), None

    def again(self, part: int, begin: int, end: int) -> Array:
        alive = self._bits.alive[part]
        if alive is None:
            alive = self._all(part)
        return alive[None, begin // WORD : -(-end // WORD)]

    def rules(self, part: int, begin: int) -> TileRules | None:
        bits = self._bits
        if not bits.program.program.rule_m8.size:
            return None
        return TileRules(bits.program, bits.columns[part], bits.table(part), self._rule_q, begin)

    def _all(self, part: int) -> Array:
        """Bits of all rows, made on the device."""
        if part not in self._living:
            n = self._bits.columns[part].n
            words = self.device.empty((-(-n // WORD),), np.uint32)
            words.fill(0xFFFFFFFF)
            if n % WORD:
                words[-1:].fill((1 << n % WORD) - 1)
            self._living[part] = words
        return self._living[part]
