"""Scaling the channels of activations and weights against each other, so that both round better.

y = x W = (x / s) (s W) holds for any positive s, one number per channel of x. Activations with a
few large channels quantize better after division (SmoothQuant, https://arxiv.org/abs/2211.10438);
of a weight that is stored in 4 bits those rows matter that meet large activations, and multiplied
they lose less (AWQ, https://arxiv.org/abs/2306.00978). Both choose s by a search along one
exponent; here the error that a choice leaves is estimated from what calibration saw of every
channel, and a choice that gains little is not made. The division disappears into a normalization,
or into the weight and bias before a Relu, where nothing else takes the output; it is one Mul
otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from hybrid_deploy.calibration.graphs.graph_edits import constant, describe
from hybrid_deploy.calibration.qdq.linear_operators import Linear, NodeInput
from hybrid_deploy.calibration.qdq.low_bit_types import LowBitType
from hybrid_deploy.calibration.qdq.weight_rounding import quantize_per_channel
from hybrid_deploy.calibration.statistics.ranges import Range
from hybrid_deploy.calibration.statistics.scales import Channels

FloatArray = NDArray[np.float32]
WeightRoundTrip = Callable[[FloatArray], FloatArray]
"""Returns what is restored of a weight (summed axis, channels) after it was stored."""

_EXPONENTS = np.linspace(0.05, 1, 20)
_LEAST_GAIN = 0.05
_INT8_MAX = 127
_NORMS = frozenset({"LayerNormalization", "RMSNormalization"})


@dataclass(frozen=True)
class ProductQuantization:
    """How a product is quantized, as far as the choice of scales has to know.

    Attributes:
        restored: what the stored weight becomes.
        activations: whether activations are rounded to int8 too.
    """

    weight_round_trip: WeightRoundTrip
    quantizes_activations: bool


def best_channel_scale(
    weights: Sequence[FloatArray],
    channels: Channels,
    quantization: ProductQuantization,
    min_gain: float,
) -> FloatArray | None:
    """Chooses the scale of every channel of a tensor.

    Args:
        weights: the matrices (summed axis, channels) that the tensor is multiplied with.
        channels: what it was seen to hold.
        storage: how all of it is quantized.
        least_gain: share of the error that a scaling has to take away, as `least_gain` gives it.

    Returns:
        s (summed axis,) float32, positive; None where no scaling gains so much.
    """
    weight = np.concatenate(weights, axis=1)
    ones = np.ones(len(weight), np.float32)
    errors = [(_error(weight, channels, ones, quantization), ones)]
    for exponent in _EXPONENTS:
        scale = _candidate(weight, channels, float(exponent), quantization)
        errors.append((_error(weight, channels, scale, quantization), scale))
    best, scale = min(errors, key=lambda pair: pair[0])
    return scale if best < (1 - min_gain) * errors[0][0] else None


def required_gain(group: Sequence[Linear], gain_of_mul: float) -> float:
    """Returns what a scaling must gain: so much where the division is an operator of its own."""
    return _LEAST_GAIN if _factors(group) else gain_of_mul


def scale_channels(graph: ir.Graph, group: Sequence[Linear], scale: FloatArray) -> ir.Value:
    """Divides a tensor by a scale and multiplies the weights that it meets, in place.

    Args:
        graph: that all is in.
        group: operators that share their activation; others that take it are left alone.
        scale: (summed axis,).

    Returns:
        The tensor that the operators take now.
    """
    activation = group[0].activation
    for linear in group:
        _scale_weight(graph, linear, scale)
    if factors := _factors(group):
        for node, index in factors:
            _divide(graph, node, index, scale)
        return activation
    name = f"{activation.name}_scaled"
    number = sum(str(node.outputs[0].name).startswith(name) for node, _ in activation.uses())
    name = f"{name}_{number}" if number else name
    factor = constant(graph, f"{name}_factor", (1 / scale).astype(np.float32))
    divide = ir.node("Mul", [activation, factor], name=name)
    scaled = divide.outputs[0]
    describe(scaled, name, activation, ir.DataType.FLOAT)
    graph.insert_before(group[0].node, divide)
    for linear in group:
        linear.node.replace_input_with(0, scaled)
    return scaled


def round_trip_per_channel(weight: FloatArray, low_bit_type: LowBitType) -> FloatArray:
    """Returns what is left of a matrix (summed axis, channels) with one scale per channel."""
    return quantize_per_channel("weight", weight, 1, low_bit_type).restored


def range_after_scaling(seen: Range, channels: Channels, scale: FloatArray) -> Range:
    """Returns the range of a tensor whose channels were divided by a scale.

    A range that leaves out rare numbers leaves out as large a share of the divided ones.
    """
    largest = float((channels.largest / scale).max())
    whole = float(channels.largest.max())
    used = min(1.0, max(abs(seen.low), abs(seen.high)) / whole) if whole > 0 else 1.0
    return Range(-largest * used if seen.low < 0 else 0.0, largest * used)


def _candidate(
    weight: FloatArray, channels: Channels, exponent: float, storage: ProductQuantization
) -> FloatArray:
    if storage.quantizes_activations:
        large = np.maximum(np.abs(weight).max(axis=1), np.finfo(np.float32).tiny)
        scale = channels.largest**exponent / large ** (1 - exponent)
    else:
        scale = channels.mean**exponent
    dead = ~np.isfinite(scale) | (scale <= 0) | (channels.largest <= 0)
    scale = np.where(dead, 1.0, scale)
    alive = scale[~dead]
    if alive.size:  # about one, so that neither side drifts out of range
        scale = np.where(dead, 1.0, scale / np.sqrt(alive.max() * alive.min()))
    return np.clip(scale, 1e-3, 1e3).astype(np.float32)


def _error(
    weight: FloatArray, channels: Channels, scale: FloatArray, storage: ProductQuantization
) -> float:
    """Estimates the squared error of the product, channels taken as independent."""
    scaled = weight * scale[:, None]
    lost = storage.weight_round_trip(scaled) / scale[:, None] - weight
    error = float(
        (channels.mean.astype(np.float64) ** 2 * (lost.astype(np.float64) ** 2).sum(1)).sum()
    )
    if storage.quantizes_activations:
        step = float((channels.largest / scale).max()) / _INT8_MAX
        error += step**2 / 12 * float((scaled.astype(np.float64) ** 2).sum())
    return error


def _scale_weight(graph: ir.Graph, linear: Linear, scale: FloatArray) -> None:
    weight = linear.weight
    assert weight.const_value is not None
    along = scale[:, None] if linear.channel_axis == 1 else scale[None, :]
    array = (weight.const_value.numpy() * along).astype(np.float32)
    linear.node.replace_input_with(1, constant(graph, f"{weight.name}_scaled", array))


def _is_all_of(value: ir.Value, users: set[ir.Node]) -> bool:
    return not value.is_graph_output() and all(
        node in users and index == 0 for node, index in value.uses()
    )


def _factors(group: Sequence[Linear]) -> list[NodeInput]:
    """Finds the constants that can be divided in place of a group's activation.

    These are the gain and shift of a normalization, or weight and bias of a product before a Relu;
    none where there is no such operator, or something else takes what it gives.
    """
    activation, users = group[0].activation, {linear.node for linear in group}
    node = activation.producer()
    if node is None or not _is_all_of(activation, users):
        return []
    if node.op_type in _NORMS:
        found = [(node, index) for index, value in enumerate(node.inputs) if index and value]
    elif node.op_type == "Relu":
        found = _factors_of_product(node)
    else:
        return []
    size = group[0].weight_shape[1 - group[0].channel_axis]
    return found if all(_is_constant(node.inputs[i], size) for node, i in found) else []


def _factors_of_product(relu: ir.Node) -> list[NodeInput]:
    """Finds weight and bias of MatMul, Add and Relu, where nothing else takes what they give."""
    add = _alone(relu.inputs[0], "Add")
    if add is None:
        return []
    for index in (0, 1):
        product = _alone(add.inputs[index], "MatMul")
        if product is not None:
            return [(product, 1), (add, 1 - index)]
    return []


def _alone(value: ir.Value | None, operator: str) -> ir.Node | None:
    """Returns the operator that makes a value which only one other takes."""
    node = None if value is None else value.producer()
    if value is None or node is None or node.op_type != operator:
        return None
    return node if len(list(value.uses())) == 1 and not value.is_graph_output() else None


def _is_constant(value: ir.Value | None, size: int) -> bool:
    tensor = None if value is None else value.const_value
    return tensor is not None and tensor.numpy().shape[-1:] == (size,)


def _divide(graph: ir.Graph, node: ir.Node, index: int, scale: FloatArray) -> None:
    """Divides a constant along its last axis, for one operator."""
    value = node.inputs[index]
    assert value is not None and value.const_value is not None, "it was found to be a constant"
    array = (value.const_value.numpy() / scale).astype(np.float32)
    name = f"{value.name}_for_{node.outputs[0].name}"
    node.replace_input_with(index, constant(graph, name, array))
