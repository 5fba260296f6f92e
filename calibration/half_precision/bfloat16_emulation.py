"""A float32 graph that rounds as a bfloat16 graph does: the CPU has no bfloat16 kernels.

    BEFORE                  AFTER
    x (float32)             x (float32)
    |                       Cast (to bfloat16), Cast (to float32)
    MatMul (weight)         MatMul (weight rounded to bfloat16)
    |                       Cast (to bfloat16), Cast (to float32)
    y                       y

Graph inputs, constants and the output of every operator are rounded; operators that return numbers
of their inputs unchanged are not followed by Casts. Sums inside an operator stay float32, as in the
hardware. A compiler that fuses operators rounds less often, so its results are slightly closer to
float32 than these.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir

_WITHOUT_ROUNDING = frozenset(
    {"Concat", "Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze"}
    | {"ScatterElements", "TensorScatter", "Transpose", "Unsqueeze", "Where", "Max", "Min", "Relu"}
)
"""Operators whose outputs are numbers of their inputs, so that they need no second rounding."""


def emulate_bfloat16(model: ir.Model) -> None:
    """Rewrites a float32 graph in place so that it rounds where a bfloat16 graph does."""
    graph = model.graph
    for value in graph.initializers.values():
        if value.dtype is ir.DataType.FLOAT and value.const_value is not None:
            rounded = value.const_value.numpy().astype(ml_dtypes.bfloat16).astype(np.float32)
            value.const_value = ir.tensor(rounded, name=value.name)
    nodes = list(graph)
    for value in graph.inputs:
        if value.dtype is ir.DataType.FLOAT:
            graph.insert_before(nodes[0], _rounding_nodes(graph, value))
    for node in nodes:
        for value in node.outputs if node.op_type not in _WITHOUT_ROUNDING else ():
            if value.dtype is ir.DataType.FLOAT:
                graph.insert_after(node, _rounding_nodes(graph, value))


def _rounding_nodes(graph: ir.Graph, value: ir.Value) -> list[ir.Node]:
    """Returns the nodes that round a value for its uses; a graph output keeps its name."""
    uses, name = list(value.uses()), str(value.name)
    to_bfloat16 = ir.node("Cast", [value], {"to": ir.DataType.BFLOAT16}, name=f"{name}_short")
    to_float32 = ir.node(
        "Cast", [to_bfloat16.outputs[0]], {"to": ir.DataType.FLOAT}, name=f"{name}_back"
    )
    rounded = to_float32.outputs[0]
    rounded.shape, rounded.dtype = value.shape, ir.DataType.FLOAT
    for node, index in uses:
        node.replace_input_with(index, rounded)
    for index, output in enumerate(graph.outputs):
        if output is value:
            value.name, rounded.name = f"{name}_exact", name
            graph.outputs[index] = rounded
    return [to_bfloat16, to_float32]
