"""ONNX Runtime's GroupQueryAttention in place of an Attention with one query per sequence.

    BEFORE                                    AFTER, inserted beside it
    q, k, v (batch, heads, length, width)     query, key, value (batch, width)
    |                                         Unsqueeze (each, to (batch, 1, width))
    Attention                                 GroupQueryAttention (caches, lengths)
    ...                                       Squeeze (to (batch, width))
    rows (batch, width)                       result in rows, two written caches

The caller connects the results. The Attention then has no use, and is removed later together with
the other unused nodes.
"""

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
_HEAD_WIDTH_MULTIPLE = 8  # the operator accepts head widths of 8, 16, 24, ...


def is_plain_attention(node: ir.Node) -> bool:
    """Returns whether a node is a float Attention with at most a mask before its softmax."""
    if node.op_type != "Attention" or node.domain or len(node.outputs) != 1:
        return False
    is_capped = "softcap" in node.attributes and node.attributes["softcap"].as_float() != 0
    has_cache = any(value is not None for value in node.inputs[4:])
    is_causal = node.attributes.get_int("is_causal", False)
    dtypes = {None if value is None else value.dtype for value in node.inputs[:3]}
    return not (is_capped or has_cache or is_causal) and dtypes == {ir.DataType.FLOAT}


def supports_head_width(width: int) -> bool:
    """Returns whether GroupQueryAttention accepts heads of this width."""
    return width % _HEAD_WIDTH_MULTIPLE == 0


def group_query_attributes(node: ir.Node, heads: int, key_heads: int) -> Attributes:
    """Returns the attributes of the GroupQueryAttention that replaces an Attention.

    Args:
        node: the Attention.
        heads: number of query heads.
        key_heads: number of key and value heads.
    """
    scale = node.attributes.get("scale")
    attributes: dict[str, int | float | str] = {"num_heads": heads, "kv_num_heads": key_heads}
    return attributes if scale is None else attributes | {"scale": scale.as_float()}


def insert_group_query_attention(
    graph: ir.Graph,
    replaced: ir.Node,
    rows: ir.Value,
    inputs: list[ir.Value | None],
    attributes: Attributes,
) -> tuple[ir.Value, list[ir.Value]]:
    """Inserts a GroupQueryAttention before an Attention, whose uses stay as they are.

    Args:
        graph: the graph of the Attention.
        replaced: the Attention.
        rows: the result of the Attention in rows, (batch, width).
        inputs: the inputs of the new operator, query, key and value as (batch, width); the list is
            changed.
        attributes: the attributes of the new operator.

    Returns:
        The result of the new operator in rows, (batch, width), and its two written caches; none of
        them has a use yet.
    """
    axis = constant(graph, "axis_of_length", np.array([1]))
    name = f"{rows.name}_grouped"
    nodes = []
    for index, value in enumerate(inputs[:3]):
        if value is not None:
            nodes.append(ir.node("Unsqueeze", [value, axis]))
            inputs[index] = name_value(nodes[-1], f"{name}_input_{index}", _with_length(value))
    attention = ir.node(
        "GroupQueryAttention", inputs, attributes, domain=_DOMAIN, num_outputs=3, name=name
    )
    squeeze = ir.node("Squeeze", [name_value(attention, name, _with_length(rows)), axis])
    graph.insert_before(replaced, [*nodes, attention, squeeze])
    graph.opset_imports[_DOMAIN] = 1
    return name_value(squeeze, f"{name}_rows", rows.shape), list(attention.outputs[1:])


def key_lengths(graph: ir.Graph, last: ir.Value, name: str) -> KeyLengths:
    """Returns the length inputs of GroupQueryAttention, computed once per graph and name.

    Args:
        graph: the graph; the nodes follow the producer of `last`, or begin the graph.
        last: index of the last key of each row, (batch,) int64.
        name: name of the first node; calls with an equal name share the nodes.
    """
    nodes_by_name = {node.name: node for node in graph}
    if name in nodes_by_name:
        return nodes_by_name[name].outputs[0], nodes_by_name[f"{name}_total"].outputs[0]
    one_key = constant(graph, "one_more_key", np.array(1, np.int32))
    cast = ir.node("Cast", [last], {"to": ir.DataType.INT32}, name=name)
    largest = ir.node("ReduceMax", [cast.outputs[0]], {"keepdims": 0}, name=f"{name}_largest")
    total = ir.node("Add", [largest.outputs[0], one_key], name=f"{name}_total")
    name_value(cast, name, last.shape, ir.DataType.INT32)
    name_value(largest, f"{name}_largest", ir.Shape([]), ir.DataType.INT32)
    name_value(total, f"{name}_total", ir.Shape([]), ir.DataType.INT32)
    producer = last.producer()
    if producer is None:
        graph.insert_before(graph[0], [cast, largest, total])
    else:
        graph.insert_after(producer, [cast, largest, total])
    return cast.outputs[0], total.outputs[0]


def _with_length(rows: ir.Value) -> ir.Shape:
    """Returns the shape (batch, 1, width) of rows (batch, width)."""
    assert rows.shape is not None
    return ir.Shape([rows.shape[0], 1, rows.shape[1]])
