"""A device made of numpy that does nothing before it is waited for, and forgives nothing."""

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
    """One thing that was asked of the device; `host` is the page-locked buffer that it touches."""

    do: Callable[[], None]
    host: FakeHostBuffer | None = None


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
        assert not self.freed, "a freed buffer of the host was touched"
        busy = any(work.host is self for work in self.device.queue)
        assert not busy, "a buffer of the host was touched before the device was waited for"


@dataclass(eq=False)
class FakeEvent:
    device: FakeDevice
    mark: Work | None = None

    def record(self) -> None:
        self.mark = Work(lambda: None)
        self.device.ask(self.mark)

    def wait(self) -> None:
        assert self.mark is not None, "an event was waited for and never recorded"
        if self.mark in self.device.queue:
            self.device.run(self.device.queue.index(self.mark) + 1)


@dataclass(frozen=True)
class FakeGraph:
    device: FakeDevice
    works: tuple[Work, ...]

    def launch(self) -> None:
        self.device.launches += 1
        for work in self.works:
            self.device.ask(Work(work.do, work.host))


class FakeDevice:
    """The device.

    Attributes:
        queue: what was asked and is not done.
        memory: what is allocated, by address.
        launches: how many graphs were launched.
        enqueues: how many engine runs were asked for one by one.
        sealed: whether allocating is an error from now on.
        refuses_capture: why it cannot record; None if it can.
        available: bytes that may be allocated in all.
    """

    name = "fake"
    stream = 7

    def __init__(self) -> None:
        self.queue: list[Work] = []
        self.memory: dict[int, NDArray[np.uint8]] = {}
        self.hosts: list[FakeHostBuffer] = []
        self.launches = self.enqueues = 0
        self.sealed = False
        self.refuses_capture: str | None = None
        self.available = 1 << 30
        self._recording: list[Work] | None = None
        self._next = ALIGNMENT

    def use(self) -> None:
        """There is only one."""

    def allocate(self, nbytes: int) -> FakeBuffer:
        assert not self.sealed, "memory was allocated after everything was ready"
        assert nbytes > 0
        if self.held() + nbytes > self.available:
            raise BackendError("out of memory")
        buffer = FakeBuffer(self._next, nbytes)
        self._next += aligned(nbytes) + ALIGNMENT  # the gap catches what runs over
        self.memory[buffer.address] = np.full(nbytes, _POISON, np.uint8)
        return buffer

    def allocate_host(self, nbytes: int) -> FakeHostBuffer:
        assert not self.sealed, "memory was allocated after everything was ready"
        self.hosts.append(FakeHostBuffer(self, nbytes))
        return self.hosts[-1]

    def free(self, buffer: Buffer | HostBuffer) -> None:
        assert not self.queue, "memory was freed while work was under way"
        if isinstance(buffer, FakeHostBuffer):
            buffer.freed = True
            self.hosts.remove(buffer)
        else:
            assert isinstance(buffer, FakeBuffer)
            del self.memory[buffer.address]

    def held(self) -> int:
        """Bytes that are allocated."""
        return sum(array.nbytes for array in self.memory.values())

    def event(self) -> FakeEvent:
        assert not self.sealed, "an event was made after everything was ready"
        return FakeEvent(self)

    def at(self, address: int, nbytes: int) -> NDArray[np.uint8]:
        """Returns the bytes at an address, all of them within one allocation."""
        for start, array in self.memory.items():
            if start <= address and address + nbytes <= start + array.nbytes:
                return array[address - start : address - start + nbytes]
        raise AssertionError(f"{nbytes} bytes at {address} are not allocated")

    def upload(self, target: Buffer, source: HostBuffer) -> None:
        assert isinstance(source, FakeHostBuffer) and target.nbytes <= source.nbytes
        address, size = target.address, target.nbytes

        def do() -> None:
            self.at(address, size)[:] = source.data[:size]

        self.ask(Work(do, source))

    def download(self, target: HostBuffer, source: Buffer) -> None:
        assert isinstance(target, FakeHostBuffer) and source.nbytes <= target.nbytes
        address, size = source.address, source.nbytes

        def do() -> None:
            target.data[:size] = self.at(address, size)

        self.ask(Work(do, target))

    def copy(self, target: Buffer, source: Buffer) -> None:
        assert target.nbytes == source.nbytes
        to, start, size = target.address, source.address, target.nbytes

        def do() -> None:
            self.at(to, size)[:] = self.at(start, size).copy()

        self.ask(Work(do))

    def zero(self, target: Buffer) -> None:
        address, size = target.address, target.nbytes

        def do() -> None:
            self.at(address, size)[:] = 0

        self.ask(Work(do))

    def ask(self, work: Work) -> None:
        """Puts something at the end of the stream, or into what is being recorded."""
        (self.queue if self._recording is None else self._recording).append(work)

    def run(self, count: int) -> None:
        """Does the first things of the stream; after a failure the rest is dropped."""
        for _ in range(count):
            work = self.queue.pop(0)
            try:
                work.do()
            except BackendError:
                self.queue.clear()
                raise

    def synchronize(self) -> None:
        assert self._recording is None, "a stream cannot be waited for while it is recorded"
        self.run(len(self.queue))

    @property
    def recording(self) -> bool:
        return self._recording is not None

    def capture(self, work: Callable[[], None]) -> FakeGraph:
        assert not self.sealed, "a graph was recorded after everything was ready"
        if self.refuses_capture is not None:
            raise CaptureError(self.refuses_capture)
        self._recording = []
        try:
            work()
            return FakeGraph(self, tuple(self._recording))
        finally:
            self._recording = None
