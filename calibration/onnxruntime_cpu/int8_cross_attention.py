"""Memory in 8 bits: the keys and values of cross-attention, which every token reads whole.

The encoder graph quantizes them, one scale for each input and channel, so nothing has to be
calibrated and no input depends on others of its batch. What a key was divided by, the query is
multiplied with; what a value was divided by, the result is. The decoder's operator is ONNX
Runtime's GroupQueryAttention, which knows caches of 8 bits. It always writes a key: that of the
last position, which is there already, is written again.
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
"""Keys and values of all layers: less stays in the CPU's caches, and 8 bits gain nothing."""

MIN_HEAD_WIDTH = 64
"""Of a head: the kernel for 8 bits takes longer for narrow ones than it saves in reading."""

_LARGEST = 127
_FLOAT_BYTES = 4
_CACHE_FORM: Attributes = {
    "k_quant_type": "PER_TENSOR",
    "v_quant_type": "PER_TENSOR",
    "kv_cache_bit_width": 8,
}
_UNUSED = 5  # inputs of the operator between the lengths and the scales


@dataclass(frozen=True)
class _CrossAttention:
    """One attention to the memory.

    Attributes:
        node: the Attention.
        query: (batch, width).
        memory: keys and values, (batch, heads, memory, head width), inputs of the graph.
        rows: (batch, width), its result in rows.
    """

    node: ir.Node
    query: ir.Value
    memory: tuple[ir.Value, ir.Value]
    rows: ir.Value


def quantize_cross_attention_memory(
    graphs: Mapping[GraphRole, ir.Model],
    typical_sizes: Mapping[str, int],
    beam_step: ir.Model | None = None,
) -> int:
    """Stores keys and values of the memory in 8 bits, in place.

    What nobody takes any more is left to be removed.

    Args:
        graphs: encoder, step and prefill.
        typical: sizes of symbolic dimensions, to tell whether it pays.
        searched: another form of the step, whose operators take several rows; it computes in float.

    Returns:
        How many attentions read 8 bits now; one with a mask or of another form is left.
    """
    step = graphs[GraphRole.STEP].graph
    found = [one for node in step if (one := _cross_attention(node))]
    if (
        sum(_bytes(value, typical_sizes) for one in found for value in one.memory)
        < MIN_MEMORY_BYTES
    ):
        return 0
    outputs = {value.name: value for value in graphs[GraphRole.ENCODER].graph.outputs}
    done = 0
    for one in found:
        names = [str(value.name) for value in one.memory]
        if all(name in outputs for name in names):
            for name in names:
                _quantize(graphs[GraphRole.ENCODER].graph, outputs[name])
                if GraphRole.PREFILL in graphs:
                    _restore(graphs[GraphRole.PREFILL].graph, name)
            _rewrite(step, one)
            if beam_step is not None:
                _read_in_floats(beam_step.graph, names)
            done += 1
    return done


def _cross_attention(node: ir.Node) -> _CrossAttention | None:
    if not is_plain_attention(node) or any(value is not None for value in node.inputs[3:]):
        return None
    query, key, value = node.inputs[:3]
    if query is None or key is None or value is None or key.shape != value.shape:
        return None
    if not _is_memory(key) or not _is_memory(value):
        return None
    rows, of_query = flattened_rows(node.outputs[0]), row_slice(query)
    if rows is None or of_query is None or of_query.source.shape is None:
        return None
    _, heads, width = _sizes(key)
    whole = of_query.begin == 0 and of_query.source.shape[1] == of_query.width
    alike = of_query.width == heads * width  # else several heads of the query share one of the key
    return _CrossAttention(node, of_query.source, (key, value), rows) if whole and alike else None


def _is_memory(value: ir.Value) -> bool:
    """Returns whether a value is (batch, heads, memory, width), for one attention alone."""
    if not value.is_graph_input() or len(value.uses()) != 1 or value.shape is None:
        return False
    match list(value.shape):
        case [ir.SymbolicDim(), int(), length, int(width)]:
            known = isinstance(length, int) or length.value is not None
            return known and width >= MIN_HEAD_WIDTH and supports_head_width(width)
    return False


def _bytes(value: ir.Value, typical: Mapping[str, int]) -> int:
    """Returns the size of one input's memory in float32; what is not known counts as one."""
    assert value.shape is not None
    sizes = [s if isinstance(s, int) else s.evaluate(typical) for s in value.shape[1:]]
    return _FLOAT_BYTES * math.prod(size for size in sizes if isinstance(size, int))


