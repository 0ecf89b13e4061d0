"""``NumkongOps``: int8 products by NumKong, which uses the processor's int8 dot instructions.

Where those exist (AVX-512 VNNI, AMX, NEON dot product) a first limb costs a third of a float32
product, and a few queries cost one read of the corpus. Sums of int8 products are exact in int32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from matchwright.kernels.access import Scratch
from matchwright.kernels.ops import Ops
from matchwright.kernels.planner import Costs
from matchwright.kernels.types import D_MAX, Int8

FEW = 32
"""Up to so many queries, those are packed and the rows are read as they lie."""


class Inexact(RuntimeError):
    """NumKong's products are not the exact integers that they have to be."""


class NumkongOps(Ops):
    """The CPU backend for processors with int8 dot products.

    Args:
        threads, memory_bytes, costs: as for ``Ops``.
        verify: compare products with the reference first.

    Raises:
        ImportError: NumKong is not installed.
        Inexact: its products are not exact here.
    """

    name = "numkong"
    limb: type[np.generic] = np.int8

    def __init__(
        self,
        *,
        threads: int | None = None,
        memory_bytes: int = 256 << 20,
        costs: Costs | None = None,
        verify: bool = True,
    ) -> None:
        import numkong

        super().__init__(threads=threads, memory_bytes=memory_bytes, costs=costs)
        self._numkong = numkong
        if verify:
            verify_products(self)

    def tiles(
        self,
        first_qd: NDArray[Any],
        x_nd: Int8,
        spans: Sequence[tuple[int, int]],
        scratch: Scratch,
    ) -> Iterator[NDArray[Any]]:
        if self._takes(first_qd, x_nd):
            return self._products(first_qd, x_nd, spans, scratch)
        return super().tiles(first_qd.astype(np.float32), x_nd, spans, scratch)

    def row_bytes(self, q: int, d: int) -> int:
        few = 8 * FEW  # two products of few queries, before they are turned
        return 8 * q if q <= FEW else max(2 * d, few)

    def pair_dots(self, limb_md: Int8, x_md: Int8) -> NDArray[Any]:
        if self._takes(limb_md, x_md):
            sums = np.empty(limb_md.shape[0], dtype=np.float64)
            self._numkong.dot(limb_md, x_md, out=sums)
            return sums
        return super().pair_dots(limb_md, x_md)

    def _takes(self, a_nd: NDArray[Any], b_nd: NDArray[Any]) -> bool:
        """Can NumKong take these? It wants rows of int8 without gaps, and some of each."""
        return bool(
            a_nd.size
            and b_nd.size
            and a_nd.dtype == b_nd.dtype == np.int8
            and a_nd.flags.c_contiguous
            and b_nd.flags.c_contiguous
        )

    def _products(
        self,
        first_qd: NDArray[Any],
        x_nd: Int8,
        spans: Sequence[tuple[int, int]],
        scratch: Scratch,
    ) -> Iterator[NDArray[Any]]:
        numkong, n = self._numkong, x_nd.shape[0]
        packed: Any = None
        for begin, end in spans:
            first = first_qd[begin:end]
            if end - begin == 1:
                tile = scratch.array("tile", (1, n), np.float32)
                numkong.cdist(first, x_nd, "dot", out=tile)
                yield tile
            elif end - begin <= FEW:
                yield self._few(first, x_nd, scratch)
            else:
                packed = numkong.dots_pack(x_nd) if packed is None else packed
                tile = scratch.array("tile", (end - begin, n), np.int32)
                numkong.dots_packed(first, packed, out=numkong.from_dlpack(tile))
                yield tile

    def _few(self, first_qd: NDArray[Any], x_nd: Int8, scratch: Scratch) -> NDArray[Any]:
        """Queries packed, in fours, since fewer take longer; rows read as they lie."""
        q, n = first_qd.shape[0], x_nd.shape[0]
        fours = np.zeros((-(-q // 4) * 4, first_qd.shape[1]), dtype=np.int8)
        fours[:q] = first_qd
        product = scratch.array("few", (n, fours.shape[0]), np.int32)
        packed = self._numkong.dots_pack(fours)
        self._numkong.dots_packed(x_nd, packed, out=self._numkong.from_dlpack(product))
        tile = scratch.array("tile", (q, n), np.int32)
        np.copyto(tile, product.T[:q])
        return tile


def verify_products(ops: NumkongOps) -> None:
    """Compare products with sums of Python-sized integers, at extremes and at odd sizes.

    Raises:
        Inexact: some differ.
    """
    generator = np.random.default_rng(5)
    for q, n, d in ((1, 37, D_MAX), (3, 64, 1), (FEW + 1, 199, 37), (64, 128, D_MAX)):
        first = generator.integers(-127, 128, (q, d), dtype=np.int8)
        rows = generator.integers(-127, 128, (n, d), dtype=np.int8)
        first[0], rows[0], rows[-1] = 127, 127, -127
        expected = first.astype(np.int64) @ rows.T.astype(np.int64)
        tile = next(iter(ops.tiles(first, rows, [(0, q)], Scratch())))
        pairs = ops.pair_dots(first[:1].repeat(n, axis=0), rows)
        if not (np.array_equal(tile, expected) and np.array_equal(pairs, expected[0])):
            raise Inexact(
                f"NumKong {ops._numkong.__version__} gives inexact int8 products here "
                f"({q} x {n} x {d}); use Ops, or another version of numkong"
            )
