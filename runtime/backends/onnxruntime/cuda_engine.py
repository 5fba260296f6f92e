"""A graph in ONNX Runtime as an engine of the loop on a device: bound by address, run in order.

Where the device is a GPU, ONNX Runtime computes on the device's own stream and does not wait for
it. The token is chosen by a second, tiny graph: those of a bundle return logits.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from hybrid_deploy.bundle.manifest import GraphSpec, TensorSpec
from hybrid_deploy.contract import (
    LOGITS,
    NEXT_POSITION,
    NEXT_TOKEN,
    POSITION,
    SCORE,
    cache_of,
    is_next_cache,
    is_recurrent,
)
from hybrid_deploy.errors import BackendError
from hybrid_deploy.runtime.backends.gpu.device import Buffer
from hybrid_deploy.runtime.backends.gpu.engine import TensorInfo

CHOOSE = Path(__file__).with_name("choose.onnx")
"""logits, position, last_position -> next_token, next_position, score."""

_LAST_POSITION = "last_position"
_DTYPES = {"float": "float32"}
_BFLOAT16 = 16  # onnx.TensorProto.BFLOAT16: numpy has no such type
_CHOSEN = {
    NEXT_TOKEN: TensorInfo("int64", (-1,)),
    NEXT_POSITION: TensorInfo("int64", (-1,)),
    SCORE: TensorInfo("float32", (-1,)),
}


class OnnxRuntimeEngine:
    """One graph of a variant.

    Attributes:
        inputs: its inputs by name; with `choose` always the position too.
        outputs: its outputs by name; with `choose` the chosen token, its score, its position.
        aliases: every cache that is written into; what is carried from step to step is not.
    """

    def __init__(
        self,
        session: ort.InferenceSession,
        spec: GraphSpec,
        device_type: str,
        choose: ort.InferenceSession | None = None,
        capacity: int = 0,
    ) -> None:
        self.session, self.spec, self.device_type, self.choose = session, spec, device_type, choose
        self.last_position = np.array([capacity - 1], np.int64)
        self.inputs = {tensor.name: _info(tensor) for tensor in spec.inputs}
        self.outputs = {tensor.name: _info(tensor) for tensor in spec.outputs}
        if choose is not None:
            self.inputs.setdefault(POSITION, TensorInfo("int64", (-1,)))
            self.outputs |= _CHOSEN
        self.aliases = {
            name: cache_of(name)
            for name in self.outputs
            if is_next_cache(name) and not is_recurrent(name)
        }
        self.options = None if device_type == "cpu" else _options()

    def context(self) -> OnnxRuntimeContext:
        """Makes a context; ONNX Runtime's own memory belongs to the session."""
        return OnnxRuntimeContext(self)


