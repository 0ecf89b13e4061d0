"""Which backend is used, and one line that says why."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from matchwright.kernels.cupy_ops import CupyOps, DeviceMismatch
from matchwright.kernels.device import DeviceError, KernelDevice
from matchwright.kernels.enduring import EnduringOps
from matchwright.kernels.faults import fault_of
from matchwright.kernels.ops import Ops
from matchwright.kernels.probe import FREE_LEAST, Absence, Found, Missing, gib, probe

KNOWN = ("auto", "cpu", "gpu", "numkong", "numpy")


class NoDevice(DeviceError):
    """There is no device that can be used.

    Args:
        missing: why.
    """

    def __init__(self, missing: Missing) -> None:
        super().__init__(f"{missing.text}; use device='cpu' to run without one")
        self.why = missing.why
        self.text = missing.text


def choose(
    asked: str,
    *,
    threads: int | None = None,
    memory_bytes: int = 256 << 20,
    device_memory_bytes: int | None = None,
    look: Callable[[], Found | Missing] = probe,
    make: Callable[[], KernelDevice | None] = lambda: None,
) -> Ops:
    """As ``ops.get_ops``.

    Args:
        look: finds the device.
        make: makes it; None for the current CUDA device.
    """
    if asked not in KNOWN:
        raise ValueError(f"unknown device {asked!r}; known: {', '.join(KNOWN)}")
    why_not = ""
    if asked in ("auto", "gpu"):
        made = _device(look, make, threads, memory_bytes, device_memory_bytes)
        if not isinstance(made, Missing):
            ops, found = made
            return _told(EnduringOps(ops, _cpu("cpu", threads, memory_bytes)), asked, found.text)
        if asked == "gpu":
            raise NoDevice(made)
        why_not = f"no GPU: {made.text}"
    cpu = _cpu(asked, threads, memory_bytes)
    return _told(cpu, asked, why_not or "asked for")


def _device(
    look: Callable[[], Found | Missing],
    make: Callable[[], KernelDevice | None],
    threads: int | None,
    memory_bytes: int,
    device_memory_bytes: int | None,
) -> tuple[CupyOps, Found] | Missing:
    """(the device's backend, what it is) or why there is none.

    Raises:
        DeviceMismatch: its answers are wrong.
    """
    found = look()
    if isinstance(found, Missing):
        return found
    corpus_bytes = None
    if device_memory_bytes is not None:
        corpus_bytes = device_memory_bytes - memory_bytes
        if corpus_bytes <= 0 or device_memory_bytes > found.free:
            return Missing(
                Absence.NO_MEMORY,
                f"device_memory_bytes is {gib(device_memory_bytes)}, and {found.name} has "
                f"{gib(found.free)} free, of which {gib(memory_bytes)} are for temporary memory",
            )
    elif memory_bytes + FREE_LEAST // 2 > found.free:
        return Missing(
            Absence.NO_MEMORY,
            f"{found.name} has {gib(found.free)} free, and temporary memory alone takes "
            f"{gib(memory_bytes)}; lower it with --memory-mb",
        )
    try:
        device = make()
        ops = CupyOps(
            threads=threads, memory_bytes=memory_bytes, corpus_bytes=corpus_bytes, device=device
        )
        if device_memory_bytes is not None:
            ops.device.limit_memory(device_memory_bytes)
    except DeviceMismatch:
        raise
    except Exception as error:  # a device that is there, and does not work
        if fault_of(error) is None:
            raise
        return Missing(Absence.BROKEN, f"{found.name} does not work: {error}")
    return ops, found


def _cpu(asked: str, threads: int | None, memory_bytes: int) -> Ops:
    if asked != "numpy":
        from matchwright.kernels import numkong_ops

        try:
            return numkong_ops.NumkongOps(threads=threads, memory_bytes=memory_bytes)
        except (ImportError, numkong_ops.Inexact):
            if asked == "numkong":
                raise
    return Ops(threads=threads, memory_bytes=memory_bytes)


def _told(ops: Any, asked: str, why: str) -> Ops:
    """The backend, with the line that says what it is."""
    made: Ops = ops
    made.health.asked = asked
    device = made.health.device
    threads = f" on {made.threads} thread{'s' if made.threads > 1 else ''}"
    made.health.chosen = (
        f"device: {device}{'' if made.health.on_device else threads} ({asked}; {why})"
    )
    return made
