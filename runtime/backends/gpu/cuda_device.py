"""The first NVIDIA GPU as a `Device`, through cuda.core."""

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
    CapturedGraph,
    CaptureError,
    Event,
    HostBuffer,
)

try:
    # Other packages share the namespace `cuda`: `from cuda import core` raises a plain ImportError.
    import cuda.core as core
except ModuleNotFoundError as error:
    raise MissingDependencyError("cuda-core", extra="gpu") from error
except ImportError as error:
    raise BackendError(
        f"cuda-core is installed but does not load: {error}; upgrade it and cuda-bindings together"
    ) from error

_CAPTURE_MODE = "thread_local"  # other threads may allocate during a recording, as in trtexec


@contextmanager
def _errors() -> Iterator[None]:
    """Raises an exception of cuda.core, which has several types, as a one-line BackendError."""
    try:
        yield
    except BackendError:
        raise
    except Exception as error:
        raise BackendError(f"CUDA: {' '.join(str(error).split())}") from error


class CudaBuffer:
    """A buffer of the GPU.

    Attributes:
        core_buffer: the buffer as cuda.core's object.
        address: address of the first byte on the GPU.
        nbytes: size in bytes.
    """

    def __init__(self, core_buffer: core.Buffer) -> None:
        self.core_buffer = core_buffer
        self.address = int(core_buffer.handle)
        self.nbytes = int(core_buffer.size)

    def part(self, start: int, nbytes: int) -> CudaBuffer:
        """Returns a view of `nbytes` bytes from byte `start` on; it does not own the bytes."""
        assert start >= 0 and start + nbytes <= self.nbytes
        return CudaBuffer(core.Buffer.from_handle(self.address + start, nbytes))


class _PinnedArray:
    """Page-locked RAM with numpy's array interface; an array made from it keeps it alive."""

    def __init__(self, core_buffer: core.Buffer) -> None:
        self.core_buffer = core_buffer
        self.__array_interface__ = {
            "data": (int(core_buffer.handle), False),
            "shape": (int(core_buffer.size),),
            "typestr": "|u1",
            "version": 3,
        }


class CudaHostBuffer:
    """Page-locked RAM of the host; arrays that view it keep it alive.

    Attributes:
        core_buffer: the buffer as cuda.core's object.
        nbytes: size in bytes.
    """

    def __init__(self, core_buffer: core.Buffer) -> None:
        self.core_buffer = core_buffer
        self.nbytes = int(core_buffer.size)
        self._bytes: NDArray[np.uint8] = np.asarray(_PinnedArray(core_buffer))

    def fill(self, array: NDArray[Any]) -> None:
        """Copies the bytes of an array to the start of the buffer."""
        target = self._bytes[: array.nbytes].view(array.dtype).reshape(array.shape)
        np.copyto(target, array)

    def view(self, dtype: np.dtype[Any], shape: tuple[int, ...], start: int = 0) -> NDArray[Any]:
        """Returns the bytes from byte `start` on as an array that shares them."""
        size = int(np.prod(shape)) * dtype.itemsize
        array: NDArray[Any] = self._bytes[start : start + size].view(dtype).reshape(shape)
        return array

    def prefix(self, nbytes: int) -> core.Buffer:
        """Returns the first bytes as cuda.core's object, which copies between equal sizes only."""
        if nbytes == self.nbytes:
            return self.core_buffer
        return core.Buffer.from_handle(int(self.core_buffer.handle), nbytes)


class CudaEvent:
    """A mark in the stream; `wait` keeps a CPU core busy, because that has the lowest latency."""

    def __init__(self, stream: core.Stream, event: core.Event) -> None:
        self._stream = stream
        self._event = event

    def record(self) -> None:
        """Sets the mark behind everything that is enqueued so far."""
        with _errors():
            self._stream.record(self._event)

    def wait(self) -> None:
        """Waits until the GPU has reached the mark."""
        with _errors():
            self._event.sync()


class CudaGraph:
    """A CUDA graph on its stream: recorded work that can be launched again."""

    def __init__(self, stream: core.Stream, graph: Any) -> None:
        self._stream = stream
        self._graph = graph

    def launch(self) -> None:
        """Enqueues all of the recorded work."""
        with _errors():
            self._graph.launch(self._stream)


