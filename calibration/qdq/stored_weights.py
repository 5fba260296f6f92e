"""Weights stored in 8 or 4 bits, behind a DequantizeLinear that the backends fuse.

BEFORE                        AFTER
weight (float32)              weight_int8, weight_scale
|                             DequantizeLinear
MatMul, Gemm or Conv          MatMul, Gemm or Conv
"""

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
    rounded: QuantizedWeight | None = None,
) -> QuantizedWeight:
    """Stores the weight of one operator in a low-bit type, in place; the operator returns float32.

    The float32 initializer stays in the graph.

    Args:
        graph: the graph of the operator.
        linear: the operator.
        low_bit_type: the number type of the stored weight.
        block_size: number of weights along the summed axis that share a scale; None for one scale
            per output channel.
        quantizes_activations: whether the operator's activation is quantized too.
        rounded: the rounded weight in the weight's orientation; None rounds it to the nearest.

    Returns:
        The stored weight.

    Raises:
        CalibrationError: the weight is not finite.
    """
    weight = linear.weight
    assert weight.name is not None
    quantized = rounded or _rounded_to_nearest(weight.name, linear, low_bit_type, block_size)
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


def largest_block_size(summed_size: int, limit: int) -> int | None:
    """Returns the largest block size up to `limit` that divides a summed axis; None without."""
    return next(
        (
            block_size
            for block_size in reversed(BLOCK_SIZES)
            if block_size <= limit and summed_size % block_size == 0
        ),
        None,
    )


def _rounded_to_nearest(
    name: str, linear: Linear, low_bit_type: LowBitType, block_size: int | None
) -> QuantizedWeight:
    assert linear.weight.const_value is not None
    array = linear.weight.const_value.numpy()
    if block_size is None:
        return quantize_per_channel(name, array, linear.channel_axis, low_bit_type)
    return quantize_in_blocks(name, array, block_size, 1 - linear.channel_axis, low_bit_type)
