"""A machine with a device, or without one, for tests of the engine."""

from __future__ import annotations

import functools

import pytest

from matchwright.engine import device as engine_device
from matchwright.kernels import choice, probe
from matchwright.kernels.probe import Absence, Found, Missing

THERE = Found("NVIDIA H100", 90, 80 << 30, 70 << 30, 13_020)
ABSENT = Missing(Absence.NO_DEVICE, "there is an NVIDIA driver, but no CUDA device")


@pytest.fixture
def gpu(monkeypatch):
    """Puts a device into this machine: ``gpu(device)``; or takes it out: ``gpu(ABSENT)``."""

    def put(device):
        found = device if isinstance(device, Missing) else THERE
        made = functools.partial(choice.choose, look=lambda: found, make=lambda: device)
        monkeypatch.setattr(choice, "choose", made)
        monkeypatch.setattr(probe, "probe", lambda: found)
        return device

    return put


@pytest.fixture(autouse=True)
def small_checks(monkeypatch):
    monkeypatch.setattr(engine_device, "SAMPLE_QUERIES", 20)
    monkeypatch.setattr(engine_device, "CHECK_KS", (1, 30))
    monkeypatch.setattr(engine_device, "FEW", (1, 12))
