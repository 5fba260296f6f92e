"""The vocabulary projection in two exact stages: all logits roughly, then the few that can win.

The projection is the largest matrix of most decoders, and a token of greedy decoding reads it whole
to find one row. Here its weights are stored in 7 bits as well. The step returns the logits of these
(`logits`), the row that it projects (`hidden`), and how far each logit can be from the true one
(`margin`). What is within two margins of the largest is computed from the float weights by a graph
of its own (`refine`), so that the token is the one of the float projection.

With h the row and g what DynamicQuantizeLinear makes of it, w a column and v its 7 bits:

    |hw - gv|  <=  |h(w - v)| + |(h - g)v|  <=  |h| |w - v|  +  s/2 sqrt(n) |v|

by Cauchy and Schwarz, for n numbers in h and a scale s, since rounding is off by half a step at
most. What float32 itself loses comes to that. 7 bits, not 8: where a CPU has no instruction for
it, ONNX Runtime adds two products of unsigned and signed bytes in 16 bits, and 2 * 255 * 64 fits
these where 2 * 255 * 127 does not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from hybrid_deploy.calibration.constants import constant, drop_unused_constants, name_value
from hybrid_deploy.calibration.neighbours import only_user
from hybrid_deploy.contract import CANDIDATES, HIDDEN, LOGITS, MARGIN, GraphRole

LEAST_WORDS = 4096
"""Smaller vocabularies are projected in less time than two stages take."""

_DOMAIN = "com.microsoft"
_LARGEST = 64
_STEPS = 255
_ROUNDING = 1e-5  # of float32 sums of some thousand products, relative to |h| |w|
_BIAS_ROUNDING = 1e-6  # of the same sums, relative to the bias that begins them
_SLACK = 1.001  # for what the margin's own arithmetic loses


@dataclass(frozen=True)
class _Projection:
    """The operator that gives the logits.

    Attributes:
        node: MatMul or Gemm.
        table: (vocabulary, width), as the embedding has it.
        bias: (vocabulary,), None without.
    """

    node: ir.Node
    table: NDArray[np.float32]
    bias: ir.Value | None


def project_roughly(graphs: Mapping[GraphRole, ir.Model]) -> ir.Model | None:
    """Rewrites the graphs that return logits in place, and gives the graph that refines them.

    Args:
        graphs: prefill and step, the projection in float32.

    Returns:
        hidden (1, width), candidates (n,) -> logits (1, n); None where the projection is too small
        or of another form, and nothing was changed.
    """
    found = {role: _projection(model) for role, model in graphs.items()}
    first = found[GraphRole.STEP]
    if first is None or len(first.table) < LEAST_WORDS or GraphRole.PREFILL not in graphs:
        return None
    if not np.isfinite(first.table).all() or any(map(_has_such_outputs, graphs.values())):
        return None
    same = {r: p for r, p in found.items() if p and np.array_equal(p.table, first.table)}
    if len(same) < len(graphs):
        return None
    refining, rough = _refining(graphs[GraphRole.STEP], first), _Rough.of(first.table)
    for role, projection in same.items():
        _rewrite(graphs[role], projection, rough)
    return refining


@dataclass(frozen=True)
class _Rough:
    """A table in 7 bits.

    Attributes:
        values: (width, vocabulary) int8.
        scale: (vocabulary,).
        error: largest norm of what a row lost.
        norm: largest norm of a row, as it is stored.
    """

    values: NDArray[np.int8]
    scale: NDArray[np.float32]
    error: float
    norm: float

    @staticmethod
    def of(table: NDArray[np.float32]) -> _Rough:
        least = _LARGEST * np.finfo(np.float32).tiny  # so that no scale is 0 or denormal
        scale = np.maximum(np.abs(table).max(1, keepdims=True), least) / np.float32(_LARGEST)
        values = np.rint(table / scale)
        stored = values * scale
        return _Rough(
            np.ascontiguousarray(values.T.astype(np.int8)),
            scale.reshape(-1),
            float(np.linalg.norm(table - stored, axis=1).max()),
            float(np.linalg.norm(stored, axis=1).max()),
        )


def _has_such_outputs(model: ir.Model) -> bool:
    """Tells whether a model has heads of its own with the names of what comes in."""
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
    return _Projection(node, table, bias) if table.ndim == 2 and plain else None


def _without_bias(node: ir.Node | None) -> tuple[ir.Node | None, ir.Value | None]:
    """Gives what stands before an Add of a constant, and the constant."""
    if node is None or node.op_type != "Add" or node.domain:
        return node, None
    for value, bias in (node.inputs, reversed(node.inputs)):
        if value is not None and bias is not None and bias.const_value is not None:
            return (value.producer(), bias) if only_user(value) is node else (None, None)
    return None, None


def _sizes(value: ir.Value) -> tuple[int, ...] | None:
    return None if value.const_value is None else tuple(value.const_value.shape.numpy())


def _rewrite(model: ir.Model, projection: _Projection, rough: _Rough) -> None:
    graph, hidden = model.graph, projection.node.inputs[0]
    old = next(value for value in graph.outputs if value.name == LOGITS)
    last = old.producer()
    assert hidden is not None and hidden.shape is not None and last is not None
    inputs = [
        hidden,
        constant(graph, "projection_rough", rough.values),
        constant(graph, "projection_rough_scale", rough.scale),
        *([] if projection.bias is None else [None, projection.bias]),
    ]
    product = ir.node("DynamicQuantizeMatMul", inputs, domain=_DOMAIN, name="project_roughly")
    row = ir.node("Identity", [hidden], name="row_to_project")
    margin = _margin(graph, hidden, rough, _largest_of(projection.bias))
    graph.insert_before(last, [product, row, *margin])
    old.name = f"{LOGITS}_float"
    graph.outputs[graph.outputs.index(old)] = name_value(product, LOGITS, old.shape)
    graph.outputs.append(name_value(row, HIDDEN, hidden.shape))
    graph.outputs.append(name_value(margin[-1], MARGIN, ir.Shape([hidden.shape[0]])))
    graph.remove([last, *([projection.node] if projection.node is not last else [])], safe=True)
    drop_unused_constants(graph)
    graph.opset_imports[_DOMAIN] = 1


def _largest_of(bias: ir.Value | None) -> float:
    """Gives the largest finite magnitude; a token that infinity rules out is never off."""
    if bias is None or bias.const_value is None:
        return 0.0
    return float(np.abs(np.nan_to_num(bias.const_value.numpy(), posinf=0, neginf=0)).max())


def _margin(graph: ir.Graph, hidden: ir.Value, rough: _Rough, bias: float) -> list[ir.Node]:
    """Writes |h| (error + rounding) + (max(h, 0) - min(h, 0)) / 255 / 2 sqrt(n) norm.

    ONNX Runtime finds the range over all rows of a batch; what the bias costs is added last.
    """
    width = rough.values.shape[0]
    of_weight = _SLACK * (rough.error + _ROUNDING * rough.norm)
    of_row = _SLACK * rough.norm * math.sqrt(width) / _STEPS / 2
    axis = constant(graph, "margin_axis", np.array([-1]))
    zero = constant(graph, "margin_zero", np.zeros(1, np.float32))
    by_norm = constant(graph, "margin_by_norm", np.full(1, of_weight, np.float32))
    by_range = constant(graph, "margin_by_range", np.full(1, of_row, np.float32))
    of_bias = constant(graph, "margin_of_bias", np.full(1, _BIAS_ROUNDING * bias, np.float32))
    nodes: list[ir.Node] = []

    def add(operator: str, rows: ir.Shape, *inputs: ir.Value) -> ir.Value:
        attributes = {"keepdims": 0} if operator.startswith("Reduce") else {}
        nodes.append(ir.node(operator, inputs, attributes))
        return name_value(nodes[-1], f"margin_{len(nodes)}", rows)

    assert hidden.shape is not None
    whole, one, rows = ir.Shape([]), ir.Shape([1]), ir.Shape([hidden.shape[0]])
    top = add("Max", one, add("ReduceMax", whole, hidden), zero)
    bottom = add("Min", one, add("ReduceMin", whole, hidden), zero)
    of_range = add("Mul", one, add("Sub", one, top, bottom), by_range)
    of_norm = add("Mul", rows, add("ReduceL2", rows, hidden, axis), by_norm)
    add("Add", rows, of_norm, add("Add", one, of_range, of_bias))
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
