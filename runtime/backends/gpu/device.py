"""The interface of a device to the generation loop: buffers, one stream, events and CUDA graphs.

A device runs what is enqueued on its only stream later, in the order of the calls. The host may
touch a page-locked buffer only after it has waited for an event behind the buffer's last use, or
for the whole stream.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

ALIGNMENT = 256
"""Alignment in bytes of every address that TensorRT accepts."""


class CaptureError(Exception):
    """The device could not record the work; its stream is usable again.

    It never reaches a user: the loop launches the steps one by one instead.
    """


class Buffer(Protocol):
    """A buffer of the device."""

    @property
    def address(self) -> int:
        """Address of the first byte on the device."""
        ...

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        ...

    def part(self, start: int, nbytes: int) -> Buffer:
        """Returns a view of `nbytes` bytes from byte `start` on.

        The view does not own the bytes: keep this buffer as long as the view is used.
        """
        ...


class HostBuffer(Protocol):
    """Page-locked RAM of the host, which the device copies from and to on its stream."""

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        ...

    def fill(self, array: NDArray[Any]) -> None:
        """Copies the bytes of an array to the start of the buffer.

        No copy from the buffer may be under way.
        """
        ...

    def view(self, dtype: np.dtype[Any], shape: tuple[int, ...], start: int = 0) -> NDArray[Any]:
        """Returns the bytes from byte `start` on as an array that shares them.

        No copy to the buffer may be under way.
        """
        ...


class Event(Protocol):
    """A mark in the stream."""

    def record(self) -> None:
        """Sets the mark behind everything that is enqueued so far."""
        ...

    def wait(self) -> None:
        """Waits until the device has reached the mark.

        Raises:
            BackendError: some enqueued work has failed.
        """
        ...


class CapturedGraph(Protocol):
    """A CUDA graph: recorded work that can be launched again, with the recorded addresses."""

    def launch(self) -> None:
        """Enqueues all of the recorded work."""
        ...


class Device(Protocol):
    """A device with one stream. Every method except `synchronize` may return before it is done."""

    @property
    def name(self) -> str:
        """Name of the device, for messages."""
        ...

    @property
    def stream(self) -> int:
        """Handle of the stream, for the libraries that run engines."""
        ...

    def use(self) -> None:
        """Makes the device current in the calling thread."""
        ...

    def allocate(self, nbytes: int) -> Buffer:
        """Returns a new buffer aligned to `ALIGNMENT`; its content is undefined."""
        ...

    def allocate_host(self, nbytes: int) -> HostBuffer:
        """Returns a new page-locked buffer of the host; its content is undefined."""
        ...

    def free(self, buffer: Buffer | HostBuffer) -> None:
        """Frees a buffer; `synchronize` must have been called since its last use."""
        ...

    def event(self) -> Event:
        """Returns a new event."""
        ...

    def upload(self, target: Buffer, source: HostBuffer) -> None:
        """Fills a buffer of the device from the start of a buffer of the host."""
        ...

    def download(self, target: HostBuffer, source: Buffer) -> None:
        """Copies a buffer of the device to the start of a buffer of the host."""
        ...

    def copy(self, target: Buffer, source: Buffer) -> None:
        """Copies between two buffers of the device that have the same size."""
        ...

    def zero(self, target: Buffer) -> None:
        """Fills a buffer of the device with zero bytes."""
        ...

    def synchronize(self) -> None:
        """Waits until all enqueued work is done.

        Raises:
            BackendError: some enqueued work has failed.
        """
        ...

    def capture(self, work: Callable[[], None]) -> CapturedGraph:
        """Records what `work` enqueues as a CUDA graph; none of it runs now.

        Raises:
            CaptureError: the work cannot be recorded.
        """
        ...


def aligned(nbytes: int) -> int:
    """Returns a size rounded up to a multiple of `ALIGNMENT`."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT
