"""The CUDA sources as C++ on a host: kernels on a small emulation of CUDA's execution model
(``simt.hpp``), and blocks and tiles for them."""

from __future__ import annotations

import ctypes
import fcntl
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from matchwright.kernels.compile import CUDA_DIR, KERNELS, STEMS, threads_of
from matchwright.kernels.device import (
    NOTHING,
    Array,
    DeviceError,
    KernelDevice,
    QueryBlock,
    Tile,
)
from matchwright.kernels.numpy_device import NumpyDevice, pack_bits
from matchwright.kernels.ops import limbs

GXX = shutil.which("g++")

KERNEL_UNIT = """
#include "simt.hpp"
#include "{stem}.cu"
"""
KERNEL_ENTRY = r"""
extern "C" int run_{kernel}(unsigned x, unsigned y, unsigned threads, size_t shared,
                            void** arguments) {{
    return simt::launch({kernel}, x, y, threads, shared, arguments);
}}
"""


ROUNDS = (
    "norms",
    "points_by_facet",
    "threshold",
    "rule_bits",
    "few_8",
    "few_16",
    "few_32",
    "few_64",
)
"""Kernels whose blocks go round a loop over rows, however few there are."""


def build(folder: Path, name: str, source: str) -> ctypes.CDLL:
    path = folder / f"{name}.cpp"
    path.write_text(source)
    includes = [f"-I{CUDA_DIR}", f"-I{Path(__file__).parent}"]
    strict = [
        "-Wall",
        "-Wextra",
        "-Werror",
        "-Wno-unknown-pragmas",
        "-Wno-unused-function",
        "-Wno-clobbered",
    ]
    library = path.with_suffix(".so")
    # Fibers jump between stacks, which a fortified longjmp takes for an error.
    options = ["-std=c++17", "-O2", "-U_FORTIFY_SOURCE", "-fPIC", "-shared"]
    command = [str(GXX), *options, *strict, *includes]
    subprocess.run([*command, str(path), "-o", str(library)], check=True)
    return ctypes.CDLL(str(library))


_WRONG = {1: "a thread waits for ever", 2: "a thread writes beyond its shared memory"}


class HostDevice(KernelDevice):
    """The kernels themselves, on the emulated execution model; only the product is NumPy's."""

    name = "host"
    xp = np
    half = False

    def __init__(self, libraries: dict[str, ctypes.CDLL]) -> None:
        self.libraries = libraries
        self.tensor = False
        self.launches: list[str] = []

    def launch(
        self, kernel: str, grid: tuple[int, int], args: Sequence[Any], shared: int = 0
    ) -> None:
        self.launches.append(kernel)
        held = [np.asarray(np.uint64(a.ctypes.data) if np.ndim(a) else a) for a in args]
        pointers = (ctypes.c_void_p * len(held))(*(one.ctypes.data for one in held))
        # A few blocks in x, so that kernels have to go round their loops over rows.
        x = min(grid[0], 2) if kernel in ROUNDS else grid[0]
        run = getattr(self.libraries[kernel], f"run_{kernel}")
        wrong = run(x, grid[1], threads_of(kernel), ctypes.c_size_t(shared), pointers)
        if wrong:
            raise DeviceError(f"{kernel}: {_WRONG[wrong]}")

    def product(self, high_qd: Array, x_nd: Array, out_qn: Array) -> None:
        np.matmul(high_qd, x_nd.astype(np.float32).T, out=out_qn)


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> HostDevice:
    return hosted(tmp_path_factory, STEMS)


def hosted(tmp_path_factory: pytest.TempPathFactory, stems: Sequence[str]) -> HostDevice:
    """The kernels of some sources, compiled once for all test files and processes of a run."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if base.name.startswith("popen-") else base) / "host_kernels"
    folder.mkdir(exist_ok=True)
    kernels = {kernel: stem for kernel, stem in KERNELS.items() if stem in stems}
    built = {stem: _built(folder, stem) for stem in stems}
    return HostDevice({kernel: built[stem] for kernel, stem in kernels.items()})


def _built(folder: Path, stem: str) -> ctypes.CDLL:
    with (folder / f"{stem}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = folder / f"{stem}.done"
        if done.exists():
            return ctypes.CDLL(str(folder / f"{stem}.so"))
        entries = (KERNEL_ENTRY.format(kernel=one) for one in KERNELS if KERNELS[one] == stem)
        library = build(folder, stem, KERNEL_UNIT.format(stem=stem) + "".join(entries))
        done.touch()
        return library


def some_keys(rng: np.random.Generator, n: int) -> np.ndarray:
    ends = np.array([0, 1, 2**32 - 1, 2**32, 2**64 - 1], np.uint64)
    wide = rng.integers(0, 2**64, n, dtype=np.uint64)
    return np.where(rng.random(n) < 0.2, rng.choice(ends, n), wide)


def some_entries(rng: np.random.Generator, n: int) -> np.ndarray:
    """Entries many of which share points, or points and mix."""
    small = rng.integers(-2, 3, (n, 4))
    wide = rng.integers(-(2**31) + 1, 2**31, (n, 4))
    return np.where(rng.random((n, 4)) < 0.6, small, wide).astype(np.int32)


def a_block(rng: np.random.Generator, q: int, k: int, capacity: int, d: int) -> QueryBlock:
    high_qd, low_qd = limbs(rng.integers(-40, 41, (q, d)).astype(np.int16))
    low_qd[0] = 0
    bound_q4 = some_entries(rng, q) % 100
    bound_q4[-1] = NOTHING
    return QueryBlock(
        high_qd=high_qd.astype(np.float32),
        low_qd=low_qd,
        low_norm_q=NumpyDevice().norms(low_qd),
        key_q=some_keys(rng, q),
        group_q=rng.integers(0, 3, q).astype(np.int32),
        bound_q4=bound_q4,
        top_qk4=np.tile(np.array(NOTHING, np.int32), (q, k, 1)),
        have_q=np.zeros(q, np.int32),
        found_qc4=np.zeros((q, capacity, 4), np.int32),
        count_q=np.zeros(q, np.uint32),
    )


def copied(block: QueryBlock) -> QueryBlock:
    arrays = {f.name: getattr(block, f.name) for f in fields(block)}
    return QueryBlock(**{name: None if a is None else a.copy() for name, a in arrays.items()})


def sieved(q: int, n: int, d: int, capacity: int) -> tuple[QueryBlock, Tile]:
    """Queries on whose bounds some pairs lie, and rows of very different norms."""
    rng = np.random.default_rng(n + d)
    block = a_block(rng, q=q, k=1, capacity=capacity, d=d)
    block = replace(block, high_qd=rng.integers(-127, 128, (q, d), dtype=np.int8))
    shrink = np.repeat(rng.integers(1, 100, -(-n // 32)), 32)[:n]  # a warp's rows are alike
    x_nd = rng.integers(-127, 128, (n, d)) // shrink[:, None]
    rows = NumpyDevice().segment(x_nd.astype(np.int8), some_keys(rng, n))
    bits = pack_bits(list(rng.random((3, n)) < np.array([[0.02], [0.5], [1.0]])))
    first = block.high_qd.astype(np.int64) @ rows.x_nd.astype(np.int64).T
    chosen = first[np.arange(q), rng.integers(0, n, q)]
    block.bound_q4[:, 0] = 128 * chosen + rng.integers(-2_000, 2_000, q)
    block.bound_q4[-1] = NOTHING
    return block, Tile(None, rows, 1_000, bits)
