"""How big blocks, tiles and lists may be within a budget of temporary memory."""

from __future__ import annotations

from dataclasses import dataclass

from matchwright.kernels.access import WORD, words_for

TILE_QUERIES, TILE_ROWS = 512, 1_024
ROWS_LEAST, ROWS_MOST = 16_384, 65_536
"""Rows of a block for few queries; below the least, the work around a product shows."""
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


def fit(q: int, d: int, k: int, n: int, memory_bytes: int, threads: int, row_bytes: int) -> Sizes:
    """Sizes for q queries of d dimensions over n rows.

    Args:
        row_bytes: what a product keeps for each row of a block, besides the tile.
    """
    share = memory_bytes // (2 * max(threads, 1))
    even = max(ROWS_LEAST, n // (4 * max(threads, 1)))  # so that no thread waits long at the end
    rows = min(ROWS_MOST, even, TILE_ROWS * max(1, TILE_QUERIES // max(q, 1)))
    each = row_bytes + _TILE_BYTES + _CROWDED_BYTES
    rows = max(WORD, min(rows, share // 3 // each) // WORD * WORD)
    queries = max(1, min(TILE_QUERIES, q, share // 3 // (rows * _TILE_BYTES)))
    crowded = max(1, min(32, queries, share // 3 // (rows * _CROWDED_BYTES)))
    return Sizes(rows, queries, crowded, fit_pending(q, k, memory_bytes, threads))


def fit_pending(q: int, k: int, memory_bytes: int, threads: int) -> int:
    """Candidates of q queries that a worker gathers before it merges them."""
    share = memory_bytes // (2 * max(threads, 1))
    return max(64, min(max(2 * q * k, 1_024), share // 3 // _CANDIDATE_BYTES))


def queries_at_once(d: int, k: int, memory_bytes: int) -> int:
    """Queries of a block, so that their limbs and candidates fit a quarter of the budget."""
    each = 16 * d + (4 * k + 64) * 8 * 6
    return max(1, min(BLOCK_QUERIES, memory_bytes // 4 // each))


def groups_at_once(n: int, memory_bytes: int) -> int:
    """Groups of a block, so that their bits fit a quarter of the budget."""
    return max(1, memory_bytes // 4 // (8 * words_for(max(n, 1))))


@dataclass(frozen=True, slots=True)
class GatherSizes:
    """Sizes of a gather; all are at least 1.

    Attributes:
        rows: rows of a group that are taken at once.
        pairs: pairs of query and row that are scored together; groups with a quarter of that or
            fewer share.
        groups: groups that share.
    """

    rows: int
    pairs: int
    groups: int


def fit_gather(q: int, n: int, d: int, memory_bytes: int, threads: int) -> GatherSizes:
    """Sizes for groups of up to q queries over a corpus of n rows of d dimensions."""
    share = memory_bytes // (4 * max(threads, 1))
    return GatherSizes(
        rows=max(16, min(8_192, share // (6 * d + 32 + 20 * q))),
        pairs=max(1, min(4_096, share // (14 * d + 64))),
        groups=max(1, min(16, share // (n // 2 + 1))),
    )
