"""The few calls of NVIDIA's driver library that a tiny inference needs: no package is needed.

The names, their `_v2` and the attribute numbers are fixed by the CUDA driver API. Nothing is freed:
this serves processes that end after one inference.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybrid_deploy.errors import BackendError

_INTEGRATED = 18  # CUdevice_attribute: the GPU shares the memory of the CPU


class CudaDriver:
    """The first GPU, through libcuda.

    Raises:
        BackendError: there is no driver, or it has no GPU that it can use.
    """

    def __init__(self) -> None:
        try:
            self._library = ctypes.CDLL("libcuda.so.1")
        except OSError as error:
            raise BackendError("NVIDIA's driver library libcuda.so.1 is not there") from error
        self._call("cuInit", 0)
        self._device = ctypes.c_int()
        self._call("cuDeviceGet", ctypes.byref(self._device), 0)

    def version(self) -> str:
        """Returns the newest CUDA that this driver serves, `12.8`."""
        value = ctypes.c_int()
        self._call("cuDriverGetVersion", ctypes.byref(value))
        return f"{value.value // 1000}.{value.value % 1000 // 10}"

    def memory_bytes(self) -> int:
        """Returns the memory of the GPU."""
        value = ctypes.c_size_t()
        self._call("cuDeviceTotalMem_v2", ctypes.byref(value), self._device)
        return value.value

    def is_integrated(self) -> bool:
        """Says whether the GPU shares the memory of the CPU, as on a Jetson."""
        value = ctypes.c_int()
        self._call("cuDeviceGetAttribute", ctypes.byref(value), _INTEGRATED, self._device)
        return value.value != 0

    def use(self) -> int:
        """Makes the GPU current in this thread and gives a new stream."""
        context, stream = ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), self._device)
        self._call("cuCtxSetCurrent", context)
        self._call("cuStreamCreate", ctypes.byref(stream), 0)
        return stream.value or 0

    def upload(self, array: NDArray[Any]) -> int:
        """Returns the address of a copy in the GPU's memory; the driver aligns it to 256 bytes."""
        held = np.ascontiguousarray(array)
        address = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(held.nbytes))
        pointer, size = ctypes.c_void_p(held.ctypes.data), ctypes.c_size_t(held.nbytes)
        self._call("cuMemcpyHtoD_v2", address, pointer, size)
        return address.value

    def download(self, address: int, array: NDArray[Any]) -> None:
        """Fills a contiguous array from the GPU's memory."""
        pointer, size = ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(array.nbytes)
        self._call("cuMemcpyDtoH_v2", pointer, ctypes.c_uint64(address), size)

    def wait(self, stream: int) -> None:
        """Waits until a stream has done its work."""
        self._call("cuStreamSynchronize", ctypes.c_void_p(stream))

    def _call(self, name: str, *arguments: object) -> None:
        status = getattr(self._library, name)(*arguments)
        if status != 0:
            text = ctypes.c_char_p()
            self._library.cuGetErrorName(status, ctypes.byref(text))
            reason = text.value.decode() if text.value else f"error {status}"
            raise BackendError(f"the CUDA driver failed in {name}: {reason}")
