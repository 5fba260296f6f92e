"""Calibration through the real generation loop.

The float graphs get one more output for every tensor to watch, and decode the samples as a device
would: each sample is encoded once, then decoded token by token with the bundle's own generation
defaults. So a tensor of the step graph is seen at every position, with the caches that the model
itself filled, and not with random inputs.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from hybrid_deploy import __version__
from hybrid_deploy.bundle import Bundle
from hybrid_deploy.calibration.observations import (
    Observations,
    Origin,
    SampleRecord,
    read_observations,
)
from hybrid_deploy.calibration.points import cpu_points, linears
from hybrid_deploy.calibration.samples import Samples, hash_of
from hybrid_deploy.calibration.statistics import TensorStatistics
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

_SAVE_EVERY_S = 10.0


def observe_samples(
    bundle: Bundle,
    variant: str,
    graphs: Mapping[GraphRole, ir.Model],
    samples: Samples,
    *,
    state: Path | None = None,
    shard: tuple[int, int] = (0, 1),
    progress: Callable[[int], None] | None = None,
) -> Observations:
    """Decodes the samples with the float graphs and gives what their activations held.

    Args:
        bundle: gives the generation defaults.
        variant: name of the variant that the graphs are from.
        graphs: float32, as they will be quantized; they are not changed.
        samples: what to decode.
        state: a file that keeps what was seen, every few seconds and when a run ends early; what
            is in it already is not decoded again.
        shard: (k, n) decodes the k-th of every n samples, to be merged with the others.
        progress: told how many samples are done.

    Raises:
        CalibrationError: an activation is NaN or infinite (the message names the tensor), or the
            state is of another bundle or other samples.
        InputError: a sample does not fit the model.
    """
    found = _begun(state, origin_of(bundle, variant))
    number, count = shard
    indexes = range(number, len(samples), count)
    with tempfile.TemporaryDirectory(prefix="hybrid-deploy-calibrate-") as folder:
        model, saved = ObservedModel(bundle, graphs, Path(folder)), time.monotonic()
        try:
            for done, index in enumerate(indexes, start=1):
                inputs = samples[index]
                sha256 = hash_of(inputs)
                if not _is_known(found, index, sha256):
                    model.begin(index)
                    steps = _decode(bundle, model.start(inputs))
                    found.add(index, SampleRecord(sha256, steps), model.seen)
                if state is not None and time.monotonic() - saved > _SAVE_EVERY_S:
                    found.save(state)
                    saved = time.monotonic()
                if progress is not None:
                    progress(done)
        finally:
            if state is not None and found.samples:
                found.save(state)
    return found


def origin_of(bundle: Bundle, variant: str) -> Origin:
    """Names what observations of a variant are made with."""
    files, graphs = bundle.manifest.files, bundle.graphs(variant)
    homes = {Path(graph.file).parent for graph in graphs.values()}
    named = {graph.file for graph in graphs.values()}
    return Origin(
        model=bundle.manifest.name,
        variant=variant,
        graphs={role.value: files[graph.file].sha256 for role, graph in graphs.items()},
        weights={
            name: record.sha256
            for name, record in files.items()
            if Path(name).parent in homes and name not in named
        },
        producer=f"hybrid-deploy {__version__}, onnxruntime {ort.__version__}",
    )


def _begun(state: Path | None, origin: Origin) -> Observations:
    """Gives what an earlier run kept, or nothing yet."""
    if state is None or not state.exists():
        return Observations(origin)
    found = read_observations(state)
    if found.origin != origin:
        raise CalibrationError(
            f"{state} holds observations of another bundle or version; name another file"
        )
    return found


def _is_known(found: Observations, index: int, sha256: str) -> bool:
    known = found.samples.get(index)
    if known is not None and known.sha256 != sha256:
        raise CalibrationError(
            f"sample {index} is not the one that was observed before; name another state file"
        )
    return known is not None


class ObservedModel:
    """The float graphs, observed at every tensor that may be quantized.

    Attributes:
        seen: statistics of the sample that was begun last, by graph and tensor.
    """

    def __init__(self, bundle: Bundle, graphs: Mapping[GraphRole, ir.Model], folder: Path) -> None:
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
        self._names = names
        self._sample = 0
        self.seen: dict[str, dict[str, TensorStatistics]] = {}
        self.has_prefill = GraphRole.PREFILL in graphs

    def begin(self, sample: int) -> None:
        """Forgets what was seen; what comes belongs to the sample of that index."""
        self._sample, self.seen = sample, {}

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
        seen = self.seen.setdefault(role.value, {})
        for name in self._names[role]:
            statistics = seen.setdefault(name, TensorStatistics(f"{role.value}/{name}"))
            statistics.observe(outputs[name] if name in outputs else arrays[name], self._sample)
        return outputs


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


def _empty_cache(spec: TensorSpec, batch: int) -> NDArray[Any]:
    sizes = [size if isinstance(size, int) else batch for size in spec.shape]
    return np.zeros(sizes, np.float32)
