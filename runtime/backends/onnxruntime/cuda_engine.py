"""A graph in ONNX Runtime as an `Engine`: its tensors are bound by address, its runs are in order.

On a GPU, ONNX Runtime enqueues a run on the device's stream and does not wait for it. The graphs of
a bundle return logits, so a second small graph chooses the next token from them.
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
from hybrid_deploy.runtime.backends.onnxruntime.inference_session import run_options

CHOOSE = Path(__file__).with_name("choose.onnx")
"""File of the graph (logits, position, last_position) -> (next_token, next_position, score)."""

_LAST_POSITION = "last_position"
_DTYPES = {"float": "float32"}
_BFLOAT16 = 16  # onnx.TensorProto.BFLOAT16; numpy has no such dtype
_CHOOSER_OUTPUTS = {
    NEXT_TOKEN: TensorInfo("int64", (-1,)),
    NEXT_POSITION: TensorInfo("int64", (-1,)),
    SCORE: TensorInfo("float32", (-1,)),
}


class OnnxRuntimeEngine:
    """One graph of a variant.

    Attributes:
        session: session of the graph.
        spec: description of the graph.
        device_type: ONNX Runtime's name of the device's type, "cuda" or "cpu".
        chooser: session of the graph that chooses a token; None if the engine returns no token.
        last_position: last position of the caches, (1,) int64.
        inputs: inputs by name; with a chooser they always include the position.
        outputs: outputs by name; with a chooser they include the token, its score and its position.
        aliases: for each cache output, the cache input that it is written over. Recurrent states
            are absent: their inputs and outputs have separate buffers.
        options: options of a run that is only enqueued; None on a CPU.
    """

    def __init__(
        self,
        session: ort.InferenceSession,
        spec: GraphSpec,
        device_type: str,
        chooser: ort.InferenceSession | None = None,
        capacity: int = 0,
    ) -> None:
        self.session, self.spec, self.device_type = session, spec, device_type
        self.chooser = chooser
        self.last_position = np.array([capacity - 1], np.int64)
        self.inputs = {tensor.name: _info(tensor) for tensor in spec.inputs}
        self.outputs = {tensor.name: _info(tensor) for tensor in spec.outputs}
        if chooser is not None:
            self.inputs.setdefault(POSITION, TensorInfo("int64", (-1,)))
            self.outputs |= _CHOOSER_OUTPUTS
        self.aliases = {
            name: cache_of(name)
            for name in self.outputs
            if is_next_cache(name) and not is_recurrent(name)
        }
        self.options = None if device_type == "cpu" else _enqueue_options()

    def context(self) -> OnnxRuntimeContext:
        """Returns a new context; it holds no buffers, as ONNX Runtime's belong to the session."""
        return OnnxRuntimeContext(self)


