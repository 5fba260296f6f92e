"""What bfloat16 graphs compute, in float32: ONNX Runtime has no bfloat16 kernels for the CPU.

Weights are rounded, and every result is rounded behind its operator, as hardware does that adds up
in float32. Operators that a compiler fuses round less often, so the real thing is a little closer
to float32.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir

_EXACT = frozenset(
    {"Concat", "Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze"}
    | {"ScatterElements", "TensorScatter", "Transpose", "Unsqueeze", "Where", "Max", "Min", "Relu"}
)
"""Operators that give numbers which they were given."""


def emulate_bfloat16(model: ir.Model) -> None:
    """Rewrites a float32 graph in place so that it rounds where a bfloat16 graph would."""
    graph = model.graph
    for value in graph.initializers.values():
        if value.dtype is ir.DataType.FLOAT and value.const_value is not None:
            rounded = value.const_value.numpy().astype(ml_dtypes.bfloat16).astype(np.float32)
            value.const_value = ir.tensor(rounded, name=value.name)
    nodes = list(graph)
    for value in graph.inputs:
        if value.dtype is ir.DataType.FLOAT:
            graph.insert_before(nodes[0], _rounding(graph, value))
    for node in nodes:
        for value in node.outputs if node.op_type not in _EXACT else ():
            if value.dtype is ir.DataType.FLOAT:
                graph.insert_after(node, _rounding(graph, value))


def _rounding(graph: ir.Graph, value: ir.Value) -> list[ir.Node]:
    """Makes the nodes that round a value, for all that use it; they keep the name of an output."""
    users, name = list(value.uses()), str(value.name)
    short = ir.node("Cast", [value], {"to": ir.DataType.BFLOAT16}, name=f"{name}_short")
    back = ir.node("Cast", [short.outputs[0]], {"to": ir.DataType.FLOAT}, name=f"{name}_back")
    rounded = back.outputs[0]
    rounded.shape, rounded.dtype = value.shape, ir.DataType.FLOAT
    for user, index in users:
        user.replace_input_with(index, rounded)
    for index, output in enumerate(graph.outputs):
        if output is value:
            value.name, rounded.name = f"{name}_exact", name
            graph.outputs[index] = rounded
    return [short, back]
