"""A step with exact logits, made from a step with approximate logits and its refine graph.

BEFORE                                          AFTER
step:   row -> approximate projection           step:  row -> Gemm (table, bias)
        -> logits, hidden, margin                      -> logits
refine: hidden, candidates
        -> Gemm (Gather (table, candidates))
        -> logits
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from hybrid_deploy.calibration.graphs.graph_edits import drop_unused_constants
from hybrid_deploy.contract import CANDIDATES, ERROR_BOUND, HIDDEN, LOGITS


def with_exact_logits(step: ir.Model, refine_graph: ir.Model) -> ir.Model:
    """Returns a step that computes its logits with the exact weights of the refine graph.

    Args:
        step: the step that returns approximate logits, the projected rows and the error bound; it
            is not changed.
        refine_graph: the graph that computes the exact logits of some tokens; it is not changed,
            and the returned step shares its weights.

    Returns:
        The step that returns the exact logits of all tokens, but neither rows nor error bound.
    """
    model, refine_copy = step.clone(), refine_graph.clone()
    graph = model.graph
    refine_inputs = {str(value.name): value for value in refine_copy.graph.inputs}
    outputs = {value.name: value for value in graph.outputs}
    identity = outputs[HIDDEN].producer()
    assert identity is not None and identity.inputs[0] is not None, "hidden is an Identity"
    refine_inputs[HIDDEN].replace_all_uses_with(identity.inputs[0])
    for node in list(refine_copy.graph):
        if node.op_type == "Gather" and node.inputs[1] is refine_inputs[CANDIDATES]:
            assert node.inputs[0] is not None, "the table of the looked-up tokens"
            node.outputs[0].replace_all_uses_with(node.inputs[0])
    exact = refine_copy.graph.outputs[0]
    approximate = outputs[LOGITS]
    approximate.name, exact.shape = f"{LOGITS}_rough", approximate.shape
    _move_graph_into(graph, refine_copy.graph)
    step_outputs = [value for value in graph.outputs if value.name not in (HIDDEN, ERROR_BOUND)]
    graph.outputs[:] = [exact if value is approximate else value for value in step_outputs]
    RemoveUnusedNodesPass()(model)
    drop_unused_constants(graph)
    return model


def _move_graph_into(graph: ir.Graph, source: ir.Graph) -> None:
    """Moves the used nodes and initializers of `source` to the end of a graph."""
    nodes, initializers = list(source), list(source.initializers.values())
    source.outputs.clear()
    source.remove(nodes)
    source.initializers.clear()
    for initializer in initializers:
        if initializer.uses():
            graph.register_initializer(initializer)
    for node in nodes:
        if any(value.uses() or value.name == LOGITS for value in node.outputs):
            graph.append(node)
