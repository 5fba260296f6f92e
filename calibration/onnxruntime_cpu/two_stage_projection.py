"""The vocabulary projection in two stages: approximate logits of all tokens, exact ones of a few.

    graph          BEFORE                      AFTER
    step, prefill  row                         row -> hidden
                   MatMul or Gemm (table)      7 bits: DynamicQuantizeMatMul (int8 table), or
                                               4 bits: MatMul (DequantizeLinear of the table)
                   logits                      logits (approximate), margin (the error bound)
    refine                                     hidden, candidates
                                               Gemm (Gather (table, candidates)) -> logits (exact)

The projection is the largest matrix of most decoders, and greedy decoding reads all of it to find
one token. Here a token reads the low-bit copy, and the exact weights only of the tokens whose
approximate logit lies within two error bounds of the largest one: no other token can be the best.

For the float form, the copy has 7 bits and the error bound holds always, so that the tokens are
those of the float projection. For quantized forms, the copy has 4 bits, the error bound holds
nearly always, and the exact weights are float16.
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
from hybrid_deploy.contract import CANDIDATES, ERROR_BOUND, HIDDEN, LOGITS, GraphRole

MIN_VOCABULARY = 4096
"""Least vocabulary size, in tokens; a smaller one is projected faster in one stage."""

_DOMAIN = "com.microsoft"
_MAX_BLOCK = 128


@dataclass(frozen=True)
class _Projection:
    """The operator that computes the logits.

    Attributes:
        node: the MatMul or Gemm.
        hidden: the projected rows, (batch, width).
        table: the weight in the embedding's orientation, (vocabulary, width).
        bias: the constant bias, (vocabulary,); None if nothing is added.
    """

    node: ir.Node
    hidden: ir.Value
    table: NDArray[np.float32]
    bias: ir.Value | None


def two_stage_projection(graphs: Mapping[GraphRole, ir.Model], *, exact: bool) -> ir.Model | None:
    """Makes prefill and step return approximate logits, in place, and returns the refine graph.

    Args:
        graphs: prefill and step by role, with the projection in float32.
        exact: whether the tokens must be those of the float projection: the error bound holds
            always, and the refine graph keeps float32 weights.

    Returns:
        The refine graph, hidden (1, width) float32, candidates (n,) int64 -> logits (1, n) float32.
        None, with the graphs unchanged, where the vocabulary is small, a projection has another
        form or a weight that is not finite, an output has one of the new names, or there is no
        prefill.
    """
    projections = {role: _match_projection(model) for role, model in graphs.items()}
    step_projection = projections[GraphRole.STEP]
    if step_projection is None or GraphRole.PREFILL not in graphs:
        return None
    table = step_projection.table
    if len(table) < MIN_VOCABULARY or not np.isfinite(table).all():
        return None
    if any(map(_has_conflicting_outputs, graphs.values())):
        return None
    sharing = {r: p for r, p in projections.items() if p and np.array_equal(p.table, table)}
    if len(sharing) < len(graphs):
        return None
    refine_graph = _refine_graph(graphs[GraphRole.STEP], step_projection)
    for role, projection in sharing.items():
        approximate = _approximate_in_seven_bits if exact else _approximate_in_four_bits
        approximate(graphs[role].graph, projection)
    if not exact:
        convert_embeddings(refine_graph)
    return refine_graph


def _has_conflicting_outputs(model: ir.Model) -> bool:
    """Returns whether a graph has outputs with the names of the outputs to be added."""
    return bool({HIDDEN, ERROR_BOUND} & {value.name for value in model.graph.outputs})


def _match_projection(model: ir.Model) -> _Projection | None:
    logits = next((value for value in model.graph.outputs if value.name == LOGITS), None)
    if logits is None or logits.uses():
        return None
    node, bias = _before_bias(logits.producer())
    if node is None or node.op_type not in ("MatMul", "Gemm") or node.domain:
        return None
    hidden, weight, *gemm_bias = node.inputs
    factors = [node.attributes.get_float(name, 1.0) for name in ("alpha", "beta")]
    if factors != [1.0, 1.0] or node.attributes.get_int("transA", False):
        return None
    if bias and any(gemm_bias):
        return None
    if hidden is None or hidden.shape is None or hidden.shape.rank() != 2:
        return None
    if weight is None or weight.const_value is None or weight.dtype is not ir.DataType.FLOAT:
        return None
    weight_array, bias = weight.const_value.numpy(), bias or next(iter(gemm_bias), None)
    table = weight_array if node.attributes.get_int("transB", False) else weight_array.T
    is_bias_row = bias is None or _constant_shape(bias) == (len(table),)
    return _Projection(node, hidden, table, bias) if table.ndim == 2 and is_bias_row else None


def _before_bias(node: ir.Node | None) -> tuple[ir.Node | None, ir.Value | None]:
    """Returns the node before an Add of a constant, and the constant; the node itself without."""
    if node is None or node.op_type != "Add" or node.domain:
        return node, None
    for value, bias in (node.inputs, reversed(node.inputs)):
        if value is not None and bias is not None and bias.const_value is not None:
            return (value.producer(), bias) if only_user(value) is node else (None, None)
    return None, None


def _constant_shape(value: ir.Value) -> tuple[int, ...] | None:
    return None if value.const_value is None else tuple(value.const_value.shape.numpy())


def _approximate_in_seven_bits(graph: ir.Graph, projection: _Projection) -> None:
    values, scale, stored = round_to_seven_bits(projection.table)
    exact_logits = next(value for value in graph.outputs if value.name == LOGITS)
    last_node = exact_logits.producer()
    assert last_node is not None
    inputs = [
        projection.hidden,
        constant(graph, "projection_rough", np.ascontiguousarray(values.T)),
        constant(graph, "projection_rough_scale", scale),
        *([] if projection.bias is None else [None, projection.bias]),
    ]
    product = ir.node("DynamicQuantizeMatMul", inputs, domain=_DOMAIN, name="project_roughly")
    graph.insert_before(last_node, product)
    exact_logits.name = f"{LOGITS}_float"
    approximate_logits = name_value(product, LOGITS, exact_logits.shape)
    graph.outputs[graph.outputs.index(exact_logits)] = approximate_logits
    error_bound = guaranteed_bound(projection.table, stored, _largest_bias(projection.bias))
    _return_row_and_error_bound(graph, projection.hidden, error_bound)
    replaced = [last_node] if projection.node is last_node else [last_node, projection.node]
    graph.remove(replaced, safe=True)
    drop_unused_constants(graph)
    graph.opset_imports[_DOMAIN] = 1


def _approximate_in_four_bits(graph: ir.Graph, projection: _Projection) -> None:
    linear = next(op for op in linear_operators(graph) if op.node is projection.node)
    block_size = largest_block_size(linear, _MAX_BLOCK)
    # int4 needs blocks; where none divides the width, int8 with one scale per channel is close
    low_bit_type = INT8 if block_size is None else INT4
    stored = store_weight(graph, linear, low_bit_type, block_size).restored
    stored_table = stored if linear.channel_axis == 0 else stored.T
    error_bound = statistical_bound(projection.table, stored_table)
    _return_row_and_error_bound(graph, projection.hidden, error_bound)
    drop_unused_constants(graph)


def _largest_bias(bias: ir.Value | None) -> float:
    """Returns the largest finite magnitude; a token with an infinite bias has no error."""
    if bias is None or bias.const_value is None:
        return 0.0
    return float(np.abs(np.nan_to_num(bias.const_value.numpy(), posinf=0, neginf=0)).max())


def _return_row_and_error_bound(graph: ir.Graph, hidden: ir.Value, error_bound: ErrorBound) -> None:
    """Adds the projected rows and the error bound of their logits to a graph's outputs."""
    identity = ir.node("Identity", [hidden], name="row_to_project")
    nodes = _error_bound_nodes(graph, hidden, error_bound)
    graph.extend([identity, *nodes])
    graph.outputs.append(name_value(identity, HIDDEN, hidden.shape))
    batch_shape = None if hidden.shape is None else ir.Shape([hidden.shape[0]])
    graph.outputs.append(name_value(nodes[-1], ERROR_BOUND, batch_shape))