class OnnxRuntimeContext:
    """The shapes of a graph's tensors, and an IO binding for every set of addresses so far."""

    def __init__(self, engine: OnnxRuntimeEngine) -> None:
        self._engine = engine
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._run_shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._bindings: dict[tuple[int, ...], list[tuple[ort.InferenceSession, Any]]] = {}
        last = ort.OrtValue.ortvalue_from_numpy(engine.last_position, engine.device_type, 0)
        self._last_position = last

    @property
    def nbytes(self) -> int:
        """0, as the session owns ONNX Runtime's buffers."""
        return 0

    def set_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Sets the shapes of inputs."""
        if any(self._shapes.get(name) != shape for name, shape in shapes.items()):
            self._shapes |= shapes
            self._run_shapes.clear()
            self._bindings.clear()

    def shape(self, name: str) -> tuple[int, ...]:
        """Returns the shape of a tensor; runs the graph if the input shapes do not determine it."""
        if name in self._shapes:
            return self._shapes[name]
        batch = next(iter(self._shapes.values()))[0]
        if name in _CHOOSER_OUTPUTS:
            return (batch,)
        sizes = {
            symbol: size
            for tensor in self._engine.spec.inputs
            for symbol, size in zip(tensor.shape, self._shapes[tensor.name], strict=True)
            if isinstance(symbol, str)
        }
        spec = next(tensor for tensor in self._engine.spec.outputs if tensor.name == name)
        if all(isinstance(size, int) or size in sizes for size in spec.shape):
            return tuple(size if isinstance(size, int) else sizes[size] for size in spec.shape)
        if not self._run_shapes:
            self._run_shapes = self._shapes_from_run()
        return self._run_shapes[name]

    def _shapes_from_run(self) -> dict[str, tuple[int, ...]]:
        """Runs the graph on zeros, in buffers of ONNX Runtime, and returns its output shapes."""
        session, device_type = self._engine.session, self._engine.device_type
        binding, values = session.io_binding(), []
        for name, info in self._engine.inputs.items():
            zeros = np.zeros(self._shapes[name], info.dtype)
            values.append(ort.OrtValue.ortvalue_from_numpy(zeros, device_type, 0))
            binding.bind_ortvalue_input(name, values[-1])
        names = [tensor.name for tensor in self._engine.spec.outputs]
        for name in names:
            binding.bind_output(name, device_type)
        self._run(session, binding, None)
        return {
            name: tuple(value.shape())
            for name, value in zip(names, binding.get_outputs(), strict=True)
        }

    def bind(self, name: str, buffer: Buffer) -> None:
        """Sets the address of a tensor for all later calls of `enqueue`."""
        self._addresses[name] = buffer.address

    def enqueue(self) -> None:
        """Enqueues one run of the graph, and one of the chooser if there is one."""
        key = tuple(self._addresses.values())
        if key not in self._bindings:
            self._bindings[key] = self._bind_all()
        for session, binding in self._bindings[key]:
            self._run(session, binding, self._engine.options)

    def capture_obstacle(self) -> str | None:
        """Returns None: only a recording shows whether operators fell back to the CPU."""
        return None

    def close(self) -> None:
        """Drops the IO bindings."""
        self._bindings.clear()

    def _bind_all(self) -> list[tuple[ort.InferenceSession, Any]]:
        engine = self._engine
        graph_binding = engine.session.io_binding()
        for tensor in engine.spec.inputs:
            graph_binding.bind_input(*self._binding_arguments(tensor.name))
        for tensor in engine.spec.outputs:
            graph_binding.bind_output(*self._binding_arguments(tensor.name))
        if engine.chooser is None:
            return [(engine.session, graph_binding)]
        chooser_binding = engine.chooser.io_binding()
        for name in (LOGITS, POSITION):
            chooser_binding.bind_input(*self._binding_arguments(name))
        chooser_binding.bind_ortvalue_input(_LAST_POSITION, self._last_position)
        for name in _CHOOSER_OUTPUTS:
            chooser_binding.bind_output(*self._binding_arguments(name))
        return [(engine.session, graph_binding), (engine.chooser, chooser_binding)]

    def _binding_arguments(self, name: str) -> tuple[str, str, int, Any, tuple[int, ...], int]:
        info = {**self._engine.inputs, **self._engine.outputs}[name]
        dtype = _BFLOAT16 if info.dtype == "bfloat16" else np.dtype(info.dtype).type
        device_type = self._engine.device_type
        return name, device_type, 0, dtype, self.shape(name), self._addresses[name]

    def _run(
        self, session: ort.InferenceSession, binding: Any, options: ort.RunOptions | None
    ) -> None:
        try:
            session.run_with_iobinding(binding, options)
        except Exception as error:
            raise BackendError(f"onnxruntime: {' '.join(str(error).split())}") from error


def _enqueue_options() -> ort.RunOptions:
    """Returns options of a run that ONNX Runtime neither waits for nor records by itself."""
    options = run_options()
    options.add_run_config_entry("disable_synchronize_execution_providers", "1")
    return options


def _info(tensor: TensorSpec) -> TensorInfo:
    shape = tuple(size if isinstance(size, int) else -1 for size in tensor.shape)
    return TensorInfo(_DTYPES.get(tensor.dtype, tensor.dtype), shape)
