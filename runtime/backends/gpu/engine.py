"""What the generation loop asks of a graph that was compiled for a device."""

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
"""Size of an element of each type that crosses an engine's border."""


@dataclass(frozen=True)
class TensorInfo:
    """An input or output; -1 in `shape` is a size that varies."""

    dtype: str
    shape: tuple[int, ...]


class EngineContext(Protocol):
    """One use of an engine: its shapes and the addresses of its tensors."""

    @property
    def nbytes(self) -> int:
        """Memory of the device that it holds, as far as is known."""
        ...

    def set_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Sets the shapes of inputs; those of the outputs follow once all are known.

        Raises:
            InputError: the engine does not serve a shape.
        """
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """Returns the shape of a tensor, once those of all inputs are set."""
        ...

    def bind(self, name: str, buffer: Buffer) -> None:
        """Says where a tensor lies; only later calls of `enqueue` follow it."""
        ...

    def enqueue(self) -> None:
        """Asks the device for one run.

        Raises:
            BackendError: the engine refuses.
        """
        ...

    def capture_obstacle(self) -> str | None:
        """Says why `enqueue` cannot be recorded; None where nothing is known against it."""
        ...

    def close(self) -> None:
        """Returns its memory back; the stream must have been synchronized."""
        ...


class Engine(Protocol):
    """A loaded engine."""

    @property
    def inputs(self) -> Mapping[str, TensorInfo]:
        """Its inputs by name."""
        ...

    @property
    def outputs(self) -> Mapping[str, TensorInfo]:
        """Its outputs by name."""
        ...

    @property
    def aliases(self) -> Mapping[str, str]:
        """Outputs that are written over an input, with that input's name.

        Both must be bound to one buffer; an output that is not named here never shares one.
        """
        ...

    def context(self) -> EngineContext:
        """Makes a context with memory of its own."""
        ...
