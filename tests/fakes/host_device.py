"""A device that is the host: memory has real addresses, and everything is done when it is asked."""

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
    CaptureError,
    Graph,
    HostBuffer,
)


def at(address: int, nbytes: int) -> NDArray[np.uint8]:
    """Returns the bytes at an address."""
    return np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(address))


@dataclass(frozen=True, eq=False)
class HostMemory:
    """Memory of this device, or of its host: both are the same."""

    address: int
    nbytes: int

    def part(self, start: int, nbytes: int) -> HostMemory:
        return HostMemory(self.address + start, nbytes)

    def fill(self, array: NDArray[Any]) -> None:
        at(self.address, array.nbytes)[:] = np.frombuffer(array.tobytes(), np.uint8)

    def view(self, dtype: np.dtype[Any], shape: tuple[int, ...], start: int = 0) -> NDArray[Any]:
        size = int(np.prod(shape)) * dtype.itemsize
        array: NDArray[Any] = at(self.address + start, size).view(dtype).reshape(shape)
        return array


class HostEvent:
    def record(self) -> None:
        """Everything is done already."""

    def wait(self) -> None:
        """Everything is done already."""


class HostDevice:
    name = "host"
    stream = 0

    def __init__(self) -> None:
        self._arrays: dict[int, NDArray[np.uint8]] = {}

    def use(self) -> None:
        """There is only one."""

    def allocate(self, nbytes: int) -> HostMemory:
        array = np.full(nbytes + ALIGNMENT, 0xFF, np.uint8)
        address = -(-array.ctypes.data // ALIGNMENT) * ALIGNMENT
        self._arrays[address] = array
        return HostMemory(address, nbytes)

    allocate_host = allocate

    def free(self, buffer: Buffer | HostBuffer) -> None:
        assert isinstance(buffer, HostMemory)
        del self._arrays[buffer.address]

    def event(self) -> HostEvent:
        return HostEvent()

    def upload(self, target: Buffer, source: HostBuffer) -> None:
        assert isinstance(source, HostMemory)
        at(target.address, target.nbytes)[:] = at(source.address, target.nbytes)

    def download(self, target: HostBuffer, source: Buffer) -> None:
        assert isinstance(target, HostMemory)
        at(target.address, source.nbytes)[:] = at(source.address, source.nbytes)

    def copy(self, target: Buffer, source: Buffer) -> None:
        at(target.address, target.nbytes)[:] = at(source.address, source.nbytes).copy()

    def zero(self, target: Buffer) -> None:
        at(target.address, target.nbytes)[:] = 0

    def synchronize(self) -> None:
        """Everything is done already."""

    def capture(self, work: Callable[[], None]) -> Graph:
        raise CaptureError("the host records nothing")
