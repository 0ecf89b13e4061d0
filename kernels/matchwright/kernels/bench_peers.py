"""What the top-K bench compares with: NumPy by itself, and FAISS where it is installed."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import numpy as np

from matchwright.kernels.ops import usable_cores
from matchwright.kernels.types import Float32, Int8, Int64, UInt8
from matchwright.kernels.workers import single_threaded_blas

BLOCK = 1_024


def sgemm(q_qd: Float32, x_nd: Int8, *, workers: bool) -> None:
    """The bare product in float32, block by block, each block cast into a buffer first.

    Args:
        workers: one thread with its own BLAS for each core, or one BLAS with all cores.
    """
    cores = usable_cores() if workers else 1

    def work(first: int) -> None:
        wide = np.empty((BLOCK, x_nd.shape[1]), dtype=np.float32)
        tile = np.empty((q_qd.shape[0], BLOCK), dtype=np.float32)
        for begin in range(first * BLOCK, x_nd.shape[0], cores * BLOCK):
            rows = x_nd[begin : begin + BLOCK]
            n = rows.shape[0]
            np.copyto(wide[:n], rows)
            np.matmul(q_qd, wide[:n].T, out=tile[:, :n])

    with single_threaded_blas() if workers else nullcontext():
        with ThreadPoolExecutor(cores) as pool:
            list(pool.map(work, range(cores)))


def mask_and_argpartition(q_qd: Float32, x_nd: Int8, k: int) -> Int64:
    """The first thing that one writes: product, mask, argpartition, block by block."""
    q, best, found = q_qd.shape[0], None, None
    for begin in range(0, x_nd.shape[0], 16_384):
        rows = x_nd[begin : begin + 16_384].astype(np.float32)
        scores = q_qd @ rows.T
        scores = np.where(np.ones(rows.shape[0], dtype=np.bool_), scores, -np.inf)
        near = np.argpartition(scores, -min(k, rows.shape[0]), axis=1)[:, -k:]
        value = np.take_along_axis(scores, near, axis=1)
        if best is not None and found is not None:
            value, near = np.hstack([best, value]), np.hstack([found, near + begin])
            keep = np.argpartition(value, -k, axis=1)[:, -k:]
            value = np.take_along_axis(value, keep, axis=1)
            near = np.take_along_axis(near, keep, axis=1)
        best, found = value, near
    return np.empty((q, 0), dtype=np.int64) if found is None else found.astype(np.int64)


class Faiss:
    """``IndexFlatIP`` over the same rows, on all cores.

    Args:
        x_nd: int8 (N, D); FAISS keeps them as float32.
    """

    def __init__(self, x_nd: Int8) -> None:
        import faiss

        self._faiss: Any = faiss
        faiss.omp_set_num_threads(usable_cores())
        self._index = faiss.IndexFlatIP(x_nd.shape[1])
        for begin in range(0, x_nd.shape[0], 65_536):
            self._index.add(x_nd[begin : begin + 65_536].astype(np.float32))

    @staticmethod
    def version() -> str | None:
        """FAISS's version, or None where it is not installed."""
        try:
            return importlib.metadata.version("faiss-cpu")
        except importlib.metadata.PackageNotFoundError:
            return None

    def search(self, q_qd: Float32, k: int) -> None:
        """All rows."""
        self._index.search(q_qd, k)

    def selectors(self, packed: Sequence[UInt8], rows: int) -> list[tuple[Any, UInt8]]:
        """One selector for each query, with the bits that it points to."""
        swig = self._faiss.swig_ptr
        return [(self._faiss.IDSelectorBitmap(rows, swig(bits)), bits) for bits in packed]

    def search_selected(
        self, q_qd: Float32, k: int, selectors: Sequence[tuple[Any, UInt8]]
    ) -> None:
        """A selector for each query: one search each, as many at a time as there are cores."""
        parameters = [self._faiss.SearchParameters(sel=selector) for selector, _ in selectors]

        def work(first: int) -> None:
            self._faiss.omp_set_num_threads(1)
            for i in range(first, len(parameters), cores):
                self._index.search(q_qd[i : i + 1], k, params=parameters[i])

        cores = usable_cores()
        try:
            with ThreadPoolExecutor(cores) as pool:
                list(pool.map(work, range(cores)))
        finally:
            self._faiss.omp_set_num_threads(cores)
