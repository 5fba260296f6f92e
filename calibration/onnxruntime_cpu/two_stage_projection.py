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

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from hybrid_deploy.calibration.graphs.graph_edits import (
    constant,
    drop_unused_constants,
    name_value,
    only_user,
)
from hybrid_deploy.calibration.half_precision.float16_embeddings import convert_embeddings
from hybrid_deploy.calibration.onnxruntime_cpu.projection_bounds import (
    ErrorBound,
    guaranteed_bound,
    round_to_seven_bits,
    statistical_bound,
)
from hybrid_deploy.calibration.qdq.linear_operators import linear_operators
from hybrid_deploy.calibration.qdq.low_bit_types import INT4, INT8
from hybrid_deploy.calibration.qdq.stored_weights import largest_block_size, store_weight
from hybrid_deploy.contract import CANDIDATES, HIDDEN, LOGITS, MARGIN, GraphRole

MIN_VOCABULARY = 4096
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


def two_stage_projection(graphs: Mapping[GraphRole, ir.Model], *, exact: bool) -> ir.Model | None:
    """Rewrites the graphs that return logits in place, and gives the graph that refines them.

    Args:
        graphs: prefill and step, the projection in float32.
        exact: whether the tokens must be those of the float projection.

    Returns:
        hidden (1, width), candidates (n,) -> logits (1, n); None where the projection is too small
        or of another form, and nothing was changed.
    """
    found = {role: _projection(model) for role, model in graphs.items()}
    first = found[GraphRole.STEP]
    if first is None or len(first.table) < MIN_VOCABULARY or GraphRole.PREFILL not in graphs:
        return None
    if not np.isfinite(first.table).all() or any(map(_has_such_outputs, graphs.values())):
        return None
    same = {r: p for r, p in found.items() if p and np.array_equal(p.table, first.table)}
    if len(same) < len(graphs):
        return None
    refining = _refining(graphs[GraphRole.STEP], first)
    for role, projection in same.items():
        rewrite = _in_seven_bits if exact else _in_four_bits
        rewrite(graphs[role].graph, projection)
    if not exact:
        convert_embeddings(refining)
    return refining


def _has_such_outputs(model: ir.Model) -> bool:
    """Returns whether a model has heads of its own with the names of what comes in."""
    return bool({HIDDEN, MARGIN} & {value.name for value in model.graph.outputs})


def _projection(model: ir.Model) -> _Projection | None:
    logits = next((value for value in model.graph.outputs if value.name == LOGITS), None)
    if logits is None or logits.uses():
        return None
    node, bias = _without_bias(logits.producer())
    if node is None or node.op_type not in ("MatMul", "Gemm") or node.domain:
        return None
    hidden, weight, *more = node.inputs
    factors = [node.attributes.get_float(name, 1.0) for name in ("alpha", "beta")]
    if factors != [1.0, 1.0] or node.attributes.get_int("transA", False) or (bias and any(more)):
        return None
    if hidden is None or hidden.shape is None or hidden.shape.rank() != 2:
        return None
    if weight is None or weight.const_value is None or weight.dtype is not ir.DataType.FLOAT:
        return None
    array, bias = weight.const_value.numpy(), bias or next(iter(more), None)
    table = array if node.attributes.get_int("transB", False) else array.T
    plain = bias is None or _sizes(bias) == (len(table),)
    return _Projection(node, hidden, table, bias) if table.ndim == 2 and plain else None


def _without_bias(node: ir.Node | None) -> tuple[ir.Node | None, ir.Value | None]:
    """Returns what stands before an Add of a constant, and the constant."""
    if node is None or node.op_type != "Add" or node.domain:
        return node, None
    for value, bias in (node.inputs, reversed(node.inputs)):
        if value is not None and bias is not None and bias.const_value is not None:
            return (value.producer(), bias) if only_user(value) is node else (None, None)
    return None, None


def _sizes(value: ir.Value) -> tuple[int, ...] | None:
    return None if value.const_value is None else tuple(value.const_value.shape.numpy())


def _in_seven_bits(graph: ir.Graph, projection: _Projection) -> None:
    values, scale, stored = round_to_seven_bits(projection.table)
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
    margin = guaranteed_bound(projection.table, stored, _largest_of(projection.bias))
    _return_margin(graph, projection.hidden, margin)
    graph.remove([last, *([projection.node] if projection.node is not last else [])], safe=True)
    drop_unused_constants(graph)
    graph.opset_imports[_DOMAIN] = 1


def _in_four_bits(graph: ir.Graph, projection: _Projection) -> None:
    linear = next(found for found in linear_operators(graph) if found.node is projection.node)
    block = largest_block_size(linear, _BLOCK)
    form = INT8 if block is None else INT4  # 8 bits per channel are close where no block divides
    stored = store_weight(graph, linear, form, block).restored
    margin = statistical_bound(projection.table, stored if linear.channel_axis == 0 else stored.T)
    _return_margin(graph, projection.hidden, margin)
    drop_unused_constants(graph)


def _largest_of(bias: ir.Value | None) -> float:
    """Returns the largest finite magnitude; a token that infinity rules out is never off."""
    if bias is None or bias.const_value is None:
        return 0.0
    return float(np.abs(np.nan_to_num(bias.const_value.numpy(), posinf=0, neginf=0)).max())


def _return_margin(graph: ir.Graph, hidden: ir.Value, margin: ErrorBound) -> None:
    """Lets a graph return the row that is projected, and the margin of its logits."""
    row = ir.node("Identity", [hidden], name="row_to_project")
    nodes = _margin(graph, hidden, margin)
    graph.extend([row, *nodes])
    graph.outputs.append(name_value(row, HIDDEN, hidden.shape))
    rows = None if hidden.shape is None else ir.Shape([hidden.shape[0]])
    graph.outputs.append(name_value(nodes[-1], MARGIN, rows))


def _margin(graph: ir.Graph, hidden: ir.Value, margin: ErrorBound) -> list[ir.Node]:
    """Writes the margin of each row as nodes; ONNX Runtime finds the spread over all rows."""
    axis = constant(graph, "margin_axis", np.array([-1]))
    zero = constant(graph, "margin_zero", np.zeros(1, np.float32))
    by_norm = constant(graph, "margin_by_norm", np.full(1, margin.by_norm, np.float32))
    by_spread = constant(graph, "margin_by_spread", np.full(1, margin.by_spread, np.float32))
    fixed = constant(graph, "margin_fixed", np.full(1, margin.fixed, np.float32))
    nodes: list[ir.Node] = []

    def add(operator: str, rows: ir.Shape, *inputs: ir.Value) -> ir.Value:
        attributes = {"keepdims": 0} if operator.startswith("Reduce") else {}
        nodes.append(ir.node(operator, inputs, attributes))
        return name_value(nodes[-1], f"margin_{len(nodes)}", rows)

    assert hidden.shape is not None
    whole, one, rows = ir.Shape([]), ir.Shape([1]), ir.Shape([hidden.shape[0]])
    top = add("Max", one, add("ReduceMax", whole, hidden), zero)
    bottom = add("Min", one, add("ReduceMin", whole, hidden), zero)
    of_spread = add("Mul", one, add("Sub", one, top, bottom), by_spread)
    of_norm = add("Mul", rows, add("ReduceL2", rows, hidden, axis), by_norm)
    add("Add", rows, of_norm, add("Add", one, of_spread, fixed))
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
