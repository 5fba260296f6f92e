"""Memory in 8 bits: the keys and values of cross-attention, which every token reads whole.

    graph      BEFORE                        AFTER
    encoder    cross_key_0 (float32)         cross_key_0 (int8), cross_key_0_scale, cross_key_0_last
    prefill    Attention (q, key, value)     key, value: Cast, Mul (scale); Attention
    step       Attention (q, key, value)     q * key scale; GroupQueryAttention (int8 memory);
                                             result * value scale
    beam_step  Attention (q, key, value)     q * key scale; Attention (Cast key, Cast value);
                                             result * value scale

The encoder quantizes with one scale for each input and channel, so nothing needs calibration and no
input depends on others of its batch. The scale of a key channel multiplies the query, the scale of
a value channel the result. GroupQueryAttention, ONNX Runtime's operator with 8-bit caches, always
writes a key: it writes the memory's last position (`..._last`) over itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from hybrid_deploy.calibration.graphs.graph_edits import constant, name_value
from hybrid_deploy.calibration.graphs.row_slices import flattened_rows, row_slice
from hybrid_deploy.calibration.onnxruntime_cpu.group_query_attention import (
    Attributes,
    KeyLengths,
    group_query_attributes,
    insert_group_query_attention,
    is_plain_attention,
    key_lengths,
    supports_head_width,
)
from hybrid_deploy.contract import GraphRole, next_cache

MIN_MEMORY_BYTES = 8 << 20
"""Least size that is worth 8 bits: float32 bytes of one input's keys and values over all layers.

Smaller memory stays in the CPU's caches, where 8 bits gain nothing.
"""

MIN_HEAD_WIDTH = 64
"""Least width of a head: with narrower ones, the 8-bit kernel loses more time than it saves."""

_INT8_MAX = 127
_FLOAT_BYTES = 4
_INT8_CACHE_ATTRIBUTES: Attributes = {
    "k_quant_type": "PER_TENSOR",
    "v_quant_type": "PER_TENSOR",
    "kv_cache_bit_width": 8,
}
_UNUSED_INPUTS = 5  # optional inputs of GroupQueryAttention between the lengths and the scales


@dataclass(frozen=True)
class _CrossAttention:
    """An Attention to the memory, in a step.

    Attributes:
        node: the Attention.
        query: the query in rows, (batch, width).
        memory: keys and values, (batch, heads, memory, head width), inputs of the graph.
        rows: the result of the Attention in rows, (batch, width).
    """

    node: ir.Node
    query: ir.Value
    memory: tuple[ir.Value, ir.Value]
    rows: ir.Value


def quantize_cross_attention_memory(
    graphs: Mapping[GraphRole, ir.Model],
    typical_sizes: Mapping[str, int],
    exact_step: ir.Model | None = None,
) -> int:
    """Stores the keys and values of the memory in 8 bits, in place.

    The replaced nodes stay in the graphs. Memory smaller than MIN_MEMORY_BYTES stays float32.

    Args:
        graphs: the encoder, the step and, where there is one, the prefill.
        typical_sizes: typical sizes of the symbolic dimensions, by name.
        exact_step: the step from which the beam step is made; it dequantizes the memory, since
            GroupQueryAttention computes one row per memory.

    Returns:
        The number of Attention nodes that read 8 bits now. A node with a mask or of another form is
        not changed.
    """
    step = graphs[GraphRole.STEP].graph
    attentions = [matched for node in step if (matched := _match_cross_attention(node))]
    memory = [value for attention in attentions for value in attention.memory]
    if sum(_float_bytes(value, typical_sizes) for value in memory) < MIN_MEMORY_BYTES:
        return 0
    encoder_outputs = {value.name: value for value in graphs[GraphRole.ENCODER].graph.outputs}
    rewritten = 0
    for attention in attentions:
        names = [str(value.name) for value in attention.memory]
        if all(name in encoder_outputs for name in names):
            for name in names:
                _return_int8_memory(graphs[GraphRole.ENCODER].graph, encoder_outputs[name])
                if GraphRole.PREFILL in graphs:
                    _dequantize_in_prefill(graphs[GraphRole.PREFILL].graph, name)
            _rewrite_step_attention(step, attention)
            if exact_step is not None:
                _dequantize_in_exact_step(exact_step.graph, names)
            rewritten += 1
    return rewritten


def _match_cross_attention(node: ir.Node) -> _CrossAttention | None:
    if not is_plain_attention(node) or any(value is not None for value in node.inputs[3:]):
        return None
    query, key, value = node.inputs[:3]
    if query is None or key is None or value is None or key.shape != value.shape:
        return None
    if not _is_memory(key) or not _is_memory(value):
        return None
    rows, query_slice = flattened_rows(node.outputs[0]), row_slice(query)
    if rows is None or query_slice is None or query_slice.source.shape is None:
        return None
    _, heads, width = _head_sizes(key)
    is_whole_row = query_slice.begin == 0 and query_slice.source.shape[1] == query_slice.width
    has_equal_heads = query_slice.width == heads * width  # else query heads share a key head
    if not is_whole_row or not has_equal_heads:
        return None
    return _CrossAttention(node, query_slice.source, (key, value), rows)


def _is_memory(value: ir.Value) -> bool:
    """Returns whether a value is a memory input, (batch, heads, memory, width), that int8 suits.

    It has a single use, and heads of a width that the 8-bit kernel supports and computes faster.
    """
    if not value.is_graph_input() or len(value.uses()) != 1 or value.shape is None:
        return False
    match list(value.shape):
        case [ir.SymbolicDim(), int(), length, int(width)]:
            has_known_length = isinstance(length, int) or length.value is not None
            return has_known_length and width >= MIN_HEAD_WIDTH and supports_head_width(width)
    return False


def _float_bytes(value: ir.Value, typical_sizes: Mapping[str, int]) -> int:
    """Returns the float32 bytes of one input's memory; an unknown size counts as one."""
    assert value.shape is not None
    sizes = [
        size if isinstance(size, int) else size.evaluate(typical_sizes) for size in value.shape[1:]
    ]
    return _FLOAT_BYTES * math.prod(size for size in sizes if isinstance(size, int))


