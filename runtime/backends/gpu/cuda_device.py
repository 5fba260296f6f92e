"""The first NVIDIA GPU as a device of the generation loop, through cuda.core."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybrid_deploy.errors import BackendError, MissingDependencyError
from hybrid_deploy.runtime.backends.gpu.device import (
    ALIGNMENT,
    Buffer,
    CaptureError,
    Event,
    Graph,
    HostBuffer,
)

try:
    import cuda.core as core  # `from cuda import` finds the namespace of other packages too
except ModuleNotFoundError as error:
    raise MissingDependencyError("cuda-core", extra="gpu") from error
except ImportError as error:
    raise BackendError(
        f"cuda-core is installed but does not load: {error}; upgrade it and cuda-bindings together"
    ) from error

_MODE = "thread_local"  # other threads may allocate while this one records, as in trtexec


@contextmanager
def _failures() -> Iterator[None]:
    """Turns what CUDA says into one line; cuda.core raises exceptions of several kinds."""
    try:
        yield
    except BackendError:
        raise
    except Exception as error:
        raise BackendError(f"CUDA: {' '.join(str(error).split())}") from error


class CudaBuffer:
    """Memory of the GPU."""

    def __init__(self, memory: core.Buffer) -> None:
        self.memory = memory
        self.address = int(memory.handle)
        self.nbytes = int(memory.size)

    def part(self, start: int, nbytes: int) -> CudaBuffer:
        """Returns a view of some bytes; it does not keep the memory alive."""
        assert start >= 0 and start + nbytes <= self.nbytes
        return CudaBuffer(core.Buffer.from_handle(self.address + start, nbytes))


class _Pinned:
    """Page-locked memory as numpy takes it: an array over it keeps it alive."""

    def __init__(self, memory: core.Buffer) -> None:
        self.memory = memory
        self.__array_interface__ = {
            "data": (int(memory.handle), False),
            "shape": (int(memory.size),),
            "typestr": "|u1",
            "version": 3,
        }


class CudaHostBuffer:
    """Page-locked memory of the host; views of it keep it alive."""

    def __init__(self, memory: core.Buffer) -> None:
        self.memory = memory
        self.nbytes = int(memory.size)
        self._bytes: NDArray[np.uint8] = np.asarray(_Pinned(memory))

    def fill(self, array: NDArray[Any]) -> None:
        """Takes the bytes of an array into its beginning; no copy from it may be under way."""
        target = self._bytes[: array.nbytes].view(array.dtype).reshape(array.shape)
        np.copyto(target, array)

    def view(self, dtype: np.dtype[Any], shape: tuple[int, ...], start: int = 0) -> NDArray[Any]:
        """Returns its bytes from `start` on as an array; no copy to it may be under way."""
        size = int(np.prod(shape)) * dtype.itemsize
        array: NDArray[Any] = self._bytes[start : start + size].view(dtype).reshape(shape)
        return array

    def beginning(self, nbytes: int) -> core.Buffer:
        """Returns its first bytes as cuda.core sees them, which copies between equal sizes only."""
        if nbytes == self.nbytes:
            return self.memory
        return core.Buffer.from_handle(int(self.memory.handle), nbytes)


class CudaEvent:
    """A mark in the stream; whoever waits for it keeps the CPU busy, as that answers soonest."""

    def __init__(self, stream: core.Stream, event: core.Event) -> None:
        self._stream = stream
        self._event = event

    def record(self) -> None:
        """Sets the mark after everything that was asked so far."""
        with _failures():
            self._stream.record(self._event)

    def wait(self) -> None:
        """Waits until the GPU has passed the mark."""
        with _failures():
            self._event.sync()


class CudaGraph:
    """Recorded work."""

    def __init__(self, stream: core.Stream, graph: Any) -> None:
        self._stream = stream
        self._graph = graph

    def launch(self) -> None:
        """Asks for all of it again."""
        with _failures():
            self._graph.launch(self._stream)


class CudaDevice:
    """The first GPU, in its primary context, which TensorRT and ONNX Runtime use too.

    Attributes:
        name: of the GPU.
        stream: handle of the stream.

    Raises:
        BackendError: there is no GPU, or its driver is too old for the installed cuda-bindings.
    """

    def __init__(self) -> None:
        with _failures():
            self._device = core.Device(0)
            self._device.set_current()
            self.name = str(self._device.name)
            self._stream = self._device.create_stream()
            self.stream = int(self._stream.handle)
            self._pinned = core.LegacyPinnedMemoryResource()

    def use(self) -> None:
        """Makes it current in this thread."""
        with _failures():
            self._device.set_current()

    def allocate(self, nbytes: int) -> CudaBuffer:
        """Returns memory of the GPU."""
        with _failures():
            buffer = CudaBuffer(self._device.allocate(nbytes, stream=self._stream))
        if buffer.address % ALIGNMENT:
            raise BackendError(f"CUDA gave memory at {buffer.address:#x}, not aligned to 256 bytes")
        return buffer

    def allocate_host(self, nbytes: int) -> CudaHostBuffer:
        """Returns page-locked memory of the host."""
        with _failures():
            return CudaHostBuffer(self._pinned.allocate(nbytes))

    def free(self, buffer: Buffer | HostBuffer) -> None:
        """Returns memory of the GPU back; the host's goes with the last array that views it.

        On a GPU that has failed there is nothing left to give.
        """
        if isinstance(buffer, CudaBuffer):
            with suppress(BackendError), _failures():
                buffer.memory.close()

    def event(self) -> Event:
        """Makes an event."""
        with _failures():
            return CudaEvent(self._stream, self._device.create_event())

    def upload(self, target: Buffer, source: HostBuffer) -> None:
        """Fills a buffer from the beginning of one of the host."""
        assert isinstance(target, CudaBuffer) and isinstance(source, CudaHostBuffer)
        with _failures():
            source.beginning(target.nbytes).copy_to(target.memory, stream=self._stream)

    def download(self, target: HostBuffer, source: Buffer) -> None:
        """Copies a buffer to the beginning of one of the host."""
        assert isinstance(target, CudaHostBuffer) and isinstance(source, CudaBuffer)
        with _failures():
            source.memory.copy_to(target.beginning(source.nbytes), stream=self._stream)

    def copy(self, target: Buffer, source: Buffer) -> None:
        """Copies within the GPU; both have the same size."""
        assert isinstance(target, CudaBuffer) and isinstance(source, CudaBuffer)
        with _failures():
            source.memory.copy_to(target.memory, stream=self._stream)

    def zero(self, target: Buffer) -> None:
        """Fills with zero bytes."""
        assert isinstance(target, CudaBuffer)
        with _failures():
            target.memory.fill(0, stream=self._stream)

    def synchronize(self) -> None:
        """Waits until everything is done."""
        with _failures():
            self._stream.sync()

    def capture(self, work: Callable[[], None]) -> Graph:
        """Records what `work` asks for, without doing it."""
        try:
            builder = self._stream.create_graph_builder()
            builder.begin_building(_MODE)
        except Exception as error:
            raise CaptureError(f"CUDA: {' '.join(str(error).split())}") from error
        try:
            work()
            return CudaGraph(self._stream, builder.end_building().complete())
        except Exception as error:
            with suppress(Exception):  # it ends the recording, even an invalidated one
                builder.close()
            raise CaptureError(" ".join(str(error).split())) from error

    def elapsed_ms(self, work: Callable[[], None]) -> float:
        """Returns how long the GPU takes for what `work` asks for."""
        options = core.EventOptions(timing_enabled=True)
        with _failures():
            before = self._stream.record(options=options)
            work()
            after = self._stream.record(options=options)
            after.sync()
            return float(after - before)
