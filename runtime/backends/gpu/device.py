"""What the generation loop asks of a device: memory, work in order, events, recorded graphs.

A device has one stream: what is asked of it is done later, in the order of asking. Buffers of the
host may be touched only once an event after their last use has been waited for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

ALIGNMENT = 256
"""Of every address that TensorRT takes, in bytes."""


class CaptureError(Exception):
    """The device could not record the work; the stream is usable again. Not for users."""


class Buffer(Protocol):
    """Memory of the device."""

    @property
    def address(self) -> int:
        """Of its first byte."""
        ...

    @property
    def nbytes(self) -> int:
        """Its size."""
        ...

    def part(self, start: int, nbytes: int) -> Buffer:
        """Returns a view of some bytes; it does not keep the memory alive."""
        ...


class HostBuffer(Protocol):
    """Page-locked memory of the host, copied to and from while the host does other things."""

    @property
    def nbytes(self) -> int:
        """Its size."""
        ...

    def fill(self, array: NDArray[Any]) -> None:
        """Takes the bytes of an array into its beginning; no copy from it may be under way."""
        ...

    def view(self, dtype: np.dtype[Any], shape: tuple[int, ...], start: int = 0) -> NDArray[Any]:
        """Returns its bytes from `start` on as an array; no copy to it may be under way."""
        ...


class Event(Protocol):
    """A mark in the stream."""

    def record(self) -> None:
        """Sets the mark after everything that was asked so far."""
        ...

    def wait(self) -> None:
        """Waits until the device has passed the mark.

        Raises:
            BackendError: something that was asked has failed.
        """
        ...


class Graph(Protocol):
    """Recorded work; addresses are those at the time of recording."""

    def launch(self) -> None:
        """Asks for all of it again."""
        ...


class Device(Protocol):
    """A device with one stream. Everything but `synchronize` returns before it is done."""

    @property
    def name(self) -> str:
        """What it is called."""
        ...

    @property
    def stream(self) -> int:
        """Handle of the stream, for libraries."""
        ...

    def use(self) -> None:
        """Makes it current in this thread; a no-op where it is."""
        ...

    def allocate(self, nbytes: int) -> Buffer:
        """Returns memory, aligned to `ALIGNMENT`; its content is anything."""
        ...

    def allocate_host(self, nbytes: int) -> HostBuffer:
        """Returns page-locked memory of the host."""
        ...

    def free(self, buffer: Buffer | HostBuffer) -> None:
        """Returns memory back; the stream must have been synchronized since its last use."""
        ...

    def event(self) -> Event:
        """Makes an event."""
        ...

    def upload(self, target: Buffer, source: HostBuffer) -> None:
        """Fills a buffer from the beginning of one of the host."""
        ...

    def download(self, target: HostBuffer, source: Buffer) -> None:
        """Copies a buffer to the beginning of one of the host."""
        ...

    def copy(self, target: Buffer, source: Buffer) -> None:
        """Copies within the device; both have the same size."""
        ...

    def zero(self, target: Buffer) -> None:
        """Fills with zero bytes."""
        ...

    def synchronize(self) -> None:
        """Waits until everything is done.

        Raises:
            BackendError: something that was asked has failed.
        """
        ...

    def capture(self, work: Callable[[], None]) -> Graph:
        """Records what `work` asks for, without doing it.

        Raises:
            CaptureError: that cannot be recorded.
        """
        ...


def aligned(nbytes: int) -> int:
    """Rounds a size up, so that what follows it is aligned."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT
