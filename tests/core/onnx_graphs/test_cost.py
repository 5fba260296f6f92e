"""Costs against numbers that are computed by hand."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from hybrid_deploy.bundle.bundle import Bundle
from hybrid_deploy.bundle.manifest import GraphCost
from hybrid_deploy.cli.commands.inspect import cache_bytes
from hybrid_deploy.contract import GraphRole
from hybrid_deploy.onnx_graphs.cost import graph_cost

WIDTH, HEADS, HEAD, CAPACITY, MEMORY, VOCABULARY = 16, 2, 8, 8, 6, 11
FLOAT = 4


def test_step_of_the_tiny_model(tiny_bundle: Bundle) -> None:
    cost = tiny_bundle.graph("fp32", GraphRole.STEP).cost
    square = WIDTH * WIDTH
    # query, key, value and output of self-attention; query and output of cross-attention
    projections = 6 * square
    attention = HEADS * (CAPACITY + MEMORY) * (HEAD + HEAD)
    feed_forward = 2 * WIDTH * 2 * WIDTH
    head = WIDTH * VOCABULARY
    # in a new model all norms are equal and stored once, and zero biases of attention are removed
    rows = 2 * WIDTH  # one of the tokens, one of the positions
    norm, biases = 2 * WIDTH, 2 * WIDTH + WIDTH + VOCABULARY
    weights = projections + feed_forward + head + rows + norm + biases
    cache = 2 * HEADS * CAPACITY * HEAD
    cross = 2 * HEADS * MEMORY * HEAD
    assert cost == GraphCost(
        flops=2 * (projections + attention + feed_forward + head),
        weight_bytes=FLOAT * weights,
        cache_bytes=FLOAT * cache,
        input_bytes=FLOAT * cross + 8 + 8,  # token and position
    )
    assert cost.read_bytes == FLOAT * (weights + cache + cross) + 16


def test_encoder_of_the_tiny_model(tiny_bundle: Bundle) -> None:
    cost = tiny_bundle.graph("fp32", GraphRole.ENCODER).cost
    assert cost is not None
    height, width = 8, 24  # typical
    first = (height // 2) * (width // 2) * 8 * (1 * 3 * 3)
    second = (height // 4) * (width // 4) * WIDTH * (8 * 3 * 3)
    projected = MEMORY * WIDTH * 2 * WIDTH
    assert cost.flops == 2 * (first + second + projected)
    assert (cost.cache_bytes, cost.input_bytes) == (0, FLOAT * height * width)


def test_caches_of_one_sequence(tiny_bundle: Bundle) -> None:
    step = tiny_bundle.graph("fp32", GraphRole.STEP)
    assert cache_bytes(step) == FLOAT * 2 * HEADS * CAPACITY * HEAD


def value(name: str, shape: list[int | str], dtype: ir.DataType = ir.DataType.FLOAT) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))


def model_of(inputs: list[ir.Value], weights: list[ir.Value], nodes: list[ir.Node]) -> ir.Model:
    graph = ir.Graph(
        inputs, list(nodes[-1].outputs), nodes=nodes, initializers=weights, opset_imports={"": 24}
    )
    return ir.Model(graph, ir_version=10)


def weight(name: str, shape: list[int], dtype: type = np.float32) -> ir.Value:
    return ir.val(name, const_value=ir.tensor(np.zeros(shape, dtype), name=name))


@pytest.mark.parametrize(("count", "rows"), [(3, 3), (50, 10)])
def test_a_lookup_reads_only_its_rows(count: int, rows: int) -> None:
    table, index = weight("table", [10, 4]), value("index", [count], ir.DataType.INT64)
    lookup = ir.node("Gather", [table, index], {"axis": 0})
    lookup.outputs[0].shape = ir.Shape([count, 4])
    cost = graph_cost(model_of([index], [table], [lookup]), {})
    assert cost == GraphCost(0, rows * 4 * FLOAT, 0, count * 8)


def test_a_table_that_a_product_reads_too_counts_in_full() -> None:
    table, index = weight("table", [10, 4]), value("index", ["batch"], ir.DataType.INT64)
    lookup = ir.node("Gather", [table, index], {"axis": 0})
    lookup.outputs[0].shape = ir.Shape(["batch", 4])
    turned = ir.node("Transpose", [table], {"perm": [1, 0]})
    turned.outputs[0].shape = ir.Shape([4, 10])
    product = ir.node("MatMul", [lookup.outputs[0], turned.outputs[0]])
    product.outputs[0].shape = ir.Shape(["batch", 10])
    cost = graph_cost(model_of([index], [table], [lookup, turned, product]), {"batch": 2})
    assert cost == GraphCost(2 * 2 * 4 * 10, 10 * 4 * FLOAT, 0, 2 * 8)


def test_a_strided_convolution_in_groups() -> None:
    image, kernel = value("image", [1, 4, 9, "width"]), weight("kernel", [8, 2, 3, 3], np.int8)
    conv = ir.node("Conv", [image, kernel], {"group": 2, "strides": [2, 2]})
    conv.outputs[0].shape = ir.Shape([1, 8, 4, "(width - 1)//2"])
    cost = graph_cost(model_of([image], [kernel], [conv]), {"width": 11})
    assert cost == GraphCost(2 * (8 * 4 * 5) * (2 * 3 * 3), 8 * 2 * 3 * 3, 0, 4 * 9 * 11 * FLOAT)


def test_an_unknown_shape_has_no_cost() -> None:
    left, right = value("left", [2, "rows"]), weight("right", [3, 4])
    product = ir.node("MatMul", [left, right])
    assert graph_cost(model_of([left], [right], [product]), {"rows": 3}) is None


def test_products_and_weights_of_8_bits() -> None:
    rows, table = value("rows", ["batch", 12]), weight("table", [12, 40], np.int8)
    scale = weight("scale", [40])
    product = ir.node("DynamicQuantizeMatMul", [rows, table, scale], domain="com.microsoft")
    product.outputs[0].shape = ir.Shape(["batch", 40])
    cost = graph_cost(model_of([rows], [table, scale], [product]), {"batch": 3})
    assert cost == GraphCost(2 * 3 * 40 * 12, 12 * 40 + 40 * FLOAT, 0, 3 * 12 * FLOAT)


def test_weights_of_4_bits_in_blocks() -> None:
    rows, table = value("rows", [2, 64]), weight("table", [10, 2, 16], np.uint8)
    scale = weight("scale", [20])
    form = {"K": 64, "N": 10, "bits": 4, "block_size": 32}
    product = ir.node("MatMulNBits", [rows, table, scale], form, domain="com.microsoft")
    product.outputs[0].shape = ir.Shape([2, 10])
    cost = graph_cost(model_of([rows], [table, scale], [product]), {})
    assert cost == GraphCost(2 * 2 * 10 * 64, 10 * 64 // 2 + 20 * FLOAT, 0, 2 * 64 * FLOAT)


def test_memory_of_8_bits_counts_as_input_of_one_byte_each() -> None:
    heads, memory, width = 3, 50, 8
    query = value("query", ["batch", 1, heads * width])
    caches = [
        value(f"{name}_0", ["batch", heads, memory, width], ir.DataType.INT8)
        for name in ("cross_key", "cross_value")
    ]
    attention = ir.node(
        "GroupQueryAttention", [query, query, query, *caches],
        {"num_heads": heads, "kv_num_heads": heads}, domain="com.microsoft", num_outputs=3,
    )  # fmt: skip
    for output, name in zip(attention.outputs[1:], ("cross_key", "cross_value"), strict=True):
        output.name = f"{name}_0_next"
    cost = graph_cost(model_of([query, *caches], [], [attention]), {"batch": 2})
    stored = 2 * heads * memory * width
    assert cost == GraphCost(
        flops=2 * 2 * stored,
        weight_bytes=0,
        cache_bytes=0,
        input_bytes=2 * stored + 2 * heads * width * FLOAT,
    )


def test_attention_whose_heads_are_one_axis() -> None:
    query, memory = value("query", [2, 5, 24]), value("memory", [2, 7, 24])
    attention = ir.node(
        "MultiHeadAttention", [query, memory, memory], {"num_heads": 3}, domain="com.microsoft"
    )
    cost = graph_cost(model_of([query, memory], [], [attention]), {})
    assert cost == GraphCost(2 * 2 * 5 * 7 * (24 + 24), 0, 0, (2 * 5 + 2 * 7) * 24 * FLOAT)
