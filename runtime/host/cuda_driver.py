"""The few calls of NVIDIA's driver library that a tiny inference needs, made through ctypes.

The CUDA driver API fixes the names of the functions, their suffix `_v2` and the numbers of the
attributes. Nothing is freed: this module is for processes that end after one inference.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybrid_deploy.errors import BackendError

_INTEGRATED = 18  # CU_DEVICE_ATTRIBUTE_INTEGRATED: the GPU shares the RAM of the CPU


class CudaDriver:
    """The driver of the first GPU, called through libcuda.

    Every method raises `BackendError` if the driver refuses the call.

    Raises:
        BackendError: there is no driver, or the driver finds no usable GPU.
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
        """Returns the newest CUDA version that this driver supports, such as `12.8`."""
        value = ctypes.c_int()
        self._call("cuDriverGetVersion", ctypes.byref(value))
        return f"{value.value // 1000}.{value.value % 1000 // 10}"

    def memory_bytes(self) -> int:
        """Returns the size of the GPU's memory in bytes."""
        value = ctypes.c_size_t()
        self._call("cuDeviceTotalMem_v2", ctypes.byref(value), self._device)
        return value.value

    def is_integrated(self) -> bool:
        """Returns whether the GPU shares the RAM of the CPU, as on a Jetson."""
        value = ctypes.c_int()
        self._call("cuDeviceGetAttribute", ctypes.byref(value), _INTEGRATED, self._device)
        return value.value != 0

    def make_current(self) -> int:
        """Makes the GPU current in this thread and returns the handle of a new stream."""
        context, stream = ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), self._device)
        self._call("cuCtxSetCurrent", context)
        self._call("cuStreamCreate", ctypes.byref(stream), 0)
        return stream.value or 0

    def upload(self, array: NDArray[Any]) -> int:
        """Copies an array to a new buffer on the GPU and returns the buffer's address.

        The driver aligns the buffer to 256 bytes; it is never freed.
        """
        source = np.ascontiguousarray(array)
        address = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(source.nbytes))
        pointer, size = ctypes.c_void_p(source.ctypes.data), ctypes.c_size_t(source.nbytes)
        self._call("cuMemcpyHtoD_v2", address, pointer, size)
        return address.value

    def download(self, address: int, array: NDArray[Any]) -> None:
        """Fills a contiguous array from the buffer at an address on the GPU."""
        pointer, size = ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(array.nbytes)
        self._call("cuMemcpyDtoH_v2", pointer, ctypes.c_uint64(address), size)

    def wait(self, stream: int) -> None:
        """Waits until all work of a stream is done."""
        self._call("cuStreamSynchronize", ctypes.c_void_p(stream))

    def _call(self, name: str, *arguments: object) -> None:
        status = getattr(self._library, name)(*arguments)
        if status != 0:
            text = ctypes.c_char_p()
            self._library.cuGetErrorName(status, ctypes.byref(text))
            reason = text.value.decode() if text.value else f"error {status}"
            raise BackendError(f"the CUDA driver failed in {name}: {reason}")