def _sizes(memory: ir.Value) -> tuple[int | ir.SymbolicDim, int, int]:
    """Returns batch, heads and width of a head."""
    assert memory.shape is not None
    batch, heads, _, width = memory.shape
    assert isinstance(heads, int) and isinstance(width, int), "heads are fixed when exported"
    return batch, heads, width


def _scale_name(memory: str) -> str:
    return f"{memory}_scale"


def _last_name(memory: str) -> str:
    return f"{memory}_last"


def _quantize(graph: ir.Graph, memory: ir.Value) -> None:
    """Lets the encoder return 8 bits, their scales, and the last position as rows of floats."""
    name = str(memory.name)
    batch, heads, width = _sizes(memory)
    memory.name = f"{name}_float"
    largest = constant(graph, "memory_largest", np.float32(_LARGEST).reshape(1))
    tiny = constant(graph, "memory_tiny", np.full(1, np.finfo(np.float32).tiny, np.float32))
    axis = constant(graph, "memory_axis", np.array([2]))
    last = constant(graph, "memory_last", np.array([-1]))
    flat = constant(graph, "memory_flat", np.array([0, -1]))
    spread = ir.Shape([batch, heads, 1, width])
    rows = ir.Shape([batch, heads * width])
    nodes: list[ir.Node] = []

    def add(
        operator: str, inputs: list[ir.Value], shape: ir.Shape | None,
        dtype: ir.DataType = ir.DataType.FLOAT, called: str | None = None, **attributes: int,
    ) -> ir.Value:  # fmt: skip
        node = ir.node(operator, inputs, attributes)
        nodes.append(node)
        return name_value(node, called or f"{name}_{len(nodes)}", shape, dtype)

    top = add("ReduceMax", [add("Abs", [memory], memory.shape), axis], spread, keepdims=1)
    scale = add("Max", [add("Div", [top, largest], spread), tiny], spread)
    rounded = add("Round", [add("Div", [memory, scale], memory.shape)], memory.shape)
    short = add("Cast", [rounded], memory.shape, ir.DataType.INT8, name, to=ir.DataType.INT8)
    row = add("Gather", [rounded, last], spread, axis=2)
    results = [
        short,
        add("Reshape", [scale, flat], rows, called=_scale_name(name)),
        add("Reshape", [row, flat], rows, called=_last_name(name)),
    ]
    graph.extend(nodes)
    graph.outputs[graph.outputs.index(memory)] = short
    graph.outputs.extend(results[1:])


def _restore(graph: ir.Graph, name: str) -> None:
    """Lets prefill take 8 bits: it runs once, and computes in float."""
    memory = next(value for value in graph.inputs if value.name == name)
    batch, heads, width = _sizes(memory)
    scale = ir.val(_scale_name(name), ir.DataType.FLOAT, ir.Shape([batch, heads * width]))
    short = ir.val(name, ir.DataType.INT8, memory.shape)
    spread = constant(graph, f"memory_heads_{heads}_{width}", np.array([-1, heads, 1, width]))
    cast = ir.node("Cast", [short], {"to": ir.DataType.FLOAT})
    split = ir.node("Reshape", [scale, spread])
    product = ir.node("Mul", [cast.outputs[0], split.outputs[0]])
    name_value(cast, f"{name}_cast", memory.shape)
    name_value(split, f"{name}_scale_heads", ir.Shape([batch, heads, 1, width]))
    name_value(product, f"{name}_float", memory.shape)
    memory.name = f"{name}_replaced"
    graph.insert_before(graph[0], [cast, split, product])
    memory.replace_all_uses_with(product.outputs[0])
    graph.inputs[graph.inputs.index(memory)] = short
    graph.inputs.append(scale)


