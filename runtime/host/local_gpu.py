"""The first NVIDIA GPU of this machine, as the driver library describes it; needs no package."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76  # CUdevice_attribute, fixed by the CUDA driver API
_NAME_BYTES = 256


@dataclass(frozen=True)
class LocalGpu:
    """The first GPU of this machine.

    Attributes:
        name: name of the model, such as `NVIDIA L4`.
        capability: compute capability, such as `8.6`.
    """

    name: str
    capability: str


def local_gpu() -> LocalGpu | None:
    """Returns the GPU that engines of target `local` are built for; None without a GPU."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    device = ctypes.c_int()
    if driver.cuInit(0) != 0 or driver.cuDeviceGet(ctypes.byref(device), 0) != 0:
        return None
    name = ctypes.create_string_buffer(_NAME_BYTES)
    driver.cuDeviceGetName(name, _NAME_BYTES, device)
    major, minor = (
        _attribute(driver, attribute, device)
        for attribute in (_CAPABILITY_MAJOR, _CAPABILITY_MINOR)
    )
    return LocalGpu(name=name.value.decode(errors="replace"), capability=f"{major}.{minor}")


def _attribute(driver: ctypes.CDLL, attribute: int, device: ctypes.c_int) -> int:
    value = ctypes.c_int()
    driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
    return value.value
