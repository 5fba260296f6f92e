"""Weights stored in few bits, behind a DequantizeLinear that the backends fuse with the product."""

from __future__ import annotations

import onnx_ir as ir

from hybrid_deploy.calibration.graphs.graph_edits import constant, describe
from hybrid_deploy.calibration.qdq.linear_operators import Linear, prevent_gemm_fusion
from hybrid_deploy.calibration.qdq.low_bit_types import LowBitType
from hybrid_deploy.calibration.qdq.weight_rounding import (
    QuantizedWeight,
    quantize_in_blocks,
    quantize_per_channel,
)
from hybrid_deploy.calibration.recipes import BLOCK_SIZES


def store_weight(
    graph: ir.Graph,
    linear: Linear,
    low_bit_type: LowBitType,
    block_size: int | None = None,
    *,
    quantizes_activations: bool = False,
) -> QuantizedWeight:
    """Stores the weight of one operator, in place; the operator still gives float.

    Args:
        graph: that the operator is in.
        linear: the operator.
        form: of the stored numbers.
        block_size: how many weights along the summed axis share a scale; None for one scale per
            output channel.
        rounds_activations: whether the operator's activation is quantized too.

    Returns:
        What was stored.

    Raises:
        CalibrationError: the weight is not finite.
    """
    weight = linear.weight
    assert weight.name is not None
    quantized = _quantized(weight.name, linear, low_bit_type, block_size)
    attributes = {"axis": quantized.axis}
    if quantized.block_size is not None:
        attributes["block_size"] = quantized.block_size
    values = constant(graph, f"{weight.name}_{low_bit_type.name}", quantized.values)
    scale = constant(graph, f"{weight.name}_scale", quantized.scale)
    name = f"{linear.node.outputs[0].name}_weight"
    dequantize = ir.node("DequantizeLinear", [values, scale], attributes, name=name)
    describe(dequantize.outputs[0], name, weight, ir.DataType.FLOAT)
    graph.insert_before(linear.node, dequantize)
    linear.node.replace_input_with(1, dequantize.outputs[0])
    prevent_gemm_fusion(linear, quantizes_activations=quantizes_activations)
    return quantized


def largest_block_size(linear: Linear, limit: int) -> int | None:
    """Returns the largest block, up to the wanted one, that divides the summed axis, or None."""
    size = linear.weight_shape[1 - linear.channel_axis]
    return next((b for b in reversed(BLOCK_SIZES) if b <= limit and size % b == 0), None)


def _quantized(
    name: str, linear: Linear, form: LowBitType, block_size: int | None
) -> QuantizedWeight:
    assert linear.weight.const_value is not None
    array = linear.weight.const_value.numpy()
    if block_size is None:
        return quantize_per_channel(name, array, linear.channel_axis, form)
    return quantize_in_blocks(name, array, block_size, 1 - linear.channel_axis, form)
