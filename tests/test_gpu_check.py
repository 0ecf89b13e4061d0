"""The check for machines with a GPU, as far as one without can see."""

from __future__ import annotations

import importlib.util
import itertools
import json
import sys
import xml.etree.ElementTree as ET

import gpu_check_cases
import numpy as np
import pytest
from gpu_check_cases import backends, tiny

from matchwright.engine.store import Store
from matchwright.kernels.ops import Ops

WRONG = 6


gpu_check = gpu_check_cases.gpu_check


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


@pytest.fixture
def no_cuda(gpu_check, monkeypatch):
    """Bare products that cost nothing, NumPy for CuPy, and a little of torch."""
    cells = gpu_check.gpu_cells
    bare = {name: lambda: None for name in sys.modules["gpu_peers"].PRODUCTS}
    by_cupy, by_torch = cells.by_cupy, cells.by_torch
    monkeypatch.setattr(cells, "bare_products", lambda *_: (dict(bare), {"fp8": "not exact"}))
    monkeypatch.setattr(cells, "by_cupy", lambda *args: by_cupy(*args, xp=np))
    monkeypatch.setattr(cells, "by_torch", lambda *args: by_torch(*args, torch=Torch(), device=""))


class Tensor(np.ndarray):
    """What the torch peer asks of a tensor."""

    def to(self, dtype):
        return self.astype(dtype).view(Tensor)

    def masked_fill_(self, mask, value):
        self[np.broadcast_to(mask, self.shape)] = value

    def cpu(self):
        return np.asarray(self)


class Torch:
    """What the peer asks of torch, in NumPy, in float32."""

    bfloat16 = np.float32

    def as_tensor(self, array, device):
        return np.asarray(array).view(Tensor)

    def mm(self, a, b):
        return np.matmul(a, b)

    def topk(self, a, k, dim):
        best = np.argsort(-np.asarray(a), axis=dim, kind="stable")[:, :k]
        return np.take_along_axis(a, best, axis=dim), best

    def cat(self, parts, dim):
        return np.concatenate(parts, axis=dim)

    def gather(self, a, dim, at):
        return np.take_along_axis(a, at, axis=dim).view(Tensor)


LONG = ("tests", "service", "sanitizer")


def test_every_part_runs_and_compares(gpu_check, tmp_path, no_cuda, capsys):
    only = [name for name in gpu_check.PARTS if name not in LONG]
    options = tiny(gpu_check, tmp_path, "--only", *only)
    assert gpu_check.check(*backends(), {"device": "NVIDIA H100 80GB HBM3"}, options) == 0
    record = json.loads(options.out.read_text("utf-8"))
    assert record == json.loads(capsys.readouterr().out)
    assert record["held"]
    assert record["left_out"] == {}
    assert set(record["parts_s"]) == set(record["sections"]) == set(only)
    found = record["sections"]
    named = found["named"]
    assert (named["n"], named["q"], named["d"], named["k"]) == (500, 6, 384, 3)
    assert named["rules"] == "one set for each query"
    assert named["operations"] == 2 * 500 * 6 * 384
    assert 0 < named["percent_of_int8_peak"] < named["percent_of_bf16_peak"] < 100
    assert named["bound_seconds"] == pytest.approx(500 * 384 / 3.35e12)
    assert set(named["peer_seconds"]) == {"fp16", "bf16", "int8", "simple", "torch", "cupy"}
    assert named["peers_missing"] == {"fp8": "not exact"}
    assert set(named["goal"]) == {"bf16", "int8"}
    assert [cell["queries"] for cell in found["few"]] == [1, 6, 6, 6, 6]
    assert len(found["sweep"]) == 21
    assert {cell["rules"] for cell in found["sweep"]} <= {"bits", "survivors", "gather"}
    assert [cell["rate"] for cell in found["rules"]] == [0.5, 0.05, 0.001]
    assert [one["rules"] for one in found["wide"]] == ["none", "one set for each query"]
    assert all(one["of_sieve"] > 0 and one["exact"] for one in found["wide"])
    assert found["memory"]["uploaded_bytes"] == 500 * (384 + 8)
    assert set(found["calibration"]["costs"]) >= {"call", "scan_pair", "rule_row", "take_row"}
    whole = found["estimate"]["million_by_million_seconds"]
    assert whole == pytest.approx(found["estimate"]["measured"]["seconds"] * 1e12 / (6 * 500))
    shapes = {(cell["q"], cell["d"], cell["k"], cell["rules"][:4]) for cell in found["cells"]}
    assert shapes == set(itertools.product((6, 9), (24, 16), (2, 5), ("none", "one ")))
    for cell in found["cells"]:
        assert np.isfinite([cell["r_bf16"], cell["r_int8"], cell["r_torch"]]).all()
        assert cell["telemetry"]["product"] == "sieve"
        assert cell["k"] != 2 or cell["of_least_k"] == 1.0


