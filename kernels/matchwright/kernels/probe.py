"""Whether a CUDA device can be used here, and if not, why, by name.

Looking allocates nothing on the device. Importing this module imports no CuPy.
"""

from __future__ import annotations

import enum
import importlib
import importlib.util
from dataclasses import dataclass
from typing import Any

CAPABILITY_LEAST = 80
"""8.0: int8 tensor cores, asynchronous copies and the warp sums that every kernel uses."""
FREE_LEAST = 512 << 20
"""Bytes of device memory that must be free: CUDA's own context and the least useful buffers."""
_NO_DEVICE = 100  # cudaErrorNoDevice


class Absence(enum.StrEnum):
    """Why there is no device."""

    NO_CUPY = "NO_CUPY"
    NO_DRIVER = "NO_DRIVER"
    OLD_DRIVER = "OLD_DRIVER"
    NO_DEVICE = "NO_DEVICE"
    OLD_DEVICE = "OLD_DEVICE"
    NO_MEMORY = "NO_MEMORY"
    BROKEN = "BROKEN"


@dataclass(frozen=True, slots=True)
class Missing:
    """No device can be used.

    Attributes:
        why: by name.
        text: in words, with what to do.
    """

    why: Absence
    text: str


@dataclass(frozen=True, slots=True)
class Found:
    """A device that can be used; memory in bytes.

    Attributes:
        name: the chip's.
        capability: 90 stands for 9.0.
        driver: the CUDA version that the driver speaks, 13020 for 13.2.
    """

    name: str
    capability: int
    memory: int
    free: int
    driver: int

    @property
    def text(self) -> str:
        major, minor = divmod(self.capability, 10)
        return (
            f"{self.name}, compute capability {major}.{minor}, "
            f"{gib(self.free)} of {gib(self.memory)} free"
        )


def gib(size: int) -> str:
    """Bytes in words: GiB from 1 GiB on, else MiB."""
    return f"{size / 2**30:,.1f} GiB" if size >= 2**30 else f"{size / 2**20:,.1f} MiB"


def installed() -> bool:
    """Whether CuPy can be imported."""
    return importlib.util.find_spec("cupy") is not None


def probe(cupy: Any = None) -> Found | Missing:
    """Look for a device.

    Args:
        cupy: the module; None imports it.
    """
    if cupy is None:
        if not installed():
            return Missing(Absence.NO_CUPY, "CuPy is not installed; pip install 'matchwright[gpu]'")
        try:
            cupy = importlib.import_module("cupy")
        except Exception as error:  # a library that it needs is not there
            return Missing(Absence.NO_CUPY, f"CuPy is installed but cannot be imported: {error}")
    try:
        return _look(cupy)
    except Exception as error:  # whatever this driver says
        return Missing(Absence.BROKEN, f"the CUDA device does not answer: {error}")


def _look(cupy: Any) -> Found | Missing:
    runtime = cupy.cuda.runtime
    driver, wanted = int(runtime.driverGetVersion()), int(runtime.runtimeGetVersion())
    if not driver:
        return Missing(Absence.NO_DRIVER, "CuPy is installed, but there is no NVIDIA driver")
    if driver // 1_000 < wanted // 1_000:
        return Missing(
            Absence.OLD_DRIVER,
            f"the NVIDIA driver speaks CUDA {_version(driver)}, and CuPy was built for "
            f"{_version(wanted)}; install a newer driver",
        )
    try:
        count = int(runtime.getDeviceCount())
    except Exception as error:
        if getattr(error, "status", None) != _NO_DEVICE:
            raise
        count = 0
    if not count:
        return Missing(Absence.NO_DEVICE, "there is an NVIDIA driver, but no CUDA device")
    return _judge(cupy, driver)


def _judge(cupy: Any, driver: int) -> Found | Missing:
    """The current device, unless it is too old or too full."""
    runtime, device = cupy.cuda.runtime, cupy.cuda.Device()
    properties = runtime.getDeviceProperties(device.id)
    name, capability = properties["name"].decode(), int(device.compute_capability)
    if capability < CAPABILITY_LEAST:
        return Missing(
            Absence.OLD_DEVICE,
            f"{name} has compute capability {capability / 10:.1f}; "
            f"{CAPABILITY_LEAST / 10:.1f} is the least",
        )
    free, memory = (int(size) for size in runtime.memGetInfo())
    if free < FREE_LEAST:
        return Missing(
            Absence.NO_MEMORY,
            f"{name} has {gib(free)} of {gib(memory)} free, and {gib(FREE_LEAST)} is the least; "
            "end what else uses it",
        )
    return Found(name, capability, memory, free, driver)


def _version(number: int) -> str:
    return f"{number // 1_000}.{number % 1_000 // 10}"
