"""Giving a vocabulary projection that shares its weight with the embedding a weight of its own.

In float the two share one table, and the projection is a Gemm that reads it transposed. Quantized
they part: the embedding stays float, and the projection becomes a MatMul, the form whose weight
ONNX Runtime reads in int8.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir


def untie_projections(model: ir.Model) -> None:
    """Rewrites every Gemm whose weight is an embedding table too, in place."""
    graph = model.graph
    for node in list(graph):
        weight = node.inputs[1] if node.op_type == "Gemm" else None
        if weight is None or weight.const_value is None or weight.name is None:
            continue
        if any(user.op_type == "Gather" for user, _ in weight.uses()):
            _untie(graph, node, weight)


def _untie(graph: ir.Graph, node: ir.Node, table: ir.Value) -> None:
    assert table.const_value is not None
    assert node.attributes.get_int("transB", 0) == 1, "a table is read transposed"
    name = f"{table.name}_transposed"
    array = np.ascontiguousarray(table.const_value.numpy().T)
    weight = ir.val(name, const_value=ir.tensor(array, name=name))
    graph.register_initializer(weight)
    product = ir.node("MatMul", [node.inputs[0], weight], name=f"{node.name}_product")
    result, nodes = product.outputs[0], [product]
    result.type, result.shape = node.outputs[0].type, node.outputs[0].shape
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        nodes.append(ir.node("Add", [result, node.inputs[2]], name=f"{node.name}_bias"))
        result = nodes[-1].outputs[0]
    ir.convenience.replace_nodes_and_values(graph, node, [node], nodes, [node.outputs[0]], [result])
