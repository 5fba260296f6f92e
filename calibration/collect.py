"""Calibration through the real generation loop.

The float graphs get one more output for every tensor to watch, and decode the samples as a device
would: each sample is encoded once, then decoded token by token with the bundle's own generation
defaults. So a tensor of the step graph is seen at every position, with the caches that the model
itself filled, and not with random inputs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from hybrid_deploy import __version__
from hybrid_deploy.bundle import Bundle
from hybrid_deploy.calibration.observers import Observer, Range, make_observer
from hybrid_deploy.calibration.points import cpu_points, linears
from hybrid_deploy.calibration.samples import Samples
from hybrid_deploy.calibration.scales import Provenance, Scales
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
from hybrid_deploy.manifest import TensorSpec
from hybrid_deploy.onnx_files import save_graphs
from hybrid_deploy.runtime.backend import FloatArray, IntArray
from hybrid_deploy.runtime.generate import decode_greedily, limits_of
from hybrid_deploy.runtime.onnxruntime_backend import check_inputs, make_session
from hybrid_deploy.runtime.processors import processors_of
from hybrid_deploy.runtime.prompt_steps import prefill_by_steps

Arrays = Mapping[str, NDArray[Any]]


def collect_scales(
    bundle: Bundle,
    variant: str,
    graphs: Mapping[GraphRole, ir.Model],
    samples: Samples,
    *,
    method: str = "minmax",
    progress: Callable[[int], None] | None = None,
) -> Scales:
    """Decodes the samples with the float graphs and gives the ranges of their activations.

    Args:
        bundle: gives the generation defaults.
        variant: name of the variant that the graphs are from.
        graphs: float32, as they will be quantized; they are not changed.
        samples: what to decode.
        method: name of the observer.
        progress: told how many samples are done.

    Raises:
        CalibrationError: an activation is NaN or infinite; the message names the tensor.
        InputError: a sample does not fit the model.
        UsageError: there is no such method.
    """
    with tempfile.TemporaryDirectory(prefix="hybrid-deploy-calibrate-") as folder:
        model = ObservedModel(bundle, graphs, Path(folder), method)
        steps = 0
        for done, inputs in enumerate(samples, start=1):
            steps += _decode(bundle, model.start(inputs))
            if progress is not None:
                progress(done)
        ranges = model.ranges()
    return Scales(
        provenance=Provenance(
            model=bundle.manifest.name,
            variant=variant,
            graphs={r.value: _graph_hash(bundle, variant, r) for r in graphs},
            samples=len(samples),
            samples_sha256=samples.sha256,
            steps=steps,
            method=method,
            producer=f"hybrid-deploy {__version__}, onnxruntime {ort.__version__}",
        ),
        ranges=ranges,
    )


class ObservedModel:
    """The float graphs with an observer on every tensor that may be quantized."""

    def __init__(
        self, bundle: Bundle, graphs: Mapping[GraphRole, ir.Model], folder: Path, method: str
    ) -> None:
        names = {role: watched_tensors(model, role) for role, model in graphs.items()}
        copies = {role: _instrumented(model, names[role]) for role, model in graphs.items()}
        specs = save_graphs(copies, folder, ".")
        self._encoder_spec = specs[GraphRole.ENCODER]
        returned = {spec.name for spec in specs[GraphRole.STEP].outputs}
        self.caches = {
            spec.name: spec
            for spec in specs[GraphRole.STEP].inputs
            if next_cache(spec.name) in returned
        }
        self._sessions = {
            role: make_session(folder / spec.file, threads=None) for role, spec in specs.items()
        }
        self._observers: dict[GraphRole, dict[str, Observer]] = {
            role: {name: make_observer(method, f"{role.value}/{name}") for name in names[role]}
            for role in graphs
        }
        self._seen: set[GraphRole] = set()
        self.has_prefill = GraphRole.PREFILL in graphs

    def start(self, inputs: Arrays) -> ObservedDecoding:
        """Encodes a batch, and makes ready to decode it."""
        batch = check_inputs(self._encoder_spec, inputs)
        return ObservedDecoding(self, batch, self.run(GraphRole.ENCODER, inputs))

    def run(self, role: GraphRole, arrays: Arrays) -> dict[str, NDArray[Any]]:
        """Runs a graph and observes it; inputs that it does not take are left out."""
        session = self._sessions[role]
        taken = {spec.name for spec in session.get_inputs()}
        fed = {name: array for name, array in arrays.items() if name in taken}
        names = [spec.name for spec in session.get_outputs()]
        try:
            outputs = dict(zip(names, session.run(names, fed), strict=True))
        except Exception as error:
            raise BackendError(f"onnxruntime failed in the {role.value} graph: {error}") from error
        self._seen.add(role)
        for name, observer in self._observers[role].items():
            observer.observe(outputs[name] if name in outputs else arrays[name])
        return outputs

    def ranges(self) -> dict[str, dict[str, Range]]:
        """Gives the range of every watched tensor of the graphs that were run."""
        return {
            role.value: {name: observer.range() for name, observer in observers.items()}
            for role, observers in self._observers.items()
            if role in self._seen
        }


class ObservedDecoding:
    """One batch that is decoded under observation: a `runtime.backend.Decoding`."""

    def __init__(self, model: ObservedModel, batch: int, memory: Arrays) -> None:
        self._model = model
        self._batch = batch
        self._memory = {n: array for n, array in memory.items() if n not in model.caches}
        self._caches = {
            name: memory[name] if name in memory else _empty_cache(spec, batch)
            for name, spec in model.caches.items()
        }
        self._before = self._caches

    @property
    def batch(self) -> int:
        """Number of sequences."""
        return self._batch

    def prefill(self, tokens: IntArray, position: IntArray, last: IntArray) -> FloatArray:
        """Decodes several tokens per sequence."""
        if not self._model.has_prefill:
            return prefill_by_steps(self.step, self._keep, tokens, position, last)
        return self._run(GraphRole.PREFILL, {TOKENS: tokens, POSITION: position, LAST: last})

    def step(self, token: IntArray, position: IntArray) -> FloatArray:
        """Decodes one token per sequence."""
        return self._run(GraphRole.STEP, {TOKEN: token, POSITION: position})

    def _keep(self, rows: IntArray) -> None:
        """Takes back the newest step for these sequences."""
        for name, array in self._caches.items():
            array[rows] = self._before[name][rows]

    def _run(self, role: GraphRole, arrays: Arrays) -> FloatArray:
        outputs = self._model.run(role, {**arrays, **self._memory, **self._caches})
        self._before = self._caches
        self._caches = {cache_of(n): a for n, a in outputs.items() if is_next_cache(n)}
        logits: FloatArray = outputs[LOGITS]
        if not np.isfinite(logits).all():
            raise CalibrationError(
                f"{role.value}/{LOGITS} holds NaN or infinity on these samples; "
                "check the samples, then the model's weights"
            )
        return logits


def watched_tensors(model: ir.Model, role: GraphRole) -> tuple[str, ...]:
    """Names the tensors of a graph that may be quantized, in any form."""
    if role is GraphRole.ENCODER:
        return tuple(str(value.name) for value in cpu_points(model.graph))
    return tuple(dict.fromkeys(str(linear.activation.name) for linear in linears(model.graph)))


def _instrumented(model: ir.Model, names: tuple[str, ...]) -> ir.Model:
    """Copies a graph and lets it return the named tensors too; its inputs need not be."""
    copy = model.clone()
    outside = {value.name for value in (*copy.graph.inputs, *copy.graph.outputs)}
    values = {value.name: value for node in copy.graph for value in node.outputs}
    copy.graph.outputs.extend(values[name] for name in names if name not in outside)
    return copy


def _decode(bundle: Bundle, decoding: ObservedDecoding) -> int:
    """Decodes a batch to its end and gives the number of steps."""
    prompts = [bundle.manifest.generation.start_tokens] * decoding.batch
    processors = processors_of(bundle.manifest.generation)
    limits = limits_of(bundle.manifest)
    return 1 + len(decode_greedily(decoding, prompts, limits, processors).step_ms)


def _graph_hash(bundle: Bundle, variant: str, role: GraphRole) -> str:
    return bundle.manifest.files[bundle.graph(variant, role).file].sha256


def _empty_cache(spec: TensorSpec, batch: int) -> NDArray[Any]:
    sizes = [size if isinstance(size, int) else batch for size in spec.shape]
    return np.zeros(sizes, np.float32)
