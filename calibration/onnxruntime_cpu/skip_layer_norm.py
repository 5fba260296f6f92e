"""A residual sum and the normalization of it, as ONNX Runtime's SkipLayerNormalization.

ONNX Runtime merges the two by itself in graphs with a length axis; a step has none. For one row the
three calls that each layer saves are 1 to 2 % of a step; for the many rows of an encoder the merged
operator is slower than the two (see `cpu_kernels`).
"""

from __future__ import annotations

import onnx_ir as ir

from hybrid_deploy.calibration.graphs.graph_edits import describe, name_value

_DOMAIN = "com.microsoft"
_SUM = 3  # index of the output that is the sum itself


def fuse_skip_layer_norm(step: ir.Model) -> int:
    """Rewrites a step graph in place; the sums that nobody takes any more are left.

    Returns:
        How many normalizations were merged with the sum before them.
    """
    graph = step.graph
    found = [(node, total) for node in graph if (total := _sum_before(node))]
    for node, total in found:
        _merge(graph, node, total)
    if found:
        graph.opset_imports[_DOMAIN] = 1
    return len(found)


def _sum_before(node: ir.Node) -> ir.Node | None:
    """Returns the sum of two equally large matrices that a node normalizes row by row."""
    if node.op_type != "LayerNormalization" or node.domain or len(node.outputs) != 1:
        return None
    value = node.inputs[0]
    total = None if value is None else value.producer()
    if value is None or total is None or total.op_type != "Add" or total.domain:
        return None
    if value.dtype is not ir.DataType.FLOAT or value.is_graph_output():
        return None
    one, other = (None if term is None else term.shape for term in total.inputs)
    if one is None or other is None or one.rank() != 2 or list(one) != list(other):
        return None
    return total if node.attributes.get_int("axis", -1) in (-1, 1) else None


def _merge(graph: ir.Graph, node: ir.Node, total: ir.Node) -> None:
    old, summed = node.outputs[0], total.outputs[0]
    kept = len(summed.uses()) > 1
    merged = ir.node(
        "SkipLayerNormalization",
        [*total.inputs, *node.inputs[1:]],
        {"epsilon": node.attributes.get_float("epsilon", 1e-5)},
        domain=_DOMAIN,
        num_outputs=_SUM + 1 if kept else 1,
        name=f"{old.name}_merged",
    )
    graph.insert_before(node, merged)
    name_value(merged, str(old.name), old.shape)
    old.name = f"{old.name}_alone"
    old.replace_all_uses_with(merged.outputs[0], replace_graph_outputs=True)
    if kept:
        again = merged.outputs[_SUM]
        describe(again, f"{summed.name}_merged", summed, ir.DataType.FLOAT)
        for skipped in merged.outputs[1:_SUM]:
            skipped.name = ""
        summed.replace_all_uses_with(again)
