"""Attention of the decoder's own tokens as ONNX Runtime's GroupQueryAttention.

It takes the packed projection of a row as it is, writes key and value into the caches and attends
to what is filled, where the portable form needs a dozen operators between projection and result,
and compares every position of the cache with the row's own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from hybrid_deploy.calibration.graphs.row_slices import (
    flattened_rows,
    is_in_order,
    row_slice,
    source_of,
)
from hybrid_deploy.calibration.onnxruntime_cpu.group_query_attention import (
    KeyLengths,
    group_query_attributes,
    insert_group_query_attention,
    is_plain_attention,
    key_lengths,
    supports_head_width,
)
from hybrid_deploy.contract import POSITION

_CACHE_AXES = (-2, 2)


@dataclass(frozen=True)
class _SelfAttention:
    """One attention over cached tokens.

    Attributes:
        node: the Attention.
        packed: (batch, width), query, key and value of the new token side by side.
        writes: what writes key and value into the caches.
        rows: (batch, width of all heads), its result in rows.
        heads: how many of query, and of key.
    """

    node: ir.Node
    packed: ir.Value
    writes: tuple[ir.Node, ir.Node]
    rows: ir.Value
    heads: tuple[int, int]


def fuse_self_attention(step: ir.Model) -> int:
    """Rewrites a step graph in place; what nobody takes any more is left to be removed.

    Returns:
        How many attentions were rewritten; one whose mask, scores or projection are of another
        form is left as it is.
    """
    graph = step.graph
    position = next((value for value in graph.inputs if value.name == POSITION), None)
    if position is None:
        return 0
    found = [one for node in graph if (one := _self_attention(node, position))]
    for one in found:
        _rewrite(graph, one, key_lengths(graph, position, "last_keys"))
    return len(found)


def _self_attention(node: ir.Node, position: ir.Value) -> _SelfAttention | None:
    if not is_plain_attention(node) or len(node.inputs) < 4:
        return None
    query, key, value, mask = node.inputs[:4]
    if mask is None or not _is_causal(mask, position):
        return None
    writes, rows = (_write(key, position), _write(value, position)), flattened_rows(node.outputs[0])
    if writes[0] is None or writes[1] is None or rows is None:
        return None
    sizes = _cache_sizes(writes[0])
    packed = _packed([query, writes[0].inputs[1], writes[1].inputs[1]])
    if packed is None or sizes is None or sizes != _cache_sizes(writes[1]):
        return None
    (key_heads, width), (source, widths) = sizes, packed
    if widths[1:] != [key_heads * width] * 2 or not supports_head_width(width):
        return None
    return _SelfAttention(
        node, source, (writes[0], writes[1]), rows, (widths[0] // width, key_heads)
    )


def _write(value: ir.Value | None, position: ir.Value) -> ir.Node | None:
    """Returns what writes a row into a cache at the row's position, for this attention alone."""
    node = None if value is None else value.producer()
    if node is None or node.op_type != "TensorScatter" or node.domain:
        return None
    linear = node.attributes.get_string("mode", "linear") == "linear"
    along_tokens = node.attributes.get_int("axis", -2) in _CACHE_AXES
    at_position = len(node.inputs) == 3 and node.inputs[2] is position
    own = len(node.outputs[0].uses()) == 1
    return node if linear and along_tokens and at_position and own else None


def _cache_sizes(write: ir.Node) -> tuple[int, int] | None:
    """Returns heads and the width of a head of a cache that the graph is given."""
    cache = write.inputs[0]
    if cache is None or cache.shape is None or not cache.is_graph_input():
        return None
    match list(cache.shape):
        case [_, int(heads), int(), int(width)]:
            return heads, width
    return None


def _packed(values: list[ir.Value | None]) -> tuple[ir.Value, list[int]] | None:
    """Returns the matrix whose columns are query, key and value, in this order and nothing else.

    The widths of the three are given with it.
    """
    slices = [one for value in values if value is not None and (one := row_slice(value))]
    if len(slices) < len(values) or len({one.source for one in slices}) != 1:
        return None
    ends = [one.begin + one.width for one in slices]
    shape = slices[0].source.shape
    joined = [one.begin for one in slices] == [0, *ends[:-1]]
    whole = shape is not None and shape[1] == ends[-1]
    return (slices[0].source, [one.width for one in slices]) if joined and whole else None


def _is_causal(mask: ir.Value, position: ir.Value) -> bool:
    """Returns whether a mask lets every row see the keys up to its own position, and no others."""
    source = source_of(mask)
    compared = source.producer()
    if compared is None or compared.op_type != "LessOrEqual" or compared.domain:
        return False
    keys, rows = compared.inputs
    if keys is None or rows is None or keys.const_value is None or rows.shape is None:
        return False
    indices = keys.const_value.numpy()
    counted = indices.shape[-1:] == (indices.size,) and np.array_equal(
        indices.reshape(-1), np.arange(indices.size)
    )
    spread = rows.shape.rank() > 1 and rows.shape[-1] == 1
    own = spread and is_in_order(rows, position)
    straight = mask.shape is not None and list(mask.shape)[1:] == [1, 1, indices.size]
    return counted and own and straight and is_in_order(mask, source)


def _rewrite(graph: ir.Graph, one: _SelfAttention, lengths: KeyLengths) -> None:
    caches = [write.inputs[0] for write in one.writes]
    inputs = [one.packed, None, None, *caches, *lengths]
    attributes = group_query_attributes(one.node, *one.heads)
    result, written = insert_group_query_attention(graph, one.node, one.rows, inputs, attributes)
    one.rows.replace_all_uses_with(result)
    for write, new in zip(one.writes, written, strict=True):
        old = write.outputs[0]
        new.name, new.shape, new.type = old.name, old.shape, old.type
        old.name = f"{old.name}_scattered"
        old.replace_all_uses_with(new, replace_graph_outputs=True)