def test_a_wrong_answer_is_seen_in_every_part(gpu_check, tmp_path, no_cuda, monkeypatch):
    ops, library = backends()
    topk = ops.topk

    def wrong(*args, **named):
        result = topk(*args, **named)
        result.points_qk[:] += 1
        return result

    monkeypatch.setattr(ops, "topk", wrong)
    only = ["named", "few", "sweep", "rules", "cells", "estimate"]
    options = tiny(gpu_check, tmp_path, "--only", *only)
    assert gpu_check.check(ops, library, {}, options) == WRONG
    found = json.loads(options.out.read_text("utf-8"))["sections"]
    for name in only:
        cells = found[name] if isinstance(found[name], list) else [found[name]]
        assert not any(cell["exact"] for cell in cells), name
    assert "percent_of_int8_peak" not in found["named"]  # of a device that nobody knows


def test_a_part_that_breaks_is_told_and_the_others_go_on(gpu_check, tmp_path, no_cuda, monkeypatch):
    def broken(*_):
        raise MemoryError("no room")

    monkeypatch.setattr(gpu_check.gpu_cells, "named", broken)
    options = tiny(gpu_check, tmp_path, "--only", "named", "few")
    assert gpu_check.check(*backends(), {}, options) == WRONG
    found = json.loads(options.out.read_text("utf-8"))["sections"]
    assert "no room" in found["named"]["broke"]
    assert found["few"][0]["exact"]


def test_what_there_is_no_time_for_is_left_out(gpu_check, tmp_path, no_cuda):
    options = tiny(gpu_check, tmp_path, "--budget-s", "20", "--only", "few", "cells", "tests")
    clock = iter(range(0, 100_000, 3))
    budget = gpu_check.Budget
    try:
        gpu_check.Budget = lambda seconds: budget(seconds, lambda: float(next(clock)))
        assert gpu_check.check(*backends(), {}, options) == 0
    finally:
        gpu_check.Budget = budget
    record = json.loads(options.out.read_text("utf-8"))
    assert set(record["sections"]) == {"few"}
    assert set(record["left_out"]) == {"tests", "cells"}
    assert "would take 60 s" in record["left_out"]["tests"]


@pytest.mark.parametrize("d", [256, 384, 1_040])
def test_sizes_follow_from_memory_and_time(gpu_check, d):
    fit = gpu_check.rows_that_fit
    wide = {"device_bytes": 78 << 30, "host_bytes": 128 << 30}
    assert fit(10_000_000, 256, **wide, budget_s=1e6) == 10_000_000
    for device, host, seconds in (
        (40 << 30, 1 << 40, 1e6),
        (1 << 40, 4 << 30, 1e6),
        (1 << 40,) * 3,
    ):
        rows = fit(10_000_000, d, device_bytes=device, host_bytes=host, budget_s=seconds)
        assert 10_000_000 % rows == 0
        assert rows * 9 * d <= device
        assert rows * 2 * d <= host
    quick = fit(10_000_000, d, device_bytes=None, host_bytes=None, budget_s=0.1)
    assert quick < fit(10_000_000, d, device_bytes=None, host_bytes=None, budget_s=100.0)
    assert fit(500, d, device_bytes=0, host_bytes=0, budget_s=0.0) == 500


