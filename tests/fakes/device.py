"""A `Device` made of numpy. Work runs only when the host waits for it, and misuse is an error.

New buffers are full of NaN, and every address is checked against the allocations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybrid_deploy.errors import BackendError
from hybrid_deploy.runtime.backends.gpu.device import (
    ALIGNMENT,
    Buffer,
    CaptureError,
    HostBuffer,
    aligned,
)

_POISON = 0xFF  # NaN as a float, -1 as an integer


@dataclass(eq=False)
class Work:
    """One piece of enqueued work.

    Attributes:
        run: does the work.
        host_buffer: the page-locked buffer that it reads or writes; None for work on the device.
    """

    run: Callable[[], None]
    host_buffer: FakeHostBuffer | None = None


@dataclass(frozen=True)
class FakeBuffer:
    address: int
    nbytes: int

    def part(self, start: int, nbytes: int) -> FakeBuffer:
        assert start >= 0 and start + nbytes <= self.nbytes
        return FakeBuffer(self.address + start, nbytes)


@dataclass(eq=False)
class FakeHostBuffer:
    device: FakeDevice
    nbytes: int
    data: NDArray[np.uint8] = field(init=False)
    freed: bool = False

    def __post_init__(self) -> None:
        self.data = np.full(self.nbytes, _POISON, np.uint8)

    def fill(self, array: NDArray[Any]) -> None:
        self._check()
        self.data[: array.nbytes] = np.frombuffer(array.tobytes(), np.uint8)

    def view(self, dtype: np.dtype[Any], shape: tuple[int, ...], start: int = 0) -> NDArray[Any]:
        self._check()
        size = int(np.prod(shape)) * dtype.itemsize
        return self.data[start : start + size].view(dtype).reshape(shape)

    def _check(self) -> None:
        assert not self.freed, "a freed host buffer was used"
        busy = any(work.host_buffer is self for work in self.device.queue)
        assert not busy, "a host buffer was used before the host waited for the device"


@dataclass(eq=False)
class FakeEvent:
    device: FakeDevice
    mark: Work | None = None

    def record(self) -> None:
        self.mark = Work(lambda: None)
        self.device.enqueue(self.mark)

    def wait(self) -> None:
        assert self.mark is not None, "the host waits for an event that was never recorded"
        if self.mark in self.device.queue:
            self.device.run(self.device.queue.index(self.mark) + 1)


@dataclass(frozen=True)
class FakeCapturedGraph:
    device: FakeDevice
    works: tuple[Work, ...]

    def launch(self) -> None:
        self.device.launches += 1
        for work in self.works:
            self.device.enqueue(Work(work.run, work.host_buffer))


class FakeDevice:
    """The device.

    Attributes:
        queue: enqueued work that has not run yet.
        allocations: content of each buffer on the device, by address.
        host_buffers: page-locked buffers that are not freed.
        launches: number of launches of CUDA graphs.
        enqueues: number of engine runs that were enqueued outside a recording.
        sealed: whether an allocation is an error from now on.
        capture_refusal: why the device cannot record; None if it can.
        available: number of bytes that all buffers on the device may have together.
    """

    name = "fake"
    stream = 7

    def __init__(self) -> None:
        self.queue: list[Work] = []
        self.allocations: dict[int, NDArray[np.uint8]] = {}
        self.host_buffers: list[FakeHostBuffer] = []
        self.launches = self.enqueues = 0
        self.sealed = False
        self.capture_refusal: str | None = None
        self.available = 1 << 30
        self._recording: list[Work] | None = None
        self._next_address = ALIGNMENT

    def use(self) -> None:
        """There is only one device."""

    def allocate(self, nbytes: int) -> FakeBuffer:
        assert not self.sealed, "a buffer was allocated after `sealed` was set"
        assert nbytes > 0
        if self.allocated_bytes() + nbytes > self.available:
            raise BackendError("out of memory")
        buffer = FakeBuffer(self._next_address, nbytes)
        self._next_address += aligned(nbytes) + ALIGNMENT  # the gap detects overruns
        self.allocations[buffer.address] = np.full(nbytes, _POISON, np.uint8)
        return buffer

    def allocate_host(self, nbytes: int) -> FakeHostBuffer:
        assert not self.sealed, "a buffer was allocated after `sealed` was set"
        self.host_buffers.append(FakeHostBuffer(self, nbytes))
        return self.host_buffers[-1]

    def free(self, buffer: Buffer | HostBuffer) -> None:
        assert not self.queue, "a buffer was freed while work was enqueued"
        if isinstance(buffer, FakeHostBuffer):
            buffer.freed = True
            self.host_buffers.remove(buffer)
        else:
            assert isinstance(buffer, FakeBuffer)
            del self.allocations[buffer.address]

    def allocated_bytes(self) -> int:
        """Returns the size of all buffers on the device together."""
        return sum(array.nbytes for array in self.allocations.values())

    def event(self) -> FakeEvent:
        assert not self.sealed, "an event was made after `sealed` was set"
        return FakeEvent(self)

    def bytes_at(self, address: int, nbytes: int) -> NDArray[np.uint8]:
        """Returns a view of the bytes at an address; they must lie within one allocation."""
        for start, array in self.allocations.items():
            if start <= address and address + nbytes <= start + array.nbytes:
                return array[address - start : address - start + nbytes]
        raise AssertionError(f"{nbytes} bytes at {address} are not allocated")

    def upload(self, target: Buffer, source: HostBuffer) -> None:
        assert isinstance(source, FakeHostBuffer) and target.nbytes <= source.nbytes
        address, size = target.address, target.nbytes

        def run() -> None:
            self.bytes_at(address, size)[:] = source.data[:size]

        self.enqueue(Work(run, source))

    def download(self, target: HostBuffer, source: Buffer) -> None:
        assert isinstance(target, FakeHostBuffer) and source.nbytes <= target.nbytes
        address, size = source.address, source.nbytes

        def run() -> None:
            target.data[:size] = self.bytes_at(address, size)

        self.enqueue(Work(run, target))

    def copy(self, target: Buffer, source: Buffer) -> None:
        assert target.nbytes == source.nbytes
        target_address, source_address, size = target.address, source.address, target.nbytes

        def run() -> None:
            self.bytes_at(target_address, size)[:] = self.bytes_at(source_address, size).copy()

        self.enqueue(Work(run))

    def zero(self, target: Buffer) -> None:
        address, size = target.address, target.nbytes

        def run() -> None:
            self.bytes_at(address, size)[:] = 0

        self.enqueue(Work(run))

    def enqueue(self, work: Work) -> None:
        """Appends work to the stream, or to the recording if there is one."""
        (self.queue if self._recording is None else self._recording).append(work)

    def run(self, count: int) -> None:
        """Runs the first `count` pieces of work; a failure drops the rest of the stream."""
        for _ in range(count):
            work = self.queue.pop(0)
            try:
                work.run()
            except BackendError:
                self.queue.clear()
                raise

    def synchronize(self) -> None:
        assert self._recording is None, "a stream cannot be synchronized while it records"
        self.run(len(self.queue))

    @property
    def recording(self) -> bool:
        return self._recording is not None

    def capture(self, work: Callable[[], None]) -> FakeCapturedGraph:
        assert not self.sealed, "a CUDA graph was recorded after `sealed` was set"
        if self.capture_refusal is not None:
            raise CaptureError(self.capture_refusal)
        self._recording = []
        try:
            work()
            return FakeCapturedGraph(self, tuple(self._recording))
        finally:
            self._recording = None
