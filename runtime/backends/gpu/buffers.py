"""Buffers of a device and of its host that are freed together."""

from __future__ import annotations

from hybrid_deploy.runtime.backends.gpu.device import Buffer, Device, HostBuffer


class DeviceBuffers:
    """Allocates buffers, and owns them until `close`.

    Attributes:
        nbytes: size of all owned buffers of the device together; page-locked buffers of the host
            do not count.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._owned: list[Buffer | HostBuffer] = []
        self.nbytes = 0

    def allocate(self, nbytes: int) -> Buffer:
        """Returns a new buffer of the device, which its stream fills with zeros.

        A mask cannot hide NaN, as 0 x NaN is NaN: even masked positions must hold numbers.
        """
        buffer = self._device.allocate(nbytes)
        self._owned.append(buffer)
        self.nbytes += nbytes
        self._device.zero(buffer)
        return buffer

    def allocate_host(self, nbytes: int) -> HostBuffer:
        """Returns a new page-locked buffer of the host."""
        buffer = self._device.allocate_host(nbytes)
        self._owned.append(buffer)
        return buffer

    def close(self) -> None:
        """Frees all buffers; the stream must have been synchronized."""
        while self._owned:
            self._device.free(self._owned.pop())
