"""``Ops``: every array operation of the engine, complete and exact on NumPy."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from matchwright.kernels import rules
from matchwright.kernels.access import Layout, Scratch, count_bits
from matchwright.kernels.checks import check, empty_topk
from matchwright.kernels.eligible import Eligibility
from matchwright.kernels.health import Health
from matchwright.kernels.limbs import SHIFT_MAX, Split, exact_halves, limbs, split
from matchwright.kernels.planner import Costs, Plan, calibrated
from matchwright.kernels.rank import Rank, find_rank
from matchwright.kernels.resident import LOADED, Loading
from matchwright.kernels.search import Search
from matchwright.kernels.sizes import Sizes, fit
from matchwright.kernels.types import (
    Bitmap,
    Bool,
    Corpus,
    Int8,
    Int16,
    Int32,
    Queries,
    Rules,
    TopK,
)
from matchwright.kernels.workers import Workers, single_threaded_blas

__all__ = ["Ops", "Rank", "check", "empty_topk", "get_ops", "limbs"]

T = TypeVar("T")


def usable_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Ops:
    """The reference backend; a subclass overrides what it does faster and nothing else.

    Args:
        threads: worker threads; None for the cores that this process may use.
        memory_bytes: budget of temporary memory. Below the size of one group's bits (an eighth
            of a byte for each row) it cannot be kept.
        costs: the planner's cost model; None to calibrate it on first use.
    """

    name = "numpy"
    limb: type[np.generic] = np.float32
    """What first limbs are stored as: float32, or int8."""

    def __init__(
        self,
        *,
        threads: int | None = None,
        memory_bytes: int = 256 << 20,
        costs: Costs | None = None,
    ) -> None:
        self.threads = threads or usable_cores()
        self.memory_bytes = memory_bytes
        self.costs = costs
        self._workers = Workers(self.threads)
        self.health = Health(device=self.name)

    # ── What a backend may do faster ──────────────────────────────────────────────────────────

    def tiles(
        self,
        first_qd: NDArray[Any],
        x_nd: Int8,
        spans: Sequence[tuple[int, int]],
        scratch: Scratch,
    ) -> Iterator[NDArray[Any]]:
        """Exact products of limbs and rows, one tile of queries at a time.

        Args:
            first_qd: limbs (Q, D) of type ``limb``; sums of |limb * x| stay below 2**24.
            x_nd: int8 (N, D).
            spans: (begin, end) of the queries of each tile.
            scratch: the worker's buffers; a tile is valid until the next one is asked for.

        Returns:
            Tiles (end - begin, N), integers as float32 or int32.
        """
        wide = scratch.array("x", x_nd.shape, np.float32)
        np.copyto(wide, x_nd)
        for begin, end in spans:
            tile = scratch.array("tile", (end - begin, x_nd.shape[0]), np.float32)
            yield np.matmul(first_qd[begin:end], wide.T, out=tile)

    def row_bytes(self, q: int, d: int) -> int:
        """Temporary bytes that ``tiles`` and its caller take for a row, besides the tile."""
        return 5 * d

    def pair_dots(self, limb_md: Int8, x_md: Int8) -> NDArray[Any]:
        """limb . x for M pairs of int8 rows, exact integers (M,)."""
        dots: NDArray[np.float32] = np.vecdot(limb_md.astype(np.float32), x_md.astype(np.float32))
        return dots

    # ── Answers ───────────────────────────────────────────────────────────────────────────────

    def topk(
        self,
        corpus: Corpus,
        queries: Queries,
        k: int,
        *,
        plan: Plan = "auto",
        count: bool = True,
    ) -> TopK:
        """The k best eligible rows of every query, exactly.

        Args:
            corpus: what is searched.
            queries: a block of queries, any number of them.
            k: 1..1,000.
            plan: "auto" lets the planner choose; every plan gives the same rows and points.
            count: also count eligible and unverified rows.

        Raises:
            ValueError: sizes, dtypes or ranges that do not fit.
            KeyError: a rule names a column that a segment lacks.
        """
        check(corpus, queries, k)
        return Search(self, corpus, queries, k, plan, count).run()

    def exact(self, q_qd: Int16, x_nd: Int8, scratch: Scratch) -> Int32:
        """Exact points of a few queries, int32 (Q, N), in memory of their own."""
        q = q_qd.shape[0]
        halves = exact_halves(q_qd, self.limb)
        tile = next(iter(self.tiles(halves, x_nd, [(0, 2 * q)], scratch)))
        points: Int32 = tile[:q].astype(np.int32)
        points <<= SHIFT_MAX
        np.add(points, tile[q:], out=points, casting="unsafe")
        return points

    def split(self, q_qd: Int16, norm2: int) -> Split:
        """Queries in two limbs that suit ``tiles``; norm2 bounds the squared norms of rows."""
        return split(q_qd, norm2, self.limb)

    def sizes(self, q: int, d: int, k: int, n: int) -> Sizes:
        """How q queries scan n rows within the budget."""
        return fit(q, d, k, n, self.memory_bytes, self.threads, self.row_bytes(q, d))

    def together(self, tasks: Sequence[Callable[[], None]]) -> None:
        """Run tasks on the worker threads, with single-threaded BLAS."""
        with single_threaded_blas():
            self._workers.run(tasks)

    def alone(self, task: Callable[[], T]) -> T:
        """Run one task here, as a worker would."""
        with single_threaded_blas():
            return task()

    def costs_for(self, d: int) -> Costs:
        """The planner's constants for rows of d dimensions."""
        return self.costs or calibrated(self, d)

    def scan_seconds(self, rows: int, queries: int, d: int) -> float:
        """About how long a scan of ``rows`` rows takes for some queries."""
        return self.costs_for(d).scan(rows, queries, d) / self.threads

    def fits(self, corpus: Corpus) -> bool:
        """Whether all rows can be where they are searched at once; the CPU maps them."""
        return True

    def load(self, corpora: Sequence[Corpus]) -> Loading:
        """Bring rows to where they will be searched, while other calls go on; they must fit."""
        return LOADED

    def eligible(self, corpus: Corpus, group: Rules | Bitmap) -> tuple[Bool, Bool]:
        """(eligible_n, unverified_n), bool (N,) over the corpus; unverified rows are eligible."""
        layout = Layout(corpus)
        passed, unsure = (np.zeros(layout.words, dtype=np.uint64) for _ in range(2))
        Eligibility(layout, [group], 0).fill(group, passed, unsure)
        return layout.unpack(passed), layout.unpack(unsure)

    def count(self, corpus: Corpus, group: Rules | Bitmap) -> tuple[int, int]:
        """Exact numbers of eligible rows, and of those among them that are unverified."""
        layout = Layout(corpus)
        words = np.zeros(layout.words, dtype=np.uint64)
        unverified = Eligibility(layout, [group], 0).fill(group, words)
        return count_bits(words), unverified

    def points(self, x_nd: Int8, q_d: Int16) -> Int32:
        """Exact points of rows: x_nd int8 (N, D), q_d int16 (D,) -> int32 (N,)."""
        points: Int32 = self.exact(q_d[None], x_nd, Scratch())[0]
        return points

    def contributions(self, x_nd: Int8, q_d: Int16, offsets: Sequence[int]) -> Int32:
        """Points by facet, int32 (N, B); facet b owns dimensions offsets[b]..offsets[b + 1]."""
        # One product: a query for each facet, zero outside its block.
        q_bd = np.zeros((len(offsets) - 1, q_d.size), dtype=np.int16)
        for b, (begin, end) in enumerate(itertools.pairwise(offsets)):
            q_bd[b, begin:end] = q_d[begin:end]
        return np.ascontiguousarray(self.exact(q_bd, x_nd, Scratch()).T)

    def rank(self, corpus: Corpus, queries: Queries, row: int, *, k: int | None = None) -> Rank:
        """Where ``row`` stands for the only query of ``queries``, were it eligible.

        Args:
            k: also tell the points of the k-th eligible row, 1..1,000.
        """
        check(corpus, queries, k or 1)
        return find_rank(self, corpus, queries, row, k)

    def vetoes(
        self, corpus: Corpus, group: Rules, row: int
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """(vetoes, unverified): all reasons why a row fails, and all that it passes unknown."""
        p = int(np.searchsorted(corpus.base, row, side="right")) - 1
        return rules.vetoes(group, corpus.parts[p][0], row - int(corpus.base[p]))


def get_ops(
    device: str = "auto",
    *,
    threads: int | None = None,
    memory_bytes: int = 256 << 20,
    device_memory_bytes: int | None = None,
) -> Ops:
    """The fastest backend that works here; ``health`` says what was chosen, and why.

    Args:
        device: "cpu", "gpu", "numpy", "numkong", or "auto": a GPU where there is one.
        threads, memory_bytes: as for ``Ops``.
        device_memory_bytes: most memory of a GPU, rows and temporary memory together; None for
            4/5 of what is free.

    Raises:
        ValueError: there is no such device.
        DeviceError: "gpu" was asked for and there is none; or there is one whose answers are wrong
            (``DeviceMismatch``), whatever was asked for.
    """
    from matchwright.kernels.choice import choose

    return choose(
        device,
        threads=threads,
        memory_bytes=memory_bytes,
        device_memory_bytes=device_memory_bytes,
    )
