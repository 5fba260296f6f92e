"""Calibration through the real generation loop: what the activations hold while samples decode."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import onnx_ir as ir

from hybrid_deploy.bundle.bundle import Bundle
from hybrid_deploy.calibration.observation.observations import (
    Observations,
    SampleRecord,
    read_observations,
)
from hybrid_deploy.calibration.observation.observed_model import ObservedModel
from hybrid_deploy.calibration.observation.tensor_labels import label_of
from hybrid_deploy.calibration.qdq.linear_operators import cpu_points, linears
from hybrid_deploy.calibration.samples.samples import Samples, sample_sha256
from hybrid_deploy.calibration.statistics.fingerprint import Fingerprint, fingerprint_of
from hybrid_deploy.calibration.statistics.tensor_statistics import TensorStatistics
from hybrid_deploy.contract import GraphRole
from hybrid_deploy.errors import BackendError, CalibrationError, InputError
from hybrid_deploy.progress import Progress, silent

ALL_SAMPLES = (0, 1)
"""The shard that is all samples."""

_SAVE_EVERY_S = 10.0
_PRODUCTS = frozenset({"Gemm", "MatMul"})


def observe_samples(
    bundle: Bundle,
    variant: str,
    graphs: Mapping[GraphRole, ir.Model],
    samples: Samples,
    *,
    state: Path | None = None,
    shard: tuple[int, int] = ALL_SAMPLES,
    progress: Progress = silent,
) -> Observations:
    """Decodes the samples with the float graphs and gives what their activations held.

    Args:
        bundle: gives the generation defaults.
        variant: name of the variant that the graphs are from.
        graphs: float32, as they will be quantized; they are not changed.
        samples: what to decode.
        state: a file that keeps what was seen, every few seconds and when a run ends early; what
            is in it already is not decoded again.
        shard: (k, n) decodes the k-th of every n samples, k from 0, to be merged with the others.
        progress: called with the number of samples done, as stage `calibrate`.

    Raises:
        CalibrationError: an activation is NaN or infinite (the message names the tensor), or the
            state is of another bundle or other samples.
        InputError: a sample does not fit the model.
    """
    found = _begun(state, fingerprint_of(bundle, variant))
    number, count = shard
    indices = range(number, len(samples), count)
    progress("calibrate", 0, len(indices))
    watched = {role: _statistics(model, role) for role, model in graphs.items()}
    with tempfile.TemporaryDirectory(prefix="hybrid-deploy-calibrate-") as folder:
        model, saved = ObservedModel(bundle, graphs, Path(folder), watched), time.monotonic()
        try:
            for done, index in enumerate(indices, start=1):
                _observe(model, samples, index, found)
                if state is not None and time.monotonic() - saved > _SAVE_EVERY_S:
                    found.save(state)
                    saved = time.monotonic()
                progress("calibrate", done, len(indices))
        finally:
            if state is not None and found.samples:
                found.save(state)
    return found


def watched_tensors(model: ir.Model, role: GraphRole) -> list[ir.Value]:
    """Returns the tensors of a graph that may be quantized, in any form, in the graph's order."""
    if role is GraphRole.ENCODER:
        watched = set(cpu_points(model.graph))
    else:
        watched = {linear.activation for linear in linears(model.graph)}
    computed = (value for node in model.graph for value in node.outputs)
    return [value for value in (*model.graph.inputs, *computed) if value in watched]


def _statistics(model: ir.Model, role: GraphRole) -> dict[str, Callable[[], TensorStatistics]]:
    """Returns what is kept of each tensor: of those that meet a matrix, every channel too."""
    matrix_inputs = {
        linear.activation for linear in linears(model.graph) if linear.node.op_type in _PRODUCTS
    }
    return {
        str(value.name): partial(
            TensorStatistics, label_of(role, value), by_channel=value in matrix_inputs
        )
        for value in watched_tensors(model, role)
    }


def _observe(
    model: ObservedModel[TensorStatistics], samples: Samples, index: int, found: Observations
) -> None:
    """Decodes a sample, unless that was done before."""
    inputs = samples[index]
    sha256 = sample_sha256(inputs)
    if _is_known(found, index, sha256):
        return
    model.begin_sample(index)
    try:
        steps = model.decode(inputs)
    except (BackendError, CalibrationError, InputError) as error:
        raise type(error)(f"{error} ({samples.name_of(index)})") from error
    found.add(index, SampleRecord(sha256, steps), model.statistics)


def _begun(state: Path | None, origin: Fingerprint) -> Observations:
    """Returns what an earlier run kept, or nothing yet."""
    if state is None or not state.exists():
        return Observations(origin)
    found = read_observations(state)
    if found.fingerprint != origin:
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
