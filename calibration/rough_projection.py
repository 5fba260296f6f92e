"""The vocabulary projection in two stages: all logits roughly, then the few that can win.

The projection is the largest matrix of most decoders, and a token of greedy decoding reads it whole
to find one row. Here its weights are stored in few bits as well. The step returns the logits of
these (`logits`), the row that it projects (`hidden`), and how far each logit can be from the true
one (`margin`). What is within two margins of the largest is computed from the true weights by a
graph of its own (`refine`).

For float, the few bits are 7 and the margin is certain, so that the tokens are those of the float
projection. For quantized forms they are 4 and the margin is likely; the true weights are float16.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from hybrid_deploy.calibration.constants import constant, drop_unused_constants, name_value
from hybrid_deploy.calibration.number_forms import INT4, INT8
from hybrid_deploy.calibration.points import Linear
from hybrid_deploy.calibration.rough_tables import (
    Margin,
    certain_margin,
    likely_margin,
    seven_bits,
)
from hybrid_deploy.calibration.short_tables import shorten_tables
from hybrid_deploy.calibration.stored_weights import block_for, store_weight
from hybrid_deploy.calibration.weights import quantize_in_blocks, quantize_per_channel
from hybrid_deploy.contract import CANDIDATES, HIDDEN, LOGITS, MARGIN, GraphRole

LEAST_WORDS = 4096
"""Smaller vocabularies are projected in less time than two stages take."""

_DOMAIN = "com.microsoft"
_BLOCK = 128


@dataclass(frozen=True)
class _Projection:
    """The operator that gives the logits.

    Attributes:
        node: MatMul or Gemm.
        hidden: (batch, width), what it projects.
        table: (vocabulary, width), as the embedding has it.
        bias: (vocabulary,), None without.
    """

    node: ir.Node
    hidden: ir.Value
    table: NDArray[np.float32]
    bias: ir.Value | None


def project_roughly(graphs: Mapping[GraphRole, ir.Model], *, certain: bool) -> ir.Model | None:
    """Rewrites the graphs that return logits in place, and gives the graph that refines them.

    Args:
        graphs: prefill and step, the projection in float32.
        certain: whether the tokens must be those of the float projection.

    Returns:
        hidden (1, width), candidates (n,) -> logits (1, n); None where the projection is too small
        or of another form, and nothing was changed.
    """
    found = {role: _projection(model) for role, model in graphs.items()}
    first = found[GraphRole.STEP]
    if first is None or len(first.table) < LEAST_WORDS or GraphRole.PREFILL not in graphs:
        return None
    same = {r: p for r, p in found.items() if p and np.array_equal(p.table, first.table)}
    if len(same) < len(graphs):
        return None
    refining = _refining(graphs[GraphRole.STEP], first)
    for role, projection in same.items():
        rewrite = _in_seven_bits if certain else _in_four_bits
        rewrite(graphs[role].graph, projection)
    if not certain:
        shorten_tables(refining)
    return refining


def _projection(model: ir.Model) -> _Projection | None:
    logits = next((value for value in model.graph.outputs if value.name == LOGITS), None)
    node, bias = None if logits is None else logits.producer(), None
    if node is not None and node.op_type == "Add":
        constants = [v for v in node.inputs if v is not None and v.const_value is not None]
        products = [v for v in node.inputs if v is not None and v.const_value is None]
        if len(constants) != 1 or len(products) != 1:
            return None
        bias, node = constants[0], products[0].producer()
    if node is None or node.op_type not in ("MatMul", "Gemm") or node.domain:
        return None
    hidden, weight = node.inputs[:2]
    if hidden is None or hidden.shape is None or hidden.shape.rank() != 2 or weight is None:
        return None
    scaled = any(node.attributes.get_float(name, 1.0) != 1.0 for name in ("alpha", "beta"))
    if weight.const_value is None or weight.dtype is not ir.DataType.FLOAT or scaled:
        return None
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        bias = node.inputs[2]
    array = weight.const_value.numpy()
    table = array if node.attributes.get_int("transB", 0) else array.T
    plain = bias is None or (bias.const_value is not None and bias.const_value.size == len(table))
    return _Projection(node, hidden, table, bias) if plain else None


def _in_seven_bits(graph: ir.Graph, projection: _Projection) -> None:
    values, scale, stored = seven_bits(projection.table)
    old = next(value for value in graph.outputs if value.name == LOGITS)
    last = old.producer()
    assert last is not None
    inputs = [
        projection.hidden,
        constant(graph, "projection_rough", np.ascontiguousarray(values.T)),
        constant(graph, "projection_rough_scale", scale),
        *([] if projection.bias is None else [None, projection.bias]),
    ]
    product = ir.node("DynamicQuantizeMatMul", inputs, domain=_DOMAIN, name="project_roughly")
    graph.insert_before(last, product)
    old.name = f"{LOGITS}_float"
    graph.outputs[graph.outputs.index(old)] = name_value(product, LOGITS, old.shape)
    _return_margin(graph, projection.hidden, certain_margin(projection.table, stored))
    graph.remove([last, *([projection.node] if projection.node is not last else [])], safe=True)
    drop_unused_constants(graph)
    graph.opset_imports[_DOMAIN] = 1


def _in_four_bits(graph: ir.Graph, projection: _Projection) -> None:
    linear = Linear(projection.node, 1)
    block = block_for(linear, _BLOCK)
    if block is None:  # the numbers are not known to divide; 8 bits per channel are close
        stored = quantize_per_channel(LOGITS, projection.table, 0).restored
        store_weight(graph, linear, INT8)
    else:
        stored = quantize_in_blocks(LOGITS, projection.table, block, 1, INT4).restored
        store_weight(graph, linear, INT4, block)
    _return_margin(graph, projection.hidden, likely_margin(projection.table, stored))
    drop_unused_constants(graph)


def _return_margin(graph: ir.Graph, hidden: ir.Value, margin: Margin) -> None:
    """Lets a graph return the row that is projected, and the margin of its logits."""
    row = ir.node("Identity", [hidden], name="row_to_project")
    nodes = _margin(graph, hidden, margin)
    graph.extend([row, *nodes])
    graph.outputs.append(name_value(row, HIDDEN, hidden.shape))
    rows = None if hidden.shape is None else ir.Shape([hidden.shape[0]])
    graph.outputs.append(name_value(nodes[-1], MARGIN, rows))


def _margin(graph: ir.Graph, hidden: ir.Value, margin: Margin) -> list[ir.Node]:
    """Writes the margin of each row as nodes."""
    axis = constant(graph, "margin_axis", np.array([-1]))
    zero = constant(graph, "margin_zero", np.zeros(1, np.float32))
    by_norm = constant(graph, "margin_by_norm", np.full(1, margin.by_norm, np.float32))
    by_spread = constant(graph, "margin_by_spread", np.full(1, margin.by_spread, np.float32))
    nodes: list[ir.Node] = []

    def add(shape: list[Any], operator: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
        nodes.append(ir.node(operator, inputs, attributes))
        return name_value(nodes[-1], f"margin_{len(nodes)}", ir.Shape(shape))

    rows = list(hidden.shape or [None])[:1]
    top = add([1], "Max", add([], "ReduceMax", hidden, keepdims=0), zero)
    bottom = add([1], "Min", add([], "ReduceMin", hidden, keepdims=0), zero)
    of_rounding = add([1], "Mul", add([1], "Sub", top, bottom), by_spread)
    norm = add(rows, "ReduceL2", hidden, axis, keepdims=0)
    add(rows, "Add", add(rows, "Mul", norm, by_norm), of_rounding)
    return nodes


def _refining(step: ir.Model, projection: _Projection) -> ir.Model:
    """Makes the graph that projects a row to some tokens."""
    hidden = ir.val(HIDDEN, ir.DataType.FLOAT, ir.Shape([1, projection.table.shape[1]]))
    tokens = ir.val(CANDIDATES, ir.DataType.INT64, ir.Shape([CANDIDATES]))
    opset = step.graph.opset_imports[""]
    graph = ir.Graph([hidden, tokens], [], nodes=[], opset_imports={"": opset}, name="refine")
    tables = [constant(graph, "projection_table", projection.table)]
    if projection.bias is not None and projection.bias.const_value is not None:
        tables.append(constant(graph, "projection_bias", projection.bias.const_value.numpy()))
    rows = [ir.node("Gather", [table, tokens], {"axis": 0}) for table in tables]
    product = ir.node("Gemm", [hidden, *(row.outputs[0] for row in rows)], {"transB": 1})
    graph.extend([*rows, product])
    graph.outputs.append(name_value(product, LOGITS, ir.Shape([1, CANDIDATES])))
    return ir.Model(graph, ir_version=step.ir_version)