def _head_sizes(memory: ir.Value) -> tuple[int | ir.SymbolicDim, int, int]:
    """Returns the batch, the head count and the head width of a memory tensor."""
    assert memory.shape is not None
    batch, heads, _, width = memory.shape
    assert isinstance(heads, int) and isinstance(width, int), "heads are fixed when exported"
    return batch, heads, width


def _scale_name(memory: str) -> str:
    return f"{memory}_scale"


def _last_row_name(memory: str) -> str:
    return f"{memory}_last"


def _return_int8_memory(graph: ir.Graph, memory: ir.Value) -> None:
    """Replaces a memory output of the encoder by int8, scales, and the last position in rows."""
    name = str(memory.name)
    batch, heads, width = _head_sizes(memory)
    memory.name = f"{name}_float"
    int8_max = constant(graph, "memory_largest", np.float32(_INT8_MAX).reshape(1))
    tiny = constant(graph, "memory_tiny", np.full(1, np.finfo(np.float32).tiny, np.float32))
    axis = constant(graph, "memory_axis", np.array([2]))
    last_index = constant(graph, "memory_last", np.array([-1]))
    flat_shape = constant(graph, "memory_flat", np.array([0, -1]))
    scale_shape = ir.Shape([batch, heads, 1, width])
    row_shape = ir.Shape([batch, heads * width])
    nodes: list[ir.Node] = []

    def add(
        operator: str, inputs: list[ir.Value], shape: ir.Shape | None,
        dtype: ir.DataType = ir.DataType.FLOAT, output_name: str | None = None, **attributes: int,
    ) -> ir.Value:  # fmt: skip
        node = ir.node(operator, inputs, attributes)
        nodes.append(node)
        return name_value(node, output_name or f"{name}_{len(nodes)}", shape, dtype)

    magnitudes = add("Abs", [memory], memory.shape)
    largest = add("ReduceMax", [magnitudes, axis], scale_shape, keepdims=1)
    scale = add("Max", [add("Div", [largest, int8_max], scale_shape), tiny], scale_shape)
    rounded = add("Round", [add("Div", [memory, scale], memory.shape)], memory.shape)
    int8_memory = add("Cast", [rounded], memory.shape, ir.DataType.INT8, name, to=ir.DataType.INT8)
    last_row = add("Gather", [rounded, last_index], scale_shape, axis=2)
    results = [
        int8_memory,
        add("Reshape", [scale, flat_shape], row_shape, output_name=_scale_name(name)),
        add("Reshape", [last_row, flat_shape], row_shape, output_name=_last_row_name(name)),
    ]
    graph.extend(nodes)
    graph.outputs[graph.outputs.index(memory)] = int8_memory
    graph.outputs.extend(results[1:])