class OnnxRuntimeContext:
    """One use of a graph: its shapes, and a binding for every set of addresses it has met."""

    def __init__(self, engine: OnnxRuntimeEngine) -> None:
        self._engine = engine
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._measured: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._bindings: dict[tuple[int, ...], list[tuple[ort.InferenceSession, Any]]] = {}
        last = ort.OrtValue.ortvalue_from_numpy(engine.last_position, engine.device_type, 0)
        self._last_position = last

    @property
    def nbytes(self) -> int:
        """Nothing of its own."""
        return 0

    def set_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Sets the shapes of inputs."""
        if any(self._shapes.get(name) != shape for name, shape in shapes.items()):
            self._shapes |= shapes
            self._measured.clear()
            self._bindings.clear()

    def shape(self, name: str) -> tuple[int, ...]:
        """Returns the shape of a tensor; where the inputs do not tell it, by running the graph."""
        if name in self._shapes:
            return self._shapes[name]
        batch = next(iter(self._shapes.values()))[0]
        if name in _CHOSEN:
            return (batch,)
        sizes = {
            size: given
            for tensor in self._engine.spec.inputs
            for size, given in zip(tensor.shape, self._shapes[tensor.name], strict=True)
            if isinstance(size, str)
        }
        spec = next(tensor for tensor in self._engine.spec.outputs if tensor.name == name)
        if all(isinstance(size, int) or size in sizes for size in spec.shape):
            return tuple(size if isinstance(size, int) else sizes[size] for size in spec.shape)
        if not self._measured:
            self._measured = self._measure()
        return self._measured[name]

    def _measure(self) -> dict[str, tuple[int, ...]]:
        """Runs the graph on zeros, in memory of ONNX Runtime's own."""
        session, where = self._engine.session, self._engine.device_type
        binding, values = session.io_binding(), []
        for name, info in self._engine.inputs.items():
            zeros = np.zeros(self._shapes[name], info.dtype)
            values.append(ort.OrtValue.ortvalue_from_numpy(zeros, where, 0))
            binding.bind_ortvalue_input(name, values[-1])
        names = [tensor.name for tensor in self._engine.spec.outputs]
        for name in names:
            binding.bind_output(name, where)
        self._run(session, binding, None)
        return {
            name: tuple(value.shape())
            for name, value in zip(names, binding.get_outputs(), strict=True)
        }

    def bind(self, name: str, buffer: Buffer) -> None:
        """Says where a tensor lies."""
        self._addresses[name] = buffer.address

    def enqueue(self) -> None:
        """Asks for one run, and for the choice of a token."""
        key = tuple(self._addresses.values())
        if key not in self._bindings:
            self._bindings[key] = self._bound()
        for session, binding in self._bindings[key]:
            self._run(session, binding, self._engine.options)

    def capture_obstacle(self) -> str | None:
        """Says nothing: whether operators fell back to the CPU shows when it is recorded."""
        return None

    def close(self) -> None:
        """Forgets the bindings."""
        self._bindings.clear()

    def _bound(self) -> list[tuple[ort.InferenceSession, Any]]:
        engine = self._engine
        graph = engine.session.io_binding()
        for tensor in engine.spec.inputs:
            graph.bind_input(*self._place(tensor.name))
        for tensor in engine.spec.outputs:
            graph.bind_output(*self._place(tensor.name))
        if engine.choose is None:
            return [(engine.session, graph)]
        choice = engine.choose.io_binding()
        for name in (LOGITS, POSITION):
            choice.bind_input(*self._place(name))
        choice.bind_ortvalue_input(_LAST_POSITION, self._last_position)
        for name in _CHOSEN:
            choice.bind_output(*self._place(name))
        return [(engine.session, graph), (engine.choose, choice)]

    def _place(self, name: str) -> tuple[str, str, int, Any, tuple[int, ...], int]:
        info = {**self._engine.inputs, **self._engine.outputs}[name]
        dtype = _BFLOAT16 if info.dtype == "bfloat16" else np.dtype(info.dtype).type
        where = self._engine.device_type
        return name, where, 0, dtype, self.shape(name), self._addresses[name]

    def _run(
        self, session: ort.InferenceSession, binding: Any, options: ort.RunOptions | None
    ) -> None:
        try:
            session.run_with_iobinding(binding, options)
        except Exception as error:
            raise BackendError(f"onnxruntime: {' '.join(str(error).split())}") from error


def _options() -> ort.RunOptions:
    """Asks for a run that is not waited for, nor recorded by ONNX Runtime itself."""
    options = ort.RunOptions()
    options.add_run_config_entry("disable_synchronize_execution_providers", "1")
    # -1 is "not recorded"; without an entry, 1.32 takes 0.2 ms to find that there is none.
    options.add_run_config_entry("gpu_graph_id", "-1")
    return options


def _info(tensor: TensorSpec) -> TensorInfo:
    shape = tuple(size if isinstance(size, int) else -1 for size in tensor.shape)
    return TensorInfo(_DTYPES.get(tensor.dtype, tensor.dtype), shape)
