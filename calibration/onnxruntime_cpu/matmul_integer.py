"""Products of unsigned activations and int8 weights, with their bias, as one operator.

ONNX Runtime makes this operator of the nodes around a MatMul by itself, but leaves the addition of
the bias behind it. It is an operator of its CPU backend alone.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from hybrid_deploy.calibration.graphs.graph_edits import constant, describe

_DOMAIN = "com.microsoft"


def fuse_matmul_integer(model: ir.Model) -> int:
    """Writes DequantizeLinear, MatMul and the Add of a constant row as one operator, in place.

    Returns:
        How many were written.
    """
    graph = model.graph
    fused = sum(_fuse(graph, node) for node in list(graph) if node.op_type == "MatMul")
    if fused:
        model.graph.opset_imports[_DOMAIN] = 1
    return fused


def _fuse(graph: ir.Graph, product: ir.Node) -> bool:
    activation, weight = (_dequantized(value) for value in product.inputs)
    if activation is None or weight is None or weight[0].const_value is None:
        return False
    added = _bias_of(product, weight[0].const_value.numpy().shape[-1:])
    if len(activation) != 3 or len(weight) != 2 or added is None:
        return False
    add, bias = added
    zero = constant(graph, f"{weight[0].name}_zero_point", np.zeros((), np.int8))
    inputs = [activation[0], weight[0], activation[1], weight[1], activation[2], zero, bias]
    name = f"{add.outputs[0].name}_product"
    node = ir.node("MatMulIntegerToFloat", inputs, domain=_DOMAIN, name=name)
    describe(node.outputs[0], name, add.outputs[0], ir.DataType.FLOAT)
    graph.insert_before(add, node)
    add.outputs[0].replace_all_uses_with(node.outputs[0])
    return True


def _dequantized(value: ir.Value | None) -> list[ir.Value] | None:
    """Returns what a DequantizeLinear takes; None if there is none, or it counts in blocks."""
    node = None if value is None else value.producer()
    if node is None or node.op_type != "DequantizeLinear" or "block_size" in node.attributes:
        return None
    return [one for one in node.inputs if one is not None]


def _bias_of(product: ir.Node, shape: tuple[int, ...]) -> tuple[ir.Node, ir.Value] | None:
    """Returns the only user of a product, if it adds a constant of that shape, and the constant."""
    users = list(product.outputs[0].uses())
    if len(users) != 1 or users[0][0].op_type not in ("Add", "Sum"):
        return None
    add, index = users[0]
    if len(add.inputs) != 2 or add.outputs[0].is_graph_output():
        return None
    bias = add.inputs[1 - index]
    if bias is None or bias.const_value is None:
        return None
    return (add, bias) if bias.const_value.numpy().shape == shape else None
