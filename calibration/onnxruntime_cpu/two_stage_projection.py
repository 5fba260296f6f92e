"""The vocabulary projection in two stages: approximate logits of all tokens, exact ones of a few.

    graph          BEFORE                      AFTER
    step, prefill  row                         row -> hidden
                   MatMul or Gemm (table)      DynamicQuantizeMatMul (table in 7 bits)
                   logits                      logits (approximate), margin (the error bound)
    refine                                     hidden, candidates
                                               Gemm (Gather (table, candidates)) -> logits (exact)

The projection is the largest matrix of most decoders, and greedy decoding reads all of it to find
one token. Here a token reads the low-bit copy, and the exact weights only of the tokens whose
approximate logit lies within two error bounds of the largest one: no other token can be the best.
The error bound holds always, so the tokens are those of the float projection.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from hybrid_deploy.calibration.graphs.graph_edits import (
    constant,
    drop_unused_constants,
    name_value,
)
from hybrid_deploy.calibration.onnxruntime_cpu.projection_bounds import (
    ErrorBound,
    guaranteed_bound,
    round_to_seven_bits,
)
from hybrid_deploy.calibration.qdq.vocabulary_projection import (
    MIN_VOCABULARY,
    VocabularyProjection,
    vocabulary_projection,
)
from hybrid_deploy.contract import CANDIDATES, ERROR_BOUND, HIDDEN, LOGITS, GraphRole

_DOMAIN = "com.microsoft"


def two_stage_projection(graphs: Mapping[GraphRole, ir.Model]) -> ir.Model | None:
    """Makes prefill and step return approximate logits, in place, and returns the refine graph.

    Args:
        graphs: prefill and step by role, with the projection in float32.

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
        _approximate_in_seven_bits(graphs[role].graph, projection)
    return refine_graph


def _has_conflicting_outputs(model: ir.Model) -> bool:
    """Returns whether a graph has outputs with the names of the outputs to be added."""
    return bool({HIDDEN, ERROR_BOUND} & {value.name for value in model.graph.outputs})


def _match_projection(model: ir.Model) -> VocabularyProjection | None:
    """Returns the projection whose product, with its bias, is the logits; None for another one."""
    projection = vocabulary_projection(model.graph)
    if projection is None or projection.output.name != LOGITS or projection.output.uses():
        return None
    hidden = projection.linear.activation
    return projection if hidden.shape is not None and hidden.shape.rank() == 2 else None


def _approximate_in_seven_bits(graph: ir.Graph, projection: VocabularyProjection) -> None:
    values, scale, stored = round_to_seven_bits(projection.table)
    exact_logits = next(value for value in graph.outputs if value.name == LOGITS)
    last_node = exact_logits.producer()
    assert last_node is not None
    inputs = [
        projection.linear.activation,
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
    _return_row_and_error_bound(graph, projection.linear.activation, error_bound)
    replaced = list(dict.fromkeys([last_node, projection.linear.node]))
    graph.remove(replaced, safe=True)
    drop_unused_constants(graph)
    graph.opset_imports[_DOMAIN] = 1


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


def _refine_graph(step: ir.Model, projection: VocabularyProjection) -> ir.Model:
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