class CudaDevice:
    """The first GPU, in its primary context, which TensorRT and ONNX Runtime use too.

    Attributes:
        name: name of the GPU.
        stream: handle of the stream.

    Raises:
        BackendError: there is no GPU, or its driver is too old for the installed cuda-bindings.
    """

    def __init__(self) -> None:
        with _errors():
            self._device = core.Device(0)
            self._device.set_current()
            self.name = str(self._device.name)
            self._stream = self._device.create_stream()
            self.stream = int(self._stream.handle)
            self._pinned = core.LegacyPinnedMemoryResource()

    def use(self) -> None:
        """Makes the GPU current in the calling thread."""
        with _errors():
            self._device.set_current()

    def allocate(self, nbytes: int) -> CudaBuffer:
        """Returns a new buffer of the GPU."""
        with _errors():
            buffer = CudaBuffer(self._device.allocate(nbytes, stream=self._stream))
        if buffer.address % ALIGNMENT:
            raise BackendError(
                f"CUDA allocated a buffer at {buffer.address:#x}, not aligned to {ALIGNMENT} bytes"
            )
        return buffer

    def allocate_host(self, nbytes: int) -> CudaHostBuffer:
        """Returns a new page-locked buffer of the host."""
        with _errors():
            return CudaHostBuffer(self._pinned.allocate(nbytes))

    def free(self, buffer: Buffer | HostBuffer) -> None:
        """Frees a buffer of the GPU; RAM of the host is freed with the last array that views it.

        Errors are ignored: a GPU that has failed cannot free anything.
        """
        if isinstance(buffer, CudaBuffer):
            with suppress(BackendError), _errors():
                buffer.core_buffer.close()

    def event(self) -> Event:
        """Returns a new event."""
        with _errors():
            return CudaEvent(self._stream, self._device.create_event())

    def upload(self, target: Buffer, source: HostBuffer) -> None:
        """Fills a buffer of the GPU from the start of a buffer of the host."""
        assert isinstance(target, CudaBuffer) and isinstance(source, CudaHostBuffer)
        with _errors():
            source.prefix(target.nbytes).copy_to(target.core_buffer, stream=self._stream)

    def download(self, target: HostBuffer, source: Buffer) -> None:
        """Copies a buffer of the GPU to the start of a buffer of the host."""
        assert isinstance(target, CudaHostBuffer) and isinstance(source, CudaBuffer)
        with _errors():
            source.core_buffer.copy_to(target.prefix(source.nbytes), stream=self._stream)

    def copy(self, target: Buffer, source: Buffer) -> None:
        """Copies between two buffers of the GPU that have the same size."""
        assert isinstance(target, CudaBuffer) and isinstance(source, CudaBuffer)
        with _errors():
            source.core_buffer.copy_to(target.core_buffer, stream=self._stream)

    def zero(self, target: Buffer) -> None:
        """Fills a buffer of the GPU with zero bytes."""
        assert isinstance(target, CudaBuffer)
        with _errors():
            target.core_buffer.fill(0, stream=self._stream)

    def synchronize(self) -> None:
        """Waits until all enqueued work is done."""
        with _errors():
            self._stream.sync()

    def capture(self, work: Callable[[], None]) -> CapturedGraph:
        """Records what `work` enqueues as a CUDA graph; none of it runs now."""
        try:
            builder = self._stream.create_graph_builder()
            builder.begin_building(_CAPTURE_MODE)
        except Exception as error:
            raise CaptureError(f"CUDA: {' '.join(str(error).split())}") from error
        try:
            work()
            return CudaGraph(self._stream, builder.end_building().complete())
        except Exception as error:
            with suppress(Exception):  # ends the recording, even an invalid one
                builder.close()
            raise CaptureError(" ".join(str(error).split())) from error

    def elapsed_ms(self, work: Callable[[], None]) -> float:
        """Returns the time in milliseconds that the GPU takes for the work that `work` enqueues."""
        options = core.EventOptions(timing_enabled=True)
        with _errors():
            before = self._stream.record(options=options)
            work()
            after = self._stream.record(options=options)
            after.sync()
            return float(after - before)
