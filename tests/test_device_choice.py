"""Which backend is chosen and why; what is said of a machine without a device."""

from __future__ import annotations

import json

import numpy as np
import pytest
from cupy_cases import NO_DEVICE
from device_fakes import ILLEGAL, CudaError, FailingDevice, fake_cupy

from matchwright.kernels import choice
from matchwright.kernels.choice import NoDevice, choose
from matchwright.kernels.cupy_ops import DeviceMismatch
from matchwright.kernels.enduring import EnduringOps
from matchwright.kernels.numpy_device import NumpyDevice
from matchwright.kernels.ops import Ops, get_ops
from matchwright.kernels.probe import Absence, Found, Missing, gib, probe

GIB = 1 << 30
THERE = Found("NVIDIA H100", 90, 80 * GIB, 70 * GIB, 13_020)


# ── What is looked at ─────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("machine", "why", "words"),
    [
        ({"driver": 0}, Absence.NO_DRIVER, "no NVIDIA driver"),
        ({"driver": 12_040}, Absence.OLD_DRIVER, "speaks CUDA 12.4, and CuPy was built for 13.2"),
        ({"count": 0}, Absence.NO_DEVICE, "no CUDA device"),
        ({"count": CudaError(100)}, Absence.NO_DEVICE, "no CUDA device"),
        ({"count": CudaError(999)}, Absence.BROKEN, "does not answer: cudaError 999"),
        ({"capability": "75"}, Absence.OLD_DEVICE, "compute capability 7.5; 8.0 is the least"),
        ({"free": 400 << 20}, Absence.NO_MEMORY, "400.0 MiB of 80.0 GiB free"),
    ],
)
def test_why_there_is_none(machine, why, words):
    found = probe(fake_cupy(**machine))
    assert isinstance(found, Missing)
    assert found.why is why
    assert words in found.text


def test_one_that_can_be_used():
    found = probe(fake_cupy())
    assert found == THERE
    assert found.text == ("NVIDIA H100, compute capability 9.0, 70.0 GiB of 80.0 GiB free")
    assert isinstance(probe(fake_cupy(capability="80", driver=14_000)), Found)


def test_cupy_that_is_not_there_or_broken(monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert probe().why is Absence.NO_CUPY
    monkeypatch.undo()
    monkeypatch.setattr("matchwright.kernels.probe.installed", lambda: True)
    monkeypatch.setitem(__import__("sys").modules, "cupy", None)
    assert "cannot be imported" in probe().text


def test_sizes_in_words():
    assert [gib(n) for n in (0, 1 << 20, 1 << 30, 1 << 44)] == [
        *("0.0 MiB", "1.0 MiB", "1.0 GiB", "16,384.0 GiB"),
    ]


# ── What is chosen ────────────────────────────────────────────────────────────────────────────


def chosen(asked, look=lambda: THERE, device=None, **options):
    return choose(asked, look=look, make=lambda: device or NumpyDevice(tensor=True), **options)


@pytest.mark.parametrize("asked", ["auto", "gpu"])
def test_a_device_is_used_where_there_is_one(asked):
    ops = chosen(asked)
    assert isinstance(ops, EnduringOps)
    assert ops.name == "cupy"
    assert ops.health.on_device
    assert ops.health.chosen == f"device: emulated ({asked}; {THERE.text})"


@pytest.mark.parametrize("asked", ["cpu", "numpy"])
def test_a_device_is_not_even_looked_for_when_the_cpu_is_asked_for(asked):
    def look():
        raise AssertionError("nobody asked")

    ops = chosen(asked, look, threads=2)
    assert not ops.health.on_device
    assert ops.health.chosen == f"device: {ops.name} on 2 threads ({asked}; asked for)"


def test_auto_falls_to_the_cpu_and_says_why():
    missing = Missing(Absence.NO_DEVICE, "there is an NVIDIA driver, but no CUDA device")
    ops = chosen("auto", lambda: missing, threads=1)
    assert ops.health.chosen == (
        f"device: {ops.name} on 1 thread (auto; no GPU: there is an NVIDIA driver, but no CUDA "
        "device)"
    )


@pytest.mark.parametrize("why", list(Absence))
def test_gpu_refuses_and_names_the_reason(why):
    with pytest.raises(NoDevice, match="because") as caught:
        chosen("gpu", lambda: Missing(why, "because"))
    assert caught.value.why is why
    assert "use device='cpu'" in str(caught.value)


@pytest.mark.parametrize("asked", ["auto", "gpu"])
def test_a_device_that_is_wrong_is_refused_whatever_was_asked(asked):
    class Wrong(NumpyDevice):
        def sieve(self, block, tile, active_a, begin, end):
            super().sieve(block, tile, active_a, begin, end)
            block.found_qc4[:, :, 0] += 1

    with pytest.raises(DeviceMismatch, match="disagree"):
        chosen(asked, device=Wrong(tensor=True))


def test_a_device_that_breaks_at_the_start_is_none():
    broken = FailingDevice(ILLEGAL)
    ops = chosen("auto", device=broken)
    assert not ops.health.on_device
    assert "NVIDIA H100 does not work: status 700" in ops.health.chosen
    with pytest.raises(NoDevice) as caught:
        chosen("gpu", device=FailingDevice(ILLEGAL))
    assert caught.value.why is Absence.BROKEN


def test_a_defect_is_not_taken_for_a_missing_device():
    class Defective(NumpyDevice):
        def select(self, block, active_a):
            raise TypeError("a defect")

    with pytest.raises(TypeError, match="a defect"):
        chosen("auto", device=Defective(tensor=True))


def test_budgets():
    ops = chosen("gpu", memory_bytes=1 << 26, device_memory_bytes=1 << 30)
    assert ops.device_ops.resident.budget_bytes == (1 << 30) - (1 << 26)
    for options, words in (
        ({"device_memory_bytes": 1 << 20}, "of which 256.0 MiB are for temporary memory"),
        ({"device_memory_bytes": 71 * GIB}, "has 70.0 GiB free"),
        ({"memory_bytes": 70 * GIB}, "temporary memory alone takes 70.0 GiB"),
    ):
        with pytest.raises(NoDevice, match=words) as caught:
            chosen("gpu", **options)
        assert caught.value.why is Absence.NO_MEMORY


def test_the_pool_is_held_to_the_budget():
    limits = []
    device = NumpyDevice(tensor=True)
    device.limit_memory = limits.append
    chosen("gpu", device=device, device_memory_bytes=1 << 30)
    chosen("gpu", device=device)
    assert limits == [1 << 30]


def test_get_ops_says_what_it_chose():
    ops = get_ops("auto", threads=1)
    assert ops.health.asked == "auto"
    assert ops.health.chosen.startswith("device: ")
    if NO_DEVICE is not None:
        assert NO_DEVICE in ops.health.chosen
        with pytest.raises(NoDevice, match="use device='cpu'"):
            get_ops("gpu")
    with pytest.raises(ValueError, match="unknown device 'abacus'"):
        get_ops("abacus")


def test_numkong_that_is_asked_for_must_be_there(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "numkong", None)
    with pytest.raises(ImportError):
        choose("numkong")
    assert choose("cpu").name == "numpy"


def test_a_plain_backend_has_a_health_too():
    health = Ops(threads=1).health
    assert (health.device, health.on_device, health.lost) == ("numpy", False, None)
    assert json.dumps(dict(health.cpu_batches)) == "{}"
    assert choice.KNOWN == ("auto", "cpu", "gpu", "numkong", "numpy")
    assert np.isfinite(Ops(threads=1).scan_seconds(10, 1, 8))
