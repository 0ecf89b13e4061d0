"""Every kernel compiles for the chips that are aimed at, without a warning, and within limits."""

from __future__ import annotations

import importlib.util
import re

import pytest

from matchwright.kernels import compile as cuda_compile
from matchwright.kernels.compile import (
    CUDA_DIR,
    KERNELS,
    STEMS,
    WARPGROUP_ARCH,
    WARPGROUP_STEMS,
    compiled,
    limit,
    parse_reports,
    threads_of,
)

ARCHES = ("sm_80", "sm_90a")
# kernel: (registers, bytes of shared memory) that a block of 256 threads may take. 64 registers
# let 4 blocks live on a multiprocessor; 32 KiB of shared memory let 4 blocks do so on sm_80.
LIMITS = {
    "few_8": (96, 6 << 10),  # two blocks on a multiprocessor, as for the three that follow
    "few_16": (112, 12 << 10),
    "few_32": (128, 24 << 10),
    "few_64": (128, 36 << 10),
    "norms": (40, 0),
    "points_by_facet": (40, 0),
    "rule_bits": (64, 256),
    "select_best": (64, 32 << 10),
    "sieve": (128, 48 << 10),  # two blocks on a multiprocessor
    "sieve_wide": (128, 5 << 10),  # 512 threads, one block; what a launch asks for comes on top
    "threshold": (64, 0),
}


def nvrtc_missing() -> str:
    if importlib.util.find_spec("cupy") is None:
        return "needs CuPy and NVRTC: install matchwright[gpu]"
    try:
        from cupy.cuda import nvrtc

        nvrtc.getVersion()
    except Exception as error:
        return f"needs NVRTC: {error}"
    return ""


MISSING = nvrtc_missing()
needs_nvrtc = pytest.mark.skipif(bool(MISSING), reason=MISSING or "NVRTC is there")


def test_every_source_is_known():
    assert sorted(path.stem for path in CUDA_DIR.glob("*.cu")) == sorted(STEMS)
    assert set(KERNELS.values()) == set(STEMS)
    assert set(LIMITS) == set(KERNELS)


@needs_nvrtc
@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("stem", STEMS)
def test_compiles_without_warnings_within_limits(stem, arch):
    made = compiled(stem, arch)
    assert made.cubin.startswith(b"\x7fELF")
    assert made.warnings == (), made.log
    assert "serialized" not in made.log  # products of warpgroups that cannot overlap
    names = {report.name for report in made.reports}
    there = stem not in WARPGROUP_STEMS or arch == WARPGROUP_ARCH
    assert names == {kernel for kernel, its in KERNELS.items() if its == stem and there}
    for report in made.reports:
        registers, shared = LIMITS[report.name]
        assert report.arch == arch
        assert report.registers <= registers
        assert report.shared <= shared
        assert (report.stack, report.spill_stores, report.spill_loads) == (0, 0, 0)


@needs_nvrtc
def test_warnings_are_seen_and_errors_carry_the_log(tmp_path, monkeypatch):
    source = 'extern "C" __global__ void warned() { int unused; }'
    (tmp_path / "warned.cu").write_text(source)
    (tmp_path / "broken.cu").write_text("__global__ void broken() { no_such_name(); }")
    monkeypatch.setattr(cuda_compile, "CUDA_DIR", tmp_path)
    assert any("never referenced" in line for line in compiled("warned", "sm_80").warnings)
    with pytest.raises(cuda_compile.CompileError, match="no_such_name"):
        compiled("broken", "sm_80")


@needs_nvrtc
def test_compiled_once():
    assert compiled("norms", "sm_80") is compiled("norms", "sm_80")


def test_limits_have_one_home():
    assert limit("D_MAX") == 1_040
    assert limit("K_MAX") == 1_000
    assert limit("SORT_MAX") >= 2 * limit("K_MAX")
    assert 127 * 127 * limit("D_MAX") < 2**24
    with pytest.raises(KeyError):
        limit("NO_SUCH_LIMIT")
    for path in CUDA_DIR.glob("*.cu*"):
        if path.name != "limits.cuh":
            assert not re.search(r"#define MW_\w+_MAX", path.read_text())


@needs_nvrtc
@pytest.mark.parametrize("arch", ARCHES)
def test_registers_fit_the_threads_of_a_block(arch):
    """65,536 on a multiprocessor, handed out to warps by 256: whatever may be launched can be."""
    for kernel, stem in KERNELS.items():
        for report in compiled(stem, arch).reports:
            if report.name == kernel:
                assert -(-report.registers // 8) * 8 * threads_of(kernel) <= 65_536


def test_limits_are_those_of_the_reference():
    from matchwright.kernels.types import D_MAX, K_MAX

    assert (limit("D_MAX"), limit("K_MAX")) == (D_MAX, K_MAX)


def test_reports_are_read():
    log = (
        "ptxas info    : Compiling entry function 'one' for 'sm_90a'\n"
        "    16 bytes stack frame, 8 bytes spill stores, 4 bytes spill loads\n"
        "ptxas info    : Used 255 registers, used 1 barriers, 256 bytes smem\n"
        "ptxas info    : Compiling entry function 'two' for 'sm_90a'\n"
        "    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n"
        "ptxas info    : Used 8 registers\n"
    )
    one, two = parse_reports(log)
    assert (one.name, one.registers, one.stack, one.spill_stores, one.spill_loads, one.shared) == (
        *("one", 255, 16, 8, 4, 256),
    )
    assert (two.name, two.arch, two.shared) == ("two", "sm_90a", 0)
    with pytest.raises(cuda_compile.CompileError, match="cannot be read"):
        parse_reports("Compiling entry function 'three' for 'sm_80'\nnothing of use")


def test_kernels_carry_no_comment_of_unfinished_work():
    paths = list(CUDA_DIR.glob("*.cu*"))
    assert paths
    for path in paths:
        assert not re.search(r"TODO|FIXME|XXX", path.read_text())
