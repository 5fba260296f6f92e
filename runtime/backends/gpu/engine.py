"""The interface of an engine, a graph compiled for a device, to the generation loop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from hybrid_deploy.runtime.backends.gpu.device import Buffer

BYTES = {
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "int64": 8,
    "int32": 4,
    "int8": 1,
    "uint8": 1,
    "bool": 1,
}
"""Size in bytes of one element, for each dtype that an input or output of an engine may have."""


@dataclass(frozen=True)
class TensorInfo:
    """The dtype and shape of an input or output.

    Attributes:
        dtype: name of the dtype, one of `BYTES`.
        shape: sizes of the dimensions; -1 is a dynamic dimension.
    """

    dtype: str
    shape: tuple[int, ...]


class EngineContext(Protocol):
    """One execution context of an engine: the shapes and the addresses of its tensors."""

    @property
    def nbytes(self) -> int:
        """Size in bytes of the context's own buffers on the device; 0 if it is unknown."""
        ...

    def set_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Sets the shapes of inputs; the output shapes follow when all inputs have a shape.

        Raises:
            InputError: the engine does not accept a shape.
        """
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """Returns the shape of an input or output; the shapes of all inputs must be set."""
        ...

    def bind(self, name: str, buffer: Buffer) -> None:
        """Sets the address of a tensor for all later calls of `enqueue`."""
        ...

    def enqueue(self) -> None:
        """Enqueues one run on the device's stream.

        Raises:
            BackendError: the engine refuses the run.
        """
        ...

    def capture_obstacle(self) -> str | None:
        """Returns why a run cannot be recorded in a CUDA graph; None if no reason is known."""
        ...

    def close(self) -> None:
        """Frees the context's buffers; the stream must have been synchronized."""
        ...


class Engine(Protocol):
    """A loaded engine."""

    @property
    def inputs(self) -> Mapping[str, TensorInfo]:
        """Inputs of the engine by name."""
        ...

    @property
    def outputs(self) -> Mapping[str, TensorInfo]:
        """Outputs of the engine by name."""
        ...

    @property
    def aliases(self) -> Mapping[str, str]:
        """For each output that the engine writes over an input, the name of that input.

        Both must be bound to one buffer. An output that is not listed must have its own buffer.
        """
        ...

    def context(self) -> EngineContext:
        """Returns a new context with its own buffers."""
        ...
