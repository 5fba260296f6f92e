"""Float32 graphs to int8: quantize and dequantize nodes that the backends fuse into kernels.

Weights are signed and symmetric, biases stay float, and a linear operator gives float. The encoder
computes in 8 bits: activations with one scale, weights with one per output channel. The decoder,
which waits for memory and not for arithmetic, only stores its weights in int8.

Activations are signed and symmetric in the portable form, because TensorRT takes no other zero
point than 0. ONNX Runtime's CPU kernels run a convolution behind a Relu in 8 bits only where the
smallest quantized number stands for zero, so the CPU form has unsigned activations.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from hybrid_deploy.calibration.points import (
    Linear,
    Use,
    cpu_points,
    keep_from_gemm,
    linears,
    portable_points,
)
from hybrid_deploy.calibration.ranges import Range
from hybrid_deploy.calibration.untie import untie_projections
from hybrid_deploy.calibration.weights import quantize_in_blocks, quantize_per_channel
from hybrid_deploy.errors import CalibrationError

_PRODUCTS = frozenset({"Gemm", "MatMul"})


def quantize_encoder(model: ir.Model, ranges: Mapping[str, Range], *, for_cpu: bool) -> None:
    """Makes the encoder compute in int8, in place.

    Args:
        model: float32, batch normalization folded.
        ranges: by name, what the activations were seen to hold.
        for_cpu: choose the form that ONNX Runtime's CPU kernels take, not the portable one.

    Raises:
        CalibrationError: a tensor has no range, or a weight is not finite.
    """
    graph = model.graph
    points = cpu_points(graph) if for_cpu else portable_points(graph)
    targets = linears(graph)
    for value, uses in points.items():
        seen = ranges.get(str(value.name))
        if seen is None:
            raise CalibrationError(
                f"the scales say nothing of {value.name}; calibrate this bundle again"
            )
        for pair, group in enumerate(_groups(uses)):
            name = f"{value.name}/{pair}"
            parameters = _activation_parameters(graph, name, seen, for_cpu=for_cpu)
            _insert_pair(graph, name, value, group, parameters)
    for linear in targets:
        _quantize_weight(graph, linear, block_size=None)
        keep_from_gemm(linear)
    _drop_unused(graph)


def quantize_decoder_weights(model: ir.Model, *, block_size: int | None = None) -> None:
    """Stores the matrices of prefill or step in int8, in place; all arithmetic stays float.

    Args:
        model: float32.
        block_size: weights along the summed axis that share a scale; None for one per channel.

    Raises:
        CalibrationError: a weight is not finite, or does not divide into blocks.
    """
    untie_projections(model)
    for linear in linears(model.graph):
        if linear.node.op_type != "Conv":
            _quantize_weight(model.graph, linear, block_size)
            keep_from_gemm(linear)
    _drop_unused(model.graph)


def _groups(uses: list[Use]) -> list[list[Use]]:
    """Splits the uses of a tensor into those that share a quantized copy.

    ONNX Runtime fuses a MatMul only when its quantized input is nobody else's.
    """
    alone = [[use] for use in uses if use[0].op_type in _PRODUCTS]
    shared = [use for use in uses if use[0].op_type not in _PRODUCTS]
    return [shared, *alone] if shared else alone


def _activation_parameters(
    graph: ir.Graph, name: str, seen: Range, *, for_cpu: bool
) -> tuple[ir.Value, ir.Value]:
    """Gives the scale and the zero point of an activation, as constants of their own."""
    if for_cpu:
        scale, zero_point = seen.unsigned_scale, np.asarray(seen.unsigned_zero_point, np.uint8)
    else:
        scale, zero_point = seen.symmetric_scale, np.asarray(0, np.int8)
    return (
        _constant(graph, f"{name}_scale", np.asarray(scale, np.float32)),
        _constant(graph, f"{name}_zero_point", zero_point),
    )


def _insert_pair(
    graph: ir.Graph,
    name: str,
    value: ir.Value,
    uses: list[Use],
    parameters: tuple[ir.Value, ir.Value],
) -> None:
    """Lets some uses of a tensor take it quantized and dequantized."""
    quantize = ir.node("QuantizeLinear", [value, *parameters], name=f"{name}_quantize")
    quantized = quantize.outputs[0]
    dtype = parameters[1].dtype
    assert dtype is not None, "a constant has a type"
    _describe(quantized, f"{name}_quantized", value, dtype)
    dequantize = ir.node("DequantizeLinear", [quantized, *parameters], name=f"{name}_dequantize")
    restored = dequantize.outputs[0]
    _describe(restored, f"{name}_dequantized", value, ir.DataType.FLOAT)
    producer = value.producer()
    if producer is None:
        graph.insert_before(graph[0], [quantize, dequantize])
    else:
        graph.insert_after(producer, [quantize, dequantize])
    for node, index in uses:
        node.replace_input_with(index, restored)


def _quantize_weight(graph: ir.Graph, linear: Linear, block_size: int | None) -> None:
    weight = linear.weight
    assert weight.const_value is not None and weight.name is not None
    array = weight.const_value.numpy()
    summed = 1 - linear.channel_axis  # of a matrix
    attributes: dict[str, int] = {"axis": linear.channel_axis}
    if block_size is None:
        quantized = quantize_per_channel(weight.name, array, linear.channel_axis)
    else:
        quantized = quantize_in_blocks(weight.name, array, block_size, summed)
        attributes = {"axis": summed, "block_size": block_size}
    values = _constant(graph, f"{weight.name}_int8", quantized.values)
    scale = _constant(graph, f"{weight.name}_scale", quantized.scale)
    name = f"{linear.node.outputs[0].name}_weight"
    dequantize = ir.node("DequantizeLinear", [values, scale], attributes, name=name)
    _describe(dequantize.outputs[0], name, weight, ir.DataType.FLOAT)
    graph.insert_before(linear.node, dequantize)
    linear.node.replace_input_with(1, dequantize.outputs[0])


def _constant(graph: ir.Graph, name: str, array: NDArray[Any]) -> ir.Value:
    """Gives the initializer of that name, made if it is not there yet."""
    if name in graph.initializers:
        known = graph.initializers[name].const_value
        assert known is not None and np.array_equal(known.numpy(), array), f"two tensors: {name}"
        return graph.initializers[name]
    value = ir.val(name, const_value=ir.tensor(array, name=name))
    graph.register_initializer(value)
    return value


def _describe(new: ir.Value, name: str, like: ir.Value, dtype: ir.DataType) -> None:
    new.name, new.shape, new.dtype = name, like.shape, dtype


def _drop_unused(graph: ir.Graph) -> None:
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]