def _rewrite(graph: ir.Graph, one: _CrossAttention) -> None:
    batch, heads, width = _sizes(one.memory[0])
    rows = ir.Shape([batch, heads * width])
    shorts, scales, lasts = [], [], []
    for memory in one.memory:
        name, shape = str(memory.name), memory.shape
        memory.name = f"{name}_replaced"
        shorts.append(ir.val(name, ir.DataType.INT8, shape))
        scales.append(ir.val(_scale_name(name), ir.DataType.FLOAT, rows))
        lasts.append(ir.val(_last_name(name), ir.DataType.FLOAT, rows))
        graph.inputs[graph.inputs.index(memory)] = shorts[-1]
        graph.inputs.extend([scales[-1], lasts[-1]])
    query = ir.node("Mul", [one.query, scales[0]])
    name_value(query, f"{one.rows.name}_scaled_query", rows)
    graph.insert_before(one.node, query)
    lengths = _lengths(graph, shorts[0])
    unit = constant(graph, "memory_unit_scale", np.ones(1, np.float32))
    inputs = [query.outputs[0], *lasts, *shorts, *lengths, *[None] * _UNUSED, unit, unit]
    attributes = {**_CACHE_FORM, **group_query_attributes(one.node, heads, heads)}
    result, caches = insert_group_query_attention(graph, one.node, one.rows, inputs, attributes)
    scaled = ir.node("Mul", [result, scales[1]])
    name_value(scaled, f"{one.rows.name}_unscaled", rows)
    graph.insert_before(one.node, scaled)
    one.rows.replace_all_uses_with(scaled.outputs[0])
    for short, cache in zip(shorts, caches, strict=True):
        cache.name, cache.shape = next_cache(str(short.name)), short.shape
        cache.dtype = ir.DataType.INT8
        graph.outputs.append(cache)


def _read_in_floats(graph: ir.Graph, names: Sequence[str]) -> None:
    """Lets an Attention take 8 bits as floats; the scales go to its query and its result."""
    memory = {value.name: value for value in graph.inputs}
    node = next(user for user, _ in memory[names[0]].uses())
    scales = []
    for index, name in enumerate(names, start=1):
        old = memory[name]
        batch, heads, width = _sizes(old)
        short = ir.val(name, ir.DataType.INT8, old.shape)
        scale = ir.val(_scale_name(name), ir.DataType.FLOAT, ir.Shape([batch, heads * width]))
        cast = ir.node("Cast", [short], {"to": ir.DataType.FLOAT})
        spread = constant(graph, f"memory_heads_{heads}_{width}", np.array([-1, heads, 1, width]))
        split = ir.node("Reshape", [scale, spread])
        scales.append(name_value(split, f"{name}_scale_heads", ir.Shape([batch, heads, 1, width])))
        old.name = f"{name}_replaced"
        node.replace_input_with(index, name_value(cast, f"{name}_floats", old.shape))
        graph.insert_before(node, [cast, split])
        graph.inputs[graph.inputs.index(old)] = short
        graph.inputs.append(scale)
    query, result = node.inputs[0], node.outputs[0]
    assert query is not None, "an attention has a query"
    scaled = ir.node("Mul", [query, scales[0]])
    node.replace_input_with(0, name_value(scaled, f"{query.name}_scaled", query.shape))
    graph.insert_before(node, scaled)
    unscaled = ir.node("Mul", [result, scales[1]])
    result.replace_all_uses_with(unscaled.outputs[0])
    unscaled.replace_input_with(0, result)
    name_value(unscaled, f"{result.name}_unscaled", result.shape)
    graph.insert_after(node, unscaled)


def _lengths(graph: ir.Graph, memory: ir.Value) -> KeyLengths:
    """Returns the lengths for attention to all of a memory, computed once for each size of it."""
    assert memory.shape is not None
    batch, _, size, _ = memory.shape
    name = f"last_of_{size}"
    known = next((node.outputs[0] for node in graph if node.name == f"{name}_indices"), None)
    if known is not None:
        return key_lengths(graph, known, name)
    length = ir.node("Shape", [memory], {"start": 2, "end": 3})
    rows = ir.node("Shape", [memory], {"start": 0, "end": 1})
    last = ir.node("Sub", [length.outputs[0], constant(graph, "memory_one", np.array([1]))])
    spread = ir.node("Expand", [last.outputs[0], rows.outputs[0]], name=f"{name}_indices")
    name_value(length, f"{name}_length", ir.Shape([1]), ir.DataType.INT64)
    name_value(rows, f"{name}_rows", ir.Shape([1]), ir.DataType.INT64)
    name_value(last, f"{name}_index", ir.Shape([1]), ir.DataType.INT64)
    name_value(spread, f"{name}_indices", ir.Shape([batch]), ir.DataType.INT64)
    graph.insert_before(graph[0], [length, rows, last, spread])
    return key_lengths(graph, spread.outputs[0], name)
