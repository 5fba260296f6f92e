"""The float graphs of a bundle, with every tensor to observe as one more output.

Samples are decoded as at runtime: an input is encoded once, then decoded token by token, greedily
and with the bundle's logits processors and limits. So a tensor of the step graph is observed at
every position, with caches that the model itself filled, not with random inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from hybrid_deploy.bundle.bundle import Bundle
from hybrid_deploy.bundle.manifest import TensorSpec
from hybrid_deploy.contract import (
    LAST,
    LOGITS,
    POSITION,
    TOKEN,
    TOKENS,
    GraphRole,
    cache_of,
    is_next_cache,
    next_cache,
)
from hybrid_deploy.errors import BackendError, CalibrationError
from hybrid_deploy.onnx_graphs.files import save_graphs
from hybrid_deploy.runtime.backends.onnxruntime.inference_session import (
    loading_errors,
    make_session,
)
from hybrid_deploy.runtime.backends.prefill_by_steps import prefill_by_steps
from hybrid_deploy.runtime.backends.protocol import FloatArray, IntArray
from hybrid_deploy.runtime.backends.tensor_checks import DTYPES, check_inputs
from hybrid_deploy.runtime.generation.logits_processors import processors_of
from hybrid_deploy.runtime.generation.sequences import limits_of
from hybrid_deploy.runtime.generation.token_loop import decode_greedily

Arrays = Mapping[str, NDArray[Any]]


class Statistics(Protocol):
    """Statistics of one tensor, such as `TensorStatistics` or `Magnitude`."""

    def observe(self, array: NDArray[np.float32], sample: int) -> None:
        """Adds one value of the tensor, an array of any shape, computed for a sample."""
        ...


StatisticsT = TypeVar("StatisticsT", bound=Statistics)
WatchedTensors = Mapping[GraphRole, Mapping[str, Callable[[], StatisticsT]]]
"""The tensors to observe by graph and name, each with the function that makes its statistics."""


class ObservedModel(Generic[StatisticsT]):
    """The float graphs of a bundle, which record statistics of chosen tensors when they run.

    Attributes:
        statistics: statistics since the last `begin_sample`, by graph and tensor.
        caches: the cache inputs of the step graph, by name.
        has_prefill: whether there is a prefill graph.

    Args:
        bundle: has the generation defaults.
        graphs: float32 graphs; they are not changed.
        folder: an empty folder for copies of the graphs with more outputs; it must outlive this
            object.
        watched: the tensors to observe; None observes no tensor.

    Raises:
        BackendError: ONNX Runtime refuses a graph.
    """

    def __init__(
        self,
        bundle: Bundle,
        graphs: Mapping[GraphRole, ir.Model],
        folder: Path,
        watched: WatchedTensors[StatisticsT] | None = None,
    ) -> None:
        self._watched = watched or {}
        copies = {
            role: _instrumented(model, self._watched.get(role, ()))
            for role, model in graphs.items()
        }
        specs = save_graphs(copies, folder, ".")
        step_outputs = {spec.name for spec in specs[GraphRole.STEP].outputs}
        self._manifest = bundle.manifest
        self._specs = specs
        self._sessions = {
            role: _session(folder / spec.file, f"the {role.value} graph of {bundle.folder}")
            for role, spec in specs.items()
        }
        self._sample = 0
        self.statistics: dict[str, dict[str, StatisticsT]] = {}
        self.caches = {
            spec.name: spec
            for spec in specs[GraphRole.STEP].inputs
            if next_cache(spec.name) in step_outputs
        }
        self.has_prefill = GraphRole.PREFILL in graphs

    def begin_sample(self, sample: int) -> None:
        """Drops all statistics and begins to observe the sample of that index."""
        self._sample, self.statistics = sample, {}

    def start(self, inputs: Arrays) -> ObservedDecoding:
        """Encodes a batch and returns its decoding.

        Raises:
            InputError: the batch does not fit the model.
        """
        batch = check_inputs(self._specs[GraphRole.ENCODER], inputs)
        return ObservedDecoding(self, batch, self.run(GraphRole.ENCODER, inputs))

    def decode(self, inputs: Arrays) -> int:
        """Decodes a batch to its end and returns the number of steps, the prefill as one.

        Raises:
            InputError: the batch does not fit the model.
            CalibrationError: the logits are NaN or infinite.
        """
        decoding = self.start(inputs)
        prompts = [self._manifest.generation.start_tokens] * decoding.batch
        processors = processors_of(self._manifest.generation)
        batch_result = decode_greedily(decoding, prompts, limits_of(self._manifest), processors)
        return 1 + len(batch_result.step_ms)

    def run(self, role: GraphRole, arrays: Arrays) -> dict[str, NDArray[Any]]:
        """Runs a graph, observes its tensors and returns its outputs by name.

        Args:
            role: the graph.
            arrays: the graph's inputs by name; further arrays are ignored.

        Raises:
            BackendError: the graph does not run.
        """
        spec = self._specs[role]
        inputs = {tensor.name: arrays[tensor.name] for tensor in spec.inputs}
        names = [tensor.name for tensor in spec.outputs]
        try:
            outputs = dict(zip(names, self._sessions[role].run(names, inputs), strict=True))
        except Exception as error:
            raise BackendError(f"onnxruntime failed in the {role.value} graph: {error}") from error
        statistics = self.statistics.setdefault(role.value, {})
        for name, make_statistics in self._watched.get(role, {}).items():
            if name not in statistics:
                statistics[name] = make_statistics()
            array = outputs[name] if name in outputs else arrays[name]
            statistics[name].observe(array, self._sample)
        return outputs


class ObservedDecoding:
    """The decoding of one batch whose tensors are observed: a `runtime.backends.protocol.Decoding`.

    Args:
        model: the observed graphs.
        batch: number of sequences.
        encoder_outputs: the memory, and caches where the encoder returns some, by name.
    """

    def __init__(self, model: ObservedModel[Any], batch: int, encoder_outputs: Arrays) -> None:
        self._model = model
        self._batch = batch
        self._memory = {n: array for n, array in encoder_outputs.items() if n not in model.caches}
        self._caches = {
            name: encoder_outputs[name] if name in encoder_outputs else _empty_cache(spec, batch)
            for name, spec in model.caches.items()
        }
        self._previous_caches = self._caches

    @property
    def batch(self) -> int:
        """Number of sequences."""
        return self._batch

    def prefill(self, tokens: IntArray, position: IntArray, last: IntArray) -> FloatArray:
        """Decodes several tokens per sequence; returns logits (batch, vocabulary) of the last."""
        if not self._model.has_prefill:
            return prefill_by_steps(self.step, self._undo_step, tokens, position, last)
        return self._run(GraphRole.PREFILL, {TOKENS: tokens, POSITION: position, LAST: last})

    def step(self, token: IntArray, position: IntArray) -> FloatArray:
        """Decodes one token per sequence; returns logits (batch, vocabulary)."""
        return self._run(GraphRole.STEP, {TOKEN: token, POSITION: position})

    def _undo_step(self, rows: IntArray) -> None:
        """Restores the caches of these sequences to those before the newest step."""
        for name, array in self._caches.items():
            array[rows] = self._previous_caches[name][rows]

    def _run(self, role: GraphRole, arrays: Arrays) -> FloatArray:
        outputs = self._model.run(role, {**arrays, **self._memory, **self._caches})
        self._previous_caches = self._caches
        self._caches = {cache_of(n): a for n, a in outputs.items() if is_next_cache(n)}
        logits: FloatArray = outputs[LOGITS]
        if not np.isfinite(logits).all():
            raise CalibrationError(
                f"{role.value}/{LOGITS} holds NaN or infinity on these samples; "
                "check the samples, then the model's weights"
            )
        return logits


def _session(path: Path, graph: str) -> Any:
    """Returns a session of a graph.

    Raises:
        BackendError: ONNX Runtime refuses the graph.
    """
    with loading_errors(graph):
        return make_session(path, threads=None)


def _instrumented(model: ir.Model, names: Iterable[str]) -> ir.Model:
    """Copies a graph and adds the named tensors to its outputs, except inputs and outputs."""
    copy = model.clone()
    interface = {value.name for value in (*copy.graph.inputs, *copy.graph.outputs)}
    values = {value.name: value for node in copy.graph for value in node.outputs}
    copy.graph.outputs.extend(values[name] for name in names if name not in interface)
    return copy


def _empty_cache(spec: TensorSpec, batch: int) -> NDArray[Any]:
    sizes = [size if isinstance(size, int) else batch for size in spec.shape]
    return np.zeros(sizes, DTYPES[spec.dtype])
