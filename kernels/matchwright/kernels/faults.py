"""What an error on the device means: try with less, answer this one elsewhere, or give it up.

CUDA's errors are told by their numbers, which are those of ``cudaError_t``. An error that leaves
the context unusable is *sticky*: every later call fails with it, so there is nothing to retry.
"""

from __future__ import annotations

import enum

from matchwright.kernels.compile import CompileError
from matchwright.kernels.device import DeviceError, LaunchRefused

_MEMORY = {2}  # cudaErrorMemoryAllocation, CUDA_ERROR_OUT_OF_MEMORY
_THIS_CALL = {1, 9, 98, 600, 701, 720, 801}
"""Invalid value, configuration or function, not ready, too many resources for a launch, too large
a cooperative launch, not supported: the context lives on."""
_MODULES = ("cupy", "cupy_backends")


class Fault(enum.StrEnum):
    """What to do after an error."""

    MEMORY = "OUT_OF_MEMORY"
    CALL = "CALL_FAILED"
    LOST = "DEVICE_LOST"


class DeviceFault(DeviceError):
    """A CUDA error with its number, from a device that is not CuPy's.

    Args:
        text: what happened.
        status: as in ``cudaError_t``.
    """

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status


def fault_of(error: BaseException) -> Fault | None:
    """What an error means; None where it is not the device's: the caller's or a defect.

    A device that gives wrong counts is lost too: what it says cannot be trusted.
    """
    if isinstance(error, LaunchRefused):
        return Fault.CALL
    if isinstance(error, MemoryError):  # CuPy's is one, too
        return Fault.MEMORY
    status = getattr(error, "status", None)
    theirs = type(error).__module__.partition(".")[0] in _MODULES
    if theirs or isinstance(error, DeviceFault):
        if status in _MEMORY:
            return Fault.MEMORY
        return Fault.CALL if status in _THIS_CALL else Fault.LOST
    return Fault.LOST if isinstance(error, (DeviceError, CompileError)) else None
