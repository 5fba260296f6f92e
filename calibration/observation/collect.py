"""Decodes samples with the runtime's generation loop and collects statistics of the activations."""

from __future__ import annotations

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
from hybrid_deploy.calibration.qdq.linear_operators import cpu_tensors_to_quantize, linear_operators
from hybrid_deploy.calibration.samples.samples import Samples, sample_sha256
from hybrid_deploy.calibration.statistics.fingerprint import Fingerprint, fingerprint_of
from hybrid_deploy.calibration.statistics.tensor_statistics import TensorStatistics
from hybrid_deploy.contract import GraphRole
from hybrid_deploy.errors import BackendError, CalibrationError, InputError
from hybrid_deploy.progress import Progress, silent
from hybrid_deploy.scratch import scratch_folder

ALL_SAMPLES = (0, 1)
"""The shard (k, n) that consists of all samples."""

_SAVE_EVERY_S = 10.0
_MATRIX_PRODUCTS = frozenset({"Gemm", "MatMul"})


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
    """Decodes the samples with the float graphs and returns statistics of their activations.

    Args:
        bundle: has the variant and the generation defaults.
        variant: name of the variant that the graphs belong to.
        graphs: the float32 graphs that will be quantized; they are not changed.
        samples: the samples to decode.
        state: file to which the observations are saved every few seconds, and at the end even if
            the run fails; samples that the file already has are not decoded again. None saves
            nothing.
        shard: (k, n) decodes only the k-th of every n samples, k from 0; the observations of all
            shards can be merged.
        progress: called with the number of finished samples, as stage `calibrate`.

    Raises:
        CalibrationError: an activation is NaN or infinite (the message names the tensor), or the
            state file belongs to another bundle or to other samples.
        InputError: a sample does not fit the model.
        BackendError: a graph does not run, or its logits are not finite.
    """
    observations = _resumed(state, fingerprint_of(bundle, variant))
    observations.all_samples = len(samples)
    number, count = shard
    indices = range(number, len(samples), count)
    progress("calibrate", 0, len(indices))
    watched = {role: _statistics_factories(model, role) for role, model in graphs.items()}
    with scratch_folder("calibrate") as folder:
        model, saved_at_s = ObservedModel(bundle, graphs, folder, watched), time.monotonic()
        try:
            for done, index in enumerate(indices, start=1):
                _observe_sample(model, samples, index, observations)
                if state is not None and time.monotonic() - saved_at_s > _SAVE_EVERY_S:
                    observations.save(state)
                    saved_at_s = time.monotonic()
                progress("calibrate", done, len(indices))
        finally:
            if state is not None and observations.samples:
                observations.save(state)
    return observations


def watched_tensors(model: ir.Model, role: GraphRole) -> list[ir.Value]:
    """Returns the tensors of a graph that any precision may quantize, in the graph's order."""
    if role is GraphRole.ENCODER:
        watched = set(cpu_tensors_to_quantize(model.graph))
    else:
        watched = {linear.activation for linear in linear_operators(model.graph)}
    computed = (value for node in model.graph for value in node.outputs)
    return [value for value in (*model.graph.inputs, *computed) if value in watched]


def _statistics_factories(
    model: ir.Model, role: GraphRole
) -> dict[str, Callable[[], TensorStatistics]]:
    """Returns a function for each tensor that makes its empty statistics.

    An input of a matrix product has statistics by channel too.
    """
    matrix_inputs = {
        linear.activation
        for linear in linear_operators(model.graph)
        if linear.node.op_type in _MATRIX_PRODUCTS
    }
    return {
        str(value.name): partial(
            TensorStatistics, label_of(role, value), by_channel=value in matrix_inputs
        )
        for value in watched_tensors(model, role)
    }


def _observe_sample(
    model: ObservedModel[TensorStatistics],
    samples: Samples,
    index: int,
    observations: Observations,
) -> None:
    """Decodes a sample and adds its statistics, unless the observations already have it."""
    inputs = samples[index]
    sha256 = sample_sha256(inputs)
    if _is_observed(observations, index, sha256):
        return
    model.begin_sample(index)
    try:
        steps = model.decode(inputs)
    except (BackendError, CalibrationError, InputError) as error:
        raise type(error)(f"{error} ({samples.name_of(index)})") from error
    observations.add(index, SampleRecord(sha256, steps), model.statistics)


def _resumed(state: Path | None, fingerprint: Fingerprint) -> Observations:
    """Returns the observations that an earlier run saved, or empty ones."""
    if state is None or not state.exists():
        return Observations(fingerprint)
    observations = read_observations(state)
    if observations.fingerprint != fingerprint:
        raise CalibrationError(
            f"{state} holds observations of another bundle or version; name another file"
        )
    return observations


def _is_observed(observations: Observations, index: int, sha256: str) -> bool:
    record = observations.samples.get(index)
    if record is not None and record.sha256 != sha256:
        raise CalibrationError(
            f"sample {index} is not the one that was observed before; name another state file"
        )
    return record is not None
