"""How big blocks, tiles and lists may be within a budget of temporary memory."""

from __future__ import annotations

from dataclasses import dataclass

from matchwright.kernels.access import WORD, words_for

TILE_QUERIES, TILE_ROWS, ROWS_MOST = 512, 1_024, 16_384
BLOCK_QUERIES = 512
_TILE_BYTES = 10  # product, second product and hits
_CROWDED_BYTES = 40  # points, second limb, bits, mixes, ranks and their partition
_CANDIDATE_BYTES = 40  # query, value, order, rank and a copy


@dataclass(frozen=True, slots=True)
class Sizes:
    """Sizes of a scan; all are at least 1.

    Attributes:
        rows: rows of a block, a multiple of 64.
        queries: queries of a tile.
        crowded: crowded rows of a tile that are finished together.
        pending: candidates that a worker gathers before it merges them.
    """

    rows: int
    queries: int
    crowded: int
    pending: int


def fit(q: int, d: int, k: int, memory_bytes: int, threads: int) -> Sizes:
    """Sizes for q queries of d dimensions."""
    share = memory_bytes // (2 * max(threads, 1))
    rows = min(ROWS_MOST, TILE_ROWS * max(1, TILE_QUERIES // max(q, 1)))
    row_bytes = 5 * d + _TILE_BYTES + _CROWDED_BYTES
    rows = max(WORD, min(rows, share // 3 // row_bytes) // WORD * WORD)
    queries = max(1, min(TILE_QUERIES, q, share // 3 // (rows * _TILE_BYTES)))
    crowded = max(1, min(32, queries, share // 3 // (rows * _CROWDED_BYTES)))
    pending = max(64, min(max(q * k, 1_024), share // 3 // _CANDIDATE_BYTES))
    return Sizes(rows, queries, crowded, pending)


def queries_at_once(d: int, k: int, memory_bytes: int) -> int:
    """Queries of a block, so that their limbs and candidates fit a quarter of the budget."""
    each = 16 * d + (4 * k + 64) * 8 * 6
    return max(1, min(BLOCK_QUERIES, memory_bytes // 4 // each))


def groups_at_once(n: int, memory_bytes: int) -> int:
    """Groups of a block, so that their bits fit a quarter of the budget."""
    return max(1, memory_bytes // 4 // (8 * words_for(max(n, 1))))


def gather_rows(q: int, d: int, memory_bytes: int, threads: int) -> int:
    """Rows that a worker gathers at once."""
    each = 6 * d + 8 * 4 + 20 * q
    return max(16, min(8_192, memory_bytes // (4 * max(threads, 1)) // each))
