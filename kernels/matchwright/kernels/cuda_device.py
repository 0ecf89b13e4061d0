"""``CudaDevice``: the kernels' device through CuPy. Importing this module imports no CuPy."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from matchwright.kernels.compile import KERNELS, WARPGROUP_ARCH, compiled, threads_of
from matchwright.kernels.device import Array, DeviceError, KernelDevice, Mark

_TENSOR_CORES_SINCE = 80
_GEMM_HALF, _GEMM_SINGLE = 2, 0  # CUDA_R_16F, CUDA_R_32F
_SHARED_UNASKED = 48 << 10  # bytes of shared memory that a launch may have unasked
_COMPUTE_32F, _GEMM_DEFAULT = 68, -1  # CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT


class CudaDevice(KernelDevice):
    """The current CUDA device, through CuPy.

    Args:
        half: tensor cores on float16 inputs (accumulated and written in float32); otherwise
            float32 without TF32. Sums of the first limb are below 2**24, exact in both.
        tensor: use the sieve where the device can (from compute capability 8.0 on), and the
            library's product only elsewhere; False: the product everywhere, as a yardstick.
        wide: many queries go to the sieve on warpgroups (``KernelDevice.wide``).

    Raises:
        DeviceError: ``wide`` is asked for, and the device has no warpgroups' products.
    """

    timed = True

    def __init__(self, *, half: bool = True, tensor: bool = True, wide: bool = False) -> None:
        import cupy

        self.xp = cupy
        self.half = half
        device = cupy.cuda.Device()
        properties = cupy.cuda.runtime.getDeviceProperties(device.id)
        self.name = f"cuda:{properties['name'].decode()}"
        self.arch = architecture(device.compute_capability)
        self.tensor = tensor and int(device.compute_capability) >= _TENSOR_CORES_SINCE
        if wide and self.arch != WARPGROUP_ARCH:
            raise DeviceError(f"{self.name} is {self.arch}; warpgroups need {WARPGROUP_ARCH}")
        self.wide = wide
        self._cublas: Any = None if self.tensor else _cublas()
        self._functions: dict[str, Any] = {}
        self._shared: dict[str, int] = {}
        self._aside = cupy.cuda.Stream(non_blocking=True)

    def launch(
        self, kernel: str, grid: tuple[int, int], args: Sequence[Any], shared: int = 0
    ) -> None:
        if kernel not in self._functions:
            module = self.xp.cuda.function.Module()
            module.load(compiled(KERNELS[kernel], self.arch).cubin)
            self._functions[kernel] = module.get_function(kernel)
        function = self._functions[kernel]
        if shared > self._shared.get(kernel, _SHARED_UNASKED):
            driver = _driver()
            driver.funcSetAttribute(
                function.ptr, driver.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, shared
            )
            self._shared[kernel] = shared
        function((*grid, 1), (threads_of(kernel), 1, 1), tuple(args), shared)

    def product(self, high_qd: Array, x_nd: Array, out_qn: Array) -> None:
        """cuBLAS is column-major: it is told to work out the transpose, x_nd @ high_qd.T."""
        cublas = self._cublas = self._cublas or _cublas()
        (q, width), n = high_qd.shape, x_nd.shape[0]
        x = x_nd.astype(high_qd.dtype)
        inputs = _GEMM_HALF if self.half else _GEMM_SINGLE
        one, zero = np.ones(1, np.float32), np.zeros(1, np.float32)
        cublas.gemmEx(
            self.xp.cuda.device.get_cublas_handle(),
            *(cublas.CUBLAS_OP_T, cublas.CUBLAS_OP_N, n, q, width, one.ctypes.data),
            *(x.data.ptr, inputs, width, high_qd.data.ptr, inputs, width, zero.ctypes.data),
            *(out_qn.data.ptr, _GEMM_SINGLE, out_qn.strides[0] // 4, _COMPUTE_32F, _GEMM_DEFAULT),
        )

    def download(self, array: Array) -> NDArray[Any]:
        host: NDArray[Any] = self.xp.asnumpy(array)
        return host

    def memory_free(self) -> int | None:
        free, _ = self.xp.cuda.runtime.memGetInfo()
        return int(free) + int(self.xp.get_default_memory_pool().free_bytes())

    def release(self) -> None:
        self.xp.get_default_memory_pool().free_all_blocks()

    def limit_memory(self, nbytes: int) -> None:
        self.xp.get_default_memory_pool().set_limit(size=nbytes)

    def address(self, array: Array) -> int:
        return int(array.data.ptr)

    # ── Aside: a stream of its own, pinned memory, events ─────────────────────────────────────

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        with self._aside:
            yield

    def staging(self, nbytes: int) -> NDArray[np.uint8]:
        memory = self.xp.cuda.alloc_pinned_memory(nbytes)
        return np.frombuffer(memory, np.uint8, nbytes)  # which keeps the memory alive

    def put(self, target: Array, host: NDArray[Any]) -> None:
        target.data.copy_from_host_async(host.ctypes.data, host.nbytes)

    def mark(self) -> Mark:
        event = self.xp.cuda.Event(disable_timing=True)
        event.record()
        mark: Mark = event
        return mark

    def hold(self, mark: Mark) -> None:
        if not mark.done:
            self.xp.cuda.get_current_stream().wait_event(mark)


def _cublas() -> Any:
    """CuPy's cuBLAS, which only the product needs: half a gigabyte that the sieve does without.

    Raises:
        DeviceError: it is not installed.
    """
    try:
        from cupy_backends.cuda.libs import cublas  # type: ignore[import-untyped]
    except ImportError as error:
        raise DeviceError(f"CuPy finds no cuBLAS; install nvidia-cublas: {error}") from error
    return cublas


def _driver() -> Any:
    from cupy_backends.cuda.api import driver  # type: ignore[import-untyped]

    return driver


def architecture(capability: str) -> str:
    """What NVRTC calls a compute capability such as "90" or "80"."""
    return WARPGROUP_ARCH if capability == "90" else f"sm_{capability}"
