"""The cost of one call of a graph: floating-point operations, and bytes that it must read.

The cost is counted from the operators and shapes of the graph; no time is measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import onnx_ir as ir

from hybrid_deploy.bundle.manifest import GraphCost
from hybrid_deploy.contract import cache_of, is_memory, is_next_cache
from hybrid_deploy.onnx_graphs.dim_expressions import evaluate_size

_BITS_PER_BYTE = 8
Sizes = Mapping[str, int]
"""Size of each symbolic dimension, by its name."""


class _UnknownSizeError(Exception):
    """A size that the cost depends on is unknown."""


def graph_cost(model: ir.Model, sizes: Sizes) -> GraphCost | None:
    """Returns the cost of one call; None if the shape of a product, weight or input is unknown.

    Args:
        model: graph whose values have shapes with the symbolic dimensions of `sizes`.
        sizes: sizes to count for, usually the typical one of every dimension.

    Returns:
        Operations count for MatMul, Gemm, Conv, ConvTranspose and Attention, and for ONNX Runtime's
        variants of them: two per multiply-add. Work per element (normalisation, activation,
        softmax) counts nothing. Every weight counts once, except a table that only Gather reads: of
        it, the rows that are read count. Memory that a graph also returns counts as input, not as
        cache.
    """
    try:
        return _count(model.graph, sizes)
    except _UnknownSizeError:
        return None


def _count(graph: ir.Graph, sizes: Sizes) -> GraphCost:
    returned = {cache_of(str(v.name)) for v in graph.outputs if is_next_cache(str(v.name))}
    caches = {name for name in returned if not is_memory(name)}
    inputs = {str(value.name): _bytes(value, sizes) for value in graph.inputs}
    return GraphCost(
        flops=sum(_flops(node, sizes) for node in graph.all_nodes()),
        weight_bytes=sum(_read_bytes(value, sizes) for value in graph.initializers.values()),
        cache_bytes=sum(count for name, count in inputs.items() if name in caches),
        input_bytes=sum(count for name, count in inputs.items() if name not in caches),
    )


def _flops(node: ir.Node, sizes: Sizes) -> int:
    multiply_adds = _MULTIPLY_ADDS.get(node.op_type)
    return 0 if multiply_adds is None else 2 * multiply_adds(node, sizes)


def _matmul(node: ir.Node, sizes: Sizes) -> int:
    return _elements(node.outputs[0], sizes) * _shape(node.inputs[0], sizes)[-1]


def _gemm(node: ir.Node, sizes: Sizes) -> int:
    rows = _shape(node.inputs[0], sizes)
    summed = rows[0] if node.attributes.get_int("transA", 0) else rows[-1]
    return _elements(node.outputs[0], sizes) * summed


def _conv(node: ir.Node, sizes: Sizes) -> int:
    kernel = _shape(node.inputs[1], sizes)  # (out, in / groups, *spatial)
    return _elements(node.outputs[0], sizes) * math.prod(kernel[1:])


def _conv_transpose(node: ir.Node, sizes: Sizes) -> int:
    kernel = _shape(node.inputs[1], sizes)  # (in, out / groups, *spatial)
    return _elements(node.inputs[0], sizes) * math.prod(kernel[1:])


def _attention(node: ir.Node, sizes: Sizes) -> int:
    """Returns the multiply-adds of both products; operands are (batch, heads, length, head_dim)."""
    query, key, value = (_shape(node.inputs[i], sizes) for i in range(3))
    if len(query) == 3:  # (batch, length, heads * head_dim)
        return query[0] * query[1] * key[1] * (query[2] + value[2] * _query_heads(node))
    return math.prod(query[:3]) * key[2] * (query[3] + value[3])


def _query_heads(node: ir.Node) -> int:
    """Returns how many query heads share one key and value head."""
    heads = node.attributes.get_int("q_num_heads", 1)
    return heads // (node.attributes.get_int("kv_num_heads", heads) or 1)


def _multi_head_attention(node: ir.Node, sizes: Sizes) -> int:
    """Returns the multiply-adds of both products; operands are (batch, length, width)."""
    query, key, value = (_shape(node.inputs[i], sizes) for i in range(3))
    return query[0] * query[1] * key[1] * (query[2] + value[2])


def _grouped_attention(node: ir.Node, sizes: Sizes) -> int:
    """Returns the multiply-adds of both products with (batch, heads, capacity, head_dim) caches."""
    query, cache = (_shape(node.inputs[i], sizes) for i in (0, 3))
    heads = node.attributes.get_int("num_heads", 1)
    return query[0] * query[1] * heads * cache[2] * 2 * cache[3]


def _matmul_n_bits(node: ir.Node, sizes: Sizes) -> int:
    return _elements(node.outputs[0], sizes) * node.attributes.get_int("K", 0)


_MULTIPLY_ADDS: Mapping[str, Callable[[ir.Node, Sizes], int]] = {
    "Attention": _attention,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "DynamicQuantizeMatMul": _matmul,
    "Gemm": _gemm,
    "GroupQueryAttention": _grouped_attention,
    "MatMul": _matmul,
    "MatMulInteger": _matmul,
    "MatMulIntegerToFloat": _matmul,
    "MatMulNBits": _matmul_n_bits,
    "MultiHeadAttention": _multi_head_attention,
}


def _read_bytes(value: ir.Value, sizes: Sizes) -> int:
    """Returns the bytes that are read of a weight: all, or the rows that Gather takes."""
    if value.dtype is ir.DataType.INT64:
        return 0  # shapes and indexes, not weights
    users = list(value.uses())
    if not users or any(node.op_type != "Gather" or index != 0 for node, index in users):
        return _bytes(value, sizes)
    read_bytes = 0
    for node, _ in users:
        axis = node.attributes.get_int("axis", 0)
        rows = _shape(value, sizes)[axis]
        read_bytes += _bytes(value, sizes) // rows * min(rows, _elements(node.inputs[1], sizes))
    return min(read_bytes, _bytes(value, sizes))


def _bytes(value: ir.Value, sizes: Sizes) -> int:
    if value.dtype is None:
        raise _UnknownSizeError
    bits = round(value.dtype.itemsize * _BITS_PER_BYTE)
    return -(-_elements(value, sizes) * bits // _BITS_PER_BYTE)


def _elements(value: ir.Value | None, sizes: Sizes) -> int:
    return math.prod(_shape(value, sizes))


def _shape(value: ir.Value | None, sizes: Sizes) -> list[int]:
    assert value is not None
    tensor = value.const_value
    shape = value.shape if tensor is None else tensor.shape
    if shape is None:
        raise _UnknownSizeError
    return [_size(dim, sizes) for dim in shape]


def _size(dim: object, sizes: Sizes) -> int:
    size = evaluate_size(str(dim.value), sizes) if isinstance(dim, ir.SymbolicDim) else dim
    if not isinstance(size, int):
        raise _UnknownSizeError
    return size
