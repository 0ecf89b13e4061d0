"""``NumpyDevice``: what the kernels in ``cuda/`` do, said in NumPy."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from matchwright.kernels import order, rules
from matchwright.kernels.device import (
    NLOW,
    NMIX,
    POINTS,
    ROW,
    Array,
    DeviceColumns,
    DeviceProgram,
    KernelDevice,
    QueryBlock,
    RowRuns,
    Tile,
)
from matchwright.kernels.rule_program import Program
from matchwright.kernels.types import Bool, Segment, SetColumn, UInt32


class NumpyDevice(KernelDevice):
    """What the kernels do, said in NumPy; the referee of the kernels and of the loop above them."""

    name = "emulated"
    xp = np
    half = False

    def __init__(self, *, tensor: bool = False) -> None:
        self.tensor = tensor

    def upload(self, host: NDArray[Any]) -> Array:
        return np.array(host, order="C")

    def product(self, high_qd: Array, x_nd: Array, out_qn: Array) -> None:
        np.matmul(high_qd, x_nd.astype(np.float32).T, out=out_qn)

    def norms(self, x_nd: Array) -> Array:
        square = (x_nd.astype(np.int64) ** 2).sum(axis=1)
        return np.ceil(np.sqrt(square)).astype(np.int32)

    def points(self, x_nd: Array, q_d: Array, offset_b: Array) -> Array:
        facets = itertools.pairwise(offset_b.tolist())
        wide_nd, wide_d = x_nd.astype(np.int64), q_d.astype(np.int64)
        sums = [wide_nd[:, a:b] @ wide_d[a:b] for a, b in facets]
        return np.stack(sums, axis=1).astype(np.int32)

    def threshold(
        self, block: QueryBlock, tile: Tile, active_a: Array, begin: int, end: int
    ) -> None:
        assert tile.first_qn is not None
        self._test(block, tile, tile.first_qn, active_a, begin, end)

    def sieve(self, block: QueryBlock, tile: Tile, active_a: Array, begin: int, end: int) -> None:
        first_qn = block.high_qd.astype(np.int64) @ tile.rows.x_nd.astype(np.int64).T
        self._test(block, tile, first_qn, active_a, begin, end)

    @staticmethod
    def _test(
        block: QueryBlock, tile: Tile, first_qn: Array, active_a: Array, begin: int, end: int
    ) -> None:
        bits_gn = np.unpackbits(tile.bits_gw.view(np.uint8), axis=1, bitorder="little")
        for q in active_a:
            bound = entry_keys(block.bound_q4[q : q + 1])[0]
            wanted = np.flatnonzero(bits_gn[block.group_q[q], begin:end]) + begin
            first = first_qn[q, wanted].astype(np.int64)
            slack = int(block.low_norm_q[q]) * tile.rows.norm_n[wanted].astype(np.int64)
            near = 128 * first + slack >= bound[0]
            near[near] = _passes(tile, int(q), wanted[near])
            entries = _entries(block, tile, int(q), wanted[near], first[near])
            found = [i for i, key in enumerate(entry_keys(entries)) if key > bound]
            at = int(block.count_q[q])
            fits = entries[found][: max(0, block.capacity - at)]
            block.found_qc4[q, at : at + len(fits)] = fits
            block.count_q[q] += len(found)

    def select(self, block: QueryBlock, active_a: Array) -> None:
        held_q = np.minimum(block.count_q, block.capacity)
        for q in active_a[held_q[active_a] > 0]:
            count, have = int(block.count_q[q]), int(block.have_q[q])
            found = block.found_qc4[q, : held_q[q]]
            entries = np.concatenate([block.top_qk4[q, :have], found])
            best = _best_first(entries)[: block.k]
            if len(best) == block.k:
                reached = best[-1]
                if count > block.capacity:
                    reached = predecessor(reached)
                if entry_keys(reached[None])[0] > entry_keys(block.bound_q4[q : q + 1])[0]:
                    block.bound_q4[q] = reached
            if count <= block.capacity:
                block.top_qk4[q, : len(best)] = best
                block.have_q[q] = len(best)

    def program(self, program: Program) -> DeviceProgram:
        return DeviceProgram(program, program.rule_m8, program.start_g, program.pool)

    def rule_bits(
        self,
        program: DeviceProgram,
        columns: DeviceColumns,
        table: Array,
        alive_w: Array | None,
        rows: RowRuns,
        eligible_g: Array,
        unverified_g: Array,
    ) -> Array:
        some = rules.Rows(as_segment(columns), rows.rows)
        alive_n = np.ones(some.n, np.bool_)
        if alive_w is not None:
            octets = alive_w.view(np.uint8)
            alive_n = np.unpackbits(octets, bitorder="little")[rows.rows].astype(np.bool_)
        found = []
        for g, group in enumerate(program.program.groups):
            passed, unsure = rules.eligible(group, some)
            found.append(passed & alive_n)
            eligible_g[g] += np.count_nonzero(found[-1])
            unverified_g[g] += np.count_nonzero(unsure & alive_n)
        return pack_bits(found)


def as_segment(columns: DeviceColumns) -> Segment:
    """Columns of an emulated device as the reference reads them."""
    sets = {
        name: SetColumn(start, value, known.view(np.bool_))
        for name, (start, value, known) in columns.sets.items()
    }
    nothing = np.empty((columns.n, 0), np.int8)
    return Segment(nothing, columns.key_n, columns.scalars, sets)


def pack_bits(eligible_gn: Sequence[Bool]) -> UInt32:
    """bool (G, N) as uint32 (G, words), little endian, zero beyond the last row."""
    packed = np.packbits(np.asarray(eligible_gn), axis=1, bitorder="little")
    padded_gb = np.pad(packed, ((0, 0), (0, -packed.shape[1] % 4)))
    return padded_gb.view("<u4")


def entry_keys(entries: NDArray[np.int32]) -> list[tuple[int, int, int]]:
    """The 96-bit keys of (n, 4) entries as Python integers; more is better."""
    points = entries[:, POINTS].tolist()
    ties = np.ascontiguousarray(entries[:, NMIX:ROW]).view(np.uint32)
    return list(zip(points, ties[:, 0].tolist(), ties[:, 1].tolist(), strict=True))


def predecessor(entry: NDArray[np.int32]) -> NDArray[np.int32]:
    """The key just below that of an entry."""
    points, nmix, nlow = entry_keys(entry[None])[0]
    number = (points << 64) + (nmix << 32) + nlow - 1
    tie = np.array([number >> 32 & 0xFFFFFFFF, number & 0xFFFFFFFF], np.uint32)
    return np.array([number >> 64, *tie.view(np.int32), -1], np.int32)


def _passes(tile: Tile, q: int, columns: NDArray[np.intp]) -> Bool:
    if tile.rules is None:
        return np.ones(columns.size, np.bool_)
    asked = tile.rules.program.program.groups[int(tile.rules.rule_q[q])]
    rows = rules.Rows(as_segment(tile.rules.columns), columns + tile.rules.row)
    return rules.eligible(asked, rows)[0]


def _entries(
    block: QueryBlock, tile: Tile, q: int, columns: NDArray[np.intp], first: NDArray[np.int64]
) -> NDArray[np.int32]:
    x_nd = tile.rows.x_nd[columns].astype(np.int64)
    key_n = tile.rows.key_n[columns]
    out = np.empty((len(columns), 4), np.int32)
    out[:, POINTS] = 128 * first + x_nd @ block.low_qd[q].astype(np.int64)
    out[:, NMIX] = (~order.mix32(block.key_q[q], key_n)).view(np.int32)
    out[:, NLOW] = (~(key_n & np.uint64(0xFFFFFFFF)).astype(np.uint32)).view(np.int32)
    out[:, ROW] = tile.row0 + columns
    return out


def _best_first(entries: NDArray[np.int32]) -> NDArray[np.int32]:
    ties = np.ascontiguousarray(entries[:, NMIX:ROW]).view(np.uint32)
    ranked = np.lexsort((ties[:, 1], ties[:, 0], entries[:, POINTS]))[::-1]
    return entries[ranked]
