"""What ``gpu_check.py`` compares with, in the same run: bare products, torch, CuPy's own, and the
chip's peak.

A peer does less than we do where that is simpler: products write nothing that anybody reads; torch
and CuPy score with the first limb alone, and torch's mask is one comparison of one column.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np

from matchwright.kernels.types import Corpus, Queries

Run = Callable[[], Any]
PRODUCTS = {
    "fp16": (np.float16, 2, np.float16, 2, np.float32, 68),
    "bf16": (np.uint16, 14, np.uint16, 14, np.float32, 68),
    "int8": (np.int8, 3, np.int32, 10, np.int32, 72),
}
"""Name -> input dtype and CUDA_R_*, output dtype and CUDA_R_*, scalar dtype, CUBLAS_COMPUTE_*."""
PEAKS = {
    "H100 PCIe": (756e12, 1_513e12, 2.0e12),
    "H100 NVL": (835e12, 1_671e12, 3.9e12),
    "H100": (989e12, 1_979e12, 3.35e12),
    "H200": (989e12, 1_979e12, 4.8e12),
    "A100": (312e12, 624e12, 1.555e12),
    "L40S": (362e12, 733e12, 0.864e12),
}
"""Part of a device's name -> dense bf16 and int8 operations, and bytes of memory, a second: the
vendor's data sheets; the first that is found counts."""
_TILE = 65_536


def peak_of(device: str) -> tuple[float, float, float] | None:
    """``PEAKS`` of a device; None for one that is not there."""
    words = device.replace("-", " ")
    return next((peak for name, peak in PEAKS.items() if name in words), None)


def bare_products(corpus: Corpus, queries: Queries) -> tuple[dict[str, Run], dict[str, str]]:
    """cuBLAS products alone, in tiles of 65,536 rows; and which the library refused, and why."""
    bare: dict[str, Run] = {}
    refused: dict[str, str] = {}
    for name in PRODUCTS:
        try:
            run = bare_product(name, corpus.parts[0][0].x_nd, queries.q_qd >> 7)
            run()
        except Exception as error:  # whatever this library and this chip say
            refused[name] = f"{type(error).__name__}: {error}"
        else:
            bare[name] = run
    return bare, refused


def bare_product(name: str, x_nd: Any, high_qd: Any) -> Run:
    """One product; its values do not matter to the chip's speed, so bf16 takes int8's bits."""
    import cupy
    from cupy_backends.cuda.libs import cublas  # type: ignore[import-untyped]

    dtype, kind, out_dtype, out_kind, scalar, compute = PRODUCTS[name]
    (n, d), q = x_nd.shape, high_qd.shape[0]
    x = cupy.empty((n, d), dtype)
    for at in range(0, n, 1 << 20):
        x[at : at + (1 << 20)] = cupy.asarray(x_nd[at : at + (1 << 20)]).astype(dtype)
    high = cupy.asarray(high_qd).astype(dtype)
    out = cupy.empty((q, min(_TILE, n)), out_dtype)
    one, zero = np.ones(1, scalar), np.zeros(1, scalar)

    def run() -> None:
        for at in range(0, n, _TILE):
            rows = x[at : at + _TILE]
            cublas.gemmEx(
                cupy.cuda.device.get_cublas_handle(),
                *(cublas.CUBLAS_OP_T, cublas.CUBLAS_OP_N, rows.shape[0], q, d, one.ctypes.data),
                *(rows.data.ptr, kind, d, high.data.ptr, kind, d, zero.ctypes.data),
                *(out.data.ptr, out_kind, out.shape[1], compute, -1),
            )
        cupy.cuda.Device().synchronize()

    return run


def by_cupy(corpus: Corpus, queries: Queries, k: int, xp: Any = None) -> Run:
    """A float32 product and argpartition, tile by tile, without rules, then one over the tiles."""
    xp = xp or importlib.import_module("cupy")
    x = xp.asarray(corpus.parts[0][0].x_nd)
    q = xp.asarray(queries.q_qd).astype(xp.float32)
    n, asked = x.shape[0], queries.q

    def run() -> Any:
        scores, places = [], []
        for at in range(0, n, _TILE):
            some = q @ x[at : at + _TILE].astype(xp.float32).T
            width = some.shape[1]
            near = xp.argpartition(some, width - min(k, width), axis=1)[:, -min(k, width) :]
            scores.append(xp.take_along_axis(some, near, axis=1))
            places.append(near + at)
        score, place = xp.concatenate(scores, axis=1), xp.concatenate(places, axis=1)
        best = xp.argsort(-score, axis=1)[:, : min(k, n)]
        found = xp.take_along_axis(place, best, axis=1)
        return found.get() if hasattr(found, "get") else found.reshape(asked, -1)

    return run


def by_torch(
    corpus: Corpus, queries: Queries, top_q: Any, k: int, torch: Any = None, device: str = "cuda"
) -> Run | str:
    """``mm``, ``masked_fill``, ``topk`` in bf16, tile by tile; why not, where torch is missing.

    Args:
        top_q: int32 (Q,): rows whose ``rate`` is above are masked.
    """
    if torch is None:
        if importlib.util.find_spec("torch") is None:
            return "torch is not installed"
        torch = importlib.import_module("torch")
    x = torch.as_tensor(corpus.parts[0][0].x_nd, device=device).to(torch.bfloat16)
    q = torch.as_tensor(queries.q_qd >> 7, device=device).to(torch.bfloat16)
    rate = torch.as_tensor(corpus.parts[0][0].scalars["rate"], device=device)
    top = torch.as_tensor(top_q, device=device).reshape(-1, 1)
    n = x.shape[0]

    def run() -> Any:
        values, places = [], []
        for at in range(0, n, _TILE):
            scores = torch.mm(q, x[at : at + _TILE].T)
            scores.masked_fill_(rate[at : at + _TILE] > top, float("-inf"))
            value, place = torch.topk(scores, min(k, scores.shape[1]), dim=1)
            values.append(value)
            places.append(place + at)
        value, at_best = torch.topk(torch.cat(values, dim=1), min(k, n), dim=1)
        return torch.gather(torch.cat(places, dim=1), 1, at_best).cpu()

    return run
