"""Channel scaling: a tensor is divided and the weights behind it multiplied, so both round better.

    BEFORE                               AFTER, folded
    LayerNormalization (gain, shift)     LayerNormalization (gain / s, shift / s)
    x                                    x / s
    MatMul (weight W)                    MatMul (weight s W)

    BEFORE Relu                          AFTER, folded
    MatMul (V), Add (b), Relu            MatMul (V / s), Add (b / s), Relu
    MatMul (W)                           MatMul (s W)

    BEFORE, any other producer           AFTER
    x, MatMul (W)                        x, Mul (1 / s), MatMul (s W)

y = x W = (x / s) (s W) holds for any positive s with one number per channel of x. Activations with
a few large channels have smaller rounding errors after the division (SmoothQuant,
https://arxiv.org/abs/2211.10438). In a weight of 4 bits, the rows that meet large activations
matter most, and the multiplication makes their relative rounding errors smaller (AWQ,
https://arxiv.org/abs/2306.00978). As in both papers, s depends on one exponent. The search takes
the exponent with the least error, as estimated from the channel statistics of calibration, and
scales nothing where the gain is small. The division is folded into constants only where nothing
else uses the tensor.
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
"""Returns a weight (summed axis, channels) as DequantizeLinear restores it after quantization."""

_EXPONENTS = np.linspace(0.05, 1, 20)
_FOLDED_GAIN = 0.05
_INT8_MAX = 127
_NORMALIZATIONS = frozenset({"LayerNormalization", "RMSNormalization"})


@dataclass(frozen=True)
class ProductQuantization:
    """How a matrix product is quantized, as far as the choice of scales depends on it.

    Attributes:
        weight_round_trip: quantizes and restores a weight.
        quantizes_activations: whether the activation is rounded to int8 too.
    """

    weight_round_trip: WeightRoundTrip
    quantizes_activations: bool


def best_channel_scale(
    weights: Sequence[FloatArray],
    channels: Channels,
    quantization: ProductQuantization,
    min_gain: float,
) -> FloatArray | None:
    """Returns the scale of every channel of a tensor that leaves the smallest estimated error.

    Args:
        weights: the matrices (summed axis, channels) float32 that the tensor is multiplied with.
        channels: largest and mean magnitude of each channel of the tensor.
        quantization: how the products are quantized.
        min_gain: share of the error that the scale must remove, as `required_gain` returns it.

    Returns:
        The scale s, (summed axis,) float32, positive; None where no scale removes that share.
    """
    weight = np.concatenate(weights, axis=1)
    ones = np.ones(len(weight), np.float32)
    errors = [(_product_error(weight, channels, ones, quantization), ones)]
    for exponent in _EXPONENTS:
        scale = _candidate_scale(weight, channels, float(exponent), quantization)
        errors.append((_product_error(weight, channels, scale, quantization), scale))
    lowest_error, scale = min(errors, key=lambda pair: pair[0])
    return scale if lowest_error < (1 - min_gain) * errors[0][0] else None


def required_gain(group: Sequence[Linear], gain_of_mul: float) -> float:
    """Returns the share of the error that a scale must remove to be worth its cost.

    Args:
        group: the operators that share the tensor.
        gain_of_mul: the share where the division needs a Mul of its own.
    """
    return _FOLDED_GAIN if _foldable_constants(group) else gain_of_mul


def scale_channels(graph: ir.Graph, group: Sequence[Linear], scale: FloatArray) -> ir.Value:
    """Divides a tensor by a scale and multiplies the weights behind it, in place.

    Args:
        graph: the graph of the operators.
        group: the operators with the tensor as activation; other uses keep the undivided tensor.
        scale: the scale of each channel, (summed axis,) float32.

    Returns:
        The divided tensor, which is the operators' new activation.
    """
    activation = group[0].activation
    for linear in group:
        _scale_weight(graph, linear, scale)
    if constants := _foldable_constants(group):
        for node, index in constants:
            _divide_constant(graph, node, index, scale)
        return activation
    name = f"{activation.name}_scaled"
    number = sum(str(node.outputs[0].name).startswith(name) for node, _ in activation.uses())
    name = f"{name}_{number}" if number else name
    inverse = constant(graph, f"{name}_factor", (1 / scale).astype(np.float32))
    multiply = ir.node("Mul", [activation, inverse], name=name)
    scaled = multiply.outputs[0]
    describe(scaled, name, activation, ir.DataType.FLOAT)
    graph.insert_before(group[0].node, multiply)
    for linear in group:
        linear.node.replace_input_with(0, scaled)
    return scaled


def round_trip_per_channel(weight: FloatArray, low_bit_type: LowBitType) -> FloatArray:
    """Returns a matrix (summed axis, channels) after quantizing and restoring it per channel."""
    return quantize_per_channel("weight", weight, 1, low_bit_type).restored


def range_after_scaling(observed: Range, channels: Channels, scale: FloatArray) -> Range:
    """Returns the range of a tensor after its channels were divided by a scale.

    Where the observed range covers only a share of the largest magnitude, the returned range covers
    the same share of the largest divided magnitude.
    """
    divided = float((channels.largest / scale).max())
    largest = float(channels.largest.max())
    share = min(1.0, max(abs(observed.low), abs(observed.high)) / largest) if largest > 0 else 1.0
    return Range(-divided * share if observed.low < 0 else 0.0, divided * share)


def _candidate_scale(
    weight: FloatArray, channels: Channels, exponent: float, quantization: ProductQuantization
) -> FloatArray:
    if quantization.quantizes_activations:
        weight_magnitudes = np.maximum(np.abs(weight).max(axis=1), np.finfo(np.float32).tiny)
        scale = channels.largest**exponent / weight_magnitudes ** (1 - exponent)
    else:
        scale = channels.mean**exponent
    unusable = ~np.isfinite(scale) | (scale <= 0) | (channels.largest <= 0)
    scale = np.where(unusable, 1.0, scale)
    usable = scale[~unusable]
    if usable.size:  # centred on one, so that neither side leaves the range of float32
        scale = np.where(unusable, 1.0, scale / np.sqrt(usable.max() * usable.min()))
    return np.clip(scale, 1e-3, 1e3).astype(np.float32)


def _product_error(
    weight: FloatArray, channels: Channels, scale: FloatArray, quantization: ProductQuantization
) -> float:
    """Estimates the squared error of the product, with channels assumed independent."""
    scaled = weight * scale[:, None]
    weight_error = quantization.weight_round_trip(scaled) / scale[:, None] - weight
    squared_means = channels.mean.astype(np.float64) ** 2
    error = float((squared_means * (weight_error.astype(np.float64) ** 2).sum(1)).sum())
    if quantization.quantizes_activations:
        step = float((channels.largest / scale).max()) / _INT8_MAX
        error += step**2 / 12 * float((scaled.astype(np.float64) ** 2).sum())
    return error


def _scale_weight(graph: ir.Graph, linear: Linear, scale: FloatArray) -> None:
    weight = linear.weight
    assert weight.const_value is not None
    factors = scale[:, None] if linear.channel_axis == 1 else scale[None, :]
    array = (weight.const_value.numpy() * factors).astype(np.float32)
    linear.node.replace_input_with(1, constant(graph, f"{weight.name}_scaled", array))


def _is_used_only_by(value: ir.Value, nodes: set[ir.Node]) -> bool:
    return not value.is_graph_output() and all(
        node in nodes and index == 0 for node, index in value.uses()
    )


def _foldable_constants(group: Sequence[Linear]) -> list[NodeInput]:
    """Returns the constants that can be divided in place of a group's activation.

    These are the gain and shift of a normalization, or the weight and bias of a product before a
    Relu; the list is empty where the activation has another producer or another use.
    """
    activation, products = group[0].activation, {linear.node for linear in group}
    node = activation.producer()
    if node is None or not _is_used_only_by(activation, products):
        return []
    if node.op_type in _NORMALIZATIONS:
        constants = [(node, index) for index, value in enumerate(node.inputs) if index and value]
    elif node.op_type == "Relu":
        constants = _constants_before_relu(node)
    else:
        return []
    size = group[0].weight_shape[1 - group[0].channel_axis]
    are_divisible = all(_is_constant_of_size(node.inputs[i], size) for node, i in constants)
    return constants if are_divisible else []


def _constants_before_relu(relu: ir.Node) -> list[NodeInput]:
    """Returns the weight and bias of MatMul, Add and Relu, if each output has a single use."""
    add = _only_used_producer(relu.inputs[0], "Add")
    if add is None:
        return []
    for index in (0, 1):
        product = _only_used_producer(add.inputs[index], "MatMul")
        if product is not None:
            return [(product, 1), (add, 1 - index)]
    return []


def _only_used_producer(value: ir.Value | None, operator: str) -> ir.Node | None:
    """Returns the producer of a value of this operator type, if the value has a single use."""
    node = None if value is None else value.producer()
    if value is None or node is None or node.op_type != operator:
        return None
    return node if len(list(value.uses())) == 1 and not value.is_graph_output() else None


def _is_constant_of_size(value: ir.Value | None, size: int) -> bool:
    tensor = None if value is None else value.const_value
    return tensor is not None and tensor.numpy().shape[-1:] == (size,)


def _divide_constant(graph: ir.Graph, node: ir.Node, index: int, scale: FloatArray) -> None:
    """Divides a constant along its last axis, for one operator."""
    value = node.inputs[index]
    assert value is not None and value.const_value is not None, "only constants are divided"
    array = (value.const_value.numpy() / scale).astype(np.float32)
    name = f"{value.name}_for_{node.outputs[0].name}"
    node.replace_input_with(index, constant(graph, name, array))
