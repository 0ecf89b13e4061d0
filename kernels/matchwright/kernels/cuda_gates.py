"""Who is eligible, as a scan on a device asks for it, tile by tile.

Three ways to know, with one outcome::

    HostBits        bits worked out on the host, uploaded for each tile
    RuleBits        rules evaluated on the device for every row of a tile: bits, and exact counts
    RuleSurvivors   bits of the living rows alone; rules are evaluated for what the scan found
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np

from matchwright.kernels.device import (
    WORD,
    Array,
    DeviceColumns,
    DeviceProgram,
    KernelDevice,
    QueryBlock,
)
from matchwright.kernels.types import Bool, Int32, Int64, UInt32


class Gate(Protocol):
    """Eligibility of one block of queries."""

    @property
    def row_q(self) -> Int32:
        """int32 (Q,): each query's row of a tile's bits."""
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

    def prepare(self, block: QueryBlock) -> QueryBlock:
        """The block, with what this way needs beside it."""
        ...

    def sort_out(self, block: QueryBlock, part: int, row0: int, active_a: Array) -> None:
        """Leave those entries that the scan has found whose rows are eligible.

        Args:
            row0: global row of the segment's first.
        """


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
        words = self.bits[part][:, begin // WORD : -(-end // WORD)]
        busy_g: Bool = np.any(words, axis=1)
        active = np.flatnonzero(busy_g[self.row_q]).astype(np.int32)
        return (self.device.upload(words) if active.size else words), active

    def prepare(self, block: QueryBlock) -> QueryBlock:
        return block

    def sort_out(self, block: QueryBlock, part: int, row0: int, active_a: Array) -> None:
        """All are eligible."""


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
        groups = len(program.program.groups)
        self._eligible_g = device.upload(np.zeros(groups, np.uint64))
        self._unverified_g = device.upload(np.zeros(groups, np.uint64))

    def tile(self, part: int, begin: int, end: int) -> tuple[Array, Int32 | None]:
        bits = self.device.rule_bits(
            self.program,
            self.columns[part],
            self.alive[part],
            begin,
            end,
            self._eligible_g,
            self._unverified_g,
        )
        return bits, None

    def prepare(self, block: QueryBlock) -> QueryBlock:
        return block

    def sort_out(self, block: QueryBlock, part: int, row0: int, active_a: Array) -> None:
        """All are eligible."""

    def counts(self) -> tuple[Int64, Int64]:
        """int64 (G,) each: eligible and unverified rows of the tiles asked for, each once."""
        eligible, unverified = map(self.device.download, (self._eligible_g, self._unverified_g))
        return eligible.astype(np.int64), unverified.astype(np.int64)


class RuleSurvivors:
    """Rules for what the scan found.

    Args: as for ``RuleBits``; ``rows`` are the segments' sizes.
    """

    def __init__(
        self,
        device: KernelDevice,
        program: DeviceProgram,
        columns: Sequence[DeviceColumns],
        alive: Sequence[Array | None],
        rule_q: Int32,
    ) -> None:
        self.device, self.program, self.columns, self.alive = device, program, columns, alive
        self.row_q: Int32 = np.zeros(rule_q.size, np.int32)
        self._rule_q = device.upload(rule_q)

    def tile(self, part: int, begin: int, end: int) -> tuple[Array, Int32 | None]:
        alive = self.alive[part]
        if alive is not None:
            return alive[None, begin // WORD : -(-end // WORD)], None
        words: UInt32 = np.full((1, -(-(end - begin) // WORD)), 0xFFFFFFFF, np.uint32)
        if end % WORD:
            words[0, -1] = (1 << (end - begin) % WORD) - 1
        return self.device.upload(words), None

    def prepare(self, block: QueryBlock) -> QueryBlock:
        queries = block.count_q.shape[0]
        return replace(block, kept_q=self.device.upload(np.zeros(queries, np.uint32)))

    def sort_out(self, block: QueryBlock, part: int, row0: int, active_a: Array) -> None:
        self.device.rule_survivors(
            block, self.program, self.columns[part], self._rule_q, row0, active_a
        )
