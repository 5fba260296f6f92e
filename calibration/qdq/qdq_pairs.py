"""Pairs of QuantizeLinear and DequantizeLinear on activations, which the backends fuse.

    BEFORE                 AFTER
    x                      x
    |                      QuantizeLinear (scale, zero point)
    |                      DequantizeLinear (scale, zero point)
    MatMul, Conv, ...      MatMul, Conv, ...

Activations have one scale per tensor. They are signed and symmetric in the portable form, because
TensorRT accepts no zero point but 0. ONNX Runtime's CPU kernels run a convolution behind a Relu in
8 bits only where the smallest quantized number means zero, so the CPU form has unsigned
activations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from hybrid_deploy.calibration.graphs.graph_edits import constant, describe
from hybrid_deploy.calibration.qdq.linear_operators import NodeInput
from hybrid_deploy.calibration.statistics.ranges import Range
from hybrid_deploy.errors import CalibrationError

_MATRIX_PRODUCTS = frozenset({"Gemm", "MatMul"})
_Parameters = Callable[[Range], tuple[float, NDArray[Any]]]


class ActivationForm(Enum):
    """The number type of quantized activations."""

    INT8 = "int8"
    UINT8 = "uint8"
    FLOAT8 = "fp8"


_PARAMETERS: Mapping[ActivationForm, _Parameters] = {
    ActivationForm.INT8: lambda observed: (observed.symmetric_scale, np.asarray(0, np.int8)),
    ActivationForm.UINT8: lambda observed: (
        observed.unsigned_scale,
        np.asarray(observed.unsigned_zero_point, np.uint8),
    ),
    ActivationForm.FLOAT8: lambda observed: (
        observed.float8_scale,
        np.asarray(0, ml_dtypes.float8_e4m3fn),
    ),
}


def insert_qdq_pairs(
    graph: ir.Graph,
    inputs_to_quantize: Mapping[ir.Value, list[NodeInput]],
    ranges: Mapping[str, Range],
    form: ActivationForm,
) -> None:
    """Inserts a pair between tensors and the node inputs that receive them quantized, in place.

    Args:
        graph: the float32 graph.
        inputs_to_quantize: for each tensor, the node inputs that receive the quantized tensor;
            other uses keep the float one.
        ranges: the range that each tensor's quantized numbers cover, by name.
        form: the number type of the quantized tensors.

    Raises:
        CalibrationError: a tensor has no range.
    """
    for value, node_inputs in inputs_to_quantize.items():
        observed = ranges.get(str(value.name))
        if observed is None:
            raise CalibrationError(
                f"the scales hold no range of {value.name}; calibrate this bundle again"
            )
        for name, groups in _quantized_copies(str(value.name), node_inputs, form):
            _insert_pairs(graph, name, value, groups, _PARAMETERS[form](observed))


def _quantized_copies(
    name: str, node_inputs: list[NodeInput], form: ActivationForm
) -> Iterator[tuple[str, list[list[NodeInput]]]]:
    """Yields the name of each quantized copy of a tensor, and its groups of node inputs.

    The inputs of a group share a DequantizeLinear, the groups of a copy share a QuantizeLinear.
    ONNX Runtime fuses a MatMul only if no other node uses its DequantizeLinear, and one with signed
    activations only if no other node uses its QuantizeLinear either.
    """
    groups = [
        [node_input] for node_input in node_inputs if node_input[0].op_type in _MATRIX_PRODUCTS
    ]
    if other_inputs := [
        node_input for node_input in node_inputs if node_input[0].op_type not in _MATRIX_PRODUCTS
    ]:
        groups.insert(0, other_inputs)
    if form is ActivationForm.UINT8:
        yield name, groups
    else:
        yield from ((f"{name}/{number}", [group]) for number, group in enumerate(groups))


def _insert_pairs(
    graph: ir.Graph,
    name: str,
    value: ir.Value,
    groups: list[list[NodeInput]],
    parameters: tuple[float, NDArray[Any]],
) -> None:
    """Inserts one QuantizeLinear, and one DequantizeLinear for every group of node inputs."""
    scale = constant(graph, f"{name}_scale", np.asarray(parameters[0], np.float32))
    zero_point = constant(graph, f"{name}_zero_point", parameters[1])
    assert zero_point.dtype is not None, "a constant has a type"
    nodes = [ir.node("QuantizeLinear", [value, scale, zero_point], name=f"{name}_quantize")]
    quantized = nodes[0].outputs[0]
    describe(quantized, f"{name}_quantized", value, zero_point.dtype)
    for number, node_inputs in enumerate(groups):
        restored_name = f"{name}_dequantized_{number}"
        inputs = [quantized, scale, zero_point]
        nodes.append(ir.node("DequantizeLinear", inputs, name=restored_name))
        restored = nodes[-1].outputs[0]
        describe(restored, restored_name, value, ir.DataType.FLOAT)
        for node, index in node_inputs:
            node.replace_input_with(index, restored)
    producer = value.producer()
    if producer is None:
        graph.insert_before(graph[0], nodes)
    else:
        graph.insert_after(producer, nodes)
