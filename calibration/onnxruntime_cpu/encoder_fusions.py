"""Encoder operators that ONNX Runtime's CPU kernels compute faster.

    BEFORE                                     AFTER
    q, k, v: Reshape, Transpose (each)         q, k, v
    Attention (no mask)                        MultiHeadAttention
    Transpose, Reshape                         y
    y

    BEFORE                                     AFTER
    Add, LayerNormalization                    Sum, LayerNormalization

A factor of q becomes part of the operator's scale, if the Attention states one.

Measured on an encoder of Whisper's shape (4 layers, 1500 x 384, one thread, ONNX Runtime 1.32):
MultiHeadAttention takes 43 ms per layer and needs no transposes, Attention takes 58 ms with its
four. An Add that ONNX Runtime fuses with the LayerNormalization or the Gelu behind it is slower
than the two operators apart. It does not fuse a Sum with LayerNormalization, and in an int8 encoder
`fuse_matmul_integer` leaves no Add before a Gelu.
"""

from __future__ import annotations

import onnx_ir as ir

from hybrid_deploy.calibration.graphs.graph_edits import describe, drop_unused_constants, only_user
from hybrid_deploy.calibration.onnxruntime_cpu.matmul_integer import fuse_matmul_integer

_DOMAIN = "com.microsoft"
_HEADS_FIRST = [0, 2, 1, 3]


def fuse_encoder_operators(model: ir.Model) -> None:
    """Rewrites a graph in place to equal operators that only ONNX Runtime runs."""
    graph = model.graph
    for node in list(graph):
        if node.op_type == "Attention" and not node.domain:
            _fuse_attention(model, node)
    for node in graph:
        if node.op_type == "Add" and _feeds_normalization(node):
            node.op_type = "Sum"
    fuse_matmul_integer(model)
    _drop_unused_nodes(graph)
    drop_unused_constants(graph)


def _fuse_attention(model: ir.Model, node: ir.Node) -> None:
    """Replaces the split into heads, the Attention and the join by one operator, if all match."""
    joined = _after_head_join(node.outputs[0])
    inputs = [_before_head_split(value) for value in node.inputs[:3]]
    head_counts = {_head_count(value) for value in node.inputs[:3]}
    head_count = head_counts.pop()
    if head_counts or head_count is None or joined is None or None in inputs:
        return
    if not _is_unmasked_attention(node):
        return
    attributes: dict[str, int | float] = {"num_heads": head_count}
    if "scale" in node.attributes:
        inputs[0], query_factor = _without_factor(inputs[0])
        attributes["scale"] = query_factor * node.attributes["scale"].as_float()
    name = f"{node.outputs[0].name}_heads"
    fused = ir.node("MultiHeadAttention", inputs, attributes, domain=_DOMAIN, name=name)
    result = fused.outputs[0]
    describe(result, name, joined, ir.DataType.FLOAT)
    model.graph.insert_before(node, fused)
    joined.replace_all_uses_with(result)
    model.graph.opset_imports[_DOMAIN] = 1


def _without_factor(query: ir.Value | None) -> tuple[ir.Value | None, float]:
    """Returns a query before its multiplication with a single number, and the number."""
    multiply = _producer(query, "Mul")
    if multiply is not None:
        for value, factor in (multiply.inputs, reversed(multiply.inputs)):
            if (
                factor is not None
                and factor.const_value is not None
                and factor.const_value.size == 1
            ):
                return value, float(factor.const_value.numpy().reshape(()))
    return query, 1.0


def _is_unmasked_attention(node: ir.Node) -> bool:
    """Returns whether an Attention has no mask, not even a causal one, no cache and no softcap."""
    has_mask_or_cache = any(value is not None for value in node.inputs[3:])
    is_capped = "softcap" in node.attributes and node.attributes["softcap"].as_float() != 0
    return not (has_mask_or_cache or is_capped or node.attributes.get_int("is_causal", False))


def _head_count(value: ir.Value | None) -> int | None:
    size = None if value is None or value.shape is None else value.shape[1]
    return size if isinstance(size, int) else None


def _before_head_split(value: ir.Value | None) -> ir.Value | None:
    """Returns x, (batch, length, width), if a value is its heads: Transpose(Reshape(x))."""
    transpose = None if value is None else value.producer()
    if transpose is None or not _swaps_heads(transpose):
        return None
    reshape = _producer(transpose.inputs[0], "Reshape")
    if reshape is None or reshape.inputs[0] is None:
        return None
    source, split_shape = reshape.inputs[0], reshape.outputs[0].shape
    if source.shape is None or split_shape is None:
        return None
    if source.shape.rank() != 3 or split_shape.rank() != 4:
        return None
    same_rows = list(source.shape)[:2] == list(split_shape)[:2]
    fits = same_rows and source.shape[2] == _product(split_shape[2], split_shape[3])
    return source if fits else None


def _after_head_join(value: ir.Value) -> ir.Value | None:
    """Returns the joined heads of a value, (batch, length, width): Reshape(Transpose(value))."""
    user = only_user(value)
    if user is not None and user.op_type == "Reshape" and user.outputs[0].shape == value.shape:
        user = only_user(user.outputs[0])
    if user is None or not _swaps_heads(user):
        return None
    transposed = user.outputs[0]
    reshape = only_user(transposed)
    if reshape is None or reshape.op_type != "Reshape":
        return None
    joined_shape, split_shape = reshape.outputs[0].shape, transposed.shape
    if joined_shape is None or split_shape is None:
        return None
    if joined_shape.rank() != 3 or split_shape.rank() != 4:
        return None
    same_rows = list(joined_shape)[:2] == list(split_shape)[:2]
    fits = same_rows and joined_shape[2] == _product(split_shape[2], split_shape[3])
    return reshape.outputs[0] if fits and not reshape.outputs[0].is_graph_output() else None


def _swaps_heads(node: ir.Node) -> bool:
    perm = node.attributes.get_ints("perm") if node.op_type == "Transpose" else None
    return perm is not None and list(perm) == _HEADS_FIRST


def _product(heads: object, width: object) -> int | None:
    return heads * width if isinstance(heads, int) and isinstance(width, int) else None


def _producer(value: ir.Value | None, operator: str) -> ir.Node | None:
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == operator else None


def _feeds_normalization(node: ir.Node) -> bool:
    user = only_user(node.outputs[0])
    return user is not None and user.op_type == "LayerNormalization"


def _drop_unused_nodes(graph: ir.Graph) -> None:
    for node in reversed(list(graph)):
        if not any(value.uses() or value.is_graph_output() for value in node.outputs):
            graph.remove(node, safe=True)
