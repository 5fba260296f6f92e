"""A `Device` that is the host: its buffers have real addresses, and work is done at once."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybrid_deploy.runtime.backends.gpu.device import (
    ALIGNMENT,
    Buffer,
    CapturedGraph,
    CaptureError,
    HostBuffer,
    aligned,
)


def bytes_at(address: int, nbytes: int) -> NDArray[np.uint8]:
    """Returns an array over the bytes at an address of this process."""
    return np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(address))


@dataclass(frozen=True, eq=False)
class HostDeviceBuffer:
    """A buffer of the device and of its host; both are the same machine."""

    address: int
    nbytes: int

    def part(self, start: int, nbytes: int) -> HostDeviceBuffer:
        return HostDeviceBuffer(self.address + start, nbytes)

    def fill(self, array: NDArray[Any]) -> None:
        bytes_at(self.address, array.nbytes)[:] = np.frombuffer(array.tobytes(), np.uint8)

    def view(self, dtype: np.dtype[Any], shape: tuple[int, ...], start: int = 0) -> NDArray[Any]:
        size = int(np.prod(shape)) * dtype.itemsize
        array: NDArray[Any] = bytes_at(self.address + start, size).view(dtype).reshape(shape)
        return array


class HostEvent:
    def record(self) -> None:
        """All work is done already."""

    def wait(self) -> None:
        """All work is done already."""


class HostDevice:
    name = "host"
    stream = 0

    def __init__(self) -> None:
        self._arrays: dict[int, NDArray[np.uint8]] = {}

    def use(self) -> None:
        """There is only one device."""

    def allocate(self, nbytes: int) -> HostDeviceBuffer:
        array = np.full(nbytes + ALIGNMENT, 0xFF, np.uint8)
        address = aligned(array.ctypes.data)
        self._arrays[address] = array
        return HostDeviceBuffer(address, nbytes)

    allocate_host = allocate

    def free(self, buffer: Buffer | HostBuffer) -> None:
        assert isinstance(buffer, HostDeviceBuffer)
        del self._arrays[buffer.address]

    def event(self) -> HostEvent:
        return HostEvent()

    def upload(self, target: Buffer, source: HostBuffer) -> None:
        assert isinstance(source, HostDeviceBuffer)
        bytes_at(target.address, target.nbytes)[:] = bytes_at(source.address, target.nbytes)

    def download(self, target: HostBuffer, source: Buffer) -> None:
        assert isinstance(target, HostDeviceBuffer)
        bytes_at(target.address, source.nbytes)[:] = bytes_at(source.address, source.nbytes)

    def copy(self, target: Buffer, source: Buffer) -> None:
        bytes_at(target.address, target.nbytes)[:] = bytes_at(source.address, source.nbytes).copy()

    def zero(self, target: Buffer) -> None:
        bytes_at(target.address, target.nbytes)[:] = 0

    def synchronize(self) -> None:
        """All work is done already."""

    def capture(self, work: Callable[[], None]) -> CapturedGraph:
        raise CaptureError("the host has no CUDA graphs")
