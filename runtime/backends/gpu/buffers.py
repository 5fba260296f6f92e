"""Buffers that are given back together."""

from __future__ import annotations

from hybrid_deploy.runtime.backends.gpu.device import Buffer, Device, HostBuffer


class DeviceBuffers:
    """Everything that was allocated through it, until `close`.

    Attributes:
        nbytes: how much of it is the device's.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._owned: list[Buffer | HostBuffer] = []
        self.nbytes = 0

    def allocate(self, nbytes: int) -> Buffer:
        """Returns memory of the device, filled with zeros once the stream gets there.

        Zeros, because 0 x NaN is NaN: what a mask hides must still be a number.
        """
        buffer = self._device.allocate(nbytes)
        self._owned.append(buffer)
        self.nbytes += nbytes
        self._device.zero(buffer)
        return buffer

    def allocate_host(self, nbytes: int) -> HostBuffer:
        """Returns page-locked memory of the host."""
        buffer = self._device.allocate_host(nbytes)
        self._owned.append(buffer)
        return buffer

    def close(self) -> None:
        """Returns all of it back; the stream must have been synchronized."""
        while self._owned:
            self._device.free(self._owned.pop())
