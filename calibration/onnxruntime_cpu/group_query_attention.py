"""ONNX Runtime's GroupQueryAttention in place of an Attention of one new token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from hybrid_deploy.calibration.graphs.graph_edits import constant, name_value

Attributes: TypeAlias = Mapping[str, int | float | str]
KeyLengths: TypeAlias = tuple[ir.Value, ir.Value]
"""Index of each row's last key, (batch,) int32, and the largest number of keys, () int32."""

_DOMAIN = "com.microsoft"
_HEAD_STEP = 8  # the operator takes heads of 8, 16, 24 ... numbers


def is_plain_attention(node: ir.Node) -> bool:
    """Returns whether a node is a float Attention with at most a mask before its softmax."""
    if node.op_type != "Attention" or node.domain or len(node.outputs) != 1:
        return False
    capped = "softcap" in node.attributes and node.attributes["softcap"].as_float() != 0
    cached = any(value is not None for value in node.inputs[4:])
    causal = node.attributes.get_int("is_causal", False)
    types = {None if value is None else value.dtype for value in node.inputs[:3]}
    return not (capped or cached or causal) and types == {ir.DataType.FLOAT}


def supports_head_width(width: int) -> bool:
    """Returns whether GroupQueryAttention knows heads of so many numbers."""
    return width % _HEAD_STEP == 0


def group_query_attributes(node: ir.Node, heads: int, key_heads: int) -> Attributes:
    """Returns the attributes of the operator that replaces an Attention."""
    scale = node.attributes.get("scale")
    counts: dict[str, int | float | str] = {"num_heads": heads, "kv_num_heads": key_heads}
    return counts if scale is None else counts | {"scale": scale.as_float()}


def insert_group_query_attention(
    graph: ir.Graph,
    node: ir.Node,
    rows: ir.Value,
    inputs: list[ir.Value | None],
    attributes: Attributes,
) -> tuple[ir.Value, list[ir.Value]]:
    """Puts a GroupQueryAttention before an Attention, which keeps its users.

    Args:
        graph: that the Attention is in.
        node: the Attention.
        rows: (batch, width), its result in rows.
        inputs: of the new operator; query, key and value still (batch, width).
        attributes: of the new operator.

    Returns:
        Its result in rows, and its caches; nothing takes them yet.
    """
    axis = constant(graph, "axis_of_length", np.array([1]))
    name = f"{rows.name}_grouped"
    nodes = []
    for index, value in enumerate(inputs[:3]):
        if value is not None:
            nodes.append(ir.node("Unsqueeze", [value, axis]))
            inputs[index] = name_value(nodes[-1], f"{name}_input_{index}", _with_length(value))
    new = ir.node(
        "GroupQueryAttention", inputs, attributes, domain=_DOMAIN, num_outputs=3, name=name
    )
    back = ir.node("Squeeze", [name_value(new, name, _with_length(rows)), axis])
    graph.insert_before(node, [*nodes, new, back])
    graph.opset_imports[_DOMAIN] = 1
    return name_value(back, f"{name}_rows", rows.shape), list(new.outputs[1:])


def key_lengths(graph: ir.Graph, last: ir.Value, name: str) -> KeyLengths:
    """Returns what GroupQueryAttention calls lengths, computed once for each name.

    Args:
        graph: the nodes are added behind what computes `last`, or at its beginning.
        last: (batch,) int64, index of the last key of each row.
        name: of the first of them.
    """
    known = {node.name: node for node in graph}
    if name in known:
        return known[name].outputs[0], known[f"{name}_total"].outputs[0]
    one = constant(graph, "one_more_key", np.array(1, np.int32))
    cast = ir.node("Cast", [last], {"to": ir.DataType.INT32}, name=name)
    top = ir.node("ReduceMax", [cast.outputs[0]], {"keepdims": 0}, name=f"{name}_largest")
    total = ir.node("Add", [top.outputs[0], one], name=f"{name}_total")
    name_value(cast, name, last.shape, ir.DataType.INT32)
    name_value(top, f"{name}_largest", ir.Shape([]), ir.DataType.INT32)
    name_value(total, f"{name}_total", ir.Shape([]), ir.DataType.INT32)
    producer = last.producer()
    if producer is None:
        graph.insert_before(graph[0], [cast, top, total])
    else:
        graph.insert_after(producer, [cast, top, total])
    return cast.outputs[0], total.outputs[0]


def _with_length(rows: ir.Value) -> ir.Shape:
    """Returns (batch, 1, width) of (batch, width)."""
    assert rows.shape is not None
    return ir.Shape([rows.shape[0], 1, rows.shape[1]])
