"""Specializes a graph to one batch size: the symbolic batch dimension becomes a number.

before   token (batch,)     Shape(token) -> Concat(., 4, 16) -> Reshape(x, .)
after    token (1,)         Reshape(x, [1, 4, 16])
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import onnx_ir as ir
import onnx_ir.passes.common as ir_passes
import onnxscript.optimizer

from hybrid_deploy.contract import BATCH_DIM
from hybrid_deploy.onnx_graphs.dim_expressions import evaluate_size


def fix_batch(model: ir.Model, batch: int) -> None:
    """Replaces the batch dimension in place and folds the values that are computed from it.

    Args:
        model: a graph whose symbolic batch dimension is called `batch`.
        batch: the only batch size that the graph takes afterwards.
    """
    for value in _values(model.graph):
        if value.shape is not None:
            value.shape = ir.Shape(
                dim if isinstance(dim, int) else _without_batch(dim, batch) for dim in value.shape
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


def _without_batch(dim: ir.SymbolicDim, batch: int) -> int | ir.SymbolicDim:
    """Returns a dimension with the batch as a number; other names stay."""
    try:
        return dim.evaluate({BATCH_DIM: batch})
    except ValueError:  # a function such as CeilToInt, which onnx_ir does not know
        text = re.sub(rf"\b{BATCH_DIM}\b", str(batch), str(dim.value))
    size = evaluate_size(text, {})
    return ir.SymbolicDim(text) if size is None else size


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    for node in graph.all_nodes():
        yield from node.outputs
