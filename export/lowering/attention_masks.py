"""Masks of ONNX Attention with one row for every query.

PyTorch lets a mask (batch, 1, 1, keys) stand for all queries. So does TensorRT; ONNX Runtime wants
every query's row to be there.
"""

from __future__ import annotations

import onnx_ir as ir

_QUERY, _MASK = 0, 3
_ROWS = -2


def give_masks_all_rows(model: ir.Model) -> None:
    """Expands the masks that have a single row, in place."""
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
    for made in (rows, shape):
        made.outputs[0].dtype = ir.DataType.INT64
    whole = expand.outputs[0]
    whole.type = mask.type
    sizes = list(mask.shape)
    sizes[_ROWS] = query.shape[axis]
    whole.shape = ir.Shape(sizes)
    graph.insert_before(node, [rows, shape, expand])
    return whole


def _constant(graph: ir.Graph, name: str, number: int) -> ir.Value:
    if name not in graph.initializers:
        tensor = ir.tensor([number], dtype=ir.DataType.INT64, name=name)
        graph.register_initializer(ir.val(name, const_value=tensor))
    return graph.initializers[name]