def _error_bound_nodes(graph: ir.Graph, hidden: ir.Value, error_bound: ErrorBound) -> list[ir.Node]:
    """Returns the nodes that compute the error bound of each row.

    The spread is that of all rows together, since ONNX Runtime quantizes them with one scale.
    """
    axis = constant(graph, "margin_axis", np.array([-1]))
    zero = constant(graph, "margin_zero", np.zeros(1, np.float32))
    by_norm = constant(graph, "margin_by_norm", np.full(1, error_bound.by_norm, np.float32))
    by_spread = constant(graph, "margin_by_spread", np.full(1, error_bound.by_spread, np.float32))
    fixed = constant(graph, "margin_fixed", np.full(1, error_bound.fixed, np.float32))
    nodes: list[ir.Node] = []

    def add(operator: str, shape: ir.Shape, *inputs: ir.Value) -> ir.Value:
        attributes = {"keepdims": 0} if operator.startswith("Reduce") else {}
        nodes.append(ir.node(operator, inputs, attributes))
        return name_value(nodes[-1], f"margin_{len(nodes)}", shape)

    assert hidden.shape is not None
    scalar, single, per_row = ir.Shape([]), ir.Shape([1]), ir.Shape([hidden.shape[0]])
    largest = add("Max", single, add("ReduceMax", scalar, hidden), zero)
    smallest = add("Min", single, add("ReduceMin", scalar, hidden), zero)
    spread_part = add("Mul", single, add("Sub", single, largest, smallest), by_spread)
    norm_part = add("Mul", per_row, add("ReduceL2", per_row, hidden, axis), by_norm)
    add("Add", per_row, norm_part, add("Add", single, spread_part, fixed))
    return nodes


def _refine_graph(step: ir.Model, projection: _Projection) -> ir.Model:
    """Returns the graph that computes the exact logits of some tokens from a row."""
    hidden = ir.val(HIDDEN, ir.DataType.FLOAT, ir.Shape([1, projection.table.shape[1]]))
    tokens = ir.val(CANDIDATES, ir.DataType.INT64, ir.Shape([CANDIDATES]))
    opset = step.graph.opset_imports[""]
    graph = ir.Graph([hidden, tokens], [], nodes=[], opset_imports={"": opset}, name="refine")
    tables = [constant(graph, "projection_table", projection.table)]
    if projection.bias is not None and projection.bias.const_value is not None:
        tables.append(constant(graph, "projection_bias", projection.bias.const_value.numpy()))
    gathered = [ir.node("Gather", [table, tokens], {"axis": 0}) for table in tables]
    product = ir.node("Gemm", [hidden, *(gather.outputs[0] for gather in gathered)], {"transB": 1})
    graph.extend([*gathered, product])
    graph.outputs.append(name_value(product, LOGITS, ir.Shape([1, CANDIDATES])))
    return ir.Model(graph, ir_version=step.ir_version)
