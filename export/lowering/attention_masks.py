"""Expands the masks of ONNX Attention nodes that have a single row to a row per query.

PyTorch and TensorRT broadcast a mask (batch, 1, 1, keys) over the queries; ONNX Runtime does not.

    before   mask (B, 1, 1, T) -----------------------------------> Attention(q, k, v, mask)
    after    Shape(q)[-2] -> Concat(1, 1, rows, 1) --.
             mask (B, 1, 1, T) ---------------------> Expand ------> Attention(q, k, v, mask)
"""

from __future__ import annotations

import onnx_ir as ir

_QUERY, _MASK = 0, 3
_ROWS = -2


def expand_single_row_masks(model: ir.Model) -> None:
    """Expands all masks with a single row whose query has several, in place.

    Args:
        model: a graph with inferred shapes.
    """
    for node in list(model.graph):
        if node.op_type != "Attention" or len(node.inputs) <= _MASK:
            continue
        query, mask = node.inputs[_QUERY], node.inputs[_MASK]
        if query is None or mask is None or query.shape is None or mask.shape is None:
            continue
        if mask.shape[_ROWS] == 1 and query.shape[_ROWS] != 1:
            node.replace_input_with(_MASK, _expanded(model.graph, node, query, mask))


def _expanded(graph: ir.Graph, node: ir.Node, query: ir.Value, mask: ir.Value) -> ir.Value:
    name = f"{node.name}_mask"
    assert mask.shape is not None and query.shape is not None
    ones = [_constant(graph, f"{name}_one", 1)] * (len(mask.shape) - 2)
    axis = len(query.shape) - 2
    rows = ir.node("Shape", [query], {"start": axis, "end": axis + 1}, name=f"{name}_rows")
    parts = [*ones, rows.outputs[0], _constant(graph, f"{name}_one", 1)]
    shape = ir.node("Concat", parts, {"axis": 0}, name=f"{name}_shape")
    expand = ir.node("Expand", [mask, shape.outputs[0]], name=f"{name}_expand")
    for shape_node in (rows, shape):
        shape_node.outputs[0].dtype = ir.DataType.INT64
    expanded = expand.outputs[0]
    expanded.type = mask.type
    sizes = list(mask.shape)
    sizes[_ROWS] = query.shape[axis]
    expanded.shape = ir.Shape(sizes)
    graph.insert_before(node, [rows, shape, expand])
    return expanded


def _constant(graph: ir.Graph, name: str, number: int) -> ir.Value:
    if name not in graph.initializers:
        tensor = ir.tensor([number], dtype=ir.DataType.INT64, name=name)
        graph.register_initializer(ir.val(name, const_value=tensor))
    return graph.initializers[name]
