"""Compile the CUDA sources beside this module with NVRTC, at first use, and read its report.

A kernel lives in ``cuda/<stem>.cu`` and includes ``cuda/*.cuh``. Compiling needs CuPy and NVRTC,
but no device: the machine code is made for a named architecture. ``limit`` reads the numbers that
``cuda/limits.cuh`` states, so that Python and CUDA check against the same ones.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

CUDA_DIR = Path(__file__).parent / "cuda"
STEMS = ("few", "norms", "points", "rules", "select", "sieve", "sieve_wide", "threshold")
"""Every translation unit; its kernels are named in ``KERNELS``."""
KERNELS = {
    "few_8": "few",
    "few_16": "few",
    "few_32": "few",
    "few_64": "few",
    "norms": "norms",
    "points_by_facet": "points",
    "rule_bits": "rules",
    "select_best": "select",
    "sieve": "sieve",
    "sieve_wide": "sieve_wide",
    "threshold": "threshold",
}
"""Kernel name -> stem."""

WARPGROUP_STEMS = ("sieve_wide",)
"""What only warpgroups can do: compiled for another chip, these hold no kernel."""
WARPGROUP_ARCH = "sm_90a"

_OPTIONS = ("--std=c++17", "-default-device", "--ptxas-options=-v")
_LIMIT = re.compile(r"^#define MW_(\w+) (\d+)", re.MULTILINE)
_ENTRY = re.compile(r"Compiling entry function '(\w+)' for '(\w+)'")
_SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_REGISTERS = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")


class CompileError(RuntimeError):
    """NVRTC refused a source; the message holds its log."""


@dataclass(frozen=True, slots=True)
class Report:
    """What ptxas says about one kernel; sizes in bytes."""

    name: str
    arch: str
    registers: int
    stack: int
    spill_stores: int
    spill_loads: int
    shared: int


@dataclass(frozen=True, slots=True)
class Compiled:
    """Machine code of one source for one architecture."""

    stem: str
    arch: str
    cubin: bytes
    log: str
    reports: tuple[Report, ...]

    @property
    def warnings(self) -> tuple[str, ...]:
        """Lines of the log that are warnings."""
        return tuple(line for line in self.log.splitlines() if "warning" in line)


@cache
def limit(name: str) -> int:
    """The number that ``cuda/limits.cuh`` states for ``name``, as in ``limit("K_MAX")``."""
    found = {key: int(value) for key, value in _LIMIT.findall(_read("limits.cuh"))}
    return found[name]


def threads_of(kernel: str) -> int:
    """Threads of each of a kernel's blocks."""
    return limit("WIDE_THREADS" if KERNELS[kernel] in WARPGROUP_STEMS else "THREADS")


@cache
def compiled(stem: str, arch: str) -> Compiled:
    """``cuda/<stem>.cu`` compiled for ``arch``, such as "sm_90a"; kept for the process's life.

    Raises:
        CompileError: with the compiler's log.
    """
    nvrtc = _nvrtc()
    headers = sorted(path.name for path in CUDA_DIR.glob("*.cuh"))
    program = nvrtc.createProgram(
        _read(f"{stem}.cu"),
        f"{stem}.cu",
        [_read(name).encode() for name in headers],
        [name.encode() for name in headers],
    )
    try:
        try:
            nvrtc.compileProgram(program, (f"-arch={arch}", *_OPTIONS))
        except nvrtc.NVRTCError as error:
            log = _log(nvrtc, program)
            raise CompileError(f"{stem}.cu does not compile for {arch}: {error}\n{log}") from error
        log = _log(nvrtc, program)
        return Compiled(stem, arch, nvrtc.getCUBIN(program), log, parse_reports(log))
    finally:
        nvrtc.destroyProgram(program)


def parse_reports(log: str) -> tuple[Report, ...]:
    """The kernels that a ``ptxas -v`` log speaks of, in its order."""
    pieces = _ENTRY.split(log)
    return tuple(
        _report(name, arch, text)
        for name, arch, text in zip(pieces[1::3], pieces[2::3], pieces[3::3], strict=True)
    )


def _report(name: str, arch: str, text: str) -> Report:
    spills, registers = _SPILLS.search(text), _REGISTERS.search(text)
    if spills is None or registers is None:
        raise CompileError(f"the compiler's report on {name} for {arch} cannot be read:\n{text}")
    stack, stores, loads = (int(part) for part in spills.groups())
    shared = _SHARED.search(text)
    return Report(
        name, arch, int(registers[1]), stack, stores, loads, int(shared[1]) if shared else 0
    )


def _read(name: str) -> str:
    return (CUDA_DIR / name).read_text(encoding="utf-8")


def _nvrtc() -> ModuleType:
    from cupy.cuda import nvrtc

    return nvrtc  # type: ignore[no-any-return]


def _log(nvrtc: ModuleType, program: int) -> str:
    log: str = nvrtc.getProgramLog(program)
    return log.rstrip("\0\n")