def test_chips_have_their_data_sheet_s_peaks(gpu_check):
    peak_of = sys.modules["gpu_peers"].peak_of
    assert peak_of("NVIDIA H100 80GB HBM3") == (989e12, 1_979e12, 3.35e12)
    assert peak_of("NVIDIA H100 PCIe")[0] == 756e12
    assert peak_of("NVIDIA A100-SXM4-40GB")[1] == 624e12
    assert peak_of("NVIDIA GeForce") is None


def test_peers_find_what_they_look_for(gpu_check):
    """Without masks all three agree on the best by the first limb, or by all of it."""
    peers, asked = sys.modules["gpu_peers"], gpu_check.problem(3, 70_000, 3, 16)
    corpus, queries = asked
    queries.q_qd[:] = queries.q_qd >> 7 << 7
    wanted = Ops().topk(corpus, queries, 5, count=False).row_qk
    np.testing.assert_array_equal(peers.by_cupy(corpus, queries, 5, xp=np)(), wanted)
    everybody = np.full(3, 1 << 20, np.int32)
    run = peers.by_torch(corpus, queries, everybody, 5, torch=Torch(), device="")
    np.testing.assert_array_equal(run(), wanted)
    few = np.full(3, 1 << 10, np.int32)
    found = peers.by_torch(corpus, queries, few, 5, torch=Torch(), device="")()
    assert (corpus.parts[0][0].scalars["rate"][found] <= 1 << 10).all()


def test_without_torch_it_is_said(gpu_check, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    corpus, queries = gpu_check.problem(3, 50, 3, 16)
    found = sys.modules["gpu_peers"].by_torch(corpus, queries, np.zeros(3), 5)
    assert found == "torch is not installed"
    assert gpu_check.end_to_end(gpu_check.parse([]), 1.0)["left_out"].startswith("not installed: ")


def test_rule_sets_differ_and_half_of_the_rows_pass(gpu_check):
    corpus, queries = gpu_check.problem(4, 20_000, 50, 8)
    ruled = gpu_check.gpu_cells.own_rules(5, queries)
    assert len(set(ruled.groups)) == 50
    shares = [Ops().count(corpus, rules)[0] / corpus.n for rules in ruled.groups[:20]]
    assert 0.4 < np.mean(shares) < 0.7


def test_the_default_policy_has_so_many_dimensions(gpu_check, service_store):
    with service_store as store:
        assert store.snapshot().corpus("job").parts[0][0].x_nd.shape[1] == gpu_check.DEFAULT_D


@pytest.fixture
def service_store(tmp_path):
    gpu_service = sys.modules["gpu_service"]
    gpu_service.make_store(tmp_path / "store", 2_000)
    return Store.open(tmp_path / "store")


def test_calls_over_grpc_are_measured(gpu_check, tmp_path):
    """A server in a process of its own, on the CPU; batches, callers in turn, and at moments."""
    options = tiny(
        gpu_check, tmp_path, "--service-device", "cpu", "--service-rows", "2000",
        "--store", str(tmp_path / "made"), "--only", "service", "--load-s", "0.6",
    )  # fmt: skip
    assert gpu_check.check(*backends(), {}, options) == 0
    found = json.loads(options.out.read_text("utf-8"))["sections"]["service"]
    assert found["freelancers"] == 2_000
    assert "cpu" in found["device"][0]
    assert found["batch_find"]["jobs_per_second"] > 0
    assert found["batch_find"]["p50_ms"] <= found["batch_find"]["p99_ms"]
    assert [load["failed"] for load in found["open_loop"]] == [{}] * 3
    assert [load["calls"] > 0 for load in found["open_loop"]] == [True] * 3
    rates = [load["calls_per_second"] for load in found["open_loop"]]
    assert rates == sorted(rates)
    assert (tmp_path / "made").exists()


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
        file, _, test = name.partition("::")
        text = (repo_root / "tests" / file).read_text("utf-8")
        assert "pytest.mark.gpu" in text
        assert f"def {test}" in text
