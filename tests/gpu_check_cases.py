"""``bench/gpu_check.py`` as a module, options at their smallest, emulated devices for it."""

from __future__ import annotations

import importlib.util

import pytest

from matchwright.kernels.cupy_ops import CupyOps
from matchwright.kernels.numpy_device import NumpyDevice


@pytest.fixture(scope="module")
def gpu_check(repo_root):
    path = repo_root / "bench" / "gpu_check.py"
    spec = importlib.util.spec_from_file_location("gpu_check_script", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tiny(gpu_check, tmp_path, *more):
    words = ["--rows", "500", "--queries", "6", "--large-queries", "9", "--dimensions", "24", "16"]
    words += ["-k", "2", "5", "--named-k", "3", "--repeats", "1", "--memory-bytes", str(1 << 22)]
    words += ["--out", str(tmp_path / "proofs" / "gpu_check.json"), *more]
    return gpu_check.parse(words)


def backends():
    made = (CupyOps(device=NumpyDevice(tensor=on), verify=False) for on in (True, False))
    return tuple(made)
