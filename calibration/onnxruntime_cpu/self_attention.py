"""Self-attention over cached tokens as ONNX Runtime's GroupQueryAttention.

    BEFORE                                           AFTER
    packed (batch, q + k + v), position              packed (batch, q + k + v), position
    Split, Reshape, ... (q, k, v)                    GroupQueryAttention (packed, caches, lengths)
    TensorScatter (each cache, k or v, position)     rows, written caches
    LessOrEqual (keys, position), Reshape -> mask
    Attention (q, written caches, mask)
    Reshape
    rows, written caches

The operator takes the packed projection, writes key and value into the caches and attends to the
positions up to the row's own. The portable form needs a dozen operators for that, and computes
scores for every position of the caches.
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
    """An Attention over cached tokens and the operators around it.

    Attributes:
        node: the Attention.
        packed: query, key and value of the new token side by side, (batch, width).
        writes: the TensorScatter nodes that write key and value into the caches.
        rows: the result of the Attention in rows, (batch, width of all heads).
        heads: number of query heads, and of key and value heads.
    """

    node: ir.Node
    packed: ir.Value
    writes: tuple[ir.Node, ir.Node]
    rows: ir.Value
    heads: tuple[int, int]


def fuse_self_attention(step: ir.Model) -> int:
    """Rewrites the self-attention of a step in place; the replaced nodes stay in the graph.

    Returns:
        The number of rewritten Attention nodes. A node with another kind of mask, scores or
        projection is not rewritten.
    """
    graph = step.graph
    position = next((value for value in graph.inputs if value.name == POSITION), None)
    if position is None:
        return 0
    attentions = [matched for node in graph if (matched := _match_self_attention(node, position))]
    for attention in attentions:
        _rewrite(graph, attention, key_lengths(graph, position, "last_keys"))
    return len(attentions)


def _match_self_attention(node: ir.Node, position: ir.Value) -> _SelfAttention | None:
    if not is_plain_attention(node) or len(node.inputs) < 4:
        return None
    query, key, value, mask = node.inputs[:4]
    if mask is None or not _is_causal(mask, position):
        return None
    key_write, value_write = _cache_write(key, position), _cache_write(value, position)
    rows = flattened_rows(node.outputs[0])
    if key_write is None or value_write is None or rows is None:
        return None
    cache_sizes = _cache_sizes(key_write)
    packed = _packed_projection([query, key_write.inputs[1], value_write.inputs[1]])
    if packed is None or cache_sizes is None or cache_sizes != _cache_sizes(value_write):
        return None
    (key_heads, width), (source, widths) = cache_sizes, packed
    if widths[1:] != [key_heads * width] * 2 or not supports_head_width(width):
        return None
    heads = widths[0] // width, key_heads
    return _SelfAttention(node, source, (key_write, value_write), rows, heads)


def _cache_write(value: ir.Value | None, position: ir.Value) -> ir.Node | None:
    """Returns the TensorScatter that writes a cache at `position` for one Attention alone."""
    node = None if value is None else value.producer()
    if node is None or node.op_type != "TensorScatter" or node.domain:
        return None
    is_linear = node.attributes.get_string("mode", "linear") == "linear"
    along_tokens = node.attributes.get_int("axis", -2) in _CACHE_AXES
    at_position = len(node.inputs) == 3 and node.inputs[2] is position
    has_single_use = len(node.outputs[0].uses()) == 1
    return node if is_linear and along_tokens and at_position and has_single_use else None


def _cache_sizes(write: ir.Node) -> tuple[int, int] | None:
    """Returns the head count and head width of the cache that a node writes, if it is an input."""
    cache = write.inputs[0]
    if cache is None or cache.shape is None or not cache.is_graph_input():
        return None
    match list(cache.shape):
        case [_, int(heads), int(), int(width)]:
            return heads, width
    return None


def _packed_projection(values: list[ir.Value | None]) -> tuple[ir.Value, list[int]] | None:
    """Returns the matrix of exactly the columns of query, key and value, and their three widths."""
    slices = [part for value in values if value is not None and (part := row_slice(value))]
    if len(slices) < len(values) or len({part.source for part in slices}) != 1:
        return None
    ends = [part.begin + part.width for part in slices]
    shape = slices[0].source.shape
    are_contiguous = [part.begin for part in slices] == [0, *ends[:-1]]
    cover_all_columns = shape is not None and shape[1] == ends[-1]
    if not are_contiguous or not cover_all_columns:
        return None
    return slices[0].source, [part.width for part in slices]


def _is_causal(mask: ir.Value, position: ir.Value) -> bool:
    """Returns whether a mask is true exactly for the keys up to each row's own position."""
    source = source_of(mask)
    comparison = source.producer()
    if comparison is None or comparison.op_type != "LessOrEqual" or comparison.domain:
        return False
    keys, rows = comparison.inputs
    if keys is None or rows is None or keys.const_value is None or rows.shape is None:
        return False
    key_indices = keys.const_value.numpy()
    counts_all_keys = key_indices.shape[-1:] == (key_indices.size,) and np.array_equal(
        key_indices.reshape(-1), np.arange(key_indices.size)
    )
    is_column = rows.shape.rank() > 1 and rows.shape[-1] == 1
    is_own_position = is_column and is_in_order(rows, position)
    has_mask_shape = mask.shape is not None and list(mask.shape)[1:] == [1, 1, key_indices.size]
    return counts_all_keys and is_own_position and has_mask_shape and is_in_order(mask, source)


def _rewrite(graph: ir.Graph, attention: _SelfAttention, lengths: KeyLengths) -> None:
    caches = [write.inputs[0] for write in attention.writes]
    inputs = [attention.packed, None, None, *caches, *lengths]
    attributes = group_query_attributes(attention.node, *attention.heads)
    result, written = insert_group_query_attention(
        graph, attention.node, attention.rows, inputs, attributes
    )
    attention.rows.replace_all_uses_with(result)
    for write, cache in zip(attention.writes, written, strict=True):
        scattered = write.outputs[0]
        cache.name, cache.shape, cache.type = scattered.name, scattered.shape, scattered.type
        scattered.name = f"{scattered.name}_scattered"
        scattered.replace_all_uses_with(cache, replace_graph_outputs=True)
