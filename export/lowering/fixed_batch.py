"""Graphs for one batch size: the symbolic batch dimension becomes a number."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir
import onnx_ir.passes.common as ir_passes
import onnxscript.optimizer

from hybrid_deploy.contract import BATCH_DIM


def fix_batch(model: ir.Model, batch: int) -> None:
    """Replaces the batch dimension in place; what was computed of it becomes a constant.

    Args:
        model: its inputs and outputs call their first dimension `batch`.
        batch: the one size that the graph will take.
    """
    sizes = {BATCH_DIM: batch}
    for value in _values(model.graph):
        if value.shape is not None:
            value.shape = ir.Shape(
                dim if isinstance(dim, int) else dim.evaluate(sizes) for dim in value.shape
            )
    onnxscript.optimizer.fold_constants(model)
    ir.passes.Sequential(
        ir_passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        ir_passes.IdentityEliminationPass(),
        ir_passes.CommonSubexpressionEliminationPass(),
        ir_passes.RemoveUnusedNodesPass(),
        ir_passes.ClearMetadataAndDocStringPass(),
        ir_passes.CheckerPass(),
    )(model)


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    for node in graph.all_nodes():
        yield from node.outputs
