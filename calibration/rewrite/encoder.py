"""Encoders that compute in 8 bits: activations with one scale, weights with one per channel.

Biases stay float, and a product gives float: only its inputs are quantized.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from functools import partial

import onnx_ir as ir

from hybrid_deploy.calibration.graphs.graph_edits import drop_unused_constants
from hybrid_deploy.calibration.onnxruntime_cpu.encoder_fusions import fuse_encoder_operators
from hybrid_deploy.calibration.qdq.channel_scaling import (
    ProductQuantization,
    best_channel_scale,
    range_after_scaling,
    required_gain,
    round_trip_per_channel,
    scale_channels,
)
from hybrid_deploy.calibration.qdq.linear_operators import (
    Linear,
    cpu_tensors_to_quantize,
    inputs_to_quantize,
    linear_operators,
    portable_tensors_to_quantize,
    products_by_activation,
)
from hybrid_deploy.calibration.qdq.low_bit_types import FLOAT8, INT8
from hybrid_deploy.calibration.qdq.qdq_pairs import ActivationForm, insert_qdq_pairs
from hybrid_deploy.calibration.qdq.stored_weights import store_weight
from hybrid_deploy.calibration.recipes import EncoderForm
from hybrid_deploy.calibration.statistics.ranges import Range
from hybrid_deploy.calibration.statistics.scales import Channels, Scales
from hybrid_deploy.contract import GraphRole

_ACTIVATIONS: Mapping[EncoderForm, ActivationForm] = {
    EncoderForm.INT8: ActivationForm.INT8,
    EncoderForm.INT8_CPU: ActivationForm.UINT8,
    EncoderForm.FLOAT8: ActivationForm.FLOAT8,
}

_POINTS = {
    EncoderForm.INT8: portable_tensors_to_quantize,
    EncoderForm.INT8_CPU: cpu_tensors_to_quantize,
    EncoderForm.FLOAT8: inputs_to_quantize,
}
_GAIN_OF_A_MUL = 0.7
"""What a Mul over the whole memory must take away of an error: it takes a tenth of a product."""


def quantize_encoder(
    model: ir.Model, scales: Scales, form: EncoderForm, in_float: Collection[str] = ()
) -> None:
    """Makes the encoder compute in 8 bits, in place.

    Args:
        model: float32, batch normalization folded.
        scales: what the activations were seen to hold.
        form: INT8, INT8_CPU (which ONNX Runtime's CPU kernels take, and TensorRT does not) or
            FLOAT8.
        kept: names of the operators (`Linear.name`) that stay float.

    Raises:
        CalibrationError: a tensor has no range, or a weight is not finite.
    """
    graph, ranges = model.graph, dict(scales.of(GraphRole.ENCODER))
    targets = [linear for linear in _targets(graph, form) if linear.name not in in_float]
    if form is not EncoderForm.FLOAT8:  # a float is as exact for small numbers as for large ones
        ranges |= scale_outlier_channels(
            graph, targets, ranges, scales.channels_of(GraphRole.ENCODER)
        )
    insert_qdq_pairs(graph, _POINTS[form](graph, targets), ranges, _ACTIVATIONS[form])
    number_form = FLOAT8 if form is EncoderForm.FLOAT8 else INT8
    for linear in targets:
        store_weight(graph, linear, number_form, quantizes_activations=True)
    if form is EncoderForm.INT8_CPU:
        fuse_encoder_operators(model)
    drop_unused_constants(graph)


def _targets(graph: ir.Graph, form: EncoderForm) -> list[Linear]:
    """Returns the operators to quantize.

    Rounded to floats of 8 bits, what convolutions over the input or over single channels make of it
    is off by several percent, and they have next to no weights to save.
    """
    if form is not EncoderForm.FLOAT8:
        return linear_operators(graph)
    given = set(graph.inputs)
    return [
        linear
        for linear in linear_operators(graph)
        if linear.node.op_type != "Conv" or not (linear.is_grouped or linear.activation in given)
    ]


def scale_outlier_channels(
    graph: ir.Graph,
    targets: Iterable[Linear],
    ranges: Mapping[str, Range],
    channels: Mapping[str, Channels],
) -> dict[str, Range]:
    """Scales the channels of activations with outliers, in place; gives the new ranges by name."""
    changed: dict[str, Range] = {}
    for name, group in products_by_activation(targets).items():
        seen = channels.get(name)
        if seen is None or name not in ranges:
            continue
        storage = ProductQuantization(
            partial(round_trip_per_channel, low_bit_type=INT8), quantizes_activations=True
        )
        weights = [linear.matrix for linear in group]
        scale = best_channel_scale(weights, seen, storage, required_gain(group, _GAIN_OF_A_MUL))
        if scale is not None:
            scaled = scale_channels(graph, group, scale)
            changed[str(scaled.name)] = range_after_scaling(ranges[name], seen, scale)
    return changed
