"""A step whose logits are all true, made of one whose logits are rough."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from hybrid_deploy.calibration.graphs.graph_edits import drop_unused_constants
from hybrid_deploy.contract import CANDIDATES, HIDDEN, LOGITS, MARGIN


def with_exact_logits(step: ir.Model, refine_graph: ir.Model) -> ir.Model:
    """Returns a step that projects its rows with the weights of the graph that refines.

    Args:
        step: returns rough logits, the rows that they are made of, and their margin; it is left as
            it is.
        refining: projects a row to some tokens; it is left as it is, and shares its weights.

    Returns:
        The step that returns true logits, and neither rows nor margin.
    """
    model, refine = step.clone(), refine_graph.clone()
    graph, own = model.graph, {str(value.name): value for value in refine.graph.inputs}
    outputs = {value.name: value for value in graph.outputs}
    row = outputs[HIDDEN].producer()
    assert row is not None and row.inputs[0] is not None, "an Identity of what is projected"
    own[HIDDEN].replace_all_uses_with(row.inputs[0])
    for node in list(refine.graph):
        if node.op_type == "Gather" and node.inputs[1] is own[CANDIDATES]:
            assert node.inputs[0] is not None, "the table that tokens are looked up in"
            node.outputs[0].replace_all_uses_with(node.inputs[0])
    true = refine.graph.outputs[0]
    rough = outputs[LOGITS]
    rough.name, true.shape = f"{LOGITS}_rough", rough.shape
    _adopt(graph, refine.graph)
    kept = [value for value in graph.outputs if value.name not in (HIDDEN, MARGIN)]
    graph.outputs[:] = [true if value is rough else value for value in kept]
    RemoveUnusedNodesPass()(model)
    drop_unused_constants(graph)
    return model


def _adopt(graph: ir.Graph, other: ir.Graph) -> None:
    """Moves the weights and nodes of another graph to the end of a graph."""
    nodes, weights = list(other), list(other.initializers.values())
    other.outputs.clear()
    other.remove(nodes)
    other.initializers.clear()
    for weight in weights:
        if weight.uses():
            graph.register_initializer(weight)
    for node in nodes:
        if any(value.uses() or value.name == LOGITS for value in node.outputs):
            graph.append(node)
