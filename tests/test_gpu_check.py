"""The check for machines with a GPU, as far as one without can see."""

from __future__ import annotations

import importlib.util
import xml.etree.ElementTree as ET

import numpy as np
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


def test_no_device_is_said_and_nothing_is_written(gpu_check, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu_check, "no_device_reason", lambda: "there is no CUDA device")
    out = tmp_path / "proofs" / "gpu_check.json"
    assert gpu_check.main(["--out", str(out)]) == gpu_check.NO_DEVICE == 5
    assert "there is no CUDA device; nothing was checked" in capsys.readouterr().err
    assert not out.exists()


def test_the_kernels_tests_are_found(gpu_check, monkeypatch):
    files, left_out = gpu_check.kernel_tests()
    names = {path.name for path in files}
    assert {"test_cupy_ops.py", "test_cuda_host.py", "test_cupy_compile.py"} <= names
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    files, left_out = gpu_check.kernel_tests()
    assert files == []
    assert "numpy" in left_out["test_cupy_ops.py"]


def test_results_are_judged(gpu_check):
    cases = [
        ET.fromstring('<testcase classname="a" name="one"/>'),
        ET.fromstring('<testcase classname="a" name="two"><failure/></testcase>'),
        ET.fromstring('<testcase classname="a" name="three"><skipped message="why"/></testcase>'),
    ]
    outcome = gpu_check.judge(cases)
    assert (outcome["passed"], outcome["failed"], outcome["skipped"]) == (1, 1, 1)
    assert outcome["failures"] == ["a::two"]
    assert outcome["skip_reasons"] == ["why"]


def test_the_bench_runs_and_compares(gpu_check, monkeypatch):
    bare = {name: lambda: None for name in gpu_check.PRODUCTS}
    monkeypatch.setattr(gpu_check, "bare_products", lambda *_: (bare, {}))
    monkeypatch.setattr(gpu_check, "by_cupy", lambda *_: lambda: None)
    options = gpu_check.parse(
        ["--rows", "500", "--queries", "4", "--dimensions", "16", "-k", "3", "--repeats", "1"]
    )
    ops, library = (
        CupyOps(device=NumpyDevice(tensor=tensor), verify=False) for tensor in (True, False)
    )
    outcome = gpu_check.run_bench(ops, library, options)
    assert outcome["exact"]
    found = outcome["sections"]
    assert [cell["queries"] for cell in found["few"]] == [1, 4, 4, 4, 4]
    assert len(found["sweep"]) == 11
    assert {cell["rules"] for cell in found["sweep"]} <= {"bits", "survivors", "gather"}
    assert [cell["rate"] for cell in found["rules"]] == [0.5, 0.05, 0.001]
    assert found["memory"]["uploaded_bytes"] == 500 * 24
    assert set(found["calibration"]["costs"]) >= {"scan_pair", "rule_row", "take_row"}
    assert [cell["rules"] for cell in outcome["cells"]] == [False, True]
    for cell in outcome["cells"]:
        assert np.isfinite([cell["r_fp16"], cell["r_bf16"], cell["r_int8"]]).all()
        assert cell["telemetry"]["product"] == "sieve"


def test_a_wrong_answer_is_seen_in_every_section(gpu_check, monkeypatch):
    sections = gpu_check.gpu_sections
    ops = CupyOps(device=NumpyDevice(tensor=True), verify=False)
    corpus, queries = gpu_check.problem(np.random.default_rng(1), 300, 4, 16)
    assert sections.exact(sections.sections(ops, corpus, queries, 3, 1))
    topk = ops.topk

    def wrong(*args, **named):
        result = topk(*args, **named)
        result.points_qk[:] += 1
        return result

    monkeypatch.setattr(ops, "topk", wrong)
    for name in ("few", "sweep"):
        cells = getattr(sections, name)(ops, corpus, queries, 3, 1)
        assert not any(cell["exact"] for cell in cells)
    assert not sections.rules_each(ops, corpus, queries, 3, 1)[0]["exact"]


def test_the_sanitizer_is_asked_where_it_is(gpu_check, tmp_path, monkeypatch):
    sections = gpu_check.gpu_sections
    monkeypatch.setattr(sections.shutil, "which", lambda name: None)
    assert sections.sanitizer(tmp_path, {}) == {
        "found": False,
        "clean": None,
        "why": "compute-sanitizer is not on the path",
    }
    for code, clean in ((0, True), (9, False)):
        tool = tmp_path / f"tool-{code}"
        tool.write_text(f'#!/bin/sh\necho "$@" >> "{tmp_path}/log"\nexit {code}\n')
        tool.chmod(0o755)
        found = sections.sanitizer(tmp_path, {}, tool=str(tool))
        assert found["clean"] is clean
        assert found["memcheck"]["exit"] == code
    log = (tmp_path / "log").read_text().splitlines()
    assert [line.split()[1] for line in log] == ["memcheck", "racecheck"] * 2
    assert all("-m gpu" in line and "test_cuda_rules.py" in line for line in log)


def test_the_tests_for_the_sanitizer_have_cases_on_a_device(gpu_check, repo_root):
    for name in gpu_check.gpu_sections.SANITIZED:
        assert "pytest.mark.gpu" in (repo_root / "tests" / name).read_text("utf-8")