def _dequantize_in_prefill(graph: ir.Graph, name: str) -> None:
    """Inserts nodes that dequantize an int8 memory input; prefill runs once, so float is enough."""
    memory = next(value for value in graph.inputs if value.name == name)
    batch, heads, width = _head_sizes(memory)
    scale = ir.val(_scale_name(name), ir.DataType.FLOAT, ir.Shape([batch, heads * width]))
    int8_memory = ir.val(name, ir.DataType.INT8, memory.shape)
    heads_shape = constant(graph, f"memory_heads_{heads}_{width}", np.array([-1, heads, 1, width]))
    cast = ir.node("Cast", [int8_memory], {"to": ir.DataType.FLOAT})
    scale_by_head = ir.node("Reshape", [scale, heads_shape])
    restored = ir.node("Mul", [cast.outputs[0], scale_by_head.outputs[0]])
    name_value(cast, f"{name}_cast", memory.shape)
    name_value(scale_by_head, f"{name}_scale_heads", ir.Shape([batch, heads, 1, width]))
    name_value(restored, f"{name}_float", memory.shape)
    memory.name = f"{name}_replaced"
    graph.insert_before(graph[0], [cast, scale_by_head, restored])
    memory.replace_all_uses_with(restored.outputs[0])
    graph.inputs[graph.inputs.index(memory)] = int8_memory
    graph.inputs.append(scale)


def _rewrite_step_attention(graph: ir.Graph, attention: _CrossAttention) -> None:
    batch, heads, width = _head_sizes(attention.memory[0])
    row_shape = ir.Shape([batch, heads * width])
    inputs_of_memory = [
        _replace_memory_input(graph, memory, row_shape) for memory in attention.memory
    ]
    int8_memory, scales, last_rows = zip(*inputs_of_memory, strict=True)
    scaled_query = ir.node("Mul", [attention.query, scales[0]])
    name_value(scaled_query, f"{attention.rows.name}_scaled_query", row_shape)
    graph.insert_before(attention.node, scaled_query)
    lengths = _memory_lengths(graph, int8_memory[0])
    unit_scale = constant(graph, "memory_unit_scale", np.ones(1, np.float32))
    unused = [None] * _UNUSED_INPUTS
    inputs = [scaled_query.outputs[0], *last_rows, *int8_memory, *lengths, *unused]
    inputs += [unit_scale, unit_scale]
    attributes = {**_INT8_CACHE_ATTRIBUTES, **group_query_attributes(attention.node, heads, heads)}
    result, caches = insert_group_query_attention(
        graph, attention.node, attention.rows, inputs, attributes
    )
    unscaled = ir.node("Mul", [result, scales[1]])
    name_value(unscaled, f"{attention.rows.name}_unscaled", row_shape)
    graph.insert_before(attention.node, unscaled)
    attention.rows.replace_all_uses_with(unscaled.outputs[0])
    for memory, cache in zip(int8_memory, caches, strict=True):
        cache.name, cache.shape = next_cache(str(memory.name)), memory.shape
        cache.dtype = ir.DataType.INT8
        graph.outputs.append(cache)


