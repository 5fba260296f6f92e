"""Encoders that compute in 8 bits: activations with one scale, weights with one per channel.

    BEFORE                               AFTER
    x                                    x, divided by channel scales (not in FLOAT8)
    |                                    QuantizeLinear, DequantizeLinear
    Conv or MatMul (float32 weight)      Conv or MatMul (DequantizeLinear of the stored weight)
    Add (bias)                           Add (bias)

The output of a product and every bias stay float32. Where an Add joins a convolution and a skip
branch, INT8 and INT8_CPU quantize the skip branch; INT8_CPU also quantizes the output of every
convolution (see `linear_operators`), and is fused further (see `encoder_fusions`).
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

_TENSORS_TO_QUANTIZE = {
    EncoderForm.INT8: portable_tensors_to_quantize,
    EncoderForm.INT8_CPU: cpu_tensors_to_quantize,
    EncoderForm.FLOAT8: inputs_to_quantize,
}
_GAIN_OF_MUL = 0.7
"""Share of a product's error that a Mul must remove to be worth its time.

Over all positions of an encoder, a Mul takes about a tenth of the time of a product.
"""


def quantize_encoder(
    model: ir.Model, scales: Scales, form: EncoderForm, in_float: Collection[str] = ()
) -> None:
    """Quantizes an encoder to 8 bits, in place.

    Args:
        model: the float32 graph, batch normalization folded.
        scales: ranges and channel statistics of the activations; they are not changed.
        form: INT8, FLOAT8, or INT8_CPU, which ONNX Runtime's CPU kernels run and TensorRT does not.
        in_float: names of the operators (`Linear.name`) that stay float.

    Raises:
        CalibrationError: a tensor has no range, or a weight is not finite.
    """
    graph, ranges = model.graph, dict(scales.of(GraphRole.ENCODER))
    targets = [
        linear for linear in _operators_to_quantize(graph, form) if linear.name not in in_float
    ]
    if form is not EncoderForm.FLOAT8:  # float8 is as precise for small numbers as for large ones
        ranges |= _scale_outlier_channels(
            graph, targets, ranges, scales.channels_of(GraphRole.ENCODER)
        )
    insert_qdq_pairs(graph, _TENSORS_TO_QUANTIZE[form](graph, targets), ranges, _ACTIVATIONS[form])
    weight_type = FLOAT8 if form is EncoderForm.FLOAT8 else INT8
    for linear in targets:
        store_weight(graph, linear, weight_type, quantizes_activations=True)
    if form is EncoderForm.INT8_CPU:
        fuse_encoder_operators(model)
    drop_unused_constants(graph)


def _operators_to_quantize(graph: ir.Graph, form: EncoderForm) -> list[Linear]:
    """Returns the operators that a form quantizes.

    FLOAT8 leaves out convolutions of the graph's inputs and grouped ones: their errors in 8-bit
    floats are several percent, and they have hardly any weights to save. INT8_CPU leaves out
    convolutions over one axis, as those of sound: ONNX Runtime computes them faster in float. Those
    of real Whisper weights made two thirds of the whole encoder's divergence in 8 bits, and it took
    181 ms without in place of 205.
    """
    if form is EncoderForm.INT8_CPU:
        return [linear for linear in linear_operators(graph) if not _is_over_one_axis(linear)]
    if form is not EncoderForm.FLOAT8:
        return linear_operators(graph)
    graph_inputs = set(graph.inputs)
    return [
        linear
        for linear in linear_operators(graph)
        if linear.node.op_type != "Conv"
        or not (linear.is_grouped or linear.activation in graph_inputs)
    ]


def _is_over_one_axis(linear: Linear) -> bool:
    """Returns whether an operator is a convolution over one axis: (channels, channels, size)."""
    return linear.node.op_type == "Conv" and len(linear.weight_shape) == 3


def _scale_outlier_channels(
    graph: ir.Graph,
    targets: Iterable[Linear],
    ranges: Mapping[str, Range],
    channels_by_name: Mapping[str, Channels],
) -> dict[str, Range]:
    """Scales the channels of activations with outliers in place; returns the new ranges."""
    scaled_ranges: dict[str, Range] = {}
    for name, group in products_by_activation(targets).items():
        channels = channels_by_name.get(name)
        if channels is None or name not in ranges:
            continue
        quantization = ProductQuantization(
            partial(round_trip_per_channel, low_bit_type=INT8), quantizes_activations=True
        )
        weights = [linear.matrix for linear in group]
        min_gain = required_gain(group, _GAIN_OF_MUL)
        scale = best_channel_scale(weights, channels, quantization, min_gain)
        if scale is not None:
            scaled = scale_channels(graph, group, scale)
            scaled_ranges[str(scaled.name)] = range_after_scaling(ranges[name], channels, scale)
    return scaled_ranges
