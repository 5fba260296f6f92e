"""Pairs of QuantizeLinear and DequantizeLinear around activations, which the backends fuse.

Activations have one scale per tensor. They are signed and symmetric in the portable form, because
TensorRT takes no other zero point than 0. ONNX Runtime's CPU kernels run a convolution behind a
Relu in 8 bits only where the smallest quantized number stands for zero, so the CPU form has
unsigned activations.
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

_PRODUCTS = frozenset({"Gemm", "MatMul"})
_Parameters = Callable[[Range], tuple[float, NDArray[Any]]]


class ActivationForm(Enum):
    """What quantized activations are."""

    INT8 = "int8"
    UINT8 = "uint8"
    FLOAT8 = "fp8"


_PARAMETERS: Mapping[ActivationForm, _Parameters] = {
    ActivationForm.INT8: lambda seen: (seen.symmetric_scale, np.asarray(0, np.int8)),
    ActivationForm.UINT8: lambda seen: (
        seen.unsigned_scale,
        np.asarray(seen.unsigned_zero_point, np.uint8),
    ),
    ActivationForm.FLOAT8: lambda seen: (
        seen.float8_scale,
        np.asarray(0, ml_dtypes.float8_e4m3fn),
    ),
}


def insert_qdq_pairs(
    graph: ir.Graph,
    points: Mapping[ir.Value, list[NodeInput]],
    ranges: Mapping[str, Range],
    form: ActivationForm,
) -> None:
    """Lets some uses of some tensors take them quantized and dequantized, in place.

    Args:
        graph: float32.
        points: the tensors, with the uses that take the quantized one.
        ranges: by name, what the tensors were seen to hold.
        form: what they become.

    Raises:
        CalibrationError: a tensor has no range.
    """
    for value, uses in points.items():
        seen = ranges.get(str(value.name))
        if seen is None:
            raise CalibrationError(
                f"the scales say nothing of {value.name}; calibrate this bundle again"
            )
        for name, groups in _copies(str(value.name), uses, form):
            _insert_pairs(graph, name, value, groups, _PARAMETERS[form](seen))


def _copies(
    name: str, uses: list[NodeInput], form: ActivationForm
) -> Iterator[tuple[str, list[list[NodeInput]]]]:
    """Names the quantized copies of a tensor, each with the uses that share a DequantizeLinear.

    ONNX Runtime fuses a MatMul only when it is alone with its DequantizeLinear; a signed one even
    has to be alone with its QuantizeLinear.
    """
    groups = [[use] for use in uses if use[0].op_type in _PRODUCTS]
    if shared := [use for use in uses if use[0].op_type not in _PRODUCTS]:
        groups.insert(0, shared)
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
    """Quantizes a tensor once, and dequantizes it for every group of uses."""
    scale = constant(graph, f"{name}_scale", np.asarray(parameters[0], np.float32))
    zero_point = constant(graph, f"{name}_zero_point", parameters[1])
    assert zero_point.dtype is not None, "a constant has a type"
    nodes = [ir.node("QuantizeLinear", [value, scale, zero_point], name=f"{name}_quantize")]
    quantized = nodes[0].outputs[0]
    describe(quantized, f"{name}_quantized", value, zero_point.dtype)
    for number, uses in enumerate(groups):
        restored_name = f"{name}_dequantized_{number}"
        inputs = [quantized, scale, zero_point]
        nodes.append(ir.node("DequantizeLinear", inputs, name=restored_name))
        restored = nodes[-1].outputs[0]
        describe(restored, restored_name, value, ir.DataType.FLOAT)
        for node, index in uses:
            node.replace_input_with(index, restored)
    producer = value.producer()
    if producer is None:
        graph.insert_before(graph[0], nodes)
    else:
        graph.insert_after(producer, nodes)
