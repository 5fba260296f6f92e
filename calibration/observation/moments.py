"""Records the second moments of the activations of a decoder, for rounding with error feedback."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import onnx_ir as ir

from hybrid_deploy.bundle.bundle import Bundle
from hybrid_deploy.calibration.observation.observed_model import ObservedModel
from hybrid_deploy.calibration.qdq.layers import weight_key
from hybrid_deploy.calibration.qdq.linear_operators import Linear, linear_operators
from hybrid_deploy.calibration.samples.samples import Samples
from hybrid_deploy.calibration.statistics.second_moments import SecondMoments
from hybrid_deploy.contract import GraphRole
from hybrid_deploy.progress import Progress, silent
from hybrid_deploy.scratch import scratch_folder

MOMENT_BYTES = 1 << 30
"""Largest size of the moments of one run over the samples; larger models take several runs."""


def observe_moments(
    bundle: Bundle,
    graphs: Mapping[GraphRole, ir.Model],
    samples: Samples,
    progress: Progress = silent,
) -> dict[bytes, SecondMoments]:
    """Decodes the samples and returns the second moments of the inputs of every decoder weight.

    Args:
        bundle: has the generation defaults.
        graphs: float32 graphs; they are not changed.
        samples: the samples to decode.
        progress: called with the number of finished samples, as stage `moments`.

    Returns:
        Moments by the key of the weight, over prefill and step.

    Raises:
        CalibrationError: the logits are NaN or infinite.
        InputError: a sample does not fit the model.
    """
    decoder = {role: model for role, model in graphs.items() if role is not GraphRole.ENCODER}
    products: dict[GraphRole, list[Linear]] = {
        role: [linear for linear in linear_operators(model.graph) if linear.node.op_type != "Conv"]
        for role, model in decoder.items()
    }
    moments: dict[bytes, SecondMoments] = {}
    runs = list(_runs(products))
    for number, watched in enumerate(runs):
        with scratch_folder("moments") as folder:
            factories = {
                role: dict.fromkeys(names, SecondMoments) for role, names in watched.items()
            }
            model = ObservedModel(bundle, graphs, folder, factories)
            for done, inputs in enumerate(samples, start=1 + number * len(samples)):
                model.decode(inputs)
                progress("moments", done, len(runs) * len(samples))
        for role, operators in products.items():
            observed = model.statistics.get(role.value, {})
            for linear in operators:
                name = str(linear.activation.name)
                if name in observed:
                    moments.setdefault(weight_key(linear), SecondMoments()).merge(observed[name])
    return moments


def _runs(products: Mapping[GraphRole, list[Linear]]) -> Iterator[dict[GraphRole, set[str]]]:
    """Groups the activations by graph, so that the moments of a group fit into `MOMENT_BYTES`."""
    group: dict[GraphRole, set[str]] = {}
    size = 0
    for role, operators in products.items():
        widths = {str(linear.activation.name): len(linear.matrix) for linear in operators}
        for name, width in widths.items():
            if size and size + 8 * width**2 > MOMENT_BYTES:
                yield group
                group, size = {}, 0
            group.setdefault(role, set()).add(name)
            size += 8 * width**2
    if group:
        yield group