def _replace_memory_input(
    graph: ir.Graph, memory: ir.Value, row_shape: ir.Shape
) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Replaces a float input by the returned ones: int8 memory, scales and last position."""
    name, shape = str(memory.name), memory.shape
    memory.name = f"{name}_replaced"
    int8_memory = ir.val(name, ir.DataType.INT8, shape)
    scale = ir.val(_scale_name(name), ir.DataType.FLOAT, row_shape)
    last_row = ir.val(_last_row_name(name), ir.DataType.FLOAT, row_shape)
    graph.inputs[graph.inputs.index(memory)] = int8_memory
    graph.inputs.extend([scale, last_row])
    return int8_memory, scale, last_row


def _dequantize_in_exact_step(graph: ir.Graph, names: Sequence[str]) -> None:
    """Casts int8 memory for an Attention; the scales multiply its query and its result."""
    inputs = {value.name: value for value in graph.inputs}
    node = next(user for user, _ in inputs[names[0]].uses())
    scales = []
    for index, name in enumerate(names, start=1):
        memory = inputs[name]
        batch, heads, width = _head_sizes(memory)
        int8_memory = ir.val(name, ir.DataType.INT8, memory.shape)
        scale = ir.val(_scale_name(name), ir.DataType.FLOAT, ir.Shape([batch, heads * width]))
        cast = ir.node("Cast", [int8_memory], {"to": ir.DataType.FLOAT})
        shape_name = f"memory_heads_{heads}_{width}"
        heads_shape = constant(graph, shape_name, np.array([-1, heads, 1, width]))
        reshape = ir.node("Reshape", [scale, heads_shape])
        scale_shape = ir.Shape([batch, heads, 1, width])
        scales.append(name_value(reshape, f"{name}_scale_heads", scale_shape))
        memory.name = f"{name}_replaced"
        node.replace_input_with(index, name_value(cast, f"{name}_floats", memory.shape))
        graph.insert_before(node, [cast, reshape])
        graph.inputs[graph.inputs.index(memory)] = int8_memory
        graph.inputs.append(scale)
    query, result = node.inputs[0], node.outputs[0]
    assert query is not None, "an attention has a query"
    scaled_query = ir.node("Mul", [query, scales[0]])
    node.replace_input_with(0, name_value(scaled_query, f"{query.name}_scaled", query.shape))
    graph.insert_before(node, scaled_query)
    unscaled = ir.node("Mul", [result, scales[1]])
    result.replace_all_uses_with(unscaled.outputs[0])
    unscaled.replace_input_with(0, result)
    name_value(unscaled, f"{result.name}_unscaled", result.shape)
    graph.insert_after(node, unscaled)


def _memory_lengths(graph: ir.Graph, memory: ir.Value) -> KeyLengths:
    """Returns the lengths for attention to a whole memory, computed once for each memory size."""
    assert memory.shape is not None
    batch, _, size, _ = memory.shape
    name = f"last_of_{size}"
    last_indices = next((node.outputs[0] for node in graph if node.name == f"{name}_indices"), None)
    if last_indices is not None:
        return key_lengths(graph, last_indices, name)
    length = ir.node("Shape", [memory], {"start": 2, "end": 3})
    batch_size = ir.node("Shape", [memory], {"start": 0, "end": 1})
    last_index = ir.node("Sub", [length.outputs[0], constant(graph, "memory_one", np.array([1]))])
    expand = ir.node(
        "Expand", [last_index.outputs[0], batch_size.outputs[0]], name=f"{name}_indices"
    )
    name_value(length, f"{name}_length", ir.Shape([1]), ir.DataType.INT64)
    name_value(batch_size, f"{name}_rows", ir.Shape([1]), ir.DataType.INT64)
    name_value(last_index, f"{name}_index", ir.Shape([1]), ir.DataType.INT64)
    name_value(expand, f"{name}_indices", ir.Shape([batch]), ir.DataType.INT64)
    graph.insert_before(graph[0], [length, batch_size, last_index, expand])
    return key_lengths(graph, expand.outputs[0], name)
