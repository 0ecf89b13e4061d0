"""Devices that fail, or are slow, where a test wants them to; and a CuPy that is not there."""

from __future__ import annotations

import contextlib
import threading
from types import SimpleNamespace

import numpy as np

from matchwright.kernels.faults import DeviceFault
from matchwright.kernels.numpy_device import NumpyDevice

MEMORY, INVALID, ILLEGAL = 2, 1, 700  # cudaErrorMemoryAllocation, -InvalidValue, -IllegalAddress


class FailingDevice(NumpyDevice):
    """Counts what is asked of it, and fails at chosen calls.

    Args:
        fails: number of a call -> status; or a status for all calls from ``since`` on.
        since: the first call that fails when ``fails`` is a status.
    """

    CALLS = (
        *("upload", "download", "empty", "put", "mark", "hold", "norms", "points", "sieve"),
        *("threshold", "select", "product", "rule_bits", "memory_free"),
    )

    def __init__(self, fails=None, since=0, *, tensor=True):
        super().__init__(tensor=tensor)
        self.fails, self.since = fails, since
        self.calls = []
        self.released = 0

    def release(self):
        self.released += 1

    def _called(self, name):
        number = len(self.calls)
        self.calls.append(name)
        if isinstance(self.fails, dict):
            status = self.fails.get(number)
        else:
            status = self.fails if self.fails and number >= self.since else None
        if status is not None:
            raise DeviceFault(f"status {status} at call {number}, {name}", status)


def _counted(name):
    inner = getattr(NumpyDevice, name)

    def call(self, *args, **named):
        self._called(name)
        return inner(self, *args, **named)

    return call


for _name in FailingDevice.CALLS:
    setattr(FailingDevice, _name, _counted(_name))


class LazyDevice(NumpyDevice):
    """Copies that are queued aside happen only when somebody waits for a mark behind them.

    So whoever reads too early sees what was there before: garbage. ``host`` buffers are read when
    the copy happens, so whoever fills them again too early spoils it.
    """

    def __init__(self):
        super().__init__(tensor=True)
        self.queue = []
        self.ran = 0
        self._here = threading.local()
        self._lock = threading.RLock()

    @property
    def inside(self):
        """Whether this thread queues aside; CuPy's current stream is a thread's, too."""
        return getattr(self._here, "inside", False)

    def empty(self, shape, dtype):
        made = np.empty(shape, dtype)
        made.view(np.uint8).reshape(-1)[:] = 0xAB
        return made

    @contextlib.contextmanager
    def aside(self):
        self._here.inside = True
        try:
            yield
        finally:
            self._here.inside = False

    def put(self, target, host):
        assert self.inside
        self.queue.append(lambda: np.copyto(target, host))

    def norms(self, x_nd):
        if not self.inside:
            return super().norms(x_nd)
        out = self.empty((x_nd.shape[0],), np.int32)
        inner = super().norms
        self.queue.append(lambda: np.copyto(out, inner(x_nd)))
        return out

    def mark(self):
        return _LazyMark(self, len(self.queue))

    def hold(self, mark):
        mark.synchronize()

    def run(self, until):
        with self._lock:
            while self.ran < until:
                self.queue[self.ran]()
                self.ran += 1


class _LazyMark:
    def __init__(self, device, place):
        self.device, self.place = device, place

    @property
    def done(self):
        return self.device.ran >= self.place

    def synchronize(self):
        self.device.run(self.place)


class CudaError(RuntimeError):
    """CuPy's, by its looks."""

    def __init__(self, status):
        super().__init__(f"cudaError {status}")
        self.status = status


CudaError.__module__ = "cupy_backends.cuda.api.runtime"


def fake_cupy(*, driver=13_020, count=1, capability="90", free=70 << 30, memory=80 << 30):
    """What ``probe`` asks of CuPy; a number that is an exception is raised."""

    def answer(value):
        def call(*_):
            if isinstance(value, Exception):
                raise value
            return value

        return call

    runtime = SimpleNamespace(
        driverGetVersion=answer(driver),
        runtimeGetVersion=answer(13_020),
        getDeviceCount=answer(count),
        getDeviceProperties=answer({"name": b"NVIDIA H100"}),
        memGetInfo=answer((free, memory)),
    )
    device = SimpleNamespace(id=0, compute_capability=capability)
    return SimpleNamespace(cuda=SimpleNamespace(runtime=runtime, Device=lambda: device))
